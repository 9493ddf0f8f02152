//! What is in flight in both directions on the present connection, and nothing else.
//!
//! Out: rumqttc's `publish` returns no packet id. So each QoS 1 publish is put into rumqttc's queue
//! and into `queued` under one lock, and both are first in, first out: `Outgoing::Publish(id)`
//! belongs to the head of `queued`, and PUBACK completes by id. This holds because every QoS 1
//! publish of the process goes through here.
//!
//! In: `pending_acks` holds the inbound messages of this connection in order of arrival. An
//! acknowledgement is sent when the app has committed the message and all before it (some
//! brokers drop a client that does otherwise, and lose the message at the head).
//!
//! Invariants: the lock is never held across an `.await` or a call out. The end of a connection
//! empties `queued`, `sent` and `pending_acks`, and completes every waiting publish as lost. What
//! the app holds is counted over connections.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::mqtt::client::{Accepted, Client, Received};
use crate::mqtt::echo::{Echo, Probes};
use crate::mqtt::fault::LinkFault;
use crate::mqtt::message::{DescribedMessage, Message, NotAcknowledged, packet_bytes};
use crate::mqtt::refusal::{PublishRefusal, RefusedTopic, RefusedTopics};
use crate::mqtt::settings::{LinkSettings, Version};

/// Topics that may wait for room at QoS 0. There is one (health); more would be a mistake, and are
/// bounded too.
const LATEST_MAX: usize = 16;

pub(super) type PendingResult = oneshot::Receiver<Result<Acknowledged, NotAcknowledged>>;

/// The broker acknowledged a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) connection: ConnectionState,
}

/// The connection on which something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionState {
    pub(super) number: u64,
    /// Whether an acknowledgement counts only with the echo of a later probe (`echo`).
    pub(super) needs_echo: bool,
}

pub(super) struct LinkState {
    in_flight: Mutex<InFlight>,
    window: Arc<Semaphore>,
    /// Off for a console: nobody needs its status after it has left.
    status_retained: bool,
    packet_bytes_max_out: usize,
    probe_topic: Option<String>,
    inbound_count_max: usize,
    inbound_bytes_max: usize,
    /// Wakes the driver: the app holds no message any more, and deferred ones wait at the broker.
    pub(super) redeliver: Notify,
    pub(super) online: watch::Sender<bool>,
    refused: Mutex<RefusedTopics>,
    /// Why there is no connection.
    fault: Mutex<Option<LinkFault>>,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) connects: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) deferred: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) oversized: AtomicU64,
    pub(super) latest_dropped: AtomicU64,
    pub(super) events_dropped: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Default)]
struct InFlight {
    /// Counts connections, so that a token of an earlier one is recognised.
    connection: u64,
    client: Option<Client>,
    /// The largest packet that the broker takes, if it states one.
    packet_bytes_max: Option<usize>,
    /// Whether callers may publish: from CONNACK until the link goes down or leaves.
    is_open: bool,
    queued: VecDeque<PendingPublish>,
    sent: HashMap<u16, PendingPublish>,
    /// Counts publishes, so that the oldest of `sent` is known.
    publishes: u64,
    probes: Probes,
    /// Counts PUBACKs: a broker that sends none while we wait has stalled.
    acks_seen: u64,
    latest: BTreeMap<String, (Vec<u8>, bool)>,
    /// Subscriptions without a SUBACK yet; the broker sends these in order.
    subscribing: VecDeque<Vec<String>>,
    pending_acks: VecDeque<PendingAck>,
    serial: u64,
    held_count: usize,
    held_bytes: usize,
    /// From the first deferred message (or dropped token) on, everything after it is deferred too,
    /// which keeps the order.
    is_deferring: bool,
}

struct PendingPublish {
    topic: String,
    /// Lower was sent earlier.
    order: u64,
    publisher: Publisher,
}

enum Publisher {
    Caller {
        sender: oneshot::Sender<Result<Acknowledged, NotAcknowledged>>,
        _permit: OwnedSemaphorePermit,
    },
    Status(StatusPublish),
    Probe,
}

/// A publish that the broker acknowledged or refused.
pub(super) struct CompletedPublish {
    pub(super) topic: String,
    /// Present if it is the driver's own.
    pub(super) status: Option<StatusPublish>,
}

