//! Health: counters and states that the stages write and that the health message, `/metrics` and
//! the local page report.
//!
//! Each counter is written by one stage. Invariant: no names, images or templates.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Serialize, Serializer};
use strum::{IntoStaticStr, VariantArray};

use crate::histogram::Histogram;

/// The state of the camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
pub enum CameraHealth {
    /// No camera is configured, or a replay has ended.
    Absent,
    Streaming,
    Lost,
}

/// Why the camera is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraLoss {
    /// The kind of the fault, as in the health message; `None` for a loss before the start.
    pub fault: Option<&'static str>,
    pub reason: String,
}

/// The state of the connection to MongoDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
pub enum MongoState {
    Connected,
    /// Unreachable or failing; deliveries are retried.
    Away,
    /// Rejects what is sent until an operator corrects something.
    Refused,
}

/// The state of a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
pub enum WebhookState {
    /// Nothing was sent since the start.
    #[default]
    Idle,
    /// The receiver took what was sent last.
    Connected,
    /// Unreachable or failing; deliveries are retried.
    Away,
    /// Nothing is taken until an operator corrects something.
    Refused,
}

/// The state of a webhook, since when, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookStatus {
    pub state: WebhookState,
    /// By the wall clock; `None` before the first request.
    pub since_ms: Option<i64>,
    pub reason: Option<String>,
}

/// A webhook and what became of its deliveries.
#[derive(Debug)]
pub struct WebhookHealth {
    pub name: String,
    /// The name of its sink.
    pub sink: &'static str,
    pub deliveries: Deliveries,
    status: Mutex<WebhookStatus>,
}

impl WebhookHealth {
    pub fn new(name: &str, sink: &'static str) -> Self {
        let deliveries = Deliveries::default();
        Self { name: name.to_owned(), sink, deliveries, status: Mutex::default() }
    }

    pub fn status(&self) -> WebhookStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the state is another than before.
    fn set_status(&self, state: WebhookState, reason: Option<String>, at_ms: i64) -> bool {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = status.state != state;
        if has_changed {
            status.since_ms = Some(at_ms);
        }
        status.state = state;
        status.reason = reason;
        has_changed
    }
}

/// Whether HTTP is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpState {
    Listening,
    /// The address cannot be used now; it is tried again.
    Unavailable,
}

/// The state of this device's copy of the site's gallery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SharingState {
    /// The broker or database that keeps the gallery is unreachable.
    Away,
    /// The gallery is being read, or part of it is not here yet.
    Learning,
    /// Everything that the site has is here.
    Shared,
    /// Nothing opens with this device's site key.
    WrongKey,
    /// Unsealed content or an old version is in the place of a record or an index page.
    Blocked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sharing {
    pub state: SharingState,
    /// Subjects of which the site has a newer version.
    pub behind: u64,
    /// Messages that were dropped: sealed with another key, altered, or without a subject.
    pub refused: u64,
    /// Subjects whose version here was not received back from the site yet.
    pub pending: u64,
    /// Topics or documents whose present content is not sealed with the site key. Of unknown
    /// subjects a bounded number is counted.
    pub unsealed: u64,
}

impl CameraHealth {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl MongoState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl WebhookState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl SharingState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A counter, or a gauge where it is set.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations of the steps of recognition and recording.
#[derive(Debug, Default)]
pub struct Times {
    /// From the capture of a live frame until inference takes it: the camera's latency and the wait
    /// in the slot.
    pub wait: Histogram,
    /// Decoding a frame's luma for change detection. For Motion JPEG this is half of a decoding.
    pub glance: Histogram,
    /// Decoding a frame's pixels, once for each frame that the detector processes.
    pub decode: Histogram,
    pub detect: Histogram,
    pub refine: Histogram,
    pub template: Histogram,
    /// The second part of a template, where the embedder is a composite and the first part does not
    /// decide.
    pub second_part: Histogram,
    pub liveness: Histogram,
    /// The rest of a frame with a template, without decoding and models: tracking, alignment and
    /// the gallery search.
    pub identify: Histogram,
    /// All of a frame that the detector processed, without `wait` and `record`.
    pub frame: Histogram,
    /// From the request to record a sighting until it is committed.
    pub record: Histogram,
    /// From the first frame of a face to the decision, in media time.
    pub decision: Histogram,
    /// From the capture of the deciding frame until the attendance is committed.
    pub attendance: Histogram,
    /// HTTP requests, from the request's head to the response's head.
    pub http: Histogram,
}

/// Deliveries to one sink.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// From sending a batch to its acknowledgement, for batches with an acknowledged row.
    pub times: Histogram,
    pub acknowledged: Counter,
    /// Rows that were not acknowledged and are retried.
    pub failed: Counter,
    /// Rows that were dead-lettered.
    pub dead_lettered: Counter,
}

