//! A frame as the camera delivered it, decoded when somebody looks at it and no further than they look.
//!
//! Motion JPEG (full or limited Huffman tables), YUYV, NV12 and GREY. A still scene needs only the brightness of a coarse
//! grid: of the uncompressed formats that is some samples, of JPEG the luma alone. A frame that is replaced before
//! anybody looked costs one copy out of the driver's buffer, which `Buffers` takes back when the frame is dropped.
//!
//! Damaged frames end here: uncompressed ones must have all their bytes, and JPEG is decoded strictly, so that data that
//! ends early is an error and not a picture with a grey lower part. What scaled and region decoding would save was
//! measured (`docs/performance.md`, "Decoding"): nearly all of the time goes into the Huffman codes, which must be read
//! whole in any case.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::camera::view::{Layout, View};
use crate::recognise::frame::{Luma, Pixels};
use crate::recognise::picture::{DecodeError, Picture};

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
    /// Brightness only, always the full range.
    Grey,
}

impl Raster {
    /// The bytes that a whole frame has; `None` when the numbers do not fit together, or are no camera's.
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
            Kind::Grey => self.width,
            _ => return None,
        };
        let rows =
            if self.kind == Kind::Nv12 { self.height.checked_mul(3)? / 2 } else { self.height };
        (self.stride >= row && self.width > 0 && rows > 0)
            .then(|| self.stride.checked_mul(rows))
            .flatten()
    }

    fn luma_at(&self, bytes: &[u8], x: usize, y: usize) -> u8 {
        let at = y * self.stride + x;
        match self.kind {
            Kind::Yuyv => bytes[at + x],
            Kind::Nv12 | Kind::Grey => bytes[at],
        }
    }

    /// Brightness and the two colour differences.
    fn yuv_at(&self, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
        let pair = match self.kind {
            Kind::Yuyv => y * self.stride + x / 2 * 4 + 1,
            Kind::Nv12 => (self.height + y / 2) * self.stride + x / 2 * 2,
            Kind::Grey => return [self.luma_at(bytes, x, y), 128, 128],
        };
        let v = if self.kind == Kind::Yuyv { pair + 2 } else { pair + 1 };
        [self.luma_at(bytes, x, y), bytes[pair], bytes[v]]
    }

    fn rgb_of(&self, yuv: [u8; 3]) -> [u8; 3] {
        match (self.kind, self.full_range) {
            (Kind::Grey, _) => [yuv[0]; 3],
            (_, true) => FULL_RANGE.rgb_of(yuv),
            (_, false) => STUDIO_RANGE.rgb_of(yuv),
        }
    }

    /// The whole picture, row by row: what is done for each pixel is done without asking which format it is.
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
            }
        }
        Picture::from_rgb(self.width, self.height, rgb.into_flattened())
    }
}

/// How brightness and colour differences become red, green and blue, in 256ths: BT.601, as UVC and JPEG say.
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
        let (y, u, v) = (
            (i32::from(luma) - self.black) * self.luma + 128,
            i32::from(u) - 128,
            i32::from(v) - 128,
        );
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
}

/// More than any camera's picture: a header that claims more is damaged. The largest decoded picture is 100 MB.
const PIXELS_MAX: usize = 33_000_000;

/// A frame with its bytes as delivered.
pub struct Encoded {
    bytes: Vec<u8>,
    buffers: Arc<Buffers>,
    coding: Coding,
    layout: Layout,
    full: OnceLock<Result<Picture, DecodeError>>,
}

impl Encoded {
    /// Copies `bytes`. An error is a damaged frame: it has not the bytes, markers or header of a whole one.
    pub fn new(
        bytes: &[u8],
        coding: Coding,
        view: &View,
        buffers: &Arc<Buffers>,
    ) -> Result<Self, DecodeError> {
        let (begin, bytes, (width, height)) = match coding {
            Coding::Jpeg => {
                let bytes = whole_jpeg(bytes)?;
                let header = JpegHeader::read(bytes)?;
                let begin = if header.has_tables { &[][..] } else { MJPEG_BEGIN };
                // The start marker stands in `begin` too.
                (begin, &bytes[if begin.is_empty() { 0 } else { 2 }..], header.size)
            }
            Coding::Raster(raster) => {
                let needed =
                    raster.bytes().ok_or_else(|| damaged("frame", "it has an impossible size"))?;
                let whole =
                    bytes.get(..needed).ok_or_else(|| damaged("frame", "it ends too early"))?;
                (&[][..], whole, (raster.width, raster.height))
            }
        };
        let layout = view.layout(width, height);
        let buffers = Arc::clone(buffers);
        Ok(Self {
            bytes: buffers.filled(begin, bytes),
            buffers,
            coding,
            layout,
            full: OnceLock::new(),
        })
    }

