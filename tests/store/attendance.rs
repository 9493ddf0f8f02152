//! Attendance as the store keeps it: visits judged and recorded in one transaction, the clock set
//! while people pass, and what retention leaves.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::support::store_bench::{Bench, DAY, START_MS, enrol, subject};
use proptest::prelude::*;
use rollcall::app::commands::report;
use rollcall::app::commands::report::{Absent, AttendanceReport};
use rollcall::app::pipeline::recorder::{Visit, record_visit};
use rollcall::attend::venue::{DirectionMode, SessionSpec, Venue, VenueSpec};
use rollcall::attend::{Direction, Status};
use rollcall::clock::{Clock as _, SimulatedClock, Stamp, time_zone};
use rollcall::ids::Name;
use rollcall::store::{AttendanceQuery, SinkName, Store, StoreError, Tx};
use rollcall::wire::event::{
    Body, ClockState, Correction, Enrolment, EnrolmentAction, NewEvent, StoredEvent, SubjectRef,
};
use rollcall::wire::reply::{AttendanceSummary, NotKnown, SummaryStatus};

/// All of it.
fn report_of(
    tx: &Tx<'_>,
    venue: &Venue,
    period: (i64, i64),
    absent: Absent,
) -> Result<AttendanceSummary, StoreError> {
    AttendanceReport::new(tx, venue, period, absent)?.page(0, u32::MAX)
}

fn not_known(summary: &AttendanceSummary) -> &[NotKnown] {
    summary.not_known.as_deref().unwrap()
}

/// Monday 09:00 to 12:00 in Berlin, which is 08:00 UTC; START_MS is two minutes before. Late after
/// ten minutes.
fn venue(direction: DirectionMode) -> Venue {
    let session = SessionSpec {
        id: "mon-am".into(),
        weekdays: vec!["mon".into()],
        start: "09:00".into(),
        end: "12:00".into(),
        late_after_ms: Some(600_000),
        ..SessionSpec::default()
    };
    let zone = "Europe/Berlin";
    let spec = VenueSpec {
        sessions: vec![session],
        direction,
        time_zone: zone.into(),
        ..VenueSpec::plain("room-a")
    };
    Venue::new(&spec, time_zone(zone).unwrap()).unwrap()
}

const SESSION: &str = "2026-11-23T08:00Z/mon-am";

struct Door {
    bench: Bench,
    store: Store,
    venue: Venue,
}

impl Door {
    fn new(people: &[&str]) -> Self {
        let bench = Bench::new();
        let store = bench.open();
        for id in people {
            enrol(&store, id, &format!("Name of {id}"), &[]);
        }
        Self { bench, store, venue: venue(DirectionMode::In) }
    }

    /// Somebody is seen at `at`; gives whether that was recorded.
    fn sees(&self, id: &str, at: Stamp) -> bool {
        let subject = SubjectRef { id: subject(id), name: Name::new(id).unwrap() };
        let visit = Visit {
            subject,
            direction: None,
            score: 0.7,
            threshold: 0.5,
            frames: 3,
            track_ms: 1,
            latency_ms: 1,
        };
        let venue = self.venue.clone();
        let clock = Arc::clone(&self.bench.clock);
        let recorded =
            self.store.write(move |tx| record_visit(tx, &venue, &visit, at, clock.as_ref()));
        recorded.unwrap().recorded().is_some()
    }

    fn sees_now(&self, id: &str) -> bool {
        self.sees(id, self.bench.clock.now())
    }

    fn correct(&self) -> usize {
        let now = self.bench.clock.now();
        let venues = vec![self.venue.clone()];
        let mut total = 0;
        loop {
            let venues = venues.clone();
            match self.store.write(move |tx| tx.correct_times(&now, &venues)).unwrap() {
                0 => return total,
                more => total += more,
            }
        }
    }

    fn events(&self) -> Vec<StoredEvent> {
        let all = self.store.write(|tx| (1..).map_while(|seq| tx.event(seq).transpose()).collect());
        all.unwrap()
    }

