//! A still picture or a frame as pixels, and what is accepted of untrusted bytes (`decode`).
//!
//! Invariant: `rgb.len() == width * height * 3`, both sides at least 1. Pictures live in memory only
//! and are never written.

use std::fmt;
use std::ops::Range;

use crate::recognise::jpeg::segments::JpegFault;

/// Pixels as 8-bit RGB, row by row, three bytes a pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    /// How many times wider and higher the file's picture is: a large one is made smaller while it
    /// is decoded.
    reduction: usize,
}

/// What is accepted before anything is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    pub bytes: usize,
    pub pixels: usize,
}

impl Default for PictureLimits {
    fn default() -> Self {
        // 4 MiB holds any photograph of a face. Above 12.6 megapixels a picture is made smaller while
        // it is decoded; 25 are what a Raspberry Pi reads in about a second.
        Self { bytes: 4 << 20, pixels: 25_000_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the picture has {bytes} bytes; at most {limit} are accepted: {MAKE_SMALLER}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error(
        "the picture claims {width} x {height} pixels; at most {limit} in all and {SIDE_MAX} a side are accepted: \
         {MAKE_SMALLER}"
    )]
    TooManyPixels { width: usize, height: usize, limit: usize },
    #[error(
        "a {kind} of {width} x {height} pixels takes too much memory to decode: save it anew as an ordinary JPEG, or \
         with fewer pixels"
    )]
    TooMuchMemory { kind: &'static str, width: usize, height: usize },
    #[error(
        "HEIC is not supported: save it as JPEG, PNG or WebP (phones can export JPEG as \"most compatible\")"
    )]
    Heic,
    #[error("{0} is not supported: save it as JPEG, PNG or WebP")]
    OtherFormat(&'static str),
    #[error("it is empty")]
    Empty,
    #[error("not a picture: it begins like neither JPEG, PNG nor WebP")]
    UnknownFormat,
    #[error("the {format} is damaged: {why}")]
    Damaged { format: &'static str, why: String },
    #[error(
        "this kind of {format} is not supported ({why}): save it anew as an ordinary JPEG or as PNG"
    )]
    Unsupported { format: &'static str, why: &'static str },
}

/// The remedy for a picture that is too large.
const MAKE_SMALLER: &str =
    "make it smaller, as the page, `rollcall enrol` and `rollcall import` do by themselves";

impl From<JpegFault> for DecodeError {
    fn from(fault: JpegFault) -> Self {
        match fault {
            JpegFault::Damaged(why) => Self::Damaged { format: "JPEG", why: why.to_owned() },
            JpegFault::Unsupported(why) => Self::Unsupported { format: "JPEG", why },
        }
    }
}

