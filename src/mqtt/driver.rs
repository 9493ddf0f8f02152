//! The one loop that polls the client, and what it does when a connection ends.
//!
//! rumqttc 0.25.1 keeps unacknowledged publishes over a reconnect and then loses them, or sends
//! them under packet ids that no longer belong to anyone, depending on `session_present`. After an
//! acknowledgement out of order it can stop for good. So each connection here has a client and an
//! event loop of its own, and both end with it. What was in flight is reported as lost, and the
//! outbox sends it again.
//!
//! Invariants: `EventLoop::poll` is not cancel-safe, so a poll once begun is polled to its end or
//! dropped together with its event loop. There is a pause between any two attempts. The tick is the
//! only timer.
//!
//! Budget: when idle the loop wakes for a keep-alive and a tick (each 15 s), and for nothing else.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep};

use crate::mqtt::client::{self, Accepted, Client, ClientEvent, Poller, Received};
use crate::mqtt::drain;
use crate::mqtt::event::{LinkEvent, Oversized, inbound};
use crate::mqtt::fault::LinkFault;
use crate::mqtt::in_flight::{Admission, LinkState, StatusPublish, count};
use crate::mqtt::recovery::{Recovery, Resubscribe, Verdict};
use crate::mqtt::refusal::PublishRefusal;
use crate::mqtt::settings::LinkSettings;
use crate::mqtt::topics::{OFFLINE, ONLINE};

/// The longest goodbye ("offline", then DISCONNECT): `Driver::drive` returns within two seconds of
/// a stop.
const LEAVE_MAX: Duration = Duration::from_millis(1900);
/// Connections in a row that ended at a message too large for us, before it is drained: at QoS 0
/// the second one already does not receive it.
const OVERSIZED_IN_A_ROW_MAX: u32 = 2;
const FAILED_DRAINS_MAX: u32 = 3;

/// Owns the connection. One future, `drive`, for `app::supervise`.
pub struct Driver {
    settings: LinkSettings,
    tls: Option<Arc<ClientConfig>>,
    state: Arc<LinkState>,
    events: mpsc::Sender<LinkEvent>,
}

/// The receiver of the link's events is gone, so the link ended.
#[derive(Debug, thiserror::Error)]
#[error("the receiver of the MQTT link's events is gone")]
pub struct EventsClosed;

/// How a connection ended.
enum ConnectionEnd {
    /// Requested by the stop signal.
    Stopped,
    /// By the driver, so that the broker sends again what was deferred.
    ToRedeliver,
    /// By the driver, to speak another version of MQTT.
    ToOtherVersion,
    EventsClosed,
    Fault(LinkFault),
}

/// One connection, while it lasts.
struct BrokerConnection {
    client: Client,
    is_connected: bool,
    leaving: Option<Leaving>,
    leave_deadline: Pin<Box<Sleep>>,
    ticks: Interval,
    /// PUBACKs received at the last tick, if one was awaited then.
    acks_at_tick: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stop,
    Redeliver,
    OtherVersion,
}

/// What woke the loop.
enum DriverWake {
    Polled(Result<ClientEvent, LinkFault>),
    Stop,
    LeaveDeadline,
    Redeliver,
    Tick,
}

impl Driver {
    pub(super) fn new(
        settings: LinkSettings,
        tls: Option<Arc<ClientConfig>>,
        state: Arc<LinkState>,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        Self { settings, tls, state, events }
    }

