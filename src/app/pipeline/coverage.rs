//! Keeps the record of when the device was watching: absence is claimed for no other time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp};
use crate::health::{CameraHealth, Health};
use crate::record::store::{Store, StoreError, Tx};

pub struct Observer {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    /// Whether a camera is configured. A device without one watches as long as it runs: what it is to see is sent to it.
    pub has_camera: bool,
}

/// How often to look whether the camera still delivers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often that is written down: an SD card wears out.
const WRITE_EVERY: Duration = Duration::from_mins(1);
/// Nothing was looked at for this long: nobody watched, whatever the camera's state. The slowest camera gives a frame in
/// ten seconds.
const UNSEEN_MAX: Duration = Duration::from_secs(30);
/// A cable with a loose contact can come and go for months. So after a loss what is watched is written down only when it
/// has lasted: at first this long, twice that with each short stretch, up to the second. What lasts is then claimed from
/// its beginning.
const STEADY_MIN: Duration = Duration::from_secs(10);
const STEADY_MAX: Duration = Duration::from_mins(2);

/// What is being watched, since the camera began to deliver.
#[derive(Default)]
struct Watching {
    row: Option<i64>,
    began: Option<Stamp>,
    /// When it was last seen to deliver, and when that was last written down.
    seen: Option<Stamp>,
    written: Option<Stamp>,
    /// Frames looked at so far.
    frames: u64,
    /// How long it must last to be written down.
    steady_after: Duration,
    /// Sightings that could not be stored so far.
    store_errors: u64,
}

