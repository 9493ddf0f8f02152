//! The inference thread: owns the models and the tracker. Live frames have priority; the images of
//! commands are processed between them.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::app::context::Context;
use crate::app::pipeline::learning::{LearnedSample, Learner};
use crate::app::pipeline::recorder::Recorder;
use crate::app::pipeline::thermal;
use crate::app::pipeline::timing::{ProgressEngine, TimedEngine, TimedPixels};
use crate::app::state::gallery::GalleryCell;
use crate::app::state::preview::{PreviewFeed, PreviewFrame};
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp, Stopwatch};
use crate::enrol::camera::{FaceView, Gathered, Gathering, Progress};
use crate::enrol::{self, EnrolSettings, Judged, Judgement};
use crate::error_chain::error_chain;
use crate::health::Health;
use crate::ids::SubjectId;
use crate::log_throttle::LogThrottle;
use crate::recognise::align;
use crate::recognise::attention::FrameAction;
use crate::recognise::decision::{self, Decision, DecisionSettings};
use crate::recognise::engine::{EngineError, FaceEngine};
use crate::recognise::face::{BoundingBox, Detection};
use crate::recognise::frame::{Frame, Latest};
use crate::recognise::live::{FaceObservation, FrameError, FrameReport, Live};
use crate::recognise::pad::PadSettings;
use crate::recognise::picture::Picture;
use crate::recognise::quality;
use crate::recognise::stance::Stance;
use crate::recognise::still::{self, FoundFace};
use crate::vision::Vision;

/// Work that a command hands to the inference thread.
pub enum Job {
    Enrol {
        subject: SubjectId,
        replace: bool,
        photographs: Vec<Vec<u8>>,
        reply: oneshot::Sender<Result<Judgement, EngineError>>,
    },
    /// Enrols the next person who is alone before the camera. It ends when the caller closes it by
    /// `progress`, without a reply if nothing was gathered, or drops the receiver of the reply.
    EnrolFromCamera {
        subject: SubjectId,
        replace: bool,
        samples: usize,
        progress: Arc<Mutex<Progress>>,
        reply: oneshot::Sender<Result<CameraJudgement, EngineError>>,
    },
    /// Identifies all faces of a picture. The caller decodes it, which takes longest for a large
    /// photograph and needs no model.
    Identify { picture: Picture, reply: oneshot::Sender<Result<Vec<IdentifiedFace>, EngineError>> },
    /// Replied to when every frame taken before it is processed and its outcome recorded.
    Settle { reply: oneshot::Sender<()> },
}

/// An enrolment by the camera, judged.
#[derive(Debug)]
pub struct CameraJudgement {
    pub judgement: Judgement,
    /// The views that the person did not show.
    pub missing: Vec<FaceView>,
}

/// A face of a picture with its decision.
#[derive(Clone, Debug)]
pub struct IdentifiedFace {
    pub bounding_box: BoundingBox,
    pub decision: Decision,
}

/// Jobs that wait for the inference thread; the next one is rejected as busy.
pub const JOBS_MAX: usize = 4;

/// The job in progress. It is done step by step between live frames, so that nobody passes
/// unnoticed meanwhile.
enum ActiveJob {
    Enrol(EnrolJob),
    Identify(IdentifyJob),
}

/// An enrolment: one photograph at each step.
struct EnrolJob {
    subject: SubjectId,
    replace: bool,
    photographs: VecDeque<Vec<u8>>,
    judged: Vec<Judged>,
    reply: oneshot::Sender<Result<Judgement, EngineError>>,
}

/// An identification: detects all faces in the first step, then identifies one at each step.
struct IdentifyJob {
    picture: Picture,
    /// The faces left to identify; `None` before the detection.
    found: Option<VecDeque<FoundFace>>,
    identified: Vec<IdentifiedFace>,
    reply: oneshot::Sender<Result<Vec<IdentifiedFace>, EngineError>>,
}

/// An enrolment by the camera in progress.
struct CameraJob {
    subject: SubjectId,
    replace: bool,
    gathering: Gathering,
    progress: Arc<Mutex<Progress>>,
    reply: oneshot::Sender<Result<CameraJudgement, EngineError>>,
}

