//! Keeps the record of when the device was watching: absence is claimed for no other time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp};
use crate::health::{CameraHealth, Health};
use crate::record::store::{Store, StoreError};

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

/// What is being watched, since the camera began to deliver.
#[derive(Default)]
struct Watching {
    row: Option<i64>,
    /// When it was last seen to deliver, and when that was last written down.
    seen: Option<Stamp>,
    written: Option<Stamp>,
    frames: u64,
}

impl Observer {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut watching = Watching::default();
        loop {
            let now = self.clock.now();
            if self.is_watching() {
                self.look(&mut watching, now);
                let due = watching.written.is_none_or(|written| now.since(&written) >= WRITE_EVERY);
                if due && watching.seen.is_some() {
                    self.write(&mut watching).await?;
                    watching.written = Some(now);
                }
            } else if watching.row.is_some() {
                self.write(&mut watching).await?;
                watching = Watching::default();
            }
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

    fn is_watching(&self) -> bool {
        !self.has_camera || self.health.camera() == CameraHealth::Streaming
    }

    /// A camera that has stalled is called streaming until its time limit is over: what counts is that frames come.
    fn look(&self, watching: &mut Watching, now: Stamp) {
        let frames = self.health.frames_captured.get();
        if !self.has_camera || frames != watching.frames {
            watching.frames = frames;
            watching.seen = Some(now);
        }
    }

    async fn write(&self, watching: &mut Watching) -> Result<(), StoreError> {
        let (row, Some(seen)) = (watching.row, watching.seen) else {
            return Ok(());
        };
        match self.store.write_async(move |tx| tx.observe(row, &seen)).await {
            Ok(row) => watching.row = Some(row),
            Err(error) if error.is_fatal() => return Err(error),
            // The time is not claimed, which is right: no attendance could have been written either.
            Err(error) => tracing::error!(error = %error, "that the device is watching could not be written down"),
        }
        Ok(())
    }
}
