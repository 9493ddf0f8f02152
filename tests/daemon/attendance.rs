//! Attendance from end to end: a venue put by command, visits to its session, the record read back;
//! and visits before anybody knew the time.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{DEVICE, Home, SITE, until};
use crate::support::faces::{base64, demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::app::delivery::mqtt_sink::MqttSink;
use rollcall::app::maintenance::Maintenance;
use rollcall::app::pipeline::recorder::{Visit, record_visit};
use rollcall::app::state::gallery::GalleryCell;
use rollcall::app::state::venues::VenueRegistry;
use rollcall::attend::venue::{Door, SessionSpec, Venue, VenueSpec};
use rollcall::clock::{Clock, SimulatedClock, time_zone};
use rollcall::health::Health;
use rollcall::ids::{Name, Origin, SubjectId};
use rollcall::mqtt::link;
use rollcall::mqtt::settings::LinkSettings;
use rollcall::mqtt::topics::Topics;
use rollcall::recognise::gallery::Gallery;
use rollcall::store::relay::{RelaySettings, relay};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::event::SubjectRef;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Every day, begun twenty minutes ago in Lord Howe, late after ten minutes.
fn session_that_runs() -> Value {
    let zone = time_zone("Australia/Lord_Howe").unwrap();
    let time = |minutes: i64| {
        let at = jiff::Timestamp::now() + jiff::Span::new().minutes(minutes);
        at.to_zoned(zone.clone()).strftime("%H:%M").to_string()
    };
    json!({"id": "now", "weekdays": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
           "start": time(-20), "end": time(180), "late_after_ms": 600_000, "early_ms": 0})
}

#[test]
fn venue_put_applies_at_once_and_persists() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[[venue]]\nid = \"main\"\n");
    let daemon = client.started(&home);
    for (id, photograph) in [("obama", "obama.jpg"), ("biden", "biden.jpg")] {
        let enrolled = client.request(
            "enrol",
            &format!("e-{id}"),
            enrolment(id, &format!("+{id}"), &[demo(photograph)]),
        );
        assert_eq!(enrolled["ok"], true, "{enrolled}");
    }
    let venue = json!({"venue": "room-b", "time_zone": "Australia/Lord_Howe", "sessions": [session_that_runs()]});
    check_refusals(&client, &venue);
    let shown = |answer: &Value| json!({"image": answer, "venue": "room-b"});
    let photograph = Value::from(base64(&demo("obama2.jpg")));
    assert_eq!(
        client.request("attend", "v-0", shown(&photograph))["error"]["code"],
        "unknown_venue"
    );

    let put = client.request("venue_put", "p-6", venue.clone());
    assert_eq!((&put["ok"], &put["replaced"]), (&json!(true), &json!(false)), "{put}");
    let session = put["next_session"]["session"].as_str().unwrap();
    let visit = client.request("attend", "v-1", shown(&photograph));
    assert_eq!(visit["recorded"], json!(["+obama"]), "{visit}");
    let event = client.await_one("the attendance", |it| it.part == "event/attendance").json();
    assert_eq!(event["session"], session);
    assert_eq!(
        (&event["status"], &event["venue"], &event["direction"]),
        (&json!("late"), &json!("room-b"), &json!("in"))
    );
    assert_eq!(visit.get("already_recorded"), None, "{visit}");
    let again = client.request("attend", "v-2", shown(&photograph));
    let record = json!([{"subject_id": "obama", "direction": "in", "session": session,
                         "recorded_at": event["occurred_at"]}]);
    assert_eq!(
        (&again["recorded"], &again["already_recorded"]),
        (&json!([]), &record),
        "once a session, and by which record"
    );

    let wanted = json!({"venue": "room-b", "summary": true, "absent": true, "from": put["next_session"]["starts_at"]});
    let summary = client.request("attendance", "a-1", wanted.clone());
    let row = &summary["rows"][0];
    assert_eq!(
        (&row["subject"]["id"], &row["status"], &row["session"]),
        (&json!("obama"), &json!("late"), &json!(session))
    );
    let late_min = row["late_ms"].as_i64().unwrap() / 60_000;
    assert!((19..60).contains(&late_min), "{row}");
    assert_eq!(row["first_in"], event["occurred_at"]);
    assert_eq!(summary["rows"].as_array().unwrap().len(), 1, "nobody is called absent: {summary}");
    assert_eq!(
        summary["not_known"][0]["session"], session,
        "the door came up after the session began"
    );
    assert_eq!(summary["time_zone"], "Australia/Lord_Howe");
    assert!(daemon.terminate().success());

    check_after_restart(&client, &home, &shown(&photograph), &wanted["from"], session);
    client.check_events(&home);
}