/// The counters of the camera, with the names of the health message.
#[derive(Debug, Default, Serialize)]
pub struct CameraCounters {
    pub frames_captured: Counter,
    pub frames_analysed: Counter,
    /// Of the analysed frames, those that the detector processed.
    pub frames_detected: Counter,
    pub frames_replaced: Counter,
    /// Frames that were damaged or could not be decoded.
    pub frames_unreadable: Counter,
    /// Of those, the ones whose damage only decoding showed.
    #[serde(skip)]
    pub frames_undecodable: Counter,
    /// Frames lost before the daemon read them, by the driver's count.
    pub frames_missed: Counter,
    pub losses: Counter,
}

/// The counters of recognition, with the names of the health message.
#[derive(Debug, Default, Serialize)]
pub struct RecognitionCounters {
    pub faces: Counter,
    pub templates: Counter,
    pub identified: Counter,
    pub unknown: Counter,
    /// Presentation attacks.
    pub attacks: Counter,
    /// Tracks that ended without a good sample because the face was too far away.
    pub too_far: Counter,
    /// Samples that were too weak to call their face a stranger's.
    pub weak: Counter,
    /// Failures of a model.
    pub errors: Counter,
    /// The step of the thermal slow-down; 0 is full speed, and each step halves it.
    pub pace_step: Counter,
}

#[derive(Debug, Default)]
pub struct Health {
    pub times: Times,
    pub to_mqtt: Deliveries,
    pub to_mongo: Deliveries,
    /// The site's gallery.
    pub to_gallery: Deliveries,
    camera_state: AtomicU8,
    camera_loss: Mutex<Option<CameraLoss>>,
    /// Why the last frame that could not be decoded could not.
    camera_damage: Mutex<String>,
    pub camera: CameraCounters,
    pub recognition: RecognitionCounters,
    pub recorded: Counter,
    /// Subjects that were withdrawn because their consent had ended.
    pub consents_ended: Counter,
    pub store_errors: Counter,
    pub commands: Counter,
    pub events_published: Counter,
    /// Rounds of the inference thread and outputs of its models. It stands still only if the thread
    /// hangs.
    pub inference_progress: Counter,
    /// Writes of the watchdog that the store's thread has completed.
    pub store_progress: Counter,
    /// Rejected commands by error code.
    rejections: Mutex<BTreeMap<&'static str, u64>>,
    /// HTTP responses by route and status. The routes are fixed, so there are few.
    http_responses: Mutex<BTreeMap<(String, u16), u64>>,
    /// The state and the wall-clock time it was entered; `None` without MongoDB.
    mongo: Mutex<Option<(MongoState, i64)>>,
    /// In the order of the configuration; set once, at the start.
    webhooks: OnceLock<Vec<WebhookHealth>>,
    /// Changes of the state of any webhook.
    pub webhook_changes: Counter,
    /// `None` where HTTP is off.
    http: Mutex<Option<HttpState>>,
    /// `None` where the gallery is not shared.
    sharing: Mutex<Option<Sharing>>,
    /// The newest health message, for clients on the device itself.
    message: Mutex<Vec<u8>>,
}

impl Health {
    pub fn camera_state(&self) -> CameraHealth {
        match self.camera_state.load(Ordering::Relaxed) {
            0 => CameraHealth::Absent,
            1 => CameraHealth::Streaming,
            _ => CameraHealth::Lost,
        }
    }

    /// Returns the previous state.
    pub fn set_camera_state(&self, state: CameraHealth) -> CameraHealth {
        let before = self.camera_state();
        self.camera_state.store(state as u8, Ordering::Relaxed);
        before
    }

    /// Records that the camera is lost, and why. Returns the previous state.
    pub fn set_camera_lost(&self, loss: CameraLoss) -> CameraHealth {
        *self.camera_loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(loss);
        self.set_camera_state(CameraHealth::Lost)
    }

