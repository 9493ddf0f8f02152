//! The broker without sockets. Its clients speak by rumqttc's codec, which somebody else wrote.

mod hostile;
mod sessions;
mod version5;

use std::time::Duration;

use bytes::BytesMut;
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::broker::limits::Limits;
use crate::broker::state::{BrokerState, ConnectionId, Flow};

const NO_LIMIT: usize = 1 << 28;

/// A broker and the time.
struct Site {
    state: BrokerState,
    now: Duration,
}

impl Site {
    fn new() -> Self {
        Self::with_limits(Limits::for_payload(8 << 20))
    }

    fn with_limits(limits: Limits) -> Self {
        Self { state: BrokerState::new(limits, None), now: Duration::from_secs(1000) }
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.state.tick(self.now);
    }

    fn open(&mut self) -> ConnectionId {
        self.state.open(self.now).expect("there is room")
    }

    fn feed(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.state.feed(id, bytes, self.now);
    }

    /// The socket ends without a DISCONNECT.
    fn lose(&mut self, id: ConnectionId) {
        self.state.closed(id, self.now);
    }

    /// Everything that is to be written at present.
    fn bytes(&mut self, id: ConnectionId) -> BytesMut {
        let mut bytes = BytesMut::new();
        loop {
            let chunk = self.state.output(id, self.now);
            if chunk.is_empty() {
                return bytes;
            }
            bytes.extend_from_slice(&chunk.head);
            bytes.extend_from_slice(chunk.payload());
        }
    }

    fn is_closing(&self, id: ConnectionId) -> bool {
        self.state.flow(id) == Flow::Closing
    }

    fn send(&mut self, id: ConnectionId, packet: &v4::Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, NO_LIMIT).unwrap();
        self.feed(id, &bytes);
    }

    fn received(&mut self, id: ConnectionId) -> Vec<v4::Packet> {
        let mut bytes = self.bytes(id);
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            packets.push(v4::Packet::read(&mut bytes, NO_LIMIT).unwrap());
        }
        packets
    }

    /// What arrives, with every acknowledgement that it asks for.
    fn acknowledged(&mut self, id: ConnectionId) -> Vec<v4::Publish> {
        let mut messages = Vec::new();
        loop {
            let packets = self.received(id);
            if packets.is_empty() {
                return messages;
            }
            for packet in packets {
                let reply = match packet {
                    v4::Packet::Publish(publish) => {
                        let packet_id = publish.pkid;
                        let reply = match publish.qos {
                            QoS::AtMostOnce => None,
                            QoS::AtLeastOnce => {
                                Some(v4::Packet::PubAck(v4::PubAck::new(packet_id)))
                            }
                            QoS::ExactlyOnce => {
                                Some(v4::Packet::PubRec(v4::PubRec::new(packet_id)))
                            }
                        };
                        messages.push(publish);
                        reply
                    }
                    v4::Packet::PubRel(it) => Some(v4::Packet::PubComp(v4::PubComp::new(it.pkid))),
                    _ => None,
                };
                if let Some(reply) = reply {
                    self.send(id, &reply);
                }
            }
        }
    }

    fn payloads(&mut self, id: ConnectionId) -> Vec<String> {
        let messages = self.acknowledged(id);
        messages.iter().map(|it| String::from_utf8(it.payload.to_vec()).unwrap()).collect()
    }

    fn join(&mut self, connect: v4::Connect) -> ConnectionId {
        let id = self.open();
        self.send(id, &v4::Packet::Connect(connect));
        id
    }

    /// A client with a clean session, whose CONNACK was read.
    fn joined(&mut self, name: &str) -> ConnectionId {
        let id = self.join(v4::Connect::new(name));
        assert_eq!(self.received(id), [connack(false)]);
        id
    }

    fn subscribe(&mut self, id: ConnectionId, filter: &str, qos: QoS) {
        let mut subscribe = v4::Subscribe::new(filter, qos);
        subscribe.pkid = 1;
        self.send(id, &v4::Packet::Subscribe(subscribe));
    }

    fn publish(&mut self, id: ConnectionId, publish: &Sent<'_>) {
        let mut packet = v4::Publish::new(publish.topic, publish.qos, publish.payload);
        packet.retain = publish.retain;
        packet.pkid = publish.packet_id;
        self.send(id, &v4::Packet::Publish(packet));
    }
}

/// A message as a test sends it.
#[derive(Clone, Copy)]
struct Sent<'a> {
    topic: &'a str,
    payload: &'a str,
    qos: QoS,
    retain: bool,
    packet_id: u16,
}

fn sent<'a>(topic: &'a str, payload: &'a str) -> Sent<'a> {
    Sent { topic, payload, qos: QoS::AtLeastOnce, retain: false, packet_id: 7 }
}

impl Sent<'_> {
    fn qos(self, qos: QoS) -> Self {
        Self { qos, packet_id: if qos == QoS::AtMostOnce { 0 } else { self.packet_id }, ..self }
    }

    fn retained(self) -> Self {
        Self { retain: true, ..self }
    }

    fn id(self, packet_id: u16) -> Self {
        Self { packet_id, ..self }
    }
}

fn connack(session_present: bool) -> v4::Packet {
    v4::Packet::ConnAck(v4::ConnAck::new(v4::ConnectReturnCode::Success, session_present))
}

fn persistent(name: &str) -> v4::Connect {
    let mut connect = v4::Connect::new(name);
    connect.clean_session = false;
    connect
}
