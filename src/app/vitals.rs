//! The health message: every minute, and at once when something changed that somebody may wait for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::app::gallery::GalleryCell;
use crate::app::metrics::Counted;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp, rfc3339};
use crate::health::{self, CameraHealth, Health, MongoState, Sharing};
use crate::mqtt::link::Link;
use crate::recognise::face::ModelDigest;
use crate::record::store::{SinkStanding, Standing, Store, StoreError, Tx};

pub struct Vitals {
    pub health: Arc<Health>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub clock: Arc<dyn Clock>,
    pub link: Option<Link>,
    pub topic: String,
    pub every: Duration,
    pub changed: Arc<Notify>,
    pub counted: Arc<Counted>,
    /// Digest of each network's file.
    pub networks: BTreeMap<String, String>,
    pub embedder: String,
    pub precision: String,
    pub embedder_digest: ModelDigest,
    /// The public half of the key that signs receipts.
    pub device_key: String,
    pub started: Stamp,
    /// Subjects without a reference of the embedder in use, as they were counted for a version of the gallery.
    pub outdated: Mutex<Option<(u64, u64)>>,
}

/// How often to look whether the camera's state or the trust in the clock has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Message {
    schema: u32,
    version: &'static str,
    at: String,
    uptime_s: u64,
    clock_trusted: bool,
    camera: Camera,
    recognition: Recognition,
    gallery: Gallery,
    recorded: u64,
    events_published: u64,
    commands: u64,
    commands_refused: BTreeMap<&'static str, u64>,
    outbox: Vec<Owed>,
    watermark: Watermark,
    /// Null where no MongoDB is configured.
    mongo: Option<Mongo>,
    store: Storage,
    cpu_celsius: Option<f32>,
    rss_bytes: Option<u64>,
    device_key: String,
}

#[derive(Serialize)]
struct Camera {
    state: CameraHealth,
    frames_captured: u64,
    frames_analysed: u64,
    frames_detected: u64,
    frames_replaced: u64,
    frames_unreadable: u64,
    frames_missed: u64,
    losses: u64,
}