impl Picture {
    /// `None` when the buffer does not have three bytes for each pixel, or there are none.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Option<Self> {
        let fits =
            width > 0 && height > 0 && width.checked_mul(height)?.checked_mul(3)? == rgb.len();
        fits.then_some(Self { width, height, rgb, reduction: 1 })
    }

    /// A picture of one colour.
    pub fn plain(width: usize, height: usize, colour: [u8; 3]) -> Self {
        let width = width.max(1);
        let height = height.max(1);
        Self { width, height, rgb: colour.repeat(width * height), reduction: 1 }
    }

    pub fn width(&self) -> usize {
        self.width
    }
    pub fn height(&self) -> usize {
        self.height
    }
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// How many pixels of the file one pixel is wide and high.
    pub fn reduction(&self) -> usize {
        self.reduction
    }

    /// The same pixels, noted as made of a file's picture that many times as wide and high.
    #[must_use]
    pub fn reduced_by(self, reduction: usize) -> Self {
        Self { reduction, ..self }
    }

    /// One row, three bytes a pixel.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.rgb[y * self.width * 3..(y + 1) * self.width * 3]
    }

    /// The pixel nearest to (x, y) inside the picture.
    pub fn clamped(&self, x: isize, y: isize) -> [u8; 3] {
        let x = x.clamp(0, self.width as isize - 1) as usize;
        let y = y.clamp(0, self.height as isize - 1) as usize;
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Every `step`th pixel of every `step`th row: coarse, but quick, and enough to find a face
    /// that fills the picture.
    #[must_use]
    pub fn thinned(&self, step: usize) -> Self {
        let width = self.width.div_ceil(step);
        let height = self.height.div_ceil(step);
        let rows = (0..self.height).step_by(step).map(|y| self.row(y));
        let rgb =
            rows.flat_map(|row| row.chunks_exact(3).step_by(step).flatten().copied()).collect();
        Self { width, height, rgb, reduction: self.reduction * step }
    }

    /// The same picture `factor` times smaller, each pixel the mean of a square, in its own memory.
    #[must_use]
    pub fn shrunk(mut self, factor: usize) -> Self {
        if factor <= 1 {
            return self;
        }
        let width = self.width.div_ceil(factor);
        let height = self.height.div_ceil(factor);
        for y in 0..height {
            let rows = y * factor..(y * factor + factor).min(self.height);
            for x in 0..width {
                let columns = x * factor..(x * factor + factor).min(self.width);
                let mean = self.mean(rows.clone(), columns);
                // Never beyond what has been read: each new pixel stands for `factor` squared.
                self.rgb[(y * width + x) * 3..][..3].copy_from_slice(&mean);
            }
        }
        self.rgb.truncate(width * height * 3);
        self.rgb.shrink_to_fit();
        Self { width, height, rgb: self.rgb, reduction: self.reduction * factor }
    }

    fn mean(&self, rows: Range<usize>, columns: Range<usize>) -> [u8; 3] {
        let count = (rows.len() * columns.len()) as u32;
        let mut sums = [count / 2; 3];
        for row in rows {
            let pixels = &self.row(row)[columns.start * 3..columns.end * 3];
            for pixel in pixels.chunks_exact(3) {
                sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
            }
        }
        sums.map(|sum| (sum / count) as u8)
    }

    /// The same picture turned clockwise by so many quarters.
    #[must_use]
    pub fn turned(&self, quarters: usize) -> Self {
        let (width, height) = match quarters % 2 {
            0 => (self.width, self.height),
            _ => (self.height, self.width),
        };
        let mut rgb = vec![0; self.rgb.len()];
        for (at, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let x = at % width;
            let y = at / width;
            let (from_x, from_y) = match quarters % 4 {
                0 => (x, y),
                1 => (y, self.height - 1 - x),
                2 => (self.width - 1 - x, self.height - 1 - y),
                _ => (self.width - 1 - y, x),
            };
            let from = (from_y * self.width + from_x) * 3;
            pixel.copy_from_slice(&self.rgb[from..from + 3]);
        }
        Self { width, height, rgb, reduction: self.reduction }
    }

    /// The same picture with a black border on every side, `share` of the longer side wide. For
    /// photographs that a face fills to the edge, in which a detector sees no face.
    pub fn with_border(&self, share: f32) -> (Self, usize) {
        let border = (self.width.max(self.height) as f32 * share).round() as usize;
        let mut framed = Self::plain(self.width + 2 * border, self.height + 2 * border, [0; 3]);
        for y in 0..self.height {
            let at = ((y + border) * framed.width + border) * 3;
            framed.rgb[at..at + self.width * 3].copy_from_slice(self.row(y));
        }
        (framed, border)
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// No camera makes a longer side. A picture of one pixel by millions is an attack on the code that
/// scales it.
pub const SIDE_MAX: usize = 16_384;

impl PictureLimits {
    pub fn check_bytes(&self, bytes: usize) -> Result<(), DecodeError> {
        if bytes > self.bytes {
            return Err(DecodeError::TooManyBytes { bytes, limit: self.bytes });
        }
        Ok(())
    }

    /// Checks a size before memory is taken for it.
    pub fn check_pixels(&self, width: usize, height: usize) -> Result<(), DecodeError> {
        match width.checked_mul(height) {
            Some(pixels) if pixels <= self.pixels && width.max(height) <= SIDE_MAX => Ok(()),
            _ => Err(DecodeError::TooManyPixels { width, height, limit: self.pixels }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_every_nth_pixel() {
        let picture = Picture::from_rgb(3, 3, (0..27).collect()).unwrap();
        let thinned = picture.thinned(2);
        assert_eq!((thinned.width(), thinned.height()), (2, 2));
        assert_eq!(thinned.rgb(), [0, 1, 2, 6, 7, 8, 18, 19, 20, 24, 25, 26]);
    }

    #[test]
    fn turning_moves_the_first_row() {
        // a b c
        // d e f
        let picture = Picture::from_rgb(3, 2, b"aaabbbcccdddeeefff".to_vec()).unwrap();
        for (quarters, width, expected) in [
            (0, 3, "abcdef"),
            (1, 2, "daebfc"),
            (2, 3, "fedcba"),
            (3, 2, "cfbead"),
            (4, 3, "abcdef"),
        ] {
            let turned = picture.turned(quarters);
            let letters: Vec<u8> = turned.rgb().iter().step_by(3).copied().collect();
            assert_eq!((turned.width(), &letters[..]), (width, expected.as_bytes()), "{quarters}");
        }
    }
}
