//! A still picture or a frame as pixels, decoded from bytes that nobody vouches for.
//!
//! Invariant: `rgb.len() == width * height * 3`, both sides at least 1. Everything is refused before memory is taken:
//! the size that a file claims is checked before it is decoded. Pictures live in memory only and are never written.

use std::fmt;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Pixels as 8-bit RGB, row by row, three bytes a pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// What is accepted before anything is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    pub bytes: usize,
    pub pixels: usize,
}

impl Default for PictureLimits {
    fn default() -> Self {
        // 4 MiB holds any photograph of a face; 25 megapixels is 75 MB decoded, what a Raspberry Pi can spare for a moment.
        Self { bytes: 4 << 20, pixels: 25_000_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the picture has {bytes} bytes; at most {limit} are accepted")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error(
        "the picture claims {width} x {height} pixels; at most {limit} in all and {SIDE_MAX} a side are accepted"
    )]
    TooManyPixels { width: usize, height: usize, limit: usize },
    #[error(
        "HEIC is not supported: send JPEG, PNG or WebP (phones can export JPEG as \"most compatible\")"
    )]
    Heic,
    #[error("not a picture: it begins like neither JPEG, PNG nor WebP")]
    UnknownFormat,
    #[error("the {format} is damaged: {why}")]
    Damaged { format: &'static str, why: String },
}

impl Picture {
    /// `None` when the buffer does not have three bytes for each pixel, or there are none.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Option<Self> {
        let fits =
            width > 0 && height > 0 && width.checked_mul(height)?.checked_mul(3)? == rgb.len();
        fits.then_some(Self { width, height, rgb })
    }

    /// A picture of one colour.
    pub fn plain(width: usize, height: usize, colour: [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        Self { width, height, rgb: colour.repeat(width * height) }
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

    /// Every `step`th pixel of every `step`th row: coarse, but quick, and enough to find a face that fills the picture.
    #[must_use]
    pub fn thinned(&self, step: usize) -> Self {
        let (width, height) = (self.width.div_ceil(step), self.height.div_ceil(step));
        let rows = (0..self.height).step_by(step).map(|y| self.row(y));
        let rgb =
            rows.flat_map(|row| row.chunks_exact(3).step_by(step).flatten().copied()).collect();
        Self { width, height, rgb }
    }

    /// The same picture with a black border on every side, `share` of the longer side wide. For photographs that a face
    /// fills to the edge, in which a detector sees no face.
    pub fn with_border(&self, share: f32) -> (Self, usize) {
        let border = (self.width.max(self.height) as f32 * share).round() as usize;
        let mut framed = Self::plain(self.width + 2 * border, self.height + 2 * border, [0; 3]);
        for y in 0..self.height {
            let at = ((y + border) * framed.width + border) * 3;
            framed.rgb[at..at + self.width * 3].copy_from_slice(self.row(y));
        }
        (framed, border)
    }

    /// Decodes JPEG, PNG or WebP and turns it upright as its EXIF orientation says.
    pub fn decode(bytes: &[u8], limits: PictureLimits) -> Result<Self, DecodeError> {
        if bytes.len() > limits.bytes {
            return Err(DecodeError::TooManyBytes { bytes: bytes.len(), limit: limits.bytes });
        }
        match image::guess_format(bytes) {
            Ok(ImageFormat::Jpeg) => decode_jpeg(bytes, limits),
            Ok(format @ (ImageFormat::Png | ImageFormat::WebP)) => {
                decode_other(bytes, format, limits)
            }
            _ if is_heic(bytes) => Err(DecodeError::Heic),
            _ => Err(DecodeError::UnknownFormat),
        }
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// No camera makes a longer side; a picture of one pixel by millions is an attack on whoever scales it.
const SIDE_MAX: usize = 16_384;

fn check_pixels(width: usize, height: usize, limits: PictureLimits) -> Result<(), DecodeError> {
    match width.checked_mul(height) {
        Some(pixels) if pixels <= limits.pixels && width.max(height) <= SIDE_MAX => Ok(()),
        _ => Err(DecodeError::TooManyPixels { width, height, limit: limits.pixels }),
    }
}

fn decode_jpeg(bytes: &[u8], limits: PictureLimits) -> Result<Picture, DecodeError> {
    let damaged = |why: String| DecodeError::Damaged { format: "JPEG", why };
    // The decoder's own per-side limits are lifted so that ours, on the product, is the one that speaks.
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| damaged(e.to_string()))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| damaged("it has no size".into()))?;
    check_pixels(width, height, limits)?;
    // A cut file decodes to a picture with a grey lower part, which must never become somebody's template.
    if !bytes.windows(2).rev().take(64 << 10).any(|marker| marker == [0xFF, 0xD9]) {
        return Err(damaged("it ends too early".into()));
    }
    let rgb = decoder.decode().map_err(|e| damaged(e.to_string()))?;
    let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
    let picture = Picture::from_rgb(width, height, rgb)
        .ok_or_else(|| damaged("it has too few pixels".into()))?;
    Ok(upright(picture, orientation.unwrap_or(Orientation::NoTransforms)))
}

fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    limits: PictureLimits,
) -> Result<Picture, DecodeError> {
    let label = if format == ImageFormat::Png { "PNG" } else { "WebP" };
    let damaged =
        |why: image::ImageError| DecodeError::Damaged { format: label, why: why.to_string() };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.pixels as u64 * 8);
    reader.limits(bounds);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as usize, height as usize, limits)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let picture = Picture { width, height, rgb: image.into_raw() };
    Ok(upright(picture, orientation))
}

