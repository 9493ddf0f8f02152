//! The queries, for the writer and for every connection beside it.

use std::ops::ControlFlow;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, Rows, params};
use uuid::Uuid;

use crate::attend::coverage::Coverage;
use crate::attend::coverage::Interval;
use crate::clock::BootId;
use crate::ids::{Name, SubjectId};
use crate::keys::seal::{Belongs, SealKey};
use crate::recognise::face::{Embedder, ModelDigest};
use crate::store::error::StoreError;
use crate::store::parts::{IS_SECOND_PART, SecondParts};
use crate::store::reader::Reader;
use crate::store::rows::{
    DeadLetter, OutboxDepth, Reference, ReferenceCount, SinkName, StoredReply, Subject,
};
use crate::wire::consent::Consent;
use crate::wire::event::{Body, ClockState, StoredEvent, SubjectRef, stored_link};

pub(super) const EVENT_COLUMNS: &str = "e.seq, e.event_id, e.kind, e.occurred_ms, e.boot_id, e.boottime_ms, e.clock, e.superseded_by, e.body";

pub(super) fn event_sql(rest: &str) -> String {
    format!("select {EVENT_COLUMNS} from event e {rest}")
}

/// Which attendances are asked for; in the order of their `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttendanceQuery {
    /// None: of all venues.
    pub venue: Option<String>,
    pub from_ms: i64,
    /// No longer included.
    pub to_ms: i64,
    pub after_seq: i64,
    pub limit: u32,
    /// Those too in whose stead another counts.
    pub all: bool,
}

impl AttendanceQuery {
    /// The condition of `counting` for a table of this alias.
    fn counting_in(&self, alias: &str) -> String {
        if self.all { String::new() } else { format!("and {alias}.superseded_by is null") }
    }

    pub(super) fn counting(&self) -> &'static str {
        if self.all { "" } else { "and superseded_by is null" }
    }
}

