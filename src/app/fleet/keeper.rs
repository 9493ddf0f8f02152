//! Hears the site's gallery, takes over what is newer, and keeps the index right.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::takeover::Takeover;
use super::wire::{Envelope, PAGES, open_page, page, page_of};
use super::{AUTHOR_PAUSE, Fleet, Stand};
use crate::app::gallery::GalleryCell;
use crate::app::storage;
use crate::app::supervise::StageResult;
use crate::health::Health;
use crate::mqtt::link::{AckToken, Inbound, Link, LinkEvent, Message};
use crate::mqtt::topics::{GalleryTopic, Topics};
use crate::recognise::face::{ModelDigest, SubjectId};
use crate::record::portable::Portable;
use crate::record::store::{Account, Debt, Store, StoreError, Tx};

/// What the broker keeps has been heard when nothing came for this long.
const QUIET: Duration = Duration::from_millis(400);
/// What was asked for by name and has not come for this long is not there.
const FETCH_PATIENCE: Duration = Duration::from_secs(3);
/// How many are asked for by name at a time: their answers fit into every broker's queue.
const FETCH: usize = 200;
/// Other doors wait longer than the author of a change, and not all equally long: the first one spares the others.
const OTHERS_PAUSE: Duration = Duration::from_secs(3);
const OTHERS_SPREAD: Duration = Duration::from_secs(4);
/// How long to leave the store alone that cannot take what came.
const STORE_PAUSE: Duration = Duration::from_secs(30);
/// Messages that share a transaction.
const BATCH: usize = 64;

pub struct Keeper {
    pub fleet: Arc<Fleet>,
    pub link: Link,
    pub topics: Topics,
    pub device: String,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub embedder: ModelDigest,
    pub health: Arc<Health>,
    pub changed: Arc<Notify>,
}

enum Woken {
    Event(Option<LinkEvent>),
    Due,
}

/// Where the present connection stands.
#[derive(Default)]
struct Hearing {
    connected: bool,
    /// The broker's session has our subscription to all records.
    subscribed: bool,
    /// When to go on, unless something comes before.
    quiet_at: Option<Instant>,
    /// Asked for by name.
    fetching: HashMap<SubjectId, Account>,
    filters: Vec<String>,
    /// The refusal of a record was told.
    told: bool,
    refused: u64,
    /// When the vital signs were last brought up to date.
    reckoned_at: Option<Instant>,
}

impl Hearing {
    /// Something is not taken.
    fn refuse(&mut self, why: &str) {
        self.refused += 1;
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!(
                why,
                "a part of the site's gallery is not taken: is [fleet] key_file the site's key?"
            );
        }
    }
}

impl Keeper {
    /// Takes the link's events until `stop`.
    pub async fn run(
        self,
        events: &mut mpsc::Receiver<LinkEvent>,
        mut stop: watch::Receiver<bool>,
    ) -> StageResult {
        let mut hearing = Hearing::default();
        self.tell(&mut hearing);
        loop {
            let wake = self.next_wake(&hearing);
            let woken = tokio::select! {
                event = events.recv() => Woken::Event(event),
                () = until(wake) => Woken::Due,
                () = self.fleet.nudge.notified() => Woken::Due,
                _ = stop.wait_for(|it| *it) => return Ok(()),
            };
            if *stop.borrow() {
                return Ok(());
            }
            match woken {
                Woken::Event(None) => anyhow::bail!("the link has gone"),
                Woken::Event(Some(event)) => {
                    self.take(event, events, &mut hearing).await.map_err(storage)?
                }
                Woken::Due => {}
            }
            self.go_on(&mut hearing).await.map_err(storage)?;
            self.tell(&mut hearing);
        }
    }

    fn next_wake(&self, hearing: &Hearing) -> Option<Instant> {
        let ready = *self.fleet.ready.borrow();
        let due = self.fleet.desk().due.iter().flatten().min().copied().filter(|_| ready);
        [due, hearing.quiet_at].into_iter().flatten().min()
    }

    /// This event and those that wait behind it.
    async fn take(
        &self,
        first: LinkEvent,
        events: &mut mpsc::Receiver<LinkEvent>,
        hearing: &mut Hearing,
    ) -> Result<(), StoreError> {
        let (mut accepted, mut tokens) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(event) = next {
            match event {
                LinkEvent::Inbound(inbound) => {
                    let Inbound { topic, payload, ack, .. } = inbound;
                    accepted.extend(self.hear(&topic, &payload, hearing));
                    tokens.push(ack);
                }
                other => self.edge(&other, hearing),
            }
            taken += 1;
            next = if taken < BATCH { events.try_recv().ok() } else { None };
        }
        if let Some(error) = self.apply(accepted).await?.err() {
            tracing::error!(%error, "what other doors enrolled cannot be stored, will ask again");
            hearing.quiet_at = Some(Instant::now() + STORE_PAUSE);
        }
        // Also what could not be stored: the index says that it is missing here.
        tokens.into_iter().for_each(AckToken::acknowledge);
        Ok(())
    }

