//! The capture thread: frames from the source into the one-place slot, at the source's pace; and the camera's state, told
//! when it changes.
//!
//! What must hold: the thread ends only when it is asked to, or when the store is of no use; a camera that is away is a
//! state (`health`, an event), and the source is asked again for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::camera_events::CameraEvents;
use crate::app::supervise::StageResult;
use crate::camera::{CameraError, FrameSource, Next, SourceFrame, When};
use crate::clock::{Clock, Stamp, Stopwatch};
use crate::health::{CameraHealth, Health};
use crate::recognise::frame::{Frame, Latest};

pub struct Capture {
    pub source: Box<dyn FrameSource>,
    pub slot: Arc<Latest<Frame>>,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    pub events: CameraEvents,
    pub stop: watch::Receiver<bool>,
    /// As fast as the networks take the frames, none replaced.
    pub patient: bool,
    /// Told when nothing more will come and the last frame was taken.
    pub ended: watch::Sender<bool>,
}

/// Longest sleep at a stretch, so that a stop is heard.
const NAP_MAX: Duration = Duration::from_millis(100);
/// Damaged frames are counted in health; a bad cable must not fill the journal too.
const TELL_DAMAGE_EVERY: Duration = Duration::from_mins(1);

/// Whether the networks can read what is delivered: some damage shows only when a frame is decoded.
#[derive(Default)]
struct Legibility {
    read: u64,
    failed: u64,
    /// The first of the frames that could not be read, with none since that could.
    failing_since: Option<Stamp>,
    /// The camera was lost for this: it is back when a frame was read, not when one comes.
    doubtful: bool,
}

impl Legibility {
    /// How long no frame could be read, each time when there was another of them.
    fn unreadable_for(&mut self, health: &Health, now: &Stamp) -> Option<Duration> {
        // A frame at which the networks fail was decoded.
        let read = health.frames_analysed.get() + health.engine_errors.get();
        let failed = health.frames_undecodable.get();
        let (read_before, failed_before) = (self.read, self.failed);
        (self.read, self.failed) = (read, failed);
        if read != read_before {
            (self.failing_since, self.doubtful) = (None, false);
            return None;
        }
        (failed != failed_before).then(|| now.since(self.failing_since.get_or_insert(*now)))
    }
}

impl Capture {
    pub fn run(mut self) -> StageResult {
        let watch = Stopwatch::start();
        tracing::info!(source = self.source.describe(), "camera starting");
        let (mut ended, mut damage_told, mut legibility) = (false, None, Legibility::default());
        if self.events.resume(self.clock.as_ref())? {
            self.health.set_camera(CameraHealth::Lost);
        }
        while !*self.stop.borrow() && !ended {
            let next = match legibility.unreadable_for(&self.health, &self.clock.now()) {
                Some(long) => {
                    self.source.unreadable_for(long).inspect_err(|_| legibility.doubtful = true)
                }
                None => Ok(()),
            };
            match next.and_then(|()| self.source.next()) {
                Ok(Next::Frame(frame)) => {
                    if !legibility.doubtful {
                        self.streaming()?;
                    }
                    self.deliver(frame, &watch);
                }
                Ok(Next::Nothing) => self.events.remind(&self.clock.now())?,
                Ok(Next::End) => {
                    self.finish();
                    ended = true;
                }
                Err(CameraError::Lost { reason }) => {
                    legibility.failing_since = None;
                    self.lost(&reason)?;
                }
                Err(CameraError::Damaged { why }) => self.damaged(&why, &mut damage_told),
                Err(error) => {
                    self.health.frames_unreadable.add(1);
                    tracing::warn!(
                        error = format!("{:#}", anyhow::Error::new(error)),
                        "a picture was left out"
                    );
                    std::thread::sleep(NAP_MAX);
                }
            }
        }
        // The camera is given back before the others have finished.
        drop(self.source);
        while !*self.stop.borrow() {
            std::thread::sleep(NAP_MAX);
        }
        self.slot.close();
        Ok(())
    }

