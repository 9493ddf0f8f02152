//! config.toml → settings: as written (`raw`), then overridden from the environment (`load`), then
//! checked, section by section.
//!
//! Unknown keys and impossible values are rejected by name: a typo in a security setting must never
//! become the default. Relative paths are relative to the folder of config.toml.

pub mod camera;
mod camera_stream;
pub mod checks;
pub mod environment;
pub mod faults;
pub mod fleet;
mod http;
pub mod load;
mod mongo;
pub mod mqtt;
pub mod raw;
pub mod recognition;
mod venues;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::attend::venue::{Door, Venue};
use crate::clock::Trust;
use crate::config::camera::CameraSettings;
use crate::config::checks::{
    ConfigError, at_least_a_second, check_id_key, invalid, resolve_path, within,
};
use crate::config::fleet::FleetSettings;
use crate::config::mqtt::{BrokerSettings, HomeAssistantSettings, MqttSettings};
use crate::config::raw::{RawConfig, RawLevel};
use crate::config::recognition::RecognitionSettings;
use crate::http::HttpSettings;
use crate::keys::jws;
use crate::keys::jws::PublicKey;
use crate::mongo::MongoSettings;
use crate::mqtt::topics;
use crate::vision::VisionSettings;
use crate::webhook::WebhookSettings;

/// The checked configuration of the daemon.
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
    /// Settings that are allowed but probably not intended.
    pub warnings: Vec<String>,
    /// At most one event for an unknown face in this time.
    pub unknown_every: Duration,
    pub mqtt: Option<MqttSettings>,
    pub health_every: Duration,
    /// Processor temperature above which recognition slows down; `None`: never.
    pub celsius_max: Option<f32>,
    /// Whether a picture may leave the daemon for setting up the camera.
    pub snapshot: bool,
    pub broker: Option<BrokerSettings>,
    pub home_assistant: Option<HomeAssistantSettings>,
    pub mongo: Option<MongoSettings>,
    pub webhooks: Vec<Arc<WebhookSettings>>,
    /// How the site's devices share the gallery; `None`: they do not.
    pub fleet: Option<FleetSettings>,
    pub http: Option<HttpSettings>,
    /// Whether an enrolment must state the person's consent.
    pub is_consent_required: bool,
    pub commands: CommandSettings,
    pub trust: Trust,
    pub level: RawLevel,
}

#[derive(Clone, Debug)]
pub struct CommandSettings {
    pub images_max: usize,
    pub image_bytes_max: usize,
    pub payload_bytes_max: usize,
    pub per_minute_max: u32,
    /// Keys whose signed commands are executed; empty: every command is.
    pub trusted_keys: Vec<PublicKey>,
    /// What the command line signs with.
    pub signing_key: Option<PathBuf>,
}

/// Checks every value; relative paths become relative to `folder`.
pub fn check(raw: &RawConfig, folder: &Path) -> Result<Settings, ConfigError> {
    let device =
        if raw.device.name.is_empty() { read_host_name() } else { raw.device.name.clone() };
    check_id_key("[device] site", &raw.device.site)?;
    check_id_key("[device] name", &device)?;
    if topics::RESERVED.contains(&device.as_str()) {
        return Err(invalid(
            "[device] name",
            format!("= {device:?} stands for the whole site in topics"),
        ));
    }
    let mut warnings = Vec::new();
    let venues = venues::check_venues(raw, &mut warnings)?;
    let door = venues::check_door(raw, &venues)?;
    let broker = mqtt::check_broker(raw)?;
    let mqtt = mqtt::check_mqtt(raw, &device, broker.as_ref(), folder)?;
    let home_assistant = mqtt::check_home_assistant(raw, &device)?;
    let mongo = mongo::check_mongo(raw, folder)?;
    let webhooks = webhook::check_webhooks(raw, folder, &mut warnings)?;
    let fleet = fleet::check_fleet(raw, mqtt.is_some(), mongo.is_some(), folder, &mut warnings)?;
    Ok(Settings {
        site: raw.device.site.clone(),
        device,
        state_dir: folder.join(&raw.storage.directory),
        keep_days: (raw.storage.keep_days > 0).then_some(raw.storage.keep_days),
        camera: camera::check_camera(&raw.camera, folder)?,
        vision: recognition::check_vision(raw, folder)?,
        recognition: recognition::check_recognition(raw)?,
        venues,
        door,
        warnings,
        unknown_every: raw.attendance.unknown_every,
        health_every: at_least_a_second("[mqtt] health_every", raw.mqtt.health_every)?,
        celsius_max: recognition::check_celsius_max(raw)?,
        snapshot: raw.privacy.snapshot,
        is_consent_required: raw.enrolment.consent == raw::RawConsent::Required,
        commands: check_commands(raw, folder)?,
        mqtt,
        broker,
        home_assistant,
        mongo,
        webhooks,
        http: http::check_http(raw, folder)?,
        fleet,
        trust: raw.clock.trust,
        level: raw.log.level,
    })
}

/// The machine's name, made into an id.
fn read_host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.chars().map(allowed).take(64).collect();
    if name.is_empty() { "device".into() } else { name }
}

fn check_commands(raw: &RawConfig, folder: &Path) -> Result<CommandSettings, ConfigError> {
    let keys = &raw.commands.trusted_keys;
    within("[commands] trusted_keys", keys.len(), 0, jws::KEYS_MAX)?;
    // Never shown: it may be a private one, by mistake.
    let key = |text: &String| {
        PublicKey::parse(text)
            .map_err(|error| invalid("[commands] trusted_keys", format!("{error}")))
    };
    Ok(CommandSettings {
        images_max: within("[commands] images_max", raw.commands.images_max, 1, 100)?,
        image_bytes_max: raw.commands.image_bytes_max,
        payload_bytes_max: raw.mqtt.packet_bytes_max,
        per_minute_max: within(
            "[commands] per_minute_max",
            raw.commands.per_minute_max as usize,
            1,
            1_000_000,
        )? as u32,
        trusted_keys: keys.iter().map(key).collect::<Result<_, _>>()?,
        signing_key: resolve_path(folder, &raw.commands.signing_key_file),
    })
}

#[cfg(test)]
mod tests;
