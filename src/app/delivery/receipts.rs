//! Signs a receipt for each erasure once nothing of the subject is left on the device. The receipt
//! and its outbox row for MQTT are one transaction.
//!
//! All of its inputs are in the database, so a kill at any moment only delays a receipt until the
//! next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, rfc3339};
use crate::ids::Origin;
use crate::keys::receipt::Receipt;
use crate::keys::signer::SigningKey;
use crate::store::{DATABASE, Store, StoreError, StoredErasure, Tx, Wake};

pub struct Receipts {
    store: Store,
    clock: Arc<dyn Clock>,
    key: Arc<SigningKey>,
    origin: Origin,
    state_dir: PathBuf,
}

/// Receipts in one transaction.
const BATCH: u32 = 100;
const RETRY_AFTER: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
enum ReceiptRoundError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Databases that were moved aside cannot be counted, so no receipt may be signed.
    #[error("the state directory cannot be listed: {0}")]
    Listing(#[from] std::io::Error),
}

impl Receipts {
    pub fn new(ctx: Context) -> Self {
        let Context { store, clock, device_key, origin, settings, .. } = ctx;
        Self { store, clock, key: device_key, origin, state_dir: settings.state_dir.clone() }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut wakes = self.store.wakes();
        loop {
            let seen: Wake = *wakes.borrow_and_update();
            let next_round = match self.sign_receipts().await {
                Ok(0) => None,
                Ok(made) => {
                    tracing::info!(made, "erasures are complete; receipts were signed");
                    // There may be more.
                    (made >= BATCH as usize).then_some(Duration::ZERO)
                }
                Err(ReceiptRoundError::Store(error)) if error.is_fatal() => {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::error!(%error, "a receipt could not be signed; this is retried in a minute");
                    Some(RETRY_AFTER)
                }
            };
            tokio::select! {
                () = wait(next_round) => {}
                // The sender lives as long as this handle to the store.
                _ = wakes.wait_for(|it| it.scrubbed != seen.scrubbed) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn sign_receipts(&self) -> Result<usize, ReceiptRoundError> {
        let set_aside = self.count_damaged_databases()?;
        let now = self.clock.now();
        let origin = self.origin.clone();
        let key = Arc::clone(&self.key);
        let write = move |tx: &mut Tx<'_>| {
            let erasures = tx.erasures_without_receipt(BATCH)?;
            for erasure in &erasures {
                let receipt = Receipt {
                    schema: Receipt::SCHEMA,
                    site: origin.site.clone(),
                    device: origin.device.clone(),
                    subject_id: erasure.subject_id.clone(),
                    request_id: erasure.request_id.clone(),
                    asked_at: rfc3339(erasure.asked_ms),
                    done_at: rfc3339(now.wall_ms),
                    clock_trusted: erasure.trusted && now.trusted,
                    references: erasure.references,
                    events: erasure.events,
                    cleaned: cleaned_places(erasure),
                    set_aside,
                    reason: erasure.reason,
                    kept: erasure.events_kept.then(|| "events".to_owned()).into_iter().collect(),
                };
                tx.put_receipt(erasure.row, &erasure.subject_id, &receipt.sign(&key))?;
            }
            Ok(erasures.len())
        };
        Ok(self.store.write_async(write).await?)
    }

    /// Counts the damaged databases that were moved aside. They may still hold the subject.
    fn count_damaged_databases(&self) -> std::io::Result<u32> {
        let prefix = format!("{DATABASE}.damaged-");
        let is_database = |name: &str| !name.ends_with("-wal") && !name.ends_with("-shm");
        let mut found = 0;
        for entry in std::fs::read_dir(&self.state_dir)? {
            let name = entry?.file_name();
            found += u32::from(
                name.to_str().is_some_and(|it| it.starts_with(&prefix) && is_database(it)),
            );
        }
        Ok(found)
    }
}

/// Waits for the pause; for ever if there is none.
async fn wait(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

fn cleaned_places(erasure: &StoredErasure) -> Vec<String> {
    let mongo = erasure.mongo.then_some("mongodb");
    std::iter::once("database").chain(mongo).map(str::to_owned).collect()
}
