use super::*;
use crate::attend::venue::{SessionSpec, VenueSpec};
use jiff::tz::TimeZone;

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

fn text(wall_ms: i64) -> String {
    Timestamp::from_millisecond(wall_ms).unwrap().strftime("%Y-%m-%dT%H:%MZ").to_string()
}

const EVERY_DAY: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn weekly(id: &str, days: &[&str], start: &str, end: &str) -> SessionSpec {
    let weekdays = days.iter().map(ToString::to_string).collect();
    SessionSpec {
        id: id.into(),
        weekdays,
        start: start.into(),
        end: end.into(),
        ..SessionSpec::default()
    }
}

fn dated(id: &str, date: &str, start: &str, end: &str) -> SessionSpec {
    SessionSpec { dates: vec![date.into()], ..weekly(id, &[], start, end) }
}

fn venue(zone: &str, sessions: Vec<SessionSpec>) -> Venue {
    let spec = VenueSpec { sessions, time_zone: zone.into(), ..VenueSpec::plain("room-a") };
    Venue::new(&spec, TimeZone::get(zone).unwrap()).unwrap()
}

/// The session that begins on a local date, by a daily rule: its start and end in UTC.
fn check(zone: &str, (start, end): (&str, &str), date: &str, expected: (&str, &str)) {
    let venue = venue(zone, vec![weekly("x", &EVERY_DAY, start, end)]);
    let date: Date = date.parse().unwrap();
    let session = venue.occurrence(&venue.sessions[0], date).unwrap();
    let found = (text(session.start_ms), text(session.end_ms));
    assert_eq!((&*found.0, &*found.1), expected, "{zone} {start}–{end} on {date}");
    assert_eq!(session.id, format!("{}/x", expected.0));
    assert_eq!(venue.session_of_id(&session.id).as_ref(), Some(&session));
    // Everywhere within it, and nowhere else, it is the session of the moment.
    for (at_ms, inside) in [
        (session.opens_ms - 1, false),
        (session.opens_ms, true),
        (session.start_ms, true),
        (session.end_ms - 1, true),
        (session.end_ms, false),
    ] {
        let found = venue.session_at(at_ms).is_some_and(|it| it.id == session.id);
        assert_eq!(found, inside, "{zone} {start}–{end} at {}", text(at_ms));
    }
}

#[test]
fn session_times_on_usual_days() {
    check(
        "Europe/Berlin",
        ("08:00", "12:00"),
        "2026-11-23",
        ("2026-11-23T07:00Z", "2026-11-23T11:00Z"),
    );
    check(
        "Europe/Berlin",
        ("08:00", "12:00"),
        "2026-07-06",
        ("2026-07-06T06:00Z", "2026-07-06T10:00Z"),
    );
    check(
        "America/New_York",
        ("08:00", "12:00"),
        "2026-11-23",
        ("2026-11-23T13:00Z", "2026-11-23T17:00Z"),
    );
    check(
        "Australia/Lord_Howe",
        ("08:00", "12:00"),
        "2026-11-23",
        ("2026-11-22T21:00Z", "2026-11-23T01:00Z"),
    );
    check(
        "Europe/Berlin",
        ("22:00", "06:00"),
        "2026-11-23",
        ("2026-11-23T21:00Z", "2026-11-24T05:00Z"),
    );
    check(
        "Asia/Kathmandu",
        ("00:15", "01:00"),
        "2026-11-23",
        ("2026-11-22T18:30Z", "2026-11-22T19:15Z"),
    );
}

