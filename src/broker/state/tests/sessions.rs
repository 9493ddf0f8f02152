//! Messages, sessions, retained messages and last wills, in MQTT 3.1.1.

use rumqttc::mqttbytes::v4::{self, Packet};
use rumqttc::{QoS, SubscribeReasonCode};

use super::{Sent, Site, connack, persistent, sent};

const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

#[test]
fn messages_arrive_at_the_lower_qos() {
    for publisher in ALL_QOS {
        for subscriber in ALL_QOS {
            let mut site = Site::new();
            let [reader, door] = ["reader", "door"].map(|it| site.joined(it));
            site.subscribe(reader, "event/+", subscriber);
            let granted = vec![SubscribeReasonCode::Success(subscriber)];
            assert_eq!(
                site.received(reader),
                [Packet::SubAck(v4::SubAck { pkid: 1, return_codes: granted })]
            );
            site.publish(door, &sent("event/a", "one").qos(publisher));
            let expected = match publisher {
                QoS::AtMostOnce => vec![],
                QoS::AtLeastOnce => vec![Packet::PubAck(v4::PubAck::new(7))],
                QoS::ExactlyOnce => vec![Packet::PubRec(v4::PubRec::new(7))],
            };
            assert_eq!(site.received(door), expected);
            let arrived = site.acknowledged(reader);
            assert_eq!(arrived.len(), 1);
            let lower = if publisher < subscriber { publisher } else { subscriber };
            let first = &arrived[0];
            assert_eq!((first.qos, first.dup, first.retain), (lower, false, false));
            assert_eq!((first.topic.as_str(), &first.payload[..]), ("event/a", &b"one"[..]));
        }
    }
}

#[test]
fn message_at_qos2_is_distributed_once() {
    let mut site = Site::new();
    let [reader, door] = ["reader", "door"].map(|it| site.joined(it));
    site.subscribe(reader, "#", QoS::ExactlyOnce);
    let once = sent("a", "once").qos(QoS::ExactlyOnce);
    site.publish(door, &once);
    site.publish(door, &once);
    assert_eq!(site.received(door).len(), 2, "each is answered");
    assert_eq!(site.payloads(reader), ["once"]);
    site.send(door, &Packet::PubRel(v4::PubRel::new(7)));
    assert_eq!(site.received(door), [Packet::PubComp(v4::PubComp::new(7))]);
    site.publish(door, &once);
    assert_eq!(site.payloads(reader), ["once"], "the id is free again");
}

#[test]
fn overlapping_filters_deliver_once() {
    let mut site = Site::new();
    let [reader, door] = ["reader", "door"].map(|it| site.joined(it));
    site.subscribe(reader, "#", QoS::AtMostOnce);
    site.subscribe(reader, "a/+", QoS::AtLeastOnce);
    site.publish(door, &sent("a/b", "x"));
    let arrived = site.acknowledged(reader);
    assert_eq!(arrived.iter().map(|it| it.qos).collect::<Vec<_>>(), [QoS::AtLeastOnce]);
}

#[test]
fn unacknowledged_messages_are_sent_again() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut site = Site::new();
        let sender = site.joined("sender");
        let door = site.join(persistent("door"));
        assert_eq!(site.received(door), [connack(false)]);
        site.subscribe(door, "command/+", qos);
        site.publish(sender, &sent("command/a", "one").qos(qos));
        site.publish(sender, &sent("command/a", "two").qos(qos).id(8));
        let first = site.received(door);
        assert_eq!(first.len(), 3, "SUBACK and two messages, none of them acknowledged");
        site.lose(door);
        site.publish(sender, &sent("command/a", "three").qos(qos).id(9));

        let door = site.join(persistent("door"));
        let again = site.received(door);
        assert_eq!(again[0], connack(true));
        let shown = |packet: &Packet| match packet {
            Packet::Publish(it) => (it.payload.to_vec(), it.pkid, it.dup),
            other => panic!("{other:?}"),
        };
        let ids = |packets: &[Packet]| packets.iter().map(|it| shown(it).1).collect::<Vec<_>>();
        assert_eq!(ids(&again[1..3]), ids(&first[1..]), "under the same ids");
        let of = |at: usize| (shown(&again[at]).0, shown(&again[at]).2);
        assert_eq!(of(1), (b"one".to_vec(), true));
        assert_eq!(of(2), (b"two".to_vec(), true));
        assert_eq!(of(3), (b"three".to_vec(), false));
    }
}

