//! The inference thread: owns the networks and the tracker. Live frames first, images of commands between them.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::app::gallery::GalleryCell;
use crate::app::power;
use crate::app::recorder::Recorder;
use crate::app::scene::{Scene, Scenes};
use crate::app::supervise::StageResult;
use crate::app::timing::{TimedEngine, TimedPixels};
use crate::clock::{Clock, Stamp, Stopwatch};
use crate::enrol::camera::{Gathering, Tally};
use crate::enrol::{self, EnrolSettings, Judged, Judgement};
use crate::health::Health;
use crate::recognise::align;
use crate::recognise::attention::Attention;
use crate::recognise::decision::{self, Decision, DecisionSettings};
use crate::recognise::engine::{EngineError, FaceEngine};
use crate::recognise::face::{BoundingBox, Detection, SubjectId};
use crate::recognise::frame::{Frame, Latest};
use crate::recognise::live::{FrameError, FrameReport, Live, Sight};
use crate::recognise::pad::PadSettings;
use crate::recognise::picture::Picture;
use crate::recognise::quality;
use crate::recognise::still::{self, Found};

/// What a command asks of the networks.
pub enum Job {
    Enrol {
        subject: SubjectId,
        replace: bool,
        photographs: Vec<Vec<u8>>,
        answer: oneshot::Sender<Result<Judgement, EngineError>>,
    },
    /// The next person alone before the camera. Takes as long as it takes: whoever asked gives up by letting go.
    EnrolFromCamera {
        subject: SubjectId,
        replace: bool,
        samples: usize,
        tally: Arc<Mutex<Tally>>,
        answer: oneshot::Sender<Result<Judgement, EngineError>>,
    },
    /// Decoded already: of a large photograph that is the longest part, and takes no network.
    Look { picture: Picture, answer: oneshot::Sender<Result<Vec<Seen>, EngineError>> },
    /// Answered when every frame taken before it has been looked at and what came of it recorded.
    Settle { answer: oneshot::Sender<()> },
}

/// A face of a picture and whose it is.
#[derive(Clone, Debug)]
pub struct Seen {
    pub bounding_box: BoundingBox,
    pub decision: Decision,
}

/// Jobs that wait for the networks; the next is refused as busy.
pub const JOBS_MAX: usize = 4;

/// A job under way, done bit by bit between two frames, so that nobody passes the door unseen meanwhile.
pub enum Work {
    Enrolling(Enrolling),
    Looking(Looking),
}

/// An enrolment: one photograph at a time.
pub struct Enrolling {
    subject: SubjectId,
    replace: bool,
    photographs: VecDeque<Vec<u8>>,
    judged: Vec<Judged>,
    answer: oneshot::Sender<Result<Judgement, EngineError>>,
}

/// A picture in which everybody is looked for at once, and each is recognised at a time.
pub struct Looking {
    picture: Picture,
    /// None: nobody was looked for yet.
    found: Option<VecDeque<Found>>,
    seen: Vec<Seen>,
    answer: oneshot::Sender<Result<Vec<Seen>, EngineError>>,
}

/// Somebody is to be enrolled by the camera.
pub struct FromCamera {
    subject: SubjectId,
    replace: bool,
    gathering: Gathering,
    /// Why frames were of no use so far.
    tally: Arc<Mutex<Tally>>,
    answer: oneshot::Sender<Result<Judgement, EngineError>>,
}

/// How long to wait for a frame before looking for jobs, and for a stop.
const PATIENCE: Duration = Duration::from_millis(20);

pub struct Inference {
    pub engine: Box<dyn FaceEngine>,
    pub live: Live,
    pub decision: DecisionSettings,
    pub enrol: EnrolSettings,
    pub slot: Arc<Latest<Frame>>,
    pub jobs: Receiver<Job>,
    pub work: Option<Work>,
    pub from_camera: Option<FromCamera>,
    pub pad: PadSettings,
    pub gallery: Arc<GalleryCell>,
    pub recorder: Recorder,
    pub health: Arc<Health>,
    pub clock: Arc<dyn Clock>,
    pub stop: watch::Receiver<bool>,
    /// Where whoever watches sees what we see.
    pub scenes: Arc<Scenes>,
}

impl Inference {
    pub fn run(mut self) -> StageResult {
        let (mut unreadable, mut failing) = (Complaint::default(), Complaint::default());
        while !*self.stop.borrow() {
            self.health.inference_turns.add(1);
            let job = if self.work.is_none() { self.jobs.try_recv().ok() } else { None };
            let busy = job.is_some() || self.work.is_some();
            let patience = if busy { Duration::ZERO } else { PATIENCE };
            if let Some(frame) = self.slot.take(patience) {
                match self.look_live(&frame)? {
                    // Not looked at: nothing is known of it.
                    Ok(Attention::Passed) => {}
                    Ok(_) => (unreadable.over, failing.over) = (true, true),
                    Err(error @ FrameError::Pixels(_)) if unreadable.is_due(&frame.taken) => {
                        tracing::warn!(error = chain(&error), "a frame was left out");
                    }
                    Err(error @ FrameError::Engine(_)) if failing.is_due(&frame.taken) => {
                        tracing::error!(error = chain(&error), "recognition fails");
                    }
                    Err(_) => {}
                }
            } else if !busy {
                self.pause_when_closed();
            }
            self.go_on();
            if let Some(job) = job {
                self.carry_out(job);
            }
        }
        Ok(())
    }

