//! Everything put together: opened in order, supervised, stopped in order.
//!
//! The order of stopping is that of the flow: camera, networks, commands, deliveries, link, store; so that nothing that
//! was seen is dropped on the way. A crash at any point loses nothing that was recorded; this only saves work.

pub mod capture;
pub mod commander;
pub mod gallery;
pub mod inference;
pub mod mqtt_sink;
pub mod recorder;
pub mod supervise;
pub mod vitals;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};

use crate::app::capture::Capture;
use crate::app::commander::Commander;
use crate::app::gallery::GalleryCell;
use crate::app::inference::{Inference, JOBS_MAX, Job};
use crate::app::mqtt_sink::MqttSink;
use crate::app::recorder::Recorder;
use crate::app::supervise::Stages;
use crate::app::vitals::Vitals;
use crate::camera::FrameSource;
use crate::camera::replay::Replay;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::raw::RawPace;
use crate::config::{CameraSettings, MqttSettings, Settings};
use crate::health::{CameraHealth, Health};
use crate::mqtt::broker::{BrokerProcess, BrokerSettings};
use crate::mqtt::link::{self, Credentials, LinkSettings};
use crate::mqtt::tls::{ClientCertificate, TlsSettings};
use crate::mqtt::topics::Topics;
use crate::recognise::engine::FaceEngine;
use crate::recognise::face::ModelDigest;
use crate::recognise::frame::Latest;
use crate::recognise::gallery::{Gallery, Subject};
use crate::recognise::live::Live;
use crate::record::command::Limits;
use crate::record::outbox::{RelaySettings, relay};
use crate::record::store::{Opened, Reader, Reference, ReferenceCount, SinkName, Store, StoreError, StoreOptions};
use crate::vision::Vision;
use crate::vision::manifest::ModelError;

/// Stages get this long to finish what they are doing.
const GRACE: Duration = Duration::from_secs(5);

/// The exit codes of the contract (`docs/wire.md`), after sysexits(3).
pub mod exit {
    pub const USAGE: u8 = 64;
    pub const MODEL: u8 = 69;
    pub const STORAGE: u8 = 74;
    pub const CONFIG: u8 = 78;
}

/// An error with the exit code that it ends the process with.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub code: u8,
    pub what: &'static str,
    #[source]
    pub source: anyhow::Error,
}

/// What the command line adds to the settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Stop when a replay has ended and everything is delivered (or cannot be).
    pub until_replay_ends: bool,
}

/// The daemon, from start to stop.
pub fn run(settings: Settings, options: RunOptions) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let store = open_store(&settings, &clock)?;
    let vision = load_vision(&settings)?;
    let gallery = load_gallery(&store, &vision)?;
    tracing::info!(
        subjects = gallery.subjects(),
        references = gallery.references(),
        elapsed_ms = watch.elapsed().as_millis() as u64,
        "networks and gallery loaded"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(settings, options, clock, store.clone(), vision, gallery, watch));
    let closed = store.close();
    outcome.and(closed.map_err(storage))
}

fn storage(error: StoreError) -> anyhow::Error {
    Failure { code: exit::STORAGE, what: "the storage cannot be used", source: error.into() }.into()
}

fn config(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Failure { code: exit::CONFIG, what: "the configuration cannot be used", source: error.into() }.into()
}

fn model(error: ModelError) -> anyhow::Error {
    Failure { code: exit::MODEL, what: "recognition cannot start", source: error.into() }.into()
}

/// Where systemd passes credentials, if it does.
pub fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

fn sinks(settings: &Settings) -> Vec<SinkName> {
    settings.mqtt.iter().map(|_| SinkName::MQTT).collect()
}

