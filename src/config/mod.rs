//! config.toml → settings: as written (`raw`), then overridden from the environment, then checked.
//!
//! Unknown keys and impossible values are refused by name: a typo in a security setting must never become the default.
//! Relative paths are relative to the folder of config.toml.

mod camera;
mod http;
pub mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::attend::venue::{self, DirectionMode, Door, SessionSpec, Venue, VenueError, VenueSpec};
use crate::camera::replay::ReplaySettings;
use crate::camera::v4l2::V4l2Settings;
use crate::clock::{self, Trust};
use crate::config::raw::{
    RawAttendance, RawConfig, RawLevel, RawPace, RawPad, RawReach, RawSession, RawShare, RawSource,
    RawVenue,
};
use crate::enrol::EnrolSettings;
use crate::http::HttpSettings;
use crate::mongo::{self, MongoSettings};
use crate::mqtt::link::Credentials;
use crate::mqtt::tls::{self, TlsSettings};
use crate::mqtt::topics;
use crate::recognise::attention::PaceSettings;
use crate::recognise::decision::{DecisionSettings, ThresholdRule};
use crate::recognise::engine::Reach;
use crate::recognise::face::{Name, Threshold, check_id};
use crate::recognise::live::LiveSettings;
use crate::recognise::pad::{PadMode, PadSettings};
use crate::recognise::picture::PictureLimits;
use crate::recognise::quality::QualityBounds;
use crate::recognise::track::TrackSettings;
use crate::record::authority::{self, PublicKey};
use crate::record::seal::SharedKey;
use crate::vision::VisionSettings;
use crate::vision::manifest::TemplateSpec;

/// Least score between samples of one face in consecutive frames: different people stay below it (the 99.9th percentile
/// of impostor scores is about .35), the same face in the same place far above.
const SAME_TRACK_MIN: f32 = 0.30;
/// Least overlap of a face's boxes in consecutive frames.
const TRACK_OVERLAP_MIN: f32 = 0.25;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not valid: {why}")]
    Syntax { path: PathBuf, why: String },
    #[error("the environment variable {name} {why}")]
    Environment { name: String, why: String },
    #[error("{key} {why}")]
    Value { key: &'static str, why: String },
}

/// Everything the daemon is told, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub site: String,
    pub device: String,
    pub state_dir: PathBuf,
    /// Days to keep delivered events; `None` keeps them for ever.
    pub keep_days: Option<u32>,
    pub camera: CameraSettings,
    pub vision: VisionSettings,
    pub recognition: RecognitionSettings,
    /// Those of the file; more may be put by command.
    pub venues: Vec<Venue>,
    /// The device's own place; its venue is one of `venues`, if there are any.
    pub door: Door,
    /// What is allowed, but hardly meant.
    pub warnings: Vec<String>,
    /// At most one event for an unknown face in this time.
    pub unknown_every: Duration,
    pub mqtt: Option<MqttSettings>,
    pub health_every: Duration,
    /// Above this temperature of the processor the pace is lowered; `None` never lowers it.
    pub celsius_max: Option<f32>,
    /// Whether a picture may leave the daemon for setting up the camera.
    pub snapshot: bool,
    pub broker: Option<BrokerSettings>,
    pub home_assistant: Option<HomeAssistantSettings>,
    pub mongo: Option<MongoSettings>,
    /// Whether, and how, the doors of the site share who is enrolled.
    pub fleet: Option<FleetSettings>,
    pub http: Option<HttpSettings>,
    pub commands: CommandSettings,
    pub trust: Trust,
    pub level: RawLevel,
}

#[derive(Clone, Debug)]
pub enum CameraSettings {
    None,
    Replay { replay: ReplaySettings, pace: RawPace },
    V4l2(V4l2Settings),
}

/// All that recognition needs but the embedder's threshold, which the manifest holds.
#[derive(Clone, Copy, Debug)]
pub struct RecognitionSettings {
    fixed_threshold: Option<Threshold>,
    fpir: f32,
    samples_min: usize,
    early_margin: f32,
    margin_min: f32,
    unknown_samples: usize,
    confidence_min: f32,
    reach: Reach,
    track: TrackSettings,
    recheck_after: Duration,
    pad: PadSettings,
    pace: PaceSettings,
    probe: QualityBounds,
    reference: QualityBounds,
    same_person_min: f32,
    duplicate_margin: f32,
    look_alike_margin: f32,
    references_max: usize,
    picture: PictureLimits,
}