    /// The outer error is the store's, and ends the stage; the inner one is the networks'.
    fn look_live(&mut self, frame: &Frame) -> anyhow::Result<Result<Attention, FrameError>> {
        let report = match self.process(frame) {
            Ok(report) => report,
            Err(error) => {
                self.count(&error);
                return Ok(Err(error));
            }
        };
        self.health.frames_analysed.add(u64::from(report.attention != Attention::Passed));
        self.health.frames_detected.add(u64::from(report.attention == Attention::Full));
        self.health.faces_seen.add(report.faces as u64);
        self.health.too_far.add(report.too_far as u64);
        self.health.templates_made.add(report.templates as u64);
        if self.scenes.receiver_count() > 0 {
            let scene = Scene::new(frame, report.attention, self.live.sights());
            self.scenes.send_replace(Some(Arc::new(scene)));
        } else if self.scenes.borrow().is_some() {
            // Nobody watches any more: no picture is kept.
            self.scenes.send_replace(None);
        }
        if report.attention == Attention::Full {
            self.gather(frame, report.faces);
        }
        for outcome in &report.outcomes {
            self.recorder.record(outcome)?;
        }
        for attack in &report.attacks {
            self.recorder.attack(attack)?;
        }
        Ok(report.failed.map_or(Ok(report.attention), |error| {
            self.count(&error);
            Err(error)
        }))
    }

    /// Recognition itself, and how long each part of it took.
    fn process(&mut self, frame: &Frame) -> Result<FrameReport, FrameError> {
        let times = &self.health.times;
        times.wait.observe(self.clock.now().since(&frame.taken));
        let (gallery, slowed) =
            (self.gallery.snapshot(), power::pause_of(self.health.pace_step.get()));
        let pixels =
            Arc::new(TimedPixels::new(Arc::clone(&frame.pixels), Arc::clone(&self.health)));
        let watched = Frame { pixels: pixels.clone(), ..*frame };
        let mut engine = TimedEngine::new(self.engine.as_mut(), times);
        let watch = Stopwatch::start();
        let report = self.live.process(&mut engine, &gallery, &watched, slowed)?;
        let took = watch.elapsed();
        if report.attention == Attention::Full {
            times.frame.observe(took);
        }
        if report.templates > 0 {
            times.identify.observe(took.saturating_sub(engine.spent + pixels.spent()));
        }
        Ok(report)
    }

    fn count(&self, error: &FrameError) {
        match error {
            FrameError::Pixels(_) => {
                self.health.frames_unreadable.add(1);
                self.health.frames_undecodable.add(1);
            }
            FrameError::Engine(_) => self.health.engine_errors.add(1),
        }
    }

    /// A closed slot answers at once; without this the loop would spin until the stop is heard.
    fn pause_when_closed(&self) {
        if self.slot.is_closed() {
            std::thread::sleep(PATIENCE);
        }
    }

    fn carry_out(&mut self, job: Job) {
        // Whoever asked may have given up meanwhile: then there is nobody to tell, and that is all right.
        match job {
            Job::Enrol { subject, replace, photographs, answer } => {
                let (photographs, judged) = (photographs.into(), Vec::new());
                self.work = Some(Work::Enrolling(Enrolling {
                    subject,
                    replace,
                    photographs,
                    judged,
                    answer,
                }));
            }
            Job::EnrolFromCamera { subject, replace, samples, tally, answer } => {
                let gathering = Gathering::new(samples, self.pad);
                self.from_camera = Some(FromCamera { subject, replace, gathering, tally, answer });
            }
            Job::Look { picture, answer } => {
                self.work =
                    Some(Work::Looking(Looking { picture, found: None, seen: Vec::new(), answer }));
            }
            Job::Settle { answer } => {
                answer.send(()).ok();
            }
        }
    }

    /// The next bit of the job under way; nothing for somebody who has given up.
    fn go_on(&mut self) {
        self.work = match self.work.take() {
            Some(Work::Enrolling(work)) if !work.answer.is_closed() => {
                self.go_on_enrolling(work).map(Work::Enrolling)
            }
            Some(Work::Looking(work)) if !work.answer.is_closed() => {
                self.go_on_looking(work).map(Work::Looking)
            }
            _ => None,
        };
    }

