//! Frames in, decisions out: the loop body of the inference thread.
//!
//! Budget per frame at 640x480 with one undecided face: brightness 0.1 ms, detect 2 ms, refine 0.5 ms, align 0.2 ms,
//! embed 2.3 ms, and for its first frames 2 ms of attack detection (x86, one thread; `docs/performance.md`). A decided
//! face costs the detection only, but twice a second or when it jumps a template; an empty scene the brightness only.
//!
//! Invariants: a track reports at most one `Identified`, at most one `Unknown` and at most one attack. Nobody is told of
//! as identified whose face was not found live, where that is asked for.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::align::{self, Sample};
use crate::recognise::attention::{Attention, PaceSettings, Presence, Watcher};
use crate::recognise::decision::{Decision, DecisionSettings};
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{BoundingBox, Detection, Landmarks};
use crate::recognise::frame::Frame;
use crate::recognise::gallery::Gallery;
use crate::recognise::pad::{PadMode, PadSettings, Presentation};
use crate::recognise::picture::{DecodeError, Picture};
use crate::recognise::quality::{self, Flaw, QualityBounds};
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
    /// A decided track is looked at again this often, and when its face jumps: someone else may have stepped into its
    /// place.
    pub recheck_after: Duration,
    /// Score with the track's own earlier samples below which the face is another person's.
    pub same_person_min: f32,
    pub pad: PadSettings,
    pub pace: PaceSettings,
}

/// Templates made of one frame. A crowd takes turns, those with the fewest samples first.
const TEMPLATES_PER_FRAME: usize = 8;
/// A track that is still undecided after so many templates gets the next ones at ease.
const TEMPLATES_EAGER: usize = 8;
const EASY: Duration = Duration::from_millis(300);
/// A decided face that jumped is looked at again at once, but one that is in a hurry not in every frame.
const DOUBT_AGAIN: Duration = Duration::from_millis(150);
/// Beside its best sample, one this much poorer adds noise: it is passed over, unless there was none for a while.
const RANK_SHARE_MIN: f32 = 0.6;
/// A face that could not be decided upon within this time is looked at closely only when something moves.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Something a track came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub track_id: u64,
    pub decision: Decision,
    /// From the track's first frame to the one that decided.
    pub track_age: Duration,
    /// When the frame that decided was taken.
    pub decided_at: Stamp,
    pub bounding_box: BoundingBox,
}

/// A track that seems to be a picture and not a person.
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

/// A face of a frame as it stands: for whoever watches.
#[derive(Clone, Debug)]
pub struct Sight {
    pub track_id: u64,
    pub bounding_box: BoundingBox,
    pub landmarks: Landmarks,
    pub confidence: f32,
    pub decision: Decision,
    pub samples: usize,
    pub flaw: Option<Flaw>,
    pub liveness: Option<f32>,
    pub presentation: Presentation,
}

/// What one frame brought.
#[derive(Debug, Default)]
pub struct FrameReport {
    pub attention: Attention,
    pub faces: usize,
    pub templates: usize,
    /// Tracks that ended without one good sample because they were too far away.
    pub too_far: usize,
    pub outcomes: Vec<Outcome>,
    pub attacks: Vec<Attack>,
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
    watcher: Watcher,
}

impl Live {
    pub fn new(settings: LiveSettings) -> Self {
        Self {
            settings,
            tracker: Tracker::new(settings.track),
            watcher: Watcher::new(settings.pace),
        }
    }