/// The number of the event that was stored last, be it still here or not.
pub(super) fn last_seq(conn: &Connection) -> Result<i64, StoreError> {
    let sql = "select coalesce((select seq from sqlite_sequence where name = 'event'), 0)";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// The number that the next event is given.
pub(super) fn next_seq(conn: &Connection) -> Result<i64, StoreError> {
    let sql = "select 1 + max(coalesce((select seq from sqlite_sequence where name = 'event'), 0), \
               coalesce((select max(seq) from main.event), 0))";
    Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// From a row that begins with `EVENT_COLUMNS`.
pub(super) fn event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let seq = row.get("seq")?;
    let (kind, stored): (String, String) = (row.get("kind")?, row.get("body")?);
    let body = Body::from_stored(&kind, &stored)
        .map_err(|error| StoreError::Unreadable { seq, source: Arc::new(error) })?;
    let clock: String = row.get("clock")?;
    Ok(StoredEvent {
        seq,
        event_id: Uuid::from_bytes(row.get("event_id")?),
        occurred_ms: row.get("occurred_ms")?,
        boot_id: BootId::new(&row.get::<_, String>("boot_id")?),
        boottime_ms: row.get::<_, i64>("boottime_ms")? as u64,
        // The column's check knows the same three; a state that we do not know is not to be
        // trusted.
        clock: clock.parse().unwrap_or(ClockState::Unsynced),
        superseded_by: row.get::<_, Option<[u8; 16]>>("superseded_by")?.map(Uuid::from_bytes),
        body,
        chain: stored_link(&stored),
    })
}

/// The same; `None` if the event cannot be read any more.
pub(super) fn readable_event(row: &Row<'_>) -> Result<Option<StoredEvent>, StoreError> {
    match event(row) {
        Err(StoreError::Unreadable { .. }) => Ok(None),
        event => event.map(Some),
    }
}

/// Events of one statement, and where the next one continues.
struct PartOfPage<T> {
    found: Vec<T>,
    rows: u32,
    last_seq: i64,
}

impl PartOfPage<StoredEvent> {
    fn take_all(&mut self, mut rows: Rows<'_>) -> Result<(), StoreError> {
        while let Some(row) = rows.next()? {
            self.rows += 1;
            self.last_seq = row.get(0)?;
            self.found.extend(readable_event(row)?);
        }
        Ok(())
    }
}

/// Asks for events after a `seq` until `limit` of them can be read or there are no more: fewer are
/// always the last ones, however many could not be read.
fn read_page<T>(
    after_seq: i64,
    limit: u32,
    mut ask: impl FnMut(i64, u32, &mut PartOfPage<T>) -> Result<(), StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut page = PartOfPage { found: Vec::new(), rows: 0, last_seq: after_seq };
    loop {
        let wanted = limit - page.found.len() as u32;
        page.rows = 0;
        ask(page.last_seq, wanted, &mut page)?;
        if page.rows < wanted || page.found.len() as u32 == limit {
            return Ok(page.found);
        }
    }
}

/// With no more records than these in a period (0.05 s to read and sort on a Raspberry Pi) they are
/// found by the index of time; otherwise the record is read in the order of `seq` from the page's
/// beginning.
const FEW: i64 = 5_000;

/// Only what this program checked gets into these columns.
fn subject_id(row: &Row<'_>, column: usize) -> Result<SubjectId, StoreError> {
    SubjectId::new(&row.get::<_, String>(column)?).map_err(|_| damaged())
}

fn damaged() -> StoreError {
    StoreError::Damaged { source: None }
}

/// From the column on: the columns of a consent, null where there is none.
pub(super) fn consent(row: &Row<'_>, column: usize) -> Result<Option<Consent>, StoreError> {
    let Some(given_ms) = row.get::<_, Option<i64>>(column)? else {
        return Ok(None);
    };
    let (text_version, recorded_by): (String, String) =
        (row.get(column + 1)?, row.get(column + 3)?);
    let recorded_by = Name::new(&recorded_by).map_err(|_| damaged())?;
    Consent::new(given_ms, &text_version, row.get(column + 2)?, recorded_by)
        .map(Some)
        .map_err(|_| damaged())
}

/// Shows each reference of one embedder, opened, of a composite with the second part where it is
/// there. A part that does not open is counted, not passed over in silence, and does not keep the
/// others from being used. What is stored as the second part of a reference is none by itself, also
/// where its network is used alone.
pub(super) fn all_references(
    conn: &Connection,
    key: &SealKey,
    embedder: &Embedder,
    visit: impl FnMut(Reference),
) -> Result<ReferenceCount, StoreError> {
    rows_of(conn, key, embedder, &format!("not {IS_SECOND_PART}"), visit)
}

/// The same for every row of one network, second parts too.
pub(super) fn all_rows(
    conn: &Connection,
    key: &SealKey,
    embedder: &Embedder,
    visit: impl FnMut(Reference),
) -> Result<ReferenceCount, StoreError> {
    rows_of(conn, key, embedder, "true", visit)
}

fn rows_of(
    conn: &Connection,
    key: &SealKey,
    embedder: &Embedder,
    condition: &str,
    mut visit: impl FnMut(Reference),
) -> Result<ReferenceCount, StoreError> {
    let mut count = ReferenceCount::default();
    let sql = format!(
        "select id, subject_id, sealed, quality from reference \
         where embedder = ?1 and {condition} order by subject_id, row"
    );
    let first = &embedder.first.digest;
    let seconds = SecondParts { conn, key, embedder };
    let mut query = conn.prepare(&sql)?;
    let mut rows = query.query([first.0])?;
    while let Some(row) = rows.next()? {
        let id = Uuid::from_bytes(row.get(0)?);
        let subject_id = subject_id(row, 1)?;
        let belongs = Belongs { subject_id: &subject_id, reference_id: &id, embedder: first };
        let sealed = row.get_ref(2)?.as_blob().map_err(|_| damaged())?;
        let opened = key.open(sealed, belongs);
        match opened {
            Ok(template) => {
                count.opened += 1;
                let (template, unreadable) = seconds.add_to(template, &subject_id, &id)?;
                count.unreadable.extend(unreadable);
                visit(Reference { id, subject_id, template, quality: row.get(3)? });
            }
            Err(_) => count.unreadable.push(id),
        }
    }
    let sql = "select count(*) from main.reference where embedder not in (?1, ?2)";
    let second = embedder.second.map_or(first.0, |it| it.digest.0);
    let others: i64 = conn.query_row(sql, [first.0, second], |row| row.get(0))?;
    count.of_other_embedders = others as u64;
    Ok(count)
}

/// A venue that was put by command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVenue {
    pub id: String,
    /// The venue as JSON.
    pub body: String,
    pub changed_ms: i64,
}

/// How many venues were put by command, and the bytes of their JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VenuesSize {
    pub count: usize,
    pub bytes: usize,
}

