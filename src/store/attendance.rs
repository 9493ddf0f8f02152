//! What the store does about attendance: the records that a sighting is judged by, which of several
//! counts, what becomes of them when the time is known, and the venues that were put by command.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, params};
use uuid::Uuid;

use crate::attend::Direction;
use crate::attend::judge::{self, Moment, Recorded};
use crate::attend::session::Session;
use crate::attend::venue::Venue;
use crate::clock::{BootId, Stamp, rfc3339};
use crate::ids::SubjectId;
use crate::store::error::StoreError;
use crate::store::read;
use crate::store::tx::{BATCH, Tx};
use crate::wire::event::{Attendance, Body, ClockState, Correction, NewEvent, StoredEvent, id_at};

/// How many of a subject's latest records a sighting is compared with. Sightings that arrive out of
/// order are seconds apart; in a session all its records are compared besides.
const RECENT: i64 = 64;

/// A subject's time of enrolment is that of its row, and the event's that of the command: the
/// networks' time lies between.
const ENROLLED_WITHIN_MS: i64 = 120_000;

impl Tx<'_> {
    /// The records of a subject at a venue that a sighting at `at` is to be judged by, in the order
    /// of their `seq`.
    pub fn records_for(
        &self,
        venue: &Venue,
        subject_id: &SubjectId,
        at: &Stamp,
    ) -> Result<Vec<Recorded>, StoreError> {
        const COLUMNS: &str =
            "select seq, occurred_ms, clock, boottime_ms, boot_id, direction, session from event";
        let sql = format!(
            "{COLUMNS} where subject_id = ?1 and kind = 'attendance' and venue = ?2 order by seq desc limit ?3"
        );
        let mut query = self.conn.prepare(&sql)?;
        let ids = params![subject_id.as_str(), venue.id, RECENT];
        let recent: Vec<Recorded> = query.query_map(ids, recorded)?.collect::<Result<_, _>>()?;
        let mut found: BTreeMap<i64, Recorded> =
            recent.into_iter().map(|it| (it.seq, it)).collect();
        if let Some(session) = at.trusted.then(|| venue.session_at(at.wall_ms)).flatten() {
            let sql = format!(
                "{COLUMNS} where subject_id = ?1 and kind = 'attendance' and venue = ?2 and session = ?3"
            );
            let mut query = self.conn.prepare(&sql)?;
            let of_session =
                query.query_map(params![subject_id.as_str(), venue.id, session.id], recorded)?;
            for record in of_session {
                let record = record?;
                found.insert(record.seq, record);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Stores an attendance that [`judge::judge`] found to be new. Where it is earlier than one
    /// that counted so far, it counts in its stead, and a correction reports so.
    pub fn append_attendance(
        &mut self,
        venue: &Venue,
        event: &NewEvent,
    ) -> Result<i64, StoreError> {
        let seq = self.append_event(event)?;
        let session = event.body.session().and_then(|id| venue.session_of_id(id));
        if let (Some(session), Some(subject), Some(direction)) =
            (session, event.body.subject(), event.body.direction())
        {
            let changed = self.settle(venue, subject.id.as_str(), &session, direction)?;
            if changed.contains(&seq) {
                // Before anything is linked to it, and before anybody received it.
                self.relink(seq)?;
            }
            for seq in changed.into_iter().filter(|it| *it != seq) {
                self.append_correction(seq)?;
            }
        }
        Ok(seq)
    }

    /// Now that the wall clock is trusted: works out when this boot's unsynced events occurred, and
    /// of attendances which session that was and which of them count; and stores a correction for
    /// each. Gives how many; to be called again until there are none.
    pub fn correct_times(&mut self, now: &Stamp, venues: &[Venue]) -> Result<usize, StoreError> {
        if !now.trusted {
            return Ok(0);
        }
        self.correct_observations(now)?;
        let boot_id = self.context.clock.boot_id();
        let sql = "select seq, event_id, occurred_ms, boottime_ms, kind, venue from event \
                   where clock = 'unsynced' and boot_id = ?1 order by seq limit ?2";
        let read = |row: &Row<'_>| {
            Ok(Unsynced {
                seq: row.get(0)?,
                event_id: Uuid::from_bytes(row.get(1)?),
                was_ms: row.get(2)?,
                occurred: now.at_boottime(row.get::<_, i64>(3)? as u64),
                venue: row
                    .get::<_, Option<String>>(5)?
                    .filter(|_| row.get(4).is_ok_and(|it: String| it == "attendance")),
            })
        };
        let unsynced: Vec<Unsynced> = self
            .conn
            .prepare(sql)?
            .query_map(params![boot_id.as_str(), BATCH], read)?
            .collect::<Result<_, _>>()?;
        let mut to_settle = BTreeSet::new();
        for event in &unsynced {
            self.keep_recorded(event.seq)?;
            self.conn
                .prepare(
                    "update main.event set occurred_ms = ?1, clock = 'corrected' where seq = ?2",
                )?
                .execute(params![event.occurred.wall_ms, event.seq])?;
            self.correct_enrolment(event)?;
            let venue =
                event.venue.as_ref().and_then(|id| venues.iter().position(|it| it.id == *id));
            if let Some(at) = venue {
                to_settle.extend(
                    self.place_in_session(event, &venues[at])?
                        .map(|(whose, id, way)| (at, whose, id, way)),
                );
            }
        }
        let mut others = BTreeSet::new();
        for (at, subject_id, session_id, direction) in &to_settle {
            if let Some(session) = venues[*at].session_of_id(session_id) {
                others.extend(self.settle(&venues[*at], subject_id, &session, *direction)?);
            }
        }
        for Unsynced { seq, event_id, was_ms, occurred, .. } in &unsynced {
            others.remove(seq);
            let stored = match self.event(*seq) {
                // What cannot be read any more has its right time all the same.
                Err(StoreError::Unreadable { .. }) => None,
                other => other?,
            };
            let body = correction(*event_id, *was_ms, stored.as_ref());
            let event = NewEvent { event_id: id_at(now), occurred: *occurred, body };
            self.insert_event(&event, ClockState::Corrected, &boot_id)?;
        }
        for seq in others {
            self.append_correction(seq)?;
        }
        Ok(unsynced.len())
    }

    /// Who was enrolled while the time was not known was so from the corrected time on: nobody is
    /// absent before.
    fn correct_enrolment(&self, event: &Unsynced) -> Result<(), StoreError> {
        let sql = "update main.subject set enrolled_ms = enrolled_ms + ?2 - ?3 where abs(enrolled_ms - ?3) <= ?4 \
                   and id = (select subject_id from event where seq = ?1 and kind = 'enrolment')";
        let shift = params![event.seq, event.occurred.wall_ms, event.was_ms, ENROLLED_WITHIN_MS];
        self.conn.prepare(sql)?.execute(shift)?;
        Ok(())
    }

    /// Gives an attendance the session of its right time. Gives the key under which its session's
    /// records are settled.
    fn place_in_session(
        &self,
        event: &Unsynced,
        venue: &Venue,
    ) -> Result<Option<(String, String, Direction)>, StoreError> {
        let Some(session) = judge::session_of_learned_time(venue, event.occurred.wall_ms) else {
            return Ok(None);
        };
        let stored = match self.event(event.seq) {
            Err(StoreError::Unreadable { .. }) => None,
            other => other?,
        };
        let Some(Body::Attendance(body)) = stored.map(|it| it.body) else {
            return Ok(None);
        };
        let subject_id = body.subject.as_ref().map(|it| it.id.as_str().to_owned());
        let key = subject_id.map(|id| (id, session.id.clone(), body.direction));
        self.rewrite_attendance(
            event.seq,
            &Attendance { session: Some(session.id), ..body },
            None,
        )?;
        Ok(key)
    }

    /// Finds out which of a subject's records in a session counts. Gives the `seq` of those for
    /// which that changed.
    fn settle(
        &mut self,
        venue: &Venue,
        subject_id: &str,
        session: &Session,
        direction: Direction,
    ) -> Result<Vec<i64>, StoreError> {
        let sql = read::event_sql(
            "where subject_id = ?1 and kind = 'attendance' and venue = ?2 and session = ?3 and direction = ?4 \
             order by seq",
        );
        let mut query = self.conn.prepare(&sql)?;
        let mut rows =
            query.query(params![subject_id, venue.id, session.id, direction.as_str()])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.extend(read::readable_event(row)?);
        }
        let records: Vec<Recorded> = events.iter().map(record_of).collect();
        let mut changed = Vec::new();
        for (event, standing) in
            events.iter().zip(judge::settle(venue, session, direction, &records))
        {
            let Body::Attendance(body) = &event.body else { continue };
            let by = standing.superseded_by.and_then(|seq| events.iter().find(|it| it.seq == seq));
            let superseded_by = by.map(|it| it.event_id);
            if event.superseded_by != superseded_by || body.status != standing.status {
                let body = Attendance { status: standing.status, ..body.clone() };
                self.rewrite_attendance(event.seq, &body, superseded_by)?;
                changed.push(event.seq);
            }
        }
        Ok(changed)
    }

    fn rewrite_attendance(
        &self,
        seq: i64,
        body: &Attendance,
        superseded_by: Option<Uuid>,
    ) -> Result<(), StoreError> {
        let sql =
            "update main.event set session = ?2, body = ?3, superseded_by = ?4 where seq = ?1";
        let link = self.link_before_correction(seq)?;
        let stored = Body::Attendance(body.clone()).to_stored(link.as_deref());
        let by = superseded_by.map(|it| *it.as_bytes());
        self.conn.prepare(sql)?.execute(params![seq, body.session, stored, by])?;
        Ok(())
    }

    /// Appends a correction of an event whose time is as it was, but not its place in the record.
    fn append_correction(&mut self, seq: i64) -> Result<(), StoreError> {
        let Some(stored) = self.event(seq)? else {
            return Ok(());
        };
        let body = correction(stored.event_id, stored.occurred_ms, Some(&stored));
        let trusted = stored.clock != ClockState::Unsynced;
        let occurred =
            Stamp { wall_ms: stored.occurred_ms, boottime_ms: stored.boottime_ms, trusted };
        let event = NewEvent { event_id: id_at(&self.now()), occurred, body };
        self.insert_event(&event, stored.clock, &stored.boot_id)?;
        Ok(())
    }

    // Venues put by command

    /// Gives whether it took the place of another.
    pub fn put_venue(&mut self, id: &str, body: &str) -> Result<bool, StoreError> {
        let known = "select exists (select 1 from venue where id = ?1)";
        let replaced = self.conn.prepare(known)?.query_row([id], |row| row.get(0))?;
        let sql = "insert into main.venue (id, body, changed_ms) values (?1, ?2, ?3) \
                   on conflict (id) do update set body = ?2, changed_ms = ?3";
        self.conn.prepare(sql)?.execute(params![id, body, self.now().wall_ms])?;
        Ok(replaced)
    }

    /// Gives whether there was one.
    pub fn delete_venue(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self.conn.prepare("delete from main.venue where id = ?1")?.execute([id])? > 0)
    }
}

