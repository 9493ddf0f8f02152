//! From the record to what people ask: who was there in each session or on each day, from when to when, who was late, and
//! who was not there, as far as that can be known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;

use super::session::Session;
use super::venue::Venue;
use super::watched::{Stretch, Watched};
use super::{Direction, Status};

/// An attendance that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub subject_id: String,
    pub at_ms: i64,
    pub direction: Direction,
    pub session: Option<String>,
    pub status: Status,
}

/// One subject in one session; or on one local day, for what belongs to no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub date: Date,
    pub session: Option<String>,
    pub subject_id: String,
    pub first_in_ms: Option<i64>,
    pub last_out_ms: Option<i64>,
    pub status: Status,
    /// From the start of the session to the first coming, of who is late.
    pub late_ms: Option<i64>,
    /// From each coming to the next leaving, within the session; none unless the last passage is a leaving.
    pub present_ms: Option<i64>,
}

/// In which row a record stands; in the order of the rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    begin_ms: i64,
    date: Date,
    session: Option<String>,
}

/// How long before and after a period records are looked at: who comes early for a session, and who leaves one late.
pub const MARGIN_MS: i64 = 48 * 3_600_000;

/// Rows in the order of sessions and days, and of subjects within: of sessions that begin in the period, and of what else
/// was recorded in it. `seen` is in the order of time, with a margin on both sides.
pub fn rows(venue: &Venue, seen: &[Seen], period: Range<i64>) -> Vec<Row> {
    let mut by_subject: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for it in seen {
        by_subject.entry(&it.subject_id).or_default().push(it);
    }
    let mut rows = Vec::new();
    for (subject_id, seen) in by_subject {
        let mut places: BTreeMap<Place, Vec<&Seen>> = BTreeMap::new();
        let mut last: Option<(Place, Direction)> = None;
        for it in seen {
            let place = place(venue, it, last.as_ref());
            last = Some((place.clone(), it.direction));
            let moment_ms = if place.session.is_some() { place.begin_ms } else { it.at_ms };
            if period.contains(&moment_ms) {
                places.entry(place).or_default().push(it);
            }
        }
        rows.extend(
            places
                .into_iter()
                .map(|(place, seen)| (place.clone(), row(venue, place, subject_id, &seen))),
        );
    }
    rows.sort_by(|a, b| (&a.0, &a.1.subject_id).cmp(&(&b.0, &b.1.subject_id)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn place(venue: &Venue, it: &Seen, last: Option<&(Place, Direction)>) -> Place {
    let date_at = |wall_ms| venue.date_at(wall_ms).unwrap_or(Date::ZERO);
    if let Some(id) = &it.session {
        let begin_ms = start_in(id).unwrap_or(it.at_ms);
        return Place { begin_ms, date: date_at(begin_ms), session: Some(id.clone()) };
    }
    let date = date_at(it.at_ms);
    // Who leaves after the end of a session leaves that session.
    if let Some((place, Direction::In)) = last
        && it.direction == Direction::Out
        && let Some(id) = &place.session
    {
        let ends = venue.session_of_id(id).map_or(place.date, |session| date_at(session.end_ms));
        if date == place.date || date == ends {
            return place.clone();
        }
    }
    Place { begin_ms: venue.begin_of(date).unwrap_or(it.at_ms), date, session: None }
}

/// The start that stands in a session's id: its rule may have changed since.
fn start_in(session_id: &str) -> Option<i64> {
    let (start, _) = session_id.split_once('/')?;
    Some(start.parse::<Timestamp>().ok()?.as_millisecond())
}

fn row(venue: &Venue, place: Place, subject_id: &str, seen: &[&Seen]) -> Row {
    let first_in = seen.iter().find(|it| it.direction == Direction::In);
    let status = first_in.map_or(Status::Present, |it| it.status);
    let late = first_in.filter(|it| it.status == Status::Late && place.session.is_some());
    let bounds = place
        .session
        .as_deref()
        .and_then(|id| venue.session_of_id(id))
        .map(|it| (it.start_ms, it.end_ms));
    Row {
        date: place.date,
        subject_id: subject_id.to_owned(),
        first_in_ms: first_in.map(|it| it.at_ms),
        last_out_ms: seen.iter().rev().find(|it| it.direction == Direction::Out).map(|it| it.at_ms),
        status,
        late_ms: late.map(|it| (it.at_ms - place.begin_ms).max(0)),
        present_ms: present_ms(seen, bounds),
        session: place.session,
    }
}

fn present_ms(seen: &[&Seen], bounds: Option<(i64, i64)>) -> Option<i64> {
    let within = |at_ms: i64| {
        bounds.map_or(at_ms, |(from_ms, to_ms)| at_ms.clamp(from_ms, to_ms.max(from_ms)))
    };
    let (mut total_ms, mut came_ms, mut pairs) = (0, None, 0);
    for it in seen {
        match (it.direction, came_ms) {
            (Direction::In, None) => came_ms = Some(it.at_ms),
            (Direction::Out, Some(came)) => {
                total_ms += (within(it.at_ms) - within(came)).max(0);
                (came_ms, pairs) = (None, pairs + 1);
            }
            // Seen coming twice, or leaving twice: the passage between was not seen.
            (Direction::In, Some(_)) | (Direction::Out, None) => {}
        }
    }
    (came_ms.is_none() && pairs > 0).then_some(total_ms)
}

/// Who is enrolled, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    pub subject_id: String,
    pub since_ms: i64,
}

/// Who was not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The door watched from the time the session opened to its end: who was enrolled then and was not seen.
    Known(Vec<String>),
    /// It did not, or not yet, in these stretches.
    NotKnown(Vec<Stretch>),
}

/// Of each session, who of the enrolled has no record in it, nor any other record in its time: the schedule may have been
/// another one when they came.
pub fn absences(
    sessions: &[Session],
    seen: &[Seen],
    enrolled: &[Enrolled],
    watched: &Watched,
) -> Vec<Absence> {
    let mut by_time: Vec<&Seen> = seen.iter().collect();
    by_time.sort_unstable_by_key(|it| it.at_ms);
    let mut present: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for it in seen {
        if let Some(session) = &it.session {
            present.entry(session).or_default().insert(&it.subject_id);
        }
    }
    let of = |session: &Session| {
        let gaps = watched.gaps(session.opens_ms, session.end_ms);
        if !gaps.is_empty() {
            return Absence::NotKnown(gaps);
        }
        let from = by_time.partition_point(|it| it.at_ms < session.opens_ms);
        let passed = by_time[from..]
            .iter()
            .take_while(|it| it.at_ms <= session.end_ms)
            .map(|it| it.subject_id.as_str());
        let mut there: BTreeSet<&str> = passed.collect();
        there.extend(present.get(session.id.as_str()).into_iter().flatten());
        let missing = enrolled.iter().filter(|it| {
            it.since_ms <= session.start_ms && !there.contains(it.subject_id.as_str())
        });
        Absence::Known(missing.map(|it| it.subject_id.clone()).collect())
    };
    sessions.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::venue::{DirectionMode, SessionSpec, VenueSpec};
    use jiff::tz::TimeZone;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    /// Monday 08:00 to 12:00 in Berlin; late after ten minutes.
    fn venue() -> Venue {
        let session = SessionSpec {
            id: "am".into(),
            weekdays: vec!["mon".into()],
            start: "08:00".into(),
            end: "12:00".into(),
            late_after_ms: Some(600_000),
            ..SessionSpec::default()
        };
        let direction = DirectionMode::Alternate;
        let zone = "Europe/Berlin";
        let spec = VenueSpec {
            sessions: vec![session],
            direction,
            time_zone: zone.into(),
            ..VenueSpec::plain("room-a")
        };
        Venue::new(&spec, TimeZone::get(zone).unwrap()).unwrap()
    }

    /// What the venue makes of passages.
    fn seen(venue: &Venue, subject: &str, passages: &[(&str, Direction)]) -> Vec<Seen> {
        let seen = |(at, direction): &(&str, Direction)| {
            let session = venue.session_at(ms(at));
            let status = session.as_ref().map_or(Status::Present, |it| it.status_at(ms(at)));
            let (at_ms, direction, session) = (ms(at), *direction, session.map(|it| it.id));
            Seen { subject_id: subject.into(), at_ms, direction, session, status }
        };
        passages.iter().map(seen).collect()
    }

    const MINUTE: i64 = 60_000;

    #[test]
    fn a_row_tells_first_in_last_out_and_the_time_between() {
        use Direction::{In, Out};
        let venue = venue();
        let at = [
            ("2026-11-23T07:20:00Z", In), // 08:20 in Berlin: late
            ("2026-11-23T09:00:00Z", Out),
            ("2026-11-23T09:30:00Z", In),
            ("2026-11-23T11:15:00Z", Out), // after the end
            ("2026-11-23T18:00:00Z", In),  // in the evening
        ];
        let rows = rows(&venue, &seen(&venue, "jdoe", &at), 0..i64::MAX);
        assert_eq!(rows.len(), 2);
        let (day, session) = (&rows[0], &rows[1]);
        assert_eq!(session.session.as_deref(), Some("2026-11-23T07:00Z/am"));
        assert_eq!(
            (session.first_in_ms, session.last_out_ms),
            (Some(ms(at[0].0)), Some(ms(at[3].0)))
        );
        assert_eq!((session.status, session.late_ms), (Status::Late, Some(20 * MINUTE)));
        assert_eq!(session.present_ms, Some((100 + 90) * MINUTE), "no longer than the session");
        assert_eq!((day.session.as_deref(), day.present_ms, day.last_out_ms), (None, None, None));
        assert_eq!(day.date, jiff::civil::date(2026, 11, 23));
    }

    #[test]
    fn rows_are_in_order_and_each_subject_has_its_own() {
        use Direction::In;
        let venue = venue();
        let mut all =
            seen(&venue, "b", &[("2026-11-23T07:00:00Z", In), ("2026-11-24T07:00:00Z", In)]);
        all.extend(seen(
            &venue,
            "a",
            &[("2026-11-23T07:01:00Z", In), ("2026-11-22T23:30:00Z", In)],
        ));
        all.sort_by_key(|it| it.at_ms);
        let told: Vec<_> = rows(&venue, &all, 0..i64::MAX)
            .into_iter()
            .map(|it| (it.date.day(), it.session.is_some(), it.subject_id))
            .collect();
        let row = |day, session, id: &str| (day, session, id.to_owned());
        // Half past eleven in the evening in UTC is the next day in Berlin.
        assert_eq!(
            told,
            [row(23, false, "a"), row(23, true, "a"), row(23, true, "b"), row(24, false, "b")]
        );
    }

    #[test]
    fn absence_is_claimed_only_where_somebody_watched() {
        let venue = venue();
        let sessions =
            venue.sessions_between(ms("2026-11-23T00:00:00Z"), ms("2026-11-24T00:00:00Z"));
        let seen = seen(&venue, "b", &[("2026-11-23T07:00:00Z", Direction::In)]);
        let enrolled: Vec<_> = [("a", 0), ("b", 0), ("new", ms("2026-11-23T09:00:00Z"))]
            .map(|(id, since_ms)| Enrolled { subject_id: id.into(), since_ms })
            .into();
        let judge = |stretches: &[(&str, &str)]| {
            let stretch = |(from, to): &(&str, &str)| Stretch { from_ms: ms(from), to_ms: ms(to) };
            let watched = Watched::new(stretches.iter().map(stretch).collect());
            absences(&sessions, &seen, &enrolled, &watched).remove(0)
        };
        let whole = ("2026-11-23T06:30:00Z", "2026-11-23T11:00:00Z");
        assert_eq!(
            judge(&[whole]),
            Absence::Known(vec!["a".into()]),
            "who was enrolled later is not absent"
        );
        let gap = |from, to| Absence::NotKnown(vec![Stretch { from_ms: ms(from), to_ms: ms(to) }]);
        assert_eq!(
            judge(&[("2026-11-23T06:31:00Z", whole.1)]),
            gap(whole.0, "2026-11-23T06:31:00Z")
        );
        assert_eq!(
            judge(&[(whole.0, "2026-11-23T10:59:59Z")]),
            gap("2026-11-23T10:59:59Z", whole.1)
        );
        assert_eq!(judge(&[]), gap(whole.0, whole.1));
        let two = [(whole.0, "2026-11-23T08:00:00Z"), ("2026-11-23T08:01:00Z", whole.1)];
        assert_eq!(judge(&two), gap("2026-11-23T08:00:00Z", "2026-11-23T08:01:00Z"));
    }

    #[test]
    fn who_came_before_the_schedule_was_changed_is_not_absent() {
        let venue = venue();
        let sessions =
            venue.sessions_between(ms("2026-11-23T00:00:00Z"), ms("2026-11-24T00:00:00Z"));
        let mut seen = seen(&venue, "b", &[("2026-11-23T07:00:00Z", Direction::In)]);
        seen[0].session = Some("2026-11-23T07:30Z/another".into());
        let since_ms = 0;
        let enrolled = ["a", "b"].map(|id| Enrolled { subject_id: id.into(), since_ms });
        let day =
            Stretch { from_ms: ms("2026-11-23T00:00:00Z"), to_ms: ms("2026-11-24T00:00:00Z") };
        let judged = |seen: &[Seen]| {
            absences(&sessions, seen, &enrolled, &Watched::new(vec![day])).remove(0)
        };
        assert_eq!(judged(&seen), Absence::Known(vec!["a".into()]));
        seen[0].session = None;
        assert_eq!(judged(&seen), Absence::Known(vec!["a".into()]));
    }
}