impl RecognitionSettings {
    pub fn threshold(&self, spec: &TemplateSpec) -> ThresholdRule {
        ThresholdRule {
            threshold: spec.threshold,
            subjects: spec.threshold_subjects,
            per_decade: spec.threshold_per_decade,
            fpir: self.fpir,
            fixed: self.fixed_threshold,
        }
    }

    pub fn decision(&self, spec: &TemplateSpec) -> DecisionSettings {
        DecisionSettings {
            threshold: self.threshold(spec),
            samples_min: self.samples_min,
            early_margin: self.early_margin,
            margin_min: self.margin_min,
            unknown_samples: self.unknown_samples,
        }
    }

    pub fn live(&self, spec: &TemplateSpec) -> LiveSettings {
        LiveSettings {
            reach: self.reach,
            track: self.track,
            decision: self.decision(spec),
            probe: self.probe,
            confidence_min: self.confidence_min,
            recheck_after: self.recheck_after,
            same_person_min: SAME_TRACK_MIN,
            pad: self.pad,
            pace: self.pace,
        }
    }

    pub fn enrol(&self, spec: &TemplateSpec) -> EnrolSettings {
        EnrolSettings {
            reference: self.reference,
            same_person_min: self.same_person_min,
            duplicate_margin: self.duplicate_margin,
            look_alike_margin: self.look_alike_margin,
            references_max: self.references_max,
            threshold: self.threshold(spec),
            picture: self.picture,
        }
    }

    pub fn pad(&self) -> PadSettings {
        self.pad
    }

    pub fn picture(&self) -> PictureLimits {
        self.picture
    }
}

#[derive(Clone)]
pub struct MqttSettings {
    pub host: String,
    pub port: u16,
    pub client_id: String,
    pub credentials: Option<Credentials>,
    pub keep_alive: Duration,
    pub window: u16,
    pub packet_bytes_max: usize,
    pub tls: Option<TlsSettings>,
}

impl std::fmt::Debug for MqttSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MqttSettings({}:{})", self.host, self.port)
    }
}

#[derive(Clone, Debug)]
pub struct BrokerSettings {
    pub listen: std::net::SocketAddr,
    pub websocket: Option<std::net::SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeAssistantSettings {
    pub discovery_prefix: String,
    /// What the device is called there.
    pub name: String,
    /// Whether it is told who passed.
    pub people: bool,
}

#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// The site's: every door has the same.
    pub key: Arc<SharedKey>,
    pub through: Through,
}

/// Where the site's gallery is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    Mqtt,
    Mongo,
}

#[derive(Clone, Debug)]
pub struct CommandSettings {
    pub images_max: usize,
    pub image_bytes_max: usize,
    pub payload_bytes_max: usize,
    pub per_minute_max: u32,
    /// Whose signed commands are carried out; none: any command.
    pub trusted_keys: Vec<PublicKey>,
    /// What the command line signs with.
    pub signing_key: Option<PathBuf>,
}

/// Reads, overrides and checks. Without a file the defaults stand, relative to the working directory.
pub fn load(
    path: Option<&Path>,
    environment: &BTreeMap<String, String>,
) -> Result<Settings, ConfigError> {
    let (text, named) = match path {
        Some(path) => (
            fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?,
            path.to_owned(),
        ),
        None => (String::new(), PathBuf::from("(built-in defaults)")),
    };
    let folder = path.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
    let raw = parse(&text, &named, environment)?;
    let mut settings = check(&raw, &folder)?;
    let in_clear = !raw.mongo.uri.is_empty()
        && settings.mongo.as_ref().is_some_and(MongoSettings::has_password);
    if in_clear && path.is_some_and(is_open_to_others) {
        let why = "holds a password, and others may read the file: chmod 600 it, or use uri_file";
        settings.warnings.push(format!("[mongo] uri in {} {why}", named.display()));
    }
    Ok(settings)
}

/// The environment variables that concern the configuration.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| name.starts_with(PREFIX) && !NOT_KEYS.contains(&name.as_str()))
        .collect()
}

