//! The shared gallery through retained MQTT messages: receives the site's records, applies what is
//! newer, and keeps the index pages right.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::app::exit::storage;
use crate::app::fleet::reconcile::{Action, Observed, compare};
use crate::app::fleet::reconciler::{
    OTHERS_SPREAD, Reconciler, STORE_PAUSE, others_pause, random_up_to,
};
use crate::app::fleet::shared::SharedGallery;
use crate::app::fleet::sink::GalleryTransport;
use crate::app::fleet::wire::{
    WireError, encode_record, open_page, open_record, page_of, seal_page,
};
use crate::app::supervise::StageResult;
use crate::ids::SubjectId;
use crate::mqtt::event::{Inbound, LinkEvent};
use crate::mqtt::in_flight::AckToken;
use crate::mqtt::link::Link;
use crate::mqtt::message::{Message, NotAcknowledged};
use crate::mqtt::topics::{GalleryTopic, Topics};
use crate::store::relay::Delivery;
use crate::store::{SealedRecord, StoreError, VersionRecord};
use crate::wire::subject::Portable;

/// After a change of this device its page follows so soon: long enough to be one message for many
/// changes.
const AUTHOR_PAUSE: Duration = Duration::from_secs(1);
/// All retained messages were received when nothing came for this long.
const QUIET: Duration = Duration::from_millis(400);
/// The longest time that sealed messages postpone this: 10,000 records take some 10 s on a local
/// broker. Somebody who sends old records without end must not keep a device from ever publishing.
const RECEIVE_MAX: Duration = Duration::from_mins(1);
/// What was requested by name and has not come for this long is not there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How many are requested by name at a time: they fit into every broker's queue.
const REQUEST_COUNT: usize = 200;
/// So many records are requested by name each minute besides: a site of 16 is verified every
/// minute, one of 10,000 in ten hours; 16 records are some 100 kB.
const AUDIT_COUNT: usize = 16;
const AUDIT_EVERY: Duration = Duration::from_mins(1);
/// The health message is brought up to date at most this often: half of the two seconds that
/// docs/wire.md promises for a change, less a margin.
const REPORT_EVERY: Duration = Duration::from_millis(400);
/// Topics with too large a message that are remembered: two searches of the link.
const OVERSIZED_MAX: usize = 32;
/// Messages that share a transaction.
const BATCH: usize = 64;
/// How long to wait for published records to come back before they are requested by name. On a
/// local broker they come within milliseconds; a slow link costs one subscription more.
const ECHO_TIMEOUT: Duration = Duration::from_secs(2);

/// The task that reconciles the local gallery with the broker.
pub struct MqttGallery {
    pub reconciler: Reconciler,
    pub link: Link,
    pub topics: Topics,
}

enum Wakeup {
    Event(Option<LinkEvent>),
    Due,
}

/// The state of the present connection.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not the states of one machine"
)]
struct GalleryConnection {
    is_connected: bool,
    /// The broker's session has our subscription to all records.
    is_subscribed: bool,
    /// When receiving ends, unless something comes before.
    quiet_at: Option<Instant>,
    /// Since when nothing is published: bounds how often `quiet_at` is postponed.
    receiving_since: Option<Instant>,
    /// When some records are requested by name, to verify that the broker still retains them.
    audit_at: Option<Instant>,
    /// Requested by name.
    requested: HashMap<SubjectId, VersionRecord>,
    filters: Vec<String>,
    /// Topics with a message that is too large to be a record: cleared before the next
    /// subscription, which would bring it again and end the connection again.
    oversized: Vec<String>,
    is_refusal_logged: bool,
    refused: u64,
    reported_at: Option<Instant>,
    /// What was received since changed the health message.
    is_report_due: bool,
}

impl GalleryConnection {
    /// Keeps receiving for this long, unless sealed messages postpone the end.
    fn receive_for(&mut self, pause: Duration) {
        let now = Instant::now();
        self.receiving_since.get_or_insert(now);
        self.quiet_at = Some(now + pause);
    }

    fn quiet_pause(&self) -> Duration {
        if self.requested.is_empty() { QUIET } else { REQUEST_TIMEOUT }
    }

