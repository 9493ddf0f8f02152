//! Distributes messages to the sessions that subscribed to them, and keeps the memory of all
//! sessions within its bound.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::packet::{Message, QoS, Reason};
use crate::broker::state::session::{Delivery, Session};
use crate::broker::state::{BrokerState, ConnectionId};
use crate::broker::topic;

impl BrokerState {
    /// Retains a message if it asks for that, and queues it for every subscriber.
    pub(super) fn distribute(
        &mut self,
        from: Option<ConnectionId>,
        message: Message,
        now: Duration,
    ) {
        let message = Arc::new(message);
        if message.retain && !self.retained.put(&message, &self.limits) {
            self.counters.not_retained += 1;
        }
        for session in self.sessions.values_mut() {
            let is_publisher = from.is_some() && session.connection == from;
            let subscribed = session.subscribed(&message.topic, is_publisher);
            let Some((qos, retain_as_published)) = subscribed else {
                continue;
            };
            let qos = qos.min(message.qos);
            // Section 4.5: a client that is away gets what it would have acknowledged.
            if session.connection.is_none() && qos == QoS::AtMostOnce {
                continue;
            }
            let retain = message.retain && retain_as_published;
            let delivery = Delivery { message: Arc::clone(&message), qos, retain };
            self.counters.messages_lost += session.push(delivery, &self.limits);
            self.woken.extend(session.connection);
        }
        self.bound_sessions(now);
    }

    /// Queues what is retained for a new subscription, as far as there is room: nothing that waits
    /// already is lost for it.
    pub(super) fn deliver_retained(&mut self, client_id: &str, filter: &str, now: Duration) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(options) = session.subscriptions.get(filter).copied() else {
            return;
        };
        let matching = self.retained.iter().filter(|it| topic::matches(filter, &it.topic));
        for message in matching.filter(|it| !it.has_expired(now)) {
            let qos = options.qos.min(message.qos);
            let delivery = Delivery { message: Arc::clone(message), qos, retain: true };
            if !session.has_room(&delivery, &self.limits) {
                self.counters.messages_lost += 1;
                break;
            }
            session.push(delivery, &self.limits);
        }
        self.bound_sessions(now);
    }

    /// While the sessions hold too much together, the one that holds the most loses its oldest
    /// message; without one in its queue, its connection and what is in flight.
    fn bound_sessions(&mut self, now: Duration) {
        while self.held_bytes() > self.limits.sessions_bytes_max {
            let Some(largest) = self.sessions.values_mut().max_by_key(|it| it.held_bytes()) else {
                return;
            };
            self.counters.messages_lost += 1;
            if largest.drop_oldest() {
                continue;
            }
            largest.drop_in_flight();
            if let Some(connection) = largest.connection {
                self.fail(connection, Reason::QuotaExceeded, now);
            }
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.sessions.values().map(Session::held_bytes).sum()
    }

    /// Publishes the last wills that have become due.
    pub(super) fn settle(&mut self, now: Duration) {
        while let Some(will) = self.due_wills.pop() {
            self.distribute(None, will, now);
        }
    }
}
