//! The daemon and Home Assistant's discovery, over a real mosquitto: the message is there, comes
//! again, and goes. And the examples that need nothing but mosquitto's clients.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::daemon::{Home, until};
use crate::support::link::{Running, settings};
use crate::support::mosquitto::Mosquitto;
use rollcall::mqtt::event::Inbound;
use serde_json::{Value, json};

const TOPIC: &str = "homeassistant/device/rollcall-hq/door-1/config";
const STATUS: &str = "homeassistant/status";

/// Hears all that is said to Home Assistant, first what the broker has kept.
async fn listener(broker: &Mosquitto, id: &str) -> Running {
    Running::connected(settings(broker.port(), id, &["homeassistant/#", "elsewhere/#"])).await
}

/// The next message that is not Home Assistant's own.
async fn next(listener: &mut Running) -> Inbound {
    loop {
        let inbound = listener.inbound().await;
        if inbound.topic != STATUS {
            return inbound;
        }
        inbound.ack.acknowledge();
    }
}

/// The next one, for which the broker may send again what was not acknowledged.
async fn take(listener: &mut Running) -> (String, Vec<u8>, bool) {
    let Inbound { topic, payload, retained, ack, .. } = next(listener).await;
    ack.acknowledge();
    (topic, payload, retained)
}

fn json_of(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).unwrap()
}

/// What mosquitto wrote down of publishes by the daemon to Home Assistant.
fn published(broker: &Mosquitto) -> usize {
    let log = broker.log();
    log.lines()
        .filter(|line| {
            line.contains("Received PUBLISH from rollcall-") && line.contains("homeassistant")
        })
        .count()
}

fn online_and_told(home: &Home, broker: &Mosquitto, health_before: usize) {
    let reported =
        || broker.log().matches("'rollcall/hq/door-1/health'").count() > health_before + 2;
    until("the vital signs are told", || reported().then_some(()));
    assert!(home.log().contains("MQTT link is up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_is_retained_and_names_nobody() {
    let mut broker = Mosquitto::start();
    let home = Home::new(broker.port(), "[home_assistant]\nname = \"Tür Süd – 正門\"\n");
    let photograph = faces::demo("obama.jpg").display().to_string();
    assert!(
        home.output(&["enrol", "--id", "barack", "--name", "Barack Ümläut", &photograph])
            .status
            .success()
    );
    let mut early = listener(&broker, "early").await;
    let running = home.start();
    let (topic, payload, retained) = take(&mut early).await;
    assert_eq!((topic.as_str(), retained), (TOPIC, false));
    let message = json_of(&payload);
    assert_eq!(message["dev"]["name"], "Tür Süd – 正門");
    assert_eq!(message["cmps"]["attendance"]["stat_t"], "rollcall/hq/door-1/event/attendance");
    assert_eq!(message["cmps"]["camera"], json!({"p": "binary_sensor"}), "it has no camera");

    // Somebody is recorded, and still the broker keeps nobody's name.
    let body = json!({"request_id": "a-1", "venue": "main", "image": faces::base64(&faces::demo("obama2.jpg"))});
    broker.publish_payload("rollcall/hq/door-1/command/attend", body.to_string().as_bytes(), &[]);
    until("the attendance is recorded", || {
        home.events().iter().any(|it| it.2 == "attendance").then_some(())
    });
    let kept = broker.subscribe(&["-t", "#", "--retained-only", "-W", "2", "-v"]).stdout;
    let kept = String::from_utf8(kept).unwrap();
    assert!(kept.contains(TOPIC) && kept.contains("rollcall/hq/door-1/health"), "{kept}");
    assert!(!kept.contains("Barack") && !kept.contains("barack"), "{kept}");

    let mut late = listener(&broker, "late").await;
    assert_eq!(take(&mut late).await, (TOPIC.to_owned(), payload.clone(), true));
    broker.publish(&["-t", STATUS, "-m", "online"]);
    assert_eq!(
        take(&mut early).await,
        (TOPIC.to_owned(), payload.clone(), false),
        "Home Assistant has started"
    );

    // A broker that has forgotten everything is told again.
    broker.kill();
    fs::remove_file(broker.path("mosquitto.db")).ok();
    broker.run();
    assert_eq!(take(&mut early).await.1, payload);
    assert!(running.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_follows_switch_and_prefix() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), "");
    let mut early = listener(&broker, "early").await;
    let running = home.start();
    assert_eq!(take(&mut early).await.0, TOPIC);
    assert!(running.terminate().success());

    home.configure(broker.port(), "[home_assistant]\ndiscovery_prefix = \"elsewhere\"\n");
    let running = home.start();
    assert_eq!(
        take(&mut early).await,
        (TOPIC.to_owned(), Vec::new(), false),
        "the old one is taken back"
    );
    let (topic, payload, _) = take(&mut early).await;
    assert_eq!(topic, TOPIC.replace("homeassistant", "elsewhere"));
    assert!(!payload.is_empty());
    assert!(running.terminate().success());

    home.configure(broker.port(), "[home_assistant]\nenabled = false\n");
    let running = home.start();
    assert_eq!(take(&mut early).await, (topic.clone(), Vec::new(), false));
    let forgotten = || home.log().contains("announcement to Home Assistant deleted");
    until("it is taken back", || forgotten().then_some(()));
    assert!(running.terminate().success());
    let kept = broker.subscribe(&["-t", "#", "--retained-only", "-W", "2", "-v"]).stdout;
    assert!(!String::from_utf8(kept).unwrap().contains("config"));

    // And that is the end of it.
    let before = published(&broker);
    let health = broker.log().matches("'rollcall/hq/door-1/health'").count();
    let running = home.start();
    online_and_told(&home, &broker, health);
    assert_eq!(published(&broker), before);
    assert!(running.terminate().success());
}

#[test]
fn disabled_discovery_publishes_nothing() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), "[home_assistant]\nenabled = false\n");
    let running = home.start();
    online_and_told(&home, &broker, 0);
    broker.publish(&["-t", "rollcall/hq/door-1/command/sync", "-m", "{\"request_id\":\"s-1\"}"]);
    until("the command is answered", || {
        broker.log().contains("rollcall/hq/door-1/reply/s-1").then_some(())
    });
    assert!(!broker.log().contains("homeassistant"), "{}", broker.log());
    assert!(running.terminate().success());
}