#[test]
fn released_message_is_not_published_again() {
    let mut site = Site::new();
    let sender = site.joined("sender");
    let door = site.join(persistent("door"));
    site.subscribe(door, "a", QoS::ExactlyOnce);
    site.publish(sender, &sent("a", "x").qos(QoS::ExactlyOnce));
    let packets = site.received(door);
    let Some(Packet::Publish(publish)) = packets.last() else { panic!("{packets:?}") };
    site.send(door, &Packet::PubRec(v4::PubRec::new(publish.pkid)));
    site.lose(door);
    let door = site.join(persistent("door"));
    let release = Packet::PubRel(v4::PubRel::new(publish.pkid));
    assert_eq!(site.received(door), [connack(true), release]);
    site.send(door, &Packet::PubComp(v4::PubComp::new(publish.pkid)));
    site.lose(door);
    let door = site.join(persistent("door"));
    assert_eq!(site.received(door), [connack(true)]);
}

#[test]
fn clean_session_forgets_everything() {
    let mut site = Site::new();
    let sender = site.joined("sender");
    let door = site.join(persistent("door"));
    site.subscribe(door, "a", QoS::AtLeastOnce);
    site.lose(door);
    site.publish(sender, &sent("a", "x"));
    let door = site.join(v4::Connect::new("door"));
    assert_eq!(site.received(door), [connack(false)]);
    site.publish(sender, &sent("a", "y"));
    site.lose(door);
    let door = site.join(persistent("door"));
    assert_eq!(site.received(door), [connack(false)], "nor is a clean session kept");
}

#[test]
fn messages_at_qos0_do_not_wait() {
    let mut site = Site::new();
    let sender = site.joined("sender");
    let door = site.join(persistent("door"));
    site.subscribe(door, "a", QoS::AtLeastOnce);
    site.lose(door);
    site.publish(sender, &sent("a", "zero").qos(QoS::AtMostOnce));
    site.publish(sender, &sent("a", "one"));
    let door = site.join(persistent("door"));
    assert_eq!(site.payloads(door), ["one"]);
}

#[test]
fn retained_message_greets_new_subscriptions() {
    let mut site = Site::new();
    let [door, early] = ["door", "early"].map(|it| site.joined(it));
    site.subscribe(early, "status/#", QoS::AtLeastOnce);
    site.publish(door, &sent("status/door", "online").retained());
    assert_eq!(site.acknowledged(early).iter().map(|it| it.retain).collect::<Vec<_>>(), [false]);
    let retained = |site: &mut Site, name: &str| {
        let id = site.joined(name);
        site.subscribe(id, "status/+", QoS::AtLeastOnce);
        let messages = site.acknowledged(id);
        messages.iter().map(|it| (it.payload.to_vec(), it.retain)).collect::<Vec<_>>()
    };
    assert_eq!(retained(&mut site, "a"), [(b"online".to_vec(), true)]);
    site.publish(door, &sent("status/door", "offline").retained());
    assert_eq!(retained(&mut site, "b"), [(b"offline".to_vec(), true)]);
    site.publish(door, &sent("status/door", "passing"));
    assert_eq!(retained(&mut site, "c"), [(b"offline".to_vec(), true)]);
    site.publish(door, &sent("status/door", "").retained());
    assert_eq!(retained(&mut site, "d"), []);
    assert_eq!(site.state.retained.counted(), (0, 0));
}