/// How long to wait for a frame before checking for jobs and the stop signal.
const FRAME_WAIT: Duration = Duration::from_millis(20);

pub struct Inference {
    engine: Box<dyn FaceEngine>,
    live: Live,
    decision: DecisionSettings,
    enrol: EnrolSettings,
    slot: Arc<Latest<Frame>>,
    jobs: Receiver<Job>,
    active_job: Option<ActiveJob>,
    camera_job: Option<CameraJob>,
    pad: PadSettings,
    /// Where samples are learned from the camera.
    learner: Option<Learner>,
    gallery: Arc<GalleryCell>,
    recorder: Recorder,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
    feed: Arc<PreviewFeed>,
}

impl Inference {
    pub fn new(
        ctx: Context,
        vision: Vision,
        slot: Arc<Latest<Frame>>,
        jobs: Receiver<Job>,
        feed: Arc<PreviewFeed>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let spec = vision.template_spec();
        let recorder = Recorder::new(ctx.clone());
        let Context { settings, gallery, health, clock, .. } = ctx;
        let recognition = &settings.recognition;
        Self {
            engine: Box::new(ProgressEngine { engine: vision, health: Arc::clone(&health) }),
            live: Live::new(recognition.live(&spec)),
            decision: recognition.decision(&spec),
            enrol: recognition.enrol(&spec),
            slot,
            jobs,
            active_job: None,
            camera_job: None,
            pad: recognition.pad(),
            learner: None,
            gallery,
            recorder,
            health,
            clock,
            stop,
            feed,
        }
    }

    /// Learns from the camera; the samples go into this queue.
    #[must_use]
    pub fn with_learning(self, queue: mpsc::Sender<LearnedSample>) -> Self {
        Self { learner: Some(Learner::new(queue)), ..self }
    }

    pub fn run(mut self) -> StageResult {
        let mut unreadable = FaultLog::default();
        let mut failing = FaultLog::default();
        while !*self.stop.borrow() {
            self.health.inference_progress.add(1);
            let job = if self.active_job.is_none() { self.jobs.try_recv().ok() } else { None };
            let is_busy = job.is_some() || self.active_job.is_some();
            let wait = if is_busy { Duration::ZERO } else { FRAME_WAIT };
            if let Some(frame) = self.slot.take(wait) {
                match self.process_live(&frame)? {
                    // A skipped frame shows nothing about faults.
                    Ok(FrameAction::Skip) => {}
                    Ok(_) => {
                        unreadable.is_over = true;
                        failing.is_over = true;
                    }
                    Err(error @ FrameError::Pixels(_)) if unreadable.is_due(&frame.taken) => {
                        tracing::warn!(error = error_chain(&error), "a frame could not be decoded");
                    }
                    Err(error @ FrameError::Engine(_)) if failing.is_due(&frame.taken) => {
                        tracing::error!(error = error_chain(&error), "a model failed");
                    }
                    Err(_) => {}
                }
            } else if !is_busy {
                self.pause_when_closed();
            }
            self.continue_job();
            self.close_camera_job();
            if let Some(job) = job {
                self.start_job(job);
            }
        }
        Ok(())
    }

    /// Processes a live frame and records its outcomes. The outer error is the store's and ends the
    /// stage; the inner one concerns this frame only.
    fn process_live(&mut self, frame: &Frame) -> anyhow::Result<Result<FrameAction, FrameError>> {
        let report = match self.recognise_frame(frame) {
            Ok(report) => report,
            Err(error) => {
                self.count_error(&error);
                return Ok(Err(error));
            }
        };
        self.health.camera.frames_analysed.add(u64::from(report.action != FrameAction::Skip));
        self.health.camera.frames_detected.add(u64::from(report.action == FrameAction::Detect));
        self.health.recognition.faces.add(report.faces as u64);
        self.health.recognition.too_far.add(report.too_far as u64);
        self.health.recognition.templates.add(report.templates as u64);
        self.health.recognition.weak.add(report.weak as u64);
        self.show_preview(frame, report.action);
        if report.action == FrameAction::Detect {
            self.gather_samples(frame, report.faces);
            if let Err(error) = self.learn_sample(frame, report.faces) {
                self.count_error(&FrameError::Engine(error));
            }
        }
        for outcome in &report.outcomes {
            self.recorder.record_outcome(outcome)?;
        }
        for attack in &report.attacks {
            self.recorder.record_attack(attack)?;
        }
        Ok(report.failed.map_or(Ok(report.action), |error| {
            self.count_error(&error);
            Err(error)
        }))
    }

