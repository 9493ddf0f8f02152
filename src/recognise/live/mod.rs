//! Frames in, decisions out: the loop body of the inference thread.
//!
//! Budget per frame at 640x480 with one undecided face: brightness 0.1 ms, detect 2 ms, refine 0.5
//! ms, align 0.2 ms, embed 2.3 ms, and for its first frames 2 ms of attack detection (x86, one
//! thread; `docs/performance.md`). A decided face costs the detection only, but twice a second or
//! when it jumps a template; an empty scene the brightness only.
//!
//! Invariants: a track reports at most one `Identified`, at most one `Unknown` and at most one
//! attack. With PAD enforced, no subject is reported whose face was not found live.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::align::{self, Sample};
use crate::recognise::attention::{FrameAction, FrameScheduler, PaceSettings, Presence};
use crate::recognise::decision::{Decision, DecisionSettings};
use crate::recognise::engine::{DetectorInput, EngineError, FaceEngine};
use crate::recognise::face::{BoundingBox, Detection, Landmarks};
use crate::recognise::frame::Frame;
use crate::recognise::gallery::Gallery;
use crate::recognise::pad::{PadMode, PadSettings, Presentation};
use crate::recognise::picture::{DecodeError, Picture};
use crate::recognise::quality::{self, Flaw, QualityBounds};
use crate::recognise::stance::Stance;
use crate::recognise::track::{Track, TrackSettings, Tracker};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveSettings {
    pub detector_input: DetectorInput,
    pub track: TrackSettings,
    pub decision: DecisionSettings,
    /// What a sample must have to become a probe.
    pub probe: QualityBounds,
    /// Least detection confidence.
    pub confidence_min: f32,
    /// A decided track is compared again this often, and when its face jumps: someone else may have
    /// stepped into its place.
    pub recheck_after: Duration,
    /// Score with the track's own earlier samples below which the face is another person's.
    pub same_person_min: f32,
    pub pad: PadSettings,
    pub pace: PaceSettings,
}

/// Templates made from one frame. In a crowd, tracks with the fewest samples come first.
const TEMPLATES_PER_FRAME: usize = 8;
/// After this many templates an undecided track is sampled every `SLOW_SAMPLE_INTERVAL` only.
const FAST_TEMPLATES_MAX: usize = 8;
const SLOW_SAMPLE_INTERVAL: Duration = Duration::from_millis(300);
/// Samples of an undecided track that are closer together show the same, unless the face moved: they
/// would count as evidence that they are not. Less than the distance of two frames at ten frames a
/// second, the default, and at fifteen.
const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(60);
/// A decided face that jumped is compared again at once, but at most this often.
const DOUBT_INTERVAL: Duration = Duration::from_millis(150);
/// A sample whose rank is below this share of the track's best one adds noise. It is skipped, unless
/// the last sample is older than `SLOW_SAMPLE_INTERVAL`.
const RANK_SHARE_MIN: f32 = 0.6;
/// A track still undecided after this time no longer keeps the detector running on every frame.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A decision of a track.
#[derive(Clone, Debug)]
pub struct TrackOutcome {
    pub track_id: u64,
    pub decision: Decision,
    /// From the track's first frame to the one that decided.
    pub track_age: Duration,
    /// When the frame that decided was taken.
    pub decided_at: Stamp,
    pub bounding_box: BoundingBox,
}

/// A presentation attack: a track that shows a picture and not a person.
#[derive(Clone, Debug)]
pub struct Attack {
    pub track_id: u64,
    /// Whose face is shown, where it was identified.
    pub decision: Decision,
    pub seen_at: Stamp,
    pub scores: Vec<f32>,
    pub threshold: f32,
    /// Whether the identification is withheld.
    pub enforced: bool,
}

/// The current state of one face in the frame, for the preview and for enrolment.
#[derive(Clone, Debug)]
pub struct FaceObservation {
    pub track_id: u64,
    pub bounding_box: BoundingBox,
    pub landmarks: Landmarks,
    /// As the detector found them, not refined.
    pub detected: Landmarks,
    pub confidence: f32,
    pub decision: Decision,
    pub samples: usize,
    pub flaw: Option<Flaw>,
    pub liveness: Option<f32>,
    pub presentation: Presentation,
}

