//! What the device sees and decides, frame by frame, as `rollcall watch` and `rollcall snapshot` get it: figures and
//! boxes. Names only for who asks for them; no picture but in a snapshot.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::health::{self, Health};
use crate::recognise::attention::Attention;
use crate::recognise::decision::Decision;
use crate::recognise::frame::{Frame, Pixels};
use crate::recognise::live::Sight;
use crate::recognise::quality::Flaw;

/// The newest scene, for whoever watches. Nothing is put in while nobody does.
pub type Scenes = watch::Sender<Option<Arc<Scene>>>;

/// One frame with what is known of the faces in it.
#[derive(Debug)]
pub struct Scene {
    pub seq: u64,
    pub at_ms: i64,
    pub pixels: Arc<dyn Pixels>,
    pub attention: Attention,
    pub sights: Vec<Sight>,
}

impl Scene {
    pub fn new(frame: &Frame, attention: Attention, sights: Vec<Sight>) -> Self {
        let (seq, at_ms, pixels) = (frame.seq, frame.taken.wall_ms, Arc::clone(&frame.pixels));
        Self { seq, at_ms, pixels, attention, sights }
    }
}

/// A scene as it goes over the socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// The frame's number; none when the camera gives no frames.
    pub frame: Option<u64>,
    pub at: Option<String>,
    pub width: usize,
    pub height: usize,
    /// `full`: the detector looked; `still`: nothing had changed; `passed`: the pace is low.
    pub attention: String,
    pub faces: Vec<FaceView>,
    pub camera: String,
    /// 0 is full pace; more is slower, because the processor is hot.
    pub pace_step: u64,
    pub cpu_celsius: Option<f32>,
    pub counts: Counts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaceView {
    pub track: u64,
    /// Left, top, right, bottom, in pixels.
    #[serde(rename = "box")]
    pub outline: [f32; 4],
    pub landmarks: [[f32; 2]; 5],
    pub confidence: f32,
    /// `undecided`, `identified` or `unknown`.
    pub decision: String,
    /// Whose, where names were asked for.
    pub subject_id: Option<String>,
    pub name: Option<String>,
    pub score: Option<f32>,
    pub threshold: Option<f32>,
    pub samples: usize,
    /// What is wrong with the last sample: too_small, dark, overexposed, blurred, turned.
    pub flaw: Option<String>,
    pub liveness: Option<f32>,
    /// `unjudged`, `live` or `attack`.
    pub presentation: String,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub captured: u64,
    pub replaced: u64,
    pub analysed: u64,
    pub detected: u64,
    pub templates: u64,
    pub identified: u64,
    pub unknown: u64,
    pub attacks: u64,
    pub too_far: u64,
    pub recorded: u64,
}

/// The scene in words and figures; without one, the state of things.
pub fn view(scene: Option<&Scene>, health: &Health, names: bool) -> View {
    let (width, height) = scene.map_or((0, 0), |scene| scene.pixels.size());
    View {
        frame: scene.map(|scene| scene.seq),
        at: scene.map(|scene| crate::clock::rfc3339(scene.at_ms)),
        width,
        height,
        attention: scene.map_or("passed", |scene| scene.attention.as_str()).to_owned(),
        faces: scene.map_or(Vec::new(), |scene| {
            scene.sights.iter().map(|sight| face(sight, names)).collect()
        }),
        camera: health.camera().as_str().to_owned(),
        pace_step: health.pace_step.get(),
        cpu_celsius: health::cpu_celsius(),
        counts: Counts {
            captured: health.frames_captured.get(),
            replaced: health.frames_replaced.get(),
            analysed: health.frames_analysed.get(),
            detected: health.frames_detected.get(),
            templates: health.templates_made.get(),
            identified: health.identified.get(),
            unknown: health.unknown.get(),
            attacks: health.attacks.get(),
            too_far: health.too_far.get(),
            recorded: health.recorded.get(),
        },
    }
}

fn face(sight: &Sight, names: bool) -> FaceView {
    let outline = &sight.bounding_box;
    let (decision, score, threshold) = match &sight.decision {
        Decision::Identified(it) => ("identified", Some(it.score), Some(it.threshold)),
        Decision::Unknown { best_score, threshold, .. } => {
            ("unknown", *best_score, Some(*threshold))
        }
        Decision::Undecided => ("undecided", None, None),
    };
    let subject = match &sight.decision {
        Decision::Identified(it) if names => Some(&it.subject),
        _ => None,
    };
    FaceView {
        track: sight.track_id,
        outline: [outline.left, outline.top, outline.right, outline.bottom],
        landmarks: sight.landmarks.points().map(|point| [point.x, point.y]),
        confidence: sight.confidence,
        decision: decision.to_owned(),
        subject_id: subject.map(|subject| subject.id.to_string()),
        name: subject.map(|subject| subject.name.as_str().to_owned()),
        score,
        threshold,
        samples: sight.samples,
        flaw: sight.flaw.map(Flaw::as_str).map(str::to_owned),
        liveness: sight.liveness,
        presentation: sight.presentation.as_str().to_owned(),
    }
}
