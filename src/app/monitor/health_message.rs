//! The health message: published every minute, and at once when a state changes or a stage notifies
//! of a change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::state::counted::PeopleCounts;
use crate::app::supervise::StageResult;
use crate::clock::{Stamp, rfc3339};
use crate::health::{
    self, CameraCounters, CameraHealth, HttpState, MongoState, RecognitionCounters, Sharing,
    WebhookHealth, WebhookState, WebhookStatus,
};
use crate::mqtt::link::{Link, LinkStatus, MqttState};
use crate::mqtt::settings::Version;
use crate::store::{DeliveryStatus, SinkStatus, StoreError, Tx};
use crate::vision::manifest::Precision;

pub struct HealthReporter {
    ctx: Context,
    link: Option<Link>,
    /// The numbers of outdated and of partial subjects with the gallery version for which they were
    /// counted.
    outdated: Mutex<Option<(u64, (u64, u64))>>,
}

/// How often states are checked for a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct HealthMessage<'a> {
    schema: u32,
    site: &'a str,
    device: &'a str,
    version: &'static str,
    at: String,
    uptime_s: u64,
    clock_trusted: bool,
    camera: CameraSection<'a>,
    recognition: RecognitionSection<'a>,
    gallery: GallerySection,
    recorded: u64,
    events_published: u64,
    commands: u64,
    commands_refused: BTreeMap<&'static str, u64>,
    outbox: Vec<OutboxSection>,
    watermark: WatermarkSection,
    /// Null without a broker.
    mqtt: Option<MqttSection>,
    /// Null without MongoDB.
    mongo: Option<MongoSection>,
    /// In the order of the configuration; left out without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhooks: Vec<WebhookSection>,
    /// Null where HTTP is off.
    http: Option<HttpSection>,
    store: StoreSection,
    cpu_celsius: Option<f32>,
    rss_bytes: Option<u64>,
    device_key: String,
}

#[derive(Serialize)]
struct CameraSection<'a> {
    state: CameraHealth,
    /// What is wrong while the camera is lost, and the reason in words; null otherwise.
    fault: Option<&'static str>,
    reason: Option<String>,
    #[serde(flatten)]
    counters: &'a CameraCounters,
}

#[derive(Serialize)]
struct RecognitionSection<'a> {
    #[serde(flatten)]
    counters: &'a RecognitionCounters,
    embedder: &'a str,
    precision: Precision,
    model_digests: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct GallerySection {
    subjects: usize,
    references: usize,
    version: u64,
    /// Equal on devices with the same references.
    digest: String,
    /// Subjects without a reference of the embedder in use.
    outdated: Option<u64>,
    /// Subjects recognised by the first part of the embedder in use alone.
    partial: Option<u64>,
    /// Consents that end within 30 days.
    consents_ending: Option<u64>,
    /// Subjects withdrawn since the start because their consent had ended.
    consents_ended: u64,
    /// Null where the gallery is not shared.
    sharing: Option<Sharing>,
}

#[derive(Serialize)]
struct OutboxSection {
    sink: &'static str,
    rows: u64,
    buried: u64,
    oldest_age_s: Option<u64>,
}

#[derive(Default, Serialize)]
struct WatermarkSection {
    complete_through: Option<String>,
    /// A dead letter that holds the watermark back.
    held_back_by: Option<HeldBack>,
}

#[derive(Serialize)]
struct HeldBack {
    sink: &'static str,
    seq: i64,
}

#[derive(Serialize)]
struct MqttSection {
    state: MqttState,
    /// Of MQTT, while connected.
    version: Option<&'static str>,
    /// What is wrong, in words.
    reason: Option<String>,
    /// A topic on which the broker refuses our messages.
    refused_topic: Option<String>,
}

#[derive(Serialize)]
struct MongoSection {
    state: MongoState,
    since: String,
}

#[derive(Serialize)]
struct WebhookSection {
    name: String,
    state: WebhookState,
    /// Null before the first request.
    since: Option<String>,
    /// What is wrong, in words.
    reason: Option<String>,
}

