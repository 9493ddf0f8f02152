//! The shared gallery through MongoDB's collection `gallery`.
//!
//! A change counter, one small document, shows that something was written. Then, and every minute
//! in any case, a device lists the versions of all subjects, page by page, applies what is newer
//! and queues what the site lacks. The server compares versions as devices do, so it does not
//! matter who writes last.
//!
//! Invariants: as over MQTT (`super`). Of the listing one page is held at a time. A document counts
//! as a record only after it was opened: what a row is about is read back after it was written, and
//! each minute an audit opens some documents that need not be read otherwise.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::exit::storage;
use crate::app::fleet::reconcile::{Action, Observed, compare};
use crate::app::fleet::reconciler::{Reconciler, STORE_PAUSE, others_pause};
use crate::app::fleet::replica::{ScanResult, UNKNOWN_MAX};
use crate::app::fleet::shared::SharedGallery;
use crate::app::fleet::sink::GalleryTransport;
use crate::app::fleet::wire::{BYTES_MAX, SEALED_BYTES_MIN};
use crate::app::supervise::StageResult;
use crate::ids::SubjectId;
use crate::mongo::{ListedRecord, MongoLink, StoredRecord};
use crate::store::relay::Delivery;
use crate::store::{SealedRecord, StoreError, VersionRecord};
use crate::wire::subject::{Portable, PortableError};

/// How often the change counter is read: one document of a few bytes.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// How often all versions are listed, whatever the change counter has.
const SCAN_EVERY: Duration = Duration::from_mins(1);
/// Records that are read at a time: of so many subjects, and of so many bytes.
const READ_COUNT: usize = 200;
const READ_BYTES: u64 = 4 << 20;
/// Records as new as the local ones that are opened each minute all the same: the version that a
/// document claims proves nothing. A site of 16 is verified every minute, one of 10,000 in ten
/// hours; 16 records are some 100 kB.
const AUDIT_COUNT: usize = 16;
/// The same while nothing was opened with this key yet: whether it is the site's is to be found out.
const AUDIT_COUNT_FIRST: usize = 200;

/// The task that reconciles the local gallery with the collection.
pub struct MongoGallery {
    pub reconciler: Reconciler,
    pub link: MongoLink,
}

#[derive(Debug, thiserror::Error)]
enum ScanError {
    /// The server is unreachable, ill, or refuses access: each time it is asked again.
    #[error("{0}")]
    Server(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChangeCounter {
    #[default]
    NotRead,
    Absent,
    At(i64),
}

#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not the states of one machine"
)]
struct Progress {
    is_connected: bool,
    /// As it was before the last complete scan.
    change_counter: ChangeCounter,
    scan_at: Option<Instant>,
    audit_at: Option<Instant>,
    unsealed: UnsealedCache,
    /// Of the last scan.
    unsealed_count: u64,
    refused: u64,
    is_key_stored: bool,
    is_outage_logged: bool,
    is_refusal_logged: bool,
}

/// Documents of unknown subjects that did not open, by claimed version and size. They are opened
/// again after a minute, because a record that claims the same may have replaced them.
#[derive(Default)]
struct UnsealedCache {
    known: HashSet<(SubjectId, VersionRecord, u64)>,
    expires_at: Option<Instant>,
}

impl UnsealedCache {
    fn expire(&mut self, now: Instant) {
        if self.expires_at.is_none_or(|at| at <= now) {
            self.known.clear();
            self.expires_at = Some(now + SCAN_EVERY);
        }
    }

    /// A full set takes no more: the others are opened at each scan.
    fn insert(&mut self, id: SubjectId, version: VersionRecord, bytes: u64) {
        if self.known.len() < UNKNOWN_MAX {
            self.known.insert((id, version, bytes));
        }
    }
}

/// A scan, as far as it has come.
struct Scan {
    result: ScanResult,
    /// To be opened although they claim the local version.
    audited: HashSet<SubjectId>,
}

