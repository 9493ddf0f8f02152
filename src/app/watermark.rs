//! The watermark: up to when everything this device saw has been delivered, told to MQTT (retained) and to MongoDB, so
//! that a door that was dead never looks like people who were not there.
//!
//! Nothing is told while the clock is not trusted: what was told before stays true.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::app::metrics::Counted;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp, rfc3339};
use crate::health::{Health, MongoState};
use crate::mongo::{DeviceNote, Gap, MongoLink};
use crate::mqtt::link::{Link, Message};
use crate::record::store::{SinkName, Standing, Store, Unwatched};

pub struct Watermark {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub site: String,
    pub device: String,
    pub link: Option<Link>,
    pub topic: String,
    pub mongo: Option<MongoLink>,
    pub health: Arc<Health>,
    /// What is owed, for whoever may not ask the store.
    pub counted: Arc<Counted>,
}

/// How often to look; a drained outbox is told within this.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// MongoDB is told so often that the device lives, though nothing has moved.
const SEEN_EVERY: Duration = Duration::from_mins(1);

/// What MongoDB was told, and when that was tried.
#[derive(Default)]
struct Noted {
    tried: Option<Stamp>,
    complete_through_ms: Option<i64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Told {
    schema: u32,
    site: String,
    device: String,
    complete_through: String,
    gaps: Vec<ToldGap>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ToldGap {
    from: String,
    to: String,
    reason: &'static str,
}

impl Watermark {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut told: Option<Told> = None;
        let mut noted = Noted::default();
        loop {
            let now = self.clock.now();
            match self.store.write_async(|tx| tx.standing()).await {
                Ok(standing) => {
                    self.counted.set_standing(&standing);
                    self.tell(&standing, &mut told).await;
                    tokio::select! {
                        () = self.note(&standing, &now, &mut noted) => {}
                        _ = stop.wait_for(|it| *it) => return Ok(()),
                    }
                }
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => {
                    tracing::error!(error = %error, "the watermark cannot be read, will retry")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    /// To MQTT, where the broker keeps it.
    async fn tell(&self, standing: &Standing, told: &mut Option<Told>) {
        let Some(link) = self.link.as_ref().filter(|link| link.is_online()) else {
            // A broker that was started anew may have forgotten it.
            *told = None;
            return;
        };
        let Some(complete_through) = standing.complete_through(None) else { return };
        let gap = |gap: &Unwatched| ToldGap {
            from: rfc3339(gap.from_ms),
            to: rfc3339(gap.to_ms),
            reason: gap.reason(),
        };
        let gaps = standing.gaps.iter().map(gap).collect();
        let (site, device) = (self.site.clone(), self.device.clone());
        let new = Told { schema: 1, site, device, complete_through, gaps };
        if told.as_ref().is_some_and(|old| old.is_said_by(&new)) {
            return;
        }
        let payload = serde_json::to_vec(&new).expect("plain strings");
        let message = Message { topic: self.topic.clone(), payload, retain: true };
        // What did not get through is told in the next round.
        if link.publish_batch(vec![message]).await.iter().all(Result::is_ok) {
            *told = Some(new);
        }
    }

    async fn note(&self, standing: &Standing, now: &Stamp, noted: &mut Noted) {
        let Some(mongo) = self.mongo.as_ref().filter(|_| now.trusted) else { return };
        let gap =
            |gap: &Unwatched| Gap { from_ms: gap.from_ms, to_ms: gap.to_ms, reason: gap.reason() };
        let new = DeviceNote {
            site: self.site.clone(),
            device: self.device.clone(),
            complete_through_ms: standing.complete_through_ms(Some(SinkName::MONGO)),
            last_seen_ms: now.wall_ms,
            seq: standing.seq,
            gaps: standing.gaps.iter().map(gap).collect(),
        };
        let moved = noted.complete_through_ms != new.complete_through_ms;
        let connected =
            self.health.mongo().is_some_and(|(state, _)| state == MongoState::Connected);
        let due = noted.tried.is_none_or(|at| now.since(&at) >= SEEN_EVERY || (connected && moved));
        if due {
            noted.tried = Some(*now);
            // Failures are told by the connection itself, once.
            if mongo.put_device(&new).await.is_ok() {
                noted.complete_through_ms = new.complete_through_ms;
            }
        }
    }
}

impl Told {
    /// Whether nothing has moved. The week of the gaps moves with the time, which is not worth a message.
    fn is_said_by(&self, new: &Self) -> bool {
        self.complete_through == new.complete_through && self.gaps.len() == new.gaps.len()
    }
}