#[test]
fn last_will_follows_an_unclean_end() {
    let with_will = |name: &str| {
        let mut connect = v4::Connect::new(name);
        let will = v4::LastWill::new("status/door", "offline", QoS::AtLeastOnce, true);
        connect.last_will = Some(will);
        connect
    };
    let end_by = |end: fn(&mut Site, super::ConnectionId)| {
        let mut site = Site::new();
        let reader = site.join({
            let mut connect = v4::Connect::new("reader");
            connect.keep_alive = 0;
            connect
        });
        site.subscribe(reader, "status/+", QoS::AtLeastOnce);
        let door = site.join(with_will("door"));
        end(&mut site, door);
        let payloads = site.payloads(reader);
        let late = site.joined("late");
        site.subscribe(late, "status/+", QoS::AtLeastOnce);
        assert_eq!(site.payloads(late), payloads, "it was retained");
        payloads
    };
    assert_eq!(end_by(Site::lose), ["offline"]);
    assert_eq!(end_by(|site, _| site.after(16)), ["offline"], "keep-alive of 10 s");
    assert_eq!(end_by(|site, door| site.feed(door, &[0x00, 0])), ["offline"], "nonsense");
    let taken_over = |site: &mut Site, _| {
        site.join(v4::Connect::new("door"));
    };
    assert_eq!(end_by(taken_over), ["offline"]);
    let farewell = |site: &mut Site, door| {
        site.send(door, &Packet::Disconnect);
        site.lose(door);
    };
    assert_eq!(end_by(farewell), [""; 0]);
}

#[test]
fn same_client_id_takes_the_session_over() {
    let mut site = Site::new();
    let sender = site.joined("sender");
    let former = site.join(persistent("door"));
    site.subscribe(former, "a", QoS::AtLeastOnce);
    site.publish(sender, &sent("a", "one"));
    assert_eq!(site.received(former).len(), 3);
    let latter = site.join(persistent("door"));
    assert!(site.is_closing(former));
    assert!(site.state.take_woken().contains(&former), "its task has to close the socket");
    assert_eq!(site.received(former), [], "nothing more is sent to it");
    assert_eq!(site.payloads(latter), ["one"]);
    site.feed(former, &[0xc0, 0]);
    site.lose(former);
    site.publish(sender, &sent("a", "two"));
    assert_eq!(site.payloads(latter), ["two"], "the end of the former changes nothing");
}

#[test]
fn silent_connections_end_in_time() {
    let mut site = Site::new();
    let silent = site.open();
    let door = site.joined("door");
    site.after(4);
    assert!(!site.is_closing(silent));
    site.after(1);
    assert!(site.is_closing(silent), "no CONNECT within 5 s");
    site.after(9);
    assert!(!site.is_closing(door), "keep-alive of 10 s");
    site.send(door, &Packet::PingReq);
    assert_eq!(site.received(door), [Packet::PingResp]);
    site.after(14);
    assert!(!site.is_closing(door));
    site.after(1);
    assert!(site.is_closing(door));
    let mut without = v4::Connect::new("console");
    without.keep_alive = 0;
    let console = site.join(without);
    site.after(1_000_000);
    assert!(!site.is_closing(console), "0 is never");
}

#[test]
fn packet_that_does_not_end_ends_the_connection() {
    let mut site = Site::new();
    let door = site.joined("door");
    site.feed(door, &[0x30, 100, 0, 1, b'a']);
    for _ in 0..3 {
        site.after(9);
        assert!(!site.is_closing(door));
        site.feed(door, b"x");
    }
    site.after(3);
    assert!(site.is_closing(door), "30 s after its first byte");
}

#[test]
fn wrong_password_is_refused_with_a_code() {
    let mut site = Site::new();
    site.state.credentials = Some(("door".to_owned(), "secret".to_owned()));
    let login = |user: &str, password: &str| {
        let mut connect = v4::Connect::new("door");
        connect.login = Some(v4::Login::new(user, password));
        connect
    };
    let wrong = [
        login("door", "wrong"),
        login("other", "secret"),
        login("door", ""),
        v4::Connect::new("door"),
    ];
    for connect in wrong {
        let id = site.join(connect);
        let code = v4::ConnectReturnCode::BadUserNamePassword;
        assert_eq!(site.received(id), [Packet::ConnAck(v4::ConnAck::new(code, false))]);
        assert!(site.is_closing(id));
    }
    assert_eq!(site.state.counters().logins_refused, 4);
    let id = site.join(login("door", "secret"));
    assert_eq!(site.received(id), [connack(false)]);
}

