//! Photographs that an operator names: read within bounds, and made small enough for a command.
//!
//! A photograph that the daemon would refuse for its size is decoded here at a smaller size and
//! encoded anew. Whether a daemon runs makes no difference: the same bytes are judged and known by
//! their digest.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::config::Settings;
use crate::recognise::decode::{KIND_BYTES, check_kind};
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

/// What a file may have. Phones make up to 30 MB.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// The limits for a file: the largest photographs of phones have 200 megapixels.
pub const FILE_LIMITS: PictureLimits =
    PictureLimits { bytes: FILE_BYTES_MAX as usize, pixels: 220_000_000 };

/// A photograph that is encoded anew has at most so many pixels: more than any face needs, in some
/// 2 MB.
const PREPARED_PIXELS_MAX: usize = 6_000_000;
const PREPARED_QUALITY: u8 = 92;

/// The size of a command without its images.
pub const ENVELOPE_BYTES: usize = 4096;

/// Returns the bytes of a file, or the reason why they cannot be used. Size and kind are checked
/// before it is read.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    // Before opening the file: opening a FIFO would wait for its writer.
    let kind = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !kind.is_file() {
        return Err("unreadable (it is not a file)".into());
    }
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    read(file, kind.len())
}

/// The same for a source that claims so many bytes.
pub fn read(mut source: impl Read, claimed: u64) -> Result<Vec<u8>, String> {
    let too_large = || format!("too_large (at most {} MiB)", FILE_BYTES_MAX >> 20);
    let mut bytes = Vec::with_capacity(KIND_BYTES);
    let mut head = source.by_ref().take(KIND_BYTES as u64);
    head.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    check_kind(&bytes).map_err(|error| format!("decode_error ({error})"))?;
    if claimed > FILE_BYTES_MAX {
        return Err(too_large());
    }
    bytes.reserve(claimed as usize);
    // One byte more shows that it is too long.
    let rest = FILE_BYTES_MAX + 1 - bytes.len() as u64;
    source.take(rest).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(too_large()) } else { Ok(bytes) }
}

fn unreadable(error: &io::Error) -> String {
    format!("unreadable ({error})")
}

/// What one photograph of a command may have.
pub fn command_limits(settings: &Settings) -> PictureLimits {
    let limits = settings.recognition.picture();
    PictureLimits { bytes: limits.bytes.min(room(settings)), ..limits }
}

/// Bytes of photographs, before they are encoded in base64, that fit into one command.
pub fn room(settings: &Settings) -> usize {
    settings.commands.payload_bytes_max.saturating_sub(ENVELOPE_BYTES) / 4 * 3
}

/// Returns the photograph as it is, if it is within the limits, or a smaller one.
pub fn prepare(bytes: &[u8], limits: PictureLimits) -> Result<Cow<'_, [u8]>, DecodeError> {
    match Picture::check_size(bytes, limits) {
        Ok(()) => return Ok(Cow::Borrowed(bytes)),
        Err(DecodeError::TooManyBytes { .. } | DecodeError::TooManyPixels { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut picture = Picture::decode(bytes, FILE_LIMITS)?;
    let pixels = PREPARED_PIXELS_MAX.min(limits.pixels);
    let mut factor = 1;
    while picture.width().div_ceil(factor) * picture.height().div_ceil(factor) > pixels {
        factor += 1;
    }
    loop {
        picture = picture.shrunk(factor);
        let encoded = encode(&picture)?;
        if encoded.len() <= limits.bytes || picture.width().max(picture.height()) < 2 {
            return Ok(Cow::Owned(encoded));
        }
        factor = 2;
    }
}

fn encode(picture: &Picture) -> Result<Vec<u8>, DecodeError> {
    let mut out = Cursor::new(Vec::new());
    let width = picture.width() as u32;
    let height = picture.height() as u32;
    JpegEncoder::new_with_quality(&mut out, PREPARED_QUALITY)
        .encode(picture.rgb(), width, height, ExtendedColorType::Rgb8)
        // It writes to memory, and a picture has the size that it says.
        .map_err(|_| DecodeError::TooManyPixels {
            width: picture.width(),
            height: picture.height(),
            limit: PREPARED_PIXELS_MAX,
        })?;
    Ok(out.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: u32, height: u32) -> Vec<u8> {
        let pixel = |x: u32, y: u32| {
            let value = x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503);
            image::Rgb([(value >> 8) as u8, (value >> 16) as u8, (value >> 3) as u8])
        };
        let picture = image::RgbImage::from_fn(width, height, pixel);
        let mut out = Cursor::new(Vec::new());
        JpegEncoder::new_with_quality(&mut out, 95).encode_image(&picture).unwrap();
        out.into_inner()
    }

    #[test]
    fn large_photograph_is_prepared_within_limits() {
        let photograph = noise(1200, 800);
        let generous = PictureLimits::default();
        assert!(matches!(prepare(&photograph, generous), Ok(Cow::Borrowed(_))));
        for limits in [
            PictureLimits { pixels: 500_000, ..generous },
            PictureLimits { bytes: photograph.len() / 3, ..generous },
            PictureLimits { bytes: 2_000, pixels: 10_000 },
        ] {
            let prepared = prepare(&photograph, limits).unwrap();
            let picture = Picture::decode(&prepared, limits).unwrap();
            assert!(picture.width() * 2 >= picture.height() * 3 - 6, "{picture:?}");
            assert!(prepared.len() <= limits.bytes, "{limits:?}");
            // The same each time: by its digest it is known.
            assert_eq!(prepared, prepare(&photograph, limits).unwrap());
        }
        let cut = &photograph[..photograph.len() / 2];
        let refused = prepare(cut, PictureLimits { pixels: 500_000, ..generous }).unwrap_err();
        assert!(matches!(refused, DecodeError::Damaged { .. }), "{refused}");
    }

    #[test]
    fn file_is_checked_before_it_is_read() {
        let jpeg = noise(8, 8);
        assert_eq!(read(&jpeg[..], jpeg.len() as u64).unwrap(), jpeg);
        let endless = |start: &'static [u8]| start.chain(io::repeat(7));
        for (source, claimed, expected) in [
            (endless(b""), 10, "not a picture"),
            (endless(b"GIF89a"), u64::MAX, "GIF is not supported"),
            (endless(b"\xFF\xD8\xFF\xE0"), u64::MAX, "too_large"),
            // It claims less than it has.
            (endless(b"\xFF\xD8\xFF\xE0"), 10, "too_large"),
        ] {
            let why = read(source, claimed).unwrap_err();
            assert!(why.contains(expected), "{why}, not {expected}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(read_file(dir.path()).unwrap_err().contains("not a file"));
    }
}
