//! The sink of the shared gallery, for either transport. An outbox row names a subject; its record
//! is read when it is sent, so that it is the newest.
//!
//! Invariant: a row is acknowledged only when a sealed record as new as the local one was received
//! back. An acknowledgement of the write does not show what is retained, because anybody who
//! may write there can replace it at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::app::fleet::reconciler::Reconciler;
use crate::app::fleet::replica::RowAction;
use crate::app::fleet::shared::SharedGallery;
use crate::ids::SubjectId;
use crate::store::relay::{Delivery, Sink};
use crate::store::{
    OutboxRow, PublishReason, SealedRecord, SinkName, Store, StoreError, Tx, VersionRecord,
    subject_of_topic,
};

/// After a connection is made the site's gallery is usually read within this time.
const READY_TIMEOUT: Duration = Duration::from_secs(3);

/// How sealed records reach the other devices of the site.
pub trait GalleryTransport: Send + Sync {
    /// Publishes the records and reads back what is retained then. Returns one delivery for each,
    /// in order: `Acknowledged` if it was received back, `Held` if not, otherwise the failure.
    /// `attempts` are those of the outbox rows.
    fn publish(
        &self,
        shared: &SharedGallery,
        records: &[SealedRecord],
        attempts: &[u32],
    ) -> impl Future<Output = Vec<Delivery>> + Send;
}

pub struct GallerySink<T> {
    shared: Arc<SharedGallery>,
    store: Store,
    transport: T,
}

enum RowPlan {
    Settled,
    Invalid,
    Hold,
    Publish(SealedRecord),
}

impl<T: GalleryTransport> GallerySink<T> {
    pub fn new(reconciler: &Reconciler, transport: T) -> Self {
        let shared = Arc::clone(&reconciler.shared);
        Self { shared, store: reconciler.store.clone(), transport }
    }

    async fn plan_rows(&self, batch: &[OutboxRow]) -> Result<Vec<RowPlan>, StoreError> {
        let pending = |row: &OutboxRow| {
            let (topic, payload) = row.message()?;
            Some((subject_of_topic(topic)?, PublishReason::parse(payload)))
        };
        let pending: Vec<_> = batch.iter().map(pending).collect();
        let shared = Arc::clone(&self.shared);
        // Sealed on the thread that reads: plain templates do not leave it.
        let plan = move |tx: &Tx<'_>| {
            pending.iter().map(|row| plan_row(tx, &shared, row.as_ref())).collect()
        };
        self.store.read(plan).await
    }

    async fn wait_ready(&self) -> bool {
        let mut ready = self.shared.ready.subscribe();
        let waited = tokio::time::timeout(READY_TIMEOUT, ready.wait_for(|it| *it)).await;
        waited.is_ok_and(|it| it.is_ok())
    }
}

fn plan_row(
    tx: &Tx<'_>,
    shared: &SharedGallery,
    row: Option<&(SubjectId, PublishReason)>,
) -> Result<RowPlan, StoreError> {
    let Some((id, reason)) = row else {
        return Ok(RowPlan::Invalid);
    };
    let Some(portable) = tx.portable(id)? else {
        return Ok(RowPlan::Settled);
    };
    let version = VersionRecord::of(&portable);
    let action = {
        let mut replica = shared.replica();
        // It may have changed a moment ago: what is compared is what will be published.
        replica.put_local(id, version.clone());
        replica.row_action(id, &version, *reason, Instant::now())
    };
    Ok(match action {
        RowAction::Settled => RowPlan::Settled,
        RowAction::Hold => RowPlan::Hold,
        RowAction::Publish => {
            let sealed = portable.seal(&shared.key, &shared.site)?;
            RowPlan::Publish(SealedRecord { subject_id: id.clone(), version, sealed })
        }
    })
}

impl<T: GalleryTransport> Sink for GallerySink<T> {
    fn name(&self) -> SinkName {
        SinkName::GALLERY
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let all = |delivery: Delivery| vec![delivery; batch.len()];
        if !self.wait_ready().await {
            return all(Delivery::Retry("the site's gallery has not been read yet".into()));
        }
        if self.shared.replica().has_wrong_key() {
            return all(Delivery::Rejected(
                "the site's gallery does not open with this key ([fleet] key_file)".into(),
            ));
        }
        let plans = match self.plan_rows(batch).await {
            Ok(plans) => plans,
            Err(error) => return all(Delivery::Retry(error.to_string())),
        };
        let mut deliveries = all(Delivery::Acknowledged);
        let mut rows = Vec::new();
        let mut records = Vec::new();
        let mut attempts = Vec::new();
        for (row, plan) in plans.into_iter().enumerate() {
            match plan {
                RowPlan::Settled => {}
                RowPlan::Invalid => {
                    deliveries[row] = Delivery::Poison("the row names no subject".into());
                }
                RowPlan::Hold => deliveries[row] = Delivery::Held,
                RowPlan::Publish(record) => {
                    rows.push(row);
                    records.push(record);
                    attempts.push(batch[row].attempts);
                }
            }
        }
        if records.is_empty() {
            return deliveries;
        }
        let published = self.transport.publish(&self.shared, &records, &attempts).await;
        let now = Instant::now();
        let mut replica = self.shared.replica();
        for ((row, record), delivery) in rows.into_iter().zip(&records).zip(published) {
            if matches!(delivery, Delivery::Acknowledged | Delivery::Held) {
                replica.record_published(&record.subject_id, &record.version, now);
            }
            deliveries[row] = delivery;
        }
        drop(replica);
        self.shared.published.notify_one();
        deliveries
    }
}
