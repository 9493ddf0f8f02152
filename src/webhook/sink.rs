//! The sink of a webhook: rows of the outbox become requests, and answers become deliveries.
//!
//! A batch that is not taken as a whole is halved until the one event is found that is not taken.
//! What concerns all events (credentials, a redirect, an outage) ends the round; the rest is retried.
//! A failure that may be one event's own (500) lets the next one be tried, so that one event does
//! not stop all others; a second one in a row ends the round too.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};

use crate::clock::BootId;
use crate::ids::Origin;
use crate::store::relay::{Delivery, Sink};
use crate::store::{OutboxRow, SinkName};
use crate::webhook::answer::Verdict;
use crate::webhook::link::{Outgoing, WebhookLink};
use crate::webhook::preset::{Plan, Preset};
use crate::wire::event::{self, StoredEvent};
use crate::wire::export::hex;

pub struct WebhookSink {
    link: WebhookLink,
    origin: Origin,
    boot_id: BootId,
}

/// Events of one request, with their places in the batch.
type Part<'a> = Vec<(usize, &'a StoredEvent)>;

impl WebhookSink {
    pub fn new(link: WebhookLink, origin: Origin) -> Self {
        let boot_id = link.clock().boot_id();
        Self { link, origin, boot_id }
    }

    /// Sends the events of one request.
    async fn send(&self, events: &[(usize, &StoredEvent)]) -> Verdict {
        let settings = self.link.settings();
        let verdict = match (&settings.preset, events) {
            (Preset::Plain, _) => {
                let body = self.body(events, settings.batch > 1);
                let idempotency_key = Some(idempotency_key(events));
                let path = "";
                let outgoing = Outgoing { method: "POST", path, idempotency_key, body };
                self.link.send(outgoing).await.0
            }
            (preset, [(_, event)]) => {
                match preset.plan(event, &self.origin.device, &self.boot_id) {
                    Plan::Steps(steps) => {
                        let key = event.event_id.to_string();
                        self.link.send_steps(&steps, Some(&key)).await
                    }
                    // Sorted out before.
                    _ => Verdict::Delivered,
                }
            }
            _ => Verdict::retry("a preset takes one event at a time"),
        };
        if !matches!(verdict, Verdict::Retry { may_be_its_own: true, .. }) {
            self.link.record(&verdict);
        }
        verdict
    }

    /// The same JSON as on MQTT; of batches a list, even of one.
    fn body(&self, events: &[(usize, &StoredEvent)], is_list: bool) -> Vec<u8> {
        let now = self.link.clock().now();
        let messages: Vec<Vec<u8>> = events
            .iter()
            .map(|(_, event)| event::wire(event, &self.origin, &now, &self.boot_id))
            .collect();
        let joined = messages.join(&b","[..]);
        if is_list { [&b"["[..], &joined[..], &b"]"[..]].concat() } else { joined }
    }

    /// What needs no request: the delivery, or `None` where one is to be made.
    fn without_request(&self, row: &OutboxRow) -> Option<Delivery> {
        let Some(event) = row.event() else {
            return Some(Delivery::Poison(
                "this version does not know this kind of message".to_owned(),
            ));
        };
        let preset = &self.link.settings().preset;
        if matches!(preset, Preset::Plain) {
            return None;
        }
        match preset.plan(event, &self.origin.device, &self.boot_id) {
            Plan::Nothing => Some(Delivery::Acknowledged),
            Plan::Hold => Some(Delivery::Held),
            Plan::Never(why) => Some(Delivery::Poison(why.to_owned())),
            Plan::Steps(_) => None,
        }
    }

    /// Delivers the events in parts. Returns why the rest is retried, if there is one.
    async fn deliver_parts(
        &self,
        mut parts: VecDeque<Part<'_>>,
        deliveries: &mut [Option<Delivery>],
    ) -> Option<String> {
        let mut failed = None;
        while let Some(part) = parts.pop_front() {
            let single = match part.as_slice() {
                [single] => Some(*single),
                _ => None,
            };
            match (self.send(&part).await, single) {
                (Verdict::Delivered, _) => {
                    failed = None;
                    for (at, _) in part {
                        deliveries[at] = Some(Delivery::Acknowledged);
                    }
                }
                (Verdict::AlreadyThere, Some((at, _))) => {
                    failed = None;
                    deliveries[at] = Some(Delivery::Acknowledged);
                }
                (Verdict::Never(why) | Verdict::TooLarge(why), Some((at, _))) => {
                    failed = None;
                    deliveries[at] = Some(Delivery::Poison(why));
                }
                (Verdict::Retry { reason, may_be_its_own: true }, Some((at, _))) => {
                    if failed.is_some() {
                        self.link.record(&Verdict::retry(&reason));
                        return Some(reason);
                    }
                    failed = Some(reason.clone());
                    deliveries[at] = Some(Delivery::Retry(reason));
                }
                (
                    Verdict::Retry { reason, may_be_its_own: false } | Verdict::Refused(reason),
                    _,
                ) => {
                    return Some(reason);
                }
                // Of several: one of them may be the cause.
                (_, None) => push_halves(part, &mut parts),
            }
        }
        if let Some(reason) = failed {
            self.link.record(&Verdict::retry(reason));
        }
        None
    }
}

impl Sink for WebhookSink {
    fn name(&self) -> SinkName {
        self.link.settings().sink()
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let mut deliveries: Vec<Option<Delivery>> =
            batch.iter().map(|row| self.without_request(row)).collect();
        let events: Vec<(usize, &StoredEvent)> = batch
            .iter()
            .enumerate()
            .filter(|(at, _)| deliveries[*at].is_none())
            .filter_map(|(at, row)| Some((at, row.event()?)))
            .collect();
        let pause = self.link.pause().filter(|_| !events.is_empty());
        let rest = if let Some(pause) = pause {
            Some(format!("the receiver asked to wait for another {} s", pause.as_secs() + 1))
        } else {
            let size = self.link.settings().batch.max(1);
            let parts = events.chunks(size).map(<[_]>::to_vec).collect();
            self.deliver_parts(parts, &mut deliveries).await
        };
        let rest = rest.unwrap_or_else(|| "it was not sent".to_owned());
        deliveries
            .into_iter()
            .map(|it| it.unwrap_or_else(|| Delivery::Retry(rest.clone())))
            .collect()
    }
}

fn push_halves<'a>(mut part: Part<'a>, parts: &mut VecDeque<Part<'a>>) {
    let second = part.split_off(part.len() / 2);
    parts.push_front(second);
    parts.push_front(part);
}

/// The event's id; of several a digest of their ids, because a batch that is sent again may be
/// another one.
fn idempotency_key(events: &[(usize, &StoredEvent)]) -> String {
    if let [(_, event)] = events {
        return event.event_id.to_string();
    }
    let digest = events
        .iter()
        .fold(Sha256::new(), |digest, (_, event)| digest.chain_update(event.event_id.as_bytes()));
    hex(&digest.finalize()[..16])
}
