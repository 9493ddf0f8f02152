//! What a broker sends: a stream of packets, read as the MQTT client reads it, in pieces of any
//! size and in either version.

use rumqttc::mqttbytes::{self, v4};
use rumqttc::v5::mqttbytes as mqttbytes5;
use rumqttc::v5::mqttbytes::v5;

use crate::choice;

const PACKET_BYTES_MAX: usize = 4096;

/// The lowest bit of the first byte chooses the version.
pub fn mqtt_stream(bytes: &[u8]) {
    let (first, rest) = choice(bytes);
    let mut stream = bytes::BytesMut::new();
    for part in rest.chunks(usize::from(first) + 1) {
        stream.extend_from_slice(part);
        while read(&mut stream, first % 2 == 1) {}
    }
}

/// Reads one packet. Returns whether there may be another.
fn read(stream: &mut bytes::BytesMut, is_version_5: bool) -> bool {
    let (topic, payload) = if is_version_5 {
        match v5::Packet::read(stream, Some(PACKET_BYTES_MAX as u32)) {
            Ok(v5::Packet::Publish(publish)) => (publish.topic.len(), publish.payload.len()),
            Ok(_) => return true,
            Err(mqttbytes5::Error::InsufficientBytes(_)) => return false,
            Err(_) => return end(stream),
        }
    } else {
        match v4::Packet::read(stream, PACKET_BYTES_MAX) {
            Ok(v4::Packet::Publish(publish)) => (publish.topic.len(), publish.payload.len()),
            Ok(_) => return true,
            Err(mqttbytes::Error::InsufficientBytes(_)) => return false,
            Err(_) => return end(stream),
        }
    };
    assert!(topic + payload <= PACKET_BYTES_MAX);
    true
}

/// The client closes the connection at an error.
fn end(stream: &mut bytes::BytesMut) -> bool {
    stream.clear();
    false
}
