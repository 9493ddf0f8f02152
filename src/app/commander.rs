//! Commands from MQTT, one after the other: read, carried out, answered, and only then acknowledged to the broker.
//!
//! Invariants: what a command changes, the event about it and its answer are one transaction, and the answer is kept by
//! `request_id`: a command that arrives twice (the broker sends again what was not acknowledged) changes nothing twice.
//! A command that cannot be carried out *now* (busy, no room, networks failing) is answered but the answer is not kept, so
//! that the same request may be sent again.

pub mod asked;
pub mod carry_out;
mod from_camera;
mod guard;
mod records;

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use from_camera::{Ended, Waiting};

use self::asked::{Asked, Request};
use self::guard::{Alarms, reason_of};
use crate::app::discovery::Birth;
use crate::app::gallery::GalleryCell;
use crate::app::inference::Job;
use crate::app::supervise::StageResult;
use crate::app::venues::VenueBook;
use crate::clock::{Clock, Pace};
use crate::health::Health;
use crate::mqtt::link::{AckToken, Inbound, Link, LinkEvent, Message, Oversized};
use crate::mqtt::topics::Topics;
use crate::recognise::face::ModelDigest;
use crate::recognise::picture::PictureLimits;
use crate::record::authority::PublicKey;
use crate::record::command::answer::NotEnrolled;
use crate::record::command::{self, Command, ErrorCode, Limits, Refusal, Verb, answer};
use crate::record::event::SecurityReason;
use crate::record::store::{Store, StoreError, Tx};

/// A command waits this long for the networks.
const JOB_PATIENCE: Duration = Duration::from_secs(20);

pub struct Commander {
    pub topics: Topics,
    pub limits: Limits,
    pub picture: PictureLimits,
    pub per_minute_max: u32,
    /// Whose signed commands are carried out; none: everybody's, as far as the broker lets them.
    pub trusted_keys: Vec<PublicKey>,
    pub venues: Arc<VenueBook>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub embedder: ModelDigest,
    pub jobs: SyncSender<Job>,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    /// None: commands come by HTTP only.
    pub link: Option<Link>,
    /// From HTTP.
    pub requests: mpsc::Receiver<Request>,
    /// Home Assistant's start is heard on the same link.
    pub birth: Option<Birth>,
    /// Told when the vital signs changed in a way worth publishing at once.
    pub changed: Arc<tokio::sync::Notify>,
    pub camera_enrolment: CameraEnrolment,
}

/// At most one command waits for somebody to come before the camera.
#[derive(Default)]
pub struct CameraEnrolment {
    /// Just begun, to be taken by the loop.
    begun: Mutex<Option<Waiting>>,
    /// The request id, until it is answered.
    request: Mutex<Option<String>>,
}

/// Where the command that is being carried out is written down: `<tries> <request_id>`.
const FUSE: &str = "carrying_out";
/// More than a bad power supply explains.
const TRIES_MAX: u32 = 4;
/// How much of a payload is looked at for its request id when it is not read as a whole.
const HEAD_BYTES: usize = 64 << 10;

/// Why a command got no lasting answer.
enum Fault {
    /// The daemon ends; the command will come again.
    Stopping,
    /// To be told to the sender; kept as the answer when `lasting`.
    Refused { refusal: Refusal, lasting: bool, details: Option<Box<NotEnrolled>> },
    /// The store is of no use any more: the daemon ends.
    Fatal(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        if error.is_fatal() {
            return Self::Fatal(error);
        }
        let code = match &error {
            StoreError::Full => ErrorCode::StorageFull,
            StoreError::UnknownSubject { .. } => ErrorCode::UnknownSubject,
            _ => ErrorCode::Internal,
        };
        if code == ErrorCode::Internal {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::new(error.clone())),
                "a command failed"
            );
        }
        let lasting = code == ErrorCode::UnknownSubject;
        Self::Refused {
            refusal: Refusal::new(None, code, error.to_string()),
            lasting,
            details: None,
        }
    }
}

/// A refusal that is the command's answer for good.
fn refuse(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault::Refused { refusal: Refusal::new(None, code, message), lasting: true, details: None }
}

/// A refusal that another attempt may not meet.
fn not_now(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault::Refused { refusal: Refusal::new(None, code, message), lasting: false, details: None }
}

