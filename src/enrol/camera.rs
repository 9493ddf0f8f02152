//! Samples of the next person who is alone before the camera: good ones, of one face, apart in
//! time.
//!
//! Only computes. The inference thread supplies the frames, and the command handler ends it when it
//! takes too long.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EnrolSettings, Judged};
use crate::clock::Stamp;
use crate::recognise::face::Template;
use crate::recognise::live::FaceObservation;
use crate::recognise::pad::{PadMode, PadSettings, Presentation};
use crate::recognise::quality::{self, Quality};
use crate::recognise::stance::Stance;

/// Samples closer together show the same light and the same pose.
const APART: Duration = Duration::from_millis(300);

/// The number of unusable frames by reason, reported when nobody could be enrolled in time.
pub type Tally = BTreeMap<&'static str, u32>;

#[derive(Debug)]
pub struct Gathering {
    wanted: usize,
    pad: PadSettings,
    track: Option<u64>,
    /// Two faces were found within this track: its verdict may be the other's.
    mixed: bool,
    samples: Vec<(Template, f32)>,
    last: Option<Stamp>,
    tally: Tally,
}

impl Gathering {
    pub fn new(wanted: usize, pad: PadSettings) -> Self {
        Self {
            wanted,
            pad,
            track: None,
            mixed: false,
            samples: Vec::new(),
            last: None,
            tally: Tally::new(),
        }
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the face of this frame to sample, if there is one. `faces` is how many the frame
    /// has, `observations` those that are followed.
    pub fn select_face<'a>(
        &mut self,
        faces: usize,
        observations: &'a [FaceObservation],
        now: &Stamp,
    ) -> Option<&'a FaceObservation> {
        let observation = match (faces, observations) {
            (0, _) | (_, []) => return self.count_unusable("no_face"),
            (1, [observation]) => observation,
            _ => return self.count_unusable("several_faces"),
        };
        if self.track != Some(observation.track_id) {
            // Somebody else: what was gathered is not theirs.
            self.restart();
            (self.track, self.mixed) = (Some(observation.track_id), false);
        }
        if self.pad.mode != PadMode::Off && observation.presentation == Presentation::Attack {
            self.restart();
            return self.count_unusable("attack");
        }
        let soon = self.last.is_some_and(|last| now.since(&last) < APART);
        (!soon && self.samples.len() < self.wanted).then_some(observation)
    }

    /// What the sample is worth; `false` if its template need not be made.
    pub fn is_good(&mut self, stance: Stance, quality: &Quality, settings: &EnrolSettings) -> bool {
        match settings.reference.flaw_of(quality, stance < Stance::REFERENCE_MIN) {
            Some(flaw) => self.count_unusable::<()>(flaw.as_str()).is_some(),
            None => true,
        }
    }

    pub fn add(
        &mut self,
        template: Template,
        quality: &Quality,
        settings: &EnrolSettings,
        now: &Stamp,
    ) {
        let is_other =
            |(earlier, _): &(Template, f32)| earlier.compare(&template) < settings.same_person_min;
        if self.samples.iter().any(is_other) {
            self.mixed = true;
            self.restart();
        }
        self.samples.push((template, quality::rank(quality)));
        self.last = Some(*now);
    }

    /// Returns the samples when there are enough of a face that was found live, or is too small to
    /// be judged.
    pub fn finished(
        &mut self,
        observation: &FaceObservation,
        eye_distance_px: f32,
    ) -> Option<Vec<Judged>> {
        if self.samples.len() < self.wanted {
            return None;
        }
        let judged = match (self.pad.mode, observation.presentation) {
            (PadMode::Off, _) | (_, Presentation::Live) if !self.mixed => true,
            (PadMode::Flag, Presentation::Unjudged) => {
                eye_distance_px < self.pad.eye_distance_px_min
            }
            _ => false,
        };
        if !judged {
            return self.count_unusable("not_live");
        }
        let accepted = |(template, quality)| Judged::Accepted { template, quality };
        Some(std::mem::take(&mut self.samples).into_iter().map(accepted).collect())
    }

    fn restart(&mut self) {
        (self.samples, self.last) = (Vec::new(), None);
    }

    fn count_unusable<T>(&mut self, why: &'static str) -> Option<T> {
        *self.tally.entry(why).or_default() += 1;
        None
    }
}

