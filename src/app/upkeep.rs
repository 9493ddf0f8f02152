//! What has to be done now and then: put times right once the clock is trusted, and let go of what is old and delivered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::clock::Clock;
use crate::record::store::{Store, StoreError, Tx};

pub struct Upkeep {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    /// Days to keep delivered events; `None` keeps them for ever.
    pub keep_days: Option<u32>,
}

/// A device that was started without network learns the time within minutes.
const EVERY: Duration = Duration::from_mins(1);
/// Retention is a matter of days: looked at once in so many rounds.
const RETENTION_ROUNDS: u32 = 60;

impl Upkeep {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut rounds = 0u32;
        loop {
            let now = self.clock.now();
            if now.trusted {
                let corrected = self.repeat(move |tx| tx.correct_times(&now)).await?;
                if corrected > 0 {
                    tracing::info!(
                        events = corrected,
                        "the clock is right now: times of earlier events were corrected"
                    );
                }
                if let Some(days) = self.keep_days.filter(|_| rounds.is_multiple_of(RETENTION_ROUNDS)) {
                    self.repeat(move |tx| tx.retention(days)).await?;
                }
            }
            rounds = rounds.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
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
