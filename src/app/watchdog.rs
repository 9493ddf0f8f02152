//! The watchdog: tells systemd that we live, only while everything turns that the main job needs, and how we are.
//!
//! Watched are the inference thread (a round of its loop, or a network that finishes: a batch of photographs is many of
//! those), the store's thread (a write that is answered) and every task (none may keep its turn); that this task runs at all
//! shows that the runtime and its timers do. When one of them stands still for half the time that systemd allows, it is named
//! in the log and systemd is left without a word, so that it kills and starts us again.
//!
//! Not watched: the camera's thread, since an absent or stalled camera is a state which a restart does not mend; and what a
//! task waits for, since each has limits of its own for that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::gallery::GalleryCell;
use crate::app::notify::Notifier;
use crate::app::supervise::{StageResult, Turns};
use crate::clock::{Clock, Stamp};
use crate::health::Health;
use crate::recognise::align::Sample;
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{Detection, ModelDigest, Template};
use crate::recognise::picture::Picture;
use crate::record::store::{Store, StoreError};

/// Looks within the time that systemd allows. Half of them may find something standing still.
const LOOKS: u32 = 8;
/// How often systemd is told how we are where it keeps no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// A database that is written anew after an erasure keeps all writes waiting, and with them whoever writes; slow cards of
/// many GB take this long.
const REWRITE_MAX: Duration = Duration::from_hours(1);

pub struct Watchdog {
    pub notifier: Arc<Notifier>,
    /// Within which systemd wants to hear from us; none = it keeps no watchdog.
    pub limit: Option<Duration>,
    pub health: Arc<Health>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub clock: Arc<dyn Clock>,
    pub tasks: Vec<(&'static str, Turns)>,
}

impl Watchdog {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let every = self.limit.map_or(STATUS_EVERY, |limit| limit / LOOKS);
        let mut watched = Watched::default();
        let look = async {
            loop {
                self.look(&mut watched);
                tokio::time::sleep(every).await;
            }
        };
        tokio::select! {
            () = look => {}
            () = self.ask_store(every) => {}
            _ = stop.wait_for(|it| *it) => {}
        }
        Ok(())
    }

    /// An empty write goes all the way through the queue and the thread, and costs the disk nothing.
    async fn ask_store(&self, every: Duration) {
        loop {
            // Any answer is one. What is wrong with the disk is for those to judge who have something to write.
            if let Err(StoreError::Closed) = self.store.write_async(|_| Ok(())).await {
                return std::future::pending().await;
            }
            self.health.store_turns.add(1);
            tokio::time::sleep(every).await;
        }
    }

    fn look(&self, watched: &mut Watched) {
        let now = self.clock.now();
        let still = self
            .limit
            .map(|limit| self.standing_still(watched, limit / 2, &now))
            .unwrap_or_default();
        for name in still.difference(&watched.told) {
            tracing::error!(
                stage = name,
                "stands still; unless it goes on, systemd starts the daemon again"
            );
        }
        for name in watched.told.difference(&still) {
            tracing::info!(stage = name, "goes on");
        }
        let word = if still.is_empty() && self.limit.is_some() { "WATCHDOG=1\n" } else { "" };
        self.notifier.tell(&format!("{word}STATUS={}", self.status(&still)));
        watched.told = still;
    }

    /// For `systemctl status`: numbers, no names.
    fn status(&self, still: &BTreeSet<&'static str>) -> String {
        let (health, subjects) = (&self.health, self.gallery.snapshot().subjects());
        let (camera, recorded) = (health.camera().as_str(), health.recorded.get());
        let mut status =
            format!("camera {camera}, {subjects} enrolled, {recorded} recorded since the start");
        if !still.is_empty() {
            let names: Vec<_> = still.iter().copied().collect();
            status = format!("standing still: {}; {status}", names.join(", "));
        }
        status
    }

    /// Those that have not turned for `patience`.
    fn standing_still(
        &self,
        watched: &mut Watched,
        patience: Duration,
        now: &Stamp,
    ) -> BTreeSet<&'static str> {
        let of_store = if self.store.is_rewriting() { REWRITE_MAX } else { patience };
        let mut still = BTreeSet::new();
        // The inference thread waits for what it records.
        let threads =
            [("inference", &self.health.inference_turns), ("store", &self.health.store_turns)];
        for (at, (name, turns)) in threads.into_iter().enumerate() {
            if watched.unchanged_for(at, turns.get(), now) >= of_store {
                still.insert(name);
            }
        }
        for (at, (name, turns)) in self.tasks.iter().enumerate() {
            let count = turns.count();
            let unchanged = watched.unchanged_for(threads.len() + at, count, now);
            // One that waits is not standing still, however long it waits.
            if Turns::is_running_at(count) && unchanged >= patience {
                still.insert(name);
            }
        }
        still
    }
}

/// What was seen at the last look.
#[derive(Default)]
struct Watched {
    /// Of each: its count, and when that was new.
    counts: Vec<Option<(u64, Stamp)>>,
    told: BTreeSet<&'static str>,
}

