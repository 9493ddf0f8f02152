//! What may be done within a write: erasures are written down, and each gets its receipt once nothing is left.

use rusqlite::{Connection, Row, params};

use super::StoreError;
use super::people::Erased;
use super::read::Reader;
use super::tx::Tx;
use crate::recognise::face::SubjectId;
use crate::record::receipt;

/// A person who was erased here. The subject's id stands in this table for good, and with it in the receipt: it is what can
/// be proved. Nothing else of the person does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredErasure {
    pub row: i64,
    pub subject_id: SubjectId,
    /// The command that asked for it; none when another door told of it.
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
    /// What is left to be done.
    pub left: Option<Left>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// MongoDB has not confirmed.
    Mongo,
    /// The database is still to be written anew.
    Scrub,
}

const COLUMNS: &str = "select row, subject_id, request_id, asked_ms, clock, reference_count, event_count, mongo_row, receipt, \
                       exists (select 1 from outbox where id = mongo_row), \
                       exists (select 1 from meta where key = 'scrub_owed') from erasure";

/// Written anew is the database, its log cut off, and what MongoDB was told is acknowledged: the row that told it is gone.
const CLEAN: &str = "receipt is null and not exists (select 1 from meta where key = 'scrub_owed') \
                     and not exists (select 1 from outbox where id = mongo_row)";

impl Tx<'_> {
    pub(super) fn note_erasure(
        &mut self,
        id: &SubjectId,
        request_id: Option<&str>,
        erased: &Erased,
        mongo_row: Option<i64>,
    ) -> Result<(), StoreError> {
        let now = self.now();
        let clock = if now.trusted { "synced" } else { "unsynced" };
        let sql = "insert into erasure (subject_id, request_id, asked_ms, clock, reference_count, event_count, mongo_row) \
                   values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let (references, events) = (erased.references, erased.events);
        let row =
            params![id.as_str(), request_id, now.wall_ms, clock, references, events, mongo_row];
        self.conn.prepare(sql)?.execute(row)?;
        Ok(())
    }

    /// Erasures that are carried out to the end and have no receipt yet, oldest first.
    pub fn unproved(&self, limit: u32) -> Result<Vec<StoredErasure>, StoreError> {
        listed(self.conn, &format!("{COLUMNS} where {CLEAN} order by row limit ?1"), limit)
    }

    /// Erasures that have no receipt yet: something of the person may be left somewhere.
    pub fn erasures_pending(&self) -> Result<u64, StoreError> {
        let sql = "select count(*) from erasure where receipt is null";
        Ok(self.conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// Keeps the receipt of an erasure and owes it to MQTT; nothing if it has one.
    pub fn put_receipt(
        &mut self,
        row: i64,
        subject_id: &SubjectId,
        receipt: &str,
    ) -> Result<(), StoreError> {
        let sql = format!("update erasure set receipt = ?2 where row = ?1 and {CLEAN}");
        if self.conn.prepare(&sql)?.execute(params![row, receipt])? > 0 {
            self.owe_reply(&receipt::topic_part(subject_id), receipt)?;
        }
        Ok(())
    }
}

impl Reader {
    /// All erasures, newest first.
    pub fn erasures(&self, limit: u32) -> Result<Vec<StoredErasure>, StoreError> {
        listed(self.connection(), &format!("{COLUMNS} order by row desc limit ?1"), limit)
    }
}

fn listed(conn: &Connection, sql: &str, limit: u32) -> Result<Vec<StoredErasure>, StoreError> {
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
            left: match (row.get(9)?, row.get(10)?) {
                (true, _) => Some(Left::Mongo),
                (false, true) => Some(Left::Scrub),
                (false, false) => None,
            },
        };
        Ok(Some(erasure))
    };
    let found: Vec<Option<StoredErasure>> =
        conn.prepare(sql)?.query_map([limit], read)?.collect::<Result<_, _>>()?;
    found.into_iter().collect::<Option<_>>().ok_or(StoreError::Damaged { source: None })
}
