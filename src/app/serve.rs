//! The stages of the daemon: started in the order of the flow, stopped in the same order.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::app::camera_events::CameraEvents;
use crate::app::capture::Capture;
use crate::app::commander::asked::{REQUESTS_MAX, Request};
use crate::app::commander::{CameraEnrolment, Commander};
use crate::app::discovery::{self, Birth, Discovery};
use crate::app::fleet::{
    BYTES_MAX, CollectionKeeper, CollectionSink, Fleet, GallerySink, Keeper, Shelf,
};
use crate::app::gallery::GalleryCell;
use crate::app::http::{self, HttpServer};
use crate::app::inference::{Inference, JOBS_MAX, Job};
use crate::app::metrics::{Counted, Metrics};
use crate::app::mqtt_sink::MqttSink;
use crate::app::notify::{self, Notifier};
use crate::app::observer::Observer;
use crate::app::power::Power;
use crate::app::receipts::Receipts;
use crate::app::recorder::Recorder;
use crate::app::scene::Scenes;
use crate::app::supervise::Stages;
use crate::app::timing::TimedSink;
use crate::app::upkeep::Upkeep;
use crate::app::venues::{Listed, VenueBook};
use crate::app::vitals::Vitals;
use crate::app::watch::WatchServer;
use crate::app::watchdog::{Counting, Watchdog};
use crate::app::watermark::Watermark;
use crate::app::{RunOptions, config, storage};
use crate::camera::FrameSource;
use crate::camera::replay::Replay;
use crate::camera::v4l2::V4l2Camera;
use crate::clock::{Clock, Stopwatch};
use crate::config::raw::RawPace;
use crate::config::{CameraSettings, FleetSettings, MqttSettings, Settings, Through};
use crate::health::{CameraHealth, Health};
use crate::http::HttpSettings;
use crate::mongo::{MongoLink, MongoSink, VenueNote, Venues};
use crate::mqtt::broker::{BrokerError, BrokerProcess, BrokerSettings};
use crate::mqtt::link::{self, Link, LinkSettings};
use crate::mqtt::topics::Topics;
use crate::recognise::engine::FaceEngine;
use crate::recognise::face::ModelDigest;
use crate::recognise::frame::{Frame, Latest};
use crate::recognise::gallery::Gallery;
use crate::recognise::live::Live;
use crate::record::command::Limits;
use crate::record::command::answer::VenueSource;
use crate::record::outbox::{RelaySettings, relay};
use crate::record::signer::SigningKey;
use crate::record::store::{SinkName, Store, StoreError};
use crate::vision::Vision;

/// Stages get this long to finish what they are doing.
const GRACE: Duration = Duration::from_secs(5);
/// A port that another process still holds is waited for this long.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// At the end, the broker gets this long to acknowledge the last answers and events; the rest waits on disk.
const PARTING: Duration = Duration::from_secs(1);

/// What the stages share.
pub(super) struct Daemon {
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub health: Arc<Health>,
    pub venues: Arc<VenueBook>,
    /// Told when the vital signs changed in a way worth publishing at once.
    pub changed: Arc<Notify>,
    pub embedder: ModelDigest,
    /// All networks by name.
    pub networks: BTreeMap<String, String>,
    /// What is owed, as it was last counted.
    pub counted: Arc<Counted>,
    /// Signs receipts.
    pub device_key: Arc<SigningKey>,
}

impl Daemon {
    pub(super) fn new(
        settings: Settings,
        clock: Arc<dyn Clock>,
        store: Store,
        vision: &Vision,
        gallery: Gallery,
        venues: VenueBook,
        device_key: Arc<SigningKey>,
    ) -> Self {
        Self {
            settings,
            clock,
            store,
            gallery: Arc::new(GalleryCell::new(gallery)),
            health: Arc::new(Health::default()),
            venues: Arc::new(venues),
            changed: Arc::new(Notify::new()),
            embedder: vision.embedder(),
            networks: vision.digests(),
            counted: Arc::default(),
            device_key,
        }
    }

