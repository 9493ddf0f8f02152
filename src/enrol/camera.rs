//! Samples of the next person who is alone before the camera: good ones, of one face, apart in time.
//!
//! Only computes; the inference thread shows it frames, and whoever asked says when it has taken too long.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EnrolSettings, Judged};
use crate::clock::Stamp;
use crate::recognise::face::Template;
use crate::recognise::live::Sight;
use crate::recognise::pad::{PadMode, PadSettings, Presentation};
use crate::recognise::quality::{self, Quality};

/// Samples closer together show the same light and the same pose.
const APART: Duration = Duration::from_millis(300);

/// How many frames were of no use, and why: told when nobody could be enrolled in time.
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

    /// The face of this frame to look at closely, if there is one. `faces` is how many the frame has, `sights` those that
    /// are followed.
    pub fn regard<'a>(
        &mut self,
        faces: usize,
        sights: &'a [Sight],
        now: &Stamp,
    ) -> Option<&'a Sight> {
        let sight = match (faces, sights) {
            (0, _) | (_, []) => return self.of_no_use("no_face"),
            (1, [sight]) => sight,
            _ => return self.of_no_use("several_faces"),
        };
        if self.track != Some(sight.track_id) {
            // Somebody else: what was gathered is not theirs.
            self.begin_again();
            (self.track, self.mixed) = (Some(sight.track_id), false);
        }
        if self.pad.mode != PadMode::Off && sight.presentation == Presentation::Attack {
            self.begin_again();
            return self.of_no_use("attack");
        }
        let soon = self.last.is_some_and(|last| now.since(&last) < APART);
        (!soon && self.samples.len() < self.wanted).then_some(sight)
    }

    /// What the sample is worth; `false` if its template need not be made.
    pub fn is_good(&mut self, quality: &Quality, settings: &EnrolSettings) -> bool {
        match settings.reference.flaw(quality) {
            Some(flaw) => self.of_no_use::<()>(flaw.as_str()).is_some(),
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
            self.begin_again();
        }
        self.samples.push((template, quality::rank(quality)));
        self.last = Some(*now);
    }

    /// The samples, when there are enough of a face that is found live, or that is too small for that to be told.
    pub fn finished(&mut self, sight: &Sight, eye_distance_px: f32) -> Option<Vec<Judged>> {
        if self.samples.len() < self.wanted {
            return None;
        }
        let judged = match (self.pad.mode, sight.presentation) {
            (PadMode::Off, _) | (_, Presentation::Live) if !self.mixed => true,
            (PadMode::Flag, Presentation::Unjudged) => {
                eye_distance_px < self.pad.eye_distance_px_min
            }
            _ => false,
        };
        if !judged {
            return self.of_no_use("not_live");
        }
        let accepted = |(template, quality)| Judged::Accepted { template, quality };
        Some(std::mem::take(&mut self.samples).into_iter().map(accepted).collect())
    }

    fn begin_again(&mut self) {
        (self.samples, self.last) = (Vec::new(), None);
    }

    fn of_no_use<T>(&mut self, why: &'static str) -> Option<T> {
        *self.tally.entry(why).or_default() += 1;
        None
    }
}

/// `several_faces in 12 frames, no_face in 3`, the most frequent first.
pub fn told(tally: &Tally) -> String {
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

    fn sight(track_id: u64, presentation: Presentation) -> Sight {
        Sight {
            track_id,
            bounding_box: BoundingBox::default(),
            landmarks: Landmarks::default(),
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
        use crate::recognise::decision::ThresholdRule;
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
            threshold: ThresholdRule {
                threshold: 0.4,
                subjects: 100.0,
                per_decade: 0.1,
                fpir: 0.001,
                fixed: None,
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
    fn one_person_alone_is_gathered_and_nobody_else_mixed_in() {
        let (mut gathering, settings) = (Gathering::new(2, pad(PadMode::Flag)), settings());
        let (ann, bob) = (sight(1, Presentation::Live), sight(2, Presentation::Live));
        assert!(
            gathering.regard(0, std::slice::from_ref(&ann), &at(0)).is_none(),
            "the sight is of an earlier frame"
        );
        assert!(gathering.regard(2, &[ann.clone(), bob.clone()], &at(10)).is_none());
        assert!(gathering.regard(1, std::slice::from_ref(&ann), &at(20)).is_some());
        assert!(!gathering.is_good(&Quality { luma: 10.0, ..GOOD }, &settings));
        assert!(gathering.is_good(&GOOD, &settings));
        gathering.add(template(1.0, 0.0), &GOOD, &settings, &at(20));
        assert!(gathering.finished(&ann, 40.0).is_none());
        assert!(gathering.regard(1, std::slice::from_ref(&ann), &at(100)).is_none(), "too soon");
        // Another track: what there was is not theirs.
        assert!(gathering.regard(1, std::slice::from_ref(&bob), &at(400)).is_some());
        gathering.add(template(0.0, 1.0), &GOOD, &settings, &at(400));
        assert!(gathering.finished(&bob, 40.0).is_none());
        assert!(gathering.regard(1, std::slice::from_ref(&bob), &at(800)).is_some());
        gathering.add(template(0.1, 1.0), &GOOD, &settings, &at(800));
        assert_eq!(gathering.finished(&bob, 40.0).unwrap().len(), 2);
        assert_eq!(
            told(gathering.tally()),
            "dark in 1 frames, no_face in 1 frames, several_faces in 1 frames"
        );
    }

    #[test]
    fn a_verdict_is_not_believed_of_a_track_that_two_faces_shared() {
        let (mut gathering, settings) = (Gathering::new(2, pad(PadMode::Enforce)), settings());
        for (track, believed) in [(1, false), (2, true)] {
            let sight = sight(track, Presentation::Live);
            let faces =
                if believed { [(1.0, 0.0); 3] } else { [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)] };
            for (at, (x, y)) in faces.into_iter().enumerate() {
                let now = at_of(track, at);
                if gathering.regard(1, std::slice::from_ref(&sight), &now).is_some() {
                    gathering.add(template(x, y), &GOOD, &settings, &now);
                }
            }
            assert_eq!(gathering.finished(&sight, 40.0).is_some(), believed);
        }
    }

    fn at_of(track: u64, sample: usize) -> Stamp {
        at(track * 10_000 + sample as u64 * 1000)
    }

    #[test]
    fn a_picture_is_not_enrolled() {
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
            let sight = sight(1, presentation);
            assert!(gathering.regard(1, std::slice::from_ref(&sight), &at(0)).is_some());
            gathering.add(template(1.0, 0.0), &GOOD, &settings, &at(0));
            assert_eq!(
                gathering.finished(&sight, eyes).is_some(),
                expected,
                "{mode:?} {presentation:?} {eyes}"
            );
        }
        let mut gathering = Gathering::new(1, pad(PadMode::Flag));
        assert!(gathering.regard(1, &[sight(1, Presentation::Attack)], &at(0)).is_none());
        assert_eq!(gathering.tally().get("attack"), Some(&1));
    }
}
