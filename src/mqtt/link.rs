//! The link to the broker, as the rest of the daemon sees it.
//!
//! Promises:
//! - *Out*: `publish_batch` says `Ok` for a message only after the broker's PUBACK for exactly that message. Everything
//!   else is `NotAcknowledged`, and the caller sends it again from its disk: at least once, never silently lost.
//! - *In*: a command is acknowledged to the broker only when the caller says so (`AckToken::acknowledge`), that is after
//!   its transaction was committed. A crash before that, or a token dropped unused, and the broker sends it again. The
//!   same command can therefore arrive twice; its `request_id` makes twice harmless. Acknowledgements go out in the
//!   order of arrival, as MQTT demands (4.6.0-2), whatever the order in which they are given.
//! - *Memory is bounded*: at most `inbound_count_max` messages and `inbound_bytes_max` bytes are in the caller's hands.
//!   What arrives beyond that is let go unacknowledged; when the caller's hands are empty the link reconnects, and the
//!   broker, which still has it, sends it again in its order. So a full queue costs a reconnect and never a command.
//!   (A command published at QoS 0 against the contract is lost then, and counted.)
//! - *A message too large for us* is not a dead link: `sift` says how it is got rid of, and what that costs.
//! - *Status*: "online" retained after each connect, "offline" before a clean DISCONNECT, and as the last will.
//!
//! Not in here: the polling (`drive`), what a payload means, resending (the outbox does), TLS policy (`config`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::Publish;
use tokio::sync::{mpsc, watch};

use super::drive::Driver;
use super::ledger::{Shared, Waiting};
use super::tls::{self, TlsError, TlsSettings};

/// Room in the event queue beside the inbound messages: edges of the connection come at the back-off's pace, so 64 of
/// them are minutes in which the app took none.
const EDGES_MAX: usize = 64;

/// Everything the link needs to know; checked by `open`.
#[derive(Clone)]
pub struct LinkSettings {
    pub host: String,
    pub port: u16,
    /// Stable over restarts: the broker keeps the session, and so the queued commands, by this name.
    pub client_id: String,
    /// Whether the broker keeps what comes while we are away. A console that comes and goes leaves nothing behind.
    pub persistent: bool,
    pub keep_alive: Duration,
    pub credentials: Option<Credentials>,
    pub tls: Option<TlsSettings>,
    /// Largest inbound packet; the broker's larger ones are sifted out.
    pub packet_bytes_max_in: usize,
    /// Largest outbound packet; a larger one is `TooLarge` and does not reach the wire.
    pub packet_bytes_max_out: usize,
    /// Publishes under way at a time.
    pub window: u16,
    /// Inbound messages in the caller's hands at a time. More than the usual brokers send unacknowledged (mosquitto 20,
    /// EMQX 32, rumqttd 100), so that only bytes limit in practice.
    pub inbound_count_max: usize,
    pub inbound_bytes_max: usize,
    pub status_topic: String,
    pub subscriptions: Vec<String>,
    pub retry: RetrySettings,
}

/// How soon the next attempt follows a failed one. Each is shortened at random by up to half, so that a fleet does not
/// come back to a restarted broker in one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    pub shortest: Duration,
    pub longest: Duration,
    /// After the broker refused us by name or password: asking again soon will not change its mind, and some brokers
    /// lock out who does.
    pub refused: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            shortest: Duration::from_millis(250),
            longest: Duration::from_secs(30),
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
            // 8 MiB is ten photos of a telephone in base64, scaled as the documentation advises; the rest is framing.
            packet_bytes_max_in: 8 * 1024 * 1024 + 64 * 1024,
            packet_bytes_max_out: 1024 * 1024,
            window: 32,
            inbound_count_max: 128,
            inbound_bytes_max: 24 * 1024 * 1024,
            status_topic,
            subscriptions: Vec::new(),
            retry: RetrySettings::default(),
        }
    }

    fn check(&self) -> Result<(), LinkConfigError> {
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
        if self.window == 0 || self.window > 1000 {
            return refuse("window", "it must be 1 to 1000");
        }
        if self.packet_bytes_max_in < 1024 || self.packet_bytes_max_out < 1024 {
            return refuse("packet_bytes_max", "it must be at least 1 KiB each way");
        }
        if self.inbound_count_max == 0 {
            return refuse("inbound_count_max", "it must be at least 1");
        }
        if self.retry.shortest.is_zero() || self.retry.shortest > self.retry.longest {
            return refuse("retry", "the shortest pause must be above 0 and not above the longest");
        }
        if !rumqttc::valid_topic(&self.status_topic) || self.status_topic.is_empty() {
            return refuse("status_topic", "it is empty or has a wildcard");
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

/// A message to be published at QoS 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes, retain {})", self.topic, self.payload.len(), self.retain)
    }
}

