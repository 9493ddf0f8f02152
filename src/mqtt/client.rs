//! rumqttc's two clients behind one: MQTT 5, and MQTT 3.1.1 for brokers without it.
//!
//! What differs between the versions ends here: packets become `ClientEvent`, errors become
//! `LinkFault`. One client has one connection (`driver` states why).
//!
//! rumqttc 0.25.1 needs four corrections in version 5. A Server Keep Alive of 0 makes it ping
//! without a pause. A Receive Maximum of 0 stops it. A packet above the broker's Maximum Packet
//! Size ends the connection, so the limit is passed on and checked before. It remembers topic
//! aliases without a bound, so a broker that sends one (we announce none) is disconnected.
//!
//! It cannot read a DISCONNECT without properties, so this one counts as a closed connection.
//!
//! In version 5 the broker discards what is larger than our Maximum Packet Size. In 3.1.1 it sends
//! it, and `drain` removes it.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::{NetworkOptions, Outgoing, QoS, TlsConfiguration, Transport, v5};
use rustls::ClientConfig;

use crate::mqtt::fault::{CONNECT_TIMEOUT, LinkFault};
use crate::mqtt::message::{DescribedMessage, Message, MessageProperties};
use crate::mqtt::refusal::PublishRefusal;
use crate::mqtt::settings::{LinkSettings, Version};
use crate::mqtt::topics::OFFLINE;

/// How long the broker keeps our session, and with it the commands, while the device is off (MQTT
/// 5; 3.1.1 knows no end). Longer than any holiday, and a device that was removed is forgotten.
const SESSION_EXPIRY: Duration = Duration::from_hours(180 * 24);
/// rumqttc panics below this in version 5.
const KEEP_ALIVE_MIN_V5: Duration = Duration::from_secs(5);

/// Puts packets into the queue of a connection. None of these waits; `false` means that the queue is
/// full or gone.
#[derive(Clone)]
pub(super) enum Client {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// Polls a connection.
pub(super) enum Poller {
    V311(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// What happened on the connection.
pub(super) enum ClientEvent {
    Connected(Accepted),
    /// For each filter of the SUBSCRIBE, whether it was accepted.
    Subscribed(Vec<bool>),
    Publish(Received),
    Acknowledged {
        pkid: u16,
        refusal: Option<PublishRefusal>,
    },
    /// A publish at QoS 1 was sent under this packet id.
    Sent(u16),
    DisconnectSent,
    /// The broker violated the protocol.
    Violation(LinkFault),
    Other,
}

/// The broker accepted the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) session_present: bool,
    /// The largest packet that it takes, if it states one.
    pub(super) packet_bytes_max: Option<usize>,
}

/// An inbound message.
pub(super) struct Received {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) retained: bool,
    pub(super) is_redelivered: bool,
    /// 0 at QoS 0.
    pub(super) pkid: u16,
}

/// Makes the client of one connection. Nothing happens until it is polled.
pub(super) fn open(
    version: Version,
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
) -> (Client, Poller) {
    // Room for every request that can be pending at a time, so that the queue is never full in
    // practice.
    let queue_len = usize::from(settings.window) + settings.inbound_count_max + 32;
    match version {
        Version::V311 => {
            let options = options_v311(settings, tls);
            let (client, mut poller) = rumqttc::AsyncClient::new(options, queue_len);
            poller.set_network_options(network_options());
            (Client::V311(client), Poller::V311(Box::new(poller)))
        }
        Version::V5 => {
            let (client, poller) = v5::AsyncClient::new(options_v5(settings, tls), queue_len);
            (Client::V5(client), Poller::V5(Box::new(poller)))
        }
    }
}

impl Client {
    pub(super) fn version(&self) -> Version {
        match self {
            Self::V311(_) => Version::V311,
            Self::V5(_) => Version::V5,
        }
    }

