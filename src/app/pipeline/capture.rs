//! The capture thread: moves frames from the source into the slot of one frame, and records when the
//! camera is lost and comes back.
//!
//! Invariants: the thread ends only with the stop signal or a fatal error of the store. A lost camera
//! is a state (in `health` and as an event), and the source is retried for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::pipeline::camera_events::CameraEvents;
use crate::app::supervise::StageResult;
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::http_stream::HttpCamera;
use crate::camera::pipe::PipeCamera;
use crate::camera::replay::Replay;
use crate::camera::stream::Timing;
use crate::camera::v4l2::V4l2Camera;
use crate::camera::{CameraError, FrameSource, FrameTime, Next, SourceFrame};
use crate::clock::{Clock, Stamp, Stopwatch};
use crate::config::camera::CameraSettings;
use crate::config::raw::RawPace;
use crate::error_chain::error_chain;
use crate::health::{CameraHealth, CameraLoss, Health};
use crate::log_throttle::LogThrottle;
use crate::recognise::frame::{Frame, Latest};

pub struct Capture {
    source: Box<dyn FrameSource>,
    slot: Arc<Latest<Frame>>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    events: CameraEvents,
    stop: watch::Receiver<bool>,
    pacing: Pacing,
    /// Becomes true when the source has ended and its last frame was taken.
    ended: watch::Sender<bool>,
}

/// When the next frame is put into the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pacing {
    /// When the source has it, or at its media time. It replaces a frame that was not taken.
    RealTime,
    /// When inference has taken the one before. None is replaced.
    WaitForConsumer,
}

pub struct PacedSource {
    source: Box<dyn FrameSource>,
    pacing: Pacing,
}

/// Opens the configured camera, if there is one.
pub fn open_camera(camera: &CameraSettings) -> Result<Option<PacedSource>, CameraError> {
    let paced = |source, pacing| Some(PacedSource { source, pacing });
    Ok(match camera {
        CameraSettings::None => None,
        CameraSettings::Replay { replay, pace } => {
            let pacing = match pace {
                RawPace::Networks => Pacing::WaitForConsumer,
                RawPace::Real => Pacing::RealTime,
            };
            paced(Box::new(Replay::open(replay.clone())?), pacing)
        }
        CameraSettings::V4l2(settings) => {
            paced(Box::new(V4l2Camera::new(settings.clone())), Pacing::RealTime)
        }
        CameraSettings::Pipe(settings) => {
            let pacing = match settings.stream.timing {
                Timing::Recording => Pacing::WaitForConsumer,
                Timing::Arrival => Pacing::RealTime,
            };
            paced(Box::new(PipeCamera::new(settings.clone())), pacing)
        }
        CameraSettings::Http(settings) => {
            paced(Box::new(HttpCamera::new(settings.clone())), Pacing::RealTime)
        }
    })
}

/// The longest sleep, so that the stop signal is noticed in time.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Damaged frames are counted in health. A bad cable must not fill the journal.
const LOG_DAMAGE_EVERY: Duration = Duration::from_mins(1);

/// Tracks whether the pictures can be read: the source rejects some, and some damage shows only
/// when inference decodes them.
#[derive(Default)]
struct ReadStatus {
    decoded: u64,
    failed: u64,
    /// The time of the first undecodable frame since the last decoded one.
    failing_since: Option<Stamp>,
    /// The time of the first picture that the source rejected since its last frame.
    rejecting_since: Option<Stamp>,
    /// The camera was lost for this reason. It is back when a frame is decoded, not when one comes.
    is_doubtful: bool,
}

impl ReadStatus {
    /// Returns for how long no frame could be decoded, whenever another one failed.
    fn undecodable_for(&mut self, health: &Health, now: &Stamp) -> Option<Duration> {
        // A frame at which a model fails was decoded. One whose brightness alone was read was not.
        let decoded = health.camera.frames_detected.get() + health.recognition.errors.get();
        let failed = health.camera.frames_undecodable.get();
        let has_decoded = std::mem::replace(&mut self.decoded, decoded) != decoded;
        let has_failed = std::mem::replace(&mut self.failed, failed) != failed;
        if has_decoded {
            self.failing_since = None;
            self.is_doubtful = false;
            return None;
        }
        has_failed.then(|| now.since(self.failing_since.get_or_insert(*now)))
    }

