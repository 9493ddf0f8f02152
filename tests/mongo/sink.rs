//! Store, relay and sink against a real mongod: what was recorded is there, once, whatever happens
//! on the way.
//!
//! By hand, at full size: `E2E_EVENTS=10000 E2E_KILLS=5 E2E_STALL_S=600 cargo nextest run --test
//! mongo sink:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::door;
use std::time::Duration;

use crate::support::door::{Door, START_MS, name_of, scaled, settings, until};
use crate::support::mongod::Mongod;
use crate::support::proxy::Proxy;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use rollcall::attend::venue::{DirectionMode, SessionSpec, Venue, VenueSpec};
use rollcall::clock::{Clock as _, Stopwatch, time_zone};
use rollcall::health::MongoState;
use rollcall::ids::{Name, SubjectId};
use rollcall::mongo::{UriSource, settings_from};
use rollcall::wire::event::{
    Body, Camera, CameraState, Enrolment, EnrolmentAction, NewEvent, SubjectRef,
};

fn ids(documents: &[Document]) -> Vec<String> {
    documents.iter().map(|it| it.get_str("_id").unwrap().to_owned()).collect()
}

fn find<'a>(documents: &'a [Document], id: &str) -> &'a Document {
    documents.iter().find(|it| it.get_str("_id").is_ok_and(|it| it == id)).unwrap()
}

// What is written

#[test]
fn mongodb_outage_delivers_each_event_once() {
    let events = scaled("E2E_EVENTS", 1_000);
    let mut server = Mongod::start();
    server.kill_all();
    let door = Door::new("door-1", &server.uri());
    let expected = door.visits(events);
    let running = door.start();
    running.until_state(MongoState::Away);
    server.run_all();
    let watch = Stopwatch::start();
    door.store.deliver_now();
    door.until_nothing_is_owed();
    println!("{events} events drained in {:.2} s", watch.elapsed().as_secs_f64());
    running.stop();
    assert_eq!(ids(&server.all("attendance")), expected);
    let stats = server.command(doc! { "collStats": "attendance" });
    door.store.close().unwrap();
    println!(
        "{} bytes in the device's database; collStats: size {:?}, storage {:?}, indexes {:?}",
        std::fs::metadata(door.path("rollcall.db")).unwrap().len(),
        stats.get("size"),
        stats.get("storageSize"),
        stats.get("totalIndexSize")
    );
}

#[test]
fn documents_match_the_contract() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let id = door.visit("room", "ada");
    door.deliver();
    let at = DateTime::from_millis(START_MS);
    let expected = doc! {
        "_id": &id, "site": "hq", "schema": 1_i64, "seq": 1_i64, "kind": "attendance", "device": "door-1",
        "venue": "room", "session": Bson::Null, "subject": { "id": "ada", "name": name_of("ada") }, "direction": "in",
        "status": "present", "occurred_at": at, "clock": "synced", "boot_id": door.clock.boot_id().as_str(),
        "boottime_ms": 1_000_i64, "score": 0.713, "threshold": 0.42, "frames": 4_i64, "track_ms": 610_i64,
        "latency_ms": 84_i64, "expires_at": DateTime::from_millis(START_MS + 30_000),
    };
    let mut found = server.all("attendance").remove(0);
    assert!(matches!(found.remove("chain"), Some(Bson::Document(_))));
    assert_eq!(found.len(), expected.len());
    for (key, value) in &expected {
        assert_eq!(found.remove(key).as_ref(), Some(value), "{key}");
    }
    let venue = server.all("venues").remove(0);
    assert_eq!(venue.get_str("name").unwrap(), "The room");
    assert_eq!(venue.get_array("attendance").unwrap(), &[Bson::from(name_of("ada"))]);
    assert_eq!(
        venue.get_document("schedule").unwrap(),
        &doc! { "sessions": [{ "start": "08:00" }] }
    );
    let indexes = server.command(doc! { "listIndexes": "attendance" });
    let keys: Vec<&Document> = indexes
        .get_document("cursor")
        .unwrap()
        .get_array("firstBatch")
        .unwrap()
        .iter()
        .map(|it| it.as_document().unwrap().get_document("key").unwrap())
        .collect();
    assert_eq!(
        keys[1..],
        [&doc! { "venue": 1, "occurred_at": 1 }, &doc! { "subject.id": 1, "occurred_at": 1 }]
    );
}