#[test]
fn client_id_is_assigned_or_refused() {
    let mut site = Site::new();
    let one = site.joined("");
    let other = site.joined("");
    assert!(!site.is_closing(one) && !site.is_closing(other), "each has a name of its own");
    for name in [String::new(), "x".repeat(2000)] {
        let id = site.join(persistent(&name));
        let code = v4::ConnectReturnCode::BadClientId;
        assert_eq!(site.received(id), [Packet::ConnAck(v4::ConnAck::new(code, false))]);
        assert!(site.is_closing(id));
    }
    // What rumqttd panicked on when it came again.
    for _ in 0..2 {
        site.joined("a+b/#$");
    }
}

#[test]
fn refused_filters_leave_the_others() {
    let mut site = Site::new();
    let door = site.joined("door");
    let mut subscribe = v4::Subscribe::new("a", QoS::AtLeastOnce);
    subscribe.pkid = 3;
    for filter in ["a+", "$share/group/a", "", "b/#"] {
        subscribe.add(filter.to_owned(), QoS::AtMostOnce);
    }
    site.send(door, &Packet::Subscribe(subscribe));
    let failure = SubscribeReasonCode::Failure;
    let return_codes = vec![
        SubscribeReasonCode::Success(QoS::AtLeastOnce),
        failure,
        failure,
        failure,
        SubscribeReasonCode::Success(QoS::AtMostOnce),
    ];
    assert_eq!(site.received(door), [Packet::SubAck(v4::SubAck { pkid: 3, return_codes })]);
    let mut unsubscribe = v4::Unsubscribe::new("a");
    unsubscribe.pkid = 4;
    unsubscribe.topics.push("never".to_owned());
    site.send(door, &Packet::Unsubscribe(unsubscribe));
    assert_eq!(site.received(door), [Packet::UnsubAck(v4::UnsubAck::new(4))]);
    let sender = site.joined("sender");
    site.publish(sender, &sent("a", "x"));
    site.publish(sender, &sent("b/c", "y"));
    assert_eq!(site.payloads(door), ["y"]);
}

#[test]
fn window_bounds_what_is_in_flight() {
    let mut site = Site::new();
    let [reader, door] = ["reader", "door"].map(|it| site.joined(it));
    site.subscribe(reader, "a", QoS::AtLeastOnce);
    assert_eq!(site.received(reader).len(), 1);
    for number in 0..250_u16 {
        site.publish(door, &sent("a", &number.to_string()).id(number + 1));
    }
    let first = site.received(reader);
    assert_eq!(first.len(), 100);
    let Packet::Publish(last) = &first[99] else { panic!("{:?}", first[99]) };
    site.send(reader, &Packet::PubAck(v4::PubAck::new(last.pkid)));
    assert_eq!(site.received(reader).len(), 1, "out of order, and one for one");
    for packet in &first[..99] {
        let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
        site.send(reader, &Packet::PubAck(v4::PubAck::new(publish.pkid)));
    }
    let rest: Vec<String> = site.payloads(reader);
    assert_eq!(rest.len(), 149);
    assert_eq!(rest.last().map(String::as_str), Some("249"));
}

#[test]
fn large_payload_is_not_copied_into_chunks() {
    let mut site = Site::new();
    let [reader, door] = ["reader", "door"].map(|it| site.joined(it));
    site.subscribe(reader, "a", QoS::AtLeastOnce);
    let payload = "x".repeat(6 << 20);
    let large: Sent<'_> = sent("a", &payload);
    site.publish(door, &large);
    let chunk = site.state.output(reader, site.now);
    assert!(chunk.head.len() < 100 && chunk.payload().len() == payload.len());
}