    /// Returns why the camera is lost, while it is.
    pub fn camera_loss(&self) -> Option<CameraLoss> {
        if self.camera_state() != CameraHealth::Lost {
            return None;
        }
        self.camera_loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a frame that could not be decoded.
    pub fn count_undecodable(&self, why: String) {
        self.camera.frames_unreadable.add(1);
        self.camera.frames_undecodable.add(1);
        *self.camera_damage.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub fn camera_damage(&self) -> String {
        self.camera_damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn sharing(&self) -> Option<Sharing> {
        *self.sharing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the previous state.
    pub fn set_sharing(&self, now: Sharing) -> Option<Sharing> {
        self.sharing.lock().unwrap_or_else(PoisonError::into_inner).replace(now)
    }

    pub fn http(&self) -> Option<HttpState> {
        *self.http.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_http(&self, state: HttpState) {
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    pub fn mongo(&self) -> Option<(MongoState, i64)> {
        *self.mongo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the previous state.
    pub fn set_mongo(&self, state: MongoState, at_ms: i64) -> Option<MongoState> {
        let mut mongo = self.mongo.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mongo.map(|(state, _)| state);
        if before != Some(state) {
            *mongo = Some((state, at_ms));
        }
        before
    }

    /// Sets the webhooks that are configured; only the first call counts.
    pub fn set_webhooks(&self, webhooks: Vec<WebhookHealth>) {
        self.webhooks.set(webhooks).ok();
    }

    pub fn webhooks(&self) -> &[WebhookHealth] {
        self.webhooks.get().map_or(&[], Vec::as_slice)
    }

    /// Returns whether the state of this webhook is another than before.
    pub fn set_webhook(
        &self,
        at: usize,
        state: WebhookState,
        reason: Option<String>,
        at_ms: i64,
    ) -> bool {
        let webhook = self.webhooks().get(at);
        let has_changed = webhook.is_some_and(|it| it.set_status(state, reason, at_ms));
        self.webhook_changes.add(u64::from(has_changed));
        has_changed
    }

    /// What is wrong with a sink, where that is known: of the webhooks.
    pub fn webhook_fault(&self, sink: &str) -> Option<String> {
        self.webhooks().iter().find(|it| it.sink == sink)?.status().reason
    }

    pub fn message(&self) -> Vec<u8> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_message(&self, message: Vec<u8>) {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    pub fn count_rejection(&self, code: &'static str) {
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        *rejections.entry(code).or_default() += 1;
    }

    pub fn rejections(&self) -> BTreeMap<&'static str, u64> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn count_http_response(&self, route: &str, status: u16) {
        let mut responses = self.http_responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((route.to_owned(), status)).or_default() += 1;
    }

    pub fn http_responses(&self) -> BTreeMap<(String, u16), u64> {
        self.http_responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the resident memory of this process in bytes, from `/proc/self/status`.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Returns how many file descriptors this process has open.
pub fn open_files() -> Option<u64> {
    // Reading the directory opens one more.
    fs::read_dir("/proc/self/fd").ok().map(|listed| (listed.count() as u64).saturating_sub(1))
}

/// Returns the processor's temperature in degrees Celsius; `None` without a sensor.
pub fn cpu_celsius() -> Option<f32> {
    hottest_processor(Path::new("/sys/class/thermal"))
}

/// Returns the temperature of the hottest zone that is named as a processor's, or else of the first
/// zone. On a PC the first zone is often the mainboard's.
fn hottest_processor(zones: &Path) -> Option<f32> {
    let is_processor = |zone: &Path| {
        let kind = fs::read_to_string(zone.join("type")).unwrap_or_default().to_lowercase();
        PROCESSOR_ZONES.iter().any(|part| kind.contains(part))
    };
    let all = fs::read_dir(zones).ok()?.flatten().map(|entry| entry.path());
    let hottest = all
        .filter(|zone| is_processor(zone))
        .filter_map(|zone| read_celsius(&zone))
        .max_by(f32::total_cmp);
    hottest.or_else(|| read_celsius(&zones.join("thermal_zone0")))
}

/// Parts of the `type` of a processor's zone: `cpu-thermal`, `x86_pkg_temp`, `TCPU`, `soc-thermal`,
/// `package-thermal`.
const PROCESSOR_ZONES: [&str; 4] = ["cpu", "x86_pkg", "soc", "package"];

fn read_celsius(zone: &Path) -> Option<f32> {
    let millidegrees = fs::read_to_string(zone.join("temp")).ok()?.trim().parse::<f32>().ok()?;
    millidegrees.is_finite().then_some(millidegrees / 1000.0)
}

/// Returns the bytes that the daemon may still use on the file system of `path`.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_is_the_hottest_processor_zone() {
        let celsius = |zones: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (at, (kind, temp)) in zones.iter().enumerate() {
                let zone = dir.path().join(format!("thermal_zone{at}"));
                fs::create_dir(&zone).unwrap();
                fs::write(zone.join("type"), format!("{kind}\n")).unwrap();
                fs::write(zone.join("temp"), format!("{temp}\n")).unwrap();
            }
            hottest_processor(dir.path())
        };
        assert_eq!(
            celsius(&[("acpitz", "27800"), ("pch_skylake", "90000"), ("x86_pkg_temp", "71000")]),
            Some(71.0)
        );
        assert_eq!(
            celsius(&[("acpitz", "27800"), ("cpu0-thermal", "61000"), ("cpu1-thermal", "64500")]),
            Some(64.5)
        );
        assert_eq!(
            celsius(&[("acpitz", "27800"), ("TCPU", "not now"), ("soc-thermal", "50000")]),
            Some(50.0)
        );
        assert_eq!(celsius(&[("acpitz", "27800"), ("iwlwifi_1", "45000")]), Some(27.8));
        assert_eq!(celsius(&[("acpitz", "nan")]), None);
        assert_eq!(celsius(&[]), None);
    }
}