fn enrolment(door: &Door, action: EnrolmentAction, id: &str, name: &str) {
    door.clock.advance(Duration::from_secs(1));
    let subject = SubjectRef { id: SubjectId::new(id).unwrap(), name: Name::new(name).unwrap() };
    let body = Enrolment {
        action,
        subject: Some(subject),
        references: 1,
        request_id: None,
        consent: None,
        reason: None,
    };
    door.append(&NewEvent::new(door.clock.now(), Body::Enrolment(body)));
}

#[test]
fn subjects_follow_enrolments_and_erasures() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let other = Door::new("door-2", &server.uri());
    enrolment(&door, EnrolmentAction::Enrolled, "ada", "$ada");
    enrolment(&door, EnrolmentAction::Enrolled, "bob", "Bob");
    // a second later by its clock, delivered first
    enrolment(&other, EnrolmentAction::Enrolled, "ada", "an older name");
    enrolment(&door, EnrolmentAction::Renamed, "ada", "Ada");
    enrolment(&door, EnrolmentAction::Withdrawn, "bob", "Bob");
    other.deliver();
    door.deliver();
    let subjects = server.all("subjects");
    let ada = find(&subjects, "ada");
    assert_eq!(ada.get_str("name").unwrap(), "Ada");
    assert_eq!(ada.get_datetime("enrolled_at").unwrap().timestamp_millis(), START_MS + 1_000);
    assert_eq!(ada.get_array("devices").unwrap(), &["door-1", "door-2"].map(Bson::from));
    assert!(find(&subjects, "bob").get_array("devices").unwrap().is_empty());

    // Erased: taken out of everything, though another door delivered it; who comes back later is
    // new.
    door.clock.advance(Duration::from_mins(1));
    let theirs = other.visit("room", "ada");
    let ours = door.visit("room", "ada");
    let bobs = door.visit("room", "bob");
    other.deliver();
    door.clock.advance(Duration::from_mins(1));
    door.store.write(|tx| tx.erase_subject(&SubjectId::new("ada").unwrap())).unwrap();
    door.clock.advance(Duration::from_mins(1));
    enrolment(&door, EnrolmentAction::Enrolled, "ada", "Another Ada");
    let again = door.visit("room", "ada");
    door.deliver();
    let found = server.all("attendance");
    for id in [&ours, &theirs] {
        assert_eq!(find(&found, id).get("subject"), Some(&Bson::Null));
    }
    assert!(find(&found, &bobs).get_document("subject").is_ok());
    assert!(find(&found, &again).get_document("subject").is_ok());
    assert_eq!(find(&server.all("subjects"), "ada").get_str("name").unwrap(), "Another Ada");
    let venue = server.all("venues").remove(0);
    let names: Vec<&str> =
        venue.get_array("attendance").unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert_eq!(
        names,
        [name_of("bob"), name_of("ada")],
        "the names that were erased are gone, the new one is there"
    );
}