    /// Records that a sealed message came: more may follow.
    fn postpone_quiet(&mut self) {
        let (Some(_), Some(since)) = (self.quiet_at, self.receiving_since) else { return };
        self.quiet_at = Some((Instant::now() + self.quiet_pause()).min(since + RECEIVE_MAX));
    }

    fn reject_message(&mut self, why: &str) {
        self.refused += 1;
        if !std::mem::replace(&mut self.is_refusal_logged, true) {
            tracing::error!(
                why,
                "a part of the site's gallery is rejected: is [fleet] key_file the site's key?"
            );
        }
    }
}

impl MqttGallery {
    /// Handles the link's events until `stop`.
    pub async fn run(
        self,
        events: &mut mpsc::Receiver<LinkEvent>,
        mut stop: watch::Receiver<bool>,
    ) -> StageResult {
        let mut connection = GalleryConnection::default();
        let shared = &self.reconciler.shared;
        let mut is_key_stored = shared.replica().is_key_confirmed();
        self.report(&mut connection);
        loop {
            let wake_at = self.next_wakeup(&connection);
            let wakeup = tokio::select! {
                event = events.recv() => Wakeup::Event(event),
                () = sleep_until(wake_at) => Wakeup::Due,
                () = shared.published.notified() => Wakeup::Due,
                _ = stop.wait_for(|it| *it) => return Ok(()),
            };
            if *stop.borrow() {
                return Ok(());
            }
            match wakeup {
                Wakeup::Event(None) => anyhow::bail!("the link has ended"),
                Wakeup::Event(Some(event)) => {
                    self.handle_events(event, events, &mut connection).await.map_err(storage)?;
                }
                Wakeup::Due => {}
            }
            if !is_key_stored && shared.replica().is_key_confirmed() {
                is_key_stored = self.reconciler.store_confirmed_key().await.map_err(storage)?;
                if is_key_stored {
                    // Rows and pages that waited because nothing opened need not wait any longer.
                    self.schedule_differing_pages();
                    self.reconciler.store.deliver_now();
                }
            }
            self.run_due_work(&mut connection).await.map_err(storage)?;
            self.report(&mut connection);
        }
    }

    fn next_wakeup(&self, connection: &GalleryConnection) -> Option<Instant> {
        let shared = &self.reconciler.shared;
        let is_ready = shared.is_ready();
        let due = shared.replica().next_due().filter(|_| is_ready);
        let report = connection.reported_at.map(|at| at + REPORT_EVERY);
        let report = report.filter(|_| connection.is_report_due);
        let audit = connection.audit_at.filter(|_| is_ready);
        [due, connection.quiet_at, report, audit].into_iter().flatten().min()
    }

    fn schedule_differing_pages(&self) {
        let mut replica = self.reconciler.shared.replica();
        for page in 0..=u8::MAX {
            if replica.page_differs(page) {
                replica.schedule_page(page, Instant::now() + random_up_to(OTHERS_SPREAD));
            }
        }
    }

    /// Handles this event and those that wait behind it.
    async fn handle_events(
        &self,
        first: LinkEvent,
        events: &mut mpsc::Receiver<LinkEvent>,
        connection: &mut GalleryConnection,
    ) -> Result<(), StoreError> {
        let mut accepted = Vec::new();
        let mut tokens = Vec::new();
        let mut next = Some(first);
        let mut handled = 0;
        while let Some(event) = next {
            match event {
                LinkEvent::Inbound(inbound) => {
                    let Inbound { topic, payload, ack, .. } = inbound;
                    accepted.extend(self.receive_message(&topic, &payload, connection));
                    tokens.push(ack);
                }
                other => {
                    if matches!(other, LinkEvent::Connected { .. }) {
                        self.clear_oversized(connection).await;
                    }
                    self.handle_link_event(&other, connection);
                }
            }
            handled += 1;
            next = if handled < BATCH { events.try_recv().ok() } else { None };
        }
        if !self.reconciler.apply(accepted).await? {
            connection.receive_for(STORE_PAUSE);
        }
        // Also what could not be stored: the index shows that it is missing here.
        tokens.into_iter().for_each(AckToken::acknowledge);
        self.reconciler.shared.received.send_modify(|it| *it = it.wrapping_add(1));
        connection.is_report_due = true;
        Ok(())
    }

