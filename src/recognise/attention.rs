//! How closely to look: which frames the detector sees, and which are not even decoded.
//!
//! While nobody is there and nothing changes, a frame costs its coarse brightness only (`change`), and the detector looks
//! now and then for whom the change detector missed. From the first change on, and while a face is being decided upon,
//! every frame is looked at. Faces that are all decided upon in a scene that stands still (a person who waits, a poster)
//! are looked at just often enough to stay followed. A hot processor lowers the pace of all of it.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::change::ChangeDetector;
use crate::recognise::frame::Frame;
use crate::recognise::picture::DecodeError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceSettings {
    /// Least time between two frames whose brightness is compared while nobody is there.
    pub idle_every: Duration,
    /// A track that is not looked at for this long ends: however slow the pace, it is not slower than half of this.
    pub lost_after: Duration,
}

/// After a change every frame is looked at for this long: who comes in takes a moment to face the camera.
const AWAKE_FOR: Duration = Duration::from_secs(1);
/// The detector looks at a scene in which nothing changed this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often faces that are all decided upon are looked at while nothing moves.
const SETTLED_EVERY: Duration = Duration::from_millis(400);
/// A frame that comes a little early is not put off until the next: timestamps jitter.
const JITTER: Duration = Duration::from_millis(10);

/// Who is before the camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Nobody,
    /// Faces, each of them decided upon.
    Settled,
    /// A face that is to be decided upon.
    Deciding,
}

/// What a frame is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// Not even decoded.
    Passed,
    /// Compared with the background: nothing to see.
    Still,
    /// Shown to the detector.
    #[default]
    Full,
}

impl Attention {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Still => "still",
            Self::Full => "full",
        }
    }
}

#[derive(Debug)]
pub struct Watcher {
    settings: PaceSettings,
    change: ChangeDetector,
    awake_until: Option<Stamp>,
    glanced: Option<Stamp>,
    looked: Option<Stamp>,
    /// The frame was shown to the detector unseen: its brightness costs little once it is decoded.
    glance_due: bool,
}

impl Watcher {
    pub fn new(settings: PaceSettings) -> Self {
        Self {
            settings,
            change: ChangeDetector::default(),
            awake_until: None,
            glanced: None,
            looked: None,
            glance_due: false,
        }
    }

    /// Decides on the frame. `slowed` is the least time between two frames that are looked at at all.
    pub fn regard(
        &mut self,
        frame: &Frame,
        presence: Presence,
        slowed: Duration,
    ) -> Result<Attention, DecodeError> {
        let now = frame.media();
        let slowed = slowed.min(self.settings.lost_after / 2);
        let sure = presence == Presence::Deciding || self.is_awake(&now);
        let idle = presence == Presence::Nobody && !sure;
        let pause = if idle { slowed.max(self.settings.idle_every) } else { slowed };
        if !is_due(self.glanced, &now, pause) {
            return Ok(Attention::Passed);
        }
        self.glanced = Some(now);
        self.glance_due = sure;
        if !sure {
            self.glance(frame)?;
            let every = match presence {
                Presence::Settled => SETTLED_EVERY.min(self.settings.lost_after / 2),
                Presence::Deciding | Presence::Nobody => LOOK_EVERY,
            };
            if !self.is_awake(&now) && !is_due(self.looked, &now, every) {
                return Ok(Attention::Still);
            }
        }
        self.looked = Some(now);
        Ok(Attention::Full)
    }

    /// To be told when the detector has seen the frame, and so decoded it.
    pub fn seen(&mut self, frame: &Frame) -> Result<(), DecodeError> {
        if std::mem::take(&mut self.glance_due) { self.glance(frame) } else { Ok(()) }
    }

    fn glance(&mut self, frame: &Frame) -> Result<(), DecodeError> {
        let now = frame.media();
        if self.change.look(&frame.pixels.luma()?, &now) {
            self.awake_until = Some(later(now, AWAKE_FOR));
        }
        Ok(())
    }

    fn is_awake(&self, now: &Stamp) -> bool {
        self.awake_until.is_some_and(|until| now.boottime_ms < until.boottime_ms)
    }
}

/// Whether so much time has passed; also when the source's time has gone back, as a replay's does that begins again.
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

    fn watcher(idle_ms: u64) -> Watcher {
        let (idle_every, lost_after) = (Duration::from_millis(idle_ms), Duration::from_millis(700));
        Watcher::new(PaceSettings { idle_every, lost_after })
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

    /// How many of the frames from `from` to `to` seconds, `fps` a second, are looked at and how.
    fn count(
        watcher: &mut Watcher,
        (from, to): (u64, u64),
        fps: u64,
        shade: u8,
        presence: Presence,
        slowed: u64,
    ) -> [usize; 3] {
        let mut counts = [0; 3];
        for n in from * fps..to * fps {
            let frame = frame(n * 1000 / fps, shade);
            let attention =
                watcher.regard(&frame, presence, Duration::from_millis(slowed)).unwrap();
            if attention == Attention::Full {
                watcher.seen(&frame).unwrap();
            }
            counts[attention as usize] += 1;
        }
        counts
    }

    #[test]
    fn a_still_scene_is_looked_at_now_and_then_and_a_change_at_once() {
        let mut watcher = watcher(100);
        count(&mut watcher, (0, 10), 10, 60, Presence::Nobody, 0);
        let [passed, still, full] = count(&mut watcher, (10, 30), 10, 60, Presence::Nobody, 0);
        assert_eq!((passed, still, full), (0, 190, 10));
        // From the change on each frame, for a second.
        assert_eq!(count(&mut watcher, (30, 31), 10, 200, Presence::Nobody, 0), [0, 0, 10]);
    }

    #[test]
    fn a_fast_camera_is_not_decoded_more_often_than_the_idle_pace() {
        let mut watcher = watcher(100);
        count(&mut watcher, (0, 10), 30, 60, Presence::Nobody, 0);
        let [passed, still, full] = count(&mut watcher, (10, 20), 30, 60, Presence::Nobody, 0);
        assert_eq!((passed, still + full), (200, 100));
        assert_eq!(count(&mut watcher, (20, 21), 30, 60, Presence::Deciding, 0), [0, 0, 30]);
    }

    #[test]
    fn faces_that_are_decided_upon_are_followed_at_ease() {
        let mut watcher = watcher(100);
        count(&mut watcher, (0, 10), 10, 60, Presence::Deciding, 0);
        assert_eq!(count(&mut watcher, (10, 18), 10, 60, Presence::Settled, 0)[2], 20);
    }

    #[test]
    fn a_hot_processor_slows_everything_but_not_so_that_tracks_are_lost() {
        let mut watcher = watcher(100);
        count(&mut watcher, (0, 10), 10, 60, Presence::Deciding, 200);
        assert_eq!(count(&mut watcher, (10, 20), 10, 60, Presence::Deciding, 200), [50, 0, 50]);
        assert_eq!(count(&mut watcher, (20, 28), 20, 60, Presence::Deciding, 10_000)[2], 23);
    }
}
