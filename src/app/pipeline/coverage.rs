//! Records coverage: the intervals in which the device was watching. Absence is claimed only within
//! them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp};
use crate::config::camera::CameraSettings;
use crate::health::{CameraHealth, Health};
use crate::store::{Store, StoreError, Tx};

pub struct CoverageRecorder {
    store: Store,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    /// Whether a camera is configured. A device without one receives its images by command, so it
    /// watches while it runs.
    has_camera: bool,
}

/// How often it is checked that frames are processed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often coverage is written. More often would wear out an SD card.
const WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// Without a processed frame for this long the device is not watching, whatever the camera's state.
/// The slowest camera delivers a frame in ten seconds.
const FRAME_GAP_MAX: Duration = Duration::from_secs(30);
/// A cable with a loose contact can lose the camera for months. So after a loss an interval is
/// written only once it has lasted this long, doubling with each short interval from MIN to MAX. It
/// is then written from its beginning.
const STEADY_MIN: Duration = Duration::from_secs(10);
const STEADY_MAX: Duration = Duration::from_mins(2);

/// The current interval of coverage.
#[derive(Default)]
struct OpenInterval {
    row: Option<i64>,
    began: Option<Stamp>,
    /// When a frame was last known to be processed.
    seen: Option<Stamp>,
    written: Option<Stamp>,
    /// Processed frames at the last check.
    frames: u64,
    /// How long the interval must last before it is written.
    steady_after: Duration,
    /// Failed writes of the daemon at the last check.
    store_errors: u64,
}

