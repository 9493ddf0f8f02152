//! The embedded broker, with our own link as its client.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::support::browser::Browser;
use crate::support::link::{Running, eventually, message, settings};
use crate::support::mosquitto::free_port;
use rollcall::broker::process::{BrokerProcess, Embedded, serve_as_child};
use rollcall::broker::{BrokerError, BrokerSettings};
use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::fault::{ConnectRefusal, LinkFault};
use rollcall::mqtt::settings::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn broker_settings() -> BrokerSettings {
    BrokerSettings::new(SocketAddr::from(([127, 0, 0, 1], free_port())), 8 * 1024 * 1024)
}

fn start() -> u16 {
    start_with(|_| {}).tcp.port()
}

/// A broker with settings of the test. A port that was free a moment ago may be another test's by
/// then: it takes the next one.
fn start_with(set: impl Fn(&mut BrokerSettings)) -> BrokerSettings {
    loop {
        let mut settings = broker_settings();
        set(&mut settings);
        match Embedded::start(&settings) {
            Err(BrokerError::Listen { .. }) => {}
            started => {
                started.unwrap();
                return settings;
            }
        }
    }
}

/// And on WebSocket.
fn start_with_websocket() -> SocketAddr {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    start_with(|settings| settings.websocket = Some(loopback(free_port()))).websocket.unwrap()
}

