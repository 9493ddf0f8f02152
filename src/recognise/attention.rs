//! Decides which frames the detector runs on, and which are not even decoded.
//!
//! In an empty scene without change, a frame costs its coarse brightness only (`change`), and the
//! detector runs now and then to find what the change detector missed. From the first change on,
//! and while a track is undecided, it runs on every frame. Decided faces in a scene without movement
//! (a person who waits, a poster) are detected just often enough to keep their tracks. A hot
//! processor slows all of this down.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::change::ChangeDetector;
use crate::recognise::frame::Frame;
use crate::recognise::picture::DecodeError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceSettings {
    /// Least time between two frames whose brightness is compared while nobody is there.
    pub idle_every: Duration,
    /// A track without a detection for this long ends, so detections are never further apart than
    /// half of this.
    pub lost_after: Duration,
}

/// After a change the detector runs on every frame for this long: a person who comes in takes a
/// moment to face the camera.
const AWAKE_FOR: Duration = Duration::from_secs(1);
/// How often the detector runs on a scene without change.
const IDLE_DETECT_INTERVAL: Duration = Duration::from_secs(2);
/// How often decided faces are detected while nothing moves.
const SETTLED_DETECT_INTERVAL: Duration = Duration::from_millis(400);
/// Frames may come this much early and still count as due: timestamps jitter.
const JITTER: Duration = Duration::from_millis(10);

/// The faces before the camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Nobody,
    /// Faces, each with a decision.
    Settled,
    /// At least one undecided face.
    Deciding,
}

/// What is done with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameAction {
    /// Not even decoded.
    Skip,
    /// Compared with the background only.
    CompareOnly,
    /// Shown to the detector.
    #[default]
    Detect,
}

impl FrameAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "passed",
            Self::CompareOnly => "still",
            Self::Detect => "full",
        }
    }
}

#[derive(Debug)]
pub struct FrameScheduler {
    settings: PaceSettings,
    change: ChangeDetector,
    awake_until: Option<Stamp>,
    compared_at: Option<Stamp>,
    detected_at: Option<Stamp>,
    /// The frame goes to the detector in any case. Its brightness is compared afterwards, when it is
    /// decoded and so costs little.
    luma_due: bool,
}

impl FrameScheduler {
    pub fn new(settings: PaceSettings) -> Self {
        Self {
            settings,
            change: ChangeDetector::default(),
            awake_until: None,
            compared_at: None,
            detected_at: None,
            luma_due: false,
        }
    }

    /// Decides what is done with the frame. `slowed` is the least time between two frames that are
    /// not skipped.
    pub fn decide_action(
        &mut self,
        frame: &Frame,
        presence: Presence,
        slowed: Duration,
    ) -> Result<FrameAction, DecodeError> {
        let now = frame.media();
        let slowed = slowed.min(self.settings.lost_after / 2);
        let sure = presence == Presence::Deciding || self.is_awake(&now);
        let idle = presence == Presence::Nobody && !sure;
        let pause = if idle { slowed.max(self.settings.idle_every) } else { slowed };
        if !is_due(self.compared_at, &now, pause) {
            return Ok(FrameAction::Skip);
        }
        self.compared_at = Some(now);
        self.luma_due = sure;
        if !sure {
            self.compare_luma(frame)?;
            let every = match presence {
                Presence::Settled => SETTLED_DETECT_INTERVAL.min(self.settings.lost_after / 2),
                Presence::Deciding | Presence::Nobody => IDLE_DETECT_INTERVAL,
            };
            if !self.is_awake(&now) && !is_due(self.detected_at, &now, every) {
                return Ok(FrameAction::CompareOnly);
            }
        }
        self.detected_at = Some(now);
        Ok(FrameAction::Detect)
    }

    /// Compares the frame's brightness if that is still due; called after the detector has run.
    pub fn note_decoded(&mut self, frame: &Frame) -> Result<(), DecodeError> {
        if std::mem::take(&mut self.luma_due) { self.compare_luma(frame) } else { Ok(()) }
    }

    fn compare_luma(&mut self, frame: &Frame) -> Result<(), DecodeError> {
        let now = frame.media();
        if self.change.has_changed(&frame.pixels.luma()?, &now) {
            self.awake_until = Some(later(now, AWAKE_FOR));
        }
        Ok(())
    }

