//! The sections `[mqtt]`, `[broker]` and `[home_assistant]`.

use std::path::Path;
use std::time::Duration;

use crate::config::checks::{
    ConfigError, check_file, check_not_public, invalid, non_empty, read_secret, resolve_path,
    within,
};
use crate::config::raw::RawConfig;
use crate::error_chain::error_chain;
use crate::ids::Name;
use crate::mqtt::settings::{Credentials, Version, VersionChoice};
use crate::mqtt::tls::{self, TlsSettings};
use crate::mqtt::topics;

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
    pub version: VersionChoice,
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
    /// The device's name there.
    pub name: String,
    /// Whether names of subjects who passed are published there.
    pub people: bool,
}

pub(super) fn check_broker(raw: &RawConfig) -> Result<Option<BrokerSettings>, ConfigError> {
    if !raw.broker.enabled {
        return Ok(None);
    }
    let address = |key, text: &str| {
        let parsed: std::net::SocketAddr = text.parse().map_err(|_| {
            invalid(key, format!("= {text:?} is no address like \"127.0.0.1:1883\""))
        })?;
        if parsed.port() == 0 {
            return Err(invalid(key, format!("= {text:?} needs a port, like 1883")));
        }
        // The embedded broker has no passwords: beyond this machine that is a broker's
        // job.
        if !parsed.ip().is_loopback() {
            return Err(invalid(
                key,
                format!("= {text:?} is not on loopback; use a real broker beyond this machine"),
            ));
        }
        Ok(parsed)
    };
    let websocket = non_empty(&raw.broker.websocket);
    Ok(Some(BrokerSettings {
        listen: address("[broker] listen", &raw.broker.listen)?,
        websocket: websocket.map(|text| address("[broker] websocket", &text)).transpose()?,
    }))
}

