//! The rows that could not be read and were set apart (`check`): listed, counted, and
//! deleted when their loss is accepted.

use rusqlite::{Row, params};

use crate::store::checksum::Cell;
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::rows::{UNREADABLE, UnreadableRow};
use crate::store::tx::Tx;

/// How many rows cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    pub rows: u64,
    /// Of those, the events: the record is without them.
    pub events: u64,
}

impl Tx<'_> {
    /// Accepts that the rows are lost. What was held back for the events among them is no longer; gives how many rows.
    pub fn forget_unreadable(&mut self) -> Result<usize, StoreError> {
        let sql = "delete from main.outbox where buried_reason = ?1 \
                   and event_seq in (select key from unreadable where tbl = 'event')";
        self.conn.execute(sql, [UNREADABLE])?;
        Ok(self.conn.execute("delete from unreadable", [])?)
    }
}

impl Reader {
    /// Those that were set apart, and those that this connection came upon since.
    pub fn unreadable(&self) -> Result<Unreadable, StoreError> {
        let met = self.damage.events_and_rows();
        let set_apart = self.unreadable_set_apart()?;
        Ok(Unreadable { rows: set_apart.rows + met.1, events: set_apart.events + met.0 })
    }

    pub(super) fn unreadable_set_apart(&self) -> Result<Unreadable, StoreError> {
        let sql = "select count(*), count(*) filter (where tbl = 'event') from unreadable";
        let read = |row: &Row<'_>| {
            let [rows, events] = [row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64];
            Ok(Unreadable { rows, events })
        };
        Ok(self.conn.prepare_cached(sql)?.query_row([], read)?)
    }

    /// Oldest first.
    pub fn unreadable_rows(&self, limit: u32) -> Result<Vec<UnreadableRow>, StoreError> {
        let sql = "select tbl, key, reason, found_ms from unreadable order by row limit ?1";
        let text = |row: &Row<'_>, at| row.get_ref(at).map(|it| Cell::from(it).for_people());
        let read = |row: &Row<'_>| {
            Ok(UnreadableRow {
                table: text(row, 0)?,
                row: text(row, 1)?,
                reason: text(row, 2)?,
                found_ms: row.get(3)?,
            })
        };
        Ok(self.conn.prepare(sql)?.query_map(params![limit], read)?.collect::<Result<_, _>>()?)
    }
}