/// The results of one frame.
#[derive(Debug, Default)]
pub struct FrameReport {
    pub action: FrameAction,
    pub faces: usize,
    pub templates: usize,
    /// Templates that needed the second part of a composite embedder.
    pub completed: usize,
    /// Samples too short to tell a stranger (`DecisionSettings::length_min`).
    pub weak: usize,
    /// Tracks that ended without one good sample because they were too far away.
    pub too_far: usize,
    pub outcomes: Vec<TrackOutcome>,
    pub attacks: Vec<Attack>,
    /// The first error of a single face.
    pub failed: Option<FrameError>,
}

/// Why a frame, or a face in it, could not be processed.
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
    scheduler: FrameScheduler,
    /// When the frame was taken that the detector ran on last.
    detected_at: Option<Stamp>,
}

impl Live {
    pub fn new(settings: LiveSettings) -> Self {
        Self {
            settings,
            tracker: Tracker::new(settings.track),
            scheduler: FrameScheduler::new(settings.pace),
            detected_at: None,
        }
    }

    /// Processes one frame. An error on one face leaves the results of the others in the report.
    /// `slowed` is the least time between two frames that are not skipped.
    pub fn process(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        slowed: Duration,
    ) -> Result<FrameReport, FrameError> {
        let now = frame.media();
        let lost = self.tracker.end_lost(&now);
        let mut report = FrameReport {
            too_far: lost.iter().filter(|it| was_too_far(it)).count(),
            ..Default::default()
        };
        report.action = self.scheduler.decide_action(frame, self.current_presence(&now), slowed)?;
        if report.action != FrameAction::Detect {
            return Ok(report);
        }
        let mut detections = detect_faces(engine, frame, self.settings.detector_input)?;
        self.detected_at = Some(now);
        self.scheduler.note_decoded(frame)?;
        detections.retain(|face| face.confidence >= self.settings.confidence_min);
        report.faces = detections.len();
        let indices = self.tracker.follow(&detections, &now);
        // The tracks' ids, because a restart moves the indices.
        let ids = indices.iter().map(|index| self.tracker.tracks()[*index].id);
        let mut faces: Vec<(u64, Detection)> = ids.zip(detections).collect();
        // The tracks with the fewest templates come first, then the nearest faces.
        faces.sort_by(|(a, near), (b, far)| {
            let templates =
                |id| self.track_index(id).map(|index| self.tracker.tracks()[index].templates);
            templates(*a)
                .cmp(&templates(*b))
                .then(far.bounding_box.area().total_cmp(&near.bounding_box.area()))
        });
        for (id, detection) in faces {
            if report.templates == TEMPLATES_PER_FRAME {
                break;
            }
            let sampled = match self.track_index(id) {
                Some(index) => {
                    self.sample_face(engine, gallery, frame, &detection, index, &mut report)
                }
                None => Ok(()),
            };
            report.failed = report.failed.or(sampled.err());
        }
        Ok(report)
    }

    /// Returns the faces of the last frame that the detector ran on; not those that it missed there,
    /// although their tracks go on.
    pub fn observations(&self) -> Vec<FaceObservation> {
        let Some(detected_at) = self.detected_at else {
            return Vec::new();
        };
        self.tracker
            .tracks()
            .iter()
            .filter(|track| track.last_seen.boottime_ms == detected_at.boottime_ms)
            .map(observe_track)
            .collect()
    }

    fn current_presence(&self, now: &Stamp) -> Presence {
        let tracks = self.tracker.tracks();
        let deciding = |track: &Track| {
            let open = matches!(track.decision, Decision::Undecided) || self.needs_pad(track);
            open && now.since(&track.first_seen) < STUCK_AFTER
        };
        if tracks.is_empty() {
            Presence::Nobody
        } else if tracks.iter().any(deciding) {
            Presence::Deciding
        } else {
            Presence::Settled
        }
    }

    fn track_needs(&self, track: &Track, now: &Stamp) -> Needs {
        let since = track.last_template.map(|last| now.since(&last));
        let template = match &track.decision {
            Decision::Identified(_) | Decision::Unknown { .. } => {
                let doubted = track.doubtful
                    && track.doubt_cleared.is_none_or(|it| now.since(&it) >= DOUBT_INTERVAL);
                doubted || since.is_none_or(|since| since >= self.settings.recheck_after)
            }
            Decision::Undecided => {
                let is_fast = track.templates < FAST_TEMPLATES_MAX;
                let interval = if is_fast { SAMPLE_INTERVAL_MIN } else { SLOW_SAMPLE_INTERVAL };
                (is_fast && track.doubtful) || since.is_none_or(|since| since >= interval)
            }
        };
        Needs { template, liveness: self.needs_pad(track) }
    }