#[test]
fn session_times_when_clocks_go_forward() {
    // Berlin, 29 March 2026: 02:00 → 03:00 at 01:00Z.
    let day = "2026-03-29";
    check("Europe/Berlin", ("02:30", "03:30"), day, ("2026-03-29T01:30Z", "2026-03-29T02:30Z"));
    check("Europe/Berlin", ("02:00", "02:45"), day, ("2026-03-29T01:00Z", "2026-03-29T01:45Z"));
    check("Europe/Berlin", ("02:30", "06:00"), day, ("2026-03-29T01:30Z", "2026-03-29T05:00Z"));
    check("Europe/Berlin", ("01:30", "02:30"), day, ("2026-03-29T00:30Z", "2026-03-29T01:30Z"));
    check("Europe/Berlin", ("03:00", "04:00"), day, ("2026-03-29T01:00Z", "2026-03-29T02:00Z"));
    check(
        "Europe/Berlin",
        ("22:00", "06:00"),
        "2026-03-28",
        ("2026-03-28T21:00Z", "2026-03-29T04:00Z"),
    );
    check(
        "Europe/Berlin",
        ("22:00", "02:30"),
        "2026-03-28",
        ("2026-03-28T21:00Z", "2026-03-29T01:30Z"),
    );
    // New York, 8 March 2026: 02:00 → 03:00 at 07:00Z.
    check(
        "America/New_York",
        ("02:30", "03:30"),
        "2026-03-08",
        ("2026-03-08T07:30Z", "2026-03-08T08:30Z"),
    );
    check(
        "America/New_York",
        ("22:00", "06:00"),
        "2026-03-07",
        ("2026-03-08T03:00Z", "2026-03-08T10:00Z"),
    );
    // Lord Howe, 4 October 2026: 02:00 → 02:30 at 15:30Z of the day before.
    check(
        "Australia/Lord_Howe",
        ("02:15", "03:00"),
        "2026-10-04",
        ("2026-10-03T15:45Z", "2026-10-03T16:30Z"),
    );
    check(
        "Australia/Lord_Howe",
        ("02:30", "03:00"),
        "2026-10-04",
        ("2026-10-03T15:30Z", "2026-10-03T16:00Z"),
    );
    check(
        "Australia/Lord_Howe",
        ("22:00", "06:00"),
        "2026-10-03",
        ("2026-10-03T11:30Z", "2026-10-03T19:00Z"),
    );
    // Cairo, 24 April 2026: the day begins at 01:00.
    check(
        "Africa/Cairo",
        ("00:00", "08:00"),
        "2026-04-24",
        ("2026-04-23T22:00Z", "2026-04-24T06:00Z"),
    );
}

#[test]
fn session_times_when_clocks_go_back() {
    // Berlin, 25 October 2026: 03:00 → 02:00 at 01:00Z. The first 02:30 counts.
    let day = "2026-10-25";
    check("Europe/Berlin", ("02:30", "03:30"), day, ("2026-10-25T00:30Z", "2026-10-25T02:30Z"));
    check("Europe/Berlin", ("02:30", "02:45"), day, ("2026-10-25T00:30Z", "2026-10-25T00:45Z"));
    check("Europe/Berlin", ("01:00", "02:30"), day, ("2026-10-24T23:00Z", "2026-10-25T00:30Z"));
    check(
        "Europe/Berlin",
        ("22:00", "06:00"),
        "2026-10-24",
        ("2026-10-24T20:00Z", "2026-10-25T05:00Z"),
    );
    // New York, 1 November 2026: 02:00 → 01:00 at 06:00Z.
    check(
        "America/New_York",
        ("02:30", "03:30"),
        "2026-11-01",
        ("2026-11-01T07:30Z", "2026-11-01T08:30Z"),
    );
    check(
        "America/New_York",
        ("01:30", "02:30"),
        "2026-11-01",
        ("2026-11-01T05:30Z", "2026-11-01T07:30Z"),
    );
    // Lord Howe, 5 April 2026: 02:00 → 01:30 at 15:00Z of the day before.
    check(
        "Australia/Lord_Howe",
        ("01:45", "02:30"),
        "2026-04-05",
        ("2026-04-04T14:45Z", "2026-04-04T16:00Z"),
    );
    check(
        "Australia/Lord_Howe",
        ("02:30", "03:00"),
        "2026-04-05",
        ("2026-04-04T16:00Z", "2026-04-04T16:30Z"),
    );
}

/// GalleryTransport each change of the clocks, minute by minute: a daily session is one session, with one
/// id, of the right length.
#[test]
fn daily_session_occurs_once_each_day() {
    for (zone, change_min) in
        [("Europe/Berlin", 60), ("America/New_York", 60), ("Australia/Lord_Howe", 30)]
    {
        for (start, end, nominal_min) in
            [("02:30", "03:15", 45), ("22:00", "06:00", 480), ("01:45", "02:00", 15)]
        {
            let venue = venue(zone, vec![weekly("x", &EVERY_DAY, start, end)]);
            let first = jiff::civil::date(2026, 1, 1);
            let days: Vec<_> = first.series(jiff::Span::new().days(1)).take(1096).collect();
            let mut ids = std::collections::BTreeSet::new();
            let mut odd = 0;
            let mut last_end = i64::MIN;
            for day in &days {
                let session = venue.occurrence(&venue.sessions[0], *day).unwrap();
                assert!(
                    session.start_ms >= last_end && session.end_ms > session.start_ms,
                    "{zone} {day}"
                );
                assert_eq!(session.date, venue.date_at(session.start_ms).unwrap());
                last_end = session.end_ms;
                ids.insert(session.id);
                let length_min = (session.end_ms - session.start_ms) / 60_000;
                odd += usize::from(length_min != nominal_min);
                assert!(
                    (length_min - nominal_min).abs() <= change_min,
                    "{zone} {day}: {length_min}"
                );
            }
            assert_eq!(ids.len(), days.len(), "{zone}");
            assert!(odd <= 6, "{zone} {start}: at most the two changes of each year");
        }
    }
}

