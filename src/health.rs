//! Vital signs: written by the stages, read by the health topic, `doctor` and tests.
//!
//! Plain counters, each written by one stage. Invariant: no names, images or templates.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::histogram::Histogram;

/// What the camera is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CameraHealth {
    /// None is configured, or a replay has ended.
    Absent,
    Streaming,
    Lost,
}

/// How we stand with MongoDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MongoState {
    Connected,
    /// Not reached, or ill: it will be tried again.
    Away,
    /// It does not take what we bring until somebody puts something right.
    Refused,
}

/// How a door stands with the gallery that the site shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SharingState {
    /// Where it is kept is not reached.
    Away,
    /// Being heard, or some of it is not here yet.
    Learning,
    /// What the site has is here.
    Shared,
    /// Nothing of it opens with our key.
    WrongKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sharing {
    pub state: SharingState,
    /// Subjects that the site has newer than we.
    pub behind: u64,
    /// Messages that were not taken: sealed with another key, altered, or no subject at all.
    pub refused: u64,
}

impl CameraHealth {
    pub const ALL: [Self; 3] = [Self::Absent, Self::Streaming, Self::Lost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Streaming => "streaming",
            Self::Lost => "lost",
        }
    }
}

impl MongoState {
    pub const ALL: [Self; 3] = [Self::Connected, Self::Away, Self::Refused];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Away => "away",
            Self::Refused => "refused",
        }
    }
}

impl SharingState {
    pub const ALL: [Self; 4] = [Self::Away, Self::Learning, Self::Shared, Self::WrongKey];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Learning => "learning",
            Self::Shared => "shared",
            Self::WrongKey => "wrong_key",
        }
    }
}

/// A number that one stage counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

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

/// How long things take, each written where it happens.
#[derive(Debug, Default)]
pub struct Times {
    /// From the moment a live frame was taken until the networks take it up: the camera, and waiting in the slot.
    pub wait: Histogram,
    /// Its brightness, by which change is noticed; of Motion JPEG half a decoding.
    pub glance: Histogram,
    /// Its pixels, once a frame that the detector is shown.
    pub decode: Histogram,
    pub detect: Histogram,
    pub refine: Histogram,
    pub template: Histogram,
    pub liveness: Histogram,
    /// What is left of a frame with a template without decoding and networks: tracks, alignment, and the search in the gallery.
    pub identify: Histogram,
    /// All of a frame that the detector was shown, without waiting and recording.
    pub frame: Histogram,
    /// From asking for a sighting to be recorded until it is on the disk.
    pub record: Histogram,
    /// From the first frame of a face to the decision, by the source's own time.
    pub decision: Histogram,
    /// From the moment the deciding frame was taken until the attendance is on the disk.
    pub attendance: Histogram,
    /// HTTP requests, from the head to the head of the answer.
    pub http: Histogram,
}

/// How deliveries to one sink go.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// Of batches of which something was acknowledged, from sending to the answer.
    pub times: Histogram,
    pub acknowledged: Counter,
    /// Not taken, and to be tried again.
    pub failed: Counter,
    /// Never taken: set aside.
    pub buried: Counter,
}

#[derive(Debug, Default)]
pub struct Health {
    pub times: Times,
    pub to_mqtt: Deliveries,
    pub to_mongo: Deliveries,
    /// The gallery that the site shares.
    pub to_gallery: Deliveries,
    camera: AtomicU8,
    pub frames_captured: Counter,
    pub frames_analysed: Counter,
    pub frames_replaced: Counter,
    /// Damaged on the way from the camera, or not to be decoded.
    pub frames_unreadable: Counter,
    /// Of those, the ones that only decoding showed to be damaged.
    pub frames_undecodable: Counter,
    /// Lost between the camera and us, by the driver's own count.
    pub frames_missed: Counter,
    /// How often the camera was lost.
    pub camera_losses: Counter,
    /// Of those analysed, the ones that the detector was shown.
    pub frames_detected: Counter,
    /// How far the pace is lowered because the processor is hot; 0 is not at all.
    pub pace_step: Counter,
    pub faces_seen: Counter,
    pub templates_made: Counter,
    pub identified: Counter,
    pub unknown: Counter,
    /// Faces that seemed to be pictures.
    pub attacks: Counter,
    /// Tracks that ended without a good sample because they were too far away.
    pub too_far: Counter,
    pub recorded: Counter,
    pub engine_errors: Counter,
    pub store_errors: Counter,
    pub commands: Counter,
    pub events_published: Counter,
    /// Rounds of the inference thread, and what its networks finished within one: still only when it hangs.
    pub inference_turns: Counter,
    /// Writes that the store's thread answered for the watchdog.
    pub store_turns: Counter,
    /// Refused commands by error code.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// Answers by HTTP, by route and status. Routes are ours, so there are few.
    http: Mutex<BTreeMap<(String, u16), u64>>,
    /// And since when, by the wall clock; none where no MongoDB is configured.
    mongo: Mutex<Option<(MongoState, i64)>>,
    /// None where the gallery is not shared.
    sharing: Mutex<Option<Sharing>>,
    /// The health message as it was last put together, for who asks on the device itself.
    message: Mutex<Vec<u8>>,
}