fn check_after_restart(client: &Client, home: &Home, visit: &Value, from: &Value, session: &str) {
    let daemon = client.started(home);
    let venues = client.request("venues", "l-1", json!({}));
    let reported: Vec<_> = venues["venues"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (&it["venue"], &it["source"], &it["door"]))
        .collect();
    assert_eq!(
        reported,
        [
            (&json!("main"), &json!("config"), &json!(true)),
            (&json!("room-b"), &json!("command"), &json!(false))
        ]
    );
    assert_eq!(
        client.request("attend", "v-3", visit.clone())["recorded"],
        json!([]),
        "after the restart too"
    );
    let other = json!({"image": base64(&demo("biden.jpg")), "venue": "room-b"});
    let biden = client.request("attend", "v-4", other);
    assert_eq!(biden["recorded"], json!(["+biden"]));
    let first = json!({"venue": "room-b", "summary": true, "limit": 1, "from": from});
    let page = client.request("attendance", "a-2", first);
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["next_after"]), (1, &json!(1)));
    check_command_line(home, session);
    assert_eq!(client.request("venue_delete", "d-1", json!({"venue": "room-b"}))["ok"], true);
    assert_eq!(
        client.request("venue_delete", "d-2", json!({"venue": "room-b"}))["error"]["code"],
        "unknown_venue"
    );
    assert_eq!(
        client.request("venue_delete", "d-3", json!({"venue": "main"}))["error"]["field"],
        "venue"
    );
    assert_eq!(client.request("attend", "v-5", visit.clone())["error"]["code"], "unknown_venue");
    assert!(daemon.terminate().success());
}

fn check_refusals(client: &Client, venue: &Value) {
    let refused = |id: &str, key: &str, value: Value, field: &str| {
        let mut body = venue.clone();
        body[key] = value;
        let answer = client.request("venue_put", id, body);
        let reported = (&answer["error"]["code"], &answer["error"]["field"]);
        assert_eq!(reported, (&json!("bad_value"), &json!(field)), "{answer}");
    };
    refused("p-1", "time_zone", "Europe/Atlantis".into(), "time_zone");
    refused("p-2", "time_zone", "../../../etc/passwd".into(), "time_zone");
    refused("p-3", "venue", "main".into(), "venue");
    refused("p-4", "re_entry_gap_ms", 86_400_001.into(), "re_entry_gap_ms");
    refused(
        "p-5",
        "sessions",
        json!([{"id": "x", "dates": ["2026-02-30"], "start": "08:00", "end": "09:00"}]),
        "sessions[0].dates",
    );
}

/// Beside the running daemon.
fn check_command_line(home: &Home, session: &str) {
    let out = |args: &[&str]| String::from_utf8(home.output(args).stdout).unwrap();
    let list = home.json(&["attendance", "--venue", "room-b", "--json"]);
    assert_eq!((list.as_array().unwrap().len(), &list[0]["session"]), (2, &json!(session)));
    let local = list[0]["local_time"].as_str().unwrap();
    assert!(["+11:00", "+10:30"].iter().any(|offset| local.ends_with(offset)), "{local}");
    let csv = out(&["attendance", "--venue", "room-b", "--csv"]);
    assert!(csv.contains(",obama,'+obama,"), "a name is no formula: {csv}");
    // Two days, whatever day it is there.
    let day = |days: i64| (jiff::Timestamp::now() + jiff::Span::new().hours(24 * days)).to_string();
    let from = day(-1);
    let to = day(1);
    let summary = ["attendance", "--venue", "room-b", "--summary", "--from", &from, "--to", &to];
    let table = out(&summary);
    assert!(
        table.contains(session) && table.contains("+obama") && table.contains(" late "),
        "{table}"
    );
    let reported = home.json(&[&summary[..], &["--absent", "--json"]].concat());
    assert_eq!(
        (reported["rows"].as_array().unwrap().len(), reported["next_after"].is_null()),
        (2, true),
        "{reported}"
    );
    assert!(
        reported["not_known"].as_array().unwrap().iter().any(|it| it["session"] == session),
        "{reported}"
    );
    let csv = out(&[&summary[..], &["--csv"]].concat());
    assert!(
        csv.starts_with("date,session,subject,name,status,first_in,") && csv.lines().count() == 3,
        "{csv}"
    );
    let venues = home.json(&["venues", "--json"]);
    assert_eq!(
        (&venues[0]["venue"], &venues[1]["sessions"][0]["id"]),
        (&json!("main"), &json!("now"))
    );
    assert!(out(&["venues"]).contains("Australia/Lord_Howe"));
    let dry = home.json(&["prune", "--days", "1", "--dry-run", "--json"]);
    assert_eq!((&dry["old"], &dry["deleted"]), (&json!(0), &json!(0)));
    let refused = home.output(&["prune", "--days", "1"]);
    assert_eq!(refused.status.code(), Some(74));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("daemon is running"), "{refused:?}");
}

