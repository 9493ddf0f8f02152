//! A camera of the kernel (Video4Linux 2): opened, negotiated, streamed from, and got back when it is lost.
//!
//! What must hold: `next` returns within `SLICE`, whatever the camera does; a camera that is unplugged, stalls, fails or
//! sends nothing but damage for `stall_after` is `Lost`, which is told at once; stream and descriptor are dropped before
//! it is opened again, so that the node may keep its number; it is tried again for ever, at once when something changes
//! in `/dev` and otherwise every few seconds, and never faster than `RETRY_MIN`. A frame that is damaged never leaves
//! this module, except for damage that only decoding shows (`camera::encoded`): of that we are told (`unreadable_for`).
//!
//! Budget: one copy of the frame out of the driver's buffer, which goes back to the driver at once.

pub mod controls;
pub mod device;
pub mod find;
mod retry;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::camera::encoded::{Buffers, Coding, Encoded, Kind, Raster};
use crate::camera::v4l2::controls::ControlSettings;
use crate::camera::v4l2::device::{Device, Filled, Format, FourCc, Stream, fourcc_name};
use crate::camera::v4l2::find::{Choice, FORMATS};
use crate::camera::v4l2::retry::Retry;
use crate::camera::view::View;
use crate::camera::{CameraError, FrameSource, Next, SourceFrame, When};
use crate::clock::{self, Stopwatch};

#[derive(Clone, Debug, PartialEq)]
pub struct V4l2Settings {
    pub device: Choice,
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

/// Longest wait at a stretch, so that a stop is heard.
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
    /// `None` while the camera is lost: tried again when `retry` says so.
    streaming: Option<Streaming>,
    retry: Retry,
    /// What could not be set is said once and not at every reopening.
    controls_told: bool,
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
    /// Whether the camera is there, may be opened and has a format that is known; its node, or why not. Changes nothing,
    /// and may be asked while another program streams.
    pub fn examine(&self) -> Result<PathBuf, String> {
        let (node, device) = self.camera()?;
        self.best_format(&device)?;
        Ok(node)
    }

    fn camera(&self) -> Result<(PathBuf, Device), String> {
        let node = self.device.resolve().map_err(|error| error.to_string())?;
        let device = Device::open(&node).map_err(|error| reason(&error))?;
        let capability = device.capability().map_err(|error| reason(&error))?;
        if capability.only_multi_planar() {
            return Err(
                "the camera hands out pictures in several planes, which is not supported".into()
            );
        }
        if !capability.captures() {
            return Err("the device is no camera".into());
        }
        Ok((node, device))
    }

    /// The best format at the size asked for; if it comes at another size only, the best format at that.
    fn best_format(&self, device: &Device) -> Result<Format, String> {
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
            let wanted = format.map_or("MJPG, YUYV, NV12, GREY".into(), fourcc_name);
            return Err(format!(
                "format refused: the camera has {}, wanted is {wanted}",
                names.join(", ")
            ));
        };
        Ok(*chosen)
    }

    fn negotiate(&self, device: &Device) -> Result<Format, String> {
        let chosen = self.best_format(device)?;
        let got = device
            .set_format(chosen.fourcc, chosen.width, chosen.height)
            .map_err(|error| reason(&error))?;
        if got.fourcc == chosen.fourcc { Ok(got) } else { Err("format refused".into()) }
    }
}

impl V4l2Camera {
    /// Opens nothing yet: a camera that is not there is a state and no reason not to start.
    pub fn new(settings: V4l2Settings) -> Self {
        Self {
            settings,
            buffers: Arc::default(),
            streaming: None,
            retry: Retry::new(),
            controls_told: false,
        }
    }

