//! From a picture and landmarks to a sample: the face turned upright, scaled and cut to the size
//! the embedder wants.

use crate::recognise::face::{Landmarks, Point};
use crate::recognise::picture::Picture;

/// Side of a sample in pixels.
pub const SAMPLE_SIDE: usize = 112;

/// Where the five landmarks come to lie in a sample of 112 x 112: the reference points of ArcFace
/// (Deng et al., CVPR 2019), for which both embedders were trained.
pub const REFERENCE_POINTS: [Point; 5] = [
    Point { x: 38.2946, y: 51.6963 },
    Point { x: 73.5318, y: 51.5014 },
    Point { x: 56.0252, y: 71.7366 },
    Point { x: 41.5493, y: 92.3655 },
    Point { x: 70.7299, y: 92.2041 },
];

/// An aligned face, 112 x 112.
#[derive(Clone, Debug)]
pub struct Sample {
    pub picture: Picture,
    /// The landmarks in the sample's own pixels. Their distance from the reference points shows the
    /// pose.
    pub landmarks: Landmarks,
    /// Pixels between the eyes in the picture it was cut from.
    pub eye_distance_px: f32,
}

impl Sample {
    /// The same face as in a mirror.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let rows = self.picture.rgb().chunks_exact(SAMPLE_SIDE * 3);
        let rgb = rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect();
        let picture =
            Picture::from_rgb(SAMPLE_SIDE, SAMPLE_SIDE, rgb).expect("as many pixels as before");
        Self { picture, ..self.clone() }
    }
}

/// Rotation, uniform scale and shift, no reflection: `x' = a·x − b·y + shift_x`, `y' = b·x + a·y +
/// shift_y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    a: f64,
    b: f64,
    shift_x: f64,
    shift_y: f64,
}

impl Similarity {
    /// The least-squares fit of `from` onto `to` (Umeyama, PAMI 1991; in the plane it has this
    /// closed form). `None` when the points coincide or are not finite.
    pub fn fit(from: &[Point; 5], to: &[Point; 5]) -> Option<Self> {
        let mean = |points: &[Point; 5]| {
            let sum =
                points.iter().fold((0.0, 0.0), |s, p| (s.0 + f64::from(p.x), s.1 + f64::from(p.y)));
            (sum.0 / 5.0, sum.1 / 5.0)
        };
        let from_mean = mean(from);
        let to_mean = mean(to);
        let mut along = 0.0;
        let mut across = 0.0;
        let mut spread = 0.0;
        for (p, q) in from.iter().zip(to) {
            let px = f64::from(p.x) - from_mean.0;
            let py = f64::from(p.y) - from_mean.1;
            let qx = f64::from(q.x) - to_mean.0;
            let qy = f64::from(q.y) - to_mean.1;
            along += px * qx + py * qy;
            across += px * qy - py * qx;
            spread += px * px + py * py;
        }
        let a = along / spread;
        let b = across / spread;
        let shift_x = to_mean.0 - a * from_mean.0 + b * from_mean.1;
        let shift_y = to_mean.1 - b * from_mean.0 - a * from_mean.1;
        let usable = a.hypot(b) > 1e-9 && shift_x.is_finite() && shift_y.is_finite();
        usable.then_some(Self { a, b, shift_x, shift_y })
    }

    pub fn apply(&self, p: Point) -> Point {
        let x = f64::from(p.x);
        let y = f64::from(p.y);
        Point {
            x: (self.a * x - self.b * y + self.shift_x) as f32,
            y: (self.b * x + self.a * y + self.shift_y) as f32,
        }
    }

    fn inverse(&self) -> Self {
        let square = self.a * self.a + self.b * self.b;
        let a = self.a / square;
        let b = -self.b / square;
        Self {
            a,
            b,
            shift_x: -a * self.shift_x + b * self.shift_y,
            shift_y: -b * self.shift_x - a * self.shift_y,
        }
    }
}

/// Cuts the sample. `None` when the landmarks do not span a face.
pub fn align(picture: &Picture, landmarks: &Landmarks) -> Option<Sample> {
    let onto_sample = Similarity::fit(&landmarks.points(), &REFERENCE_POINTS)?;
    let sample = warp_sample(picture, onto_sample.inverse());
    Some(Sample {
        picture: sample,
        landmarks: Landmarks::from_points(landmarks.points().map(|p| onto_sample.apply(p))),
        eye_distance_px: landmarks.eye_distance_px(),
    })
}

/// Places between pixels are counted in whole 2^-11 of a pixel, so that a colour's weighted sum takes
/// 30 bits. Rounding by 2^-12 of a pixel is far below what landmarks are worth.
const FRACTION_BITS: i32 = 11;
const PIXEL: i32 = 1 << FRACTION_BITS;
/// Half a step of the sum, for rounding.
const HALF: i32 = 1 << (2 * FRACTION_BITS - 1);