fn open_store(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<Store> {
    let mut options = StoreOptions::new(sinks(settings), Arc::clone(clock));
    options.credentials_dir = credentials_dir();
    let Opened { store, set_aside, key_created, key_path } =
        Store::open(&settings.state_dir, options).map_err(storage)?;
    if let Some(path) = set_aside {
        tracing::error!(path = %path.display(), "the database was damaged: it was set aside whole, and a new one begun; restore a backup or enrol again");
    }
    if key_created {
        tracing::warn!(path = %key_path.display(), "a key for the templates was made: keep a copy of it, without it everybody must be enrolled again");
    }
    Ok(store)
}

pub fn load_vision(settings: &Settings) -> anyhow::Result<Vision> {
    Vision::load(&settings.vision).map_err(model)
}

/// Puts references, one by one, into a gallery; names come from the subjects.
struct GalleryLoader {
    names: std::collections::HashMap<crate::recognise::face::SubjectId, crate::recognise::face::Name>,
    gallery: Gallery,
}

impl GalleryLoader {
    fn add(&mut self, reference: Reference) {
        if let Some(name) = self.names.get(&reference.subject_id) {
            let subject = Subject { id: reference.subject_id, name: name.clone() };
            let gallery = std::mem::take(&mut self.gallery);
            self.gallery = gallery.with(subject, std::slice::from_ref(&reference.template));
        }
    }
}

/// Subjects fetched from the store at a time.
const PAGE: u32 = 500;

pub fn load_gallery(store: &Store, vision: &Vision) -> anyhow::Result<Gallery> {
    let (embedder, dimension) = (vision.embedder(), vision.dimension());
    let load = move |tx: &mut crate::record::store::Tx<'_>| {
        let mut loader = GalleryLoader { names: all_names(|after| tx.subjects(after, PAGE))?, gallery: Gallery::new(dimension) };
        let count = tx.all_references(&embedder, |reference| loader.add(reference))?;
        Ok((loader.gallery, count))
    };
    let (gallery, count) = store.write(load).map_err(storage)?;
    report_references(&count);
    Ok(gallery)
}

/// The gallery as it stands in the store, read beside a daemon that may be running.
pub fn read_gallery(reader: &Reader, embedder: &ModelDigest, dimension: usize) -> Result<Gallery, StoreError> {
    let names = all_names(|after| reader.subjects(after, PAGE))?;
    let mut loader = GalleryLoader { names, gallery: Gallery::new(dimension) };
    let count = reader.all_references(embedder, |reference| loader.add(reference))?;
    report_references(&count);
    Ok(loader.gallery)
}

fn all_names(
    page: impl Fn(
        Option<&crate::recognise::face::SubjectId>,
    ) -> Result<Vec<crate::record::store::Subject>, StoreError>,
) -> Result<std::collections::HashMap<crate::recognise::face::SubjectId, crate::recognise::face::Name>, StoreError> {
    let mut names = std::collections::HashMap::new();
    let mut after = None;
    loop {
        let subjects = page(after.as_ref())?;
        let Some(last) = subjects.last() else {
            return Ok(names);
        };
        after = Some(last.id.clone());
        names.extend(subjects.into_iter().map(|subject| (subject.id, subject.name)));
    }
}

fn report_references(count: &ReferenceCount) {
    if count.of_other_embedders > 0 {
        tracing::warn!(
            references = count.of_other_embedders,
            "references of another embedder are kept but not compared: enrol these subjects again"
        );
    }
    if !count.unreadable.is_empty() {
        tracing::error!(references = count.unreadable.len(), "references cannot be opened: they were altered on the disk");
    }
}

