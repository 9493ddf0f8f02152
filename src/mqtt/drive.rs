//! The one loop that polls rumqttc, and what it does when a connection ends.
//!
//! rumqttc 0.25.1 keeps unacknowledged publishes over a reconnect and then loses them, or sends them under packet ids
//! that no longer belong to anyone, depending on `session_present`; after an acknowledgement out of order it can stop for
//! good. So a connection here has one client and one event loop, and its end is the end of both: what was under way is
//! reported as lost, and the outbox, which is the truth, sends it again.
//!
//! Invariants: `EventLoop::poll` is not cancel-safe, so a poll once begun is polled to its end or dropped together with
//! its event loop; between two attempts there is always a pause; the tick is the only timer.
//!
//! Budget: idle it wakes for a keep-alive and a tick (each 15 s), nothing else.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    AsyncClient, ConnAck, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill,
    MqttOptions, NetworkOptions, Outgoing, Packet, Publish, QoS, StateError, SubAck,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::ledger::{Admission, Landmark, Shared, count};
use super::link::{LinkEvent, LinkSettings, Oversized, RetrySettings, inbound};
use super::random_fraction;
use super::sift;
use super::topics::{OFFLINE, ONLINE};

/// A connection that has lived this long counts as good, and a PUBACK may take at most two of these.
const TICK: Duration = Duration::from_secs(15);
/// For connecting, and for rumqttc's flush: its default of 5 s is too short for 1 MiB over a bad mobile link.
const CONNECT_TIMEOUT_S: u64 = 20;
const GOODBYE_MAX: Duration = Duration::from_millis(1900);
/// Connections in a row that ended at a message too large for us, before it is sifted out: at QoS 0 the second already
/// does not see it.
const STRIKES_MAX: u32 = 2;
const SIFTS_MAX: u32 = 3;

/// Owns the connection. One future, `drive`, for `app::supervise`.
pub struct Driver {
    settings: LinkSettings,
    tls: Option<Arc<ClientConfig>>,
    shared: Arc<Shared>,
    events: mpsc::Sender<LinkEvent>,
}

/// Nobody takes the link's events any more, so it ended.
#[derive(Debug, thiserror::Error)]
#[error("nobody listens to the MQTT link")]
pub struct NobodyListens;

/// How a connection ended.
enum Ended {
    /// As asked, by the stop signal.
    Stopped,
    /// By ourselves, so that the broker sends again what was let go.
    ToRedeliver,
    NobodyListens,
    Fault(Fault),
}

struct Fault {
    why: String,
    /// The broker does not want us: no use in asking again soon.
    refused: bool,
    oversized: Option<usize>,
}

impl Fault {
    fn ours(why: &str) -> Self {
        Self { why: why.to_owned(), refused: false, oversized: None }
    }
}

/// What is remembered from one connection to the next.
struct Recovery {
    backoff: Backoff,
    /// Connections in a row that ended at a message too large for us.
    strikes: u32,
    sifts_failed: u32,
    /// Whether others still see us as online: we left by a clean DISCONNECT and mean to come back.
    announced: bool,
    connected: bool,
    subscribe: Subscribe,
    /// Whether the broker took our subscriptions since the start, which is what makes relying on them right.
    subscribed: bool,
    last_why: Option<String>,
}

/// A *retained* message that is too large is sent again at each SUBSCRIBE. After sifting the broker still has our
/// subscriptions, so once we rely on that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subscribe {
    Anew,
    AsBefore,
}

/// One connection, while it lasts.
struct Run {
    client: AsyncClient,
    connected: bool,
    leaving: Option<Leaving>,
    subscribed: bool,
    /// PUBACKs seen at the last tick, if one was awaited then.
    awaited_after: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stop,
    Redeliver,
}

/// What woke the loop.
enum Wake {
    Polled(Result<Event, ConnectionError>),
    Stop,
    Deadline,
    Nudge,
    Tick,
}

impl Driver {
    pub(super) fn new(
        settings: LinkSettings,
        tls: Option<Arc<ClientConfig>>,
        shared: Arc<Shared>,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        Self { settings, tls, shared, events }
    }