#[test]
fn predecessor_database_is_used_in_place() {
    let server = Mongod::start();
    let known = ObjectId::new();
    let unknown = ObjectId::new();
    let before = doc! { "_id": known, "name": "Hall", "course": { "code": "B-7" }, "attendance": ["Grace", "Alan"] };
    server.command(doc! { "insert": "venues", "documents": [before.clone()] });
    let door = Door::new("door-1", &server.uri());
    let note = rollcall::mongo::VenueRecord {
        id: known.to_hex(),
        name: "as we call it".into(),
        schedule: None,
        direction: DirectionMode::In,
        re_entry_gap: Duration::ZERO,
        date_time: None,
    };
    *door.venues.lock().unwrap() = vec![note];
    for venue in [&known, &unknown] {
        door.visit(&venue.to_hex(), "ada");
        door.visit(&venue.to_hex(), "ada");
    }
    door.deliver();
    let venues = server.all("venues");
    assert_eq!(venues.len(), 2, "no second document for either");
    // As its reader asked: by ObjectId, for the names.
    let find =
        doc! { "find": "venues", "filter": { "_id": known }, "projection": { "attendance": 1 } };
    let found =
        server.command(find).get_document("cursor").unwrap().get_array("firstBatch").unwrap()[0]
            .clone();
    let names = found.as_document().unwrap().get_array("attendance").unwrap().clone();
    assert_eq!(names, ["Grace", "Alan", &name_of("ada")].map(Bson::from));
    for key in ["name", "course"] {
        assert_eq!(venues[0].get(key), before.get(key), "{key} is its own");
    }
    assert_eq!(venues[1].get_object_id("_id").unwrap(), unknown);
}

// Two doors

#[test]
fn one_person_at_two_devices_counts_once() {
    let server = Mongod::start();
    let doors = ["door-1", "door-2"].map(|name| Door::new(name, &server.uri()));
    let first = doors[0].visit("room", "ada");
    doors[1].clock.advance(Duration::from_millis(700));
    let second = doors[1].visit("room", "ada");
    let other = doors[1].visit("room", "bob");
    for door in &doors {
        door.clock.advance(Duration::from_mins(6));
    }
    let later = doors[1].visit("room", "ada");
    // Both at once, as doors do.
    let running = doors.each_ref().map(Door::start);
    doors.iter().for_each(Door::until_nothing_is_owed);
    running.into_iter().for_each(door::Running::stop);
    let found = server.all("attendance");
    assert_eq!(found.len(), 4, "each door's event stays as evidence");
    assert_eq!(find(&found, &second).get_str("superseded_by").unwrap(), first);
    for id in [&first, &other, &later] {
        assert!(find(&found, id).get("superseded_by").is_none());
    }
    let venue = server.all("venues").remove(0);
    assert_eq!(venue.get_array("attendance").unwrap().len(), 2);
    // As docs/operations.md gives it to those who read the record.
    let from = DateTime::from_millis(START_MS - 86_400_000);
    let to = DateTime::from_millis(START_MS + 86_400_000);
    let record = server.command(doc! { "aggregate": "attendance", "cursor": {}, "pipeline": [
        { "$match": { "venue": "room", "occurred_at": { "$gte": from, "$lt": to }, "superseded_by": null,
            "subject": { "$ne": null } } },
        { "$sort": { "occurred_at": 1 } },
        { "$group": { "_id": { "subject": "$subject.id", "session": "$session", "direction": "$direction" },
            "name": { "$last": "$subject.name" }, "first": { "$first": "$occurred_at" },
            "last": { "$last": "$occurred_at" }, "status": { "$first": "$status" }, "door": { "$first": "$device" } } },
        { "$sort": { "_id.session": 1, "first": 1 } },
    ] });
    let rows = record.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let rows: Vec<&Document> = rows.iter().filter_map(Bson::as_document).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].get_str("name").unwrap(), name_of("ada"));
    assert_eq!(rows[0].get_str("door").unwrap(), "door-1");
    assert_eq!(rows[0].get_datetime("first").unwrap().timestamp_millis(), START_MS);
    assert_eq!(rows[1].get_str("name").unwrap(), name_of("bob"));
}

// The clock