    /// Keeps the link up until `stop` becomes true (or its sender is gone), then publishes
    /// "offline", disconnects and returns within two seconds.
    pub async fn drive(self, mut stop: watch::Receiver<bool>) -> Result<(), EventsClosed> {
        let mut recovery = Recovery::new(self.settings.retry, self.settings.version);
        loop {
            let ended = self.run_connection(&mut stop, &mut recovery).await;
            let unacknowledged = self.state.disconnected();
            let pause = match ended {
                ConnectionEnd::Stopped => return Ok(()),
                ConnectionEnd::EventsClosed => return Err(EventsClosed),
                ConnectionEnd::ToRedeliver => recovery.reconnects.next_pause(false),
                ConnectionEnd::ToOtherVersion => recovery.reconnects.shortest_pause(),
                ConnectionEnd::Fault(fault) => {
                    self.pause_after(fault, unacknowledged.as_deref(), &mut recovery)
                }
            };
            tokio::select! {
                // Still announced as online: the next connection has to publish "offline".
                () = stop_requested(&mut stop) => if !recovery.is_announced { return Ok(()) },
                () = sleep(pause) => {}
            }
            if recovery.oversized_in_a_row >= OVERSIZED_IN_A_ROW_MAX {
                // The drain's connection may be dropped at any point: nothing is in flight on it.
                tokio::select! {
                    () = stop_requested(&mut stop) => return Ok(()),
                    () = self.drain(&mut recovery) => {}
                }
            }
            if self.events.is_closed() {
                return Err(EventsClosed);
            }
        }
    }

