//! Enrolled subjects within a write, and the erasure of a person.

use std::collections::HashSet;

use rusqlite::params;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Name, SubjectId};
use crate::keys::seal::Belongs;
use crate::recognise::face::{Embedder, Template};
use crate::store::error::StoreError;
use crate::store::parts::IS_SECOND_PART;
use crate::store::read;
use crate::store::rows::ERASURE;
use crate::store::rows::SinkName;
use crate::store::tx::Tx;
use crate::wire::event::id_at;

/// A template to be enrolled.
#[derive(Clone, Debug, PartialEq)]
pub struct NewReference {
    pub subject_id: SubjectId,
    pub embedder: Embedder,
    /// Complete or partial, if the embedder is a composite.
    pub template: Template,
    /// Of the sample, 0.0..=1.0.
    pub quality: f32,
}

/// What erasing a person took out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Whether the subject was enrolled, or withdrawn but not erased; one of whom that is not known
    /// may still stand in events.
    pub enrolled: bool,
    pub references: u32,
    pub events: u32,
    /// Stored replies, and pending ones.
    pub replies: u32,
}

/// The erasure of a subject up to one of this device's events, for other records. It
/// stands in the outbox until they have done the same, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    pub subject_id: SubjectId,
    /// The newest event at that moment.
    pub seq: i64,
    pub at_ms: i64,
    /// Whether the wall clock was trusted then.
    pub trusted: bool,
}

impl Tx<'_> {
    /// Enrols a subject, or gives one a new name; the time of the first enrolment stays.
    pub fn put_subject(&mut self, id: &SubjectId, name: &Name) -> Result<(), StoreError> {
        let sql = "insert into main.subject (id, name, enrolled_ms) values (?1, ?2, ?3) \
                   on conflict (id) do update set name = ?2";
        let now_ms = self.now().wall_ms;
        self.conn.prepare(sql)?.execute(params![id.as_str(), name.as_str(), now_ms])?;
        self.bump_version(id)
    }

    pub fn rename_subject(&mut self, id: &SubjectId, name: &Name) -> Result<(), StoreError> {
        let sql = "update main.subject set name = ?2 where id = ?1";
        match self.conn.prepare(sql)?.execute(params![id.as_str(), name.as_str()])? {
            0 => Err(StoreError::UnknownSubject { id: id.clone() }),
            _ => self.bump_version(id),
        }
    }

    /// Seals templates and adds them to subjects that exist. Gives their ids.
    pub fn add_references(&mut self, references: &[NewReference]) -> Result<Vec<Uuid>, StoreError> {
        let now = self.now();
        let exists = "select exists (select 1 from subject where id = ?1)";
        let insert = "insert into main.reference (id, subject_id, embedder, sealed, quality, created_ms) \
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
            let first = &embedder.first.digest;
            let belongs = Belongs { subject_id, reference_id: &id, embedder: first };
            let sealed = self.key()?.seal(template, belongs)?;
            // Before the first part, so that the newest row is one that every version knows.
            if let (Some(part), Some(second)) = (embedder.second, template.second_part()) {
                self.add_second_part(subject_id, &id, &part.digest, &second, *quality)?;
            }
            self.conn.prepare(insert)?.execute(params![
                id.as_bytes(),
                subject_id.as_str(),
                first.0,
                sealed,
                quality,
                now.wall_ms
            ])?;
            ids.push(id);
            if changed.insert(subject_id) {
                self.bump_version(subject_id)?;
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

    /// Gives how many references there were; the parts of one are not counted apart.
    pub(super) fn delete_references(&self, subject_id: &SubjectId) -> Result<u32, StoreError> {
        let sql = format!(
            "select count(*) from main.reference where subject_id = ?1 and not {IS_SECOND_PART}"
        );
        let count = self.conn.prepare(&sql)?.query_row([subject_id.as_str()], |row| row.get(0))?;
        let sql = "delete from main.reference where subject_id = ?1";
        self.conn.prepare(sql)?.execute([subject_id.as_str()])?;
        Ok(count)
    }

    /// Withdraws a subject: name and references go, events stay. Gives how many references there
    /// were.
    pub fn delete_subject(&mut self, id: &SubjectId) -> Result<u32, StoreError> {
        let references = self.delete_references(id)?;
        self.delete_consent(id)?;
        let before = self.version_record(id)?;
        match self.conn.prepare("delete from main.subject where id = ?1")?.execute([id.as_str()])? {
            0 => Err(StoreError::UnknownSubject { id: id.clone() }),
            _ => self.record_withdrawal(id, before.as_ref(), false).map(|()| references),
        }
    }

    /// Takes a person out of everything: references, subject, events, replies, pending rows.
    /// That somebody passed stays; who it was does not. Once it is on the disk the unused
    /// parts of the database are overwritten, so that no file has the name: in a small database at
    /// once, else between other writes.
    ///
    /// A `request_id` stays as it is, so that the command is not executed again; so do databases
    /// that were moved aside, and the id in the table of erasures.
    pub fn erase_subject(&mut self, id: &SubjectId) -> Result<Erased, StoreError> {
        self.erase_as_asked(id, None)
    }

    /// The same, with the command that asked for it.
    pub fn erase_as_asked(
        &mut self,
        id: &SubjectId,
        request_id: Option<&str>,
    ) -> Result<Erased, StoreError> {
        let subject = self.subject(id)?;
        let before = self.version_record(id)?;
        let mut names: HashSet<String> =
            subject.iter().map(|it| it.name.as_str().to_owned()).collect();
        let erased = Erased {
            enrolled: before.as_ref().is_some_and(|it| !it.erased),
            events: self.erase_from_events(id, &mut names)?,
            replies: self.erase_from_replies(id, &names)?,
            references: self.delete_references(id)?,
        };
        self.delete_consent(id)?;
        self.conn.execute("delete from main.subject where id = ?1", [id.as_str()])?;
        // Damaged rows cannot be searched for a person: of none of them anything is kept.
        self.conn.execute("update unreadable set content = null", [])?;
        let listed =
            "delete from unreadable where tbl in ('subject', 'withdrawn', 'consent') and key = ?1";
        self.conn.execute(listed, [id.as_str()])?;
        self.record_withdrawal(id, before.as_ref(), true)?;
        let mongo_row = self.queue_erasure(id)?;
        self.note_erasure(id, request_id, &erased, mongo_row)?;
        self.schedule_scrub()?;
        Ok(erased)
    }

    /// MongoDB holds what this device delivered. Returns its row, where a MongoDB is
    /// configured.
    fn queue_erasure(&mut self, id: &SubjectId) -> Result<Option<i64>, StoreError> {
        if !self.context.sinks.contains(&SinkName::MONGO) {
            return Ok(None);
        }
        let now = self.now();
        let seq = read::last_seq(self.conn)?;
        let erasure =
            Erasure { subject_id: id.clone(), seq, at_ms: now.wall_ms, trusted: now.trusted };
        let payload = serde_json::to_string(&erasure).expect("plain strings and numbers");
        let sql =
            "insert into main.outbox (sink, topic, payload, created_ms) values (?1, ?2, ?3, ?4)";
        self.conn.prepare(sql)?.execute(params![
            SinkName::MONGO.as_str(),
            ERASURE,
            payload,
            now.wall_ms
        ])?;
        self.effects.outbox_grew = true;
        Ok(Some(self.conn.last_insert_rowid()))
    }

    /// The unused parts of the database are overwritten once this is on the disk.
    pub(super) fn schedule_scrub(&mut self) -> Result<(), StoreError> {
        self.put_meta("scrub_owed", b"")?;
        self.effects.erased = true;
        Ok(())
    }
}