#[test]
fn prune_deletes_old_events_while_stopped() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[storage]\nkeep_days = 30\n");
    let daemon = client.started(&home);
    assert_eq!(
        client.request("enrol", "e-1", enrolment("obama", "B", &[demo("obama.jpg")]))["ok"],
        true
    );
    client.await_one("the enrolment", |it| it.part == "event/enrolment");
    assert!(daemon.terminate().success());
    let database = || rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    let older = "update event set occurred_ms = occurred_ms - 31 * 86400000; delete from checksum";
    database().execute_batch(older).unwrap();
    let dry = home.json(&["prune", "--dry-run", "--json"]);
    assert_eq!((&dry["old"], &dry["deleted"], home.events().len()), (&json!(1), &json!(0), 1));
    assert_eq!(home.json(&["prune", "--json", "--days", "40"])["deleted"], 0);
    assert_eq!(home.json(&["prune", "--json"])["deleted"], 1);
    assert_eq!(home.events().len(), 0);
}

#[test]
fn coverage_is_recorded_while_watching() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    // Without a camera it watches while it runs.
    let home = Home::new(broker.port(), "");
    let rows = || {
        let database = rusqlite::Connection::open(home.state().join("rollcall.db")).ok()?;
        let mut query =
            database.prepare("select from_ms, to_ms from observation order by row").ok()?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        Some(rows.map(Result::unwrap).collect::<Vec<(i64, i64)>>())
    };
    let daemon = client.started(&home);
    until("it has begun to watch", || rows().filter(|rows| rows.len() == 1));
    assert!(daemon.terminate().success());
    let first = rows().unwrap()[0];
    assert!(first.1 > first.0, "a clean stop writes the end down");
    // A replay that has ended watches nothing any more.
    let replay = format!(
        "[camera]\nsource = \"replay\"\npath = \"{}\"\nshow = \"2500ms\"\ngap = \"500ms\"\n",
        demo("astronaut.png").display()
    );
    home.configure(broker.port(), &replay);
    let daemon = client.started(&home);
    client.await_health("the replay has ended", |health| health["camera"]["state"] == "absent");
    let second = until("the end of the replay", || rows().filter(|rows| rows.len() == 2))[1];
    client.await_health("some time later", |_| true);
    client.await_health("and later", |_| true);
    assert!(daemon.terminate().success());
    let rows = rows().unwrap();
    assert_eq!((rows.len(), rows[0]), (2, first));
    assert!(second.0 > first.1 && (500..60_000).contains(&(rows[1].1 - rows[1].0)), "{rows:?}");
}

/// Shifts the wall clock of a program by the seconds that stand in a file: what a board without a
/// battery does.
const WALL_SHIFT: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    const char *path = getenv("WALL_SHIFT_FILE");
    if (!failed && id == CLOCK_REALTIME && path) {
        char text[32] = {0};
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0 && read(file, text, sizeof text - 1) > 0) at->tv_sec += atoll(text);
        if (file >= 0) close(file);
    }
    return failed;
}
"#;

