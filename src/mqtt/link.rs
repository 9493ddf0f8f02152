//! The link to the broker, as the rest of the daemon sees it.
//!
//! Guarantees:
//! - *Out*: `publish_batch` returns `Ok` for a message only after the broker's PUBACK for exactly
//!   that message, with a reason code of success in MQTT 5. `deliver_batch`, which the outbox uses,
//!   returns it in 3.1.1 only after the echo of a probe as well (`echo`). Everything else is `NotAcknowledged`, and the caller sends it again from its
//!   disk: at least once, never silently lost.
//! - *In*: a command is acknowledged to the broker only when the caller does so
//!   (`AckToken::acknowledge`), that is, after its transaction was committed. After a crash before
//!   that, or a token dropped unused, the broker sends it again. The same command can therefore
//!   arrive twice; its `request_id` makes that harmless. Acknowledgements are sent in the order of
//!   arrival, as MQTT requires (4.6.0-2), whatever the order in which they are given.
//! - *Memory is bounded*: the caller holds at most `inbound_count_max` messages and
//!   `inbound_bytes_max` bytes. What arrives beyond that is deferred, that is, not acknowledged.
//!   When the caller holds nothing more, the link reconnects, and the broker sends what it still
//!   has again, in its order. So a full queue costs a reconnect and never a command. (A command
//!   published at QoS 0 against the contract is lost then, and counted.)
//! - *A message too large for us* does not end the link for good: `drain` describes how it is
//!   removed, and what that costs.
//! - *Status*: "online" retained after each connect, "offline" before a clean DISCONNECT, and as
//!   the last will.
//!
//! Not here: the polling (`driver`), what a payload means, resending (the outbox), TLS policy
//! (`config`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::{mpsc, watch};

use crate::mqtt::driver::Driver;
use crate::mqtt::echo::Echo;
use crate::mqtt::event::LinkEvent;
use crate::mqtt::fault::LinkFault;
use crate::mqtt::in_flight::{Acknowledged, ConnectionState, LinkState, PendingResult};
use crate::mqtt::message::{DescribedMessage, Message, NotAcknowledged};
use crate::mqtt::refusal::{PublishRefusal, RefusedTopic};
use crate::mqtt::settings::{LinkConfigError, LinkSettings, Version};
use crate::mqtt::tls;

/// Room in the event queue beside the inbound messages. Edges of the connection come at the pace of
/// the back-off, so 64 of them are minutes in which the app received none.
const EDGES_MAX: usize = 64;

/// Counters for health and metrics, all since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub connects: u64,
    pub acknowledged: u64,
    /// Messages that the broker did not accept, and probes that did not come back.
    pub refused: u64,
    pub received: u64,
    /// Inbound messages without room, which the broker sends again.
    pub deferred: u64,
    /// The same at QoS 0: lost.
    pub dropped: u64,
    pub oversized: u64,
    /// `publish_latest` without a connection, or without room before the next value.
    pub latest_dropped: u64,
    /// Edges that found the app's queue full.
    pub events_dropped: u64,
}

/// The state of the connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum MqttState {
    Connected,
    /// Not reached; deliveries are retried.
    Away,
    /// Refuses the connection, or our messages, until an operator corrects something.
    Refused,
}

/// The connection to the broker as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    pub state: MqttState,
    /// Of the present connection.
    pub version: Option<Version>,
    /// What is wrong, in words.
    pub reason: Option<String>,
    /// A topic on which the broker refuses our messages.
    pub refused_topic: Option<String>,
}

/// The handle for publishing. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    state: Arc<LinkState>,
}

/// Creates a link. Nothing happens until the driver's `drive` is awaited.
pub fn open(
    settings: LinkSettings,
) -> Result<(Link, Driver, mpsc::Receiver<LinkEvent>), LinkConfigError> {
    settings.check()?;
    let tls = match &settings.tls {
        Some(tls) => Some(tls::client_config(tls, &settings.host)?),
        None => None,
    };
    let state = Arc::new(LinkState::new(&settings));
    let (sender, receiver) = mpsc::channel(settings.inbound_count_max + EDGES_MAX);
    let driver = Driver::new(settings, tls, Arc::clone(&state), sender);
    Ok((Link { state }, driver, receiver))
}

impl Link {
    /// Publishes at QoS 1, at most `window` at a time, and waits for each PUBACK. The results are in
    /// the order of the messages. A topic that the broker has just refused is not tried. May be
    /// dropped at any time; what is in flight is then not reported.
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Vec<Result<(), NotAcknowledged>> {
        let mut in_flight = Vec::with_capacity(messages.len());
        for message in messages {
            in_flight.push(match self.state.refused_recently(&message.topic) {
                Some(refusal) => Err(NotAcknowledged::Refused(refusal)),
                None => self.state.publish(message.into()).await,
            });
        }
        await_results(in_flight).await.into_iter().map(|it| it.map(drop)).collect()
    }

