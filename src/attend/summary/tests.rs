use super::*;
use crate::attend::coverage::{Coverage, Interval};
use crate::attend::venue::{DirectionMode, SessionSpec, VenueSpec};
use jiff::tz::TimeZone;
use naive::Absence;
use proptest::prelude::*;

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
fn seen(venue: &Venue, subject: &str, passages: &[(&str, Direction)]) -> Vec<CountedAttendance> {
    let seen = |(at, direction): &(&str, Direction)| {
        let session = venue.session_at(ms(at));
        let status = session.as_ref().map_or(Status::Present, |it| it.status_at(ms(at)));
        let at_ms = ms(at);
        let direction = *direction;
        let session = session.map(|it| it.id);
        CountedAttendance { subject_id: subject.into(), at_ms, direction, session, status }
    };
    passages.iter().map(seen).collect()
}

const MINUTE: i64 = 60_000;

/// What a line comes to: who, in which session on which day, and the row of who was there.
type LineText = (Date, Option<String>, String, Option<AttendanceRow>);

fn line_text(line: Line<'_>) -> LineText {
    match line {
        Line::Present(row) => (row.date, row.session.clone(), row.subject_id.clone(), Some(row)),
        Line::Absent { session, who } => {
            (session.date, Some(session.id.clone()), who.subject_id.to_string(), None)
        }
    }
}

/// All lines, as a report makes them, and how many sheets were held at a time.
fn sweep(
    venue: &Venue,
    seen: &[CountedAttendance],
    period: Range<i64>,
    sessions: Vec<Session>,
    roll: &Roll,
) -> (Vec<LineText>, usize) {
    let mut sweep = Sweep::new(venue, period).with_absence(sessions);
    let mut lines = Vec::new();
    let mut held = 0;
    let mut show = |sheet: Sheet| {
        let before = lines.len();
        lines.extend(sheet.lines(roll).map(line_text));
        assert_eq!(
            sheet.len(roll) as usize,
            lines.len() - before,
            "a sheet that is passed over is only counted"
        );
    };
    for it in seen {
        while let Some(sheet) = sweep.take_complete(it.at_ms) {
            show(sheet);
        }
        sweep.push(it);
        held = held.max(sweep.sheets.len());
    }
    while let Some(sheet) = sweep.take_last() {
        show(sheet);
    }
    (lines, held)
}

fn rows(venue: &Venue, seen: &[CountedAttendance], period: Range<i64>) -> Vec<AttendanceRow> {
    let (lines, _) = sweep(venue, seen, period, Vec::new(), &Roll::default());
    lines.into_iter().filter_map(|it| it.3).collect()
}

fn absentees(
    venue: &Venue,
    seen: &[CountedAttendance],
    sessions: Vec<Session>,
    enrolled: Vec<EnrolledSubject>,
) -> Vec<String> {
    let (lines, _) = sweep(venue, seen, 0..i64::MAX, sessions, &Roll::new(enrolled));
    lines.into_iter().filter(|it| it.3.is_none()).map(|it| it.2).collect()
}

fn enrolled(id: &str, since_ms: i64) -> EnrolledSubject {
    EnrolledSubject {
        subject_id: SubjectId::new(id).unwrap(),
        name: Name::new(id).unwrap(),
        since_ms,
    }
}

#[test]
fn summary_row_has_times_and_presence() {
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
    let day = &rows[0];
    let session = &rows[1];
    assert_eq!(session.session.as_deref(), Some("2026-11-23T07:00Z/am"));
    assert_eq!((session.first_in_ms, session.last_out_ms), (Some(ms(at[0].0)), Some(ms(at[3].0))));
    assert_eq!((session.status, session.late_ms), (Status::Late, Some(20 * MINUTE)));
    assert_eq!(session.present_ms, Some((100 + 90) * MINUTE), "no longer than the session");
    assert_eq!((day.session.as_deref(), day.present_ms, day.last_out_ms), (None, None, None));
    assert_eq!(day.date, jiff::civil::date(2026, 11, 23));
}

