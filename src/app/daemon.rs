//! The composition root: starts one stage after the other, in the order of the flow, and stops them
//! in the same order.
//!
//! Each stage takes what it shares with others from the [`Context`] and makes its own state. The
//! channels between stages are made here.
//!
//! Not here: how stages are awaited and stopped (`supervise`), signals (`shutdown`), opening the
//! store and the models (`open`).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::{mpsc, oneshot, watch};

use crate::app::broker::{broker_settings, start_broker, watch_broker};
use crate::app::commands::Commander;
use crate::app::commands::learning::Learning;
use crate::app::commands::reply_to::{REQUESTS_MAX, Request};
use crate::app::context::Context;
use crate::app::delivery::completeness::Completeness;
use crate::app::delivery::home_assistant::{self, Discovery};
use crate::app::delivery::mongo_venues::venue_records;
use crate::app::delivery::mqtt_sink::MqttSink;
use crate::app::delivery::receipts::Receipts;
use crate::app::delivery::watermark::Watermark;
use crate::app::exit::{config, storage};
use crate::app::fleet::{
    GallerySink, MongoGallery, MongoTransport, MqttGallery, MqttTransport, Reconciler,
};
use crate::app::http::{HttpInputs, HttpServer};
use crate::app::links::{gallery_link_settings, link_settings, webhook_tls};
use crate::app::maintenance::Maintenance;
use crate::app::monitor::health_message::HealthReporter;
use crate::app::monitor::metrics::Metrics;
use crate::app::monitor::systemd::Notifier;
use crate::app::monitor::watchdog::Watchdog;
use crate::app::open::sinks;
use crate::app::pipeline::capture::{Capture, open_camera};
use crate::app::pipeline::coverage::CoverageRecorder;
use crate::app::pipeline::inference::{Inference, JOBS_MAX, Job};
use crate::app::pipeline::learning::{LEARNED_MAX, LearnedSample};
use crate::app::pipeline::thermal::ThermalControl;
use crate::app::pipeline::timing::TimedSink;
use crate::app::preview_socket::PreviewServer;
use crate::app::shutdown::{Signals, wait_until_drained};
use crate::app::state::preview::PreviewFeed;
use crate::app::supervise::Stages;
use crate::clock::Stopwatch;
use crate::config::fleet::{FleetSettings, GalleryTransport};
use crate::health::{CameraHealth, Deliveries, Health, WebhookHealth};
use crate::mongo::{MongoLink, MongoSink};
use crate::mqtt::driver::Driver;
use crate::mqtt::event::LinkEvent;
use crate::mqtt::link::{self, Link};
use crate::recognise::frame::{Frame, Latest};
use crate::store::relay::{RelaySettings, Sink, relay};
use crate::vision::Vision;
use crate::webhook::{WebhookLink, WebhookSettings, WebhookSink};

/// How long stages may take to finish what they are doing.
const GRACE: Duration = Duration::from_secs(5);
/// How long the last replies and events may take to be acknowledged at the end. What is left stays
/// on disk until the next start.
const LAST_DELIVERIES_MAX: Duration = Duration::from_secs(1);

/// What the command line adds to the settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Stop when a replay has ended and everything is delivered, or cannot be.
    pub until_replay_ends: bool,
}

pub(super) struct Daemon {
    ctx: Context,
    stages: Stages,
}

