//! What may be done within a write: events and what is owed.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::people::ERASURE;
use super::{
    BuriedRow, OutboxDepth, OutboxRow, SinkName, StoreError, StoredAnswer, attendance, read,
    retention,
};
use crate::clock::{BootId, Clock, Stamp};
use crate::recognise::face::SubjectId;
use crate::record::event::{Body, ClockState, Direction, NewEvent, StoredEvent};
use crate::record::seal::SealKey;

/// For how long, how many and how large the answers are that are kept for repeated commands. A broker that keeps a
/// session repeats within hours; 20,000 is one command every half minute.
const ANSWERS_KEPT_MS: i64 = 7 * 86_400_000;
const ANSWERS_KEPT: i64 = 20_000;
const ANSWERS_KEPT_BYTES: i64 = 32 << 20;

/// How often the size of the answers is added up: it takes a look at each of them.
const ANSWERS_SIZED_EVERY: i64 = 100;

/// How much is deleted or corrected in one write, so that others are not kept waiting.
pub(super) const BATCH: i64 = 1_000;

/// A reason for burial is for people.
const REASON_CHARS: usize = 500;

/// What every write may use.
pub(super) struct Setting {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sinks: Vec<SinkName>,
    pub(super) device: String,
    pub(super) shared: bool,
    pub(super) key: SealKey,
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
    pub(super) conn: &'a Connection,
    pub(super) setting: &'a Setting,
    pub(super) effects: &'a mut Effects,
}

impl<'a> Tx<'a> {
    pub(super) fn new(
        conn: &'a Connection,
        setting: &'a Setting,
        effects: &'a mut Effects,
    ) -> Self {
        Self { conn, setting, effects }
    }

    pub(super) fn now(&self) -> Stamp {
        self.setting.clock.now()
    }

    // Events

    /// Stores an event, and with it that every sink is owed it. Gives its `seq`.
    pub fn append_event(&mut self, event: &NewEvent) -> Result<i64, StoreError> {
        let clock = if event.occurred.trusted { ClockState::Synced } else { ClockState::Unsynced };
        self.insert_event(event, clock, &self.setting.clock.boot_id())
    }