#[test]
fn summary_rows_are_sorted_per_subject() {
    use Direction::In;
    let venue = venue();
    let mut all = seen(&venue, "b", &[("2026-11-23T07:00:00Z", In), ("2026-11-24T07:00:00Z", In)]);
    all.extend(seen(&venue, "a", &[("2026-11-23T07:01:00Z", In), ("2026-11-22T23:30:00Z", In)]));
    all.sort_by_key(|it| it.at_ms);
    let line_text: Vec<_> = rows(&venue, &all, 0..i64::MAX)
        .into_iter()
        .map(|it| (it.date.day(), it.session.is_some(), it.subject_id))
        .collect();
    let row = |day, session, id: &str| (day, session, id.to_owned());
    // Half past eleven in the evening in UTC is the next day in Berlin.
    assert_eq!(
        line_text,
        [row(23, false, "a"), row(23, true, "a"), row(23, true, "b"), row(24, false, "b")]
    );
}

#[test]
fn later_enrolled_subject_is_not_absent() {
    let venue = venue();
    let sessions = venue.sessions_between(ms("2026-11-23T00:00:00Z"), ms("2026-11-24T00:00:00Z"));
    let seen = seen(&venue, "b", &[("2026-11-23T07:00:00Z", Direction::In)]);
    let roll =
        vec![enrolled("new", ms("2026-11-23T09:00:00Z")), enrolled("b", 0), enrolled("a", 0)];
    assert_eq!(absentees(&venue, &seen, sessions, roll), ["a"]);
}

#[test]
fn attendance_before_schedule_change_prevents_absence() {
    let venue = venue();
    let sessions = venue.sessions_between(ms("2026-11-23T00:00:00Z"), ms("2026-11-24T00:00:00Z"));
    let mut seen = seen(&venue, "b", &[("2026-11-23T07:00:00Z", Direction::In)]);
    for session in [Some("2026-11-23T07:30Z/another".to_owned()), None] {
        seen[0].session = session;
        let roll = vec![enrolled("a", 0), enrolled("b", 0)];
        assert_eq!(absentees(&venue, &seen, sessions.clone(), roll), ["a"]);
    }
}

#[test]
fn only_records_of_about_a_day_are_held() {
    let venue = venue();
    let begin_ms = ms("2026-11-23T07:00:00Z");
    let passage = |hour: i64| CountedAttendance {
        subject_id: format!("s-{}", hour % 7),
        at_ms: begin_ms + hour * 60 * MINUTE,
        direction: if hour % 2 == 0 { Direction::In } else { Direction::Out },
        session: venue.session_at(begin_ms + hour * 60 * MINUTE).map(|it| it.id),
        status: Status::Present,
    };
    let seen: Vec<CountedAttendance> = (0..24 * 200).map(passage).collect();
    let (lines, held) = sweep(&venue, &seen, 0..i64::MAX, Vec::new(), &Roll::default());
    assert!(lines.len() > 1_000 && held <= 3, "{} lines, {held} sheets", lines.len());
}

/// Where a rule's session may begin: over the whole day, so that some end on the next one.
fn spec() -> impl Strategy<Value = VenueSpec> {
    let session = (0_i64..24, 1_i64..24, 0_u64..13).prop_map(|(start, hours, early)| SessionSpec {
        start: format!("{start:02}:30"),
        end: format!("{:02}:30", (start + hours) % 24),
        late_after_ms: Some(600_000),
        early_ms: Some(early * 3_600_000 - if early == 0 { 0 } else { 3_600_000 }),
        ..SessionSpec::default()
    });
    prop::collection::vec(session, 1..4).prop_map(|mut sessions| {
        // So far apart that none overlaps another.
        let days = ["mon", "wed", "sat"];
        for (at, session) in sessions.iter_mut().enumerate() {
            session.id = format!("rule-{at}");
            session.weekdays = vec![days[at].to_owned()];
        }
        VenueSpec { sessions, time_zone: "Europe/Berlin".into(), ..VenueSpec::plain("room-a") }
    })
}