    fn edge(&self, event: &LinkEvent, hearing: &mut Hearing) {
        match event {
            LinkEvent::Connected { session_present } => {
                self.forget(hearing);
                hearing.connected = true;
                let mut filters = vec![self.topics.all_gallery_pages()];
                // The index first: were the rest cut off, it would still say what is missing. A session that has the
                // subscription has the changes too.
                if !(hearing.subscribed && *session_present) {
                    hearing.subscribed = false;
                    filters.push(self.topics.all_gallery());
                }
                if !self.link.subscribe(filters) {
                    tracing::warn!("no room to subscribe to the site's gallery on this connection");
                }
            }
            LinkEvent::Lost { .. } => self.forget(hearing),
            LinkEvent::Subscribed { filters } => {
                hearing.subscribed |= filters.contains(&self.topics.all_gallery());
                hearing.quiet_at = Some(
                    Instant::now()
                        + if hearing.fetching.is_empty() { QUIET } else { FETCH_PATIENCE },
                );
            }
            LinkEvent::Oversized(_) => hearing.refuse("it is too large"),
            // The link has told these itself.
            LinkEvent::SubscriptionRefused { .. }
            | LinkEvent::SessionPurged { .. }
            | LinkEvent::Unreachable { .. }
            | LinkEvent::Inbound(_) => {}
        }
    }

    fn forget(&self, hearing: &mut Hearing) {
        self.fleet.ready.send_replace(false);
        let mut desk = self.fleet.desk();
        desk.book.forget_site();
        desk.due.fill(None);
        *hearing = Hearing {
            subscribed: hearing.subscribed,
            refused: hearing.refused,
            ..Hearing::default()
        };
    }

    /// A message of the site's. Gives an account that is newer than ours.
    fn hear(&self, topic: &str, payload: &[u8], hearing: &mut Hearing) -> Option<Portable> {
        if hearing.quiet_at.is_some() {
            let pause = if hearing.fetching.is_empty() { QUIET } else { FETCH_PATIENCE };
            hearing.quiet_at = Some(Instant::now() + pause);
        }
        match self.topics.gallery_part(topic)? {
            GalleryTopic::Page(at) => {
                self.hear_page(at, payload, hearing);
                None
            }
            GalleryTopic::Subject(id) => {
                if hearing.fetching.remove(&id).is_some() && hearing.fetching.is_empty() {
                    hearing.quiet_at = Some(Instant::now());
                }
                self.hear_record(&id, payload, hearing)
            }
        }
    }

    fn hear_page(&self, at: u8, payload: &[u8], hearing: &mut Hearing) {
        let read = if payload.is_empty() {
            Ok(super::wire::Entries::new())
        } else {
            open_page(payload, at, &self.fleet.key, &self.fleet.site)
        };
        let mut desk = self.fleet.desk();
        match read {
            Ok(entries) => {
                desk.book.said(at, entries);
                desk.due[usize::from(at)] = None;
                if desk.book.differs(at) {
                    desk.touch_page(at, others_pause());
                }
                hearing.quiet_at.get_or_insert(Instant::now() + QUIET);
            }
            Err(error) => {
                desk.book.page_sealed_off(at);
                drop(desk);
                hearing.refuse(&error.to_string());
            }
        }
    }

    fn hear_record(
        &self,
        id: &SubjectId,
        payload: &[u8],
        hearing: &mut Hearing,
    ) -> Option<Portable> {
        let mut desk = self.fleet.desk();
        if payload.is_empty() {
            // Somebody cleared the topic; a withdrawal is a record. Whoever has the subject puts it back.
            desk.book.seen(id, None);
            desk.touch(id, others_pause());
            return None;
        }
        let (envelope, theirs) = match Envelope::parse(payload) {
            Ok(envelope) => (Some(envelope.account()), Ok(envelope)),
            Err(error) => (None, Err(error)),
        };
        let account = envelope.unwrap_or_default();
        let is_news =
            theirs.is_ok() && desk.book.ours(id).is_none_or(|ours| account.is_newer_than(ours));
        let opened = match theirs {
            Ok(_) if !is_news => {
                let mine =
                    desk.book.ours(id).is_some_and(|ours| ours.version.device == self.device);
                desk.book.seen(id, Some(account));
                if desk.book.differs(page_of(id)) {
                    desk.touch(id, if mine { AUTHOR_PAUSE } else { others_pause() });
                }
                return None;
            }
            Ok(envelope) => envelope.open(&self.fleet.key, &self.fleet.site, id),
            Err(error) => Err(error),
        };
        match opened {
            Ok(portable) => {
                desk.book.seen(id, Some(account));
                desk.book.opened();
                desk.touch(id, others_pause());
                Some(portable)
            }
            Err(error) => {
                desk.book.record_sealed_off(id, account);
                drop(desk);
                hearing.refuse(&error.to_string());
                None
            }
        }
    }