impl Watched {
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

/// The networks, each of whose answers counts as a turn of the thread that asks: one picture with a hundred faces takes a slow
/// processor longer than the watchdog waits.
pub struct Counting<E> {
    pub engine: E,
    pub health: Arc<Health>,
}

impl<E> Counting<E> {
    fn counted<T>(&mut self, ask: impl FnOnce(&mut E) -> T) -> T {
        let answer = ask(&mut self.engine);
        self.health.inference_turns.add(1);
        answer
    }
}

impl<E: FaceEngine> FaceEngine for Counting<E> {
    fn detect(&mut self, picture: &Picture, reach: Reach) -> Result<Vec<Detection>, EngineError> {
        self.counted(|it| it.detect(picture, reach))
    }

    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        self.counted(|it| it.refine(picture, detection))
    }

    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        self.counted(|it| it.template(sample))
    }

    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        self.counted(|it| it.liveness(picture, detection))
    }

    fn embedder(&self) -> ModelDigest {
        self.engine.embedder()
    }

    fn dimension(&self) -> usize {
        self.engine.dimension()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::app::supervise::Stages;
    use crate::clock::SimulatedClock;
    use crate::recognise::gallery::Gallery;
    use crate::record::store::StoreOptions;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Bench {
        clock: Arc<SimulatedClock>,
        watchdog: Watchdog,
        watched: Watched,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new(tasks: Vec<(&'static str, Turns)>) -> Self {
            let (dir, clock) =
                (tempfile::tempdir().unwrap(), Arc::new(SimulatedClock::at(1_790_000_000_000)));
            let dyn_clock: Arc<dyn Clock> = clock.clone();
            let options = StoreOptions::new(Vec::new(), Arc::clone(&dyn_clock));
            let watchdog = Watchdog {
                notifier: Arc::new(Notifier::nobody()),
                limit: Some(2 * PATIENCE),
                health: Arc::default(),
                store: Store::open(dir.path(), options).unwrap().store,
                gallery: Arc::new(GalleryCell::new(Gallery::new(2))),
                clock: dyn_clock,
                tasks,
            };
            let mut bench = Self { clock, watchdog, watched: Watched::default(), _dir: dir };
            assert!(bench.still().is_empty(), "nothing is known yet");
            bench
        }

        fn still(&mut self) -> Vec<&'static str> {
            let now = self.clock.now();
            self.watchdog.standing_still(&mut self.watched, PATIENCE, &now).into_iter().collect()
        }

        fn after(&mut self, seconds: u64) -> Vec<&'static str> {
            self.clock.advance(Duration::from_secs(seconds));
            self.still()
        }
    }

    #[test]
    fn a_thread_that_stands_still_is_named_and_one_that_goes_on_is_forgiven() {
        let mut bench = Bench::new(Vec::new());
        let health = Arc::clone(&bench.watchdog.health);
        health.store_turns.add(1);
        assert!(bench.after(29).is_empty());
        health.store_turns.add(1);
        assert_eq!(bench.after(1), ["inference"]);
        assert_eq!(bench.after(30), ["inference", "store"]);
        health.inference_turns.add(1);
        assert_eq!(bench.after(1), ["store"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_blocks_is_named_and_one_that_waits_is_not() {
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
        let mut bench = Bench::new(stages.turns());
        let turn = |bench: &Bench| {
            bench.watchdog.health.inference_turns.add(1);
            bench.watchdog.health.store_turns.add(1);
        };
        turn(&bench);
        assert_eq!(bench.after(30), ["stuck"]);
        let stuck = stages.turns()[1].1.clone();
        go_on.send(()).unwrap();
        while Turns::is_running_at(stuck.count()) {
            tokio::task::yield_now().await;
        }
        turn(&bench);
        assert!(bench.after(3600).is_empty());
    }

    #[tokio::test]
    async fn a_store_whose_thread_hangs_answers_no_more() {
        let bench = Bench::new(Vec::new());
        let (go_on, wait) = sync_channel::<()>(1);
        let (tell, held_up) = tokio::sync::oneshot::channel();
        let (mut tell, store, health) =
            (Some(tell), bench.watchdog.store.clone(), &bench.watchdog.health);
        let hang = store.write_async(move |_| {
            tell.take().map(|it| it.send(()));
            wait.recv().ok();
            Ok(())
        });
        let ask = bench.watchdog.ask_store(Duration::from_millis(1));
        let watch = async {
            held_up.await.unwrap();
            // One may have been answered before that and not yet counted.
            let most = health.store_turns.get() + 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(health.store_turns.get() <= most);
            go_on.send(()).unwrap();
            while health.store_turns.get() <= most {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = ask => unreachable!("it asks for ever"),
            (done, ()) = async { tokio::join!(hang, watch) } => done.unwrap(),
        }
    }

    #[test]
    fn every_answer_of_the_networks_is_a_turn() {
        struct Silent;
        impl FaceEngine for Silent {
            fn detect(&mut self, _: &Picture, _: Reach) -> Result<Vec<Detection>, EngineError> {
                Ok(Vec::new())
            }
            fn refine(
                &mut self,
                _: &Picture,
                detection: &Detection,
            ) -> Result<Detection, EngineError> {
                Ok(*detection)
            }
            fn template(&mut self, _: &Sample) -> Result<Option<Template>, EngineError> {
                Ok(None)
            }
            fn liveness(&mut self, _: &Picture, _: &Detection) -> Result<Option<f32>, EngineError> {
                Ok(None)
            }
            fn embedder(&self) -> ModelDigest {
                ModelDigest([0; 32])
            }
            fn dimension(&self) -> usize {
                2
            }
        }
        let health = Arc::new(Health::default());
        let mut engine = Counting { engine: Silent, health: Arc::clone(&health) };
        let picture = Picture::plain(8, 8, [0; 3]);
        for turns in 1..=3 {
            engine.detect(&picture, Reach::Near).unwrap();
            assert_eq!(health.inference_turns.get(), turns);
        }
    }
}
