//! What the task that reconciles the gallery and the sink that publishes it share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::app::fleet::replica::Replica;
use crate::keys::seal::SharedKey;
use crate::store::{KnownSubject, StoreError, Tx};

pub struct SharedGallery {
    pub key: Arc<SharedKey>,
    pub site: String,
    replica: Mutex<Replica>,
    /// The sink has published: the task checks the result.
    pub(super) published: Notify,
    /// Whether the site's gallery was read, so that this device may publish.
    pub(super) ready: watch::Sender<bool>,
    /// Counts batches of received messages: the sink waits for its records to come back.
    pub(super) received: watch::Sender<u64>,
}

impl SharedGallery {
    /// `is_key_confirmed`: something of the site opened with this key before this start
    /// (`is_key_confirmed`).
    pub fn new(
        key: Arc<SharedKey>,
        site: String,
        known: Vec<KnownSubject>,
        is_key_confirmed: bool,
    ) -> Self {
        Self {
            key,
            site,
            replica: Mutex::new(Replica::new(known, is_key_confirmed)),
            published: Notify::new(),
            ready: watch::Sender::new(false),
            received: watch::Sender::new(0),
        }
    }

    pub(super) fn replica(&self) -> MutexGuard<'_, Replica> {
        self.replica.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
}

/// The fingerprint of the key with which something of the site opened. After a restart, content
/// that does not open is then known to be foreign, and no sign of a wrong key here.
const CONFIRMED_KEY: &str = "fleet_key_confirmed";

/// Returns whether something of the site was opened with this key before.
pub fn is_key_confirmed(tx: &Tx<'_>, fingerprint: &str) -> Result<bool, StoreError> {
    Ok(tx.meta(CONFIRMED_KEY)?.is_some_and(|it| it == fingerprint.as_bytes()))
}

pub fn store_confirmed_key(tx: &mut Tx<'_>, fingerprint: &str) -> Result<(), StoreError> {
    tx.put_meta(CONFIRMED_KEY, fingerprint.as_bytes())
}