    /// Empties topics whose message no device can have sealed. A device that has the subject or the
    /// page publishes it again.
    async fn clear_oversized(&self, connection: &mut GalleryConnection) {
        let clear = |topic| Message { topic, payload: Vec::new(), retain: true };
        let messages: Vec<_> =
            std::mem::take(&mut connection.oversized).into_iter().map(clear).collect();
        if !messages.is_empty() {
            // What is lost here is found again by the next scan.
            self.link.publish_batch(messages).await;
        }
    }

    fn handle_link_event(&self, event: &LinkEvent, connection: &mut GalleryConnection) {
        match event {
            LinkEvent::Connected { session_present } => {
                self.reset_connection(connection);
                connection.is_connected = true;
                // The index first: if the rest is cut off, it still shows what is missing. A
                // session that has the subscription has the changes too.
                let mut filters = vec![self.topics.all_gallery_pages()];
                if !(connection.is_subscribed && *session_present) {
                    connection.is_subscribed = false;
                    filters.push(self.topics.all_gallery());
                }
                if !self.link.subscribe(filters) {
                    tracing::warn!("no room to subscribe to the site's gallery on this connection");
                }
            }
            LinkEvent::Lost { .. } => self.reset_connection(connection),
            LinkEvent::Subscribed { filters } => {
                connection.is_subscribed |= filters.contains(&self.topics.all_gallery());
                connection.receive_for(connection.quiet_pause());
            }
            LinkEvent::Oversized(oversized) => {
                connection.reject_message("it is too large");
                let topic =
                    oversized.topic.as_ref().filter(|it| self.topics.gallery_part(it).is_some());
                if let Some(topic) = topic.filter(|_| connection.oversized.len() < OVERSIZED_MAX) {
                    connection.oversized.push(topic.clone());
                }
            }
            LinkEvent::SubscriptionRefused { filter } => {
                tracing::error!(
                    filter,
                    "the broker rejects the subscription: the gallery is not shared (check its ACL)"
                );
            }
            // The link has logged what needs a line.
            LinkEvent::SessionPurged { .. }
            | LinkEvent::Unreachable { .. }
            | LinkEvent::Inbound(_) => {}
        }
    }

    fn reset_connection(&self, connection: &mut GalleryConnection) {
        let shared = &self.reconciler.shared;
        shared.ready.send_replace(false);
        shared.replica().forget_site();
        *connection = GalleryConnection {
            is_subscribed: connection.is_subscribed,
            oversized: std::mem::take(&mut connection.oversized),
            refused: connection.refused,
            ..GalleryConnection::default()
        };
    }

    /// Returns a record that is newer than the local one.
    fn receive_message(
        &self,
        topic: &str,
        payload: &[u8],
        connection: &mut GalleryConnection,
    ) -> Option<Portable> {
        match self.topics.gallery_part(topic)? {
            GalleryTopic::Page(page) => {
                self.receive_page(page, payload, connection);
                None
            }
            GalleryTopic::Subject(id) => {
                let newer = self.receive_record(&id, payload, connection);
                if connection.requested.remove(&id).is_some() && connection.requested.is_empty() {
                    connection.quiet_at = Some(Instant::now());
                }
                newer
            }
        }
    }

    fn receive_page(&self, page: u8, payload: &[u8], connection: &mut GalleryConnection) {
        let shared = &self.reconciler.shared;
        let opened = (!payload.is_empty())
            .then(|| open_page(payload, page, &shared.key, &shared.site))
            .transpose();
        let mut replica = shared.replica();
        if let Ok(Some(entries)) = opened {
            replica.receive_page(page, entries);
            if replica.page_differs(page) {
                replica.schedule_page(page, Instant::now() + others_pause());
            }
            drop(replica);
            if connection.quiet_at.is_none() {
                connection.receive_for(QUIET);
            }
            connection.postpone_quiet();
            return;
        }
        replica.mark_page_damaged(page);
        replica.schedule_page(page, Instant::now() + others_pause());
        if let Err(error) = opened {
            if matches!(error, WireError::Sealed) {
                replica.suspect_key();
            }
            connection.reject_message(&error.to_string());
        }
    }

