//! A write: events, replies and the outbox.

use std::ops::Deref;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::clock::{BootId, Clock, Stamp};
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::rows::ERASURE;
use crate::store::rows::{NEWEST_SEQ, UNREADABLE};
use crate::store::rows::{OutboxPayload, OutboxRow, SinkName};
use crate::store::{read, retention};
use crate::wire::event::{ClockState, Direction, NewEvent, StoredEvent};

/// For how long, how many and how large the replies are that are stored for repeated commands. A
/// broker that keeps a session repeats within hours; 20,000 is one command every half minute.
const REPLIES_KEPT_MS: i64 = 7 * 86_400_000;
const REPLIES_KEPT: i64 = 20_000;
const REPLIES_KEPT_BYTES: i64 = 32 << 20;

/// How often the size of the replies is added up: each of them is read for it.
const REPLIES_SIZED_EVERY: i64 = 100;

/// How much is deleted or corrected in one write, so that others are not kept waiting.
pub(super) const BATCH: i64 = 1_000;

/// The reason of a dead letter is for people.
const REASON_CHARS: usize = 500;
/// Dead-lettered replies that are kept, of at most 1 MB each.
const DEAD_REPLIES_KEPT: i64 = 32;

/// What every write may use.
pub(super) struct StoreContext {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sinks: Vec<SinkName>,
    pub(super) device: String,
    pub(super) shared: bool,
}

/// What is to be done once a write is on the disk.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) outbox_grew: bool,
    pub(super) erased: bool,
}

impl Effects {
    pub(super) fn join(&mut self, other: &Self) {
        self.outbox_grew |= other.outbox_grew;
        self.erased |= other.erased;
    }
}

/// One write within the transaction of its group.
pub struct Tx<'a> {
    reader: &'a Reader,
    pub(super) conn: &'a Connection,
    pub(super) context: &'a StoreContext,
    pub(super) effects: &'a mut Effects,
}

impl Deref for Tx<'_> {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader
    }
}

impl<'a> Tx<'a> {
    /// A transaction must have begun on the connection of `reader`.
    pub(super) fn new(
        reader: &'a Reader,
        context: &'a StoreContext,
        effects: &'a mut Effects,
    ) -> Self {
        Self { reader, conn: &reader.conn, context, effects }
    }

    pub(super) fn now(&self) -> Stamp {
        self.context.clock.now()
    }

    // Events

    /// Stores an event, and with it an outbox row for every sink. Returns its `seq`.
    pub fn append_event(&mut self, event: &NewEvent) -> Result<i64, StoreError> {
        let clock = if event.occurred.trusted { ClockState::Synced } else { ClockState::Unsynced };
        self.insert_event(event, clock, &self.context.clock.boot_id())
    }

