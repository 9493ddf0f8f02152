//! How the device stands with those it owes events: what is owed since when, and up to when its record is complete
//! elsewhere.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::tx::Tx;
use super::{OutboxDepth, SinkName, StoreError, observation, read};
use crate::clock::{Stamp, rfc3339};
use crate::record::event::ClockState;

/// What was seen becomes an event after a while: a command's image waits up to 20 s for the networks. So long before
/// the end of what was watched nothing is claimed.
const SETTLED_AFTER_MS: i64 = 30_000;
/// Gaps are told for so long back.
const GAPS_SINCE_MS: i64 = 7 * 86_400_000;
/// And so many of them; older ones are told as one.
const GAPS_MAX: usize = 100;
/// The event of a lost camera comes with, or shortly after, the end of what was watched.
const CAMERA_NEAR_MS: i64 = 120_000;
/// With more than this owed, the oldest is not looked for: it takes a look at each, and what was said before stays true.
const LOOK_MAX: u64 = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The newest event.
    pub seq: i64,
    pub sinks: Vec<SinkStanding>,
    /// The end of what was watched, by a known time.
    pub observed_to_ms: Option<i64>,
    /// When the device was not watching, within the last week.
    pub gaps: Vec<Unwatched>,
    trusted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkStanding {
    pub sink: SinkName,
    pub depth: OutboxDepth,
    /// Of the events it has not, buried ones among them, the one that occurred first.
    pub earliest: Option<Held>,
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub seq: i64,
    pub occurred_ms: i64,
    pub buried: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwatched {
    pub from_ms: i64,
    pub to_ms: i64,
    /// Otherwise the device was off.
    pub camera_lost: bool,
}

impl Unwatched {
    pub fn reason(&self) -> &'static str {
        if self.camera_lost { "camera_lost" } else { "off" }
    }
}

impl Standing {
    /// Everything that the device saw up to this moment is with `sink`, or with all of them. None: nothing can be said
    /// now.
    pub fn complete_through_ms(&self, sink: Option<SinkName>) -> Option<i64> {
        let observed_ms = self.observed_to_ms.filter(|_| self.trusted)?;
        let mut through_ms = observed_ms.saturating_sub(SETTLED_AFTER_MS);
        for standing in self.sinks.iter().filter(|it| sink.is_none_or(|sink| sink == it.sink)) {
            if standing.unknown {
                return None;
            }
            if let Some(held) = &standing.earliest {
                through_ms = through_ms.min(held.occurred_ms.saturating_sub(1));
            }
        }
        Some(through_ms)
    }

    /// Which buried event keeps the record from being complete further, if one does.
    pub fn held_back_by(&self) -> Option<(SinkName, Held)> {
        let held = self.sinks.iter().filter_map(|it| Some((it.sink, it.earliest?)));
        held.filter(|(_, it)| it.buried).min_by_key(|(_, it)| it.occurred_ms)
    }

    pub fn complete_through(&self, sink: Option<SinkName>) -> Option<String> {
        self.complete_through_ms(sink).map(rfc3339)
    }
}

impl Tx<'_> {
    pub fn standing(&self) -> Result<Standing, StoreError> {
        standing(self.conn, &self.setting.sinks, &self.now())
    }

    /// Puts what was buried back among what is owed, in its place; gives how many.
    pub fn retry_buried(&mut self) -> Result<usize, StoreError> {
        let sql =
            "update outbox set buried_reason = null, attempts = 0 where buried_reason is not null";
        let count = self.conn.execute(sql, [])?;
        self.effects.outbox_grew |= count > 0;
        Ok(count)
    }
}

impl read::Reader {
    pub fn standing(&self, sinks: &[SinkName], now: &Stamp) -> Result<Standing, StoreError> {
        standing(self.connection(), sinks, now)
    }
}

fn standing(conn: &Connection, sinks: &[SinkName], now: &Stamp) -> Result<Standing, StoreError> {
    let newest = observation::newest(conn)?.filter(|it| it.clock != ClockState::Unsynced);
    let observed_to_ms = newest.map(|it| it.to_ms);
    let gaps = match observed_to_ms {
        Some(to_ms) if now.trusted => gaps(conn, now.wall_ms.saturating_sub(GAPS_SINCE_MS), to_ms)?,
        _ => Vec::new(),
    };
    Ok(Standing {
        seq: read::last_seq(conn)?,
        sinks: sinks.iter().map(|sink| of_sink(conn, *sink)).collect::<Result<_, _>>()?,
        observed_to_ms,
        gaps,
        trusted: now.trusted,
    })
}

fn of_sink(conn: &Connection, sink: SinkName) -> Result<SinkStanding, StoreError> {
    let depth = read::outbox_depth(conn, sink)?;
    let unknown = depth.rows + depth.buried > LOOK_MAX;
    let sql = "select e.seq, e.occurred_ms, o.buried_reason is not null from outbox o join event e on e.seq = o.event_seq \
               where o.sink = ?1 order by e.occurred_ms limit 1";
    let held = |row: &Row<'_>| {
        Ok(Held { seq: row.get(0)?, occurred_ms: row.get(1)?, buried: row.get(2)? })
    };
    let earliest = if unknown {
        None
    } else {
        conn.prepare(sql)?.query_row([sink.as_str()], held).optional()?
    };
    Ok(SinkStanding { sink, depth, earliest, unknown })
}

fn gaps(conn: &Connection, from_ms: i64, to_ms: i64) -> Result<Vec<Unwatched>, StoreError> {
    let mut found = observation::watched(conn, from_ms, to_ms)?.gaps(from_ms, to_ms);
    if found.len() > GAPS_MAX {
        // Rather too long a gap than one that is not told.
        let rest = found.split_off(found.len() - GAPS_MAX + 1);
        let mut one = found[0];
        one.to_ms = found[found.len() - 1].to_ms;
        found = std::iter::once(one).chain(rest).collect();
    }
    let sql = "select exists (select 1 from event where kind = 'camera' and occurred_ms between ?1 and ?2)";
    let mut camera = conn.prepare(sql)?;
    let mut gaps = Vec::with_capacity(found.len());
    for gap in found {
        let near = params![
            gap.from_ms.saturating_sub(CAMERA_NEAR_MS),
            gap.to_ms.saturating_add(CAMERA_NEAR_MS)
        ];
        let camera_lost = camera.query_row(near, |row| row.get(0))?;
        gaps.push(Unwatched { from_ms: gap.from_ms, to_ms: gap.to_ms, camera_lost });
    }
    Ok(gaps)
}