pub(super) fn check_mqtt(
    raw: &RawConfig,
    device: &str,
    broker: Option<&BrokerSettings>,
    folder: &Path,
) -> Result<Option<MqttSettings>, ConfigError> {
    let it = &raw.mqtt;
    let tls = check_tls(raw, folder)?;
    let (host, port) = match (non_empty(&it.host), broker) {
        (Some(host), None) => {
            check_host(&host)?;
            if let Some(tls) = &tls {
                check_tls_files(tls, &host)?;
            }
            let usual = if tls.is_some() { 8883 } else { 1883 };
            (host, if it.port == 0 { usual } else { it.port })
        }
        (None, Some(broker)) if tls.is_none() => {
            (broker.listen.ip().to_string(), broker.listen.port())
        }
        (None, Some(_)) => {
            return Err(invalid(
                "[mqtt] tls",
                "has no use with the embedded broker, which is on loopback",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(invalid(
                "[mqtt] host",
                "and [broker] enabled exclude each other: one broker, not two",
            ));
        }
        (None, None) if tls.is_some() => {
            return Err(invalid("[mqtt] tls", "is set, but [mqtt] host is empty"));
        }
        (None, None) => return Ok(None),
    };
    let password = match (non_empty(&it.password), resolve_path(folder, &it.password_file)) {
        (Some(_), Some(_)) => {
            return Err(invalid("[mqtt] password", "and password_file exclude each other"));
        }
        (Some(password), None) => Some(password),
        (None, Some(file)) => {
            let text = read_secret("[mqtt] password_file", &file)?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => None,
    };
    let credentials = match (non_empty(&it.user), password) {
        (Some(user), password) => {
            Some(Credentials { user, password: password.unwrap_or_default() })
        }
        (None, Some(_)) => return Err(invalid("[mqtt] user", "is empty, but a password is set")),
        (None, None) => None,
    };
    let client_id = non_empty(&it.client_id)
        .unwrap_or_else(|| format!("rollcall-{}-{device}", raw.device.site));
    Ok(Some(MqttSettings {
        host,
        port,
        client_id,
        credentials,
        keep_alive: it.keep_alive,
        window: within("[mqtt] window", usize::from(it.window), 1, 1000)? as u16,
        packet_bytes_max: within(
            "[mqtt] packet_bytes_max",
            it.packet_bytes_max,
            1 << 16,
            64 << 20,
        )?,
        tls,
        version: check_version(&it.version)?,
    }))
}

fn check_version(version: &str) -> Result<VersionChoice, ConfigError> {
    match version {
        "auto" => Ok(VersionChoice::Auto),
        "5" => Ok(VersionChoice::Only(Version::V5)),
        "3.1.1" => Ok(VersionChoice::Only(Version::V311)),
        _ => Err(invalid(
            "[mqtt] version",
            format!("= {version:?} is not \"auto\", \"5\" or \"3.1.1\""),
        )),
    }
}

/// Reads the files now, so that a mistake in them is a fault of the configuration and not a
/// connection that never comes up.
fn check_tls_files(tls: &TlsSettings, host: &str) -> Result<(), ConfigError> {
    let key = match (&tls.ca, &tls.client) {
        (Some(_), None) => "[mqtt] ca_file",
        (None, Some(_)) => "[mqtt] client_cert_file",
        _ => "[mqtt] tls",
    };
    let checked = tls::client_config(tls, host);
    checked.map(drop).map_err(|error| invalid(key, format!(": {}", error_chain(&error))))
}

pub(super) fn check_home_assistant(
    raw: &RawConfig,
    device: &str,
) -> Result<Option<HomeAssistantSettings>, ConfigError> {
    let it = &raw.home_assistant;
    let prefix = it.discovery_prefix.clone();
    topics::home_assistant_status(&prefix).map_err(|_| {
        invalid(
            "[home_assistant] discovery_prefix",
            format!("= {prefix:?} cannot stand in a topic"),
        )
    })?;
    let name = non_empty(&it.name).unwrap_or_else(|| device.to_owned());
    let name = Name::new(&name)
        .map_err(|error| invalid("[home_assistant] name", format!("= {name:?}: {error}")))?;
    let name = name.as_str().to_owned();
    Ok(it.enabled.then_some(HomeAssistantSettings {
        discovery_prefix: prefix,
        name,
        people: it.people,
    }))
}

/// Rejects what is more than a host: the URL of a broker, or a host with its port.
fn check_host(host: &str) -> Result<(), ConfigError> {
    let key = "[mqtt] host";
    if let Some((_, rest)) = host.split_once("://") {
        let rest = rest.split(['/', ':']).next().unwrap_or_default();
        let why = format!(
            "= {host:?} is a URL: only the name or address, like {rest:?}; TLS is [mqtt] tls"
        );
        return Err(invalid(key, why));
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if let Some((name, port)) = host.rsplit_once(':') {
        let why = format!("= {host:?} has a port: host = {name:?} and [mqtt] port = {port}");
        return Err(invalid(key, why));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.len() > 253 || !host.chars().all(is_name) {
        return Err(invalid(key, format!("= {host:?} is no host name and no address")));
    }
    Ok(())
}

fn check_tls(raw: &RawConfig, folder: &Path) -> Result<Option<TlsSettings>, ConfigError> {
    let it = &raw.mqtt;
    let ca = resolve_path(folder, &it.ca_file);
    let cert = resolve_path(folder, &it.client_cert_file);
    let key = resolve_path(folder, &it.client_key_file);
    let named = [
        ("[mqtt] ca_file", &ca),
        ("[mqtt] client_cert_file", &cert),
        ("[mqtt] client_key_file", &key),
    ];
    for (key, path) in named {
        path.as_deref().map_or(Ok(()), |path| check_file(key, path))?;
    }
    if let Some(key) = &key {
        check_not_public("[mqtt] client_key_file", key)?;
    }
    tls::settings_from(it.tls, ca, cert, key)
        .map_err(|error| invalid("[mqtt] tls", format!("= {}: {error}", it.tls)))
}