/// Why a message does not count as delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAcknowledged {
    /// Retry when the link is up.
    #[error("the link is down")]
    Offline,
    /// Retry: it may or may not have reached the broker.
    #[error("the link was lost before the broker acknowledged")]
    Lost,
    /// Poison: it will never fit.
    #[error("it has {bytes} bytes as a packet; at most {bytes_max} are sent")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Poison: no broker would take it.
    #[error("its topic is empty, too long or has a wildcard")]
    BadTopic,
}

impl NotAcknowledged {
    /// Whether sending the same message again can never help.
    pub fn is_poison(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::BadTopic)
    }
}

/// What the link tells the app. Edges, not levels: for the level there is `Link::online`.
#[derive(Debug)]
pub enum LinkEvent {
    /// Also after a reconnect of our own to have messages sent again, without a `Lost` before it.
    Connected {
        /// Whether the broker still had our session, and with it the commands sent meanwhile.
        session_present: bool,
    },
    Lost {
        why: String,
    },
    /// An attempt failed; told once, and again when the reason is another.
    Unreachable {
        why: String,
    },
    Inbound(Inbound),
    Oversized(Oversized),
    /// The broker took subscriptions: what it keeps for them comes now.
    Subscribed {
        filters: Vec<String>,
    },
    /// The broker does not let us subscribe to this: no command will come that way.
    SubscriptionRefused {
        filter: String,
    },
    /// The last resort against a message too large for us: the broker was told to forget our session, and commands
    /// that waited in it are lost.
    SessionPurged {
        why: String,
    },
}

/// One inbound message.
pub struct Inbound {
    pub topic: String,
    pub payload: Vec<u8>,
    /// The broker had it stored, so it is of unknown age: the contract refuses such a command.
    pub retained: bool,
    /// Said to have been sent before (DUP). mosquitto says so of what we did not acknowledge, and only then; the embedded
    /// broker does not, and passes on what a sender says: nothing may rest on it alone.
    pub again: bool,
    /// Under which the broker sends it; by mosquitto the same each time, by the embedded broker another. 0 at QoS 0.
    pub packet_id: u16,
    pub ack: AckToken,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Inbound({}, {} bytes, retained {})",
            self.topic,
            self.payload.len(),
            self.retained
        )
    }
}

/// A message that was too large and was thrown away unread, but for its beginning.
pub struct Oversized {
    /// Of the whole packet.
    pub bytes: usize,
    /// None when only its size was seen. At QoS 0 that is all there ever is; at QoS 1 the broker sends it again, and
    /// a second event follows with topic and head.
    pub topic: Option<String>,
    /// The first 64 KiB of the payload, so that a `request_id` near its beginning can be answered.
    pub head: Vec<u8>,
}

impl fmt::Debug for Oversized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oversized({:?}, {} bytes)", self.topic, self.bytes)
    }
}

/// The right to acknowledge one inbound message, once. Dropped unused it means: send it again.
#[must_use = "dropping it asks the broker to send the message again"]
pub struct AckToken {
    shared: Arc<Shared>,
    pub(super) connection: u64,
    /// 0 for QoS 0, which nobody acknowledges.
    pub(super) serial: u64,
    pub(super) bytes: usize,
    used: bool,
}

impl AckToken {
    pub(super) fn new(shared: Arc<Shared>, connection: u64, serial: u64, bytes: usize) -> Self {
        Self { shared, connection, serial, bytes, used: false }
    }

    /// The message was made durable (or refused with an answer). Never waits. When the link was lost meanwhile the
    /// broker will send the message again.
    pub fn acknowledge(mut self) {
        self.used = true;
        self.shared.release(&self, true);
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if !self.used {
            self.shared.release(self, false);
        }
    }
}

impl fmt::Debug for AckToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AckToken({})", self.serial)
    }
}

