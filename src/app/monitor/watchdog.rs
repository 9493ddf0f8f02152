//! The watchdog: sends systemd the heartbeat while all stages make progress, and a status line.
//!
//! It checks the inference thread (rounds of its loop and outputs of its models), the store's thread
//! (writes that complete) and every task (no poll may block). That this task runs shows that the
//! runtime and its timers work. When a stage stalls for half of the time that systemd allows, the
//! stage is logged and the heartbeat is withheld, so that systemd kills and restarts the daemon.
//!
//! Not checked: the camera's thread, because a restart does not mend an absent or stalled camera;
//! and what a task waits for, because each wait has a timeout of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::monitor::systemd::{self, Notifier};
use crate::app::state::gallery::GalleryCell;
use crate::app::supervise::{PollCounter, StageResult};
use crate::clock::{Clock, Stamp};
use crate::health::Health;
use crate::store::{Store, StoreError};

/// Checks within the time that systemd allows. Half of them may find a stalled stage.
const CHECKS_PER_LIMIT: u32 = 8;
/// How often the status line is sent where systemd expects no heartbeat.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

pub struct Watchdog {
    notifier: Arc<Notifier>,
    /// Within which systemd expects the heartbeat; none where it keeps no watchdog.
    limit: Option<Duration>,
    health: Arc<Health>,
    store: Store,
    gallery: Arc<GalleryCell>,
    clock: Arc<dyn Clock>,
    tasks: Vec<(&'static str, PollCounter)>,
}

impl Watchdog {
    pub fn new(
        ctx: Context,
        notifier: Arc<Notifier>,
        tasks: Vec<(&'static str, PollCounter)>,
    ) -> Self {
        let Context { health, store, gallery, clock, .. } = ctx;
        Self { notifier, limit: systemd::watchdog_limit(), health, store, gallery, clock, tasks }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let interval = self.limit.map_or(STATUS_INTERVAL, |limit| limit / CHECKS_PER_LIMIT);
        let mut progress = ProgressLog::default();
        let check_periodically = async {
            loop {
                self.check_progress(&mut progress);
                tokio::time::sleep(interval).await;
            }
        };
        tokio::select! {
            () = check_periodically => {}
            () = self.probe_store(interval) => {}
            _ = stop.wait_for(|it| *it) => {}
        }
        Ok(())
    }

    /// Sends empty writes through the store's queue and thread. They do not touch the disk.
    async fn probe_store(&self, interval: Duration) {
        loop {
            // A failed write is progress too. Disk errors are handled by the stages that write.
            if let Err(StoreError::Closed) = self.store.write_async(|_| Ok(())).await {
                return std::future::pending().await;
            }
            self.health.store_progress.add(1);
            tokio::time::sleep(interval).await;
        }
    }

    fn check_progress(&self, progress: &mut ProgressLog) {
        let now = self.clock.now();
        let stalled = self
            .limit
            .map(|limit| self.stalled_stages(progress, limit / 2, &now))
            .unwrap_or_default();
        for name in stalled.difference(&progress.stalled) {
            tracing::error!(stage = name, "stage stalled; systemd will restart the daemon");
        }
        for name in progress.stalled.difference(&stalled) {
            tracing::info!(stage = name, "stage makes progress again");
        }
        let is_alive = stalled.is_empty() && self.limit.is_some();
        let heartbeat = if is_alive { "WATCHDOG=1\n" } else { "" };
        self.notifier.notify(&format!("{heartbeat}STATUS={}", self.status_line(&stalled)));
        progress.stalled = stalled;
    }

    /// Returns the status for `systemctl status`, without names of people.
    fn status_line(&self, stalled: &BTreeSet<&'static str>) -> String {
        let health = &self.health;
        let subjects = self.gallery.snapshot().subjects();
        let state = health.camera_state().as_str();
        let camera = match health.camera_loss() {
            Some(loss) => format!("{state} ({})", loss.reason),
            None => state.to_owned(),
        };
        let recorded = health.recorded.get();
        let mut status =
            format!("camera {camera}, {subjects} enrolled, {recorded} recorded since the start");
        if !stalled.is_empty() {
            let names: Vec<_> = stalled.iter().copied().collect();
            status = format!("stalled: {}; {status}", names.join(", "));
        }
        status
    }

    /// Returns the stages that made no progress for `timeout`.
    fn stalled_stages(
        &self,
        progress: &mut ProgressLog,
        timeout: Duration,
        now: &Stamp,
    ) -> BTreeSet<&'static str> {
        let mut stalled = BTreeSet::new();
        let health = &self.health;
        let threads =
            [("inference", &health.inference_progress), ("store", &health.store_progress)];
        for (at, (name, counter)) in threads.into_iter().enumerate() {
            if progress.unchanged_for(at, counter.get(), now) >= timeout {
                stalled.insert(name);
            }
        }
        for (at, (name, polls)) in self.tasks.iter().enumerate() {
            let count = polls.count();
            let unchanged = progress.unchanged_for(threads.len() + at, count, now);
            // A task that waits is not stalled, however long it waits.
            if PollCounter::is_running_at(count) && unchanged >= timeout {
                stalled.insert(name);
            }
        }
        stalled
    }
}

/// The results of earlier checks.
#[derive(Default)]
struct ProgressLog {
    /// The count of each stage, and when that count was new.
    counts: Vec<Option<(u64, Stamp)>>,
    stalled: BTreeSet<&'static str>,
}

impl ProgressLog {
    /// Returns how long a stage's count has not changed.
    fn unchanged_for(&mut self, at: usize, count: u64, now: &Stamp) -> Duration {
        if self.counts.len() <= at {
            self.counts.resize(at + 1, None);
        }
        let (seen, since) = self.counts[at].get_or_insert((count, *now));
        if *seen != count {
            (*seen, *since) = (count, *now);
        }
        now.since(since)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::app::supervise::Stages;
    use crate::clock::SimulatedClock;
    use crate::recognise::gallery::Gallery;
    use crate::store::StoreOptions;

    const TIMEOUT: Duration = Duration::from_secs(30);

    struct WatchdogBench {
        clock: Arc<SimulatedClock>,
        watchdog: Watchdog,
        progress: ProgressLog,
        _dir: tempfile::TempDir,
    }

    impl WatchdogBench {
        fn new(tasks: Vec<(&'static str, PollCounter)>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(SimulatedClock::at(1_790_000_000_000));
            let dyn_clock: Arc<dyn Clock> = clock.clone();
            let options = StoreOptions::new(Vec::new(), Arc::clone(&dyn_clock));
            let watchdog = Watchdog {
                notifier: Arc::new(Notifier::disconnected()),
                limit: Some(2 * TIMEOUT),
                health: Arc::default(),
                store: Store::open(dir.path(), options).unwrap().store,
                gallery: Arc::new(GalleryCell::new(Gallery::new(2))),
                clock: dyn_clock,
                tasks,
            };
            let mut bench = Self { clock, watchdog, progress: ProgressLog::default(), _dir: dir };
            assert!(bench.stalled().is_empty(), "nothing is known yet");
            bench
        }

        fn stalled(&mut self) -> Vec<&'static str> {
            let now = self.clock.now();
            self.watchdog.stalled_stages(&mut self.progress, TIMEOUT, &now).into_iter().collect()
        }

        fn after(&mut self, seconds: u64) -> Vec<&'static str> {
            self.clock.advance(Duration::from_secs(seconds));
            self.stalled()
        }
    }