    fn attendances(&self) -> Vec<StoredEvent> {
        self.events().into_iter().filter(|it| matches!(it.body, Body::Attendance(_))).collect()
    }

    fn counting(&self) -> Vec<StoredEvent> {
        self.attendances().into_iter().filter(|it| it.superseded_by.is_none()).collect()
    }

    /// The last correction of each event.
    fn corrections(&self) -> BTreeMap<uuid::Uuid, (StoredEvent, Correction)> {
        let correction = |it: StoredEvent| match &it.body {
            Body::Correction(body) => Some((body.corrects, (it.clone(), body.clone()))),
            _ => None,
        };
        self.events().into_iter().filter_map(correction).collect()
    }

    fn advance(&self, seconds: u64) {
        self.bench.clock.advance(Duration::from_secs(seconds));
    }

    fn settle_outbox(&self) {
        let settle = self.store.write(|tx| {
            for sink in [SinkName::MQTT, SinkName::MONGO] {
                let rows = tx.outbox_batch(sink, 0, 10_000)?;
                tx.acknowledge(&rows.iter().map(|it| it.id).collect::<Vec<_>>())?;
            }
            Ok(())
        });
        settle.unwrap();
    }
}

fn reported(event: &StoredEvent) -> (Option<&str>, Status) {
    let Body::Attendance(body) = &event.body else { panic!("{event:?}") };
    (body.session.as_deref(), body.status)
}

#[test]
fn visit_is_recorded_once_per_session() {
    let door = Door::new(&["a", "b"]);
    assert!(door.sees_now("a"));
    door.advance(15 * 60);
    assert!(!door.sees_now("a"), "an hour later is the same session");
    assert!(door.sees_now("b"));
    let events = door.attendances();
    assert_eq!(
        events.iter().map(reported).collect::<Vec<_>>(),
        [(Some(SESSION), Status::Present), (Some(SESSION), Status::Late)]
    );
    assert!(
        !door.sees("nobody", door.bench.clock.now()),
        "who was withdrawn meanwhile does not come back"
    );
}

#[test]
fn earlier_event_counts_when_out_of_order() {
    let door = Door::new(&["a"]);
    door.advance(15 * 60);
    let early = door.bench.clock.now().at_boottime(door.bench.clock.now().boottime_ms - 5 * 60_000);
    assert!(door.sees_now("a"));
    assert!(door.sees("a", early));
    assert!(!door.sees_now("a") && !door.sees("a", early));
    let [late, first] = &door.attendances()[..] else { panic!("two") };
    assert_eq!((late.superseded_by, first.superseded_by), (Some(first.event_id), None));
    assert_eq!(reported(first), (Some(SESSION), Status::Present));
    let (event, correction) = &door.corrections()[&late.event_id];
    assert_eq!((event.occurred_ms, event.clock), (late.occurred_ms, ClockState::Synced));
    assert_eq!(correction.superseded_by, Some(first.event_id));
    assert_eq!(
        (correction.session.as_deref(), correction.status),
        (Some(SESSION), Some(Status::Late))
    );
}