async fn serve(
    settings: Settings,
    options: RunOptions,
    clock: Arc<dyn Clock>,
    store: Store,
    vision: Vision,
    gallery: Gallery,
    watch: Stopwatch,
) -> anyhow::Result<()> {
    let health = Arc::new(Health::default());
    let gallery = Arc::new(GalleryCell::new(gallery));
    let changed = Arc::new(Notify::new());
    let slot = Arc::new(Latest::default());
    let (jobs, inbox) = sync_channel(JOBS_MAX);
    let (replay_ended, mut ended) = watch::channel(false);
    let mut stages = Stages::new();
    let embedder = vision.embedder();
    let broker = start_broker(&settings)?.map(|broker| Arc::new(Mutex::new(broker)));

    if let Some((source, patient)) = open_camera(&settings)? {
        let (slot, clock, health) = (Arc::clone(&slot), Arc::clone(&clock), Arc::clone(&health));
        let stop = stages.stop_signal();
        let capture = Capture { source, slot, clock, health, stop, patient, ended: replay_ended.clone() };
        stages.thread("camera", move || capture.run())?;
    } else {
        health.set_camera(CameraHealth::Absent);
    }
    start_inference(&mut stages, &settings, vision, Parts { slot, jobs: inbox, gallery: &gallery, store: &store, clock: &clock, health: &health })?;
    let link = match &settings.mqtt {
        Some(mqtt) => {
            let commander = |topics: &Topics, link: link::Link| Commander {
                topics: topics.clone(),
                limits: limits(&settings),
                per_minute_max: settings.commands.per_minute_max,
                venues: settings.venues.clone(),
                sinks: sinks(&settings),
                store: store.clone(),
                gallery: Arc::clone(&gallery),
                embedder,
                jobs: jobs.clone(),
                clock: Arc::clone(&clock),
                health: Arc::clone(&health),
                link,
                changed: Arc::clone(&changed),
            };
            Some(start_mqtt(&mut stages, &settings, mqtt, commander, &store, &clock, &health)?)
        }
        None => {
            tracing::warn!("no broker is configured: attendance is recorded here, and nothing is published");
            None
        }
    };
    if let Some(broker) = &broker {
        watch_broker(&mut stages, broker);
    }
    let vitals = Vitals {
        health,
        store: store.clone(),
        sinks: sinks(&settings),
        gallery,
        clock,
        link,
        topic: Topics::new(&settings.site, &settings.device).map_err(config)?.health(),
        every: settings.health_every,
        changed,
        embedder: embedder.to_string(),
        precision: format!("{:?}", settings.vision.precision).to_lowercase(),
    };
    let stop = stages.stop_signal();
    stages.task("vitals", vitals.run(stop));
    tracing::info!(
        site = settings.site,
        device = settings.device,
        elapsed_ms = watch.elapsed().as_millis() as u64,
        "ready"
    );
    let until_end = options.until_replay_ends;
    let delivered = store.clone();
    let owed = sinks(&settings);
    let settle = jobs.clone();
    let asked = async move {
        tokio::select! {
            reason = asked_to_stop() => reason,
            () = async {
                // An error means that the capture thread is gone, which another arm hears of.
                if !until_end || ended.wait_for(|it| *it).await.is_err() {
                    std::future::pending::<()>().await;
                }
                drained(&settle, &delivered, &owed).await;
            } => "the replay has ended",
        }
    };
    let outcome = tokio::select! {
        outcome = stages.run(asked, GRACE) => outcome,
        () = asked_twice() => Err(anyhow!("asked twice to stop: ended at once")),
    };
    drop((broker, replay_ended));
    outcome
}

/// What the inference thread is given beside the networks.
struct Parts<'a> {
    slot: Arc<Latest<crate::recognise::frame::Frame>>,
    jobs: std::sync::mpsc::Receiver<inference::Job>,
    gallery: &'a Arc<GalleryCell>,
    store: &'a Store,
    clock: &'a Arc<dyn Clock>,
    health: &'a Arc<Health>,
}

fn start_inference(stages: &mut Stages, settings: &Settings, vision: Vision, parts: Parts<'_>) -> anyhow::Result<()> {
    let spec = vision.template_spec();
    let recognition = &settings.recognition;
    let recorder = Recorder {
        store: parts.store.clone(),
        clock: Arc::clone(parts.clock),
        health: Arc::clone(parts.health),
        venue: settings.venue.clone(),
        pad: settings.pad,
        unknown_every: settings.unknown_every,
        last_unknown: None,
    };
    let inference = Inference {
        engine: Box::new(vision),
        live: Live::new(recognition.live(&spec)),
        decision: recognition.decision(&spec),
        enrol: recognition.enrol(&spec),
        picture: recognition.picture(),
        slot: parts.slot,
        jobs: parts.jobs,
        gallery: Arc::clone(parts.gallery),
        recorder,
        health: Arc::clone(parts.health),
        stop: stages.stop_signal(),
    };
    stages.thread("inference", move || inference.run())
}

fn open_camera(settings: &Settings) -> anyhow::Result<Option<(Box<dyn FrameSource>, bool)>> {
    match &settings.camera {
        CameraSettings::None => Ok(None),
        CameraSettings::Replay { replay, pace } => {
            let source = Replay::open(replay.clone()).map_err(config)?;
            Ok(Some((Box::new(source), *pace == RawPace::Networks)))
        }
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        payload_bytes: settings.commands.payload_bytes_max,
        images: settings.commands.images_max,
        image_bytes: settings.commands.image_bytes_max,
        ..Limits::default()
    }
}

fn start_mqtt(
    stages: &mut Stages,
    settings: &Settings,
    mqtt: &MqttSettings,
    commander: impl FnOnce(&Topics, link::Link) -> Commander,
    store: &Store,
    clock: &Arc<dyn Clock>,
    health: &Arc<Health>,
) -> anyhow::Result<link::Link> {
    let topics = Topics::new(&settings.site, &settings.device).map_err(config)?;
    let (link, driver, events) = link::open(link_settings(mqtt, &topics)).map_err(config)?;
    let commander = commander(&topics, link.clone());
    let sink = MqttSink {
        link: link.clone(),
        topics,
        site: settings.site.clone(),
        device: settings.device.clone(),
        clock: Arc::clone(clock),
        health: Arc::clone(health),
    };
    let window = usize::from(mqtt.window);
    let relay = relay(store.clone(), sink, stages.stop_signal(), RelaySettings { window, ..RelaySettings::default() });
    stages.task("relay to mqtt", async move { relay.await.map_err(storage) });
    let stop = stages.stop_signal();
    stages.task("commands", async move { commander.run(events, stop).await });
    let stop = stages.stop_signal();
    stages.task("mqtt link", async move { driver.drive(stop).await.map_err(|e| anyhow!(e)) });
    Ok(link)
}

