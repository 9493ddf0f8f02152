//! The steps of reconciliation that both transports share: applying what other devices changed,
//! queueing what the site lacks, and reporting the state.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::app::context::Context;
use crate::app::fleet::shared::{SharedGallery, is_key_confirmed, store_confirmed_key};
use crate::app::state::gallery::GalleryCell;
use crate::health::{Health, Sharing, SharingState};
use crate::keys::seal::SharedKey;
use crate::recognise::face::Embedder;
use crate::recognise::gallery::{Gallery, Subject};
use crate::store::{
    AcceptOutcome, PublishReason, Store, StoreError, Tx, VersionRecord, join_parts,
};
use crate::wire::subject::{Portable, State};

/// Other devices wait longer than the author of a change, and not all equally long: the first one
/// spares the others.
const OTHERS_PAUSE: Duration = Duration::from_secs(3);
pub const OTHERS_SPREAD: Duration = Duration::from_secs(4);
/// The pause after the store could not take what was received.
pub const STORE_PAUSE: Duration = Duration::from_secs(30);
/// Outbox rows that share a transaction.
const QUEUE_BATCH: usize = 500;
/// Received records that cannot be stored by themselves, before the others wait as well.
const FAILURES_MAX: usize = 8;

pub struct Reconciler {
    pub shared: Arc<SharedGallery>,
    pub device: String,
    pub store: Store,
    gallery: Arc<GalleryCell>,
    embedder: Embedder,
    health: Arc<Health>,
    changed: Arc<Notify>,
}

impl Reconciler {
    /// Reads the local versions from the store.
    pub async fn load(ctx: Context, key: Arc<SharedKey>) -> Result<Self, StoreError> {
        let Context { origin, store, gallery, embedder, health, changed, .. } = ctx;
        let fingerprint = key.fingerprint();
        let read =
            move |tx: &mut Tx<'_>| Ok((tx.known_subjects()?, is_key_confirmed(tx, &fingerprint)?));
        let (known, is_key_confirmed) = store.write_async(read).await?;
        let shared = Arc::new(SharedGallery::new(key, origin.site, known, is_key_confirmed));
        Ok(Self { shared, device: origin.device, store, gallery, embedder, health, changed })
    }

    /// Stores what is newer and puts it into the gallery. Returns whether it is stored; an error is
    /// fatal.
    pub async fn apply(&self, mut received: Vec<Portable>) -> Result<bool, StoreError> {
        // An erasure searches all stored replies: each is a write of its own, so that attendance is
        // recorded between them.
        let erasures = received.extract_if(.., |it| VersionRecord::of(it).erased);
        let erasures: Vec<Portable> = erasures.collect();
        let received = Arc::new(received);
        let mut is_stored = self.apply_together(&received).await?;
        if !is_stored && received.len() > 1 {
            is_stored = self.apply_each(&received).await?;
        }
        for erasure in erasures {
            is_stored &= self.apply_together(&Arc::new(vec![erasure])).await?;
        }
        Ok(is_stored)
    }

    /// One that cannot be stored must not hold back the others. Gives up where many cannot, as on a
    /// full disk.
    async fn apply_each(&self, received: &[Portable]) -> Result<bool, StoreError> {
        let mut failures = 0;
        for portable in received {
            let is_stored = self.apply_together(&Arc::new(vec![portable.clone()])).await?;
            failures += usize::from(!is_stored);
            if failures == FAILURES_MAX {
                break;
            }
        }
        Ok(failures == 0)
    }