    /// One frame. A network that fails on one face leaves what was decided of the others in the report. `slowed` is the
    /// least time between two frames that are looked at.
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
        report.attention = self.watcher.regard(frame, self.presence(&now), slowed)?;
        if report.attention != Attention::Full {
            return Ok(report);
        }
        let mut detections = detect(engine, frame, self.settings.reach)?;
        self.watcher.seen(frame)?;
        detections.retain(|face| face.confidence >= self.settings.confidence_min);
        report.faces = detections.len();
        let indices = self.tracker.follow(&detections, &now);
        // The tracks' ids, because a restart moves the indices.
        let ids = indices.iter().map(|index| self.tracker.tracks()[*index].id);
        let mut faces: Vec<(u64, Detection)> = ids.zip(detections).collect();
        // Everybody's turn comes: first who has been looked at least, then who is nearest.
        faces.sort_by(|(a, near), (b, far)| {
            let templates =
                |id| self.position(id).map(|index| self.tracker.tracks()[index].templates);
            templates(*a)
                .cmp(&templates(*b))
                .then(far.bounding_box.area().total_cmp(&near.bounding_box.area()))
        });
        for (id, detection) in faces {
            if report.templates == TEMPLATES_PER_FRAME {
                break;
            }
            let looked = match self.position(id) {
                Some(index) => self.sample(engine, gallery, frame, &detection, index, &mut report),
                None => Ok(()),
            };
            report.failed = report.failed.or(looked.err());
        }
        Ok(report)
    }

    /// The faces of the last frame that was looked at.
    pub fn sights(&self) -> Vec<Sight> {
        let tracks = self.tracker.tracks();
        let Some(newest) = tracks.iter().map(|track| track.last_seen.boottime_ms).max() else {
            return Vec::new();
        };
        tracks.iter().filter(|track| track.last_seen.boottime_ms == newest).map(sight).collect()
    }

    fn presence(&self, now: &Stamp) -> Presence {
        let tracks = self.tracker.tracks();
        let deciding = |track: &Track| {
            let open = matches!(track.decision, Decision::Undecided) || self.wants_pad(track);
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

    fn wants(&self, track: &Track, now: &Stamp) -> Wants {
        let since = track.last_template.map(|last| now.since(&last));
        let template = match &track.decision {
            Decision::Identified(_) | Decision::Unknown { .. } => {
                let doubted = track.doubtful
                    && track.doubt_cleared.is_none_or(|it| now.since(&it) >= DOUBT_AGAIN);
                doubted || since.is_none_or(|since| since >= self.settings.recheck_after)
            }
            Decision::Undecided => {
                track.templates < TEMPLATES_EAGER || since.is_none_or(|since| since >= EASY)
            }
        };
        Wants { template, liveness: self.wants_pad(track) }
    }

    fn wants_pad(&self, track: &Track) -> bool {
        self.settings.pad.mode != PadMode::Off && track.liveness.verdict() == Presentation::Unjudged
    }

    /// Looks closely at one face, if its track needs that.
    fn sample(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        detection: &Detection,
        index: usize,
        report: &mut FrameReport,
    ) -> Result<(), FrameError> {
        let wants = self.wants(&self.tracker.tracks()[index], &frame.media());
        if !wants.template && !wants.liveness {
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
        track.flaw = self.settings.probe.flaw(&measured);
        if track.flaw.is_some() {
            return Ok(());
        }
        let rank = quality::rank(&measured);
        let poor = rank < track.best_rank * RANK_SHARE_MIN;
        let recent = track.last_template.is_some_and(|last| frame.media().since(&last) < EASY);
        if poor && recent {
            return Ok(());
        }
        let figure = self.look_for_attack(engine, picture, &refined, &sample, index);
        // Each frame that speaks for a live face is asked whose face it is: another one may have been put in its place.
        if !wants.template && !matches!(figure, Ok(Some(_))) {
            figure?;
            return Ok(());
        }
        let Some(index) = self.take_template(engine, gallery, frame, &sample, index, rank)? else {
            return Ok(());
        };
        report.templates += 1;
        // Whoever took a judged face's place is not judged yet.
        let figure = if wants.liveness {
            figure
        } else {
            self.look_for_attack(engine, picture, &refined, &sample, index)
        };
        if let Ok(Some(score)) = figure {
            self.tracker.track_mut(index).liveness.add(score, &self.settings.pad);
        }
        self.tell(index, frame, &refined, report);
        figure?;
        Ok(())
    }

    /// Adds the sample to what is known of the track, or of a new one when the face has become another person's; gives
    /// the index of either, or nothing when the network makes no sense of the sample.
    fn take_template(
        &mut self,
        engine: &mut dyn FaceEngine,
        gallery: &Gallery,
        frame: &Frame,
        sample: &Sample,
        mut index: usize,
        rank: f32,
    ) -> Result<Option<usize>, FrameError> {
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
        track.evidence.add(template);
        track.templates += 1;
        track.best_rank = track.best_rank.max(rank);
        track.last_template = Some(frame.media());
        if std::mem::take(&mut track.doubtful) && !matches!(track.decision, Decision::Undecided) {
            track.doubt_cleared = Some(frame.media());
        }
        let decision = track.evidence.decide(gallery, &settings);
        if is_news(&track.decision, &decision) {
            track.decision = decision;
            track.untold = true;
        }
        Ok(Some(index))
    }

    /// How live the face looks, where its track is not judged yet and the face is large enough.
    fn look_for_attack(
        &self,
        engine: &mut dyn FaceEngine,
        picture: &Picture,
        refined: &Detection,
        sample: &Sample,
        index: usize,
    ) -> Result<Option<f32>, EngineError> {
        let large_enough = sample.eye_distance_px >= self.settings.pad.eye_distance_px_min;
        if !large_enough || !self.wants_pad(&self.tracker.tracks()[index]) {
            return Ok(None);
        }
        engine.liveness(picture, refined)
    }

    /// Reports what is ripe: a decision, unless it has to wait for a face found live; an attack, once.
    fn tell(&mut self, index: usize, frame: &Frame, refined: &Detection, report: &mut FrameReport) {
        let pad = self.settings.pad;
        let track = self.tracker.track_mut(index);
        let verdict = track.liveness.verdict();
        let identified = matches!(track.decision, Decision::Identified(_));
        let withheld = pad.mode == PadMode::Enforce && identified && verdict != Presentation::Live;
        if track.untold && !withheld {
            track.untold = false;
            report.outcomes.push(Outcome {
                track_id: track.id,
                decision: track.decision.clone(),
                track_age: frame.media().since(&track.first_seen),
                decided_at: frame.taken,
                bounding_box: refined.bounding_box,
            });
        }
        let decided = !matches!(track.decision, Decision::Undecided);
        if verdict == Presentation::Attack && decided && !track.attack_told {
            track.attack_told = true;
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

    fn position(&self, id: u64) -> Option<usize> {
        self.tracker.tracks().iter().position(|track| track.id == id)
    }

    fn position_of_newest(&self) -> usize {
        let tracks = self.tracker.tracks();
        (0..tracks.len()).max_by_key(|index| tracks[*index].id).expect("a track was just begun")
    }
}

/// What a track still needs of its face.
#[derive(Clone, Copy)]
struct Wants {
    template: bool,
    liveness: bool,
}

fn was_too_far(track: &Track) -> bool {
    track.templates == 0 && track.flaw == Some(Flaw::TooSmall)
}

fn sight(track: &Track) -> Sight {
    Sight {
        track_id: track.id,
        bounding_box: track.bounding_box,
        landmarks: track.landmarks,
        confidence: track.confidence,
        decision: track.decision.clone(),
        samples: track.templates,
        flaw: track.flaw,
        liveness: track.liveness.score(),
        presentation: track.liveness.verdict(),
    }
}

/// Faces in the coordinates of the full picture, found on the reduced one.
fn detect(
    engine: &mut dyn FaceEngine,
    frame: &Frame,
    reach: Reach,
) -> Result<Vec<Detection>, FrameError> {
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

#[cfg(test)]
mod tests;