#[test]
fn unsynced_visits_get_session_and_status() {
    let people: Vec<String> = (0..10).map(|at| format!("p{at}")).collect();
    let door = Door::new(&people.iter().map(String::as_str).collect::<Vec<_>>());
    door.bench.clock.set_wall(0, false);
    for id in &people {
        assert!(door.sees_now(id));
        assert!(!door.sees_now(id), "within the re-entry gap");
        door.advance(100);
    }
    assert!(
        door.attendances()
            .iter()
            .all(|it| it.clock == ClockState::Unsynced && reported(it).0.is_none())
    );
    assert_eq!(door.correct(), 0, "nobody knows the time yet");
    // It is 10:00 in Berlin, an hour into the session; the first passed 1000 seconds ago.
    door.advance(2 * 3600);
    let now_ms = START_MS + 3_600_000;
    door.bench.clock.set_wall(now_ms, true);
    let before: Vec<_> =
        door.attendances().iter().map(|it| (it.event_id, it.boottime_ms)).collect();
    assert_eq!(door.correct(), 10);
    assert_eq!(door.correct(), 0);
    let events = door.attendances();
    let corrections = door.corrections();
    assert_eq!(before, events.iter().map(|it| (it.event_id, it.boottime_ms)).collect::<Vec<_>>());
    assert_eq!(
        (events.len(), corrections.len(), door.events().len()),
        (10, 10, 20),
        "none lost, none doubled"
    );
    let boottime_ms = door.bench.clock.now().boottime_ms;
    for event in &events {
        assert_eq!(event.occurred_ms, now_ms - (boottime_ms - event.boottime_ms) as i64);
        assert_eq!((event.clock, event.superseded_by), (ClockState::Corrected, None));
        let (correction, body) = &corrections[&event.event_id];
        assert_eq!(
            (correction.occurred_ms, correction.clock),
            (event.occurred_ms, ClockState::Corrected)
        );
        let (session, status) = reported(event);
        assert_eq!((body.session.as_deref(), body.status), (session, Some(status)));
        let expected = door.venue.session_at(event.occurred_ms);
        assert_eq!(session, expected.as_ref().map(|it| &*it.id));
        assert!(body.was.starts_with("1970-01-01T00:"), "{}", body.was);
    }
}

#[test]
fn unsynced_enrolment_time_is_corrected() {
    let door = Door::new(&["old"]);
    door.bench.clock.set_wall(0, false);
    let at = door.bench.clock.now();
    let enrolment = Enrolment {
        action: EnrolmentAction::Enrolled,
        subject: Some(SubjectRef { id: subject("new"), name: Name::new("New").unwrap() }),
        references: 1,
        request_id: None,
        consent: None,
        reason: None,
    };
    let enrolled = door.store.write(move |tx| {
        tx.put_subject(&subject("new"), &Name::new("New").unwrap())?;
        tx.append_event(&NewEvent::new(at, Body::Enrolment(enrolment.clone())))
    });
    enrolled.unwrap();
    door.advance(600);
    door.bench.clock.set_wall(START_MS + 600_000, true);
    assert_eq!(door.correct(), 1);
    let since =
        |id| door.store.write(move |tx| tx.subject(&subject(id))).unwrap().unwrap().enrolled_ms;
    assert_eq!((since("new"), since("old")), (START_MS, START_MS));
}

#[test]
fn visits_around_clock_setting_count_once() {
    let door = Door::new(&["a"]);
    door.bench.clock.set_wall(0, false);
    assert!(door.sees_now("a"));
    door.advance(10 * 60);
    assert!(door.sees_now("a"), "after the gap: nobody knows yet that it is one session");
    door.advance(60);
    door.bench.clock.set_wall(START_MS + 30 * 60_000, true);
    assert!(door.sees_now("a"), "before the times are corrected it is the first of the session");
    assert_eq!(door.correct(), 2);
    assert!(!door.sees_now("a"));
    let [first, second, third] = &door.attendances()[..] else { panic!("three") };
    assert_eq!(first.superseded_by, None);
    assert_eq!([second.superseded_by, third.superseded_by], [Some(first.event_id); 2]);
    assert!([first, second, third].iter().all(|it| reported(it).0 == Some(SESSION)));
    // The one that was recorded with a trusted clock is told too: it may have been delivered.
    let corrections = door.corrections();
    assert_eq!(corrections.len(), 3);
    assert_eq!(corrections[&third.event_id].1.superseded_by, Some(first.event_id));
    assert_eq!(corrections[&first.event_id].1.superseded_by, None);
}

#[test]
fn trusted_clock_jump_loses_or_duplicates_nothing() {
    let door = Door::new(&["a", "b"]);
    assert!(door.sees_now("a"));
    let year_ms = 365 * 86_400_000;
    // A year ahead for ten minutes, in which somebody comes, and back.
    door.advance(60);
    door.bench.clock.set_wall(door.bench.clock.now().wall_ms + year_ms, true);
    assert_eq!(door.correct(), 0);
    assert!(door.sees_now("b"), "somebody was there");
    assert!(!door.sees_now("a"), "a minute ago, by the clock that never jumps");
    door.advance(600);
    door.bench.clock.set_wall(door.bench.clock.now().wall_ms - year_ms, true);
    assert_eq!(door.correct(), 0);
    assert!(!door.sees_now("a"), "recorded for this session already");
    assert!(door.sees_now("b"), "but this one only next year");
    // Back an hour.
    door.advance(3600);
    door.bench.clock.set_wall(door.bench.clock.now().wall_ms - 3_600_000, true);
    assert!(!door.sees_now("a") && !door.sees_now("b"));
    assert_eq!((door.attendances().len(), door.events().len()), (3, 3));
}