impl Commander {
    /// Takes the link's events until `stop`.
    pub async fn run(
        mut self,
        events: &mut mpsc::Receiver<LinkEvent>,
        mut stop: watch::Receiver<bool>,
    ) -> StageResult {
        let (mut pace, mut alarms) = (Pace::new(self.per_minute_max), Alarms::default());
        let mut waiting: Option<Waiting> = None;
        self.tell_interrupted().await?;
        loop {
            waiting = waiting.or_else(|| self.newly_waiting());
            let later = alarms.pause(&self.clock.now());
            let woken = tokio::select! {
                event = events.recv(), if self.link.is_some() => Woken::Event(event),
                Some(request) = self.requests.recv() => Woken::Asked(request),
                ended = someone(&mut waiting) => Woken::Came(ended),
                () = after(later) => Woken::Alarms,
                _ = stop.wait_for(|it| *it) => Woken::Stop,
            };
            let event = match woken {
                Woken::Event(event) => event,
                Woken::Asked(Request { command, answer }) => {
                    self.health.commands.add(1);
                    let asked = Asked::by_http(command.request_id, answer);
                    self.answer(asked, command.verb).await?;
                    continue;
                }
                Woken::Came(ended) => {
                    if let Some(waiting) = waiting.take() {
                        self.end_waiting(waiting, ended).await?;
                    }
                    continue;
                }
                Woken::Alarms => {
                    self.tell_alarms(alarms.take_due(&self.clock.now())).await?;
                    continue;
                }
                Woken::Stop => return Ok(self.tell_alarms(alarms.take_all()).await?),
            };
            match event {
                None => anyhow::ensure!(*stop.borrow(), "the link has gone"),
                Some(LinkEvent::Inbound(inbound)) => {
                    self.inbound(inbound, &mut pace, &mut alarms).await?
                }
                Some(LinkEvent::Oversized(oversized)) => self.oversized(&oversized).await?,
                Some(other) => self.link_edge(&other),
            }
            if *stop.borrow() {
                return Ok(self.tell_alarms(alarms.take_all()).await?);
            }
        }
    }