    /// In one write.
    async fn apply_together(&self, portables: &Arc<Vec<Portable>>) -> Result<bool, StoreError> {
        if portables.is_empty() {
            return Ok(true);
        }
        let turn = self.gallery.lock_for_change().await;
        let stored = Arc::clone(portables);
        let write = move |tx: &mut Tx<'_>| {
            let accept = |it: &Portable| {
                let outcome = tx.accept_portable(it)?;
                // One that is not accepted met a newer version, which may not be published yet.
                Ok((outcome, tx.version_record(&it.subject_id)?))
            };
            stored.iter().map(accept).collect::<Result<Vec<_>, StoreError>>()
        };
        let outcomes = match self.store.write_async(write).await {
            Ok(outcomes) => outcomes,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "the site's changes cannot be stored, will request them again");
                return Ok(false);
            }
        };
        let mut accepted = Vec::new();
        let mut replica = self.shared.replica();
        for (portable, (outcome, version)) in portables.iter().zip(outcomes) {
            if outcome == AcceptOutcome::Accepted {
                accepted.push(portable);
            }
            if let Some(version) = version {
                replica.put_local(&portable.subject_id, version);
            }
        }
        drop(replica);
        self.gallery.update(|gallery| {
            let replace = |gallery, it: &&Portable| replace_subject(gallery, it, &self.embedder);
            accepted.iter().fold(gallery, replace)
        });
        drop(turn);
        if !accepted.is_empty() {
            let withdrawn = accepted.iter().filter(|it| it.is_withdrawn()).count();
            let subjects = accepted.len() - withdrawn;
            tracing::info!(subjects, withdrawn, "changes of other devices applied");
            self.changed.notify_one();
        }
        Ok(true)
    }

    /// Stores that the key is the site's. Returns whether it is stored; a full disk is tried again.
    pub async fn store_confirmed_key(&self) -> Result<bool, StoreError> {
        let fingerprint = self.shared.key.fingerprint();
        match self.store.write_async(move |tx| store_confirmed_key(tx, &fingerprint)).await {
            Err(error) if error.is_fatal() => Err(error),
            Err(_) => Ok(false),
            Ok(()) => Ok(true),
        }
    }

    /// Queues what the site lacks of the pages that are due. Returns these pages; none while the
    /// key seems to be a wrong one.
    pub async fn queue_due_pages(&self, now: Instant) -> Result<Vec<u8>, StoreError> {
        let (pages, missing) = {
            let mut replica = self.shared.replica();
            let pages = replica.take_due_pages(now);
            if replica.has_wrong_key() {
                return Ok(Vec::new());
            }
            let missing: Vec<_> =
                pages.iter().flat_map(|at| replica.missing_remotely(*at)).collect();
            (pages, missing)
        };
        for batch in missing.chunks(QUEUE_BATCH) {
            let batch = batch.to_vec();
            let queue = move |tx: &mut Tx<'_>| {
                batch.iter().try_for_each(|id| tx.queue_for_gallery(id, PublishReason::Missing))
            };
            match self.store.write_async(queue).await {
                Err(error) if error.is_fatal() => return Err(error),
                Err(_) => {
                    let mut replica = self.shared.replica();
                    for at in &pages {
                        replica.schedule_page(*at, now + STORE_PAUSE);
                    }
                    break;
                }
                Ok(()) => {}
            }
        }
        Ok(pages)
    }

    /// Updates the sharing state in the health message; a change of the state is logged and sent at
    /// once.
    pub fn report(&self, is_connected: bool, refused: u64) {
        let sharing = {
            let replica = self.shared.replica();
            let behind = replica.missing_locally().len() as u64;
            let state = if !is_connected {
                SharingState::Away
            } else if replica.has_wrong_key() {
                SharingState::WrongKey
            } else if behind > 0 || !self.shared.is_ready() {
                SharingState::Learning
            } else if replica.is_blocked() {
                SharingState::Blocked
            } else {
                SharingState::Shared
            };
            let pending = replica.pending_count();
            let unsealed = replica.unsealed_count();
            Sharing { state, behind, refused, pending, unsealed }
        };
        let Sharing { state, pending, unsealed, .. } = sharing;
        let before = self.health.set_sharing(sharing);
        if before.is_some_and(|before| before.state == state) {
            return;
        }
        if state == SharingState::WrongKey {
            tracing::error!(
                "the site's gallery does not open with this key: gallery sharing is disabled \
                 ([fleet] key_file)"
            );
        }
        if state == SharingState::Blocked {
            tracing::error!(
                unsealed,
                pending,
                "the site's gallery is disturbed by somebody without its key: check who may write \
                 it (docs/operations.md)"
            );
        }
        self.changed.notify_one();
    }
}

fn replace_subject(gallery: Gallery, portable: &Portable, embedder: &Embedder) -> Gallery {
    let State::Enrolled { name, references, .. } = &portable.state else {
        return gallery.without(&portable.subject_id);
    };
    let templates = join_parts(references, embedder);
    gallery.replaced(Subject { id: portable.subject_id.clone(), name: name.clone() }, &templates)
}

/// The pause of a device that did not make the change.
pub fn others_pause() -> Duration {
    OTHERS_PAUSE + random_up_to(OTHERS_SPREAD)
}

pub fn random_up_to(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}