    /// Puts the frame and its faces into the feed. A skipped frame was not even compared with the one
    /// that the faces were found in, and may show them elsewhere: the frame before it stays.
    fn show_preview(&self, frame: &Frame, action: FrameAction) {
        if self.feed.receiver_count() > 0 {
            let faces = self.live.observations();
            if action != FrameAction::Skip || faces.is_empty() {
                let gathering = self.camera_job.as_ref().map(|job| &job.gathering);
                let wanted_view = gathering.and_then(|it| it.missing().first().copied());
                let preview = PreviewFrame::new(frame, action, faces, wanted_view);
                self.feed.send_replace(Some(Arc::new(preview)));
            }
        } else if self.feed.borrow().is_some() {
            // Without clients no frame is kept.
            self.feed.send_replace(None);
        }
    }

    /// Runs recognition and times its steps.
    fn recognise_frame(&mut self, frame: &Frame) -> Result<FrameReport, FrameError> {
        let times = &self.health.times;
        times.wait.observe(self.clock.now().since(&frame.taken));
        let gallery = self.gallery.snapshot();
        let pause = thermal::frame_pause(self.health.recognition.pace_step.get());
        let pixels =
            Arc::new(TimedPixels::new(Arc::clone(&frame.pixels), Arc::clone(&self.health)));
        let measured = Frame { pixels: pixels.clone(), ..*frame };
        let mut engine = TimedEngine::new(self.engine.as_mut(), times);
        let watch = Stopwatch::start();
        let report = self.live.process(&mut engine, &gallery, &measured, pause)?;
        let took = watch.elapsed();
        if report.action == FrameAction::Detect {
            times.frame.observe(took);
        }
        if report.templates > 0 {
            times.identify.observe(took.saturating_sub(engine.spent + pixels.spent()));
        }
        Ok(report)
    }

    fn count_error(&self, error: &FrameError) {
        match error {
            FrameError::Pixels(error) => self.health.count_undecodable(error.to_string()),
            FrameError::Engine(_) => self.health.recognition.errors.add(1),
        }
    }

    /// Keeps the loop from spinning until it stops, because a closed slot returns at once.
    fn pause_when_closed(&self) {
        if self.slot.is_closed() {
            std::thread::sleep(FRAME_WAIT);
        }
    }

    fn start_job(&mut self, job: Job) {
        // A reply cannot be sent when the caller has given up, which is no error.
        match job {
            Job::Enrol { subject, replace, photographs, reply } => {
                let photographs = photographs.into();
                let judged = Vec::new();
                self.active_job = Some(ActiveJob::Enrol(EnrolJob {
                    subject,
                    replace,
                    photographs,
                    judged,
                    reply,
                }));
            }
            Job::EnrolFromCamera { subject, replace, samples, progress, reply } => {
                let gathering = Gathering::new(samples, self.pad);
                self.camera_job = Some(CameraJob { subject, replace, gathering, progress, reply });
            }
            Job::Identify { picture, reply } => {
                self.active_job = Some(ActiveJob::Identify(IdentifyJob {
                    picture,
                    found: None,
                    identified: Vec::new(),
                    reply,
                }));
            }
            Job::Settle { reply } => {
                reply.send(()).ok();
            }
        }
    }

    /// Does the next step of the job in progress; drops it when its caller has given up.
    fn continue_job(&mut self) {
        self.active_job = match self.active_job.take() {
            Some(ActiveJob::Enrol(job)) if !job.reply.is_closed() => {
                self.continue_enrolment(job).map(ActiveJob::Enrol)
            }
            Some(ActiveJob::Identify(job)) if !job.reply.is_closed() => {
                self.continue_identification(job).map(ActiveJob::Identify)
            }
            _ => None,
        };
    }

