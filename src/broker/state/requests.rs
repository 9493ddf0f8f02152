//! What clients ask for after CONNECT.

use std::time::Duration;

use crate::broker::packet::{
    AckKind, Filter, ProtocolVersion, Publish, QoS, Reason, Request, RetainHandling,
    SubscribeOptions, write,
};
use crate::broker::state::session::Session;
use crate::broker::state::{BrokerState, ConnectionId};
use crate::broker::topic;

/// The code of SUBACK for a failure in MQTT 3.1.1.
const SUBSCRIPTION_FAILED: u8 = 0x80;

impl BrokerState {
    /// Carries out a request and replies. An error ends the connection.
    pub(super) fn carry_out(
        &mut self,
        id: ConnectionId,
        request: Request,
        now: Duration,
    ) -> Result<(), Reason> {
        match request {
            Request::Publish(publish) => self.publish(id, publish, now),
            Request::Ack { kind, packet_id, failed } => {
                self.acknowledge(id, kind, packet_id, failed)
            }
            Request::Subscribe { packet_id, filters } => {
                self.subscribe(id, packet_id, filters, now)
            }
            Request::Unsubscribe { packet_id, topics } => self.unsubscribe(id, packet_id, &topics),
            Request::Ping => self.reply(id, |replies, _| write::pong(replies)),
            Request::Disconnect { with_will, session_expiry_s } => {
                self.disconnect(id, with_will, session_expiry_s, now)
            }
        }
    }

    fn client_id(&self, id: ConnectionId) -> Result<&str, Reason> {
        let client = self.connections.get(&id).and_then(|it| it.client.as_ref());
        client.map(|it| it.id.as_str()).ok_or(Reason::ProtocolError)
    }

    fn session(&mut self, id: ConnectionId) -> Result<&mut Session, Reason> {
        let client = self.connections.get(&id).and_then(|it| it.client.as_ref());
        let session = client.and_then(|it| self.sessions.get_mut(&it.id));
        session.ok_or(Reason::ProtocolError)
    }

    fn reply(
        &mut self,
        id: ConnectionId,
        encode: impl FnOnce(&mut Vec<u8>, ProtocolVersion),
    ) -> Result<(), Reason> {
        let connection = self.connections.get_mut(&id).ok_or(Reason::ProtocolError)?;
        let client = connection.client.as_ref().ok_or(Reason::ProtocolError)?;
        encode(&mut connection.replies, client.receiver.version);
        Ok(())
    }

    fn reply_ack(
        &mut self,
        id: ConnectionId,
        kind: AckKind,
        packet_id: u16,
        reason: Reason,
    ) -> Result<(), Reason> {
        self.reply(id, |replies, version| write::ack(replies, version, kind, packet_id, reason))
    }

    fn publish(&mut self, id: ConnectionId, publish: Publish, now: Duration) -> Result<(), Reason> {
        let Publish { mut message, packet_id, expiry_s } = publish;
        let qos = message.qos;
        if qos == QoS::ExactlyOnce {
            let received_max = self.limits.received_max;
            let received = &mut self.session(id)?.received;
            if received.contains(&packet_id) {
                return self.reply_ack(id, AckKind::PubRec, packet_id, Reason::Success);
            }
            if received.len() >= received_max {
                return Err(Reason::ReceiveMaximumExceeded);
            }
            received.insert(packet_id);
        }
        message.expires_at = expiry_s.map(|it| now + Duration::from_secs(it.into()));
        self.distribute(Some(id), message, now);
        let kind = match qos {
            QoS::AtMostOnce => return Ok(()),
            QoS::AtLeastOnce => AckKind::PubAck,
            QoS::ExactlyOnce => AckKind::PubRec,
        };
        // Distributing may have ended this very connection: then nobody waits for the reply.
        self.reply_ack(id, kind, packet_id, Reason::Success).ok();
        Ok(())
    }

