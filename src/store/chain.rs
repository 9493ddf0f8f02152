//! The chain of events as it is stored: each event's link is in its body, and is made with it.
//!
//! Invariants: no event is left out because its link cannot be made; the chain then begins again and
//! states so. What a correction changes is kept in the link as it was first recorded. `meta` has
//! where the chain began, up to where events were deleted, and the newest link once its event is
//! deleted.
//!
//! Not here: the form of a link (`wire::chain`), how a record is checked (`wire::chain_check`).
//!
//! Budget: 20 µs for each event, beside some hundred for its rows and a millisecond or more for the
//! commit.

use chacha20poly1305::aead::Generate as _;
use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::store::error::StoreError;
use crate::store::read;
use crate::store::reader::Reader;
use crate::store::tx::Tx;
use crate::wire::chain::{self, Bytes, Commitments, Hash, Link, Place, Start};
use crate::wire::event::{self, Direction, EventKind, StoredEvent};

/// In `meta`: the first event of the chain.
const BEGAN: &str = "chain_began";
/// In `meta`: the last event at which the chain began again.
const BROKEN: &str = "chain_broken";
/// In `meta`: up to here, events may have been deleted by retention.
const DELETED: &str = "chain_deleted_through";
/// In `meta`: the newest link, once its event has been deleted.
const HEAD: &str = "chain_head";
/// In `meta`: the newest checkpoint.
const CHECKPOINT: &str = "checkpoint";

/// The end of the chain, and what else a checkpoint states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHead {
    pub seq: i64,
    pub hash: Hash,
    /// The newest attendance or correction.
    pub record: Option<Place>,
    /// The first event of the chain.
    pub began: i64,
    pub deleted_through: i64,
}

/// The newest link, as `meta` keeps it.
#[derive(Serialize, Deserialize)]
struct KeptHead {
    seq: i64,
    hash: Hash,
    record: Option<Place>,
}

/// The kind of an event, and its link, where it has one.
type KindAndLink = (String, Option<Box<Link>>);

/// What comes before an event.
enum Before {
    Event { prev: Hash, record: Option<Place> },
    Nothing(Start),
}

/// A row of the record as it is, whether or not it fits its checksum.
#[derive(Clone, Debug)]
pub struct RecordRow {
    pub seq: i64,
    /// None if it cannot be read.
    pub event: Option<StoredEvent>,
    /// Whether the columns by which events are searched state what the event does.
    pub columns_fit: bool,
}

/// The newest attendance or correction after an event.
fn record_after(seq: i64, kind: &str, link: &Link) -> Option<Place> {
    if chain::is_of_record(kind) { Some(Place { seq, hash: link.hash }) } else { link.record }
}