#[test]
fn reboot_does_not_double_session_attendance() {
    let door = Door::new(&["a"]);
    assert!(door.sees_now("a"));
    drop(door.store);
    // Another boot, whose clock began anew.
    let clock = SimulatedClock::at(START_MS + 40 * 60_000).of_boot(2);
    let bench = Bench { dir: door.bench.dir, clock: Arc::new(clock) };
    let store = bench.open();
    let door = Door { bench, store, venue: venue(DirectionMode::In) };
    assert!(!door.sees_now("a"));
}

#[test]
fn unsynced_visits_of_earlier_boot_stay() {
    let door = Door::new(&["a"]);
    door.bench.clock.set_wall(7_000, false);
    assert!(door.sees_now("a"));
    drop(door.store);
    let bench =
        Bench { dir: door.bench.dir, clock: Arc::new(SimulatedClock::at(START_MS).of_boot(2)) };
    let store = bench.open();
    let door = Door { bench, store, venue: venue(DirectionMode::In) };
    assert_eq!(door.correct(), 0);
    assert!(door.sees_now("a"), "it may have been last week");
    let [before, now] = &door.attendances()[..] else { panic!("two") };
    assert_eq!(
        (before.clock, before.occurred_ms, before.superseded_by),
        (ClockState::Unsynced, 7_000, None)
    );
    assert_eq!(reported(now).0, Some(SESSION));
}

#[test]
fn summary_lists_present_late_and_absent() {
    let door = Door::new(&["a", "b", "c"]);
    // Enrolled by the clock of today, which is the session's day: as if a week ago.
    door.bench.rewrite("update subject set enrolled_ms = 0");
    let open_ms = START_MS - 28 * 60_000 - 3_412;
    let watch = |row: Option<i64>| {
        let now = door.bench.clock.now();
        door.store.write(move |tx| tx.observe(row, &now)).unwrap()
    };
    door.bench.clock.set_wall(open_ms, true);
    let mut row = watch(None);
    let mut go_on = |minutes: u64| {
        for _ in 0..minutes {
            door.advance(60);
            row = watch(Some(row));
        }
    };
    go_on(28);
    assert!(door.sees_now("a"));
    go_on(17);
    assert!(door.sees_now("b"));
    let report = |door: &Door| {
        let venue = door.venue.clone();
        let (from_ms, to_ms) = report::day_of(&venue, START_MS);
        door.store.write(move |tx| report_of(tx, &venue, (from_ms, to_ms), Absent::Asked)).unwrap()
    };
    let unfinished = report(&door);
    assert_eq!(unfinished.rows.len(), 2);
    assert_eq!(not_known(&unfinished)[0].session, SESSION, "the session runs still");
    assert_eq!(not_known(&unfinished)[0].not_watching[0].to, "2026-11-23T11:00:00.000Z");
    go_on(180);
    let whole = report(&door);
    let reported: Vec<_> =
        whole.rows.iter().map(|it| (it.subject.id.as_str(), it.status, it.late_ms)).collect();
    let late_ms = Some(15 * 60_000);
    let expected = [
        ("a", SummaryStatus::Present, None),
        ("b", SummaryStatus::Late, late_ms),
        ("c", SummaryStatus::Absent, None),
    ];
    assert_eq!(reported, expected);
    assert!(not_known(&whole).is_empty());
    let venue = door.venue.clone();
    let (from_ms, to_ms) = report::day_of(&venue, START_MS);
    let elsewhere =
        move |tx: &mut Tx<'_>| report_of(tx, &venue, (from_ms, to_ms), Absent::AskedElsewhere);
    let elsewhere = door.store.write(elsewhere).unwrap();
    assert_eq!(
        (elsewhere.rows.len(), not_known(&elsewhere).len()),
        (2, 1),
        "this device does not see who is there"
    );
    // Where the record of an hour is gone, nobody is called absent.
    door.bench.rewrite("update observation set from_ms = from_ms + 3600000");
    let holed = report(&door);
    assert_eq!((holed.rows.len(), not_known(&holed).len()), (2, 1));
}

