//! The relay: takes what a sink is owed out of the store, in order, and lets a row go only when the sink acknowledged it.
//!
//! Invariants: each row ends acknowledged or buried with its reason; until then it stays in the store, whatever
//! happens to this process. A delivery under way is never abandoned for `stop`: its outcome is worth knowing. A sink
//! that fails is asked again after 1 s, then later and later, up to 60 s.
//!
//! Not here: what a payload looks like (`event`) and how it gets to the other side (the sinks).

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use crate::record::store::{OutboxRow, SinkName, Store, StoreError, Wake};

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other side has it.
    Acknowledged,
    /// Not now; the reason is logged.
    Retry(String),
    /// Not now, and the trouble seems to be this row's own: counted as an attempt, though nothing else gets through.
    Doubtful(String),
    /// Not until somebody has put something right on either side: tried at the slowest pace.
    Refused(String),
    /// Never; the reason is stored.
    Poison(String),
}

/// Where events are owed. `deliver` answers for each row of the batch, in its order, after at most a time of its own
/// choosing; rows it does not answer for are tried again.
pub trait Sink: Send {
    fn name(&self) -> SinkName;
    fn deliver(&mut self, batch: &[OutboxRow]) -> impl Future<Output = Vec<Delivery>> + Send;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    /// How many rows are given to the sink at a time.
    pub window: usize,
    pub backoff: Backoff,
}

impl Default for RelaySettings {
    fn default() -> Self {
        // 32 events are about 25 kB in flight.
        Self { window: 32, backoff: Backoff::default() }
    }
}

/// How long to wait after failures: twice as long each time, and by chance up to a quarter less, so that a building's
/// doors do not come back all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub least: Duration,
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { least: Duration::from_secs(1), most: Duration::from_mins(1) }
    }
}

impl Backoff {
    /// After `failures` in a row, at least one; `chance` is anything random.
    fn pause(&self, failures: u32, chance: u64) -> Duration {
        let doubled =
            self.least.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        let whole = doubled.min(self.most);
        whole.mul_f64(1.0 - (chance % 1024) as f64 / 4096.0)
    }
}

/// Delivers until `stop` becomes true (or its sender is gone), or the store fails.
pub async fn relay<S: Sink>(
    store: Store,
    mut sink: S,
    mut stop: watch::Receiver<bool>,
    settings: RelaySettings,
) -> Result<(), StoreError> {
    let mut wakes = store.wakes();
    let mut failures = 0;
    while !*stop.borrow() {
        let seen = *wakes.borrow_and_update();
        let (name, window) = (sink.name(), settings.window);
        let batch = match store.write_async(move |tx| tx.outbox_batch(name, 0, window)).await {
            Ok(batch) => batch,
            Err(error) => {
                survive(name, error)?;
                wait_out(settings.backoff.most, &mut wakes, seen, &mut stop).await;
                continue;
            }
        };
        if batch.is_empty() {
            failures = 0;
            tokio::select! {
                _ = wakes.wait_for(|it| *it != seen) => {}
                () = stopped(&mut stop) => {}
            }
            continue;
        }
        // Not raced against `stop`.
        let outcome = sort(&batch, sink.deliver(&batch).await);
        let progress = outcome.settled() > 0;
        let (retry, refused) = (outcome.retry_reason.clone(), outcome.refused);
        if let Err(error) = settle(&store, outcome).await {
            // What was acknowledged stands in the outbox still and is sent again: twice is harmless.
            survive(name, error)?;
            wait_out(settings.backoff.most, &mut wakes, seen, &mut stop).await;
            continue;
        }
        let Some(reason) = retry else {
            failures = 0;
            continue;
        };
        failures = if progress { 1 } else { failures + 1 };
        let pause = settings.backoff.pause(if refused { u32::MAX } else { failures }, rand_bits());
        if failures == 1 {
            // The edge only: an hour without the broker is one line.
            tracing::warn!(sink = name.as_str(), reason, ?pause, "delivery failed, will retry");
        }
        wait_out(pause, &mut wakes, seen, &mut stop).await;
    }
    Ok(())
}

/// A full disk is waited out; an error after which the store is of no use ends the relay.
fn survive(sink: SinkName, error: StoreError) -> Result<(), StoreError> {
    if error.is_fatal() {
        return Err(error);
    }
    tracing::error!(sink = sink.as_str(), error = %error, "the outbox cannot be written, will retry");
    Ok(())
}

/// New rows do not cut the pause short, or a busy door would hammer a broker that is ill; `deliver_now` does.
async fn wait_out(
    pause: Duration,
    wakes: &mut watch::Receiver<Wake>,
    seen: Wake,
    stop: &mut watch::Receiver<bool>,
) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = wakes.wait_for(|it| it.asked != seen.asked) => {}
        () = stopped(stop) => {}
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could say stop has gone, which says it too.
    stop.wait_for(|it| *it).await.ok();
}

#[derive(Default)]
struct Outcome {
    acknowledged: Vec<i64>,
    poison: Vec<(i64, String)>,
    retry: Vec<i64>,
    doubtful: Vec<i64>,
    retry_reason: Option<String>,
    refused: bool,
}

impl Outcome {
    fn settled(&self) -> usize {
        self.acknowledged.len() + self.poison.len()
    }
}

fn sort(batch: &[OutboxRow], deliveries: Vec<Delivery>) -> Outcome {
    let mut outcome = Outcome::default();
    let unanswered = std::iter::repeat_with(|| Delivery::Retry("the sink gave no answer".into()));
    for (row, delivery) in batch.iter().zip(deliveries.into_iter().chain(unanswered)) {
        outcome.refused |= matches!(delivery, Delivery::Refused(_));
        match delivery {
            Delivery::Acknowledged => outcome.acknowledged.push(row.id),
            Delivery::Poison(reason) => outcome.poison.push((row.id, reason)),
            Delivery::Retry(reason) | Delivery::Refused(reason) => {
                outcome.retry.push(row.id);
                outcome.retry_reason.get_or_insert(reason);
            }
            Delivery::Doubtful(reason) => {
                outcome.doubtful.push(row.id);
                outcome.retry_reason.get_or_insert(reason);
            }
        }
    }
    outcome
}

async fn settle(store: &Store, outcome: Outcome) -> Result<(), StoreError> {
    let progress = outcome.settled() > 0;
    if !progress && outcome.doubtful.is_empty() {
        // Nothing to be written, so that an outage wears out no card.
        return Ok(());
    }
    for (row, reason) in &outcome.poison {
        tracing::error!(row, reason, "a row cannot be delivered and is buried");
    }
    store
        .write_async(move |tx| {
            tx.acknowledge(&outcome.acknowledged)?;
            outcome.poison.iter().try_for_each(|(id, reason)| tx.bury(*id, reason))?;
            if progress {
                tx.count_attempt(&outcome.retry)?;
            }
            tx.count_attempt(&outcome.doubtful)
        })
        .await
}

/// Good enough to spread retries.
fn rand_bits() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let check = |failures, chance, expected_ms| {
            assert_eq!(Backoff::default().pause(failures, chance).as_millis(), expected_ms);
        };
        check(1, 0, 1_000);
        check(2, 0, 2_000);
        check(6, 0, 32_000);
        check(7, 0, 60_000);
        check(u32::MAX, 0, 60_000);
        check(1, 512, 875);
        check(99, 1023, 45_014);
    }
}
