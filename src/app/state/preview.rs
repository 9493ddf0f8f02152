//! The preview: boxes, scores and decisions of the newest frame, for `rollcall watch`, `rollcall
//! snapshot` and the local page. Names are included on request only. Pixels leave the daemon only
//! in a snapshot or as the page's picture.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::enrol::camera::FaceView;
use crate::health::{self, Health};
use crate::recognise::attention::FrameAction;
use crate::recognise::decision::Decision;
use crate::recognise::frame::{Frame, Pixels};
use crate::recognise::live::FaceObservation;
use crate::recognise::quality::Flaw;

/// The newest frame, for the clients that are connected. Empty while there are none.
pub type PreviewFeed = watch::Sender<Option<Arc<PreviewFrame>>>;

/// A frame with the faces in it. They were found in these pixels, or in earlier ones from which
/// these do not differ.
#[derive(Debug)]
pub struct PreviewFrame {
    pub seq: u64,
    pub at_ms: i64,
    pub pixels: Arc<dyn Pixels>,
    pub attention: FrameAction,
    pub observations: Vec<FaceObservation>,
    /// What the person is asked to show who is enrolled from the camera.
    pub wanted_view: Option<FaceView>,
}

impl PreviewFrame {
    pub fn new(
        frame: &Frame,
        attention: FrameAction,
        observations: Vec<FaceObservation>,
        wanted_view: Option<FaceView>,
    ) -> Self {
        let seq = frame.seq;
        let at_ms = frame.taken.wall_ms;
        let pixels = Arc::clone(&frame.pixels);
        Self { seq, at_ms, pixels, attention, observations, wanted_view }
    }
}

/// A frame's preview as JSON, on the socket and in the page's event stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreviewMessage {
    /// The frame's number; `None` while the camera delivers none.
    pub frame: Option<u64>,
    pub at: Option<String>,
    pub width: usize,
    pub height: usize,
    /// `full`: the detector ran; `still`: nothing had changed; `passed`: the frame was skipped.
    pub attention: String,
    pub faces: Vec<PreviewFace>,
    /// While somebody is enrolled from the camera, the view to show next: `straight`, `left`,
    /// `right` or `nearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_view: Option<FaceView>,
    pub camera: String,
    /// The step of the thermal slow-down; 0 is full speed.
    pub pace_step: u64,
    pub cpu_celsius: Option<f32>,
    pub counts: PreviewCounts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreviewFace {
    pub track: u64,
    /// Left, top, right, bottom, in pixels.
    #[serde(rename = "box")]
    pub outline: [f32; 4],
    pub landmarks: [[f32; 2]; 5],
    pub confidence: f32,
    /// `undecided`, `identified` or `unknown`.
    pub decision: String,
    /// The identified subject, where names were requested.
    pub subject_id: Option<String>,
    pub name: Option<String>,
    pub score: Option<f32>,
    pub threshold: Option<f32>,
    pub samples: usize,
    /// Why the last sample is poor: `too_small`, `dark`, `overexposed`, `blurred` or `turned`.
    pub flaw: Option<String>,
    pub liveness: Option<f32>,
    /// `unjudged`, `live` or `attack`.
    pub presentation: String,
}

/// PreviewCounts since the start of the daemon.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PreviewCounts {
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

/// Describes a frame; without one, the state of camera and processor.
pub fn preview_message(
    frame: Option<&PreviewFrame>,
    health: &Health,
    names: bool,
) -> PreviewMessage {
    let (width, height) = frame.map_or((0, 0), |frame| frame.pixels.size());
    PreviewMessage {
        frame: frame.map(|frame| frame.seq),
        at: frame.map(|frame| crate::clock::rfc3339(frame.at_ms)),
        width,
        height,
        attention: frame.map_or("passed", |frame| frame.attention.as_str()).to_owned(),
        faces: frame.map_or(Vec::new(), |frame| {
            frame.observations.iter().map(|observation| preview_face(observation, names)).collect()
        }),
        wanted_view: frame.and_then(|frame| frame.wanted_view),
        camera: health.camera_state().as_str().to_owned(),
        pace_step: health.recognition.pace_step.get(),
        cpu_celsius: health::cpu_celsius(),
        counts: PreviewCounts {
            captured: health.camera.frames_captured.get(),
            replaced: health.camera.frames_replaced.get(),
            analysed: health.camera.frames_analysed.get(),
            detected: health.camera.frames_detected.get(),
            templates: health.recognition.templates.get(),
            identified: health.recognition.identified.get(),
            unknown: health.recognition.unknown.get(),
            attacks: health.recognition.attacks.get(),
            too_far: health.recognition.too_far.get(),
            recorded: health.recorded.get(),
        },
    }
}

fn preview_face(observation: &FaceObservation, names: bool) -> PreviewFace {
    let outline = &observation.bounding_box;
    let (decision, score, threshold) = match &observation.decision {
        Decision::Identified(it) => ("identified", Some(it.score), Some(it.threshold)),
        Decision::Unknown { best_score, threshold, .. } => {
            ("unknown", *best_score, Some(*threshold))
        }
        Decision::Undecided => ("undecided", None, None),
    };
    let subject = match &observation.decision {
        Decision::Identified(it) if names => Some(&it.subject),
        _ => None,
    };
    PreviewFace {
        track: observation.track_id,
        outline: [outline.left, outline.top, outline.right, outline.bottom],
        landmarks: observation.landmarks.points().map(|point| [point.x, point.y]),
        confidence: observation.confidence,
        decision: decision.to_owned(),
        subject_id: subject.map(|subject| subject.id.to_string()),
        name: subject.map(|subject| subject.name.as_str().to_owned()),
        score,
        threshold,
        samples: observation.samples,
        flaw: observation.flaw.map(Flaw::as_str).map(str::to_owned),
        liveness: observation.liveness,
        presentation: observation.presentation.as_str().to_owned(),
    }
}
