//! Samples of the next person who is alone before the camera: good ones, of one face, apart in
//! time, and of different views of it. Frames of one view are worth little more than one of them.
//!
//! Only computes. The inference thread supplies the frames, and the command handler closes it when
//! its time is up.

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

/// A person who does not show another view for so long will not; a guess, some three times what
/// following one request takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// From this yaw on (`Quality::yaw`, in eye distances; about 0.5 at 45°) a head is turned a little.
/// A guess: about 15°, within what is accepted of a reference by default (0.6).
const TURNED_MIN: f32 = 0.15;

/// A face is nearer when it is so many times as large as at first: from two metres to a metre and a
/// half. A guess.
const NEARER_MIN: f32 = 1.3;

/// What a sample can add to those before it. Left and right are those of the person.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FaceView {
    Straight,
    Left,
    Right,
    Nearer,
}

impl FaceView {
    /// In the order in which a person is asked for them.
    const ALL: [Self; 4] = [Self::Straight, Self::Left, Self::Right, Self::Nearer];

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether a sample shows this view, where the face was `first_eye_distance_px` large at first.
    fn is_shown(self, quality: &Quality, first_eye_distance_px: f32) -> bool {
        match self {
            Self::Straight => quality.yaw.abs() < TURNED_MIN,
            // Who turns to their left moves their nose to the right of the picture.
            Self::Left => quality.yaw >= TURNED_MIN,
            Self::Right => quality.yaw <= -TURNED_MIN,
            Self::Nearer => quality.eye_distance_px >= NEARER_MIN * first_eye_distance_px,
        }
    }
}

/// The number of unusable frames by reason, reported when nobody could be enrolled in time.
pub type Tally = BTreeMap<&'static str, u32>;

/// What the command handler and the inference thread know of each other.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Why frames were of no use so far.
    pub tally: Tally,
    /// Set by the handler when the time is up: what there is must do.
    pub is_closing: bool,
}

/// What was gathered.
#[derive(Debug)]
pub struct Gathered {
    pub samples: Vec<Judged>,
    /// The views that were asked for in vain.
    pub missing: Vec<FaceView>,
}

#[derive(Debug)]
struct GatheredSample {
    template: Template,
    rank: f32,
    /// The view for which it was taken; `None` for one more of a view that was there already.
    view: Option<FaceView>,
}

#[derive(Debug)]
pub struct Gathering {
    wanted: usize,
    pad: PadSettings,
    track: Option<u64>,
    /// Two faces were found within this track: its verdict may be the other's.
    mixed: bool,
    samples: Vec<GatheredSample>,
    first_eye_distance_px: f32,
    last: Option<Stamp>,
    /// When the last view was added.
    advanced: Option<Stamp>,
    /// Whether the face was judged as an enrolment needs it, when it was last seen.
    is_judged: bool,
    /// Another face took the place of one of which there is enough.
    has_left: bool,
    tally: Tally,
}

impl Gathering {
    /// Gathers so many samples, and as many views as there are samples: of one sample, any.
    pub fn new(wanted: usize, pad: PadSettings) -> Self {
        Self {
            wanted,
            pad,
            track: None,
            mixed: false,
            samples: Vec::new(),
            first_eye_distance_px: 0.0,
            last: None,
            advanced: None,
            is_judged: false,
            has_left: false,
            tally: Tally::new(),
        }
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The views that are not there yet, the next to ask for first.
    pub fn missing(&self) -> Vec<FaceView> {
        let asked = if self.wanted > 1 { self.wanted.min(FaceView::ALL.len()) } else { 0 };
        let is_missing = |view: &FaceView| !self.samples.iter().any(|it| it.view == Some(*view));
        FaceView::ALL[..asked].iter().copied().filter(is_missing).collect()
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
            if self.is_enough() {
                // The person left. They are enrolled with the views that they showed.
                self.has_left = true;
                return None;
            }
            // Somebody else: what was gathered is not theirs.
            self.restart();
            (self.track, self.mixed) = (Some(observation.track_id), false);
        }
        if self.pad.mode != PadMode::Off && observation.presentation == Presentation::Attack {
            self.restart();
            return self.count_unusable("attack");
        }
        let soon = self.last.is_some_and(|last| now.since(&last) < APART);
        (!soon).then_some(observation)
    }

