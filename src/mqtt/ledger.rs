//! What is under way in both directions on the present connection, and nothing else.
//!
//! Out: rumqttc's `publish` gives no packet id. So each QoS 1 publish is put into rumqttc's queue and into `queued`
//! under one lock, and both are first in, first out: `Outgoing::Publish(id)` belongs to the head of `queued`, and PUBACK
//! completes by id. This holds because every QoS 1 publish of the process goes through here.
//!
//! In: `owed` holds the inbound messages of this connection in order of arrival; an acknowledgement goes out when it and
//! all before it were given (rumqttd drops a client that does otherwise, and loses the message at the head).
//!
//! Invariants: the lock is never held across an `.await` or a call out; a connection's end empties `queued`, `in_flight`
//! and `owed`, and reports every waiting publish as lost; what the app holds is counted over connections.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rumqttc::{AsyncClient, Publish, QoS, SubscribeFilter};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::link::{AckToken, LinkSettings, Message, NotAcknowledged, packet_bytes};

/// Topics that may wait for room at QoS 0. We have one (health); more is a mistake, and bounded all the same.
const LATEST_MAX: usize = 16;

pub(super) type Waiting = oneshot::Receiver<Result<(), NotAcknowledged>>;

pub(super) struct Shared {
    ledger: Mutex<Ledger>,
    window: Arc<Semaphore>,
    /// A console's coming and going is nobody's business later.
    status_retained: bool,
    packet_bytes_max_out: usize,
    inbound_count_max: usize,
    inbound_bytes_max: usize,
    /// Wakes the driver: the app's hands are empty, and something waits to be sent again.
    pub(super) nudge: Notify,
    pub(super) online: watch::Sender<bool>,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) connects: AtomicU64,
    pub(super) acknowledged: AtomicU64,
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
struct Ledger {
    /// Counts connections, so that a token of an earlier one is recognised.
    connection: u64,
    client: Option<AsyncClient>,
    /// Whether callers may publish: from CONNACK until the link goes down or says goodbye.
    open: bool,
    queued: VecDeque<Waiter>,
    in_flight: HashMap<u16, Waiter>,
    /// Counts PUBACKs: a broker that sends none while we wait has stalled.
    acks_seen: u64,
    latest: BTreeMap<String, (Vec<u8>, bool)>,
    /// Subscriptions that the broker has not answered; it answers in their order.
    subscribing: VecDeque<Vec<String>>,
    owed: VecDeque<Owed>,
    serial: u64,
    held_count: usize,
    held_bytes: usize,
    /// From the first message let go (or token dropped) on: so is everything after it, which keeps the order.
    deferring: bool,
}

enum Waiter {
    Caller { answer: oneshot::Sender<Result<(), NotAcknowledged>>, _place: OwnedSemaphorePermit },
    Landmark(Landmark),
}

/// A publish of the driver's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landmark {
    Online,
    /// Says nothing new; its acknowledgement shows that the broker has read everything before it.
    StillOnline,
    Offline,
}

struct Owed {
    serial: u64,
    pkid: u16,
    given: bool,
}

/// What became of an inbound message.
pub(super) enum Admission {
    Admitted(AckToken),
    Deferred,
}

