//! A receipt for each erasure, once nothing of the person is left here: made, kept and owed to MQTT in one transaction.
//!
//! Everything it rests on stands in the database, so a kill at any moment only delays it until the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::clock::{Clock, rfc3339};
use crate::record::receipt::Receipt;
use crate::record::signer::SigningKey;
use crate::record::store::{DATABASE, Store, StoreError, StoredErasure, Wake};

pub struct Receipts {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub key: Arc<SigningKey>,
    pub site: String,
    pub device: String,
    pub state_dir: PathBuf,
}

/// Made in one transaction.
const BATCH: u32 = 100;
const AFTER_ERROR: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// How many databases were set aside cannot be told, and nothing is attested that was not looked at.
    #[error("the state directory cannot be listed: {0}")]
    Listing(#[from] std::io::Error),
}

impl Receipts {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut wakes = self.store.wakes();
        loop {
            let seen: Wake = *wakes.borrow_and_update();
            let again = match self.make().await {
                Ok(0) => None,
                Ok(made) => {
                    tracing::info!(made, "erasures are complete, receipts were made");
                    // There may be more.
                    (made >= BATCH as usize).then_some(Duration::ZERO)
                }
                Err(Fault::Store(error)) if error.is_fatal() => return Err(error.into()),
                Err(error) => {
                    tracing::error!(error = %error, "a receipt could not be made; it is tried again in a minute");
                    Some(AFTER_ERROR)
                }
            };
            tokio::select! {
                () = after(again) => {}
                // Its sender lives as long as our handle to the store.
                _ = wakes.wait_for(|it| it.scrubbed != seen.scrubbed) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn make(&self) -> Result<usize, Fault> {
        let set_aside = self.set_aside()?;
        let now = self.clock.now();
        let (site, device, key) = (self.site.clone(), self.device.clone(), Arc::clone(&self.key));
        let write = move |tx: &mut crate::record::store::Tx<'_>| {
            let erasures = tx.unproved(BATCH)?;
            for erasure in &erasures {
                let receipt = Receipt {
                    schema: Receipt::SCHEMA,
                    site: site.clone(),
                    device: device.clone(),
                    subject_id: erasure.subject_id.clone(),
                    request_id: erasure.request_id.clone(),
                    asked_at: rfc3339(erasure.asked_ms),
                    done_at: rfc3339(now.wall_ms),
                    clock_trusted: erasure.trusted && now.trusted,
                    references: erasure.references,
                    events: erasure.events,
                    cleaned: cleaned(erasure),
                    set_aside,
                };
                tx.put_receipt(erasure.row, &erasure.subject_id, &receipt.sign(&key))?;
            }
            Ok(erasures.len())
        };
        Ok(self.store.write_async(write).await?)
    }

    /// Databases that were found damaged lie beside it, and nobody looks into them.
    fn set_aside(&self) -> std::io::Result<u32> {
        let aside = format!("{DATABASE}.damaged-");
        let is_database = |name: &str| !name.ends_with("-wal") && !name.ends_with("-shm");
        let mut found = 0;
        for entry in std::fs::read_dir(&self.state_dir)? {
            let name = entry?.file_name();
            found += u32::from(
                name.to_str().is_some_and(|it| it.starts_with(&aside) && is_database(it)),
            );
        }
        Ok(found)
    }
}

/// Never, where there is nothing to do.
async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

fn cleaned(erasure: &StoredErasure) -> Vec<String> {
    let mongo = erasure.mongo.then_some("mongodb");
    std::iter::once("database").chain(mongo).map(str::to_owned).collect()
}
