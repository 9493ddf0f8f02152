//! Which events may be deleted, for those who delete and those who only want to know.

use rusqlite::{Connection, Row, params};

use super::StoreError;

/// Old by `?1`, and nothing rests on it: owed to nobody, and in the record only where it is older than `?2` and does not
/// stand in for another that stays.
pub(super) const OLD: &str = "(clock = 'unsynced' or occurred_ms < ?1) \
     and seq <= (select max(seq) from event where clock = 'synced' and occurred_ms < ?1) \
     and (kind <> 'attendance' or clock = 'unsynced' or occurred_ms < ?2) \
     and not exists (select 1 from outbox where event_seq = event.seq) \
     and not exists (select 1 from event other where other.superseded_by = event.event_id and (\
       other.occurred_ms >= ?1 or exists (select 1 from outbox where event_seq = other.seq)))";

/// A session lasts a day at most and opens half a day earlier: until then its records say who was recorded already.
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
    /// Events as old that stay, since they are owed to somebody or could not be delivered.
    pub owed: u64,
    /// Events that stay because they are not old.
    pub newer: u64,
}

pub(super) fn prunable(conn: &Connection, now_ms: i64, days: u32) -> Result<Prunable, StoreError> {
    let before_ms = now_ms.saturating_sub(i64::from(days) * 86_400_000);
    let sql = format!("select count(*), min(occurred_ms), max(occurred_ms) from event where {OLD}");
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?));
    let (events, from_ms, to_ms) =
        conn.prepare(&sql)?.query_row(params![before_ms, settled_before(now_ms)], read)?;
    let sql = "select count(*) from event where occurred_ms < ?1 \
               and exists (select 1 from outbox where event_seq = event.seq)";
    let owed = conn.prepare(sql)?.query_row([before_ms], |row| row.get::<_, i64>(0))? as u64;
    let all = conn.query_row("select count(*) from event", [], |row| row.get::<_, i64>(0))? as u64;
    Ok(Prunable { events, from_ms, to_ms, owed, newer: all.saturating_sub(events + owed) })
}
