//! Parses the packets that clients send.
//!
//! An error is the reason code with which the connection ends.

use crate::broker::packet::framing::Frame;
use crate::broker::packet::properties::{Property, Reader, Value, id};
use crate::broker::packet::{
    AckKind, Connect, Filter, Message, ProtocolVersion, Publish, QoS, Reason, Request,
    RetainHandling, SubscribeOptions, Will,
};
use crate::broker::topic;

/// Packet types, the upper half of the first byte.
pub const CONNECT: u8 = 1;
pub const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

/// MQTT 5: the client leaves, and its last will shall be published all the same.
const DISCONNECT_WITH_WILL: u8 = 0x04;
/// From here on a reason code is a failure.
const FAILED_FROM: u8 = 0x80;
/// Without a property for it, an MQTT 5 client accepts this many.
const RECEIVE_MAX: u16 = u16::MAX;
/// MQTT 3.1.1: a session that is not clean has no end.
const FOR_EVER: u32 = u32::MAX;

/// Why a CONNECT is refused, and in which version the answer is written.
#[derive(Debug, PartialEq, Eq)]
pub struct ConnectError {
    pub reason: Reason,
    pub version: ProtocolVersion,
}

/// Parses a CONNECT.
pub fn connect(frame: &Frame) -> Result<Connect, ConnectError> {
    let mut version = ProtocolVersion::V311;
    connect_body(frame, &mut version).map_err(|reason| ConnectError { reason, version })
}

/// Parses a packet that follows CONNECT.
pub fn request(frame: Frame, version: ProtocolVersion) -> Result<Request, Reason> {
    let kind = frame.first >> 4;
    let flags = frame.first & 0x0f;
    if kind == PUBLISH {
        return publish(flags, frame.body, version).map(Request::Publish);
    }
    let expected_flags = if matches!(kind, PUBREL | SUBSCRIBE | UNSUBSCRIBE) { 0b0010 } else { 0 };
    if flags != expected_flags {
        return Err(Reason::Malformed);
    }
    let mut reader = Reader::new(&frame.body);
    let request = match kind {
        PUBACK => ack(AckKind::PubAck, &mut reader, version)?,
        PUBREC => ack(AckKind::PubRec, &mut reader, version)?,
        PUBREL => ack(AckKind::PubRel, &mut reader, version)?,
        PUBCOMP => ack(AckKind::PubComp, &mut reader, version)?,
        SUBSCRIBE => subscribe(&mut reader, version)?,
        UNSUBSCRIBE => unsubscribe(&mut reader, version)?,
        PINGREQ => Request::Ping,
        DISCONNECT => disconnect(&mut reader, version)?,
        // What only brokers send, a second CONNECT, and AUTH, which nobody has begun.
        _ => return Err(Reason::ProtocolError),
    };
    if reader.is_empty() { Ok(request) } else { Err(Reason::Malformed) }
}

/// The flags of a CONNECT.
struct ConnectFlags(u8);

impl ConnectFlags {
    fn has(&self, bit: u8) -> bool {
        self.0 & (1 << bit) != 0
    }

    fn clean_start(&self) -> bool {
        self.has(1)
    }

    fn will_qos(&self) -> Result<QoS, Reason> {
        QoS::from_bits(self.0 >> 3 & 0b11).ok_or(Reason::Malformed)
    }

    fn check(&self, version: ProtocolVersion) -> Result<(), Reason> {
        let [is_reserved, has_will, retains, has_password, has_user] =
            [0, 2, 5, 6, 7].map(|bit| self.has(bit));
        let stray_will = !has_will && (retains || self.will_qos()? != QoS::AtMostOnce);
        let stray_password = version == ProtocolVersion::V311 && has_password && !has_user;
        if is_reserved || stray_will || stray_password { Err(Reason::Malformed) } else { Ok(()) }
    }
}

