//! Decodes a still as the daemon does. A panic that the guard caught is a finding too.

use rollcall::recognise::picture::{Picture, PictureLimits};

/// Small enough that a run is about the decoder and not about memory.
const LIMITS: PictureLimits = PictureLimits { bytes: 4 << 20, pixels: 1 << 20 };

pub fn decode(bytes: &[u8]) {
    match Picture::decode(bytes, LIMITS) {
        Ok(picture) => assert_eq!(picture.rgb().len(), picture.width() * picture.height() * 3),
        Err(error) => assert!(!error.to_string().contains("the decoder failed"), "{error}"),
    }
}
