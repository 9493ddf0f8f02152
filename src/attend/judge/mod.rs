//! Decides whether a sighting is a new attendance, in which session and direction, and which of
//! several records counts.
//!
//! Within one boot the clock that never jumps decides what was earlier; across boots only wall time
//! is left.

use std::time::Duration;

use crate::attend::session::Session;
use crate::attend::venue::{DirectionMode, RE_ENTRY_GAP, Venue};
use crate::attend::{Direction, Status};
use crate::clock::{BootId, Stamp};

/// A moment of some boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub wall_ms: i64,
    /// Whether `wall_ms` comes from a trusted clock.
    pub is_known: bool,
    pub boottime_ms: u64,
    pub boot_id: BootId,
}

impl Moment {
    pub fn new(at: &Stamp, boot_id: BootId) -> Self {
        Self { wall_ms: at.wall_ms, is_known: at.trusted, boottime_ms: at.boottime_ms, boot_id }
    }

    pub fn is_before(&self, other: &Self) -> bool {
        if self.boot_id == other.boot_id {
            return self.boottime_ms < other.boottime_ms;
        }
        self.wall_ms < other.wall_ms
    }

    /// Whether so much time lies between the two. Across boots, where time seems to run backwards,
    /// nothing is known, and the sighting is recorded: one too many can be seen, one too few
    /// cannot.
    fn is_apart(&self, recorded: &Self, gap: Duration) -> bool {
        let gap_ms = gap.as_millis() as i64;
        if self.boot_id == recorded.boot_id {
            // A sighting that waited for the models may be recorded after a later one: the gap
            // counts both ways.
            return self.boottime_ms.abs_diff(recorded.boottime_ms) as i64 >= gap_ms;
        }
        let passed_ms = self.wall_ms.saturating_sub(recorded.wall_ms);
        passed_ms < 0 || passed_ms >= gap_ms
    }
}

/// An attendance in the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub seq: i64,
    pub at: Moment,
    pub direction: Direction,
    pub session: Option<String>,
}

/// An attendance to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAttendance {
    pub session: Option<String>,
    pub direction: Direction,
    pub status: Status,
}

/// What a sighting comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JudgedSighting {
    New(NewAttendance),
    /// It is in the record already, as this attendance.
    Repeated(Recorded),
}

/// Between sightings at unknown times, longer than this is another day.
const SAME_DAY_MAX: Duration = Duration::from_hours(12);

/// Returns the attendance to record for a sighting, or the one by which it is recorded already.
///
/// `recent` are the subject's latest records at the venue, those of the session of this moment
/// among them. `asked` is a direction that was given with the sighting.
pub fn judge(
    venue: &Venue,
    at: &Moment,
    asked: Option<Direction>,
    recent: &[Recorded],
) -> JudgedSighting {
    let session = at.is_known.then(|| venue.session_at(at.wall_ms)).flatten();
    let direction = match (asked, venue.direction) {
        (Some(direction), _) => direction,
        (None, DirectionMode::In) => Direction::In,
        (None, DirectionMode::Out) => Direction::Out,
        (None, DirectionMode::Alternate) => next_direction(venue, at, session.as_ref(), recent),
    };
    let of_session = |it: &&Recorded| {
        session.is_some() && it.session.as_deref() == session.as_ref().map(|s| &*s.id)
    };
    let earlier = |it: &Recorded| !at.is_before(&it.at);
    let same = recent.iter().filter(of_session).filter(|it| it.direction == direction);
    let first = same.filter(|it| earlier(it)).reduce(earlier_of);
    let is_near = |it: &&Recorded| !at.is_apart(&it.at, venue.re_entry_gap);
    let repeated = match (venue.direction, &session) {
        (DirectionMode::Alternate, _) => recent.iter().rfind(is_near),
        (_, Some(_)) => first,
        (_, None) => {
            // A sighting at an unknown time may be the first of a session, which one before the
            // session does not cover.
            let may_be_first = |it: &&Recorded| {
                !venue.sessions.is_empty() && !at.is_known && it.at.is_known && it.session.is_none()
            };
            let mut same =
                recent.iter().filter(|it| it.direction == direction && !may_be_first(it));
            same.rfind(is_near)
        }
    };
    if let Some(recorded) = repeated {
        return JudgedSighting::Repeated(recorded.clone());
    }
    JudgedSighting::New(NewAttendance {
        status: attendance_status(session.as_ref(), direction, first.is_none(), at.wall_ms),
        session: session.map(|it| it.id),
        direction,
    })
}