fn connect_body(frame: &Frame, version: &mut ProtocolVersion) -> Result<Connect, Reason> {
    if frame.first & 0x0f != 0 {
        return Err(Reason::Malformed);
    }
    let mut reader = Reader::new(&frame.body);
    if reader.text()? != "MQTT" {
        return Err(Reason::Malformed);
    }
    *version = match reader.byte()? {
        4 => ProtocolVersion::V311,
        5 => ProtocolVersion::V5,
        _ => return Err(Reason::UnsupportedVersion),
    };
    let flags = ConnectFlags(reader.byte()?);
    flags.check(*version)?;
    let mut connect = Connect {
        version: *version,
        clean_start: flags.clean_start(),
        keep_alive_s: reader.two_bytes()?,
        client_id: String::new(),
        user: None,
        password: None,
        will: None,
        session_expiry_s: 0,
        receive_max: RECEIVE_MAX,
        packet_bytes_max: usize::MAX,
    };
    match *version {
        ProtocolVersion::V311 if !connect.clean_start => connect.session_expiry_s = FOR_EVER,
        ProtocolVersion::V311 => {}
        ProtocolVersion::V5 => connect_properties(&mut reader, &mut connect)?,
    }
    reader.text()?.clone_into(&mut connect.client_id);
    if flags.has(2) {
        connect.will = Some(will(&mut reader, &flags, *version)?);
    }
    if flags.has(7) {
        connect.user = Some(reader.text()?.to_owned());
    }
    if flags.has(6) {
        connect.password = Some(reader.binary()?.to_owned());
    }
    if reader.is_empty() { Ok(connect) } else { Err(Reason::Malformed) }
}

fn connect_properties(reader: &mut Reader<'_>, connect: &mut Connect) -> Result<(), Reason> {
    let allowed = [
        id::SESSION_EXPIRY,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE_INFORMATION,
        id::REQUEST_PROBLEM_INFORMATION,
        id::USER_PROPERTY,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
    ];
    reader.properties(&allowed, |property| {
        match property.id {
            id::SESSION_EXPIRY => connect.session_expiry_s = property.number(),
            id::RECEIVE_MAXIMUM => {
                connect.receive_max = u16::try_from(property.positive()?).unwrap_or(RECEIVE_MAX);
            }
            id::MAXIMUM_PACKET_SIZE => connect.packet_bytes_max = property.positive()? as usize,
            id::AUTHENTICATION_METHOD => return Err(Reason::BadAuthenticationMethod),
            _ => {}
        }
        Ok(())
    })
}

fn will(
    reader: &mut Reader<'_>,
    flags: &ConnectFlags,
    version: ProtocolVersion,
) -> Result<Will, Reason> {
    let mut properties = MessageProperties::default();
    if version == ProtocolVersion::V5 {
        properties.read(reader, &[id::WILL_DELAY])?;
    }
    let topic = name(reader.text()?)?;
    let mut message = Message::new(topic, flags.will_qos()?, reader.binary()?.to_owned(), 0);
    message.retain = flags.has(5);
    message.properties = properties.forwarded;
    Ok(Will { message, delay_s: properties.will_delay_s, expiry_s: properties.expiry_s })
}

fn name(topic: &str) -> Result<String, Reason> {
    if topic::is_name(topic) { Ok(topic.to_owned()) } else { Err(Reason::TopicNameInvalid) }
}

/// The properties of a message.
#[derive(Default)]
struct MessageProperties {
    forwarded: Vec<u8>,
    expiry_s: Option<u32>,
    will_delay_s: u32,
}

impl MessageProperties {
    fn read(&mut self, reader: &mut Reader<'_>, more: &[u8]) -> Result<(), Reason> {
        let mut allowed = vec![
            id::PAYLOAD_FORMAT,
            id::MESSAGE_EXPIRY,
            id::CONTENT_TYPE,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
            id::USER_PROPERTY,
        ];
        allowed.extend_from_slice(more);
        reader.properties(&allowed, |property| self.take(&property))
    }

    fn take(&mut self, property: &Property<'_>) -> Result<(), Reason> {
        match (property.id, property.value) {
            (id::MESSAGE_EXPIRY, _) => self.expiry_s = Some(property.number()),
            (id::WILL_DELAY, _) => self.will_delay_s = property.number(),
            // The broker announces no aliases, so none may be used.
            (id::TOPIC_ALIAS, _) => return Err(Reason::TopicAliasInvalid),
            (id::RESPONSE_TOPIC, Value::Text(topic)) if !topic::is_name(topic) => {
                return Err(Reason::TopicNameInvalid);
            }
            _ => self.forwarded.extend_from_slice(property.encoded),
        }
        Ok(())
    }
}