    fn streaming(&mut self) -> StageResult {
        match self.health.set_camera(CameraHealth::Streaming) {
            CameraHealth::Streaming => {}
            CameraHealth::Absent => tracing::info!("camera streaming"),
            CameraHealth::Lost => {
                let lost_ms =
                    self.events.back(&self.clock.now())?.map(|away| away.as_millis() as u64);
                tracing::info!(lost_ms, "camera back");
            }
        }
        Ok(())
    }

    fn lost(&mut self, reason: &str) -> StageResult {
        // Each failed attempt to get it back says so too; the edge is the first.
        if self.health.set_camera(CameraHealth::Lost) == CameraHealth::Lost {
            tracing::debug!(reason, "the camera is not back yet");
            return Ok(());
        }
        self.health.camera_losses.add(1);
        tracing::warn!(reason, hint = self.source.hint(), "camera lost");
        Ok(self.events.lost(&self.clock.now(), reason)?)
    }

    fn damaged(&self, why: &str, told: &mut Option<Stamp>) {
        self.health.frames_unreadable.add(1);
        let now = self.clock.now();
        if told.is_none_or(|at| now.since(&at) >= TELL_DAMAGE_EVERY) {
            *told = Some(now);
            tracing::warn!(
                why,
                frames = self.health.frames_unreadable.get(),
                "a damaged frame was left out"
            );
        }
    }

    fn deliver(&mut self, frame: SourceFrame, watch: &Stopwatch) {
        let (taken, media_ms) = match frame.when {
            When::At(at) => {
                if !self.patient {
                    while watch.elapsed() < at && !*self.stop.borrow() {
                        std::thread::sleep((at.saturating_sub(watch.elapsed())).min(NAP_MAX));
                    }
                }
                (self.clock.now(), at.as_millis() as u64)
            }
            When::Ago(ago) => {
                let taken = self.clock.now().before(ago);
                (taken, taken.boottime_ms)
            }
        };
        self.health.frames_missed.add(frame.missed.into());
        let seq = self.health.frames_captured.get();
        self.health.frames_captured.add(1);
        if self.patient {
            while !*self.stop.borrow() && !self.slot.wait_free(NAP_MAX) {}
        }
        let replaced = self.slot.put(Frame { seq, taken, media_ms, pixels: frame.pixels });
        self.health.frames_replaced.set(replaced);
    }