impl Tx<'_> {
    /// Makes the link of an event that is about to be stored. `None`: it is stored without one.
    pub(super) fn new_link(
        &mut self,
        event: &StoredEvent,
    ) -> Result<Option<Box<Link>>, StoreError> {
        let fields = event::recorded(event);
        let (salt, commit) = if chain::personal(&fields).is_empty() {
            (None, Commitments::new())
        } else {
            let Ok(salt) = <[u8; 16]>::try_generate().map(Bytes) else {
                tracing::error!(
                    "the system gives no random numbers: an event is not linked to the chain"
                );
                return Ok(None);
            };
            (Some(salt), chain::commitments(&fields, &salt))
        };
        let before = match self.before(event.seq) {
            Ok(before) => before,
            Err(error) => {
                tracing::error!(%error, "the event before cannot be read");
                Before::Nothing(Start::Break)
            }
        };
        let (prev, record, start) = match before {
            Before::Event { prev, record } => (Some(prev), record, None),
            Before::Nothing(start) => {
                self.note_start(event.seq, start)?;
                (None, None, Some(start))
            }
        };
        let content = chain::content(&fields, None, &commit);
        let hash = chain::hash(event.seq, &content, prev.as_ref(), record.as_ref(), start);
        Ok(Some(Box::new(Link { prev, hash, record, start, salt, commit, was: None })))
    }

    fn before(&self, seq: i64) -> Result<Before, StoreError> {
        let last = seq - 1;
        if let Some((kind, Some(link))) = self.kind_and_link(last)? {
            return Ok(Before::Event { prev: link.hash, record: record_after(last, &kind, &link) });
        }
        if let Some(head) = self.kept_head()?.filter(|it| it.seq == last) {
            return Ok(Before::Event { prev: head.hash, record: head.record });
        }
        let is_begun = self.number(BEGAN)?.is_some_and(|began| began != seq);
        Ok(Before::Nothing(match (is_begun, seq) {
            (true, _) => Start::Break,
            (false, 1) => Start::New,
            (false, _) => Start::Existing,
        }))
    }

    fn note_start(&mut self, seq: i64, start: Start) -> Result<(), StoreError> {
        let key = if start == Start::Break { BROKEN } else { BEGAN };
        if start == Start::Break {
            tracing::error!(
                seq,
                "the chain of events is broken, because the event before cannot be read: it begins again here \
                 (`rollcall verify`)"
            );
        }
        self.put_meta(key, seq.to_string().as_bytes())
    }

    /// Links the newest event anew: within the write that stored it, once its content has changed.
    pub(super) fn relink(&mut self, seq: i64) -> Result<(), StoreError> {
        let Some(mut event) = self.event(seq)? else { return Ok(()) };
        event.chain = None;
        let link = self.new_link(&event)?;
        let sql = "update main.event set body = ?2 where seq = ?1";
        self.conn.prepare(sql)?.execute(params![seq, event.body.to_stored(link.as_deref())])?;
        Ok(())
    }

    /// Returns the link of an event, with the fields that are about to be corrected as they were first
    /// recorded.
    pub(super) fn link_before_correction(&self, seq: i64) -> Result<Option<Box<Link>>, StoreError> {
        let mut event = match self.event(seq) {
            Err(StoreError::Unreadable { .. }) => return Ok(None),
            other => match other? {
                None => return Ok(None),
                Some(event) => event,
            },
        };
        let link = event.chain.take();
        Ok(link.map(|mut link| {
            link.was.get_or_insert_with(|| chain::correctable(&event::recorded(&event)));
            link
        }))
    }

    /// Keeps in an event's link what is about to be corrected.
    pub(super) fn keep_recorded(&self, seq: i64) -> Result<(), StoreError> {
        let Some(link) = self.link_before_correction(seq)? else { return Ok(()) };
        let Some(event) = self.event(seq)? else { return Ok(()) };
        let sql = "update main.event set body = ?2 where seq = ?1";
        self.conn.prepare(sql)?.execute(params![seq, event.body.to_stored(Some(&link))])?;
        Ok(())
    }

    /// Events up to `through` were deleted; `head` was the end of the chain before.
    pub(super) fn note_deleted(
        &mut self,
        through: i64,
        head: Option<&ChainHead>,
    ) -> Result<(), StoreError> {
        let Some(head) = head else { return Ok(()) };
        if head.seq <= through {
            let kept = KeptHead { seq: head.seq, hash: head.hash, record: head.record };
            let kept = serde_json::to_vec(&kept).expect("string keys, and it writes to memory");
            self.put_meta(HEAD, &kept)?;
        }
        let through = through.max(head.deleted_through);
        self.put_meta(DELETED, through.to_string().as_bytes())
    }

    /// Keeps the newest checkpoint, a compact JWS.
    pub fn put_checkpoint(&mut self, token: &str) -> Result<(), StoreError> {
        self.put_meta(CHECKPOINT, token.as_bytes())
    }
}