struct Unsynced {
    seq: i64,
    event_id: Uuid,
    was_ms: i64,
    occurred: Stamp,
    /// Of an attendance.
    venue: Option<String>,
}

fn correction(corrects: Uuid, was_ms: i64, stored: Option<&StoredEvent>) -> Body {
    let attendance = stored.and_then(|it| match &it.body {
        Body::Attendance(body) => Some(body),
        _ => None,
    });
    Body::Correction(Correction {
        corrects,
        was: rfc3339(was_ms),
        session: attendance.and_then(|it| it.session.clone()),
        status: attendance.map(|it| it.status),
        superseded_by: stored.and_then(|it| it.superseded_by),
    })
}

fn record_of(event: &StoredEvent) -> Recorded {
    let at = Moment {
        wall_ms: event.occurred_ms,
        is_known: event.clock != ClockState::Unsynced,
        boottime_ms: event.boottime_ms,
        boot_id: event.boot_id.clone(),
    };
    let direction = event.body.direction().unwrap_or(Direction::In);
    Recorded { seq: event.seq, at, direction, session: event.body.session().map(str::to_owned) }
}

fn recorded(row: &Row<'_>) -> rusqlite::Result<Recorded> {
    let (clock, boot_id): (String, String) = (row.get(2)?, row.get(4)?);
    let at = Moment {
        wall_ms: row.get(1)?,
        is_known: clock != ClockState::Unsynced.as_str(),
        boottime_ms: row.get::<_, i64>(3)? as u64,
        boot_id: BootId::new(&boot_id),
    };
    let direction: Option<String> = row.get(5)?;
    let direction = direction.as_deref().and_then(|it| it.parse().ok()).unwrap_or(Direction::In);
    Ok(Recorded { seq: row.get(0)?, at, direction, session: row.get(6)? })
}