#[test]
fn shell_example_enrols_queries_and_withdraws() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), "");
    let running = home.start();
    until("it is online", || broker.log().contains("'rollcall/hq/door-1/status'").then_some(()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/rollcall.sh");
    let ask = |args: &[&str]| {
        let mut command = Command::new(&script);
        let output = home.finish(command.args(args).env("MQTT_PORT", broker.port().to_string()));
        (output.status.code(), json_of(&output.stdout))
    };
    let photograph = faces::demo("obama.jpg").display().to_string();
    let (code, answer) = ask(&["enrol", "zoe", "Zoë \"Z\" \\ 李", &photograph]);
    assert_eq!((code, &answer["references"]), (Some(0), &json!(1)), "{answer}");
    assert_eq!(home.json(&["subjects", "--json"])[0]["name"], "Zoë \"Z\" \\ 李");
    let (code, answer) = ask(&["enrol", "zoe-2", "Zoë", &photograph]);
    assert_eq!((code, &answer["error"]["code"]), (Some(1), &json!("duplicate_subject")));
    let (code, answer) = ask(&["today"]);
    assert_eq!((code, &answer["rows"]), (Some(0), &json!([])), "{answer}");
    let (code, answer) = ask(&["withdraw", "zoe"]);
    assert_eq!((code, &answer["erased"]), (Some(0), &json!(true)), "{answer}");
    assert_eq!(home.finish(Command::new(&script).arg("enrol")).status.code(), Some(64));
    assert!(running.terminate().success());
}

/// Who copies a flow or an automation wants one that can be read in.
#[test]
fn node_red_example_is_complete() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/node-red.json");
    let flow = json_of(&fs::read(path).unwrap());
    let nodes = flow.as_array().unwrap();
    let ids: Vec<&str> = nodes.iter().map(|it| it["id"].as_str().unwrap()).collect();
    for node in nodes {
        let wires =
            node["wires"].as_array().into_iter().flatten().flat_map(|it| it.as_array().unwrap());
        let named = wires
            .chain(node.get("broker").filter(|_| node["type"] == "mqtt in"))
            .chain(node.get("z"));
        for id in named {
            assert!(ids.contains(&id.as_str().unwrap()), "{node}");
        }
    }
}