#[test]
fn retention_keeps_superseding_events() {
    let door = Door::new(&["a"]);
    door.advance(15 * 60);
    let now = door.bench.clock.now();
    assert!(door.sees("a", now)); // 1: superseded by 2
    assert!(door.sees("a", now.at_boottime(now.boottime_ms - 60_000))); // 2, and 3 tells of it
    door.settle_outbox();
    let reader = Store::open_read_only(door.bench.path(), None).unwrap();
    door.bench.clock.advance(Duration::from_hours(30));
    assert_eq!(
        door.store.write(|tx| tx.retention(1)).unwrap(),
        1,
        "the correction; a session may last a day"
    );
    // The one that was superseded is owed again: the one that counts stays with it.
    let owe = "insert into outbox (sink, event_seq, created_ms) values ('mqtt', 1, 0)";
    door.bench.sqlite().execute(owe, []).unwrap();
    door.bench.clock.advance(DAY);
    let now_ms = door.bench.clock.now().wall_ms;
    let prunable = reader.prunable(now_ms, 1).unwrap();
    assert_eq!((prunable.events, prunable.pending), (0, 1));
    assert_eq!(door.store.write(|tx| tx.retention(1)).unwrap(), 0);
    door.settle_outbox();
    assert_eq!(reader.prunable(now_ms, 1).unwrap().events, 2);
    assert_eq!(door.store.write(|tx| tx.retention(1)).unwrap(), 2);
}

#[test]
fn stored_venue_survives_restart() {
    let bench = Bench::new();
    let store = bench.open();
    assert!(!store.write(|tx| tx.put_venue("room-a", "{}")).unwrap());
    assert!(store.write(|tx| tx.put_venue("room-a", "{\"x\":1}")).unwrap());
    let size = |except: &'static str| {
        let size = store.write(move |tx| tx.venues_size(except)).unwrap();
        (size.count, size.bytes)
    };
    assert_eq!((size("room-a"), size("room-b")), ((0, 0), (1, 7)));
    drop(store);
    let store = bench.open();
    let kept = store.write(|tx| tx.venues()).unwrap();
    assert_eq!((kept.len(), &*kept[0].id, &*kept[0].body), (1, "room-a", "{\"x\":1}"));
    assert_eq!(Store::open_read_only(bench.path(), None).unwrap().venues().unwrap(), kept);
    assert!(store.write(|tx| tx.delete_venue("room-a")).unwrap());
    assert!(!store.write(|tx| tx.delete_venue("room-a")).unwrap());
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody is seen, and told so many seconds later.
    Seen {
        late_s: u64,
    },
    Passes {
        minutes: u64,
    },
    Restarts,
    /// The clock is lost (a start without network), or set right.
    Lost,
    SetRight,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..400).prop_map(|late_s| Step::Seen { late_s }),
        4 => (1_u64..40).prop_map(|minutes| Step::Passes { minutes }),
        1 => Just(Step::Restarts),
        1 => Just(Step::Lost),
        2 => Just(Step::SetRight),
    ]
}

