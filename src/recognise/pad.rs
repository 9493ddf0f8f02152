//! Presentation attack detection over a track: from the model's scores of single frames to a
//! verdict.
//!
//! Most scores are near 0 or near 1, so two frames that agree are a verdict; otherwise the median
//! of more frames is. A verdict holds for the rest of the track, so that an attacker does not get a
//! new attempt with each frame. A face too small to be judged is neither live nor an attack.

/// How the device responds to attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    Off,
    /// An attack is an event; attendance is recorded all the same.
    Flag,
    /// And no attendance: a face must be found live first.
    Enforce,
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
