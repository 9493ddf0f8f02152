//! Shutdown: the signals that request it, and waiting until everything is recorded and delivered.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::app::pipeline::inference::Job;
use crate::clock::Stopwatch;
use crate::store::{SinkName, Store, StoreError};

/// SIGTERM, which systemd sends, and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Resolves with the second signal, which ends the daemon at once. Nothing durable depends on a
    /// clean stop.
    pub(super) async fn second(mut self) {
        self.next().await;
        self.next().await;
    }
}

/// How long the sinks may make no progress at the end of a replay.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the outbox is checked while it drains. Nothing notifies of a row that leaves it.
pub(super) const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the outcome of the last frame is recorded and the outbox is empty.
pub(super) async fn wait_until_drained(jobs: &SyncSender<Job>, store: &Store, sinks: &[SinkName]) {
    wait_until_settled(jobs).await;
    let mut pending = u64::MAX;
    let mut progress = Stopwatch::start();
    loop {
        let names = sinks.to_vec();
        let depth = store.read(move |tx| {
            names
                .iter()
                .map(|sink| Ok(tx.outbox_depth(*sink)?.rows))
                .sum::<Result<u64, StoreError>>()
        });
        match depth.await {
            Ok(0) | Err(_) => return,
            Ok(rows) if rows < pending => {
                pending = rows;
                progress = Stopwatch::start();
            }
            Ok(rows) if progress.elapsed() >= DRAIN_TIMEOUT => {
                tracing::warn!(
                    rows,
                    "rows are pending at the end of the replay; they are delivered after the next start"
                );
                return;
            }
            Ok(_) => {}
        }
        tokio::time::sleep(DRAIN_CHECK_INTERVAL).await;
    }
}

/// Waits until inference has processed and recorded the frames taken so far.
async fn wait_until_settled(jobs: &SyncSender<Job>) {
    loop {
        let (answer, answered) = oneshot::channel();
        match jobs.try_send(Job::Settle { reply: answer }) {
            // An error means that the inference thread ends, which its stage reports.
            Ok(()) => return answered.await.unwrap_or_default(),
            Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(_)) => tokio::time::sleep(DRAIN_CHECK_INTERVAL).await,
        }
    }
}
