//! Presentation attack detection over a track: from the model's scores of single frames to a
//! verdict.
//!
//! The model sees the face with a part of what surrounds it. Where that leaves it undecided, it sees
//! more of the surroundings too, in which a screen has its border, and the mean of both counts.
//!
//! Most scores are near 0 or near 1, so two frames that agree are a verdict; otherwise the median
//! of more frames is. A verdict holds for the rest of the track, so that an attacker does not get a
//! new attempt with each frame. A face too small to be judged is neither live nor an attack.

use std::ops::RangeInclusive;

/// Sides of the two crops, as multiples of those of the face's box. The model was made for the near
/// one; of the wide ones tried, up to 5.0, 4.0 is the widest that does not take live faces for
/// attacks more often (`docs/performance.md`).
pub const NEAR_CROP: f32 = 2.7;
pub const WIDE_CROP: f32 = 4.0;

/// Scores of the near crop, 0.0..=1.0, that leave the model undecided. With the wide crop for these
/// alone, the errors are those of always taking both, at a third of the cost: 25 of 100 frames of
/// live people in clips have such a score (`docs/performance.md`).
const UNDECIDED: RangeInclusive<f32> = 0.1..=0.98;

/// Returns the score of a frame: that of the near crop, or where it is undecided its mean with that
/// of the wide one, which may be `None`: the picture shows nothing more.
pub fn fuse_crops<E>(near: f32, wide: impl FnOnce() -> Result<Option<f32>, E>) -> Result<f32, E> {
    if !UNDECIDED.contains(&near) {
        return Ok(near);
    }
    Ok(wide()?.map_or(near, |wide| f32::midpoint(near, wide)))
}

/// How the device responds to attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    Off,
    /// An attack is an event; attendance is recorded all the same.
    Flag,
    /// And no attendance: a face must be found live first.
    Enforce,
}

impl PadMode {
    /// Least score of a live face where none is configured, 0.0..=1.0. A false alarm of `Flag` is
    /// one more event to look at. `Enforce` is there to withhold: on photographs and clips of live
    /// people its bar costs 2 to 5 % more of the frames, and a fifth to a quarter of the filmed
    /// screens that pass the other one fail at it (`docs/performance.md`).
    pub fn default_threshold(self) -> f32 {
        match self {
            Self::Off | Self::Flag => 0.4,
            Self::Enforce => 0.7,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PadSettings {
    pub mode: PadMode,
    /// Least score of a live face, 0.0..=1.0.
    pub threshold: f32,
    /// Frames that must agree; where they do not, the median of twice as many and one decides.
    pub samples: usize,
    /// Pixels between the eyes below which a face is not judged.
    pub eye_distance_px_min: f32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Presentation {
    /// There are too few scores yet, or the face is too small, or PAD is off.
    #[default]
    Unjudged,
    Live,
    Attack,
}

impl Presentation {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The PAD scores of one track and their verdict.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    scores: Vec<f32>,
    verdict: Presentation,
}

impl Liveness {
    /// Adds the score of the next frame. A verdict never changes.
    pub fn add(&mut self, score: f32, settings: &PadSettings) {
        if self.verdict != Presentation::Unjudged {
            return;
        }
        self.scores.push(score);
        let live = self.scores.iter().filter(|score| **score >= settings.threshold).count();
        let attacks = self.scores.len() - live;
        let most = 2 * settings.samples + 1;
        if self.scores.len() >= settings.samples && (live == 0 || attacks == 0)
            || self.scores.len() >= most
        {
            self.verdict = if live > attacks { Presentation::Live } else { Presentation::Attack };
        }
    }

    pub fn verdict(&self) -> Presentation {
        self.verdict
    }

    /// The score of each frame, in their order.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The median so far.
    pub fn score(&self) -> Option<f32> {
        median(&self.scores)
    }
}

/// The middle value; of an even number, the lower of the two in the middle: in doubt less live.
pub fn median(values: &[f32]) -> Option<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scores: &[f32], expected: Presentation) {
        let settings = PadSettings {
            mode: PadMode::Flag,
            threshold: 0.15,
            samples: 2,
            eye_distance_px_min: 0.0,
        };
        let mut liveness = Liveness::default();
        for score in scores {
            liveness.add(*score, &settings);
        }
        assert_eq!(liveness.verdict(), expected, "{scores:?}");
    }

    #[test]
    fn pad_verdict_needs_agreeing_frames() {
        check(&[], Presentation::Unjudged);
        check(&[0.9], Presentation::Unjudged);
        check(&[0.9, 0.15], Presentation::Live); // equality counts as live
        check(&[0.01, 0.14], Presentation::Attack);
        check(&[0.9, 0.01], Presentation::Unjudged);
        check(&[0.9, 0.01, 0.9, 0.9], Presentation::Unjudged);
        check(&[0.9, 0.01, 0.9, 0.01, 0.9], Presentation::Live);
        check(&[0.9, 0.01, 0.01, 0.01, 0.9], Presentation::Attack);
    }

    #[test]
    fn wide_crop_counts_only_where_near_is_undecided() {
        let fuse = |near, wide: Option<f32>| fuse_crops(near, || Ok::<_, ()>(wide));
        assert_eq!(fuse(0.5, Some(0.25)), Ok(0.375));
        assert_eq!(fuse(0.5, None), Ok(0.5));
        assert_eq!(fuse_crops(0.5, || Err("no model")), Err("no model"));
        for decided in [0.0, 0.09, 0.99, 1.0] {
            let score = fuse_crops(decided, || -> Result<_, ()> { panic!("it is not asked for") });
            assert_eq!(score, Ok(decided));
        }
    }

    #[test]
    fn enforced_bar_is_stricter() {
        let [flag, enforce] = [PadMode::Flag, PadMode::Enforce].map(PadMode::default_threshold);
        assert!(flag < enforce, "{flag} {enforce}");
        assert!(UNDECIDED.contains(&flag) && UNDECIDED.contains(&enforce));
    }

    #[test]
    fn pad_verdict_is_final() {
        check(&[0.01, 0.01, 0.9, 0.9, 0.9, 0.9, 0.9], Presentation::Attack);
        check(&[0.9, 0.9, 0.01, 0.01, 0.01], Presentation::Live);
    }

    #[test]
    fn median_takes_the_lower_value() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[0.9, 0.1]), Some(0.1));
        assert_eq!(median(&[0.9, 0.1, 0.5]), Some(0.5));
    }
}
