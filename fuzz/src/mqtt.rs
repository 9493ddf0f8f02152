//! What a broker sends: a stream of packets, read as the MQTT client reads it, in pieces of any
//! size.

use rumqttc::mqttbytes::v4;

use crate::choice;

const PACKET_BYTES_MAX: usize = 4096;

/// The packets that can be read are written again, and then read as they were.
pub fn mqtt_stream(bytes: &[u8]) {
    let (piece, rest) = choice(bytes);
    let mut stream = bytes::BytesMut::new();
    for part in rest.chunks(usize::from(piece) + 1) {
        stream.extend_from_slice(part);
        loop {
            match v4::read(&mut stream, PACKET_BYTES_MAX) {
                Ok(packet) => check(&packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => break,
                Err(_) => return,
            }
        }
    }
}

fn check(packet: &v4::Packet) {
    if let v4::Packet::Publish(publish) = packet {
        assert!(publish.topic.len() + publish.payload.len() <= PACKET_BYTES_MAX);
    }
}