const PREFIX: &str = "ROLLCALL_";
/// Variables with our prefix that are no keys of config.toml.
const NOT_KEYS: [&str; 1] = ["ROLLCALL_CONFIG"];

/// The text with overrides: `ROLLCALL_MQTT_HOST` stands for `host` in `[mqtt]`.
pub fn parse(
    text: &str,
    path: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<RawConfig, ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let written: RawConfig = toml::from_str(text).map_err(syntax)?;
    if environment.is_empty() {
        return Ok(written);
    }
    let mut table =
        toml::Table::try_from(&written).expect("the raw configuration is a table of plain values");
    for (name, value) in environment {
        override_key(&mut table, name, value)?;
    }
    let refused = |error: toml::de::Error| ConfigError::Environment {
        name: environment.keys().cloned().collect::<Vec<_>>().join(", "),
        why: format!("cannot be used: {}", error.message()),
    };
    table.try_into().map_err(refused)
}

fn override_key(table: &mut toml::Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let fault = |why: String| ConfigError::Environment { name: name.to_owned(), why };
    for (section, keys) in table.iter_mut() {
        let Some(keys) = keys.as_table_mut() else {
            continue; // `[[venue]]` is a list and has no single key to override.
        };
        for (key, present) in keys.iter_mut() {
            if name != format!("{PREFIX}{}_{}", section.to_uppercase(), key.to_uppercase()) {
                continue;
            }
            let wrong = |kind: &str| fault(format!("must be {kind}, not {value:?}"));
            *present = match present {
                toml::Value::String(_) => value.into(),
                toml::Value::Integer(_) => {
                    value.parse::<i64>().map_err(|_| wrong("a whole number"))?.into()
                }
                toml::Value::Float(_) => {
                    value.parse::<f64>().map_err(|_| wrong("a number"))?.into()
                }
                toml::Value::Boolean(_) => {
                    value.parse::<bool>().map_err(|_| wrong("true or false"))?.into()
                }
                _ => {
                    return Err(fault("stands for a list, which only config.toml can hold".into()));
                }
            };
            return Ok(());
        }
    }
    Err(fault("stands for no key of config.toml (ROLLCALL_<SECTION>_<KEY>)".into()))
}

/// Checks every value; relative paths become relative to `folder`.
pub fn check(raw: &RawConfig, folder: &Path) -> Result<Settings, ConfigError> {
    let device = if raw.device.name.is_empty() { host_name() } else { raw.device.name.clone() };
    id("[device] site", &raw.device.site)?;
    id("[device] name", &device)?;
    if topics::RESERVED.contains(&device.as_str()) {
        return Err(value(
            "[device] name",
            format!("= {device:?} stands for the whole site in topics"),
        ));
    }
    let mut warnings = Vec::new();
    let venues = venues(raw, &mut warnings)?;
    let door = door(raw, &venues)?;
    let broker = broker(raw)?;
    let mqtt = mqtt(raw, &device, broker.as_ref(), folder)?;
    let home_assistant = home_assistant(raw, &device)?;
    let mongo = mongo(raw, folder)?;
    let fleet = fleet(raw, mqtt.is_some(), mongo.is_some(), folder, &mut warnings)?;
    Ok(Settings {
        site: raw.device.site.clone(),
        device,
        state_dir: folder.join(&raw.storage.directory),
        keep_days: (raw.storage.keep_days > 0).then_some(raw.storage.keep_days),
        camera: camera::camera(&raw.camera, folder)?,
        vision: vision(raw, folder)?,
        recognition: recognition(raw)?,
        venues,
        door,
        warnings,
        unknown_every: raw.attendance.unknown_every,
        health_every: at_least_a_second("[mqtt] health_every", raw.mqtt.health_every)?,
        celsius_max: celsius_max(raw)?,
        snapshot: raw.privacy.snapshot,
        commands: commands(raw, folder)?,
        mqtt,
        broker,
        home_assistant,
        mongo,
        http: http::http(raw, folder)?,
        fleet,
        trust: raw.clock.trust,
        level: raw.log.level,
    })
}

fn value(key: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, why: why.into() }
}