    pub(super) fn publish(&self, described: DescribedMessage) -> bool {
        let DescribedMessage { message, properties } = described;
        let Message { topic, payload, retain } = message;
        match self {
            Self::V311(it) => it.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_ok(),
            Self::V5(it) => {
                let properties = properties_v5(properties);
                let qos = QoS5::AtLeastOnce;
                it.try_publish_with_properties(topic, qos, retain, payload, properties).is_ok()
            }
        }
    }

    /// Publishes at QoS 0.
    pub(super) fn publish_unacknowledged(&self, message: Message) -> bool {
        let Message { topic, payload, retain } = message;
        match self {
            Self::V311(it) => it.try_publish(topic, QoS::AtMostOnce, retain, payload).is_ok(),
            Self::V5(it) => it.try_publish(topic, QoS5::AtMostOnce, retain, payload).is_ok(),
        }
    }

    pub(super) fn subscribe(&self, filters: &[String]) -> bool {
        match self {
            Self::V311(it) => {
                let filter =
                    |it: &String| rumqttc::SubscribeFilter::new(it.clone(), QoS::AtLeastOnce);
                it.try_subscribe_many(filters.iter().map(filter)).is_ok()
            }
            Self::V5(it) => {
                let filter = |it: &String| packet5::Filter::new(it.clone(), QoS5::AtLeastOnce);
                it.try_subscribe_many(filters.iter().map(filter)).is_ok()
            }
        }
    }

    /// Subscribes at QoS 0.
    pub(super) fn subscribe_unacknowledged(&self, filter: String) -> bool {
        match self {
            Self::V311(it) => it.try_subscribe(filter, QoS::AtMostOnce).is_ok(),
            Self::V5(it) => it.try_subscribe(filter, QoS5::AtMostOnce).is_ok(),
        }
    }

    pub(super) fn unsubscribe(&self, filter: String) -> bool {
        match self {
            Self::V311(it) => it.try_unsubscribe(filter).is_ok(),
            Self::V5(it) => it.try_unsubscribe(filter).is_ok(),
        }
    }

    /// Acknowledges an inbound message.
    pub(super) fn acknowledge(&self, pkid: u16) -> bool {
        match self {
            Self::V311(it) => {
                let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, Vec::new());
                publish.pkid = pkid;
                it.try_ack(&publish).is_ok()
            }
            Self::V5(it) => {
                let mut publish = packet5::Publish::new("", QoS5::AtLeastOnce, Vec::new(), None);
                publish.pkid = pkid;
                it.try_ack(&publish).is_ok()
            }
        }
    }

    pub(super) fn disconnect(&self) -> bool {
        match self {
            Self::V311(it) => it.try_disconnect().is_ok(),
            Self::V5(it) => it.try_disconnect().is_ok(),
        }
    }
}

impl Poller {
    /// Not cancel-safe: a poll once begun is polled to its end, or dropped together with `self`.
    pub(super) async fn poll(&mut self) -> Result<ClientEvent, LinkFault> {
        match self {
            Self::V311(it) => Ok(event_v311(it.poll().await?)),
            Self::V5(it) => {
                let keep_alive = it.options.keep_alive();
                let event = it.poll().await?;
                // The broker's value is an upper bound (3.2.2.3.14); none, or hours, would let a
                // dead connection stand.
                let stated = it.options.keep_alive();
                if matches!(event, v5::Event::Incoming(packet5::Packet::ConnAck(_)))
                    && (stated.is_zero() || stated > keep_alive)
                {
                    it.options.set_keep_alive(keep_alive);
                }
                Ok(event_v5(event))
            }
        }
    }

    /// Returns what was read together with what ended the connection.
    pub(super) fn take_remaining(&mut self) -> Vec<ClientEvent> {
        match self {
            Self::V311(it) => {
                std::mem::take(&mut it.state.events).into_iter().map(event_v311).collect()
            }
            Self::V5(it) => {
                std::mem::take(&mut it.state.events).into_iter().map(event_v5).collect()
            }
        }
    }
}

