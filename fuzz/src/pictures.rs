//! Still pictures, frames of a camera, and JPEGs of every kind made of the fuzzer's bytes.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/support/jpegs.rs"]
mod jpegs;

use std::sync::Arc;

use rollcall::camera::encoded::{Coding, Encoded, Kind, Raster};
use rollcall::camera::view::{Turn, View};
use rollcall::recognise::frame::Pixels as _;
use rollcall::recognise::picture::{Picture, PictureLimits};

/// Small enough that a run is about the decoder and not about memory.
const PIXELS_MAX: usize = 1 << 16;
const LIMITS: PictureLimits = PictureLimits { bytes: 4 << 20, pixels: 1 << 16 };

/// Any bytes as a still picture: JPEG, PNG or WebP.
pub fn image(bytes: &[u8]) {
    match Picture::decode(bytes, LIMITS) {
        Ok(picture) => assert_eq!(picture.rgb().len(), picture.width() * picture.height() * 3),
        Err(error) => assert!(!error.to_string().contains("the decoder failed"), "{error}"),
    }
}

/// Any bytes as a camera's frame, of any format and size.
pub fn camera_frame(bytes: &[u8]) {
    let Some(([kind, width, height, padding], bytes)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let kind = match kind % 4 {
        0 => return frame(bytes, Coding::Jpeg),
        1 => Kind::Yuyv,
        2 => Kind::Nv12,
        _ => Kind::Grey,
    };
    let (width, height) = (usize::from(*width), usize::from(*height));
    let row = if kind == Kind::Yuyv { width * 2 } else { width };
    let stride = (row + usize::from(*padding)).saturating_sub(3);
    let raster = Raster { kind, width, height, stride, full_range: padding % 2 == 0 };
    frame(bytes, Coding::Raster(raster));
}

/// JPEGs of every kind as still pictures.
pub fn jpeg(bytes: &[u8]) {
    image(&jpegs::made_of(bytes));
}

/// JPEGs of every kind as frames of motion JPEG.
pub fn jpeg_frame(bytes: &[u8]) {
    frame(&jpegs::made_of(bytes), Coding::Jpeg);
}

/// Decodes a frame in every way that the daemon does.
fn frame(bytes: &[u8], coding: Coding) {
    let view = View { turn: Turn::Quarter, ..View::default() };
    let Ok(frame) = Encoded::new(bytes, coding, &view, &Arc::default()) else { return };
    let (width, height) = frame.size();
    if width * height > PIXELS_MAX {
        return;
    }
    let errors = [frame.luma().err(), frame.reduced(40).err(), frame.full().err()];
    for error in errors.into_iter().chain([frame.luma().err()]).flatten() {
        assert!(!error.to_string().contains("the decoder failed"), "{error}");
    }
    if let Ok(picture) = frame.full() {
        assert_eq!((picture.width(), picture.height()), (width, height));
    }
}
