//! The packets of MQTT 3.1.1 and 5 that a broker receives and sends, as values.
//!
//! `framing` cuts a stream of bytes into packets, `read` parses what clients send, `write` encodes
//! what they receive, `properties` is the table of MQTT 5. No socket, no clock.
//!
//! Invariants: no input panics; nothing is allocated for a length before its bytes have arrived;
//! what is parsed is valid by the standard, so that it can be passed on to other clients.
//!
//! Not here: rumqttc's codec. It is made for a client: it skips most checks of what it reads, it
//! allocates many times the size of a packet of empty properties, and version 5 takes a property
//! that is cut short for a packet that is incomplete. The tests use it as the other implementation.

pub mod framing;
pub mod properties;
pub mod read;
pub mod write;

use std::ops::Range;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolVersion {
    /// MQTT 3.1.1, level 4 on the wire.
    V311,
    V5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Reason codes of MQTT 5 (section 2.4). MQTT 3.1.1 has a few of them in CONNACK and SUBACK, and
/// closes the connection for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    Malformed = 0x81,
    ProtocolError = 0x82,
    UnsupportedVersion = 0x84,
    ClientIdInvalid = 0x85,
    BadCredentials = 0x86,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    SessionTakenOver = 0x8e,
    TopicFilterInvalid = 0x8f,
    TopicNameInvalid = 0x90,
    PacketIdNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    SharedSubscriptionsUnsupported = 0x9e,
    SubscriptionIdsUnsupported = 0xa1,
}

impl Reason {
    /// Returns the return code of a CONNACK of MQTT 3.1.1. `None` where that version closes the
    /// connection without one.
    pub fn connect_return_code(self) -> Option<u8> {
        match self {
            Self::Success => Some(0),
            Self::UnsupportedVersion => Some(1),
            Self::ClientIdInvalid => Some(2),
            Self::QuotaExceeded => Some(3),
            Self::BadCredentials => Some(4),
            _ => None,
        }
    }
}

/// A message as its publisher sent it. The payload stays in the buffer in which it arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub qos: QoS,
    pub retain: bool,
    /// The properties of MQTT 5 that are passed on unchanged, encoded.
    pub properties: Vec<u8>,
    /// From then on it is not passed on any more. On the broker's clock, set where it arrives.
    pub expires_at: Option<Duration>,
    body: Vec<u8>,
    payload: Range<usize>,
}

impl Message {
    /// Makes a message whose payload is the rest of `body` from `payload_at`.
    pub fn new(topic: String, qos: QoS, body: Vec<u8>, payload_at: usize) -> Self {
        let payload = payload_at.min(body.len())..body.len();
        Self { topic, qos, retain: false, properties: Vec::new(), expires_at: None, body, payload }
    }

    pub fn payload(&self) -> &[u8] {
        &self.body[self.payload.clone()]
    }

    /// The bytes that it occupies in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.properties.len() + self.body.len()
    }

    pub fn has_expired(&self, now: Duration) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

#[derive(Debug)]
pub struct Connect {
    pub version: ProtocolVersion,
    pub clean_start: bool,
    pub keep_alive_s: u16,
    /// Empty: the broker assigns one.
    pub client_id: String,
    pub user: Option<String>,
    pub password: Option<Vec<u8>>,
    pub will: Option<Will>,
    /// For how long the session outlives the connection. `u32::MAX`: for ever.
    pub session_expiry_s: u32,
    /// Publishes with QoS above 0 that the client accepts at a time.
    pub receive_max: u16,
    /// The largest packet that the client accepts.
    pub packet_bytes_max: usize,
}

#[derive(Debug)]
pub struct Will {
    pub message: Message,
    pub delay_s: u32,
    pub expiry_s: Option<u32>,
}

#[derive(Debug)]
pub struct Publish {
    pub message: Message,
    /// 0 at QoS 0.
    pub packet_id: u16,
    pub expiry_s: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    PubAck,
    PubRec,
    PubRel,
    PubComp,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    pub topic: String,
    pub options: SubscribeOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
}

/// When a subscription gets the retained messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainHandling {
    Always,
    IfNew,
    Never,
}

/// What a client may send after CONNECT.
#[derive(Debug)]
pub enum Request {
    Publish(Publish),
    Ack { kind: AckKind, packet_id: u16, failed: bool },
    Subscribe { packet_id: u16, filters: Vec<Filter> },
    Unsubscribe { packet_id: u16, topics: Vec<String> },
    Ping,
    Disconnect { with_will: bool, session_expiry_s: Option<u32> },
}
