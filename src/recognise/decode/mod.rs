//! JPEG, PNG and WebP from untrusted bytes.
//!
//! Invariants: what a file claims is checked before memory is taken for it. Decoding takes at most
//! `MEMORY_MAX`, whatever the file is, and a picture that is kept has at most `KEPT_PIXELS_MAX`: a
//! larger one is made smaller while it is decoded. What would take more is rejected by name. A panic
//! in a decoder rejects the picture.

mod jpeg;
mod kept;
mod png;
mod upright;
mod webp;
mod webp_tables;

use image::ImageFormat;

use crate::recognise::guarded::{DecoderPanicked, guarded};
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

impl Picture {
    /// Decodes JPEG, PNG or WebP and turns it upright by its EXIF orientation.
    pub fn decode(bytes: &[u8], limits: PictureLimits) -> Result<Self, DecodeError> {
        limits.check_bytes(bytes.len())?;
        let format = check_kind(bytes)?;
        let decoded = guarded(|| match format {
            Format::Jpeg => jpeg::decode(bytes, limits),
            Format::Png => png::decode(bytes, limits),
            Format::WebP => webp::decode(bytes, limits),
        });
        let (picture, orientation) =
            decoded.map_err(|panicked| panic_error(format, panicked))??;
        Ok(upright::turn(picture, orientation))
    }

    /// Whether a picture is within the limits, by what it declares about itself.
    pub fn check_size(bytes: &[u8], limits: PictureLimits) -> Result<(), DecodeError> {
        limits.check_bytes(bytes.len())?;
        let format = check_kind(bytes)?;
        let size = guarded(|| match format {
            Format::Jpeg => jpeg::size(bytes),
            Format::Png => png::size(bytes),
            Format::WebP => webp::size(bytes),
        });
        let (width, height) = size.map_err(|panicked| panic_error(format, panicked))??;
        limits.check_pixels(width, height)
    }
}

fn panic_error(format: Format, panicked: DecoderPanicked) -> DecodeError {
    let format = match format {
        Format::Jpeg => "JPEG",
        Format::Png => "PNG",
        Format::WebP => "WebP",
    };
    DecodeError::Damaged { format, why: panicked.to_string() }
}

/// The kinds of picture that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Jpeg,
    Png,
    WebP,
}

/// Bytes by which `check_kind` knows a picture.
pub const KIND_BYTES: usize = 64;

/// Finds out by its first bytes what kind of picture a file is; names those that are not supported.
pub fn check_kind(bytes: &[u8]) -> Result<Format, DecodeError> {
    let other = |name| Err(DecodeError::OtherFormat(name));
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => return Ok(Format::Jpeg),
        Ok(ImageFormat::Png) => return Ok(Format::Png),
        Ok(ImageFormat::WebP) => return Ok(Format::WebP),
        Ok(ImageFormat::Gif) => return other("GIF"),
        Ok(ImageFormat::Bmp) => return other("BMP"),
        Ok(ImageFormat::Tiff) => return other("TIFF"),
        Ok(ImageFormat::Avif) => return other("AVIF"),
        _ => {}
    }
    if let Some(brand) = bytes.get(4..12).and_then(|it| it.strip_prefix(b"ftyp")) {
        return match brand {
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1"
            | b"heif" => Err(DecodeError::Heic),
            b"avif" | b"avis" => other("AVIF"),
            b"crx " => other("a camera's raw file"),
            _ => other("a video"),
        };
    }
    let begins_with = |start: &[u8]| bytes.starts_with(start);
    if bytes.is_empty() {
        Err(DecodeError::Empty)
    } else if begins_with(b"\0\0\0\x0CJXL ") || begins_with(b"\xFF\x0A") {
        other("JPEG XL")
    } else if begins_with(b"\0\0\0\x0CjP  ") || begins_with(b"\xFF\x4F\xFF\x51") {
        other("JPEG 2000")
    } else if begins_with(b"%PDF") {
        other("PDF")
    } else if begins_with(b"8BPS") {
        other("PSD")
    } else if begins_with(b"<svg") || begins_with(b"<?xml") {
        other("SVG")
    } else {
        Err(DecodeError::UnknownFormat)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

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
    fn valid_picture_is_decoded() {
        let picture = Picture::decode(&jpeg(40, 30), PictureLimits::default()).unwrap();
        assert_eq!((picture.width(), picture.height(), picture.rgb().len()), (40, 30, 3600));
    }

    #[test]
    fn oversized_picture_is_rejected_before_allocation() {
        let lie = lying(jpeg(40, 30), 30_000, 30_000);
        let refused = Picture::decode(&lie, PictureLimits::default()).unwrap_err();
        assert_eq!(
            refused,
            DecodeError::TooManyPixels { width: 30_000, height: 30_000, limit: 25_000_000 }
        );
    }

    #[test]
    fn overlong_picture_row_is_rejected() {
        let mut out = Cursor::new(Vec::new());
        image::GrayImage::new(60_000, 1).write_to(&mut out, ImageFormat::Png).unwrap();
        let refused = Picture::decode(out.get_ref(), PictureLimits::default()).unwrap_err();
        assert!(matches!(refused, DecodeError::TooManyPixels { width: 60_000, height: 1, .. }));
    }

    #[test]
    fn decode_error_names_the_cause() {
        let limits = PictureLimits { bytes: 1000, ..Default::default() };
        for (bytes, expected) in [
            (&b"hello"[..], "not a picture"),
            (b"", "it is empty"),
            (b"\0\0\0\x18ftypheic....", "HEIC is not supported"),
            (b"\0\0\0\x18ftypavif....", "AVIF is not supported"),
            (b"\0\0\0\x18ftypisom....", "a video is not supported"),
            (b"GIF89a..", "GIF is not supported: save it as JPEG"),
            (b"BM......", "BMP is not supported"),
            (b"II*\0....", "TIFF is not supported"),
            (b"%PDF-1.7", "PDF is not supported"),
            (b"\xFF\xD8\xFF\xE0", "the JPEG is damaged: it ends too early"),
            (b"\x89PNG\r\n\x1a\n", "the PNG is damaged: it ends too early"),
            (b"RIFF\0\0\0\0WEBP", "the WebP is damaged: it ends too early"),
            (&[0u8; 1001], "1001 bytes"),
        ] {
            let message = Picture::decode(bytes, limits).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn truncated_jpeg_is_always_rejected() {
        let whole = jpeg(64, 64);
        for length in (0..whole.len() - 2).step_by(7) {
            let fault = Picture::decode(&whole[..length], PictureLimits::default()).unwrap_err();
            assert!(!fault.to_string().contains("the decoder failed"), "{length}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..1000, value: u8, cut in 0usize..1200) {
            let mut bytes = jpeg(48, 48);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(cut.max(4));
            if let Err(fault) = Picture::decode(&bytes, PictureLimits::default()) {
                prop_assert!(!fault.to_string().contains("the decoder failed"), "{fault}");
            }
        }
    }
}
