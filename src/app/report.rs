//! The record of a venue and period, put together for people: by command and on the command line.

use std::collections::HashMap;

use crate::attend::Status;
use crate::attend::session::Session;
use crate::attend::summary::{Absence, Enrolled, MARGIN_MS, Row, Seen, absences, rows};
use crate::attend::venue::Venue;
use crate::attend::watched::Watched;
use crate::clock::rfc3339;
use crate::recognise::face::{Name, SubjectId};
use crate::record::command::answer::{
    AttendanceSummary, NotKnown, Period, SummaryRow, SummaryStatus,
};
use crate::record::event::{Body, StoredEvent, SubjectRef};
use crate::record::store::{AttendanceQuery, Reader, StoreError, Subject, Tx};

/// Where the record is read: within the daemon, or beside it.
pub trait Source {
    fn attendance_by_time(
        &self,
        query: &AttendanceQuery,
        visit: &mut dyn FnMut(StoredEvent),
    ) -> Result<(), StoreError>;
    fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError>;
    fn subjects(&self, after: Option<&SubjectId>, limit: u32) -> Result<Vec<Subject>, StoreError>;
}

impl Source for Tx<'_> {
    fn attendance_by_time(
        &self,
        query: &AttendanceQuery,
        visit: &mut dyn FnMut(StoredEvent),
    ) -> Result<(), StoreError> {
        self.attendance_by_time(query, visit)
    }
    fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError> {
        self.watched(from_ms, to_ms)
    }
    fn subjects(&self, after: Option<&SubjectId>, limit: u32) -> Result<Vec<Subject>, StoreError> {
        self.subjects(after, limit)
    }
}

impl Source for Reader {
    fn attendance_by_time(
        &self,
        query: &AttendanceQuery,
        visit: &mut dyn FnMut(StoredEvent),
    ) -> Result<(), StoreError> {
        self.attendance_by_time(query, visit)
    }
    fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError> {
        self.watched(from_ms, to_ms)
    }
    fn subjects(&self, after: Option<&SubjectId>, limit: u32) -> Result<Vec<Subject>, StoreError> {
        self.subjects(after, limit)
    }
}

/// What the record of a period comes to.
pub struct Report {
    venue: Venue,
    from_ms: i64,
    to_ms: i64,
    pub rows: Vec<SummaryRow>,
    /// Sessions of which it is not known who was absent.
    pub not_known: Vec<NotKnown>,
}

/// Subjects fetched at a time.
const PAGE: u32 = 500;
/// More times than these that a door was not watching in one session are not listed.
const GAPS_TOLD: usize = 10;

/// Whether it is asked who was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    NotAsked,
    Asked,
    /// At a venue that this device does not watch: of none of its sessions it is known.
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

/// The sessions that begin in a period, and what else was recorded in it.
pub fn of(
    source: &impl Source,
    venue: &Venue,
    from_ms: i64,
    to_ms: i64,
    absent: Absent,
) -> Result<Report, StoreError> {
    let query = AttendanceQuery {
        venue: Some(venue.id.clone()),
        from_ms: from_ms.saturating_sub(MARGIN_MS),
        to_ms: to_ms.saturating_add(MARGIN_MS),
        after_seq: 0,
        limit: 0,
        all: false,
    };
    let (mut seen, mut names) = (Vec::new(), HashMap::new());
    source.attendance_by_time(&query, &mut |event| seen.extend(passage(event, &mut names)))?;
    let mut found: Vec<SummaryRow> = Vec::new();
    for row in rows(venue, &seen, from_ms..to_ms) {
        found.extend(names.get(&row.subject_id).map(|(id, name)| summary_row(row, id, name)));
    }
    let mut not_known = Vec::new();
    if absent != Absent::NotAsked {
        let mut sessions = venue.sessions_between(from_ms, to_ms);
        sessions.retain(|it| it.start_ms >= from_ms);
        let subjects = all_subjects(source)?;
        let enrolled: Vec<Enrolled> = subjects
            .iter()
            .map(|it| Enrolled { subject_id: it.id.as_str().to_owned(), since_ms: it.enrolled_ms })
            .collect();
        names.extend(subjects.into_iter().map(|it| (it.id.as_str().to_owned(), (it.id, it.name))));
        let watched = match absent {
            Absent::AskedElsewhere => Watched::default(),
            _ => source.watched(query.from_ms, query.to_ms)?,
        };
        for (session, absence) in
            sessions.iter().zip(absences(&sessions, &seen, &enrolled, &watched))
        {
            match absence {
                Absence::Known(missing) => {
                    let missing = missing.iter().filter_map(|id| names.get(id));
                    found.extend(missing.map(|(id, name)| absent_row(session, id, name)));
                }
                Absence::NotKnown(gaps) => not_known.push(NotKnown {
                    session: session.id.clone(),
                    starts_at: rfc3339(session.start_ms),
                    ends_at: rfc3339(session.end_ms),
                    not_watching: gaps
                        .iter()
                        .take(GAPS_TOLD)
                        .map(|it| Period { from: rfc3339(it.from_ms), to: rfc3339(it.to_ms) })
                        .collect(),
                }),
            }
        }
        // As the rows stand among themselves: by session, then by subject.
        found.sort_by(|a, b| {
            let key = |row: &SummaryRow| {
                (row.date.clone(), row.session.clone(), row.subject.id.as_str().to_owned())
            };
            key(a).cmp(&key(b))
        });
    }
    Ok(Report { venue: venue.clone(), from_ms, to_ms, rows: found, not_known })
}

impl Report {
    /// `limit` rows after the first `after`.
    pub fn page(self, after: i64, limit: u32, absent: bool) -> AttendanceSummary {
        let after = after as usize;
        let more = self.rows.len() > after.saturating_add(limit as usize);
        AttendanceSummary {
            venue: self.venue.id.clone(),
            time_zone: self.venue.zone_name().to_owned(),
            from: rfc3339(self.from_ms),
            to: rfc3339(self.to_ms),
            rows: self.rows.into_iter().skip(after).take(limit as usize).collect(),
            not_known: (absent && after == 0).then_some(self.not_known),
            next_after: more.then(|| (after + limit as usize) as i64),
        }
    }
}

/// The local day of a moment: from its beginning to that of the next.
pub fn day_of(venue: &Venue, wall_ms: i64) -> (i64, i64) {
    let date = venue.date_at(wall_ms);
    let begin = date.and_then(|date| venue.begin_of(date));
    let end = date.and_then(|date| venue.begin_of(date.tomorrow().ok()?));
    (begin.unwrap_or(wall_ms), end.unwrap_or(wall_ms))
}

/// What counts of an event; nothing of a person who was erased. The newest name is the one that is told.
fn passage(event: StoredEvent, names: &mut HashMap<String, (SubjectId, Name)>) -> Option<Seen> {
    let Body::Attendance(body) = event.body else {
        return None;
    };
    let SubjectRef { id, name } = body.subject?;
    let (subject_id, at_ms) = (id.as_str().to_owned(), event.occurred_ms);
    names.insert(subject_id.clone(), (id, name));
    Some(Seen {
        subject_id,
        at_ms,
        direction: body.direction,
        session: body.session,
        status: body.status,
    })
}

fn summary_row(row: Row, id: &SubjectId, name: &Name) -> SummaryRow {
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

fn all_subjects(source: &impl Source) -> Result<Vec<Subject>, StoreError> {
    let mut subjects: Vec<Subject> = Vec::new();
    loop {
        let page = source.subjects(subjects.last().map(|it| &it.id), PAGE)?;
        if page.is_empty() {
            return Ok(subjects);
        }
        subjects.extend(page);
    }
}
