//! What MQTT 5 has beside 3.1.1.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectProperties,
    DisconnectReasonCode, Filter, LastWill, LastWillProperties, Login, Packet, PubAck, Publish,
    PublishProperties, RetainForwardRule, Subscribe, SubscribeProperties, SubscribeReasonCode,
    UnsubAckReason, Unsubscribe,
};

use super::{Site, sent};
use crate::broker::state::ConnectionId;

impl Site {
    fn send5(&mut self, id: ConnectionId, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.feed(id, &bytes);
    }

    fn received5(&mut self, id: ConnectionId) -> Vec<Packet> {
        let mut bytes = self.bytes(id);
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            packets.push(Packet::read(&mut bytes, None).unwrap());
        }
        packets
    }

    fn published5(&mut self, id: ConnectionId) -> Vec<Publish> {
        let packets = self.received5(id).into_iter();
        packets
            .filter_map(|it| if let Packet::Publish(it) = it { Some(it) } else { None })
            .collect()
    }

    fn join5(&mut self, joining: Joining) -> ConnectionId {
        let id = self.open();
        let Joining { connect, will, login } = joining;
        self.send5(id, &Packet::Connect(connect, will, login));
        id
    }

    /// Connected, and the CONNACK read. Returns whether the session was there.
    fn joined5(&mut self, joining: Joining) -> (ConnectionId, bool) {
        let id = self.join5(joining);
        let packets = self.received5(id);
        let [Packet::ConnAck(connack), ..] = packets.as_slice() else { panic!("{packets:?}") };
        assert_eq!(connack.code, ConnectReturnCode::Success);
        (id, connack.session_present)
    }

    fn subscribe5(&mut self, id: ConnectionId, filter: Filter) {
        let mut subscribe = Subscribe::new(filter, None);
        subscribe.pkid = 1;
        self.send5(id, &Packet::Subscribe(subscribe));
    }

    fn publish5(&mut self, id: ConnectionId, topic: &str, properties: PublishProperties) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, "x", Some(properties));
        publish.pkid = 1;
        self.send5(id, &Packet::Publish(publish));
    }

    /// Whether a connection ended with this reason.
    fn ended5(&mut self, id: ConnectionId) -> DisconnectReasonCode {
        assert!(self.is_closing(id));
        match self.received5(id).pop() {
            Some(Packet::Disconnect(it)) => it.reason_code,
            other => panic!("{other:?}"),
        }
    }
}

struct Joining {
    connect: Connect,
    will: Option<LastWill>,
    login: Option<Login>,
}

fn joining(name: &str) -> Joining {
    let connect = Connect {
        keep_alive: 0,
        client_id: name.to_owned(),
        clean_start: false,
        properties: Some(ConnectProperties::new()),
    };
    Joining { connect, will: None, login: None }
}

impl Joining {
    fn with(mut self, set: impl FnOnce(&mut ConnectProperties)) -> Self {
        set(self.connect.properties.as_mut().unwrap());
        self
    }
}

fn at_least_once(filter: &str) -> Filter {
    Filter::new(filter, QoS::AtLeastOnce)
}

#[test]
fn connack_announces_limits_and_name() {
    let mut site = Site::new();
    let id = site.join5(joining(""));
    let packets = site.received5(id);
    let [Packet::ConnAck(connack)] = packets.as_slice() else { panic!("{packets:?}") };
    let properties = connack.properties.as_ref().unwrap();
    assert!(properties.assigned_client_identifier.as_ref().unwrap().starts_with("auto-"));
    assert_eq!(properties.max_packet_size, Some((8 << 20) + 5));
    assert_eq!(properties.receive_max, Some(1000));
    assert_eq!(properties.subscription_identifiers_available, Some(0));
    assert_eq!(properties.shared_subscription_available, Some(0));
    assert_eq!(properties.topic_alias_max, None);
}

#[test]
fn refusals_have_their_codes() {
    let mut site = Site::new();
    site.state.credentials = Some(("door".to_owned(), "secret".to_owned()));
    let code = |site: &mut Site, joining: Joining| {
        let id = site.join5(joining);
        assert!(site.is_closing(id));
        let packets = site.received5(id);
        let [Packet::ConnAck(connack)] = packets.as_slice() else { panic!("{packets:?}") };
        connack.code
    };
    let mut wrong = joining("door");
    wrong.login = Some(Login::new("door", "wrong"));
    assert_eq!(code(&mut site, wrong), ConnectReturnCode::BadUserNamePassword);
    let enhanced =
        joining("door").with(|it| it.authentication_method = Some("SCRAM-SHA-1".to_owned()));
    assert_eq!(code(&mut site, enhanced), ConnectReturnCode::BadAuthenticationMethod);
    site.state.credentials = None;
    assert_eq!(
        code(&mut site, joining(&"x".repeat(2000))),
        ConnectReturnCode::ClientIdentifierNotValid
    );
    // Level 6 is answered as 3.1.1 does.
    let id = site.open();
    site.feed(id, &[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 6, 2, 0, 0, 0, 0]);
    assert_eq!(site.bytes(id)[..], [0x20, 2, 0, 1]);
    assert!(site.is_closing(id));
}

