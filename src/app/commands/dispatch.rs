//! The loop that takes commands from the link and from HTTP, one after the other, and sends replies.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::app::commands::admission::reason_of;
use crate::app::commands::alarms::Alarms;
use crate::app::commands::camera_enrolment::{Ended, Waiting};
use crate::app::commands::command_rate::CommandRate;
use crate::app::commands::commander::Commander;
use crate::app::commands::failure::{CommandError, reject};
use crate::app::commands::reply_to::{ReplyTo, Request, WrittenReply};
use crate::app::supervise::StageResult;
use crate::error_chain::error_chain;
use crate::mqtt::event::{Inbound, LinkEvent, Oversized};
use crate::mqtt::in_flight::AckToken;
use crate::mqtt::message::Message;
use crate::store::{StoreError, Tx};
use crate::wire::command::{Command, ErrorCode, Received, Rejection, Verb};
use crate::wire::event::SecurityReason;
use crate::wire::{command, reply};

impl Commander {
    /// Takes the link's events until `stop`.
    pub async fn run(
        mut self,
        events: &mut mpsc::Receiver<LinkEvent>,
        mut stop: watch::Receiver<bool>,
    ) -> StageResult {
        let mut rate = CommandRate::new(self.per_minute_max);
        let mut alarms = Alarms::default();
        let mut waiting: Option<Waiting> = None;
        self.reject_interrupted().await?;
        loop {
            waiting = waiting.or_else(|| self.take_new_enrolment());
            let later = alarms.pause(&self.clock.now());
            let woken = tokio::select! {
                event = events.recv(), if self.link.is_some() => Woken::Event(event),
                Some(request) = self.requests.recv() => Woken::Request(request),
                ended = enrolment_ended(&mut waiting) => Woken::EnrolmentEnded(ended),
                () = after(later) => Woken::Alarms,
                _ = stop.wait_for(|it| *it) => Woken::Stop,
            };
            let event = match woken {
                Woken::Event(event) => event,
                Woken::Request(Request { command, reply }) => {
                    self.health.commands.add(1);
                    let to = ReplyTo::http(command.request_id, command.verb.as_str(), reply);
                    self.execute_once(to, command.verb).await?;
                    continue;
                }
                Woken::EnrolmentEnded(ended) => {
                    if let Some(waiting) = waiting.take() {
                        self.end_enrolment(waiting, ended).await?;
                    }
                    continue;
                }
                Woken::Alarms => {
                    self.record_alarms(alarms.take_due(&self.clock.now())).await?;
                    continue;
                }
                Woken::Stop => return Ok(self.record_alarms(alarms.take_all()).await?),
            };
            match event {
                None => anyhow::ensure!(*stop.borrow(), "the link has gone"),
                Some(LinkEvent::Inbound(inbound)) => {
                    self.inbound(inbound, &mut rate, &mut alarms).await?;
                }
                Some(LinkEvent::Oversized(oversized)) => {
                    self.oversized(&oversized, &mut rate).await?;
                }
                Some(other) => self.handle_link_event(&other),
            }
            if *stop.borrow() {
                return Ok(self.record_alarms(alarms.take_all()).await?);
            }
        }
    }