    /// One connection, from the attempt to its end.
    async fn run_connection(
        &self,
        stop: &mut watch::Receiver<bool>,
        recovery: &mut Recovery,
    ) -> ConnectionEnd {
        let version = recovery.versions.next();
        let (client, mut event_loop) = client::open(version, &self.settings, self.tls.as_ref());
        let mut connection = BrokerConnection::new(client, self.settings.tick);
        recovery.is_connected = false;
        loop {
            let polled = self.poll_to_end(&mut event_loop, &mut connection, stop, recovery).await;
            let ended = match polled {
                Ok(Ok(event)) => self.on_event(event, &mut connection, recovery),
                Ok(Err(fault)) => {
                    let left = event_loop.take_remaining();
                    let ended = self.handle_remaining(left, &mut connection, recovery);
                    Some(match ended {
                        Some(ended) => ended,
                        None => match connection.leaving {
                            Some(leaving @ (Leaving::Stop | Leaving::OtherVersion)) => {
                                leaving.done()
                            }
                            _ => ConnectionEnd::Fault(fault),
                        },
                    })
                }
                Err(ended) => Some(ended),
            };
            self.state.flush();
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Polls for one event. The same poll goes on while other things happen beside it. `Err`: one of
    /// those ended the connection.
    async fn poll_to_end(
        &self,
        event_loop: &mut Poller,
        connection: &mut BrokerConnection,
        stop: &mut watch::Receiver<bool>,
        recovery: &mut Recovery,
    ) -> Result<Result<ClientEvent, LinkFault>, ConnectionEnd> {
        let mut poll = pin!(event_loop.poll());
        loop {
            let leaving = connection.leaving;
            let wake = tokio::select! {
                polled = &mut poll => DriverWake::Polled(polled),
                () = stop_requested(stop), if leaving != Some(Leaving::Stop) => DriverWake::Stop,
                () = &mut connection.leave_deadline, if leaving.is_some() => {
                    DriverWake::LeaveDeadline
                }
                () = self.state.redeliver.notified(), if leaving.is_none() => DriverWake::Redeliver,
                _ = connection.ticks.tick() => DriverWake::Tick,
            };
            let ended = match wake {
                DriverWake::Polled(polled) => return Ok(polled),
                DriverWake::LeaveDeadline => leaving.map(Leaving::done),
                DriverWake::Redeliver => self.leave_to_redeliver(connection),
                DriverWake::Tick => self.on_tick(connection, recovery),
                DriverWake::Stop => self.leave_to_stop(connection, recovery.is_announced),
            };
            if let Some(ended) = ended {
                return Err(ended);
            }
        }
    }

    fn on_event(
        &self,
        event: ClientEvent,
        connection: &mut BrokerConnection,
        recovery: &mut Recovery,
    ) -> Option<ConnectionEnd> {
        match event {
            ClientEvent::Connected(accepted) => self.on_connected(accepted, connection, recovery),
            ClientEvent::Subscribed(accepted) => {
                recovery.was_subscribed = true;
                self.on_subscribed(&accepted)
            }
            ClientEvent::Publish(received) => self.on_inbound(received),
            ClientEvent::Acknowledged { pkid, refusal } => {
                self.on_acknowledged(pkid, refusal, connection, recovery)
            }
            ClientEvent::Sent(pkid) => {
                self.state.assign_packet_id(pkid);
                None
            }
            ClientEvent::DisconnectSent => connection.leaving.map(Leaving::done),
            ClientEvent::Violation(fault) => Some(ConnectionEnd::Fault(fault)),
            ClientEvent::Other => None,
        }
    }

    fn on_connected(
        &self,
        accepted: Accepted,
        connection: &mut BrokerConnection,
        recovery: &mut Recovery,
    ) -> Option<ConnectionEnd> {
        if recovery.versions.record_accepted() == Verdict::Leave {
            connection.leave(Leaving::OtherVersion);
            return connection.disconnect();
        }
        connection.is_connected = true;
        recovery.is_connected = true;
        recovery.is_announced = true;
        recovery.last_fault = None;
        self.state.connected(connection.client.clone(), accepted);
        if connection.leaving == Some(Leaving::Stop) {
            return self.publish_offline(connection);
        }
        let resubscribe = std::mem::replace(&mut recovery.resubscribe, Resubscribe::Always);
        let rely_on_session = resubscribe == Resubscribe::UnlessSessionPresent
            && recovery.was_subscribed
            && accepted.session_present;
        let is_queued = self.state.subscribe_to_probes()
            && (rely_on_session
                || self.settings.subscriptions.is_empty()
                || self.state.subscribe(self.settings.subscriptions.clone()));
        if !(self.publish_status(ONLINE, StatusPublish::Online) && is_queued) {
            return Some(ConnectionEnd::Fault(LinkFault::QueueFull));
        }
        self.state.online.send_replace(true);
        let version = connection.client.version().as_str();
        let session_present = accepted.session_present;
        tracing::info!(session_present, version, "MQTT link is up");
        self.notify(LinkEvent::Connected { session_present })
    }

    fn on_subscribed(&self, accepted: &[bool]) -> Option<ConnectionEnd> {
        let mut filters = self.state.take_subscribed();
        let refused = filters.iter().zip(accepted).filter(|it| !*it.1);
        let refused: Vec<String> = refused.map(|(filter, _)| filter.clone()).collect();
        if filters.iter().any(|it| self.state.is_probe(it)) {
            self.state.record_probe_subscription(refused.is_empty());
            return None;
        }
        filters.retain(|it| !refused.contains(it));
        for filter in refused {
            if let Some(ended) = self.notify(LinkEvent::SubscriptionRefused { filter }) {
                return Some(ended);
            }
        }
        self.notify(LinkEvent::Subscribed { filters })
    }

    fn on_inbound(&self, received: Received) -> Option<ConnectionEnd> {
        if received.pkid == 0 && self.state.is_probe(&received.topic) {
            self.state.record_echo(&received.payload);
            return None;
        }
        match self.state.admit(&received) {
            Admission::Admitted(token) => self.notify(LinkEvent::Inbound(inbound(received, token))),
            Admission::Deferred => {
                // The app may have released its last message just now; then nothing else would
                // request the redelivery.
                if self.state.wants_redelivery() {
                    self.state.redeliver.notify_one();
                }
                None
            }
        }
    }

    fn on_acknowledged(
        &self,
        pkid: u16,
        refusal: Option<PublishRefusal>,
        connection: &BrokerConnection,
        recovery: &mut Recovery,
    ) -> Option<ConnectionEnd> {
        let completed = self.state.complete_publish(pkid, refusal)?;
        recovery.closed_on.record_acknowledged(&completed.topic);
        match completed.status? {
            StatusPublish::Online => {
                recovery.record_online();
                None
            }
            StatusPublish::Offline | StatusPublish::StillOnline => connection.disconnect(),
        }
    }

    /// Never waits: a full queue means that the app received nothing for minutes, and the link must
    /// go on.
    fn notify(&self, event: LinkEvent) -> Option<ConnectionEnd> {
        match self.events.try_send(event) {
            Ok(()) => None,
            Err(TrySendError::Closed(_)) => Some(ConnectionEnd::EventsClosed),
            Err(TrySendError::Full(_)) => {
                count(&self.state.counters.events_dropped);
                None
            }
        }
    }

    fn on_tick(
        &self,
        connection: &mut BrokerConnection,
        recovery: &mut Recovery,
    ) -> Option<ConnectionEnd> {
        let acks = self.state.ack_progress();
        if acks.is_some() && acks == connection.acks_at_tick {
            return Some(ConnectionEnd::Fault(LinkFault::NoAcknowledgement));
        }
        connection.acks_at_tick = acks;
        if connection.is_connected {
            recovery.record_good_tick();
            let status = &self.settings.status_topic;
            if connection.leaving.is_none() && self.state.is_refused(status) {
                // Nothing else would notice that the access rule was corrected.
                self.publish_status(ONLINE, StatusPublish::Online);
            }
        }
        if self.state.tick_probes()
            && connection.leaving.is_none()
            && recovery.versions.doubt_version_311()
        {
            connection.leave(Leaving::OtherVersion);
            return connection.disconnect();
        }
        self.state.flush();
        None
    }

    fn leave_to_stop(
        &self,
        connection: &mut BrokerConnection,
        is_announced: bool,
    ) -> Option<ConnectionEnd> {
        connection.leave(Leaving::Stop);
        match (connection.is_connected, is_announced) {
            (true, _) => self.publish_offline(connection),
            (false, true) => None, // As soon as the connection stands.
            (false, false) => Some(ConnectionEnd::Stopped),
        }
    }

    fn publish_offline(&self, connection: &BrokerConnection) -> Option<ConnectionEnd> {
        self.state.close();
        // After what is already in flight, so its acknowledgement comes last and completes all
        // before it.
        let is_queued = self.publish_status(OFFLINE, StatusPublish::Offline);
        if is_queued { None } else { connection.disconnect() }
    }

    fn leave_to_redeliver(&self, connection: &mut BrokerConnection) -> Option<ConnectionEnd> {
        if !connection.is_connected || !self.state.wants_redelivery() {
            return None;
        }
        connection.leave(Leaving::Redeliver);
        self.state.close();
        // A clean DISCONNECT, so no last will: to everyone else the device has never been away. But
        // first the broker must have read our acknowledgements, and only a PUBACK shows that: what
        // is still unread when a socket is closed over incoming data can be lost (TCP resets the
        // connection).
        let is_queued = self.publish_status(ONLINE, StatusPublish::StillOnline);
        if is_queued { None } else { connection.disconnect() }
    }

    fn publish_status(&self, payload: &str, publish: StatusPublish) -> bool {
        self.state.publish_status(&self.settings.status_topic, payload, publish)
    }

    /// Handles what was read together with what ended the connection: acknowledgements count, and
    /// commands are handed over (the broker sends them again, unless it died and forgot them).
    fn handle_remaining(
        &self,
        left: Vec<ClientEvent>,
        connection: &mut BrokerConnection,
        recovery: &mut Recovery,
    ) -> Option<ConnectionEnd> {
        left.into_iter()
            .filter_map(|event| self.on_event(event, connection, recovery))
            .find(|it| matches!(it, ConnectionEnd::EventsClosed))
    }

    /// Reports why a connection ended, and returns the pause before the next.
    fn pause_after(
        &self,
        fault: LinkFault,
        unacknowledged: Option<&str>,
        recovery: &mut Recovery,
    ) -> Duration {
        if !recovery.is_connected && recovery.versions.record_failure(&fault) {
            tracing::debug!(%fault, "the next attempt speaks another version of MQTT");
            return recovery.reconnects.shortest_pause();
        }
        if recovery.is_connected {
            recovery.record_end();
        }
        let topic = unacknowledged.filter(|it| recovery.closed_on.record_end(it, &fault));
        if let Some(topic) = topic {
            self.state.record_refusal(topic, PublishRefusal::Closed);
        }
        let is_refused = fault.is_refused() || topic.is_some();
        self.report_fault(fault, recovery);
        recovery.reconnects.next_pause(is_refused)
    }

    fn report_fault(&self, fault: LinkFault, recovery: &mut Recovery) {
        self.state.set_fault(Some(fault.clone()));
        if let LinkFault::Oversized { bytes } = fault {
            count(&self.state.counters.oversized);
            recovery.oversized_in_a_row += 1;
            if recovery.oversized_in_a_row < OVERSIZED_IN_A_ROW_MAX {
                let head = Vec::new();
                self.notify(LinkEvent::Oversized(Oversized { bytes, topic: None, head }));
            }
        }
        // The broker publishes our last will.
        recovery.is_announced = false;
        if !recovery.is_connected && recovery.last_fault.as_ref() == Some(&fault) {
            return;
        }
        if !recovery.closed_on.is_known() {
            tracing::warn!(%fault, "MQTT link is down");
        }
        recovery.last_fault = Some(fault.clone());
        self.notify(if recovery.is_connected {
            LinkEvent::Lost { fault }
        } else {
            LinkEvent::Unreachable { fault }
        });
    }

    /// Returns what is too large among the retained messages of the topics that are scanned.
    async fn scan_retained(&self) -> Vec<Oversized> {
        let filters = &self.settings.scanned;
        if filters.is_empty() {
            return Vec::new();
        }
        let found = drain::scan_retained(&self.settings, self.tls.as_ref(), filters).await;
        found.unwrap_or_else(|fault| {
            tracing::warn!(%fault, "cannot scan the retained messages for one that is too large");
            Vec::new()
        })
    }

    /// Removes what is too large for us from the broker; see `drain`.
    async fn drain(&self, recovery: &mut Recovery) {
        recovery.resubscribe = Resubscribe::UnlessSessionPresent;
        match drain::drain_session(&self.settings, self.tls.as_ref()).await {
            Ok(found) => {
                recovery.oversized_in_a_row = 0;
                recovery.failed_drains = 0;
                let retained = self.scan_retained().await;
                for oversized in found.into_iter().chain(retained) {
                    tracing::warn!(bytes = oversized.bytes, "a message was dropped: too large");
                    self.notify(LinkEvent::Oversized(oversized));
                }
            }
            Err(fault) => {
                recovery.failed_drains += 1;
                tracing::warn!(%fault, "a message that is too large could not be drained");
                if recovery.failed_drains >= FAILED_DRAINS_MAX
                    && drain::purge_session(&self.settings, self.tls.as_ref()).await.is_ok()
                {
                    tracing::error!("the session was purged: commands queued in it are lost");
                    self.notify(LinkEvent::SessionPurged { fault });
                    recovery.forget_session();
                }
            }
        }
    }
}

impl BrokerConnection {
    fn new(client: Client, tick: Duration) -> Self {
        let mut ticks = interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset(); // The first one would be due at once.
        Self {
            client,
            is_connected: false,
            leaving: None,
            leave_deadline: Box::pin(sleep(LEAVE_MAX)),
            ticks,
            acks_at_tick: None,
        }
    }

    /// Starts to leave, in a limited time.
    fn leave(&mut self, leaving: Leaving) {
        if self.leaving.replace(leaving).is_none() {
            self.leave_deadline.as_mut().reset(Instant::now() + LEAVE_MAX);
        }
    }

    fn disconnect(&self) -> Option<ConnectionEnd> {
        if self.client.disconnect() { None } else { self.leaving.map(Leaving::done) }
    }
}

impl Leaving {
    fn done(self) -> ConnectionEnd {
        match self {
            Self::Stop => ConnectionEnd::Stopped,
            Self::Redeliver => ConnectionEnd::ToRedeliver,
            Self::OtherVersion => ConnectionEnd::ToOtherVersion,
        }
    }
}

async fn stop_requested(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    stop.wait_for(|it| *it).await.map(drop).ok();
}