/// By hand: `E2E_CASES=1000 cargo nextest run --test store attendance::`.
fn cases() -> u32 {
    std::env::var("E2E_CASES").map_or(24, |text| text.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: once the time is known, one record of a subject counts
    /// for each session and direction, and every visit to a session is covered by one that is not
    /// later. (Two sightings within the re-entry gap while nobody knew the time are one visit,
    /// whichever was told first.)
    #[test]
    fn one_record_counts_for_each_session(steps in prop::collection::vec(step(), 1..40)) {
        let mut door = Door::new(&["a"]);
        let mut truth_ms = START_MS - 60 * 60_000;
        door.bench.clock.set_wall(truth_ms, true);
        let mut visits = Vec::new();
        for step in steps {
            match step {
                Step::Seen { late_s } => {
                    let now = door.bench.clock.now();
                    let since_ms = (late_s * 1000).min(now.boottime_ms);
                    let at = now.at_boottime(now.boottime_ms - since_ms);
                    door.sees("a", at);
                    visits.push(truth_ms - since_ms as i64);
                }
                Step::Passes { minutes } => {
                    door.advance(minutes * 60);
                    truth_ms += minutes as i64 * 60_000;
                }
                Step::Restarts => {
                    let Door { bench, store, venue } = door;
                    drop(store);
                    let store = bench.open();
                    door = Door { bench, store, venue };
                }
                Step::Lost => door.bench.clock.set_wall(0, false),
                Step::SetRight => {
                    door.bench.clock.set_wall(truth_ms, true);
                    door.correct();
                }
            }
        }
        door.bench.clock.set_wall(truth_ms, true);
        door.correct();
        let counting = door.counting();
        let mut sessions = BTreeMap::new();
        for event in &counting {
            prop_assert_ne!(event.clock, ClockState::Unsynced);
            if let (Some(session), _) = reported(event) {
                prop_assert!(sessions.insert(session.to_owned(), event.occurred_ms).is_none(), "two for {}", session);
            }
        }
        for at_ms in visits {
            if let Some(session) = door.venue.session_at(at_ms) {
                let counts = sessions.get(&session.id);
                let gap_ms = door.venue.re_entry_gap.as_millis() as i64;
                prop_assert!(counts.is_some_and(|first| *first < at_ms + gap_ms), "{at_ms} is not covered by {counts:?}");
            }
        }
        for event in door.attendances() {
            let by = event.superseded_by;
            prop_assert!(by.is_none_or(|by| counting.iter().any(|it| it.event_id == by)));
        }
    }
}

#[test]
fn venue_period_query_uses_index() {
    let door = Door::new(&["a"]);
    door.bench
        .sqlite()
        .execute_batch(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000) \
             insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, venue, direction, body) \
             select randomblob(16), 'attendance', 1795420683412 + i * 60000, 'b', i, 'synced', 'room-b', 'in', '{}' from n",
        )
        .unwrap();
    let plan = "explain query plan select * from event e where kind = 'attendance' and venue = 'room-a' \
                and occurred_ms >= 0 and occurred_ms < 9 and superseded_by is null order by occurred_ms, seq";
    let conn = door.bench.sqlite();
    let steps: Vec<String> = conn
        .prepare(plan)
        .unwrap()
        .query_map([], |row| row.get(3))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(steps.len() == 1 && steps[0].contains("event_by_venue"), "{steps:?}");
    // Another venue's unreadable rows are not even looked at.
    let query = AttendanceQuery {
        venue: Some("room-a".into()),
        from_ms: 0,
        to_ms: i64::MAX,
        after_seq: 0,
        limit: 0,
        all: false,
    };
    let reader = Store::open_read_only(door.bench.path(), None).unwrap();
    let mut found = 0;
    let mut count = |_| {
        found += 1;
        Ok(ControlFlow::Continue(()))
    };
    reader.attendance_by_time(&query, &mut count).unwrap();
    assert_eq!(found, 0);
}

#[test]
fn recorded_directions_alternate() {
    let mut door = Door::new(&["a"]);
    door.venue = venue(DirectionMode::Alternate);
    for (minutes, recorded) in [(0, true), (4, false), (30, true), (30, true), (300, true)] {
        door.advance(minutes * 60);
        assert_eq!(door.sees_now("a"), recorded, "{minutes}");
    }
    let directions: Vec<_> =
        door.attendances().iter().map(|it| it.body.direction().unwrap()).collect();
    assert_eq!(directions, [Direction::In, Direction::Out, Direction::In, Direction::Out]);
    assert_eq!(door.counting().len(), 4);
}
