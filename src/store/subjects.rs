//! What may be done within a write: who is enrolled, and how a person is erased.

use std::collections::HashSet;

use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::read;
use super::tx::Tx;
use super::{Reference, ReferenceCount, SinkName, StoreError, Subject};
use crate::recognise::face::{ModelDigest, Name, SubjectId, Template};
use crate::record::command::answer;
use crate::record::event::{Body, id_at};
use crate::record::seal::Belongs;

/// A template to be enrolled.
#[derive(Clone, Debug, PartialEq)]
pub struct NewReference {
    pub subject_id: SubjectId,
    pub embedder: ModelDigest,
    pub template: Template,
    /// Of the sample, 0.0..=1.0.
    pub quality: f32,
}

/// What erasing a person took out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Whether the subject was enrolled, or withdrawn but not erased; one of whom that is not known may still stand in
    /// events.
    pub enrolled: bool,
    pub references: u32,
    pub events: u32,
    /// Stored answers, and replies on their way.
    pub replies: u32,
}

/// What other records are told of an erasure: whose, and up to which of this device's events. It stands in the outbox
/// until they have done the same, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    pub subject_id: SubjectId,
    /// The newest event at that moment.
    pub seq: i64,
    pub at_ms: i64,
    /// Whether the wall clock was trusted then.
    pub trusted: bool,
}

/// Where an erasure stands in the outbox.
pub(super) const ERASURE: &str = "erasure";

