//! Exposure of a whole picture, for setting up a camera, and never for a
//! decision.

use serde::{Deserialize, Serialize};

use crate::recognise::picture::Picture;

/// Measured on the picture's brightness (BT.601), made small so that noise of the sensor does not
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    /// Mean, 0 to 255.
    pub luma: f32,
    /// From the dark parts to the bright ones (first and last percentile).
    pub range: f32,
    /// The steepest edges, as a share of `range` from one cell to the next: about 0.5 where
    /// something is in focus.
    pub sharpness: f32,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExposureFlaw {
    Dark,
    Bright,
    /// There is no contrast: a covered or fogged lens, or a bare wall.
    Blank,
    Blurred,
}

/// The longer side of what is measured.
const SIDE: usize = 160;
const LUMA_MIN: f32 = 25.0;
const LUMA_MAX: f32 = 225.0;
const RANGE_MIN: f32 = 16.0;
/// Measured on a hundred photographs of 640 pixels with a sensor's noise (first and last
/// percentile): as they are 0.36 to 0.78; blurred by 4 pixels 0.17 to 0.35, by 8 pixels 0.10 to
/// 0.21, by 16 pixels 0.06 to 0.11.
const SHARPNESS_MIN: f32 = 0.16;

impl Exposure {
    pub fn of(picture: &Picture) -> Self {
        let cells = cells(picture);
        let mut sorted = cells.values.clone();
        sorted.sort_by(f32::total_cmp);
        let at = |share: f32| sorted[((sorted.len() - 1) as f32 * share) as usize];
        let range = at(0.99) - at(0.01);
        let luma = sorted.iter().sum::<f32>() / sorted.len() as f32;
        Self { luma, range, sharpness: cells.steepest() / range.max(1.0) }
    }

    pub fn unfit(&self) -> Option<ExposureFlaw> {
        if self.luma < LUMA_MIN {
            Some(ExposureFlaw::Dark)
        } else if self.luma > LUMA_MAX {
            Some(ExposureFlaw::Bright)
        } else if self.range < RANGE_MIN {
            Some(ExposureFlaw::Blank)
        } else if self.sharpness < SHARPNESS_MIN {
            Some(ExposureFlaw::Blurred)
        } else {
            None
        }
    }
}

struct Cells {
    width: usize,
    values: Vec<f32>,
}

impl Cells {
    /// The slope that only one in two hundred exceeds.
    fn steepest(&self) -> f32 {
        let mut slopes = Vec::with_capacity(self.values.len());
        for rows in self.values.chunks_exact(self.width).collect::<Vec<_>>().windows(2) {
            for (x, pair) in rows[0].windows(2).enumerate() {
                slopes.push((pair[1] - pair[0]).hypot(rows[1][x] - pair[0]));
            }
        }
        slopes.sort_by(f32::total_cmp);
        slopes.get(slopes.len() * 199 / 200).copied().unwrap_or(0.0)
    }
}

/// Means of squares of pixels; what is over at the right and below is left out.
fn cells(picture: &Picture) -> Cells {
    let side = picture.width().max(picture.height()).div_ceil(SIDE).max(1);
    let side_x = side.min(picture.width());
    let side_y = side.min(picture.height());
    let width = picture.width() / side_x;
    let height = picture.height() / side_y;
    let mut values = Vec::with_capacity(width * height);
    for row in 0..height {
        for column in 0..width {
            let mut sum = 0.0;
            for y in row * side_y..(row + 1) * side_y {
                for pixel in picture.row(y)[column * side_x * 3..(column + 1) * side_x * 3]
                    .as_chunks::<3>()
                    .0
                {
                    sum += 0.299 * f32::from(pixel[0])
                        + 0.587 * f32::from(pixel[1])
                        + 0.114 * f32::from(pixel[2]);
                }
            }
            values.push(sum / (side_x * side_y) as f32);
        }
    }
    Cells { width, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An edge in the middle from `low` to `high`, `wide` pixels wide.
    fn edge(low: u8, high: u8, wide: usize) -> Exposure {
        let rgb = (0..640 * 480)
            .flat_map(|at| {
                let share = ((at % 640) as f32 - 320.0) / wide as f32 + 0.5;
                [(f32::from(low) + f32::from(high - low) * share.clamp(0.0, 1.0)) as u8; 3]
            })
            .collect();
        Exposure::of(&Picture::from_rgb(640, 480, rgb).unwrap())
    }

    #[test]
    fn unfit_exposures_are_distinguished() {
        for (low, high, wide, expected) in [
            (60, 200, 1, None),
            (60, 200, 8, None),
            (60, 200, 160, Some(ExposureFlaw::Blurred)),
            (5, 40, 1, Some(ExposureFlaw::Dark)),
            (220, 250, 1, Some(ExposureFlaw::Bright)),
            (100, 110, 1, Some(ExposureFlaw::Blank)),
        ] {
            let exposure = edge(low, high, wide);
            assert_eq!(exposure.unfit(), expected, "{low} to {high} within {wide}: {exposure:?}");
        }
    }

    #[test]
    fn exposure_works_for_any_size() {
        for (width, height) in [(1, 1), (1, 900), (900, 1), (161, 7)] {
            let exposure = Exposure::of(&Picture::plain(width, height, [118; 3]));
            assert_eq!(
                exposure.unfit(),
                Some(ExposureFlaw::Blank),
                "{width} x {height}: {exposure:?}"
            );
        }
    }
}