/// The broker's process, the same way.
fn start_process(memory_bytes_max: Option<usize>) -> (BrokerProcess, BrokerSettings) {
    let program = std::env::current_exe().unwrap();
    loop {
        let mut settings = broker_settings();
        settings.memory_bytes_max = memory_bytes_max.unwrap_or(settings.memory_bytes_max);
        match BrokerProcess::start(&program, &CHILD_ARGS, &settings) {
            Err(BrokerError::Listen { .. }) => {}
            started => return (started.unwrap(), settings),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_messages_arrive_and_retained_stay() {
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
async fn session_keeps_unacknowledged_messages() {
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
async fn every_publish_is_acknowledged() {
    let port = start();
    let door = Running::connected(settings(port, "door", &[])).await;
    let rows = (0..2000)
        .map(|row| message(&format!("event/{}", row % 5), row.to_string().as_bytes()))
        .collect();
    assert!(door.link.publish_batch(rows).await.iter().all(Result::is_ok));
    assert_eq!(door.link.counters().connects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_requires_its_password() {
    let with_password = start_with(|settings| {
        settings.credentials = Some(("door".to_owned(), "secret".to_owned()));
    });
    let of_door = |password: &str| {
        let mut settings = settings(with_password.tcp.port(), "door", &[]);
        settings.credentials =
            Some(Credentials { user: "door".to_owned(), password: password.to_owned() });
        settings
    };
    let mut wrong = Running::start(of_door("wrong"));
    let refused = LinkFault::Refused(ConnectRefusal::Credentials);
    assert!(matches!(wrong.next().await, LinkEvent::Unreachable { fault } if fault == refused));
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
async fn browser_connects_over_websocket() {
    let address = start_with_websocket();
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

/// An argument by which `broker_process_ends_with_its_parent` is the broker's process itself.
const AS_CHILD: &str = "rollcall-as-child";
const CHILD_ARGS: [&str; 4] =
    ["broker_process_ends_with_its_parent", "--nocapture", "--skip", AS_CHILD];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_broker_process_ends_and_restarts() {
    let (mut process, settings_of_broker) = start_process(None);
    let door = Running::connected(settings(settings_of_broker.tcp.port(), "door", &[])).await;
    assert!(process.ended().is_none());
    drop(process);
    eventually("the link notices", || !door.link.is_online()).await;
    // And a new one takes its place on the same port.
    let program = std::env::current_exe().unwrap();
    let process = BrokerProcess::start(&program, &CHILD_ARGS, &settings_of_broker).unwrap();
    eventually("the link is back", || door.link.is_online()).await;
    drop(process);
}

#[test]
fn broker_process_ends_with_its_parent() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let is_child = std::env::args().any(|it| it == AS_CHILD);
    assert!(!is_child, "{}", serve_as_child());
    let settings = broker_settings();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(CHILD_ARGS);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", serde_json::to_string(&settings).unwrap()).unwrap();
    drop(stdin); // As it is when the parent dies, however it dies.
    assert!(child.wait().unwrap().success());
}

/// A client of mosquitto, whose arguments follow host and port.
fn mosquitto(program: &str, port: u16, args: &[&str]) -> Output {
    let port = port.to_string();
    let output = Command::new(program)
        .args([&["-h", "127.0.0.1", "-p", &port], args].concat())
        .output()
        .expect("apt-get install -y mosquitto-clients");
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}

/// mosquitto_sub subscribes and leaves; then something is published; then it comes for it.
#[test]
fn mosquitto_clients_use_both_versions() {
    let port = start();
    for (version, keep) in [("mqttv311", &["-c"][..]), ("mqttv5", &["-c", "-x", "60"])] {
        for qos in ["1", "2"] {
            let id = format!("{version}-{qos}");
            let reader = [&["-V", version, "-i", &id, "-q", qos, "-t", "t/+"], keep].concat();
            mosquitto("mosquitto_sub", port, &[&reader[..], &["-E"]].concat());
            for (sent_by, payload) in [("mqttv311", "one"), ("mqttv5", "two")] {
                let topic = format!("t/{payload}");
                let publish = ["-V", sent_by, "-q", qos, "-t", &topic, "-m", payload];
                mosquitto("mosquitto_pub", port, &publish);
            }
            let last = ["-C", "2", "-W", "10", "-F", "%t %q %r %p"];
            let output = mosquitto("mosquitto_sub", port, &[&reader[..], &last].concat());
            let expected = format!("t/one {qos} 0 one\nt/two {qos} 0 two\n");
            assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{version}");
        }
        let publish = ["-V", version, "-q", "0", "-r", "-t", "kept", "-m", version];
        mosquitto("mosquitto_pub", port, &publish);
        let read = ["-V", version, "-t", "kept", "-C", "1", "-W", "10", "-F", "%r %p"];
        let output = mosquitto("mosquitto_sub", port, &read);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("1 {version}\n"));
    }
}

#[test]
fn mosquitto_passes_properties_of_version_5() {
    let port = start();
    let publish = ["-V", "5", "-q", "1", "-r", "-t", "kept", "-m", "x"];
    let properties = ["-D", "publish", "user-property", "shift", "early"];
    let more = ["-D", "publish", "content-type", "text/plain"];
    mosquitto("mosquitto_pub", port, &[&publish[..], &properties, &more].concat());
    let read = ["-V", "5", "-t", "kept", "-C", "1", "-W", "10", "-F", "%P %C %p"];
    let output = mosquitto("mosquitto_sub", port, &read);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "shift:early text/plain x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_uses_version_5() {
    use rumqttc::v5::mqttbytes::{QoS, v5::Packet};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let port = start();
    let mut options = MqttOptions::new("five", "127.0.0.1", port);
    options.set_clean_start(true);
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("echo/+", QoS::ExactlyOnce).await.unwrap();
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        client.publish("echo/a", qos, false, format!("{qos:?}")).await.unwrap();
    }
    let arrival = async {
        let mut arrived = Vec::new();
        while arrived.len() < 3 {
            if let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() {
                arrived.push((publish.qos, String::from_utf8(publish.payload.to_vec()).unwrap()));
            }
        }
        arrived
    };
    let arrived = tokio::time::timeout(crate::support::link::PATIENCE, arrival).await.unwrap();
    let expected = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    assert_eq!(arrived, expected.map(|qos| (qos, format!("{qos:?}"))));
}

/// A page connects, subscribes, and publishes 200 kB to itself, by Chromium's own WebSocket.
#[test]
fn page_in_browser_speaks_mqtt() {
    let address = start_with_websocket();
    let mut browser = Browser::start();
    let script = r"new Promise((resolve, reject) => {
        const socket = new WebSocket('ws://ADDRESS/mqtt', 'mqtt');
        socket.binaryType = 'arraybuffer';
        socket.onerror = () => reject(new Error('no WebSocket'));
        const payload = new Uint8Array(200000).map((_, at) => at % 251);
        const text = (it) => [0, it.length, ...new TextEncoder().encode(it)];
        let received = [];
        socket.onopen = () => {
            const connect = [...text('MQTT'), 4, 2, 0, 60, ...text('page')];
            socket.send(new Uint8Array([0x10, connect.length, ...connect]));
            const subscribe = [0, 1, ...text('echo'), 0];
            socket.send(new Uint8Array([0x82, subscribe.length, ...subscribe]));
            const topic = text('echo'), bytes = topic.length + payload.length;
            const head = [0x30, bytes & 127 | 128, bytes >> 7 & 127 | 128, bytes >> 14, ...topic];
            const packet = new Uint8Array(head.length + payload.length);
            packet.set(head); packet.set(payload, head.length);
            socket.send(packet);
        };
        socket.onmessage = ({ data }) => {
            for (const byte of new Uint8Array(data)) received.push(byte);
            const echo = received.slice(-payload.length);
            if (received.length > payload.length) {
                socket.close();
                resolve(`${socket.protocol} ${echo.every((it, at) => it === payload[at])}`);
            }
        };
    })";
    let echoed = browser.value(&script.replace("ADDRESS", &address.to_string()));
    assert_eq!(echoed, "mqtt true");
}

/// A client that subscribes to everything and reads nothing.
async fn deaf_client(port: u16, name: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&connect_packet(name)).await.unwrap();
    stream.write_all(&[0x82, 6, 0, 1, 0, 1, b'#', 1]).await.unwrap();
    let mut replies = [0; 9];
    stream.read_exact(&mut replies).await.unwrap();
    assert_eq!(replies, [0x20, 2, 0, 0, 0x90, 3, 0, 1, 1]);
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_nothing_delays_nobody() {
    let port = start();
    let deaf = deaf_client(port, "deaf").await;
    let mut reader = Running::connected(settings(port, "reader", &["event/+"])).await;
    let mut door = settings(port, "door", &[]);
    door.packet_bytes_max_out = 8 * 1024 * 1024;
    let door = Running::connected(door).await;
    // Far more than the deaf client's queue and the sockets hold.
    for number in 0..60_u8 {
        let published = door.link.publish_batch(vec![message("event/a", &vec![number; 1 << 20])]);
        assert_eq!(published.await, [Ok(())]);
        let inbound = reader.inbound().await;
        assert_eq!((inbound.payload.len(), inbound.payload[0]), (1 << 20, number));
        inbound.ack.acknowledge();
    }
    drop(deaf);
}

/// What the kernel counts of a process, in KiB.
fn memory_kib(process: u32, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|it| it.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Everything at a time that costs memory: incomplete packets, clients that do not read, sessions
/// that wait, retained messages, all as large as they may be.
async fn flood(port: u16) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for number in 0..8 {
        streams.push(deaf_client(port, &format!("deaf-{number}")).await);
    }
    for number in 0..8 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&connect_packet(&format!("half-{number}"))).await.unwrap();
        let head = [0x30, 0xff, 0xff, 0xff, 0x03];
        let sent = async {
            stream.write_all(&head).await?;
            stream.write_all(&vec![0; 7 << 20]).await
        };
        sent.await.ok(); // The broker may end it.
        streams.push(stream);
    }
    for number in 0..40_u8 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&connect_packet("sender")).await.unwrap();
        // A retained message of 4 MiB at QoS 1, on a topic of its own.
        let mut packet = vec![0x33, 0x85, 0x80, 0x80, 0x02, 0, 1, b'A' + number, 0, 1];
        packet.resize(5 + 5 + (4 << 20), b'x');
        stream.write_all(&packet).await.unwrap();
        let mut replies = [0; 8];
        stream.read_exact(&mut replies).await.unwrap();
        assert_eq!(replies, [0x20, 2, 0, 0, 0x40, 2, 0, 1], "what stalls gives way to it");
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooded_broker_stays_within_its_memory() {
    let (mut process, settings_of_broker) = start_process(None);
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let limit = limits.lines().find(|it| it.starts_with("Max data size")).unwrap();
    let bytes = settings_of_broker.memory_bytes_max;
    assert_eq!(limit.split_whitespace().nth(3).unwrap(), bytes.to_string());
    let port = settings_of_broker.tcp.port();
    let streams = flood(port).await;
    assert!(process.ended().is_none());
    let peak_kib = memory_kib(process.id(), "VmHWM");
    assert!(peak_kib * 1024 < bytes, "{peak_kib} KiB");
    // And it still serves.
    Running::connected(settings(port, "door", &[])).await.stop().await;
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lack_of_memory_ends_the_broker_alone() {
    let (mut process, settings_of_broker) = start_process(Some(16 << 20));
    let port = settings_of_broker.tcp.port();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&connect_packet("greedy")).await.unwrap();
    for number in 0..6_u8 {
        let mut packet = vec![0x31, 0x83, 0x80, 0x80, 0x02, 0, 1, b'A' + number];
        packet.resize(5 + 3 + (4 << 20), b'x');
        stream.write_all(&packet).await.ok(); // It may have ended by then.
    }
    eventually("the process has ended", || process.ended().is_some()).await;
    assert!(!process.ended().unwrap().success());
    let program = std::env::current_exe().unwrap();
    let _process = BrokerProcess::start(&program, &CHILD_ARGS, &settings_of_broker).unwrap();
    Running::connected(settings(port, "door", &[])).await.stop().await;
}
