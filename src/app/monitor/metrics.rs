//! `/metrics`: the health of this device since the start, for Prometheus.
//!
//! A scrape reads counters in memory and a few files of the kernel, and never the store. Counts of
//! rows come from the tasks that read them anyway. There are no names or ids of people. Every label
//! has a small fixed set of values; those of webhooks are the names in the configuration.

use std::sync::Arc;

use strum::VariantArray as _;

use crate::app::context::Context;
use crate::app::monitor::prometheus::Exposition;
use crate::app::state::counted::LatestCounts;
use crate::app::state::counted::RowCounts;
use crate::app::state::gallery::GalleryCell;
use crate::clock::{self, Clock, Stamp};
use crate::health::{self, Health};
use crate::ids::Origin;
use crate::mqtt::link::Link;
use crate::store::{DeliveryStatus, SinkStatus, Store};
use crate::wire::command::ErrorCode;

pub struct Metrics {
    pub health: Arc<Health>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub clock: Arc<dyn Clock>,
    pub counted: Arc<LatestCounts>,
    /// `None` where no broker is configured.
    pub link: Option<Link>,
    pub started: Stamp,
    pub origin: Origin,
    pub embedder: String,
    pub precision: String,
}

impl Metrics {
    pub fn new(ctx: Context, link: Option<Link>) -> Self {
        let embedder = ctx.settings.vision.embedder.clone();
        let precision = format!("{:?}", ctx.settings.vision.precision).to_lowercase();
        let Context { health, store, gallery, clock, counted, started, origin, .. } = ctx;
        Self { health, store, gallery, clock, counted, link, started, origin, embedder, precision }
    }

    pub fn to_text(&self) -> String {
        let mut page = Exposition::default();
        let now = self.clock.now();
        let counts = self.counted.get();
        self.device(&mut page, &now);
        self.camera(&mut page);
        self.recognition(&mut page);
        self.gallery(&mut page, &counts);
        self.record(&mut page);
        add_outbox(&mut page, counts.status.as_ref(), &now);
        self.deliveries(&mut page);
        self.commands(&mut page);
        self.http(&mut page);
        page.into_text()
    }

    fn device(&self, page: &mut Exposition, now: &Stamp) {
        let version = env!("CARGO_PKG_VERSION");
        let build = [
            ("version", version),
            ("embedder", self.embedder.as_str()),
            ("precision", self.precision.as_str()),
        ];
        page.gauges(
            "rollcall_build_info",
            "Version of the program and its embedder.",
            [(build, 1)],
        );
        let device = [("site", self.origin.site.as_str()), ("device", self.origin.device.as_str())];
        page.gauges("rollcall_device_info", "Site and name of this device.", [(device, 1)]);
        let uptime = now.since(&self.started).as_secs_f64();
        page.gauge(
            "rollcall_uptime_seconds",
            "Time since the start. All counters count from the start.",
            uptime,
        );
        let clock = "Whether the clock is trusted. Until it is, events belong to no session.";
        page.gauge("rollcall_clock_trusted", clock, u8::from(now.trusted));
        let wall = "The device's wall clock. Compare it with the time of the scrape.";
        page.gauge("rollcall_clock_timestamp_seconds", wall, now.wall_ms as f64 / 1e3);
        let celsius = health::cpu_celsius().filter(|it| it.is_finite());
        page.gauge_if(
            "rollcall_cpu_temperature_celsius",
            "Temperature of the processor. Absent without a sensor.",
            celsius,
        );
        let slowed = "Steps by which recognition is slowed down because the processor is hot. 0 is full speed.";
        page.gauge("rollcall_pace_step", slowed, self.health.recognition.pace_step.get());
        let cpu = clock::process_cpu_time().as_secs_f64();
        page.counter("process_cpu_seconds_total", "CPU time used.", cpu);
        page.gauge_if(
            "process_resident_memory_bytes",
            "Resident memory.",
            health::resident_bytes(),
        );
        page.gauge_if("process_open_fds", "Open file descriptors.", health::open_files());
    }

