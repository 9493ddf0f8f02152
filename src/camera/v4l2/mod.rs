//! A camera of the kernel (Video4Linux 2): opened, negotiated, streamed from, and got back when it
//! is lost.
//!
//! What must hold: `next` returns within `SLICE`, whatever the camera does, except while a driver is
//! slow to start or to stop; a camera that is unplugged, stalls, fails or sends nothing but damage for
//! `stall_after` is `Lost`, which is reported at once, before the driver is asked to stop (that may
//! take it seconds, or for ever); stream and descriptor are dropped before it is opened again, so
//! that the node may keep its number; it is tried again for ever, at once when something changes in
//! `/dev` and otherwise every few seconds, and never faster than `RETRY_MIN`. A frame that is damaged
//! never leaves this module, except for damage that only decoding shows (`camera::encoded`), which is
//! reported back (`unreadable_for`).
//!
//! Budget: one copy of the frame out of the driver's buffer, which goes back to the driver at once.

pub mod controls;
pub mod device;
pub mod find;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::camera::encoded::{Buffers, Coding, Encoded, Infrared, Kind, Packing, Raster};
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::retry::Retry;
use crate::camera::v4l2::controls::ControlSettings;
use crate::camera::v4l2::device::{Device, Filled, Format, FourCc, Stream, fourcc_name};
use crate::camera::v4l2::find::{CameraChoice, FORMATS, format_names};
use crate::camera::view::View;
use crate::camera::{CameraError, FrameSource, FrameTime, Next, SourceFrame, unreadable_fault};
use crate::clock::{self, Stopwatch};

#[derive(Clone, Debug, PartialEq)]
pub struct V4l2Settings {
    pub device: CameraChoice,
    /// `None` takes the best that the camera has at that size.
    pub format: Option<FourCc>,
    pub width: usize,
    pub height: usize,
    /// Asked of the camera; what comes faster is thinned out.
    pub fps: f32,
    /// No usable frame for this long is a stall. At least the time of two frames.
    pub stall_after: Duration,
    pub controls: ControlSettings,
    pub view: View,
}

/// Longest single wait, so that a stop takes effect soon.
const SLICE: Duration = Duration::from_millis(100);
/// Buffers in the driver: one being filled, one filled, and two for when this thread is late.
const BUFFERS: u32 = 4;
/// A frame older than this when it arrives has a timestamp that cannot be right.
const AGE_MAX: Duration = Duration::from_secs(2);
/// Formats named in a reason: events are short.
const NAMED_MAX: usize = 8;
/// A camera may be this much early and still have the rate asked for.
const EARLY: f32 = 0.7;

pub struct V4l2Camera {
    settings: V4l2Settings,
    buffers: Arc<Buffers>,
    /// `None` while the camera is lost: opened again when `retry` allows it.
    streaming: Option<Streaming>,
    /// The stream of a camera whose loss was just returned.
    released: Option<Streaming>,
    retry: Retry,
    /// Controls that could not be set are logged once and not at every reopening.
    controls_logged: bool,
}

struct Streaming {
    stream: Stream,
    coding: Coding,
    format: Format,
    node: PathBuf,
    rate: Option<f32>,
    last_sequence: Option<u32>,
    /// When the last frame that was passed on was taken, by `CLOCK_MONOTONIC`.
    last_taken: Option<Duration>,
    /// Since the last frame that was passed on.
    quiet: Stopwatch,
    /// What was wrong with the last frame, if there was no usable one after it.
    damage: Option<String>,
    /// Frames that the driver had no buffer for, since the last one passed on.
    missed: u32,
}

impl V4l2Settings {
    /// Checks that the camera exists, may be opened and has a known format. Returns its node, or the
    /// reason why not. Changes nothing, so it can run while another program streams.
    pub fn examine(&self) -> Result<PathBuf, CameraFault> {
        let (node, device) = self.open_camera()?;
        self.best_format(&device)?;
        Ok(node)
    }

    fn open_camera(&self) -> Result<(PathBuf, Device), CameraFault> {
        let node = self.device.resolve()?;
        let device = Device::open(&node).map_err(|error| io_fault(&error))?;
        let capability = device.capability().map_err(|error| io_fault(&error))?;
        if !capability.captures() {
            return Err(CameraFault::new(FaultKind::NotCamera, "the device is no camera"));
        }
        Ok((node, device))
    }

