//! Vital signs: written by the stages, read by the health topic, `doctor` and tests.
//!
//! Plain counters, each written by one stage. Invariant: no names, images or templates.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// What the camera is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CameraHealth {
    /// None is configured, or a replay has ended.
    Absent,
    Streaming,
    Lost,
}

impl CameraHealth {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Streaming => "streaming",
            Self::Lost => "lost",
        }
    }
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

#[derive(Debug, Default)]
pub struct Health {
    camera: AtomicU8,
    pub frames_captured: Counter,
    pub frames_analysed: Counter,
    pub frames_replaced: Counter,
    /// Damaged on the way from the camera, or not to be decoded.
    pub frames_unreadable: Counter,
    /// Of those analysed, the ones that the detector was shown.
    pub frames_detected: Counter,
    /// How far the pace is lowered because the processor is hot; 0 is not at all.
    pub pace_step: Counter,
    /// Lost between the camera and us, by the driver's own count.
    pub frames_missed: Counter,
    /// How often the camera was lost.
    pub camera_losses: Counter,
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
    /// Refused commands by error code.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// And since when, by the wall clock; none where no MongoDB is configured.
    mongo: Mutex<Option<(MongoState, i64)>>,
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

    pub fn refused(&self, code: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
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

/// The processor's temperature in degrees Celsius (the first thermal zone); `None` where there is no sensor.
pub fn cpu_celsius() -> Option<f32> {
    let millidegrees = fs::read_to_string("/sys/class/thermal/thermal_zone0/temp").ok()?;
    millidegrees.trim().parse::<f32>().ok().map(|value| value / 1000.0)
}

/// Bytes free for the daemon on the file system of `path`.
pub fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}
