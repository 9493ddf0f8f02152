//! Clients that are slow, greedy or malicious: what they lose, and that nobody else loses anything.

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::mqttbytes::v4::{self, Packet};
use rumqttc::{QoS, SubscribeReasonCode};

use super::{NO_LIMIT, Sent, Site, connack, persistent, sent};
use crate::broker::limits::Limits;
use crate::broker::state::{ConnectionId, Flow};

/// Small enough that a test reaches every limit.
fn small() -> Limits {
    Limits {
        publish_bytes_max: 2000,
        packet_bytes_max: 500,
        inbound_bytes_max: 3000,
        replies_bytes_max: 100,
        connections_max: 4,
        sessions_max: 6,
        client_id_bytes_max: 40,
        subscriptions_max: 3,
        subscriptions_max_in_all: 5,
        queue_max: 10,
        session_bytes_max: 6000,
        sessions_bytes_max: 10_000,
        window: 3,
        window_bytes_max: 2000,
        received_max: 3,
        retained_max: 3,
        retained_bytes_max: 4000,
        ..Limits::for_payload(0)
    }
}

#[test]
fn slow_client_loses_its_oldest_messages() {
    let mut site = Site::with_limits(small());
    let sender = site.joined("sender");
    let door = site.join(persistent("door"));
    site.subscribe(door, "a", QoS::AtLeastOnce);
    site.lose(door);
    for number in 0..15 {
        site.publish(sender, &sent("a", &number.to_string()));
    }
    assert_eq!(site.received(sender).len(), 15, "the sender notices nothing");
    assert_eq!(site.state.counters().messages_lost, 5);
    let door = site.join(persistent("door"));
    let expected: Vec<String> = (5..15).map(|it| it.to_string()).collect();
    assert_eq!(site.payloads(door), expected);
}

#[test]
fn one_queue_is_bounded_in_bytes() {
    let mut site = Site::with_limits(small());
    let sender = site.joined("sender");
    let door = site.join(persistent("door"));
    site.subscribe(door, "a", QoS::AtLeastOnce);
    site.lose(door);
    for number in 0..5 {
        site.publish(sender, &sent("a", &number.to_string().repeat(1500)));
    }
    assert!(site.state.held_bytes() <= 6000, "{}", site.state.held_bytes());
    let door = site.join(persistent("door"));
    let arrived = site.payloads(door);
    let firsts: Vec<&str> = arrived.iter().map(|it| &it[..1]).collect();
    assert_eq!(firsts, ["2", "3", "4"]);
}

#[test]
fn client_that_holds_most_loses_first() {
    let mut site = Site::with_limits(small());
    let sender = site.joined("sender");
    for (name, filter) in [("slow", "big"), ("door", "small"), ("other", "big")] {
        let id = site.join(persistent(name));
        site.subscribe(id, filter, QoS::AtLeastOnce);
        site.lose(id);
    }
    for _ in 0..3 {
        site.publish(sender, &sent("small", "command"));
    }
    for _ in 0..6 {
        site.publish(sender, &sent("big", &"x".repeat(1500)));
    }
    assert!(site.state.held_bytes() <= 10_000, "{}", site.state.held_bytes());
    let door = site.join(persistent("door"));
    assert_eq!(site.payloads(door).len(), 3, "the door has lost nothing");
}

#[test]
fn unacknowledged_bytes_end_the_connection() {
    let mut site = Site::with_limits(Limits { sessions_bytes_max: 5000, ..small() });
    let sender = site.joined("sender");
    let ids = [("a", 1500), ("b", 1900), ("c", 1200)].map(|(name, bytes)| {
        let id = site.joined(name);
        site.subscribe(id, name, QoS::AtLeastOnce);
        site.received(id);
        site.publish(sender, &sent(name, &"x".repeat(bytes)));
        if name != "c" {
            assert_eq!(site.received(id).len(), 1, "and it is not acknowledged");
        }
        id
    });
    assert!(site.state.held_bytes() <= 5000, "{}", site.state.held_bytes());
    assert_eq!(ids.map(|id| site.is_closing(id)), [false, true, false], "b held the most");
    assert_eq!(site.payloads(ids[2]).len(), 1);
}