    /// Whether the sample is good, and adds something; if not, its template need not be made.
    pub fn is_useful(
        &mut self,
        stance: Stance,
        quality: &Quality,
        settings: &EnrolSettings,
    ) -> bool {
        match settings.reference.flaw_of(quality, stance < Stance::REFERENCE_MIN) {
            Some(flaw) => self.count_unusable::<()>(flaw.as_str()).is_some(),
            None => self.samples.len() < self.wanted || self.new_view(quality).is_some(),
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
            |it: &GatheredSample| it.template.compare(&template) < settings.same_person_min;
        if self.samples.iter().any(is_other) {
            self.mixed = true;
            self.restart();
        }
        if self.samples.is_empty() {
            self.first_eye_distance_px = quality.eye_distance_px;
        }
        let view = self.new_view(quality);
        if view.is_some() || self.samples.is_empty() {
            self.advanced = Some(*now);
        }
        if self.samples.len() >= self.wanted
            && let Some(spare) = self.samples.iter().position(|it| it.view.is_none())
        {
            self.samples.remove(spare);
        }
        self.samples.push(GatheredSample { template, rank: quality::rank(quality), view });
        self.last = Some(*now);
    }

    /// Returns what was gathered of a face that was found live, or is too small to be judged, when
    /// nothing is missing or the person shows no more views.
    pub fn finished(
        &mut self,
        observation: &FaceObservation,
        eye_distance_px: f32,
        now: &Stamp,
    ) -> Option<Gathered> {
        if self.has_left {
            return self.closed();
        }
        self.is_judged = match (self.pad.mode, observation.presentation) {
            (PadMode::Off, _) | (_, Presentation::Live) if !self.mixed => true,
            (PadMode::Flag, Presentation::Unjudged) => {
                eye_distance_px < self.pad.eye_distance_px_min
            }
            _ => false,
        };
        let waited = self.advanced.map(|it| now.since(&it)).unwrap_or_default();
        let has_all = self.missing().is_empty() || waited >= PATIENCE;
        if self.samples.len() < self.wanted || !has_all {
            return None;
        }
        if !self.is_judged {
            return self.count_unusable("not_live");
        }
        self.closed()
    }

    /// Whether there are as many samples as were asked for, of a face that was judged.
    fn is_enough(&self) -> bool {
        self.samples.len() >= self.wanted && self.is_judged
    }

    /// Returns what there is when the time is up; `None` when that is nothing.
    pub fn closed(&mut self) -> Option<Gathered> {
        if self.samples.is_empty() || !self.is_judged {
            return None;
        }
        let missing = self.missing();
        let accepted =
            |it: GatheredSample| Judged::Accepted { template: it.template, quality: it.rank };
        let samples = std::mem::take(&mut self.samples).into_iter().map(accepted).collect();
        Some(Gathered { samples, missing })
    }

    /// The missing view that this sample shows, if any.
    fn new_view(&self, quality: &Quality) -> Option<FaceView> {
        let first =
            if self.samples.is_empty() { f32::INFINITY } else { self.first_eye_distance_px };
        self.missing().into_iter().find(|it| it.is_shown(quality, first))
    }

    fn restart(&mut self) {
        (self.samples, self.last, self.is_judged) = (Vec::new(), None, false);
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

    /// So much turned, and of this size.
    fn turned(yaw: f32, eye_distance_px: f32) -> Quality {
        Quality { eye_distance_px, yaw, ..GOOD }
    }

    /// Shows Ann a frame, 0.4 s after the one before.
    fn show(gathering: &mut Gathering, quality: &Quality, frame: u64) -> Option<Gathered> {
        let ann = observation(1, Presentation::Live);
        let settings = settings();
        let now = at(frame * 400);
        if gathering.select_face(1, std::slice::from_ref(&ann), &now).is_some()
            && gathering.is_useful(Stance::SURE, quality, &settings)
        {
            gathering.add(template(1.0, 0.0), quality, &settings, &now);
        }
        gathering.finished(&ann, 40.0, &now)
    }

    #[test]
    fn enrolment_gathers_one_person_alone() {
        let mut gathering = Gathering::new(1, pad(PadMode::Flag));
        let settings = settings();
        let ann = observation(1, Presentation::Live);
        let bob = observation(2, Presentation::Live);
        assert!(
            gathering.select_face(0, std::slice::from_ref(&ann), &at(0)).is_none(),
            "the observation is of an earlier frame"
        );
        assert!(gathering.select_face(2, &[ann.clone(), bob.clone()], &at(10)).is_none());
        assert!(gathering.select_face(1, std::slice::from_ref(&ann), &at(20)).is_some());
        assert!(!gathering.is_useful(Stance::SURE, &Quality { luma: 10.0, ..GOOD }, &settings));
        assert!(!gathering.is_useful(Stance::PROBE_MIN, &GOOD, &settings));
        assert!(gathering.is_useful(Stance::SURE, &GOOD, &settings));
        gathering.add(template(1.0, 0.0), &GOOD, &settings, &at(20));
        assert!(
            gathering.select_face(1, std::slice::from_ref(&ann), &at(100)).is_none(),
            "too soon"
        );
        // Another track: what there was is not theirs.
        assert!(gathering.select_face(1, std::slice::from_ref(&bob), &at(400)).is_some());
        assert!(gathering.finished(&bob, 40.0, &at(400)).is_none());
        gathering.add(template(0.0, 1.0), &GOOD, &settings, &at(400));
        assert_eq!(gathering.finished(&bob, 40.0, &at(400)).unwrap().samples.len(), 1);
        assert_eq!(
            format_tally(gathering.tally()),
            "dark in 1 frames, no_face in 1 frames, several_faces in 1 frames, turned in 1 frames"
        );
    }

    #[test]
    fn enrolment_collects_different_views() {
        use FaceView::{Left, Nearer, Right, Straight};
        let mut gathering = Gathering::new(4, pad(PadMode::Flag));
        assert_eq!(gathering.missing(), [Straight, Left, Right, Nearer]);
        for frame in 0..4 {
            assert!(show(&mut gathering, &GOOD, frame).is_none());
        }
        assert_eq!(gathering.missing(), [Left, Right, Nearer], "frames of one view");
        assert!(show(&mut gathering, &turned(-0.2, 40.0), 4).is_none());
        assert_eq!(gathering.missing(), [Left, Nearer]);
        assert!(show(&mut gathering, &turned(0.0, 53.0), 5).is_none());
        assert!(show(&mut gathering, &turned(-0.2, 53.0), 6).is_none(), "nothing new");
        let gathered = show(&mut gathering, &turned(0.2, 40.0), 7).unwrap();
        assert_eq!((gathered.samples.len(), gathered.missing), (4, vec![]));
    }

    #[test]
    fn enrolment_reports_missing_views() {
        // Too impatient a person: after ten seconds without another view.
        let mut gathering = Gathering::new(3, pad(PadMode::Flag));
        let last = (0..60).find_map(|n| show(&mut gathering, &GOOD, n).map(|it| (n, it))).unwrap();
        assert_eq!((last.0, last.1.samples.len()), (25, 3));
        assert_eq!(last.1.missing, [FaceView::Left, FaceView::Right]);
        // The time is up before there are three samples.
        let mut gathering = Gathering::new(3, pad(PadMode::Flag));
        assert!(gathering.closed().is_none());
        assert!(show(&mut gathering, &GOOD, 0).is_none());
        let closed = gathering.closed().unwrap();
        assert_eq!(closed.samples.len(), 1);
        assert_eq!(closed.missing, [FaceView::Left, FaceView::Right]);
        // The person leaves when there are as many samples as were asked for, and another comes.
        let mut gathering = Gathering::new(2, pad(PadMode::Flag));
        assert!((0..3).all(|frame| show(&mut gathering, &GOOD, frame).is_none()));
        let bob = observation(2, Presentation::Unjudged);
        assert!(gathering.select_face(1, std::slice::from_ref(&bob), &at(1300)).is_none());
        let left = gathering.finished(&bob, 40.0, &at(1300)).unwrap();
        assert_eq!((left.samples.len(), left.missing), (2, vec![FaceView::Left]));
        // One sample is asked for: whatever it shows.
        let mut gathering = Gathering::new(1, pad(PadMode::Flag));
        assert!(show(&mut gathering, &turned(0.2, 40.0), 0).unwrap().missing.is_empty());
    }

    #[test]
    fn pad_verdict_needs_single_face_track() {
        let mut gathering = Gathering::new(1, pad(PadMode::Enforce));
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
            assert_eq!(
                gathering.finished(&observation, 40.0, &at_of(track, 3)).is_some(),
                believed
            );
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
                gathering.finished(&observation, eyes, &at(0)).is_some(),
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
