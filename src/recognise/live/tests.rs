use std::sync::Arc;

use super::*;
use crate::ids::{Name, SubjectId};
use crate::recognise::align::REFERENCE_POINTS;
use crate::recognise::decision::ThresholdRule;
use crate::recognise::face::{Embedder, Point, Template, Threshold};
use crate::recognise::gallery::Subject;

const SIDE: usize = 640;
const FACE: usize = 60;
const PEOPLE: usize = 16;

/// Finds scripted faces. A face's shade determines its subject, and so its template and PAD score.
struct Scripted {
    faces: Vec<Detection>,
    liveness: f32,
    detections: usize,
}

impl FaceEngine for Scripted {
    fn detect(&mut self, _: &Picture, _: DetectorInput) -> Result<Vec<Detection>, EngineError> {
        self.detections += 1;
        Ok(self.faces.clone())
    }
    fn refine(&mut self, _: &Picture, detection: &Detection) -> Result<Detection, EngineError> {
        Ok(*detection)
    }
    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        let person = usize::from(sample.picture.clamped(56, 70)[0]) / 10;
        Ok(Template::normalised((0..PEOPLE).map(|n| if n == person { 1.0 } else { 0.0 }).collect()))
    }
    fn liveness(&mut self, _: &Picture, _: &Detection) -> Result<Option<f32>, EngineError> {
        Ok(Some(self.liveness))
    }
    fn complete(&mut self, _: &Sample, template: Template) -> Result<Template, EngineError> {
        Ok(template)
    }
    fn embedder(&self) -> Embedder {
        unreachable!("nobody asks")
    }
}

/// A face in the nth of the places, four in a row.
fn face(place: usize) -> Detection {
    face_at(place % 4 * 150, place / 4 * 150, FACE)
}

fn face_at(left: usize, top: usize, side: usize) -> Detection {
    let left = left as f32;
    let top = top as f32;
    let side = side as f32;
    let scale = side / 112.0;
    let points = REFERENCE_POINTS.map(|p| Point { x: left + p.x * scale, y: top + p.y * scale });
    let bounding_box = BoundingBox { left, top, right: left + side, bottom: top + side };
    Detection { bounding_box, confidence: 0.9, landmarks: Landmarks::from_points(points) }
}

/// The first so many places show person 0, 1, 2, …
fn frame(ms: u64, faces: usize) -> Frame {
    let mut rgb = vec![255; SIDE * SIDE * 3];
    for place in 0..faces {
        let left = place % 4 * 150;
        let top = place / 4 * 150;
        for y in top..top + FACE {
            let from = (y * SIDE + left) * 3;
            rgb[from..from + FACE * 3].fill(place as u8 * 10 + 5);
        }
    }
    frame_of(ms, rgb)
}

fn frame_of(ms: u64, rgb: Vec<u8>) -> Frame {
    let taken = Stamp { wall_ms: 0, boottime_ms: ms, trusted: true };
    Frame {
        seq: 0,
        taken,
        media_ms: ms,
        pixels: Arc::new(Picture::from_rgb(SIDE, SIDE, rgb).unwrap()),
    }
}

fn settings(mode: PadMode) -> LiveSettings {
    let rule = ThresholdRule {
        threshold: 0.5,
        subjects: 1.0,
        per_decade: 0.0,
        fpir: 0.01,
        fixed: Threshold::new(0.5),
    };
    let lost_after = Duration::from_millis(700);
    LiveSettings {
        detector_input: DetectorInput::Small,
        track: TrackSettings { lost_after, overlap_min: 0.3 },
        decision: DecisionSettings {
            threshold: rule,
            early_exit: None,
            samples_min: 3,
            early_margin: 0.1,
            margin_min: 0.02,
            unknown_samples: 5,
            length_min: 0.0,
        },
        probe: QualityBounds {
            eye_distance_px_min: 6.0,
            luma_min: 0.0,
            luma_max: 255.0,
            sharpness_min: 0.0,
            yaw_max: 1.0,
            pitch_max: 1.0,
        },
        confidence_min: 0.6,
        recheck_after: Duration::from_millis(500),
        same_person_min: 0.3,
        pad: PadSettings { mode, threshold: 0.4, samples: 2, eye_distance_px_min: 6.0 },
        pace: PaceSettings { idle_every: Duration::from_millis(100), lost_after },
    }
}

/// Everybody whose number is even is enrolled.
fn gallery() -> Gallery {
    (0..PEOPLE).step_by(2).fold(Gallery::new(PEOPLE), |gallery, n| {
        let subject =
            Subject { id: SubjectId::new(&n.to_string()).unwrap(), name: Name::new("N").unwrap() };
        gallery.with(
            subject,
            &[Template::normalised((0..PEOPLE).map(|it| f32::from(u8::from(it == n))).collect())
                .unwrap()],
        )
    })
}