#[test]
fn writing_at_qos0_counts_as_held() {
    let mut site = Site::with_limits(Limits { publish_bytes_max: 9000, ..small() });
    let sender = site.joined("sender");
    let reader = site.joined("reader");
    site.subscribe(reader, "a", QoS::AtMostOnce);
    site.received(reader);
    site.publish(sender, &sent("a", &"x".repeat(5000)).qos(QoS::AtMostOnce));
    let chunk = site.state.output(reader, site.now);
    assert_eq!(chunk.payload().len(), 5000);
    assert!(site.state.held_bytes() > 5000, "while it is written");
    assert!(site.state.output(reader, site.now).is_empty());
    assert_eq!(site.state.held_bytes(), 0);
}

#[test]
fn incomplete_packets_of_all_are_bounded() {
    let mut site = Site::with_limits(small());
    let [one, two] = ["one", "two"].map(|it| site.joined(it));
    let mut part = vec![0x30, 0xd0, 0x0f]; // 2000 bytes, of which 1800 come
    part.extend([0; 1800]);
    site.feed(one, &part);
    assert!(!site.is_closing(one));
    site.after(1);
    site.feed(two, &part);
    assert_eq!([one, two].map(|id| site.is_closing(id)), [true, false], "what stalls gives way");
}

#[test]
fn packets_above_their_limit_end_the_connection() {
    let mut site = Site::with_limits(small());
    let door = site.joined("door");
    site.feed(door, &[0x30, 0xd1, 0x0f]);
    assert!(site.is_closing(door), "a PUBLISH of 2001 bytes");
    let door = site.joined("door");
    site.feed(door, &[0x82, 0xf5, 0x03]);
    assert!(site.is_closing(door), "a SUBSCRIBE of 501 bytes");
    let stranger = site.open();
    site.feed(stranger, &[0x30]);
    assert!(site.is_closing(stranger), "before its CONNECT");
}

#[test]
fn client_that_does_not_read_is_not_read() {
    let mut site = Site::with_limits(small());
    let door = site.joined("door");
    site.feed(door, &[0xc0, 0].repeat(51));
    assert_eq!(site.state.flow(door), Flow::Paused);
    assert_eq!(site.bytes(door).len(), 102);
    assert_eq!(site.state.flow(door), Flow::Open);
}

#[test]
fn connections_and_sessions_are_bounded() {
    let mut site = Site::with_limits(small());
    for number in 0..6 {
        let id = site.join(persistent(&format!("p{number}")));
        assert_eq!(site.received(id), [connack(false)]);
        site.lose(id);
        site.after(1);
    }
    let id = site.join(persistent("p6"));
    assert_eq!(site.state.sessions.len(), 6);
    assert_eq!(site.state.counters().sessions_lost, 1);
    site.lose(id);
    let id = site.join(persistent("p1"));
    assert_eq!(site.received(id), [connack(true)]);
    let id = site.join(persistent("p0"));
    assert_eq!(site.received(id), [connack(false)], "the one away for the longest has gone");
    site.joined("c");
    site.joined("d");
    assert_eq!(site.state.open(site.now), None);
    assert_eq!(site.state.counters().connections_refused, 1);
    site.lose(id);
    site.joined("e");
}

#[test]
fn subscriptions_are_bounded() {
    let mut site = Site::with_limits(small());
    let subscribe = |site: &mut Site, id: ConnectionId, filters: &[&str]| {
        let mut subscribe = v4::Subscribe::new(filters[0], QoS::AtMostOnce);
        subscribe.pkid = 1;
        for filter in &filters[1..] {
            subscribe.add((*filter).to_owned(), QoS::AtMostOnce);
        }
        site.send(id, &Packet::Subscribe(subscribe));
        match site.received(id).as_slice() {
            [Packet::SubAck(suback)] => {
                let is_granted = |it: &&SubscribeReasonCode| **it != SubscribeReasonCode::Failure;
                suback.return_codes.iter().filter(is_granted).count()
            }
            other => panic!("{other:?}"),
        }
    };
    let [one, two] = ["one", "two"].map(|it| site.joined(it));
    assert_eq!(subscribe(&mut site, one, &["a", "b", "c"]), 3);
    assert_eq!(subscribe(&mut site, one, &["d", "a"]), 1, "its own are full; a known one passes");
    assert_eq!(subscribe(&mut site, two, &["a", "b", "c"]), 2, "all are full");
    let mut many = v4::Subscribe::new("x", QoS::AtMostOnce);
    many.pkid = 1;
    for _ in 0..3 {
        many.add("x".to_owned(), QoS::AtMostOnce);
    }
    site.send(one, &Packet::Subscribe(many));
    assert!(site.is_closing(one), "more filters than anybody may have");
}

