//! Decodes a camera's frame in every way that the daemon does. A panic that the guard caught is a
//! finding too.

use std::sync::Arc;

use rollcall::camera::encoded::{Coding, Encoded};
use rollcall::camera::view::{Turn, View};
use rollcall::recognise::frame::Pixels as _;

/// Small enough that a run is about the decoder and not about memory.
const PIXELS_MAX: usize = 1 << 20;

pub fn decode_every_way(bytes: &[u8], coding: Coding) {
    let view = View { turn: Turn::Quarter, ..View::default() };
    let Ok(frame) = Encoded::new(bytes, coding, &view, &Arc::default()) else { return };
    let (width, height) = frame.size();
    if width * height > PIXELS_MAX {
        return;
    }
    let errors =
        [frame.luma().err(), frame.reduced(40).err(), frame.full().err(), frame.luma().err()];
    for error in errors.into_iter().flatten() {
        assert!(!error.to_string().contains("the decoder failed"), "{error}");
    }
    if let Ok(picture) = frame.full() {
        assert_eq!((picture.width(), picture.height()), (width, height));
    }
}