impl Reader {
    /// Returns the end of the chain; `None` if the newest event has no link, or cannot be read.
    pub fn chain_head(&self) -> Result<Option<ChainHead>, StoreError> {
        let Some(began) = self.number(BEGAN)?.or(self.number(BROKEN)?) else { return Ok(None) };
        let deleted_through = self.number(DELETED)?.unwrap_or(0);
        let seq = self.newest_seq()?;
        let (hash, record) = if let Some((kind, link)) = self.kind_and_link(seq)? {
            let Some(link) = link else { return Ok(None) };
            (link.hash, record_after(seq, &kind, &link))
        } else {
            let Some(kept) = self.kept_head()?.filter(|it| it.seq == seq) else { return Ok(None) };
            (kept.hash, kept.record)
        };
        Ok(Some(ChainHead { seq, hash, record, began, deleted_through }))
    }

    /// Returns the newest checkpoint that the device signed.
    pub fn checkpoint(&self) -> Result<Option<String>, StoreError> {
        Ok(self.meta(CHECKPOINT)?.and_then(|it| String::from_utf8(it).ok()))
    }

    /// Returns the last event at which the chain began again, as long as it is stored.
    pub fn chain_broken_at(&self) -> Result<Option<i64>, StoreError> {
        let Some(seq) = self.number(BROKEN)? else { return Ok(None) };
        let sql = "select exists (select 1 from main.event where seq = ?1)";
        let is_stored: bool = self.conn.query_row(sql, [seq], |row| row.get(0))?;
        Ok(is_stored.then_some(seq))
    }

    /// Returns the rows after an event in their order, damaged ones too; of one kind, or all.
    pub fn record_rows(
        &self,
        after: i64,
        limit: u32,
        kind: Option<EventKind>,
    ) -> Result<Vec<RecordRow>, StoreError> {
        let sql = format!(
            "select {}, e.venue, e.subject_id, e.direction, e.session from main.event e \
             where e.seq > ?1 and (?3 is null or e.kind = ?3) order by e.seq limit ?2",
            read::EVENT_COLUMNS
        );
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut rows = query.query(params![after, limit, kind.map(EventKind::as_str)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let event = read::event(row).ok();
            let columns_fit = event.as_ref().is_some_and(|it| columns_fit(row, it));
            found.push(RecordRow { seq: row.get("seq")?, event, columns_fit });
        }
        Ok(found)
    }

    /// Returns the events that were set apart because they are damaged.
    pub fn events_set_apart(&self) -> Result<Vec<i64>, StoreError> {
        let sql = "select key from main.unreadable where tbl = 'event' and typeof(key) = 'integer'";
        Ok(self.conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// Returns in how many events persons were erased here.
    pub fn events_erased(&self) -> Result<u64, StoreError> {
        let sql = "select coalesce(sum(event_count), 0) from erasure";
        Ok(self.conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// Returns kind and link of an event that fits its checksum.
    fn kind_and_link(&self, seq: i64) -> Result<Option<KindAndLink>, StoreError> {
        let sql = "select kind, body from event where seq = ?1";
        let read = |row: &Row<'_>| {
            let body = row.get_ref(1)?.as_str().ok().and_then(event::stored_link);
            Ok((row.get(0)?, body))
        };
        Ok(self.conn.prepare_cached(sql)?.query_row([seq], read).optional()?)
    }

    fn kept_head(&self) -> Result<Option<KeptHead>, StoreError> {
        Ok(self.meta(HEAD)?.and_then(|it| serde_json::from_slice(&it).ok()))
    }

    fn number(&self, key: &str) -> Result<Option<i64>, StoreError> {
        let text = self.meta(key)?.and_then(|it| String::from_utf8(it).ok());
        Ok(text.and_then(|it| it.parse().ok()))
    }
}

fn columns_fit(row: &Row<'_>, event: &StoredEvent) -> bool {
    let is = |column: &str, expected: Option<&str>| {
        row.get::<_, Option<String>>(column).is_ok_and(|it| it.as_deref() == expected)
    };
    let body = &event.body;
    is("venue", body.venue())
        && is("subject_id", body.subject().map(|it| it.id.as_str()))
        && is("direction", body.direction().map(Direction::as_str))
        && is("session", body.session())
}