    pub(super) fn insert_event(
        &mut self,
        event: &NewEvent,
        clock: ClockState,
        boot_id: &BootId,
    ) -> Result<i64, StoreError> {
        let mut stored = StoredEvent {
            seq: read::next_seq(self.conn)?,
            event_id: event.event_id,
            occurred_ms: event.occurred.wall_ms,
            boot_id: boot_id.clone(),
            boottime_ms: event.occurred.boottime_ms,
            clock,
            superseded_by: None,
            body: event.body.clone(),
            chain: None,
        };
        stored.chain = self.new_link(&stored)?;
        let sql = "insert into main.event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, venue, subject_id, \
                   direction, body, session) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        self.conn.prepare(sql)?.execute(params![
            event.event_id.as_bytes(),
            event.body.kind().as_str(),
            event.occurred.wall_ms,
            boot_id.as_str(),
            event.occurred.boottime_ms as i64,
            clock.as_str(),
            event.body.venue(),
            event.body.subject().map(|it| it.id.as_str()),
            event.body.direction().map(Direction::as_str),
            event.body.to_stored(stored.chain.as_deref()),
            event.body.session(),
        ])?;
        let seq = self.conn.last_insert_rowid();
        if seq != stored.seq {
            self.relink(seq)?;
        }
        let sql = "insert into main.outbox (sink, event_seq, created_ms) values (?1, ?2, ?3)";
        let mut insert = self.conn.prepare(sql)?;
        let now_ms = self.now().wall_ms;
        for sink in &self.context.sinks {
            insert.execute(params![sink.as_str(), seq, now_ms])?;
        }
        // Without sinks too: it wakes the watchers of the record.
        self.effects.outbox_grew = true;
        Ok(seq)
    }

    /// Deletes delivered events older than `days`, oldest first, at most a thousand; gives how
    /// many. No pending event or dead letter is deleted, nothing by a clock that is not trusted, an event
    /// with a time that was not trusted only after later events with a trusted one, and an
    /// attendance only when no later one rests on it: one of a session that may still run, or one
    /// that counts in the stead of another that stays.
    pub fn retention(&mut self, days: u32) -> Result<usize, StoreError> {
        let now = self.now();
        if !now.trusted {
            return Ok(0);
        }
        let before_ms = now.wall_ms.saturating_sub(i64::from(days) * 86_400_000);
        self.trim_observations(before_ms)?;
        let head = self.chain_head()?;
        let sql = format!(
            "delete from main.event where seq in (select seq from main.event where {} order by seq limit ?3) \
             returning seq",
            retention::OLD
        );
        let old = params![before_ms, retention::settled_before(now.wall_ms), BATCH];
        let deleted: Vec<i64> =
            self.conn.prepare(&sql)?.query_map(old, |row| row.get(0))?.collect::<Result<_, _>>()?;
        if let Some(through) = deleted.iter().max() {
            // The newest may be among them, and numbers go on from it.
            let newest = self.newest_seq()?;
            self.put_meta(NEWEST_SEQ, newest.to_string().as_bytes())?;
            self.note_deleted(*through, head.as_ref())?;
        }
        Ok(deleted.len())
    }

    // Replies to commands

    /// Stores the reply to a request and queues it for MQTT. `false`, and nothing done, if the
    /// request has one already.
    pub fn store_and_queue_reply(
        &mut self,
        request_id: &str,
        verb: &str,
        topic: &str,
        reply: &str,
    ) -> Result<bool, StoreError> {
        let new = self.store_reply(request_id, verb, topic, reply)?;
        if new {
            self.queue_reply(topic, reply)?;
        }
        Ok(new)
    }

    /// Stores the reply to a request. `false`, and nothing done, if the request has one already.
    pub fn store_reply(
        &mut self,
        request_id: &str,
        verb: &str,
        topic: &str,
        reply: &str,
    ) -> Result<bool, StoreError> {
        self.end_signed(request_id)?;
        // A reply that cannot be read any more makes room.
        let damaged = "delete from main.command where request_id = ?1 \
                       and not exists (select 1 from command where request_id = ?1)";
        self.conn.prepare_cached(damaged)?.execute([request_id])?;
        let sql = "insert into main.command (request_id, verb, topic, reply, answered_ms) \
                   values (?1, ?2, ?3, ?4, ?5) on conflict (request_id) do nothing";
        // 0: nobody knows when.
        let now = self.now();
        let answered_ms = if now.trusted { now.wall_ms } else { 0 };
        let new = self.conn.prepare(sql)?.execute(params![
            request_id,
            verb,
            topic,
            reply,
            answered_ms
        ])?;
        if new == 0 {
            return Ok(false);
        }
        // So that between two checks of the size no more is added than is kept.
        let is_large = reply.len() as i64 > REPLIES_KEPT_BYTES / REPLIES_SIZED_EVERY;
        self.delete_surplus_replies(self.conn.last_insert_rowid(), is_large)?;
        Ok(true)
    }

    /// Deletes replies of more than a week ago and returns how many. Not with each reply: after a step
    /// of the clock one of a minute ago may look old, and its request would be executed again.
    pub fn delete_old_replies(&mut self) -> Result<usize, StoreError> {
        let now = self.now();
        if !now.trusted {
            return Ok(0);
        }
        let sql = "delete from main.command where answered_ms > 0 and answered_ms < ?1";
        Ok(self.conn.prepare(sql)?.execute([now.wall_ms.saturating_sub(REPLIES_KEPT_MS)])?)
    }

    /// Queues a reply for MQTT without storing it: a repeated one, or one to a request without a
    /// readable id.
    pub fn queue_reply(&mut self, topic: &str, reply: &str) -> Result<(), StoreError> {
        if !self.context.sinks.contains(&SinkName::MQTT) {
            return Ok(());
        }
        let sql =
            "insert into main.outbox (sink, topic, payload, created_ms) values (?1, ?2, ?3, ?4)";
        let now_ms = self.now().wall_ms;
        self.conn.prepare(sql)?.execute(params![SinkName::MQTT.as_str(), topic, reply, now_ms])?;
        self.effects.outbox_grew = true;
        Ok(())
    }

    fn delete_surplus_replies(&self, newest: i64, is_large: bool) -> Result<(), StoreError> {
        let sql = "delete from main.command where row <= ?1 - ?2";
        self.conn.prepare(sql)?.execute([newest, REPLIES_KEPT])?;
        if is_large || newest % REPLIES_SIZED_EVERY == 0 {
            let sql = "delete from main.command where row <= (select max(row) from (\
                         select row, sum(octet_length(reply)) over (order by row desc) as bytes from command) \
                       where bytes > ?1)";
            self.conn.prepare(sql)?.execute([REPLIES_KEPT_BYTES])?;
        }
        Ok(())
    }

    // The outbox

    /// Returns the pending rows of a sink, oldest first, after the row `after_id`. An event that
    /// cannot be read any more is dead-lettered on the way: it would block all behind it.
    pub fn outbox_batch(
        &mut self,
        sink: SinkName,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.outbox_batch_except(sink, after_id, limit, &[])
    }

    /// As `outbox_batch`, without some rows.
    pub fn outbox_batch_except(
        &mut self,
        sink: SinkName,
        after_id: i64,
        limit: usize,
        except: &[i64],
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let except = serde_json::to_string(except).expect("numbers are JSON");
        // A sender waits for its reply, however many events are pending for the broker. MongoDB's
        // erasures keep their place.
        let replies = if sink == SinkName::MQTT {
            self.outbox_rows(sink, after_id, limit.div_ceil(2), "and o.topic is not null", &except)?
        } else {
            Vec::new()
        };
        let left = limit - replies.len();
        let others = if sink == SinkName::MQTT { "and o.topic is null" } else { "" };
        let mut batch = self.outbox_rows(sink, after_id, left, others, &except)?;
        // Acknowledged or not, each by itself: their order among one another is that of their ids
        // all the same.
        batch.splice(0..0, replies);
        Ok(batch)
    }

    fn outbox_rows(
        &mut self,
        sink: SinkName,
        after_id: i64,
        limit: usize,
        which: &str,
        except: &str,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let sql = format!(
            "select {}, o.id, o.topic, o.payload, o.created_ms, o.attempts from outbox o \
             left join event e on e.seq = o.event_seq \
             where o.sink = ?1 and o.id > ?2 and o.buried_reason is null {which} \
             and o.id not in (select value from json_each(?4)) order by o.id limit ?3",
            read::EVENT_COLUMNS
        );
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query(params![sink.as_str(), after_id, limit as i64, except])?;
        let mut batch = Vec::new();
        let mut unreadable = Vec::new();
        while let Some(row) = rows.next()? {
            let id = row.get("id")?;
            match outbox_payload(row) {
                Ok(payload) => batch.push(OutboxRow {
                    id,
                    payload,
                    created_ms: row.get("created_ms")?,
                    attempts: row.get("attempts")?,
                }),
                Err(reason) => unreadable.push((id, reason)),
            }
        }
        for row in &mut batch {
            if let OutboxPayload::Event { event, corrected } = &mut row.payload {
                *corrected = self.corrected_by(event)?.map(Box::new);
            }
        }
        for (id, reason) in unreadable {
            self.dead_letter(id, &reason)?;
        }
        Ok(batch)
    }

    /// Delivered: the rows leave the outbox.
    pub fn acknowledge(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        let mut delete =
            self.conn.prepare("delete from main.outbox where id = ?1 returning topic")?;
        let mut erased = false;
        for id in ids {
            let topic: Option<Option<String>> =
                delete.query_row([id], |row| row.get(0)).optional()?;
            erased |= topic.flatten().as_deref() == Some(ERASURE);
        }
        // It held the id of a person, which stands nowhere else any more.
        if erased { self.schedule_scrub() } else { Ok(()) }
    }

    /// Takes a row out of delivery for good; it stays with the reason. Of replies the newest stay: the
    /// broker took none of them, and whoever asked asks again.
    pub fn dead_letter(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        let reason: String = reason.chars().take(REASON_CHARS).collect();
        let sql = "update main.outbox set buried_reason = ?2 where id = ?1 returning topic like 'reply/%'";
        let is_reply: Option<Option<bool>> =
            self.conn.prepare(sql)?.query_row(params![id, reason], |row| row.get(0)).optional()?;
        if is_reply.flatten() == Some(true) {
            let sql = "delete from main.outbox where id in (\
                         select id from main.outbox where sink = 'mqtt' and buried_reason is not null \
                         and topic like 'reply/%' order by id desc limit -1 offset ?1)";
            self.conn.prepare(sql)?.execute([DEAD_REPLIES_KEPT])?;
        }
        Ok(())
    }

    /// Counts a failure of rows whose neighbours were delivered, or that failed for a reason of
    /// their own.
    pub fn count_attempt(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        let mut count =
            self.conn.prepare("update main.outbox set attempts = attempts + 1 where id = ?1")?;
        ids.iter().try_for_each(|id| count.execute([id]).map(|_| ()))?;
        Ok(())
    }

    // Key-value metadata

    pub fn put_meta(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let sql = "insert into main.meta (key, value) values (?1, ?2) on conflict (key) do update set value = ?2";
        self.conn.prepare(sql)?.execute(params![key, value])?;
        Ok(())
    }
}

/// Reads what a row of the outbox delivers, but not yet what a correction corrects. `Err`: why it
/// cannot be read.
fn outbox_payload(row: &Row<'_>) -> Result<OutboxPayload, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("unreadable: {error}");
    if let Some(topic) = row.get("topic").map_err(|it| unreadable(&it))? {
        let payload: String = row.get("payload").map_err(|it| unreadable(&it))?;
        return Ok(OutboxPayload::Message { topic, bytes: payload.into_bytes() });
    }
    // The event is damaged, or gone.
    if row.get_ref("kind").is_ok_and(|it| it == rusqlite::types::ValueRef::Null) {
        return Err(UNREADABLE.to_owned());
    }
    match read::event(row) {
        Ok(event) => Ok(OutboxPayload::Event { event, corrected: None }),
        Err(StoreError::Unreadable { source, .. }) => Err(unreadable(&source)),
        Err(error) => Err(unreadable(&error)),
    }
}