    fn link_edge(&self, event: &LinkEvent) {
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
                    "the start of Home Assistant is not heard; it reads the retained message all the same"
                );
            }
            LinkEvent::SubscriptionRefused { filter } => {
                tracing::error!(
                    filter,
                    "the broker refuses the subscription: no command will come (check its ACL)"
                );
            }
            LinkEvent::SessionPurged { why } => {
                tracing::error!(
                    why,
                    "the broker's session was given up; commands waiting in it are lost"
                );
            }
            // The first two the link has told itself; the others are no edges.
            LinkEvent::Lost { .. }
            | LinkEvent::Unreachable { .. }
            | LinkEvent::Subscribed { .. }
            | LinkEvent::Inbound(_)
            | LinkEvent::Oversized(_) => {}
        }
    }

    async fn inbound(
        &self,
        inbound: Inbound,
        pace: &mut Pace,
        alarms: &mut Alarms,
    ) -> Result<(), StoreError> {
        let verb = if let Some(topic) = self.topics.command(&inbound.topic) {
            topic.verb.to_owned()
        } else {
            if let Some(birth) = &self.birth {
                birth.hear(&inbound);
            }
            inbound.ack.acknowledge();
            return Ok(());
        };
        self.health.commands.add(1);
        let (command, ack) = if self.takes_signed_only() {
            self.admit(&verb, inbound, pace, alarms).await?
        } else {
            self.read(&verb, inbound, pace, alarms).await?
        };
        if let Some(Command { request_id, verb, .. }) = command
            && !self.answer(Asked::by_mqtt(request_id), verb).await?
        {
            // Unacknowledged: the broker sends it again, and the next start carries it out.
            return Ok(());
        }
        ack.acknowledge();
        Ok(())
    }

    /// A command, where the broker alone says who may send one. `None`: it was refused, and answered.
    async fn read(
        &self,
        verb: &str,
        inbound: Inbound,
        pace: &mut Pace,
        alarms: &mut Alarms,
    ) -> Result<(Option<Command>, AckToken), StoreError> {
        let Inbound { payload, retained, ack, .. } = inbound;
        let now = self.clock.now();
        if !pace.allows(now.boottime_ms) {
            // Before it is read: what comes too fast must cost little.
            let message = format!("more than {} commands in a minute", self.per_minute_max);
            let request_id = self.request_id_at_head(&payload);
            self.reply(verb, &Refusal::new(request_id.as_deref(), ErrorCode::RateLimited, message))
                .await?;
            return Ok((None, ack));
        }
        let parsed = match self.uncheckable(&payload) {
            Some(refusal) => Err(refusal),
            None => command::parse(verb, retained, &payload, &self.limits, now.wall_ms),
        };
        drop(payload);
        let refusal = match parsed {
            Ok(command) => return Ok((Some(command), ack)),
            Err(refusal) => refusal,
        };
        if let Some(reason) = reason_of(refusal.code).filter(|it| *it == SecurityReason::Retained) {
            alarms.note(reason, verb, &now);
        }
        // A command that was carried out and comes again, too late or damaged by now, was carried out all the same.
        if !self.repeat_to_mqtt(refusal.request_id.as_deref()).await? {
            self.reply(verb, &refusal).await?;
        }
        Ok((None, ack))
    }

    /// What was too large never came in; its beginning may tell whom to answer.
    async fn oversized(&self, oversized: &Oversized) -> Result<(), StoreError> {
        self.health.commands.add(1);
        let Some(topic) = oversized.topic.as_deref().and_then(|topic| self.topics.command(topic))
        else {
            self.count(ErrorCode::TooLarge);
            return Ok(());
        };
        let message = format!(
            "the message has {} bytes; at most {} are taken",
            oversized.bytes, self.limits.payload_bytes
        );
        let request_id = self.request_id_at_head(&oversized.head);
        self.reply(topic.verb, &Refusal::new(request_id.as_deref(), ErrorCode::TooLarge, message))
            .await
    }

    /// Answers from the stored answer, or by carrying out. `false`: the daemon is stopping, and nothing was done.
    async fn answer(&self, asked: Asked, verb: Verb) -> Result<bool, StoreError> {
        if self.repeat_answer(&asked).await? {
            return Ok(true);
        }
        let (name, again) = (verb.as_str(), asked.clone());
        let outcome = if self.light_fuse(&asked, &verb).await? {
            self.carry_out(asked, verb).await
        } else {
            Err(refuse(
                ErrorCode::Internal,
                "the device ended each time it carried this out; it is not tried again",
            ))
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(fault) => self.tell_fault(again, name, fault).await,
        }
    }

    /// The answer to a command that was not carried out. `false`: the daemon is stopping, and nothing was said.
    async fn tell_fault(
        &self,
        asked: Asked,
        verb: &'static str,
        fault: Fault,
    ) -> Result<bool, StoreError> {
        // What was to be said is not true.
        asked.say(None);
        match fault {
            Fault::Stopping => {
                self.clear_fuse(None).await?;
                Ok(false)
            }
            Fault::Fatal(error) => Err(error),
            Fault::Refused { mut refusal, lasting, details } => {
                refusal.request_id = Some(asked.request_id.clone());
                let reply = match &details {
                    Some(details) => answer::refused_with(verb, &refusal, details.as_ref()),
                    None => answer::refused(verb, &refusal),
                };
                if !asked.is_by_mqtt() {
                    // Where nothing can be stored, it is said all the same.
                    asked.say(Some(reply.clone()));
                }
                if !lasting {
                    self.clear_fuse(Some(asked.request_id.clone())).await?;
                    if asked.is_by_mqtt() {
                        self.reply(verb, &refusal).await?;
                    } else {
                        self.count(refusal.code);
                    }
                    return Ok(true);
                }
                self.count(refusal.code);
                let (to, body) = (asked.clone(), reply.clone());
                let put = self.store.write_async(move |tx| to.put_answer(tx, verb, &body)).await;
                if asked.is_by_mqtt() {
                    self.stored_or_sent(put, &answer::topic_part(Some(&asked.request_id)), reply)
                        .await?;
                } else {
                    self.survive(put)?;
                }
                Ok(true)
            }
        }
    }

    /// A command with images goes through decoders and networks. Should one of them end the process, the broker sends the
    /// command again at each start: so each attempt is written down first, and they have an end. `false`: this is it.
    async fn light_fuse(&self, asked: &Asked, verb: &Verb) -> Result<bool, StoreError> {
        // Nobody sends a request of HTTP again but who made it.
        if !asked.is_by_mqtt()
            || !matches!(verb, Verb::Enrol(_) | Verb::Recognise(_) | Verb::Attend(_))
        {
            return Ok(true);
        }
        let request_id = asked.request_id.clone();
        let count = move |tx: &mut Tx<'_>| {
            let before = tx.meta(FUSE)?.unwrap_or_default();
            let before = String::from_utf8(before).unwrap_or_default();
            let tries = match before.split_once(' ') {
                Some((tries, id)) if id == request_id => tries.parse::<u32>().unwrap_or(0) + 1,
                _ => 1,
            };
            tx.put_meta(FUSE, format!("{tries} {request_id}").as_bytes())?;
            Ok(tries <= TRIES_MAX)
        };
        match self.store.write_async(count).await {
            // On a full disk there is no fuse, and no attendance either.
            Err(error) if !error.is_fatal() => Ok(true),
            other => other,
        }
    }

    /// The attempt ended, though without an answer that lasts. `answered`: with one that does not.
    async fn clear_fuse(&self, answered: Option<String>) -> Result<(), StoreError> {
        let clear = move |tx: &mut Tx<'_>| {
            tx.put_meta(FUSE, b"")?;
            answered.as_deref().map_or(Ok(()), |request_id| tx.end_signed(request_id))
        };
        let cleared = self.store.write_async(clear).await;
        self.survive(cleared)
    }

    async fn repeat_to_mqtt(&self, request_id: Option<&str>) -> Result<bool, StoreError> {
        match request_id {
            Some(request_id) => self.repeat_answer(&Asked::by_mqtt(request_id.to_owned())).await,
            None => Ok(false),
        }
    }

    /// Gives the stored answer once more; `false` when the request has none.
    async fn repeat_answer(&self, asked: &Asked) -> Result<bool, StoreError> {
        let asked = asked.clone();
        let repeat = move |tx: &mut Tx<'_>| {
            let stored = tx.answer_of(&asked.request_id)?;
            if let Some(stored) = &stored {
                asked.owe_reply(tx, &stored.reply)?;
                tx.end_signed(&asked.request_id)?;
            }
            Ok(stored.is_some())
        };
        let repeated = self.store.write_async(repeat).await;
        let found = repeated.as_ref().is_ok_and(|found| *found);
        self.survive(repeated.map(|_| ()))?;
        Ok(found)
    }

    /// A refusal that is not kept.
    async fn reply(&self, verb: &str, refusal: &Refusal) -> Result<(), StoreError> {
        self.count(refusal.code);
        // No louder: whoever may publish could fill the log. Health counts them.
        tracing::debug!(verb, code = refusal.code.as_str(), "command refused");
        let topic = answer::topic_part(refusal.request_id.as_deref());
        let reply = answer::refused(verb, refusal);
        let (to, body) = (topic.clone(), reply.clone());
        let owed = self.store.write_async(move |tx| tx.owe_reply(&to, &body)).await;
        self.stored_or_sent(owed, &topic, reply).await
    }

    /// An answer that does not fit on the disk goes out without having been stored.
    async fn stored_or_sent(
        &self,
        stored: Result<(), StoreError>,
        topic: &str,
        reply: String,
    ) -> Result<(), StoreError> {
        if !matches!(stored, Err(StoreError::Full)) {
            return self.survive(stored);
        }
        let message =
            Message { topic: self.topics.below(topic), payload: reply.into_bytes(), retain: false };
        if let Some(link) = &self.link {
            link.publish_batch(vec![message]).await;
        }
        Ok(())
    }

    fn survive(&self, written: Result<(), StoreError>) -> Result<(), StoreError> {
        match written {
            Err(error) if !error.is_fatal() => {
                self.health.store_errors.add(1);
                tracing::error!(error = %error, "an answer could not be stored");
                Ok(())
            }
            other => other,
        }
    }

    fn count(&self, code: ErrorCode) {
        self.health.refused(code.as_str());
    }
}

