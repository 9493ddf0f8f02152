//! Is a sample good enough to become a template? Size, exposure, sharpness and pose, each with a
//! reason.
//!
//! Too poor never becomes a template: a bad reference is worse than none, and a bad probe is a
//! stranger.

use crate::recognise::align::{REFERENCE_POINTS, SAMPLE_SIDE, Sample};

/// What was measured on a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// Pixels between the eyes in the original picture.
    pub eye_distance_px: f32,
    /// Mean luma (BT.601) of the face's inner part, 0..=255.
    pub luma: f32,
    /// Standard deviation of the Laplacian of the luma over the inner part, divided by the luma's
    /// own standard deviation: sharpness that does not depend on contrast.
    pub sharpness: f32,
    /// How far the nose lies from the middle between the eyes, in eye distances: 0 frontal, about
    /// 0.5 at 45°.
    pub yaw: f32,
    /// How far the nose's height between eyes and mouth is from the reference, in eye distances.
    pub pitch: f32,
}

/// Why a sample was rejected: the words of the contract (`docs/wire.md`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Flaw {
    TooSmall,
    Dark,
    Overexposed,
    Blurred,
    Turned,
}

impl Flaw {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The bounds. Two sets are used: a strict one for references, a lenient one for probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QualityBounds {
    pub eye_distance_px_min: f32,
    pub luma_min: f32,
    pub luma_max: f32,
    pub sharpness_min: f32,
    pub yaw_max: f32,
    pub pitch_max: f32,
}

impl QualityBounds {
    /// The same for a face whose landmarks may be implausible: what was measured by them says
    /// nothing then, but that it is small.
    pub fn flaw_of(&self, quality: &Quality, is_implausible: bool) -> Option<Flaw> {
        match self.flaw(quality) {
            Some(Flaw::TooSmall) => Some(Flaw::TooSmall),
            _ if is_implausible => Some(Flaw::Turned),
            flaw => flaw,
        }
    }