#[test]
fn session_lives_as_long_as_agreed() {
    let mut site = Site::new();
    let hour = || joining("door").with(|it| it.session_expiry_interval = Some(3600));
    let (door, present) = site.joined5(hour());
    assert!(!present);
    site.lose(door);
    site.after(3599);
    let (door, present) = site.joined5(hour());
    assert!(present);
    site.lose(door);
    site.after(3600);
    assert!(!site.joined5(hour()).1);

    let (brief, _) = site.joined5(joining("brief"));
    site.lose(brief);
    assert!(!site.joined5(joining("brief")).1, "without an expiry it ends with its connection");
    let (door, _) = site.joined5(hour());
    let disconnect = Disconnect {
        reason_code: DisconnectReasonCode::NormalDisconnection,
        properties: Some(DisconnectProperties {
            session_expiry_interval: Some(0),
            reason_string: None,
            user_properties: Vec::new(),
            server_reference: None,
        }),
    };
    site.send5(door, &Packet::Disconnect(disconnect.clone()));
    assert!(!site.joined5(hour()).1, "it may be ended when leaving");
    let (brief, _) = site.joined5(joining("brief"));
    let mut longer = disconnect;
    longer.properties.as_mut().unwrap().session_expiry_interval = Some(1);
    site.send5(brief, &Packet::Disconnect(longer));
    assert_eq!(site.ended5(brief), DisconnectReasonCode::ProtocolError);
}

#[test]
fn delayed_will_waits_for_a_return() {
    let with_will = || {
        let mut joining = joining("door").with(|it| it.session_expiry_interval = Some(3600));
        let mut will = LastWill::new("status/door", "offline", QoS::AtLeastOnce, false, None);
        will.properties = Some(LastWillProperties {
            delay_interval: Some(60),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: Some("text/plain".to_owned()),
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        });
        joining.will = Some(will);
        joining
    };
    let mut site = Site::new();
    let (reader, _) = site.joined5(joining("reader"));
    site.subscribe5(reader, at_least_once("status/+"));
    let (door, _) = site.joined5(with_will());
    site.lose(door);
    site.after(59);
    assert_eq!(site.published5(reader), []);
    let (door, _) = site.joined5(with_will());
    site.after(3600);
    assert_eq!(site.published5(reader), [], "it came back in time");
    site.lose(door);
    site.after(60);
    let published = site.published5(reader);
    assert_eq!(published.len(), 1);
    let properties = published[0].properties.as_ref().unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
}

#[test]
fn will_can_be_asked_for_when_leaving() {
    let mut site = Site::new();
    let (reader, _) = site.joined5(joining("reader"));
    site.subscribe5(reader, at_least_once("status/+"));
    for (reason_code, expected) in [
        (DisconnectReasonCode::NormalDisconnection, 0),
        (DisconnectReasonCode::DisconnectWithWillMessage, 1),
    ] {
        let mut with_will = joining("door");
        let will = LastWill::new("status/door", "offline", QoS::AtMostOnce, false, None);
        with_will.will = Some(will);
        let (door, _) = site.joined5(with_will);
        site.send5(door, &Packet::Disconnect(Disconnect { reason_code, properties: None }));
        assert!(site.is_closing(door));
        assert_eq!(site.published5(reader).len(), expected);
    }
}

#[test]
fn properties_are_passed_on() {
    let mut site = Site::new();
    let (reader, _) = site.joined5(joining("reader"));
    site.subscribe5(reader, at_least_once("a"));
    site.received5(reader);
    let old = site.joined("old");
    site.subscribe(old, "a", rumqttc::QoS::AtLeastOnce);
    let (door, _) = site.joined5(joining("door"));
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: None,
        topic_alias: None,
        response_topic: Some("reply/1".to_owned()),
        correlation_data: Some("token".into()),
        user_properties: vec![("k".to_owned(), "1".to_owned()), ("k".to_owned(), "2".to_owned())],
        subscription_identifiers: Vec::new(),
        content_type: Some("application/json".to_owned()),
    };
    site.publish5(door, "a", properties.clone());
    assert_eq!(site.received5(door), [Packet::PubAck(PubAck::new(1, None))]);
    let published = site.published5(reader);
    assert_eq!(published[0].properties.as_ref(), Some(&properties));
    assert_eq!(site.payloads(old), ["x"], "in 3.1.1 without them");
}

#[test]
fn expired_messages_are_not_delivered() {
    let expiring = |seconds| PublishProperties {
        message_expiry_interval: Some(seconds),
        ..PublishProperties::default()
    };
    let mut site = Site::new();
    let hour = || joining("reader").with(|it| it.session_expiry_interval = Some(3600));
    let (reader, _) = site.joined5(hour());
    site.subscribe5(reader, at_least_once("a"));
    site.lose(reader);
    let (door, _) = site.joined5(joining("door"));
    site.publish5(door, "a", expiring(10));
    site.publish5(door, "a", expiring(100));
    site.after(30);
    let id = site.join5(hour());
    let published = site.published5(id);
    let left = |it: &Publish| it.properties.as_ref().and_then(|it| it.message_expiry_interval);
    assert_eq!(published.iter().map(left).collect::<Vec<_>>(), [Some(70)]);

    let mut publish = Publish::new("kept", QoS::AtMostOnce, "x", Some(expiring(10)));
    publish.retain = true;
    site.send5(door, &Packet::Publish(publish));
    site.after(10);
    site.subscribe5(door, at_least_once("kept"));
    assert_eq!(site.published5(door), []);
    assert_eq!(site.state.retained.counted(), (0, 0));
}

