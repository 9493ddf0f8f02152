//! Erasures are recorded, and each gets its receipt once nothing is left.

use rusqlite::{Row, ToSql, params};

use crate::ids::SubjectId;
use crate::keys::receipt;
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::subjects::Erased;
use crate::store::tx::Tx;
use crate::wire::event::EndReason;

/// A person who was erased here. The subject's id stands in this table for good, and with it in the
/// receipt: it is what can be proved. Nothing else of the person does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredErasure {
    pub row: i64,
    pub subject_id: SubjectId,
    /// The command that asked for it; none when it came from another device.
    pub request_id: Option<String>,
    pub asked_ms: i64,
    /// Whether the clock was trusted then.
    pub trusted: bool,
    pub references: u32,
    pub events: u32,
    /// Whether MongoDB was to be cleaned too.
    pub mongo: bool,
    /// A compact JWS by the device's key; none as long as something may be left.
    pub receipt: Option<String>,
    /// Why, where it followed the end of a consent.
    pub reason: Option<EndReason>,
    /// Whether events keep id and name: only what recognition needs was deleted.
    pub events_kept: bool,
    /// What is left to be done.
    pub left: Option<Left>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// MongoDB has not confirmed.
    Mongo,
    /// The unused parts of the database are still to be overwritten.
    Scrub,
}

const COLUMNS: &str = "select row, subject_id, request_id, asked_ms, clock, reference_count, event_count, mongo_row, receipt, \
                       exists (select 1 from main.outbox where id = mongo_row), \
                       exists (select 1 from main.meta where key = 'scrub_owed'), reason, events_kept \
                       from erasure left join consent_end on erasure_row = row";

/// The scrub is done, and MongoDB has acknowledged: its row is gone.
const CLEAN: &str = "receipt is null and not exists (select 1 from main.meta where key = 'scrub_owed') \
                     and not exists (select 1 from main.outbox where id = mongo_row)";

impl Tx<'_> {
    pub(super) fn note_erasure(
        &mut self,
        id: &SubjectId,
        request_id: Option<&str>,
        erased: &Erased,
        mongo_row: Option<i64>,
    ) -> Result<i64, StoreError> {
        let now = self.now();
        let clock = if now.trusted { "synced" } else { "unsynced" };
        let sql = "insert into main.erasure (subject_id, request_id, asked_ms, clock, reference_count, event_count, mongo_row) \
                   values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let references = erased.references;
        let events = erased.events;
        let row =
            params![id.as_str(), request_id, now.wall_ms, clock, references, events, mongo_row];
        self.conn.prepare(sql)?.execute(row)?;
        Ok(self.conn.last_insert_rowid())
    }

    /// Stores the receipt of an erasure and queues it for MQTT; nothing if it has one.
    pub fn put_receipt(
        &mut self,
        row: i64,
        subject_id: &SubjectId,
        receipt: &str,
    ) -> Result<(), StoreError> {
        let sql = format!("update main.erasure set receipt = ?2 where row = ?1 and {CLEAN}");
        if self.conn.prepare(&sql)?.execute(params![row, receipt])? > 0 {
            self.queue_reply(&receipt::topic_part(subject_id), receipt)?;
        }
        Ok(())
    }
}

impl Reader {
    /// Erasures that are complete and have no receipt yet, oldest first.
    pub fn erasures_without_receipt(&self, limit: u32) -> Result<Vec<StoredErasure>, StoreError> {
        self.listed(&format!("{COLUMNS} where {CLEAN} order by row limit ?1"), params![limit])
    }

    /// Erasures that have no receipt yet: something of the person may be left somewhere.
    pub fn erasures_pending(&self) -> Result<u64, StoreError> {
        let sql = "select count(*) from erasure where receipt is null";
        Ok(self.conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// The number of the newest erasure; 0 before the first.
    pub fn newest_erasure(&self) -> Result<i64, StoreError> {
        let sql = "select coalesce(max(row), 0) from erasure";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// Erasures before a row, newest first.
    pub fn erasures(&self, before: i64, limit: u32) -> Result<Vec<StoredErasure>, StoreError> {
        let sql = format!("{COLUMNS} where row < ?2 order by row desc limit ?1");
        self.listed(&sql, params![limit, before])
    }

    fn listed(&self, sql: &str, given: &[&dyn ToSql]) -> Result<Vec<StoredErasure>, StoreError> {
        let read = |row: &Row<'_>| {
            let erasure = StoredErasure {
                row: row.get(0)?,
                subject_id: match SubjectId::new(&row.get::<_, String>(1)?) {
                    Ok(id) => id,
                    // Only what this program checked gets into the column.
                    Err(_) => return Ok(None),
                },
                request_id: row.get(2)?,
                asked_ms: row.get(3)?,
                trusted: row.get::<_, String>(4)? == "synced",
                references: row.get(5)?,
                events: row.get(6)?,
                mongo: row.get::<_, Option<i64>>(7)?.is_some(),
                receipt: row.get(8)?,
                reason: row.get::<_, Option<String>>(11)?.and_then(|it| it.parse().ok()),
                events_kept: row.get::<_, Option<bool>>(12)?.unwrap_or(false),
                left: match (row.get(9)?, row.get(10)?) {
                    (true, _) => Some(Left::Mongo),
                    (false, true) => Some(Left::Scrub),
                    (false, false) => None,
                },
            };
            Ok(Some(erasure))
        };
        let found: Vec<Option<StoredErasure>> =
            self.conn.prepare(sql)?.query_map(given, read)?.collect::<Result<_, _>>()?;
        found.into_iter().collect::<Option<_>>().ok_or(StoreError::Damaged { source: None })
    }
}