    /// The first bound that the sample breaks, if any.
    pub fn flaw(&self, quality: &Quality) -> Option<Flaw> {
        if quality.eye_distance_px < self.eye_distance_px_min {
            Some(Flaw::TooSmall)
        } else if quality.luma < self.luma_min {
            Some(Flaw::Dark)
        } else if quality.luma > self.luma_max {
            Some(Flaw::Overexposed)
        } else if quality.yaw.abs() > self.yaw_max || quality.pitch.abs() > self.pitch_max {
            Some(Flaw::Turned)
        } else if quality.sharpness < self.sharpness_min {
            Some(Flaw::Blurred)
        } else {
            None
        }
    }
}

/// The inner part of a sample, without hair and background.
const INNER: std::ops::Range<usize> = 28..84;

/// Measures a sample.
pub fn measure(sample: &Sample) -> Quality {
    let luma = luma_plane(sample);
    let at = |x: usize, y: usize| luma[y * SAMPLE_SIDE + x];
    let count = (INNER.len() * INNER.len()) as f32;
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    let mut edges = 0.0f32;
    for y in INNER.start + 8..INNER.end + 8 {
        for x in INNER {
            let value = at(x, y);
            sum += value;
            squares += value * value;
            let laplacian = 4.0 * value - at(x - 1, y) - at(x + 1, y) - at(x, y - 1) - at(x, y + 1);
            edges += laplacian * laplacian;
        }
    }
    let mean = sum / count;
    let contrast = (squares / count - mean * mean).max(1.0).sqrt();
    let (yaw, pitch) = measure_pose(sample);
    Quality {
        eye_distance_px: sample.eye_distance_px,
        luma: mean,
        sharpness: (edges / count).sqrt() / contrast,
        yaw,
        pitch,
    }
}

/// A number to rank samples of a track by: bigger, sharper and more frontal is better; 0.0 is
/// useless.
pub fn rank(quality: &Quality) -> f32 {
    let size = (quality.eye_distance_px / 40.0).min(1.0);
    let frontal = (1.0 - quality.yaw.abs()).max(0.0) * (1.0 - quality.pitch.abs()).max(0.0);
    let sharp = (quality.sharpness / 0.3).min(1.0);
    let exposed = 1.0 - ((quality.luma - 120.0).abs() / 120.0).min(1.0);
    size * frontal * (0.5 + 0.5 * sharp) * (0.5 + 0.5 * exposed)
}

fn luma_plane(sample: &Sample) -> Vec<f32> {
    let weigh =
        |p: &[u8]| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
    sample.picture.rgb().chunks_exact(3).map(weigh).collect()
}

/// From the aligned landmarks. The fit has removed roll and scale, so what is left of the nose's
/// offset is pose (and a little anatomy).
fn measure_pose(sample: &Sample) -> (f32, f32) {
    let marks = &sample.landmarks;
    let eye_distance = marks.eye_distance_px().max(1.0);
    let eyes_x = f32::midpoint(marks.left_eye.x, marks.right_eye.x);
    let eyes_y = f32::midpoint(marks.left_eye.y, marks.right_eye.y);
    let mouth_x = f32::midpoint(marks.left_mouth.x, marks.right_mouth.x);
    let mouth_y = f32::midpoint(marks.left_mouth.y, marks.right_mouth.y);
    let height = (mouth_y - eyes_y).max(1.0);
    let down = ((marks.nose.y - eyes_y) / height).clamp(0.0, 1.0);
    let middle = eyes_x + (mouth_x - eyes_x) * down;
    let reference_down = {
        let [left_eye, right_eye, nose, left_mouth, right_mouth] = REFERENCE_POINTS;
        let eyes = f32::midpoint(left_eye.y, right_eye.y);
        (nose.y - eyes) / (f32::midpoint(left_mouth.y, right_mouth.y) - eyes)
    };
    ((marks.nose.x - middle) / eye_distance, (down - reference_down) * height / eye_distance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::Landmarks;
    use crate::recognise::picture::Picture;

    const BOUNDS: QualityBounds = QualityBounds {
        eye_distance_px_min: 20.0,
        luma_min: 40.0,
        luma_max: 220.0,
        sharpness_min: 0.05,
        yaw_max: 0.3,
        pitch_max: 0.3,
    };

    /// A checkered sample of the given brightness, its nose moved sideways by `nose` pixels.
    fn sample(low: u8, high: u8, square: usize, nose: f32, eye_distance_px: f32) -> Sample {
        let rgb = (0..SAMPLE_SIDE * SAMPLE_SIDE)
            .flat_map(|n| {
                let x = n % SAMPLE_SIDE;
                let y = n / SAMPLE_SIDE;
                [if (x / square + y / square).is_multiple_of(2) { low } else { high }; 3]
            })
            .collect();
        let mut landmarks = Landmarks::from_points(REFERENCE_POINTS);
        landmarks.nose.x += nose;
        let picture = Picture::from_rgb(SAMPLE_SIDE, SAMPLE_SIDE, rgb).unwrap();
        Sample { picture, landmarks, eye_distance_px }
    }

    #[test]
    fn quality_flaws_are_distinguished() {
        for (sample, expected) in [
            (sample(90, 150, 6, 0.0, 40.0), None),
            (sample(90, 150, 6, 0.0, 19.0), Some(Flaw::TooSmall)),
            (sample(10, 30, 6, 0.0, 40.0), Some(Flaw::Dark)),
            (sample(230, 250, 6, 0.0, 40.0), Some(Flaw::Overexposed)),
            (sample(90, 150, 6, 14.0, 40.0), Some(Flaw::Turned)),
            (sample(90, 150, 200, 0.0, 40.0), Some(Flaw::Blurred)),
        ] {
            assert_eq!(BOUNDS.flaw(&measure(&sample)), expected);
        }
    }
}