#[test]
fn retained_messages_are_bounded() {
    let mut site = Site::with_limits(small());
    let sender = site.joined("sender");
    for topic in ["a", "b", "c", "d"] {
        site.publish(sender, &sent(topic, "x").retained());
    }
    assert_eq!(site.state.retained.counted().0, 3);
    assert_eq!(site.state.counters().not_retained, 1);
    for topic in ["a", "b", "c"] {
        site.publish(sender, &sent(topic, &"y".repeat(1500)).retained());
    }
    let (count, bytes) = site.state.retained.counted();
    assert!(count == 2 && bytes <= 4000, "{count} with {bytes} bytes");
    let reader = site.joined("reader");
    site.subscribe(reader, "#", QoS::AtMostOnce);
    let topics: Vec<_> = site.acknowledged(reader).into_iter().map(|it| it.topic).collect();
    assert_eq!(topics, ["a", "b"], "an outdated c is worse than none");
}

#[test]
fn unreleased_ids_are_bounded() {
    let mut site = Site::with_limits(small());
    let door = site.joined("door");
    for packet_id in 1..=4 {
        site.publish(door, &sent("a", "x").qos(QoS::ExactlyOnce).id(packet_id));
        assert_eq!(site.is_closing(door), packet_id == 4);
    }
}

#[test]
fn malformed_packets_end_the_connection() {
    for (bytes, what) in [
        (&[0x00, 0][..], "a reserved type"),
        (&[0xf0, 0], "AUTH"),
        (&[0x20, 2, 0, 0], "a CONNACK"),
        (&[0x36, 5, 0, 1, b'a', 0, 1], "QoS 3"),
        (&[0x38, 3, 0, 1, b'a'], "a repetition at QoS 0"),
        (&[0x32, 5, 0, 1, b'a', 0, 0], "packet id 0"),
        (&[0x30, 3, 0, 9, b'a'], "a topic beyond the packet"),
        (&[0x30, 3, 0, 1, b'#'], "a wildcard in a name"),
        (&[0x30, 2, 0, 0], "an empty name"),
        (&[0x30, 4, 0, 2, 0xc3, 0x28], "no UTF-8"),
        (&[0x30, 3, 0, 1, 0], "a null character"),
        (&[0x80, 6, 0, 1, 0, 1, b'a', 0], "flags of SUBSCRIBE"),
        (&[0x82, 2, 0, 1], "no filter"),
        (&[0x82, 6, 0, 1, 0, 1, b'a', 3], "a filter at QoS 3"),
        (&[0x82, 6, 0, 1, 0, 1, b'a', 4], "options of version 5"),
        (&[0xa2, 2, 0, 1], "UNSUBSCRIBE of nothing"),
        (&[0x60, 2, 0, 1], "flags of PUBREL"),
        (&[0x40, 3, 0, 1, 0], "a reason of version 5"),
        (&[0xc0, 1, 0], "PINGREQ with a body"),
        (&[0xe0, 1, 0], "DISCONNECT with a reason of version 5"),
        (&[0xc0, 0xff, 0xff, 0xff, 0xff], "a length of five bytes"),
    ] {
        let mut site = Site::new();
        let door = site.joined("door");
        site.feed(door, bytes);
        assert!(site.is_closing(door), "{what}");
        assert_eq!(site.state.counters().connections_failed, 1, "{what}");
    }
    let mut site = Site::new();
    let door = site.joined("door");
    site.send(door, &Packet::Connect(v4::Connect::new("door")));
    assert!(site.is_closing(door), "a second CONNECT");
}

