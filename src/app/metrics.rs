//! What `/metrics` says, in Prometheus' words: the vital signs of this door since it started.
//!
//! A scrape reads counters in memory and a few files of the kernel, and never asks the store: what is owed was counted by
//! the tasks that look into it anyway. There are no names, and no ids of people; every label has few values, all ours.

use std::sync::{Arc, Mutex, PoisonError};

use crate::app::exposition::Exposition;
use crate::app::gallery::GalleryCell;
use crate::clock::{self, Clock, Stamp};
use crate::health::{self, CameraHealth, Health, MongoState, SharingState};
use crate::mqtt::link::Link;
use crate::record::command::ErrorCode;
use crate::record::store::{SinkStanding, Standing, Store};

/// What was last seen in the store by those who look into it anyway: what is owed every three seconds, the rest with each
/// health message.
#[derive(Default)]
pub struct Counted(Mutex<Counts>);

#[derive(Clone, Default)]
struct Counts {
    standing: Option<Standing>,
    outdated: Option<u64>,
    erasures_pending: Option<u64>,
}

impl Counted {
    pub fn set_standing(&self, standing: &Standing) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).standing = Some(standing.clone());
    }

    pub fn set_people(&self, outdated: u64, erasures_pending: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (counts.outdated, counts.erasures_pending) = (Some(outdated), Some(erasures_pending));
    }

    fn get(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that the text is made from.
#[derive(Clone)]
pub struct Metrics {
    pub health: Arc<Health>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub clock: Arc<dyn Clock>,
    pub counted: Arc<Counted>,
    /// None where no broker is configured.
    pub link: Option<Link>,
    pub started: Stamp,
    pub site: String,
    pub device: String,
    pub embedder: String,
    pub precision: String,
}

impl Metrics {
    pub fn text(&self) -> String {
        let mut page = Exposition::default();
        let now = self.clock.now();
        let counts = self.counted.get();
        self.device(&mut page, &now);
        self.camera(&mut page);
        self.recognition(&mut page);
        self.gallery(&mut page, &counts);
        self.record(&mut page);
        owed(&mut page, counts.standing.as_ref(), &now);
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
            "The program and the network that makes templates.",
            [(build, 1)],
        );
        let device = [("site", self.site.as_str()), ("device", self.device.as_str())];
        page.gauges("rollcall_device_info", "Which door this is.", [(device, 1)]);
        let uptime = now.since(&self.started).as_secs_f64();
        page.gauge("rollcall_uptime_seconds", "Since the start; all counters are.", uptime);
        let clock =
            "Whether the time is known to be right; events are not placed in sessions until it is.";
        page.gauge("rollcall_clock_trusted", clock, u8::from(now.trusted));
        let wall = "The device's time, since 1970: compare it with that of the scrape.";
        page.gauge("rollcall_clock_timestamp_seconds", wall, now.wall_ms as f64 / 1e3);
        let celsius = health::cpu_celsius().filter(|it| it.is_finite());
        page.gauge_if(
            "rollcall_cpu_temperature_celsius",
            "Of the processor; absent without a sensor.",
            celsius,
        );
        let slowed =
            "By how many steps recognition is slowed because the processor is hot; 0 is full pace.";
        page.gauge("rollcall_pace_step", slowed, self.health.pace_step.get());
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
        let help = "What the camera is doing; absent: none is configured, or a replay has ended.";
        let states = CameraHealth::ALL.map(CameraHealth::as_str);
        page.state("rollcall_camera_state", help, &states, Some(health.camera().as_str()));
        let counters = [
            (
                "rollcall_camera_losses_total",
                "How often the camera was lost.",
                &health.camera_losses,
            ),
            (
                "rollcall_frames_captured_total",
                "Frames that the camera delivered.",
                &health.frames_captured,
            ),
            (
                "rollcall_frames_replaced_total",
                "Frames that a newer one replaced unseen.",
                &health.frames_replaced,
            ),
            (
                "rollcall_frames_missed_total",
                "Frames that the driver says were lost.",
                &health.frames_missed,
            ),
            (
                "rollcall_frames_unreadable_total",
                "Frames that were damaged.",
                &health.frames_unreadable,
            ),
            (
                "rollcall_frames_analysed_total",
                "Frames that were looked at for change.",
                &health.frames_analysed,
            ),
            (
                "rollcall_frames_detected_total",
                "Of those, frames that the detector was shown.",
                &health.frames_detected,
            ),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, counter.get());
        }
    }

    fn recognition(&self, page: &mut Exposition) {
        let (health, times) = (&self.health, &self.health.times);
        let counters = [
            (
                "rollcall_faces_seen_total",
                "Faces found, counted in each frame anew.",
                &health.faces_seen,
            ),
            (
                "rollcall_templates_made_total",
                "Templates made of live faces.",
                &health.templates_made,
            ),
            (
                "rollcall_attacks_total",
                "Faces before the camera that seemed to be pictures.",
                &health.attacks,
            ),
            (
                "rollcall_too_far_total",
                "Faces that were too far away for one good sample.",
                &health.too_far,
            ),
            ("rollcall_engine_errors_total", "How often a network failed.", &health.engine_errors),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, counter.get());
        }
        let decisions = [("identified", &health.identified), ("unknown", &health.unknown)];
        let decisions =
            decisions.map(|(decision, counter)| ([("decision", decision)], counter.get()));
        page.counters(
            "rollcall_decisions_total",
            "Faces before the camera that were decided upon.",
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
            ("identify", &times.identify),
            ("frame", &times.frame),
            ("record", &times.record),
        ]
        .map(|(stage, histogram)| ([("stage", stage)], histogram));
        let help = "How long a part of the way from the camera to the record takes; frame is all from glance to identify.";
        page.histograms("rollcall_stage_duration_seconds", help, stages);
        let help = "From the first frame of a face to the decision whose it is.";
        page.histograms("rollcall_decision_duration_seconds", help, [([], &times.decision)]);
        let help =
            "From the moment the deciding frame was taken until the attendance is on the disk.";
        page.histograms("rollcall_attendance_latency_seconds", help, [([], &times.attendance)]);
    }

    fn gallery(&self, page: &mut Exposition, counts: &Counts) {
        let gallery = self.gallery.snapshot();
        page.gauge(
            "rollcall_gallery_subjects",
            "Who is enrolled and can be recognised.",
            gallery.subjects(),
        );
        page.gauge(
            "rollcall_gallery_references",
            "Templates that are compared with.",
            gallery.references(),
        );
        let help = "Enrolled, but without a reference of the network in use: not recognised until photographed again.";
        page.gauge_if("rollcall_gallery_outdated_subjects", help, counts.outdated);
        page.gauge_if(
            "rollcall_erasures_pending",
            "Erasures that have no receipt yet.",
            counts.erasures_pending,
        );
        let sharing = self.health.sharing();
        let states = SharingState::ALL.map(SharingState::as_str);
        let help = "How this door stands with the site's gallery; absent where it is not shared.";
        page.state("rollcall_sharing_state", help, &states, sharing.map(|it| it.state.as_str()));
        let help = "Subjects that the site has newer than this door.";
        page.gauge_if("rollcall_sharing_behind_subjects", help, sharing.map(|it| it.behind));
        let refused = sharing.map(|it| ([], it.refused));
        page.counters(
            "rollcall_sharing_refused_total",
            "Messages of the site's gallery that were not taken.",
            refused,
        );
    }

    fn record(&self, page: &mut Exposition) {
        let (health, store) = (&self.health, self.store.vitals());
        let recorded = health.recorded.get();
        page.counter(
            "rollcall_attendances_recorded_total",
            "Attendances that were recorded.",
            recorded,
        );
        let errors = "Writes that failed and were survived, as on a full disk.";
        page.counter("rollcall_store_errors_total", errors, health.store_errors.get());
        page.gauge("rollcall_store_queue_length", "Writes that wait for the disk.", store.queue);
        let help = "How long the disk takes for a group of writes.";
        page.histograms(
            "rollcall_store_commit_duration_seconds",
            help,
            [([], self.store.commits())],
        );
        page.gauge("rollcall_database_bytes", "The database with its log.", store.database_bytes);
        page.gauge_if(
            "rollcall_storage_free_bytes",
            "Free where the database is.",
            store.free_bytes,
        );
        let help = "Whether what is kept back for a full disk is still kept back.";
        page.gauge("rollcall_storage_reserve_held", help, u8::from(store.reserve_held));
    }

    fn deliveries(&self, page: &mut Exposition) {
        let health = &self.health;
        let online = self.link.as_ref().map(|link| u8::from(link.is_online()));
        page.gauge_if(
            "rollcall_mqtt_connected",
            "Whether the broker is reached; absent where none is configured.",
            online,
        );
        let states = MongoState::ALL.map(MongoState::as_str);
        let help = "How this door stands with MongoDB; absent where none is configured.";
        page.state(
            "rollcall_mongo_state",
            help,
            &states,
            health.mongo().map(|(state, _)| state.as_str()),
        );
        page.counter(
            "rollcall_events_published_total",
            "Events the broker acknowledged.",
            health.events_published.get(),
        );
        let sinks = [
            ("mqtt", &health.to_mqtt),
            ("mongo", &health.to_mongo),
            ("gallery", &health.to_gallery),
        ];
        let outcomes = sinks.into_iter().flat_map(|(sink, it)| {
            [("acknowledged", &it.acknowledged), ("failed", &it.failed), ("buried", &it.buried)]
                .map(|(outcome, counter)| ([("sink", sink), ("outcome", outcome)], counter.get()))
        });
        let help = "Rows of the outbox, by what became of an attempt; failed ones are tried again.";
        page.counters("rollcall_deliveries_total", help, outcomes);
        let help = "From sending a batch of rows to the answer, where some were acknowledged.";
        let times = sinks.map(|(sink, it)| ([("sink", sink)], &it.times));
        page.histograms("rollcall_delivery_duration_seconds", help, times);
    }

    fn commands(&self, page: &mut Exposition) {
        page.counter("rollcall_commands_total", "Commands that came.", self.health.commands.get());
        // All that there can be, from the start: a rate is not seen when the first refusal brings the series.
        let refusals = self.health.refusals();
        let reasons = ErrorCode::ALL.map(ErrorCode::as_str);
        let samples = reasons.map(|reason| {
            ([("reason", reason)], refusals.get(reason).copied().unwrap_or_default())
        });
        page.counters("rollcall_commands_refused_total", "Commands that were refused.", samples);
    }

    fn http(&self, page: &mut Exposition) {
        let answers: Vec<((String, String), u64)> = self
            .health
            .http_answers()
            .into_iter()
            .map(|((route, status), count)| ((route, status.to_string()), count))
            .collect();
        let samples = answers.iter().map(|((route, status), count)| {
            ([("route", route.as_str()), ("status", status.as_str())], *count)
        });
        let help = "Requests by HTTP, by route of ours and status; other is no route.";
        page.counters("rollcall_http_requests_total", help, samples);
        let help = "From the head of a request to the head of its answer.";
        page.histograms(
            "rollcall_http_request_duration_seconds",
            help,
            [([], &self.health.times.http)],
        );
    }
}

