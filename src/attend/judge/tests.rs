use proptest::prelude::*;

use super::*;
use crate::attend::venue::{SessionSpec, VenueSpec};
use jiff::Timestamp;
use jiff::tz::TimeZone;

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

const MINUTE_MS: i64 = 60_000;

/// Monday 08:00 to 12:00 and 13:00 to 17:00, and a night; late after ten minutes; a re-entry gap of
/// five.
fn venue(direction: DirectionMode) -> Venue {
    let session = |id: &str, day: &str, start: &str, end: &str| SessionSpec {
        id: id.into(),
        weekdays: vec![day.into()],
        start: start.into(),
        end: end.into(),
        late_after_ms: Some(600_000),
        ..SessionSpec::default()
    };
    let sessions = vec![
        session("am", "mon", "08:00", "12:00"),
        session("pm", "mon", "13:00", "17:00"),
        session("night", "tue", "22:00", "06:00"),
    ];
    Venue::new(&VenueSpec { direction, sessions, ..VenueSpec::plain("room-a") }, TimeZone::UTC)
        .unwrap()
}

fn boot(number: u32) -> BootId {
    BootId::new(&number.to_string())
}

/// At a time of the first boot, whose clocks agree.
fn at(text: &str) -> Moment {
    let wall_ms = ms(text);
    Moment {
        wall_ms,
        is_known: true,
        boottime_ms: (wall_ms - ms("2026-11-20T00:00:00Z")) as u64,
        boot_id: boot(1),
    }
}

/// Asks for one sighting after another, records what is new.
fn record(venue: &Venue, sightings: &[(Moment, Option<Direction>)]) -> Vec<(Recorded, Status)> {
    let mut recorded: Vec<(Recorded, Status)> = Vec::new();
    for (at, asked) in sightings {
        let recent: Vec<Recorded> = recorded.iter().map(|it| it.0.clone()).collect();
        if let JudgedSighting::New(NewAttendance { session, direction, status }) =
            judge(venue, at, *asked, &recent)
        {
            recorded.push((
                Recorded { seq: recorded.len() as i64 + 1, at: at.clone(), direction, session },
                status,
            ));
        }
    }
    recorded
}