fn publish(flags: u8, body: Vec<u8>, version: ProtocolVersion) -> Result<Publish, Reason> {
    let qos = QoS::from_bits(flags >> 1 & 0b11).ok_or(Reason::Malformed)?;
    let is_repeated = flags & 0b1000 != 0;
    if is_repeated && qos == QoS::AtMostOnce {
        return Err(Reason::Malformed);
    }
    let mut reader = Reader::new(&body);
    let topic = name(reader.text()?)?;
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
    let mut properties = MessageProperties::default();
    if version == ProtocolVersion::V5 {
        properties.read(&mut reader, &[id::TOPIC_ALIAS])?;
    }
    let payload_at = body.len() - reader.remaining();
    let mut message = Message::new(topic, qos, body, payload_at);
    message.retain = flags & 1 != 0;
    message.properties = properties.forwarded;
    Ok(Publish { message, packet_id, expiry_s: properties.expiry_s })
}

fn ack(
    kind: AckKind,
    reader: &mut Reader<'_>,
    version: ProtocolVersion,
) -> Result<Request, Reason> {
    let packet_id = reader.packet_id()?;
    let mut failed = false;
    if version == ProtocolVersion::V5 && !reader.is_empty() {
        failed = reader.byte()? >= FAILED_FROM;
        if !reader.is_empty() {
            reader.properties(&[id::REASON_STRING, id::USER_PROPERTY], |_| Ok(()))?;
        }
    }
    Ok(Request::Ack { kind, packet_id, failed })
}

fn subscribe(reader: &mut Reader<'_>, version: ProtocolVersion) -> Result<Request, Reason> {
    let packet_id = reader.packet_id()?;
    if version == ProtocolVersion::V5 {
        let allowed = [id::SUBSCRIPTION_ID, id::USER_PROPERTY];
        reader.properties(&allowed, |property| match property.id {
            id::SUBSCRIPTION_ID => Err(Reason::SubscriptionIdsUnsupported),
            _ => Ok(()),
        })?;
    }
    let mut filters = Vec::new();
    while filters.is_empty() || !reader.is_empty() {
        let topic = reader.text()?.to_owned();
        filters.push(Filter { topic, options: subscribe_options(reader.byte()?, version)? });
    }
    Ok(Request::Subscribe { packet_id, filters })
}

fn subscribe_options(bits: u8, version: ProtocolVersion) -> Result<SubscribeOptions, Reason> {
    let reserved = if version == ProtocolVersion::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if bits & reserved != 0 {
        return Err(Reason::Malformed);
    }
    Ok(SubscribeOptions {
        qos: QoS::from_bits(bits & 0b11).ok_or(Reason::Malformed)?,
        no_local: bits & 0b100 != 0,
        retain_as_published: bits & 0b1000 != 0,
        retain_handling: match bits >> 4 {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            2 => RetainHandling::Never,
            _ => return Err(Reason::ProtocolError),
        },
    })
}

fn unsubscribe(reader: &mut Reader<'_>, version: ProtocolVersion) -> Result<Request, Reason> {
    let packet_id = reader.packet_id()?;
    if version == ProtocolVersion::V5 {
        reader.properties(&[id::USER_PROPERTY], |_| Ok(()))?;
    }
    let mut topics = Vec::new();
    while topics.is_empty() || !reader.is_empty() {
        topics.push(reader.text()?.to_owned());
    }
    Ok(Request::Unsubscribe { packet_id, topics })
}

fn disconnect(reader: &mut Reader<'_>, version: ProtocolVersion) -> Result<Request, Reason> {
    let mut with_will = false;
    let mut session_expiry_s = None;
    if version == ProtocolVersion::V5 && !reader.is_empty() {
        let reason = reader.byte()?;
        with_will = reason == DISCONNECT_WITH_WILL || reason >= FAILED_FROM;
        if !reader.is_empty() {
            let allowed = [id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY];
            reader.properties(&allowed, |property| {
                if property.id == id::SESSION_EXPIRY {
                    session_expiry_s = Some(property.number());
                }
                Ok(())
            })?;
        }
    }
    Ok(Request::Disconnect { with_will, session_expiry_s })
}