    /// Opens the payload, whatever it claims, and returns a record that is newer than the local one.
    fn receive_record(
        &self,
        id: &SubjectId,
        payload: &[u8],
        connection: &mut GalleryConnection,
    ) -> Option<Portable> {
        let shared = &self.reconciler.shared;
        let opened = (!payload.is_empty())
            .then(|| open_record(payload, &shared.key, &shared.site, id))
            .transpose();
        let mut replica = shared.replica();
        let is_own =
            replica.local(id).is_some_and(|it| it.version.device == self.reconciler.device);
        let pause = if is_own { AUTHOR_PAUSE } else { others_pause() };
        let (observed, portable) = match opened {
            Ok(Some(portable)) => (Observed::Sealed(VersionRecord::of(&portable)), Some(portable)),
            // Somebody cleared the topic; a withdrawal is a record. A device that has the subject
            // publishes it again.
            Ok(None) => (Observed::Absent, None),
            Err(error) => {
                if matches!(error, WireError::Sealed) {
                    replica.suspect_key();
                }
                connection.reject_message(&error.to_string());
                let is_unreadable = matches!(error, WireError::Unreadable);
                (if is_unreadable { Observed::Unreadable } else { Observed::Unsealed }, None)
            }
        };
        let is_newer = compare(replica.local(id), &observed) == Action::Receive;
        let is_known = replica.receive(id, observed);
        let at = Instant::now() + if is_newer { others_pause() } else { pause };
        if portable.is_none() {
            if is_known {
                replica.schedule(id, at);
            }
            return None;
        }
        if is_newer || replica.page_differs(page_of(id)) {
            replica.schedule(id, at);
        }
        connection.postpone_quiet();
        portable.filter(|_| is_newer)
    }

    async fn run_due_work(&self, connection: &mut GalleryConnection) -> Result<(), StoreError> {
        let shared = &self.reconciler.shared;
        let now = Instant::now();
        if connection.is_connected && connection.quiet_at.is_some_and(|at| at <= now) {
            connection.quiet_at = None;
            connection.receiving_since = None;
            self.request_missing(connection);
            if !shared.is_ready() {
                self.schedule_differing_pages();
                shared.ready.send_replace(true);
                // What waited for this need not wait for the end of its pause.
                self.reconciler.store.deliver_now();
            }
        }
        if !shared.is_ready() {
            return Ok(());
        }
        if connection.audit_at.is_none_or(|at| at <= now)
            && connection.audit_at.replace(now + AUDIT_EVERY).is_some()
        {
            shared.replica().audit(AUDIT_COUNT);
        }
        if connection.quiet_at.is_none() && shared.replica().has_unverified() {
            self.request_missing(connection);
        }
        for page in self.reconciler.queue_due_pages(now).await? {
            self.correct_page(page, now).await?;
        }
        Ok(())
    }

    /// Requests by name what the site has newer, and what was published and did not come back. What
    /// was requested before and did not come is not there.
    fn request_missing(&self, connection: &mut GalleryConnection) {
        let mut replica = self.reconciler.shared.replica();
        for (id, version) in connection.requested.drain() {
            replica.receive(&id, Observed::Absent);
            replica.mark_unavailable(&id, version);
            replica.schedule(&id, Instant::now() + others_pause());
        }
        if !connection.filters.is_empty() {
            self.link.unsubscribe(std::mem::take(&mut connection.filters));
        }
        let mut wanted = replica.take_unverified(REQUEST_COUNT / 2);
        wanted.extend(replica.missing_locally());
        drop(replica);
        if wanted.is_empty() {
            return;
        }
        wanted.truncate(REQUEST_COUNT);
        let filters: Vec<String> = wanted.iter().map(|(id, _)| self.topics.gallery(id)).collect();
        connection.receive_for(REQUEST_TIMEOUT);
        if self.link.subscribe(filters.clone()) {
            connection.requested = wanted.into_iter().collect();
            connection.filters = filters;
        }
    }