/// An interval of time in which the device was watching, by both clocks.
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

impl Reader {
    pub fn event(&self, seq: i64) -> Result<Option<StoredEvent>, StoreError> {
        let sql = event_sql("where seq = ?1");
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query([seq])?;
        rows.next()?.map(event).transpose()
    }

    /// Those recorded after the event `seq`, in their order; what cannot be read any more is passed
    /// over.
    pub fn events_after(&self, seq: i64, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = event_sql("where seq > ?1 order by seq limit ?2");
        let mut query = self.conn.prepare(&sql)?;
        read_page(seq, limit, |after, limit, page| {
            page.take_all(query.query(params![after, limit])?)
        })
    }

    /// The last number given to an event; 0 before the first.
    pub fn newest_seq(&self) -> Result<i64, StoreError> {
        last_seq(&self.conn)
    }

    /// The names recorded at a venue of those who are enrolled, each once, the first recorded
    /// first.
    pub fn names_recorded(&self, venue: &str) -> Result<Vec<String>, StoreError> {
        // By subject: their index finds the first record of each without reading all events of
        // the venue.
        let sql = "select name from (select s.name, (select e.seq from event e where e.subject_id = s.id \
                   and e.kind = 'attendance' and e.venue = ?1 order by e.seq limit 1) as first from subject s) \
                   where first is not null order by first";
        let mut query = self.conn.prepare(sql)?;
        Ok(query.query_map([venue], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// The newest loss or return of the camera.
    pub fn newest_camera_event(&self) -> Result<Option<StoredEvent>, StoreError> {
        // Without its index every event might have to be read.
        let newest =
            "select max(seq) from main.event indexed by event_of_camera where kind = 'camera'";
        let sql = event_sql(&format!("where seq = ({newest})"));
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query([])?;
        rows.next()?.map(event).transpose()
    }

    /// Returns the reply to a request, if there is one: then the request is not executed again.
    pub fn stored_reply(&self, request_id: &str) -> Result<Option<StoredReply>, StoreError> {
        let sql = "select verb, topic, reply from command where request_id = ?1";
        let read = |row: &Row<'_>| {
            Ok(StoredReply { verb: row.get(0)?, topic: row.get(1)?, reply: row.get(2)? })
        };
        Ok(self.conn.prepare(sql)?.query_row([request_id], read).optional()?)
    }

    /// A value kept for the modules downstream (a watermark, what a schedule was last).
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "select value from meta where key = ?1";
        Ok(self.conn.prepare(sql)?.query_row([key], |row| row.get(0)).optional()?)
    }

    /// None too where it cannot be read any more.
    pub(super) fn corrected_by(
        &self,
        event: &StoredEvent,
    ) -> Result<Option<StoredEvent>, StoreError> {
        let Body::Correction(body) = &event.body else {
            return Ok(None);
        };
        let sql = event_sql("where event_id = ?1");
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut rows = query.query([body.corrects.as_bytes()])?;
        Ok(rows.next()?.map(readable_event).transpose()?.flatten())
    }

    pub fn attendance(&self, wanted: &AttendanceQuery) -> Result<Vec<StoredEvent>, StoreError> {
        // Two statements, as `?1 is null or venue = ?1` would not use the index.
        let venue = if wanted.venue.is_some() { "c.venue = ?1" } else { "?1 is null" };
        let counting = wanted.counting_in("c");
        let matching = format!(
            "where c.kind = 'attendance' and {venue} and c.occurred_ms >= ?2 and c.occurred_ms < ?3"
        );
        let index = if wanted.venue.is_none() {
            ""
        } else if self.are_few(wanted, &matching)? {
            "indexed by event_by_venue"
        } else {
            // Left to itself SQLite reads and sorts the whole period for each page.
            "not indexed"
        };
        // The index is that of the table; the row is read through the view that checks it.
        let sql = format!(
            "select {EVENT_COLUMNS} from main.event c {index} cross join event e on e.seq = c.seq \
             {matching} and c.seq > ?4 {counting} order by c.seq limit ?5"
        );
        let mut query = self.conn.prepare(&sql)?;
        let AttendanceQuery { venue, from_ms, to_ms, after_seq, limit, .. } = wanted;
        read_page(*after_seq, *limit, |after, limit, page| {
            page.take_all(query.query(params![venue, from_ms, to_ms, after, limit])?)
        })
    }

    fn are_few(&self, wanted: &AttendanceQuery, matching: &str) -> Result<bool, StoreError> {
        let sql = format!(
            "select count(*) from (select 1 from main.event c indexed by event_by_venue {matching} limit ?4)"
        );
        let period = params![wanted.venue, wanted.from_ms, wanted.to_ms, FEW + 1];
        let count: i64 = self.conn.prepare_cached(&sql)?.query_row(period, |row| row.get(0))?;
        Ok(count <= FEW)
    }

    /// Shows the attendances of a period in the order of time, until `visit` breaks off. Of the query,
    /// `after_seq` and `limit` are ignored.
    pub fn attendance_by_time(
        &self,
        wanted: &AttendanceQuery,
        mut visit: impl FnMut(StoredEvent) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        let venue = if wanted.venue.is_some() { "venue = ?1" } else { "?1 is null" };
        let counting = wanted.counting();
        let sql = event_sql(&format!(
            "where kind = 'attendance' and {venue} and occurred_ms >= ?2 and occurred_ms < ?3 {counting} \
             order by occurred_ms, seq"
        ));
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query(params![wanted.venue, wanted.from_ms, wanted.to_ms])?;
        while let Some(row) = rows.next()? {
            let Some(event) = readable_event(row)? else { continue };
            if visit(event)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The name of a subject in the last of its records that the query finds.
    pub fn newest_name(
        &self,
        wanted: &AttendanceQuery,
        subject_id: &SubjectId,
    ) -> Result<Option<Name>, StoreError> {
        let venue = if wanted.venue.is_some() { "c.venue = ?1" } else { "?1 is null" };
        let counting = wanted.counting_in("c");
        // The index of the venue would lead to the records of everybody. The index is that of the table;
        // the row is read through the view that checks it.
        let sql = format!(
            "select {EVENT_COLUMNS} from main.event c indexed by event_by_subject \
             cross join event e on e.seq = c.seq where c.subject_id = ?4 and c.kind = 'attendance' and {venue} \
             and c.occurred_ms >= ?2 and c.occurred_ms < ?3 {counting} order by c.seq desc"
        );
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut rows = query.query(params![
            wanted.venue,
            wanted.from_ms,
            wanted.to_ms,
            subject_id.as_str()
        ])?;
        while let Some(row) = rows.next()? {
            if let Some(event) = readable_event(row)? {
                return Ok(event.body.subject().map(|it| it.name.clone()));
            }
        }
        Ok(None)
    }

    pub fn subject_count(&self) -> Result<u64, StoreError> {
        let sql = "select count(*) from main.subject";
        Ok(self.conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// Sorted by id, after `after`.
    pub fn subjects(
        &self,
        after: Option<&SubjectId>,
        limit: u32,
    ) -> Result<Vec<Subject>, StoreError> {
        let sql = format!(
            "select id, name, enrolled_ms, (select count(*) from main.reference \
             where subject_id = subject.id and not {IS_SECOND_PART}), \
             (select embedder from main.reference where subject_id = subject.id \
             and not {IS_SECOND_PART} order by row desc limit 1), \
             given_ms, text_version, valid_until_ms, recorded_by \
             from subject left join consent on consent.subject_id = subject.id \
             where subject.id > ?1 order by subject.id limit ?2"
        );
        let mut query = self.conn.prepare(&sql)?;
        let mut rows = query.query(params![after.map_or("", SubjectId::as_str), limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(Subject {
                id: subject_id(row, 0)?,
                name: Name::new(&row.get::<_, String>(1)?).map_err(|_| damaged())?,
                enrolled_ms: row.get(2)?,
                references: row.get(3)?,
                embedder: row.get::<_, Option<[u8; 32]>>(4)?.map(ModelDigest),
                consent: consent(row, 5)?,
            });
        }
        Ok(found)
    }

    pub fn subject(&self, id: &SubjectId) -> Result<Option<Subject>, StoreError> {
        let before: Option<String> = self.conn.query_row(
            "select max(id) from subject where id < ?1",
            [id.as_str()],
            |row| row.get(0),
        )?;
        let before = before.and_then(|it| SubjectId::new(&it).ok());
        let found = self.subjects(before.as_ref(), 1)?;
        Ok(found.into_iter().find(|it| it.id == *id))
    }

    /// As the person is called now; `None` for whoever is not enrolled any more. What was searched or
    /// shown before may be older than a withdrawal or a new name, and neither may come back.
    pub fn enrolled_now(&self, id: &SubjectId) -> Result<Option<SubjectRef>, StoreError> {
        Ok(self.subject(id)?.map(|it| SubjectRef { id: it.id, name: it.name }))
    }

    pub fn outbox_depth(&self, sink: SinkName) -> Result<OutboxDepth, StoreError> {
        let sql = "select count(*), \
                   (select created_ms from main.outbox where sink = ?1 and buried_reason is null order by id limit 1), \
                   (select count(*) from main.outbox where sink = ?1 and buried_reason is not null) \
                   from main.outbox where sink = ?1 and buried_reason is null";
        let depth = self.conn.prepare(sql)?.query_row([sink.as_str()], |row| {
            Ok(OutboxDepth {
                rows: row.get::<_, i64>(0)? as u64,
                oldest_created_ms: row.get(1)?,
                dead_letters: row.get::<_, i64>(2)? as u64,
            })
        })?;
        Ok(depth)
    }

    pub fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let sql = "select id, sink, event_seq, buried_reason from outbox where buried_reason is not null \
                   order by id limit ?1";
        let read = |row: &Row<'_>| {
            Ok(DeadLetter {
                id: row.get(0)?,
                sink: row.get(1)?,
                event_seq: row.get(2)?,
                reason: row.get(3)?,
            })
        };
        let found = self.conn.prepare(sql)?.query_map([limit], read)?.collect::<Result<_, _>>()?;
        Ok(found)
    }

    /// Returns the venues that were put by command, sorted by id.
    pub fn venues(&self) -> Result<Vec<StoredVenue>, StoreError> {
        let mut query = self.conn.prepare("select id, body, changed_ms from venue order by id")?;
        let read = |row: &Row<'_>| {
            Ok(StoredVenue { id: row.get(0)?, body: row.get(1)?, changed_ms: row.get(2)? })
        };
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// How many venues there are beside this one, and how much they take.
    pub fn venues_size(&self, except: &str) -> Result<VenuesSize, StoreError> {
        let sql =
            "select count(*), coalesce(sum(octet_length(body)), 0) from main.venue where id <> ?1";
        let read = |row: &Row<'_>| {
            Ok(VenuesSize {
                count: row.get::<_, i64>(0)? as usize,
                bytes: row.get::<_, i64>(1)? as usize,
            })
        };
        Ok(self.conn.query_row(sql, [except], read)?)
    }

    /// The row that was begun last.
    pub fn newest_observation(&self) -> Result<Option<Observation>, StoreError> {
        self.observation("where row <= ?1 order by row desc limit 1", i64::MAX)
    }

    pub(super) fn observation(
        &self,
        rest: &str,
        row: i64,
    ) -> Result<Option<Observation>, StoreError> {
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
                clock: clock.parse().unwrap_or(ClockState::Unsynced),
            })
        };
        Ok(self.conn.prepare(&sql)?.query_row([row], read).optional()?)
    }

