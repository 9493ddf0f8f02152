//! The relay: delivers the pending rows of a sink in order, and deletes a row only when the sink has
//! acknowledged it.
//!
//! Invariants: each row ends acknowledged or dead-lettered with its reason; until then it stays in the
//! store, whatever happens to this process. A delivery under way is never abandoned for `stop`: its
//! outcome is worth knowing. A sink that fails is asked again after 1 s, then later and later, up
//! to 60 s.
//!
//! Not here: the format of payloads (`event`) and their transport (the sinks).

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::{Backoff, shortened};
use crate::store::error::StoreError;
use crate::store::handle::Store;
use crate::store::rows::{OutboxRow, SinkName, Wake};
use crate::store::tx::Tx;

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other side has it.
    Acknowledged,
    /// Not now; the reason is logged.
    Retry(String),
    /// Not now, and the trouble seems to be this row's own: counted as an attempt, though nothing
    /// else gets through.
    Doubtful(String),
    /// Not until somebody has corrected something on either side: retried with the longest pause.
    Rejected(String),
    /// Never; the reason is stored.
    Poison(String),
    /// Not yet, for a reason of this row alone: the rows behind it are delivered meanwhile.
    Held,
}

/// A destination of events. `deliver` returns an outcome for each row of the batch, in its order,
/// within a time of its own choosing; rows without an outcome are retried.
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
        Self { window: 32, backoff: BACKOFF }
    }
}

/// The pauses after failed deliveries.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
/// Each pause is shortened at random by up to this share.
const JITTER: f64 = 0.25;

/// Delivers until `stop` becomes true (or its sender is gone), or the store fails.
pub async fn relay<S: Sink>(
    store: Store,
    mut sink: S,
    mut stop: watch::Receiver<bool>,
    settings: RelaySettings,
) -> Result<(), StoreError> {
    let mut wakes = store.wakes();
    let mut asked = wakes.borrow().asked;
    let mut failures = 0;
    let mut waiting = WaitingRows::default();
    while !*stop.borrow() {
        let seen = *wakes.borrow_and_update();
        if seen.asked != asked {
            // Here, so that it counts as well when it came during a delivery.
            waiting.release();
            asked = seen.asked;
        }
        let name = sink.name();
        let batch = match waiting.next_batch(&store, name, settings.window).await {
            Ok(batch) => batch,
            Err(error) => {
                log_unless_fatal(name, error)?;
                wait_out(settings.backoff.longest, &mut wakes, seen, &mut stop).await;
                continue;
            }
        };
        if batch.is_empty() {
            failures = 0;
            waiting.wait_for_work(&mut wakes, seen, &mut stop).await;
            continue;
        }
        // Not raced against `stop`.
        let outcome = sort(&batch, sink.deliver(&batch).await);
        let is_first_rejection = waiting.parked.is_empty();
        waiting.remember(&batch, &outcome, shortened(settings.backoff.longest, JITTER));
        let only_rejected = outcome.only_rejected();
        let has_progress = outcome.has_progress();
        let retry_reason = outcome.retry_reason.clone();
        if let Err(error) = store_outcome(&store, outcome).await {
            // What was acknowledged stands in the outbox still and is sent again: twice is
            // harmless.
            log_unless_fatal(name, error)?;
            wait_out(settings.backoff.longest, &mut wakes, seen, &mut stop).await;
            continue;
        }
        let Some(reason) = retry_reason else {
            failures = 0;
            continue;
        };
        if only_rejected && !waiting.parked.is_full() {
            // Others may get through.
            failures = 0;
            if is_first_rejection {
                tracing::warn!(sink = name.as_str(), reason, "rows are rejected, will retry them");
            }
            continue;
        }
        failures = if has_progress { 1 } else { failures + 1 };
        let pause = settings.backoff.pause(if only_rejected { u32::MAX } else { failures });
        let pause = shortened(pause, JITTER);
        if failures == 1 {
            // The edge only: an hour without the broker is one line.
            tracing::warn!(sink = name.as_str(), reason, ?pause, "delivery failed, will retry");
        }
        wait_out(pause, &mut wakes, seen, &mut stop).await;
    }
    Ok(())
}

/// The rows that the next batch leaves out.
#[derive(Default)]
struct WaitingRows {
    held: HeldRows,
    parked: ParkedRows,
}

impl WaitingRows {
    async fn next_batch(
        &mut self,
        store: &Store,
        name: SinkName,
        window: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let after = self.held.skip_to();
        let except = self.parked.ids();
        let next = move |tx: &mut Tx<'_>| tx.outbox_batch_except(name, after, window, &except);
        store.write_async(next).await
    }

    /// `deliver_now`: nothing waits any more.
    fn release(&mut self) {
        self.held.release();
        self.parked.release();
    }

    /// Returns when there may be a row to deliver, or at `stop`.
    async fn wait_for_work(
        &mut self,
        wakes: &mut watch::Receiver<Wake>,
        seen: Wake,
        stop: &mut watch::Receiver<bool>,
    ) {
        tokio::select! {
            _ = wakes.wait_for(|it| *it != seen) => {}
            () = due(self.held.until()) => self.held.release(),
            () = due(self.parked.until()) => {}
            () = stopped(stop) => {}
        }
    }