    /// The best format at the size asked for; if it comes at another size only, the best format at
    /// that.
    fn best_format(&self, device: &Device) -> Result<Format, CameraFault> {
        let V4l2Settings { width, height, format, .. } = *self;
        let offered = device.formats();
        let wanted: Vec<FourCc> = match format {
            Some(format) => vec![format],
            None => FORMATS.to_vec(),
        };
        let candidates: Vec<Format> = wanted
            .into_iter()
            .filter(|format| offered.contains(format))
            .filter_map(|fourcc| {
                device.try_format(fourcc, width, height).ok().filter(|got| got.fourcc == fourcc)
            })
            .collect();
        let exact = candidates.iter().find(|got| (got.width, got.height) == (width, height));
        let Some(chosen) = exact.or(candidates.first()) else {
            let names: Vec<String> = offered.into_iter().take(NAMED_MAX).map(fourcc_name).collect();
            let wanted = format.map_or_else(format_names, fourcc_name);
            let names = names.join(", ");
            let reason = format!("format refused: the camera has {names}, wanted is {wanted}");
            return Err(CameraFault::new(FaultKind::Format, reason));
        };
        Ok(*chosen)
    }

    fn negotiate(&self, device: &Device) -> Result<Format, CameraFault> {
        let chosen = self.best_format(device)?;
        let got = device
            .set_format(chosen.fourcc, chosen.width, chosen.height)
            .map_err(|error| io_fault(&error))?;
        if got.fourcc == chosen.fourcc {
            Ok(got)
        } else {
            Err(CameraFault::new(FaultKind::Format, "format refused"))
        }
    }
}

impl V4l2Camera {
    /// Opens nothing yet: a camera that is not there is a state and no reason not to start.
    pub fn new(settings: V4l2Settings) -> Self {
        Self {
            settings,
            buffers: Arc::default(),
            streaming: None,
            released: None,
            retry: Retry::watching_nodes(),
            controls_logged: false,
        }
    }

    fn open(&mut self) -> Result<Streaming, CameraFault> {
        let (node, device) = self.settings.open_camera()?;
        let format = self.settings.negotiate(&device)?;
        let coding = coding_of(&format)?;
        let rate = device.set_rate(self.settings.fps);
        let faults = controls::apply(&device, &self.settings.controls);
        if !self.controls_logged {
            for fault in faults {
                tracing::warn!(
                    fault,
                    "a camera control was not set; `rollcall cameras` shows what there is"
                );
            }
            self.controls_logged = true;
        }
        let stream = Stream::start(device, BUFFERS).map_err(|error| io_fault(&error))?;
        let quiet = Stopwatch::start();
        let last_sequence = None;
        let last_taken = None;
        let damage = None;
        let missed = 0;
        Ok(Streaming {
            stream,
            coding,
            format,
            node,
            rate,
            last_sequence,
            last_taken,
            quiet,
            damage,
            missed,
        })
    }

    /// Everything of the lost stream is gone before the next attempt, but not before the loss is
    /// reported.
    fn mark_lost(&mut self, fault: CameraFault) -> CameraError {
        self.released = self.streaming.take();
        self.retry.failed();
        CameraError::Lost(fault)
    }
}

impl FrameSource for V4l2Camera {
    fn next(&mut self) -> Result<Next, CameraError> {
        self.released = None;
        let Some(streaming) = &mut self.streaming else {
            if !self.retry.wait(SLICE) {
                return Ok(Next::Nothing);
            }
            return match self.open() {
                Ok(streaming) => {
                    streaming.log_started();
                    self.streaming = Some(streaming);
                    Ok(Next::Nothing)
                }
                Err(fault) => Err(self.mark_lost(fault)),
            };
        };
        let outcome = streaming.next(&self.settings, &self.buffers);
        if let Err(StreamFault::Damaged(why)) = &outcome {
            streaming.damage = Some(why.clone());
        }
        let silent = streaming.quiet.elapsed() >= self.settings.stall_after;
        match outcome {
            Ok(Some(frame)) => {
                self.retry.succeeded();
                Ok(Next::Frame(frame))
            }
            Ok(None) | Err(StreamFault::Damaged(_)) if silent => {
                let fault = streaming.silence_fault(self.settings.stall_after);
                Err(self.mark_lost(fault))
            }
            Ok(None) => Ok(Next::Nothing),
            Err(StreamFault::Damaged(why)) => Err(CameraError::Damaged { why }),
            Err(StreamFault::Lost(error)) => Err(self.mark_lost(io_fault(&error))),
        }
    }