impl Shared {
    pub(super) fn new(settings: &LinkSettings) -> Self {
        Self {
            ledger: Mutex::default(),
            window: Arc::new(Semaphore::new(settings.window.into())),
            packet_bytes_max_out: settings.packet_bytes_max_out,
            status_retained: settings.persistent,
            inbound_count_max: settings.inbound_count_max,
            inbound_bytes_max: settings.inbound_bytes_max,
            nudge: Notify::new(),
            online: watch::Sender::new(false),
            counters: Counters::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics while it holds the ledger")
    }

    /// Puts a message under way. Waits only for a place in the window, which a lost connection gives back too.
    pub(super) async fn publish(&self, message: Message) -> Result<Waiting, NotAcknowledged> {
        let bytes = packet_bytes(&message.topic, &message.payload);
        if bytes > self.packet_bytes_max_out {
            return Err(NotAcknowledged::TooLarge { bytes, bytes_max: self.packet_bytes_max_out });
        }
        // rumqttc would write a longer one with a wrong length.
        let lengths = 1..=usize::from(u16::MAX);
        if !lengths.contains(&message.topic.len()) || !rumqttc::valid_topic(&message.topic) {
            return Err(NotAcknowledged::BadTopic);
        }
        let window = Arc::clone(&self.window);
        let place = window.acquire_owned().await.map_err(|_closed| NotAcknowledged::Offline)?;
        let (answer, waiting) = oneshot::channel();
        let mut ledger = self.lock();
        if !ledger.open {
            return Err(NotAcknowledged::Offline);
        }
        ledger.enqueue(message, Waiter::Caller { answer, _place: place })?;
        Ok(waiting)
    }

    /// A publish of the driver's own, in order with the callers'. `false` when there is no room or no connection.
    pub(super) fn publish_landmark(&self, topic: &str, payload: &str, landmark: Landmark) -> bool {
        let message = Message {
            topic: topic.to_owned(),
            payload: payload.into(),
            retain: self.status_retained,
        };
        self.lock().enqueue(message, Waiter::Landmark(landmark)).is_ok()
    }

    pub(super) fn publish_latest(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        let fits = packet_bytes(topic, &payload) <= self.packet_bytes_max_out;
        let mut ledger = self.lock();
        let known = ledger.latest.contains_key(topic);
        if !fits || !ledger.open || (!known && ledger.latest.len() >= LATEST_MAX) {
            return count(&self.counters.latest_dropped);
        }
        if ledger.latest.insert(topic.to_owned(), (payload, retain)).is_some() {
            count(&self.counters.latest_dropped);
        }
        ledger.flush_latest();
    }

    /// A connection stands: from now on callers publish on it.
    pub(super) fn connected(&self, client: AsyncClient) {
        let mut ledger = self.lock();
        ledger.connection += 1;
        ledger.client = Some(client);
        ledger.open = true;
        ledger.deferring = false;
        drop(ledger);
        count(&self.counters.connects);
    }

    /// Callers find the link down from now on; what is under way may still be acknowledged.
    pub(super) fn close(&self) {
        self.lock().open = false;
        self.online.send_replace(false);
    }

    /// The connection is over: all that was under way is lost.
    pub(super) fn disconnected(&self) {
        self.close();
        let mut ledger = self.lock();
        ledger.client = None;
        ledger.deferring = false;
        ledger.owed.clear();
        ledger.latest.clear();
        ledger.subscribing.clear();
        let queued = std::mem::take(&mut ledger.queued);
        let in_flight = std::mem::take(&mut ledger.in_flight);
        drop(ledger);
        for waiter in queued.into_iter().chain(in_flight.into_values()) {
            waiter.answer(Err(NotAcknowledged::Lost));
        }
    }

    pub(super) fn subscribe(&self, filters: Vec<String>) -> bool {
        let mut ledger = self.lock();
        let Some(client) = &ledger.client else { return false };
        let asked = filters.iter().map(|it| SubscribeFilter::new(it.clone(), QoS::AtLeastOnce));
        let taken = client.try_subscribe_many(asked).is_ok();
        if taken {
            ledger.subscribing.push_back(filters);
        }
        taken
    }

    pub(super) fn unsubscribe(&self, filters: Vec<String>) -> bool {
        let ledger = self.lock();
        let Some(client) = &ledger.client else { return false };
        filters.into_iter().all(|it| client.try_unsubscribe(it).is_ok())
    }

    /// SUBACK: what it answers.
    pub(super) fn subscribed(&self) -> Vec<String> {
        self.lock().subscribing.pop_front().unwrap_or_default()
    }

    /// rumqttc has put the oldest queued publish on the wire under this packet id.
    pub(super) fn sent(&self, pkid: u16) {
        let mut ledger = self.lock();
        if let Some(waiter) = ledger.queued.pop_front() {
            ledger.in_flight.insert(pkid, waiter);
        }
    }

    /// PUBACK. Tells which of the driver's own publishes it was for, if one.
    pub(super) fn acknowledged(&self, pkid: u16) -> Option<Landmark> {
        let mut ledger = self.lock();
        ledger.acks_seen += 1;
        let waiter = ledger.in_flight.remove(&pkid)?;
        drop(ledger);
        match waiter {
            Waiter::Landmark(landmark) => Some(landmark),
            Waiter::Caller { .. } => {
                count(&self.counters.acknowledged);
                waiter.answer(Ok(()));
                None
            }
        }
    }

    /// How many PUBACKs were seen so far, or `None` when none is awaited.
    pub(super) fn awaited_after(&self) -> Option<u64> {
        let ledger = self.lock();
        (!ledger.in_flight.is_empty()).then_some(ledger.acks_seen)
    }

    /// Whether there is room for an inbound message; if so, it counts as held until its token is used or dropped.
    pub(super) fn admit(self: &Arc<Self>, publish: &Publish) -> Admission {
        let bytes = publish.payload.len();
        let acknowledged = publish.qos != QoS::AtMostOnce;
        let mut ledger = self.lock();
        let fits = ledger.held_count == 0
            || (ledger.held_count < self.inbound_count_max
                && ledger.held_bytes + bytes <= self.inbound_bytes_max);
        if !fits && !acknowledged {
            drop(ledger);
            count(&self.counters.dropped);
            return Admission::Deferred;
        }
        if acknowledged && (!fits || ledger.deferring) {
            ledger.deferring = true;
            drop(ledger);
            count(&self.counters.deferred);
            return Admission::Deferred;
        }
        ledger.held_count += 1;
        ledger.held_bytes += bytes;
        let serial = if acknowledged { ledger.owe(publish.pkid) } else { 0 };
        let connection = ledger.connection;
        drop(ledger);
        count(&self.counters.received);
        Admission::Admitted(AckToken::new(Arc::clone(self), connection, serial, bytes))
    }

    /// The app lets go of an inbound message: committed, or to be sent again.
    pub(super) fn release(&self, token: &AckToken, committed: bool) {
        let mut ledger = self.lock();
        ledger.held_count -= 1;
        ledger.held_bytes -= token.bytes;
        if token.serial != 0 && token.connection == ledger.connection && ledger.client.is_some() {
            if committed {
                ledger.give(token.serial);
            } else {
                ledger.deferring = true;
            }
        }
        if ledger.deferring && ledger.held_count == 0 {
            self.nudge.notify_one();
        }
    }

    /// Whether a reconnect would bring back what was let go, with room for it.
    pub(super) fn wants_redelivery(&self) -> bool {
        let ledger = self.lock();
        ledger.deferring && ledger.held_count == 0
    }

    /// Hands over what did not fit into rumqttc's queue at the time.
    pub(super) fn flush(&self) {
        let mut ledger = self.lock();
        ledger.flush_owed();
        ledger.flush_latest();
    }
}

impl Ledger {
    fn enqueue(&mut self, message: Message, waiter: Waiter) -> Result<(), NotAcknowledged> {
        let client = self.client.as_ref().ok_or(NotAcknowledged::Offline)?;
        client
            .try_publish(message.topic, QoS::AtLeastOnce, message.retain, message.payload)
            // The topic was checked, so this is a queue that is full for once: the caller tries again.
            .map_err(|_full| NotAcknowledged::Offline)?;
        self.queued.push_back(waiter);
        Ok(())
    }

    fn flush_latest(&mut self) {
        let Some(client) = &self.client else { return };
        while let Some((topic, (payload, retain))) = self.latest.pop_first() {
            if client.try_publish(&topic, QoS::AtMostOnce, retain, payload.clone()).is_err() {
                self.latest.insert(topic, (payload, retain));
                return;
            }
        }
    }

    fn owe(&mut self, pkid: u16) -> u64 {
        self.serial += 1;
        self.owed.push_back(Owed { serial: self.serial, pkid, given: false });
        self.serial
    }

    fn give(&mut self, serial: u64) {
        if let Some(owed) = self.owed.iter_mut().find(|it| it.serial == serial) {
            owed.given = true;
        }
        self.flush_owed();
    }

    fn flush_owed(&mut self) {
        let Some(client) = &self.client else { return };
        while let Some(head) = self.owed.front().filter(|it| it.given) {
            let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
            publish.pkid = head.pkid;
            if client.try_ack(&publish).is_err() {
                return;
            }
            self.owed.pop_front();
        }
    }
}

impl Waiter {
    fn answer(self, result: Result<(), NotAcknowledged>) {
        if let Self::Caller { answer, .. } = self {
            // An error means that the caller no longer waits.
            answer.send(result).ok();
        }
    }
}
