//! A running link for one test: driven in a task, stopped or dropped by the test, its events
//! awaited with a deadline.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::time::Duration;

use rollcall::backoff::Backoff;
use rollcall::mqtt::event::{Inbound, LinkEvent};
use rollcall::mqtt::link;
use rollcall::mqtt::link::Link;
use rollcall::mqtt::message::Message;
use rollcall::mqtt::settings::{LinkSettings, Version, VersionChoice};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub const PATIENCE: Duration = Duration::from_secs(15);

pub struct Running {
    pub link: Link,
    pub events: mpsc::Receiver<LinkEvent>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

pub fn settings(port: u16, id: &str, subscriptions: &[&str]) -> LinkSettings {
    let mut settings = LinkSettings::new("127.0.0.1", port, id, format!("status/{id}"));
    settings.subscriptions = subscriptions.iter().map(|it| (*it).to_owned()).collect();
    settings.retry.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(300));
    settings.version = version();
    settings
}

/// The version of MQTT that the suite is run with: `make test` runs it with each. The daemons of
/// `--test daemon` use it too.
pub fn version() -> VersionChoice {
    match std::env::var("ROLLCALL_TEST_MQTT").as_deref() {
        Err(_) => VersionChoice::Auto,
        Ok("5") => VersionChoice::Only(Version::V5),
        Ok("3.1.1") => VersionChoice::Only(Version::V311),
        Ok(other) => panic!("ROLLCALL_TEST_MQTT is {other:?}"),
    }
}

/// For what is about MQTT 3.1.1 alone.
pub fn settings_v311(port: u16, id: &str, subscriptions: &[&str]) -> LinkSettings {
    let mut settings = settings(port, id, subscriptions);
    settings.version = VersionChoice::Only(Version::V311);
    settings
}

impl Running {
    pub fn start(settings: LinkSettings) -> Self {
        let (link, driver, events) = link::open(settings).unwrap();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { driver.drive(stopped).await.unwrap() });
        Self { link, events, stop, tasks }
    }

    /// Started, connected, and subscribed: mosquitto answers SUBSCRIBE before the PUBLISH that
    /// follows it.
    pub async fn connected(settings: LinkSettings) -> Self {
        let mut running = Self::start(settings);
        running.until_connected().await;
        running.settle().await;
        running
    }

    /// Returns `session_present`.
    pub async fn until_connected(&mut self) -> bool {
        self.until(|event| match event {
            LinkEvent::Connected { session_present } => Some(session_present),
            _ => None,
        })
        .await
    }

    /// A publish and its acknowledgement: everything before it has reached the broker.
    pub async fn settle(&self) {
        assert_eq!(self.link.publish_batch(vec![message("settle", b"")]).await, [Ok(())]);
    }

    pub async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the link lives")
    }

    /// The first event that `pick` takes; others are passed over.
    pub async fn until<T>(&mut self, mut pick: impl FnMut(LinkEvent) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.next().await) {
                return picked;
            }
        }
    }

    pub async fn inbound(&mut self) -> Inbound {
        self.until(|event| match event {
            LinkEvent::Inbound(inbound) => Some(inbound),
            _ => None,
        })
        .await
    }

    /// The link's process dies: its socket is closed without a word.
    pub async fn die(mut self) {
        self.tasks.shutdown().await;
    }

    /// A clean end, as at SIGTERM.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(Duration::from_secs(5), self.tasks.join_next()).await;
        ended.expect("stops within the daemon's own grace").unwrap().unwrap();
    }
}

pub fn message(topic: &str, payload: &[u8]) -> Message {
    Message { topic: topic.to_owned(), payload: payload.to_vec(), retain: false }
}

/// Waits for a condition, not for time.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}