    #[test]
    fn stalled_threads_are_named_until_progress() {
        let mut bench = WatchdogBench::new(Vec::new());
        let health = Arc::clone(&bench.watchdog.health);
        health.store_progress.add(1);
        assert!(bench.after(29).is_empty());
        health.store_progress.add(1);
        assert_eq!(bench.after(1), ["inference"]);
        assert_eq!(bench.after(30), ["inference", "store"]);
        health.inference_progress.add(1);
        assert_eq!(bench.after(1), ["store"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn watchdog_names_blocked_but_not_waiting_tasks() {
        let mut stages = Stages::new();
        let (go_on, wait) = sync_channel::<()>(1);
        let (blocked, blocks) = tokio::sync::oneshot::channel();
        stages.task("patient", std::future::pending());
        stages.task("stuck", async move {
            blocked.send(()).ok();
            wait.recv().ok();
            std::future::pending().await
        });
        blocks.await.unwrap();
        let mut bench = WatchdogBench::new(stages.polls());
        let make_progress = |bench: &WatchdogBench| {
            bench.watchdog.health.inference_progress.add(1);
            bench.watchdog.health.store_progress.add(1);
        };
        make_progress(&bench);
        assert_eq!(bench.after(30), ["stuck"]);
        let stuck = stages.polls()[1].1.clone();
        go_on.send(()).unwrap();
        while PollCounter::is_running_at(stuck.count()) {
            tokio::task::yield_now().await;
        }
        make_progress(&bench);
        assert!(bench.after(3600).is_empty());
    }

    #[tokio::test]
    async fn hung_store_thread_stops_counting_turns() {
        let bench = WatchdogBench::new(Vec::new());
        let (go_on, wait) = sync_channel::<()>(1);
        let (notify, is_blocked) = tokio::sync::oneshot::channel();
        let mut notify = Some(notify);
        let store = bench.watchdog.store.clone();
        let health = &bench.watchdog.health;
        let hang = store.write_async(move |_| {
            notify.take().map(|it| it.send(()));
            wait.recv().ok();
            Ok(())
        });
        let ask = bench.watchdog.probe_store(Duration::from_millis(1));
        let watch = async {
            is_blocked.await.unwrap();
            // One may have been answered before that and not yet counted.
            let most = health.store_progress.get() + 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(health.store_progress.get() <= most);
            go_on.send(()).unwrap();
            while health.store_progress.get() <= most {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = ask => unreachable!("it asks for ever"),
            (done, ()) = async { tokio::join!(hang, watch) } => done.unwrap(),
        }
    }
}
