//! A message that the broker refuses is not delivered: access rules of a real mosquitto, and a
//! scripted broker for the reason codes and habits of others.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::fault::{ConnectRefusal, DisconnectReason, LinkFault};
use rollcall::mqtt::message::NotAcknowledged;
use rollcall::mqtt::refusal::PublishRefusal;
use rollcall::mqtt::settings::{Credentials, LinkSettings, Version, VersionChoice};

use crate::scripted::Stub;
use crate::support::link::{Running, eventually, message, settings};
use crate::support::mosquitto::Mosquitto;

const VERSIONS: [Version; 2] = [Version::V5, Version::V311];
const EVENT: &str = "rollcall/hq/door/event/attendance";
const PROBE: &str = "rollcall/hq/door/probe/echo";

fn door(port: u16, version: Version) -> LinkSettings {
    let mut settings = settings(port, "door", &[]);
    settings.version = VersionChoice::Only(version);
    settings.status_topic = "rollcall/hq/door/status".into();
    settings.probe_topic = Some(PROBE.into());
    settings.tick = Duration::from_millis(200);
    settings.credentials = Some(Credentials { user: "door".into(), password: "secret".into() });
    settings
}

/// With these rules for the user `door`, and an observer who reads everything.
fn broker(rules: &str) -> Mosquitto {
    Mosquitto::start_with(|dir| {
        let passwords = dir.join("passwords");
        fs::write(&passwords, "").unwrap();
        set_password(&passwords, "door", "secret");
        set_password(&passwords, "observer", "secret");
        let acl = dir.join("acl");
        fs::write(&acl, acl_of(rules)).unwrap();
        format!(
            "allow_anonymous false\npassword_file {}\nacl_file {}\n",
            passwords.display(),
            acl.display()
        )
    })
}

fn acl_of(rules: &str) -> String {
    format!("user observer\ntopic readwrite #\nuser door\n{rules}\n")
}