#[test]
fn unsynced_events_are_corrected_in_mongodb() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let other = Door::new("door-2", &server.uri());
    door.clock.set_wall(912_345, false);
    let mut visits = Vec::new();
    for number in 0..10 {
        door.clock.advance(Duration::from_mins(10));
        visits.push(door.visit("room", &format!("p{number}")));
        if number == 4 {
            door.deliver(); // the first half is there with the wrong time
        }
    }
    let boot_ms = |number: i64| 1_000 + (number + 1) * 600_000;
    let now_boot_ms = boot_ms(9);
    door.clock.set_wall(START_MS, true);
    // At the other door the last of them was seen a minute before, by a clock that was right.
    other.clock.set_wall(START_MS - 60_000, true);
    let earlier = other.visit("room", "p9");
    other.deliver();
    let now = door.clock.now();
    assert_eq!(
        door.store.write(move |tx| tx.correct_times(&now, &[Venue::plain("room")])).unwrap(),
        10
    );
    door.deliver();
    let found = server.all("attendance");
    assert_eq!(found.len(), 11);
    for (number, id) in visits.iter().enumerate() {
        let document = find(&found, id);
        let right_ms = START_MS - (now_boot_ms - boot_ms(number as i64));
        assert_eq!(
            document.get_datetime("occurred_at").unwrap().timestamp_millis(),
            right_ms,
            "visit {number}"
        );
        assert_eq!(document.get_str("clock").unwrap(), "corrected");
    }
    assert_eq!(
        door.store.write(|tx| tx.delivery_status()).unwrap().seq,
        20,
        "each visit and its correction, once"
    );
    // Looked at again, now that its time is known.
    assert_eq!(find(&found, &visits[9]).get_str("superseded_by").unwrap(), earlier);
    assert!(find(&found, &visits[8]).get("superseded_by").is_none());
}

#[test]
fn reordered_corrections_keep_current_state() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    // START_MS is two minutes before it begins.
    let session = SessionSpec {
        id: "mon-am".into(),
        weekdays: vec!["mon".into()],
        start: "08:00".into(),
        end: "12:00".into(),
        late_after_ms: Some(600_000),
        ..SessionSpec::default()
    };
    let spec =
        VenueSpec { sessions: vec![session], time_zone: "UTC".into(), ..VenueSpec::plain("room") };
    let venue = Venue::new(&spec, time_zone("UTC").unwrap()).unwrap();
    door.clock.advance(Duration::from_hours(1));
    door.clock.set_wall(912_345, false);
    let later = door.visit("room", "ada");
    door.deliver();
    door.clock.advance(Duration::from_mins(1));
    door.clock.set_wall(START_MS + 30 * 60_000, true);
    let now = door.clock.now();
    let venues = [venue.clone()];
    assert_eq!(door.store.write(move |tx| tx.correct_times(&now, &venues)).unwrap(), 1);
    // Its time is put right, but that does not arrive.
    server.command(doc! { "collMod": "attendance", "validator": { "clock": "unsynced" } });
    door.deliver();
    assert_eq!(door.dead_letters().len(), 1);
    server.command(doc! { "collMod": "attendance", "validator": {} });
    // Then it turns out that she came earlier, so that the other counts: that arrives first.
    let mut event = door::visit(&door.clock, "room", "ada");
    event.occurred = event.occurred.at_boottime(event.occurred.boottime_ms - 26 * 60_000);
    let Body::Attendance(body) = &mut event.body else { unreachable!() };
    body.session = venue.session_at(event.occurred.wall_ms).map(|it| it.id);
    let earlier = event.event_id.to_string();
    door.store.write(move |tx| tx.append_attendance(&venue, &event)).unwrap();
    door.deliver();
    let check = || {
        assert_eq!(
            find(&server.all("attendance"), &later).get_str("superseded_by").unwrap(),
            earlier
        );
    };
    check();
    assert_eq!(door.retry_dead_letters(), 1);
    door.deliver();
    check();
}

// Kills

