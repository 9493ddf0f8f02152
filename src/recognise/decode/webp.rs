//! WebP: what it is by its chunks, then decoded whole.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder as _, ImageError};

use crate::recognise::decode::kept::{MEMORY_MAX, check_memory, reduce};
use crate::recognise::decode::upright;
use crate::recognise::decode::webp_tables::decoder_bytes;
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

pub(super) fn decode(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(Picture, Orientation), DecodeError> {
    let outline = Outline::read(bytes)?;
    let size = (outline.width, outline.height);
    limits.check_pixels(size.0, size.1)?;
    // Brightness and colours at a half and all of it as red, green and blue; with transparency, that
    // too, coded like a lossless picture. Of a lossless picture, what it was coded by.
    let (kind, half_bytes) = match (outline.is_lossless, outline.has_alpha) {
        (false, false) => ("WebP", 10),
        (false, true) => ("transparent WebP", 22),
        (true, _) => ("lossless WebP", 16),
    };
    check_memory(kind, size, half_bytes)?;
    if let Some(coded) = outline.coded_losslessly {
        let most = MEMORY_MAX - size.0 * size.1 * half_bytes / 2;
        match decoder_bytes(coded, size.0, size.1, most) {
            Some(bytes) if bytes <= most => {}
            Some(_) => {
                return Err(DecodeError::TooMuchMemory { kind, width: size.0, height: size.1 });
            }
            None => return Err(damaged("its data is broken")),
        }
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| fault(&error))?;
    if decoder.dimensions() != (size.0 as u32, size.1 as u32) {
        return Err(damaged("it has two sizes"));
    }
    let exif = decoder.exif_metadata().unwrap_or_default();
    let channels = if decoder.color_type() == ColorType::Rgba8 { 4 } else { 3 };
    let mut pixels = vec![0; size.0 * size.1 * channels];
    decoder.read_image(&mut pixels).map_err(|error| fault(&error))?;
    if channels == 4 {
        // In place: without transparency it only becomes shorter.
        for at in 0..size.0 * size.1 {
            pixels.copy_within(at * 4..at * 4 + 3, at * 3);
        }
        pixels.truncate(size.0 * size.1 * 3);
        pixels.shrink_to_fit();
    }
    let picture = reduce(size.0, size.1, pixels).ok_or_else(|| damaged("it has too few pixels"))?;
    Ok((picture, upright::orientation(exif.as_deref())))
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    Outline::read(bytes).map(|outline| (outline.width, outline.height))
}

/// What a WebP declares. The decoder takes memory for what each chunk declares, before it compares
/// them.
struct Outline<'a> {
    width: usize,
    height: usize,
    is_lossless: bool,
    has_alpha: bool,
    /// What is coded by tables of the file: a lossless picture, or the transparency of another.
    coded_losslessly: Option<&'a [u8]>,
}

impl<'a> Outline<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut found: Option<Self> = None;
        let mut is_transparent = false;
        let mut alpha = None;
        // What follows the file's own length is not part of it.
        let length = bytes.get(4..8).and_then(|it| it.first_chunk::<4>());
        let end = length.map_or(0, |it| u32::from_le_bytes(*it) as usize).saturating_add(8);
        let mut rest = bytes.get(12..end.min(bytes.len())).unwrap_or_default();
        while let Some(([a, b, c, d, length @ ..], behind)) = rest.split_first_chunk::<8>() {
            let length = u32::from_le_bytes(*length) as usize;
            let payload = &behind[..length.min(behind.len())];
            let declared = match &[*a, *b, *c, *d] {
                b"VP8X" => {
                    let flags = payload.first().copied().unwrap_or_default();
                    if flags & 0x02 != 0 {
                        return Err(DecodeError::Unsupported {
                            format: "WebP",
                            why: "an animation",
                        });
                    }
                    is_transparent = flags & 0x10 != 0;
                    None
                }
                b"ALPH" => {
                    // The lowest two bits are the method: raw, or like a lossless picture.
                    alpha = payload.split_first().filter(|it| it.0 & 3 == 1).map(|it| it.1);
                    None
                }
                b"VP8 " => Some(Self::of_lossy(payload)?),
                b"VP8L" => Some(Self::of_lossless(payload)?),
                _ => None,
            };
            if let Some(declared) = declared
                && found.replace(declared).is_some()
            {
                return Err(damaged("it has two pictures"));
            }
            rest = behind.get(length + length % 2..).unwrap_or_default();
        }
        let found = found.ok_or_else(|| damaged("it ends too early"))?;
        let coded_losslessly = found.coded_losslessly.or(alpha);
        Ok(Self { has_alpha: found.has_alpha || is_transparent, coded_losslessly, ..found })
    }

    /// RFC 6386, 9.1: behind the frame tag and the start code, 14 bits each.
    fn of_lossy(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let Some([w0, w1, h0, h1]) = payload.get(6..10) else {
            return Err(damaged("it ends too early"));
        };
        let side = |low: u8, high: u8| usize::from(u16::from_le_bytes([low, high]) & 0x3FFF);
        Ok(Self {
            width: side(*w0, *w1),
            height: side(*h0, *h1),
            is_lossless: false,
            has_alpha: false,
            coded_losslessly: None,
        })
    }

    /// RFC 9649, 3.4: behind the signature, 14 bits each, one less than the side.
    fn of_lossless(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let Some(header) = payload.get(1..5).and_then(|it| it.first_chunk::<4>()) else {
            return Err(damaged("it ends too early"));
        };
        let header = u32::from_le_bytes(*header);
        let side = |bits: u32| (bits & 0x3FFF) as usize + 1;
        Ok(Self {
            width: side(header),
            height: side(header >> 14),
            is_lossless: true,
            has_alpha: header >> 28 & 1 == 1,
            coded_losslessly: payload.get(5..),
        })
    }
}

/// The decoder's own words are for its developers.
fn fault(error: &ImageError) -> DecodeError {
    match error {
        ImageError::IoError(_) => damaged("it ends too early"),
        ImageError::Unsupported(_) => {
            DecodeError::Unsupported { format: "WebP", why: "a rare kind" }
        }
        _ => damaged("its data is broken"),
    }
}

fn damaged(why: &str) -> DecodeError {
    DecodeError::Damaged { format: "WebP", why: why.to_owned() }
}