impl Tx<'_> {
    /// Enrols a subject, or gives one a new name; the time of the first enrolment stays.
    pub fn put_subject(&mut self, id: &SubjectId, name: &Name) -> Result<(), StoreError> {
        let sql = "insert into subject (id, name, enrolled_ms) values (?1, ?2, ?3) \
                   on conflict (id) do update set name = ?2";
        let now_ms = self.now().wall_ms;
        self.conn.prepare(sql)?.execute(params![id.as_str(), name.as_str(), now_ms])?;
        self.raise(id)
    }

    pub fn rename_subject(&mut self, id: &SubjectId, name: &Name) -> Result<(), StoreError> {
        let sql = "update subject set name = ?2 where id = ?1";
        match self.conn.prepare(sql)?.execute(params![id.as_str(), name.as_str()])? {
            0 => Err(StoreError::UnknownSubject { id: id.clone() }),
            _ => self.raise(id),
        }
    }

    pub fn subject(&self, id: &SubjectId) -> Result<Option<Subject>, StoreError> {
        read::subject(self.conn, id)
    }

    /// Sorted by id, after `after`.
    pub fn subjects(
        &self,
        after: Option<&SubjectId>,
        limit: u32,
    ) -> Result<Vec<Subject>, StoreError> {
        read::subjects(self.conn, after, limit)
    }

    /// Seals templates and adds them to subjects that exist. Gives their ids.
    pub fn add_references(&mut self, references: &[NewReference]) -> Result<Vec<Uuid>, StoreError> {
        let now = self.now();
        let exists = "select exists (select 1 from subject where id = ?1)";
        let insert = "insert into reference (id, subject_id, embedder, sealed, quality, created_ms) \
                      values (?1, ?2, ?3, ?4, ?5, ?6)";
        let mut ids = Vec::with_capacity(references.len());
        let mut changed = HashSet::new();
        for NewReference { subject_id, embedder, template, quality } in references {
            let known: bool =
                self.conn.prepare(exists)?.query_row([subject_id.as_str()], |row| row.get(0))?;
            if !known {
                return Err(StoreError::UnknownSubject { id: subject_id.clone() });
            }
            let id = id_at(&now);
            let sealed = self
                .setting
                .key
                .seal(template, Belongs { subject_id, reference_id: &id, embedder })?;
            self.conn.prepare(insert)?.execute(params![
                id.as_bytes(),
                subject_id.as_str(),
                embedder.0,
                sealed,
                quality,
                now.wall_ms
            ])?;
            ids.push(id);
            if changed.insert(subject_id) {
                self.raise(subject_id)?;
            }
        }
        Ok(ids)
    }

    /// The new references of a subject take the place of all it had, those of other embedders too.
    pub fn replace_references(
        &mut self,
        subject_id: &SubjectId,
        references: &[NewReference],
    ) -> Result<Vec<Uuid>, StoreError> {
        self.delete_references(subject_id)?;
        self.add_references(references)
    }

    pub(super) fn delete_references(&self, subject_id: &SubjectId) -> Result<u32, StoreError> {
        let sql = "delete from reference where subject_id = ?1";
        Ok(self.conn.prepare(sql)?.execute([subject_id.as_str()])? as u32)
    }

    /// Withdraws a subject: name and references go, events stay. Gives how many references there were.
    pub fn delete_subject(&mut self, id: &SubjectId) -> Result<u32, StoreError> {
        let references = self.delete_references(id)?;
        let before = self.account(id)?;
        match self.conn.prepare("delete from subject where id = ?1")?.execute([id.as_str()])? {
            0 => Err(StoreError::UnknownSubject { id: id.clone() }),
            _ => self.withdrawn(id, before.as_ref(), false).map(|()| references),
        }
    }

    /// Shows each reference of one embedder, opened, in the order of enrolment.
    pub fn all_references(
        &self,
        embedder: &ModelDigest,
        visit: impl FnMut(Reference),
    ) -> Result<ReferenceCount, StoreError> {
        read::all_references(self.conn, &self.setting.key, embedder, visit)
    }

    /// Takes a person out of everything: references, subject, events, answers, what is still owed. That somebody
    /// passed stays; who it was does not. Once it is on the disk the database is written
    /// anew, so that no file has the name: that takes time in proportion to the database, during which others wait.
    ///
    /// A `request_id` stays as it is, so that the command is not carried out again; so do databases that were set
    /// aside, and the id in the table of erasures.
    pub fn erase_subject(&mut self, id: &SubjectId) -> Result<Erased, StoreError> {
        self.erase_as_asked(id, None)
    }

    /// The same, with the command that asked for it.
    pub fn erase_as_asked(
        &mut self,
        id: &SubjectId,
        request_id: Option<&str>,
    ) -> Result<Erased, StoreError> {
        let mut names = self.names_in_events(id)?;
        let subject = self.subject(id)?;
        let before = self.account(id)?;
        names.extend(subject.iter().map(|it| it.name.as_str().to_owned()));
        let erased = Erased {
            enrolled: before.as_ref().is_some_and(|it| !it.erased),
            events: self.erase_from_events(id)?,
            replies: self.erase_from_replies(id, &names)?,
            references: self.delete_references(id)?,
        };
        self.conn.execute("delete from subject where id = ?1", [id.as_str()])?;
        self.withdrawn(id, before.as_ref(), true)?;
        let mongo_row = self.owe_erasure(id)?;
        self.note_erasure(id, request_id, &erased, mongo_row)?;
        self.owe_scrub()?;
        Ok(erased)
    }

    /// MongoDB holds what this device delivered. Gives the row that tells it, where one is configured.
    fn owe_erasure(&mut self, id: &SubjectId) -> Result<Option<i64>, StoreError> {
        if !self.setting.sinks.contains(&SinkName::MONGO) {
            return Ok(None);
        }
        let now = self.now();
        let seq = read::last_seq(self.conn)?;
        let erasure =
            Erasure { subject_id: id.clone(), seq, at_ms: now.wall_ms, trusted: now.trusted };
        let payload = serde_json::to_string(&erasure).expect("plain strings and numbers");
        let sql = "insert into outbox (sink, topic, payload, created_ms) values (?1, ?2, ?3, ?4)";
        self.conn.prepare(sql)?.execute(params![
            SinkName::MONGO.as_str(),
            ERASURE,
            payload,
            now.wall_ms
        ])?;
        self.effects.outbox_grew = true;
        Ok(Some(self.conn.last_insert_rowid()))
    }

    /// The database is written anew once this is on the disk.
    pub(super) fn owe_scrub(&mut self) -> Result<(), StoreError> {
        self.put_meta("scrub_owed", b"")?;
        self.effects.erased = true;
        Ok(())
    }

    fn erase_from_events(&self, id: &SubjectId) -> Result<u32, StoreError> {
        let sql = "update outbox set buried_reason = 'erased' where buried_reason is not null \
                   and event_seq in (select seq from event where subject_id = ?1)";
        self.conn.execute(sql, [id.as_str()])?;

        let mut query =
            self.conn.prepare("select seq, kind, body from event where subject_id = ?1")?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let events: Vec<(i64, String, String)> =
            query.query_map([id.as_str()], read)?.collect::<Result<_, _>>()?;
        let mut update =
            self.conn.prepare("update event set subject_id = null, body = ?2 where seq = ?1")?;
        for (seq, kind, body) in &events {
            // What cannot be read may still have the name in it.
            let body = Body::from_stored(kind, body).map_or_else(
                |_| "{}".to_owned(),
                |mut body| {
                    body.erase_subject();
                    body.to_stored()
                },
            );
            update.execute(params![seq, body])?;
        }
        Ok(events.len() as u32)
    }

    fn erase_from_replies(
        &self,
        id: &SubjectId,
        names: &HashSet<String>,
    ) -> Result<u32, StoreError> {
        let mut erased = 0;
        for (select, update) in [
            ("select row, reply from command", "update command set reply = ?2 where row = ?1"),
            (
                "select id, payload from outbox where payload is not null and topic <> 'erasure' \
                 and topic not like 'receipt/%'",
                "update outbox set payload = ?2, buried_reason = iif(buried_reason is null, null, 'erased') where id = ?1",
            ),
        ] {
            let mut update = self.conn.prepare(update)?;
            for (row, reply) in self.texts_where(select, |it| mentions(it, id, names))? {
                update.execute(params![row, answer::erased(&reply)])?;
                erased += 1;
            }
        }
        Ok(erased)
    }
}

