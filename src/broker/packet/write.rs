//! Encodes the packets that clients receive.

use crate::broker::packet::properties::id;
use crate::broker::packet::{AckKind, Message, ProtocolVersion, QoS, Reason};

/// What a CONNACK of MQTT 5 announces.
pub struct Announced<'a> {
    pub assigned_client_id: Option<&'a str>,
    pub receive_max: u16,
    pub packet_bytes_max: u32,
}

/// Appends a CONNACK. Nothing if the version has no code for the reason.
pub fn connack(
    out: &mut Vec<u8>,
    version: ProtocolVersion,
    session_present: bool,
    reason: Reason,
    announced: &Announced<'_>,
) {
    match version {
        ProtocolVersion::V311 => {
            if let Some(code) = reason.connect_return_code() {
                out.extend([0x20, 2, session_present.into(), code]);
            }
        }
        ProtocolVersion::V5 => {
            let mut properties = Vec::new();
            if reason == Reason::Success {
                announced.encode(&mut properties);
            }
            let mut body = vec![session_present.into(), reason as u8];
            with_length(&mut body, &properties);
            packet(out, 0x20, &body);
        }
    }
}

impl Announced<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(id::RECEIVE_MAXIMUM);
        out.extend(self.receive_max.to_be_bytes());
        out.push(id::MAXIMUM_PACKET_SIZE);
        out.extend(self.packet_bytes_max.to_be_bytes());
        if let Some(client_id) = self.assigned_client_id {
            out.push(id::ASSIGNED_CLIENT_ID);
            text(out, client_id);
        }
        out.extend([id::SUBSCRIPTION_ID_AVAILABLE, 0, id::SHARED_SUBSCRIPTION_AVAILABLE, 0]);
    }
}

pub fn ack(
    out: &mut Vec<u8>,
    version: ProtocolVersion,
    kind: AckKind,
    packet_id: u16,
    reason: Reason,
) {
    let first = match kind {
        AckKind::PubAck => 0x40,
        AckKind::PubRec => 0x50,
        AckKind::PubRel => 0x62,
        AckKind::PubComp => 0x70,
    };
    let [high, low] = packet_id.to_be_bytes();
    // Success is the default.
    if version == ProtocolVersion::V5 && reason != Reason::Success {
        out.extend([first, 3, high, low, reason as u8]);
    } else {
        out.extend([first, 2, high, low]);
    }
}

pub fn suback(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, codes: &[u8]) {
    filters_ack(out, 0x90, version, packet_id, codes);
}

/// MQTT 3.1.1 has no codes here.
pub fn unsuback(out: &mut Vec<u8>, version: ProtocolVersion, packet_id: u16, codes: &[u8]) {
    let codes = if version == ProtocolVersion::V5 { codes } else { &[] };
    filters_ack(out, 0xb0, version, packet_id, codes);
}

fn filters_ack(
    out: &mut Vec<u8>,
    first: u8,
    version: ProtocolVersion,
    packet_id: u16,
    codes: &[u8],
) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == ProtocolVersion::V5 {
        body.push(0); // no properties
    }
    body.extend_from_slice(codes);
    packet(out, first, &body);
}

pub fn pong(out: &mut Vec<u8>) {
    out.extend([0xd0, 0]);
}

/// MQTT 3.1.1 has no DISCONNECT from a broker.
pub fn disconnect(out: &mut Vec<u8>, version: ProtocolVersion, reason: Reason) {
    if version == ProtocolVersion::V5 {
        out.extend([0xe0, 2, reason as u8, 0]);
    }
}

/// A message on its way to one client.
pub struct Outgoing<'a> {
    pub version: ProtocolVersion,
    pub message: &'a Message,
    pub qos: QoS,
    pub retain: bool,
    pub is_repeated: bool,
    /// 0 at QoS 0.
    pub packet_id: u16,
    /// What is left of the time after which it expires.
    pub expiry_s: Option<u32>,
}

impl Outgoing<'_> {
    /// The bytes of the whole packet.
    pub fn bytes(&self) -> usize {
        let remaining = self.remaining();
        1 + variable_bytes(remaining) + remaining
    }

    /// Appends the packet up to its payload, which the caller adds.
    pub fn head(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.is_repeated) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        out.push(0x30 | flags);
        variable(out, self.remaining());
        text(out, &self.message.topic);
        if self.qos != QoS::AtMostOnce {
            out.extend(self.packet_id.to_be_bytes());
        }
        if self.version == ProtocolVersion::V5 {
            variable(out, self.properties_bytes());
            if let Some(expiry_s) = self.expiry_s {
                out.push(id::MESSAGE_EXPIRY);
                out.extend(expiry_s.to_be_bytes());
            }
            out.extend_from_slice(&self.message.properties);
        }
    }

    fn remaining(&self) -> usize {
        let id_bytes = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = match self.version {
            ProtocolVersion::V311 => 0,
            ProtocolVersion::V5 => {
                variable_bytes(self.properties_bytes()) + self.properties_bytes()
            }
        };
        2 + self.message.topic.len() + id_bytes + properties + self.message.payload().len()
    }

    fn properties_bytes(&self) -> usize {
        self.message.properties.len() + if self.expiry_s.is_some() { 5 } else { 0 }
    }
}

fn packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    with_length(out, body);
}

fn with_length(out: &mut Vec<u8>, bytes: &[u8]) {
    variable(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn text(out: &mut Vec<u8>, text: &str) {
    // Topics and client ids were read with a length of 16 bits.
    out.extend((text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn variable(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

fn variable_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