    /// When this device was watching, as far as the time is known: all intervals that touch the period.
    pub fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Coverage, StoreError> {
        let sql = "select from_ms, to_ms from observation where clock <> 'unsynced' and to_ms > ?1 and from_ms < ?2";
        let mut query = self.conn.prepare(sql)?;
        let interval = |row: &Row<'_>| Ok(Interval { from_ms: row.get(0)?, to_ms: row.get(1)? });
        let found = query.query_map([from_ms, to_ms], interval)?.collect::<Result<_, _>>()?;
        Ok(Coverage::new(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_rows_do_not_end_a_listing() {
        // Rows 1 to 20, of which those from 4 to 11 cannot be read.
        let ask = |after: i64, limit: u32, page: &mut PartOfPage<i64>| {
            for seq in (after + 1..=20).take(limit as usize) {
                page.rows += 1;
                page.last_seq = seq;
                page.found.extend((!(4..=11).contains(&seq)).then_some(seq));
            }
            Ok(())
        };
        assert_eq!(read_page(0, 5, ask).unwrap(), [1, 2, 3, 12, 13]);
        assert_eq!(read_page(13, 5, ask).unwrap(), [14, 15, 16, 17, 18]);
        assert_eq!(read_page(18, 5, ask).unwrap(), [19, 20], "fewer are the last");
        assert_eq!(read_page(20, 5, ask).unwrap(), Vec::<i64>::new());
        assert_eq!(read_page(0, 0, ask).unwrap(), Vec::<i64>::new());
    }
}