fn earlier_of<'a>(first: &'a Recorded, other: &'a Recorded) -> &'a Recorded {
    if other.at.is_before(&first.at) { other } else { first }
}

/// Only the first `in` can be late: a return from lunch is not.
fn attendance_status(
    session: Option<&Session>,
    direction: Direction,
    is_first: bool,
    wall_ms: i64,
) -> Status {
    session
        .filter(|_| direction == Direction::In && is_first)
        .map_or(Status::Present, |session| session.status_at(wall_ms))
}

/// In, out, in, … within the local day. A session that crosses midnight belongs to the day on which
/// it began, and so does what follows on the next day until another session.
fn next_direction(
    venue: &Venue,
    at: &Moment,
    session: Option<&Session>,
    recent: &[Recorded],
) -> Direction {
    let before = recent.iter().filter(|it| !at.is_before(&it.at));
    let last = before.reduce(|last, it| if it.at.is_before(&last.at) { last } else { it });
    match last {
        Some(last) if is_same_day(venue, last, at, session) => last.direction.opposite(),
        _ => Direction::In,
    }
}

fn is_same_day(venue: &Venue, last: &Recorded, at: &Moment, session: Option<&Session>) -> bool {
    if !(last.at.is_known && at.is_known) {
        let passed_ms = at.boottime_ms.abs_diff(last.at.boottime_ms);
        return last.at.boot_id == at.boot_id && passed_ms < SAME_DAY_MAX.as_millis() as u64;
    }
    let of_last = last.session.as_deref().and_then(|id| venue.session_of_id(id));
    let today = session.map(|it| it.date).or_else(|| venue.date_at(at.wall_ms));
    let its_day = of_last.as_ref().map(|it| it.date).or_else(|| venue.date_at(last.at.wall_ms));
    let follows = || session.is_none() && of_last.and_then(|it| venue.date_at(it.end_ms)) == today;
    its_day == today || follows()
}

/// The session of a sighting whose time was learned later. Sightings within the re-entry gap of it
/// were taken for the same visit, so one shortly before a session opens stands for those shortly
/// after.
pub fn session_of_learned_time(venue: &Venue, wall_ms: i64) -> Option<Session> {
    let gap_ms = venue.re_entry_gap.min(RE_ENTRY_GAP).as_millis() as i64;
    venue.session_at(wall_ms).or_else(|| venue.session_at(wall_ms.saturating_add(gap_ms)))
}

/// How one record of a session counts beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    pub status: Status,
    /// The `seq` of the record that counts in its stead.
    pub superseded_by: Option<i64>,
}

/// Settles the records of one subject in one session and direction, in the order of their `seq`:
/// the earliest counts. Where directions alternate all of them count, and the earliest decides who
/// is late.
pub fn settle(
    venue: &Venue,
    session: &Session,
    direction: Direction,
    records: &[Recorded],
) -> Vec<Settlement> {
    let first = records.iter().reduce(earlier_of);
    let settlement = |record: &Recorded| {
        let is_first = first.is_some_and(|first| first.seq == record.seq);
        let counts = is_first || venue.direction == DirectionMode::Alternate;
        Settlement {
            status: attendance_status(
                Some(session),
                direction,
                is_first || !counts,
                record.at.wall_ms,
            ),
            superseded_by: first.filter(|_| !counts).map(|it| it.seq),
        }
    };
    records.iter().map(settlement).collect()
}

#[cfg(test)]
mod tests;
