//! Pictures of infrared and machine cameras that have brightness only, in more than one byte for
//! each pixel: reduced to 8 bits when they are copied.

use crate::camera::encoded::{Kind, PIXELS_MAX, Raster};

/// How the brightness of a pixel is packed. The names are those of the kernel's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Two cameras' pixels in turn: the left one is used.
    Y8i,
    /// 10 of 16 bits, the low byte first.
    Y10,
    /// 12 of 16 bits, the low byte first.
    Y12,
    /// Four pixels in five bytes: the high bits of each, then the low bits of all.
    Y10p,
    /// Two pixels in three bytes, likewise.
    Y12p,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Infrared {
    pub packing: Packing,
    pub width: usize,
    pub height: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl Packing {
    /// Bytes of a row; `None` when the width does not fit the packing.
    pub fn row_bytes(self, width: usize) -> Option<usize> {
        match self {
            Self::Y8i | Self::Y10 | Self::Y12 => width.checked_mul(2),
            Self::Y10p if width.is_multiple_of(4) => Some(width.checked_mul(5)? / 4),
            Self::Y12p if width.is_multiple_of(2) => Some(width.checked_mul(3)? / 2),
            Self::Y10p | Self::Y12p => None,
        }
    }
}

impl Infrared {
    /// As `Raster::bytes`.
    pub fn bytes(&self) -> Option<usize> {
        let Self { packing, width, height, stride } = *self;
        let is_possible = width > 0 && height > 0 && width.checked_mul(height)? <= PIXELS_MAX;
        (is_possible && stride >= packing.row_bytes(width)?).then(|| stride.checked_mul(height))?
    }

    /// What comes out.
    pub fn grey(&self) -> Raster {
        let Self { width, height, .. } = *self;
        Raster { kind: Kind::Grey, width, height, stride: width, full_range: true }
    }

    /// Appends the 8 high bits of each pixel. `bytes` is a whole picture.
    pub fn reduce(&self, bytes: &[u8], grey: &mut Vec<u8>) {
        grey.reserve(self.width * self.height);
        let row_bytes = self.packing.row_bytes(self.width).unwrap_or_default();
        for row in bytes.chunks_exact(self.stride).take(self.height) {
            let row = &row[..row_bytes];
            match self.packing {
                Packing::Y8i => grey.extend(row.as_chunks().0.iter().map(|[left, _]| *left)),
                Packing::Y10 => grey.extend(row.as_chunks().0.iter().map(|it| high_bits(*it, 2))),
                Packing::Y12 => grey.extend(row.as_chunks().0.iter().map(|it| high_bits(*it, 4))),
                Packing::Y10p => {
                    grey.extend(
                        row.as_chunks().0.iter().flat_map(|[a, b, c, d, _]| [*a, *b, *c, *d]),
                    );
                }
                Packing::Y12p => {
                    grey.extend(row.as_chunks().0.iter().flat_map(|[a, b, _]| [*a, *b]));
                }
            }
        }
    }
}

/// The 8 bits above so many; brighter than the format has is white.
fn high_bits(bytes: [u8; 2], below: u32) -> u8 {
    u8::try_from(u16::from_le_bytes(bytes) >> below).unwrap_or(u8::MAX)
}