#[test]
fn subscription_options_are_followed() {
    let mut site = Site::new();
    let (door, _) = site.joined5(joining("door"));
    let old = site.joined("old");
    site.publish(old, &sent("kept", "k").retained());
    let subscribe = |site: &mut Site, filter: Filter| {
        site.subscribe5(door, filter);
        site.published5(door).len()
    };
    let mut filter = at_least_once("kept");
    filter.retain_forward_rule = RetainForwardRule::Never;
    assert_eq!(subscribe(&mut site, filter.clone()), 0);
    filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
    assert_eq!(subscribe(&mut site, filter.clone()), 0, "it is not new");
    filter.retain_forward_rule = RetainForwardRule::OnEverySubscribe;
    assert_eq!(subscribe(&mut site, filter.clone()), 1);
    filter.path = "+".to_owned();
    filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
    filter.nolocal = true;
    filter.preserve_retain = true;
    assert_eq!(subscribe(&mut site, filter), 1);

    site.publish5(door, "b", PublishProperties::default());
    assert_eq!(site.published5(door), [], "its own");
    site.publish(old, &sent("b", "x").retained());
    let published = site.published5(door);
    assert_eq!(published.iter().map(|it| it.retain).collect::<Vec<_>>(), [true]);
}

#[test]
fn client_bounds_window_and_packets() {
    let mut site = Site::new();
    let bounded = joining("reader").with(|it| {
        it.receive_maximum = Some(2);
        it.max_packet_size = Some(40);
    });
    let (reader, _) = site.joined5(bounded);
    site.subscribe5(reader, at_least_once("a"));
    site.received5(reader);
    let door = site.joined("door");
    for (number, payload) in ["1", &"x".repeat(100), "2", "3"].iter().enumerate() {
        site.publish(door, &sent("a", payload).id(number as u16 + 1));
    }
    let published = site.published5(reader);
    let payloads: Vec<_> = published.iter().map(|it| it.payload.to_vec()).collect();
    assert_eq!(payloads, [b"1", b"2"], "the large one counts as delivered");
    site.send5(reader, &Packet::PubAck(PubAck::new(published[0].pkid, None)));
    assert_eq!(site.published5(reader).len(), 1);
}

#[test]
fn refusals_of_filters_have_reasons() {
    let mut site = Site::new();
    let (door, _) = site.joined5(joining("door"));
    let filters = ["a", "a+", "$share/group/a"].map(at_least_once).to_vec();
    let subscribe = Subscribe { pkid: 1, filters, properties: None };
    site.send5(door, &Packet::Subscribe(subscribe));
    let packets = site.received5(door);
    let [Packet::SubAck(suback)] = packets.as_slice() else { panic!("{packets:?}") };
    let expected = [
        SubscribeReasonCode::Success(QoS::AtLeastOnce),
        SubscribeReasonCode::TopicFilterInvalid,
        SubscribeReasonCode::SharedSubscriptionsNotSupported,
    ];
    assert_eq!(suback.return_codes, expected);
    let filters = vec!["a".to_owned(), "never".to_owned()];
    let unsubscribe = Unsubscribe { pkid: 2, filters, ..Unsubscribe::new("", None) };
    site.send5(door, &Packet::Unsubscribe(unsubscribe));
    let packets = site.received5(door);
    let [Packet::UnsubAck(unsuback)] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!(unsuback.reasons, [UnsubAckReason::Success, UnsubAckReason::NoSubscriptionExisted]);
}

#[test]
fn unsupported_features_end_with_their_reason() {
    let mut site = Site::new();
    let (door, _) = site.joined5(joining("door"));
    let aliased = PublishProperties { topic_alias: Some(1), ..PublishProperties::default() };
    site.publish5(door, "a", aliased);
    assert_eq!(site.ended5(door), DisconnectReasonCode::TopicAliasInvalid);

    let (door, _) = site.joined5(joining("door"));
    let numbered = SubscribeProperties { id: Some(1), user_properties: Vec::new() };
    let subscribe = Subscribe { pkid: 1, ..Subscribe::new(at_least_once("a"), Some(numbered)) };
    site.send5(door, &Packet::Subscribe(subscribe));
    assert_eq!(site.ended5(door), DisconnectReasonCode::SubscriptionIdentifiersNotSupported);

    let (former, _) = site.joined5(joining("door"));
    site.joined5(joining("door"));
    assert_eq!(site.ended5(former), DisconnectReasonCode::SessionTakenOver);
}