fn event_v311(event: rumqttc::Event) -> ClientEvent {
    use rumqttc::{Event, Packet, SubscribeReasonCode};
    match event {
        Event::Incoming(Packet::ConnAck(ack)) => ClientEvent::Connected(Accepted {
            session_present: ack.session_present,
            packet_bytes_max: None,
        }),
        Event::Incoming(Packet::SubAck(ack)) => {
            let is_accepted = |it: &SubscribeReasonCode| *it != SubscribeReasonCode::Failure;
            ClientEvent::Subscribed(ack.return_codes.iter().map(is_accepted).collect())
        }
        Event::Incoming(Packet::Publish(publish)) => ClientEvent::Publish(Received {
            topic: publish.topic,
            payload: Vec::from(publish.payload),
            retained: publish.retain,
            is_redelivered: publish.dup,
            pkid: publish.pkid,
        }),
        Event::Incoming(Packet::PubAck(ack)) => {
            ClientEvent::Acknowledged { pkid: ack.pkid, refusal: None }
        }
        // After an acknowledgement out of order, rumqttc can stop for good.
        Event::Outgoing(Outgoing::AwaitAck(_)) => {
            ClientEvent::Violation(LinkFault::PacketIdsExhausted)
        }
        Event::Outgoing(outgoing) => outgoing_event(&outgoing),
        Event::Incoming(_) => ClientEvent::Other,
    }
}

fn event_v5(event: v5::Event) -> ClientEvent {
    use packet5::{Packet, SubscribeReasonCode};
    match event {
        v5::Event::Incoming(Packet::ConnAck(ack)) => accepted_v5(&ack),
        v5::Event::Incoming(Packet::SubAck(ack)) => {
            let is_accepted =
                |it: &SubscribeReasonCode| matches!(it, SubscribeReasonCode::Success(_));
            ClientEvent::Subscribed(ack.return_codes.iter().map(is_accepted).collect())
        }
        v5::Event::Incoming(Packet::Publish(publish)) => received_v5(publish),
        v5::Event::Incoming(Packet::PubAck(ack)) => ClientEvent::Acknowledged {
            pkid: ack.pkid,
            refusal: PublishRefusal::from_code(code_of(ack.reason)),
        },
        // Unlike in 3.1.1, this publish is sent when its packet id is free again; if that never
        // happens, rumqttc ends the connection at the second ping.
        v5::Event::Outgoing(outgoing) => outgoing_event(&outgoing),
        v5::Event::Incoming(_) => ClientEvent::Other,
    }
}

fn accepted_v5(ack: &packet5::ConnAck) -> ClientEvent {
    let limits = ack.properties.as_ref();
    if limits.and_then(|it| it.receive_max) == Some(0) {
        return ClientEvent::Violation(LinkFault::NotMqtt);
    }
    // Before this, only a last will at QoS 1 was sent, which the broker has accepted.
    if limits.and_then(|it| it.max_qos) == Some(0) {
        return ClientEvent::Violation(LinkFault::NoQos1);
    }
    ClientEvent::Connected(Accepted {
        session_present: ack.session_present,
        packet_bytes_max: limits.and_then(|it| it.max_packet_size).map(|it| it as usize),
    })
}

fn received_v5(publish: packet5::Publish) -> ClientEvent {
    if publish.properties.is_some_and(|it| it.topic_alias.is_some()) {
        return ClientEvent::Violation(LinkFault::NotMqtt);
    }
    match String::from_utf8(publish.topic.to_vec()) {
        Ok(topic) => ClientEvent::Publish(Received {
            topic,
            payload: Vec::from(publish.payload),
            retained: publish.retain,
            is_redelivered: publish.dup,
            pkid: publish.pkid,
        }),
        Err(_not_utf8) => ClientEvent::Violation(LinkFault::NotMqtt),
    }
}