    /// Does the same for what must not be lost: where an acknowledgement does not prove that the
    /// broker passes on what we publish (MQTT 3.1.1), nothing is sent before the echo of a probe,
    /// and nothing counts as delivered before the echo of a later one.
    pub async fn deliver_batch<M: Into<DescribedMessage>>(
        &self,
        messages: Vec<M>,
    ) -> Vec<Result<(), NotAcknowledged>> {
        let ready = match self.state.connection() {
            Some((connection, false)) => self.prove(connection).await,
            Some((_, true)) => Ok(()),
            None => Err(NotAcknowledged::Offline),
        };
        if let Err(error) = ready {
            return messages.iter().map(|_| Err(error.clone())).collect();
        }
        let mut in_flight = Vec::with_capacity(messages.len());
        for message in messages {
            in_flight.push(self.state.publish(message.into()).await);
        }
        let results = await_results(in_flight).await;
        let unproven = |it: &Result<Acknowledged, _>| it.as_ref().ok().map(|it| it.connection);
        let last = results.iter().filter_map(unproven).rfind(|it| it.needs_echo);
        let proof = match last {
            Some(connection) => self.prove(connection).await,
            None => Ok(()),
        };
        let counts = |it: Acknowledged| match last {
            // Acknowledged on an earlier connection: that one can no longer be proven.
            Some(connection) if it.connection.needs_echo && it.connection != connection => {
                Err(NotAcknowledged::Lost)
            }
            Some(_) if it.connection.needs_echo => proof.clone(),
            _ => Ok(()),
        };
        results.into_iter().map(|it| it.and_then(counts)).collect()
    }

    /// Proves that the broker passes on what we publish on this connection.
    async fn prove(&self, connection: ConnectionState) -> Result<(), NotAcknowledged> {
        match self.state.send_probe(connection.number)?.await {
            Ok(Echo::Heard) => Ok(()),
            Ok(Echo::Missing) => Err(NotAcknowledged::Refused(PublishRefusal::NoEcho)),
            Err(_dropped) => Err(NotAcknowledged::Lost),
        }
    }

    pub fn status(&self) -> LinkStatus {
        let fault = self.state.fault();
        let refused = self.state.refused_topic();
        let state = match &fault {
            Some(fault) if fault.is_refused() => MqttState::Refused,
            // Also between two attempts of a broker that closes the connection at each.
            _ if refused.is_some() => MqttState::Refused,
            _ if self.is_online() => MqttState::Connected,
            _ => MqttState::Away,
        };
        let reason = match (&fault, &refused) {
            (Some(fault), _) if fault.is_refused() => Some(fault.to_string()),
            (_, Some(refused)) => Some(refused.to_string()),
            (fault, None) => fault.as_ref().map(LinkFault::to_string),
        };
        let version = self.state.version();
        LinkStatus { state, version, reason, refused_topic: refused.map(|it| it.topic) }
    }

    /// Returns a topic on which the broker refuses our messages at present.
    pub fn refused_topic(&self) -> Option<RefusedTopic> {
        self.state.refused_topic()
    }

    /// Returns why there is no connection. `None` while there is one, and before the first attempt.
    pub fn fault(&self) -> Option<LinkFault> {
        self.state.fault()
    }

    /// Returns the version of MQTT that the present connection speaks.
    pub fn version(&self) -> Option<Version> {
        self.state.version()
    }

    /// Publishes at QoS 0 what is soon outdated (health): the latest of a topic wins, and without a
    /// connection it is dropped. Never waits.
    pub fn publish_latest(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        self.state.publish_latest(topic, payload, retain);
    }

    /// Subscribes on the present connection, in addition to the settings; what the broker retains
    /// for these filters arrives (again). Returns `false` without a connection or room. Never waits:
    /// `LinkEvent::Subscribed` follows.
    pub fn subscribe(&self, filters: Vec<String>) -> bool {
        self.state.subscribe(filters)
    }

    /// Unsubscribes on the present connection. Completion is not reported.
    pub fn unsubscribe(&self, filters: Vec<String>) -> bool {
        self.state.unsubscribe(filters)
    }

    pub fn is_online(&self) -> bool {
        *self.state.online.borrow()
    }

    /// Returns the level behind the edges `Connected` and `Lost`.
    pub fn online(&self) -> watch::Receiver<bool> {
        self.state.online.subscribe()
    }

    pub fn counters(&self) -> LinkCounters {
        let of = &self.state.counters;
        LinkCounters {
            connects: of.connects.load(Ordering::Relaxed),
            acknowledged: of.acknowledged.load(Ordering::Relaxed),
            refused: of.refused.load(Ordering::Relaxed),
            received: of.received.load(Ordering::Relaxed),
            deferred: of.deferred.load(Ordering::Relaxed),
            dropped: of.dropped.load(Ordering::Relaxed),
            oversized: of.oversized.load(Ordering::Relaxed),
            latest_dropped: of.latest_dropped.load(Ordering::Relaxed),
            events_dropped: of.events_dropped.load(Ordering::Relaxed),
        }
    }
}

async fn await_results(
    in_flight: Vec<Result<PendingResult, NotAcknowledged>>,
) -> Vec<Result<Acknowledged, NotAcknowledged>> {
    let mut results = Vec::with_capacity(in_flight.len());
    for queued in in_flight {
        results.push(match queued {
            // The sender is only dropped together with the connection.
            Ok(pending) => pending.await.unwrap_or(Err(NotAcknowledged::Lost)),
            Err(error) => Err(error),
        });
    }
    results
}