fn upright(picture: Picture, orientation: Orientation) -> Picture {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let (width, height) = (picture.width as u32, picture.height as u32);
    let buffer = image::RgbImage::from_raw(width, height, picture.rgb)
        .expect("a picture has three bytes a pixel");
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    let turned = image.into_rgb8();
    Picture {
        width: turned.width() as usize,
        height: turned.height() as usize,
        rgb: turned.into_raw(),
    }
}

fn is_heic(bytes: &[u8]) -> bool {
    let brand = bytes.get(4..12).unwrap_or_default();
    brand.starts_with(b"ftyp")
        && [&b"heic"[..], b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"]
            .contains(&&brand[4..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jpeg(width: u32, height: u32) -> Vec<u8> {
        let image = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 3) as u8, (y * 5) as u8, 77])
        });
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, ImageFormat::Jpeg).unwrap();
        out.into_inner()
    }

    /// Writes another size into the frame header, as an attacker would.
    fn lying(mut jpeg: Vec<u8>, width: u16, height: u16) -> Vec<u8> {
        let at = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        jpeg[at + 5..at + 7].copy_from_slice(&height.to_be_bytes());
        jpeg[at + 7..at + 9].copy_from_slice(&width.to_be_bytes());
        jpeg
    }

    #[test]
    fn a_good_picture_is_decoded() {
        let picture = Picture::decode(&jpeg(40, 30), PictureLimits::default()).unwrap();
        assert_eq!((picture.width(), picture.height(), picture.rgb().len()), (40, 30, 3600));
    }

    #[test]
    fn a_picture_that_claims_too_much_is_refused_before_memory_is_taken() {
        let lie = lying(jpeg(40, 30), 30_000, 30_000);
        let refused = Picture::decode(&lie, PictureLimits::default()).unwrap_err();
        assert_eq!(
            refused,
            DecodeError::TooManyPixels { width: 30_000, height: 30_000, limit: 25_000_000 }
        );
    }

    #[test]
    fn a_picture_of_one_endless_row_is_refused() {
        let mut out = Cursor::new(Vec::new());
        image::GrayImage::new(60_000, 1).write_to(&mut out, ImageFormat::Png).unwrap();
        let refused = Picture::decode(out.get_ref(), PictureLimits::default()).unwrap_err();
        assert!(matches!(refused, DecodeError::TooManyPixels { width: 60_000, height: 1, .. }));
    }

    #[test]
    fn thinning_keeps_every_nth_pixel() {
        let picture = Picture::from_rgb(3, 3, (0..27).collect()).unwrap();
        let thinned = picture.thinned(2);
        assert_eq!((thinned.width(), thinned.height()), (2, 2));
        assert_eq!(thinned.rgb(), [0, 1, 2, 6, 7, 8, 18, 19, 20, 24, 25, 26]);
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let limits = PictureLimits { bytes: 1000, ..Default::default() };
        for (bytes, expected) in [
            (&b"hello"[..], "not a picture"),
            (b"", "not a picture"),
            (b"\0\0\0\x18ftypheic....", "HEIC"),
            (&[0u8; 1001], "1001 bytes"),
        ] {
            let said = Picture::decode(bytes, limits).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_cut_jpeg_is_refused_at_every_length() {
        let whole = jpeg(64, 64);
        for length in (0..whole.len() - 2).step_by(7) {
            assert!(
                Picture::decode(&whole[..length], PictureLimits::default()).is_err(),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..1000, value: u8, cut in 0usize..1200) {
            let mut bytes = jpeg(48, 48);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(cut.max(4));
            drop(Picture::decode(&bytes, PictureLimits::default()));
        }
    }
}