fn outgoing_event(outgoing: &Outgoing) -> ClientEvent {
    match outgoing {
        Outgoing::Publish(pkid) if *pkid != 0 => ClientEvent::Sent(*pkid),
        Outgoing::Disconnect => ClientEvent::DisconnectSent,
        _ => ClientEvent::Other,
    }
}

fn properties_v5(properties: MessageProperties) -> packet5::PublishProperties {
    let MessageProperties { content_type, correlation_data, user } = properties;
    packet5::PublishProperties {
        content_type: content_type.map(str::to_owned),
        correlation_data: correlation_data.map(|it| it.into_bytes().into()),
        user_properties: user.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        ..Default::default()
    }
}

fn code_of(reason: packet5::PubAckReason) -> u8 {
    use packet5::PubAckReason as Reason;
    match reason {
        Reason::Success => 0x00,
        Reason::NoMatchingSubscribers => 0x10,
        Reason::UnspecifiedError => 0x80,
        Reason::ImplementationSpecificError => 0x83,
        Reason::NotAuthorized => 0x87,
        Reason::TopicNameInvalid => 0x90,
        Reason::PacketIdentifierInUse => 0x91,
        Reason::QuotaExceeded => 0x97,
        Reason::PayloadFormatInvalid => 0x99,
    }
}

/// rumqttc puts host and port together with a colon, so an IPv6 address needs its brackets.
fn host(settings: &LinkSettings) -> String {
    match settings.host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => settings.host.clone(),
    }
}

fn transport(tls: Option<&Arc<ClientConfig>>) -> Transport {
    match tls {
        Some(tls) => Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))),
        None => Transport::Tcp,
    }
}

/// Packet ids are reused within this number; four windows of them tolerate a broker that
/// acknowledges out of order. The window itself is kept in `in_flight`.
fn packet_ids(settings: &LinkSettings) -> u16 {
    settings.window * 4 + 16
}

fn options_v311(settings: &LinkSettings, tls: Option<&Arc<ClientConfig>>) -> rumqttc::MqttOptions {
    let mut options = rumqttc::MqttOptions::new(&settings.client_id, host(settings), settings.port);
    let status = &settings.status_topic;
    let will = rumqttc::LastWill::new(status, OFFLINE, QoS::AtLeastOnce, settings.persistent);
    options
        .set_clean_session(!settings.persistent)
        .set_manual_acks(true)
        .set_keep_alive(settings.keep_alive)
        // The link checks sizes itself, because too large a packet here would end the connection.
        .set_max_packet_size(settings.packet_bytes_max_in, settings.packet_bytes_max_out + 1024)
        .set_inflight(packet_ids(settings))
        .set_transport(transport(tls))
        .set_last_will(will);
    if let Some(credentials) = &settings.credentials {
        options.set_credentials(&credentials.user, &credentials.password);
    }
    options
}

fn options_v5(settings: &LinkSettings, tls: Option<&Arc<ClientConfig>>) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(&settings.client_id, host(settings), settings.port);
    let status = &settings.status_topic;
    let will =
        packet5::LastWill::new(status, OFFLINE, QoS5::AtLeastOnce, settings.persistent, None);
    options
        // Also the limit of rumqttc itself, which has no other in this version.
        .set_max_packet_size(u32::try_from(settings.packet_bytes_max_in).ok())
        .set_clean_start(!settings.persistent)
        .set_manual_acks(true)
        .set_keep_alive(settings.keep_alive.max(KEEP_ALIVE_MIN_V5))
        .set_outgoing_inflight_upper_limit(packet_ids(settings))
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_network_options(network_options())
        .set_transport(transport(tls))
        .set_last_will(will);
    if settings.persistent {
        options.set_session_expiry_interval(Some(SESSION_EXPIRY.as_secs() as u32));
    }
    if let Some(credentials) = &settings.credentials {
        options.set_credentials(&credentials.user, &credentials.password);
    }
    options
}

fn network_options() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    options
}
