//! When the device was watching. A row is begun when it begins to watch, and extended as time
//! passes; what lies between the rows nobody saw. After a crash a row ends up to a minute early,
//! which is the honest side.

use rusqlite::params;

use crate::clock::Stamp;
use crate::store::error::StoreError;
use crate::store::tx::Tx;
use crate::wire::event::ClockState;

/// A row that was not extended for longer than this is not extended any more: the machine slept, or
/// the disk was full.
const STRETCH_MAX_MS: u64 = 3 * 60_000;

impl Tx<'_> {
    /// The device was watching from the end of `row` up to `now`; without a row it begins to watch.
    /// Gives the row to go on with, another one where the clock has stepped or become trusted in
    /// between: the new one then begins where the old one ended, by the clock that never jumps.
    pub fn observe(&mut self, row: Option<i64>, now: &Stamp) -> Result<i64, StoreError> {
        let boot_id = self.context.clock.boot_id();
        let before = row.map(|row| self.observation("where row = ?1", row)).transpose()?.flatten();
        let continued = before.filter(|it| {
            it.boot_id == boot_id
                && now
                    .boottime_ms
                    .checked_sub(it.to_boottime_ms)
                    .is_some_and(|passed| passed <= STRETCH_MAX_MS)
        });
        let mut from = *now;
        if let Some(before) = continued {
            let trusted = before.clock != ClockState::Unsynced;
            let end = Stamp { wall_ms: before.to_ms, boottime_ms: before.to_boottime_ms, trusted };
            if trusted == now.trusted && (!trusted || now.step_since(&end).is_none()) {
                let sql =
                    "update main.observation set to_ms = ?2, to_boottime_ms = ?3 where row = ?1";
                self.conn.prepare(sql)?.execute(params![
                    before.row,
                    now.wall_ms,
                    now.boottime_ms as i64
                ])?;
                return Ok(before.row);
            }
            from = now.at_boottime(end.boottime_ms);
        }
        let sql = "insert into main.observation (boot_id, from_ms, from_boottime_ms, to_ms, to_boottime_ms, clock) \
                   values (?1, ?2, ?3, ?4, ?5, ?6)";
        let clock = if now.trusted { ClockState::Synced } else { ClockState::Unsynced };
        self.conn.prepare(sql)?.execute(params![
            boot_id.as_str(),
            from.wall_ms,
            from.boottime_ms as i64,
            now.wall_ms,
            now.boottime_ms as i64,
            clock.as_str()
        ])?;
        Ok(self.conn.last_insert_rowid())
    }

    /// With the wall clock trusted: this boot's rows get their right times.
    pub(super) fn correct_observations(&self, now: &Stamp) -> Result<(), StoreError> {
        let sql = "update main.observation set from_ms = ?2 - (?3 - from_boottime_ms), to_ms = ?2 - (?3 - to_boottime_ms), \
                   clock = 'corrected' where clock = 'unsynced' and boot_id = ?1";
        let boot_id = self.context.clock.boot_id();
        self.conn.prepare(sql)?.execute(params![
            boot_id.as_str(),
            now.wall_ms,
            now.boottime_ms as i64
        ])?;
        Ok(())
    }

    /// Lets go of what is older than `before_ms`: where events may have been deleted, nothing is
    /// known of absence.
    pub(super) fn trim_observations(&self, before_ms: i64) -> Result<(), StoreError> {
        // Rows whose time never became known go with the first later one that is old. The newest
        // always stays.
        let sql = "delete from main.observation where row < (select max(row) from observation) and (\
                     (clock <> 'unsynced' and to_ms <= ?1) or (clock = 'unsynced' and row < \
                     (select max(row) from observation where clock <> 'unsynced' and to_ms <= ?1)))";
        self.conn.prepare(sql)?.execute([before_ms])?;
        let sql = "update main.observation set from_boottime_ms = min(from_boottime_ms + (?1 - from_ms), to_boottime_ms), \
                   from_ms = ?1 where clock <> 'unsynced' and from_ms < ?1 and to_ms > ?1";
        self.conn.prepare(sql)?.execute([before_ms])?;
        Ok(())
    }
}