/// Bilinear, black outside the picture.
fn warp_sample(picture: &Picture, to_picture: Similarity) -> Picture {
    let mut rgb = vec![0u8; SAMPLE_SIDE * SAMPLE_SIDE * 3];
    let scale = f64::from(PIXEL);
    let across = to_picture.a * scale;
    let down = to_picture.b * scale;
    for (row, line) in rgb.chunks_exact_mut(SAMPLE_SIDE * 3).enumerate() {
        let y = row as f64;
        let from_x = (to_picture.shift_x - to_picture.b * y) * scale + 0.5;
        let from_y = (to_picture.shift_y + to_picture.a * y) * scale + 0.5;
        for (column, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let x = column as f64;
            // The casts saturate: a place far outside has black neighbours only. Not `floor`, which
            // is a function call on processors without SSE 4.1 as a given.
            let u = (across * x + from_x) as i32;
            let v = (down * x + from_y) as i32;
            *pixel = interpolate_pixel(picture, u, v);
        }
    }
    Picture::from_rgb(SAMPLE_SIDE, SAMPLE_SIDE, rgb)
        .expect("the buffer has three bytes for each place")
}

/// The colour at a place between four pixels, `u` and `v` in units of 1 / [`PIXEL`].
#[inline]
fn interpolate_pixel(picture: &Picture, u: i32, v: i32) -> [u8; 3] {
    let width = picture.width() as i32;
    let height = picture.height() as i32;
    let left = u >> FRACTION_BITS;
    let top = v >> FRACTION_BITS;
    let du = u & (PIXEL - 1);
    let dv = v & (PIXEL - 1);
    let mut sum = [HALF; 3];
    if left >= 0 && top >= 0 && left < width - 1 && top < height - 1 {
        let at = (top as usize * picture.width() + left as usize) * 3;
        let upper: &[u8; 6] = picture.rgb()[at..].first_chunk().expect("two pixels are there");
        let lower = &picture.rgb()[at + picture.width() * 3..];
        let lower: &[u8; 6] = lower.first_chunk().expect("two pixels are there");
        for (channel, total) in sum.iter_mut().enumerate() {
            let between = |row: &[u8; 6]| {
                i32::from(row[channel]) * (PIXEL - du) + i32::from(row[channel + 3]) * du
            };
            *total += between(upper) * (PIXEL - dv) + between(lower) * dv;
        }
    } else {
        let weights = [(PIXEL - du) * (PIXEL - dv), du * (PIXEL - dv), (PIXEL - du) * dv, du * dv];
        for (corner, weight) in weights.into_iter().enumerate() {
            let x = left + (corner & 1) as i32;
            let y = top + (corner >> 1) as i32;
            if (0..width).contains(&x) && (0..height).contains(&y) {
                let colour = picture.clamped(x as isize, y as isize);
                sum.iter_mut()
                    .zip(colour)
                    .for_each(|(total, value)| *total += weight * i32::from(value));
            }
        }
    }
    sum.map(|value| (value >> (2 * FRACTION_BITS)) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reference_landmarks_leave_picture_unchanged() {
        let rgb = (0..112 * 112 * 3).map(|n| (n % 251) as u8).collect();
        let picture = Picture::from_rgb(112, 112, rgb).unwrap();
        let sample = align(&picture, &Landmarks::from_points(REFERENCE_POINTS)).unwrap();
        assert_eq!(sample.picture, picture);
    }

    #[test]
    fn coincident_landmarks_give_no_sample() {
        let picture = Picture::plain(10, 10, [9; 3]);
        assert!(align(&picture, &Landmarks::default()).is_none());
        let nan = Point { x: f32::NAN, y: 0.0 };
        assert!(align(&picture, &Landmarks::from_points([nan; 5])).is_none());
    }

    proptest! {
        #[test]
        fn fit_recovers_the_applied_similarity(
            scale in 0.1f64..10.0, turn in -3.1f64..3.1, shift_x in -500.0f64..500.0, shift_y in -500.0f64..500.0,
        ) {
            let truth = Similarity { a: scale * turn.cos(), b: scale * turn.sin(), shift_x, shift_y };
            let moved = REFERENCE_POINTS.map(|p| truth.apply(p));
            let found = Similarity::fit(&moved, &REFERENCE_POINTS).unwrap();
            for (p, q) in moved.iter().zip(&REFERENCE_POINTS) {
                prop_assert!(found.apply(*p).distance(*q) < 0.05);
            }
        }
    }
}