    /// Starts everything, waits for the end, stops everything.
    pub(super) async fn serve(
        self,
        vision: Vision,
        options: RunOptions,
        watch: Stopwatch,
    ) -> anyhow::Result<()> {
        // First of all: from here on a signal is heard, not obeyed blindly.
        let (signals, second_signals) = (Signals::new()?, Signals::new()?);
        let mut stages = Stages::new();
        let broker = start_broker(&self.settings)?.map(|broker| Arc::new(Mutex::new(broker)));
        let slot = Arc::new(Latest::default());
        let (jobs, inbox) = sync_channel(JOBS_MAX);
        let (replay_ended, ended) = watch::channel(false);
        self.start_camera(&mut stages, &slot, &replay_ended)?;
        let scenes = Arc::new(Scenes::new(None));
        self.start_inference(&mut stages, vision, slot, inbox, Arc::clone(&scenes))?;
        self.start_watch(&mut stages, Arc::clone(&scenes));
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let mqtt = self.settings.mqtt.as_ref();
        let link = if let Some(mqtt) = mqtt {
            Some(self.start_mqtt(&mut stages, mqtt, jobs.clone(), asked)?)
        } else {
            let commander = self.commander(jobs.clone(), asked, None, None)?;
            let stop = stages.stop_signal();
            stages.task(
                "commands",
                async move { commander.run(&mut mpsc::channel(1).1, stop).await },
            );
            None
        };
        if link.is_none() {
            tracing::warn!(
                "no broker is configured: attendance is recorded here, and nothing is published"
            );
        }
        let fleet = self.settings.fleet.as_ref();
        if let (Some(mqtt), Some(fleet)) = (mqtt, fleet.filter(|it| it.through == Through::Mqtt)) {
            self.start_fleet(&mut stages, mqtt, fleet).await?;
        }
        if let Some(broker) = &broker {
            watch_broker(&mut stages, broker, broker_settings(&self.settings));
        }
        let mongo = self.start_mongo(&mut stages);
        if let (Some(mongo), Some(fleet)) =
            (&mongo, fleet.filter(|it| it.through == Through::Mongo))
        {
            self.start_fleet_in_mongo(&mut stages, mongo, fleet);
        }
        self.start_watermark(&mut stages, link.clone(), mongo)?;
        let vitals = self.start_vitals(&mut stages, link)?;
        if let Some(http) = &self.settings.http {
            self.start_http(&mut stages, http, requests, vitals, scenes).await?;
        }
        let notifier = self.start_watchdog(&mut stages);
        notifier.tell("READY=1");
        let (site, device) = (&self.settings.site, &self.settings.device);
        tracing::info!(site, device, elapsed_ms = watch.elapsed().as_millis() as u64, "ready");
        let asked = async {
            let reason = self.end(options, &jobs, ended, signals).await;
            notifier.tell("STOPPING=1");
            reason
        };
        let parting = async {
            tokio::time::timeout(PARTING, drained(&jobs, &self.store, &sinks(&self.settings)))
                .await
                .ok();
        };
        let outcome = tokio::select! {
            outcome = stages.run(asked, parting, GRACE) => outcome,
            () = second_signals.twice() => Err(anyhow!("asked twice to stop: ended at once")),
        };
        drop((jobs, replay_ended, broker));
        outcome
    }

    fn start_camera(
        &self,
        stages: &mut Stages,
        slot: &Arc<Latest<Frame>>,
        ended: &watch::Sender<bool>,
    ) -> anyhow::Result<()> {
        let Some((source, patient)) = open_camera(&self.settings)? else {
            self.health.set_camera(CameraHealth::Absent);
            return Ok(());
        };
        let (slot, clock, health) =
            (Arc::clone(slot), Arc::clone(&self.clock), Arc::clone(&self.health));
        let (stop, ended) = (stages.stop_signal(), ended.clone());
        let events = CameraEvents::new(self.store.clone(), Arc::clone(&health));
        let capture = Capture { source, slot, clock, health, events, stop, patient, ended };
        stages.thread("camera", move || capture.run())
    }

