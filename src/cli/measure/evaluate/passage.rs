//! The frames of a visit made of one photograph: its person passes a camera.
//!
//! Over a visit the face comes nearer, drifts, tilts and is foreshortened as a turning head is, and the
//! light changes; from frame to frame sharpness, place and grain differ, and each frame is coded
//! as JPEG. [`DRIFT`] and [`JITTER`] are chosen so that the templates of a visit agree with each
//! other as those of filmed people do (docs/accuracy.md).
//!
//! Invariant: a seed and a photograph always give the same frames. Mirror images are not made: no
//! camera sees them. Not in it: expressions, glasses put on, another day; a photograph shows one.

use std::f32::consts::TAU;

use anyhow::Context as _;
use fastrand::Rng;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::recognise::face::{Detection, Point};
use crate::recognise::picture::{Picture, PictureLimits};

/// Size of the frames in pixels: faces are as large as in a picture of 640 x 480, with less of the scene
/// about them.
const WIDTH: usize = 320;
const HEIGHT: usize = 256;
/// Pixels between the eyes at most: somebody at arm's length before a camera of 640 x 480.
const EYE_DISTANCE_PX_MAX: f32 = 45.0;
/// Grey of the scene behind the photograph.
const WALL: f32 = 118.0;
/// How much larger the face is at the end of a visit than at its beginning.
const APPROACH: f32 = 1.3;
/// Largest change within a visit: tilt in radians, foreshortening sideways and upwards and shear as
/// shares, light as a share, place in pixels.
const DRIFT: [f32; 7] = [0.18, 0.20, 0.12, 0.12, 0.25, 25.0, 12.0];
/// The same from frame to frame, standard deviations.
const JITTER: [f32; 7] = [0.015, 0.018, 0.015, 0.012, 0.01, 1.5, 1.0];
/// Seconds that a drift takes from one extreme to the other and back.
const PERIOD_S: std::ops::Range<f32> = 1.5..5.0;
/// Standard deviation of the grain, in grey levels; and quality of the JPEG.
const GRAIN: std::ops::Range<f32> = 1.5..5.0;
const QUALITY: std::ops::Range<u8> = 70..92;
/// Length of motion blur in pixels at most.
const BLUR_PX_MAX: f32 = 3.0;

/// One visit.
pub struct Passage<'a> {
    photograph: &'a Picture,
    /// The middle of the face in the photograph.
    centre: Point,
    /// Pixels of the frame for each of the photograph, in the middle of the visit.
    scale: f32,
    seconds: f32,
    /// Period in seconds and phase of each drift.
    drifts: [(f32, f32); 7],
    grain: f32,
    quality: u8,
    rng: Rng,
}

impl<'a> Passage<'a> {
    /// `face` is where the photograph shows whom the visit is of.
    pub fn new(photograph: &'a Picture, face: &Detection, seconds: f32, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let eyes = face.landmarks.eye_distance_px().max(1.0);
        let drifts = std::array::from_fn(|_| {
            let period = PERIOD_S.start + rng.f32() * (PERIOD_S.end - PERIOD_S.start);
            (period, rng.f32())
        });
        Self {
            photograph,
            centre: face.bounding_box.centre(),
            scale: (EYE_DISTANCE_PX_MAX / eyes).min(1.0),
            seconds,
            drifts,
            grain: GRAIN.start + rng.f32() * (GRAIN.end - GRAIN.start),
            quality: rng.u8(QUALITY),
            rng,
        }
    }

    /// The frame at so many seconds after the first.
    pub fn frame(&mut self, at_s: f32) -> anyhow::Result<Picture> {
        let mut state = [0.0; 7];
        for (n, value) in state.iter_mut().enumerate() {
            let (period, phase) = self.drifts[n];
            *value = DRIFT[n] * (TAU * (at_s / period + phase)).sin() + JITTER[n] * self.normal();
        }
        let nearer = APPROACH.powf(at_s / self.seconds.max(at_s) - 0.5);
        let blur = self.blur();
        let rgb = self.render(state, self.scale * nearer, blur);
        let mut jpeg = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut jpeg, self.quality);
        encoder.write_image(&rgb, WIDTH as u32, HEIGHT as u32, ExtendedColorType::Rgb8)?;
        Picture::decode(&jpeg, PictureLimits::default()).context("a frame cannot be decoded")
    }

    /// Length and direction of this frame's motion blur.
    fn blur(&mut self) -> Point {
        let length = BLUR_PX_MAX * self.rng.f32().powi(2);
        let angle = TAU * self.rng.f32();
        Point { x: length * angle.cos(), y: length * angle.sin() }
    }

    fn render(&mut self, state: [f32; 7], scale: f32, blur: Point) -> Vec<u8> {
        let [tilt, wide, high, shear, light, right, down] = state;
        let (sin, cos) = tilt.sin_cos();
        // From the frame to the photograph.
        let across = 1.0 / (scale * (1.0 - wide.abs()));
        let along = 1.0 / (scale * (1.0 - high.abs()));
        let mut rng = self.rng.fork();
        let source = |x: f32, y: f32| {
            let x = x - WIDTH as f32 / 2.0 - right;
            let y = y - HEIGHT as f32 / 2.0 - down;
            let turned = Point { x: cos * x + sin * y, y: cos * y - sin * x };
            Point {
                x: self.centre.x + across * (turned.x + shear * turned.y),
                y: self.centre.y + along * turned.y,
            }
        };
        // A blur of less than a pixel is that of the interpolation.
        let steps: &[f32] = if blur.x.hypot(blur.y) < 1.0 { &[0.0] } else { &[-0.5, 0.0, 0.5] };
        let share = (1.0 + light) / steps.len() as f32;
        let mut rgb = Vec::with_capacity(WIDTH * HEIGHT * 3);
        for n in 0..WIDTH * HEIGHT {
            let (x, y) = ((n % WIDTH) as f32, (n / WIDTH) as f32);
            let mut sum = [0.0; 3];
            for step in steps {
                let pixel =
                    interpolated(self.photograph, source(x + step * blur.x, y + step * blur.y));
                sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += share * value);
            }
            // The sum of two even distributions is close enough to a normal one.
            let grain = self.grain * 2.45 * (rng.f32() + rng.f32() - 1.0);
            rgb.extend(sum.map(|value| (value + grain).clamp(0.0, 255.0) as u8));
        }
        rgb
    }

    /// A number of mean 0 and standard deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.rng.f32()).sum::<f32>() - 6.0
    }
}

/// Bilinear; the wall outside the photograph.
fn interpolated(picture: &Picture, at: Point) -> [f32; 3] {
    let inside = at.x >= 0.0
        && at.y >= 0.0
        && at.x <= picture.width() as f32 - 1.0
        && at.y <= picture.height() as f32 - 1.0;
    if !inside {
        return [WALL; 3];
    }
    let left = at.x.floor();
    let top = at.y.floor();
    let pixel = |right, down| picture.clamped(left as isize + right, top as isize + down);
    let corners = [pixel(0, 0), pixel(1, 0), pixel(0, 1), pixel(1, 1)];
    std::array::from_fn(|channel| {
        let value = |corner: usize| f32::from(corners[corner][channel]);
        let upper = value(0) + (at.x - left) * (value(1) - value(0));
        let lower = value(2) + (at.x - left) * (value(3) - value(2));
        upper + (at.y - top) * (lower - upper)
    })
}