impl MongoGallery {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut progress = Progress::default();
        let shared = &self.reconciler.shared;
        self.reconciler.report(progress.is_connected, progress.refused);
        loop {
            // A scan that is dropped half-way has done nothing that the next one would not repeat.
            tokio::select! {
                polled = self.poll(&mut progress) => polled.map_err(storage)?,
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
            self.reconciler.report(progress.is_connected, progress.refused);
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = shared.published.notified() => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn poll(&self, progress: &mut Progress) -> Result<(), StoreError> {
        match self.scan_if_due(progress).await {
            Ok(()) => {
                if std::mem::take(&mut progress.is_outage_logged) {
                    tracing::info!("the site's gallery in MongoDB is reached");
                }
                self.reconciler.queue_due_pages(Instant::now()).await?;
            }
            Err(ScanError::Store(error)) if error.is_fatal() => return Err(error),
            Err(ScanError::Store(error)) => {
                tracing::error!(%error, "the site's gallery cannot be stored, will retry");
                progress.scan_at = Some(Instant::now() + STORE_PAUSE);
            }
            Err(ScanError::Server(reason)) => {
                progress.is_connected = false;
                self.reconciler.shared.ready.send_replace(false);
                if !std::mem::replace(&mut progress.is_outage_logged, true) {
                    tracing::warn!(
                        reason,
                        "the site's gallery in MongoDB is not reached (docs/operations.md)"
                    );
                }
            }
        }
        Ok(())
    }

    async fn scan_if_due(&self, progress: &mut Progress) -> Result<(), ScanError> {
        let shared = &self.reconciler.shared;
        let read = self.link.read_change_counter(&shared.site).await.map_err(ScanError::Server)?;
        let counter = read.map_or(ChangeCounter::Absent, ChangeCounter::At);
        progress.is_connected = true;
        let now = Instant::now();
        let is_due = progress.scan_at.is_none_or(|at| at <= now);
        if shared.is_ready() && !is_due && progress.change_counter == counter {
            return Ok(());
        }
        self.reconciler.report(progress.is_connected, progress.refused);
        progress.scan_at = Some(now + SCAN_EVERY);
        self.scan(progress, now).await?;
        progress.change_counter = counter;
        Ok(())
    }

    async fn scan(&self, progress: &mut Progress, now: Instant) -> Result<(), ScanError> {
        let shared = &self.reconciler.shared;
        let was_disabled = shared.replica().has_wrong_key();
        progress.unsealed.expire(now);
        let audited = self.select_audited(progress, now);
        let mut scan = Scan { result: ScanResult::default(), audited };
        let mut after: Option<String> = None;
        loop {
            let page = self
                .link
                .list_records(&shared.site, after.as_deref())
                .await
                .map_err(ScanError::Server)?;
            let Some(last) = page.last else { break };
            let wanted = self.select_wanted(page.listed, &mut scan, &progress.unsealed);
            self.read_records(&wanted, &mut scan, &mut progress.unsealed).await?;
            after = Some(last);
        }
        let is_disabled = self.finish_scan(scan, progress, now);
        if !progress.is_key_stored && shared.replica().is_key_confirmed() {
            progress.is_key_stored = self.reconciler.store_confirmed_key().await?;
        }
        if !shared.ready.send_replace(true) || was_disabled != is_disabled {
            // What waited for this need not wait for the end of its pause.
            self.reconciler.store.deliver_now();
        }
        Ok(())
    }

    fn select_audited(&self, progress: &mut Progress, now: Instant) -> HashSet<SubjectId> {
        let mut replica = self.reconciler.shared.replica();
        let count = if !replica.is_key_confirmed() {
            AUDIT_COUNT_FIRST
        } else if progress.audit_at.is_none_or(|at| at <= now) {
            AUDIT_COUNT
        } else {
            return HashSet::new();
        };
        progress.audit_at = Some(now + SCAN_EVERY);
        replica.audit(count);
        replica.take_unverified(count).into_iter().map(|it| it.0).collect()
    }

    /// Returns which records of this page are to be read, with their sizes.
    fn select_wanted(
        &self,
        listed: Vec<ListedRecord>,
        scan: &mut Scan,
        unsealed: &UnsealedCache,
    ) -> Vec<(SubjectId, u64)> {
        let replica = self.reconciler.shared.replica();
        let mut wanted = Vec::new();
        for it in listed {
            let Some(id) = it.subject_id else {
                scan.result.observe_unnamed();
                continue;
            };
            let local = replica.local(&id);
            let Some(version) = it.version.filter(|_| it.bytes <= BYTES_MAX as u64) else {
                scan.result.observe(&id, Observed::Unsealed, local.is_some());
                continue;
            };
            if local.is_none() {
                let document = (id, version, it.bytes);
                if unsealed.known.contains(&document) {
                    scan.result.observe(&document.0, Observed::Unsealed, false);
                } else {
                    wanted.push((document.0, it.bytes));
                }
                continue;
            }
            let observed = Observed::Claimed(version);
            let action = compare(local, &observed);
            scan.result.observe(&id, observed, true);
            let is_audited = action == Action::InSync && scan.audited.contains(&id);
            if action == Action::Receive || is_audited {
                wanted.push((id, it.bytes));
            }
        }
        wanted
    }

    async fn read_records(
        &self,
        mut wanted: &[(SubjectId, u64)],
        scan: &mut Scan,
        unsealed: &mut UnsealedCache,
    ) -> Result<(), ScanError> {
        let site = &self.reconciler.shared.site;
        while !wanted.is_empty() {
            let mut bytes = 0;
            let fits = |it: &&(SubjectId, u64)| {
                bytes += it.1;
                bytes <= READ_BYTES
            };
            let count = wanted.iter().take(READ_COUNT).take_while(fits).count().max(1);
            let (batch, rest) = wanted.split_at(count);
            wanted = rest;
            let ids: Vec<SubjectId> = batch.iter().map(|it| it.0.clone()).collect();
            let records = self.link.read_records(site, &ids).await.map_err(ScanError::Server)?;
            let accepted = self.open_records(records, scan, unsealed);
            self.reconciler.apply(accepted).await?;
        }
        Ok(())
    }

    /// Returns the records that are newer than the local ones.
    fn open_records(
        &self,
        records: Vec<StoredRecord>,
        scan: &mut Scan,
        unsealed: &mut UnsealedCache,
    ) -> Vec<Portable> {
        let shared = &self.reconciler.shared;
        let mut accepted = Vec::new();
        for record in records {
            let (observed, portable) = open_record(shared, &record);
            let id = record.subject_id;
            let replica = shared.replica();
            let local = replica.local(&id);
            if observed == Observed::Unsealed && local.is_none() {
                let version = record.version.unwrap_or_default();
                unsealed.insert(id.clone(), version, record.bytes.unsigned_abs());
            }
            if compare(local, &observed) == Action::Receive {
                accepted.extend(portable);
            }
            scan.result.observe(&id, observed, local.is_some());
        }
        accepted
    }

    /// Puts the observations into the replica and schedules what the site lacks: records of this
    /// device at once; those of others after a pause, because one device is enough for it. Returns
    /// whether the key seems to be a wrong one.
    fn finish_scan(&self, scan: Scan, progress: &mut Progress, now: Instant) -> bool {
        let mut replica = self.reconciler.shared.replica();
        replica.finish_scan(scan.result);
        for page in 0..=u8::MAX {
            let missing = replica.missing_remotely(page);
            let is_own = |id: &SubjectId| {
                replica.local(id).is_some_and(|it| it.version.device == self.reconciler.device)
            };
            if missing.iter().any(is_own) {
                replica.schedule_page(page, now);
            } else if !missing.is_empty() && !replica.is_scheduled(page) {
                replica.schedule_page(page, now + others_pause());
            }
        }
        if !replica.missing_locally().is_empty() {
            progress.scan_at = Some(now + STORE_PAUSE);
        }
        let count = replica.unsealed_count();
        let increase = count.saturating_sub(progress.unsealed_count);
        progress.refused += increase;
        progress.unsealed_count = count;
        if increase > 0 && !std::mem::replace(&mut progress.is_refusal_logged, true) {
            tracing::error!(
                "a part of the site's gallery is rejected: is [fleet] key_file the site's key?"
            );
        }
        replica.has_wrong_key()
    }
}

/// Opens a document, whatever it claims.
fn open_record(shared: &SharedGallery, record: &StoredRecord) -> (Observed, Option<Portable>) {
    let opened = Portable::open(&record.sealed, &shared.key, &shared.site, &record.subject_id);
    let portable = match opened {
        Ok(portable) => portable,
        Err(PortableError::Sealed(_)) => {
            if record.sealed.len() >= SEALED_BYTES_MIN {
                shared.replica().suspect_key();
            }
            return (Observed::Unsealed, None);
        }
        Err(PortableError::Form { .. } | PortableError::Shape { .. }) => {
            return (Observed::Unreadable, None);
        }
    };
    shared.replica().confirm_key();
    // Anybody can write the clear fields; the sealed ones need the key.
    let version = VersionRecord::of(&portable);
    let is_same =
        |it: &VersionRecord| version.version == it.version && version.withdrawn == it.withdrawn;
    if record.version.as_ref().is_some_and(is_same) {
        (Observed::Sealed(version), Some(portable))
    } else {
        (Observed::Unsealed, None)
    }
}

pub struct MongoTransport {
    pub link: MongoLink,
}

impl MongoTransport {
    /// Returns which of these are not in the collection as new as this, each with the document that
    /// does not open in its place.
    async fn find_missing(
        &self,
        shared: &SharedGallery,
        records: &[SealedRecord],
    ) -> Result<HashMap<SubjectId, Option<StoredRecord>>, String> {
        let mut missing: HashMap<_, _> =
            records.iter().map(|it| (it.subject_id.clone(), None)).collect();
        let ids: Vec<SubjectId> = records.iter().map(|it| it.subject_id.clone()).collect();
        let ours: HashMap<&SubjectId, &VersionRecord> =
            records.iter().map(|it| (&it.subject_id, &it.version)).collect();
        for stored in self.link.read_records(&shared.site, &ids).await? {
            let id = stored.subject_id.clone();
            let (observed, _) = open_record(shared, &stored);
            if ours.get(&id).is_some_and(|it| observed.confirms(it)) {
                missing.remove(&id);
            } else if observed == Observed::Unsealed {
                missing.insert(id.clone(), Some(stored));
            }
            shared.replica().receive(&id, observed);
        }
        Ok(missing)
    }

    /// Reads the records back and replaces what does not open in their place. Returns which are not
    /// there in the end.
    async fn verify_records(
        &self,
        shared: &SharedGallery,
        records: &[SealedRecord],
    ) -> Result<HashMap<SubjectId, Option<StoredRecord>>, String> {
        let mut missing = self.find_missing(shared, records).await?;
        let unsealed =
            |it: &SealedRecord| Some((it.clone(), missing.get_mut(&it.subject_id)?.take()?));
        let unsealed: Vec<_> = records.iter().filter_map(unsealed).collect();
        if unsealed.is_empty() {
            return Ok(missing);
        }
        self.link.replace_unsealed(&shared.site, &unsealed).await?;
        self.find_missing(shared, records).await
    }
}

impl GalleryTransport for MongoTransport {
    async fn publish(
        &self,
        shared: &SharedGallery,
        records: &[SealedRecord],
        attempts: &[u32],
    ) -> Vec<Delivery> {
        let mut deliveries = self.link.put_records(&shared.site, records, attempts).await;
        let missing = match self.verify_records(shared, records).await {
            Ok(missing) => missing,
            Err(why) => return vec![Delivery::Retry(why); records.len()],
        };
        for (record, delivery) in records.iter().zip(&mut deliveries) {
            if *delivery == Delivery::Acknowledged && missing.contains_key(&record.subject_id) {
                *delivery = Delivery::Held;
            }
        }
        deliveries
    }
}