#[test]
fn malformed_connects_are_closed() {
    let connect = |level: u8, flags: u8, rest: &[u8]| {
        let mut bytes = vec![0x10, 0, 0, 4, b'M', b'Q', b'T', b'T', level, flags, 0, 10];
        bytes.extend(rest);
        bytes[1] = bytes.len() as u8 - 2;
        bytes
    };
    for (bytes, what) in [
        (connect(4, 0x03, &[0, 0]), "the reserved flag"),
        (connect(4, 0x22, &[0, 0]), "a retained will that is none"),
        (connect(4, 0x0a, &[0, 0]), "a will's QoS without a will"),
        (connect(4, 0x1e, &[0, 0, 0, 1, b'a', 0, 0]), "a will at QoS 3"),
        (connect(4, 0x06, &[0, 0, 0, 1, b'#', 0, 0]), "a will to a wildcard"),
        (connect(4, 0x42, &[0, 0, 0, 0]), "a password without a user"),
        (connect(4, 0x02, &[0, 0, 1]), "more than it says"),
        (connect(4, 0x82, &[0, 0]), "less than it says"),
        (vec![0x11, 2, 0, 0], "flags of the header"),
    ] {
        let mut site = Site::new();
        let id = site.open();
        site.feed(id, &bytes);
        assert!(site.is_closing(id), "{what}");
        assert!(site.bytes(id).is_empty(), "{what}");
    }
}

/// What a hostile client sends: whole packets, packets with a byte changed, noise.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let packet = prop_oneof![
        (0..3_u8, "[a-c/+#$]{0,4}", 0..40_usize, any::<bool>(), 0..5_u16).prop_map(
            |(qos, topic, bytes, retain, packet_id)| {
                let mut publish = v4::Publish::new(topic, qos_of(qos), vec![b'x'; bytes * 40]);
                publish.pkid = packet_id;
                publish.retain = retain;
                Packet::Publish(publish)
            }
        ),
        ("[a-c/+#$]{0,4}", 0..3_u8, 0..3_u16).prop_map(|(filter, qos, packet_id)| {
            let mut subscribe = v4::Subscribe::new(filter, qos_of(qos));
            subscribe.pkid = packet_id;
            Packet::Subscribe(subscribe)
        }),
        (1..5_u16).prop_map(|it| Packet::PubAck(v4::PubAck::new(it))),
        (1..5_u16).prop_map(|it| Packet::PubRec(v4::PubRec::new(it))),
        (1..5_u16).prop_map(|it| Packet::PubRel(v4::PubRel::new(it))),
        (1..5_u16).prop_map(|it| Packet::PubComp(v4::PubComp::new(it))),
        ("[a-c]{0,1}", any::<bool>(), any::<bool>()).prop_map(|(name, clean, with_will)| {
            let mut connect = v4::Connect::new(name);
            connect.clean_session = clean;
            let will = || v4::LastWill::new("a/b", "gone", QoS::AtLeastOnce, true);
            connect.last_will = with_will.then(will);
            Packet::Connect(connect)
        }),
        Just(Packet::PingReq),
        Just(Packet::Disconnect),
    ];
    let encoded = packet.prop_map(|packet| {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, NO_LIMIT).ok();
        bytes.to_vec()
    });
    let version5 = encoded.clone().prop_map(|mut bytes| {
        // A CONNECT of version 5 has its properties where the name was.
        if bytes.first() == Some(&0x10) && bytes.len() > 13 {
            bytes[8] = 5;
            bytes.insert(12, 0);
            bytes[1] += 1;
        }
        bytes
    });
    prop_oneof![
        6 => encoded.clone(),
        3 => version5,
        2 => (encoded, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut bytes, at, byte)| {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

fn qos_of(bits: u8) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(bits)]
}

#[derive(Clone, Debug)]
enum Act {
    Open,
    Feed(prop::sample::Index, Vec<u8>),
    Read(prop::sample::Index),
    Lose(prop::sample::Index),
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => Just(Act::Open),
        12 => (any::<prop::sample::Index>(), hostile_bytes()).prop_map(|(at, it)| Act::Feed(at, it)),
        4 => any::<prop::sample::Index>().prop_map(Act::Read),
        1 => any::<prop::sample::Index>().prop_map(Act::Lose),
        1 => (0..20_u64).prop_map(Act::Wait),
    ];
    prop::collection::vec(act, 1..120)
}