/// Whether a JSON text names a person, by id or by name, in any string of it. Too often rather than too seldom: of a
/// namesake only a stored answer is lost.
fn mentions(json: &str, id: &SubjectId, names: &HashSet<String>) -> bool {
    let text_mentions =
        |text: &str| has_id(text, id.as_str()) || names.iter().any(|it| text.contains(it.as_str()));
    match serde_json::from_str(json) {
        Ok(value) => any_text(&value, &text_mentions),
        Err(_) => text_mentions(json),
    }
}

/// Whether a test holds for any string, those aside that the sender chose to tell requests apart.
fn any_text(value: &Value, holds: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => holds(text),
        Value::Array(list) => list.iter().any(|it| any_text(it, holds)),
        Value::Object(members) => members
            .iter()
            .any(|(key, it)| key != "request_id" && key != "verb" && any_text(it, holds)),
        _ => false,
    }
}

/// As a word of its own: `al` is not in `also`.
fn has_id(text: &str, id: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.match_indices(id).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + id.len()..]);
        !before.ends_with(is_part) && !after.trim_start_matches('.').starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_mentions_a_person_by_id_or_name() {
        let id = SubjectId::new("al").unwrap();
        let names = HashSet::from(["Ann \"Al\" Lee".to_owned()]);
        let check =
            |json: &str, expected| assert_eq!(mentions(json, &id, &names), expected, "{json}");
        check(r#"{"subject_id":"al"}"#, true);
        check(r#"{"subjects":[{"id":"al"}]}"#, true);
        check(r#"{"names":["Ann \"Al\" Lee"]}"#, true);
        check(r#"{"error":{"message":"the face is that of al."}}"#, true);
        check(r#"{"message":"also, an al-2, a.al"}"#, false);
        check(r#"{"request_id":"al","verb":"sync"}"#, false);
        check("not json: al", true);
    }
}
