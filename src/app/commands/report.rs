//! The record of a venue and period, put together for people: by command and on the command line.
//!
//! Invariant: a page costs a page. Rows are made in their order from records that are read in the
//! order of time; what comes before the page is counted, not made, and reading ends with the page.
//! Held at a time: who is enrolled, the sessions of the period, and the records of about a day.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::attend::Status;
use crate::attend::coverage::{Coverage, Interval};
use crate::attend::session::Session;
use crate::attend::summary::{
    AttendanceRow, CountedAttendance, EnrolledSubject, Line, MARGIN_MS, Roll, Sheet, Sweep,
};
use crate::attend::venue::Venue;
use crate::clock::rfc3339;
use crate::ids::{Name, SubjectId};
use crate::store::{AttendanceQuery, Reader, StoreError, Subject};
use crate::wire::command::{AttendanceRequest, SUMMARY_DAYS_MAX};
use crate::wire::event::{Body, StoredEvent, SubjectRef};
use crate::wire::reply::{AttendanceSummary, NotKnown, Period, SummaryRow, SummaryStatus};

/// Subjects fetched at a time.
const PAGE: u32 = 500;
/// More times than these that a door was not watching in one session are not listed.
const GAPS_LISTED: usize = 10;
/// Names of subjects that are kept while rows are made; more than most devices know.
const NAMES_KEPT: usize = 20_000;
/// The most records that a report within the daemon reads: some 10,000 people who pass three times a
/// day for two months.
pub const RECORDS_MAX: u64 = 2_000_000;

/// Whether absent subjects are requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    NotAsked,
    Asked,
    /// At a venue that this device does not watch: of none of its sessions absence is known.
    AskedElsewhere,
}

impl Absent {
    pub fn new(asked: bool, is_watched: bool) -> Self {
        match (asked, is_watched) {
            (false, _) => Self::NotAsked,
            (true, true) => Self::Asked,
            (true, false) => Self::AskedElsewhere,
        }
    }
}

/// A venue's record of a period: the sessions that begin in it, and what else was recorded in it.
pub struct AttendanceReport<'a> {
    reader: &'a Reader,
    venue: &'a Venue,
    from_ms: i64,
    to_ms: i64,
    absent: Absent,
    /// More records are not read.
    records_max: u64,
    watched: Coverage,
}

impl<'a> AttendanceReport<'a> {
    pub fn new(
        reader: &'a Reader,
        venue: &'a Venue,
        (from_ms, to_ms): (i64, i64),
        absent: Absent,
    ) -> Result<Self, StoreError> {
        let watched = match absent {
            Absent::Asked => reader
                .watched(from_ms.saturating_sub(MARGIN_MS), to_ms.saturating_add(MARGIN_MS))?,
            Absent::NotAsked | Absent::AskedElsewhere => Coverage::default(),
        };
        Ok(Self { reader, venue, from_ms, to_ms, absent, records_max: u64::MAX, watched })
    }

    /// Returns a report that fails once it has read so many records.
    #[must_use]
    pub fn within(self, records_max: u64) -> Self {
        Self { records_max, ..self }
    }

