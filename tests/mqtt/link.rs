//! The link against a real mosquitto, and against a scripted broker for what mosquitto will not do
//! on demand.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::mosquitto;
use crate::support::openssl::openssl;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::scripted::Stub;
use crate::support::link::{Running, eventually, message, settings, settings_v311};
use crate::support::mosquitto::Mosquitto;
use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::fault::{LinkFault, TlsFault};
use rollcall::mqtt::link;
use rollcall::mqtt::message::{Message, NotAcknowledged};
use rollcall::mqtt::settings::{Credentials, LinkConfigError, Version, VersionChoice};
use rollcall::mqtt::tls::{ClientCertificate, TlsError, TlsSettings};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn acknowledged_publish_has_arrived() {
    let broker = Mosquitto::start();
    let link = Running::connected(settings(broker.port(), "pub", &[])).await;
    let mut kept = message("event", b"seen");
    kept.retain = true;
    assert_eq!(link.link.publish_batch(vec![kept]).await, [Ok(())]);
    assert_eq!(broker.subscribe(&["-t", "event", "-C", "1"]).stdout, b"seen\n");
    link.stop().await;
}

#[tokio::test]
async fn unsendable_message_leaves_link_up() {
    let broker = Mosquitto::start();
    let mut link = Running::connected(settings(broker.port(), "pub", &[])).await;
    let large = message("event", &vec![0; 2 * 1024 * 1024]);
    let results = link
        .link
        .publish_batch(vec![message("a", b""), large, message("a/#", b""), message("b", b"")])
        .await;
    assert!(matches!(
        results[..],
        [Ok(()), Err(NotAcknowledged::TooLarge { .. }), Err(NotAcknowledged::BadTopic), Ok(())]
    ));
    assert!(results[1].as_ref().is_err_and(NotAcknowledged::is_poison));
    assert!(link.events.try_recv().is_err(), "no edge: the link stayed up");
    assert_eq!(link.link.counters().connects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_broker_kills_lose_nothing() {
    const COUNT: usize = 500;
    let mut broker = Mosquitto::start();
    let mut reader = Running::connected(settings(broker.port(), "reader", &["event/+"])).await;
    let writer = Running::connected(settings(broker.port(), "writer", &[])).await;
    let link = writer.link.clone();
    let mut tasks = tokio::task::JoinSet::new();
    // The outbox in small: a message leaves it when it was acknowledged, and not before.
    tasks.spawn(async move {
        let mut online = link.online();
        let mut acknowledged = BTreeSet::new();
        let mut outbox: BTreeSet<usize> = (0..COUNT).collect();
        while !outbox.is_empty() {
            online.wait_for(|it| *it).await.unwrap();
            let rows: Vec<_> = outbox.iter().copied().take(20).collect();
            let batch = rows
                .iter()
                .map(|row| message(&format!("event/{row}"), row.to_string().as_bytes()))
                .collect();
            for (row, result) in rows.into_iter().zip(link.publish_batch(batch).await) {
                if result.is_ok() {
                    outbox.remove(&row);
                    acknowledged.insert(row);
                }
            }
            // The load lasts longer than the kills.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        acknowledged
    });
    let mut arrived = BTreeSet::new();
    let mut kills = 0;
    while arrived.len() < COUNT {
        let inbound = reader.inbound().await;
        arrived
            .insert(String::from_utf8(inbound.payload.clone()).unwrap().parse::<usize>().unwrap());
        inbound.ack.acknowledge();
        if kills < 4 && arrived.len() > (kills + 1) * 80 {
            kills += 1;
            broker.kill();
            broker.run();
        }
    }
    let acknowledged = tasks.join_next().await.unwrap().unwrap();
    assert_eq!(kills, 4);
    assert!(acknowledged.is_subset(&arrived));
    assert_eq!(acknowledged.len(), COUNT);
    assert!(writer.link.counters().connects >= 4);
}

#[tokio::test]
async fn status_topic_follows_the_link() {
    let broker = Mosquitto::start();
    let mut watcher =
        Running::connected(settings(broker.port(), "watcher", &["status/door"])).await;
    let mut status = async || {
        let inbound = watcher.inbound().await;
        inbound.ack.acknowledge();
        String::from_utf8(inbound.payload).unwrap()
    };
    let door = Running::connected(settings(broker.port(), "door", &[])).await;
    assert_eq!(status().await, "online");
    assert_eq!(
        broker.subscribe(&["-t", "status/door", "-C", "1"]).stdout,
        b"online\n",
        "it is retained"
    );
    door.die().await;
    assert_eq!(status().await, "offline", "the last will");
    let door = Running::connected(settings(broker.port(), "door", &[])).await;
    assert_eq!(status().await, "online");
    door.stop().await;
    assert_eq!(status().await, "offline", "said before DISCONNECT");
    assert_eq!(broker.subscribe(&["-t", "status/door", "-C", "1"]).stdout, b"offline\n");
}

#[tokio::test]
async fn health_is_retained_and_dropped_while_offline() {
    let broker = Mosquitto::start();
    let link = Running::start(settings(broker.port(), "door", &[]));
    link.link.publish_latest("health", b"too early".to_vec(), true);
    assert_eq!(link.link.counters().latest_dropped, 1);
    eventually("online", || link.link.is_online()).await;
    link.link.publish_latest("health", b"fine".to_vec(), true);
    link.settle().await;
    assert_eq!(broker.subscribe(&["-t", "health", "-C", "1"]).stdout, b"fine\n");
}

#[tokio::test]
async fn command_is_redelivered_until_acknowledged() {
    let broker = Mosquitto::start();
    let of_door = || settings(broker.port(), "door", &["command/+"]);
    let mut door = Running::connected(of_door()).await;
    broker.publish(&["-t", "command/sync", "-m", "one"]);
    let first = door.inbound().await;
    assert!(!first.retained);
    // The process dies before its transaction.
    door.die().await;
    drop(first);
    broker.publish(&["-t", "command/sync", "-m", "two"]);
    let mut door = Running::start(of_door());
    assert!(door.until_connected().await, "the session was kept");
    for expected in ["one", "two"] {
        let inbound = door.inbound().await;
        assert_eq!(inbound.payload, expected.as_bytes());
        inbound.ack.acknowledge();
    }
    door.settle().await;
    door.die().await;
    broker.publish(&["-t", "command/sync", "-m", "three"]);
    let mut door = Running::start(of_door());
    let third = door.inbound().await;
    assert_eq!(third.payload, b"three", "what was acknowledged does not come again");
    // Could not be made durable: the token is dropped, and without anyone's help the command comes
    // again.
    drop(third);
    let again = door.inbound().await;
    assert_eq!(again.payload, b"three");
    again.ack.acknowledge();
    door.settle().await;
}

#[tokio::test]
async fn retained_command_is_marked_retained() {
    let broker = Mosquitto::start();
    broker.publish(&["-t", "command/sync", "-m", "old", "-r"]);
    let mut door = Running::start(settings(broker.port(), "door", &["command/+"]));
    let inbound = door.inbound().await;
    assert!(inbound.retained);
    inbound.ack.acknowledge();
}

#[tokio::test]
async fn excess_messages_are_deferred_in_order() {
    let broker = Mosquitto::start();
    let mut of_door = settings(broker.port(), "door", &["command/+"]);
    of_door.inbound_bytes_max = 250 * 1024;
    Running::connected(of_door.clone()).await.stop().await;
    let payload = broker.path("payload");
    for number in 0..10u8 {
        fs::write(&payload, vec![b'0' + number; 100 * 1024]).unwrap();
        broker.publish(&["-t", "command/enrol", "-f", payload.to_str().unwrap()]);
    }
    let mut door = Running::start(of_door);
    let mut held = Vec::new();
    let mut arrived = Vec::new();
    let mut deferred = 0;
    while arrived.last() != Some(&b'9') {
        let inbound = door.inbound().await;
        arrived.push(inbound.payload[0]);
        held.push(inbound);
        assert!(held.len() <= 2, "never more than its share of memory");
        let last = arrived.last() == Some(&b'9');
        if held.len() == 2 && !last {
            eventually("the next is let go", || door.link.counters().deferred > deferred).await;
            deferred = door.link.counters().deferred;
        }
        if held.len() == 2 || last {
            for inbound in held.drain(..) {
                inbound.ack.acknowledge();
            }
        }
    }
    assert_eq!(arrived, b"0123456789");
    door.stop().await;
}

fn peak_memory_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[tokio::test]
async fn oversized_message_is_dropped_alone() {
    let broker = Mosquitto::start();
    let of_door = settings_v311(broker.port(), "door", &["command/+"]);
    Running::connected(of_door.clone()).await.stop().await;
    let large = broker.path("large");
    fs::write(&large, b"{\"request_id\":\"r-1\",").unwrap();
    // Made long without ever being in our memory, which is what is measured.
    fs::File::options().write(true).open(&large).unwrap().set_len(50_000_000).unwrap();
    let large = large.to_str().unwrap();
    let fitting = broker.path("fitting");
    fs::write(&fitting, vec![b'3'; 3 * 1024 * 1024]).unwrap();
    let before = peak_memory_mib();

    // While the door is away: small, 50 MB, 3 MiB, 50 MB, small.
    broker.publish(&["-t", "command/sync", "-m", "first"]);
    broker.publish(&["-t", "command/enrol", "-f", large]);
    broker.publish(&["-t", "command/enrol", "-f", fitting.to_str().unwrap()]);
    broker.publish(&["-t", "command/enrol", "-f", large]);
    broker.publish(&["-t", "command/sync", "-m", "last"]);
    let mut door = Running::start(of_door);
    let mut sizes = BTreeSet::new();
    let mut thrown_away = 0;
    while sizes.len() < 3 || thrown_away < 2 {
        match door.next().await {
            LinkEvent::Inbound(inbound) => {
                sizes.insert(inbound.payload.len());
                inbound.ack.acknowledge();
            }
            LinkEvent::Oversized(oversized) if oversized.topic.is_some() => {
                assert_eq!(oversized.topic.as_deref(), Some("command/enrol"));
                assert!(oversized.bytes > 50_000_000);
                assert!(oversized.head.starts_with(b"{\"request_id\":\"r-1\","));
                thrown_away += 1;
            }
            LinkEvent::SessionPurged { fault } => panic!("nothing needed to be lost: {fault}"),
            _ => {}
        }
    }
    assert_eq!(sizes, BTreeSet::from([4, 5, 3 * 1024 * 1024]));

    // While it is there: at QoS 0, and retained, which a broker sends at each SUBSCRIBE.
    eventually("online", || door.link.is_online()).await;
    door.settle().await;
    broker.publish(&["-t", "command/enrol", "-f", large, "-q", "0"]);
    broker.publish(&["-t", "command/enrol", "-f", large, "-r"]);
    broker.publish(&["-t", "command/sync", "-m", "after"]);
    loop {
        let inbound = door.inbound().await;
        let text = String::from_utf8_lossy(&inbound.payload).into_owned();
        inbound.ack.acknowledge();
        if text == "after" {
            break;
        }
    }
    eventually("online again", || door.link.is_online()).await;
    let grown = peak_memory_mib() - before;
    assert!(grown < 30, "grew by {grown} MiB");
}

/// A CA, and a key with a certificate for 127.0.0.1 signed by it: `{ca}.pem`, `{name}.pem`,
/// `{name}.key`.
fn make_certificates(dir: &Path, ca: &str, name: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {key} -keyout {ca}.key -out {ca}.pem -subj /CN={ca} -days 2"));
    openssl(dir, &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
    fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let serial = format!("-CAkey {ca}.key -CAcreateserial -days 2 -extfile san");
    openssl(dir, &format!("x509 -req -in {name}.csr -CA {ca}.pem {serial} -out {name}.pem"));
}

#[tokio::test]
async fn wrong_tls_or_password_keeps_link_down() {
    let broker = Mosquitto::start_with(|dir| {
        make_certificates(dir, "ca", "server");
        make_certificates(dir, "other", "client");
        let mut passwd = Command::new("mosquitto_passwd");
        passwd.args(["-b", "-c", "passwd", "door", "secret"]).current_dir(dir);
        assert!(passwd.status().unwrap().success());
        let at = dir.display();
        format!(
            "cafile {at}/ca.pem\ncertfile {at}/server.pem\nkeyfile {at}/server.key\nallow_anonymous false\n\
             password_file {at}/passwd\n"
        )
    });
    let with = |ca: &str, password: &str| {
        let mut settings = settings(broker.port(), "door", &["command/+"]);
        settings.tls = Some(TlsSettings { ca: Some(broker.path(ca)), client: None });
        settings.credentials =
            Some(Credentials { user: "door".to_owned(), password: password.to_owned() });
        settings
    };
    let fault_of = async |link: &mut Running| {
        link.until(|event| match event {
            LinkEvent::Unreachable { fault } => Some(fault),
            LinkEvent::Connected { .. } => panic!("it must not connect"),
            _ => None,
        })
        .await
    };
    let mut small = with("ca.pem", "secret");
    small.packet_bytes_max_in = 2048;
    small.version = VersionChoice::Only(Version::V311);
    let mut link = Running::connected(small).await;
    // Sifting goes the same way: a message too large for this one is its own message.
    let long =
        Message { topic: "command/long".to_owned(), payload: vec![b'x'; 100_000], retain: true };
    // It may come back, and end the connection, before its PUBACK.
    link.link.publish_batch(vec![long]).await;
    let topic = link.until(|event| match event {
        LinkEvent::Oversized(oversized) => oversized.topic,
        _ => None,
    });
    assert_eq!(topic.await, "command/long");
    link.until_connected().await;
    link.stop().await;

    let mut wrong_ca = Running::start(with("other.pem", "secret"));
    let fault = fault_of(&mut wrong_ca).await;
    assert!(matches!(fault, LinkFault::Tls { fault: TlsFault::UnknownAuthority, .. }), "{fault:?}");

    let mut wrong_password = Running::start(with("ca.pem", "wrong"));
    let fault = fault_of(&mut wrong_password).await;
    assert!(matches!(fault, LinkFault::Refused(_)), "{fault:?}");
    // Without its own pause after a refusal it would ask some ten times in this second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(broker.log().matches("not authorised").count(), 1);
    assert!(wrong_password.events.try_recv().is_err(), "reported once");

    let mut no_tls = with("ca.pem", "secret");
    no_tls.tls = None;
    let mut no_tls = Running::start(no_tls);
    // What arrives first decides: the broker's TLS alert, which is not MQTT, or the end.
    let fault = fault_of(&mut no_tls).await;
    assert!(matches!(fault, LinkFault::NotMqtt | LinkFault::Closed), "{fault:?}");

    let mut mixed_up = with("ca.pem", "secret");
    let client =
        ClientCertificate { cert: broker.path("client.pem"), key: broker.path("server.key") };
    mixed_up.tls = Some(TlsSettings { ca: None, client: Some(client) });
    let refused = link::open(mixed_up).err();
    assert!(matches!(
        refused,
        Some(LinkConfigError::Tls(TlsError::BadClient { .. } | TlsError::NoSystemCas))
    ));
}

#[tokio::test]
async fn client_certificate_is_presented() {
    let broker = Mosquitto::start_with(|dir| {
        make_certificates(dir, "ca", "server");
        make_certificates(dir, "clients", "client");
        let at = dir.display();
        format!(
            "cafile {at}/clients.pem\ncertfile {at}/server.pem\nkeyfile {at}/server.key\nrequire_certificate true\n\
             use_identity_as_username true\nallow_anonymous false\n"
        )
    });
    let mut of_door = settings(broker.port(), "door", &[]);
    let client =
        ClientCertificate { cert: broker.path("client.pem"), key: broker.path("client.key") };
    of_door.tls = Some(TlsSettings { ca: Some(broker.path("ca.pem")), client: Some(client) });
    Running::connected(of_door).await.stop().await;
}

#[tokio::test]
async fn publish_needs_its_own_acknowledgement() {
    let (stub, port) = Stub::start(Version::V311).await;
    let link = Running::start(settings_v311(port, "door", &[]));
    let rows = || vec![message("event", b"a"), message("event", b"b"), message("event", b"c")];

    let mut client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    let (results, ()) = tokio::join!(link.link.publish_batch(rows()), async move {
        let (a, _) = client.publish().await;
        let (b, _) = client.publish().await;
        client.publish().await;
        assert_ne!(a, b);
        client.acknowledge(b).await; // And then the connection breaks.
    });
    assert_eq!(results, [Err(NotAcknowledged::Lost), Ok(()), Err(NotAcknowledged::Lost)]);

    // The new connection knows nothing of the old one, whatever the broker says of the session: the
    // caller sends again.
    for session_present in [0, 1] {
        let mut client = stub.accept_session(session_present).await;
        eventually("online", || link.link.is_online()).await;
        let (results, client) = tokio::join!(link.link.publish_batch(rows()), async move {
            for expected in [b"a", b"b", b"c"] {
                let (pkid, payload) = client.publish().await;
                assert_eq!(payload, expected);
                client.acknowledge(pkid).await;
            }
            client
        });
        assert_eq!(results, [Ok(()), Ok(()), Ok(())]);
        drop(client);
        eventually("down", || !link.link.is_online()).await;
    }
}

#[tokio::test]
async fn window_bounds_messages_in_flight() {
    let (stub, port) = Stub::start(Version::V311).await;
    let mut narrow = settings_v311(port, "door", &[]);
    narrow.window = 2;
    let link = Running::start(narrow);
    let mut client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    let rows = (0..50).map(|row| message("event", &[row])).collect();
    let (results, ()) = tokio::join!(link.link.publish_batch(rows), async move {
        for _ in 0..25 {
            // The second of each pair is acknowledged first: its order is no matter.
            let (first, _) = client.publish().await;
            let (second, _) = client.publish().await;
            let third =
                tokio::time::timeout(Duration::from_millis(5), client.stream.peek(&mut [0])).await;
            assert!(third.is_err(), "a third is under way");
            client.acknowledge(second).await;
            client.acknowledge(first).await;
        }
    });
    assert!(results.iter().all(Result::is_ok));
}

#[tokio::test]
async fn commands_are_acknowledged_in_order() {
    let (stub, port) = Stub::start(Version::V311).await;
    let mut link = Running::start(settings_v311(port, "door", &[]));
    let mut client = stub.accept().await;
    for pkid in [7, 8, 9] {
        client.send(&[0x32, 6, 0, 1, b'c', 0, pkid, b'x']).await;
    }
    let first = link.inbound().await;
    let second = link.inbound().await;
    let third = link.inbound().await;
    third.ack.acknowledge();
    first.ack.acknowledge();
    second.ack.acknowledge();
    for pkid in [7, 8, 9] {
        assert_eq!(client.packet().await, (0x40, vec![0, pkid]));
    }
}

/// A broker on which not even sifting succeeds: the link gives up the session rather than itself,
/// and says so.
#[tokio::test]
async fn session_is_purged_as_last_resort() {
    let (stub, port) = Stub::start(Version::V311).await;
    let mut link = Running::start(settings_v311(port, "door", &["command/+"]));
    let mut purged_after = 0;
    loop {
        let (mut client, connect) = stub.connection().await;
        let clean_session = connect[7] & 2 != 0;
        let keep_alive = u16::from_be_bytes([connect[8], connect[9]]);
        if clean_session {
            client.send(&[0x20, 2, 0, 0]).await;
            break;
        }
        purged_after += 1;
        if keep_alive == 15 {
            // QoS 1, 50,000,000 bytes to come.
            client.send(&[0x20, 2, 1, 0, 0x32, 0x80, 0xe1, 0xeb, 0x17]).await;
            client.stream.read_to_end(&mut Vec::new()).await.ok();
        }
    }
    assert_eq!(
        purged_after,
        2 + 1 + 2 * 2,
        "two strikes and a sifting, and twice a strike and a sifting"
    );
    link.until(|event| matches!(event, LinkEvent::SessionPurged { .. }).then_some(())).await;
    assert_eq!(link.link.counters().oversized, 4);
    stub.accept().await;
}

#[tokio::test]
async fn hung_broker_does_not_delay_stop() {
    let (stub, port) = Stub::start(Version::V311).await;
    let link = Running::start(settings_v311(port, "door", &[]));
    let _client = stub.accept().await;
    eventually("online", || link.link.is_online()).await;
    link.stop().await;
}

#[tokio::test]
async fn unreachable_broker_is_reported_once() {
    let mut link = Running::start(settings(mosquitto::free_port(), "door", &[]));
    assert!(matches!(link.next().await, LinkEvent::Unreachable { .. }));
    assert_eq!(
        link.link.publish_batch(vec![message("a", b"")]).await,
        [Err(NotAcknowledged::Offline)]
    );
    let silence = tokio::time::timeout(Duration::from_millis(500), link.events.recv()).await;
    assert!(silence.is_err(), "the same reason is not reported again");
    link.stop().await;
}
