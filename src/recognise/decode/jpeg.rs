//! JPEG: by zune-jpeg, and what is too large for it or in scans of its own by `jpeg::pixels`.

use std::borrow::Cow;

use image::metadata::Orientation;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::recognise::decode::kept::{KEPT_PIXELS_MAX, check_memory, reduce};
use crate::recognise::decode::upright;
use crate::recognise::jpeg::outline::{Colours, Outline, Process};
use crate::recognise::jpeg::pixels::HALVINGS_MAX;
use crate::recognise::jpeg::{END_MARKER, exif};
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

pub(super) fn decode(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(Picture, Orientation), DecodeError> {
    let outline = Outline::read_with_parts(bytes)?;
    limits.check_pixels(outline.width, outline.height)?;
    let is_large = outline.width * outline.height > KEPT_PIXELS_MAX;
    let is_sequential = outline.process == Process::Sequential;
    let picture =
        if outline.is_in_parts() || is_large && is_sequential && outline.colours != Colours::Four {
            decode_shrunk(bytes, &outline)
        } else {
            decode_whole(bytes, &outline)
        }?;
    Ok((picture, upright::orientation(exif(bytes))))
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    let outline = Outline::read_with_parts(bytes)?;
    Ok((outline.width, outline.height))
}

fn decode_shrunk(bytes: &[u8], outline: &Outline) -> Result<Picture, DecodeError> {
    let pixels = |halvings: &u32| {
        outline.width.div_ceil(1 << halvings) * outline.height.div_ceil(1 << halvings)
    };
    let halvings = (0..HALVINGS_MAX).find(|halvings| pixels(halvings) <= KEPT_PIXELS_MAX);
    let halvings = halvings.unwrap_or(HALVINGS_MAX);
    let shrunk = outline.decode_shrunk(bytes, halvings)?;
    let picture = Picture::from_rgb(shrunk.width, shrunk.height, shrunk.rgb);
    Ok(picture.ok_or_else(|| damaged("it has too few pixels"))?.reduced_by(1 << halvings))
}

fn decode_whole(bytes: &[u8], outline: &Outline) -> Result<Picture, DecodeError> {
    let size = (outline.width, outline.height);
    if outline.process == Process::Progressive {
        // All coefficients, in 16 bits, and the pixels.
        let pixels = size.0 as u64 * size.1 as u64;
        let half_bytes = (4 * outline.samples()).div_ceil(pixels) + 6;
        check_memory("progressive JPEG", size, half_bytes as usize)?;
    } else {
        check_memory("JPEG for printing", size, 6)?;
    }
    // A cut file decodes to a picture with a grey lower part, which must never become somebody's
    // template.
    outline.check_whole(bytes)?;
    let (data, behind) = bytes.split_at(outline.end());
    let whole = if outline.has_end_marker() {
        // The decoder sees nothing of what follows the picture.
        Cow::Borrowed(&bytes[..data.len() + END_MARKER.len().min(behind.len())])
    } else {
        Cow::Owned([data, &END_MARKER].concat())
    };
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        // A sequential picture's data was checked. Of a progressive one, only the strict decoder
        // reports damage.
        .set_strict_mode(outline.process == Process::Progressive)
        .set_max_width(outline.width)
        .set_max_height(outline.height);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(&whole[..]), options);
    // The decoder's own words are for its developers.
    let rgb = decoder.decode().map_err(|_| damaged("its coded data is broken"))?;
    if decoder.dimensions() != Some(size) {
        return Err(damaged("it has two sizes"));
    }
    drop(decoder);
    reduce(size.0, size.1, rgb).ok_or_else(|| damaged("it has too few pixels"))
}

fn damaged(why: &str) -> DecodeError {
    DecodeError::Damaged { format: "JPEG", why: why.to_owned() }
}
