//! How much a picture may take, and making it smaller.

use crate::recognise::picture::{DecodeError, Picture};

/// The largest picture that is kept at its full size: those of phones with 12 megapixels, up to
/// 4096 x 3072. It takes 38 MB, and as much again while it is turned upright.
pub(super) const KEPT_PIXELS_MAX: usize = 12_600_000;

/// What decoding may take, with the picture itself. A device with 512 MB, of which the daemon may
/// use three quarters, has twice as much to spare.
pub(super) const MEMORY_MAX: usize = 80_000_000;

/// Rejects a picture that takes more than `MEMORY_MAX` at so many half bytes for each pixel.
pub(super) fn check_memory(
    kind: &'static str,
    (width, height): (usize, usize),
    half_bytes_a_pixel: usize,
) -> Result<(), DecodeError> {
    // In 64 bits: on a small device a size that is too large would wrap.
    let bytes = width as u64 * height as u64 * half_bytes_a_pixel as u64 / 2;
    check_bytes(kind, (width, height), bytes)
}

/// Rejects a picture that takes more than `MEMORY_MAX`.
pub(super) fn check_bytes(
    kind: &'static str,
    (width, height): (usize, usize),
    bytes: u64,
) -> Result<(), DecodeError> {
    if bytes > MEMORY_MAX as u64 {
        return Err(DecodeError::TooMuchMemory { kind, width, height });
    }
    Ok(())
}

/// By how much a picture must be made smaller: 1 for one that is kept as it is.
pub(super) fn reduction(width: usize, height: usize) -> usize {
    let mut factor = 1;
    while width.div_ceil(factor) * height.div_ceil(factor) > KEPT_PIXELS_MAX {
        factor += 1;
    }
    factor
}

/// Adds up rows of pixels to a smaller picture, each pixel of which is the mean of a square.
pub(super) struct Reducer {
    factor: usize,
    width: usize,
    rows: usize,
    /// Of the row in progress: sums for each of its values, and how many source rows are in them.
    sums: Vec<u32>,
    summed: usize,
    rgb: Vec<u8>,
}

impl Reducer {
    pub(super) fn new(width: usize, height: usize) -> Self {
        let factor = reduction(width, height);
        let to_width = width.div_ceil(factor);
        Self {
            factor,
            width,
            rows: height,
            sums: vec![0; to_width * 3],
            summed: 0,
            rgb: Vec::with_capacity(to_width * height.div_ceil(factor) * 3),
        }
    }

    /// Takes the next row, each pixel of which `pixels` makes red, green and blue.
    pub(super) fn take_row(&mut self, pixels: impl Iterator<Item = [u8; 3]>) {
        if self.factor == 1 {
            self.rgb.extend(pixels.take(self.width).flatten());
            return;
        }
        for (x, pixel) in pixels.take(self.width).enumerate() {
            let sums = &mut self.sums[x / self.factor * 3..][..3];
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(value));
        }
        self.summed += 1;
        if self.summed == self.factor {
            self.finish_row();
        }
    }

    fn finish_row(&mut self) {
        let factor = self.factor;
        for (x, sums) in self.sums.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let columns = factor.min(self.width - x * factor);
            let count = (columns * self.summed) as u32;
            self.rgb.extend(sums.map(|sum| ((sum + count / 2) / count) as u8));
            *sums = [0; 3];
        }
        self.summed = 0;
    }

    /// The picture; `None` when rows are missing.
    pub(super) fn finish(mut self) -> Option<Picture> {
        if self.summed > 0 {
            self.finish_row();
        }
        let height = self.rows.div_ceil(self.factor);
        let picture = Picture::from_rgb(self.width.div_ceil(self.factor), height, self.rgb)?;
        Some(picture.reduced_by(self.factor))
    }
}

/// A decoded picture, made smaller if it is larger than what is kept.
pub(super) fn reduce(width: usize, height: usize, rgb: Vec<u8>) -> Option<Picture> {
    Some(Picture::from_rgb(width, height, rgb)?.shrunk(reduction(width, height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_picture_is_reduced_to_means() {
        // A ramp along both sides, 7000 x 3601: two to one.
        let width = 7_000;
        let height = 3_601;
        let pixel = |at: usize| {
            let value = (at % width / 40 + at / width / 60) as u8;
            [value, value / 2, 9]
        };
        let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
        let mut rows = Reducer::new(width, height);
        for row in rgb.chunks_exact(width * 3) {
            rows.take_row(row.as_chunks::<3>().0.iter().copied());
        }
        let by_rows = rows.finish().unwrap();
        let at_once = reduce(width, height, rgb).unwrap();
        assert_eq!((by_rows.width(), by_rows.height(), by_rows.reduction()), (3_500, 1_801, 2));
        assert!(by_rows == at_once, "both ways give the same picture");
        for (x, y) in [(0, 0), (1_000, 700), (3_499, 1_800)] {
            let wanted = (x * 2 / 40 + y * 2 / 60) as u8;
            let found = at_once.clamped(x as isize, y as isize);
            assert!(found[0].abs_diff(wanted) <= 1 && found[2] == 9, "{x} {y}: {found:?}");
        }
    }

    #[test]
    fn missing_rows_give_no_picture() {
        let mut rows = Reducer::new(2, 2);
        rows.take_row([[1; 3]; 2].into_iter());
        assert!(rows.finish().is_none());
    }
}