    fn start_inference(
        &self,
        stages: &mut Stages,
        vision: Vision,
        slot: Arc<Latest<Frame>>,
        jobs: Receiver<Job>,
        scenes: Arc<Scenes>,
    ) -> anyhow::Result<()> {
        let spec = vision.template_spec();
        let recognition = &self.settings.recognition;
        let (health, venues) = (Arc::clone(&self.health), Arc::clone(&self.venues));
        let clock = Arc::clone(&self.clock);
        let recorder =
            Recorder::new(self.store.clone(), clock, health, venues, self.settings.unknown_every);
        let inference = Inference {
            engine: Box::new(Counting { engine: vision, health: Arc::clone(&self.health) }),
            live: Live::new(recognition.live(&spec)),
            decision: recognition.decision(&spec),
            enrol: recognition.enrol(&spec),
            slot,
            jobs,
            work: None,
            from_camera: None,
            pad: recognition.pad(),
            gallery: Arc::clone(&self.gallery),
            recorder,
            health: Arc::clone(&self.health),
            clock: Arc::clone(&self.clock),
            stop: stages.stop_signal(),
            scenes,
        };
        stages.thread("inference", move || inference.run())
    }

    fn start_watch(&self, stages: &mut Stages, scenes: Arc<Scenes>) {
        let (state_dir, health) = (self.settings.state_dir.clone(), Arc::clone(&self.health));
        let server = WatchServer { state_dir, scenes, health, snapshot: self.settings.snapshot };
        let (listener, stop) = (server.listen(), stages.stop_signal());
        stages.task("watch", server.run(listener, stop));
    }

    fn commander(
        &self,
        jobs: SyncSender<Job>,
        requests: mpsc::Receiver<Request>,
        link: Option<Link>,
        birth: Option<Birth>,
    ) -> anyhow::Result<Commander> {
        let settings = &self.settings;
        Ok(Commander {
            topics: Topics::new(&settings.site, &settings.device).map_err(config)?,
            limits: limits(settings),
            picture: settings.recognition.picture(),
            per_minute_max: settings.commands.per_minute_max,
            trusted_keys: settings.commands.trusted_keys.clone(),
            venues: Arc::clone(&self.venues),
            store: self.store.clone(),
            gallery: Arc::clone(&self.gallery),
            embedder: self.embedder,
            jobs,
            clock: Arc::clone(&self.clock),
            health: Arc::clone(&self.health),
            link,
            requests,
            birth,
            changed: Arc::clone(&self.changed),
            camera_enrolment: CameraEnrolment::default(),
        })
    }

    fn start_mqtt(
        &self,
        stages: &mut Stages,
        mqtt: &MqttSettings,
        jobs: SyncSender<Job>,
        requests: mpsc::Receiver<Request>,
    ) -> anyhow::Result<Link> {
        let settings = &self.settings;
        let topics = Topics::new(&settings.site, &settings.device).map_err(config)?;
        let birth = settings.home_assistant.as_ref().map(Birth::new).transpose().map_err(config)?;
        let mut wanted = link_settings(mqtt, &topics);
        wanted.subscriptions.extend(birth.iter().map(|it| it.topic.clone()));
        let (link, driver, events) = link::open(wanted).map_err(config)?;
        let message = discovery::message(settings, &topics).map_err(config)?;
        let discovery = Discovery {
            link: link.clone(),
            store: self.store.clone(),
            message,
            birth: birth.clone(),
        };
        let stop = stages.stop_signal();
        stages.task("discovery", discovery.run(stop));
        let commander = self.commander(jobs, requests, Some(link.clone()), birth)?;
        let sink = MqttSink {
            link: link.clone(),
            topics,
            site: settings.site.clone(),
            device: settings.device.clone(),
            clock: Arc::clone(&self.clock),
            health: Arc::clone(&self.health),
        };
        let window = usize::from(mqtt.window);
        let settings = RelaySettings { window, ..RelaySettings::default() };
        let sink = TimedSink::new(sink, &self.health, |it| &it.to_mqtt);
        let relay = relay(self.store.clone(), sink, stages.last_signal(), settings);
        let stop = stages.stop_signal();
        // The link goes on after the commands have stopped, and must not find its queue gone: it would take that for a failure.
        let (leave, left) = oneshot::channel();
        stages.task("commands", async move {
            let mut events = events;
            let outcome = commander.run(&mut events, stop).await;
            leave.send(events).ok();
            outcome
        });
        stages.last_task("relay to mqtt", async move { relay.await.map_err(storage) });
        let stop = stages.last_signal();
        stages.last_task("mqtt link", async move {
            let outcome = driver.drive(stop).await;
            drop(left);
            outcome.map_err(|e| anyhow!(e))
        });
        Ok(link)
    }