#[test]
fn daemon_started_in_1970_corrects_times() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let mut home = Home::new(broker.port(), "[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n");
    let [source, library, shift] = ["shift.c", "shift.so", "shift"].map(|name| home.path(name));
    fs::write(&source, WALL_SHIFT).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let fresh = home.path("shift.new");
    let set_clock = |seconds: i64| {
        // At once: a file that is being written shows another time in between.
        fs::write(&fresh, seconds.to_string()).unwrap();
        fs::rename(&fresh, &shift).unwrap();
    };
    set_clock(-jiff::Timestamp::now().as_second());
    let path = |path: &Path| path.display().to_string();
    home.environment =
        vec![("LD_PRELOAD".into(), path(&library)), ("WALL_SHIFT_FILE".into(), path(&shift))];
    let daemon = client.started(&home);
    assert_eq!(
        client.request("enrol", "e-1", enrolment("obama", "B", &[demo("obama.jpg")]))["ok"],
        true
    );
    let visit = json!({"venue": "main", "image": base64(&demo("obama2.jpg"))});
    // Less the second that the clock is set by.
    let began_ms = jiff::Timestamp::now().as_millisecond() - 1_000;
    for number in 0..10 {
        assert_eq!(
            client.request("attend", &format!("v-{number}"), visit.clone())["recorded"],
            json!(["B"])
        );
    }
    let received = |part: &str| client.received_on(part);
    until("all visits are delivered as they were", || {
        (received("event/attendance").len() == 10).then_some(())
    });
    let visits = received("event/attendance");
    let in_1970 = |event: &Value| event["occurred_at"].as_str().unwrap().starts_with("1970-01-01T");
    assert!(visits.iter().all(|it| it["clock"] == "unsynced" && in_1970(it)), "{visits:#?}");
    assert!(home.json(&["attendance", "--json"]).as_array().unwrap().iter().all(in_1970));

    let before_ms = jiff::Timestamp::now().as_millisecond();
    set_clock(0);
    // And the enrolment.
    until("each is corrected", || (received("event/correction").len() == 11).then_some(()));
    assert!(daemon.terminate().success());
    let corrected = home.json(&["attendance", "--json"]);
    for (visit, kept) in visits.iter().zip(corrected.as_array().unwrap()) {
        assert_eq!((&kept["event_id"], &kept["clock"]), (&visit["event_id"], &json!("corrected")));
        let reported = received("event/correction");
        let correction = reported.iter().find(|it| it["corrects"] == visit["event_id"]).unwrap();
        assert_eq!(
            (&correction["was"], &correction["occurred_at"]),
            (&visit["occurred_at"], &kept["occurred_at"])
        );
        let at: jiff::Timestamp = kept["occurred_at"].as_str().unwrap().parse().unwrap();
        assert!((began_ms..=before_ms).contains(&at.as_millisecond()), "{kept}");
    }
    assert_eq!(
        (corrected.as_array().unwrap().len(), home.events().len()),
        (10, 22),
        "none lost, none doubled"
    );
    client.check_events(&home);
}

/// Store, upkeep, relay and a real broker, with a clock that the test sets.
struct Device {
    store: Store,
    clock: Arc<SimulatedClock>,
    venues: Arc<VenueRegistry>,
    stop: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Device {
    fn start(port: u16, venue: Venue, wall_ms: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(wall_ms));
        clock.set_wall(wall_ms, false);
        let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&clock) as Arc<dyn Clock>);
        let store = Store::open(dir.path(), options).unwrap().store;
        let door = Door { venue: venue.id.clone(), direction: None, has_camera: false };
        let venues = Arc::new(VenueRegistry::new(vec![venue], door, &[]));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let topics = Topics::new(SITE, DEVICE).unwrap();
        let guard = runtime.enter();
        let (link, driver, mut events) =
            link::open(LinkSettings::new("127.0.0.1", port, "device", topics.status())).unwrap();
        drop(guard);
        let device_clock = || Arc::clone(&clock) as Arc<dyn Clock>;
        let origin = Origin { site: SITE.to_owned(), device: DEVICE.to_owned() };
        let health = Arc::new(Health::default());
        let sink = MqttSink { link, topics, origin, clock: device_clock(), health };
        runtime.spawn(driver.drive(stopped.clone()));
        runtime.spawn(async move { while events.recv().await.is_some() {} });
        runtime.spawn(relay(store.clone(), sink, stopped.clone(), RelaySettings::default()));
        let upkeep = Maintenance {
            store: store.clone(),
            clock: device_clock(),
            venues: Arc::clone(&venues),
            keep_days: None,
            gallery: Arc::new(GalleryCell::new(Gallery::default())),
            health: Arc::default(),
            changed: Arc::default(),
        };
        runtime.spawn(upkeep.run(stopped));
        Self { store, clock, venues, stop, runtime, dir }
    }

    fn sees(&self, id: &str) {
        let subject = SubjectRef { id: SubjectId::new(id).unwrap(), name: Name::new(id).unwrap() };
        let visit = Visit {
            subject,
            direction: None,
            score: 0.7,
            threshold: 0.5,
            frames: 3,
            track_ms: 1,
            latency_ms: 1,
        };
        let venue = self.venues.door();
        let clock = Arc::clone(&self.clock);
        let recorded = self.store.write(move |tx| {
            tx.put_subject(&visit.subject.id, &visit.subject.name)?;
            record_visit(tx, &venue, &visit, clock.now(), clock.as_ref())
        });
        assert!(recorded.unwrap().recorded().is_some());
    }
}

