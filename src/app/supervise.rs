//! Stages: every task and thread of the daemon has a name, is awaited, and one that ends by itself is a failure.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub type StageResult = anyhow::Result<()>;

/// The stages that run, and the signal that ends them.
pub struct Stages {
    running: JoinSet<(&'static str, StageResult)>,
    stop: watch::Sender<bool>,
}

impl Stages {
    pub fn new() -> Self {
        Self { running: JoinSet::new(), stop: watch::Sender::new(false) }
    }

    /// Becomes true when everybody is to finish.
    pub fn stop_signal(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub fn stopper(&self) -> watch::Sender<bool> {
        self.stop.clone()
    }

    /// Starts a task.
    pub fn task(&mut self, name: &'static str, work: impl Future<Output = StageResult> + Send + 'static) {
        self.running.spawn(async move { (name, work.await) });
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
        std::thread::Builder::new().name(name.into()).spawn(body).with_context(|| format!("cannot start {name}"))?;
        self.task(name, async move { end.await.context("the thread ended without a word")? });
        Ok(())
    }

    /// Waits until `asked` resolves (its name is the reason) or a stage ends; then stops the others, at most `grace`.
    pub async fn run(mut self, asked: impl Future<Output = &'static str>, grace: Duration) -> StageResult {
        let mut stop = self.stop_signal();
        let outcome = tokio::select! {
            reason = asked => {
                tracing::info!(reason, "stopping");
                Ok(())
            }
            Some(ended) = self.running.join_next() => ended_early(ended, *stop.borrow_and_update()),
        };
        self.stop.send_replace(true);
        let rest = async {
            let mut outcome = outcome;
            while let Some(ended) = self.running.join_next().await {
                let late = ended_early(ended, true);
                outcome = outcome.and(late);
            }
            outcome
        };
        match tokio::time::timeout(grace, rest).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!(?grace, "stages still running after the grace period");
                Ok(())
            }
        }
    }
}

impl Default for Stages {
    fn default() -> Self {
        Self::new()
    }
}

type Ended = Result<(&'static str, StageResult), tokio::task::JoinError>;

fn ended_early(ended: Ended, stopping: bool) -> StageResult {
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
        let said = stages.run(never(), Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{said:#}").contains("quitter"));
    }

    #[tokio::test]
    async fn a_thread_that_fails_is_named() {
        let mut stages = Stages::new();
        stages.thread("camera", || anyhow::bail!("on fire")).unwrap();
        let said = stages.run(never(), Duration::from_secs(5)).await.unwrap_err();
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
        stages.run(async { "a test" }, Duration::from_secs(5)).await.unwrap();
    }
}