impl Daemon {
    /// Starts all stages, waits for the end, and stops them.
    pub(super) async fn serve(
        ctx: Context,
        vision: Vision,
        options: RunOptions,
        watch: Stopwatch,
    ) -> anyhow::Result<()> {
        // Before anything is started, so that a signal is never handled by the default action.
        let signals = Signals::new()?;
        let second_signals = Signals::new()?;
        let mut daemon = Self { ctx: ctx.clone(), stages: Stages::new() };
        let broker = start_broker(&ctx.settings)?.map(|broker| Arc::new(Mutex::new(broker)));
        let slot = Arc::new(Latest::default());
        let (jobs, job_queue) = sync_channel(JOBS_MAX);
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let (replay_ended, ended) = watch::channel(false);
        let feed = Arc::new(PreviewFeed::new(None));

        daemon.start_camera(&slot, &replay_ended)?;
        daemon.start_inference(vision, slot, job_queue, &feed)?;
        daemon.start_preview_socket(&feed, requests.clone());
        let link = daemon.start_commands_and_mqtt(jobs.clone(), request_queue)?;
        daemon.start_gallery_over_mqtt().await?;
        if let Some(broker) = &broker {
            watch_broker(&mut daemon.stages, broker, broker_settings(&ctx.settings));
        }
        let mongo = daemon.start_mongo();
        daemon.start_gallery_in_mongo(mongo.as_ref()).await?;
        daemon.start_webhooks()?;
        daemon.start_watermark(link.clone(), mongo.clone());
        let reporter = daemon.start_health_reporter(link.clone());
        daemon.start_receipts();
        daemon.start_maintenance();
        daemon.start_coverage();
        daemon.start_thermal();
        let metrics = Metrics::new(ctx.clone(), link);
        daemon.start_http(HttpInputs { requests, reporter, metrics, feed, mongo }).await?;
        let notifier = daemon.start_watchdog();

        notifier.notify("READY=1");
        let site = &ctx.origin.site;
        let device = &ctx.origin.device;
        tracing::info!(site, device, elapsed_ms = watch.elapsed().as_millis() as u64, "ready");
        let end = async {
            let reason = wait_for_end(&ctx, options, &jobs, ended, signals).await;
            notifier.notify("STOPPING=1");
            reason
        };
        let last_deliveries = async {
            let sinks = sinks(&ctx.settings);
            tokio::time::timeout(
                LAST_DELIVERIES_MAX,
                wait_until_drained(&jobs, &ctx.store, &sinks),
            )
            .await
            .ok();
        };
        let outcome = tokio::select! {
            outcome = daemon.stages.run(end, last_deliveries, GRACE) => outcome,
            () = second_signals.second() => Err(anyhow!("a second signal ended the daemon at once")),
        };
        // The broker last: its clients have disconnected. The rest kept its queues open until here.
        drop((jobs, replay_ended, broker));
        outcome
    }

    fn start_camera(
        &mut self,
        slot: &Arc<Latest<Frame>>,
        ended: &watch::Sender<bool>,
    ) -> anyhow::Result<()> {
        let Some(camera) = open_camera(&self.ctx.settings.camera).map_err(config)? else {
            self.ctx.health.set_camera_state(CameraHealth::Absent);
            return Ok(());
        };
        let stop = self.stages.stop_signal();
        let slot = Arc::clone(slot);
        let capture = Capture::new(self.ctx.clone(), camera, slot, ended.clone(), stop);
        self.stages.thread("camera", move || capture.run())
    }

    fn start_inference(
        &mut self,
        vision: Vision,
        slot: Arc<Latest<Frame>>,
        jobs: Receiver<Job>,
        feed: &Arc<PreviewFeed>,
    ) -> anyhow::Result<()> {
        let stop = self.stages.stop_signal();
        let feed = Arc::clone(feed);
        let mut inference = Inference::new(self.ctx.clone(), vision, slot, jobs, feed, stop);
        if let Some(queue) = self.start_learning() {
            inference = inference.with_learning(queue);
        }
        self.stages.thread("inference", move || inference.run())
    }

    /// Starts what stores references learned from the camera, if they are to be learned and the
    /// embedder has a second part to learn.
    fn start_learning(&mut self) -> Option<mpsc::Sender<LearnedSample>> {
        let references_max = self.ctx.settings.recognition.learned_references_max()?;
        self.ctx.embedder.second?;
        let (queue, samples) = mpsc::channel(LEARNED_MAX);
        let learning = Learning::new(self.ctx.clone(), references_max, samples);
        self.stages.task("learning", learning.run(self.stages.stop_signal()));
        Some(queue)
    }

    fn start_preview_socket(&mut self, feed: &Arc<PreviewFeed>, requests: mpsc::Sender<Request>) {
        let server = PreviewServer::new(self.ctx.clone(), Arc::clone(feed), requests);
        let listener = server.listen();
        self.stages.task("preview socket", server.run(listener, self.stages.stop_signal()));
    }

    /// Starts the commands, which come by MQTT and HTTP, and what delivers events and replies over
    /// MQTT. Gives the link, unless no broker is configured.
    fn start_commands_and_mqtt(
        &mut self,
        jobs: SyncSender<Job>,
        requests: mpsc::Receiver<Request>,
    ) -> anyhow::Result<Option<Link>> {
        let ctx = self.ctx.clone();
        let Some(mqtt) = &ctx.settings.mqtt else {
            tracing::warn!(
                "no broker is configured: attendance is recorded here, and nothing is published"
            );
            let commander = Commander::new(ctx, jobs, requests, None, None);
            let stop = self.stages.stop_signal();
            let run = async move {
                // No link: nothing arrives here.
                let (_link, mut events) = mpsc::channel(1);
                commander.run(&mut events, stop).await
            };
            self.stages.task("commands", run);
            return Ok(None);
        };
        let birth = home_assistant::birth(&ctx.settings).map_err(config)?;
        let mut settings = link_settings(mqtt, &ctx.topics);
        settings.subscriptions.extend(birth.iter().map(|it| it.topic.clone()));
        let (link, driver, mut events) = link::open(settings).map_err(config)?;

        let discovery = Discovery::new(ctx.clone(), link.clone(), birth.clone()).map_err(config)?;
        self.stages.task("discovery", discovery.run(self.stages.stop_signal()));

        let commander = Commander::new(ctx.clone(), jobs, requests, Some(link.clone()), birth);
        let stop = self.stages.stop_signal();
        let (leave, left) = oneshot::channel();
        self.stages.task("commands", async move {
            let outcome = commander.run(&mut events, stop).await;
            leave.send(events).ok();
            outcome
        });
        let sink = MqttSink::new(ctx.clone(), link.clone());
        self.start_relay("relay to mqtt", sink, usize::from(mqtt.window), |it| &it.to_mqtt);
        self.start_link("mqtt link", driver, left);
        Ok(Some(link))
    }