fn set_password(file: &std::path::Path, user: &str, password: &str) {
    let mut command = Command::new("mosquitto_passwd");
    let made = command.arg("-b").arg(file).args([user, password]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn change_rules(broker: &Mosquitto, rules: &str) {
    fs::write(broker.path("acl"), acl_of(rules)).unwrap();
    broker.reload();
}

fn heard(broker: &Mosquitto) -> Vec<u8> {
    broker.subscribe(&["-u", "observer", "-P", "secret", "-t", EVENT, "-C", "1"]).stdout
}

fn retained(payload: &[u8]) -> rollcall::mqtt::message::Message {
    let mut message = message(EVENT, payload);
    message.retain = true;
    message
}

fn refusal_of(result: &Result<(), NotAcknowledged>) -> Option<PublishRefusal> {
    match result {
        Err(NotAcknowledged::Refused(refusal)) => Some(*refusal),
        _ => None,
    }
}

#[tokio::test]
async fn denied_publish_is_not_delivered() {
    let read_only = "topic read #";
    let one_level_short = "pattern write rollcall/hq/%u/+\ntopic read #";
    let nothing_readable = "topic write rollcall/hq/door/#";
    for version in VERSIONS {
        for rules in [read_only, one_level_short, nothing_readable] {
            let broker = broker(rules);
            let link = Running::start(door(broker.port(), version));
            eventually("online", || link.link.is_online()).await;
            let results = link.link.deliver_batch(vec![retained(b"1"), retained(b"2")]).await;
            let expected = match (version, rules == nothing_readable) {
                (Version::V5, true) => None,
                (Version::V5, false) => Some(PublishRefusal::NotAuthorised),
                (Version::V311, _) => Some(PublishRefusal::NoEcho),
            };
            let found: Vec<_> = results.iter().map(refusal_of).collect();
            assert_eq!(found, [expected; 2], "{version:?} {rules}: {results:?}");
            assert!(results.iter().all(|it| it.is_ok() == expected.is_none()));
            let refused = link.link.refused_topic().map(|it| it.topic);
            match (version, expected) {
                (_, None) => assert_eq!(refused, None),
                (Version::V311, _) => assert_eq!(refused.as_deref(), Some(PROBE)),
                (Version::V5, _) => assert_eq!(refused.as_deref(), Some(EVENT)),
            }
            assert!(link.link.is_online(), "the connection stays");
            assert_eq!(link.link.counters().connects, 1);

            change_rules(&broker, "topic readwrite rollcall/hq/door/#");
            assert_eq!(link.link.deliver_batch(vec![retained(b"3")]).await, [Ok(())]);
            assert_eq!(heard(&broker), b"3\n");
            eventually("nothing is refused", || link.link.refused_topic().is_none()).await;
        }
    }
}

#[tokio::test]
async fn rule_withdrawn_while_connected_is_noticed() {
    for version in VERSIONS {
        let broker = broker("topic readwrite rollcall/hq/door/#");
        let link = Running::start(door(broker.port(), version));
        eventually("online", || link.link.is_online()).await;
        assert_eq!(link.link.deliver_batch(vec![retained(b"1")]).await, [Ok(())]);
        change_rules(&broker, "topic read #");
        let results = link.link.deliver_batch(vec![retained(b"2")]).await;
        assert!(refusal_of(&results[0]).is_some(), "{version:?}: {results:?}");
        assert_eq!(heard(&broker), b"1\n");
    }
}

#[tokio::test]
async fn password_revoked_while_connected_is_a_refusal() {
    for version in VERSIONS {
        let broker = broker("topic readwrite rollcall/hq/door/#");
        let mut settings = door(broker.port(), version);
        settings.retry.refused = Duration::from_millis(50);
        let link = Running::start(settings);
        eventually("online", || link.link.is_online()).await;
        set_password(&broker.path("passwords"), "door", "another");
        broker.reload();
        eventually("refused", || link.link.fault().is_some_and(|it| it.is_refused())).await;
        assert_eq!(
            link.link.deliver_batch(vec![retained(b"1")]).await,
            [Err(NotAcknowledged::Offline)]
        );
        set_password(&broker.path("passwords"), "door", "secret");
        broker.reload();
        eventually("online again", || link.link.is_online()).await;
        assert_eq!(link.link.deliver_batch(vec![retained(b"2")]).await, [Ok(())]);
        assert_eq!(heard(&broker), b"2\n");
    }
}

#[tokio::test]
async fn reason_codes_decide_about_delivery() {
    let (stub, port) = Stub::start(Version::V5).await;
    let link = Running::start(door(port, Version::V5));
    let mut client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    let codes = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    let rows = codes.map(|code| message(&format!("event/{code}"), b"x"));
    let (results, _client) = tokio::join!(link.link.deliver_batch(rows.to_vec()), async move {
        for code in codes {
            let (pkid, _) = client.publish().await;
            client.answer(pkid, code).await;
        }
        client
    });
    // Delivered, dead letter, retried only after a correction; else retried soon.
    let sorted: Vec<_> = results
        .iter()
        .map(|it| match it {
            Ok(()) => "delivered",
            Err(error) if error.is_poison() => "dead letter",
            Err(error) if error.needs_correction() => "correction",
            Err(_) => "retry",
        })
        .collect();
    assert_eq!(
        sorted,
        [
            "delivered",
            "delivered",
            "retry",
            "retry",
            "correction",
            "correction",
            "retry",
            "retry",
            "dead letter"
        ]
    );
    assert!(link.link.is_online());
    assert_eq!(link.link.counters().refused, 7);
    assert_eq!(link.link.counters().acknowledged, 2);
}

#[tokio::test]
async fn unknown_reason_code_is_no_delivery() {
    let (stub, port) = Stub::start(Version::V5).await;
    let link = Running::start(door(port, Version::V5));
    let mut client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    let (results, ()) =
        tokio::join!(link.link.deliver_batch(vec![message(EVENT, b"x")]), async move {
            let (pkid, _) = client.publish().await;
            client.answer(pkid, 0x42).await;
            client.stream.readable().await.unwrap();
        });
    assert_eq!(results, [Err(NotAcknowledged::Lost)]);
}

#[tokio::test]
async fn closing_at_a_publish_is_its_answer() {
    for version in VERSIONS {
        let (stub, port) = Stub::start(version).await;
        let mut settings = door(port, version);
        settings.retry.refused = Duration::from_millis(100);
        // What is tested is the habit of the broker, not the echo.
        settings.probe_topic = None;
        let link = Running::start(settings);
        for round in 0..3 {
            let mut client = stub.accept().await;
            eventually("online", || link.link.is_online()).await;
            assert_eq!(link.link.refused_topic(), None, "round {round}");
            let (results, ()) =
                tokio::join!(link.link.deliver_batch(vec![message(EVENT, b"x")]), async move {
                    client.publish().await;
                    drop(client);
                });
            assert_eq!(results, [Err(NotAcknowledged::Lost)]);
        }
        eventually("the refusal is known", || link.link.refused_topic().is_some()).await;
        let refused = link.link.refused_topic().unwrap();
        assert_eq!((refused.topic.as_str(), refused.refusal), (EVENT, PublishRefusal::Closed));

        let mut client = stub.accept().await;
        eventually("online", || link.link.is_online()).await;
        let (results, _client) =
            tokio::join!(link.link.deliver_batch(vec![message(EVENT, b"x")]), async move {
                let (pkid, _) = client.publish().await;
                client.acknowledge(pkid).await;
                client
            });
        assert_eq!(results, [Ok(())]);
        assert_eq!(link.link.refused_topic(), None);
    }
}

#[tokio::test]
async fn disconnect_with_a_reason_is_believed_at_once() {
    let (stub, port) = Stub::start(Version::V5).await;
    let mut link = Running::start(door(port, Version::V5));
    let mut client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    let (results, ()) =
        tokio::join!(link.link.deliver_batch(vec![message(EVENT, b"x")]), async move {
            client.publish().await;
            client.send(&[0xe0, 2, 0x87, 0]).await;
            client.stream.readable().await.unwrap();
        });
    assert_eq!(results, [Err(NotAcknowledged::Lost)]);
    let fault = link.until(|event| match event {
        LinkEvent::Lost { fault } => Some(fault),
        _ => None,
    });
    assert_eq!(fault.await, LinkFault::Disconnected(DisconnectReason::NotAuthorised));
    assert_eq!(link.link.refused_topic().unwrap().topic, EVENT);
}

#[tokio::test]
async fn broker_without_version_5_gets_older_one() {
    // It states so in its own version, or in that of MQTT 5.
    let answers: [&[u8]; 2] = [&[0x20, 2, 0, 1], &[0x20, 3, 0, 0x84, 0]];
    for answer in answers {
        let (stub, port) = Stub::start(Version::V311).await;
        let mut settings = settings(port, "door", &[]);
        settings.version = VersionChoice::Auto;
        let mut link = Running::start(settings);
        let levels = async {
            let mut levels = Vec::new();
            loop {
                let (mut client, connect) = stub.connection().await;
                levels.push(connect[6]);
                if connect[6] == 4 {
                    client.answer_connect(0, &[]).await;
                    // The first may be a test, which it leaves by itself.
                    if client.packet().await.0 & 0xf0 == 0x30 {
                        return (levels, client);
                    }
                } else {
                    client.send(answer).await;
                }
            }
        };
        let (levels, _client) = levels.await;
        assert_eq!((levels[0], levels.last()), (5, Some(&4)));
        assert!(levels.len() <= 4, "{levels:?}");
        assert!(matches!(link.next().await, LinkEvent::Connected { .. }), "no fault is reported");
        assert_eq!(link.link.version(), Some(Version::V311));
    }
}

#[tokio::test]
async fn refused_password_is_no_reason_for_older_version() {
    let broker = broker("topic readwrite #");
    let mut settings = door(broker.port(), Version::V5);
    settings.version = VersionChoice::Auto;
    settings.credentials = Some(Credentials { user: "door".into(), password: "wrong".into() });
    let mut link = Running::start(settings);
    let fault = link.until(|event| match event {
        LinkEvent::Unreachable { fault } => Some(fault),
        _ => None,
    });
    let fault = fault.await;
    assert!(
        matches!(
            fault,
            LinkFault::Refused(ConnectRefusal::NotAuthorised | ConnectRefusal::Credentials)
        ),
        "{fault:?}"
    );
}

#[tokio::test]
async fn packet_limit_of_broker_is_kept() {
    let (stub, port) = Stub::start(Version::V5).await;
    let link = Running::start(door(port, Version::V5));
    let (mut client, _) = stub.connection().await;
    // Maximum Packet Size 200, Server Keep Alive 0.
    client.answer_connect(0, &[0x27, 0, 0, 0, 200, 0x13, 0, 0]).await;
    client.until_online().await;
    eventually("online", || link.link.is_online()).await;
    let rows = vec![message(EVENT, &[b'x'; 400]), message(EVENT, b"y")];
    let (results, _client) = tokio::join!(link.link.deliver_batch(rows), async move {
        let (pkid, payload) = loop {
            let packet = client.packet().await;
            if packet.0 >> 4 == 3 {
                break client.publish_in(&packet);
            }
            assert_eq!(packet.0, 0xc0, "a single ping");
        };
        assert_eq!(payload, b"y");
        client.acknowledge(pkid).await;
        client
    });
    assert!(
        matches!(results[..], [Err(NotAcknowledged::TooLargeForBroker { .. }), Ok(())]),
        "{results:?}"
    );
    assert!(results[0].as_ref().is_err_and(|it| !it.is_poison()));
}

#[tokio::test]
async fn violations_of_version_5_end_the_connection() {
    // A topic that is not UTF-8, and a topic alias, which we did not allow.
    let packets: [&[u8]; 2] =
        [&[0x30, 5, 0, 1, 0xff, 0, b'x'], &[0x30, 8, 0, 1, b'c', 3, 0x23, 0, 1, b'x']];
    for packet in packets {
        let (stub, port) = Stub::start(Version::V5).await;
        let mut link = Running::start(door(port, Version::V5));
        let mut client = stub.accept().await;
        client.send(packet).await;
        let fault = link.until(|event| match event {
            LinkEvent::Lost { fault } => Some(fault),
            _ => None,
        });
        assert_eq!(fault.await, LinkFault::NotMqtt);
    }
}

#[tokio::test]
async fn too_large_command_is_discarded_by_broker() {
    let broker = Mosquitto::start();
    let mut settings = settings(broker.port(), "door", &["command/+"]);
    settings.version = VersionChoice::Only(Version::V5);
    settings.packet_bytes_max_in = 2048;
    let mut link = Running::connected(settings).await;
    broker.publish(&["-t", "command/a", "-m", &"x".repeat(100_000)]);
    broker.publish(&["-t", "command/b", "-m", "fits"]);
    let inbound = link.inbound().await;
    assert_eq!(inbound.topic, "command/b");
    inbound.ack.acknowledge();
    assert_eq!(link.link.counters().connects, 1, "the link stayed up");
}
