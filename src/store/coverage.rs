//! When the device was watching. A row is begun when it begins to watch, and extended as time passes; what lies between
//! the rows nobody saw. After a crash a row ends up to a minute early, which is the honest side.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::StoreError;
use super::tx::Tx;
use crate::attend::watched::{Stretch, Watched};
use crate::clock::{BootId, Stamp};
use crate::record::event::ClockState;

/// A row that was not extended for longer than this is not extended any more: the machine slept, or the disk was full.
const STRETCH_MAX_MS: u64 = 3 * 60_000;

/// A stretch of time in which the device was watching, by both clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub row: i64,
    pub boot_id: BootId,
    pub from_ms: i64,
    pub from_boottime_ms: u64,
    pub to_ms: i64,
    pub to_boottime_ms: u64,
    /// Of `Unsynced` ones the wall times mean nothing (yet).
    pub clock: ClockState,
}

impl Tx<'_> {
    /// The device was watching from the end of `row` up to `now`; without a row it begins to watch. Gives the row to
    /// go on with, another one where the clock has stepped or become trusted in between: the new one then begins
    /// where the old one ended, by the clock that never jumps.
    pub fn observe(&mut self, row: Option<i64>, now: &Stamp) -> Result<i64, StoreError> {
        let boot_id = self.setting.clock.boot_id();
        let before = row.map(|row| one(self.conn, "where row = ?1", row)).transpose()?.flatten();
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
                let sql = "update observation set to_ms = ?2, to_boottime_ms = ?3 where row = ?1";
                self.conn.prepare(sql)?.execute(params![
                    before.row,
                    now.wall_ms,
                    now.boottime_ms as i64
                ])?;
                return Ok(before.row);
            }
            from = now.at_boottime(end.boottime_ms);
        }
        let sql = "insert into observation (boot_id, from_ms, from_boottime_ms, to_ms, to_boottime_ms, clock) \
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

    /// See `Reader::watched`.
    pub fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError> {
        watched(self.conn, from_ms, to_ms)
    }

    /// The row that was begun last.
    pub fn newest_observation(&self) -> Result<Option<Observation>, StoreError> {
        newest(self.conn)
    }

    /// With the wall clock trusted: this boot's rows get their right times.
    pub(super) fn correct_observations(&self, now: &Stamp) -> Result<(), StoreError> {
        let sql = "update observation set from_ms = ?2 - (?3 - from_boottime_ms), to_ms = ?2 - (?3 - to_boottime_ms), \
                   clock = 'corrected' where clock = 'unsynced' and boot_id = ?1";
        let boot_id = self.setting.clock.boot_id();
        self.conn.prepare(sql)?.execute(params![
            boot_id.as_str(),
            now.wall_ms,
            now.boottime_ms as i64
        ])?;
        Ok(())
    }

    /// Lets go of what is older than `before_ms`: where events may have been deleted, nothing is known of absence.
    pub(super) fn trim_observations(&self, before_ms: i64) -> Result<(), StoreError> {
        // Rows whose time never became known go with the first later one that is old. The newest always stays.
        let sql = "delete from observation where row < (select max(row) from observation) and (\
                     (clock <> 'unsynced' and to_ms <= ?1) or (clock = 'unsynced' and row < \
                     (select max(row) from observation where clock <> 'unsynced' and to_ms <= ?1)))";
        self.conn.prepare(sql)?.execute([before_ms])?;
        let sql = "update observation set from_boottime_ms = min(from_boottime_ms + (?1 - from_ms), to_boottime_ms), \
                   from_ms = ?1 where clock <> 'unsynced' and from_ms < ?1 and to_ms > ?1";
        self.conn.prepare(sql)?.execute([before_ms])?;
        Ok(())
    }
}

pub(super) fn newest(conn: &Connection) -> Result<Option<Observation>, StoreError> {
    one(conn, "where row <= ?1 order by row desc limit 1", i64::MAX)
}

/// The stretches of known time that touch a period.
pub(super) fn watched(conn: &Connection, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError> {
    let sql = "select from_ms, to_ms from observation where clock <> 'unsynced' and to_ms > ?1 and from_ms < ?2";
    let mut query = conn.prepare(sql)?;
    let stretch = |row: &Row<'_>| Ok(Stretch { from_ms: row.get(0)?, to_ms: row.get(1)? });
    let found = query.query_map([from_ms, to_ms], stretch)?.collect::<Result<_, _>>()?;
    Ok(Watched::new(found))
}

fn one(conn: &Connection, rest: &str, row: i64) -> Result<Option<Observation>, StoreError> {
    let sql = format!(
        "select row, boot_id, from_ms, from_boottime_ms, to_ms, to_boottime_ms, clock from observation {rest}"
    );
    let read = |row: &Row<'_>| {
        let clock: String = row.get(6)?;
        Ok(Observation {
            row: row.get(0)?,
            boot_id: BootId::new(&row.get::<_, String>(1)?),
            from_ms: row.get(2)?,
            from_boottime_ms: row.get::<_, i64>(3)? as u64,
            to_ms: row.get(4)?,
            to_boottime_ms: row.get::<_, i64>(5)? as u64,
            clock: ClockState::parse(&clock).unwrap_or(ClockState::Unsynced),
        })
    };
    Ok(conn.prepare(&sql)?.query_row([row], read).optional()?)
}