impl Site {
    /// Every bound, and every sum counted anew.
    fn check(&self, limits: &Limits) {
        let state = &self.state;
        assert!(state.connections.len() <= limits.connections_max);
        assert!(state.sessions.len() <= limits.sessions_max);
        let mut subscriptions = 0;
        for (name, session) in &state.sessions {
            let (queued, in_flight) = session.counted();
            assert!(queued <= limits.queue_max && in_flight <= limits.window);
            assert!(session.held_bytes() <= limits.session_bytes_max);
            assert!(session.subscriptions.len() <= limits.subscriptions_max);
            assert!(session.received.len() <= limits.received_max);
            subscriptions += session.subscriptions.len();
            if let Some(id) = session.connection {
                let client = state.connections[&id].client.as_ref().unwrap();
                assert_eq!(&client.id, name, "a session and its connection know each other");
            }
        }
        assert!(subscriptions <= limits.subscriptions_max_in_all);
        assert!(state.held_bytes() <= limits.sessions_bytes_max);
        let (count, bytes) = state.retained.counted();
        assert!(count <= limits.retained_max && bytes <= limits.retained_bytes_max);
        let inbound: usize = state.connections.values().map(|it| it.assembler.bytes()).sum();
        assert!(inbound <= limits.inbound_bytes_max);
        assert!(state.due_wills.is_empty());
        for (id, connection) in &state.connections {
            if let Some(client) = &connection.client {
                assert_eq!(state.sessions[&client.id].connection, Some(*id));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_clients_exceed_no_bound(acts in acts()) {
        let limits = small();
        let mut site = Site::with_limits(limits.clone());
        let mut ids: Vec<ConnectionId> = Vec::new();
        for act in acts {
            match act {
                Act::Open => {
                    let id = site.state.open(site.now);
                    if let Some(id) = id {
                        site.send(id, &Packet::Connect(v4::Connect::new("")));
                    }
                    ids.extend(id);
                }
                Act::Wait(seconds) => site.after(seconds),
                _ if ids.is_empty() => {}
                Act::Feed(at, bytes) => site.feed(*at.get(&ids), &bytes),
                Act::Read(at) => drop(site.state.output(*at.get(&ids), site.now)),
                Act::Lose(at) => site.lose(ids.swap_remove(at.index(ids.len()))),
            }
            site.check(&limits);
        }
        for id in ids {
            site.lose(id);
        }
        site.check(&limits);
        prop_assert!(site.state.connections.is_empty());
    }

    #[test]
    fn persistent_session_loses_and_reorders_nothing(
        acts in prop::collection::vec(0..6_u8, 1..80),
        qos in 1..3_u8,
    ) {
        let mut site = Site::new();
        let sender = site.joined("sender");
        let mut door = site.join(persistent("door"));
        site.subscribe(door, "a", qos_of(qos));
        let mut published = 0_u16;
        let mut first_seen: Vec<u16> = Vec::new();
        let mut note = |publish: &v4::Publish| {
            let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
            if !first_seen.contains(&number) {
                first_seen.push(number);
            }
        };
        for act in acts {
            match act {
                // Some are published, some are only received, some acknowledged, now and then the
                // connection is lost.
                0..=2 => {
                    published += 1;
                    let payload = published.to_string();
                    let publish: Sent<'_> = sent("a", &payload);
                    site.publish(sender, &publish.qos(qos_of(qos)).id(published));
                }
                3 => for packet in site.received(door) {
                    if let Packet::Publish(publish) = packet {
                        note(&publish);
                    }
                },
                4 => site.acknowledged(door).iter().for_each(&mut note),
                _ => {
                    site.lose(door);
                    door = site.join(persistent("door"));
                }
            }
        }
        site.lose(door);
        door = site.join(persistent("door"));
        site.acknowledged(door).iter().for_each(&mut note);
        prop_assert_eq!(first_seen, (1..=published).collect::<Vec<_>>());
        site.lose(door);
        door = site.join(persistent("door"));
        prop_assert!(site.acknowledged(door).is_empty(), "everything was acknowledged");
    }
}