    async fn start_fleet(
        &self,
        stages: &mut Stages,
        mqtt: &MqttSettings,
        fleet: &FleetSettings,
    ) -> anyhow::Result<()> {
        let topics = Topics::new(&self.settings.site, &self.settings.device).map_err(config)?;
        let (link, driver, events) =
            link::open(gallery_link_settings(mqtt, &topics)).map_err(config)?;
        let known = self.store.write_async(|tx| tx.all_accounts()).await.map_err(storage)?;
        let fleet = Arc::new(Fleet::new(Arc::clone(&fleet.key), &self.settings.site, known));
        let keeper = Keeper {
            fleet: Arc::clone(&fleet),
            link: link.clone(),
            topics: topics.clone(),
            device: self.settings.device.clone(),
            store: self.store.clone(),
            gallery: Arc::clone(&self.gallery),
            embedder: self.embedder,
            health: Arc::clone(&self.health),
            changed: Arc::clone(&self.changed),
        };
        let sink = GallerySink { fleet, link, topics, store: self.store.clone() };
        let sink = TimedSink::new(sink, &self.health, |it| &it.to_gallery);
        let relay = relay(self.store.clone(), sink, stages.last_signal(), RelaySettings::default());
        let stop = stages.stop_signal();
        // As with the commands: the link must not find its queue gone.
        let (leave, left) = oneshot::channel();
        stages.task("gallery", async move {
            let mut events = events;
            let outcome = keeper.run(&mut events, stop).await;
            leave.send(events).ok();
            outcome
        });
        stages
            .last_task("relay to the site's gallery", async move { relay.await.map_err(storage) });
        let stop = stages.last_signal();
        stages.last_task("gallery link", async move {
            let outcome = driver.drive(stop).await;
            drop(left);
            outcome.map_err(|e| anyhow!(e))
        });
        Ok(())
    }

    fn start_fleet_in_mongo(&self, stages: &mut Stages, link: &MongoLink, fleet: &FleetSettings) {
        let of_site = Arc::new(Shelf::new(Arc::clone(&fleet.key), &self.settings.site));
        let keeper = CollectionKeeper {
            shelf: Arc::clone(&of_site),
            link: link.clone(),
            device: self.settings.device.clone(),
            store: self.store.clone(),
            gallery: Arc::clone(&self.gallery),
            embedder: self.embedder,
            health: Arc::clone(&self.health),
            changed: Arc::clone(&self.changed),
        };
        let sink = CollectionSink { shelf: of_site, link: link.clone(), store: self.store.clone() };
        let sink = TimedSink::new(sink, &self.health, |it| &it.to_gallery);
        let relay = relay(self.store.clone(), sink, stages.last_signal(), RelaySettings::default());
        let stop = stages.stop_signal();
        stages.task("gallery", keeper.run(stop));
        stages
            .last_task("relay to the site's gallery", async move { relay.await.map_err(storage) });
    }

    async fn start_http(
        &self,
        stages: &mut Stages,
        http: &HttpSettings,
        requests: mpsc::Sender<Request>,
        vitals: Arc<Vitals>,
        scenes: Arc<Scenes>,
    ) -> anyhow::Result<()> {
        let server = HttpServer {
            settings: http.clone(),
            limits: limits(&self.settings),
            site: self.settings.site.clone(),
            device: self.settings.device.clone(),
            venues: Arc::clone(&self.venues),
            store: self.store.clone(),
            requests,
            clock: Arc::clone(&self.clock),
            health: Arc::clone(&self.health),
            metrics: self.metrics(&vitals),
            vitals,
            scenes,
            snapshot: self.settings.snapshot,
            stop: stages.stop_signal(),
            feeds: http::feeds(),
            shown: Mutex::new(None),
        };
        let listener = server.listen().await.map_err(config)?;
        stages.task("http", server.run(listener));
        Ok(())
    }

