//! A receipt for each erasure, once nothing of the person is left here: made, kept and owed to MQTT in one transaction.
//!
//! Everything it rests on stands in the database, so a kill at any moment only delays it until the next start.

use std::path::PathBuf;
use std::sync::Arc;

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

impl Receipts {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut wakes = self.store.wakes();
        loop {
            let seen: Wake = *wakes.borrow_and_update();
            match self.make().await {
                Ok(0) => {}
                Ok(made) => tracing::info!(made, "erasures are complete, receipts were made"),
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => {
                    tracing::error!(error = %error, "a receipt could not be kept; it is made after the next erasure or start");
                }
            }
            tokio::select! {
                // Its sender lives as long as our handle to the store.
                _ = wakes.wait_for(|it| it.scrubbed != seen.scrubbed) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn make(&self) -> Result<usize, StoreError> {
        let set_aside = self.set_aside();
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
        self.store.write_async(write).await
    }

    /// Databases that were found damaged lie beside it, and nobody looks into them.
    fn set_aside(&self) -> u32 {
        let aside = format!("{DATABASE}.damaged-");
        let names = std::fs::read_dir(&self.state_dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let is_database = |name: &str| !name.ends_with("-wal") && !name.ends_with("-shm");
        let found = names.filter(|name| name.to_str().is_some_and(|it| it.starts_with(&aside) && is_database(it)));
        found.count() as u32
    }
}

fn cleaned(erasure: &StoredErasure) -> Vec<String> {
    let mongo = erasure.mongo.then_some("mongodb");
    std::iter::once("database").chain(mongo).map(str::to_owned).collect()
}