    /// Returns for how long the source has rejected every picture.
    fn rejected_for(&mut self, now: &Stamp) -> Duration {
        now.since(self.rejecting_since.get_or_insert(*now))
    }

    fn note_lost(&mut self, fault: &CameraFault) {
        self.failing_since = None;
        self.rejecting_since = None;
        self.is_doubtful |= fault.kind == FaultKind::Damaged;
    }
}

impl Capture {
    pub fn new(
        ctx: Context,
        camera: PacedSource,
        slot: Arc<Latest<Frame>>,
        ended: watch::Sender<bool>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let Context { clock, health, store, .. } = ctx;
        let PacedSource { source, pacing } = camera;
        let events = CameraEvents::new(store, Arc::clone(&health));
        Self { source, slot, clock, health, events, stop, pacing, ended }
    }

    pub fn run(mut self) -> StageResult {
        let watch = Stopwatch::start();
        tracing::info!(source = self.source.describe(), "camera starting");
        let mut ended = false;
        let mut damage_log = LogThrottle::new(LOG_DAMAGE_EVERY);
        let mut reading = ReadStatus::default();
        let mut last_rejected = None;
        if let Some(reason) = self.events.resume(self.clock.as_ref())? {
            self.health.set_camera_lost(CameraLoss { fault: None, reason });
        }
        while !*self.stop.borrow() && !ended {
            match self.next(&mut reading) {
                Ok(Next::Frame(frame)) => {
                    reading.rejecting_since = None;
                    if !reading.is_doubtful {
                        self.note_streaming()?;
                    }
                    self.deliver(frame, &watch);
                }
                Ok(Next::Nothing) => self.events.record_pending_loss(&self.clock.now())?,
                Ok(Next::End) => {
                    self.finish(last_rejected.as_deref())?;
                    ended = true;
                }
                Err(CameraError::Lost(fault)) => {
                    reading.note_lost(&fault);
                    self.note_lost(&fault)?;
                }
                Err(error) => {
                    let why = match error {
                        CameraError::Damaged { why } => {
                            self.count_damaged(&why, &mut damage_log);
                            why
                        }
                        error => self.skip_picture(&error),
                    };
                    let long = reading.rejected_for(&self.clock.now());
                    if let Err(CameraError::Lost(fault)) = self.source.unreadable_for(long, &why) {
                        reading.note_lost(&fault);
                        self.note_lost(&fault)?;
                    }
                    last_rejected = Some(why);
                }
            }
        }
        // The camera is released before the other stages have finished.
        drop(self.source);
        while !*self.stop.borrow() {
            std::thread::sleep(SLEEP_MAX);
        }
        self.slot.close();
        Ok(())
    }

    fn next(&mut self, reading: &mut ReadStatus) -> Result<Next, CameraError> {
        if let Some(long) = reading.undecodable_for(&self.health, &self.clock.now()) {
            self.source.unreadable_for(long, &self.health.camera_damage())?;
        }
        self.source.next()
    }

    fn note_streaming(&mut self) -> StageResult {
        match self.health.set_camera_state(CameraHealth::Streaming) {
            CameraHealth::Streaming => {}
            CameraHealth::Absent => tracing::info!("camera streaming"),
            CameraHealth::Lost => {
                let lost_ms =
                    self.events.camera_back(&self.clock.now())?.map(|away| away.as_millis() as u64);
                tracing::info!(lost_ms, "camera back");
            }
        }
        Ok(())
    }

