//! The daemon with a real broker and a real mongod: kills on both sides while it drains, what it
//! says meanwhile, and up to when the record is complete.
//!
//! By hand, at full size: `E2E_EVENTS=10000 E2E_KILLS=6 cargo nextest run --test daemon mongo::
//! --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::client;
use crate::support::daemon;
use crate::support::door;
use crate::support::faces;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{Home, scaled, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mongod::Mongod;
use crate::support::mosquitto::Mosquitto;
use mongodb::bson::{Document, doc};
use rollcall::clock::{Clock as _, SimulatedClock, Stopwatch, SystemClock, Trust, rfc3339};
use rollcall::store::{SinkName, Store, StoreOptions};
use serde_json::{Value, json};

fn now_ms() -> i64 {
    SystemClock::new(Trust::Always).now().wall_ms
}

/// Writes the URI where only its owner reads it.
fn keep_uri(home: &Home, uri: &str) {
    fs::write(home.path("uri"), uri).unwrap();
    fs::set_permissions(home.path("uri"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn home(broker: &Mosquitto, server: &Mongod, more: &str) -> Home {
    let home =
        Home::new(broker.port(), &format!("[mongo]\nuri_file = \"uri\"\ntimeout = \"5s\"\n{more}"));
    keep_uri(&home, &server.uri());
    home
}

/// Visits that were recorded before, a second apart, the last of them at `last_ms`; nothing of them
/// delivered yet.
fn recorded(home: &Home, count: usize, last_ms: i64) -> Vec<String> {
    let clock = Arc::new(SimulatedClock::at(last_ms - count as i64 * 1000));
    let options = StoreOptions::new(vec![SinkName::MQTT, SinkName::MONGO], Arc::clone(&clock) as _);
    let store = Store::open(&home.state(), options).unwrap().store;
    let mut events = Vec::with_capacity(count);
    for number in 0..count {
        clock.advance(Duration::from_secs(1));
        events.push(door::visit(&clock, "main", &format!("p{}", number % 20)));
    }
    let ids = events.iter().map(|it| it.event_id.to_string()).collect();
    store.write(move |tx| events.iter().try_for_each(|it| tx.append_event(it).map(drop))).unwrap();
    store.close().unwrap();
    ids
}

fn ids(documents: &[Document]) -> Vec<String> {
    documents.iter().map(|it| it.get_str("_id").unwrap().to_owned()).collect()
}

#[test]
fn kills_while_draining_lose_nothing() {
    let events = scaled("E2E_EVENTS", 2_000);
    let kills = scaled("E2E_KILLS", 3);
    let broker = Mosquitto::start();
    let mut server = Mongod::start();
    let home = home(&broker, &server, &format!("window = {}\n", (events / 40).min(50)));
    let expected = recorded(&home, events, now_ms() - 60_000);
    server.kill_all();
    let mut daemon = home.start();
    until("the daemon knows that MongoDB is away", || {
        home.log().contains("MongoDB is not reachable").then_some(())
    });
    server.run_all();
    let watch = Stopwatch::start();
    for kill in 0..kills {
        let wanted = (events * (kill + 1) / (kills + 2)) as u64;
        until("it drains", || (server.count("attendance") >= wanted).then_some(()));
        if kill % 2 == 0 {
            daemon.kill();
            daemon = home.start();
        } else {
            server.kill_all();
            server.run_all();
        }
    }
    until("everything is there", || (server.count("attendance") == events as u64).then_some(()));
    println!(
        "{events} events drained in {:.1} s, with {kills} kills",
        watch.elapsed().as_secs_f64()
    );
    until("everything is acknowledged", || (pending(&home)["rows"] == 0).then_some(()));
    assert_eq!(ids(&server.all("attendance")), expected);
    assert_eq!(pending(&home)["buried"], 0);
    assert!(daemon.terminate().success());
}

/// What MongoDB is owed, asked beside the daemon.
fn pending(home: &Home) -> Value {
    let status = home.json(&["sync", "--status", "--json"]);
    status["owed"].as_array().unwrap().iter().find(|it| it["sink"] == "mongo").unwrap().clone()
}

#[test]
fn watermark_never_exceeds_complete_record() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let mut server = Mongod::start();
    let home = home(&broker, &server, "");
    let last_ms = now_ms() - 120_000;
    recorded(&home, 3, last_ms);
    let first_ms = last_ms - 2_000;
    server.command(doc! { "create": "attendance", "validator": { "subject.id": { "$ne": "p1" } } });
    server.kill_all();
    let daemon = client.started(&home);
    let watermark = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        let reported = |it: &client::ReceivedMessage| {
            it.part == "watermark" && wanted(it.json()["complete_through"].as_str().unwrap())
        };
        client.await_one(what, reported).json()
    };
    // MongoDB is away: complete until just before the first that it has not.
    let reported = watermark("a watermark", &|_| true);
    assert_eq!(reported["complete_through"], rfc3339(first_ms - 1));
    assert_eq!(
        reported["gaps"][0]["reason"], "off",
        "nobody was watching before the daemon started: {reported}"
    );
    let health = client.await_health("MongoDB is away", |it| it["mongo"]["state"] == "away");
    assert_eq!(health["watermark"]["complete_through"], rfc3339(first_ms - 1));
    assert_eq!(health["watermark"]["held_back_by"], Value::Null);
    assert_eq!(pending(&home)["rows"], 3);

    // It comes, and takes all but one: up to that one it is complete.
    server.run_all();
    let answer = home.json(&["sync", "--json"]);
    assert_eq!(answer["ok"], true);
    let second_ms = last_ms - 1_000;
    watermark("complete up to what was set aside", &|it| it == rfc3339(second_ms - 1));
    let health =
        client.await_health("it says which", |it| it["watermark"]["held_back_by"]["seq"] == 2);
    assert_eq!(health["mongo"]["state"], "connected");
    let status = home.json(&["sync", "--status", "--json"]);
    assert_eq!(status["complete_through"], rfc3339(second_ms - 1));
    assert!(status["buried"][0]["reason"].as_str().unwrap().contains("code 121"), "{status}");
    let device = |server: &Mongod| server.all("devices").first().cloned();
    let complete = |it: &Document| {
        it.get_datetime("complete_through").is_ok_and(|at| at.timestamp_millis() == second_ms - 1)
    };
    let document = until("MongoDB is told", || device(&server).filter(complete));
    assert_eq!(document.get_str("_id").unwrap(), daemon::DEVICE);
    assert!(
        document.get_datetime("last_seen").is_ok()
            && !document.get_array("gaps").unwrap().is_empty()
    );

    // Put right, and tried again: complete up to shortly before now.
    server.command(doc! { "collMod": "attendance", "validator": {} });
    assert_eq!(home.json(&["sync", "--retry-buried", "--json"])["retried"], 1);
    watermark("complete beyond all of them", &|it| it > rfc3339(last_ms).as_str());
    assert_eq!(server.count("attendance"), 3);
    let reported_at = now_ms();
    let all: Vec<String> = client
        .received_on("watermark")
        .iter()
        .map(|it| it["complete_through"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        all.iter().all(|it| *it < rfc3339(reported_at - 25_000)),
        "what is still being looked at is not claimed: {all:?}"
    );
    assert!(all.is_sorted(), "{all:?}");
    let late = Client::connect_as(broker.port(), "late");
    late.await_one("the broker keeps it", |it| it.part == "watermark" && it.retained);
    assert!(daemon.terminate().success());
}

#[test]
fn doctor_and_check_config_know_mongodb() {
    let broker = Mosquitto::start();
    let mut server = Mongod::start();
    let home = home(&broker, &server, "");
    let finding = || {
        let output = home.output(&["doctor", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["part"] == "mongodb")
            .unwrap()
            .clone()
    };
    let good = finding();
    assert_eq!(good["state"], "good", "{good}");
    assert!(good["words"].as_str().unwrap().contains("replica set rs0 with 1 member"));
    server.kill_all();
    assert_eq!(finding()["state"], "warning");
    keep_uri(&home, "mongodb://127.0.0.1/?w=0");
    let output = home.output(&["check-config"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("[mongo] uri may not set w"),
        "{output:?}"
    );
}

#[test]
fn erasure_clears_mongodb_and_receipt_states_it() {
    let broker = Mosquitto::start();
    let server = Mongod::start();
    let home = home(&broker, &server, "");
    let daemon = home.start();
    let client = Client::connect(broker.port());
    let name = "Jørgen Überall";
    let person = Faces::find().people.remove(0);
    let enrolled = client.request("enrol", "e-1", enrolment("p-77", name, &person.enrol[..1]));
    assert_eq!(enrolled["ok"], true, "{enrolled}");
    let visit = json!({"venue": "main", "image": faces::base64(&person.enrol[0])});
    assert_eq!(client.request("attend", "a-1", visit)["recorded"], json!([name]));
    let everything = || {
        let listed = server.command(doc! { "listCollections": 1, "nameOnly": true });
        let collections = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        let names = collections
            .iter()
            .map(|it| it.as_document().unwrap().get_str("name").unwrap().to_owned());
        names
            .flat_map(|it| server.all(&it))
            .map(|it| format!("{it:?}"))
            .collect::<Vec<String>>()
            .join("\n")
    };
    until("MongoDB has them", || {
        (server.count("attendance") == 1 && everything().contains(name)).then_some(())
    });
    client.request("withdraw", "w-1", json!({"subject_id": "p-77", "erase": true}));
    let listed = until("the receipt is there", || {
        let listed = home.json(&["erasures", "--json"]);
        listed[0]["receipt"].is_string().then(|| listed[0].clone())
    });
    assert_eq!(listed["receipt"].as_str().unwrap().split('.').count(), 3, "{listed}");
    // At once: the receipt says that it has been done.
    let left = everything();
    assert!(!left.contains(name) && !left.contains("Jørgen") && !left.contains("p-77"), "{left}");
    assert!(!left.contains("Binary"), "no template was ever there: {left}");
    assert_eq!(server.count("attendance"), 1, "that somebody passed stays");
    fs::write(home.path("receipt"), listed["receipt"].as_str().unwrap()).unwrap();
    let shown = home.output(&["verify-receipt", home.path("receipt").to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("mongodb"), "{shown:?}");
    assert!(daemon.terminate().success());
}
