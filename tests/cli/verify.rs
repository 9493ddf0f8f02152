//! `rollcall verify`: a database, a file of messages, an export; and the example in Python.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a path is not general over lifetimes"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use crate::support::daemon::{DEVICE, Home, SITE};
use crate::support::door::{START_MS, visit};
use rollcall::app::delivery::checkpoint;
use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::ids::Origin;
use rollcall::keys::signer::SigningKey;
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::event::{self, Body, Camera, CameraState, NewEvent};
use serde_json::{Value, json};

fn origin() -> Origin {
    Origin { site: SITE.into(), device: DEVICE.into() }
}

fn open(state: &Path, clock: &Arc<SimulatedClock>) -> Store {
    let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(clock) as _);
    Store::open(state, options).unwrap().store
}

/// A door with a record, and the messages by which it was published.
struct Recorded {
    home: Home,
    clock: Arc<SimulatedClock>,
    lines: Vec<String>,
    key: String,
}

impl Recorded {
    fn new(count: usize) -> Self {
        let home = Home::new(1, "");
        let clock = Arc::new(SimulatedClock::at(START_MS));
        let store = open(&home.state(), &clock);
        let key = SigningKey::of_device(&home.state()).unwrap();
        for at in 0..count {
            clock.advance(Duration::from_secs(1));
            let event = if at % 7 == 3 {
                let state = CameraState::Lost;
                NewEvent::new(
                    clock.now(),
                    Body::Camera(Camera { state, reason: None, lost_ms: None }),
                )
            } else {
                let venue = if at % 2 == 0 { "room-a" } else { "room-b" };
                visit(&clock, venue, &format!("p{}", at % 5))
            };
            store.write(move |tx| tx.append_event(&event)).unwrap();
        }
        let (public, now) = (key.public().to_string(), clock.now());
        let signed = store.write(move |tx| checkpoint::sign(tx, &key, &origin(), &now)).unwrap();
        let token = signed.unwrap().1;
        let events = store.write(|tx| tx.events_after(0, 10_000)).unwrap();
        let mut lines: Vec<String> = events
            .iter()
            .map(|it| event::wire(it, &origin(), &clock.now(), &clock.boot_id()))
            .map(|it| String::from_utf8(it).unwrap())
            .collect();
        let watermark = json!({"schema": 1, "site": SITE, "device": DEVICE, "complete_through": "", "gaps": [], "checkpoint": token});
        lines.push(watermark.to_string());
        store.close().unwrap();
        Self { home, clock, lines, key: public }
    }

    fn verify(&self, args: &[&str]) -> (Option<i32>, Value) {
        let output = self.home.output(&[&["verify", "--json"], args].concat());
        let read = serde_json::from_slice(&output.stdout);
        (output.status.code(), read.unwrap_or_else(|error| panic!("{error}: {output:?}")))
    }

    /// Expects this fault.
    fn check(&self, args: &[&str], kind: &str, seq: i64) {
        let (code, report) = self.verify(args);
        let fault = &report["records"][0]["first_fault"];
        let found = (fault["kind"].as_str(), fault["seq"].as_i64());
        assert_eq!(found, (Some(kind), Some(seq)), "{args:?}: {report}");
        assert_eq!((code, &report["intact"]), (Some(65), &json!(false)), "{report}");
    }