    fn open(&mut self) -> Result<Streaming, String> {
        let (node, device) = self.settings.camera()?;
        let format = self.settings.negotiate(&device)?;
        let coding = coding(&format)?;
        let rate = device.set_rate(self.settings.fps);
        let faults = controls::apply(&device, &self.settings.controls);
        if !self.controls_told {
            for fault in faults {
                tracing::warn!(
                    fault,
                    "a camera control was not set; `rollcall cameras` shows what there is"
                );
            }
            self.controls_told = true;
        }
        let stream = Stream::start(device, BUFFERS).map_err(|error| reason(&error))?;
        let quiet = Stopwatch::start();
        let (last_sequence, last_taken, damage, missed) = (None, None, None, 0);
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

    /// Everything of the lost stream is gone before the next attempt.
    fn lose(&mut self, reason: String) -> CameraError {
        self.streaming = None;
        self.retry.failed();
        CameraError::Lost { reason }
    }
}

impl FrameSource for V4l2Camera {
    fn next(&mut self) -> Result<Next, CameraError> {
        let Some(streaming) = &mut self.streaming else {
            if !self.retry.wait(SLICE) {
                return Ok(Next::Nothing);
            }
            return match self.open() {
                Ok(streaming) => {
                    streaming.tell();
                    self.streaming = Some(streaming);
                    Ok(Next::Nothing)
                }
                Err(reason) => Err(self.lose(reason)),
            };
        };
        let outcome = streaming.next(&self.settings, &self.buffers);
        if let Err(Fault::Damaged(why)) = &outcome {
            streaming.damage = Some(why.clone());
        }
        let silent = streaming.quiet.elapsed() >= self.settings.stall_after;
        match outcome {
            Ok(Some(frame)) => {
                self.retry.succeeded();
                Ok(Next::Frame(frame))
            }
            Ok(None) | Err(Fault::Damaged(_)) if silent => {
                let reason = streaming.silence(self.settings.stall_after);
                Err(self.lose(reason))
            }
            Ok(None) => Ok(Next::Nothing),
            Err(Fault::Damaged(why)) => Err(CameraError::Damaged { why }),
            Err(Fault::Lost(error)) => Err(self.lose(reason(&error))),
        }
    }

