//! Does a face stand upright in its picture? Whether the detector and the refiner agree on it.
//!
//! Both know upright faces only. In a face that lies on its side or upside down the detector finds a
//! face with less confidence, and the two find its landmarks in different places; a template made of
//! them is nobody's, or somebody else's. Measured on the 1,012 photographs of faces-open, each in the
//! four ways up (2026-11-29): stance upright 0.75 or more, and 0.86 or more in 943; turned 0.851 at
//! most; and in every photograph the upright way has the highest. In frames with grain and faces 60
//! pixels wide: upright 0.72 or more in 98 of 100, turned 0.71 at most.

use crate::recognise::face::Detection;

/// How surely a face stands upright: the detection confidence, less the mean distance between the
/// landmarks of detector and refiner in widths of the face.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Stance(f32);

impl Stance {
    /// Above all turned faces that were measured: nothing else needs to be tried.
    pub const SURE: Self = Self(0.86);
    /// The least for a reference. Below all upright faces of photographs, with a distance.
    pub const REFERENCE_MIN: Self = Self(0.65);
    /// The least for a probe: small faces in frames with grain have less than large ones.
    pub const PROBE_MIN: Self = Self(0.45);

    /// `detected` has the detector's landmarks, `refined` the refiner's.
    pub fn of(detected: &Detection, refined: &Detection) -> Self {
        let pairs = detected.landmarks.points().into_iter().zip(refined.landmarks.points());
        let apart = pairs.map(|(a, b)| a.distance(b)).sum::<f32>() / 5.0;
        let stance = detected.confidence - apart / detected.bounding_box.width().max(1.0);
        // What is no number is no face.
        Self(if stance.is_nan() { -1.0 } else { stance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::{BoundingBox, Landmarks, Point};

    #[test]
    fn landmarks_apart_lower_the_stance() {
        let detection = |confidence: f32, nose_x: f32| Detection {
            bounding_box: BoundingBox { left: 0.0, top: 0.0, right: 100.0, bottom: 120.0 },
            confidence,
            landmarks: Landmarks { nose: Point { x: nose_x, y: 0.0 }, ..Landmarks::default() },
        };
        let agreed = Stance::of(&detection(0.93, 50.0), &detection(0.93, 50.0));
        assert!(agreed > Stance::SURE);
        let apart = Stance::of(&detection(0.93, 50.0), &detection(0.93, 90.0));
        assert!(apart < Stance::SURE && apart > Stance::REFERENCE_MIN, "{apart:?}");
        assert!(Stance::of(&detection(0.93, 0.0), &detection(0.93, f32::NAN)) < Stance::PROBE_MIN);
    }
}
