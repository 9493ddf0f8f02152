//! A frame as the camera delivered it, decoded when it is used and no further than needed.
//!
//! Motion JPEG (full or limited Huffman tables), YUYV, NV12, I420, GREY, and
//! brightness in more than 8 bits (`infrared`). A still scene needs only the
//! brightness of a coarse grid: of the uncompressed formats that is some samples, of JPEG the luma
//! alone. A frame that is replaced before it is used costs one copy out of the driver's buffer,
//! which `Buffers` takes back when the frame is dropped.
//!
//! Damaged frames end here: uncompressed ones must have all their bytes, and data of a JPEG that
//! ends early is an error and not a picture with a grey lower part (`recognise::jpeg`). A panic
//! while it is decoded costs the frame and nothing else (`recognise::guarded`). What scaled and
//! region decoding would save was measured (`docs/performance.md`, "Decoding"): most of the time
//! goes into the Huffman codes, which must be read whole in any case.

mod infrared;

pub use infrared::{Infrared, Packing};

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::camera::view::{Layout, View};
use crate::recognise::frame::{Luma, Pixels};
use crate::recognise::guarded::{DecoderPanicked, guarded};
use crate::recognise::jpeg::outline::Outline;
use crate::recognise::jpeg::pixels::Decoded;
use crate::recognise::jpeg::segments::JpegFault;
use crate::recognise::picture::{DecodeError, Picture, SIDE_MAX};

/// How the bytes of an uncompressed frame are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raster {
    pub kind: Kind,
    pub width: usize,
    pub height: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Brightness uses 0 to 255 instead of 16 to 235.
    pub full_range: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Y0 U Y1 V: two pixels in four bytes.
    Yuyv,
    /// All of Y, then U and V in turn at half the size.
    Nv12,
    /// All of Y, then all of U and all of V at half the size and half the stride.
    I420,
    /// Brightness only, always the full range.
    Grey,
}

impl Raster {
    /// The bytes that a whole frame has; `None` when the numbers do not fit together, or are no
    /// camera's.
    pub fn bytes(&self) -> Option<usize> {
        if self.width.checked_mul(self.height)? > PIXELS_MAX {
            return None;
        }
        let row = match self.kind {
            // The colours belong to pairs of pixels.
            Kind::Yuyv if self.width.is_multiple_of(2) => self.width.checked_mul(2)?,
            Kind::Nv12 if self.width.is_multiple_of(2) && self.height.is_multiple_of(2) => {
                self.width
            }
            Kind::I420
                if self.width.is_multiple_of(2)
                    && self.height.is_multiple_of(2)
                    && self.stride.is_multiple_of(2) =>
            {
                self.width
            }
            Kind::Grey => self.width,
            _ => return None,
        };
        let rows = match self.kind {
            Kind::Nv12 | Kind::I420 => self.height.checked_mul(3)? / 2,
            Kind::Yuyv | Kind::Grey => self.height,
        };
        (self.stride >= row && self.width > 0 && rows > 0)
            .then(|| self.stride.checked_mul(rows))
            .flatten()
    }

    fn luma_at(&self, bytes: &[u8], x: usize, y: usize) -> u8 {
        let at = y * self.stride + x;
        match self.kind {
            Kind::Yuyv => bytes[at + x],
            Kind::Nv12 | Kind::I420 | Kind::Grey => bytes[at],
        }
    }

    /// Brightness and the two colour differences.
    fn yuv_at(&self, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
        let (u, v) = match self.kind {
            Kind::Yuyv => {
                let pair = y * self.stride + x / 2 * 4;
                (pair + 1, pair + 3)
            }
            Kind::Nv12 => {
                let pair = (self.height + y / 2) * self.stride + x / 2 * 2;
                (pair, pair + 1)
            }
            Kind::I420 => {
                let (u, v) = self.colour_planes();
                let at = y / 2 * (self.stride / 2) + x / 2;
                (u + at, v + at)
            }
            Kind::Grey => return [self.luma_at(bytes, x, y), 128, 128],
        };
        [self.luma_at(bytes, x, y), bytes[u], bytes[v]]
    }

    /// Where the planes of U and V of `I420` begin.
    fn colour_planes(&self) -> (usize, usize) {
        let luma = self.height * self.stride;
        (luma, luma + luma / 4)
    }

    fn rgb_of(&self, yuv: [u8; 3]) -> [u8; 3] {
        match (self.kind, self.full_range) {
            (Kind::Grey, _) => [yuv[0]; 3],
            (_, true) => FULL_RANGE.rgb_of(yuv),
            (_, false) => STUDIO_RANGE.rgb_of(yuv),
        }
    }

