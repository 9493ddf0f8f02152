//! `/metrics` of a running daemon: people pass the replay camera, and what is counted is what was
//! recorded and delivered.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::client::Client;
use crate::support::daemon::{Home, PATIENCE, until};
use crate::support::exposition::Exposed;
use crate::support::faces::{Faces, Person, enrolment};
use crate::support::mosquitto::Mosquitto;
use serde_json::json;

const STAGES: &str = "rollcall_stage_duration_seconds";
const ACKNOWLEDGED: [(&str, &str); 2] = [("sink", "mqtt"), ("outcome", "acknowledged")];
const TOKEN: &str = "a-token-for-those-who-scrape";

const HTTP: &str =
    "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\nper_minute_max = 1000000\n";

const CAMERA: &str = "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 2\nshow = \"2500ms\"\ngap = \"500ms\"\n\
                      pace = \"networks\"\n[attendance]\nunknown_every = \"0s\"\n[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n";

/// Where the daemon says that it listens.
fn address(home: &Home) -> SocketAddr {
    let log = home.log();
    let line = log.lines().rfind(|line| line.contains("http listening")).unwrap();
    let rest = line.split_once("address=").unwrap().1;
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// Status, head and body.
fn get(address: SocketAddr, token: Option<&str>) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let shown = token.map_or_else(String::new, |it| format!("Authorization: Bearer {it}\r\n"));
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n{shown}Connection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn scrape(address: SocketAddr) -> Exposed {
    let (status, head, body) = get(address, Some(TOKEN));
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    Exposed::read(&body)
}

fn write_token(home: &Home) {
    fs::write(home.path("token"), TOKEN).unwrap();
    fs::set_permissions(home.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// What is so at the end of a visit: the last scrape, and what the database holds that is new.
struct Outcome {
    said: Exposed,
    /// Kinds of the events since the start.
    events: Vec<String>,
}

fn enrol(client: &Client, home: &Home, people: &[Person]) {
    let running = client.started(home);
    for person in people {
        let body = enrolment(&person.id, &format!("Name of {}", person.id), &person.enrol);
        assert_eq!(client.request("enrol", &format!("enrol-{}", person.id), body)["ok"], true);
    }
    // What this one still owed, the next would deliver.
    client.await_health("everything is delivered", |it| {
        it["outbox"][0]["rows"] == 0 && it["gallery"]["subjects"] == people.len()
    });
    assert!(running.terminate().success());
}

/// Until every frame was looked at and everything is delivered.
fn replayed(
    client: &Client,
    home: &Home,
    address: SocketAddr,
    before: usize,
    photograph: &Path,
) -> Outcome {
    let mut last = scrape(address);
    until("the replay has ended", || {
        let now = scrape(address);
        for name in now.kinds.keys().filter(|name| name.ends_with("_total")) {
            let was = last.find(name, &[]);
            let is = now.find(name, &[]);
            assert!(was <= is, "{name} fell from {was:?} to {is:?}");
        }
        last = now;
        let is_taken_up = last.count(STAGES, &[("stage", "wait")]) > 0.0;
        let ended = last.value("rollcall_camera_state", &[("state", "absent")]) > 0.0;
        (is_taken_up && ended).then_some(())
    });
    // Answered after the last frame was looked at; and not counted among them.
    let image = faces::base64(photograph);
    assert_eq!(client.request("recognise", "r-1", json!({"image": image}))["ok"], true);
    let events: Vec<String> = home.events().split_off(before).into_iter().map(|it| it.2).collect();
    let said = until("the events and the answer are delivered, and that has been counted", || {
        let now = scrape(address);
        let delivered =
            now.value("rollcall_deliveries_total", &ACKNOWLEDGED) >= events.len() as f64 + 1.0;
        (delivered && now.find("rollcall_outbox_rows", &[("sink", "mqtt")]) == Some(0.0))
            .then_some(now)
    });
    Outcome { said, events }
}

#[test]
fn metrics_equal_recorded_and_delivered_events() {
    let faces = Faces::find();
    let people = &faces.people[..faces.people.len().min(3)];
    let strangers = &faces.impostors[..faces.impostors.len().min(2)];
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    enrol(&client, &home, people);
    let before = home.events().len();
    let mut list = String::from("file,show_ms,gap_ms\n");
    let probes =
        people.iter().map(|it| &it.probes[0]).chain(strangers).chain(faces.empty_scenes.first());
    probes.for_each(|file| writeln!(list, "{}", file.display()).unwrap());
    fs::write(home.path("visits.csv"), list).unwrap();
    write_token(&home);
    home.configure(broker.port(), &format!("{CAMERA}{HTTP}"));
    let daemon = home.start();
    let address = address(&home);
    let Outcome { said, events } = replayed(&client, &home, address, before, &people[0].probes[0]);

    let of_kind = |kind: &str| events.iter().filter(|it| *it == kind).count() as f64;
    let attendances = of_kind("attendance");
    let unknown = of_kind("unknown");
    let attacks = of_kind("attack");
    assert!(attendances >= 2.0 && unknown >= 1.0, "{events:?}");
    let total = |name: &str| said.value(&format!("rollcall_{name}_total"), &[]);
    let stage = |stage: &str| said.count(STAGES, &[("stage", stage)]);
    let decided =
        |decision: &str| said.value("rollcall_decisions_total", &[("decision", decision)]);
    for (what, counted, expected) in [
        ("attendances", total("attendances_recorded"), attendances),
        ("their latencies", said.count("rollcall_attendance_latency_seconds", &[]), attendances),
        ("unknown", decided("unknown"), unknown),
        (
            "decisions",
            said.count("rollcall_decision_duration_seconds", &[]),
            decided("identified") + unknown,
        ),
        ("records", stage("record"), decided("identified") + unknown + attacks),
        ("frames taken up", stage("wait"), total("frames_captured")),
        ("frames glanced at", stage("glance"), total("frames_analysed")),
        ("frames detected", stage("detect"), total("frames_detected")),
        ("frames decoded", stage("decode"), total("frames_detected")),
        ("whole frames", stage("frame"), total("frames_detected")),
        ("templates", stage("template"), total("templates_made")),
        (
            "acknowledged",
            said.value("rollcall_deliveries_total", &ACKNOWLEDGED),
            events.len() as f64 + 1.0,
        ),
        ("published", total("events_published"), events.len() as f64),
        ("commands", total("commands"), 1.0),
        ("enrolled", said.value("rollcall_gallery_subjects", &[]), people.len() as f64),
        ("connected", said.value("rollcall_mqtt_connected", &[]), 1.0),
        ("outdated", said.value("rollcall_gallery_outdated_subjects", &[]), 0.0),
        ("errors", total("engine_errors") + total("store_errors"), 0.0),
    ] {
        assert!((counted - expected).abs() < 0.5, "{what}: {counted}, and not {expected}");
    }
    assert!(said.count("rollcall_delivery_duration_seconds", &[("sink", "mqtt")]) >= 1.0);
    assert!(said.count("rollcall_store_commit_duration_seconds", &[]) >= attendances);
    assert!(stage("identify") >= 1.0 && stage("identify") <= stage("template"));
    let spent = |stage: &str| said.value(&format!("{STAGES}_sum"), &[("stage", stage)]);
    let parts = ["decode", "detect", "refine", "liveness", "template", "identify"].map(spent);
    assert!(spent("frame") >= parts.iter().sum::<f64>() * 0.99, "{parts:?} of {}", spent("frame"));
    let text = get(address, Some(TOKEN)).2;
    assert!(people.iter().all(|it| !text.contains(&it.id)), "nobody is named");
    assert!(daemon.terminate().success());
}

#[test]
fn metrics_need_the_token() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), HTTP);
    write_token(&home);
    let daemon = home.start();
    let address = address(&home);
    for token in [None, Some("a-token-of-somebody-else"), Some("")] {
        let (status, _, body) = get(address, token);
        assert_eq!(status, 401, "{token:?}");
        assert!(!body.contains("rollcall_"), "{body}");
    }
    let said = scrape(address);
    let refused =
        said.value("rollcall_http_requests_total", &[("route", "/metrics"), ("status", "401")]);
    assert!((refused - 3.0).abs() < 0.5, "{refused}");
    assert!((said.count("rollcall_http_request_duration_seconds", &[]) - 3.0).abs() < 0.5);
    assert!(daemon.terminate().success());
}
