//! The delivery status of the sinks: what is pending since when, and up to when the record is
//! complete elsewhere.

use rusqlite::{OptionalExtension as _, Row, params};

use crate::clock::{Stamp, rfc3339};
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::rows::{OutboxDepth, SinkName};
use crate::store::tx::Tx;
use crate::store::unreadable::Unreadable;
use crate::wire::event::ClockState;

/// What was seen becomes an event after a while: a command's image waits up to 20 s for the
/// networks. So long before the end of what was watched nothing is claimed.
const SETTLED_AFTER_MS: i64 = 30_000;
/// Gaps are reported for so long back.
const GAPS_SINCE_MS: i64 = 7 * 86_400_000;
/// And so many of them; older ones are reported as one.
const GAPS_MAX: usize = 100;
/// The event of a lost camera comes with, or shortly after, the end of what was watched.
const CAMERA_NEAR_MS: i64 = 120_000;
/// With more rows than this pending, the oldest is not searched, because that reads each of them; the
/// earlier watermark stays true.
const SEARCHED_MAX: u64 = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryStatus {
    /// The newest event.
    pub seq: i64,
    pub sinks: Vec<SinkStatus>,
    /// The end of what was watched, by a known time.
    pub observed_to_ms: Option<i64>,
    /// When the device was not watching, within the last week.
    pub gaps: Vec<Unwatched>,
    /// Rows of the database that cannot be read, the events among them counted too.
    pub unreadable: Unreadable,
    trusted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkStatus {
    pub sink: SinkName,
    pub depth: OutboxDepth,
    /// Of the events it has not, dead letters among them, the one that occurred first.
    pub earliest: Option<Held>,
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub seq: i64,
    pub occurred_ms: i64,
    pub is_dead_letter: bool,
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

impl DeliveryStatus {
    /// Everything that the device saw up to this moment is with `sink`, or with all of them. None:
    /// it is not known now.
    pub fn complete_through_ms(&self, sink: Option<SinkName>) -> Option<i64> {
        let observed_ms = self.observed_to_ms.filter(|_| self.trusted)?;
        let mut through_ms = observed_ms.saturating_sub(SETTLED_AFTER_MS);
        for status in self.sinks.iter().filter(|it| sink.is_none_or(|sink| sink == it.sink)) {
            if status.unknown {
                return None;
            }
            if let Some(held) = &status.earliest {
                through_ms = through_ms.min(held.occurred_ms.saturating_sub(1));
            }
        }
        Some(through_ms)
    }

    /// Returns the dead letter that keeps the record from being complete further, if one does.
    pub fn held_back_by(&self) -> Option<(SinkName, Held)> {
        let held = self.sinks.iter().filter_map(|it| Some((it.sink, it.earliest?)));
        held.filter(|(_, it)| it.is_dead_letter).min_by_key(|(_, it)| it.occurred_ms)
    }

    pub fn complete_through(&self, sink: Option<SinkName>) -> Option<String> {
        self.complete_through_ms(sink).map(rfc3339)
    }
}

impl Tx<'_> {
    pub fn delivery_status(&self) -> Result<DeliveryStatus, StoreError> {
        self.delivery_status_of(&self.context.sinks, &self.now())
    }

    /// Makes dead letters pending again, in their place: at most `limit` of those after `after`.
    /// Returns `None` when there are no more. The caller makes each batch a transaction of its own,
    /// so that recording need not wait for all of them and the log does not grow with their number.
    pub fn retry_dead_letters(
        &mut self,
        after: i64,
        limit: u32,
    ) -> Result<Option<RetriedRows>, StoreError> {
        let last = "select max(id), count(*) from (select id from main.outbox \
                    where buried_reason is not null and id > ?1 order by id limit ?2)";
        let read = |row: &Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?));
        let (last, count) =
            self.conn.prepare_cached(last)?.query_row([after, limit.into()], read)?;
        let Some(last) = last else {
            return Ok(None);
        };
        let sql = "update main.outbox set buried_reason = null, attempts = 0 \
                   where buried_reason is not null and id > ?1 and id <= ?2";
        self.conn.prepare_cached(sql)?.execute([after, last])?;
        self.effects.outbox_grew = true;
        Ok(Some(RetriedRows { count: count as u64, last }))
    }
}

