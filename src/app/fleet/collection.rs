//! The site's gallery through MongoDB's collection `gallery` instead of MQTT.
//!
//! A bell, one small document, tells that something was written; then, and every minute in any case, a door reads which
//! accounts the site has, page by page, takes what is newer and owes the site what that lacks. The server joins accounts
//! by version as doors do, so it does not matter who writes last.
//!
//! Invariants: as over MQTT (`super`). Besides the door's own accounts only one page of the site's is held.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Stand;
use super::keeper::others_pause;
use super::takeover::Takeover;
use super::wire::BYTES_MAX;
use crate::app::gallery::GalleryCell;
use crate::app::storage;
use crate::app::supervise::StageResult;
use crate::health::Health;
use crate::mongo::{Listed, MongoLink, SealedAccount};
use crate::recognise::face::{ModelDigest, SubjectId};
use crate::record::outbox::{Delivery, Sink};
use crate::record::portable::Portable;
use crate::record::seal::SharedKey;
use crate::record::store::{Account, Debt, OutboxRow, SinkName, Store, StoreError, Tx, subject_of};

/// How often to listen for the bell: one document of a few bytes.
const LISTEN_EVERY: Duration = Duration::from_secs(2);
/// How often to go through all accounts, bell or not.
const WHOLE_EVERY: Duration = Duration::from_mins(1);
/// How long to leave the store alone that cannot take what came.
const STORE_PAUSE: Duration = Duration::from_secs(30);
/// Records that are read at a time: of so many subjects, and of so many bytes.
const FETCH: usize = 200;
const FETCH_BYTES: u64 = 4 << 20;
/// Records that are opened to see whether any does, where none was opened yet.
const PROOFS: usize = 8;
/// Debts that share a transaction.
const BATCH: usize = 500;
/// The first look is over within this, mostly.
const HEARING: Duration = Duration::from_secs(3);

/// What keeper and sink share.
pub struct Shelf {
    key: Arc<SharedKey>,
    site: String,
    known: Mutex<Known>,
    /// The sink has written: look at once.
    nudge: Notify,
    /// Whether the site's accounts were read, so that we may speak.
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    /// What the site has and we cannot open, by what it says of itself.
    sealed_off: HashMap<SubjectId, Account>,
    /// Documents of nobody.
    strays: u64,
    opened: u64,
    refused: u64,
}

impl Known {
    /// Nothing of what the site has opens here.
    fn is_strange(&self) -> bool {
        self.opened == 0 && !self.sealed_off.is_empty()
    }
}

impl Shelf {
    pub fn new(key: Arc<SharedKey>, site: &str) -> Self {
        let (known, ready) = (Mutex::default(), watch::Sender::new(false));
        Self { key, site: site.to_owned(), known, nudge: Notify::new(), ready }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, record: &SealedAccount) -> Option<Portable> {
        let found =
            Portable::open(&record.sealed, &self.key, &self.site, &record.subject_id).ok()?;
        // Outside it may say anything; inside, only who has the key.
        let account = Account::of(&found);
        let same = account.version == record.account.version
            && account.withdrawn == record.account.withdrawn;
        same.then_some(found)
    }
}