    fn camera(&self, page: &mut Exposition) {
        let health = &self.health;
        let help = "State of the camera. absent: none is configured, or a replay has ended.";
        page.state("rollcall_camera_state", help, Some(health.camera_state()));
        let counters = [
            (
                "rollcall_camera_losses_total",
                "How often the camera was lost.",
                &health.camera.losses,
            ),
            (
                "rollcall_frames_captured_total",
                "Frames that the camera delivered.",
                &health.camera.frames_captured,
            ),
            (
                "rollcall_frames_replaced_total",
                "Frames that a newer one replaced before they were processed.",
                &health.camera.frames_replaced,
            ),
            (
                "rollcall_frames_missed_total",
                "Frames that the driver reports as lost.",
                &health.camera.frames_missed,
            ),
            (
                "rollcall_frames_unreadable_total",
                "Frames that were damaged or could not be decoded.",
                &health.camera.frames_unreadable,
            ),
            (
                "rollcall_frames_analysed_total",
                "Frames that were checked for change.",
                &health.camera.frames_analysed,
            ),
            (
                "rollcall_frames_detected_total",
                "Frames that the detector processed.",
                &health.camera.frames_detected,
            ),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, counter.get());
        }
    }

    fn recognition(&self, page: &mut Exposition) {
        let health = &self.health;
        let times = &self.health.times;
        let counters = [
            (
                "rollcall_faces_seen_total",
                "Detected faces, counted in each frame anew.",
                &health.recognition.faces,
            ),
            (
                "rollcall_templates_made_total",
                "Templates computed from faces in live frames.",
                &health.recognition.templates,
            ),
            (
                "rollcall_attacks_total",
                "Presentation attacks detected.",
                &health.recognition.attacks,
            ),
            (
                "rollcall_too_far_total",
                "Faces that left without a sample because they were too far away.",
                &health.recognition.too_far,
            ),
            ("rollcall_engine_errors_total", "Failures of a model.", &health.recognition.errors),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, counter.get());
        }
        let decisions = [
            ("identified", &health.recognition.identified),
            ("unknown", &health.recognition.unknown),
        ];
        let decisions =
            decisions.map(|(decision, counter)| ([("decision", decision)], counter.get()));
        page.counters(
            "rollcall_decisions_total",
            "Decisions on faces before the camera.",
            decisions,
        );
        let stages = [
            ("wait", &times.wait),
            ("glance", &times.glance),
            ("decode", &times.decode),
            ("detect", &times.detect),
            ("refine", &times.refine),
            ("liveness", &times.liveness),
            ("template", &times.template),
            ("second_part", &times.second_part),
            ("identify", &times.identify),
            ("frame", &times.frame),
            ("record", &times.record),
        ]
        .map(|(stage, histogram)| ([("stage", stage)], histogram));
        let help = "Duration of each step from camera to record. frame is all steps from glance to identify.";
        page.histograms("rollcall_stage_duration_seconds", help, stages);
        let help = "Time from the first frame of a face to its decision.";
        page.histograms("rollcall_decision_duration_seconds", help, [([], &times.decision)]);
        let help = "Time from the capture of the deciding frame to the recorded attendance.";
        page.histograms("rollcall_attendance_latency_seconds", help, [([], &times.attendance)]);
    }

    fn gallery(&self, page: &mut Exposition, counts: &RowCounts) {
        let gallery = self.gallery.snapshot();
        page.gauge(
            "rollcall_gallery_subjects",
            "Enrolled people that can be recognised.",
            gallery.subjects(),
        );
        page.gauge(
            "rollcall_gallery_references",
            "References (face samples) in the gallery.",
            gallery.references(),
        );
        let help = "People without a reference of the embedder in use. They are not recognised until they are enrolled again.";
        page.gauge_if("rollcall_gallery_outdated_subjects", help, counts.outdated);
        let help = "People recognised by the first part of the embedder in use alone, less surely. A photograph sent again adds the second part.";
        page.gauge_if("rollcall_gallery_partial_subjects", help, counts.partial);
        page.gauge_if(
            "rollcall_erasures_pending",
            "Erasures without a receipt yet.",
            counts.erasures_pending,
        );
        let help = "Consents that end within 30 days, or have ended and wait for a trusted clock.";
        page.gauge_if("rollcall_consents_ending", help, counts.consents_ending);
        let help = "People who were withdrawn because their consent had ended.";
        page.counter("rollcall_consents_ended_total", help, self.health.consents_ended.get());
        let sharing = self.health.sharing();
        let help = "State of the shared gallery on this device. Absent where it is not shared.";
        page.state("rollcall_sharing_state", help, sharing.map(|it| it.state));
        let help = "People of whom the site has a newer version than this device.";
        page.gauge_if("rollcall_sharing_behind_subjects", help, sharing.map(|it| it.behind));
        let refused = sharing.map(|it| ([], it.refused));
        page.counters(
            "rollcall_sharing_refused_total",
            "Messages of the shared gallery that were rejected.",
            refused,
        );
        let help = "People whose version here is pending for the site.";
        page.gauge_if("rollcall_sharing_pending_subjects", help, sharing.map(|it| it.pending));
        let help =
            "Topics or documents of the shared gallery that are not sealed with the site key.";
        page.gauge_if("rollcall_sharing_unsealed", help, sharing.map(|it| it.unsealed));
    }

    fn record(&self, page: &mut Exposition) {
        let health = &self.health;
        let store = self.store.vitals();
        let recorded = health.recorded.get();
        page.counter("rollcall_attendances_recorded_total", "Recorded attendances.", recorded);
        let errors = "Writes that failed, for example because the disk is full.";
        page.counter("rollcall_store_errors_total", errors, health.store_errors.get());
        page.gauge("rollcall_store_queue_length", "Writes that wait for the store.", store.queue);
        let help = "Duration of a commit of a group of writes.";
        page.histograms(
            "rollcall_store_commit_duration_seconds",
            help,
            [([], self.store.commits())],
        );
        page.gauge(
            "rollcall_database_bytes",
            "Size of the database with its write-ahead log.",
            store.database_bytes,
        );
        page.gauge_if(
            "rollcall_storage_free_bytes",
            "Free space on the file system of the database.",
            store.free_bytes,
        );
        let help = "Whether the reserve for a full disk is held.";
        page.gauge("rollcall_storage_reserve_held", help, u8::from(store.reserve_held));
    }

    fn deliveries(&self, page: &mut Exposition) {
        let health = &self.health;
        let online = self.link.as_ref().map(|link| u8::from(link.is_online()));
        page.gauge_if(
            "rollcall_mqtt_connected",
            "Whether the broker is connected. Absent where none is configured.",
            online,
        );
        let help = "State of the connection to the broker. Absent where none is configured.";
        page.state("rollcall_mqtt_state", help, self.link.as_ref().map(|link| link.status().state));
        page.counter(
            "rollcall_mqtt_refused_total",
            "Messages that the broker did not accept, and probes that did not come back.",
            self.link.as_ref().map_or(0, |link| link.counters().refused),
        );
        let help = "State of the connection to MongoDB. Absent where none is configured.";
        page.state("rollcall_mongo_state", help, health.mongo().map(|(state, _)| state));
        page.counter(
            "rollcall_events_published_total",
            "Events that the broker acknowledged.",
            health.events_published.get(),
        );
        let sinks = [
            ("mqtt", &health.to_mqtt),
            ("mongo", &health.to_mongo),
            ("gallery", &health.to_gallery),
        ];
        let webhooks = || health.webhooks().iter().map(|it| (it.sink, &it.deliveries));
        let outcomes = sinks.into_iter().chain(webhooks()).flat_map(|(sink, it)| {
            [
                ("acknowledged", &it.acknowledged),
                ("failed", &it.failed),
                ("buried", &it.dead_lettered),
            ]
            .map(|(outcome, counter)| ([("sink", sink), ("outcome", outcome)], counter.get()))
        });
        let help =
            "Delivery attempts of outbox rows by outcome. failed: retried; buried: dead-lettered.";
        page.counters("rollcall_deliveries_total", help, outcomes);
        let help = "Time from sending a batch of rows to its acknowledgement.";
        let times =
            sinks.into_iter().chain(webhooks()).map(|(sink, it)| ([("sink", sink)], &it.times));
        page.histograms("rollcall_delivery_duration_seconds", help, times);
    }

    fn commands(&self, page: &mut Exposition) {
        page.counter("rollcall_commands_total", "Received commands.", self.health.commands.get());
        // All reasons from the start, because a series that begins at 1 shows no rate.
        let rejections = self.health.rejections();
        let reasons = ErrorCode::VARIANTS.iter().map(|it| it.as_str());
        let samples = reasons.map(|reason| {
            ([("reason", reason)], rejections.get(reason).copied().unwrap_or_default())
        });
        page.counters("rollcall_commands_refused_total", "Rejected commands.", samples);
    }

    fn http(&self, page: &mut Exposition) {
        let responses: Vec<((String, String), u64)> = self
            .health
            .http_responses()
            .into_iter()
            .map(|((route, status), count)| ((route, status.to_string()), count))
            .collect();
        let samples = responses.iter().map(|((route, status), count)| {
            ([("route", route.as_str()), ("status", status.as_str())], *count)
        });
        let help = "HTTP requests by route and status. other: no known route.";
        page.counters("rollcall_http_requests_total", help, samples);
        let help = "Time from the head of an HTTP request to the head of its response.";
        page.histograms(
            "rollcall_http_request_duration_seconds",
            help,
            [([], &self.health.times.http)],
        );
    }
}

