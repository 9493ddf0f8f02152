//! Change detection on the coarse brightness of each frame.
//!
//! A cell has changed when it differs from its background by more than its own noise explains.
//! Changes of the whole picture (flickering lamps, exposure, daylight) are removed first; slow
//! changes of a cell become its background. In doubt a frame counts as changed: a detection for
//! nothing costs milliseconds, but a person who is missed is not recorded.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::frame::Luma;

/// A cell's mean differs from the background by at least this when somebody is there, even dark on
/// dark.
const STEP_MIN: f32 = 7.0;
/// So many mean deviations of a cell's own noise are nothing new (of a normal distribution, one in
/// 20,000).
const NOISE_FACTOR: f32 = 5.0;
/// A face that is large enough to be recognised covers at least two by two cells, and its body
/// more.
const CELLS_MIN: usize = 3;
/// The whole picture brighter or darker by more than this at once is a lamp switched, or a lens
/// covered: worth a detection.
const GAIN_MAX: f32 = 1.25;
/// How quickly the background follows a cell that has not changed, and one that has: a chair that
/// was moved is part of the scene after some seconds, and a person who stands still is followed as
/// a face by then.
const FOLLOW_TIME: Duration = Duration::from_secs(2);
const ABSORB_TIME: Duration = Duration::from_secs(8);

/// The background that frames are compared with.
#[derive(Debug, Default)]
pub struct ChangeDetector {
    width: usize,
    background: Vec<f32>,
    /// Mean deviation of each cell from its background, while nothing changes.
    noise: Vec<f32>,
    last: Option<Stamp>,
}

impl ChangeDetector {
    /// Returns whether the frame differs from the frames before it. The first frame always does.
    pub fn has_changed(&mut self, luma: &Luma, now: &Stamp) -> bool {
        let elapsed = self.last.replace(*now).map(|last| now.since(&last));
        let (Some(elapsed), true) = (elapsed, self.fits_size(luma)) else {
            self.reset_background(luma);
            return true;
        };
        let gain = self.median_gain(luma);
        let follow = elapsed_share(elapsed, FOLLOW_TIME);
        let absorb = elapsed_share(elapsed, ABSORB_TIME);
        let mut changed = 0;
        let cells = self.background.iter_mut().zip(&mut self.noise).zip(luma.values());
        for ((background, noise), value) in cells {
            let difference = f32::from(*value) - *background * gain;
            if difference.abs() > STEP_MIN.max(*noise * NOISE_FACTOR) {
                changed += 1;
                *background += absorb * (f32::from(*value) - *background);
            } else {
                *background += follow * (f32::from(*value) - *background);
                *noise += follow * (difference.abs() - *noise);
            }
        }
        changed >= CELLS_MIN || !(GAIN_MAX.recip()..=GAIN_MAX).contains(&gain)
    }

    fn fits_size(&self, luma: &Luma) -> bool {
        self.width == luma.width() && self.background.len() == luma.values().len()
    }

    fn reset_background(&mut self, luma: &Luma) {
        self.width = luma.width();
        self.background = luma.values().iter().map(|value| f32::from(*value)).collect();
        self.noise = vec![0.0; self.background.len()];
    }

    /// By how much the picture as a whole is brighter than its background: the median over the
    /// cells, which a person does not move unless they fill half of it, and then the edges of what
    /// they cover do differ.
    fn median_gain(&self, luma: &Luma) -> f32 {
        let cells = self.background.iter().zip(luma.values());
        // Black and white cells do not follow the light.
        let within =
            cells.filter(|(background, value)| **background > 16.0 && (1..=250).contains(*value));
        let mut ratios: Vec<f32> =
            within.map(|(background, value)| f32::from(*value) / background).collect();
        if ratios.len() * 4 < self.background.len() {
            return 1.0;
        }
        let middle = ratios.len() / 2;
        *ratios.select_nth_unstable_by(middle, f32::total_cmp).1
    }
}

fn elapsed_share(elapsed: Duration, within: Duration) -> f32 {
    (elapsed.as_secs_f32() / within.as_secs_f32()).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 80;
    const HEIGHT: usize = 60;

    fn at(ms: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: ms, trusted: true }
    }

    /// A wall that is brighter to the right, times `gain`, with noise of a cell's mean, and
    /// `square` cells of a person.
    fn scene(frame: u64, gain: f32, noise: f32, person: Option<(usize, usize, f32)>) -> Luma {
        let mut state = frame.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let values = (0..WIDTH * HEIGHT).map(|n| {
            let x = n % WIDTH;
            let y = n / WIDTH;
            let there = person.filter(|(left, side, _)| {
                (*left..left + side).contains(&x) && (20..20 + side).contains(&y)
            });
            let wall = there.map_or(60.0 + x as f32, |(_, _, shade)| shade);
            (wall * gain + noise * 3.46 * random()).clamp(0.0, 255.0).round() as u8
        });
        Luma::from_rows(WIDTH, values.collect()).unwrap()
    }

    /// The frames, of so many at ten a second, in which something had changed.
    fn changes(frames: u64, scene: impl Fn(u64) -> Luma) -> Vec<u64> {
        let mut detector = ChangeDetector::default();
        (0..frames).filter(|frame| detector.has_changed(&scene(*frame), &at(frame * 100))).collect()
    }

    #[test]
    fn still_scene_reports_one_change() {
        assert_eq!(changes(600, |frame| scene(frame, 1.0, 1.5, None)), [0]);
    }

    #[test]
    fn flicker_and_slow_daylight_are_no_change() {
        let flicker = |frame: u64| 1.0 + 0.06 * (frame as f32 * 2.1).sin();
        assert_eq!(changes(600, |frame| scene(frame, flicker(frame), 1.0, None)), [0]);
        let dawn = |frame: u64| 0.6 + 0.8 * frame as f32 / 3000.0;
        assert_eq!(changes(3000, |frame| scene(frame, dawn(frame), 1.0, None)), [0]);
    }

    #[test]
    fn person_is_noticed_in_first_frame() {
        for (side, shade) in [(2, 140.0), (5, 20.0), (30, 90.0), (30, 160.0)] {
            let coming = |frame| scene(frame, 1.0, 1.5, (frame >= 50).then_some((10, side, shade)));
            let changes = changes(52, coming);
            assert_eq!(changes[..2], [0, 50], "{side} cells of {shade}");
        }
    }

    #[test]
    fn switched_lamp_is_noticed_then_absorbed() {
        let switched = |frame| scene(frame, if frame >= 50 { 1.6 } else { 1.0 }, 1.0, None);
        let changes = changes(300, switched);
        assert_eq!(changes[1], 50);
        assert!(changes.iter().all(|frame| *frame < 150), "{changes:?}");
    }

    #[test]
    fn lasting_object_becomes_background() {
        let chair = |frame| scene(frame, 1.0, 1.0, (frame >= 50).then_some((30, 8, 200.0)));
        let changes = changes(600, chair);
        assert_eq!(changes[1], 50);
        assert!(changes.iter().all(|frame| *frame < 450), "{changes:?}");
    }

    #[test]
    fn changed_picture_size_restarts_detection() {
        let mut detector = ChangeDetector::default();
        detector.has_changed(&scene(0, 1.0, 0.0, None), &at(0));
        assert!(detector.has_changed(&Luma::from_rows(4, vec![9; 12]).unwrap(), &at(100)));
        assert!(!detector.has_changed(&Luma::from_rows(4, vec![9; 12]).unwrap(), &at(200)));
    }
}