    /// Keeps the link up until `stop` becomes true (or its sender is gone), then says goodbye and returns within two
    /// seconds.
    pub async fn drive(self, mut stop: watch::Receiver<bool>) -> Result<(), NobodyListens> {
        let mut recovery = Recovery::new(self.settings.retry);
        loop {
            let ended = self.connection(&mut stop, &mut recovery).await;
            self.shared.disconnected();
            let pause = match ended {
                Ended::Stopped => return Ok(()),
                Ended::NobodyListens => return Err(NobodyListens),
                Ended::ToRedeliver => recovery.backoff.next(false),
                Ended::Fault(fault) => {
                    let refused = fault.refused;
                    self.report(fault, &mut recovery);
                    recovery.backoff.next(refused)
                }
            };
            tokio::select! {
                // Still announced as online: the next connection has to say that we are not.
                () = asked(&mut stop) => if !recovery.announced { return Ok(()) },
                () = sleep(pause) => {}
            }
            if recovery.strikes >= STRIKES_MAX {
                // Its connection may be dropped at any point: nothing of ours is under way on it.
                tokio::select! {
                    () = asked(&mut stop) => return Ok(()),
                    () = self.sift(&mut recovery) => {}
                }
            }
            if self.events.is_closed() {
                return Err(NobodyListens);
            }
        }
    }

