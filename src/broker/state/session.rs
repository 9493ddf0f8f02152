//! What the broker keeps for one client: subscriptions, messages that wait, messages in flight.
//!
//! Invariants: messages leave in the order in which they came; `queue_bytes` and `in_flight_bytes`
//! are the sums over their lists; a packet id is used by one message in flight at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::limits::Limits;
use crate::broker::packet::write::Outgoing;
use crate::broker::packet::{Message, ProtocolVersion, QoS, SubscribeOptions};
use crate::broker::state::ConnectionId;
use crate::broker::topic;

/// MQTT 5: a session with this expiry never ends.
const FOR_EVER: u32 = u32::MAX;
/// What an entry of a queue costs beside its message.
const ENTRY_BYTES: usize = 64;

/// A message for one client.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl Delivery {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.message.bytes()
    }
}

#[derive(Debug)]
enum Stage {
    /// Not acknowledged (QoS 1) or not received (QoS 2).
    Published(Delivery),
    /// QoS 2: received, and its release not confirmed.
    Released,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    stage: Stage,
    /// On the present connection.
    is_sent: bool,
}

impl InFlight {
    fn bytes(&self) -> usize {
        match &self.stage {
            Stage::Published(delivery) => delivery.bytes(),
            Stage::Released => 0,
        }
    }
}

/// What a client accepts, by its CONNECT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver {
    pub(super) version: ProtocolVersion,
    /// Messages in flight.
    pub(super) window: usize,
    pub(super) packet_bytes_max: usize,
}

/// The next packet for a client.
pub(super) enum Next {
    Publish { delivery: Delivery, packet_id: u16, is_repeated: bool },
    Release { packet_id: u16 },
}

#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) subscriptions: BTreeMap<String, SubscribeOptions>,
    pub(super) connection: Option<ConnectionId>,
    /// For how long it outlives its connection.
    pub(super) expiry_s: u32,
    pub(super) offline_since: Duration,
    /// A last will that is published later, and when.
    pub(super) delayed_will: Option<(Message, Duration)>,
    /// QoS 2: ids that its client has published and not released.
    pub(super) received: BTreeSet<u16>,
    /// What is being written to its connection at QoS 0, in bytes.
    pub(super) writing_bytes: usize,
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    last_packet_id: u16,
}

impl Session {
    /// The bytes that wait for its client, with those that it has not acknowledged.
    pub(super) fn held_bytes(&self) -> usize {
        self.queue_bytes + self.in_flight_bytes + self.writing_bytes
    }

    pub(super) fn has_expired(&self, now: Duration) -> bool {
        let ends_at = self.offline_since + Duration::from_secs(self.expiry_s.into());
        self.connection.is_none() && self.expiry_s != FOR_EVER && now >= ends_at
    }

    /// Returns how its client subscribed to a topic: the highest QoS of all filters that match.
    pub(super) fn subscribed(&self, topic: &str, is_publisher: bool) -> Option<(QoS, bool)> {
        let matching = self.subscriptions.iter().filter(|(filter, options)| {
            !(is_publisher && options.no_local) && topic::matches(filter, topic)
        });
        matching.map(|(_, options)| (options.qos, options.retain_as_published)).reduce(
            |(qos, retain), (other_qos, other_retain)| (qos.max(other_qos), retain | other_retain),
        )
    }

    /// Whether a message fits into the queue beside what is there.
    pub(super) fn has_room(&self, delivery: &Delivery, limits: &Limits) -> bool {
        self.queue.len() < limits.queue_max
            && self.held_bytes() + delivery.bytes() <= limits.session_bytes_max
    }

    /// Queues a message and returns how many were lost for want of room: older ones, or this one at
    /// QoS 0.
    pub(super) fn push(&mut self, delivery: Delivery, limits: &Limits) -> u64 {
        let mut lost = 0;
        while !self.has_room(&delivery, limits) {
            if delivery.qos == QoS::AtMostOnce || !self.drop_oldest() {
                return lost + 1;
            }
            lost += 1;
        }
        self.queue_bytes += delivery.bytes();
        self.queue.push_back(delivery);
        lost
    }