impl CoverageRecorder {
    pub fn new(ctx: Context) -> Self {
        let Context { store, clock, health, settings, .. } = ctx;
        let has_camera = !matches!(settings.camera, CameraSettings::None);
        Self { store, clock, health, has_camera }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut interval = OpenInterval::default();
        loop {
            self.check(&mut interval, self.clock.now()).await?;
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => break,
            }
        }
        if interval.row.is_some() {
            self.note_frames(&mut interval, self.clock.now());
            self.write_interval(&mut interval).await?;
        }
        Ok(())
    }

    async fn check(&self, interval: &mut OpenInterval, now: Stamp) -> Result<(), StoreError> {
        if self.health.store_errors.get() != interval.store_errors {
            // A sighting may be missing in the record, so the time since the last write is not
            // covered.
            self.begin_interval(interval);
        }
        self.note_frames(interval, now);
        let is_idle = interval.seen.is_some_and(|seen| now.since(&seen) > FRAME_GAP_MAX);
        if is_idle || !self.is_watching() {
            return self.end_interval(interval).await;
        }
        let steady = interval.began.is_some_and(|began| now.since(&began) >= interval.steady_after);
        if steady && interval.written.is_none_or(|written| now.since(&written) >= WRITE_INTERVAL) {
            self.write_interval(interval).await?;
            interval.written = Some(now);
        }
        Ok(())
    }

    fn is_watching(&self) -> bool {
        !self.has_camera || self.health.camera_state() == CameraHealth::Streaming
    }

    /// Notes that frames are processed. The camera's state is not enough: a stalled camera counts as
    /// streaming until its timeout, and so does one whose frames cannot be decoded.
    fn note_frames(&self, interval: &mut OpenInterval, now: Stamp) {
        let frames = self.health.camera.frames_analysed.get();
        if !self.has_camera || (frames != interval.frames && self.is_watching()) {
            interval.frames = frames;
            interval.began.get_or_insert(now);
            interval.seen = Some(now);
        }
    }

    async fn end_interval(&self, interval: &mut OpenInterval) -> Result<(), StoreError> {
        if let (Some(began), Some(seen)) = (interval.began, interval.seen) {
            if interval.row.is_some() {
                self.write_interval(interval).await?;
            }
            let short = seen.since(&began) < STEADY_MAX;
            let longer = if short { interval.steady_after * 2 } else { STEADY_MIN };
            interval.steady_after = longer.clamp(STEADY_MIN, STEADY_MAX);
        }
        self.begin_interval(interval);
        Ok(())
    }

    fn begin_interval(&self, interval: &mut OpenInterval) {
        let frames = self.health.camera.frames_analysed.get();
        let store_errors = self.health.store_errors.get();
        let steady_after = interval.steady_after;
        *interval = OpenInterval { frames, steady_after, store_errors, ..OpenInterval::default() };
    }

    async fn write_interval(&self, interval: &mut OpenInterval) -> Result<(), StoreError> {
        let (row, Some(began), Some(seen)) = (interval.row, interval.began, interval.seen) else {
            return Ok(());
        };
        let observe = move |tx: &mut Tx<'_>| {
            let first = || tx.observe(None, &seen.at_boottime(began.boottime_ms));
            let row = row.map_or_else(first, Ok)?;
            tx.observe(Some(row), &seen)
        };
        match self.store.write_async(observe).await {
            Ok(row) => interval.row = Some(row),
            // The time is not covered, which is right: no attendance could be written either.
            Err(error) => {
                error.log_unless_fatal("coverage could not be written")?;
                self.begin_interval(interval);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::coverage::Interval;
    use crate::clock::SimulatedClock;
    use crate::store::StoreOptions;

    struct CoverageBench {
        recorder: CoverageRecorder,
        clock: Arc<SimulatedClock>,
        interval: OpenInterval,
        _dir: tempfile::TempDir,
    }

    impl CoverageBench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(SimulatedClock::at(0));
            let shared: Arc<dyn Clock> = clock.clone();
            let store = Store::open(dir.path(), StoreOptions::new(Vec::new(), Arc::clone(&shared)))
                .unwrap()
                .store;
            let recorder =
                CoverageRecorder { store, clock: shared, health: Arc::default(), has_camera: true };
            recorder.health.set_camera_state(CameraHealth::Streaming);
            Self { recorder, clock, interval: OpenInterval::default(), _dir: dir }
        }

        /// So many seconds in which frames are captured, and so many a second analysed.
        async fn pass(&mut self, seconds: u64, analysed: u64) {
            for _ in 0..seconds {
                self.recorder.health.camera.frames_captured.add(10);
                self.recorder.health.camera.frames_analysed.add(analysed);
                self.recorder.check(&mut self.interval, self.clock.now()).await.unwrap();
                self.clock.advance(Duration::from_secs(1));
            }
        }

        async fn lose(&mut self, seconds: u64) {
            self.recorder.health.set_camera_state(CameraHealth::Lost);
            self.pass(seconds, 0).await;
            self.recorder.health.set_camera_state(CameraHealth::Streaming);
        }

        /// In seconds.
        fn watched(&self) -> Vec<(i64, i64)> {
            let found = self.recorder.store.write(|tx| tx.watched(i64::MIN, i64::MAX)).unwrap();
            let seconds = |it: &Interval| (it.from_ms / 1000, it.to_ms / 1000);
            found.intervals().iter().map(seconds).collect()
        }
    }

    #[tokio::test]
    async fn coverage_excludes_frames_not_analysed() {
        let mut bench = CoverageBench::new();
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
    async fn coverage_excludes_time_of_store_errors() {
        let mut bench = CoverageBench::new();
        bench.pass(100, 10).await;
        bench.recorder.health.store_errors.add(1);
        bench.pass(100, 10).await;
        bench.lose(1).await;
        assert_eq!(bench.watched(), [(0, 60), (101, 199)]);
    }

    #[tokio::test]
    async fn flapping_camera_writes_few_coverage_rows() {
        let mut bench = CoverageBench::new();
        for on in [3, 30].into_iter().cycle().take(200) {
            bench.pass(on, 10).await;
            bench.lose(2).await;
        }
        let watched = bench.watched();
        assert!((1..=4).contains(&watched.len()), "{watched:?}");
        assert_eq!(watched[0], (0, 2), "the first interval is written down at once");
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