#[test]
fn unsynced_visits_are_corrected_over_mqtt() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let session = SessionSpec {
        id: "mon-am".into(),
        weekdays: vec!["mon".into()],
        start: "09:00".into(),
        end: "12:00".into(),
        late_after_ms: Some(600_000),
        ..SessionSpec::default()
    };
    let spec = VenueSpec {
        sessions: vec![session],
        time_zone: "Europe/Berlin".into(),
        ..VenueSpec::plain("room-a")
    };
    let venue = Venue::new(&spec, time_zone("Europe/Berlin").unwrap()).unwrap();
    let device = Device::start(broker.port(), venue, 0);
    for person in 0..10 {
        device.sees(&format!("p{person}"));
        device.clock.advance(Duration::from_mins(3));
    }
    let received = |part: &str| client.received_on(part);
    until("all visits are delivered as they were", || {
        (received("event/attendance").len() == 10).then_some(())
    });
    let visits = received("event/attendance");
    assert!(visits.iter().all(|it| it["clock"] == "unsynced" && it["session"].is_null()));
    assert!(
        visits.iter().all(|it| it["occurred_at"].as_str().unwrap().starts_with("1970-01-01T00:"))
    );
    // 09:25 in Berlin: the first passed at five to nine.
    let now_ms = "2026-11-23T08:25:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond();
    device.clock.set_wall(now_ms, true);
    until("each is corrected", || (received("event/correction").len() == 10).then_some(()));
    let corrections: BTreeMap<String, Value> = received("event/correction")
        .into_iter()
        .map(|it| (it["corrects"].as_str().unwrap().to_owned(), it))
        .collect();
    assert_eq!(corrections.len(), 10);
    for (person, visit) in visits.iter().enumerate() {
        let correction = &corrections[visit["event_id"].as_str().unwrap()];
        let occurred_ms = now_ms - (10 - person as i64) * 180_000;
        assert_eq!(correction["occurred_at"], rollcall::clock::rfc3339(occurred_ms));
        assert_eq!(
            (&correction["was"], &correction["clock"]),
            (&visit["occurred_at"], &json!("corrected"))
        );
        assert_eq!(
            (&correction["boot_id"], &correction["boottime_ms"]),
            (&visit["boot_id"], &visit["boottime_ms"])
        );
        assert_eq!(correction["session"], "2026-11-23T08:00Z/mon-am");
        assert_eq!(
            correction["status"],
            if person < 6 { "present" } else { "late" },
            "{correction}"
        );
    }
    let database = rusqlite::Connection::open(device.dir.path().join("rollcall.db")).unwrap();
    let kept = "select count(*) from event where kind = 'attendance' and clock = 'corrected' \
                and session = '2026-11-23T08:00Z/mon-am' and superseded_by is null and occurred_ms > 1795000000000";
    assert_eq!(database.query_row(kept, [], |row| row.get::<_, i64>(0)).unwrap(), 10);
    let events = client.events();
    assert!(events.keys().copied().eq(1..=20), "none lost, none doubled: {:?}", events.keys());
    device.stop.send_replace(true);
    device.runtime.shutdown_timeout(Duration::from_secs(2));
    device.store.close().unwrap();
}