/// (time, recorded as: session's rule or "-", direction, status; or nothing)
fn check(direction: DirectionMode, steps: &[(&str, &str)]) {
    let venue = venue(direction);
    let sightings: Vec<_> = steps.iter().map(|(time, _)| (at(time), None)).collect();
    let recorded = record(&venue, &sightings);
    let found = recorded.iter().map(|(it, status)| {
        let rule = it.session.as_deref().map_or("-", |id| id.split_once('/').unwrap().1);
        (it.at.wall_ms, format!("{rule} {} {}", it.direction.as_str(), status.as_str()))
    });
    let expected = steps
        .iter()
        .filter(|it| !it.1.is_empty())
        .map(|(time, what)| (ms(time), (*what).to_owned()));
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

/// Returns the time of the record by which a sighting is recorded already.
fn recorded_at(direction: DirectionMode, earlier: &[&str], time: &str) -> Option<i64> {
    let venue = venue(direction);
    let sightings: Vec<_> = earlier.iter().map(|time| (at(time), None)).collect();
    let recent: Vec<_> = record(&venue, &sightings).into_iter().map(|it| it.0).collect();
    assert_eq!(recent.len(), earlier.len(), "each of them is recorded");
    match judge(&venue, &at(time), None, &recent) {
        JudgedSighting::Repeated(recorded) => Some(recorded.at.wall_ms),
        JudgedSighting::New(_) => None,
    }
}

#[test]
fn repeated_sighting_names_its_record() {
    let same = |direction, earlier: &[&str], time, record: &str| {
        assert_eq!(recorded_at(direction, earlier, time), Some(ms(record)), "{time}");
    };
    // The record of the session, not that of before it.
    let morning = ["2026-11-23T07:20:00Z", "2026-11-23T08:01:00Z"];
    same(DirectionMode::In, &morning, "2026-11-23T11:00:00Z", "2026-11-23T08:01:00Z");
    // Outside sessions, and where directions alternate, the latest within the gap.
    let noon = ["2026-11-23T08:01:00Z", "2026-11-23T12:10:00Z"];
    same(DirectionMode::In, &noon, "2026-11-23T12:14:00Z", "2026-11-23T12:10:00Z");
    same(DirectionMode::Alternate, &noon, "2026-11-23T12:14:00Z", "2026-11-23T12:10:00Z");
    assert_eq!(recorded_at(DirectionMode::In, &noon, "2026-11-23T12:15:00Z"), None);
}

#[test]
fn attendance_counts_once_per_session() {
    check(
        DirectionMode::In,
        &[
            ("2026-11-23T07:20:00Z", "- in present"), // before it opens
            ("2026-11-23T07:24:59Z", ""),             // within the gap
            ("2026-11-23T07:31:00Z", "am in present"),
            ("2026-11-23T08:30:00Z", ""),
            ("2026-11-23T11:59:00Z", ""),
            ("2026-11-23T12:10:00Z", "- in present"), // between sessions
            ("2026-11-23T13:11:00Z", "pm in late"),
            ("2026-11-23T13:12:00Z", ""),
            ("2026-11-25T10:00:00Z", "- in present"), // a day without sessions: once per gap
            ("2026-11-25T10:04:59Z", ""),
            ("2026-11-25T10:05:00Z", "- in present"), // equality counts
        ],
    );
    check(
        DirectionMode::Out,
        &[("2026-11-23T08:30:00Z", "am out present"), ("2026-11-23T11:00:00Z", "")],
    );
    // A record of a session that has just ended counts for the gap.
    check(
        DirectionMode::In,
        &[("2026-11-23T11:59:00Z", "am in late"), ("2026-11-23T12:00:30Z", "")],
    );
}

#[test]
fn alternate_mode_records_in_and_out() {
    check(
        DirectionMode::Alternate,
        &[
            ("2026-11-23T08:20:00Z", "am in late"),
            ("2026-11-23T08:24:00Z", ""), // stands before the door still
            ("2026-11-23T10:00:00Z", "am out present"),
            ("2026-11-23T10:30:00Z", "am in present"), // back from a break, not late again
            ("2026-11-23T12:05:00Z", "- out present"),
            ("2026-11-23T12:50:00Z", "pm in present"),
            // Went home unseen.
            ("2026-11-24T09:00:00Z", "- in present"),
            ("2026-11-24T09:30:00Z", "- out present"),
            // The night belongs to the day on which it began, and so does leaving after it.
            ("2026-11-24T21:58:00Z", "night in present"),
            ("2026-11-25T02:00:00Z", "night out present"),
            ("2026-11-25T02:30:00Z", "night in present"),
            ("2026-11-25T06:02:00Z", "- out present"),
            ("2026-11-25T15:00:00Z", "- in present"),
        ],
    );
}

#[test]
fn given_direction_overrides_the_venue() {
    let venue = venue(DirectionMode::In);
    let first = at("2026-11-23T08:01:00Z");
    let later = at("2026-11-23T08:02:00Z");
    let recorded = record(
        &venue,
        &[
            (first.clone(), None),
            (later.clone(), Some(Direction::Out)),
            (at("2026-11-23T09:00:00Z"), Some(Direction::Out)),
        ],
    );
    assert_eq!(
        recorded.iter().map(|it| it.0.direction).collect::<Vec<_>>(),
        [Direction::In, Direction::Out]
    );
}

fn unsynced(boottime_min: u64) -> Moment {
    let boottime_ms = boottime_min * 60_000;
    Moment { wall_ms: boottime_ms as i64, is_known: false, boottime_ms, boot_id: boot(2) }
}

#[test]
fn unsynced_gap_uses_boottime_clock() {
    use Direction::{In, Out};
    let recorded = |direction, minutes: &[u64]| {
        let sightings: Vec<_> = minutes.iter().map(|it| (unsynced(*it), None)).collect();
        let recorded = record(&venue(direction), &sightings);
        assert!(recorded.iter().all(|it| it.0.session.is_none() && it.1 == Status::Present));
        recorded.iter().map(|it| (it.0.at.boottime_ms / 60_000, it.0.direction)).collect::<Vec<_>>()
    };
    assert_eq!(recorded(DirectionMode::In, &[10, 14, 15]), [(10, In), (15, In)]);
    assert_eq!(
        recorded(DirectionMode::Alternate, &[10, 14, 15, 20, 1000]),
        [(10, In), (15, Out), (20, In), (1000, In)]
    );
}

#[test]
fn clock_jump_neither_doubles_nor_hides_attendance() {
    let plain = Venue { sessions: Vec::new(), ..venue(DirectionMode::In) };
    let gap = |last_wall_s: i64, last_boot_s: u64, same_boot: bool, expected: bool| {
        let boot_id = boot(if same_boot { 1 } else { 2 });
        let last = Moment {
            wall_ms: last_wall_s * 1000,
            is_known: true,
            boottime_ms: last_boot_s * 1000,
            boot_id,
        };
        let now =
            Moment { wall_ms: 100_000_000, is_known: true, boottime_ms: 500_000, boot_id: boot(1) };
        let recent = [Recorded { seq: 1, at: last, direction: Direction::In, session: None }];
        let judged = judge(&plain, &now, None, &recent);
        assert_eq!(matches!(judged, JudgedSighting::New(_)), expected, "{recent:?}");
    };
    gap(50_000, 490, true, false); // the wall clock jumped forward within this boot
    gap(150_000, 490, true, false); // and back
    gap(99_700, 200, true, true); // equality counts
    gap(100_000, 501, true, false); // recorded already, but seen a second later than this one
    gap(99_701, 200, false, false);
    gap(99_700, 499, false, true);
    gap(150_000, 490, false, true); // an earlier boot that thought it was later

    // In a session, an hour back is no earlier visit.
    let venue = venue(DirectionMode::In);
    let first = at("2026-11-23T09:30:00Z");
    let back = Moment {
        wall_ms: ms("2026-11-23T08:40:00Z"),
        boottime_ms: first.boottime_ms + 600_000,
        ..first.clone()
    };
    assert_eq!(record(&venue, &[(first, None), (back, None)]).len(), 1);
}

#[test]
fn earliest_record_counts() {
    let venue = venue(DirectionMode::In);
    let session = venue.session_at(ms("2026-11-23T08:05:00Z")).unwrap();
    let times = ["2026-11-23T08:20:00Z", "2026-11-23T08:05:00Z", "2026-11-23T08:30:00Z"];
    let records: Vec<_> = (1..)
        .zip(times)
        .map(|(seq, time)| Recorded {
            seq,
            at: at(time),
            direction: Direction::In,
            session: Some(session.id.clone()),
        })
        .collect();
    let of = |status, superseded_by| Settlement { status, superseded_by };
    let settled = settle(&venue, &session, Direction::In, &records);
    assert_eq!(
        settled,
        [of(Status::Late, Some(2)), of(Status::Present, None), of(Status::Late, Some(2))]
    );
    let free = Venue { direction: DirectionMode::Alternate, ..venue };
    let settled = settle(&free, &session, Direction::In, &records);
    assert_eq!(
        settled,
        [of(Status::Present, None); 3],
        "one is on time, the others have come back"
    );
}

proptest! {
    /// Sightings of one person in any order, by cameras and commands, over restarts: one record
    /// counts for each session and direction, and it is the earliest that was recorded.
    #[test]
    fn any_arrival_order_counts_one_record(
        minutes in prop::collection::vec((0_i64..600, 0_u32..3, any::<bool>()), 1..40),
        outward in any::<bool>(),
    ) {
        let venue = venue(if outward { DirectionMode::Out } else { DirectionMode::In });
        let begin = ms("2026-11-23T07:00:00Z");
        let sightings: Vec<_> = minutes
            .iter()
            .map(|(minute, number, given)| {
                let wall_ms = begin + minute * MINUTE_MS;
                // The clocks agree, and each boot begins at another time.
                let boottime_ms = (wall_ms - begin + i64::from(*number) * 7_000_000) as u64;
                let asked = given.then_some(Direction::Out);
                (Moment { wall_ms, is_known: true, boottime_ms, boot_id: boot(*number) }, asked)
            })
            .collect();
        let recorded = record(&venue, &sightings);
        let mut keys: Vec<_> = recorded.iter().map(|it| (it.0.session.clone(), it.0.direction)).collect();
        keys.sort();
        keys.dedup();
        for (id, direction) in keys {
            let Some(session) = id.as_deref().and_then(|id| venue.session_of_id(id)) else { continue };
            let of: Vec<_> = recorded
                .iter()
                .map(|it| it.0.clone())
                .filter(|it| it.session == id && it.direction == direction)
                .collect();
            let settled = settle(&venue, &session, direction, &of);
            let counting: Vec<_> = of.iter().zip(&settled).filter(|it| it.1.superseded_by.is_none()).collect();
            prop_assert_eq!(counting.len(), 1);
            let earliest = sightings
                .iter()
                .filter(|(at, asked)| {
                    let way = asked.unwrap_or(if outward { Direction::Out } else { Direction::In });
                    way == direction && venue.session_at(at.wall_ms).as_ref() == Some(&session)
                })
                .map(|it| it.0.wall_ms)
                .min();
            prop_assert_eq!(Some(counting[0].0.at.wall_ms), earliest);
        }
    }

    /// Where directions alternate nobody comes or leaves twice in a row, and never within the gap.
    #[test]
    fn directions_alternate_at_any_times(minutes in prop::collection::vec(1_i64..90, 1..40)) {
        let venue = venue(DirectionMode::Alternate);
        let mut wall_ms = ms("2026-11-23T00:00:00Z");
        let sightings: Vec<_> = minutes
            .iter()
            .map(|minutes| {
                wall_ms += minutes * MINUTE_MS;
                let time = Timestamp::from_millisecond(wall_ms).unwrap().to_string();
                (at(&time), None)
            })
            .collect();
        let recorded = record(&venue, &sightings);
        for pair in recorded.windows(2) {
            let before = &pair[0].0;
            let after = &pair[1].0;
            let apart_ms = after.at.wall_ms - before.at.wall_ms;
            prop_assert!(apart_ms >= 5 * MINUTE_MS);
            let same_day = venue.date_at(before.at.wall_ms) == venue.date_at(after.at.wall_ms);
            if same_day && before.session.is_none() == after.session.is_none() {
                prop_assert_eq!(after.direction, before.direction.opposite());
            }
        }
    }
}
