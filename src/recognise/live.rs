//! Frames in, decisions out: the loop body of the inference thread.
//!
//! Budget per frame at 640x480 with one undecided face: detect 5 ms, refine 1 ms, align 0.3 ms, embed 12 ms (x86, one
//! thread; `rollcall bench`). A decided face costs the detection only.
//!
//! Invariant: a track reports at most one `Identified` and at most one `Unknown`.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::align;
use crate::recognise::decision::{Decision, DecisionSettings};
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{BoundingBox, Detection};
use crate::recognise::frame::Frame;
use crate::recognise::gallery::Gallery;
use crate::recognise::picture::DecodeError;
use crate::recognise::quality::{self, QualityBounds};
use crate::recognise::track::{Track, TrackSettings, Tracker};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveSettings {
    pub reach: Reach,
    pub track: TrackSettings,
    pub decision: DecisionSettings,
    /// What a sample must have to become a probe.
    pub probe: QualityBounds,
    /// Least detection confidence.
    pub confidence_min: f32,
    /// A decided track is looked at again this often: someone else may have stepped into its place.
    pub recheck_after: Duration,
    /// Score with the track's own earlier samples below which the face is another person's.
    pub same_person_min: f32,
}

/// Something a track came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub track_id: u64,
    pub decision: Decision,
    /// From the track's first frame to the one that decided.
    pub track_age: Duration,
    /// When the frame that decided was taken.
    pub decided_at: Stamp,
    pub liveness: Option<f32>,
    pub bounding_box: BoundingBox,
}

/// What one frame brought.
#[derive(Debug, Default)]
pub struct FrameReport {
    pub faces: usize,
    pub templates: usize,
    pub outcomes: Vec<Outcome>,
    /// A face could not be looked at.
    pub failed: Option<FrameError>,
}

/// Why a frame, or a face of it, could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the frame cannot be decoded")]
    Pixels(#[from] DecodeError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

pub struct Live {
    settings: LiveSettings,
    tracker: Tracker,
}

impl Live {
    pub fn new(settings: LiveSettings) -> Self {
        Self { settings, tracker: Tracker::new(settings.track) }
    }

    /// One frame. A network that fails on one face leaves what was decided of the others in the report.
    pub fn process(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
    ) -> Result<FrameReport, FrameError> {
        self.tracker.end_lost(&frame.media());
        let mut detections = detect(engine, frame, self.settings.reach)?;
        detections.retain(|face| face.confidence >= self.settings.confidence_min);
        let indices = self.tracker.follow(&detections, &frame.media());
        let mut report = FrameReport { faces: detections.len(), ..FrameReport::default() };
        // The tracks' ids, because a restart moves the indices.
        let ids: Vec<u64> = indices.iter().map(|index| self.tracker.tracks()[*index].id).collect();
        for (detection, id) in detections.iter().zip(ids) {
            let Some(index) = self.tracker.tracks().iter().position(|track| track.id == id) else {
                continue;
            };
            if self.wants_template(&self.tracker.tracks()[index], &frame.media()) {
                let sampled = self.sample(engine, gallery, frame, detection, index, &mut report);
                report.failed = report.failed.or(sampled.err());
            }
        }
        Ok(report)
    }

    fn wants_template(&self, track: &Track, now: &Stamp) -> bool {
        match (&track.decision, track.last_template) {
            (Decision::Identified(_) | Decision::Unknown { .. }, Some(last)) => {
                now.since(&last) >= self.settings.recheck_after
            }
            _ => true,
        }
    }

    fn sample(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        detection: &Detection,
        mut index: usize,
        report: &mut FrameReport,
    ) -> Result<(), FrameError> {
        let picture = frame.pixels.full()?;
        let refined = engine.refine(picture, detection)?;
        let Some(sample) = align::align(picture, &refined.landmarks) else {
            return Ok(());
        };
        if self.settings.probe.flaw(&quality::measure(&sample)).is_some() {
            return Ok(());
        }
        let Some(template) = engine.template(&sample)? else {
            return Ok(());
        };
        report.templates += 1;
        let agreement = self.tracker.tracks()[index].evidence.agreement(&template);
        if agreement.is_some_and(|score| score < self.settings.same_person_min) {
            self.tracker.restart(index, &frame.media());
            index = self.position_of_newest();
        }
        let liveness = engine.liveness(picture, &refined)?;
        let settings = self.settings.decision;
        let track = self.tracker.track_mut(index);
        track.evidence.add(template);
        track.last_template = Some(frame.media());
        track.liveness.extend(liveness);
        let decision = track.evidence.decide(gallery, &settings);
        if is_news(&track.decision, &decision) {
            track.decision = decision.clone();
            report.outcomes.push(Outcome {
                track_id: track.id,
                decision,
                track_age: frame.media().since(&track.first_seen),
                decided_at: frame.taken,
                liveness: mean(&track.liveness),
                bounding_box: refined.bounding_box,
            });
        }
        Ok(())
    }

    fn position_of_newest(&self) -> usize {
        let tracks = self.tracker.tracks();
        (0..tracks.len()).max_by_key(|index| tracks[*index].id).expect("a track was just begun")
    }
}

/// Faces in the coordinates of the full picture, found on the reduced one.
fn detect(engine: &mut dyn FaceEngine, frame: &Frame, reach: Reach) -> Result<Vec<Detection>, FrameError> {
    let reduced = frame.pixels.reduced(reach.side_px())?;
    let mut detections = engine.detect(&reduced, reach)?;
    let (width, height) = frame.pixels.size();
    let (x, y) = (width as f32 / reduced.width() as f32, height as f32 / reduced.height() as f32);
    for detection in &mut detections {
        detection.scale(x, y);
    }
    Ok(detections)
}

/// A stranger may still turn out to be somebody (they came closer, or were enrolled meanwhile); nobody is identified
/// twice or forgotten.
fn is_news(before: &Decision, now: &Decision) -> bool {
    match (before, now) {
        (_, Decision::Undecided)
        | (Decision::Identified(_), _)
        | (Decision::Unknown { .. }, Decision::Unknown { .. }) => false,
        (_, Decision::Identified(_) | Decision::Unknown { .. }) => true,
    }
}

fn mean(values: &[f32]) -> Option<f32> {
    (!values.is_empty()).then(|| values.iter().sum::<f32>() / values.len() as f32)
}