    /// Shares the gallery with the site over MQTT, on a link of its own.
    async fn start_gallery_over_mqtt(&mut self) -> anyhow::Result<()> {
        let ctx = self.ctx.clone();
        let (Some(mqtt), Some(fleet)) = (&ctx.settings.mqtt, self.fleet(GalleryTransport::Mqtt))
        else {
            return Ok(());
        };
        let settings = gallery_link_settings(mqtt, &ctx.topics);
        let (link, driver, mut events) = link::open(settings).map_err(config)?;
        let reconciler = Reconciler::load(ctx.clone(), fleet.key).await.map_err(storage)?;
        let transport = MqttTransport { link: link.clone(), topics: ctx.topics.clone() };
        let sink = GallerySink::new(&reconciler, transport);

        let gallery = MqttGallery { reconciler, link, topics: ctx.topics.clone() };
        let stop = self.stages.stop_signal();
        let (leave, left) = oneshot::channel();
        self.stages.task("gallery", async move {
            let outcome = gallery.run(&mut events, stop).await;
            leave.send(events).ok();
            outcome
        });
        self.start_gallery_relay(sink);
        self.start_link("gallery link", driver, left);
        Ok(())
    }

    fn start_mongo(&mut self) -> Option<MongoLink> {
        let ctx = &self.ctx;
        #[allow(clippy::clone_on_copy, reason = "an empty type in a build without MongoDB")]
        let mongo = ctx.settings.mongo.clone()?;
        let window = mongo.window();
        let link = MongoLink::new(mongo, Arc::clone(&ctx.clock), Arc::clone(&ctx.health));
        let venues = venue_records(Arc::clone(&ctx.venues));
        let sink = MongoSink::new(link.clone(), ctx.origin.clone(), venues);
        self.start_relay("relay to mongodb", sink, window, |it| &it.to_mongo);
        Some(link)
    }

    /// Shares the gallery with the site through MongoDB.
    async fn start_gallery_in_mongo(&mut self, link: Option<&MongoLink>) -> anyhow::Result<()> {
        let (Some(link), Some(fleet)) = (link, self.fleet(GalleryTransport::Mongo)) else {
            return Ok(());
        };
        let reconciler = Reconciler::load(self.ctx.clone(), fleet.key).await.map_err(storage)?;
        let sink = GallerySink::new(&reconciler, MongoTransport { link: link.clone() });
        let gallery = MongoGallery { reconciler, link: link.clone() };
        self.stages.task("gallery", gallery.run(self.stages.stop_signal()));
        self.start_gallery_relay(sink);
        Ok(())
    }

    /// Starts a relay for each webhook, and what states completeness at those that use it.
    fn start_webhooks(&mut self) -> anyhow::Result<()> {
        let ctx = self.ctx.clone();
        let webhooks = &ctx.settings.webhooks;
        let health = |it: &WebhookSettings| WebhookHealth::new(&it.name, it.sink().as_str());
        ctx.health.set_webhooks(webhooks.iter().map(|it| health(it)).collect());
        let mut links = Vec::with_capacity(webhooks.len());
        for (at, webhook) in webhooks.iter().enumerate() {
            let tls = webhook_tls(webhook).map_err(config)?;
            let clock = Arc::clone(&ctx.clock);
            let link =
                WebhookLink::new(Arc::clone(webhook), tls, clock, Arc::clone(&ctx.health), at);
            let sink = WebhookSink::new(link.clone(), ctx.origin.clone());
            let name = webhook.sink().as_str();
            self.start_relay(name, sink, webhook.window(), move |it: &Health| {
                &it.webhooks()[at].deliveries
            });
            links.push(link);
        }
        if let Some(completeness) = Completeness::new(&ctx, links) {
            self.stages.task("completeness", completeness.run(self.stages.stop_signal()));
        }
        Ok(())
    }