    fn finish(&self) {
        while !*self.stop.borrow() && !self.slot.wait_free(NAP_MAX) {}
        self.health.set_camera(CameraHealth::Absent);
        tracing::info!(frames = self.health.frames_captured.get(), "the replay has ended");
        self.ended.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::recognise::picture::Picture;
    use crate::record::event::{Body, Camera, CameraState, NewEvent};
    use crate::record::store::{Store, StoreOptions};
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
        Damaged,
        Lost(&'static str),
    }

    impl FrameSource for Script {
        fn next(&mut self) -> Result<Next, CameraError> {
            self.seen.lock().unwrap().push(self.health.camera());
            if self.steps.is_empty() {
                self.stop.send_replace(true);
                return Ok(Next::Nothing);
            }
            match self.steps.remove(0) {
                Step::Frame(ago) => {
                    self.health.frames_analysed.add(1);
                    let pixels = Arc::new(Picture::plain(4, 4, [9; 3]));
                    Ok(Next::Frame(SourceFrame { pixels, when: When::Ago(ago), missed: 2 }))
                }
                Step::Wait(time) => {
                    self.clock.advance(time);
                    Ok(Next::Nothing)
                }
                Step::Undecodable(time) => {
                    self.health.frames_undecodable.add(1);
                    self.clock.advance(time);
                    let pixels = Arc::new(Picture::plain(4, 4, [9; 3]));
                    Ok(Next::Frame(SourceFrame {
                        pixels,
                        when: When::Ago(Duration::ZERO),
                        missed: 0,
                    }))
                }
                Step::Damaged => Err(CameraError::Damaged { why: "torn".into() }),
                Step::Lost(reason) => Err(CameraError::Lost { reason: reason.into() }),
            }
        }

        fn unreadable_for(&mut self, long: Duration) -> Result<(), CameraError> {
            let lost = || CameraError::Lost { reason: "damaged".into() };
            if long < Duration::from_secs(4) { Ok(()) } else { Err(lost()) }
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
        let (health, slot, seen) =
            (Arc::new(Health::default()), Arc::new(Latest::default()), Arc::default());
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
            patient: false,
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

    fn told(state: CameraState, reason: Option<&str>, lost_ms: Option<u64>) -> Camera {
        Camera { state, reason: reason.map(Into::into), lost_ms }
    }

    #[test]
    fn a_loss_and_the_return_are_one_event_each_however_many_attempts_lie_between() {
        let (frame, second) = (|| Step::Frame(Duration::ZERO), Duration::from_secs(1));
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
            told(CameraState::Lost, Some("unplugged"), None),
            told(CameraState::Back, None, Some(2000)),
        ];
        assert_eq!(played.events, expected);
        assert_eq!((played.health.camera_losses.get(), played.health.frames_missed.get()), (1, 8));
        assert_eq!(played.states[3..6], [CameraHealth::Lost; 3]);
        assert_eq!(played.health.camera(), CameraHealth::Streaming);
    }

    #[test]
    fn a_camera_that_is_not_there_at_the_start_is_lost_and_comes_back() {
        let none = || Step::Lost("there is no camera");
        let played = play(vec![none(), none(), Step::Frame(Duration::ZERO)]);
        let states: Vec<_> = played.events.iter().map(|event| event.state).collect();
        assert_eq!(states, [CameraState::Lost, CameraState::Back]);
        assert_eq!(played.states[0], CameraHealth::Absent);
    }

    #[test]
    fn a_camera_whose_frames_cannot_be_decoded_is_lost_until_one_can() {
        let frame = || Step::Frame(Duration::ZERO);
        let undecodable = || Step::Undecodable(Duration::from_millis(500));
        let mut steps = vec![frame()];
        steps.extend((0..12).map(|_| undecodable()));
        steps.extend([frame(), frame()]);
        let played = play(steps);
        let expected = [
            told(CameraState::Lost, Some("damaged"), None),
            told(CameraState::Back, None, Some(1500)),
        ];
        assert_eq!(played.events, expected);
        assert_eq!(played.health.camera(), CameraHealth::Streaming);
        // Some of them can.
        let played = play((0..40).flat_map(|_| [undecodable(), frame()]).collect());
        assert_eq!(played.events, []);
    }

    #[test]
    fn a_loss_told_before_the_start_has_its_return_told_after_it() {
        let lost = || told(CameraState::Lost, Some("unplugged"), None);
        let back = |ms| told(CameraState::Back, None, Some(ms));
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
        // One that was told to be back is not lost.
        let played = play_after(vec![lost(), back(1)], vec![Step::Frame(Duration::ZERO)]);
        assert_eq!(played.events, [lost(), back(1)]);
    }

    #[test]
    fn a_frame_bears_the_time_at_which_it_was_taken() {
        let played =
            play(vec![Step::Wait(Duration::from_secs(9)), Step::Frame(Duration::from_millis(70))]);
        let frame = played.last.unwrap();
        assert_eq!((frame.taken.wall_ms, frame.taken.boottime_ms), (1_008_930, 9_930));
        assert_eq!(frame.media_ms, 9_930);
        assert!(played.events.is_empty(), "a start is no return");
    }

    #[test]
    fn damage_is_counted_and_goes_no_further() {
        let played = play(vec![Step::Damaged, Step::Damaged]);
        assert_eq!(
            (played.health.frames_unreadable.get(), played.health.frames_captured.get()),
            (2, 0)
        );
        assert!(played.last.is_none() && played.events.is_empty());
    }
}
