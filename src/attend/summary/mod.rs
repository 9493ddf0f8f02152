//! Attendance summaries from the record: who was present in each session or on each day, from when
//! to when, who was late, and who was absent, as far as that can be known.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use jiff::Timestamp;
use jiff::civil::Date;

use crate::attend::session::Session;
use crate::attend::venue::{EARLY_MAX, Venue};
use crate::attend::{Direction, Status};
use crate::ids::{Name, SubjectId};

/// An attendance that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedAttendance {
    pub subject_id: String,
    pub at_ms: i64,
    pub direction: Direction,
    pub session: Option<String>,
    pub status: Status,
}

/// One subject in one session; or on one local day, for what belongs to no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttendanceRow {
    pub date: Date,
    pub session: Option<String>,
    pub subject_id: String,
    pub first_in_ms: Option<i64>,
    pub last_out_ms: Option<i64>,
    pub status: Status,
    /// From the start of the session to the first coming, of who is late.
    pub late_ms: Option<i64>,
    /// From each coming to the next leaving, within the session; none unless the last passage is a
    /// leaving.
    pub present_ms: Option<i64>,
}

/// The sheet that a record belongs to. Sorts in the order of the sheets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SheetKey {
    begin_ms: i64,
    date: Date,
    session: Option<String>,
}

/// How long before and after a period records are read: who comes early for a session, and who
/// leaves one late.
pub const MARGIN_MS: i64 = 48 * 3_600_000;

/// The longest that a session lasts: a day, and an hour more where the clocks are set back, with
/// one to spare.
const SESSION_MAX_MS: i64 = 26 * 3_600_000;
/// How long before its start somebody may come for a session, with an hour to spare.
const EARLY_MAX_MS: i64 = EARLY_MAX.as_millis() as i64 + 3_600_000;

/// Makes the rows of a summary from records that come in the order of time, sheet by sheet: a sheet
/// is complete as soon as the records are past it, so that only those of about a day are held.
///
/// The rows are in the order of sessions and days, and of subjects within: of sessions that begin
/// in the period, and of what else was recorded in it. The records come with [`MARGIN_MS`] on both
/// sides of the period.
pub struct Sweep<'a> {
    venue: &'a Venue,
    period: Range<i64>,
    /// Sheets that are not complete yet, and later sessions whose absences are requested.
    sheets: BTreeMap<SheetKey, Sheet>,
    /// Where each subject was seen last.
    last: HashMap<Rc<str>, (SheetKey, Direction)>,
}

impl<'a> Sweep<'a> {
    pub fn new(venue: &'a Venue, period: Range<i64>) -> Self {
        Self { venue, period, sheets: BTreeMap::new(), last: HashMap::new() }
    }

    /// Adds the absences of these sessions, which coverage must include.
    #[must_use]
    pub fn with_absence(mut self, sessions: Vec<Session>) -> Self {
        for session in sessions {
            let place = place_of_session(self.venue, &session.id, session.start_ms);
            let mut sheet = Sheet::new(self.venue, &place, Some(&session));
            sheet.watched = Some(session);
            self.sheets.insert(place, sheet);
        }
        self
    }

    /// Adds the next record.
    pub fn push(&mut self, it: &CountedAttendance) {
        let known = self.last.get_key_value(it.subject_id.as_str());
        let subject =
            known.map_or_else(|| Rc::from(it.subject_id.as_str()), |(id, _)| Rc::clone(id));
        let place = sheet_key(self.venue, it, known.map(|(_, last)| last));
        self.note_presence(&subject, it);
        let moment_ms = if place.session.is_some() { place.begin_ms } else { it.at_ms };
        if self.period.contains(&moment_ms) {
            if !self.sheets.contains_key(&place) {
                let session = place.session.as_deref().and_then(|id| self.venue.session_of_id(id));
                self.sheets.insert(place.clone(), Sheet::new(self.venue, &place, session.as_ref()));
            }
            if let Some(sheet) = self.sheets.get_mut(&place) {
                sheet.passages.entry(Rc::clone(&subject)).or_default().add(it, sheet.bounds);
            }
        }
        self.last.insert(subject, (place, it.direction));
    }