    fn note_lost(&mut self, fault: &CameraFault) -> StageResult {
        let reason = fault.reason();
        let loss = CameraLoss { fault: Some(fault.kind.as_str()), reason: reason.to_owned() };
        // Each failed attempt to reopen the camera reports a loss; only the first one is new.
        if self.health.set_camera_lost(loss) == CameraHealth::Lost {
            tracing::debug!(reason, "camera is not back yet");
            return Ok(());
        }
        self.health.camera.losses.add(1);
        tracing::warn!(reason, hint = self.source.hint(), "camera lost");
        Ok(self.events.camera_lost(&self.clock.now(), reason)?)
    }

    /// Skips a picture of a replay. Returns why.
    fn skip_picture(&self, error: &CameraError) -> String {
        self.health.camera.frames_unreadable.add(1);
        let why = error_chain(error);
        tracing::warn!(error = why, "a picture was skipped");
        std::thread::sleep(SLEEP_MAX);
        why
    }

    fn count_damaged(&self, why: &str, log: &mut LogThrottle) {
        self.health.camera.frames_unreadable.add(1);
        if log.is_due(&self.clock.now()) {
            tracing::warn!(
                why,
                frames = self.health.camera.frames_unreadable.get(),
                "damaged frames are skipped"
            );
        }
    }

    fn deliver(&mut self, frame: SourceFrame, watch: &Stopwatch) {
        let (taken, media_ms) = match frame.when {
            FrameTime::Media(at) => {
                if self.pacing == Pacing::RealTime {
                    while watch.elapsed() < at && !*self.stop.borrow() {
                        std::thread::sleep((at.saturating_sub(watch.elapsed())).min(SLEEP_MAX));
                    }
                }
                (self.clock.now(), at.as_millis() as u64)
            }
            FrameTime::Age(ago) => {
                let taken = self.clock.now().before(ago);
                (taken, taken.boottime_ms)
            }
        };
        self.health.camera.frames_missed.add(frame.missed.into());
        let seq = self.health.camera.frames_captured.get();
        self.health.camera.frames_captured.add(1);
        if self.pacing == Pacing::WaitForConsumer {
            while !*self.stop.borrow() && !self.slot.wait_free(SLEEP_MAX) {}
        }
        let replaced = self.slot.put(Frame { seq, taken, media_ms, pixels: frame.pixels });
        self.health.camera.frames_replaced.set(replaced);
    }