/// Figures for health and metrics, all counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub connects: u64,
    pub acknowledged: u64,
    pub received: u64,
    /// Inbound messages let go for want of room, to be sent again by the broker.
    pub deferred: u64,
    /// The same at QoS 0: lost.
    pub dropped: u64,
    pub oversized: u64,
    /// `publish_latest` that found no connection, or no room before it.
    pub latest_dropped: u64,
    /// Edges that found the app's queue full.
    pub events_dropped: u64,
}

/// The handle for publishing. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

/// Makes a link; nothing happens until the driver's `drive` is awaited.
pub fn open(
    settings: LinkSettings,
) -> Result<(Link, Driver, mpsc::Receiver<LinkEvent>), LinkConfigError> {
    settings.check()?;
    let tls = match &settings.tls {
        Some(tls) => Some(tls::client_config(tls, &settings.host)?),
        None => None,
    };
    let shared = Arc::new(Shared::new(&settings));
    let (sender, receiver) = mpsc::channel(settings.inbound_count_max + EDGES_MAX);
    let driver = Driver::new(settings, tls, Arc::clone(&shared), sender);
    Ok((Link { shared }, driver, receiver))
}

impl Link {
    /// Publishes at QoS 1, at most `window` at a time, and waits for the broker's answer to each. The results are in
    /// the order of the messages. May be dropped at any time; what was under way is then simply not reported.
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Vec<Result<(), NotAcknowledged>> {
        let mut under_way = Vec::with_capacity(messages.len());
        for message in messages {
            under_way.push(self.shared.publish(message).await);
        }
        let mut results = Vec::with_capacity(under_way.len());
        for sent in under_way {
            results.push(match sent {
                Ok(waiting) => answer(waiting).await,
                Err(refused) => Err(refused),
            });
        }
        results
    }

    /// Publishes at QoS 0 what is only worth its age (health): the latest of a topic wins, and without a connection it
    /// is dropped. Never waits.
    pub fn publish_latest(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        self.shared.publish_latest(topic, payload, retain);
    }

    /// Subscribes on the present connection, besides what the settings say; what the broker keeps for these comes (again).
    /// `false` when there is no connection, or no room before it. Never waits: `LinkEvent::Subscribed` tells the rest.
    pub fn subscribe(&self, filters: Vec<String>) -> bool {
        self.shared.subscribe(filters)
    }

    /// The opposite; nobody tells when.
    pub fn unsubscribe(&self, filters: Vec<String>) -> bool {
        self.shared.unsubscribe(filters)
    }

    pub fn is_online(&self) -> bool {
        *self.shared.online.borrow()
    }

    /// The level behind the edges `Connected` and `Lost`.
    pub fn online(&self) -> watch::Receiver<bool> {
        self.shared.online.subscribe()
    }

    pub fn counters(&self) -> LinkCounters {
        let of = &self.shared.counters;
        LinkCounters {
            connects: of.connects.load(Ordering::Relaxed),
            acknowledged: of.acknowledged.load(Ordering::Relaxed),
            received: of.received.load(Ordering::Relaxed),
            deferred: of.deferred.load(Ordering::Relaxed),
            dropped: of.dropped.load(Ordering::Relaxed),
            oversized: of.oversized.load(Ordering::Relaxed),
            latest_dropped: of.latest_dropped.load(Ordering::Relaxed),
            events_dropped: of.events_dropped.load(Ordering::Relaxed),
        }
    }
}

async fn answer(waiting: Waiting) -> Result<(), NotAcknowledged> {
    // The other end is only ever dropped together with the connection.
    waiting.await.unwrap_or(Err(NotAcknowledged::Lost))
}

/// Bytes that a QoS 1 publish takes on the wire, at most.
pub(super) fn packet_bytes(topic: &str, payload: &[u8]) -> usize {
    // Packet type, four bytes of length, two of topic length, two of packet id.
    1 + 4 + 2 + topic.len() + 2 + payload.len()
}

/// Takes an inbound publish apart. The payload is moved, not copied, when nobody else holds its buffer.
pub(super) fn inbound(publish: Publish, ack: AckToken) -> Inbound {
    let (retained, again, packet_id) = (publish.retain, publish.dup, publish.pkid);
    Inbound {
        topic: publish.topic,
        payload: Vec::from(publish.payload),
        retained,
        again,
        packet_id,
        ack,
    }
}