/// Records, waits until half of it is delivered, and pulls the plug on a node; gives how long
/// delivery stood still.
fn kill_under_load(
    server: &mut Mongod,
    door: &Door,
    node: usize,
    share: usize,
    expected: &mut Vec<String>,
) -> Duration {
    expected.extend(door.visits(share));
    until("it drains", || (door.pending() <= share as u64 / 2).then_some(()));
    server.kill(node);
    let left = door.pending();
    assert!(left > 0, "it was killed under load");
    let watch = Stopwatch::start();
    if server.nodes() > 1 {
        until("another takes over", || (door.pending() < left).then_some(()));
    }
    let still = watch.elapsed();
    server.run_all();
    still
}

fn killed_again_and_again(mut server: Mongod) {
    let events = scaled("E2E_EVENTS", 2_000);
    let kills = scaled("E2E_KILLS", 2);
    let mut door = Door::new("door-1", &server.uri());
    let share = events / kills;
    door.window = (share / 60).max(1);
    let running = door.start();
    let mut expected = Vec::new();
    for _ in 0..kills {
        let primary = server.until_primary();
        let still = kill_under_load(&mut server, &door, primary, share, &mut expected);
        println!("killed under load; until another took over: {:.1} s", still.as_secs_f64());
    }
    door.until_nothing_is_owed();
    running.stop();
    assert_eq!(ids(&server.all("attendance")), expected);
    assert!(door.dead_letters().is_empty());
}

#[test]
fn killing_mongod_while_draining_loses_nothing() {
    killed_again_and_again(Mongod::start());
}

#[test]
fn killing_primary_under_load_loses_nothing() {
    killed_again_and_again(Mongod::start_set(3));
}

// Documents that are not taken

#[test]
fn poison_document_is_dead_lettered_alone() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let rule = doc! { "subject.id": { "$ne": "mallory" } };
    server.command(doc! { "create": "attendance", "validator": rule });
    let good = door.visit("room", "ada");
    door.clock.advance(Duration::from_secs(1));
    let poison = door.visit("room", "mallory");
    door.clock.advance(Duration::from_secs(1));
    let also_good = door.visit("room", "bob");
    door.deliver();
    assert_eq!(ids(&server.all("attendance")), [good.clone(), also_good.clone()]);
    let buried = door.dead_letters();
    assert!(buried.len() == 1 && buried[0].contains("code 121"), "{buried:?}");
    assert!(!buried[0].contains("mallory"), "a reason bears no names");
    // Once the rule is gone it may be tried again.
    server.command(doc! { "collMod": "attendance", "validator": {} });
    assert_eq!(door.retry_dead_letters(), 1);
    door.deliver();
    assert_eq!(ids(&server.all("attendance")), [good, poison, also_good]);
}

#[test]
fn duplicate_key_counts_as_delivered_if_present() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    // Delivered before, by a door that called its site otherwise.
    let there = door.visit("room", "ada");
    let elsewhere = doc! { "_id": &there, "site": "old", "venue": "room", "seq": 0 };
    // And somebody's own idea of what may be there only once.
    let index = doc! { "name": "once", "key": { "track_ms": 1, "venue": 1 }, "unique": true };
    server.command(doc! { "insert": "attendance", "documents": [elsewhere] });
    server.command(doc! { "createIndexes": "attendance", "indexes": [index] });
    door.visit("room", "bob");
    door.visit("room", "carol");
    door.visit("hall", "carol");
    door.deliver();
    assert_eq!(server.count("attendance"), 3);
    let buried = door.dead_letters();
    assert!(
        buried.len() == 1 && buried[0].contains("code 11000") && !buried[0].contains("room"),
        "{buried:?}"
    );
}

#[test]
fn invalid_venue_document_blocks_only_itself() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    server.command(
        doc! { "insert": "venues", "documents": [{ "_id": "hall", "attendance": "nobody" }] },
    );
    door.visit("hall", "ada");
    door.visit("room", "bob");
    door.deliver();
    assert_eq!(server.count("attendance"), 2, "the attendance itself is there");
    assert!(
        door.dead_letters()[0].starts_with("the venue hall rejects the name: code 2"),
        "{:?}",
        door.dead_letters()
    );
}