    fn acknowledge(
        &mut self,
        id: ConnectionId,
        kind: AckKind,
        packet_id: u16,
        has_failed: bool,
    ) -> Result<(), Reason> {
        let session = self.session(id)?;
        let found = |is_found| if is_found { Reason::Success } else { Reason::PacketIdNotFound };
        match kind {
            AckKind::PubAck => session.acknowledge(packet_id),
            AckKind::PubComp => session.complete(packet_id),
            AckKind::PubRec => {
                let is_found = session.release(packet_id, has_failed);
                if !has_failed {
                    self.reply_ack(id, AckKind::PubRel, packet_id, found(is_found))?;
                }
            }
            AckKind::PubRel => {
                let is_found = session.received.remove(&packet_id);
                self.reply_ack(id, AckKind::PubComp, packet_id, found(is_found))?;
            }
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        id: ConnectionId,
        packet_id: u16,
        filters: Vec<Filter>,
        now: Duration,
    ) -> Result<(), Reason> {
        if filters.len() > self.limits.subscriptions_max {
            return Err(Reason::QuotaExceeded);
        }
        let mut granted = Vec::with_capacity(filters.len());
        let mut wants_retained = Vec::new();
        for Filter { topic, options } in filters {
            let filter = topic.clone();
            let added = self.add_subscription(id, topic, options);
            let wants = match options.retain_handling {
                RetainHandling::Always => added.is_ok(),
                RetainHandling::IfNew => added == Ok(true),
                RetainHandling::Never => false,
            };
            wants_retained.extend(wants.then_some(filter));
            granted.push(added.map(|_| options.qos));
        }
        self.reply(id, |replies, version| {
            let code = |result: &Result<QoS, Reason>| match (result, version) {
                (Ok(qos), _) => *qos as u8,
                (Err(reason), ProtocolVersion::V5) => *reason as u8,
                (Err(_), ProtocolVersion::V311) => SUBSCRIPTION_FAILED,
            };
            let codes: Vec<u8> = granted.iter().map(code).collect();
            write::suback(replies, version, packet_id, &codes);
        })?;
        let client_id = self.client_id(id)?.to_owned();
        for filter in wants_retained {
            self.deliver_retained(&client_id, &filter, now);
        }
        Ok(())
    }

    /// Returns whether the subscription is new, or why it is refused.
    fn add_subscription(
        &mut self,
        id: ConnectionId,
        filter: String,
        options: SubscribeOptions,
    ) -> Result<bool, Reason> {
        if !topic::is_filter(&filter) {
            return Err(Reason::TopicFilterInvalid);
        }
        if topic::is_shared(&filter) {
            return Err(Reason::SharedSubscriptionsUnsupported);
        }
        let in_all: usize = self.sessions.values().map(|it| it.subscriptions.len()).sum();
        let is_full_in_all = in_all >= self.limits.subscriptions_max_in_all;
        let subscriptions_max = self.limits.subscriptions_max;
        let subscriptions = &mut self.session(id)?.subscriptions;
        let is_full = is_full_in_all || subscriptions.len() >= subscriptions_max;
        if is_full && !subscriptions.contains_key(&filter) {
            return Err(Reason::QuotaExceeded);
        }
        Ok(subscriptions.insert(filter, options).is_none())
    }

    fn unsubscribe(
        &mut self,
        id: ConnectionId,
        packet_id: u16,
        topics: &[String],
    ) -> Result<(), Reason> {
        let subscriptions = &mut self.session(id)?.subscriptions;
        let code = |topic: &String| match subscriptions.remove(topic) {
            Some(_) => Reason::Success as u8,
            None => Reason::NoSubscriptionExisted as u8,
        };
        let codes: Vec<u8> = topics.iter().map(code).collect();
        self.reply(id, |replies, version| write::unsuback(replies, version, packet_id, &codes))
    }

    fn disconnect(
        &mut self,
        id: ConnectionId,
        with_will: bool,
        session_expiry_s: Option<u32>,
        now: Duration,
    ) -> Result<(), Reason> {
        let session = self.session(id)?;
        if let Some(expiry_s) = session_expiry_s {
            // A session that ends with its connection stays one (section 3.14.2.2.2).
            if session.expiry_s == 0 && expiry_s > 0 {
                return Err(Reason::ProtocolError);
            }
            session.expiry_s = expiry_s;
        }
        self.detach(id, with_will, now);
        self.close_quietly(id);
        Ok(())
    }
}