    fn unreadable_for(&mut self, long: Duration, why: &str) -> Result<(), CameraError> {
        if self.streaming.is_none() || long < self.settings.stall_after {
            return Ok(());
        }
        Err(self.mark_lost(unreadable_fault(long, why)))
    }

    fn describe(&self) -> String {
        let V4l2Settings { width, height, fps, .. } = self.settings;
        format!("V4L2 camera, asked for {width} x {height} at {fps} frames per second")
    }

    fn hint(&self) -> Option<&'static str> {
        self.settings.device.may_change_number().then_some(
            "if the camera comes back under another number it is not found: name it by its stable name (`rollcall cameras`) or \"auto\"",
        )
    }
}

enum StreamFault {
    /// This frame is unusable.
    Damaged(String),
    /// The stream is unusable.
    Lost(io::Error),
}

impl Streaming {
    fn log_started(&self) {
        let Format { fourcc, width, height, .. } = self.format;
        let format = fourcc_name(fourcc);
        let node = self.node.display().to_string();
        tracing::info!(node, format, width, height, fps = self.rate, "camera opened");
    }

    fn next(
        &mut self,
        settings: &V4l2Settings,
        buffers: &Arc<Buffers>,
    ) -> Result<Option<SourceFrame>, StreamFault> {
        if !self.stream.wait(SLICE).map_err(StreamFault::Lost)? {
            return Ok(None);
        }
        let Some(filled) = self.stream.take().map_err(StreamFault::Lost)? else {
            return Ok(None);
        };
        let frame = self.read_frame(&filled, settings, buffers);
        self.stream.give_back(filled.index).map_err(StreamFault::Lost)?;
        frame
    }

    fn read_frame(
        &mut self,
        filled: &Filled,
        settings: &V4l2Settings,
        buffers: &Arc<Buffers>,
    ) -> Result<Option<SourceFrame>, StreamFault> {
        let gap =
            self.last_sequence.map_or(0, |last| filled.sequence.wrapping_sub(last).wrapping_sub(1));
        self.last_sequence = Some(filled.sequence);
        // A number that goes back is a driver that began anew, not four billion missed frames.
        self.missed = self.missed.saturating_add(if gap > u32::MAX / 2 { 0 } else { gap });
        if filled.error {
            return Err(StreamFault::Damaged("the driver marked the frame as damaged".into()));
        }
        // Not `quiet`'s business: enough frames are passed on to keep it short, unless the driver's
        // clock hardly moves.
        if is_too_soon(filled.taken, self.last_taken, settings.fps) {
            return Ok(None);
        }
        let bytes = self.stream.bytes(filled);
        self.check_size(bytes.len())?;
        let encoded = Encoded::new(bytes, self.coding, &settings.view, buffers);
        let encoded = encoded.map_err(|error| StreamFault::Damaged(error.to_string()))?;
        (self.quiet, self.damage) = (Stopwatch::start(), None);
        self.last_taken = filled.taken;
        let age = filled.taken.and_then(|taken| clock::since_boot_awake().checked_sub(taken));
        let when = FrameTime::Age(age.filter(|age| *age <= AGE_MAX).unwrap_or_default());
        Ok(Some(SourceFrame {
            pixels: Arc::new(encoded),
            when,
            missed: std::mem::take(&mut self.missed),
        }))
    }

    /// Returns why there was no usable frame for so long.
    fn silence_fault(&self, long: Duration) -> CameraFault {
        if let Some(why) = &self.damage {
            return unreadable_fault(long, why);
        }
        let reason = format!("stalled: no picture for {} ms", long.as_millis());
        CameraFault::new(FaultKind::Stalled, reason)
    }