    /// The inner error is one that another attempt may not meet.
    async fn apply(&self, accepted: Vec<Portable>) -> Result<Result<(), StoreError>, StoreError> {
        let (store, gallery, embedder) = (&self.store, &*self.gallery, &self.embedder);
        let now = match (Takeover { store, gallery, embedder, changed: &self.changed })
            .apply(accepted)
            .await?
        {
            Ok(now) => now,
            Err(error) => return Ok(Err(error)),
        };
        let mut desk = self.fleet.desk();
        for (id, account) in now {
            if let Some(account) = account {
                desk.book.put(&id, account);
            }
        }
        Ok(Ok(()))
    }

    /// What is due.
    async fn go_on(&self, hearing: &mut Hearing) -> Result<(), StoreError> {
        let now = Instant::now();
        if hearing.connected && hearing.quiet_at.is_some_and(|at| at <= now) {
            hearing.quiet_at = None;
            self.fetch(hearing);
            if !*self.fleet.ready.borrow() {
                let mut desk = self.fleet.desk();
                for at in (0..PAGES).map(|at| at as u8) {
                    if desk.book.differs(at) {
                        desk.touch_page(at, spread(OTHERS_SPREAD));
                    }
                }
                drop(desk);
                self.fleet.ready.send_replace(true);
                // What waited for this need not wait for the end of its pause.
                self.store.deliver_now();
            }
        }
        if *self.fleet.ready.borrow() {
            self.put_pages_right(now).await?;
        }
        Ok(())
    }

    /// Asks by name for what the site has and we do not; what was asked for before and did not come is not there.
    fn fetch(&self, hearing: &mut Hearing) {
        let mut desk = self.fleet.desk();
        for (id, account) in hearing.fetching.drain() {
            desk.book.seen(&id, None);
            desk.book.in_vain(&id, account);
            desk.touch(&id, others_pause());
        }
        if !hearing.filters.is_empty() {
            self.link.unsubscribe(std::mem::take(&mut hearing.filters));
        }
        let mut needs = desk.book.needs();
        drop(desk);
        if needs.is_empty() {
            return;
        }
        needs.truncate(FETCH);
        let filters: Vec<String> = needs.iter().map(|(id, _)| self.topics.gallery(id)).collect();
        hearing.quiet_at = Some(Instant::now() + FETCH_PATIENCE);
        if self.link.subscribe(filters.clone()) {
            hearing.fetching = needs.into_iter().collect();
            hearing.filters = filters;
        }
    }

    async fn put_pages_right(&self, now: Instant) -> Result<(), StoreError> {
        for at in (0..PAGES).map(|at| at as u8) {
            let (lacks, correction) = {
                let mut desk = self.fleet.desk();
                if desk.due[usize::from(at)].is_none_or(|due| due > now) {
                    continue;
                }
                desk.due[usize::from(at)] = None;
                if desk.book.is_strange() {
                    continue;
                }
                (desk.book.lacks(at), desk.book.correction(at))
            };
            if !lacks.is_empty() {
                // The page follows when they are there.
                let owe = move |tx: &mut Tx<'_>| {
                    lacks.iter().try_for_each(|id| tx.owe_gallery(id, Debt::Missing))
                };
                match self.store.write_async(owe).await {
                    Err(error) if error.is_fatal() => return Err(error),
                    Err(_) => self.fleet.desk().touch_page(at, STORE_PAUSE),
                    Ok(()) => {}
                }
            }
            let Some(entries) = correction else { continue };
            let payload = page(&entries, at, &self.fleet.key, &self.fleet.site)?;
            let message = Message { topic: self.topics.gallery_page(at), payload, retain: true };
            let sent = self.link.publish_batch(vec![message]).await;
            if sent.iter().any(|it| it.as_ref().is_err_and(|why| !why.is_poison())) {
                self.fleet.desk().touch_page(at, others_pause());
            }
        }
        Ok(())
    }

    fn tell(&self, hearing: &mut Hearing) {
        // Reckoning goes through all that there is: while much comes in, not after each message.
        let now = Instant::now();
        if hearing.quiet_at.is_some() && hearing.reckoned_at.is_some_and(|at| now < at + QUIET) {
            return;
        }
        hearing.reckoned_at = Some(now);
        let (strange, behind) = {
            let desk = self.fleet.desk();
            (desk.book.is_strange(), desk.book.needs().len() as u64)
        };
        let (ready, refused) = (*self.fleet.ready.borrow(), hearing.refused);
        Stand { reached: hearing.connected, strange, ready, behind, refused }
            .tell(&self.health, &self.changed);
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(super) fn others_pause() -> Duration {
    OTHERS_PAUSE + spread(OTHERS_SPREAD)
}

/// By chance, up to so much.
fn spread(most: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0_u8) % 1024;
    most.mul_f64(chance as f64 / 1024.0)
}