    /// One connection, from the attempt to its end.
    async fn connection(&self, stop: &mut watch::Receiver<bool>, recovery: &mut Recovery) -> Ended {
        let (client, mut eventloop) = AsyncClient::new(self.options(), self.queue_len());
        eventloop.set_network_options(network_options());
        let mut run =
            Run { client, connected: false, leaving: None, subscribed: true, awaited_after: None };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await; // The first one is due at once.
        let mut goodbye = pin!(sleep(GOODBYE_MAX));
        recovery.connected = false;
        loop {
            let polled = {
                let mut poll = pin!(eventloop.poll());
                // The same poll goes on while other things happen beside it.
                loop {
                    let stopping = run.leaving == Some(Leaving::Stop);
                    let leaving_already = run.leaving.is_some();
                    let wake = tokio::select! {
                        polled = &mut poll => Wake::Polled(polled),
                        () = asked(stop), if !stopping => Wake::Stop,
                        () = &mut goodbye, if run.leaving.is_some() => Wake::Deadline,
                        () = self.shared.nudge.notified(), if run.leaving.is_none() => Wake::Nudge,
                        () = tick(&mut ticks) => Wake::Tick,
                    };
                    let ended = match wake {
                        Wake::Polled(polled) => break polled,
                        Wake::Deadline => run.leaving.map(Leaving::done),
                        Wake::Nudge => self.leave_to_redeliver(&mut run),
                        Wake::Tick => self.tick(&mut run, recovery),
                        Wake::Stop => self.leave_to_stop(&mut run, recovery.announced),
                    };
                    if let Some(ended) = ended {
                        return ended;
                    }
                    if run.leaving.is_some() && !leaving_already {
                        goodbye.as_mut().reset(tokio::time::Instant::now() + GOODBYE_MAX);
                    }
                }
            };
            let ended = match polled {
                Ok(event) => self.on_event(event, &mut run, recovery),
                Err(error) => Some(match self.settle(&mut eventloop, &mut run, recovery) {
                    Some(ended) => ended,
                    None if run.leaving == Some(Leaving::Stop) => Ended::Stopped,
                    None => Ended::Fault(fault(error)),
                }),
            };
            self.shared.flush();
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    fn on_event(&self, event: Event, run: &mut Run, recovery: &mut Recovery) -> Option<Ended> {
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => self.on_connected(&ack, run, recovery),
            Event::Incoming(Packet::SubAck(ack)) => {
                recovery.subscribed = true;
                self.on_subscribed(&ack)
            }
            Event::Incoming(Packet::Publish(publish)) => self.on_inbound(publish),
            Event::Incoming(Packet::PubAck(ack)) => match self.shared.acknowledged(ack.pkid) {
                Some(Landmark::Online) => {
                    recovery.backoff.worked();
                    None
                }
                Some(Landmark::Offline | Landmark::StillOnline) => disconnect(run),
                None => None,
            },
            Event::Outgoing(Outgoing::Publish(pkid)) if pkid != 0 => {
                self.shared.sent(pkid);
                None
            }
            Event::Outgoing(Outgoing::AwaitAck(_)) => Some(Ended::Fault(Fault::ours(
                "the broker acknowledges out of order, and packet ids ran out",
            ))),
            Event::Outgoing(Outgoing::Disconnect) => run.leaving.map(Leaving::done),
            _ => None,
        }
    }

    fn on_connected(&self, ack: &ConnAck, run: &mut Run, recovery: &mut Recovery) -> Option<Ended> {
        run.connected = true;
        recovery.connected = true;
        recovery.announced = true;
        recovery.last_why = None;
        self.shared.connected(run.client.clone());
        if run.leaving == Some(Leaving::Stop) {
            return self.say_offline(run);
        }
        let rely_on_session =
            recovery.subscribe == Subscribe::AsBefore && recovery.subscribed && ack.session_present;
        recovery.subscribe = Subscribe::Anew;
        if !rely_on_session && !self.settings.subscriptions.is_empty() {
            run.subscribed = self.shared.subscribe(self.settings.subscriptions.clone());
        }
        let announced =
            self.shared.publish_landmark(&self.settings.status_topic, ONLINE, Landmark::Online);
        if !run.subscribed || !announced {
            return Some(Ended::Fault(Fault::ours("the queue of a new connection was full")));
        }
        self.shared.online.send_replace(true);
        tracing::info!(session_present = ack.session_present, "mqtt link is up");
        self.tell(LinkEvent::Connected { session_present: ack.session_present })
    }

    fn on_subscribed(&self, ack: &SubAck) -> Option<Ended> {
        let mut filters = self.shared.subscribed();
        let refused = filters
            .iter()
            .zip(&ack.return_codes)
            .filter(|it| *it.1 == SubscribeReasonCode::Failure);
        let refused: Vec<String> = refused.map(|(filter, _)| filter.clone()).collect();
        filters.retain(|it| !refused.contains(it));
        for filter in refused {
            tracing::error!(filter, "the broker refuses our subscription: check its access rules");
            if let Some(ended) = self.tell(LinkEvent::SubscriptionRefused { filter }) {
                return Some(ended);
            }
        }
        self.tell(LinkEvent::Subscribed { filters })
    }

    fn on_inbound(&self, publish: Publish) -> Option<Ended> {
        match self.shared.admit(&publish) {
            Admission::Admitted(token) => self.tell(LinkEvent::Inbound(inbound(publish, token))),
            Admission::Deferred => {
                // The app may have let go of its last one just now, and then nobody else would say so.
                if self.shared.wants_redelivery() {
                    self.shared.nudge.notify_one();
                }
                None
            }
        }
    }

    /// Never waits: a full queue means that the app took nothing for minutes, and the link must go on.
    fn tell(&self, event: LinkEvent) -> Option<Ended> {
        match self.events.try_send(event) {
            Ok(()) => None,
            Err(TrySendError::Closed(_)) => Some(Ended::NobodyListens),
            Err(TrySendError::Full(_)) => {
                count(&self.shared.counters.events_dropped);
                None
            }
        }
    }

    fn tick(&self, run: &mut Run, recovery: &mut Recovery) -> Option<Ended> {
        let awaited_after = self.shared.awaited_after();
        if awaited_after.is_some() && awaited_after == run.awaited_after {
            return Some(Ended::Fault(Fault::ours("the broker no longer acknowledges")));
        }
        run.awaited_after = awaited_after;
        if run.connected {
            recovery.good();
        }
        self.shared.flush();
        None
    }

    fn leave_to_stop(&self, run: &mut Run, announced: bool) -> Option<Ended> {
        run.leaving = Some(Leaving::Stop);
        match (run.connected, announced) {
            (true, _) => self.say_offline(run),
            (false, true) => None, // As soon as the connection stands.
            (false, false) => Some(Ended::Stopped),
        }
    }

    fn say_offline(&self, run: &mut Run) -> Option<Ended> {
        self.shared.close();
        // After what is already under way, so its acknowledgement comes last and completes all before it.
        let said =
            self.shared.publish_landmark(&self.settings.status_topic, OFFLINE, Landmark::Offline);
        if said { None } else { disconnect(run) }
    }

    fn leave_to_redeliver(&self, run: &mut Run) -> Option<Ended> {
        if !run.connected || !self.shared.wants_redelivery() {
            return None;
        }
        run.leaving = Some(Leaving::Redeliver);
        self.shared.close();
        // A clean DISCONNECT, so no last will: to everyone else the device has never been away. But first the broker
        // must have read our acknowledgements, and only an answer shows that: what is still unread when a socket is
        // closed over incoming data can be lost (TCP answers with a reset).
        let asked = self.shared.publish_landmark(
            &self.settings.status_topic,
            ONLINE,
            Landmark::StillOnline,
        );
        if asked { None } else { disconnect(run) }
    }

    /// What was read together with what ended the connection has arrived all the same: acknowledgements count, and
    /// commands are handed over (they come again, unless the broker died and forgot them).
    fn settle(
        &self,
        eventloop: &mut EventLoop,
        run: &mut Run,
        recovery: &mut Recovery,
    ) -> Option<Ended> {
        let left = std::mem::take(&mut eventloop.state.events);
        left.into_iter()
            .filter_map(|event| self.on_event(event, run, recovery))
            .find(|it| matches!(it, Ended::NobodyListens))
    }

    fn report(&self, fault: Fault, recovery: &mut Recovery) {
        if let Some(bytes) = fault.oversized {
            count(&self.shared.counters.oversized);
            recovery.strikes += 1;
            if recovery.strikes < STRIKES_MAX {
                self.tell(LinkEvent::Oversized(Oversized { bytes, topic: None, head: Vec::new() }));
            }
        }
        // The broker publishes our last will.
        recovery.announced = false;
        if !recovery.connected && recovery.last_why.as_ref() == Some(&fault.why) {
            return;
        }
        tracing::warn!(why = fault.why, "mqtt link is down");
        recovery.last_why = Some(fault.why.clone());
        let why = fault.why;
        self.tell(if recovery.connected {
            LinkEvent::Lost { why }
        } else {
            LinkEvent::Unreachable { why }
        });
    }

    /// Gets rid of what is too large for us; see `sift`.
    async fn sift(&self, recovery: &mut Recovery) {
        recovery.subscribe = Subscribe::AsBefore;
        match sift::sift(&self.settings, self.tls.as_ref()).await {
            Ok(found) => {
                recovery.strikes = 0;
                recovery.sifts_failed = 0;
                for oversized in found {
                    tracing::warn!(
                        bytes = oversized.bytes,
                        "a message too large for us was thrown away"
                    );
                    self.tell(LinkEvent::Oversized(oversized));
                }
            }
            Err(error) => {
                recovery.sifts_failed += 1;
                let error = chain(&error);
                tracing::warn!(error, "a message too large for us could not be sifted out");
                if recovery.sifts_failed >= SIFTS_MAX
                    && sift::purge(&self.settings, self.tls.as_ref()).await.is_ok()
                {
                    tracing::error!("the session was purged: commands that waited in it are lost");
                    self.tell(LinkEvent::SessionPurged { why: error });
                    *recovery = Recovery {
                        backoff: recovery.backoff,
                        ..Recovery::new(self.settings.retry)
                    };
                }
            }
        }
    }
}

impl Driver {
    fn options(&self) -> MqttOptions {
        let settings = &self.settings;
        // rumqttc puts host and port together with a colon, so an IPv6 address needs its brackets.
        let host = match settings.host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => settings.host.clone(),
        };
        let mut options = MqttOptions::new(&settings.client_id, host, settings.port);
        options
            .set_clean_session(!self.settings.persistent)
            .set_manual_acks(true)
            .set_keep_alive(settings.keep_alive)
            // The link checks sizes itself, because too large a packet here would end the connection.
            .set_max_packet_size(settings.packet_bytes_max_in, settings.packet_bytes_max_out + 1024)
            // Packet ids go round within this number; four windows of them forgive a broker that acknowledges out of
            // order. The window itself is the ledger's.
            .set_inflight(settings.window * 4 + 16)
            .set_last_will(LastWill::new(
                &settings.status_topic,
                OFFLINE,
                QoS::AtLeastOnce,
                settings.persistent,
            ));
        if let Some(credentials) = &settings.credentials {
            options.set_credentials(&credentials.user, &credentials.password);
        }
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
                Arc::clone(tls),
            )));
        }
        options
    }

    /// Room for everything that can be asked of rumqttc at a time, so that it is never full in practice.
    fn queue_len(&self) -> usize {
        usize::from(self.settings.window) + self.settings.inbound_count_max + 32
    }
}

