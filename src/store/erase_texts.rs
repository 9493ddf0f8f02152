//! What may be done within a write: a person is removed from events, replies, and what is pending.
//!
//! Invariants: a reply that may name the person in any way keeps nothing but its outcome, whatever
//! events retention has left. Memory does not grow with what is stored: one text at a time.

use std::collections::HashSet;

use rusqlite::{OptionalExtension as _, params};
use serde_json::Value;

use crate::ids::SubjectId;
use crate::store::error::StoreError;
use crate::store::tx::Tx;
use crate::wire::event::{Body, stored_link};
use crate::wire::reply;

/// Names of one person that replies are searched for: each costs another search of every reply. More
/// than anybody has had; replies list ids beside names, so that none depends on this.
const NAMES_MAX: usize = 16;

impl Tx<'_> {
    /// Removes a person from the events, and adds the names that stood there.
    pub(super) fn erase_from_events(
        &self,
        id: &SubjectId,
        names: &mut HashSet<String>,
    ) -> Result<u32, StoreError> {
        let sql = "update main.outbox set buried_reason = 'erased' where buried_reason is not null \
                   and event_seq in (select seq from event where subject_id = ?1)";
        self.conn.execute(sql, [id.as_str()])?;

        let mut next = self
            .conn
            .prepare("select seq, kind, body from event where subject_id = ?1 and seq > ?2 order by seq limit 1")?;
        let mut update = self
            .conn
            .prepare("update main.event set subject_id = null, body = ?2 where seq = ?1")?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let mut after = 0_i64;
        let mut count = 0;
        loop {
            let found: Option<(i64, String, String)> =
                next.query_row(params![id.as_str(), after], read).optional()?;
            let Some((seq, kind, body)) = found else {
                return Ok(count);
            };
            let mut link = stored_link(&body);
            if let Some(link) = &mut link {
                // The commitments stay; without the salt they say nothing.
                link.salt = None;
            }
            let body = match Body::from_stored(&kind, &body) {
                // What cannot be read may still have the name in it.
                Err(_) => "{}".to_owned(),
                Ok(mut body) => {
                    let subject = body.subject().filter(|_| names.len() < NAMES_MAX);
                    names.extend(subject.map(|it| it.name.as_str().to_owned()));
                    body.erase_subject();
                    body.to_stored(link.as_deref())
                }
            };
            update.execute(params![seq, body])?;
            after = seq;
            count += 1;
        }
    }

    /// Removes a person from stored replies and from those that are pending.
    pub(super) fn erase_from_replies(
        &self,
        id: &SubjectId,
        names: &HashSet<String>,
    ) -> Result<u32, StoreError> {
        let wanted = WantedTexts::new(id, names);
        let mut erased = 0;
        for (next, update) in [
            (
                "select row, reply from command where row > ?1 order by row limit 1",
                "update main.command set reply = ?2 where row = ?1",
            ),
            (
                "select id, payload from outbox where payload is not null and topic <> 'erasure' \
                 and topic not like 'receipt/%' and id > ?1 order by id limit 1",
                "update main.outbox set payload = ?2, buried_reason = iif(buried_reason is null, null, 'erased') where id = ?1",
            ),
        ] {
            let mut next = self.conn.prepare(next)?;
            let mut update = self.conn.prepare(update)?;
            let mut after = 0_i64;
            loop {
                let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                let found: Option<(i64, String)> = next.query_row([after], read).optional()?;
                let Some((row, reply)) = found else { break };
                if wanted.may_be_in(&reply) {
                    update.execute(params![row, reply::erased(&reply)])?;
                    erased += 1;
                }
                after = row;
            }
        }
        Ok(erased)
    }
}

/// What a person may be named by.
struct WantedTexts<'a> {
    id: &'a str,
    names: &'a HashSet<String>,
    /// The names as they stand in JSON.
    escaped: Vec<String>,
}

impl<'a> WantedTexts<'a> {
    fn new(id: &'a SubjectId, names: &'a HashSet<String>) -> Self {
        let escaped = |name: &String| {
            let json = serde_json::to_string(name).expect("a string is JSON");
            json.trim_matches('"').to_owned()
        };
        Self { id: id.as_str(), names, escaped: names.iter().map(escaped).collect() }
    }

    /// Returns whether a JSON text may name the person, by id or by name, in any string of it. Too
    /// often rather than too seldom: of a namesake only a stored reply is lost.
    fn may_be_in(&self, json: &str) -> bool {
        // Reading it costs far more than this search, which finds whatever the strings may hold.
        let is_worth_reading = json.contains(self.id)
            || NAME_LISTS.iter().any(|it| json.contains(it))
            || self.escaped.iter().any(|it| json.contains(it.as_str()));
        is_worth_reading
            && match serde_json::from_str(json) {
                Ok(value) => has_names_only(&value) || any_text(&value, &|it| self.is_in(it)),
                Err(_) => self.is_in(json),
            }
    }

    fn is_in(&self, text: &str) -> bool {
        has_id(text, self.id) || self.names.iter().any(|it| text.contains(it.as_str()))
    }
}

/// Members of replies that list names.
const NAME_LISTS: [&str; 2] = ["recognised", "recorded"];

/// Returns whether a reply has names without the ids that they belonged to, as replies to `attend`
/// had before they listed `subject_ids`: one may be an earlier name of anybody.
fn has_names_only(reply: &Value) -> bool {
    let has_names =
        NAME_LISTS.iter().any(|key| reply[*key].as_array().is_some_and(|it| !it.is_empty()));
    has_names && reply["subject_ids"].is_null()
}

/// Returns whether a test holds for any string, except those by which the sender tells requests apart.
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
        let before = &text[..at];
        let after = &text[at + id.len()..];
        !before.ends_with(is_part) && !after.trim_start_matches('.').starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_mentions_subject_by_id_or_name() {
        let id = SubjectId::new("al").unwrap();
        let names = HashSet::from(["Ann \"Al\" Lee".to_owned()]);
        let wanted = WantedTexts::new(&id, &names);
        let check = |json: &str, expected| assert_eq!(wanted.may_be_in(json), expected, "{json}");
        check(r#"{"subject_id":"al"}"#, true);
        check(r#"{"subjects":[{"id":"al"}]}"#, true);
        check(r#"{"names":["Ann \"Al\" Lee"]}"#, true);
        check(r#"{"error":{"message":"the face is that of al."}}"#, true);
        check(r#"{"message":"also, an al-2, a.al"}"#, false);
        check(r#"{"request_id":"al","verb":"sync"}"#, false);
        check("not json: al", true);
        // Of the earlier names of a person nobody need know any more.
        check(r#"{"recognised":["Former Name"],"recorded":[]}"#, true);
        check(r#"{"recognised":["Former Name"],"recorded":[],"subject_ids":["al"]}"#, true);
        check(r#"{"recognised":["Bo"],"recorded":["Bo"],"subject_ids":["bo"]}"#, false);
        check(r#"{"recognised":[],"recorded":[],"subject_ids":[]}"#, false);
    }
}