pub fn link_settings(mqtt: &MqttSettings, topics: &Topics) -> LinkSettings {
    let mut link = LinkSettings::new(&mqtt.host, mqtt.port, &mqtt.client_id, topics.status());
    link.keep_alive = mqtt.keep_alive;
    link.credentials =
        mqtt.credentials.clone().map(|(user, password)| Credentials { user, password });
    link.tls = mqtt.tls.as_ref().map(|tls| TlsSettings {
        ca: tls.ca.clone(),
        client: tls.client.clone().map(|(cert, key)| ClientCertificate { cert, key }),
    });
    // Room for the topic and the header around the largest payload.
    link.packet_bytes_max_in = mqtt.packet_bytes_max + (64 << 10);
    link.window = mqtt.window;
    link.subscriptions = topics.command_subscriptions();
    link
}

fn start_broker(settings: &Settings) -> anyhow::Result<Option<BrokerProcess>> {
    let Some(broker) = &settings.broker else {
        return Ok(None);
    };
    let payload_bytes_max = settings.commands.payload_bytes_max + (64 << 10);
    let broker = BrokerSettings { tcp: broker.listen, websocket: broker.websocket, credentials: None, payload_bytes_max };
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let process = BrokerProcess::start(Path::new(&program), &["broker-child"], &broker).map_err(config)?;
    tracing::info!(address = %broker.tcp, websocket = ?broker.websocket, "embedded broker listening");
    Ok(Some(process))
}

/// The broker has no business ending while we run. It is dropped, and so ended, after everybody has said goodbye to it.
fn watch_broker(stages: &mut Stages, broker: &Arc<Mutex<BrokerProcess>>) {
    let (mut stop, broker) = (stages.stop_signal(), Arc::clone(broker));
    stages.task("broker", async move {
        loop {
            if let Some(status) = broker.lock().unwrap_or_else(PoisonError::into_inner).ended() {
                anyhow::bail!("the embedded broker ended: {status}");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    });
}

/// The first SIGTERM or SIGINT.
async fn asked_to_stop() -> &'static str {
    let Some((mut terminate, mut interrupt)) = signals() else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// The second of them: whoever asks twice wants the end now. Nothing durable depends on a clean stop.
async fn asked_twice() {
    let Some((mut terminate, mut interrupt)) = signals() else {
        return std::future::pending().await;
    };
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

fn signals() -> Option<(Signal, Signal)> {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => Some((terminate, interrupt)),
        _ => {
            tracing::error!("cannot listen for signals");
            None
        }
    }
}

/// Sinks that make no progress for this long at the end of a replay are not waited for any longer.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether the sinks have everything; nothing wakes us when a row leaves the outbox.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until what came of the last frame is recorded, and the sinks have everything.
async fn drained(jobs: &SyncSender<Job>, store: &Store, sinks: &[SinkName]) {
    settled(jobs).await;
    let (mut owed, mut progress) = (u64::MAX, Stopwatch::start());
    loop {
        let names = sinks.to_vec();
        let depth = store.write_async(move |tx| {
            names.iter().map(|sink| Ok(tx.outbox_depth(*sink)?.rows)).sum::<Result<u64, StoreError>>()
        });
        match depth.await {
            Ok(0) | Err(_) => return,
            Ok(rows) if rows < owed => (owed, progress) = (rows, Stopwatch::start()),
            Ok(rows) if progress.elapsed() >= DRAIN_PATIENCE => {
                tracing::warn!(rows, "still owed at the end of the replay: delivered after the next start");
                return;
            }
            Ok(_) => {}
        }
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
    }
}

async fn settled(jobs: &SyncSender<Job>) {
    loop {
        let (answer, answered) = oneshot::channel();
        match jobs.try_send(Job::Settle { answer }) {
            // An error means that the inference thread ends, which its stage tells.
            Ok(()) => return answered.await.unwrap_or_default(),
            Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(_)) => tokio::time::sleep(DRAIN_LOOK_EVERY).await,
        }
    }
}