    /// Notes which rows of a delivered batch wait, the rejected ones for `pause`.
    fn remember(&mut self, batch: &[OutboxRow], outcome: &Outcome, pause: Duration) {
        self.parked.park(&outcome.rejected, pause);
        if outcome.retry_reason.is_some() && !outcome.only_rejected() {
            self.held.release();
        } else if outcome.held {
            self.held.skip(batch);
        }
    }
}

/// Rejected rows that are remembered; more than these stop the relay for a pause.
const PARKED_MAX: usize = 1024;

/// The rows that the sink rejected, which somebody has to correct. They wait for the longest pause,
/// each by itself, and do not stand in the way of others.
#[derive(Default)]
struct ParkedRows {
    until: HashMap<i64, Instant>,
}

impl ParkedRows {
    /// The rows that the next batch leaves out.
    fn ids(&mut self) -> Vec<i64> {
        let now = Instant::now();
        self.until.retain(|_, until| *until > now);
        self.until.keys().copied().collect()
    }

    fn park(&mut self, ids: &[i64], pause: Duration) {
        let until = Instant::now() + pause;
        self.until.extend(ids.iter().map(|id| (*id, until)));
    }

    fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    fn is_full(&self) -> bool {
        self.until.len() >= PARKED_MAX
    }

    fn release(&mut self) {
        self.until.clear();
    }

    /// When the first of them is due.
    fn until(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

/// Rows that the sink holds are passed over for this long: the order of the pauses that a sink has
/// for a single row.
const HELD_PAUSE: Duration = Duration::from_secs(2);

/// The rows that wait for themselves, so that they do not stand in the way of those behind them.
#[derive(Default)]
struct HeldRows {
    /// Up to this id, and until when.
    passed: Option<(i64, Instant)>,
}

impl HeldRows {
    /// The id after which the next batch begins.
    fn skip_to(&mut self) -> i64 {
        if self.passed.is_some_and(|it| it.1 <= Instant::now()) {
            self.release();
        }
        self.passed.map_or(0, |it| it.0)
    }

    fn skip(&mut self, batch: &[OutboxRow]) {
        let last = batch.iter().map(|it| it.id).max().unwrap_or(0);
        let until = self.passed.map_or_else(|| Instant::now() + HELD_PAUSE, |it| it.1);
        self.passed = Some((last, until));
    }

    fn release(&mut self) {
        self.passed = None;
    }

    fn until(&self) -> Option<Instant> {
        self.passed.map(|it| it.1)
    }
}

/// Resolves at that time; never without one.
async fn due(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// A full disk is waited out; an error after which the store is of no use ends the relay.
fn log_unless_fatal(sink: SinkName, error: StoreError) -> Result<(), StoreError> {
    if error.is_fatal() {
        return Err(error);
    }
    tracing::error!(sink = sink.as_str(), error = %error, "the outbox cannot be written, will retry");
    Ok(())
}

/// New rows do not cut the pause short, or a busy door would hammer a broker that is ill;
/// `deliver_now` does.
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
    // An error means that the sender of `stop` is gone, which is a stop too.
    stop.wait_for(|it| *it).await.ok();
}

/// What became of a batch, by row.
#[derive(Default)]
struct Outcome {
    acknowledged: Vec<i64>,
    poison: Vec<(i64, String)>,
    retry: Vec<i64>,
    doubtful: Vec<i64>,
    retry_reason: Option<String>,
    rejected: Vec<i64>,
    held: bool,
}

impl Outcome {
    /// Whether a row of the batch has left the outbox.
    fn has_progress(&self) -> bool {
        !self.acknowledged.is_empty() || !self.poison.is_empty()
    }

    /// Whether no row failed for another reason than that the sink rejected it.
    fn only_rejected(&self) -> bool {
        self.rejected.len() == self.retry.len() && self.doubtful.is_empty()
    }
}

fn sort(batch: &[OutboxRow], deliveries: Vec<Delivery>) -> Outcome {
    let mut outcome = Outcome::default();
    let missing = std::iter::repeat_with(|| Delivery::Retry("the sink returned no outcome".into()));
    for (row, delivery) in batch.iter().zip(deliveries.into_iter().chain(missing)) {
        if matches!(delivery, Delivery::Rejected(_)) {
            outcome.rejected.push(row.id);
        }
        match delivery {
            Delivery::Acknowledged => outcome.acknowledged.push(row.id),
            Delivery::Held => outcome.held = true,
            Delivery::Poison(reason) => outcome.poison.push((row.id, reason)),
            Delivery::Retry(reason) | Delivery::Rejected(reason) => {
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

async fn store_outcome(store: &Store, outcome: Outcome) -> Result<(), StoreError> {
    let has_progress = outcome.has_progress();
    if !has_progress && outcome.doubtful.is_empty() {
        // Nothing to be written, so that an outage wears out no card.
        return Ok(());
    }
    for (row, reason) in &outcome.poison {
        tracing::error!(row, reason, "a row cannot be delivered and is dead-lettered");
    }
    store
        .write_async(move |tx| {
            tx.acknowledge(&outcome.acknowledged)?;
            outcome.poison.iter().try_for_each(|(id, reason)| tx.dead_letter(*id, reason))?;
            if has_progress {
                tx.count_attempt(&outcome.retry)?;
            }
            tx.count_attempt(&outcome.doubtful)
        })
        .await
}