pub struct CollectionKeeper {
    pub shelf: Arc<Shelf>,
    pub link: MongoLink,
    pub device: String,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub embedder: ModelDigest,
    pub health: Arc<Health>,
    pub changed: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The server is away, ill, or does not let us: all the same, it is asked again.
    #[error("{0}")]
    Server(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the keeper stands.
#[derive(Default)]
struct Round {
    reached: bool,
    /// What the bell said before the last whole look; nothing is also what it may say.
    #[expect(clippy::option_option, reason = "not asked yet, never rung, and when it rang")]
    bell: Option<Option<i64>>,
    whole_at: Option<Instant>,
    /// When to give the site what it lacks of other doors' accounts.
    others_at: Option<Instant>,
    behind: u64,
    /// That it is away was told.
    told_away: bool,
    told_refused: bool,
}

/// One whole look, as far as it has come.
struct Look {
    /// What the site has not shown to have as new.
    lacking: BTreeMap<SubjectId, Account>,
    ours: BTreeMap<SubjectId, Account>,
    sealed_off: HashMap<SubjectId, Account>,
    strays: u64,
    proofs: usize,
    behind: u64,
}

impl CollectionKeeper {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut round = Round::default();
        self.tell(&round);
        loop {
            // Left in the middle, a look has done nothing that the next one would not do again.
            tokio::select! {
                looked = self.look(&mut round) => looked.map_err(storage)?,
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
            self.tell(&round);
            tokio::select! {
                () = tokio::time::sleep(LISTEN_EVERY) => {}
                () = self.shelf.nudge.notified() => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn look(&self, round: &mut Round) -> Result<(), StoreError> {
        match self.listen(round).await {
            Ok(()) => {
                if std::mem::take(&mut round.told_away) {
                    tracing::info!("the site's gallery in MongoDB is reached");
                }
            }
            Err(Trouble::Store(error)) if error.is_fatal() => return Err(error),
            Err(Trouble::Store(error)) => {
                tracing::error!(%error, "what other doors enrolled cannot be stored, will ask again");
                round.whole_at = Some(Instant::now() + STORE_PAUSE);
            }
            Err(Trouble::Server(reason)) => {
                round.reached = false;
                self.shelf.ready.send_replace(false);
                if !std::mem::replace(&mut round.told_away, true) {
                    tracing::warn!(
                        reason,
                        "the site's gallery in MongoDB is not reached (docs/operations.md)"
                    );
                }
            }
        }
        Ok(())
    }

    async fn listen(&self, round: &mut Round) -> Result<(), Trouble> {
        let bell = self.link.gallery_bell(&self.shelf.site).await.map_err(Trouble::Server)?;
        round.reached = true;
        let ready = *self.shelf.ready.borrow();
        let now = Instant::now();
        let due = [round.whole_at, round.others_at]
            .into_iter()
            .flatten()
            .min()
            .is_none_or(|at| at <= now);
        if ready && !due && round.bell == Some(bell) {
            return Ok(());
        }
        self.tell(round);
        round.whole_at = Some(now + WHOLE_EVERY);
        self.look_through(round).await?;
        round.bell = Some(bell);
        Ok(())
    }

    async fn look_through(&self, round: &mut Round) -> Result<(), Trouble> {
        let known = self.store.write_async(|tx| tx.all_accounts()).await?;
        let ours: BTreeMap<_, _> =
            known.into_iter().map(|it| (it.subject_id, it.account)).collect();
        let (was_strange, opened) = {
            let known = self.shelf.known();
            (known.is_strange(), known.opened)
        };
        let proofs = if opened == 0 { PROOFS } else { 0 };
        let (lacking, sealed_off) = (ours.clone(), HashMap::new());
        let mut look = Look { lacking, ours, sealed_off, strays: 0, proofs, behind: 0 };
        let mut after: Option<String> = None;
        loop {
            let page = self
                .link
                .gallery_page(&self.shelf.site, after.as_deref())
                .await
                .map_err(Trouble::Server)?;
            let Some(last) = page.last else { break };
            let wanted = self.judge(page.listed, &mut look);
            self.fetch(wanted, &mut look).await?;
            after = Some(last);
        }
        let strange = self.settle(&mut look, round);
        round.behind = look.behind;
        if look.behind > 0 {
            round.whole_at = Some(Instant::now() + STORE_PAUSE);
        }
        if !strange {
            self.owe(look.lacking, round).await?;
        }
        if !self.shelf.ready.send_replace(true) || was_strange != strange {
            // What waited for this need not wait for the end of its pause.
            self.store.deliver_now();
        }
        Ok(())
    }

    /// Whose records of this page are to be read, with their sizes.
    fn judge(&self, listed: Vec<Listed>, look: &mut Look) -> Vec<(SubjectId, u64)> {
        let known = self.shelf.known();
        let mut wanted = Vec::new();
        for it in listed {
            let Some(id) = it.subject_id else {
                look.strays += 1;
                continue;
            };
            let account = it.account.clone().unwrap_or_default();
            if it.account.is_none()
                || it.bytes > BYTES_MAX as u64
                || known.sealed_off.get(&id) == Some(&account)
            {
                look.lacking.remove(&id);
                look.sealed_off.insert(id, account);
                continue;
            }
            let ours = look.ours.get(&id);
            let is_newer = ours.is_none_or(|ours| account.is_newer_than(ours));
            if is_newer || ours.is_some_and(|ours| !ours.is_newer_than(&account)) {
                look.lacking.remove(&id);
            }
            let proof = look.proofs > 0;
            look.proofs = look.proofs.saturating_sub(1);
            if is_newer || proof {
                wanted.push((id, it.bytes));
            }
        }
        wanted
    }

    async fn fetch(&self, wanted: Vec<(SubjectId, u64)>, look: &mut Look) -> Result<(), Trouble> {
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |it: &&(SubjectId, u64)| {
                bytes += it.1;
                bytes <= FETCH_BYTES
            };
            let count = rest.iter().take(FETCH).take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            let ids: Vec<SubjectId> = now.iter().map(|it| it.0.clone()).collect();
            let records =
                self.link.gallery_records(&self.shelf.site, &ids).await.map_err(Trouble::Server)?;
            let mut accepted = Vec::new();
            for record in records {
                if let Some(portable) = self.shelf.open(&record) {
                    self.shelf.known().opened += 1;
                    let ours = look.ours.get(&record.subject_id);
                    if ours.is_none_or(|ours| record.account.is_newer_than(ours)) {
                        accepted.push(portable);
                    }
                } else {
                    look.lacking.remove(&record.subject_id);
                    look.sealed_off.insert(record.subject_id, record.account);
                }
            }
            let (count, embedder) = (accepted.len() as u64, &self.embedder);
            let (store, gallery, changed) = (&self.store, &*self.gallery, &*self.changed);
            if let Err(error) =
                (Takeover { store, gallery, embedder, changed }).apply(accepted).await?
            {
                tracing::error!(%error, "what other doors enrolled cannot be stored, will ask again");
                look.behind += count;
            }
        }
        Ok(())
    }

    /// Keeps what was found not to open. Gives whether nothing does.
    fn settle(&self, look: &mut Look, round: &mut Round) -> bool {
        let mut known = self.shelf.known();
        let is_news = |it: &(&SubjectId, &Account)| known.sealed_off.get(it.0) != Some(it.1);
        let news = look.sealed_off.iter().filter(is_news).count() as u64;
        let news = news + look.strays.saturating_sub(known.strays);
        known.refused += news;
        known.strays = look.strays;
        known.sealed_off = std::mem::take(&mut look.sealed_off);
        if news > 0 && !std::mem::replace(&mut round.told_refused, true) {
            tracing::error!(
                "a part of the site's gallery is not taken: is [fleet] key_file the site's key?"
            );
        }
        known.is_strange()
    }

    /// What the site lacks: our own at once; other doors' after a while, if it is still lacking then, as one door is
    /// enough for it.
    async fn owe(
        &self,
        lacking: BTreeMap<SubjectId, Account>,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let (mut owed, others): (Vec<_>, Vec<_>) =
            lacking.into_iter().partition(|(_, account)| account.version.device == self.device);
        let now = Instant::now();
        match round.others_at {
            _ if others.is_empty() => round.others_at = None,
            Some(at) if at <= now => {
                owed.extend(others);
                round.others_at = None;
            }
            Some(_) => {}
            None => round.others_at = Some(now + others_pause()),
        }
        let ids: Vec<SubjectId> = owed.into_iter().map(|it| it.0).collect();
        for some in ids.chunks(BATCH) {
            let some = some.to_vec();
            let owe = move |tx: &mut Tx<'_>| {
                some.iter().try_for_each(|id| tx.owe_gallery(id, Debt::Missing))
            };
            self.store.write_async(owe).await?;
        }
        Ok(())
    }

    fn tell(&self, round: &Round) {
        let (strange, refused) = {
            let known = self.shelf.known();
            (known.is_strange(), known.refused)
        };
        let (ready, behind) = (*self.shelf.ready.borrow(), round.behind);
        Stand { reached: round.reached, strange, ready, behind, refused }
            .tell(&self.health, &self.changed);
    }
}

/// Subjects that the site is owed become documents. A row says whom, not what, as over MQTT.
pub struct CollectionSink {
    pub shelf: Arc<Shelf>,
    pub link: MongoLink,
    pub store: Store,
}

/// What is to be done about a row.
enum Errand {
    Done,
    Failed,
    Put(SealedAccount),
}

impl CollectionSink {
    async fn errands(&self, batch: &[OutboxRow]) -> Result<Vec<Errand>, StoreError> {
        let owed = |row: &OutboxRow| {
            let (topic, payload) = row.reply.as_ref()?;
            Some((subject_of(topic)?, Debt::parse(payload)))
        };
        let owed: Vec<_> = batch.iter().map(owed).collect();
        let of_site = Arc::clone(&self.shelf);
        // Sealed on the store's thread: what is in clear does not leave it.
        let read = move |tx: &mut Tx<'_>| {
            let errand = |row: &Option<(SubjectId, Debt)>| -> Result<Errand, StoreError> {
                let Some((id, debt)) = row else {
                    return Ok(Errand::Failed);
                };
                let Some(portable) = tx.portable(id)? else {
                    return Ok(Errand::Done);
                };
                let account = Account::of(&portable);
                // Never only because we cannot read it: but somebody changed it here, knowing it or not.
                if *debt != Debt::Changed && of_site.known().sealed_off.contains_key(id) {
                    return Ok(Errand::Done);
                }
                let sealed = portable.seal(&of_site.key, &of_site.site)?;
                Ok(Errand::Put(SealedAccount { subject_id: id.clone(), account, sealed }))
            };
            owed.iter().map(errand).collect()
        };
        self.store.write_async(read).await
    }

    async fn heard(&self) -> bool {
        let mut ready = self.shelf.ready.subscribe();
        tokio::time::timeout(HEARING, ready.wait_for(|it| *it)).await.is_ok_and(|it| it.is_ok())
    }
}

impl Sink for CollectionSink {
    fn name(&self) -> SinkName {
        SinkName::GALLERY
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let all = |answer: Delivery| vec![answer; batch.len()];
        if !self.heard().await {
            return all(Delivery::Retry("the site's gallery was not read yet".into()));
        }
        if self.shelf.known().is_strange() {
            return all(Delivery::Refused(
                "the site's gallery does not open with this key ([fleet] key_file)".into(),
            ));
        }
        let errands = match self.errands(batch).await {
            Ok(errands) => errands,
            Err(error) => return all(Delivery::Retry(error.to_string())),
        };
        let mut deliveries = all(Delivery::Acknowledged);
        let (mut places, mut records) = (Vec::new(), Vec::new());
        for (at, errand) in errands.into_iter().enumerate() {
            match errand {
                Errand::Done => {}
                Errand::Failed => deliveries[at] = Delivery::Poison("it is about nobody".into()),
                Errand::Put(record) => {
                    places.push(at);
                    records.push((record, batch[at].attempts));
                }
            }
        }
        if records.is_empty() {
            return deliveries;
        }
        let answers = self.link.put_gallery(&self.shelf.site, &records).await;
        for (at, answer) in places.into_iter().zip(answers) {
            deliveries[at] = answer;
        }
        self.shelf.nudge.notify_one();
        deliveries
    }
}