    /// The whole picture, row by row: what is done for each pixel is done without asking which
    /// format it is.
    fn picture(&self, bytes: &[u8]) -> Option<Picture> {
        let matrix = if self.full_range { FULL_RANGE } else { STUDIO_RANGE };
        let mut rgb: Vec<[u8; 3]> = Vec::with_capacity(self.width * self.height);
        for (y, row) in bytes.chunks_exact(self.stride).take(self.height).enumerate() {
            match self.kind {
                Kind::Grey => rgb.extend(row[..self.width].iter().map(|luma| [*luma; 3])),
                Kind::Yuyv => {
                    for [y0, u, y1, v] in row[..self.width * 2].as_chunks::<4>().0 {
                        rgb.extend([matrix.rgb_of([*y0, *u, *v]), matrix.rgb_of([*y1, *u, *v])]);
                    }
                }
                Kind::Nv12 => {
                    let colours = bytes[(self.height + y / 2) * self.stride..][..self.width]
                        .as_chunks::<2>()
                        .0;
                    for ([y0, y1], [u, v]) in
                        row[..self.width].as_chunks::<2>().0.iter().zip(colours)
                    {
                        rgb.extend([matrix.rgb_of([*y0, *u, *v]), matrix.rgb_of([*y1, *u, *v])]);
                    }
                }
                Kind::I420 => {
                    let (u, v) = self.colour_planes();
                    let at = y / 2 * (self.stride / 2);
                    let u = &bytes[u + at..][..self.width / 2];
                    let v = &bytes[v + at..][..self.width / 2];
                    let pairs = row[..self.width].as_chunks::<2>().0;
                    for (([y0, y1], u), v) in pairs.iter().zip(u).zip(v) {
                        rgb.extend([matrix.rgb_of([*y0, *u, *v]), matrix.rgb_of([*y1, *u, *v])]);
                    }
                }
            }
        }
        Picture::from_rgb(self.width, self.height, rgb.into_flattened())
    }
}

/// How brightness and colour differences become red, green and blue, in 256ths: BT.601, as in UVC and
/// JPEG.
#[derive(Clone, Copy)]
struct Matrix {
    black: i32,
    luma: i32,
    v_red: i32,
    u_green: i32,
    v_green: i32,
    u_blue: i32,
}

const STUDIO_RANGE: Matrix =
    Matrix { black: 16, luma: 298, v_red: 409, u_green: -100, v_green: -208, u_blue: 516 };
const FULL_RANGE: Matrix =
    Matrix { black: 0, luma: 256, v_red: 359, u_green: -88, v_green: -183, u_blue: 454 };

impl Matrix {
    #[inline]
    fn rgb_of(self, [luma, u, v]: [u8; 3]) -> [u8; 3] {
        let y = (i32::from(luma) - self.black) * self.luma + 128;
        let u = i32::from(u) - 128;
        let v = i32::from(v) - 128;
        let channel = |value: i32| (value >> 8).clamp(0, 255) as u8;
        [
            channel(y + self.v_red * v),
            channel(y + self.u_green * u + self.v_green * v),
            channel(y + self.u_blue * u),
        ]
    }
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Jpeg,
    Raster(Raster),
    Infrared(Infrared),
}

impl Coding {
    /// The bytes that every whole frame has; `None` of JPEG, and of numbers that are no camera's.
    pub fn frame_bytes(&self) -> Option<usize> {
        match self {
            Self::Jpeg => None,
            Self::Raster(raster) => raster.bytes(),
            Self::Infrared(infrared) => infrared.bytes(),
        }
    }
}

/// What a frame's bytes are, with what must be known to decode them.
#[derive(Clone, Copy, Debug)]
enum Source {
    Jpeg(Outline),
    Raster(Raster),
}

/// More than any camera's picture: a header that claims more is damaged.
const PIXELS_MAX: usize = 33_000_000;
/// The memory that decoding one may take.
const BYTES_MAX: u64 = 100_000_000;

/// A frame with its bytes as delivered.
pub struct Encoded {
    bytes: Vec<u8>,
    buffers: Arc<Buffers>,
    source: Source,
    layout: Layout,
    full: OnceLock<Result<Picture, DecodeError>>,
}

impl Encoded {
    /// Copies `bytes`. An error is a damaged frame: it has not the bytes, markers or header of a
    /// whole one.
    pub fn new(
        bytes: &[u8],
        coding: Coding,
        view: &View,
        buffers: &Arc<Buffers>,
    ) -> Result<Self, DecodeError> {
        let (kept, source) = match coding {
            Coding::Jpeg => {
                let outline = guarded(|| read_outline(bytes)).map_err(panicked)??;
                (buffers.filled(outline.picture(bytes)), Source::Jpeg(outline))
            }
            Coding::Raster(raster) => {
                let whole = whole_frame(bytes, raster.bytes())?;
                (buffers.filled(whole), Source::Raster(raster))
            }
            Coding::Infrared(infrared) => {
                let whole = whole_frame(bytes, infrared.bytes())?;
                let mut kept = buffers.filled(&[]);
                infrared.reduce(whole, &mut kept);
                (kept, Source::Raster(infrared.grey()))
            }
        };
        let (width, height) = match source {
            Source::Jpeg(outline) => (outline.width, outline.height),
            Source::Raster(raster) => (raster.width, raster.height),
        };
        let layout = view.layout(width, height);
        if layout.turning_bytes() > BYTES_MAX {
            return Err(DecodeError::TooMuchMemory { kind: "turned frame", width, height });
        }
        Ok(Self {
            bytes: kept,
            buffers: Arc::clone(buffers),
            source,
            layout,
            full: OnceLock::new(),
        })
    }