#[derive(Debug, Default)]
struct Played {
    identified: Vec<String>,
    unknown: usize,
    attacks: Vec<bool>,
    too_far: usize,
    templates: Vec<usize>,
    detections: usize,
}

/// Ten frames a second with so many faces, then an empty scene until the tracks have ended.
fn play(settings: LiveSettings, faces: usize, liveness: f32, frames: u64) -> Played {
    let mut engine = Scripted { faces: (0..faces).map(face).collect(), liveness, detections: 0 };
    let mut live = Live::new(settings);
    let gallery = gallery();
    let mut played = Played::default();
    for n in 0..frames + 10 {
        let shown = if n < frames { faces } else { 0 };
        engine.faces.truncate(shown);
        let report =
            live.process(&mut engine, &gallery, &frame(n * 100, shown), Duration::ZERO).unwrap();
        assert!(report.failed.is_none());
        for outcome in &report.outcomes {
            match &outcome.decision {
                Decision::Identified(it) => played.identified.push(it.subject.id.to_string()),
                Decision::Unknown { .. } => played.unknown += 1,
                Decision::Undecided => unreachable!("undecided is no news"),
            }
        }
        played.attacks.extend(report.attacks.iter().map(|attack| attack.enforced));
        played.too_far += report.too_far;
        played.templates.push(report.templates);
    }
    played.identified.sort();
    played.detections = engine.detections;
    played
}

/// One place at the top, frame by frame ten times a second: who is there, how far to the right, and
/// how large.
struct TestPlace {
    engine: Scripted,
    live: Live,
    gallery: Gallery,
    frames: u64,
    /// Time between two frames.
    frame_ms: u64,
    identified: Vec<String>,
    templates: usize,
}

impl TestPlace {
    fn new(settings: LiveSettings) -> Self {
        let engine = Scripted { faces: Vec::new(), liveness: 0.9, detections: 0 };
        let live = Live::new(settings);
        let gallery = gallery();
        Self {
            engine,
            live,
            gallery,
            frames: 0,
            frame_ms: 100,
            identified: Vec::new(),
            templates: 0,
        }
    }

    fn show(&mut self, person: usize, left: usize, side: usize) {
        let mut rgb = vec![255; SIDE * SIDE * 3];
        for y in 0..side {
            let from = (y * SIDE + left) * 3;
            rgb[from..from + side * 3].fill(person as u8 * 10 + 5);
        }
        self.engine.faces = vec![face_at(left, 0, side)];
        self.process(rgb);
    }

    fn show_nobody(&mut self) {
        self.engine.faces.clear();
        self.process(vec![255; SIDE * SIDE * 3]);
    }

    fn process(&mut self, rgb: Vec<u8>) {
        let frame = frame_of(self.frames * self.frame_ms, rgb);
        self.frames += 1;
        let report =
            self.live.process(&mut self.engine, &self.gallery, &frame, Duration::ZERO).unwrap();
        self.templates += report.templates;
        for outcome in report.outcomes {
            if let Decision::Identified(it) = outcome.decision {
                self.identified.push(it.subject.id.to_string());
            }
        }
    }
}

#[test]
fn live_verdict_does_not_cover_earlier_face() {
    let mut enforced = settings(PadMode::Enforce);
    // Too far away to be judged at 52 pixels a side, and not at 60.
    enforced.pad.eye_distance_px_min = 17.5;
    for (other, expected) in [(1, vec![]), (2, vec!["2"])] {
        let mut place = TestPlace::new(enforced);
        (0..5).for_each(|_| place.show(0, 0, 52));
        assert_eq!(place.identified, [] as [&str; 0]);
        (0..10).for_each(|_| place.show(other, 0, 60));
        assert_eq!(place.identified, expected);
    }
    let mut place = TestPlace::new(enforced);
    (0..5).for_each(|_| place.show(0, 0, 52));
    (0..5).for_each(|_| place.show(0, 0, 60));
    assert_eq!(place.identified, ["0"], "who comes nearer is found live");
}

#[test]
fn replaced_face_is_noticed_within_two_frames() {
    let mut settings = settings(PadMode::Flag);
    settings.recheck_after = Duration::from_mins(1);
    // The next stands a little to the side, or a moment passes, or both.
    for (left, gap) in [(20, 0), (0, 1), (20, 3)] {
        let mut place = TestPlace::new(settings);
        (0..2).for_each(|_| place.show(0, 0, 60));
        (0..gap).for_each(|_| place.show_nobody());
        (0..2).for_each(|_| place.show(2, left, 60));
        assert_eq!(place.identified, ["0", "2"], "{left} to the side, {gap} frames later");
    }
}