impl Observer {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut watching = Watching::default();
        loop {
            self.step(&mut watching, self.clock.now()).await?;
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|it| *it) => break,
            }
        }
        if watching.row.is_some() {
            self.look(&mut watching, self.clock.now());
            self.write(&mut watching).await?;
        }
        Ok(())
    }

    async fn step(&self, watching: &mut Watching, now: Stamp) -> Result<(), StoreError> {
        if self.health.store_errors.get() != watching.store_errors {
            // Somebody may have been seen and is not in the record: the time since the last word is not claimed.
            self.begin_anew(watching);
        }
        self.look(watching, now);
        let unseen = watching.seen.is_some_and(|seen| now.since(&seen) > UNSEEN_MAX);
        if unseen || !self.is_watching() {
            return self.end(watching).await;
        }
        let steady = watching.began.is_some_and(|began| now.since(&began) >= watching.steady_after);
        if steady && watching.written.is_none_or(|written| now.since(&written) >= WRITE_EVERY) {
            self.write(watching).await?;
            watching.written = Some(now);
        }
        Ok(())
    }

    fn is_watching(&self) -> bool {
        !self.has_camera || self.health.camera() == CameraHealth::Streaming
    }

    /// A camera that has stalled is called streaming until its time limit is over, and one whose pictures cannot be read
    /// too: what counts is that frames are looked at.
    fn look(&self, watching: &mut Watching, now: Stamp) {
        let frames = self.health.frames_analysed.get();
        if !self.has_camera || (frames != watching.frames && self.is_watching()) {
            watching.frames = frames;
            watching.began.get_or_insert(now);
            watching.seen = Some(now);
        }
    }

    async fn end(&self, watching: &mut Watching) -> Result<(), StoreError> {
        if let (Some(began), Some(seen)) = (watching.began, watching.seen) {
            if watching.row.is_some() {
                self.write(watching).await?;
            }
            let short = seen.since(&began) < STEADY_MAX;
            let longer = if short { watching.steady_after * 2 } else { STEADY_MIN };
            watching.steady_after = longer.clamp(STEADY_MIN, STEADY_MAX);
        }
        self.begin_anew(watching);
        Ok(())
    }

    fn begin_anew(&self, watching: &mut Watching) {
        let (frames, store_errors) =
            (self.health.frames_analysed.get(), self.health.store_errors.get());
        let steady_after = watching.steady_after;
        *watching = Watching { frames, steady_after, store_errors, ..Watching::default() };
    }

    async fn write(&self, watching: &mut Watching) -> Result<(), StoreError> {
        let (row, Some(began), Some(seen)) = (watching.row, watching.began, watching.seen) else {
            return Ok(());
        };
        let observe = move |tx: &mut Tx<'_>| {
            let first = || tx.observe(None, &seen.at_boottime(began.boottime_ms));
            let row = row.map_or_else(first, Ok)?;
            tx.observe(Some(row), &seen)
        };
        match self.store.write_async(observe).await {
            Ok(row) => watching.row = Some(row),
            Err(error) if error.is_fatal() => return Err(error),
            // The time is not claimed, which is right: no attendance could have been written either.
            Err(error) => {
                tracing::error!(error = %error, "that the device is watching could not be written down");
                self.begin_anew(watching);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::watched::Stretch;
    use crate::clock::SimulatedClock;
    use crate::record::store::StoreOptions;

    struct Bench {
        observer: Observer,
        clock: Arc<SimulatedClock>,
        watching: Watching,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(SimulatedClock::at(0));
            let shared: Arc<dyn Clock> = clock.clone();
            let store = Store::open(dir.path(), StoreOptions::new(Vec::new(), Arc::clone(&shared)))
                .unwrap()
                .store;
            let observer =
                Observer { store, clock: shared, health: Arc::default(), has_camera: true };
            observer.health.set_camera(CameraHealth::Streaming);
            Self { observer, clock, watching: Watching::default(), _dir: dir }
        }

        /// So many seconds in which frames are captured, and so many a second looked at.
        async fn pass(&mut self, seconds: u64, analysed: u64) {
            for _ in 0..seconds {
                self.observer.health.frames_captured.add(10);
                self.observer.health.frames_analysed.add(analysed);
                self.observer.step(&mut self.watching, self.clock.now()).await.unwrap();
                self.clock.advance(Duration::from_secs(1));
            }
        }

        async fn lose(&mut self, seconds: u64) {
            self.observer.health.set_camera(CameraHealth::Lost);
            self.pass(seconds, 0).await;
            self.observer.health.set_camera(CameraHealth::Streaming);
        }

        /// In seconds.
        fn watched(&self) -> Vec<(i64, i64)> {
            let found = self.observer.store.write(|tx| tx.watched(i64::MIN, i64::MAX)).unwrap();
            let seconds = |it: &Stretch| (it.from_ms / 1000, it.to_ms / 1000);
            found.stretches().iter().map(seconds).collect()
        }
    }

    #[tokio::test]
    async fn frames_that_nobody_could_look_at_are_not_watching() {
        let mut bench = Bench::new();
        bench.pass(120, 0).await;
        assert_eq!(bench.watched(), []);
        bench.pass(100, 10).await;
        bench.pass(100, 0).await;
        assert_eq!(bench.watched(), [(120, 219)]);
        bench.pass(100, 10).await;
        bench.lose(1).await;
        assert_eq!(bench.watched(), [(120, 219), (320, 419)]);
    }

    #[tokio::test]
    async fn time_in_which_a_sighting_could_not_be_stored_is_not_claimed() {
        let mut bench = Bench::new();
        bench.pass(100, 10).await;
        bench.observer.health.store_errors.add(1);
        bench.pass(100, 10).await;
        bench.lose(1).await;
        assert_eq!(bench.watched(), [(0, 60), (101, 199)]);
    }

    #[tokio::test]
    async fn a_loose_contact_does_not_fill_the_disk_and_what_lasts_is_claimed_from_its_beginning() {
        let mut bench = Bench::new();
        for on in [3, 30].into_iter().cycle().take(200) {
            bench.pass(on, 10).await;
            bench.lose(2).await;
        }
        let watched = bench.watched();
        assert!((1..=4).contains(&watched.len()), "{watched:?}");
        assert_eq!(watched[0], (0, 2), "the first stretch is written down at once");
        let begun = bench.clock.now().wall_ms / 1000;
        bench.pass(200, 10).await;
        bench.lose(1).await;
        assert_eq!(bench.watched().last(), Some(&(begun, begun + 199)));
        // It holds again.
        bench.pass(15, 10).await;
        bench.lose(1).await;
        assert_eq!(bench.watched().last(), Some(&(begun + 201, begun + 215)));
    }
}