    fn decode_full(&self) -> Result<Picture, DecodeError> {
        let (width, height) = self.layout.raw_size();
        let picture = match self.source {
            Source::Jpeg(outline) => {
                let decoded = decode_jpeg(|| outline.decode(&self.bytes, 0))?;
                Picture::from_rgb(width, height, decoded.bytes)
            }
            Source::Raster(raster) => raster.picture(&self.bytes),
        };
        Ok(self.layout.apply(picture.ok_or_else(too_few)?))
    }
}

impl Pixels for Encoded {
    fn size(&self) -> (usize, usize) {
        self.layout.size()
    }

    fn luma(&self) -> Result<Luma, DecodeError> {
        if let Some(decoded) = self.full.get() {
            return decoded.as_ref().map(Luma::of).map_err(Clone::clone);
        }
        match self.source {
            Source::Jpeg(outline) if outline.has_luma() => {
                let luma = decode_jpeg(|| outline.decode_luma(&self.bytes))?;
                Ok(self.layout.luma(|x, y| luma.bytes[y * luma.width + x]))
            }
            Source::Jpeg(_) => self.full().map(Luma::of),
            Source::Raster(raster) => {
                Ok(self.layout.luma(|x, y| raster.luma_at(&self.bytes, x, y)))
            }
        }
    }

    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        let step = self.layout.step_for(side_px);
        match self.source {
            // Means of brightness and colour are converted, a ninth of the pixels or fewer. Below
            // that, and of JPEG, nothing would be saved (measured).
            Source::Raster(raster) if step > 2 && self.full.get().is_none() => {
                let source = |x, y| raster.yuv_at(&self.bytes, x, y);
                Ok(Cow::Owned(self.layout.reduced(step, source, |yuv| raster.rgb_of(yuv))))
            }
            _ => self.full().map(Cow::Borrowed),
        }
    }

    fn full(&self) -> Result<&Picture, DecodeError> {
        self.full.get_or_init(|| self.decode_full()).as_ref().map_err(Clone::clone)
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({:?}, {} bytes)", self.source, self.bytes.len())
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.bytes));
    }
}

/// Frames' memory, used again: at ten frames a second the allocator would otherwise be asked for
/// megabytes each second.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// One frame in the slot, one with the models, one being made.
const BUFFERS_MAX: usize = 3;

impl Buffers {
    fn filled(&self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer =
            self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// A buffer that is much larger than its frame is dropped: one large frame must not hold memory
    /// for good.
    fn give_back(&self, buffer: Vec<u8>) {
        let is_fitting = buffer.capacity() <= 4 * buffer.len().max(1 << 16);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if is_fitting && free.len() < BUFFERS_MAX {
            free.push(buffer);
        }
    }
}

fn whole_frame(bytes: &[u8], needed: Option<usize>) -> Result<&[u8], DecodeError> {
    let needed = needed.ok_or_else(|| damaged("frame", "it has an impossible size"))?;
    bytes.get(..needed).ok_or_else(|| damaged("frame", "it ends too early"))
}

/// What a camera's JPEG declares, if it may be decoded. Cameras fill up with zeroes behind the
/// end marker, or leave there what the buffer held before: it is ignored. A missing end
/// marker is forgiven when all data surely came.
fn read_outline(bytes: &[u8]) -> Result<Outline, DecodeError> {
    let outline = Outline::read(bytes)?;
    let width = outline.width;
    let height = outline.height;
    if width * height > PIXELS_MAX || width.max(height) > SIDE_MAX {
        return Err(DecodeError::TooManyPixels { width, height, limit: PIXELS_MAX });
    }
    if outline.decoding_bytes(0) > BYTES_MAX {
        return Err(DecodeError::TooMuchMemory { kind: "JPEG", width, height });
    }
    if !outline.has_end_marker() {
        outline.check_whole(bytes)?;
    }
    Ok(outline)
}

fn decode_jpeg(
    decode: impl FnOnce() -> Result<Decoded, JpegFault>,
) -> Result<Decoded, DecodeError> {
    Ok(guarded(decode).map_err(panicked)??)
}

fn panicked(panicked: DecoderPanicked) -> DecodeError {
    damaged("JPEG", &panicked.to_string())
}

fn too_few() -> DecodeError {
    damaged("JPEG", "it has too few pixels")
}

fn damaged(format: &'static str, why: &str) -> DecodeError {
    DecodeError::Damaged { format, why: why.to_owned() }
}

#[cfg(test)]
mod tests;
