//! Stages: every task and thread of the daemon has a name, is awaited, and one that ends by itself is a failure.

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

/// How often a task was given its turn and gave it back: odd while it has it.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<AtomicU64>);

impl Turns {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the task has its turn at a count: it runs, or is stuck in a call that blocks.
    pub fn is_running_at(count: u64) -> bool {
        !count.is_multiple_of(2)
    }
}

/// A task whose turns are counted.
struct Counted<W> {
    work: Pin<Box<W>>,
    turns: Turns,
}

impl<W: Future> Future for Counted<W> {
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<W::Output> {
        self.turns.0.fetch_add(1, Ordering::Relaxed);
        let polled = self.work.as_mut().poll(context);
        self.turns.0.fetch_add(1, Ordering::Relaxed);
        polled
    }
}

/// The stages that run, and the signals that end them: first those that make something, then those that deliver it.
pub struct Stages {
    running: JoinSet<(&'static str, StageResult)>,
    stop: watch::Sender<bool>,
    last: JoinSet<(&'static str, StageResult)>,
    stop_last: watch::Sender<bool>,
    turns: Vec<(&'static str, Turns)>,
}

impl Stages {
    pub fn new() -> Self {
        Self {
            running: JoinSet::new(),
            stop: watch::Sender::new(false),
            last: JoinSet::new(),
            stop_last: watch::Sender::new(false),
            turns: Vec::new(),
        }
    }

    /// The tasks that were started so far, for who watches over them.
    pub fn turns(&self) -> Vec<(&'static str, Turns)> {
        self.turns.clone()
    }

    fn counted<W: Future>(&mut self, name: &'static str, work: W) -> Counted<W> {
        let turns = Turns::default();
        self.turns.push((name, turns.clone()));
        Counted { work: Box::pin(work), turns }
    }

    /// Becomes true when everybody is to finish.
    pub fn stop_signal(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The same for those that deliver: later.
    pub fn last_signal(&self) -> watch::Receiver<bool> {
        self.stop_last.subscribe()
    }

    /// Starts a task.
    pub fn task(
        &mut self,
        name: &'static str,
        work: impl Future<Output = StageResult> + Send + 'static,
    ) {
        let work = self.counted(name, work);
        self.running.spawn(async move { (name, work.await) });
    }

    /// Starts a task that ends after the others.
    pub fn last_task(
        &mut self,
        name: &'static str,
        work: impl Future<Output = StageResult> + Send + 'static,
    ) {
        let work = self.counted(name, work);
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
            // The receiver is gone only when the grace period is over and nobody waits any more.
            ended.send(work()).ok();
        };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .with_context(|| format!("cannot start {name}"))?;
        self.task(name, async move { end.await.context("the thread ended without a word")? });
        Ok(())
    }

    /// Waits until `asked` resolves (its name is the reason) or a stage ends; then stops the others, then waits for
    /// `parting`, then stops the last. Each round gets at most `grace`.
    pub async fn run(
        mut self,
        asked: impl Future<Output = &'static str>,
        parting: impl Future<Output = ()>,
        grace: Duration,
    ) -> StageResult {
        let mut outcome = tokio::select! {
            reason = asked => {
                tracing::info!(reason, "stopping");
                Ok(())
            }
            Some(ended) = self.running.join_next() => judge(ended, false),
            Some(ended) = self.last.join_next() => judge(ended, false),
        };
        self.stop.send_replace(true);
        outcome = outcome.and(finish(&mut self.running, grace).await);
        if outcome.is_ok() {
            parting.await;
        }
        self.stop_last.send_replace(true);
        outcome.and(finish(&mut self.last, grace).await)
    }
}

/// Work that takes a processor for a while, on a thread of its own that ends with it. `None`: no thread could be had.
pub async fn aside<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    // Whoever asked may have gone meanwhile.
    std::thread::Builder::new().name(name.into()).spawn(move || answer.send(work()).ok()).ok()?;
    answered.await.ok()
}

/// Awaits all of them, for at most `grace`; the first failure is the outcome.
async fn finish(stages: &mut JoinSet<(&'static str, StageResult)>, grace: Duration) -> StageResult {
    let all = async {
        let mut outcome = Ok(());
        while let Some(ended) = stages.join_next().await {
            outcome = outcome.and(judge(ended, true));
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

type Ended = Result<(&'static str, StageResult), tokio::task::JoinError>;

fn judge(ended: Ended, stopping: bool) -> StageResult {
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
    async fn a_stage_that_ends_by_itself_is_a_failure_and_stops_the_others() {
        let mut stages = Stages::new();
        let mut stop = stages.stop_signal();
        stages.task("quitter", async { Ok(()) });
        stages.task("other", async move {
            stop.wait_for(|it| *it).await?;
            Ok(())
        });
        let said = stages.run(never(), async {}, Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{said:#}").contains("quitter"));
    }

    #[tokio::test]
    async fn a_thread_that_fails_is_named() {
        let mut stages = Stages::new();
        stages.thread("camera", || anyhow::bail!("on fire")).unwrap();
        let said = stages.run(never(), async {}, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(format!("{said:#}"), "stage camera failed: on fire");
    }

    #[tokio::test]
    async fn being_asked_to_stop_is_no_failure() {
        let mut stages = Stages::new();
        let mut stop = stages.stop_signal();
        stages.task("patient", async move {
            stop.wait_for(|it| *it).await?;
            Ok(())
        });
        stages.run(async { "a test" }, async {}, Duration::from_secs(5)).await.unwrap();
    }
}
