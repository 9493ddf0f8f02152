//! The capture thread: frames from the source into the one-place slot, at the source's pace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::supervise::StageResult;
use crate::camera::{FrameSource, Next, SourceFrame};
use crate::clock::{Clock, Stopwatch};
use crate::health::{CameraHealth, Health};
use crate::recognise::frame::{Frame, Latest};

pub struct Capture {
    pub source: Box<dyn FrameSource>,
    pub slot: Arc<Latest<Frame>>,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    pub stop: watch::Receiver<bool>,
    /// As fast as the networks take the frames, none replaced.
    pub patient: bool,
    /// Told when nothing more will come and the last frame was taken.
    pub ended: watch::Sender<bool>,
}

/// Longest sleep at a stretch, so that a stop is heard.
const NAP_MAX: Duration = Duration::from_millis(100);

impl Capture {
    pub fn run(mut self) -> StageResult {
        let watch = Stopwatch::start();
        self.health.set_camera(CameraHealth::Streaming);
        tracing::info!(source = self.source.describe(), "camera streaming");
        while !*self.stop.borrow() {
            match self.source.next() {
                Ok(Next::Frame(frame)) => self.deliver(frame, &watch),
                Ok(Next::End) => {
                    self.finish();
                    break;
                }
                Err(error) => {
                    self.health.frames_unreadable.add(1);
                    tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "a picture was left out");
                    std::thread::sleep(NAP_MAX);
                }
            }
        }
        self.wait_for_stop();
        self.slot.close();
        Ok(())
    }

    fn deliver(&mut self, frame: SourceFrame, watch: &Stopwatch) {
        if !self.patient {
            while watch.elapsed() < frame.at && !*self.stop.borrow() {
                std::thread::sleep((frame.at.saturating_sub(watch.elapsed())).min(NAP_MAX));
            }
        }
        let seq = self.health.frames_captured.get();
        let media_ms = frame.at.as_millis() as u64;
        let frame = Frame { seq, taken: self.clock.now(), media_ms, pixels: frame.picture };
        self.health.frames_captured.add(1);
        if self.patient {
            while !*self.stop.borrow() && !self.slot.wait_free(NAP_MAX) {}
        }
        let replaced = self.slot.put(frame);
        self.health.frames_replaced.set(replaced);
    }

    fn finish(&self) {
        while !*self.stop.borrow() && !self.slot.wait_free(NAP_MAX) {}
        self.health.set_camera(CameraHealth::Absent);
        tracing::info!(frames = self.health.frames_captured.get(), "the replay has ended");
        self.ended.send_replace(true);
    }

    fn wait_for_stop(&mut self) {
        while !*self.stop.borrow() {
            std::thread::sleep(NAP_MAX);
        }
    }
}