    fn write(&self, name: &str, lines: &[String]) -> String {
        let path = self.home.path(name);
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.home.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn altered_database_is_reported_with_code_65() {
    let door = Recorded::new(20);
    let (code, report) = door.verify(&[]);
    assert_eq!((code, &report["intact"]), (Some(0), &json!(true)), "{report}");
    let record = &report["records"][0];
    assert_eq!((&record["checked"], &record["checkpoint"]["seq"]), (&json!(20), &json!(20)));
    let output = door.home.output(&["verify"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("20 events checked, 1 to 20") && text.contains("intact"), "{text}");
    let state = door.home.state();
    let database = rusqlite::Connection::open(state.join("rollcall.db")).unwrap();
    let alter = "update event set occurred_ms = occurred_ms - 3600000 where seq = 6";
    database.execute(alter, []).unwrap();
    drop(database);
    door.check(&["--database", state.to_str().unwrap()], "altered", 6);
    let output = door.home.output(&["verify"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("altered event 6"), "{text}");
}

#[test]
fn messages_in_a_file_are_checked() {
    let door = Recorded::new(20);
    // With the topics, as `mosquitto_sub -v` writes them, and other messages between.
    let mut lines: Vec<String> =
        door.lines.iter().map(|it| format!("rollcall/hq/door-1/x {it}")).collect();
    lines.insert(3, "rollcall/hq/door-1/status online".into());
    lines.insert(9, r#"rollcall/hq/door-1/health {"schema":1}"#.into());
    let file = door.write("all.jsonl", &lines);
    let (code, report) = door.verify(&["--jsonl", &file, "--key", &door.key]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["records"][0]["checkpoint"]["seq"], json!(20));
    let altered = |name: &str, alter: &dyn Fn(&mut Vec<String>)| {
        let mut lines = door.lines.clone();
        alter(&mut lines);
        door.write(name, &lines)
    };
    for (name, kind, seq, alter) in [
        (
            "altered",
            "altered",
            6,
            &(|it: &mut Vec<String>| {
                it[5] = it[5].replace("name of", "Name of");
            }) as &dyn Fn(&mut Vec<String>),
        ),
        ("time", "altered", 6, &|it| it[5] = it[5].replace("2026-11-23T07:58", "2026-11-23T06:58")),
        ("device", "removed", 6, &|it| it[5] = it[5].replace("door-1", "door-2")),
        ("removed", "removed", 6, &|it| drop(it.remove(5))),
        ("first", "removed", 1, &|it| drop(it.remove(0))),
        ("inserted", "inserted", 6, &|it| {
            it.insert(7, it[5].replace("\"event_id\":\"", "\"event_id\":\"0"));
        }),
        ("swapped", "swapped", 6, &|it| it.swap(5, 6)),
        ("truncated", "truncated", 20, &|it| drop(it.remove(19))),
    ] {
        let file = altered(name, alter);
        door.check(&["--jsonl", &file], kind, seq);
    }
    // The checkpoint kept elsewhere, as message and bare.
    let watermark = door.lines.last().unwrap().clone();
    let token = serde_json::from_str::<Value>(&watermark).unwrap()["checkpoint"].clone();
    let kept = [watermark, token.as_str().unwrap().to_owned()];
    let cut = door.write("cut.jsonl", &door.lines[..15]);
    assert_eq!(door.verify(&["--jsonl", &cut]).0, Some(0));
    for kept in kept {
        let kept = door.write("kept", &[kept]);
        door.check(&["--jsonl", &cut, "--checkpoint", &kept], "truncated", 16);
    }
    // Of another device.
    let other = tempfile::tempdir().unwrap();
    let other = SigningKey::of_device(other.path()).unwrap().public().to_string();
    let (code, report) = door.verify(&["--jsonl", &file, "--key", &other]);
    assert_eq!(code, Some(65), "{report}");
    // Attendance alone; and a copy that begins later.
    let is_attendance = |it: &&String| it.contains("\"kind\":\"attendance\"");
    let kept: Vec<String> = door.lines.iter().filter(is_attendance).cloned().collect();
    let some = door.write("attendance.jsonl", &kept);
    assert_eq!(door.verify(&["--jsonl", &some, "--only-attendance"]).0, Some(0));
    door.check(&["--jsonl", &some], "removed", 4);
    let late = door.write("late.jsonl", &door.lines[10..]);
    assert_eq!(door.verify(&["--jsonl", &late, "--from", "11"]).0, Some(0));
    door.check(&["--jsonl", &late], "removed", 1);
}

fn python(file: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/verify.py");
    Command::new("python3").arg("-B").arg(script).arg(file).output().expect("python3")
}

#[test]
fn example_in_python_agrees() {
    let door = Recorded::new(30);
    let file = door.write("all.jsonl", &door.lines);
    let output = python(&file);
    let text = String::from_utf8_lossy(&output.stdout);
    let newest = serde_json::from_str::<Value>(&door.lines[29]).unwrap();
    let hash = newest["chain"]["hash"].as_str().unwrap();
    assert!(output.status.success() && text.trim_end().ends_with(hash), "{output:?}");
    for (at, from, to) in [
        (11, "name of", "Name of"),
        (11, "\"frames\":4", "\"frames\":5"),
        (11, "\"score\":0.713", "\"score\":0.714"),
        (11, "2026-11-23T07:58", "2026-11-23T06:58"),
    ] {
        let mut lines = door.lines.clone();
        assert!(lines[at].contains(from), "{}", lines[at]);
        lines[at] = lines[at].replacen(from, to, 1);
        let file = door.write("altered.jsonl", &lines);
        let output = python(&file);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{from}");
        assert!(text.starts_with(&format!("event {} ", at + 1)), "{from}: {text}");
    }
    let mut lines = door.lines.clone();
    lines.remove(11);
    let output = python(&door.write("removed.jsonl", &lines));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("event 13 "), "{output:?}");
}

fn export(door: &Recorded, args: &[&str]) -> Vec<String> {
    let output = door.home.output(&[&["attendance", "--csv"], args].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn export_is_compared_with_its_proof() {
    let door = Recorded::new(30);
    let proof = door.path("proof");
    let lines = export(&door, &["--venue", "room-a", "--proof", &proof]);
    let csv = door.write("all.csv", &lines);
    // Nothing of the other room is in the proof, but its hashes.
    let text = fs::read_to_string(&proof).unwrap();
    assert!(text.contains("room-a") && !text.contains("room-b") && text.lines().count() == 31);
    let args = ["--export", &csv, "--proof", &proof];
    let (code, report) = door.verify(&args);
    assert_eq!(code, Some(0), "{report}");
    let record = &report["records"][0];
    assert!(record["links_only"].as_u64().unwrap() > 10, "{report}");
    // Lines 3 and 4 are events 5 and 7.
    for (kind, seq, alter) in [
        (
            "altered",
            5,
            &(|it: &mut Vec<String>| it[3] = it[3].replace("name of", "Name of"))
                as &dyn Fn(&mut Vec<String>),
        ),
        ("altered", 5, &|it| it[3] = it[3].replacen("07:58", "06:58", 1)),
        ("altered", 5, &|it| it[3] = it[3].replace("room-a", "room-b")),
        ("removed", 5, &|it| drop(it.remove(3))),
        ("inserted", 6, &|it| it.insert(4, it[3].replacen('5', "6", 1))),
        ("swapped", 5, &|it| it.swap(3, 4)),
    ] {
        let mut lines = lines.clone();
        alter(&mut lines);
        door.write("all.csv", &lines);
        door.check(&args, kind, seq);
    }
    let mut cut = lines.clone();
    let last = cut.pop().unwrap();
    let seq = last.split(',').next().unwrap().parse().unwrap();
    door.write("all.csv", &cut);
    door.check(&args, "truncated", seq);
    // The proof itself.
    door.write("all.csv", &lines);
    for (from, to) in [("\"frames\":4", "\"frames\":3"), ("\"content\":\"", "\"content\":\"A")] {
        fs::write(&proof, text.replacen(from, to, 1)).unwrap();
        assert_eq!(door.verify(&args).0, Some(65), "{from}");
    }
    let output = door.home.output(&["attendance", "--csv", "--proof", &proof]);
    assert!(!output.status.success(), "never overwritten");
}

#[test]
fn export_is_compared_with_the_database() {
    let door = Recorded::new(30);
    let mut lines = export(&door, &["--separator", ";", "--bom"]);
    let csv = door.write("all.csv", &lines);
    assert_eq!(door.verify(&["--export", &csv]).0, Some(0));
    lines[3] = lines[3].replace("name of", "Name of");
    door.write("all.csv", &lines);
    door.check(&["--export", &csv], "altered", 3);
}

#[test]
fn restored_device_continues_its_chain() {
    let door = Recorded::new(10);
    let backup = door.home.path("backup");
    door.home.json(&["backup", backup.to_str().unwrap(), "--json"]);
    // What was recorded after the backup is lost with the device.
    let append = |state: &PathBuf| {
        let store = open(state, &door.clock);
        door.clock.advance(Duration::from_secs(1));
        let event = visit(&door.clock, "room-a", "p1");
        store.write(move |tx| tx.append_event(&event)).unwrap();
        let event = store.write(|tx| tx.event(11)).unwrap().unwrap();
        store.close().unwrap();
        let sent = event::wire(&event, &origin(), &door.clock.now(), &door.clock.boot_id());
        String::from_utf8(sent).unwrap()
    };
    let lost = append(&door.home.state());
    let there = Home::new(1, "");
    let restored = there.output(&["restore", backup.to_str().unwrap()]);
    assert!(restored.status.success(), "{restored:?}");
    let new = append(&there.state());
    let report = there.json(&["verify", "--json"]);
    assert_eq!(report["records"][0]["checked"], json!(11), "{report}");
    // Who has both histories sees two events with one number.
    let mut lines = door.lines[..10].to_vec();
    lines.push(lost);
    lines.push(new);
    let both = door.write("both.jsonl", &lines);
    door.check(&["--jsonl", &both], "inserted", 11);
}

#[test]
fn nothing_to_check_is_no_success() {
    let door = Recorded::new(3);
    let file = door.write("empty.jsonl", &["{\"schema\":1}".to_owned()]);
    let output = door.home.output(&["verify", "--jsonl", &file]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = door.home.output(&["verify", "--jsonl", &file, "--mongo"]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}