/// The end of a wait for somebody before the camera; never without one.
async fn someone(waiting: &mut Option<Waiting>) -> Ended {
    match waiting {
        Some(waiting) => waiting.ended().await,
        None => std::future::pending().await,
    }
}

/// The request id in the beginning of a payload that was thrown away: the first `"request_id":"…"` that looks like one.
fn request_id_in(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let (_, rest) = text.split_once("\"request_id\"")?;
    let id =
        rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.split('"').next()?;
    crate::recognise::face::check_id(id).ok().map(|()| id.to_owned())
}

enum Woken {
    Event(Option<LinkEvent>),
    Asked(Request),
    Came(Ended),
    Alarms,
    Stop,
}

/// Never, where there is nothing to wait for.
async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_id_is_found_in_the_beginning_of_a_payload() {
        for (head, expected) in [
            (&br#"{"schema":1,"request_id":"r-1","images":["AAAA"#[..], Some("r-1")),
            (br#"{ "request_id" : "r-2" ,"#, Some("r-2")),
            (br#"{"request_id":"a/b","#, None),
            (br#"{"request_id":"cut"#, Some("cut")),
            (br#"{"request_id":7}"#, None),
            (b"\xff\xfe", None),
        ] {
            assert_eq!(request_id_in(head).as_deref(), expected);
        }
    }
}