fn network_options() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(CONNECT_TIMEOUT_S);
    options
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that its sender is gone, and with it who would ask.
    stop.wait_for(|asked| *asked).await.map(drop).ok();
}

async fn tick(ticks: &mut Interval) {
    ticks.tick().await;
}

fn disconnect(run: &Run) -> Option<Ended> {
    match run.client.try_disconnect() {
        Ok(()) => None,
        Err(_full) => run.leaving.map(Leaving::done),
    }
}

impl Leaving {
    fn done(self) -> Ended {
        match self {
            Self::Stop => Ended::Stopped,
            Self::Redeliver => Ended::ToRedeliver,
        }
    }
}

impl Recovery {
    fn new(retry: RetrySettings) -> Self {
        Self {
            backoff: Backoff { retry, failures: 0 },
            strikes: 0,
            sifts_failed: 0,
            announced: false,
            connected: false,
            subscribe: Subscribe::Anew,
            subscribed: false,
            last_why: None,
        }
    }

    /// The connection has been good for a tick.
    fn good(&mut self) {
        self.backoff.failures = 0;
        self.strikes = 0;
    }
}

/// The pauses between attempts: doubled each time, shortened at random by up to half.
#[derive(Clone, Copy)]
struct Backoff {
    retry: RetrySettings,
    failures: u32,
}