/// Dead letters that are pending again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetriedRows {
    pub count: u64,
    pub last: i64,
}

impl Reader {
    pub fn delivery_status_of(
        &self,
        sinks: &[SinkName],
        now: &Stamp,
    ) -> Result<DeliveryStatus, StoreError> {
        let newest = self.newest_observation()?.filter(|it| it.clock != ClockState::Unsynced);
        let observed_to_ms = newest.map(|it| it.to_ms);
        let gaps = match observed_to_ms {
            Some(to_ms) if now.trusted => {
                self.gaps(now.wall_ms.saturating_sub(GAPS_SINCE_MS), to_ms)?
            }
            _ => Vec::new(),
        };
        Ok(DeliveryStatus {
            seq: self.newest_seq()?,
            sinks: sinks.iter().map(|sink| self.status_of_sink(*sink)).collect::<Result<_, _>>()?,
            observed_to_ms,
            gaps,
            unreadable: self.unreadable_set_apart()?,
            trusted: now.trusted,
        })
    }

    fn status_of_sink(&self, sink: SinkName) -> Result<SinkStatus, StoreError> {
        let depth = self.outbox_depth(sink)?;
        let unknown = depth.rows + depth.dead_letters > SEARCHED_MAX;
        let sql = "select e.seq, e.occurred_ms, o.buried_reason is not null \
                   from main.outbox o join main.event e on e.seq = o.event_seq \
                   where o.sink = ?1 order by e.occurred_ms limit 1";
        let held = |row: &Row<'_>| {
            Ok(Held { seq: row.get(0)?, occurred_ms: row.get(1)?, is_dead_letter: row.get(2)? })
        };
        let earliest = if unknown {
            None
        } else {
            self.conn.prepare(sql)?.query_row([sink.as_str()], held).optional()?
        };
        let earliest = [earliest, self.earliest_unreadable(sink)?]
            .into_iter()
            .flatten()
            .min_by_key(|it| it.occurred_ms);
        Ok(SinkStatus { sink, depth, earliest, unknown })
    }

    /// Of the events that the sink has not and that cannot be read any more the earliest. When one occurred is not known: not
    /// before the events beside it in the record, as far as is known.
    fn earliest_unreadable(&self, sink: SinkName) -> Result<Option<Held>, StoreError> {
        let sql = "select u.key, coalesce(min(\
                     (select occurred_ms from main.event where seq < u.key order by seq desc limit 1), \
                     (select occurred_ms from main.event where seq > u.key order by seq limit 1)), \
                     (select occurred_ms from main.event where seq < u.key order by seq desc limit 1), 0) as occurred_ms \
                   from unreadable u where u.tbl = 'event' and typeof(u.key) = 'integer' \
                   and exists (select 1 from main.outbox where event_seq = +u.key and sink = ?1) \
                   order by occurred_ms limit 1";
        let held = |row: &Row<'_>| {
            Ok(Held { seq: row.get(0)?, occurred_ms: row.get(1)?, is_dead_letter: true })
        };
        Ok(self.conn.prepare_cached(sql)?.query_row([sink.as_str()], held).optional()?)
    }

    fn gaps(&self, from_ms: i64, to_ms: i64) -> Result<Vec<Unwatched>, StoreError> {
        let mut found = self.watched(from_ms, to_ms)?.gaps(from_ms, to_ms);
        if found.len() > GAPS_MAX {
            // Rather too long a gap than one that is not reported.
            let rest = found.split_off(found.len() - GAPS_MAX + 1);
            let mut one = found[0];
            one.to_ms = found[found.len() - 1].to_ms;
            found = std::iter::once(one).chain(rest).collect();
        }
        let sql = "select exists (select 1 from event where kind = 'camera' and occurred_ms between ?1 and ?2)";
        let mut camera = self.conn.prepare(sql)?;
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
}