    pub(super) fn insert_event(
        &mut self,
        event: &NewEvent,
        clock: ClockState,
        boot_id: &BootId,
    ) -> Result<i64, StoreError> {
        let sql = "insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, venue, subject_id, \
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
            event.body.to_stored(),
            event.body.session(),
        ])?;
        let seq = self.conn.last_insert_rowid();
        let sql = "insert into outbox (sink, event_seq, created_ms) values (?1, ?2, ?3)";
        let mut owe = self.conn.prepare(sql)?;
        let now_ms = self.now().wall_ms;
        for sink in &self.setting.sinks {
            owe.execute(params![sink.as_str(), seq, now_ms])?;
        }
        // Without sinks too: whoever watches the record is woken by it.
        self.effects.outbox_grew = true;
        Ok(seq)
    }

    /// See `Reader::attendance`.
    pub fn attendance(
        &self,
        query: &read::AttendanceQuery,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        read::attendance(self.conn, query)
    }

    /// See `Reader::attendance_by_time`.
    pub fn attendance_by_time(
        &self,
        query: &read::AttendanceQuery,
        visit: impl FnMut(StoredEvent),
    ) -> Result<(), StoreError> {
        attendance::by_time(self.conn, query, visit)
    }

    pub fn event(&self, seq: i64) -> Result<Option<StoredEvent>, StoreError> {
        let sql = read::event_sql("where seq = ?1");
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query([seq])?;
        rows.next()?.map(read::event).transpose()
    }

    /// Those recorded after the event `seq`, in their order; what cannot be read any more is passed over.
    pub fn events_after(&self, seq: i64, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = read::event_sql("where seq > ?1 order by seq limit ?2");
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query(params![seq, limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            match read::event(row) {
                Err(StoreError::Unreadable { .. }) => {}
                event => found.push(event?),
            }
        }
        Ok(found)
    }

    /// The last number given to an event; 0 before the first.
    pub fn newest_seq(&self) -> Result<i64, StoreError> {
        read::last_seq(self.conn)
    }

    /// The names recorded at a venue of those who are enrolled, each once, the first recorded first.
    pub fn names_recorded(&self, venue: &str) -> Result<Vec<String>, StoreError> {
        // By subject: their index finds the first record of each without looking at all events of the venue.
        let sql = "select name from (select s.name, (select e.seq from event e where e.subject_id = s.id \
                   and e.kind = 'attendance' and e.venue = ?1 order by e.seq limit 1) as first from subject s) \
                   where first is not null order by first";
        let mut query = self.conn.prepare(sql)?;
        Ok(query.query_map([venue], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// The newest loss or return of the camera.
    pub fn newest_camera_event(&self) -> Result<Option<StoredEvent>, StoreError> {
        // Without its index every event might have to be looked at.
        let newest = "select max(seq) from event indexed by event_of_camera where kind = 'camera'";
        let sql = read::event_sql(&format!("where seq = ({newest})"));
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query([])?;
        rows.next()?.map(read::event).transpose()
    }

    /// Deletes delivered events older than `days`, oldest first, at most a thousand; gives how many. Nothing owed or
    /// buried is deleted, nothing by a clock that is not trusted, an event with a time that was not trusted only
    /// after later events with a trusted one, and an attendance only when no later one rests on it: one of a session
    /// that may still run, or one that counts in the stead of another that stays.
    pub fn retention(&mut self, days: u32) -> Result<usize, StoreError> {
        let now = self.now();
        if !now.trusted {
            return Ok(0);
        }
        let before_ms = now.wall_ms.saturating_sub(i64::from(days) * 86_400_000);
        self.trim_observations(before_ms)?;
        let sql = format!(
            "delete from event where seq in (select seq from event where {} order by seq limit ?3)",
            retention::OLD
        );
        Ok(self.conn.prepare(&sql)?.execute(params![
            before_ms,
            retention::settled_before(now.wall_ms),
            BATCH
        ])?)
    }

    // Answers to commands

    /// The answer that was given to a request, if there is one: then the request is not carried out again.
    pub fn answer_of(&self, request_id: &str) -> Result<Option<StoredAnswer>, StoreError> {
        let sql = "select verb, topic, reply from command where request_id = ?1";
        let read = |row: &Row<'_>| {
            Ok(StoredAnswer { verb: row.get(0)?, topic: row.get(1)?, reply: row.get(2)? })
        };
        Ok(self.conn.prepare(sql)?.query_row([request_id], read).optional()?)
    }

    /// Stores the answer to a request and owes it to MQTT. `false`, and nothing done, if the request has one already.
    pub fn put_answer(
        &mut self,
        request_id: &str,
        verb: &str,
        topic: &str,
        reply: &str,
    ) -> Result<bool, StoreError> {
        let new = self.keep_answer(request_id, verb, topic, reply)?;
        if new {
            self.owe_reply(topic, reply)?;
        }
        Ok(new)
    }

    /// Stores the answer to a request. `false`, and nothing done, if the request has one already.
    pub fn keep_answer(
        &mut self,
        request_id: &str,
        verb: &str,
        topic: &str,
        reply: &str,
    ) -> Result<bool, StoreError> {
        self.end_signed(request_id)?;
        let sql = "insert into command (request_id, verb, topic, reply, answered_ms) \
                   values (?1, ?2, ?3, ?4, ?5) on conflict (request_id) do nothing";
        let now_ms = self.now().wall_ms;
        let new =
            self.conn.prepare(sql)?.execute(params![request_id, verb, topic, reply, now_ms])?;
        if new == 0 {
            return Ok(false);
        }
        self.forget_old_answers(self.conn.last_insert_rowid(), now_ms)?;
        Ok(true)
    }

    /// Owes MQTT a reply without storing it as an answer: a repeated one, or one to a request without a readable id.
    pub fn owe_reply(&mut self, topic: &str, reply: &str) -> Result<(), StoreError> {
        if !self.setting.sinks.contains(&SinkName::MQTT) {
            return Ok(());
        }
        let sql = "insert into outbox (sink, topic, payload, created_ms) values (?1, ?2, ?3, ?4)";
        let now_ms = self.now().wall_ms;
        self.conn.prepare(sql)?.execute(params![SinkName::MQTT.as_str(), topic, reply, now_ms])?;
        self.effects.outbox_grew = true;
        Ok(())
    }

    fn forget_old_answers(&self, newest: i64, now_ms: i64) -> Result<(), StoreError> {
        // The newest always stays: after a step of the clock it may look old.
        let sql = "delete from command where row < ?1 and (answered_ms < ?2 or row <= ?1 - ?3)";
        let oldest_ms = now_ms.saturating_sub(ANSWERS_KEPT_MS);
        self.conn.prepare(sql)?.execute([newest, oldest_ms, ANSWERS_KEPT])?;
        if newest % ANSWERS_SIZED_EVERY == 0 {
            let sql = "delete from command where row <= (select max(row) from (\
                         select row, sum(octet_length(reply)) over (order by row desc) as bytes from command) \
                       where bytes > ?1)";
            self.conn.prepare(sql)?.execute([ANSWERS_KEPT_BYTES])?;
        }
        Ok(())
    }

    // The outbox

    /// What a sink is owed, oldest first, after the row `after_id`. An event that cannot be read any more is buried
    /// on the way: it would block all behind it.
    pub fn outbox_batch(
        &mut self,
        sink: SinkName,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        // Somebody waits for an answer, however many events are still owed to the broker. MongoDB's erasures keep their place.
        let answers = if sink == SinkName::MQTT {
            self.outbox_rows(sink, after_id, limit.div_ceil(2), "and o.topic is not null")?
        } else {
            Vec::new()
        };
        let left = limit - answers.len();
        let others = if sink == SinkName::MQTT { "and o.topic is null" } else { "" };
        let mut batch = self.outbox_rows(sink, after_id, left, others)?;
        // Acknowledged or not, each by itself: their order among one another is that of their ids all the same.
        batch.splice(0..0, answers);
        Ok(batch)
    }

    fn outbox_rows(
        &mut self,
        sink: SinkName,
        after_id: i64,
        limit: usize,
        which: &str,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let sql = format!(
            "select {}, o.id, o.topic, o.payload, o.created_ms, o.attempts from outbox o \
             left join event e on e.seq = o.event_seq \
             where o.sink = ?1 and o.id > ?2 and o.buried_reason is null {which} order by o.id limit ?3",
            read::EVENT_COLUMNS
        );
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query(params![sink.as_str(), after_id, limit as i64])?;
        let (mut batch, mut unreadable) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let id = row.get("id")?;
            let topic: Option<String> = row.get("topic")?;
            let payload: Option<String> = row.get("payload")?;
            let event = match topic {
                Some(_) => None,
                None => match read::event(row) {
                    Ok(event) => Some(event),
                    Err(StoreError::Unreadable { source, .. }) => {
                        unreadable.push((id, format!("unreadable: {source}")));
                        continue;
                    }
                    Err(other) => return Err(other),
                },
            };
            let reply = topic.zip(payload.map(String::into_bytes));
            let (created_ms, attempts) = (row.get("created_ms")?, row.get("attempts")?);
            let corrected = event.as_ref().map(|it| self.corrected_by(it)).transpose()?.flatten();
            batch.push(OutboxRow {
                id,
                event,
                corrected: corrected.map(Box::new),
                reply,
                created_ms,
                attempts,
            });
        }
        for (id, reason) in unreadable {
            self.bury(id, &reason)?;
        }
        Ok(batch)
    }

    /// None too where it cannot be read any more.
    fn corrected_by(&self, event: &StoredEvent) -> Result<Option<StoredEvent>, StoreError> {
        let Body::Correction(body) = &event.body else {
            return Ok(None);
        };
        let sql = read::event_sql("where event_id = ?1");
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut rows = query.query([body.corrects.as_bytes()])?;
        match rows.next()?.map(read::event).transpose() {
            Err(StoreError::Unreadable { .. }) => Ok(None),
            other => other,
        }
    }

    /// Delivered: the rows leave the outbox.
    pub fn acknowledge(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        let mut delete = self.conn.prepare("delete from outbox where id = ?1 returning topic")?;
        let mut erased = false;
        for id in ids {
            let topic: Option<Option<String>> =
                delete.query_row([id], |row| row.get(0)).optional()?;
            erased |= topic.flatten().as_deref() == Some(ERASURE);
        }
        // It held the id of the person who is nowhere else any more.
        if erased { self.owe_scrub() } else { Ok(()) }
    }

    /// Never to be delivered: the row stays, out of the way, with the reason.
    pub fn bury(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        let reason: String = reason.chars().take(REASON_CHARS).collect();
        self.conn
            .prepare("update outbox set buried_reason = ?2 where id = ?1")?
            .execute(params![id, reason])?;
        Ok(())
    }

    /// Counts a failure of rows whose neighbours were delivered, or that failed for a reason of their own.
    pub fn count_attempt(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        let mut count =
            self.conn.prepare("update outbox set attempts = attempts + 1 where id = ?1")?;
        ids.iter().try_for_each(|id| count.execute([id]).map(|_| ()))?;
        Ok(())
    }

    pub fn outbox_depth(&self, sink: SinkName) -> Result<OutboxDepth, StoreError> {
        read::outbox_depth(self.conn, sink)
    }

    pub fn buried(&self, limit: u32) -> Result<Vec<BuriedRow>, StoreError> {
        read::buried(self.conn, limit)
    }

    // Odds and ends

    /// A value kept for the modules downstream (a watermark, what a schedule was last).
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "select value from meta where key = ?1";
        Ok(self.conn.prepare(sql)?.query_row([key], |row| row.get(0)).optional()?)
    }

    pub fn put_meta(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let sql = "insert into meta (key, value) values (?1, ?2) on conflict (key) do update set value = ?2";
        self.conn.prepare(sql)?.execute(params![key, value])?;
        Ok(())
    }

    /// The values of a column that are strings and pass a test, with their rows: for `erase_subject`.
    pub(super) fn texts_where(
        &self,
        sql: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(i64, String)>, StoreError> {
        let mut query = self.conn.prepare(sql)?;
        let mut rows = query.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let text: String = row.get(1)?;
            if wanted(&text) {
                found.push((row.get(0)?, text));
            }
        }
        Ok(found)
    }

    /// Every name that events of a subject carry: it may have been renamed in between.
    pub(super) fn names_in_events(
        &self,
        subject_id: &SubjectId,
    ) -> Result<HashSet<String>, StoreError> {
        let sql = read::event_sql("where subject_id = ?1");
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query([subject_id.as_str()])?;
        let mut names = HashSet::new();
        while let Some(row) = rows.next()? {
            // A body that cannot be read is emptied, so its name does not matter.
            if let Some(subject) = read::event(row).ok().as_ref().and_then(|it| it.body.subject()) {
                names.insert(subject.name.as_str().to_owned());
            }
        }
        Ok(names)
    }
}