impl Backoff {
    fn next(&mut self, refused: bool) -> Duration {
        let full =
            self.retry.shortest.saturating_mul(1 << self.failures.min(16)).min(self.retry.longest);
        self.failures += 1;
        let full = if refused { full.max(self.retry.refused) } else { full };
        full.mul_f64(1.0 - random_fraction() / 2.0)
    }

    /// The broker took a publish of ours. Not back to zero: a message that kills each connection comes after this.
    fn worked(&mut self) {
        self.failures = self.failures.min(1);
    }
}

fn fault(error: ConnectionError) -> Fault {
    let mut fault = Fault { why: String::new(), refused: false, oversized: None };
    fault.why = match error {
        ConnectionError::ConnectionRefused(code) => {
            fault.refused = true;
            refusal(code).to_owned()
        }
        ConnectionError::MqttState(StateError::Deserialization(
            PacketError::PayloadSizeLimitExceeded(bytes),
        )) => {
            fault.oversized = Some(bytes);
            format!("the broker sent a packet of {bytes} bytes, which is more than we take")
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "the broker closed the connection".to_owned()
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            "the broker does not answer".to_owned()
        }
        ConnectionError::NetworkTimeout => format!("no answer within {CONNECT_TIMEOUT_S} s"),
        // Not shown: it could be anyone's packet.
        ConnectionError::NotConnAck(_) => "what answers there is not an MQTT broker".to_owned(),
        other => chain(&other),
    };
    fault
}

fn refusal(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::BadUserNamePassword => "the broker refuses our user name or password",
        ConnectReturnCode::NotAuthorized => {
            "the broker does not authorise us: check user, password and access rules"
        }
        ConnectReturnCode::BadClientId => "the broker refuses our client id",
        ConnectReturnCode::RefusedProtocolVersion => "the broker does not speak MQTT 3.1.1",
        ConnectReturnCode::ServiceUnavailable => "the broker is not available at present",
        ConnectReturnCode::Success => "the broker refused and gave success as the reason",
    }
}

/// An error and its causes in one line, each once (rumqttc repeats them).
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_are_never_none() {
        let mut backoff = Backoff { retry: RetrySettings::default(), failures: 0 };
        let pauses: Vec<_> = (0..40).map(|_| backoff.next(false)).collect();
        assert!(
            pauses
                .iter()
                .all(|it| *it >= Duration::from_millis(125) && *it <= Duration::from_secs(30))
        );
        assert!(pauses[0] <= Duration::from_millis(250));
        assert!(pauses[39] >= Duration::from_secs(15));
        backoff.worked();
        assert!(backoff.next(false) <= Duration::from_millis(500));
        assert!(backoff.next(true) >= Duration::from_secs(5), "a refusal is not asked again soon");
    }
}
