//! Which events may be deleted, for retention and for reports about it.

use rusqlite::{Row, params};

use crate::store::error::StoreError;
use crate::store::reader::Reader;

/// Old by `?1`, and nothing rests on it: pending for no sink, and in the record only where it is older
/// than `?2` and does not stand in for another that stays.
pub(super) const OLD: &str = "(clock = 'unsynced' or occurred_ms < ?1) \
     and seq <= (select max(seq) from main.event where clock = 'synced' and occurred_ms < ?1) \
     and (kind <> 'attendance' or clock = 'unsynced' or occurred_ms < ?2) \
     and not exists (select 1 from main.outbox where event_seq = event.seq) \
     and not exists (select 1 from main.event other where other.superseded_by = event.event_id and (\
       other.occurred_ms >= ?1 or exists (select 1 from main.outbox where event_seq = other.seq)))";

/// A session lasts a day at most and opens half a day earlier: until then its records show who was
/// recorded already.
const SETTLED_AFTER_MS: i64 = 36 * 3_600_000;

pub(super) fn settled_before(now_ms: i64) -> i64 {
    now_ms.saturating_sub(SETTLED_AFTER_MS)
}

/// What retention comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// Events that may be deleted, and the times they are from.
    pub events: u64,
    pub from_ms: Option<i64>,
    pub to_ms: Option<i64>,
    /// Events as old that stay, since they are pending or dead letters.
    pub pending: u64,
    /// Events that stay because they are not old.
    pub newer: u64,
}

impl Reader {
    /// What `Tx::retention` would find old at `now_ms`, and what of it must stay.
    pub fn prunable(&self, now_ms: i64, days: u32) -> Result<Prunable, StoreError> {
        let before_ms = now_ms.saturating_sub(i64::from(days) * 86_400_000);
        let sql = format!(
            "select count(*), min(occurred_ms), max(occurred_ms) from main.event where {OLD}"
        );
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?));
        let (events, from_ms, to_ms) =
            self.conn.prepare(&sql)?.query_row(params![before_ms, settled_before(now_ms)], read)?;
        let sql = "select count(*) from main.event where occurred_ms < ?1 \
                   and exists (select 1 from main.outbox where event_seq = event.seq)";
        let pending =
            self.conn.prepare(sql)?.query_row([before_ms], |row| row.get::<_, i64>(0))? as u64;
        let all = self
            .conn
            .query_row("select count(*) from main.event", [], |row| row.get::<_, i64>(0))?
            as u64;
        Ok(Prunable {
            events,
            from_ms,
            to_ms,
            pending,
            newer: all.saturating_sub(events + pending),
        })
    }
}