    /// Judges the next photograph of an enrolment; after the last, all of them together.
    fn go_on_enrolling(&mut self, mut work: Enrolling) -> Option<Enrolling> {
        let outcome = if let Some(photograph) = work.photographs.pop_front() {
            match enrol::judge_photograph(self.engine.as_mut(), &photograph, &self.enrol) {
                Ok(judged) => {
                    work.judged.push(judged);
                    return Some(work);
                }
                Err(error) => Err(error),
            }
        } else {
            let (gallery, judged) = (self.gallery.snapshot(), std::mem::take(&mut work.judged));
            Ok(enrol::conclude(judged, &gallery, &work.subject, work.replace, &self.enrol))
        };
        work.answer.send(outcome).ok();
        None
    }

    /// Finds all faces, then recognises one after the other.
    fn go_on_looking(&mut self, mut work: Looking) -> Option<Looking> {
        let outcome = match &mut work.found {
            None => still::faces(self.engine.as_mut(), &work.picture)
                .map(|found| work.found = Some(found.into())),
            Some(found) => {
                let Some(found) = found.pop_front() else {
                    work.answer.send(Ok(work.seen)).ok();
                    return None;
                };
                self.recognise(&found).map(|seen| work.seen.extend(seen))
            }
        };
        if let Err(error) = outcome {
            work.answer.send(Err(error)).ok();
            return None;
        }
        Some(work)
    }

    fn recognise(&mut self, found: &Found) -> Result<Option<Seen>, EngineError> {
        let template = still::template(self.engine.as_mut(), &found.sample)?;
        Ok(template.map(|template| Seen {
            bounding_box: found.detection.bounding_box,
            decision: decision::decide_still(&template, &self.gallery.snapshot(), &self.decision),
        }))
    }

    /// One more frame for who is enrolled by the camera; `faces` is how many it has.
    fn gather(&mut self, frame: &Frame, faces: usize) {
        let Some(mut from_camera) = self.from_camera.take().filter(|it| !it.answer.is_closed())
        else {
            return;
        };
        let sights = self.live.sights();
        match self.gather_from(&mut from_camera.gathering, frame, faces, &sights) {
            Ok(None) => {
                let mut tally = from_camera.tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.clone_from(from_camera.gathering.tally());
                drop(tally);
                self.from_camera = Some(from_camera);
            }
            Ok(Some(judged)) => {
                let gallery = self.gallery.snapshot();
                let judgement = enrol::conclude(
                    judged,
                    &gallery,
                    &from_camera.subject,
                    from_camera.replace,
                    &self.enrol,
                );
                from_camera.answer.send(Ok(judgement)).ok();
            }
            Err(error) => {
                from_camera.answer.send(Err(error)).ok();
            }
        }
    }

    fn gather_from(
        &mut self,
        gathering: &mut Gathering,
        frame: &Frame,
        faces: usize,
        sights: &[Sight],
    ) -> Result<Option<Vec<Judged>>, EngineError> {
        let now = frame.media();
        let wanted = gathering.regard(faces, sights, &now);
        // What cannot be decoded has been counted and told where it was looked at first.
        let ([sight], Ok(picture)) = (sights, frame.pixels.full()) else {
            return Ok(None);
        };
        let (bounding_box, confidence, landmarks) =
            (sight.bounding_box, sight.confidence, sight.landmarks);
        if wanted.is_some() {
            let refined =
                self.engine.refine(picture, &Detection { bounding_box, confidence, landmarks })?;
            if let Some(sample) = align::align(picture, &refined.landmarks) {
                let quality = quality::measure(&sample);
                if gathering.is_good(&quality, &self.enrol)
                    && let Some(template) = still::template(self.engine.as_mut(), &sample)?
                {
                    gathering.add(template, &quality, &self.enrol, &now);
                }
            }
        }
        Ok(if faces == 1 { gathering.finished(sight, landmarks.eye_distance_px()) } else { None })
    }
}

/// When a fault is said: once as long as it lasts, and seldom when it comes and goes. Every frame would fill the journal.
struct Complaint {
    over: bool,
    said: Option<Stamp>,
}

const SAY_EVERY: Duration = Duration::from_mins(1);

impl Default for Complaint {
    fn default() -> Self {
        Self { over: true, said: None }
    }
}

impl Complaint {
    fn is_due(&mut self, now: &Stamp) -> bool {
        if !self.over || self.said.is_some_and(|said| now.since(&said) < SAY_EVERY) {
            return false;
        }
        (self.over, self.said) = (false, Some(*now));
        true
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a fault is said in ten minutes of ten frames a second, every nth of which is good.
    fn said(good_every: u64) -> usize {
        let mut complaint = Complaint::default();
        let frame = |at: u64| {
            if at.is_multiple_of(good_every) {
                complaint.over = true;
                return false;
            }
            complaint.is_due(&Stamp { wall_ms: 0, boottime_ms: at * 100, trusted: false })
        };
        (1..=6000).map(frame).filter(|said| *said).count()
    }

    #[test]
    fn a_fault_that_comes_and_goes_does_not_fill_the_journal() {
        assert_eq!(said(10_000), 1, "it lasts");
        assert_eq!(said(2), 10);
        // It lasts, though it began within a minute of the one before: said late, not never.
        assert_eq!(said(100), 10);
    }
}