#[test]
fn face_replaced_in_place_is_noticed() {
    let mut place = TestPlace::new(settings(PadMode::Flag));
    (0..5).for_each(|_| place.show(0, 0, 60));
    (0..8).for_each(|_| place.show(2, 0, 60));
    assert_eq!(place.identified, ["0", "2"]);
}

#[test]
fn moving_decided_face_costs_few_templates() {
    let mut place = TestPlace::new(settings(PadMode::Flag));
    (0..24).for_each(|step| place.show(0, step * 20, 60));
    assert_eq!(place.identified, ["0"]);
    assert!(place.templates <= 13, "{}", place.templates);
}

#[test]
fn live_face_is_identified_once() {
    for mode in [PadMode::Off, PadMode::Flag, PadMode::Enforce] {
        let played = play(settings(mode), 1, 0.9, 30);
        assert_eq!((played.identified, played.attacks), (vec!["0".to_owned()], vec![]), "{mode:?}");
    }
}

#[test]
fn attack_is_flagged_or_withheld() {
    let off = play(settings(PadMode::Off), 1, 0.1, 30);
    assert_eq!((off.identified.len(), off.attacks), (1, vec![]));
    let flag = play(settings(PadMode::Flag), 1, 0.1, 30);
    assert_eq!((flag.identified.len(), flag.attacks), (1, vec![false]));
    let enforce = play(settings(PadMode::Enforce), 1, 0.1, 30);
    assert_eq!((enforce.identified.len(), enforce.attacks), (0, vec![true]));
}

#[test]
fn face_too_small_for_pad_stays_unjudged() {
    let mut small = settings(PadMode::Enforce);
    small.pad.eye_distance_px_min = 30.0;
    let played = play(small, 1, 0.1, 30);
    assert_eq!((played.identified.len(), played.attacks), (0, vec![]));
    small.pad.mode = PadMode::Flag;
    let played = play(small, 1, 0.1, 30);
    assert_eq!((played.identified.len(), played.attacks), (1, vec![]));
}

#[test]
fn unknown_face_can_be_an_attack() {
    let played = play(settings(PadMode::Flag), 2, 0.1, 30);
    assert_eq!((played.identified.len(), played.unknown, played.attacks.len()), (1, 1, 2));
}

#[test]
fn crowd_shares_template_budget() {
    let played = play(settings(PadMode::Off), 16, 0.9, 30);
    assert_eq!((played.identified.len(), played.unknown), (8, 8));
    assert_eq!(played.templates.iter().max(), Some(&TEMPLATES_PER_FRAME));
    // Five samples for each stranger and two for everybody else, and then not two a second within
    // these three seconds.
    let all: usize = played.templates.iter().sum();
    assert!((16 * 2 + 8 * 3..=120).contains(&all), "{all}");
}

#[test]
fn frames_of_fast_camera_are_no_samples() {
    let mut place = TestPlace::new(settings(PadMode::Off));
    place.frame_ms = 20;
    // A stranger, in a quarter of a second.
    (0..13).for_each(|_| place.show(1, 0, 60));
    assert_eq!(place.templates, 5);
    // Ten frames a second are further apart than that.
    let mut usual = TestPlace::new(settings(PadMode::Off));
    (0..5).for_each(|_| usual.show(1, 0, 60));
    assert_eq!(usual.templates, 5);
}

#[test]
fn too_distant_face_is_only_counted() {
    let mut far = settings(PadMode::Flag);
    far.probe.eye_distance_px_min = 30.0;
    let played = play(far, 2, 0.9, 30);
    assert_eq!((played.identified.len(), played.unknown, played.too_far), (0, 0, 2));
}

#[test]
fn still_decided_face_costs_little() {
    let played = play(settings(PadMode::Flag), 1, 0.9, 100);
    // Two samples, then less than two in a second.
    assert!((2..=20).contains(&played.templates.iter().sum::<usize>()), "{:?}", played.templates);
    assert!(played.detections < 60, "{}", played.detections);
}

#[test]
fn observations_are_those_of_the_last_detection() {
    let mut place = TestPlace::new(settings(PadMode::Off));
    place.show(0, 100, 120);
    assert_eq!(place.live.observations().len(), 1);
    // Its track goes on for a moment, but the face is not in this frame.
    place.show_nobody();
    assert_eq!(place.live.observations().len(), 0);
    place.show(0, 100, 120);
    assert_eq!(place.live.observations().len(), 1);
}