    fn start_watermark(&mut self, link: Option<Link>, mongo: Option<MongoLink>) {
        let watermark = Watermark::new(self.ctx.clone(), link, mongo);
        self.stages.task("watermark", watermark.run(self.stages.stop_signal()));
    }

    fn start_health_reporter(&mut self, link: Option<Link>) -> Arc<HealthReporter> {
        let reporter = Arc::new(HealthReporter::new(self.ctx.clone(), link));
        self.stages.task("health", Arc::clone(&reporter).run(self.stages.stop_signal()));
        reporter
    }

    fn start_receipts(&mut self) {
        let receipts = Receipts::new(self.ctx.clone());
        self.stages.task("receipts", receipts.run(self.stages.stop_signal()));
    }

    fn start_maintenance(&mut self) {
        let maintenance = Maintenance::new(self.ctx.clone());
        self.stages.task("maintenance", maintenance.run(self.stages.stop_signal()));
    }

    fn start_coverage(&mut self) {
        let recorder = CoverageRecorder::new(self.ctx.clone());
        self.stages.task("coverage", recorder.run(self.stages.stop_signal()));
    }

    fn start_thermal(&mut self) {
        if let Some(celsius_max) = self.ctx.settings.celsius_max {
            let control = ThermalControl::new(self.ctx.clone(), celsius_max);
            self.stages.task("thermal", control.run(self.stages.stop_signal()));
        }
    }

    async fn start_http(&mut self, inputs: HttpInputs) -> anyhow::Result<()> {
        let Some(http) = self.ctx.settings.http.clone() else {
            return Ok(());
        };
        let stop = self.stages.stop_signal();
        let server = HttpServer::new(self.ctx.clone(), http, inputs, stop);
        let listener = server.listen().await;
        self.stages.task("http", server.run(listener));
        Ok(())
    }

    /// Starts the watchdog, if systemd is notified at all. It watches the stages that run by then.
    fn start_watchdog(&mut self) -> Arc<Notifier> {
        let notifier = Arc::new(Notifier::from_environment());
        if notifier.is_connected() {
            let watchdog =
                Watchdog::new(self.ctx.clone(), Arc::clone(&notifier), self.stages.polls());
            self.stages.task("watchdog", watchdog.run(self.stages.stop_signal()));
        }
        notifier
    }

    /// The settings of the shared gallery, if it is shared this way.
    fn fleet(&self, transport: GalleryTransport) -> Option<FleetSettings> {
        self.ctx.settings.fleet.clone().filter(|it| it.transport == transport)
    }

    fn start_gallery_relay(&mut self, sink: impl Sink + 'static) {
        let window = RelaySettings::default().window;
        self.start_relay("relay to the site's gallery", sink, window, |it| &it.to_gallery);
    }

    /// Starts the relay that delivers rows of the outbox to a sink, `window` of them at a time.
    fn start_relay(
        &mut self,
        name: &'static str,
        sink: impl Sink + 'static,
        window: usize,
        deliveries: impl Fn(&Health) -> &Deliveries + Send + 'static,
    ) {
        let settings = RelaySettings { window, ..RelaySettings::default() };
        let sink = TimedSink::new(sink, &self.ctx.health, deliveries);
        let relay = relay(self.ctx.store.clone(), sink, self.stages.last_signal(), settings);
        self.stages.last_task(name, async move { relay.await.map_err(storage) });
    }

    /// Runs a link until all else has stopped. The stage that takes the link's events stops earlier
    /// and hands the queue over, because a link whose queue is gone reports a failure.
    fn start_link(
        &mut self,
        name: &'static str,
        driver: Driver,
        queue: oneshot::Receiver<mpsc::Receiver<LinkEvent>>,
    ) {
        let stop = self.stages.last_signal();
        self.stages.last_task(name, async move {
            let outcome = driver.drive(stop).await;
            drop(queue);
            outcome.map_err(|e| anyhow!(e))
        });
    }
}

/// Resolves when the daemon is to end, with the reason.
async fn wait_for_end(
    ctx: &Context,
    options: RunOptions,
    jobs: &SyncSender<Job>,
    mut replay_ended: watch::Receiver<bool>,
    mut signals: Signals,
) -> &'static str {
    let replayed = async {
        // An error means that the camera's thread has ended, which its stage reports.
        if !options.until_replay_ends || replay_ended.wait_for(|it| *it).await.is_err() {
            std::future::pending::<()>().await;
        }
        wait_until_drained(jobs, &ctx.store, &sinks(&ctx.settings)).await;
    };
    tokio::select! {
        reason = signals.next() => reason,
        () = replayed => "the replay has ended",
    }
}