    fn unreadable_for(&mut self, long: Duration) -> Result<(), CameraError> {
        if self.streaming.is_none() || long < self.settings.stall_after {
            return Ok(());
        }
        Err(self.lose(format!(
            "nothing but damaged pictures for {} ms: none can be decoded",
            long.as_millis()
        )))
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

enum Fault {
    /// This frame is of no use.
    Damaged(String),
    /// The stream is.
    Lost(io::Error),
}

impl Streaming {
    fn tell(&self) {
        let Format { fourcc, width, height, .. } = self.format;
        let (format, node) = (fourcc_name(fourcc), self.node.display().to_string());
        tracing::info!(node, format, width, height, fps = self.rate, "camera opened");
    }

    fn next(
        &mut self,
        settings: &V4l2Settings,
        buffers: &Arc<Buffers>,
    ) -> Result<Option<SourceFrame>, Fault> {
        if !self.stream.wait(SLICE).map_err(Fault::Lost)? {
            return Ok(None);
        }
        let Some(filled) = self.stream.take().map_err(Fault::Lost)? else {
            return Ok(None);
        };
        let frame = self.frame(&filled, settings, buffers);
        self.stream.give_back(filled.index).map_err(Fault::Lost)?;
        frame
    }

    fn frame(
        &mut self,
        filled: &Filled,
        settings: &V4l2Settings,
        buffers: &Arc<Buffers>,
    ) -> Result<Option<SourceFrame>, Fault> {
        let gap =
            self.last_sequence.map_or(0, |last| filled.sequence.wrapping_sub(last).wrapping_sub(1));
        self.last_sequence = Some(filled.sequence);
        // A number that goes back is a driver that began anew, not four billion missed frames.
        self.missed = self.missed.saturating_add(if gap > u32::MAX / 2 { 0 } else { gap });
        if filled.error {
            return Err(Fault::Damaged("the driver marked the frame as damaged".into()));
        }
        // Not `quiet`'s business: enough frames are passed on to keep it short, unless the driver's clock hardly moves.
        if too_soon(filled.taken, self.last_taken, settings.fps) {
            return Ok(None);
        }
        let bytes = self.stream.bytes(filled);
        self.fits(bytes.len())?;
        let encoded = Encoded::new(bytes, self.coding, &settings.view, buffers);
        let encoded = encoded.map_err(|error| Fault::Damaged(error.to_string()))?;
        (self.quiet, self.damage) = (Stopwatch::start(), None);
        self.last_taken = filled.taken;
        let age = filled.taken.and_then(|taken| clock::since_boot_awake().checked_sub(taken));
        let when = When::Ago(age.filter(|age| *age <= AGE_MAX).unwrap_or_default());
        Ok(Some(SourceFrame {
            pixels: Arc::new(encoded),
            when,
            missed: std::mem::take(&mut self.missed),
        }))
    }

    /// Why there was nothing usable for so long.
    fn silence(&self, long: Duration) -> String {
        let ms = long.as_millis();
        match &self.damage {
            Some(why) => format!("nothing but damaged pictures for {ms} ms, the last: {why}"),
            None => format!("stalled: no picture for {ms} ms"),
        }
    }

    /// An uncompressed frame has exactly the bytes that were agreed, or a driver's rounded-up whole buffer.
    fn fits(&self, bytes: usize) -> Result<(), Fault> {
        let Coding::Raster(raster) = self.coding else {
            return Ok(());
        };
        let expected = raster.bytes().unwrap_or_default();
        if bytes == expected || (bytes > expected && bytes == self.format.size) {
            return Ok(());
        }
        Err(Fault::Damaged(format!("the frame has {bytes} bytes instead of {expected}")))
    }
}

/// The camera is faster than was asked for. Of a driver whose clock stands still every frame would be too soon.
fn too_soon(taken: Option<Duration>, last_taken: Option<Duration>, fps: f32) -> bool {
    let since = taken.zip(last_taken).and_then(|(now, last)| now.checked_sub(last));
    since.is_some_and(|since| !since.is_zero() && since.as_secs_f32() * fps < EARLY)
}

fn coding(format: &Format) -> Result<Coding, String> {
    let kind = match &format.fourcc {
        b"MJPG" => return Ok(Coding::Jpeg),
        b"YUYV" => Kind::Yuyv,
        b"NV12" => Kind::Nv12,
        _ => Kind::Grey,
    };
    let Format { width, height, stride, full_range, .. } = *format;
    // Some drivers leave the stride out when rows follow each other directly.
    let stride = if stride > 0 { stride } else { width * if kind == Kind::Yuyv { 2 } else { 1 } };
    let raster = Raster { kind, width, height, stride, full_range };
    let fits = raster.bytes().is_some_and(|bytes| bytes <= format.size);
    if fits {
        Ok(Coding::Raster(raster))
    } else {
        Err(format!("format refused: {width} x {height} with {stride}"))
    }
}

/// In words for an event: what it means to whoever stands at the door.
fn reason(error: &io::Error) -> String {
    let words = match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => "unplugged",
        Some(libc::ENOENT) => "there is no camera of that name",
        // What is no device of this kind does not know the question.
        Some(libc::ENOTTY) => "the device is no camera",
        Some(libc::EBUSY) => "another program uses the camera",
        Some(libc::EACCES | libc::EPERM) => {
            "permission denied: the daemon must be in the group video"
        }
        Some(libc::EIO | libc::EPROTO | libc::EPIPE | libc::ETIMEDOUT | libc::ESHUTDOWN) => {
            "the camera fails"
        }
        Some(libc::ENOSPC) => {
            "the USB port has no room for this format: choose a smaller size or rate, or MJPG"
        }
        _ => "the camera cannot be used",
    };
    format!("{words} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_camera_is_thinned_and_one_whose_clock_stands_is_not() {
        let at = |ms| Some(Duration::from_millis(ms));
        // 30 frames a second where 10 are wanted.
        assert!(too_soon(at(1033), at(1000), 10.0) && too_soon(at(1066), at(1000), 10.0));
        assert!(!too_soon(at(1100), at(1000), 10.0));
        assert!(!too_soon(at(1071), at(1000), 10.0), "a little early is in time");
        for (taken, last) in [
            (at(0), at(0)),
            (at(1000), at(1000)),
            (at(900), at(1000)),
            (None, at(1000)),
            (at(5), None),
        ] {
            assert!(!too_soon(taken, last, 10.0), "{taken:?} {last:?}");
        }
    }
}
