//! Somebody else on the broker: publishes commands, keeps everything that the device says, waits
//! for what must come.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rollcall::backoff::Backoff;
use rollcall::clock::Stopwatch;
use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::link;
use rollcall::mqtt::link::Link;
use rollcall::mqtt::message::Message;
use rollcall::mqtt::settings::LinkSettings;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::support::daemon::{BASE, Daemon, Home, PATIENCE, until};

/// A message as it came. Retained ones are what the broker had kept.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// Below the device's own topic: `event/attendance`, `reply/r-1`, `status`.
    pub part: String,
    pub payload: Vec<u8>,
    pub retained: bool,
}

impl ReceivedMessage {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap()
    }
}

pub struct Client {
    link: Link,
    received: Arc<Mutex<Vec<ReceivedMessage>>>,
    stop: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

impl Client {
    /// With a session that the broker keeps: what is said while the broker is down, or this client,
    /// is heard later.
    pub fn connect(port: u16) -> Self {
        Self::connect_as(port, "observer")
    }

    /// Another beside it.
    pub fn connect_as(port: u16, id: &str) -> Self {
        let mut wanted = LinkSettings::new("127.0.0.1", port, id, format!("{id}/status"));
        wanted.subscriptions = vec![format!("{BASE}/event/+"), format!("{BASE}/reply/+")];
        wanted.subscriptions.extend(
            ["status", "health", "watermark", "receipt/+"].map(|part| format!("{BASE}/{part}")),
        );
        wanted.packet_bytes_max_out = 64 << 20;
        wanted.retry.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200));
        let (link, driver, mut reported) = link::open(wanted).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, asked) = watch::channel(false);
        let received = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&received);
        runtime.spawn(async move {
            while let Some(event) = reported.recv().await {
                if let LinkEvent::Inbound(inbound) = event {
                    let below = inbound
                        .topic
                        .strip_prefix(BASE)
                        .unwrap()
                        .trim_start_matches('/')
                        .to_owned();
                    let received = ReceivedMessage {
                        part: below,
                        payload: inbound.payload,
                        retained: inbound.retained,
                    };
                    lock(&keep).push(received);
                    inbound.ack.acknowledge();
                }
            }
        });
        runtime.spawn(driver.drive(asked));
        let client = Self { link, received, stop, runtime: Some(runtime) };
        client.publish("settled", b"");
        client
    }

    /// A daemon that is ready, and has told so here: from then on the broker keeps commands for it.
    pub fn started(&self, home: &Home) -> Daemon {
        let from = lock(&self.received).len();
        let daemon = home.start();
        let online = |it: &ReceivedMessage| it.part == "status" && it.payload == b"online";
        until("the device is online", || {
            lock(&self.received)[from..].iter().any(online).then_some(())
        });
        daemon
    }

    /// At QoS 1, again and again until the broker has acknowledged it.
    pub fn publish(&self, topic: &str, payload: &[u8]) {
        until("the broker acknowledges", || {
            let message =
                Message { topic: topic.to_owned(), payload: payload.to_vec(), retain: false };
            let sent =
                self.runtime.as_ref().unwrap().block_on(self.link.publish_batch(vec![message]));
            sent[0].is_ok().then_some(())
        });
    }

    /// A command to the device; its answer comes when it comes.
    pub fn command(&self, verb: &str, body: &Value) {
        self.publish(&format!("{BASE}/command/{verb}"), &serde_json::to_vec(body).unwrap());
    }

    /// A command with a `request_id`, and its answer.
    pub fn request(&self, verb: &str, request_id: &str, mut body: Value) -> Value {
        body["request_id"] = request_id.into();
        let before = self.received().len();
        self.command(verb, &body);
        self.await_from(before, &format!("reply/{request_id}")).json()
    }

    pub fn received(&self) -> Vec<ReceivedMessage> {
        lock(&self.received).clone()
    }

    /// What was heard on one topic, as JSON.
    pub fn received_on(&self, part: &str) -> Vec<Value> {
        lock(&self.received)
            .iter()
            .filter(|it| it.part == part)
            .map(ReceivedMessage::json)
            .collect()
    }

    /// The topics with this beginning on which something was heard, without the beginning.
    pub fn parts(&self, beginning: &str) -> HashSet<String> {
        lock(&self.received)
            .iter()
            .filter_map(|it| it.part.strip_prefix(beginning))
            .map(str::to_owned)
            .collect()
    }

    pub fn count(&self, wanted: impl Fn(&ReceivedMessage) -> bool) -> usize {
        lock(&self.received).iter().filter(|it| wanted(it)).count()
    }

    /// The first message on a topic from `from` on.
    pub fn await_from(&self, from: usize, part: &str) -> ReceivedMessage {
        until(part, || lock(&self.received)[from..].iter().find(|it| it.part == part).cloned())
    }

    pub fn await_one(
        &self,
        what: &str,
        wanted: impl Fn(&ReceivedMessage) -> bool,
    ) -> ReceivedMessage {
        until(what, || lock(&self.received).iter().find(|it| wanted(it)).cloned())
    }

    /// The next health message of which `wanted` is true.
    pub fn await_health(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let from = self.received().len();
        let fresh = |it: &ReceivedMessage| {
            (it.part == "health").then(|| it.json()).filter(|health| wanted(health))
        };
        until(what, || lock(&self.received)[from..].iter().find_map(fresh))
    }

    /// Waits for so many different answers, however long they take, as long as some come.
    pub fn await_replies(&self, wanted: usize) {
        let mut last = 0;
        let mut watch = Stopwatch::start();
        loop {
            let replies = self.replies();
            if replies >= wanted {
                return;
            }
            if replies > last {
                (last, watch) = (replies, Stopwatch::start());
            }
            assert!(watch.elapsed() < PATIENCE, "{replies} of {wanted} answers, and no more");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many different requests were answered.
    pub fn replies(&self) -> usize {
        let received = lock(&self.received);
        let parts =
            received.iter().map(|it| it.part.as_str()).filter(|part| part.starts_with("reply/"));
        parts.collect::<BTreeSet<_>>().len()
    }

    /// All events by `seq`; it is an error that one `seq` has two ids, or one id two of anything.
    pub fn events(&self) -> BTreeMap<u64, Value> {
        let mut events: BTreeMap<u64, Value> = BTreeMap::new();
        for event in lock(&self.received)
            .iter()
            .filter(|it| it.part.starts_with("event/"))
            .map(ReceivedMessage::json)
        {
            let seq = event["seq"].as_u64().unwrap();
            let same = |known: &Value| known["event_id"] == event["event_id"];
            assert!(events.get(&seq).is_none_or(same), "seq {seq} has two ids");
            events.insert(seq, event);
        }
        events
    }

    /// Waits until every event that the database holds was heard, and holds the two against each
    /// other: the same events with the same ids, and `seq` from 1 on without a gap. For a daemon
    /// that has ended.
    pub fn check_events(&self, home: &Home) -> BTreeMap<u64, Value> {
        let kept = home.events();
        let received = until("every event is heard", || {
            Some(self.events()).filter(|received| received.len() >= kept.len())
        });
        let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
        let reported = received
            .iter()
            .map(|(seq, event)| (*seq, text(event, "event_id"), text(event, "kind")));
        assert_eq!(reported.collect::<Vec<_>>(), kept, "MQTT and SQLite tell the same");
        assert!(
            kept.iter().map(|event| event.0).eq(1..=kept.len() as u64),
            "seq has a gap: {kept:?}"
        );
        let ids: BTreeSet<_> = kept.iter().map(|event| &event.1).collect();
        assert_eq!(ids.len(), kept.len(), "one event_id, two events");
        received
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

fn lock(received: &Mutex<Vec<ReceivedMessage>>) -> std::sync::MutexGuard<'_, Vec<ReceivedMessage>> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}