#[derive(Serialize)]
struct Recognition {
    faces: u64,
    templates: u64,
    identified: u64,
    unknown: u64,
    attacks: u64,
    too_far: u64,
    errors: u64,
    /// 0 is full pace; each step halves it, because the processor is hot.
    pace_step: u64,
    embedder: String,
    precision: String,
    model_digests: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Gallery {
    subjects: usize,
    references: usize,
    version: u64,
    /// The same on two devices with the same references.
    digest: String,
    /// Enrolled, but without a reference of the embedder in use: not recognised until photographed again.
    outdated: Option<u64>,
    /// Null where the gallery is not shared.
    sharing: Option<Sharing>,
}

#[derive(Serialize)]
struct Owed {
    sink: &'static str,
    rows: u64,
    buried: u64,
    oldest_age_s: Option<u64>,
}

#[derive(Default, Serialize)]
struct Watermark {
    complete_through: Option<String>,
    /// An event that was set aside as undeliverable, and holds it back.
    held_back_by: Option<HeldBack>,
}

#[derive(Serialize)]
struct HeldBack {
    sink: &'static str,
    seq: i64,
}

#[derive(Serialize)]
struct Mongo {
    state: MongoState,
    since: String,
}

#[derive(Serialize)]
struct Storage {
    database_bytes: u64,
    free_bytes: Option<u64>,
    reserve_held: bool,
    errors: u64,
}

impl Vitals {
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut published: Option<(Stamp, CameraHealth, Option<MongoState>, bool)> = None;
        loop {
            let now = self.clock.now();
            let mongo = self.health.mongo().map(|(state, _)| state);
            let state = (now, self.health.camera(), mongo, self.store.is_reserve_held());
            let due = published.is_none_or(|(at, camera, mongo, reserve)| {
                let changed = (camera, mongo, reserve) != (state.1, state.2, state.3)
                    || now.trusted != at.trusted;
                changed || now.since(&at) >= self.every
            });
            if due {
                let told = published.is_none() && self.link.as_ref().is_some_and(Link::is_online);
                self.publish(&now).await?;
                published = Some(state);
                if told {
                    // A hundred enrolments in a second are two messages: the first, and one for the rest.
                    tokio::select! {
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                        _ = stop.wait_for(|it| *it) => return Ok(()),
                    }
                }
            }
            tokio::select! {
                () = self.changed.notified() => published = None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn publish(&self, now: &Stamp) -> Result<(), StoreError> {
        let payload = self.payload(now).await?;
        self.health.set_message(payload.clone());
        if let Some(link) = &self.link {
            link.publish_latest(&self.topic, payload, true);
        }
        Ok(())
    }

    /// The message as it is now.
    pub async fn now(&self) -> Result<Vec<u8>, StoreError> {
        self.payload(&self.clock.now()).await
    }

    async fn payload(&self, now: &Stamp) -> Result<Vec<u8>, StoreError> {
        let (embedder, version) = (self.embedder_digest, self.gallery.snapshot().version());
        let counted = *self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        // To count them all is work, and only a change of the gallery makes another number.
        let counted = counted.filter(|it| it.0 == version).map(|it| it.1);
        let read = move |tx: &mut Tx<'_>| {
            let outdated =
                counted.map_or_else(|| tx.migration(&embedder).map(|it| it.outdated), Ok)?;
            Ok((tx.standing()?, outdated, tx.erasures_pending()?))
        };
        let (standing, outdated) = match self.store.write_async(read).await {
            Ok((standing, outdated, erasures_pending)) => {
                self.counted.set_standing(&standing);
                self.counted.set_people(outdated, erasures_pending);
                (Some(standing), Some(outdated))
            }
            Err(error) if error.is_fatal() => return Err(error),
            Err(_) => (None, None),
        };
        if let Some(outdated) = outdated {
            *self.outdated.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((version, outdated));
        }
        let message = self.message(now, standing.as_ref(), outdated);
        Ok(serde_json::to_vec(&message).expect("plain numbers and strings"))
    }

    fn message(&self, now: &Stamp, standing: Option<&Standing>, outdated: Option<u64>) -> Message {
        let (health, gallery, store) = (&self.health, self.gallery.snapshot(), self.store.vitals());
        Message {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            at: rfc3339(now.wall_ms),
            uptime_s: now.since(&self.started).as_secs(),
            clock_trusted: now.trusted,
            camera: Camera {
                state: health.camera(),
                frames_captured: health.frames_captured.get(),
                frames_analysed: health.frames_analysed.get(),
                frames_detected: health.frames_detected.get(),
                frames_replaced: health.frames_replaced.get(),
                frames_unreadable: health.frames_unreadable.get(),
                frames_missed: health.frames_missed.get(),
                losses: health.camera_losses.get(),
            },
            recognition: Recognition {
                faces: health.faces_seen.get(),
                templates: health.templates_made.get(),
                identified: health.identified.get(),
                unknown: health.unknown.get(),
                attacks: health.attacks.get(),
                too_far: health.too_far.get(),
                errors: health.engine_errors.get(),
                pace_step: health.pace_step.get(),
                embedder: self.embedder.clone(),
                precision: self.precision.clone(),
                model_digests: self.networks.clone(),
            },
            gallery: Gallery {
                subjects: gallery.subjects(),
                references: gallery.references(),
                version: gallery.version(),
                digest: format!("{:016x}", gallery.digest()),
                outdated,
                sharing: health.sharing(),
            },
            recorded: health.recorded.get(),
            events_published: health.events_published.get(),
            commands: health.commands.get(),
            commands_refused: health.refusals(),
            outbox: standing.into_iter().flat_map(|it| &it.sinks).map(|it| owed(it, now)).collect(),
            watermark: standing.map(watermark).unwrap_or_default(),
            mongo: health
                .mongo()
                .map(|(state, since_ms)| Mongo { state, since: rfc3339(since_ms) }),
            store: Storage {
                database_bytes: store.database_bytes,
                free_bytes: store.free_bytes,
                reserve_held: store.reserve_held,
                errors: health.store_errors.get(),
            },
            cpu_celsius: health::cpu_celsius(),
            rss_bytes: health::resident_bytes(),
            device_key: self.device_key.clone(),
        }
    }
}

fn owed(standing: &SinkStanding, now: &Stamp) -> Owed {
    let depth = &standing.depth;
    Owed {
        sink: standing.sink.as_str(),
        rows: depth.rows,
        buried: depth.buried,
        oldest_age_s: depth.oldest_created_ms.map(|ms| ((now.wall_ms - ms) / 1000).max(0) as u64),
    }
}

fn watermark(standing: &Standing) -> Watermark {
    let held_back_by =
        standing.held_back_by().map(|(sink, held)| HeldBack { sink: sink.as_str(), seq: held.seq });
    Watermark { complete_through: standing.complete_through(None), held_back_by }
}
