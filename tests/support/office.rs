//! A client of all doors of a site.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::backoff::Backoff;
use rollcall::keys::seal::SharedKey;
use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::link;
use rollcall::mqtt::link::Link;
use rollcall::mqtt::message::Message;
use rollcall::mqtt::settings::LinkSettings;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::daemon::{Home, PATIENCE, until, until_for};
use crate::support::faces::{base64, demo, enrolment};

/// What the doors published: topic and payload.
type Received = Vec<(String, Vec<u8>)>;

/// A client of a whole site: commands to any door, and the messages of all.
pub struct Office {
    pub link: Link,
    received: Arc<Mutex<Received>>,
    requests: AtomicU32,
    _stop: watch::Sender<bool>,
    pub runtime: tokio::runtime::Runtime,
}

impl Office {
    pub fn open(port: u16) -> Self {
        let mut settings = LinkSettings::new("127.0.0.1", port, "office", "office/status".into());
        settings.subscriptions =
            vec!["rollcall/hq/+/health".into(), "rollcall/hq/+/reply/+".into()];
        settings.packet_bytes_max_out = 64 << 20;
        settings.retry.backoff =
            Backoff::new(Duration::from_millis(20), Duration::from_millis(200));
        let (link, driver, mut events) = link::open(settings).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let received: Arc<Mutex<Received>> = Arc::default();
        let keep = Arc::clone(&received);
        runtime.spawn(async move {
            while let Some(event) = events.recv().await {
                if let LinkEvent::Inbound(it) = event {
                    keep.lock().unwrap().push((it.topic, it.payload));
                    it.ack.acknowledge();
                }
            }
        });
        runtime.spawn(driver.drive(stopped));
        Self { link, received, requests: AtomicU32::new(0), _stop: stop, runtime }
    }

    pub fn publish(&self, topic: &str, payload: &[u8], retain: bool) {
        until("the broker acknowledges", || {
            let message = Message { topic: topic.into(), payload: payload.to_vec(), retain };
            self.runtime.block_on(self.link.publish_batch(vec![message]))[0].is_ok().then_some(())
        });
    }

    /// Returns the request id.
    pub fn command(&self, door: &str, verb: &str, mut body: Value) -> String {
        let id = format!("r-{}", self.requests.fetch_add(1, Ordering::Relaxed));
        body["request_id"] = id.as_str().into();
        self.publish(
            &format!("rollcall/hq/{door}/command/{verb}"),
            &serde_json::to_vec(&body).unwrap(),
            false,
        );
        id
    }

    pub fn reply(&self, door: &str, id: &str) -> Value {
        let topic = format!("rollcall/hq/{door}/reply/{id}");
        until(&topic, || {
            let received = self.received.lock().unwrap();
            received
                .iter()
                .find(|it| it.0 == topic)
                .map(|it| serde_json::from_slice(&it.1).unwrap())
        })
    }

    pub fn request(&self, door: &str, verb: &str, body: Value) -> Value {
        let id = self.command(door, verb, body);
        self.reply(door, &id)
    }

    pub fn recognises(&self, door: &str, photograph: &str) -> bool {
        let reply = self.request(door, "recognise", json!({"image": base64(&demo(photograph))}));
        reply["names"].as_array().is_some_and(|names| !names.is_empty())
    }

    /// Returns the newest health message.
    pub fn health(&self, door: &str) -> Option<Value> {
        let topic = format!("rollcall/hq/{door}/health");
        let received = self.received.lock().unwrap();
        received
            .iter()
            .rev()
            .find(|it| it.0 == topic)
            .map(|it| serde_json::from_slice(&it.1).unwrap())
    }

    pub fn gallery(&self, door: &str) -> Option<Value> {
        self.health(door).map(|it| it["gallery"].clone())
    }

    /// Waits until all of them have so many subjects, and the same.
    pub fn until_same(&self, doors: &[&str], subjects: usize) {
        let what = format!("{doors:?} have the same {subjects} subjects");
        until_for(PATIENCE * 3, &what, || {
            let found: Vec<Value> = doors.iter().filter_map(|door| self.gallery(door)).collect();
            let digests: BTreeSet<_> = found.iter().map(|it| it["digest"].to_string()).collect();
            let all =
                found.len() == doors.len() && found.iter().all(|it| it["subjects"] == subjects);
            (all && digests.len() == 1).then_some(())
        });
    }

    pub fn enrol(&self, door: &str, id: &str, photograph: &str) {
        let reply =
            self.request(door, "enrol", enrolment(id, &format!("Name {id}"), &[demo(photograph)]));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    pub fn withdraw(&self, door: &str, id: &str, erase: bool) {
        let reply = self.request(door, "withdraw", json!({"subject_id": id, "erase": erase}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    pub fn until_gallery(&self, door: &str, state: &str, subjects: usize) {
        until_for(PATIENCE, &format!("{door} is {state} with {subjects} subjects"), || {
            self.gallery(door)
                .filter(|it| it["sharing"]["state"] == state && it["subjects"] == subjects)
        });
    }
}

/// The key of a site, and another one.
pub struct Keys {
    _dir: tempfile::TempDir,
    pub site: SharedKey,
    pub wrong: SharedKey,
}

pub fn keys() -> Keys {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| SharedKey::create(&dir.path().join(name)).unwrap();
    Keys { site: make("site.key"), wrong: make("wrong.key"), _dir: dir }
}

/// Counts rows in the database of a door.
pub fn count(home: &Home, sql: &str) -> usize {
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as usize
}
