//! The embedded broker, with our own link as its client.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

#[path = "support/link.rs"]
mod link_support;
#[path = "support/mosquitto.rs"]
mod mosquitto;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use link_support::{Running, eventually, message, settings};
use mosquitto::free_port;
use rollcall::mqtt::broker::{BrokerProcess, BrokerSettings, Embedded, serve_as_child};
use rollcall::mqtt::link::{Credentials, LinkEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn broker_settings() -> BrokerSettings {
    BrokerSettings {
        tcp: SocketAddr::from(([127, 0, 0, 1], free_port())),
        websocket: None,
        credentials: None,
        payload_bytes_max: 8 * 1024 * 1024,
    }
}

fn start() -> u16 {
    let settings = broker_settings();
    Embedded::start(&settings).unwrap();
    settings.tcp.port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_arrives_and_what_is_retained_stays() {
    let port = start();
    let mut reader = Running::connected(settings(port, "reader", &["event/+", "status/+"])).await;
    let mut door = settings(port, "door", &[]);
    door.packet_bytes_max_out = 8 * 1024 * 1024;
    let door = Running::connected(door).await;
    let mut kept = message("event/kept", b"kept");
    kept.retain = true;
    let large = message("event/large", &vec![b'x'; 6 * 1024 * 1024]);
    let results = door.link.publish_batch(vec![message("event/a", b"a"), kept, large]).await;
    assert_eq!(results, [Ok(()), Ok(()), Ok(())]);
    let mut arrived = Vec::new();
    while arrived.len() < 3 {
        let inbound = reader.inbound().await;
        if inbound.topic.starts_with("event/") {
            assert!(!inbound.retained);
            arrived.push((inbound.topic.clone(), inbound.payload.len()));
        }
        inbound.ack.acknowledge();
    }
    let expected = [("event/a", 1), ("event/kept", 4), ("event/large", 6 * 1024 * 1024)];
    assert_eq!(arrived, expected.map(|(topic, bytes)| (topic.to_owned(), bytes)));

    let mut late = Running::start(settings(port, "late", &["event/kept"]));
    let inbound = late.inbound().await;
    assert!(inbound.retained);
    inbound.ack.acknowledge();

    door.die().await;
    loop {
        let inbound = reader.inbound().await;
        let status = (inbound.topic.clone(), inbound.payload.clone());
        inbound.ack.acknowledge();
        if status == ("status/door".to_owned(), b"offline".to_vec()) {
            break; // The last will.
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_what_was_sent_meanwhile_and_what_was_not_acknowledged() {
    let port = start();
    let of_door = || settings(port, "door", &["command/+"]);
    let mut door = Running::connected(of_door()).await;
    let sender = Running::connected(settings(port, "sender", &[])).await;
    let send = async |payload: &str| {
        assert_eq!(
            sender.link.publish_batch(vec![message("command/sync", payload.as_bytes())]).await,
            [Ok(())]
        );
    };
    send("one").await;
    let unacknowledged = door.inbound().await;
    assert_eq!(unacknowledged.payload, b"one");
    door.die().await;
    drop(unacknowledged);
    for number in 0..50 {
        send(&number.to_string()).await;
    }
    let mut door = Running::start(of_door());
    assert!(door.until_connected().await, "the session was kept");
    let mut arrived = Vec::new();
    while arrived.len() < 51 {
        let inbound = door.inbound().await;
        arrived.push(String::from_utf8(inbound.payload.clone()).unwrap());
        inbound.ack.acknowledge();
    }
    let expected = std::iter::once("one".to_owned()).chain((0..50).map(|it| it.to_string()));
    assert_eq!(arrived, expected.collect::<Vec<_>>());
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishes_are_acknowledged_each() {
    let port = start();
    let door = Running::connected(settings(port, "door", &[])).await;
    let rows = (0..2000)
        .map(|row| message(&format!("event/{}", row % 5), row.to_string().as_bytes()))
        .collect();
    assert!(door.link.publish_batch(rows).await.iter().all(Result::is_ok));
    assert_eq!(door.link.counters().connects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_asked_for() {
    let mut with_password = broker_settings();
    with_password.credentials = Some(("door".to_owned(), "secret".to_owned()));
    Embedded::start(&with_password).unwrap();
    let of_door = |password: &str| {
        let mut settings = settings(with_password.tcp.port(), "door", &[]);
        settings.credentials =
            Some(Credentials { user: "door".to_owned(), password: password.to_owned() });
        settings
    };
    let mut wrong = Running::start(of_door("wrong"));
    assert!(matches!(wrong.next().await, LinkEvent::Unreachable { .. }));
    wrong.die().await;
    Running::connected(of_door("secret")).await.stop().await;
}

/// CONNECT with a clean session and a keep-alive of 60 s.
fn connect_packet(client_id: &str) -> Vec<u8> {
    let id = client_id.as_bytes();
    let mut packet = vec![
        0x10,
        12 + id.len() as u8,
        0,
        4,
        b'M',
        b'Q',
        b'T',
        b'T',
        4,
        2,
        0,
        60,
        0,
        id.len() as u8,
    ];
    packet.extend_from_slice(id);
    packet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_can_speak_mqtt_over_websocket() {
    let mut with_websocket = broker_settings();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    with_websocket.websocket = Some(address);
    Embedded::start(&with_websocket).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
    // One binary frame, masked with zeroes; RFC 6455's own example key has this answer.
    assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    let packet = connect_packet("browser");
    let mut frame = vec![0x82, 0x80 | packet.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(&packet);
    stream.write_all(&frame).await.unwrap();
    let mut connack = [0; 6];
    stream.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x82, 4, 0x20, 2, 0, 0]);
}

/// Not a test of its own: the other end of `the_broker_process_ends_with_its_parent`.
const AS_CHILD: &str = "rollcall-as-child";

#[test]
fn broker_child() {
    let as_child = std::env::args().any(|it| it == AS_CHILD);
    assert!(!as_child, "{}", serve_as_child());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_process_serves_and_is_gone_when_dropped() {
    let settings_of_broker = broker_settings();
    let program = std::env::current_exe().unwrap();
    let args = ["broker_child", "--exact", "--nocapture", "--skip", AS_CHILD];
    let mut process = BrokerProcess::start(&program, &args, &settings_of_broker).unwrap();
    let door = Running::connected(settings(settings_of_broker.tcp.port(), "door", &[])).await;
    assert!(process.ended().is_none());
    drop(process);
    eventually("the link notices", || !door.link.is_online()).await;
    // And a new one takes its place on the same port.
    let process = BrokerProcess::start(&program, &args, &settings_of_broker).unwrap();
    eventually("the link is back", || door.link.is_online()).await;
    drop(process);
}

#[test]
fn the_broker_process_ends_with_its_parent() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let settings = broker_settings();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["broker_child", "--exact", "--nocapture", "--skip", AS_CHILD]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", serde_json::to_string(&settings).unwrap()).unwrap();
    drop(stdin); // As it is when the parent dies, however it dies.
    assert!(child.wait().unwrap().success());
}

/// rumqttd panics on a client id that it refused once and that comes again. Our release builds abort on panic, so
/// within the daemon this would be its end; as a child it is the child's. When this test fails, rumqttd was mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_the_broker_is_a_process_of_its_own() {
    let port = start();
    let panics = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&panics);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.location().is_some_and(|it| it.file().contains("rumqttd")) {
            counted.fetch_add(1, Ordering::SeqCst);
        } else {
            before(info);
        }
    }));
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&connect_packet("a+b")).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "closed without a CONNACK");
    }
    eventually("the panic", || panics.load(Ordering::SeqCst) == 1).await;
    drop(std::panic::take_hook());
}