    /// An uncompressed frame has exactly the bytes that were agreed, or a driver's rounded-up whole
    /// buffer.
    fn check_size(&self, bytes: usize) -> Result<(), StreamFault> {
        let Some(expected) = self.coding.frame_bytes() else {
            return Ok(());
        };
        if bytes == expected || (bytes > expected && bytes == self.format.size) {
            return Ok(());
        }
        Err(StreamFault::Damaged(format!("the frame has {bytes} bytes instead of {expected}")))
    }
}

/// Returns whether the camera is faster than requested. A driver's clock that stands still is
/// ignored: every frame would be too soon.
fn is_too_soon(taken: Option<Duration>, last_taken: Option<Duration>, fps: f32) -> bool {
    let since = taken.zip(last_taken).and_then(|(now, last)| now.checked_sub(last));
    since.is_some_and(|since| !since.is_zero() && since.as_secs_f32() * fps < EARLY)
}

fn coding_of(format: &Format) -> Result<Coding, CameraFault> {
    let Format { width, height, stride, full_range, .. } = *format;
    // Some drivers leave the stride out when rows follow each other directly.
    let stride_or = |row: Option<usize>| if stride > 0 { stride } else { row.unwrap_or_default() };
    let raster = |kind, row| {
        let stride = stride_or(Some(row));
        Coding::Raster(Raster { kind, width, height, stride, full_range })
    };
    let infrared = |packing: Packing| {
        let stride = stride_or(packing.row_bytes(width));
        Coding::Infrared(Infrared { packing, width, height, stride })
    };
    let coding = match &format.fourcc {
        b"MJPG" => return Ok(Coding::Jpeg),
        b"YUYV" => raster(Kind::Yuyv, width * 2),
        b"NV12" => raster(Kind::Nv12, width),
        b"YU12" => raster(Kind::I420, width),
        b"Y8I " => infrared(Packing::Y8i),
        b"Y10 " => infrared(Packing::Y10),
        b"Y12 " => infrared(Packing::Y12),
        b"Y10P" => infrared(Packing::Y10p),
        b"Y12P" => infrared(Packing::Y12p),
        _ => raster(Kind::Grey, width),
    };
    if coding.frame_bytes().is_some_and(|bytes| bytes <= format.size) {
        return Ok(coding);
    }
    let reason = format!("format refused: {width} x {height} with {stride}");
    Err(CameraFault::new(FaultKind::Format, reason))
}

fn io_fault(error: &io::Error) -> CameraFault {
    let (kind, words) = match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => (FaultKind::Unplugged, "unplugged"),
        Some(libc::ENOENT) => (FaultKind::Missing, "there is no camera of that name"),
        // A device of another kind does not know the request.
        Some(libc::ENOTTY) => (FaultKind::NotCamera, "the device is no camera"),
        Some(libc::EBUSY) => (FaultKind::Busy, "another program uses the camera"),
        Some(libc::EACCES | libc::EPERM) => {
            (FaultKind::Denied, "permission denied: the daemon must be in the group video")
        }
        Some(libc::EIO | libc::EPROTO | libc::EPIPE | libc::ETIMEDOUT | libc::ESHUTDOWN) => {
            (FaultKind::Failing, "the camera fails")
        }
        Some(libc::ENOSPC) => (
            FaultKind::Bandwidth,
            "the USB port has no room for this format: choose a smaller size or rate, or MJPG",
        ),
        _ => (FaultKind::Failing, "the camera cannot be used"),
    };
    CameraFault::new(kind, format!("{words} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_camera_frames_are_thinned() {
        let at = |ms| Some(Duration::from_millis(ms));
        // 30 frames a second where 10 are wanted.
        assert!(is_too_soon(at(1033), at(1000), 10.0) && is_too_soon(at(1066), at(1000), 10.0));
        assert!(!is_too_soon(at(1100), at(1000), 10.0));
        assert!(!is_too_soon(at(1071), at(1000), 10.0), "a little early is in time");
        for (taken, last) in [
            (at(0), at(0)),
            (at(1000), at(1000)),
            (at(900), at(1000)),
            (None, at(1000)),
            (at(5), None),
        ] {
            assert!(!is_too_soon(taken, last, 10.0), "{taken:?} {last:?}");
        }
    }
}
