//! The limits on what a command may contain, and on the pages of a reply.

/// The most subjects or attendances in one reply, and the number when none is requested. A reply
/// of 500 is about 100 kB, which every broker carries.
pub const PAGE_MAX: u32 = 500;

pub const PAGE_DEFAULT: u32 = 100;

/// What is taken from outside at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub payload_bytes: usize,
    pub images: usize,
    /// One image, decoded from base64.
    pub image_bytes: usize,
    pub json_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload_bytes: 8 << 20, images: 10, image_bytes: 4 << 20, json_depth: 16 }
    }
}

/// `is 9.1 MB; at most 4 MB`, to two digits and by 1024².
pub(super) fn over(bytes: usize, most: usize) -> String {
    format!("is {}; at most {}", megabytes(bytes), megabytes(most))
}

fn megabytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    match (tenths / 10, tenths % 10) {
        (0, 0) => format!("{bytes} bytes"),
        (whole, 0) => format!("{whole} MB"),
        (whole, tenth) => format!("{whole}.{tenth} MB"),
    }
}