    /// Judges the next photograph of an enrolment; after the last one, all of them together.
    fn continue_enrolment(&mut self, mut work: EnrolJob) -> Option<EnrolJob> {
        let outcome = if let Some(photograph) = work.photographs.pop_front() {
            match enrol::judge_photograph(self.engine.as_mut(), &photograph, &self.enrol) {
                Ok(judged) => {
                    work.judged.push(judged);
                    return Some(work);
                }
                Err(error) => Err(error),
            }
        } else {
            let gallery = self.gallery.snapshot();
            let judged = std::mem::take(&mut work.judged);
            Ok(enrol::conclude(judged, &gallery, &work.subject, work.replace, &self.enrol))
        };
        work.reply.send(outcome).ok();
        None
    }

    /// Detects all faces, then identifies the next one.
    fn continue_identification(&mut self, mut work: IdentifyJob) -> Option<IdentifyJob> {
        let outcome = match &mut work.found {
            None => still::faces(self.engine.as_mut(), &work.picture)
                .map(|found| work.found = Some(found.into())),
            Some(found) => {
                let Some(found) = found.pop_front() else {
                    work.reply.send(Ok(work.identified)).ok();
                    return None;
                };
                let scale = work.picture.reduction() as f32;
                self.identify_face(&found, scale).map(|face| work.identified.extend(face))
            }
        };
        if let Err(error) = outcome {
            work.reply.send(Err(error)).ok();
            return None;
        }
        Some(work)
    }

    /// Its box is in pixels of the picture as it was sent, which is `scale` times as wide and high.
    fn identify_face(
        &mut self,
        found: &FoundFace,
        scale: f32,
    ) -> Result<Option<IdentifiedFace>, EngineError> {
        let gallery = self.gallery.snapshot();
        let decision =
            still::identify(self.engine.as_mut(), &found.sample, &gallery, &self.decision)?;
        let bounding_box = found.detection.bounding_box.scaled(scale);
        Ok(decision.map(|decision| IdentifiedFace { bounding_box, decision }))
    }

    /// Uses a frame for the enrolment by the camera; `faces` is how many faces it has.
    fn gather_samples(&mut self, frame: &Frame, faces: usize) {
        let Some(mut camera_job) = self.camera_job.take().filter(|it| !it.reply.is_closed()) else {
            return;
        };
        let observations = self.live.observations();
        match self.add_sample(&mut camera_job.gathering, frame, faces, &observations) {
            Ok(None) => {
                let mut progress = lock(&camera_job.progress);
                progress.tally.clone_from(camera_job.gathering.tally());
                drop(progress);
                self.camera_job = Some(camera_job);
            }
            Ok(Some(gathered)) => self.conclude_camera_job(camera_job, gathered),
            Err(error) => {
                camera_job.reply.send(Err(error)).ok();
            }
        }
    }

    /// Ends the enrolment by the camera with what there is, when its time is up.
    fn close_camera_job(&mut self) {
        let is_closing = |job: &mut CameraJob| lock(&job.progress).is_closing;
        let Some(mut camera_job) = self.camera_job.take_if(is_closing) else { return };
        if let Some(gathered) = camera_job.gathering.closed() {
            self.conclude_camera_job(camera_job, gathered);
        }
    }

    fn conclude_camera_job(&self, job: CameraJob, gathered: Gathered) {
        let Gathered { samples, missing } = gathered;
        let gallery = self.gallery.snapshot();
        let judgement = enrol::conclude(samples, &gallery, &job.subject, job.replace, &self.enrol);
        // A reply cannot be sent when the caller has given up, which is no error.
        job.reply.send(Ok(CameraJudgement { judgement, missing })).ok();
    }

