//! What has to be done now and then: put times right once the clock is trusted, and let go of what is old and delivered.
//!
//! A clock that is set while it is trusted changes nothing that was recorded: nobody can say which of the two times was
//! right. It is said in the log, sessions and days go by the clock as it is, and the re-entry gap by the one that never
//! jumps. Retention waits for an hour: the time to notice a mistake before it deletes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::app::venues::VenueBook;
use crate::attend::venue::Venue;
use crate::clock::{Clock, Stamp};
use crate::record::store::{Store, StoreError, Tx};

pub struct Upkeep {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub venues: Arc<VenueBook>,
    /// Days to keep delivered events; `None` keeps them for ever.
    pub keep_days: Option<u32>,
}

/// How often to look whether the clock has become trusted, or was set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An event that was under way when the clock became trusted is corrected with the next round.
const CORRECT_EVERY: Duration = Duration::from_mins(1);
/// Retention is a matter of days.
const RETENTION_EVERY: Duration = Duration::from_hours(1);
/// How long retention waits after the clock was set, or has moved on for more than a day while nobody looked.
const RETENTION_PAUSE: Duration = Duration::from_hours(1);
const UNSEEN_MAX_MS: i64 = 86_400_000;
/// In `meta`: the last trusted wall time that a round of retention saw.
const CLOCK_SEEN: &str = "clock_seen";

impl Upkeep {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut last: Option<Stamp> = None;
        let (mut corrected, mut retained): (Option<Stamp>, Option<Stamp>) = (None, None);
        let mut paused: Option<Stamp> = None;
        let due = |last: Option<Stamp>, now: &Stamp, every| {
            last.is_none_or(|last| now.since(&last) >= every)
        };
        loop {
            let now = self.clock.now();
            let trusted_before = last.is_some_and(|it| it.trusted);
            if let Some(step_ms) =
                last.filter(|it| it.trusted && now.trusted).and_then(|it| now.step_since(&it))
            {
                tracing::warn!(
                    step_ms,
                    "the trusted clock was set: what was recorded keeps its time"
                );
                paused = Some(now);
            }
            if now.trusted && (!trusted_before || due(corrected, &now, CORRECT_EVERY)) {
                self.correct(now).await?;
                corrected = Some(now);
            }
            if now.trusted && due(retained, &now, RETENTION_EVERY) {
                if self.was_unseen(now).await? {
                    paused = Some(now);
                }
                if let Some(days) = self.keep_days.filter(|_| due(paused, &now, RETENTION_PAUSE)) {
                    self.repeat(move |tx| tx.retention(days)).await?;
                }
                retained = Some(now);
            }
            last = Some(now);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn correct(&self, now: Stamp) -> Result<(), StoreError> {
        let venues: Arc<Vec<Venue>> =
            Arc::new(self.venues.all().iter().map(|it| it.venue.clone()).collect());
        let corrected = self.repeat(move |tx| tx.correct_times(&now, &venues)).await?;
        if corrected > 0 {
            tracing::info!(
                events = corrected,
                "the clock is right now: times of earlier events were corrected"
            );
        }
        Ok(())
    }

    /// Whether the clock has moved on so far since the last look that the device was off for long, or it is wrong.
    async fn was_unseen(&self, now: Stamp) -> Result<bool, StoreError> {
        let look = move |tx: &mut Tx<'_>| {
            let seen =
                tx.meta(CLOCK_SEEN)?.and_then(|it| String::from_utf8(it).ok()?.parse::<i64>().ok());
            tx.put_meta(CLOCK_SEEN, now.wall_ms.to_string().as_bytes())?;
            Ok(seen.is_some_and(|seen| now.wall_ms.saturating_sub(seen) > UNSEEN_MAX_MS))
        };
        match self.store.write_async(look).await {
            Err(error) if error.is_fatal() => Err(error),
            other => Ok(other.unwrap_or(true)),
        }
    }

    /// In small transactions until there is nothing left to do; gives how much there was.
    async fn repeat(
        &self,
        step: impl Fn(&mut Tx<'_>) -> Result<usize, StoreError> + Clone + Send + 'static,
    ) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let step = step.clone();
            match self.store.write_async(move |tx| step(tx)).await {
                Ok(0) => return Ok(total),
                Ok(count) => total += count,
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::error!(error = %error, "upkeep failed, will be tried again");
                    return Ok(total);
                }
            }
        }
    }
}