    fn needs_pad(&self, track: &Track) -> bool {
        self.settings.pad.mode != PadMode::Off && track.liveness.verdict() == Presentation::Unjudged
    }

    /// Makes a template and a PAD score of one face, if its track needs them.
    fn sample_face(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        detection: &Detection,
        index: usize,
        report: &mut FrameReport,
    ) -> Result<(), FrameError> {
        let needs = self.track_needs(&self.tracker.tracks()[index], &frame.media());
        if !needs.template && !needs.liveness {
            return Ok(());
        }
        let picture = frame.pixels.full()?;
        let refined = engine.refine(picture, detection)?;
        let Some(sample) = align::align(picture, &refined.landmarks) else {
            return Ok(());
        };
        let measured = quality::measure(&sample);
        let track = self.tracker.track_mut(index);
        track.landmarks = refined.landmarks;
        let is_implausible = Stance::of(detection, &refined) < Stance::PROBE_MIN;
        track.flaw = self.settings.probe.flaw_of(&measured, is_implausible);
        if track.flaw.is_some() {
            return Ok(());
        }
        let rank = quality::rank(&measured);
        let poor = rank < track.best_rank * RANK_SHARE_MIN;
        let recent = track
            .last_template
            .is_some_and(|last| frame.media().since(&last) < SLOW_SAMPLE_INTERVAL);
        if poor && recent {
            return Ok(());
        }
        let score = self.score_liveness(engine, picture, &refined, &sample, index);
        // A PAD score counts only with a template of the same frame: another face may have been put
        // in this one's place.
        if !needs.template && !matches!(score, Ok(Some(_))) {
            score?;
            return Ok(());
        }
        let taken = self.take_template(engine, gallery, frame, &sample, index, rank)?;
        let Some(TakenTemplate { index, is_complete, is_weak }) = taken else {
            return Ok(());
        };
        report.templates += 1;
        report.completed += usize::from(is_complete);
        report.weak += usize::from(is_weak);
        // A face that took the place of a judged one is not judged yet.
        let score = if needs.liveness {
            score
        } else {
            self.score_liveness(engine, picture, &refined, &sample, index)
        };
        if let Ok(Some(score)) = score {
            self.tracker.track_mut(index).liveness.add(score, &self.settings.pad);
        }
        self.report_findings(index, frame, &refined, report);
        score?;
        Ok(())
    }

    /// Adds the sample to what is known of the track, or of a new one when the face has become
    /// another person's; `None` when the model's output is unusable.
    fn take_template(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        sample: &Sample,
        mut index: usize,
        rank: f32,
    ) -> Result<Option<TakenTemplate>, FrameError> {
        let Some(template) = engine.template(sample)? else {
            return Ok(None);
        };
        let agreement = self.tracker.tracks()[index].evidence.agreement(&template);
        if agreement.is_some_and(|score| score < self.settings.same_person_min) {
            self.tracker.restart(index, &frame.media());
            index = self.position_of_newest();
        }
        let settings = self.settings.decision;
        let track = self.tracker.track_mut(index);
        track.evidence.add(template.clone());
        track.templates += 1;
        track.best_rank = track.best_rank.max(rank);
        track.last_template = Some(frame.media());
        if std::mem::take(&mut track.doubtful) && !matches!(track.decision, Decision::Undecided) {
            track.doubt_cleared = Some(frame.media());
        }
        let is_weak = template.length() < settings.length_min;
        let mut is_complete = false;
        let Some(look) = track.evidence.look_first(gallery, &settings) else {
            return Ok(Some(TakenTemplate { index, is_complete, is_weak }));
        };
        // An identification stands: the second part could not change it.
        if !look.is_clear && !matches!(track.decision, Decision::Identified(_)) {
            let complete = engine.complete(sample, template)?;
            is_complete = complete.is_complete();
            track.evidence.complete_newest(complete);
        }
        let decision = track.evidence.decide(look, gallery, &settings);
        if is_news(&track.decision, &decision) {
            track.decision = decision;
            track.unreported = true;
        }
        Ok(Some(TakenTemplate { index, is_complete, is_weak }))
    }