    /// Drops the message that waits the longest. Not one in flight: its client may have it.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.pop().is_some()
    }

    /// Drops every message in flight.
    pub(super) fn drop_in_flight(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.writing_bytes = 0;
    }

    fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queue_bytes -= delivery.bytes();
        Some(delivery)
    }

    /// A new connection: what is in flight is sent again.
    pub(super) fn resume(&mut self) {
        for entry in &mut self.in_flight {
            entry.is_sent = false;
        }
    }

    /// Takes the next packet that may be sent now.
    pub(super) fn next(
        &mut self,
        receiver: &Receiver,
        window_bytes_max: usize,
        now: Duration,
    ) -> Option<Next> {
        while let Some(at) = self.in_flight.iter().position(|entry| !entry.is_sent) {
            if self.in_flight.iter().filter(|entry| entry.is_sent).count() >= receiver.window {
                return None;
            }
            let entry = &mut self.in_flight[at];
            let packet_id = entry.packet_id;
            entry.is_sent = true;
            match &entry.stage {
                Stage::Released => return Some(Next::Release { packet_id }),
                Stage::Published(delivery) if receiver.accepts(delivery, now) => {
                    let delivery = delivery.clone();
                    return Some(Next::Publish { delivery, packet_id, is_repeated: true });
                }
                Stage::Published(_) => self.remove(at),
            }
        }
        self.next_of_queue(receiver, window_bytes_max, now)
    }

    fn next_of_queue(
        &mut self,
        receiver: &Receiver,
        window_bytes_max: usize,
        now: Duration,
    ) -> Option<Next> {
        while let Some(first) = self.queue.front() {
            let is_wanted = !first.message.has_expired(now) && receiver.accepts(first, now);
            let has_room = first.qos == QoS::AtMostOnce
                || self.in_flight.is_empty()
                || (self.in_flight.len() < receiver.window
                    && self.in_flight_bytes + first.bytes() <= window_bytes_max);
            if is_wanted && !has_room {
                return None;
            }
            let delivery = self.pop()?;
            if !is_wanted {
                continue;
            }
            let packet_id = if delivery.qos == QoS::AtMostOnce { 0 } else { self.free_packet_id() };
            if packet_id != 0 {
                let stage = Stage::Published(delivery.clone());
                self.in_flight_bytes += delivery.bytes();
                self.in_flight.push_back(InFlight { packet_id, stage, is_sent: true });
            }
            return Some(Next::Publish { delivery, packet_id, is_repeated: false });
        }
        None
    }

    /// The window is far smaller than the number of ids, so that one is always free.
    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.iter().any(|entry| entry.packet_id == self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    /// PUBACK.
    pub(super) fn acknowledge(&mut self, packet_id: u16) {
        let is_acknowledged = |stage: &Stage| matches!(stage, Stage::Published(delivery) if delivery.qos == QoS::AtLeastOnce);
        if let Some(at) = self.position(packet_id, is_acknowledged) {
            self.remove(at);
        }
    }

    /// PUBREC. Returns whether the message was in flight at QoS 2.
    pub(super) fn release(&mut self, packet_id: u16, has_failed: bool) -> bool {
        let is_received = |stage: &Stage| !matches!(stage, Stage::Published(delivery) if delivery.qos != QoS::ExactlyOnce);
        let Some(at) = self.position(packet_id, is_received) else {
            return false;
        };
        if has_failed {
            self.remove(at);
        } else {
            self.in_flight_bytes -= self.in_flight[at].bytes();
            self.in_flight[at].stage = Stage::Released;
            self.in_flight[at].is_sent = true;
        }
        true
    }

    /// PUBCOMP.
    pub(super) fn complete(&mut self, packet_id: u16) {
        if let Some(at) = self.position(packet_id, |stage| matches!(stage, Stage::Released)) {
            self.remove(at);
        }
    }

    fn position(&self, packet_id: u16, is_in: impl Fn(&Stage) -> bool) -> Option<usize> {
        self.in_flight.iter().position(|it| it.packet_id == packet_id && is_in(&it.stage))
    }

    fn remove(&mut self, at: usize) {
        if let Some(entry) = self.in_flight.remove(at) {
            self.in_flight_bytes -= entry.bytes();
        }
    }

    /// The sums of the invariant, counted anew.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (usize, usize) {
        let queued: usize = self.queue.iter().map(Delivery::bytes).sum();
        let in_flight: usize = self.in_flight.iter().map(InFlight::bytes).sum();
        assert_eq!((self.queue_bytes, self.in_flight_bytes), (queued, in_flight));
        (self.queue.len(), self.in_flight.len())
    }
}

impl Receiver {
    /// Whether the packet is not larger than the client accepts. If it is, the message counts as
    /// delivered (section 3.1.2.11.4).
    fn accepts(&self, delivery: &Delivery, now: Duration) -> bool {
        self.packet_bytes_max == usize::MAX
            || self.outgoing(delivery, 0, false, now).bytes() <= self.packet_bytes_max
    }

    pub(super) fn outgoing<'a>(
        &self,
        delivery: &'a Delivery,
        packet_id: u16,
        is_repeated: bool,
        now: Duration,
    ) -> Outgoing<'a> {
        let expires_at = delivery.message.expires_at;
        Outgoing {
            version: self.version,
            message: &delivery.message,
            qos: delivery.qos,
            retain: delivery.retain,
            is_repeated,
            packet_id,
            expiry_s: expires_at.map(|at| at.saturating_sub(now).as_secs() as u32),
        }
    }
}