    /// `rejected`: why the last unreadable picture was skipped.
    fn finish(&mut self, rejected: Option<&str>) -> StageResult {
        while !*self.stop.borrow() && !self.slot.wait_free(SLEEP_MAX) {}
        let frames = self.health.camera.frames_captured.get();
        match rejected {
            Some(why) if frames == 0 => {
                let reason = format!("the replay has no picture that can be read, the last: {why}");
                self.note_lost(&CameraFault::new(FaultKind::Damaged, reason))?;
            }
            _ => {
                self.health.set_camera_state(CameraHealth::Absent);
            }
        }
        tracing::info!(frames, "replay ended");
        self.ended.send_replace(true);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::recognise::picture::Picture;
    use crate::store::{Store, StoreOptions};
    use crate::wire::event::{Body, Camera, CameraState, NewEvent};
    use std::sync::Mutex;

    /// Plays a script, and asks for the end when it is over.
    struct Script {
        steps: Vec<Step>,
        clock: Arc<SimulatedClock>,
        stop: watch::Sender<bool>,
        seen: Arc<Mutex<Vec<CameraHealth>>>,
        health: Arc<Health>,
    }

    enum Step {
        Frame(Duration),
        Wait(Duration),
        /// A frame that cannot be decoded, and the time to the next.
        Undecodable(Duration),
        /// A picture that the source rejects, after so long.
        Damaged(Duration),
        Lost(&'static str),
    }

    impl FrameSource for Script {
        fn next(&mut self) -> Result<Next, CameraError> {
            self.seen.lock().unwrap().push(self.health.camera_state());
            if self.steps.is_empty() {
                self.stop.send_replace(true);
                return Ok(Next::Nothing);
            }
            match self.steps.remove(0) {
                Step::Frame(ago) => {
                    self.health.camera.frames_detected.add(1);
                    let pixels = Arc::new(Picture::plain(4, 4, [9; 3]));
                    Ok(Next::Frame(SourceFrame { pixels, when: FrameTime::Age(ago), missed: 2 }))
                }
                Step::Wait(time) => {
                    self.clock.advance(time);
                    Ok(Next::Nothing)
                }
                Step::Undecodable(time) => {
                    self.health.count_undecodable("torn".into());
                    // The brightness of another one may be read.
                    self.health.camera.frames_analysed.add(1);
                    self.clock.advance(time);
                    let pixels = Arc::new(Picture::plain(4, 4, [9; 3]));
                    Ok(Next::Frame(SourceFrame {
                        pixels,
                        when: FrameTime::Age(Duration::ZERO),
                        missed: 0,
                    }))
                }
                Step::Damaged(time) => {
                    self.clock.advance(time);
                    Err(CameraError::Damaged { why: "torn".into() })
                }
                Step::Lost(reason) => {
                    Err(CameraError::Lost(CameraFault::new(FaultKind::Unplugged, reason)))
                }
            }
        }

        fn describe(&self) -> String {
            "a script".into()
        }
    }

    struct Played {
        events: Vec<Camera>,
        health: Arc<Health>,
        states: Vec<CameraHealth>,
        last: Option<Frame>,
    }

    const DAMAGE: &str = "nothing but damaged pictures for 4000 ms, the last: torn";

    fn play(steps: Vec<Step>) -> Played {
        play_after(Vec::new(), steps)
    }

    /// With what the store has of an earlier run.
    fn play_after(before: Vec<Camera>, steps: Vec<Step>) -> Played {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(1_000_000));
        let shared: Arc<dyn Clock> = clock.clone();
        let opened =
            Store::open(dir.path(), StoreOptions::new(Vec::new(), Arc::clone(&shared))).unwrap();
        for camera in before {
            let event = NewEvent::new(clock.now(), Body::Camera(camera));
            opened.store.write(move |tx| tx.append_event(&event)).unwrap();
        }
        let health = Arc::new(Health::default());
        let slot = Arc::new(Latest::default());
        let seen = Arc::default();
        let (stopper, stop) = watch::channel(false);
        let script = Script {
            steps,
            clock,
            stop: stopper,
            seen: Arc::clone(&seen),
            health: Arc::clone(&health),
        };
        let capture = Capture {
            source: Box::new(script),
            slot: Arc::clone(&slot),
            clock: shared,
            health: Arc::clone(&health),
            events: CameraEvents::new(opened.store.clone(), Arc::clone(&health)),
            stop,
            pacing: Pacing::RealTime,
            ended: watch::channel(false).0,
        };
        capture.run().unwrap();
        let event = |seq| opened.store.write(move |tx| tx.event(seq)).unwrap();
        let events = (1..).map_while(event).filter_map(|event| match event.body {
            Body::Camera(camera) => Some(camera),
            _ => None,
        });
        let states = seen.lock().unwrap().clone();
        Played { events: events.collect(), health, states, last: slot.take(Duration::ZERO) }
    }

    fn camera_event(state: CameraState, reason: Option<&str>, lost_ms: Option<u64>) -> Camera {
        Camera { state, reason: reason.map(Into::into), lost_ms }
    }

    #[test]
    fn each_loss_and_return_is_one_event() {
        let frame = || Step::Frame(Duration::ZERO);
        let second = Duration::from_secs(1);
        let lost = || Step::Lost("unplugged");
        let played = play(vec![
            frame(),
            frame(),
            lost(),
            Step::Wait(second),
            lost(),
            Step::Wait(second),
            lost(),
            frame(),
            frame(),
        ]);
        let expected = [
            camera_event(CameraState::Lost, Some("unplugged"), None),
            camera_event(CameraState::Back, None, Some(2000)),
        ];
        assert_eq!(played.events, expected);
        assert_eq!(
            (played.health.camera.losses.get(), played.health.camera.frames_missed.get()),
            (1, 8)
        );
        assert_eq!(played.states[3..6], [CameraHealth::Lost; 3]);
        assert_eq!(played.health.camera_state(), CameraHealth::Streaming);
    }

    #[test]
    fn absent_camera_at_start_counts_as_lost() {
        let none = || Step::Lost("there is no camera");
        let played = play(vec![none(), none(), Step::Frame(Duration::ZERO)]);
        let states: Vec<_> = played.events.iter().map(|event| event.state).collect();
        assert_eq!(states, [CameraState::Lost, CameraState::Back]);
        assert_eq!(played.states[0], CameraHealth::Absent);
    }

    #[test]
    fn undecodable_frames_make_the_camera_lost() {
        let frame = || Step::Frame(Duration::ZERO);
        let undecodable = || Step::Undecodable(Duration::from_millis(500));
        let mut steps = vec![frame()];
        steps.extend((0..12).map(|_| undecodable()));
        steps.extend([frame(), frame()]);
        let played = play(steps);
        let expected = [
            camera_event(CameraState::Lost, Some(DAMAGE), None),
            camera_event(CameraState::Back, None, Some(1500)),
        ];
        assert_eq!(played.events, expected);
        assert_eq!(played.health.camera_state(), CameraHealth::Streaming);
        // Some of them can.
        let played = play((0..40).flat_map(|_| [undecodable(), frame()]).collect());
        assert_eq!(played.events, []);
    }

    #[test]
    fn rejected_pictures_make_the_camera_lost() {
        let damaged = || Step::Damaged(Duration::from_millis(500));
        let frame = || Step::Frame(Duration::ZERO);
        let mut steps = vec![frame()];
        steps.extend((0..12).map(|_| damaged()));
        let played = play(steps);
        assert_eq!(played.events, [camera_event(CameraState::Lost, Some(DAMAGE), None)]);
        let loss = CameraLoss { fault: Some("damaged"), reason: DAMAGE.into() };
        assert_eq!(played.health.camera_loss(), Some(loss));
        // Some of them can be read.
        let played = play((0..40).flat_map(|_| [damaged(), frame()]).collect());
        assert_eq!(played.events, []);
        assert_eq!(played.health.camera_loss(), None);
    }

    #[test]
    fn return_after_restart_ends_earlier_loss() {
        let lost = || camera_event(CameraState::Lost, Some("unplugged"), None);
        let back = |ms| camera_event(CameraState::Back, None, Some(ms));
        let steps = || {
            let away = Step::Lost("there is no camera");
            vec![
                away,
                Step::Wait(Duration::from_secs(3)),
                Step::Frame(Duration::ZERO),
                Step::Frame(Duration::ZERO),
            ]
        };
        let played = play_after(vec![lost()], steps());
        assert_eq!(played.events, [lost(), back(3000)]);
        assert_eq!(played.states[0], CameraHealth::Lost);
        // One that was reported as back is not lost.
        let played = play_after(vec![lost(), back(1)], vec![Step::Frame(Duration::ZERO)]);
        assert_eq!(played.events, [lost(), back(1)]);
    }

    #[test]
    fn frame_has_its_capture_time() {
        let played =
            play(vec![Step::Wait(Duration::from_secs(9)), Step::Frame(Duration::from_millis(70))]);
        let frame = played.last.unwrap();
        assert_eq!((frame.taken.wall_ms, frame.taken.boottime_ms), (1_008_930, 9_930));
        assert_eq!(frame.media_ms, 9_930);
        assert!(played.events.is_empty(), "a start is no return");
    }

    #[test]
    fn damaged_frames_are_counted_and_dropped() {
        let damaged = || Step::Damaged(Duration::ZERO);
        let played = play(vec![damaged(), damaged()]);
        assert_eq!(
            (
                played.health.camera.frames_unreadable.get(),
                played.health.camera.frames_captured.get()
            ),
            (2, 0)
        );
        assert!(played.last.is_none() && played.events.is_empty());
    }
}
