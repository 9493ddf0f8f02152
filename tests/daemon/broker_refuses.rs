//! A broker that accepts the device and refuses its messages: nothing counts as delivered, every
//! place says so, and everything arrives when the rules are corrected. With both versions of MQTT.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::daemon::{Home, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mosquitto::Mosquitto;

const REFUSES: &str = "the broker accepts our connection and refuses our messages: access rules";
const OFFICE: [&str; 4] = ["-u", "office", "-P", "secret"];

fn rules(door: &str) -> String {
    format!("user office\ntopic readwrite #\nuser door-1\n{door}\n")
}

fn broker(door: &str) -> Mosquitto {
    Mosquitto::with_rules(&rules(door), &["door-1", "office"])
}

/// A session that collects what is published, whoever is connected.
fn collect(broker: &Mosquitto, more: &[&str]) -> String {
    let session = [
        "-c",
        "-i",
        "collector",
        "-t",
        "rollcall/hq/door-1/event/+",
        "-t",
        "rollcall/hq/door-1/reply/+",
    ];
    let heard = broker.subscribe(&[&OFFICE[..], &session, &["-v"], more].concat());
    String::from_utf8(heard.stdout).unwrap()
}

fn get(home: &Home, path: &str) -> String {
    let log = home.log();
    let line = log.lines().rfind(|line| line.contains("http listening")).unwrap();
    let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn pending(status: &Value) -> &Value {
    status["owed"].as_array().unwrap().iter().find(|it| it["sink"] == "mqtt").unwrap()
}

fn refused_messages_stay_pending(version: &str, door: &str) {
    let broker = broker(door);
    collect(&broker, &["-E"]);
    let more = format!(
        "user = \"door-1\"\npassword = \"secret\"\nversion = \"{version}\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
    );
    let home = Home::new(broker.port(), &more);
    let daemon = home.start();
    let person = Faces::find().people.remove(0);
    let mut command = enrolment("ann", "Ann", &person.enrol[..1]);
    command["request_id"] = "r-1".into();
    let payload = serde_json::to_vec(&command).unwrap();
    broker.publish_payload("rollcall/hq/door-1/command/enrol", &payload, &OFFICE);
    until("the enrolment is recorded", || (!home.events().is_empty()).then_some(()));

    let health = until("the health message says so", || {
        let health: Value =
            serde_json::from_str(get(&home, "/api/health").split("\r\n\r\n").nth(1)?).ok()?;
        (health["mqtt"]["state"] == "refused").then_some(health)
    });
    let reason = health["mqtt"]["reason"].as_str().unwrap();
    assert!(reason.starts_with(REFUSES), "{reason}");
    assert!(health["mqtt"]["refused_topic"].as_str().unwrap().starts_with("rollcall/hq/door-1/"));
    let status = until("the message is at the socket too", || {
        let status = home.json(&["sync", "--status", "--json"]);
        pending(&status)["fault"].is_string().then_some(status)
    });
    assert!(pending(&status)["rows"].as_u64().unwrap() >= 2, "event and reply: {status}");
    assert!(pending(&status)["fault"].as_str().unwrap().starts_with(REFUSES), "{status}");
    let metrics = get(&home, "/metrics");
    assert!(metrics.contains("rollcall_mqtt_state{state=\"refused\"} 1"), "{metrics}");
    assert!(!metrics.contains("rollcall_mqtt_refused_total 0\n"), "{metrics}");
    let doctor: Value = serde_json::from_slice(&home.output(&["doctor", "--json"]).stdout).unwrap();
    assert_eq!(doctor["good"], false);
    assert!(doctor.to_string().contains(REFUSES), "{doctor}");
    assert!(home.log().contains("refuses our messages"), "{}", home.log());

    fs::write(broker.path("acl"), rules("topic readwrite #")).unwrap();
    broker.reload();
    // At once; else it would be within a minute.
    until("everything is delivered", || {
        let status = home.json(&["sync", "--json"]);
        (pending(&status)["rows"] == 0).then_some(())
    });
    let heard = collect(&broker, &["-C", "2"]);
    assert!(heard.contains("event/enrolment "), "{heard}");
    assert!(heard.contains("reply/r-1 "), "{heard}");
    until("the health message says that too", || {
        let health = get(&home, "/api/health");
        let version = if version == "auto" { "5" } else { version };
        let expected = format!("\"mqtt\":{{\"state\":\"connected\",\"version\":\"{version}\"");
        health.contains(&expected).then_some(())
    });
    assert!(daemon.terminate().success());
}

#[test]
fn forbidden_messages_stay_pending_with_mqtt_5() {
    refused_messages_stay_pending("5", "topic read #");
}

#[test]
fn forbidden_messages_stay_pending_with_mqtt_3() {
    refused_messages_stay_pending("3.1.1", "topic read #");
}

#[test]
fn pattern_one_level_short_is_noticed() {
    refused_messages_stay_pending("auto", "topic read #\npattern write rollcall/hq/%u/+");
}

fn revoked_password_keeps_messages_pending(version: &str) {
    const REJECTED: &str = "the broker does not authorise this device";
    let broker = broker("topic readwrite #");
    collect(&broker, &["-E"]);
    let more = format!(
        "user = \"door-1\"\npassword = \"secret\"\nversion = \"{version}\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
    );
    let home = Home::new(broker.port(), &more);
    let daemon = home.start();
    until("the link is up", || home.log().contains("MQTT link is up").then_some(()));

    broker.change_password("door-1", "another");
    let person = Faces::find().people.remove(0);
    let photograph = person.enrol[0].to_str().unwrap();
    let enrol = ["enrol", "--id", "ann", "--name", "Ann", "--json", photograph];
    home.json(&enrol);

    let health = until("the health message says so", || {
        let health: Value =
            serde_json::from_str(get(&home, "/api/health").split("\r\n\r\n").nth(1)?).ok()?;
        (health["mqtt"]["state"] == "refused").then_some(health)
    });
    let reason = health["mqtt"]["reason"].as_str().unwrap();
    assert!(reason.starts_with(REJECTED), "{reason}");
    let status = until("the message is at the socket too", || {
        let status = home.json(&["sync", "--status", "--json"]);
        pending(&status)["fault"].is_string().then_some(status)
    });
    assert!(pending(&status)["rows"].as_u64().unwrap() >= 1, "{status}");
    assert!(pending(&status)["fault"].as_str().unwrap().contains(REJECTED), "{status}");
    let metrics = get(&home, "/metrics");
    assert!(metrics.contains("rollcall_mqtt_state{state=\"refused\"} 1"), "{metrics}");
    let doctor: Value = serde_json::from_slice(&home.output(&["doctor", "--json"]).stdout).unwrap();
    assert_eq!(doctor["good"], false);
    assert!(doctor.to_string().contains(REJECTED), "{doctor}");
    assert!(home.log().contains(REJECTED), "{}", home.log());

    broker.change_password("door-1", "secret");
    until("nothing is pending", || {
        (pending(&home.json(&["sync", "--json"]))["rows"] == 0).then_some(())
    });
    // The broker kept it for the session.
    let heard = collect(&broker, &["-C", "1"]);
    assert!(heard.contains("event/enrolment "), "{heard}");
    assert!(daemon.terminate().success());
}

#[test]
fn revoked_password_keeps_messages_pending_with_mqtt_5() {
    revoked_password_keeps_messages_pending("5");
}

#[test]
fn revoked_password_keeps_messages_pending_with_mqtt_3() {
    revoked_password_keeps_messages_pending("3.1.1");
}

#[test]
fn events_and_replies_have_properties_of_mqtt_5() {
    let broker = Mosquitto::start();
    let form = "%t|%C|%D|%P";
    let session = ["-V", "5", "-x", "600", "-c", "-i", "collector", "-F", form];
    let topics = ["-t", "rollcall/hq/door-1/event/+", "-t", "rollcall/hq/door-1/reply/+"];
    broker.subscribe(&[&session[..], &topics, &["-E"]].concat());
    let home = Home::new(broker.port(), "version = \"5\"\n");
    let daemon = home.start();
    let person = Faces::find().people.remove(0);
    let mut command = enrolment("ann", "Ann", &person.enrol[..1]);
    command["request_id"] = "r-1".into();
    let payload = serde_json::to_vec(&command).unwrap();
    until("the link is up", || home.log().contains("MQTT link is up").then_some(()));
    broker.publish_payload("rollcall/hq/door-1/command/enrol", &payload, &[]);
    until("the person is enrolled", || {
        let status = home.json(&["sync", "--status", "--json"]);
        (home.events().len() == 1 && pending(&status)["rows"] == 0).then_some(())
    });
    let heard = broker.subscribe(&[&session[..], &topics, &["-C", "2"]].concat());
    let heard = String::from_utf8(heard.stdout).unwrap();
    let event_id = &home.events()[0].1;
    let common = "schema:1 site:hq device:door-1";
    let event = format!(
        "rollcall/hq/door-1/event/enrolment|application/json||{common} kind:enrolment event_id:{event_id}"
    );
    let reply = format!("rollcall/hq/door-1/reply/r-1|application/json|r-1|{common}");
    let mut lines: Vec<&str> = heard.lines().map(str::trim).collect();
    lines.sort_unstable();
    assert_eq!(lines, [event, reply]);
    assert!(daemon.terminate().success());
}
