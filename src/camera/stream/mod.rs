//! Frames from a stream of bytes: what a command writes, or what a camera in the network sends.
//!
//! What must hold, whoever is at the other end: memory is bounded by one picture; the rate that is
//! passed on is `fps`, what comes faster is dropped before it is copied; a stream that is faster
//! than [`BYTES_PER_SECOND_MAX`] is read no faster, so that its writer waits; no usable picture for
//! `stall_after` is a fault that names what came instead.
//!
//! The bytes carry no time: a frame was taken when its last byte came. Buffers on the way make it
//! older than that.

pub mod split;

use std::sync::Arc;
use std::time::Duration;

use crate::camera::encoded::{Buffers, Coding, Encoded};
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::stream::split::{Piece, Splitter};
use crate::camera::view::View;
use crate::camera::{CameraError, FrameTime, SourceFrame, unreadable_fault};
use crate::clock::Stopwatch;

#[derive(Clone, Debug, PartialEq)]
pub struct StreamSettings {
    pub coding: Coding,
    pub fps: f32,
    /// No usable picture for this long is a stall. At least the time of two frames.
    pub stall_after: Duration,
    pub view: View,
    pub timing: Timing,
}

/// How the stream's pictures get their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// When they come; what comes too fast is dropped.
    Arrival,
    /// One after the other at the rate, as in a recording; none is dropped.
    Recording,
}

/// Three times what a Raspberry Pi camera module delivers at 1280 x 720 and 30 frames a second in
/// YUV 4:2:0.
const BYTES_PER_SECOND_MAX: usize = 128 << 20;
/// One read: the usual size of a pipe.
pub const READ_BYTES: usize = 64 << 10;
const SECOND: Duration = Duration::from_secs(1);

/// What becomes of the bytes of one connection or child.
pub struct PictureStream {
    settings: StreamSettings,
    splitter: Splitter,
    buffers: Arc<Buffers>,
    pace: Pace,
    /// Since the beginning.
    watch: Stopwatch,
    /// When the last frame was passed on, or the beginning.
    usable_at: Duration,
    frames: u64,
    /// Bytes since the last usable frame.
    bytes_since: u64,
    /// What was wrong with the last picture, if there was no usable one after it.
    damage: Option<String>,
    allowance: Allowance,
}

impl PictureStream {
    pub fn new(settings: &StreamSettings, buffers: &Arc<Buffers>) -> Self {
        let splitter = match settings.coding {
            Coding::Jpeg => Splitter::jpeg(),
            raw => Splitter::raw(raw.frame_bytes().unwrap_or_default()),
        };
        Self {
            settings: settings.clone(),
            splitter,
            buffers: Arc::clone(buffers),
            pace: Pace::new(settings.fps),
            watch: Stopwatch::start(),
            usable_at: Duration::ZERO,
            frames: 0,
            bytes_since: 0,
            damage: None,
            allowance: Allowance::default(),
        }
    }

    /// Takes what was read; [`Self::next_frame`] must have returned `None` before.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes_since += bytes.len() as u64;
        self.allowance.bytes += bytes.len();
        self.splitter.push(bytes);
    }

    /// The next frame of what was read; an error is a damaged picture.
    pub fn next_frame(&mut self) -> Option<Result<SourceFrame, CameraError>> {
        loop {
            let bytes = match self.splitter.next_piece()? {
                Piece::Picture(bytes) => bytes,
                Piece::Broken(why) => return Some(Err(note_damage(&mut self.damage, why.into()))),
            };
            let now = self.watch.elapsed();
            if self.settings.timing == Timing::Arrival && !self.pace.admits(now) {
                continue;
            }
            let StreamSettings { coding, view, .. } = &self.settings;
            return Some(match Encoded::new(bytes, *coding, view, &self.buffers) {
                Ok(encoded) => {
                    let when = match self.settings.timing {
                        Timing::Arrival => FrameTime::Age(Duration::ZERO),
                        Timing::Recording => FrameTime::Media(Duration::from_secs_f64(
                            self.frames as f64 / f64::from(self.settings.fps),
                        )),
                    };
                    self.frames += 1;
                    self.usable_at = now;
                    self.bytes_since = 0;
                    self.damage = None;
                    Ok(SourceFrame { pixels: Arc::new(encoded), when, missed: 0 })
                }
                Err(error) => Err(note_damage(&mut self.damage, error.to_string())),
            });
        }
    }

    /// Returns how long nothing may be read because the stream is too fast.
    pub fn pause(&mut self) -> Option<Duration> {
        self.allowance.pause(self.watch.elapsed())
    }

    /// Returns why there was no usable picture for `stall_after`, if there was none.
    pub fn silence_fault(&self) -> Option<CameraFault> {
        let long = self.settings.stall_after;
        if self.watch.elapsed().saturating_sub(self.usable_at) < long {
            return None;
        }
        let ms = long.as_millis();
        Some(match &self.damage {
            Some(why) => unreadable_fault(long, why),
            None if self.bytes_since == 0 => {
                CameraFault::new(FaultKind::Stalled, format!("stalled: no picture for {ms} ms"))
            }
            None => {
                let bytes = self.bytes_since;
                let reason = format!("no whole picture in the last {bytes} bytes, for {ms} ms");
                CameraFault::new(FaultKind::NotPictures, reason)
            }
        })
    }

    /// How long the stream has lived, and how many frames it gave.
    pub fn age(&self) -> Duration {
        self.watch.elapsed()
    }

    pub fn frames(&self) -> u64 {
        self.frames
    }

    pub fn is_within_picture(&self) -> bool {
        self.splitter.is_within_picture()
    }
}