fn owed(page: &mut Exposition, standing: Option<&Standing>, now: &Stamp) {
    let sinks = || standing.into_iter().flat_map(|it| &it.sinks);
    let label = |it: &SinkStanding| [("sink", it.sink.as_str())];
    let rows = sinks().map(|it| (label(it), it.depth.rows));
    page.gauges("rollcall_outbox_rows", "What a sink is still owed.", rows);
    let buried = sinks().map(|it| (label(it), it.depth.buried));
    page.gauges(
        "rollcall_outbox_buried_rows",
        "What a sink will never take; it was set aside.",
        buried,
    );
    let age = |it: &SinkStanding| {
        let since_ms =
            it.depth.oldest_created_ms.map_or(0, |created_ms| (now.wall_ms - created_ms).max(0));
        since_ms as f64 / 1e3
    };
    let ages = sinks().map(|it| (label(it), age(it)));
    page.gauges(
        "rollcall_outbox_oldest_age_seconds",
        "How long the oldest owed row has waited; 0 without one.",
        ages,
    );
    let through = standing.and_then(|it| it.complete_through_ms(None)).map(|ms| ms as f64 / 1e3);
    let help =
        "Everything seen up to this moment has been delivered; absent while that cannot be said.";
    page.gauge_if("rollcall_complete_through_timestamp_seconds", help, through);
}
