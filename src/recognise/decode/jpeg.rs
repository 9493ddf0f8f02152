//! JPEG: what may be decoded, and at which size.

use image::metadata::Orientation;

use crate::recognise::decode::kept::{KEPT_PIXELS_MAX, MEMORY_MAX, check_bytes};
use crate::recognise::decode::upright;
use crate::recognise::jpeg::exif;
use crate::recognise::jpeg::outline::{Outline, Process};
use crate::recognise::jpeg::pixels::HALVINGS_MAX;
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

pub(super) fn decode(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(Picture, Orientation), DecodeError> {
    let outline = Outline::read(bytes)?;
    limits.check_pixels(outline.width, outline.height)?;
    let fits = |halvings: &u32| {
        let along = |side: usize| side.div_ceil(1 << halvings);
        let pixels = along(outline.width) * along(outline.height);
        pixels <= KEPT_PIXELS_MAX && outline.decoding_bytes(*halvings) <= MEMORY_MAX as u64
    };
    let halvings = (0..HALVINGS_MAX).find(fits).unwrap_or(HALVINGS_MAX);
    let kind = match outline.process {
        Process::Progressive => "progressive JPEG",
        Process::Sequential => "JPEG",
    };
    check_bytes(kind, (outline.width, outline.height), outline.decoding_bytes(halvings))?;
    let decoded = outline.decode(bytes, halvings)?;
    let picture = Picture::from_rgb(decoded.width, decoded.height, decoded.bytes);
    let picture = picture.ok_or_else(too_few)?.reduced_by(1 << halvings);
    Ok((picture, upright::orientation(exif(bytes))))
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    let outline = Outline::read(bytes)?;
    Ok((outline.width, outline.height))
}

fn too_few() -> DecodeError {
    DecodeError::Damaged { format: "JPEG", why: "it has too few pixels".to_owned() }
}