fn note_damage(damage: &mut Option<String>, why: String) -> CameraError {
    *damage = Some(why.clone());
    CameraError::Damaged { why }
}

/// What may be read in one second.
#[derive(Debug, Default)]
struct Allowance {
    /// Read in the present second, and when it began.
    bytes: usize,
    since: Duration,
}

impl Allowance {
    fn pause(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.since);
        if passed >= SECOND {
            *self = Self { bytes: 0, since: now };
            return None;
        }
        (self.bytes >= BYTES_PER_SECOND_MAX).then(|| SECOND.saturating_sub(passed))
    }
}

/// Admits a rate and lets a frame be early or late by more than a whole interval: what comes
/// through buffers comes in bursts.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    tolerance: Duration,
    /// When the next frame is due.
    due: Duration,
}

impl Pace {
    fn new(fps: f32) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / f64::from(fps)).unwrap_or_default();
        Self { interval, tolerance: interval.mul_f32(1.5), due: Duration::ZERO }
    }

    fn admits(&mut self, now: Duration) -> bool {
        if now + self.tolerance < self.due {
            return false;
        }
        self.due = self.due.max(now) + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::encoded::{Kind, Raster};
    use crate::camera::jpegs::Spec;

    fn settings(coding: Coding) -> StreamSettings {
        let stall_after = Duration::from_secs(2);
        let view = View::default();
        StreamSettings { coding, fps: 10.0, stall_after, view, timing: Timing::Arrival }
    }

    #[test]
    fn pace_keeps_rate_and_forgives_jitter() {
        let admitted = |times: &mut dyn Iterator<Item = u64>| {
            let mut pace = Pace::new(10.0);
            times.filter(|ms| pace.admits(Duration::from_millis(*ms))).count()
        };
        assert_eq!(admitted(&mut (0..100).map(|n| n * 100)), 100);
        // Two at once, and then a pause.
        assert_eq!(admitted(&mut (0..100).map(|n| n / 2 * 200)), 100);
        // Thirty a second for ten seconds.
        let fast = admitted(&mut (0..300).map(|n| n * 1000 / 30));
        assert!((99..=103).contains(&fast), "{fast}");
        assert!(admitted(&mut std::iter::repeat_n(0, 100_000)) <= 2);
    }

    #[test]
    fn recording_drops_no_frame_and_counts_time() {
        let raster = Raster { kind: Kind::Grey, width: 4, height: 2, stride: 4, full_range: true };
        let settings =
            StreamSettings { timing: Timing::Recording, ..settings(Coding::Raster(raster)) };
        let mut stream = PictureStream::new(&settings, &Arc::default());
        stream.push(&[9; 8 * 5 + 3]);
        let mut times = Vec::new();
        while let Some(frame) = stream.next_frame() {
            let FrameTime::Media(at) = frame.unwrap().when else { panic!("a time of the clock") };
            times.push(at.as_millis());
        }
        assert_eq!(times, [0, 100, 200, 300, 400]);
        assert!(stream.is_within_picture() && stream.frames() == 5);
    }

    #[test]
    fn damaged_picture_is_reported_and_passed() {
        let picture = Spec::flat(16, 8, &[(1, 1)]).bytes();
        let mut stream = PictureStream::new(&settings(Coding::Jpeg), &Arc::default());
        stream.push(&[&picture[..picture.len() / 2], &picture].concat());
        assert!(matches!(stream.next_frame(), Some(Err(CameraError::Damaged { .. }))));
        let frame = stream.next_frame().unwrap().unwrap();
        assert_eq!(frame.pixels.size(), (16, 8));
        assert!(stream.next_frame().is_none() && stream.damage.is_none());
    }

    #[test]
    fn flood_is_read_no_faster_than_limit() {
        let mut allowance = Allowance::default();
        let mut read = 0;
        // Three seconds in milliseconds, in each of which 10 MiB are there.
        for now in (0..3000).map(Duration::from_millis) {
            if let Some(pause) = allowance.pause(now) {
                assert!(pause <= SECOND);
                continue;
            }
            allowance.bytes += 10 << 20;
            read += 10 << 20;
        }
        assert!(read >= 3 * BYTES_PER_SECOND_MAX);
        assert!(read <= 3 * (BYTES_PER_SECOND_MAX + (10 << 20)), "{read}");
    }

    #[test]
    fn silence_names_what_came_instead() {
        let mut settings = settings(Coding::Jpeg);
        let stream = PictureStream::new(&settings, &Arc::default());
        assert_eq!(stream.silence_fault(), None);
        settings.stall_after = Duration::ZERO;
        let mut stream = PictureStream::new(&settings, &Arc::default());
        let kind = |stream: &PictureStream| stream.silence_fault().unwrap().kind;
        assert_eq!(kind(&stream), FaultKind::Stalled);
        stream.push(b"rtsp://no picture");
        assert!(stream.next_frame().is_none());
        assert_eq!(kind(&stream), FaultKind::NotPictures);
        stream.push(b"\xFF\xD8\xFF\0garbage");
        assert!(stream.next_frame().is_some_and(|piece| piece.is_err()));
        assert_eq!(kind(&stream), FaultKind::Damaged);
    }
}
