//! The watermark: the time up to which everything recorded is delivered. It is published retained
//! over MQTT and written to MongoDB, so that an outage of a device is never taken for absences. The
//! newest checkpoint of the chain of events goes with it.
//!
//! While the clock is not trusted nothing is published; the earlier watermark stays true.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::delivery::checkpoint::Checkpoints;
use crate::app::state::counted::LatestCounts;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp, rfc3339};
use crate::health::{Health, MongoState};
use crate::ids::Origin;
use crate::mongo::{CoverageGap, DeviceRecord, MongoLink};
use crate::mqtt::link::Link;
use crate::mqtt::message::Message;
use crate::store::{DeliveryStatus, SinkName, Store, Tx, Unwatched};

pub struct Watermark {
    store: Store,
    clock: Arc<dyn Clock>,
    origin: Origin,
    link: Option<Link>,
    topic: String,
    mongo: Option<MongoLink>,
    health: Arc<Health>,
    counted: Arc<LatestCounts>,
    checkpoints: Checkpoints,
}

/// How often the watermark is read, and so how soon a drained outbox is published.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How often `last_seen` in MongoDB is updated when nothing else has changed.
const LAST_SEEN_INTERVAL: Duration = Duration::from_mins(1);

/// The last write to MongoDB.
#[derive(Default)]
struct DeviceWrite {
    tried_at: Option<Stamp>,
    complete_through_ms: Option<i64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct WatermarkMessage {
    schema: u32,
    site: String,
    device: String,
    complete_through: String,
    gaps: Vec<GapMessage>,
    /// Events that cannot be read any more: their numbers are missing. Omitted if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<u64>,
    /// The newest checkpoint of the chain of events, a compact JWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct GapMessage {
    from: String,
    to: String,
    reason: &'static str,
}

impl Watermark {
    pub fn new(ctx: Context, link: Option<Link>, mongo: Option<MongoLink>) -> Self {
        let Context { store, clock, origin, topics, health, counted, device_key, .. } = ctx;
        let topic = topics.watermark();
        let checkpoints = Checkpoints::new(
            store.clone(),
            Arc::clone(&clock),
            Arc::clone(&device_key),
            origin.clone(),
        );
        Self { store, clock, origin, link, topic, mongo, health, counted, checkpoints }
    }

    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut published: Option<WatermarkMessage> = None;
        let mut written = DeviceWrite::default();
        loop {
            let now = self.clock.now();
            let read = |tx: &Tx<'_>| Ok((tx.delivery_status()?, tx.chain_head()?));
            match self.store.read(read).await {
                Ok((status, head)) => {
                    self.counted.set_delivery_status(&status);
                    let checkpoint = match self.checkpoints.refresh(head.as_ref()).await {
                        Ok(checkpoint) => checkpoint,
                        Err(error) => {
                            let what = "a checkpoint cannot be signed; this is retried";
                            error.log_unless_fatal(what)?;
                            None
                        }
                    };
                    self.publish(&status, checkpoint.clone(), &mut published).await;
                    tokio::select! {
                        () = self.write_device(&status, checkpoint, &now, &mut written) => {}
                        _ = stop.wait_for(|it| *it) => return Ok(()),
                    }
                }
                Err(error) => {
                    error.log_unless_fatal("the watermark cannot be read; this is retried")?;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    /// Publishes the watermark as a retained message, if it has changed.
    async fn publish(
        &self,
        status: &DeliveryStatus,
        checkpoint: Option<String>,
        published: &mut Option<WatermarkMessage>,
    ) {
        let Some(link) = self.link.as_ref().filter(|link| link.is_online()) else {
            // A restarted broker may have lost the retained message.
            *published = None;
            return;
        };
        let Some(complete_through) = status.complete_through(None) else { return };
        let gap = |gap: &Unwatched| GapMessage {
            from: rfc3339(gap.from_ms),
            to: rfc3339(gap.to_ms),
            reason: gap.reason(),
        };
        let gaps = status.gaps.iter().map(gap).collect();
        let Origin { site, device } = self.origin.clone();
        let unreadable = Some(status.unreadable.events).filter(|it| *it > 0);
        let new = WatermarkMessage {
            schema: 1,
            site,
            device,
            complete_through,
            gaps,
            unreadable,
            checkpoint,
        };
        if published.as_ref().is_some_and(|old| old.is_same_as(&new)) {
            return;
        }
        let payload = serde_json::to_vec(&new).expect("plain strings");
        let message = Message { topic: self.topic.clone(), payload, retain: true };
        // A failed publish is retried in the next round.
        if link.publish_batch(vec![message]).await.iter().all(Result::is_ok) {
            *published = Some(new);
        }
    }

    async fn write_device(
        &self,
        status: &DeliveryStatus,
        checkpoint: Option<String>,
        now: &Stamp,
        written: &mut DeviceWrite,
    ) {
        let Some(mongo) = self.mongo.as_ref().filter(|_| now.trusted) else { return };
        let gap = |gap: &Unwatched| CoverageGap {
            from_ms: gap.from_ms,
            to_ms: gap.to_ms,
            reason: gap.reason(),
        };
        let new = DeviceRecord {
            site: self.origin.site.clone(),
            device: self.origin.device.clone(),
            complete_through_ms: status.complete_through_ms(Some(SinkName::MONGO)),
            last_seen_ms: now.wall_ms,
            seq: status.seq,
            gaps: status.gaps.iter().map(gap).collect(),
            checkpoint,
        };
        let has_moved = written.complete_through_ms != new.complete_through_ms;
        let connected =
            self.health.mongo().is_some_and(|(state, _)| state == MongoState::Connected);
        let is_due = written
            .tried_at
            .is_none_or(|at| now.since(&at) >= LAST_SEEN_INTERVAL || (connected && has_moved));
        if is_due {
            written.tried_at = Some(*now);
            // The connection logs its failures once.
            if mongo.put_device(&new).await.is_ok() {
                written.complete_through_ms = new.complete_through_ms;
            }
        }
    }
}

impl WatermarkMessage {
    /// Returns whether nothing has changed. The interval of the gaps moves with time, which is not
    /// worth a message.
    fn is_same_as(&self, new: &Self) -> bool {
        self.complete_through == new.complete_through
            && self.gaps.len() == new.gaps.len()
            && self.unreadable == new.unreadable
            && self.checkpoint == new.checkpoint
    }
}