    fn handle_link_event(&self, event: &LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => {
                // What waited for the broker need not wait for the end of its pause.
                self.store.deliver_now();
                self.changed.notify_one();
            }
            LinkEvent::SubscriptionRefused { filter }
                if self.birth.as_ref().is_some_and(|it| it.topic == *filter) =>
            {
                tracing::warn!(
                    filter,
                    "no subscription to the start of Home Assistant; it reads the retained message all the same"
                );
            }
            LinkEvent::SubscriptionRefused { filter } => {
                tracing::error!(
                    filter,
                    "the broker rejects the subscription: no command will arrive (check its ACL)"
                );
            }
            // The link has logged what needs a line.
            LinkEvent::SessionPurged { .. }
            | LinkEvent::Lost { .. }
            | LinkEvent::Unreachable { .. }
            | LinkEvent::Subscribed { .. }
            | LinkEvent::Inbound(_)
            | LinkEvent::Oversized(_) => {}
        }
    }

    pub(super) async fn inbound(
        &self,
        inbound: Inbound,
        rate: &mut CommandRate,
        alarms: &mut Alarms,
    ) -> Result<(), StoreError> {
        let verb = if let Some(topic) = self.topics.command(&inbound.topic) {
            topic.verb.to_owned()
        } else {
            if let Some(birth) = &self.birth {
                birth.check(&inbound);
            }
            inbound.ack.acknowledge();
            return Ok(());
        };
        self.health.commands.add(1);
        let (command, ack) = if self.takes_signed_only() {
            self.admit(&verb, inbound, rate, alarms).await?
        } else {
            self.read(&verb, inbound, rate, alarms).await?
        };
        if let Some(Command { request_id, verb, .. }) = command
            && !self.execute_once(ReplyTo::mqtt(request_id, verb.as_str()), verb).await?
        {
            // Unacknowledged: the broker redelivers it, and the next start executes it.
            return Ok(());
        }
        ack.acknowledge();
        Ok(())
    }

    /// Reads an unsigned command, where the broker's ACL alone decides who may send one. `None`: it
    /// was rejected.
    pub(super) async fn read(
        &self,
        verb: &str,
        inbound: Inbound,
        rate: &mut CommandRate,
        alarms: &mut Alarms,
    ) -> Result<(Option<Command>, AckToken), StoreError> {
        let Inbound { payload, retained, ack, .. } = inbound;
        let now = self.clock.now();
        if !rate.allows_unsigned(now.boottime_ms) {
            // Before it is parsed: a flood must cost little.
            let rejection = rate.rate_limited(self.request_id_at_head(&payload).as_deref());
            self.reply_unstored(verb, &rejection, rate).await;
            return Ok((None, ack));
        }
        let parsed = match self.uncheckable(&payload) {
            Some(rejection) => Err(rejection),
            None => command::parse(
                Received::by_mqtt(verb, &payload, retained),
                &self.limits,
                now.wall_ms,
            ),
        };
        drop(payload);
        let rejection = match parsed {
            Ok(command) => return Ok((Some(command), ack)),
            Err(rejection) => rejection,
        };
        if let Some(reason) = reason_of(rejection.code).filter(|it| *it == SecurityReason::Retained)
        {
            alarms.note(reason, verb, &now);
        }
        // The command may have been executed before, and be redelivered too late or damaged.
        if !self.resend_to_mqtt(rejection.request_id.as_deref()).await? {
            self.reply(verb, &rejection).await?;
        }
        Ok((None, ack))
    }

    /// Rejects a message that was too large to be received; its beginning may have a request id.
    pub(super) async fn oversized(
        &self,
        oversized: &Oversized,
        rate: &mut CommandRate,
    ) -> Result<(), StoreError> {
        self.health.commands.add(1);
        let topic = oversized.topic.as_deref().and_then(|topic| self.topics.command(topic));
        let now_ms = self.clock.now().boottime_ms;
        let Some(topic) = topic.filter(|_| rate.allows_unsigned(now_ms)) else {
            self.count(ErrorCode::TooLarge);
            return Ok(());
        };
        let message = format!(
            "the message has {} bytes; at most {} are taken",
            oversized.bytes, self.limits.payload_bytes
        );
        let request_id = self.request_id_at_head(&oversized.head);
        self.reply(topic.verb, &Rejection::new(request_id.as_deref(), ErrorCode::TooLarge, message))
            .await
    }

    /// Executes a command unless a stored reply shows that it was executed before. Returns false if
    /// the daemon is stopping and nothing was done.
    pub(super) async fn execute_once(&self, to: ReplyTo, verb: Verb) -> Result<bool, StoreError> {
        let resent = if to.is_read_by_http() { Ok(false) } else { self.resend_reply(&to).await };
        match resent {
            Ok(true) => {
                self.attempts.end(&to.request_id);
                return Ok(true);
            }
            Ok(false) => {}
            Err(error) if error.is_fatal() => return Err(error),
            // It cannot be told whether it was executed before: it is not executed.
            Err(error) => return self.reply_to(to, Err(error.into())).await,
        }
        let request_id = to.request_id.clone();
        let outcome = if self.attempts.begin(&request_id) {
            self.execute(to.clone(), verb).await
        } else {
            tracing::error!(
                verb = to.verb,
                "a command is rejected: the process ended each time it executed this one"
            );
            Err(reject(
                ErrorCode::Internal,
                "the device ended each time it executed this command; it is not tried again",
            ))
        };
        let replied = self.reply_to(to, outcome).await?;
        // Not where the store failed for good: then the process ends, perhaps because of this
        // command.
        self.attempts.end(&request_id);
        Ok(replied)
    }

    /// Sends the reply to a command, if there is one now; MQTT's was queued with its effect. Returns
    /// false if the daemon is stopping and nothing was done.
    pub(super) async fn reply_to(
        &self,
        to: ReplyTo,
        outcome: Result<Option<WrittenReply>, CommandError>,
    ) -> Result<bool, StoreError> {
        match outcome {
            Ok(reply) => {
                if let Some(reply) = reply {
                    to.send(reply);
                }
                Ok(true)
            }
            Err(error) => self.reject(to, error).await,
        }
    }

    /// Replies to a command that was not executed. Returns false if the daemon is stopping and no
    /// reply was given.
    async fn reject(&self, to: ReplyTo, error: CommandError) -> Result<bool, StoreError> {
        let (mut rejection, lasting) = match error {
            CommandError::Stopping => return Ok(false),
            CommandError::Fatal(error) => return Err(error),
            CommandError::Rejected { rejection, lasting } => (rejection, lasting),
            CommandError::Failed(error) => {
                tracing::error!(verb = to.verb, error = error_chain(&*error), "a command failed");
                (Rejection::new(None, ErrorCode::Internal, error.to_string()), false)
            }
        };
        rejection.request_id = Some(to.request_id.clone());
        self.count(rejection.code);
        let reply = WrittenReply::rejected(to.verb, rejection);
        let json = reply.json.clone();
        let key = to.clone();
        let write = move |tx: &mut Tx<'_>| {
            if lasting {
                return key.store(tx, &json);
            }
            // A signed request has its reply now: its redelivery is a replay.
            tx.end_signed(&key.request_id)?;
            key.queue(tx, &json)
        };
        let stored = self.store.write_async(write).await;
        if to.is_mqtt() {
            let topic = reply::topic_part(Some(&to.request_id));
            self.publish_if_not_stored(stored, &topic, reply.json).await?;
        } else {
            // HTTP clients get the reply even where nothing can be stored.
            to.send(reply);
            self.log_unless_fatal(stored)?;
        }
        Ok(true)
    }

    pub(super) async fn resend_to_mqtt(
        &self,
        request_id: Option<&str>,
    ) -> Result<bool, StoreError> {
        match request_id {
            Some(request_id) => {
                let resent = self.resend_reply(&ReplyTo::mqtt(request_id.to_owned(), "")).await;
                let is_resent = *resent.as_ref().unwrap_or(&false);
                self.log_unless_fatal(resent.map(|_| ()))?;
                Ok(is_resent)
            }
            None => Ok(false),
        }
    }

    /// Sends the stored reply once more. Returns false if the request has none.
    pub(super) async fn resend_reply(&self, to: &ReplyTo) -> Result<bool, StoreError> {
        let request_id = to.request_id.clone();
        let stored = self.store.read(move |tx| tx.stored_reply(&request_id)).await?;
        let Some(stored) = stored else { return Ok(false) };
        // Apart from the reading: on a full disk the reply cannot be queued, and is there all the
        // same.
        let key = to.clone();
        let json = stored.reply.clone();
        let repeat = move |tx: &mut Tx<'_>| {
            key.queue(tx, &json)?;
            tx.end_signed(&key.request_id)
        };
        let queued = self.store.write_async(repeat).await;
        if to.is_mqtt() {
            let topic = reply::topic_part(Some(&to.request_id));
            self.publish_if_not_stored(queued, &topic, stored.reply).await?;
        } else {
            self.log_unless_fatal(queued)?;
            to.send_stored(stored.reply);
        }
        Ok(true)
    }

    /// Sends a rejection that is not stored.
    pub(super) async fn reply(&self, verb: &str, rejection: &Rejection) -> Result<(), StoreError> {
        self.count(rejection.code);
        // At debug level: any publisher could fill the log. Health counts them.
        tracing::debug!(verb, code = rejection.code.as_str(), "command rejected");
        let topic = reply::topic_part(rejection.request_id.as_deref());
        let reply = reply::rejected(verb, rejection);
        let to = topic.clone();
        let body = reply.clone();
        let queued = self.store.write_async(move |tx| tx.queue_reply(&to, &body)).await;
        self.publish_if_not_stored(queued, &topic, reply).await
    }

    /// Publishes a reply that does not fit on the disk without storing it.
    pub(super) async fn publish_if_not_stored(
        &self,
        stored: Result<(), StoreError>,
        topic: &str,
        reply: String,
    ) -> Result<(), StoreError> {
        if !matches!(stored, Err(StoreError::Full)) {
            return self.log_unless_fatal(stored);
        }
        let message =
            Message { topic: self.topics.below(topic), payload: reply.into_bytes(), retain: false };
        if let Some(link) = &self.link {
            link.publish_batch(vec![message]).await;
        }
        Ok(())
    }

    pub(super) fn log_unless_fatal(
        &self,
        written: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match written {
            Err(error) if !error.is_fatal() => {
                self.health.store_errors.add(1);
                tracing::error!(error = %error, "a reply could not be stored");
                Ok(())
            }
            other => other,
        }
    }

    pub(super) fn count(&self, code: ErrorCode) {
        self.health.count_rejection(code.as_str());
    }
}

/// Waits for the end of an enrolment from the camera; for ever without one.
async fn enrolment_ended(waiting: &mut Option<Waiting>) -> Ended {
    match waiting {
        Some(waiting) => waiting.ended().await,
        None => std::future::pending().await,
    }
}

enum Woken {
    Event(Option<LinkEvent>),
    Request(Request),
    EnrolmentEnded(Ended),
    Alarms,
    Stop,
}

/// Waits for ever without a pause.
async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
