//! Supervision of the stages: every task and thread of the daemon has a name and is awaited. A stage
//! that ends by itself is a failure.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub type StageResult = anyhow::Result<()>;

/// Counts the begins and ends of a task's polls, so it is odd while the task runs.
#[derive(Clone, Debug, Default)]
pub struct PollCounter(Arc<AtomicU64>);

impl PollCounter {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns whether the task was being polled at this count: it runs, or a call blocks it.
    pub fn is_running_at(count: u64) -> bool {
        !count.is_multiple_of(2)
    }
}

/// A task whose polls are counted.
struct CountedTask<W> {
    work: Pin<Box<W>>,
    polls: PollCounter,
}

impl<W: Future> Future for CountedTask<W> {
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<W::Output> {
        self.polls.0.fetch_add(1, Ordering::Relaxed);
        let polled = self.work.as_mut().poll(context);
        self.polls.0.fetch_add(1, Ordering::Relaxed);
        polled
    }
}

/// The running stages and the signals that stop them: first the stages that produce rows, then
/// those that deliver them.
pub struct Stages {
    running: JoinSet<(&'static str, StageResult)>,
    stop: watch::Sender<bool>,
    last: JoinSet<(&'static str, StageResult)>,
    stop_last: watch::Sender<bool>,
    polls: Vec<(&'static str, PollCounter)>,
}

impl Stages {
    pub fn new() -> Self {
        Self {
            running: JoinSet::new(),
            stop: watch::Sender::new(false),
            last: JoinSet::new(),
            stop_last: watch::Sender::new(false),
            polls: Vec::new(),
        }
    }

    /// Returns the poll counters of the tasks that were started so far.
    pub fn polls(&self) -> Vec<(&'static str, PollCounter)> {
        self.polls.clone()
    }

    fn count_polls<W: Future>(&mut self, name: &'static str, work: W) -> CountedTask<W> {
        let polls = PollCounter::default();
        self.polls.push((name, polls.clone()));
        CountedTask { work: Box::pin(work), polls }
    }

    /// Becomes true when the stages are to stop.
    pub fn stop_signal(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Becomes true when the delivering stages are to stop, which is later.
    pub fn last_signal(&self) -> watch::Receiver<bool> {
        self.stop_last.subscribe()
    }

    /// Starts a task.
    pub fn task(
        &mut self,
        name: &'static str,
        work: impl Future<Output = StageResult> + Send + 'static,
    ) {
        let work = self.count_polls(name, work);
        self.running.spawn(async move { (name, work.await) });
    }

    /// Starts a task that ends after the others.
    pub fn last_task(
        &mut self,
        name: &'static str,
        work: impl Future<Output = StageResult> + Send + 'static,
    ) {
        let work = self.count_polls(name, work);
        self.last.spawn(async move { (name, work.await) });
    }

    /// Starts a thread that owns a blocking resource.
    pub fn thread(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> StageResult + Send + 'static,
    ) -> anyhow::Result<()> {
        let (ended, end) = oneshot::channel();
        let body = move || {
            // The receiver is dropped only after the grace period.
            ended.send(work()).ok();
        };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .with_context(|| format!("cannot start {name}"))?;
        self.task(name, async move { end.await.context("the thread panicked")? });
        Ok(())
    }

    /// Waits until `stop_requested` resolves with the reason, or a stage ends. Then it stops the
    /// stages, waits for `last_deliveries`, and stops the delivering stages. Each of the two groups
    /// gets at most `grace`.
    pub async fn run(
        mut self,
        stop_requested: impl Future<Output = &'static str>,
        last_deliveries: impl Future<Output = ()>,
        grace: Duration,
    ) -> StageResult {
        let mut outcome = tokio::select! {
            reason = stop_requested => {
                tracing::info!(reason, "stopping; a second signal ends the daemon at once");
                Ok(())
            }
            Some(ended) = self.running.join_next() => stage_outcome(ended, false),
            Some(ended) = self.last.join_next() => stage_outcome(ended, false),
        };
        self.stop.send_replace(true);
        outcome = outcome.and(join_all(&mut self.running, grace).await);
        if outcome.is_ok() {
            last_deliveries.await;
        }
        self.stop_last.send_replace(true);
        outcome.and(join_all(&mut self.last, grace).await)
    }
}

/// Runs CPU-bound work on a short-lived thread; `None` if the thread could not be started.
pub async fn run_on_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = oneshot::channel();
    // The caller may have been dropped by then.
    std::thread::Builder::new().name(name.into()).spawn(move || done.send(work()).ok()).ok()?;
    result.await.ok()
}

/// Awaits all stages for at most `grace`; returns the first failure.
async fn join_all(
    stages: &mut JoinSet<(&'static str, StageResult)>,
    grace: Duration,
) -> StageResult {
    let all = async {
        let mut outcome = Ok(());
        while let Some(ended) = stages.join_next().await {
            outcome = outcome.and(stage_outcome(ended, true));
        }
        outcome
    };
    tokio::time::timeout(grace, all).await.unwrap_or_else(|_| {
        tracing::warn!(?grace, "stages still running after the grace period");
        Ok(())
    })
}

impl Default for Stages {
    fn default() -> Self {
        Self::new()
    }
}

type EndedStage = Result<(&'static str, StageResult), tokio::task::JoinError>;

fn stage_outcome(ended: EndedStage, stopping: bool) -> StageResult {
    match ended {
        Ok((_, Ok(()))) if stopping => Ok(()),
        Ok((stage, Ok(()))) => Err(anyhow::anyhow!("stage {stage} ended by itself")),
        Ok((stage, Err(error))) => Err(error.context(format!("stage {stage} failed"))),
        Err(panic) => Err(anyhow::Error::new(panic).context("a stage panicked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn never() -> &'static str {
        std::future::pending().await
    }

    #[tokio::test]
    async fn ended_stage_fails_and_stops_others() {
        let mut stages = Stages::new();
        let mut stop = stages.stop_signal();
        stages.task("quitter", async { Ok(()) });
        stages.task("other", async move {
            stop.wait_for(|it| *it).await?;
            Ok(())
        });
        let error = stages.run(never(), async {}, Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{error:#}").contains("quitter"));
    }

    #[tokio::test]
    async fn failed_thread_is_named_in_error() {
        let mut stages = Stages::new();
        stages.thread("camera", || anyhow::bail!("on fire")).unwrap();
        let error = stages.run(never(), async {}, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "stage camera failed: on fire");
    }

    #[tokio::test]
    async fn requested_stop_is_no_failure() {
        let mut stages = Stages::new();
        let mut stop = stages.stop_signal();
        stages.task("patient", async move {
            stop.wait_for(|it| *it).await?;
            Ok(())
        });
        stages.run(async { "a test" }, async {}, Duration::from_secs(5)).await.unwrap();
    }
}