/// A publish of the driver's own, on the status topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusPublish {
    Online,
    /// Changes nothing; its acknowledgement shows that the broker has read everything before it.
    StillOnline,
    Offline,
}

struct PendingAck {
    serial: u64,
    pkid: u16,
    is_committed: bool,
}

/// Whether an inbound message is handed to the app.
pub(super) enum Admission {
    Admitted(AckToken),
    Deferred,
}

impl LinkState {
    pub(super) fn new(settings: &LinkSettings) -> Self {
        Self {
            in_flight: Mutex::default(),
            window: Arc::new(Semaphore::new(settings.window.into())),
            packet_bytes_max_out: settings.packet_bytes_max_out,
            probe_topic: settings.probe_topic.clone(),
            status_retained: settings.persistent,
            inbound_count_max: settings.inbound_count_max,
            inbound_bytes_max: settings.inbound_bytes_max,
            redeliver: Notify::new(),
            online: watch::Sender::new(false),
            refused: Mutex::default(),
            fault: Mutex::default(),
            counters: Counters::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().expect("nothing panics while it holds the lock")
    }

    fn refused(&self) -> MutexGuard<'_, RefusedTopics> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a topic on which the broker refuses our messages at present.
    pub(super) fn refused_topic(&self) -> Option<RefusedTopic> {
        self.refused().first()
    }

    pub(super) fn refused_recently(&self, topic: &str) -> Option<PublishRefusal> {
        self.refused().refused_recently(topic)
    }

    pub(super) fn is_refused(&self, topic: &str) -> bool {
        self.refused().is_refused(topic)
    }

    pub(super) fn record_refusal(&self, topic: &str, refusal: PublishRefusal) {
        count(&self.counters.refused);
        self.refused().record(topic, refusal);
    }

    pub(super) fn fault(&self) -> Option<LinkFault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_fault(&self, fault: Option<LinkFault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Returns the version that the present connection speaks.
    pub(super) fn version(&self) -> Option<Version> {
        self.lock().client.as_ref().map(Client::version)
    }

    /// Queues a message. Waits only for a permit of the window, which a lost connection returns
    /// too.
    pub(super) async fn publish(
        &self,
        described: DescribedMessage,
    ) -> Result<PendingResult, NotAcknowledged> {
        let bytes = described.packet_bytes();
        let message = &described.message;
        if bytes > self.packet_bytes_max_out {
            return Err(NotAcknowledged::TooLarge { bytes, bytes_max: self.packet_bytes_max_out });
        }
        // rumqttc would write a longer one with a wrong length.
        let lengths = 1..=usize::from(u16::MAX);
        if !lengths.contains(&message.topic.len()) || !rumqttc::valid_topic(&message.topic) {
            return Err(NotAcknowledged::BadTopic);
        }
        let window = Arc::clone(&self.window);
        let permit = window.acquire_owned().await.map_err(|_closed| NotAcknowledged::Offline)?;
        let (sender, receiver) = oneshot::channel();
        let mut in_flight = self.lock();
        if !in_flight.is_open {
            return Err(NotAcknowledged::Offline);
        }
        if let Some(bytes_max) = in_flight.packet_bytes_max.filter(|it| bytes > *it) {
            return Err(NotAcknowledged::TooLargeForBroker { bytes, bytes_max });
        }
        in_flight.enqueue(described, Publisher::Caller { sender, _permit: permit })?;
        Ok(receiver)
    }

    /// Queues a publish of the driver's own, in order with the callers'. Returns `false` without
    /// room or connection.
    pub(super) fn publish_status(&self, topic: &str, payload: &str, status: StatusPublish) -> bool {
        let message = Message {
            topic: topic.to_owned(),
            payload: payload.into(),
            retain: self.status_retained,
        };
        self.lock().enqueue(message.into(), Publisher::Status(status)).is_ok()
    }

    pub(super) fn publish_latest(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        let bytes = packet_bytes(topic, &payload);
        let mut in_flight = self.lock();
        let bytes_max = in_flight.packet_bytes_max.unwrap_or(usize::MAX);
        let fits = bytes <= self.packet_bytes_max_out.min(bytes_max);
        let known = in_flight.latest.contains_key(topic);
        if !fits || !in_flight.is_open || (!known && in_flight.latest.len() >= LATEST_MAX) {
            return count(&self.counters.latest_dropped);
        }
        if in_flight.latest.insert(topic.to_owned(), (payload, retain)).is_some() {
            count(&self.counters.latest_dropped);
        }
        in_flight.flush_latest();
    }

    /// Records a new connection; from now on callers publish on it.
    pub(super) fn connected(&self, client: Client, accepted: Accepted) {
        self.set_fault(None);
        let mut in_flight = self.lock();
        in_flight.connection += 1;
        in_flight.client = Some(client);
        in_flight.packet_bytes_max = accepted.packet_bytes_max;
        in_flight.is_open = true;
        in_flight.is_deferring = false;
        drop(in_flight);
        count(&self.counters.connects);
    }

    /// Closes the link for callers; what is in flight may still be acknowledged.
    pub(super) fn close(&self) {
        self.lock().is_open = false;
        self.online.send_replace(false);
    }

    /// Records the end of the connection: everything in flight is lost. Returns the topic of the
    /// oldest publish that was sent and not acknowledged.
    pub(super) fn disconnected(&self) -> Option<String> {
        self.close();
        let mut in_flight = self.lock();
        in_flight.client = None;
        in_flight.is_deferring = false;
        in_flight.pending_acks.clear();
        in_flight.latest.clear();
        in_flight.subscribing.clear();
        in_flight.probes.clear();
        let queued = std::mem::take(&mut in_flight.queued);
        let sent = std::mem::take(&mut in_flight.sent);
        drop(in_flight);
        let oldest = sent.values().min_by_key(|it| it.order).map(|it| it.topic.clone());
        for pending in queued.into_iter().chain(sent.into_values()) {
            pending.complete(Err(NotAcknowledged::Lost));
        }
        oldest
    }

    pub(super) fn subscribe(&self, filters: Vec<String>) -> bool {
        let mut in_flight = self.lock();
        let Some(client) = &in_flight.client else { return false };
        let is_queued = client.subscribe(&filters);
        if is_queued {
            in_flight.subscribing.push_back(filters);
        }
        is_queued
    }

    pub(super) fn unsubscribe(&self, filters: Vec<String>) -> bool {
        let in_flight = self.lock();
        let Some(client) = &in_flight.client else { return false };
        filters.into_iter().all(|it| client.unsubscribe(it))
    }

    /// Returns the filters that a SUBACK is for.
    pub(super) fn take_subscribed(&self) -> Vec<String> {
        self.lock().subscribing.pop_front().unwrap_or_default()
    }

    /// Records that rumqttc has sent the oldest queued publish under this packet id.
    pub(super) fn assign_packet_id(&self, pkid: u16) {
        let mut in_flight = self.lock();
        if let Some(pending) = in_flight.queued.pop_front() {
            in_flight.sent.insert(pkid, pending);
        }
    }

    /// Completes the publish that a PUBACK is for.
    pub(super) fn complete_publish(
        &self,
        pkid: u16,
        refusal: Option<PublishRefusal>,
    ) -> Option<CompletedPublish> {
        let mut in_flight = self.lock();
        in_flight.acks_seen += 1;
        let pending = in_flight.sent.remove(&pkid)?;
        let connection = in_flight.state(self.probe_topic.is_some());
        drop(in_flight);
        let topic = pending.topic.clone();
        match refusal {
            Some(refusal) => self.record_refusal(&topic, refusal),
            // Of a probe, only the echo counts.
            None if matches!(pending.publisher, Publisher::Probe) => {}
            None => {
                if matches!(pending.publisher, Publisher::Caller { .. }) {
                    count(&self.counters.acknowledged);
                }
                self.refused().clear(&topic);
            }
        }
        let status = match pending.publisher {
            Publisher::Status(status) => Some(status),
            _ => None,
        };
        pending.complete(match refusal {
            Some(refusal) => Err(NotAcknowledged::Refused(refusal)),
            None => Ok(Acknowledged { connection }),
        });
        Some(CompletedPublish { topic, status })
    }

    /// Returns the present connection and whether it is proven that the broker passes on what we
    /// publish on it.
    pub(super) fn connection(&self) -> Option<(ConnectionState, bool)> {
        let in_flight = self.lock();
        let connection = in_flight.state(self.probe_topic.is_some());
        let is_proven = !connection.needs_echo || in_flight.probes.is_proven();
        in_flight.is_open.then_some((connection, is_proven))
    }

    /// Subscribes to our own probes. Returns `false` without room.
    pub(super) fn subscribe_to_probes(&self) -> bool {
        let Some(topic) = &self.probe_topic else { return true };
        let mut in_flight = self.lock();
        if !in_flight.state(true).needs_echo {
            drop(in_flight);
            self.refused().clear(topic);
            return true;
        }
        let Some(client) = &in_flight.client else { return false };
        let is_queued = client.subscribe_unacknowledged(topic.clone());
        if is_queued {
            in_flight.subscribing.push_back(vec![topic.clone()]);
        }
        is_queued
    }

    pub(super) fn is_probe(&self, topic: &str) -> bool {
        self.probe_topic.as_deref() == Some(topic)
    }

    /// Publishes a probe on this connection, if it is still the present one.
    pub(super) fn send_probe(
        &self,
        connection: u64,
    ) -> Result<oneshot::Receiver<Echo>, NotAcknowledged> {
        let topic = self.probe_topic.clone().ok_or(NotAcknowledged::Offline)?;
        let mut in_flight = self.lock();
        if in_flight.connection != connection || !in_flight.is_open {
            return Err(NotAcknowledged::Lost);
        }
        if in_flight.probes.is_deaf() {
            return Err(NotAcknowledged::Refused(PublishRefusal::NoEcho));
        }
        let (sender, receiver) = oneshot::channel();
        let payload = in_flight.probes.add(sender).into_bytes();
        let probe = Message { topic, payload, retain: false };
        in_flight.enqueue(probe.into(), Publisher::Probe)?;
        Ok(receiver)
    }

    pub(super) fn record_echo(&self, payload: &[u8]) {
        if self.lock().probes.record_echo(payload)
            && let Some(topic) = &self.probe_topic
        {
            self.refused().clear(topic);
        }
    }

    /// Records whether the broker accepts the subscription to our probes.
    pub(super) fn record_probe_subscription(&self, is_accepted: bool) {
        self.lock().probes.record_subscription(is_accepted);
        if !is_accepted {
            self.record_missing_echo();
        }
    }

    /// Gives up the probes that have waited too long, and subscribes again where the broker had
    /// rejected that.
    /// Returns whether a probe was lost.
    pub(super) fn tick_probes(&self) -> bool {
        let mut in_flight = self.lock();
        let is_lost = in_flight.probes.tick();
        let is_deaf = in_flight.probes.is_deaf();
        drop(in_flight);
        if is_lost {
            self.record_missing_echo();
        }
        if is_deaf {
            self.subscribe_to_probes();
        }
        is_lost
    }

    fn record_missing_echo(&self) {
        if let Some(topic) = &self.probe_topic {
            self.record_refusal(topic, PublishRefusal::NoEcho);
        }
    }

    /// Returns how many PUBACKs arrived so far, or `None` when none is awaited. A message that the
    /// client has not sent yet awaits one too: its network may have stalled.
    pub(super) fn ack_progress(&self) -> Option<u64> {
        let in_flight = self.lock();
        let is_waiting = !in_flight.sent.is_empty() || !in_flight.queued.is_empty();
        is_waiting.then_some(in_flight.acks_seen)
    }

    /// Decides whether there is room for an inbound message. If so, it counts as held until its
    /// token is used or dropped.
    pub(super) fn admit(self: &Arc<Self>, publish: &Received) -> Admission {
        let bytes = publish.payload.len();
        let expects_ack = publish.pkid != 0;
        let mut in_flight = self.lock();
        let fits = in_flight.held_count == 0
            || (in_flight.held_count < self.inbound_count_max
                && in_flight.held_bytes + bytes <= self.inbound_bytes_max);
        if !fits && !expects_ack {
            drop(in_flight);
            count(&self.counters.dropped);
            return Admission::Deferred;
        }
        if expects_ack && (!fits || in_flight.is_deferring) {
            in_flight.is_deferring = true;
            drop(in_flight);
            count(&self.counters.deferred);
            return Admission::Deferred;
        }
        in_flight.held_count += 1;
        in_flight.held_bytes += bytes;
        let serial = if expects_ack { in_flight.expect_ack(publish.pkid) } else { 0 };
        let connection = in_flight.connection;
        drop(in_flight);
        count(&self.counters.received);
        let state = Arc::clone(self);
        Admission::Admitted(AckToken { state, connection, serial, bytes, is_used: false })
    }

    /// Ends the app's hold of an inbound message: it is committed, or the broker sends it again.
    pub(super) fn release(&self, token: &AckToken, committed: bool) {
        let mut in_flight = self.lock();
        in_flight.held_count -= 1;
        in_flight.held_bytes -= token.bytes;
        if token.serial != 0
            && token.connection == in_flight.connection
            && in_flight.client.is_some()
        {
            if committed {
                in_flight.mark_committed(token.serial);
            } else {
                in_flight.is_deferring = true;
            }
        }
        if in_flight.is_deferring && in_flight.held_count == 0 {
            self.redeliver.notify_one();
        }
    }

    /// Returns whether a reconnect would bring back deferred messages, with room for them.
    pub(super) fn wants_redelivery(&self) -> bool {
        let in_flight = self.lock();
        in_flight.is_deferring && in_flight.held_count == 0
    }

    /// Queues what did not fit into rumqttc's queue before.
    pub(super) fn flush(&self) {
        let mut in_flight = self.lock();
        in_flight.flush_acks();
        in_flight.flush_latest();
    }
}

impl InFlight {
    fn enqueue(
        &mut self,
        described: DescribedMessage,
        publisher: Publisher,
    ) -> Result<(), NotAcknowledged> {
        let client = self.client.as_ref().ok_or(NotAcknowledged::Offline)?;
        let topic = described.message.topic.clone();
        if !client.publish(described) {
            // The topic was checked, so the queue is full: the caller retries.
            return Err(NotAcknowledged::Offline);
        }
        self.publishes += 1;
        self.queued.push_back(PendingPublish { topic, order: self.publishes, publisher });
        Ok(())
    }

    fn state(&self, has_probes: bool) -> ConnectionState {
        let is_old = self.client.as_ref().is_some_and(|it| it.version() == Version::V311);
        ConnectionState { number: self.connection, needs_echo: has_probes && is_old }
    }

    fn flush_latest(&mut self) {
        let Some(client) = &self.client else { return };
        while let Some((topic, (payload, retain))) = self.latest.pop_first() {
            let message = Message { topic: topic.clone(), payload: payload.clone(), retain };
            if !client.publish_unacknowledged(message) {
                self.latest.insert(topic, (payload, retain));
                return;
            }
        }
    }

    fn expect_ack(&mut self, pkid: u16) -> u64 {
        self.serial += 1;
        self.pending_acks.push_back(PendingAck { serial: self.serial, pkid, is_committed: false });
        self.serial
    }

    fn mark_committed(&mut self, serial: u64) {
        if let Some(ack) = self.pending_acks.iter_mut().find(|it| it.serial == serial) {
            ack.is_committed = true;
        }
        self.flush_acks();
    }

    fn flush_acks(&mut self) {
        let Some(client) = &self.client else { return };
        while let Some(head) = self.pending_acks.front().filter(|it| it.is_committed) {
            if !client.acknowledge(head.pkid) {
                return;
            }
            self.pending_acks.pop_front();
        }
    }
}

impl PendingPublish {
    fn complete(self, result: Result<Acknowledged, NotAcknowledged>) {
        if let Publisher::Caller { sender, .. } = self.publisher {
            // An error means that the caller no longer waits.
            sender.send(result).ok();
        }
    }
}

/// The right to acknowledge one inbound message, once. If it is dropped unused, the broker sends
/// the message again.
#[must_use = "dropping it asks the broker to send the message again"]
pub struct AckToken {
    state: Arc<LinkState>,
    connection: u64,
    /// 0 for QoS 0, which nobody acknowledges.
    serial: u64,
    bytes: usize,
    is_used: bool,
}

impl AckToken {
    /// Acknowledges a message that is durable, or rejected with a reply. Never waits. If the link
    /// was lost meanwhile, the broker sends the message again.
    pub fn acknowledge(mut self) {
        self.is_used = true;
        self.state.release(&self, true);
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if !self.is_used {
            self.state.release(self, false);
        }
    }
}

impl fmt::Debug for AckToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AckToken({})", self.serial)
    }
}