    /// Publishes the page if the broker has another one. Records that the site lacks are published
    /// by the sink, and the page follows when they are there.
    async fn correct_page(&self, page: u8, now: Instant) -> Result<(), StoreError> {
        let shared = &self.reconciler.shared;
        let entries = {
            let mut replica = shared.replica();
            let Some(entries) = replica.page_correction(page) else { return Ok(()) };
            let wait = replica.page_wait(page, &entries, now);
            if !wait.is_zero() {
                replica.schedule_page(page, now + wait);
                return Ok(());
            }
            entries
        };
        let payload = seal_page(&entries, page, &shared.key, &shared.site)?;
        let message = Message { topic: self.topics.gallery_page(page), payload, retain: true };
        let results = self.link.publish_batch(vec![message]).await;
        let mut replica = shared.replica();
        match results.first() {
            Some(Err(error)) if error.is_poison() => {}
            Some(result) => {
                if result.is_ok() {
                    replica.record_page_published(page, entries, now);
                }
                // A published page comes back before this, and then nothing is left to do.
                replica.schedule_page(page, Instant::now() + others_pause());
            }
            None => {}
        }
        Ok(())
    }

    /// Updates the health message. Counting goes through all subjects, so it is not done for each
    /// message while many are received.
    fn report(&self, connection: &mut GalleryConnection) {
        let now = Instant::now();
        if connection.reported_at.is_some_and(|at| now < at + REPORT_EVERY) {
            connection.is_report_due = true;
            return;
        }
        connection.reported_at = Some(now);
        connection.is_report_due = false;
        self.reconciler.report(connection.is_connected, connection.refused);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub struct MqttTransport {
    pub link: Link,
    pub topics: Topics,
}

impl GalleryTransport for MqttTransport {
    async fn publish(
        &self,
        shared: &SharedGallery,
        records: &[SealedRecord],
        _: &[u32],
    ) -> Vec<Delivery> {
        let message = |record: &SealedRecord| Message {
            topic: self.topics.gallery(&record.subject_id),
            payload: encode_record(record),
            retain: true,
        };
        let results = self.link.publish_batch(records.iter().map(message).collect()).await;
        let delivery = |result: Result<(), NotAcknowledged>| match result {
            Ok(()) => Delivery::Held,
            Err(error) if error.is_poison() => Delivery::Poison(error.to_string()),
            Err(error) if error.needs_correction() => Delivery::Rejected(error.to_string()),
            Err(error) => Delivery::Retry(error.to_string()),
        };
        let mut deliveries: Vec<Delivery> = results.into_iter().map(delivery).collect();
        await_echoes(shared, records, &mut deliveries).await;
        // What did not come back is requested by name: the broker may have dropped it from a full
        // queue.
        let mut replica = shared.replica();
        for (record, delivery) in records.iter().zip(&deliveries) {
            if *delivery == Delivery::Held {
                replica.mark_unverified(&record.subject_id);
            }
        }
        drop(replica);
        deliveries
    }
}

/// Waits until the published records came back, and acknowledges those that did.
async fn await_echoes(
    shared: &SharedGallery,
    records: &[SealedRecord],
    deliveries: &mut [Delivery],
) {
    let mut received = shared.received.subscribe();
    let timeout = tokio::time::sleep(ECHO_TIMEOUT);
    tokio::pin!(timeout);
    loop {
        received.borrow_and_update();
        let mut is_missing = false;
        {
            let mut replica = shared.replica();
            let held = |it: &(&SealedRecord, &mut Delivery)| *it.1 == Delivery::Held;
            for (record, delivery) in records.iter().zip(deliveries.iter_mut()).filter(held) {
                if replica.is_received(&record.subject_id, &record.version) {
                    *delivery = Delivery::Acknowledged;
                    replica.schedule(&record.subject_id, Instant::now() + AUTHOR_PAUSE);
                } else {
                    is_missing = true;
                }
            }
        }
        if !is_missing {
            return;
        }
        tokio::select! {
            changed = received.changed() => if changed.is_err() { return },
            () = &mut timeout => return,
        }
    }
}