    /// A subject with a record in a session, or any other record in its time, is not absent: the
    /// schedule may have been different at that time.
    fn note_presence(&mut self, subject: &Rc<str>, it: &CountedAttendance) {
        let near = self
            .sheets
            .iter_mut()
            .take_while(|(place, _)| place.begin_ms <= it.at_ms + EARLY_MAX_MS);
        for sheet in near.map(|(_, sheet)| sheet) {
            let Some(session) = &sheet.watched else { continue };
            let within = (session.opens_ms..=session.end_ms).contains(&it.at_ms);
            if within || it.session.as_ref() == Some(&session.id) {
                sheet.there.insert(Rc::clone(subject));
            }
        }
    }

    /// The next sheet that no record from `at_ms` on belongs to.
    pub fn take_complete(&mut self, at_ms: i64) -> Option<Sheet> {
        let first = self.sheets.first_entry().filter(|it| it.get().complete_ms <= at_ms)?;
        Some(first.remove())
    }

    /// The next sheet, once there are no more records.
    pub fn take_last(&mut self) -> Option<Sheet> {
        self.sheets.pop_first().map(|(_, sheet)| sheet)
    }
}

/// One session, or one local day outside sessions.
pub struct Sheet {
    place: SheetKey,
    /// Of the session as the venue has it today.
    bounds: Option<(i64, i64)>,
    /// No later record belongs to it.
    complete_ms: i64,
    passages: BTreeMap<Rc<str>, Passages>,
    /// The session whose absences are requested.
    watched: Option<Session>,
    /// Who was seen, for that.
    there: HashSet<Rc<str>>,
}

/// One row of a sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Present(AttendanceRow),
    Absent { session: &'a Session, who: &'a EnrolledSubject },
}

impl Sheet {
    /// `session` is that of the place, if the venue has it (still).
    fn new(venue: &Venue, place: &SheetKey, session: Option<&Session>) -> Self {
        let bounds = session.map(|it| (it.start_ms, it.end_ms));
        // Who leaves after the end, on the day of the end, leaves the session.
        let mut complete_ms = end_of_day(venue, place.date, place.begin_ms);
        if place.session.is_some() {
            complete_ms = complete_ms.max(place.begin_ms.saturating_add(SESSION_MAX_MS));
        }
        if let Some((_, end_ms)) = bounds {
            let date = venue.date_at(end_ms).unwrap_or(place.date);
            complete_ms = complete_ms.max(end_of_day(venue, date, end_ms));
        }
        let place = place.clone();
        let passages = BTreeMap::new();
        let there = HashSet::new();
        Self { place, bounds, complete_ms, passages, watched: None, there }
    }

    /// How many lines it has.
    pub fn len(&self, roll: &Roll) -> u64 {
        let absent = self.watched.as_ref().map_or(0, |session| {
            let enrolled = roll.since_ms.partition_point(|it| *it <= session.start_ms);
            let there = self
                .there
                .iter()
                .filter(|id| roll.find(id).is_some_and(|it| it.is_expected_at(session)));
            enrolled - there.count()
        });
        (self.passages.len() + absent) as u64
    }

    /// In the order of the subjects' ids.
    pub fn lines<'a>(&'a self, roll: &'a Roll) -> impl Iterator<Item = Line<'a>> {
        let mut passages = self.passages.iter().peekable();
        let mut absent = self.absent(roll).peekable();
        std::iter::from_fn(move || {
            let seen_first = match (passages.peek(), absent.peek()) {
                (Some((id, _)), Some((_, who))) => ***id <= *who.subject_id.as_str(),
                (seen, _) => seen.is_some(),
            };
            if seen_first {
                return passages.next().map(|(id, it)| Line::Present(self.make_row(id, it)));
            }
            absent.next().map(|(session, who)| Line::Absent { session, who })
        })
    }

    fn absent<'a>(
        &'a self,
        roll: &'a Roll,
    ) -> impl Iterator<Item = (&'a Session, &'a EnrolledSubject)> {
        self.watched.iter().flat_map(move |session| {
            let missing = roll.enrolled.iter().filter(|it| {
                it.is_expected_at(session) && !self.there.contains(it.subject_id.as_str())
            });
            missing.map(move |who| (session, who))
        })
    }

    fn make_row(&self, subject_id: &str, it: &Passages) -> AttendanceRow {
        let late = it
            .first_in
            .filter(|(_, status)| *status == Status::Late && self.place.session.is_some());
        AttendanceRow {
            date: self.place.date,
            session: self.place.session.clone(),
            subject_id: subject_id.to_owned(),
            first_in_ms: it.first_in.map(|(at_ms, _)| at_ms),
            last_out_ms: it.last_out_ms,
            status: it.first_in.map_or(Status::Present, |(_, status)| status),
            late_ms: late.map(|(at_ms, _)| (at_ms - self.place.begin_ms).max(0)),
            present_ms: (it.came_ms.is_none() && it.pairs > 0).then_some(it.present_ms),
        }
    }
}