fn add_outbox(page: &mut Exposition, status: Option<&DeliveryStatus>, now: &Stamp) {
    let sinks = || status.into_iter().flat_map(|it| &it.sinks);
    let label = |it: &SinkStatus| [("sink", it.sink.as_str())];
    let rows = sinks().map(|it| (label(it), it.depth.rows));
    page.gauges("rollcall_outbox_rows", "Rows pending for a sink.", rows);
    let buried = sinks().map(|it| (label(it), it.depth.dead_letters));
    page.gauges(
        "rollcall_outbox_buried_rows",
        "Dead letters: rows that a sink cannot accept.",
        buried,
    );
    let age = |it: &SinkStatus| {
        let since_ms =
            it.depth.oldest_created_ms.map_or(0, |created_ms| (now.wall_ms - created_ms).max(0));
        since_ms as f64 / 1e3
    };
    let ages = sinks().map(|it| (label(it), age(it)));
    page.gauges(
        "rollcall_outbox_oldest_age_seconds",
        "Age of the oldest pending row. 0 without one.",
        ages,
    );
    let unreadable = status.map(|it| it.unreadable.rows as f64);
    page.gauge_if(
        "rollcall_database_unreadable_rows",
        "Rows that are damaged and were set apart.",
        unreadable,
    );
    let through = status.and_then(|it| it.complete_through_ms(None)).map(|ms| ms as f64 / 1e3);
    let help = "Everything recorded up to this time is delivered. Absent while that is unknown.";
    page.gauge_if("rollcall_complete_through_timestamp_seconds", help, through);
}