    /// `limit` rows after the first `after`.
    pub fn page(&self, after: i64, limit: u32) -> Result<AttendanceSummary, StoreError> {
        let skip = u64::try_from(after).unwrap_or(0);
        let mut rows = Vec::new();
        let mut more = false;
        self.each_row(skip, &mut |row| {
            if rows.len() == limit as usize {
                more = true;
                return ControlFlow::Break(());
            }
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        let next_after = more.then(|| (skip + u64::from(limit)) as i64);
        let not_known = (self.absent != Absent::NotAsked && skip == 0).then(|| self.not_known());
        Ok(AttendanceSummary { rows, not_known, next_after, ..self.heading() })
    }

    /// What stands beside the rows.
    pub fn heading(&self) -> AttendanceSummary {
        AttendanceSummary {
            venue: self.venue.id.clone(),
            time_zone: self.venue.zone_name().to_owned(),
            from: rfc3339(self.from_ms),
            to: rfc3339(self.to_ms),
            rows: Vec::new(),
            not_known: None,
            next_after: None,
            unreadable: 0,
        }
    }

    /// Sessions of which it is not known who was absent.
    pub fn not_known(&self) -> Vec<NotKnown> {
        let of = |session: Session| {
            let gaps = self.watched.gaps(session.opens_ms, session.end_ms);
            (!gaps.is_empty()).then(|| not_known(&session, &gaps))
        };
        self.sessions().into_iter().filter_map(of).collect()
    }

    /// Returns the sessions for which absence is requested.
    fn sessions(&self) -> Vec<Session> {
        if self.absent == Absent::NotAsked {
            return Vec::new();
        }
        let mut sessions = self.venue.sessions_between(self.from_ms, self.to_ms);
        sessions.retain(|it| it.start_ms >= self.from_ms);
        sessions
    }

    /// Shows the rows after the first `skip`, until `visit` breaks off.
    pub fn each_row(
        &self,
        skip: u64,
        visit: &mut dyn FnMut(SummaryRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut sessions = self.sessions();
        sessions.retain(|it| self.watched.gaps(it.opens_ms, it.end_ms).is_empty());
        let roll =
            if self.absent == Absent::NotAsked { Roll::default() } else { roll(self.reader)? };
        let query = self.query();
        let names =
            Names { reader: self.reader, query: &query, roll: &roll, found: HashMap::new() };
        let mut rows = Rows { skip, names, visit };
        let mut sweep = Sweep::new(self.venue, self.from_ms..self.to_ms).with_absence(sessions);
        let mut records_read = 0;
        let mut is_done = false;
        self.reader.attendance_by_time(&query, |event| {
            records_read += 1;
            if records_read > self.records_max {
                return Err(StoreError::TooManyRecords { records_max: self.records_max });
            }
            while let Some(sheet) = sweep.take_complete(event.occurred_ms) {
                if rows.of(&sheet)?.is_break() {
                    is_done = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            if let Some(seen) = passage(event) {
                sweep.push(&seen);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        while !is_done && let Some(sheet) = sweep.take_last() {
            is_done = rows.of(&sheet)?.is_break();
        }
        Ok(())
    }

    fn query(&self) -> AttendanceQuery {
        AttendanceQuery {
            venue: Some(self.venue.id.clone()),
            from_ms: self.from_ms.saturating_sub(MARGIN_MS),
            to_ms: self.to_ms.saturating_add(MARGIN_MS),
            after_seq: 0,
            limit: 0,
            all: false,
        }
    }
}

/// Makes rows of sheets, those of the page.
struct Rows<'a> {
    /// So many are still to be passed over.
    skip: u64,
    names: Names<'a>,
    visit: &'a mut dyn FnMut(SummaryRow) -> ControlFlow<()>,
}

impl Rows<'_> {
    fn of(&mut self, sheet: &Sheet) -> Result<ControlFlow<()>, StoreError> {
        let roll = self.names.roll;
        let count = sheet.len(roll);
        if count <= self.skip {
            self.skip -= count;
            return Ok(ControlFlow::Continue(()));
        }
        // Fewer than a sheet has, so it fits.
        for line in sheet.lines(roll).skip(std::mem::take(&mut self.skip) as usize) {
            let row = match line {
                Line::Absent { session, who } => absent_row(session, &who.subject_id, &who.name),
                Line::Present(row) => {
                    let Ok(id) = SubjectId::new(&row.subject_id) else { continue };
                    let name = self.names.of(&id)?;
                    summary_row(row, &id, &name)
                }
            };
            if (self.visit)(row).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The names of the subjects in the record: today's of a subject on the roll, otherwise that of its
/// last record.
struct Names<'a> {
    reader: &'a Reader,
    query: &'a AttendanceQuery,
    roll: &'a Roll,
    found: HashMap<SubjectId, Name>,
}

impl Names<'_> {
    fn of(&mut self, id: &SubjectId) -> Result<Name, StoreError> {
        if let Some(enrolled) = self.roll.find(id.as_str()) {
            return Ok(enrolled.name.clone());
        }
        if let Some(name) = self.found.get(id) {
            return Ok(name.clone());
        }
        let found = self.reader.newest_name(self.query, id)?;
        let name = found
            .or_else(|| Name::new(id.as_str()).ok())
            .ok_or(StoreError::Damaged { source: None })?;
        if self.found.len() >= NAMES_KEPT {
            self.found.clear();
        }
        self.found.insert(id.clone(), name.clone());
        Ok(name)
    }
}

fn not_known(session: &Session, gaps: &[Interval]) -> NotKnown {
    let period = |it: &Interval| Period { from: rfc3339(it.from_ms), to: rfc3339(it.to_ms) };
    NotKnown {
        session: session.id.clone(),
        starts_at: rfc3339(session.start_ms),
        ends_at: rfc3339(session.end_ms),
        not_watching: gaps.iter().take(GAPS_LISTED).map(period).collect(),
    }
}

/// The local day of a moment: from its beginning to that of the next.
pub fn day_of(venue: &Venue, wall_ms: i64) -> (i64, i64) {
    let date = venue.date_at(wall_ms);
    let begin = date.and_then(|date| venue.begin_of(date));
    let end = date.and_then(|date| venue.begin_of(date.tomorrow().ok()?));
    (begin.unwrap_or(wall_ms), end.unwrap_or(wall_ms))
}

/// The period of a summary: bounds that are omitted are those of today, at the venue. `None` if it is
/// longer than a summary may be.
pub fn period_of(venue: &Venue, wanted: &AttendanceRequest, now_ms: i64) -> Option<(i64, i64)> {
    let (today_ms, tomorrow_ms) = day_of(venue, now_ms);
    let to_ms =
        if wanted.to_ms == i64::MAX { tomorrow_ms.max(wanted.from_ms) } else { wanted.to_ms };
    let from_ms = if wanted.from_ms == 0 { today_ms.min(to_ms) } else { wanted.from_ms };
    (to_ms.saturating_sub(from_ms) <= SUMMARY_DAYS_MAX * 86_400_000).then_some((from_ms, to_ms))
}

/// What counts of an event; nothing of a person who was erased.
fn passage(event: StoredEvent) -> Option<CountedAttendance> {
    let Body::Attendance(body) = event.body else {
        return None;
    };
    let subject_id = body.subject?.id.as_str().to_owned();
    let at_ms = event.occurred_ms;
    Some(CountedAttendance {
        subject_id,
        at_ms,
        direction: body.direction,
        session: body.session,
        status: body.status,
    })
}

fn summary_row(row: AttendanceRow, id: &SubjectId, name: &Name) -> SummaryRow {
    SummaryRow {
        date: row.date.to_string(),
        session: row.session,
        subject: SubjectRef { id: id.clone(), name: name.clone() },
        status: match row.status {
            Status::Present => SummaryStatus::Present,
            Status::Late => SummaryStatus::Late,
        },
        first_in: row.first_in_ms.map(rfc3339),
        last_out: row.last_out_ms.map(rfc3339),
        late_ms: row.late_ms,
        present_ms: row.present_ms,
    }
}

fn absent_row(session: &Session, id: &SubjectId, name: &Name) -> SummaryRow {
    SummaryRow {
        date: session.date.to_string(),
        session: Some(session.id.clone()),
        subject: SubjectRef { id: id.clone(), name: name.clone() },
        status: SummaryStatus::Absent,
        first_in: None,
        last_out: None,
        late_ms: None,
        present_ms: None,
    }
}

fn roll(reader: &Reader) -> Result<Roll, StoreError> {
    let mut enrolled: Vec<EnrolledSubject> = Vec::new();
    loop {
        let page = reader.subjects(enrolled.last().map(|it| &it.subject_id), PAGE)?;
        if page.is_empty() {
            return Ok(Roll::new(enrolled));
        }
        let entry = |it: Subject| EnrolledSubject {
            subject_id: it.id,
            name: it.name,
            since_ms: it.enrolled_ms,
        };
        enrolled.extend(page.into_iter().map(entry));
    }
}
