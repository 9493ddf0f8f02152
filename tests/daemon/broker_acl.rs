//! The access rules of `docs/mosquitto/rollcall.acl`, with a real mosquitto: a door works under
//! them, and nobody may do what is not theirs.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::daemon::{Home, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mosquitto::Mosquitto;

const USERS: [&str; 5] = ["door-1", "door-2", "office", "dashboard", "observer"];

fn broker() -> Mosquitto {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mosquitto/rollcall.acl");
    // Somebody who sees everything, for the test.
    let rules = fs::read_to_string(rules).unwrap() + "\nuser observer\ntopic readwrite #\n";
    Mosquitto::with_rules(&rules, &USERS)
}

fn publish(broker: &Mosquitto, user: &str, topic: &str, more: &[&str]) {
    broker.publish(&[&["-u", user, "-P", "secret", "-t", topic], more].concat());
}

/// What comes, at most for so many seconds.
fn received(broker: &Mosquitto, user: &str, topic: &str, more: &[&str]) -> Output {
    broker.subscribe(&[&["-u", user, "-P", "secret", "-t", topic], more].concat())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn acl_limits_publishing_to_own_topics() {
    let broker = broker();
    let cases = [
        ("door-1", "rollcall/hq/door-1/status", true),
        ("door-1", "rollcall/hq/door-1/event/attendance", true),
        ("door-1", "rollcall/hq/door-1/receipt/jane", true),
        ("door-1", "rollcall/hq/gallery/jane", true),
        ("door-1", "rollcall/hq/gallery-index/0a", true),
        ("door-1", "homeassistant/device/rollcall-hq/door-1/config", true),
        ("door-1", "rollcall/hq/door-1/reply/r-1", true),
        ("door-1", "rollcall/hq/door-1/console/doctor", true),
        ("door-1", "rollcall/hq/door-1/command/enrol", false),
        ("door-1", "rollcall/hq/door-2/event/attendance", false),
        ("door-1", "rollcall/hq/door-2/status", false),
        ("door-1", "rollcall/hq/door-2/command/enrol", false),
        ("door-1", "rollcall/hq/all/command/enrol", false),
        ("door-1", "rollcall/other/gallery/jane", false),
        ("door-1", "homeassistant/device/rollcall-hq/door-2/config", false),
        ("office", "rollcall/hq/door-1/command/enrol", true),
        ("office", "rollcall/hq/all/command/withdraw", true),
        ("office", "rollcall/hq/door-1/event/attendance", false),
        ("office", "rollcall/hq/door-1/reply/r-1", false),
        ("office", "rollcall/hq/gallery/jane", false),
        ("office", "rollcall/other/door-1/command/enrol", false),
        ("dashboard", "rollcall/hq/door-1/command/sync", false),
        ("dashboard", "rollcall/hq/door-1/health", false),
    ];
    for (at, (user, topic, _)) in cases.iter().enumerate() {
        // Retained, so that who looks afterwards sees what was let through.
        publish(&broker, user, topic, &["-r", "-m", &format!("{at}")]);
    }
    // The last, by which the observer knows that all the others have come.
    publish(&broker, "observer", "z/end", &["-r", "-m", "end"]);
    for (at, (user, topic, allowed)) in cases.iter().enumerate() {
        let seen = text(&received(
            &broker,
            "observer",
            topic,
            &["-t", "z/end", "-C", if *allowed { "2" } else { "1" }],
        ));
        let mine = format!("{at}");
        // Another case may have left its own message on the same topic.
        assert_eq!(seen.lines().any(|it| it == mine), *allowed, "{user} {topic}: {seen}");
    }
}

#[test]
fn acl_limits_reading_to_own_topics() {
    let broker = broker();
    let topics = [
        "rollcall/hq/door-1/command/enrol",
        "rollcall/hq/gallery/jane",
        "rollcall/hq/door-1/reply/r-1",
        "rollcall/hq/door-1/health",
        "rollcall/hq/door-1/event/attendance",
    ];
    for topic in topics {
        publish(&broker, "observer", topic, &["-r", "-m", "seen"]);
    }
    let readers: [(&str, &[&str]); 4] = [
        ("door-1", &["rollcall/hq/door-1/command/enrol", "rollcall/hq/gallery/jane"]),
        ("door-2", &["rollcall/hq/gallery/jane"]),
        ("office", &["rollcall/hq/door-1/reply/r-1", "rollcall/hq/door-1/health"]),
        ("dashboard", &["rollcall/hq/door-1/health", "rollcall/hq/door-1/event/attendance"]),
    ];
    for (user, allowed) in readers {
        // Each asks for everything at once; what is not theirs does not come.
        let all: Vec<&str> = topics.iter().flat_map(|topic| ["-t", *topic]).collect();
        let seen = received(&broker, user, "z/none", &[&all[..], &["-W", "1", "-v"]].concat());
        let mut seen: Vec<String> = text(&seen)
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(topic, _)| topic.to_owned())
            .collect();
        seen.sort();
        let mut expected = allowed.to_vec();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{user}");
    }
}

#[test]
fn device_works_fully_under_acl() {
    let broker = broker();
    let more = "user = \"door-1\"\npassword = \"secret\"\n[fleet]\nkey_file = \"site.key\"\n";
    let home = Home::new(broker.port(), more);
    let made = home.output(&["keys", "site", home.path("site.key").to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let daemon = home.start();
    let status = received(&broker, "dashboard", "rollcall/hq/door-1/status", &["-C", "1"]);
    assert_eq!(text(&status), "online");
    let person = Faces::find().people.remove(0);
    let mut command = enrolment("ann", "Ann", &person.enrol[..1]);
    command["request_id"] = "r-1".into();
    broker.publish_payload(
        "rollcall/hq/door-1/command/enrol",
        &serde_json::to_vec(&command).unwrap(),
        &["-u", "office", "-P", "secret"],
    );
    until("the enrolment is in the record", || {
        home.events().iter().any(|it| it.2 == "enrolment").then_some(())
    });
    // Retained, so that they are there whenever somebody looks.
    for topic in [
        "rollcall/hq/door-1/health",
        "rollcall/hq/door-1/gallery",
        "rollcall/hq/gallery/ann",
        "homeassistant/device/rollcall-hq/door-1/config",
    ] {
        let seen = received(&broker, "observer", topic, &["-C", "1", "-W", "30"]);
        assert!(!text(&seen).is_empty(), "{topic}: {}", home.log());
    }
    // The command line asks the daemon by its socket, and the doctor the broker as the same user.
    let synced = home.output(&["sync"]);
    assert!(synced.status.success(), "{synced:?}");
    let doctor = home.output(&["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let findings = findings["findings"].as_array().unwrap();
    let found: Vec<_> = findings.iter().filter(|it| it["part"] == "broker").collect();
    assert!(!found.is_empty() && found.iter().all(|it| it["state"] == "good"), "{found:?}");
    let log = home.log();
    assert!(!log.contains("refuses"), "{log}");
    assert!(daemon.terminate().success());
}