#[test]
fn rejected_erasure_is_dead_lettered_alone() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    server.command(
        doc! { "create": "attendance", "validator": { "subject": { "$type": "object" } } },
    );
    let ada = door.visit("room", "ada");
    enrolment(&door, EnrolmentAction::Enrolled, "ada", "Ada");
    door.deliver();
    door.clock.advance(Duration::from_mins(1));
    door.store.write(|tx| tx.erase_subject(&SubjectId::new("ada").unwrap())).unwrap();
    let bob = door.visit("room", "bob");
    door.deliver();
    assert_eq!(ids(&server.all("attendance")), [ada.clone(), bob]);
    let buried = door.dead_letters();
    assert!(buried.len() == 1 && buried[0].contains("code 121"), "{buried:?}");
    server.command(doc! { "collMod": "attendance", "validator": {} });
    assert_eq!(door.retry_dead_letters(), 1);
    door.deliver();
    assert_eq!(find(&server.all("attendance"), &ada).get("subject"), Some(&Bson::Null));
}

#[test]
fn foreign_unique_index_dead_letters_only_conflicts() {
    let server = Mongod::start();
    let mut door = Door::new("door-1", &server.uri());
    door.window = 2; // less than there is in the way
    let once = || doc! { "name": "once", "key": { "name": 1 }, "unique": true };
    for collection in ["subjects", "venues"] {
        server.command(doc! { "createIndexes": collection, "indexes": [once()] });
    }
    enrolment(&door, EnrolmentAction::Enrolled, "ada-1", "Ada");
    enrolment(&door, EnrolmentAction::Enrolled, "ada-2", "Ada");
    enrolment(&door, EnrolmentAction::Withdrawn, "ada-2", "Ada");
    enrolment(&door, EnrolmentAction::Enrolled, "ada-3", "Ada");
    enrolment(&door, EnrolmentAction::Enrolled, "bob", "Bob");
    // Venues without a name, of which the index lets in one.
    for venue in ["one", "two", "two", "two"] {
        door.clock.advance(Duration::from_mins(10));
        door.visit(venue, "bob");
    }
    door.visit("room", "bob");
    door.deliver();
    let subjects: Vec<String> = ids(&server.all("subjects"));
    assert_eq!(subjects, ["ada-1", "bob"]);
    assert_eq!(server.count("attendance"), 5);
    let buried = door.dead_letters();
    assert!(buried.len() == 5 && buried.iter().all(|it| it.contains("code 11000")), "{buried:?}");
    assert!(buried.iter().all(|it| !it.contains("Ada")), "{buried:?}");
    for collection in ["subjects", "venues"] {
        server.command(doc! { "dropIndexes": collection, "index": "once" });
    }
    assert_eq!(door.retry_dead_letters(), 5);
    door.deliver();
    assert!(door.dead_letters().is_empty());
    assert_eq!(server.all("subjects").len(), 4);
    assert_eq!(server.all("venues").len(), 3);
}

#[test]
fn delivery_works_without_own_indexes() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    // With that of `_id` as many as a collection may have.
    let index =
        |number: i32| doc! { "name": format!("i{number}"), "key": { format!("f{number}"): 1 } };
    server.command(
        doc! { "createIndexes": "attendance", "indexes": (0..63).map(index).collect::<Vec<_>>() },
    );
    let first = door.visit("room", "ada");
    door.clock.advance(Duration::from_secs(1)); // ids sort by time
    door.deliver();
    // Too large to be looked through in the time of one call.
    let data = doc! { "failCommands": ["find"], "errorCode": 50 };
    server.admin(0, doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data });
    let second = door.visit("room", "bob");
    door.deliver();
    server.admin(0, doc! { "configureFailPoint": "failCommand", "mode": "off" });
    assert_eq!(ids(&server.all("attendance")), [first, second]);
    assert!(door.dead_letters().is_empty());
}

// A server that refuses, is ill, or says nothing