    fn decode(&self) -> Result<Picture, DecodeError> {
        let (width, height) = self.layout.raw_size();
        let picture = match self.coding {
            Coding::Jpeg => {
                let rgb = decode_jpeg(&self.bytes, (width, height), ColorSpace::RGB)?;
                Picture::from_rgb(width, height, rgb)
            }
            Coding::Raster(raster) => raster.picture(&self.bytes),
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
        match self.coding {
            Coding::Jpeg => {
                let (width, height) = self.layout.raw_size();
                let luma = decode_jpeg(&self.bytes, (width, height), ColorSpace::Luma)?;
                Ok(self.layout.luma(|x, y| luma[y * width + x]))
            }
            Coding::Raster(raster) => {
                Ok(self.layout.luma(|x, y| raster.luma_at(&self.bytes, x, y)))
            }
        }
    }

    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        let step = self.layout.step_for(side_px);
        match self.coding {
            // Means of brightness and colour are converted, a ninth of the pixels or fewer. Below that, and of JPEG, nothing
            // would be saved (measured).
            Coding::Raster(raster) if step > 2 && self.full.get().is_none() => {
                let source = |x, y| raster.yuv_at(&self.bytes, x, y);
                Ok(Cow::Owned(self.layout.reduced(step, source, |yuv| raster.rgb_of(yuv))))
            }
            _ => self.full().map(Cow::Borrowed),
        }
    }

    fn full(&self) -> Result<&Picture, DecodeError> {
        self.full.get_or_init(|| self.decode()).as_ref().map_err(Clone::clone)
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({:?}, {} bytes)", self.coding, self.bytes.len())
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.bytes));
    }
}

/// Frames' memory, used again: at ten frames a second the allocator would otherwise be asked for megabytes each second.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// One frame in the slot, one with the networks, one being made.
const BUFFERS_MAX: usize = 3;

impl Buffers {
    fn filled(&self, begin: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut buffer =
            self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(begin);
        buffer.extend_from_slice(bytes);
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < BUFFERS_MAX {
            free.push(buffer);
        }
    }
}

/// From the start marker to just before the end marker. Cameras fill up with zeroes after it.
///
/// The end marker is left off on purpose: told of the end, the decoder takes missing data for zeroes; running into the
/// end of the bytes, it says that they are missing.
fn whole_jpeg(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    if !bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        return Err(damaged("JPEG", "it does not begin as one"));
    }
    // Inside the coded data 0xFF is always followed by 0 or a restart marker, so the last end marker is the picture's.
    let end = bytes.windows(2).rposition(|marker| marker == [0xFF, 0xD9]);
    bytes
        .get(..end.unwrap_or(0))
        .filter(|rest| rest.len() > 3)
        .ok_or_else(|| damaged("JPEG", "it ends too early"))
}

/// The start of a frame of motion JPEG as AVI has it. Many cameras leave the Huffman tables out, which are the same in
/// every frame; by this the decoder knows to take the usual ones.
const MJPEG_BEGIN: &[u8] = b"\xFF\xD8\xFF\xE0\0\x08AVI1\0\0";

/// What the markers before the coded data say.
struct JpegHeader {
    size: (usize, usize),
    has_tables: bool,
}

impl JpegHeader {
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut at, mut size, mut has_tables) = (2, None, false);
        while let Some([0xFF, marker, high, low]) =
            bytes.get(at..).and_then(|head| head.first_chunk::<4>())
        {
            let payload = bytes.get(at + 4..).unwrap_or_default();
            match *marker {
                0xC4 => has_tables = true,
                0xC8 | 0xCC => {}
                0xC0..=0xCF => {
                    let Some([_, h1, h0, w1, w0]) = payload.first_chunk::<5>() else { break };
                    size = Some((
                        u16::from_be_bytes([*w1, *w0]).into(),
                        u16::from_be_bytes([*h1, *h0]).into(),
                    ));
                }
                0xDA => break,
                _ => {}
            }
            // 0xFF before a marker is allowed as filling.
            at += if *marker == 0xFF {
                1
            } else {
                2 + usize::from(u16::from_be_bytes([*high, *low])).max(2)
            };
        }
        let (width, height) = size.ok_or_else(|| damaged("JPEG", "it has no size"))?;
        if width == 0 || height == 0 || width * height > PIXELS_MAX {
            return Err(DecodeError::TooManyPixels { width, height, limit: PIXELS_MAX });
        }
        Ok(Self { size: (width, height), has_tables })
    }
}

/// The pixels, all of them or an error. A header that contradicts the size found before is damaged.
fn decode_jpeg(
    bytes: &[u8],
    (width, height): (usize, usize),
    colours: ColorSpace,
) -> Result<Vec<u8>, DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(colours)
        .set_max_width(width)
        .set_max_height(height);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let pixels = decoder.decode().map_err(|error| damaged("JPEG", &error.to_string()))?;
    let whole = pixels.len() == width * height * colours.num_components();
    if whole && decoder.dimensions() == Some((width, height)) { Ok(pixels) } else { Err(too_few()) }
}

fn too_few() -> DecodeError {
    damaged("JPEG", "it has too few pixels")
}

fn damaged(format: &'static str, why: &str) -> DecodeError {
    DecodeError::Damaged { format, why: why.to_owned() }
}

#[cfg(test)]
mod tests;