impl Health {
    pub fn camera(&self) -> CameraHealth {
        match self.camera.load(Ordering::Relaxed) {
            0 => CameraHealth::Absent,
            1 => CameraHealth::Streaming,
            _ => CameraHealth::Lost,
        }
    }

    /// Returns what it was before.
    pub fn set_camera(&self, state: CameraHealth) -> CameraHealth {
        let before = self.camera();
        self.camera.store(state as u8, Ordering::Relaxed);
        before
    }

    pub fn sharing(&self) -> Option<Sharing> {
        *self.sharing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what it was before.
    pub fn set_sharing(&self, now: Sharing) -> Option<Sharing> {
        self.sharing.lock().unwrap_or_else(PoisonError::into_inner).replace(now)
    }

    pub fn mongo(&self) -> Option<(MongoState, i64)> {
        *self.mongo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what it was before.
    pub fn set_mongo(&self, state: MongoState, at_ms: i64) -> Option<MongoState> {
        let mut mongo = self.mongo.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mongo.map(|(state, _)| state);
        if before != Some(state) {
            *mongo = Some((state, at_ms));
        }
        before
    }

    pub fn message(&self) -> Vec<u8> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_message(&self, message: Vec<u8>) {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    pub fn refused(&self, code: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    pub fn answered_http(&self, route: &str, status: u16) {
        *self
            .http
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((route.to_owned(), status))
            .or_default() += 1;
    }

    pub fn http_answers(&self) -> BTreeMap<(String, u16), u64> {
        self.http.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Resident memory of this process in bytes (`/proc/self/status`); `None` where the kernel does not tell.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// File descriptors that this process has open.
pub fn open_files() -> Option<u64> {
    // The listing itself takes one.
    fs::read_dir("/proc/self/fd").ok().map(|listed| (listed.count() as u64).saturating_sub(1))
}

/// The processor's temperature in degrees Celsius; `None` where there is no sensor.
pub fn cpu_celsius() -> Option<f32> {
    hottest_processor(Path::new("/sys/class/thermal"))
}

/// The first zone of a PC is often the mainboard's. So the hottest of those that are named as a processor's, and the first
/// zone where none is.
fn hottest_processor(zones: &Path) -> Option<f32> {
    let is_processor = |zone: &Path| {
        let kind = fs::read_to_string(zone.join("type")).unwrap_or_default().to_lowercase();
        PROCESSOR_ZONES.iter().any(|part| kind.contains(part))
    };
    let all = fs::read_dir(zones).ok()?.flatten().map(|entry| entry.path());
    let hottest = all
        .filter(|zone| is_processor(zone))
        .filter_map(|zone| celsius(&zone))
        .max_by(f32::total_cmp);
    hottest.or_else(|| celsius(&zones.join("thermal_zone0")))
}

/// What the `type` of a processor's zone contains: `cpu-thermal`, `x86_pkg_temp`, `TCPU`, `soc-thermal`, `package-thermal`.
const PROCESSOR_ZONES: [&str; 4] = ["cpu", "x86_pkg", "soc", "package"];

fn celsius(zone: &Path) -> Option<f32> {
    let millidegrees = fs::read_to_string(zone.join("temp")).ok()?.trim().parse::<f32>().ok()?;
    millidegrees.is_finite().then_some(millidegrees / 1000.0)
}

/// Bytes free for the daemon on the file system of `path`.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_is_that_of_the_processor_whichever_zone_it_is() {
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