    /// Returns the PAD score, if the track is not judged yet and the face is large enough.
    fn score_liveness(
        &self,
        engine: &mut dyn FaceEngine,
        picture: &Picture,
        refined: &Detection,
        sample: &Sample,
        index: usize,
    ) -> Result<Option<f32>, EngineError> {
        let large_enough = sample.eye_distance_px >= self.settings.pad.eye_distance_px_min;
        if !large_enough || !self.needs_pad(&self.tracker.tracks()[index]) {
            return Ok(None);
        }
        engine.liveness(picture, refined)
    }

    /// Reports a new decision, unless it must wait for a live face, and an attack once.
    fn report_findings(
        &mut self,
        index: usize,
        frame: &Frame,
        refined: &Detection,
        report: &mut FrameReport,
    ) {
        let pad = self.settings.pad;
        let track = self.tracker.track_mut(index);
        let verdict = track.liveness.verdict();
        let identified = matches!(track.decision, Decision::Identified(_));
        let withheld = pad.mode == PadMode::Enforce && identified && verdict != Presentation::Live;
        if track.unreported && !withheld {
            track.unreported = false;
            report.outcomes.push(TrackOutcome {
                track_id: track.id,
                decision: track.decision.clone(),
                track_age: frame.media().since(&track.first_seen),
                decided_at: frame.taken,
                bounding_box: refined.bounding_box,
            });
        }
        let decided = !matches!(track.decision, Decision::Undecided);
        if verdict == Presentation::Attack && decided && !track.attack_reported {
            track.attack_reported = true;
            report.attacks.push(Attack {
                track_id: track.id,
                decision: track.decision.clone(),
                seen_at: frame.taken,
                scores: track.liveness.scores().to_vec(),
                threshold: pad.threshold,
                enforced: withheld,
            });
        }
    }

    fn track_index(&self, id: u64) -> Option<usize> {
        self.tracker.tracks().iter().position(|track| track.id == id)
    }

    fn position_of_newest(&self) -> usize {
        let tracks = self.tracker.tracks();
        (0..tracks.len()).max_by_key(|index| tracks[*index].id).expect("a track was just begun")
    }
}

/// What became of a sample.
struct TakenTemplate {
    /// Of the track that it was added to.
    index: usize,
    /// Whether the second part of a composite embedder was made.
    is_complete: bool,
    /// Whether it is too short to tell a stranger.
    is_weak: bool,
}

/// What a track still needs of its face.
#[derive(Clone, Copy)]
struct Needs {
    template: bool,
    liveness: bool,
}

fn was_too_far(track: &Track) -> bool {
    track.templates == 0 && track.flaw == Some(Flaw::TooSmall)
}

fn observe_track(track: &Track) -> FaceObservation {
    FaceObservation {
        track_id: track.id,
        bounding_box: track.bounding_box,
        landmarks: track.landmarks,
        detected: track.detected,
        confidence: track.confidence,
        decision: track.decision.clone(),
        samples: track.templates,
        flaw: track.flaw,
        liveness: track.liveness.score(),
        presentation: track.liveness.verdict(),
    }
}

/// Faces in the coordinates of the full picture, found on the reduced one.
fn detect_faces(
    engine: &mut dyn FaceEngine,
    frame: &Frame,
    input: DetectorInput,
) -> Result<Vec<Detection>, FrameError> {
    let reduced = frame.pixels.reduced(input.side_px())?;
    let mut detections = engine.detect(&reduced, input)?;
    let (width, height) = frame.pixels.size();
    let x = width as f32 / reduced.width() as f32;
    let y = height as f32 / reduced.height() as f32;
    for detection in &mut detections {
        detection.scale(x, y);
    }
    Ok(detections)
}

/// An unknown face may still be identified (it came closer, or the subject was enrolled meanwhile).
/// No track is identified twice, and no identification is withdrawn.
fn is_news(before: &Decision, now: &Decision) -> bool {
    match (before, now) {
        (_, Decision::Undecided)
        | (Decision::Identified(_), _)
        | (Decision::Unknown { .. }, Decision::Unknown { .. }) => false,
        (_, Decision::Identified(_) | Decision::Unknown { .. }) => true,
    }
}

#[cfg(test)]
mod tests;
