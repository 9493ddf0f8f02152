//! The handler of `sync`: what is pending at each sink, and dead letters that become pending again.

use std::sync::Arc;

use crate::app::commands::commander::Commander;
use crate::app::commands::failure::CommandError;
use crate::app::commands::reply_to::{ReplyTo, WrittenReply};
use crate::clock::rfc3339;
use crate::store::{DeadLetter, DeliveryStatus, SinkName, SinkStatus, Tx};
use crate::wire::reply::{DeadLetterEntry, PendingRows, Reply, Synced};

/// How many dead letters the reply of `sync` lists.
pub const DEAD_LETTERS_LISTED: u32 = 20;

/// Dead letters that become pending again in one transaction: some 10 ms, and 200 KB of the log.
pub const RETRIED_AT_ONCE: u32 = 1000;

/// Returns the reply of `sync`, here and on the command line. `fault` gives what is wrong with a sink,
/// if that is known.
pub fn synced(
    status: &DeliveryStatus,
    dead_letters: &[DeadLetter],
    retried: u64,
    fault: impl Fn(&str) -> Option<String>,
) -> Synced {
    let pending = |it: &SinkStatus| PendingRows {
        sink: it.sink.as_str().into(),
        rows: it.depth.rows,
        oldest_at: it.depth.oldest_created_ms.map(rfc3339),
        dead_letters: it.depth.dead_letters,
        fault: fault(it.sink.as_str()),
    };
    let entry = |row: &DeadLetter| DeadLetterEntry {
        sink: row.sink.clone(),
        seq: row.event_seq,
        reason: row.reason.clone(),
    };
    Synced {
        pending: status.sinks.iter().map(pending).collect(),
        dead_letters: dead_letters.iter().map(entry).collect(),
        complete_through: status.complete_through(None),
        retried,
    }
}

impl Commander {
    pub(super) async fn sync(
        &self,
        to: ReplyTo,
        retry_dead_letters: bool,
    ) -> Result<WrittenReply, CommandError> {
        let retried = if retry_dead_letters { self.retry_dead_letters().await? } else { 0 };
        let mqtt_fault = self.link.as_ref().and_then(|link| link.status().reason);
        let health = Arc::clone(&self.health);
        let write = move |tx: &mut Tx<'_>| {
            let dead_letters = tx.dead_letters(DEAD_LETTERS_LISTED)?;
            let fault = |sink: &str| {
                if sink == SinkName::MQTT.as_str() {
                    mqtt_fault.clone()
                } else {
                    health.webhook_fault(sink)
                }
            };
            let synced = synced(&tx.delivery_status()?, &dead_letters, retried, fault);
            to.accept(tx, Reply::Synced(synced))
        };
        let reply = self.store.write_async(write).await?;
        self.store.deliver_now();
        Ok(reply)
    }

    /// Makes all dead letters pending again, a batch at a time, and returns how many.
    async fn retry_dead_letters(&self) -> Result<u64, CommandError> {
        let mut retried = 0;
        let mut after = 0;
        let batch = |after| move |tx: &mut Tx<'_>| tx.retry_dead_letters(after, RETRIED_AT_ONCE);
        while let Some(rows) = self.store.write_async(batch(after)).await? {
            retried += rows.count;
            after = rows.last;
        }
        Ok(retried)
    }
}