    fn is_awake(&self, now: &Stamp) -> bool {
        self.awake_until.is_some_and(|until| now.boottime_ms < until.boottime_ms)
    }
}

/// Returns whether `every` has passed since `last`, or the source's time has gone back, as that of a
/// replay does when it begins again.
fn is_due(last: Option<Stamp>, now: &Stamp, every: Duration) -> bool {
    last.is_none_or(|last| {
        now.boottime_ms < last.boottime_ms || now.since(&last) + JITTER.min(every / 4) >= every
    })
}

fn later(stamp: Stamp, by: Duration) -> Stamp {
    Stamp { boottime_ms: stamp.boottime_ms + by.as_millis() as u64, ..stamp }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::recognise::picture::Picture;

    fn scheduler(idle_ms: u64) -> FrameScheduler {
        let idle_every = Duration::from_millis(idle_ms);
        let lost_after = Duration::from_millis(700);
        FrameScheduler::new(PaceSettings { idle_every, lost_after })
    }

    fn frame(ms: u64, shade: u8) -> Frame {
        let taken = Stamp { wall_ms: 0, boottime_ms: 0, trusted: true };
        let mut rgb = vec![60; 160 * 120 * 3];
        rgb[..160 * 40 * 3].fill(shade);
        Frame {
            seq: 0,
            taken,
            media_ms: ms,
            pixels: Arc::new(Picture::from_rgb(160, 120, rgb).unwrap()),
        }
    }

    /// Counts the actions on the frames from `from` to `to` seconds at `fps` a second.
    fn count(
        scheduler: &mut FrameScheduler,
        (from, to): (u64, u64),
        fps: u64,
        shade: u8,
        presence: Presence,
        slowed: u64,
    ) -> [usize; 3] {
        let mut counts = [0; 3];
        for n in from * fps..to * fps {
            let frame = frame(n * 1000 / fps, shade);
            let action =
                scheduler.decide_action(&frame, presence, Duration::from_millis(slowed)).unwrap();
            if action == FrameAction::Detect {
                scheduler.note_decoded(&frame).unwrap();
            }
            counts[action as usize] += 1;
        }
        counts
    }

    #[test]
    fn still_scene_is_analysed_rarely() {
        let mut scheduler = scheduler(100);
        count(&mut scheduler, (0, 10), 10, 60, Presence::Nobody, 0);
        let [skipped, compared, detected] =
            count(&mut scheduler, (10, 30), 10, 60, Presence::Nobody, 0);
        assert_eq!((skipped, compared, detected), (0, 190, 10));
        // From the change on each frame, for a second.
        assert_eq!(count(&mut scheduler, (30, 31), 10, 200, Presence::Nobody, 0), [0, 0, 10]);
    }

    #[test]
    fn idle_rate_limits_fast_camera_decoding() {
        let mut scheduler = scheduler(100);
        count(&mut scheduler, (0, 10), 30, 60, Presence::Nobody, 0);
        let [skipped, compared, detected] =
            count(&mut scheduler, (10, 20), 30, 60, Presence::Nobody, 0);
        assert_eq!((skipped, compared + detected), (200, 100));
        assert_eq!(count(&mut scheduler, (20, 21), 30, 60, Presence::Deciding, 0), [0, 0, 30]);
    }

    #[test]
    fn settled_faces_are_analysed_less_often() {
        let mut scheduler = scheduler(100);
        count(&mut scheduler, (0, 10), 10, 60, Presence::Deciding, 0);
        assert_eq!(count(&mut scheduler, (10, 18), 10, 60, Presence::Settled, 0)[2], 20);
    }

    #[test]
    fn hot_processor_slows_but_keeps_tracks() {
        let mut scheduler = scheduler(100);
        count(&mut scheduler, (0, 10), 10, 60, Presence::Deciding, 200);
        assert_eq!(count(&mut scheduler, (10, 20), 10, 60, Presence::Deciding, 200), [50, 0, 50]);
        assert_eq!(count(&mut scheduler, (20, 28), 20, 60, Presence::Deciding, 10_000)[2], 23);
    }
}