    /// Learns a sample of this frame, if its face is of somebody who lacks the second part of the
    /// embedder.
    fn learn_sample(&mut self, frame: &Frame, faces: usize) -> Result<(), EngineError> {
        let Some(learner) = &mut self.learner else { return Ok(()) };
        let gallery = self.gallery.snapshot();
        let observations = self.live.observations();
        let wanted = learner.wanted_subject(faces, &observations, &gallery, &frame.media());
        let (Some(id), [observation], Ok(picture)) =
            (wanted, observations.as_slice(), frame.pixels.full())
        else {
            return Ok(());
        };
        let FaceObservation { bounding_box, confidence, detected, .. } = *observation;
        let detected = Detection { bounding_box, confidence, landmarks: detected };
        let refined = self.engine.refine(picture, &detected)?;
        let Some(sample) = align::align(picture, &refined.landmarks) else { return Ok(()) };
        let quality = quality::measure(&sample);
        let is_implausible = Stance::of(&detected, &refined) < Stance::REFERENCE_MIN;
        if self.enrol.reference.flaw_of(&quality, is_implausible).is_some() {
            return Ok(());
        }
        if let Some(template) = still::template(self.engine.as_mut(), &sample)? {
            let look = decision::look_first(&template, &gallery, &self.decision);
            let quality = quality::rank(&quality);
            let sample = LearnedSample { id, template, quality };
            learner.offer(sample, &look, &gallery, &self.decision);
        }
        Ok(())
    }

    fn add_sample(
        &mut self,
        gathering: &mut Gathering,
        frame: &Frame,
        faces: usize,
        observations: &[FaceObservation],
    ) -> Result<Option<Gathered>, EngineError> {
        let now = frame.media();
        let wanted = gathering.select_face(faces, observations, &now);
        // A frame that cannot be decoded was counted and logged by recognition.
        let ([observation], Ok(picture)) = (observations, frame.pixels.full()) else {
            return Ok(None);
        };
        let bounding_box = observation.bounding_box;
        let confidence = observation.confidence;
        let landmarks = observation.landmarks;
        let detected = observation.detected;
        if wanted.is_some() {
            let detected = Detection { bounding_box, confidence, landmarks: detected };
            let refined = self.engine.refine(picture, &detected)?;
            if let Some(sample) = align::align(picture, &refined.landmarks) {
                let quality = quality::measure(&sample);
                let stance = Stance::of(&detected, &refined);
                if gathering.is_useful(stance, &quality, &self.enrol)
                    && let Some(template) = still::template(self.engine.as_mut(), &sample)?
                {
                    gathering.add(template, &quality, &self.enrol, &now);
                }
            }
        }
        Ok(if faces == 1 {
            gathering.finished(observation, landmarks.eye_distance_px(), &now)
        } else {
            None
        })
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs a fault of the frames once while it lasts, and seldom when it comes and goes. A line per
/// frame would fill the journal.
struct FaultLog {
    is_over: bool,
    throttle: LogThrottle,
}

const LOG_FAULT_EVERY: Duration = Duration::from_mins(1);

impl Default for FaultLog {
    fn default() -> Self {
        Self { is_over: true, throttle: LogThrottle::new(LOG_FAULT_EVERY) }
    }
}

impl FaultLog {
    fn is_due(&mut self, now: &Stamp) -> bool {
        let is_due = self.is_over && self.throttle.is_due(now);
        self.is_over &= !is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a fault is logged in ten minutes of ten frames a second, every nth of which is
    /// good.
    fn lines_logged(good_every: u64) -> usize {
        let mut log = FaultLog::default();
        let frame = |at: u64| {
            if at.is_multiple_of(good_every) {
                log.is_over = true;
                return false;
            }
            log.is_due(&Stamp { wall_ms: 0, boottime_ms: at * 100, trusted: false })
        };
        (1..=6000).map(frame).filter(|is_due| *is_due).count()
    }

    #[test]
    fn repeated_fault_logs_are_throttled() {
        assert_eq!(lines_logged(10_000), 1, "it lasts");
        assert_eq!(lines_logged(2), 10);
        // It lasts, though it began within a minute of the one before: logged late, not never.
        assert_eq!(lines_logged(100), 10);
    }
}