/// Subject, minutes since the beginning, whether it leaves, and whether the session was another
/// one then.
type Passage = (u8, i64, bool, u8);

proptest! {
    /// The record as it was computed before, all at once: over a week in which the clocks are
    /// set back.
    #[test]
    fn sweep_equals_the_whole_computation(
        spec in spec(),
        passages in prop::collection::vec((0_u8..4, -4_000_i64..14_000, any::<bool>(), 0_u8..10), 0..60),
        since in prop::collection::vec(-10_000_i64..8_000, 0..6),
        unwatched in prop::collection::vec((-4_000_i64..14_000, 1_i64..600), 0..3),
    ) {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let venue = Venue::new(&spec, zone).unwrap();
        let begin_ms = ms("2026-10-22T06:00:00Z");
        let at = |minutes: i64| begin_ms + minutes * MINUTE;
        let period = begin_ms..at(10_080);
        let mut seen: Vec<CountedAttendance> = passages.iter().map(|it: &Passage| passage(&venue, begin_ms, it)).collect();
        seen.sort_by_key(|it| it.at_ms);
        let roll: Vec<EnrolledSubject> =
            since.iter().enumerate().map(|(id, minutes)| enrolled(&format!("s-{id}"), at(*minutes))).collect();
        let mut from_ms = at(-5_000);
        let mut intervals = Vec::new();
        let mut unwatched = unwatched;
        unwatched.sort_unstable();
        for (minutes, length) in unwatched {
            intervals.push(Interval { from_ms, to_ms: at(minutes).max(from_ms) });
            from_ms = at(minutes + length).max(from_ms);
        }
        intervals.push(Interval { from_ms, to_ms: at(20_000).max(from_ms) });
        let watched = Coverage::new(intervals);
        let mut sessions = venue.sessions_between(period.start, period.end);
        sessions.retain(|it| it.start_ms >= period.start);
        let expected = whole(&venue, &seen, &period, &sessions, &roll, &watched);
        sessions.retain(|it| watched.gaps(it.opens_ms, it.end_ms).is_empty());
        let (lines, _) = sweep(&venue, &seen, period, sessions, &Roll::new(roll));
        prop_assert_eq!(lines, expected);
    }
}

fn passage(
    venue: &Venue,
    begin_ms: i64,
    (subject, minutes, leaves, schedule): &Passage,
) -> CountedAttendance {
    let at_ms = begin_ms + minutes * MINUTE;
    let session = venue.session_at(at_ms);
    let status = session.as_ref().map_or(Status::Present, |it| it.status_at(at_ms));
    let another = || {
        let start = Timestamp::from_millisecond(at_ms - 90 * MINUTE).unwrap();
        start.strftime("%Y-%m-%dT%H:%MZ/another").to_string()
    };
    let session = match schedule {
        0 => None,
        1 => Some(another()),
        _ => session.map(|it| it.id),
    };
    let direction = if *leaves { Direction::Out } else { Direction::In };
    CountedAttendance { subject_id: format!("s-{subject}"), at_ms, direction, session, status }
}

fn whole(
    venue: &Venue,
    seen: &[CountedAttendance],
    period: &Range<i64>,
    sessions: &[Session],
    roll: &[EnrolledSubject],
    watched: &Coverage,
) -> Vec<LineText> {
    let rows = naive::rows(venue, seen, period.clone());
    let mut found: Vec<LineText> =
        rows.into_iter().map(|row| line_text(Line::Present(row))).collect();
    for (session, absence) in sessions.iter().zip(naive::absences(sessions, seen, roll, watched)) {
        if let Absence::Known(missing) = absence {
            found.extend(
                missing.into_iter().map(|id| (session.date, Some(session.id.clone()), id, None)),
            );
        }
    }
    found.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
    found
}

