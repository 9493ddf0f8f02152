//! What a webhook's receiver answers: the bytes of one connection, sorted for each preset.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::health::{Health, WebhookHealth};
use rollcall::ids::{Name, Origin, SubjectId};
use rollcall::store::relay::{Delivery, Sink as _};
use rollcall::store::{OutboxPayload, OutboxRow};
use rollcall::webhook::{Preset, WebhookLink, WebhookSettings, WebhookSink, WebhookUrl};
use rollcall::wire::event::{
    Attendance, Body, ClockState, Direction, Status, StoredEvent, SubjectRef,
};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::choice;

const NOW_MS: i64 = 1_795_420_683_412;
const NAME: &str = "Jane Doe";
/// Nothing listens there: a second connection is refused at once.
const URL: &str = "http://127.0.0.1:9/";

thread_local! {
    /// Waiting costs nothing in it. One for all runs: making it costs more than a run.
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
}

/// The first byte chooses the preset. Whatever is answered, each event gets an outcome, and what is
/// kept of the answer is short, of one line and without the person's name.
pub fn answer(bytes: &[u8]) {
    let (first, answer) = choice(bytes);
    let preset = match first % 3 {
        0 => Preset::Plain,
        1 => Preset::Frappe { zone: TimeZone::UTC, shifts: vec!["Day".into()] },
        _ => Preset::Odoo { database: None },
    };
    for delivery in RUNTIME.with(|it| it.block_on(deliver(preset, answer))) {
        if let Delivery::Poison(reason) | Delivery::Rejected(reason) | Delivery::Retry(reason) =
            delivery
        {
            assert!(reason.len() < 2048 && !reason.contains(NAME), "{reason}");
            assert!(!reason.chars().any(char::is_control), "{reason:?}");
        }
    }
}

async fn deliver(preset: Preset, answer: &[u8]) -> Vec<Delivery> {
    let (ours, mut theirs) = tokio::io::duplex(answer.len() + (64 << 10));
    theirs.write_all(answer).await.expect("the pipe is large enough");
    theirs.shutdown().await.expect("the pipe is open");
    let clock = Arc::new(SimulatedClock::at(NOW_MS));
    let settings = settings(preset);
    let health = Arc::new(Health::default());
    health.set_webhooks(vec![WebhookHealth::new("hr", settings.sink().as_str())]);
    let boot_id = clock.boot_id();
    let link = WebhookLink::new(Arc::new(settings), None, clock, health, 0);
    link.use_stream(Box::new(ours)).await.expect("nothing is sent yet");
    let origin = Origin { site: "hq".into(), device: "door-1".into() };
    let event = StoredEvent {
        seq: 1,
        event_id: Uuid::from_u128(1),
        occurred_ms: NOW_MS,
        boot_id,
        boottime_ms: 1,
        clock: ClockState::Synced,
        superseded_by: None,
        body: Body::Attendance(attendance()),
        chain: None,
    };
    let payload = OutboxPayload::Event { event, corrected: None };
    let row = OutboxRow { id: 1, payload, created_ms: NOW_MS, attempts: 0 };
    let deliveries = WebhookSink::new(link, origin).deliver(&[row]).await;
    assert_eq!(deliveries.len(), 1);
    deliveries
}

fn settings(preset: Preset) -> WebhookSettings {
    WebhookSettings {
        name: "hr".into(),
        url: WebhookUrl::parse(URL, true).expect("it is a URL"),
        preset,
        key: None,
        authorization: None,
        ca_file: None,
        allow_private: true,
        timeout: Duration::from_secs(1),
        batch: 1,
    }
}

fn attendance() -> Attendance {
    Attendance {
        venue: "room".into(),
        session: None,
        subject: Some(SubjectRef {
            id: SubjectId::new("17").expect("it is an id"),
            name: Name::new(NAME).expect("it is a name"),
        }),
        direction: Direction::In,
        status: Status::Present,
        score: 0.7,
        threshold: 0.42,
        frames: 4,
        track_ms: 600,
        latency_ms: 80,
    }
}