#[derive(Serialize)]
struct HttpSection {
    state: HttpState,
}

#[derive(Serialize)]
struct StoreSection {
    database_bytes: u64,
    free_bytes: Option<u64>,
    reserve_held: bool,
    errors: u64,
    /// Rows of the database that cannot be read; null while that is not known.
    unreadable: Option<u64>,
}

/// The states whose change publishes a message at once.
#[derive(Clone, Copy, PartialEq, Eq)]
struct WatchedStates {
    camera: CameraHealth,
    mqtt: Option<MqttState>,
    mongo: Option<MongoState>,
    webhook_changes: u64,
    is_reserve_held: bool,
    is_clock_trusted: bool,
}

impl HealthReporter {
    pub fn new(ctx: Context, link: Option<Link>) -> Self {
        Self { ctx, link, outdated: Mutex::default() }
    }

    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) -> StageResult {
        let interval = self.ctx.settings.health_every;
        let mut published: Option<(Stamp, WatchedStates)> = None;
        loop {
            let now = self.ctx.clock.now();
            let states = WatchedStates {
                camera: self.ctx.health.camera_state(),
                mqtt: self.link.as_ref().map(|link| link.status().state),
                mongo: self.ctx.health.mongo().map(|(state, _)| state),
                webhook_changes: self.ctx.health.webhook_changes.get(),
                is_reserve_held: self.ctx.store.is_reserve_held(),
                is_clock_trusted: now.trusted,
            };
            let is_due =
                published.is_none_or(|(at, before)| before != states || now.since(&at) >= interval);
            if is_due {
                let is_online =
                    published.is_none() && self.link.as_ref().is_some_and(Link::is_online);
                self.publish(&now).await?;
                published = Some((now, states));
                if is_online {
                    // A hundred enrolments in a second are two messages: one for the first, and one
                    // for the rest.
                    tokio::select! {
                        () = tokio::time::sleep(CHECK_INTERVAL) => {}
                        _ = stop.wait_for(|it| *it) => return Ok(()),
                    }
                }
            }
            tokio::select! {
                () = self.ctx.changed.notified() => published = None,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn publish(&self, now: &Stamp) -> Result<(), StoreError> {
        let payload = self.payload(now).await?;
        self.ctx.health.set_message(payload.clone());
        if let Some(link) = &self.link {
            link.publish_latest(&self.ctx.topics.health(), payload, true);
        }
        Ok(())
    }

    /// Returns the message as of now.
    pub async fn current(&self) -> Result<Vec<u8>, StoreError> {
        self.payload(&self.ctx.clock.now()).await
    }

    async fn payload(&self, now: &Stamp) -> Result<Vec<u8>, StoreError> {
        let embedder = self.ctx.embedder;
        let version = self.ctx.gallery.snapshot().version();
        let counted = *self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        // Counting is expensive, and the number changes with the gallery only.
        let counted = counted.filter(|it| it.0 == version).map(|it| it.1);
        let wall_ms = now.wall_ms;
        let read = move |tx: &Tx<'_>| {
            let count = || tx.migration(&embedder).map(|it| (it.outdated, it.partial));
            let (outdated, partial) = counted.map_or_else(count, Ok)?;
            let erasures_pending = tx.erasures_pending()?;
            let consents_ending = tx.consent_counts(wall_ms)?.ending;
            let people = PeopleCounts { outdated, partial, erasures_pending, consents_ending };
            Ok((tx.delivery_status()?, people))
        };
        let (status, people) = match self.ctx.store.read(read).await {
            Ok((status, people)) => {
                self.ctx.counted.set_delivery_status(&status);
                self.ctx.counted.set_people(people);
                (Some(status), Some(people))
            }
            Err(error) if error.is_fatal() => return Err(error),
            Err(_) => (None, None),
        };
        if let Some(people) = people {
            *self.outdated.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((version, (people.outdated, people.partial)));
        }
        let message = self.message(now, status.as_ref(), people);
        Ok(serde_json::to_vec(&message).expect("plain numbers and strings"))
    }

    fn message(
        &self,
        now: &Stamp,
        status: Option<&DeliveryStatus>,
        people: Option<PeopleCounts>,
    ) -> HealthMessage<'_> {
        let health = &self.ctx.health;
        let gallery = self.ctx.gallery.snapshot();
        let store = self.ctx.store.vitals();
        let loss = health.camera_loss();
        HealthMessage {
            schema: 1,
            site: self.ctx.origin.site.as_str(),
            device: self.ctx.origin.device.as_str(),
            version: env!("CARGO_PKG_VERSION"),
            at: rfc3339(now.wall_ms),
            uptime_s: now.since(&self.ctx.started).as_secs(),
            clock_trusted: now.trusted,
            camera: CameraSection {
                state: health.camera_state(),
                fault: loss.as_ref().and_then(|it| it.fault),
                reason: loss.map(|it| it.reason),
                counters: &health.camera,
            },
            recognition: RecognitionSection {
                counters: &health.recognition,
                embedder: &self.ctx.settings.vision.embedder,
                precision: self.ctx.settings.vision.precision,
                model_digests: &self.ctx.model_digests,
            },
            gallery: GallerySection {
                subjects: gallery.subjects(),
                references: gallery.references(),
                version: gallery.version(),
                digest: format!("{:016x}", gallery.digest()),
                outdated: people.map(|it| it.outdated),
                partial: people.map(|it| it.partial),
                consents_ending: people.map(|it| it.consents_ending),
                consents_ended: health.consents_ended.get(),
                sharing: health.sharing(),
            },
            recorded: health.recorded.get(),
            events_published: health.events_published.get(),
            commands: health.commands.get(),
            commands_refused: health.rejections(),
            outbox: status
                .into_iter()
                .flat_map(|it| &it.sinks)
                .map(|it| outbox_section(it, now))
                .collect(),
            watermark: status.map(watermark_section).unwrap_or_default(),
            mqtt: self.link.as_ref().map(mqtt_section),
            mongo: health
                .mongo()
                .map(|(state, since_ms)| MongoSection { state, since: rfc3339(since_ms) }),
            webhooks: health.webhooks().iter().map(webhook_section).collect(),
            http: health.http().map(|state| HttpSection { state }),
            store: StoreSection {
                database_bytes: store.database_bytes,
                free_bytes: store.free_bytes,
                reserve_held: store.reserve_held,
                errors: health.store_errors.get(),
                unreadable: status.map(|it| it.unreadable.rows),
            },
            cpu_celsius: health::cpu_celsius(),
            rss_bytes: health::resident_bytes(),
            device_key: self.ctx.device_key.public().to_string(),
        }
    }
}

fn mqtt_section(link: &Link) -> MqttSection {
    let LinkStatus { state, version, reason, refused_topic } = link.status();
    MqttSection { state, version: version.map(Version::as_str), reason, refused_topic }
}

fn webhook_section(webhook: &WebhookHealth) -> WebhookSection {
    let WebhookStatus { state, since_ms, reason } = webhook.status();
    WebhookSection { name: webhook.name.clone(), state, since: since_ms.map(rfc3339), reason }
}

fn outbox_section(status: &SinkStatus, now: &Stamp) -> OutboxSection {
    let depth = &status.depth;
    OutboxSection {
        sink: status.sink.as_str(),
        rows: depth.rows,
        buried: depth.dead_letters,
        oldest_age_s: depth.oldest_created_ms.map(|ms| ((now.wall_ms - ms) / 1000).max(0) as u64),
    }
}

fn watermark_section(status: &DeliveryStatus) -> WatermarkSection {
    let held_back_by =
        status.held_back_by().map(|(sink, held)| HeldBack { sink: sink.as_str(), seq: held.seq });
    WatermarkSection { complete_through: status.complete_through(None), held_back_by }
}