/// The least that the daemon needs; `docs/operations.md` has the same.
fn make_door_user(server: &Mongod) {
    let on = |collection: &str, actions: &[&str]| {
        doc! { "resource": { "db": "rollcall", "collection": collection }, "actions": actions }
    };
    let role = doc! {
        "createRole": "door",
        "privileges": [
            on("attendance", &["find", "insert", "update", "createIndex"]),
            on("venues", &["find", "insert", "update"]),
            on("subjects", &["find", "insert", "update", "remove"]),
            on("devices", &["find", "insert", "update"]),
        ],
        "roles": [],
    };
    server.command(role);
    server.command(doc! { "createUser": "door", "pwd": "right", "roles": ["door"] });
    server.command(doc! { "createUser": "reader", "pwd": "right", "roles": ["read"] });
}

fn as_user(server: &Mongod, who: &str) -> String {
    server.uri_as(&format!("{who}@")) + "&authSource=rollcall"
}

/// What it says of a server.
fn doctor(door: &Door) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let examined =
        runtime.block_on(rollcall::mongo::examine(&door.settings, door.clock.now().wall_ms));
    format!("{examined:?}")
}

#[test]
fn wrong_password_or_role_loses_nothing() {
    let server = Mongod::start_with_users();
    make_door_user(&server);
    let mut door = Door::new("door-1", &as_user(&server, "door:wrong"));
    let expected = door.visits(3);
    for (who, word) in [("door:wrong", "refuses access"), ("reader:right", "may not insert")] {
        door.settings = settings(&as_user(&server, who), Duration::from_secs(10));
        let running = door.start();
        running.until_state(MongoState::Refused);
        running.stop();
        assert_eq!(door.pending(), 3, "{who}");
        assert!(door.dead_letters().is_empty());
        let said = doctor(&door);
        assert!(
            said.starts_with("Fault") && said.contains(word) && !said.contains("wrong\""),
            "{said}"
        );
    }
    door.settings = settings(&as_user(&server, "door:right"), Duration::from_secs(10));
    enrolment(&door, EnrolmentAction::Enrolled, "p1", "Somebody");
    door.store.write(|tx| tx.erase_subject(&SubjectId::new("p1").unwrap())).unwrap();
    let running = door.start();
    running.until_state(MongoState::Connected);
    door.until_nothing_is_owed();
    running.stop();
    assert!(door.dead_letters().is_empty());
    assert_eq!(ids(&server.all("attendance")), expected);
    let note = rollcall::mongo::DeviceRecord {
        site: "hq".into(),
        device: "door-1".into(),
        complete_through_ms: Some(START_MS),
        last_seen_ms: START_MS,
        seq: 3,
        gaps: Vec::new(),
        checkpoint: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(door.link().put_device(&note)).unwrap();
    assert_eq!(
        server.all("devices")[0].get_datetime("complete_through").unwrap().timestamp_millis(),
        START_MS
    );
    door.clock.set_wall(
        rollcall::clock::SystemClock::new(rollcall::clock::Trust::Always).now().wall_ms,
        true,
    );
    assert!(doctor(&door).starts_with("Good"), "{}", doctor(&door));
    // A role taken away while it runs, and given back.
    door.clock.set_wall(START_MS + 86_400_000, true);
    let running = door.start();
    server.command(doc! { "revokeRolesFromUser": "door", "roles": ["door"] });
    let more = door.visits(2);
    running.until_state(MongoState::Refused);
    server.command(doc! { "grantRolesToUser": "door", "roles": ["door"] });
    door.until_nothing_is_owed();
    running.until_state(MongoState::Connected);
    running.stop();
    assert_eq!(ids(&server.all("attendance"))[3..], more);
}

fn camera(door: &Door) -> i64 {
    door.clock.advance(Duration::from_secs(1));
    let body = Body::Camera(Camera { state: CameraState::Lost, reason: None, lost_ms: None });
    door.append(&NewEvent::new(door.clock.now(), body))
}

#[test]
fn local_event_does_not_change_mongo_state() {
    let mut server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let running = door.start();
    door.visit("room", "ada");
    running.until_state(MongoState::Connected);
    door.until_nothing_is_owed();
    server.kill_all();
    // Somebody else finds out that it is away.
    door.health.set_mongo(MongoState::Away, door.clock.now().wall_ms);
    camera(&door);
    door.until_nothing_is_owed();
    assert_eq!(running.state(), Some(MongoState::Away));
    running.stop();
}

#[test]
fn tls_requires_trusted_server_certificate() {
    let server = Mongod::start_with_tls();
    let with = |ca: &str| {
        let uri = format!("mongodb://127.0.0.1:{}/?replicaSet=rs0&tls=true", server.port(0));
        let ca_file = Some(server.path(ca));
        let source = UriSource {
            uri,
            database: "rollcall".into(),
            venues_collection: "venues".into(),
            ca_file,
            tls: true,
            timeout: Duration::from_secs(2),
            window: 500,
        };
        settings_from(source).unwrap().unwrap()
    };
    let mut door = Door::with("door-1", with("other.pem"));
    let expected = door.visits(3);
    let said = doctor(&door);
    assert!(said.starts_with("Warning") && said.contains("certificate"), "{said}");
    door.settings = with("ca.pem");
    door.deliver();
    assert_eq!(ids(&server.all("attendance")), expected);
}

#[test]
fn failing_server_is_retried_until_healthy() {
    let server = Mongod::start();
    let door = Door::new("door-1", &server.uri());
    let mut expected = door.visits(1);
    door.deliver();
    let fail = |data: Document, mode: Bson| {
        server.admin(0, doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data });
    };
    let always = || Bson::from("alwaysOn");
    for (what, data) in [
        ("full", doc! { "failCommands": ["update"], "errorCode": 14031 }),
        ("slow", doc! { "failCommands": ["update", "find"], "errorCode": 262 }),
        ("stepping down", doc! { "failCommands": ["update"], "errorCode": 189 }),
        ("hanging up", doc! { "failCommands": ["update"], "closeConnection": true }),
        ("unable to read", doc! { "failCommands": ["find"], "errorCode": 91 }),
        (
            "without a majority",
            doc! { "failCommands": ["update"],
            "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } },
        ),
    ] {
        fail(data, always());
        let running = door.start();
        expected.extend(door.visits(3));
        running.until_state(MongoState::Away);
        assert_eq!(door.pending(), 3, "{what}");
        fail(doc! { "failCommands": ["update"] }, "off".into());
        door.until_nothing_is_owed();
        running.until_state(MongoState::Connected);
        running.stop();
        assert!(door.dead_letters().is_empty(), "{what}");
    }
    assert_eq!(ids(&server.all("attendance")), expected);
}

#[test]
fn stalled_connection_is_replaced() {
    let stall = Duration::from_secs(scaled("E2E_STALL_S", 4) as u64);
    let server = Mongod::start();
    let proxy = Proxy::to(server.port(0));
    let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", proxy.port());
    let door = Door::with("door-1", settings(&uri, Duration::from_secs(1)));
    let mut expected = door.visits(5);
    door.deliver();
    let running = door.start();
    proxy.stall(true);
    let watch = Stopwatch::start();
    expected.extend(door.visits(5));
    running.until_state(MongoState::Away);
    assert!(
        watch.elapsed() < Duration::from_secs(20),
        "every call ends in time: {:?}",
        watch.elapsed()
    );
    while watch.elapsed() < stall {
        // The door goes on recording meanwhile.
        expected.extend(door.visits(1));
        std::thread::sleep(Duration::from_millis(200).min(stall));
    }
    proxy.stall(false);
    door.until_nothing_is_owed();
    running.until_state(MongoState::Connected);
    running.stop();
    assert_eq!(ids(&server.all("attendance")), expected);
}
