//! config.toml as it is written: every key with its default. Nothing is checked here but names and
//! types.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attend::venue::{self, DirectionMode};
use crate::clock::Trust;
use crate::vision::manifest::Precision;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    pub device: RawDevice,
    pub storage: RawStorage,
    pub camera: RawCamera,
    pub recognition: RawRecognition,
    pub quality: RawQuality,
    pub power: RawPower,
    pub privacy: RawPrivacy,
    pub enrolment: RawEnrolment,
    pub attendance: RawAttendance,
    pub venue: Vec<RawVenue>,
    pub mqtt: RawMqtt,
    pub broker: RawBroker,
    pub home_assistant: RawHomeAssistant,
    pub mongo: RawMongo,
    pub webhook: Vec<RawWebhook>,
    pub fleet: RawFleet,
    pub http: RawHttp,
    pub commands: RawCommands,
    pub clock: RawClock,
    pub log: RawLog,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawDevice {
    pub site: String,
    pub name: String,
}

impl Default for RawDevice {
    fn default() -> Self {
        Self { site: "site".into(), name: String::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawStorage {
    pub directory: PathBuf,
    pub keep_days: u32,
}

impl Default for RawStorage {
    fn default() -> Self {
        Self { directory: "state".into(), keep_days: 0 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawSource {
    #[default]
    None,
    Replay,
    V4l2,
    Pipe,
    Http,
}

/// Ready commands for `source = "pipe"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawPreset {
    #[default]
    #[serde(rename = "")]
    None,
    #[serde(rename = "rpicam")]
    Rpicam,
    #[serde(rename = "rtsp")]
    Rtsp,
    #[serde(rename = "gstreamer")]
    Gstreamer,
}

/// Pixel formats of a camera, by their usual names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawFormat {
    #[default]
    Auto,
    Mjpg,
    Yuyv,
    Nv12,
    I420,
    Grey,
    Y8i,
    Y10,
    Y12,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawPace {
    #[default]
    Real,
    Networks,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawCamera {
    pub source: RawSource,
    pub path: PathBuf,
    pub fps: f32,
    #[serde(with = "humantime_serde")]
    pub show: Duration,
    #[serde(with = "humantime_serde")]
    pub gap: Duration,
    pub repeat: bool,
    pub pace: RawPace,
    pub device: String,
    pub format: RawFormat,
    pub width: usize,
    pub height: usize,
    pub stride: usize,
    #[serde(with = "humantime_serde")]
    pub stall_after: Duration,
    pub preset: RawPreset,
    pub command: Vec<String>,
    pub decoder: String,
    pub url: String,
    pub url_file: PathBuf,
    pub rotate: u32,
    pub mirror: bool,
    /// Left, top, right, bottom in fractions of the picture.
    pub mask: Vec<[f32; 4]>,
    pub region: [f32; 4],
    // Texts, so that an empty one can leave the camera's own value.
    pub auto_exposure: String,
    pub exposure: String,
    pub gain: String,
    pub brightness: String,
    pub power_line: String,
}

impl Default for RawCamera {
    fn default() -> Self {
        Self {
            source: RawSource::None,
            path: PathBuf::new(),
            fps: 10.0,
            show: Duration::from_millis(1500),
            gap: Duration::from_millis(1500),
            repeat: false,
            pace: RawPace::Real,
            device: "auto".into(),
            format: RawFormat::Auto,
            width: 640,
            height: 480,
            stride: 0,
            stall_after: Duration::from_secs(4),
            preset: RawPreset::None,
            command: Vec::new(),
            decoder: String::new(),
            url: String::new(),
            url_file: PathBuf::new(),
            rotate: 0,
            mirror: false,
            mask: Vec::new(),
            region: [0.0, 0.0, 1.0, 1.0],
            auto_exposure: String::new(),
            exposure: String::new(),
            gain: String::new(),
            brightness: String::new(),
            power_line: String::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawReach {
    #[default]
    Near,
    Far,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawPad {
    Off,
    #[default]
    Flag,
    Enforce,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRecognition {
    pub models: PathBuf,
    pub runtime_library: PathBuf,
    pub embedder: String,
    pub precision: Precision,
    pub threads: usize,
    pub reach: RawReach,
    pub fpir: f32,
    pub threshold: f32,
    pub samples_min: usize,
    pub early_margin: f32,
    pub margin_min: f32,
    pub unknown_samples: usize,
    pub confidence_min: f32,
    #[serde(with = "humantime_serde")]
    pub lost_after: Duration,
    #[serde(with = "humantime_serde")]
    pub recheck_after: Duration,
    pub pad: RawPad,
    pub pad_threshold: f32,
    pub pad_samples: usize,
    pub pad_eye_distance_px_min: f32,
}

impl Default for RawRecognition {
    fn default() -> Self {
        Self {
            models: "models".into(),
            runtime_library: PathBuf::new(),
            embedder: "fr_sface".into(),
            precision: Precision::Int8,
            threads: 0,
            reach: RawReach::Near,
            fpir: 0.0005,
            threshold: 0.0,
            samples_min: 3,
            early_margin: 0.10,
            margin_min: 0.03,
            unknown_samples: 5,
            confidence_min: 0.6,
            lost_after: Duration::from_millis(700),
            recheck_after: Duration::from_millis(500),
            pad: RawPad::Flag,
            pad_threshold: 0.0,
            pad_samples: 2,
            pad_eye_distance_px_min: 6.0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawQuality {
    pub eye_distance_px_min: f32,
    pub luma_min: f32,
    pub luma_max: f32,
    pub sharpness_min: f32,
    pub yaw_max: f32,
    pub pitch_max: f32,
}

impl Default for RawQuality {
    fn default() -> Self {
        Self {
            eye_distance_px_min: 6.0,
            luma_min: 25.0,
            luma_max: 235.0,
            sharpness_min: 0.02,
            yaw_max: 0.60,
            pitch_max: 0.45,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawPower {
    pub idle_fps: f32,
    pub celsius_max: f32,
}

impl Default for RawPower {
    fn default() -> Self {
        Self { idle_fps: 10.0, celsius_max: 80.0 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawPrivacy {
    pub snapshot: bool,
}

impl Default for RawPrivacy {
    fn default() -> Self {
        Self { snapshot: true }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawEnrolment {
    pub eye_distance_px_min: f32,
    pub luma_min: f32,
    pub luma_max: f32,
    pub sharpness_min: f32,
    pub yaw_max: f32,
    pub pitch_max: f32,
    pub same_person_min: f32,
    pub duplicate_margin: f32,
    pub look_alike_margin: f32,
    pub references_max: usize,
    pub learn: bool,
    pub consent: RawConsent,
}

/// Whether an enrolment must state the person's consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawConsent {
    Optional,
    Required,
}

impl Default for RawEnrolment {
    fn default() -> Self {
        Self {
            eye_distance_px_min: 6.0,
            luma_min: 35.0,
            luma_max: 220.0,
            sharpness_min: 0.09,
            yaw_max: 0.60,
            pitch_max: 0.40,
            same_person_min: 0.20,
            duplicate_margin: 0.10,
            look_alike_margin: 0.05,
            references_max: 10,
            learn: false,
            consent: RawConsent::Optional,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAttendance {
    pub venue: String,
    pub direction: String,
    #[serde(with = "humantime_serde")]
    pub unknown_every: Duration,
}

impl Default for RawAttendance {
    fn default() -> Self {
        Self {
            venue: "main".into(),
            direction: String::new(),
            unknown_every: Duration::from_secs(10),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVenue {
    pub id: String,
    #[serde(default)]
    pub name: String,
    /// Empty: not set.
    #[serde(default)]
    pub time_zone: String,
    #[serde(default)]
    pub direction: DirectionMode,
    #[serde(default = "re_entry_gap", with = "humantime_serde")]
    pub re_entry_gap: Duration,
    #[serde(default)]
    pub session: Vec<RawSession>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSession {
    pub id: String,
    #[serde(default)]
    pub weekdays: Vec<String>,
    #[serde(default)]
    pub dates: Vec<String>,
    pub start: String,
    pub end: String,
    /// A duration or a time of day; empty: nobody is late.
    #[serde(default)]
    pub late_after: String,
    #[serde(default = "early", with = "humantime_serde")]
    pub early: Duration,
}

fn re_entry_gap() -> Duration {
    venue::RE_ENTRY_GAP
}

fn early() -> Duration {
    venue::EARLY
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawMqtt {
    pub host: String,
    pub port: u16,
    pub client_id: String,
    pub user: String,
    pub password: String,
    pub password_file: PathBuf,
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    pub window: u16,
    pub packet_bytes_max: usize,
    pub version: String,
    pub tls: bool,
    pub ca_file: PathBuf,
    pub client_cert_file: PathBuf,
    pub client_key_file: PathBuf,
    #[serde(with = "humantime_serde")]
    pub health_every: Duration,
}

impl std::fmt::Debug for RawMqtt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawMqtt({}:{}, tls {})", self.host, self.port, self.tls)
    }
}

impl Default for RawMqtt {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 0,
            client_id: String::new(),
            user: String::new(),
            password: String::new(),
            password_file: PathBuf::new(),
            keep_alive: Duration::from_secs(30),
            window: 32,
            packet_bytes_max: 8 << 20,
            version: "auto".into(),
            tls: false,
            ca_file: PathBuf::new(),
            client_cert_file: PathBuf::new(),
            client_key_file: PathBuf::new(),
            health_every: Duration::from_mins(1),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawBroker {
    pub enabled: bool,
    pub listen: String,
    pub websocket: String,
}

impl Default for RawBroker {
    fn default() -> Self {
        Self { enabled: false, listen: "127.0.0.1:1883".into(), websocket: String::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHomeAssistant {
    pub enabled: bool,
    pub discovery_prefix: String,
    pub name: String,
    pub people: bool,
}

impl Default for RawHomeAssistant {
    fn default() -> Self {
        Self {
            enabled: true,
            discovery_prefix: "homeassistant".into(),
            name: String::new(),
            people: true,
        }
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawMongo {
    pub uri: String,
    pub uri_file: PathBuf,
    pub database: String,
    pub venues_collection: String,
    pub tls: bool,
    pub ca_file: PathBuf,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    pub window: usize,
}

impl std::fmt::Debug for RawMongo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawMongo(database {}, tls {})", self.database, self.tls)
    }
}

impl Default for RawMongo {
    fn default() -> Self {
        Self {
            uri: String::new(),
            uri_file: PathBuf::new(),
            database: String::new(),
            venues_collection: "venues".into(),
            tls: false,
            ca_file: PathBuf::new(),
            timeout: Duration::from_secs(10),
            window: 500,
        }
    }
}

/// What kind of receiver a webhook has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawWebhookPreset {
    #[default]
    Plain,
    Frappe,
    Odoo,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWebhook {
    pub name: String,
    pub url: String,
    #[serde(default)]
    pub preset: RawWebhookPreset,
    #[serde(default)]
    pub secret_file: PathBuf,
    #[serde(default)]
    pub authorization_file: PathBuf,
    #[serde(default)]
    pub ca_file: PathBuf,
    #[serde(default)]
    pub allow_private: bool,
    #[serde(default = "webhook_timeout", with = "humantime_serde")]
    pub timeout: Duration,
    #[serde(default = "one")]
    pub batch: usize,
    #[serde(default)]
    pub time_zone: String,
    #[serde(default)]
    pub shifts: Vec<String>,
    #[serde(default)]
    pub database: String,
}

impl std::fmt::Debug for RawWebhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may be a secret.
        write!(f, "RawWebhook({})", self.name)
    }
}

fn webhook_timeout() -> Duration {
    Duration::from_secs(10)
}

fn one() -> usize {
    1
}

/// How the doors of a site share who is enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawShare {
    Off,
    #[default]
    Mqtt,
    Mongo,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawFleet {
    pub share: RawShare,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHttp {
    pub listen: String,
    pub token_file: PathBuf,
    pub reader_token_file: PathBuf,
    pub cors_origins: Vec<String>,
    pub connections_max: usize,
    pub requests_max: usize,
    pub per_minute_max: u32,
}

impl Default for RawHttp {
    fn default() -> Self {
        Self {
            listen: String::new(),
            token_file: PathBuf::new(),
            reader_token_file: PathBuf::new(),
            cors_origins: Vec::new(),
            connections_max: 64,
            requests_max: 4,
            per_minute_max: 600,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawCommands {
    pub images_max: usize,
    pub image_bytes_max: usize,
    pub image_pixels_max: usize,
    pub per_minute_max: u32,
    pub trusted_keys: Vec<String>,
    pub signing_key_file: PathBuf,
}

impl Default for RawCommands {
    fn default() -> Self {
        Self {
            images_max: 10,
            image_bytes_max: 4 << 20,
            image_pixels_max: 25_000_000,
            per_minute_max: 6000,
            trusted_keys: Vec::new(),
            signing_key_file: PathBuf::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawClock {
    pub trust: Trust,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    pub level: RawLevel,
}