/// `several_faces in 12 frames, no_face in 3`, the most frequent first.
pub fn format_tally(tally: &Tally) -> String {
    let mut reasons: Vec<_> = tally.iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1));
    let reason = |(why, frames): (&&str, &u32)| format!("{why} in {frames} frames");
    reasons.into_iter().map(reason).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::decision::Decision;
    use crate::recognise::face::{BoundingBox, Landmarks};

    fn pad(mode: PadMode) -> PadSettings {
        PadSettings { mode, threshold: 0.4, samples: 2, eye_distance_px_min: 16.0 }
    }

    fn observation(track_id: u64, presentation: Presentation) -> FaceObservation {
        FaceObservation {
            track_id,
            bounding_box: BoundingBox::default(),
            landmarks: Landmarks::default(),
            detected: Landmarks::default(),
            confidence: 0.9,
            decision: Decision::Undecided,
            samples: 0,
            flaw: None,
            liveness: None,
            presentation,
        }
    }

    fn at(ms: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: ms, trusted: false }
    }

    fn settings() -> EnrolSettings {
        use crate::recognise::decision::{DecisionSettings, ThresholdRule};
        use crate::recognise::picture::PictureLimits;
        use crate::recognise::quality::QualityBounds;
        EnrolSettings {
            reference: QualityBounds {
                eye_distance_px_min: 6.0,
                luma_min: 30.0,
                luma_max: 220.0,
                sharpness_min: 0.09,
                yaw_max: 0.5,
                pitch_max: 0.4,
            },
            same_person_min: 0.2,
            duplicate_margin: 0.1,
            look_alike_margin: 0.05,
            references_max: 10,
            length_weak: 0.0,
            decision: DecisionSettings {
                threshold: ThresholdRule {
                    threshold: 0.4,
                    subjects: 100.0,
                    per_decade: 0.1,
                    fpir: 0.001,
                    fixed: None,
                },
                early_exit: None,
                samples_min: 3,
                early_margin: 0.1,
                margin_min: 0.03,
                unknown_samples: 5,
                length_min: 0.0,
            },
            picture: PictureLimits::default(),
        }
    }

    const GOOD: Quality =
        Quality { eye_distance_px: 40.0, luma: 120.0, sharpness: 0.3, yaw: 0.0, pitch: 0.0 };

    fn template(x: f32, y: f32) -> Template {
        Template::normalised(vec![x, y, 0.1]).unwrap()
    }

    #[test]
    fn enrolment_gathers_one_person_alone() {
        let mut gathering = Gathering::new(2, pad(PadMode::Flag));
        let settings = settings();
        let ann = observation(1, Presentation::Live);
        let bob = observation(2, Presentation::Live);
        assert!(
            gathering.select_face(0, std::slice::from_ref(&ann), &at(0)).is_none(),
            "the observation is of an earlier frame"
        );
        assert!(gathering.select_face(2, &[ann.clone(), bob.clone()], &at(10)).is_none());
        assert!(gathering.select_face(1, std::slice::from_ref(&ann), &at(20)).is_some());
        assert!(!gathering.is_good(Stance::SURE, &Quality { luma: 10.0, ..GOOD }, &settings));
        assert!(!gathering.is_good(Stance::PROBE_MIN, &GOOD, &settings));
        assert!(gathering.is_good(Stance::SURE, &GOOD, &settings));
        gathering.add(template(1.0, 0.0), &GOOD, &settings, &at(20));
        assert!(gathering.finished(&ann, 40.0).is_none());
        assert!(
            gathering.select_face(1, std::slice::from_ref(&ann), &at(100)).is_none(),
            "too soon"
        );
        // Another track: what there was is not theirs.
        assert!(gathering.select_face(1, std::slice::from_ref(&bob), &at(400)).is_some());
        gathering.add(template(0.0, 1.0), &GOOD, &settings, &at(400));
        assert!(gathering.finished(&bob, 40.0).is_none());
        assert!(gathering.select_face(1, std::slice::from_ref(&bob), &at(800)).is_some());
        gathering.add(template(0.1, 1.0), &GOOD, &settings, &at(800));
        assert_eq!(gathering.finished(&bob, 40.0).unwrap().len(), 2);
        assert_eq!(
            format_tally(gathering.tally()),
            "dark in 1 frames, no_face in 1 frames, several_faces in 1 frames, turned in 1 frames"
        );
    }

    #[test]
    fn pad_verdict_needs_single_face_track() {
        let mut gathering = Gathering::new(2, pad(PadMode::Enforce));
        let settings = settings();
        for (track, believed) in [(1, false), (2, true)] {
            let observation = observation(track, Presentation::Live);
            let faces =
                if believed { [(1.0, 0.0); 3] } else { [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)] };
            for (at, (x, y)) in faces.into_iter().enumerate() {
                let now = at_of(track, at);
                if gathering.select_face(1, std::slice::from_ref(&observation), &now).is_some() {
                    gathering.add(template(x, y), &GOOD, &settings, &now);
                }
            }
            assert_eq!(gathering.finished(&observation, 40.0).is_some(), believed);
        }
    }

    fn at_of(track: u64, sample: usize) -> Stamp {
        at(track * 10_000 + sample as u64 * 1000)
    }

    #[test]
    fn presentation_attack_is_not_enrolled() {
        let settings = settings();
        for (mode, presentation, eyes, expected) in [
            (PadMode::Off, Presentation::Unjudged, 40.0, true),
            (PadMode::Flag, Presentation::Live, 40.0, true),
            (PadMode::Flag, Presentation::Unjudged, 40.0, false),
            (PadMode::Flag, Presentation::Unjudged, 10.0, true),
            (PadMode::Enforce, Presentation::Unjudged, 10.0, false),
            (PadMode::Enforce, Presentation::Live, 40.0, true),
        ] {
            let mut gathering = Gathering::new(1, pad(mode));
            let observation = observation(1, presentation);
            assert!(gathering.select_face(1, std::slice::from_ref(&observation), &at(0)).is_some());
            gathering.add(template(1.0, 0.0), &GOOD, &settings, &at(0));
            assert_eq!(
                gathering.finished(&observation, eyes).is_some(),
                expected,
                "{mode:?} {presentation:?} {eyes}"
            );
        }
        let mut gathering = Gathering::new(1, pad(PadMode::Flag));
        assert!(
            gathering.select_face(1, &[observation(1, Presentation::Attack)], &at(0)).is_none()
        );
        assert_eq!(gathering.tally().get("attack"), Some(&1));
    }
}