/// What a row needs of the records of a subject.
#[derive(Clone, Debug, Default)]
struct Passages {
    first_in: Option<(i64, Status)>,
    last_out_ms: Option<i64>,
    /// Since when the subject has been there.
    came_ms: Option<i64>,
    /// In so many pairs of coming and leaving.
    present_ms: i64,
    pairs: u32,
}

impl Passages {
    fn add(&mut self, it: &CountedAttendance, bounds: Option<(i64, i64)>) {
        let within = |at_ms: i64| {
            bounds.map_or(at_ms, |(from_ms, to_ms)| at_ms.clamp(from_ms, to_ms.max(from_ms)))
        };
        match it.direction {
            Direction::In => {
                self.first_in.get_or_insert((it.at_ms, it.status));
                // Seen coming twice: the passage between was not seen.
                self.came_ms.get_or_insert(it.at_ms);
            }
            Direction::Out => {
                self.last_out_ms = Some(it.at_ms);
                if let Some(came_ms) = self.came_ms.take() {
                    self.present_ms += (within(it.at_ms) - within(came_ms)).max(0);
                    self.pairs += 1;
                }
            }
        }
    }
}

fn end_of_day(venue: &Venue, date: Date, begin_ms: i64) -> i64 {
    let end = date.tomorrow().ok().and_then(|it| venue.begin_of(it));
    end.unwrap_or_else(|| begin_ms.saturating_add(SESSION_MAX_MS))
}

fn place_of_session(venue: &Venue, id: &str, otherwise_ms: i64) -> SheetKey {
    let begin_ms = start_in(id).unwrap_or(otherwise_ms);
    SheetKey {
        begin_ms,
        date: venue.date_at(begin_ms).unwrap_or(Date::ZERO),
        session: Some(id.to_owned()),
    }
}

fn sheet_key(
    venue: &Venue,
    it: &CountedAttendance,
    last: Option<&(SheetKey, Direction)>,
) -> SheetKey {
    let date_at = |wall_ms| venue.date_at(wall_ms).unwrap_or(Date::ZERO);
    if let Some(id) = &it.session {
        return place_of_session(venue, id, it.at_ms);
    }
    let date = date_at(it.at_ms);
    // Who leaves after the end of a session leaves that session.
    if let Some((place, Direction::In)) = last
        && it.direction == Direction::Out
        && let Some(id) = &place.session
    {
        let ends = || venue.session_of_id(id).map_or(place.date, |session| date_at(session.end_ms));
        if date == place.date || date == ends() {
            return place.clone();
        }
    }
    SheetKey { begin_ms: venue.begin_of(date).unwrap_or(it.at_ms), date, session: None }
}

/// Returns the start in a session's id: its rule may have changed since.
fn start_in(session_id: &str) -> Option<i64> {
    let (start, _) = session_id.split_once('/')?;
    Some(start.parse::<Timestamp>().ok()?.as_millisecond())
}

/// An enrolled subject, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledSubject {
    pub subject_id: SubjectId,
    pub name: Name,
    pub since_ms: i64,
}

impl EnrolledSubject {
    fn is_expected_at(&self, session: &Session) -> bool {
        self.since_ms <= session.start_ms
    }
}

/// All enrolled subjects.
#[derive(Clone, Debug, Default)]
pub struct Roll {
    /// By subject.
    enrolled: Vec<EnrolledSubject>,
    /// Ascending.
    since_ms: Vec<i64>,
}

impl Roll {
    pub fn new(mut enrolled: Vec<EnrolledSubject>) -> Self {
        enrolled.sort_by(|a, b| a.subject_id.cmp(&b.subject_id));
        let mut since_ms: Vec<i64> = enrolled.iter().map(|it| it.since_ms).collect();
        since_ms.sort_unstable();
        Self { enrolled, since_ms }
    }

    pub fn find(&self, subject_id: &str) -> Option<&EnrolledSubject> {
        let at =
            self.enrolled.binary_search_by(|it| it.subject_id.as_str().cmp(subject_id)).ok()?;
        self.enrolled.get(at)
    }
}

#[cfg(test)]
mod tests;