fn id(key: &'static str, id: &str) -> Result<(), ConfigError> {
    check_id(id).map_err(|e| value(key, format!("= {id:?}: {e}")))
}

/// Refuses NaN too.
fn within(key: &'static str, number: f32, least: f32, most: f32) -> Result<f32, ConfigError> {
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    Err(value(key, format!("= {number} is not within {least} to {most}")))
}

fn count(
    key: &'static str,
    number: usize,
    least: usize,
    most: usize,
) -> Result<usize, ConfigError> {
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    Err(value(key, format!("= {number} is not within {least} to {most}")))
}

fn time_within(
    key: &'static str,
    time: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, ConfigError> {
    if (least..=most).contains(&time) {
        return Ok(time);
    }
    Err(value(key, format!("= {time:?} is not within {least:?} to {most:?}")))
}

fn at_least_a_second(key: &'static str, time: Duration) -> Result<Duration, ConfigError> {
    if time >= Duration::from_secs(1) {
        Ok(time)
    } else {
        Err(value(key, format!("= {time:?} is less than a second")))
    }
}

fn path(folder: &Path, path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| folder.join(path))
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The machine's name, made into an id.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.chars().map(allowed).take(64).collect();
    if name.is_empty() { "device".into() } else { name }
}

fn door(raw: &RawConfig, venues: &[Venue]) -> Result<Door, ConfigError> {
    let RawAttendance { venue, direction, .. } = &raw.attendance;
    id("[attendance] venue", venue)?;
    if !venues.is_empty() && venues.iter().all(|it| it.id != *venue) {
        return Err(value("[attendance] venue", format!("{venue:?} is none of [[venue]]")));
    }
    let wrong =
        || value("[attendance] direction", "is none of \"\", \"in\", \"out\", \"alternate\"");
    let direction =
        text(direction).map(|it| DirectionMode::parse(&it).ok_or_else(wrong)).transpose()?;
    Ok(Door { venue: venue.clone(), direction, has_camera: raw.camera.source != RawSource::None })
}

fn venues(raw: &RawConfig, warnings: &mut Vec<String>) -> Result<Vec<Venue>, ConfigError> {
    count("[[venue]]", raw.venue.len(), 0, venue::VENUES_MAX)?;
    let mut venues: Vec<Venue> = Vec::new();
    for it in &raw.venue {
        id("[[venue]] id", &it.id)?;
        if venues.iter().any(|other| other.id == it.id) {
            return Err(value("[[venue]] id", format!("{:?} stands twice", it.id)));
        }
        // The names of JSON, made those of this file.
        let wrong = |error: VenueError| {
            let said = error.to_string().replace("sessions[", "session[").replace("_ms ", " ");
            value("[[venue]]", format!("{:?}: {said}", it.id))
        };
        if it.time_zone.is_empty() && !it.session.is_empty() {
            warnings.push(format!(
                "[[venue]] {:?} has sessions but no time_zone: their times are taken as UTC",
                it.id
            ));
        }
        let spec = venue_spec(it).map_err(wrong)?;
        VenueSpec::check_zone_name(&spec.time_zone).map_err(wrong)?;
        let zone = clock::time_zone(&spec.time_zone);
        let zone = zone.ok_or_else(|| {
            wrong(VenueError::new("time_zone", "is not in the time zone database"))
        })?;
        venues.push(Venue::new(&spec, zone).map_err(wrong)?);
    }
    Ok(venues)
}