#[test]
fn session_window_includes_early_excludes_end() {
    let session =
        SessionSpec { early_ms: Some(1_800_000), ..weekly("mon-am", &["mon"], "08:00", "09:00") };
    let venue = venue("UTC", vec![session]);
    for (at, expected) in [
        ("2026-11-23T07:29:59.999Z", None),
        ("2026-11-23T07:30:00Z", Some("2026-11-23T08:00Z/mon-am")),
        ("2026-11-23T07:58:03.412Z", Some("2026-11-23T08:00Z/mon-am")),
        ("2026-11-23T08:59:59.999Z", Some("2026-11-23T08:00Z/mon-am")),
        ("2026-11-23T09:00:00Z", None),
        ("2026-11-24T08:30:00Z", None),
    ] {
        assert_eq!(venue.session_at(ms(at)).map(|it| it.id).as_deref(), expected, "{at}");
    }
}

#[test]
fn running_session_precedes_opening_one() {
    let venue = venue(
        "UTC",
        vec![weekly("a", &["mon"], "08:00", "10:00"), weekly("b", &["mon"], "10:00", "12:00")],
    );
    let at = |text: &str| venue.session_at(ms(text)).unwrap().id;
    assert_eq!(at("2026-11-23T09:45:00Z"), "2026-11-23T08:00Z/a");
    assert_eq!(at("2026-11-23T10:00:00Z"), "2026-11-23T10:00Z/b");
    // From a time to the same time is a whole day.
    let venue = self::venue("UTC", vec![weekly("day", &EVERY_DAY, "06:00", "06:00")]);
    let at = |text: &str| venue.session_at(ms(text)).unwrap().id;
    assert_eq!(at("2026-11-23T05:59:00Z"), "2026-11-22T06:00Z/day");
    assert_eq!(at("2026-11-23T06:00:00Z"), "2026-11-23T06:00Z/day");
}

#[test]
fn dated_session_replaces_weekly_one() {
    let usual = weekly("usual", &["mon"], "08:00", "12:00");
    let evening = weekly("evening", &["mon"], "18:00", "20:00");
    let venue = venue("UTC", vec![usual, evening, dated("exam", "2026-11-23", "09:00", "11:00")]);
    let on = |from: &str, to: &str| -> Vec<_> {
        venue.sessions_between(ms(from), ms(to)).into_iter().map(|it| it.id).collect()
    };
    assert_eq!(
        on("2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"),
        ["2026-11-23T09:00Z/exam", "2026-11-23T18:00Z/evening"]
    );
    assert_eq!(
        on("2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"),
        ["2026-11-30T08:00Z/usual", "2026-11-30T18:00Z/evening"]
    );
    assert_eq!(
        venue.session_at(ms("2026-11-23T08:10:00Z")),
        None,
        "the exam opens at half past eight"
    );
    assert_eq!(venue.session_at(ms("2026-11-23T08:40:00Z")).unwrap().id, "2026-11-23T09:00Z/exam");
}

#[test]
fn arrival_at_late_limit_is_present() {
    let session =
        SessionSpec { late_after_ms: Some(600_000), ..weekly("am", &["mon"], "08:00", "12:00") };
    let session = venue("UTC", vec![session]).session_at(ms("2026-11-23T08:10:00Z")).unwrap();
    assert_eq!(session.status_at(ms("2026-11-23T08:10:00Z")), Status::Present);
    assert_eq!(session.status_at(ms("2026-11-23T08:10:00.001Z")), Status::Late);
    let never = venue("UTC", vec![weekly("am", &["mon"], "08:00", "12:00")]);
    assert_eq!(never.sessions_between(0, 86_400_000 * 7)[0].status_at(i64::MAX), Status::Present);
}

#[test]
fn impossible_times_have_no_session() {
    let venue = venue("Australia/Lord_Howe", vec![weekly("x", &EVERY_DAY, "22:00", "21:59")]);
    let edges =
        [i64::MIN, i64::MAX, Timestamp::MIN.as_millisecond(), Timestamp::MAX.as_millisecond()];
    for at_ms in edges {
        venue.session_at(at_ms);
        venue.date_at(at_ms);
        venue.sessions_between(at_ms, at_ms.saturating_add(1));
    }
    for id in ["", "x", "/x", "2026-11-23T08:00Z", "2026-11-23T08:00Z/y", "+99999-01-01T00:00Z/x"] {
        assert_eq!(venue.session_of_id(id), None, "{id}");
    }
    let ever = venue.sessions_between(0, ms("2026-01-01T00:00:00Z"));
    assert!(ever.len() <= PERIOD_DAYS_MAX as usize, "{}", ever.len());
}