/// The computation that holds every row.
mod naive {
    use super::*;
    use std::collections::BTreeSet;

    /// Rows in the order of sessions and days, and of subjects within: of sessions that begin
    /// in the period, and of what else was recorded in it. `seen` is in the order of time, with
    /// a margin on both sides.
    pub(super) fn rows(
        venue: &Venue,
        seen: &[CountedAttendance],
        period: Range<i64>,
    ) -> Vec<AttendanceRow> {
        let mut by_subject: BTreeMap<&str, Vec<&CountedAttendance>> = BTreeMap::new();
        for it in seen {
            by_subject.entry(&it.subject_id).or_default().push(it);
        }
        let mut rows = Vec::new();
        for (subject_id, seen) in by_subject {
            let mut places: BTreeMap<SheetKey, Vec<&CountedAttendance>> = BTreeMap::new();
            let mut last: Option<(SheetKey, Direction)> = None;
            for it in seen {
                let place = sheet_key(venue, it, last.as_ref());
                last = Some((place.clone(), it.direction));
                let moment_ms = if place.session.is_some() { place.begin_ms } else { it.at_ms };
                if period.contains(&moment_ms) {
                    places.entry(place).or_default().push(it);
                }
            }
            rows.extend(
                places.into_iter().map(|(place, seen)| {
                    (place.clone(), make_row(venue, place, subject_id, &seen))
                }),
            );
        }
        rows.sort_by(|a, b| (&a.0, &a.1.subject_id).cmp(&(&b.0, &b.1.subject_id)));
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn make_row(
        venue: &Venue,
        place: SheetKey,
        subject_id: &str,
        seen: &[&CountedAttendance],
    ) -> AttendanceRow {
        let first_in = seen.iter().find(|it| it.direction == Direction::In);
        let status = first_in.map_or(Status::Present, |it| it.status);
        let late = first_in.filter(|it| it.status == Status::Late && place.session.is_some());
        let bounds = place
            .session
            .as_deref()
            .and_then(|id| venue.session_of_id(id))
            .map(|it| (it.start_ms, it.end_ms));
        AttendanceRow {
            date: place.date,
            subject_id: subject_id.to_owned(),
            first_in_ms: first_in.map(|it| it.at_ms),
            last_out_ms: seen
                .iter()
                .rev()
                .find(|it| it.direction == Direction::Out)
                .map(|it| it.at_ms),
            status,
            late_ms: late.map(|it| (it.at_ms - place.begin_ms).max(0)),
            present_ms: present_ms(seen, bounds),
            session: place.session,
        }
    }

    fn present_ms(seen: &[&CountedAttendance], bounds: Option<(i64, i64)>) -> Option<i64> {
        let within = |at_ms: i64| {
            bounds.map_or(at_ms, |(from_ms, to_ms)| at_ms.clamp(from_ms, to_ms.max(from_ms)))
        };
        let mut total_ms = 0;
        let mut came_ms = None;
        let mut pairs = 0;
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

    /// Who was not there.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) enum Absence {
        /// The door watched from the time the session opened to its end: who was enrolled then
        /// and was not seen.
        Known(Vec<String>),
        /// It did not, or not yet, in these intervals.
        NotKnown,
    }

    /// Of each session, who of the enrolled has no record in it, nor any other record in its
    /// time: the schedule may have been another one when they came.
    pub(super) fn absences(
        sessions: &[Session],
        seen: &[CountedAttendance],
        enrolled: &[EnrolledSubject],
        watched: &Coverage,
    ) -> Vec<Absence> {
        let mut by_time: Vec<&CountedAttendance> = seen.iter().collect();
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
                return Absence::NotKnown;
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
            Absence::Known(missing.map(|it| it.subject_id.as_str().to_owned()).collect())
        };
        sessions.iter().map(of).collect()
    }
}