    fn start_mongo(&self, stages: &mut Stages) -> Option<MongoLink> {
        let mongo = self.settings.mongo.clone()?;
        let window = mongo.window();
        let link = MongoLink::new(mongo, Arc::clone(&self.clock), Arc::clone(&self.health));
        let (site, device) = (&self.settings.site, &self.settings.device);
        let book = Arc::clone(&self.venues);
        let venues: Venues = Arc::new(move || notes(&book));
        let sink = MongoSink::new(link.clone(), site, device, venues);
        let sink = TimedSink::new(sink, &self.health, |it| &it.to_mongo);
        let settings = RelaySettings { window, ..RelaySettings::default() };
        let relay = relay(self.store.clone(), sink, stages.last_signal(), settings);
        stages.last_task("relay to mongodb", async move { relay.await.map_err(storage) });
        Some(link)
    }

    fn start_watermark(
        &self,
        stages: &mut Stages,
        link: Option<Link>,
        mongo: Option<MongoLink>,
    ) -> anyhow::Result<()> {
        let (site, device) = (self.settings.site.clone(), self.settings.device.clone());
        let topic = Topics::new(&site, &device).map_err(config)?.watermark();
        let (store, clock, health) =
            (self.store.clone(), Arc::clone(&self.clock), Arc::clone(&self.health));
        let counted = Arc::clone(&self.counted);
        let watermark =
            Watermark { store, clock, site, device, link, topic, mongo, health, counted };
        let stop = stages.stop_signal();
        stages.task("watermark", watermark.run(stop));
        Ok(())
    }

    /// What is told to whoever asks for metrics.
    fn metrics(&self, vitals: &Vitals) -> Metrics {
        Metrics {
            health: Arc::clone(&self.health),
            store: self.store.clone(),
            gallery: Arc::clone(&self.gallery),
            clock: Arc::clone(&self.clock),
            counted: Arc::clone(&self.counted),
            link: vitals.link.clone(),
            started: vitals.started,
            site: self.settings.site.clone(),
            device: self.settings.device.clone(),
            embedder: vitals.embedder.clone(),
            precision: vitals.precision.clone(),
        }
    }

    fn start_vitals(&self, stages: &mut Stages, link: Option<Link>) -> anyhow::Result<Arc<Vitals>> {
        let vitals = Arc::new(Vitals {
            health: Arc::clone(&self.health),
            store: self.store.clone(),
            gallery: Arc::clone(&self.gallery),
            clock: Arc::clone(&self.clock),
            link,
            topic: Topics::new(&self.settings.site, &self.settings.device)
                .map_err(config)?
                .health(),
            every: self.settings.health_every,
            changed: Arc::clone(&self.changed),
            counted: Arc::clone(&self.counted),
            networks: self.networks.clone(),
            device_key: self.device_key.public().to_string(),
            embedder: self.settings.vision.embedder.clone(),
            embedder_digest: self.embedder,
            precision: format!("{:?}", self.settings.vision.precision).to_lowercase(),
            started: self.clock.now(),
            outdated: Mutex::new(None),
        });
        let stop = stages.stop_signal();
        stages.task("vitals", Arc::clone(&vitals).run(stop));
        let receipts = Receipts {
            store: self.store.clone(),
            clock: Arc::clone(&self.clock),
            key: Arc::clone(&self.device_key),
            site: self.settings.site.clone(),
            device: self.settings.device.clone(),
            state_dir: self.settings.state_dir.clone(),
        };
        let stop = stages.stop_signal();
        stages.task("receipts", receipts.run(stop));
        let (store, clock, venues) =
            (self.store.clone(), Arc::clone(&self.clock), Arc::clone(&self.venues));
        let upkeep = Upkeep { store, clock, venues, keep_days: self.settings.keep_days };
        let stop = stages.stop_signal();
        stages.task("upkeep", upkeep.run(stop));
        let (store, clock, health) =
            (self.store.clone(), Arc::clone(&self.clock), Arc::clone(&self.health));
        let has_camera = !matches!(self.settings.camera, CameraSettings::None);
        let observer = Observer { store, clock, health, has_camera };
        let stop = stages.stop_signal();
        stages.task("observer", observer.run(stop));
        if let Some(celsius_max) = self.settings.celsius_max {
            let power =
                Power::new(celsius_max, Arc::clone(&self.health), Arc::clone(&self.changed));
            let stop = stages.stop_signal();
            stages.task("power", power.run(stop));
        }
        Ok(vitals)
    }