fn venue_spec(raw: &RawVenue) -> Result<VenueSpec, VenueError> {
    let mut sessions = Vec::with_capacity(raw.session.len());
    for (at, session) in raw.session.iter().enumerate() {
        let late_after_ms = late_after_ms(session).map_err(|error| VenueError {
            field: format!("sessions[{at}].{}", error.field),
            ..error
        })?;
        sessions.push(SessionSpec {
            id: session.id.clone(),
            weekdays: session.weekdays.clone(),
            dates: session.dates.clone(),
            start: session.start.clone(),
            end: session.end.clone(),
            late_after_ms,
            early_ms: Some(milliseconds(session.early)),
        });
    }
    Ok(VenueSpec {
        venue: raw.id.clone(),
        name: text(&raw.name).unwrap_or_else(|| raw.id.clone()),
        time_zone: text(&raw.time_zone).unwrap_or_else(|| venue::ZONE.to_owned()),
        direction: raw.direction,
        re_entry_gap_ms: milliseconds(raw.re_entry_gap),
        sessions,
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `10m` after the start, or at `08:10`.
fn late_after_ms(session: &RawSession) -> Result<Option<u64>, VenueError> {
    let Some(text) = text(&session.late_after) else {
        return Ok(None);
    };
    if text.contains(':') {
        let start = venue::time_of_day("start", &session.start)?;
        let late = venue::time_of_day("late_after", &text)?;
        let minutes =
            |time: jiff::civil::Time| i64::from(time.hour()) * 60 + i64::from(time.minute());
        let after = (minutes(late) - minutes(start)).rem_euclid(24 * 60);
        return Ok(Some(after as u64 * 60_000));
    }
    let wrong = || {
        VenueError::new("late_after", "is neither a duration like `10m` nor a time like `08:10`")
    };
    let duration = humantime_serde::re::humantime::parse_duration(&text).map_err(|_| wrong())?;
    Ok(Some(milliseconds(duration)))
}

fn vision(raw: &RawConfig, folder: &Path) -> Result<VisionSettings, ConfigError> {
    let recognition = &raw.recognition;
    let threads = match count("[recognition] threads", recognition.threads, 0, 64)? {
        // One core is left to everything else; beyond three, these small networks gain nothing.
        0 => std::thread::available_parallelism()
            .map_or(1, |cores| cores.get().saturating_sub(1).clamp(1, 3)),
        threads => threads,
    };
    Ok(VisionSettings {
        models: folder.join(&recognition.models),
        runtime_library: path(folder, &recognition.runtime_library),
        embedder: recognition.embedder.clone(),
        precision: recognition.precision,
        threads,
        pad: recognition.pad != RawPad::Off,
    })
}

fn recognition(raw: &RawConfig) -> Result<RecognitionSettings, ConfigError> {
    let it = &raw.recognition;
    let threshold = within("[recognition] threshold", it.threshold, 0.0, 1.0)?;
    let probe = &raw.quality;
    let reference = &raw.enrolment;
    Ok(RecognitionSettings {
        // 0 stands for the rule.
        fixed_threshold: (threshold > 0.0).then(|| Threshold::new(threshold)).flatten(),
        fpir: within("[recognition] fpir", it.fpir, 1e-6, 0.5)?,
        samples_min: count("[recognition] samples_min", it.samples_min, 1, 8)?,
        early_margin: within("[recognition] early_margin", it.early_margin, 0.0, 1.0)?,
        margin_min: within("[recognition] margin_min", it.margin_min, 0.0, 0.5)?,
        unknown_samples: count("[recognition] unknown_samples", it.unknown_samples, 1, 8)?,
        confidence_min: within("[recognition] confidence_min", it.confidence_min, 0.5, 0.99)?,
        reach: match it.reach {
            RawReach::Near => Reach::Near,
            RawReach::Far => Reach::Far,
        },
        track: TrackSettings { lost_after: lost_after(raw)?, overlap_min: TRACK_OVERLAP_MIN },
        recheck_after: recheck_after(raw)?,
        pad: pad(raw)?,
        pace: pace(raw)?,
        probe: QualityBounds {
            eye_distance_px_min: within(
                "[quality] eye_distance_px_min",
                probe.eye_distance_px_min,
                0.0,
                1000.0,
            )?,
            luma_min: within("[quality] luma_min", probe.luma_min, 0.0, 255.0)?,
            luma_max: within("[quality] luma_max", probe.luma_max, 0.0, 255.0)?,
            sharpness_min: within("[quality] sharpness_min", probe.sharpness_min, 0.0, 10.0)?,
            yaw_max: within("[quality] yaw_max", probe.yaw_max, 0.0, 10.0)?,
            pitch_max: within("[quality] pitch_max", probe.pitch_max, 0.0, 10.0)?,
        },
        reference: QualityBounds {
            eye_distance_px_min: within(
                "[enrolment] eye_distance_px_min",
                reference.eye_distance_px_min,
                0.0,
                1000.0,
            )?,
            luma_min: within("[enrolment] luma_min", reference.luma_min, 0.0, 255.0)?,
            luma_max: within("[enrolment] luma_max", reference.luma_max, 0.0, 255.0)?,
            sharpness_min: within("[enrolment] sharpness_min", reference.sharpness_min, 0.0, 10.0)?,
            yaw_max: within("[enrolment] yaw_max", reference.yaw_max, 0.0, 10.0)?,
            pitch_max: within("[enrolment] pitch_max", reference.pitch_max, 0.0, 10.0)?,
        },
        same_person_min: within(
            "[enrolment] same_person_min",
            reference.same_person_min,
            -1.0,
            1.0,
        )?,
        duplicate_margin: within(
            "[enrolment] duplicate_margin",
            reference.duplicate_margin,
            -1.0,
            1.0,
        )?,
        look_alike_margin: within(
            "[enrolment] look_alike_margin",
            reference.look_alike_margin,
            0.0,
            1.0,
        )?,
        references_max: count("[enrolment] references_max", reference.references_max, 1, 20)?,
        picture: PictureLimits {
            bytes: count(
                "[commands] image_bytes_max",
                raw.commands.image_bytes_max,
                1 << 10,
                32 << 20,
            )?,
            pixels: count(
                "[commands] image_pixels_max",
                raw.commands.image_pixels_max,
                1 << 10,
                100_000_000,
            )?,
        },
    })
}

/// At nothing a missed look or two would be a visit; without an end everybody would be followed for ever.
fn lost_after(raw: &RawConfig) -> Result<Duration, ConfigError> {
    let (least, most) = (Duration::from_millis(100), Duration::from_mins(1));
    time_within("[recognition] lost_after", raw.recognition.lost_after, least, most)
}

/// At nothing each frame of a decided face would cost a template; beyond a minute whoever takes a place is not noticed.
fn recheck_after(raw: &RawConfig) -> Result<Duration, ConfigError> {
    let (least, most) = (Duration::from_millis(100), Duration::from_mins(1));
    time_within("[recognition] recheck_after", raw.recognition.recheck_after, least, most)
}

fn pad(raw: &RawConfig) -> Result<PadSettings, ConfigError> {
    let threshold = within("[recognition] pad_threshold", raw.recognition.pad_threshold, 0.0, 1.0)?;
    let mode = match raw.recognition.pad {
        RawPad::Off => PadMode::Off,
        RawPad::Flag => PadMode::Flag,
        RawPad::Enforce => PadMode::Enforce,
    };
    let samples = count("[recognition] pad_samples", raw.recognition.pad_samples, 1, 8)?;
    let smallest = raw.recognition.pad_eye_distance_px_min;
    let eye_distance_px_min =
        within("[recognition] pad_eye_distance_px_min", smallest, 0.0, 1000.0)?;
    Ok(PadSettings { mode, threshold, samples, eye_distance_px_min })
}

/// 0 stands for never.
fn celsius_max(raw: &RawConfig) -> Result<Option<f32>, ConfigError> {
    let celsius = within("[power] celsius_max", raw.power.celsius_max, 0.0, 120.0)?;
    Ok((celsius > 0.0).then_some(celsius))
}

fn pace(raw: &RawConfig) -> Result<PaceSettings, ConfigError> {
    let idle_fps = within("[power] idle_fps", raw.power.idle_fps, 0.5, 240.0)?;
    let lost_after = lost_after(raw)?;
    Ok(PaceSettings { idle_every: Duration::from_secs_f32(idle_fps.recip()), lost_after })
}

fn broker(raw: &RawConfig) -> Result<Option<BrokerSettings>, ConfigError> {
    if !raw.broker.enabled {
        return Ok(None);
    }
    let address = |key, text: &str| {
        let parsed: std::net::SocketAddr = text
            .parse()
            .map_err(|_| value(key, format!("= {text:?} is no address like \"127.0.0.1:1883\"")))?;
        // The embedded broker asks nobody for a password: beyond this machine that is a broker's job.
        if !parsed.ip().is_loopback() {
            return Err(value(
                key,
                format!("= {text:?} is not on loopback; use a real broker beyond this machine"),
            ));
        }
        Ok(parsed)
    };
    let websocket = text(&raw.broker.websocket);
    Ok(Some(BrokerSettings {
        listen: address("[broker] listen", &raw.broker.listen)?,
        websocket: websocket.map(|text| address("[broker] websocket", &text)).transpose()?,
    }))
}

fn mqtt(
    raw: &RawConfig,
    device: &str,
    broker: Option<&BrokerSettings>,
    folder: &Path,
) -> Result<Option<MqttSettings>, ConfigError> {
    let it = &raw.mqtt;
    let tls = tls(raw, folder)?;
    let (host, port) = match (text(&it.host), broker) {
        (Some(host), None) => {
            let usual = if tls.is_some() { 8883 } else { 1883 };
            (host, if it.port == 0 { usual } else { it.port })
        }
        (None, Some(broker)) if tls.is_none() => {
            (broker.listen.ip().to_string(), broker.listen.port())
        }
        (None, Some(_)) => {
            return Err(value(
                "[mqtt] tls",
                "has no use with the embedded broker, which is on loopback",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(value(
                "[mqtt] host",
                "and [broker] enabled exclude each other: one broker, not two",
            ));
        }
        (None, None) if tls.is_some() => {
            return Err(value("[mqtt] tls", "is set, but [mqtt] host is empty"));
        }
        (None, None) => return Ok(None),
    };
    let password = match (text(&it.password), path(folder, &it.password_file)) {
        (Some(_), Some(_)) => {
            return Err(value("[mqtt] password", "and password_file exclude each other"));
        }
        (Some(password), None) => Some(password),
        (None, Some(file)) => {
            let read = fs::read_to_string(&file)
                .map_err(|source| ConfigError::Read { path: file, source })?;
            Some(read.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => None,
    };
    let credentials = match (text(&it.user), password) {
        (Some(user), password) => {
            Some(Credentials { user, password: password.unwrap_or_default() })
        }
        (None, Some(_)) => return Err(value("[mqtt] user", "is empty, but a password is set")),
        (None, None) => None,
    };
    let client_id =
        text(&it.client_id).unwrap_or_else(|| format!("rollcall-{}-{device}", raw.device.site));
    Ok(Some(MqttSettings {
        host,
        port,
        client_id,
        credentials,
        keep_alive: it.keep_alive,
        window: count("[mqtt] window", usize::from(it.window), 1, 1000)? as u16,
        packet_bytes_max: count("[mqtt] packet_bytes_max", it.packet_bytes_max, 1 << 16, 64 << 20)?,
        tls,
    }))
}

fn home_assistant(
    raw: &RawConfig,
    device: &str,
) -> Result<Option<HomeAssistantSettings>, ConfigError> {
    let it = &raw.home_assistant;
    let prefix = it.discovery_prefix.clone();
    topics::home_assistant_status(&prefix).map_err(|_| {
        value("[home_assistant] discovery_prefix", format!("= {prefix:?} cannot stand in a topic"))
    })?;
    let name = text(&it.name).unwrap_or_else(|| device.to_owned());
    let name = Name::new(&name)
        .map_err(|error| value("[home_assistant] name", format!("= {name:?}: {error}")))?;
    let name = name.as_str().to_owned();
    Ok(it.enabled.then_some(HomeAssistantSettings {
        discovery_prefix: prefix,
        name,
        people: it.people,
    }))
}

fn tls(raw: &RawConfig, folder: &Path) -> Result<Option<TlsSettings>, ConfigError> {
    let it = &raw.mqtt;
    let (ca, cert, key) = (
        path(folder, &it.ca_file),
        path(folder, &it.client_cert_file),
        path(folder, &it.client_key_file),
    );
    tls::settings_from(it.tls, ca, cert, key)
        .map_err(|error| value("[mqtt] tls", format!("= {}: {error}", it.tls)))
}

/// systemd's name for the URI, where neither key is set.
const MONGO_CREDENTIAL: &str = "mongo_uri";

fn mongo(raw: &RawConfig, folder: &Path) -> Result<Option<MongoSettings>, ConfigError> {
    let it = &raw.mongo;
    let credential =
        std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join(MONGO_CREDENTIAL));
    let uri =
        match (text(&it.uri), path(folder, &it.uri_file), credential.filter(|path| path.is_file()))
        {
            (Some(_), Some(_), _) => {
                return Err(value("[mongo] uri", "and uri_file exclude each other"));
            }
            (Some(uri), None, _) => uri,
            (None, Some(file), _) if is_open_to_others(&file) => {
                return Err(value(
                    "[mongo] uri_file",
                    format!("{} may be read by others: chmod 600 it", file.display()),
                ));
            }
            (None, Some(file), _) | (None, None, Some(file)) => {
                let read = fs::read_to_string(&file)
                    .map_err(|source| ConfigError::Read { path: file.clone(), source })?;
                // Somebody wants MongoDB: without a word it would be as if nobody did.
                if read.trim().is_empty() {
                    return Err(value("[mongo] uri_file", format!("{} is empty", file.display())));
                }
                read.trim().to_owned()
            }
            (None, None, None) => String::new(),
        };
    let (database, ca_file) = (it.database.clone(), path(folder, &it.ca_file));
    let (tls, timeout, window) = (it.tls, it.timeout, it.window);
    mongo::settings_from(mongo::UriSource { uri, database, ca_file, tls, timeout, window })
        .map_err(|error| ConfigError::Value { key: error.key, why: error.why })
}

/// The site's key, as a credential of systemd's.
const SITE_KEY_CREDENTIAL: &str = "rollcall-site.key";

/// The key is the switch: without one nothing is shared.
fn fleet(
    raw: &RawConfig,
    has_mqtt: bool,
    has_mongo: bool,
    folder: &Path,
    warnings: &mut Vec<String>,
) -> Result<Option<FleetSettings>, ConfigError> {
    let through = match raw.fleet.share {
        RawShare::Off => return Ok(None),
        RawShare::Mqtt => Through::Mqtt,
        RawShare::Mongo if !cfg!(feature = "mongo") => {
            let why =
                "= \"mongo\", but this program was built without MongoDB (cargo feature `mongo`)";
            return Err(value("[fleet] share", why));
        }
        RawShare::Mongo if !has_mongo => {
            return Err(value(
                "[fleet] share",
                "= \"mongo\", but no MongoDB is configured ([mongo] uri or uri_file)",
            ));
        }
        RawShare::Mongo => Through::Mongo,
    };
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|dir| Path::new(&dir).join(SITE_KEY_CREDENTIAL));
    let file = path(folder, &raw.fleet.key_file).map(|it| (it, false));
    let found = file.or_else(|| credential.filter(|it| it.is_file()).map(|it| (it, true)));
    let Some((file, is_credential)) = found else {
        if through == Through::Mongo {
            warnings.push(
                "[fleet] share = \"mongo\", but nothing is shared without a key ([fleet] key_file)"
                    .into(),
            );
        }
        return Ok(None);
    };
    let key = SharedKey::load(&file, is_credential)
        .map_err(|error| value("[fleet] key_file", format!("{error}")))?;
    if through == Through::Mqtt && !has_mqtt {
        warnings.push(
            "[fleet] there is a key, but no broker to share the gallery through ([mqtt] host)"
                .into(),
        );
        return Ok(None);
    }
    Ok(Some(FleetSettings { key: Arc::new(key), through }))
}

fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).is_ok_and(|it| it.mode() & 0o077 != 0)
}

fn commands(raw: &RawConfig, folder: &Path) -> Result<CommandSettings, ConfigError> {
    let keys = &raw.commands.trusted_keys;
    count("[commands] trusted_keys", keys.len(), 0, authority::KEYS_MAX)?;
    // Never shown: it may be a private one, by mistake.
    let key = |text: &String| {
        PublicKey::parse(text).map_err(|error| value("[commands] trusted_keys", format!("{error}")))
    };
    Ok(CommandSettings {
        images_max: count("[commands] images_max", raw.commands.images_max, 1, 100)?,
        image_bytes_max: raw.commands.image_bytes_max,
        payload_bytes_max: raw.mqtt.packet_bytes_max,
        per_minute_max: count(
            "[commands] per_minute_max",
            raw.commands.per_minute_max as usize,
            1,
            1_000_000,
        )? as u32,
        trusted_keys: keys.iter().map(key).collect::<Result<_, _>>()?,
        signing_key: path(folder, &raw.commands.signing_key_file),
    })
}

#[cfg(test)]
mod tests;
