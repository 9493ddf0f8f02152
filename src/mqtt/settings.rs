//! The settings of the link to the broker, and their checks.

use std::fmt;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::mqtt::tls::{TlsError, TlsSettings};

/// The settings of one connection, checked by `link::open`.
#[derive(Clone)]
pub struct LinkSettings {
    pub host: String,
    pub port: u16,
    /// Stable over restarts: the broker keeps the session, and so the queued commands, by this
    /// name.
    pub client_id: String,
    /// Whether the broker keeps a session while the link is down. A console has none, so that it
    /// leaves nothing behind.
    pub persistent: bool,
    pub keep_alive: Duration,
    pub credentials: Option<Credentials>,
    pub tls: Option<TlsSettings>,
    /// Largest inbound packet; larger ones are drained.
    pub packet_bytes_max_in: usize,
    /// Largest outbound packet; a larger one is `TooLarge` and does not reach the wire.
    pub packet_bytes_max_out: usize,
    /// Publishes in flight at a time.
    pub window: u16,
    /// Inbound messages that the caller may hold at a time. More than the usual brokers send
    /// unacknowledged (mosquitto 20, EMQX 32, the embedded one 100), so that only bytes limit in
    /// practice.
    pub inbound_count_max: usize,
    pub inbound_bytes_max: usize,
    pub status_topic: String,
    pub subscriptions: Vec<String>,
    /// Filters whose retained messages are searched for one that is too large, after it ended
    /// connections. The caller may then clear its topic. Empty: none are.
    pub scanned: Vec<String>,
    pub version: VersionChoice,
    /// MQTT 3.1.1 only: a topic of our own, on which `Link::deliver_batch` proves that the broker
    /// passes on what we publish. `None`: its acknowledgement has to be enough.
    pub probe_topic: Option<String>,
    pub retry: RetrySettings,
    /// A connection that lasted this long counts as good. A PUBACK and the echo of a probe may take
    /// at most two of these.
    pub tick: Duration,
}

/// The version of MQTT that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

impl Version {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

/// Which version of MQTT is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionChoice {
    /// MQTT 5, and 3.1.1 with a broker that does not have it.
    Auto,
    Only(Version),
}

/// How soon the next attempt follows a failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    pub backoff: Backoff,
    /// At least this after the broker refused the connection: an early retry does not help, and some brokers lock
    /// out clients that try.
    pub refused: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(30)),
            refused: Duration::from_secs(10),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, …)", self.user)
    }
}

impl LinkSettings {
    pub fn new(host: &str, port: u16, client_id: &str, status_topic: String) -> Self {
        Self {
            host: host.to_owned(),
            port,
            client_id: client_id.to_owned(),
            persistent: true,
            // A dead link is noticed after two of these.
            keep_alive: Duration::from_secs(15),
            credentials: None,
            tls: None,
            // 8 MiB is ten photos of a telephone in base64, scaled as the documentation advises;
            // the rest is framing.
            packet_bytes_max_in: 8 * 1024 * 1024 + 64 * 1024,
            packet_bytes_max_out: 1024 * 1024,
            window: 32,
            inbound_count_max: 128,
            inbound_bytes_max: 24 * 1024 * 1024,
            status_topic,
            subscriptions: Vec::new(),
            scanned: Vec::new(),
            version: VersionChoice::Auto,
            probe_topic: None,
            retry: RetrySettings::default(),
            tick: Duration::from_secs(15),
        }
    }

    pub(super) fn check(&self) -> Result<(), LinkConfigError> {
        let refuse = |key, why: &str| Err(LinkConfigError::Value { key, why: why.to_owned() });
        if self.host.is_empty() {
            return refuse("host", "it is empty");
        }
        if self.tls.is_some() && self.host.parse::<std::net::Ipv6Addr>().is_ok() {
            return refuse(
                "host",
                "with TLS it must be a name or an IPv4 address (rumqttc cannot do IPv6 there)",
            );
        }
        if self.client_id.is_empty() {
            return refuse("client_id", "it is empty, and the broker keeps our session by it");
        }
        if self.keep_alive < Duration::from_secs(1) || self.keep_alive > Duration::from_hours(1) {
            return refuse("keep_alive", "it must be 1 s to 1 h");
        }
        if self.tick.is_zero() {
            return refuse("tick", "it must be above 0");
        }
        if self.window == 0 || self.window > 1000 {
            return refuse("window", "it must be 1 to 1000");
        }
        if self.packet_bytes_max_in < 1024 || self.packet_bytes_max_out < 1024 {
            return refuse("packet_bytes_max", "it must be at least 1 KiB each way");
        }
        if self.inbound_count_max == 0 {
            return refuse("inbound_count_max", "it must be at least 1");
        }
        let backoff = &self.retry.backoff;
        if backoff.shortest.is_zero() || backoff.shortest > backoff.longest {
            return refuse("retry", "the shortest pause must be above 0 and not above the longest");
        }
        if !rumqttc::valid_topic(&self.status_topic) || self.status_topic.is_empty() {
            return refuse("status_topic", "it is empty or has a wildcard");
        }
        if self.probe_topic.as_deref().is_some_and(|it| it.is_empty() || !rumqttc::valid_topic(it))
        {
            return refuse("probe_topic", "it is empty or has a wildcard");
        }
        if !self.subscriptions.iter().all(|it| rumqttc::valid_filter(it)) {
            return refuse("subscriptions", "one is not a valid topic filter");
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkConfigError {
    #[error("the MQTT setting {key} cannot be used: {why}")]
    Value { key: &'static str, why: String },
    #[error("the MQTT TLS settings cannot be used")]
    Tls(#[from] TlsError),
}