    /// After all others, which it watches.
    fn start_watchdog(&self, stages: &mut Stages) -> Arc<Notifier> {
        let notifier = Arc::new(Notifier::from_environment());
        if notifier.is_heard() {
            let watchdog = Watchdog {
                notifier: Arc::clone(&notifier),
                limit: notify::watchdog_limit(),
                health: Arc::clone(&self.health),
                store: self.store.clone(),
                gallery: Arc::clone(&self.gallery),
                clock: Arc::clone(&self.clock),
                tasks: stages.turns(),
            };
            let stop = stages.stop_signal();
            stages.task("watchdog", watchdog.run(stop));
        }
        notifier
    }

    /// Resolves when the daemon is asked to end, with the reason.
    async fn end(
        &self,
        options: RunOptions,
        jobs: &SyncSender<Job>,
        mut replay_ended: watch::Receiver<bool>,
        mut signals: Signals,
    ) -> &'static str {
        let replayed = async {
            // An error means that the camera thread is gone, which its supervisor hears of.
            if !options.until_replay_ends || replay_ended.wait_for(|it| *it).await.is_err() {
                std::future::pending::<()>().await;
            }
            drained(jobs, &self.store, &sinks(&self.settings)).await;
        };
        tokio::select! {
            reason = signals.next() => reason,
            () = replayed => "the replay has ended",
        }
    }
}

/// To whom events are owed.
pub fn sinks(settings: &Settings) -> Vec<SinkName> {
    let mqtt = settings.mqtt.iter().map(|_| SinkName::MQTT);
    mqtt.chain(settings.mongo.iter().map(|_| SinkName::MONGO)).collect()
}

/// A venue that this device knows by its id only is described by those who know more.
fn notes(book: &VenueBook) -> Vec<VenueNote> {
    book.all().iter().filter(|it| it.source != VenueSource::Default).map(venue_note).collect()
}

/// What MongoDB's readers are told of a venue.
fn venue_note(listed: &Listed) -> VenueNote {
    let (spec, venue) = (listed.venue.spec(), &listed.venue);
    let schedule = json!({"time_zone": spec.time_zone, "direction": listed.direction, "sessions": spec.sessions});
    let (direction, re_entry_gap) = (listed.direction, venue.re_entry_gap);
    VenueNote { id: spec.venue, name: spec.name, schedule: Some(schedule), direction, re_entry_gap }
}

fn open_camera(settings: &Settings) -> anyhow::Result<Option<(Box<dyn FrameSource>, bool)>> {
    match &settings.camera {
        CameraSettings::None => Ok(None),
        CameraSettings::Replay { replay, pace } => {
            let source = Replay::open(replay.clone()).map_err(config)?;
            Ok(Some((Box::new(source), *pace == RawPace::Networks)))
        }
        CameraSettings::V4l2(settings) => {
            Ok(Some((Box::new(V4l2Camera::new(settings.clone())), false)))
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

pub fn link_settings(mqtt: &MqttSettings, topics: &Topics) -> LinkSettings {
    let mut link = LinkSettings::new(&mqtt.host, mqtt.port, &mqtt.client_id, topics.status());
    link.keep_alive = mqtt.keep_alive;
    link.credentials.clone_from(&mqtt.credentials);
    link.tls.clone_from(&mqtt.tls);
    // Room for the topic and the header around the largest payload.
    link.packet_bytes_max_in = mqtt.packet_bytes_max + (64 << 10);
    link.window = mqtt.window;
    link.subscriptions = topics.command_subscriptions();
    link
}

/// A connection beside that of the commands, with a session of its own.
fn gallery_link_settings(mqtt: &MqttSettings, topics: &Topics) -> LinkSettings {
    let mut link = link_settings(mqtt, topics);
    link.client_id = format!("{}-gallery", mqtt.client_id);
    link.status_topic = topics.gallery_status();
    link.packet_bytes_max_in = BYTES_MAX + (64 << 10);
    link.packet_bytes_max_out = BYTES_MAX;
    // Brokers that wait for no acknowledgement send much at once.
    link.inbound_count_max = 2048;
    link.subscriptions = Vec::new();
    link
}

fn broker_settings(settings: &Settings) -> Option<BrokerSettings> {
    let broker = settings.broker.as_ref()?;
    let payload_bytes_max = settings.commands.payload_bytes_max + (64 << 10);
    Some(BrokerSettings {
        tcp: broker.listen,
        websocket: broker.websocket,
        credentials: None,
        payload_bytes_max,
    })
}

/// A broker of a daemon that was killed a moment ago may still hold the port, so it is tried for a while.
fn start_broker(settings: &Settings) -> anyhow::Result<Option<BrokerProcess>> {
    let Some(broker) = broker_settings(settings) else {
        return Ok(None);
    };
    let watch = Stopwatch::start();
    let process = loop {
        match spawn_broker(&broker) {
            Err(BrokerError::Listen { .. }) if watch.elapsed() < PORT_PATIENCE => {
                std::thread::sleep(DRAIN_LOOK_EVERY)
            }
            other => break other.map_err(config)?,
        }
    };
    tracing::info!(address = %broker.tcp, websocket = ?broker.websocket, "embedded broker listening");
    Ok(Some(process))
}

fn spawn_broker(broker: &BrokerSettings) -> Result<BrokerProcess, BrokerError> {
    let program = std::env::current_exe().map_err(BrokerError::Start)?;
    BrokerProcess::start(&program, &["broker-child"], broker)
}

/// The broker has no business ending while we run. It is dropped, and so ended, after everybody has said goodbye to it.
fn watch_broker(
    stages: &mut Stages,
    broker: &Arc<Mutex<BrokerProcess>>,
    settings: Option<BrokerSettings>,
) {
    let Some(settings) = settings else {
        return;
    };
    let (mut stop, broker) = (stages.stop_signal(), Arc::clone(broker));
    stages.task("broker", async move {
        loop {
            let ended = broker.lock().unwrap_or_else(PoisonError::into_inner).ended();
            if let Some(status) = ended {
                // It kept nothing that a new one would not have, and everybody connects again by themselves.
                tracing::error!(%status, "the embedded broker ended; starting another");
                let started = spawn_broker(&settings);
                match started {
                    Ok(process) => *broker.lock().unwrap_or_else(PoisonError::into_inner) = process,
                    Err(error) => {
                        tracing::error!(
                            error = format!("{:#}", anyhow::Error::new(error)),
                            "the broker does not start"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    });
}

/// SIGTERM, which systemd sends, and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The second of them: whoever asks twice wants the end now. Nothing durable depends on a clean stop.
    async fn twice(mut self) {
        self.next().await;
        self.next().await;
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
            names
                .iter()
                .map(|sink| Ok(tx.outbox_depth(*sink)?.rows))
                .sum::<Result<u64, StoreError>>()
        });
        match depth.await {
            Ok(0) | Err(_) => return,
            Ok(rows) if rows < owed => (owed, progress) = (rows, Stopwatch::start()),
            Ok(rows) if progress.elapsed() >= DRAIN_PATIENCE => {
                tracing::warn!(
                    rows,
                    "still owed at the end of the replay: delivered after the next start"
                );
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
