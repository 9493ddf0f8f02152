//! The values of the recognition pipeline: where a face is, who a subject is, what a template is.
//!
//! Each is made by a checking constructor and cannot be wrong afterwards: a check at the door beats
//! checks in each room.

use std::fmt;

/// A point in pixels of the full-resolution frame, origin at the top left, pixel centres at whole
/// numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub x: f32,
    pub y: f32,
}

impl Point {
    pub fn distance(self, other: Self) -> f32 {
        (self.x - other.x).hypot(self.y - other.y)
    }
}

/// An axis-aligned box in pixels of the full-resolution frame; may reach beyond the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BoundingBox {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl BoundingBox {
    pub fn width(&self) -> f32 {
        (self.right - self.left).max(0.0)
    }
    pub fn height(&self) -> f32 {
        (self.bottom - self.top).max(0.0)
    }
    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }
    pub fn centre(&self) -> Point {
        Point { x: f32::midpoint(self.left, self.right), y: f32::midpoint(self.top, self.bottom) }
    }

    /// The same box in a picture `by` times as wide and high.
    #[must_use]
    pub fn scaled(&self, by: f32) -> Self {
        let Self { left, top, right, bottom } = self;
        Self { left: left * by, top: top * by, right: right * by, bottom: bottom * by }
    }

    /// Intersection over union, 0.0..=1.0; 0.0 when either box is empty.
    pub fn overlap(&self, other: &Self) -> f32 {
        let width = (self.right.min(other.right) - self.left.max(other.left)).max(0.0);
        let height = (self.bottom.min(other.bottom) - self.top.max(other.top)).max(0.0);
        let both = width * height;
        let either = self.area() + other.area() - both;
        if either > 0.0 { both / either } else { 0.0 }
    }
}

/// The five points by which a face is aligned, in this order; *left* and *right* as seen in the
/// image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Landmarks {
    pub left_eye: Point,
    pub right_eye: Point,
    pub nose: Point,
    pub left_mouth: Point,
    pub right_mouth: Point,
}

impl Landmarks {
    pub fn from_points(points: [Point; 5]) -> Self {
        let [left_eye, right_eye, nose, left_mouth, right_mouth] = points;
        Self { left_eye, right_eye, nose, left_mouth, right_mouth }
    }

    pub fn points(&self) -> [Point; 5] {
        [self.left_eye, self.right_eye, self.nose, self.left_mouth, self.right_mouth]
    }

    /// Pixels between the eyes: the standard measure of a face's size (ISO/IEC 19794-5).
    pub fn eye_distance_px(&self) -> f32 {
        self.left_eye.distance(self.right_eye)
    }
}

/// A face as the detector found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    pub bounding_box: BoundingBox,
    /// Detection confidence, 0.0..=1.0.
    pub confidence: f32,
    pub landmarks: Landmarks,
}

impl Detection {
    /// From a picture to one `x` times as wide and `y` times as high.
    pub fn scale(&mut self, x: f32, y: f32) {
        let point = |it: Point| Point {
            x: (it.x + 0.5).mul_add(x, -0.5),
            y: (it.y + 0.5).mul_add(y, -0.5),
        };
        let BoundingBox { left, top, right, bottom } = self.bounding_box;
        let start = point(Point { x: left, y: top });
        let end = point(Point { x: right, y: bottom });
        self.bounding_box =
            BoundingBox { left: start.x, top: start.y, right: end.x, bottom: end.y };
        self.landmarks = Landmarks::from_points(self.landmarks.points().map(point));
    }
}

/// The SHA-256 of an embedder's file. Templates of different embedders are never compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelDigest(pub [u8; 32]);

impl ModelDigest {
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A face template: the embedder's vector for one sample. Invariant: unit length, every element
/// finite.
#[derive(Clone, PartialEq)]
pub struct Template(Box<[f32]>);

impl Template {
    /// `None` when the model's output cannot be normalised (empty, zero, NaN or infinite).
    pub fn normalised(mut raw: Vec<f32>) -> Option<Self> {
        // In f64, because squares of small f32 values underflow.
        let norm = raw.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if !norm.is_normal() {
            return None;
        }
        for x in &mut raw {
            *x = (f64::from(*x) / norm) as f32;
        }
        Some(Self(raw.into_boxed_slice()))
    }

    /// A template that was one before: taken bit by bit, since normalising it once more may move
    /// its last bits, and doors that share a template must hold the same. `None` for what is not of
    /// unit length.
    pub fn restored(raw: Vec<f32>) -> Option<Self> {
        let norm = raw.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        // What rounding to f32 leaves of a unit vector is far nearer to 1.
        ((norm - 1.0).abs() < 1e-4).then(|| Self(raw.into_boxed_slice()))
    }

    /// The normalised mean of several templates of one face: less noise than any one of them.
    /// `None` without any, or when they cancel out.
    pub fn mean<'a>(templates: impl IntoIterator<Item = &'a Template>) -> Option<Self> {
        let mut templates = templates.into_iter();
        let mut sum = templates.next()?.0.to_vec();
        for template in templates {
            for (total, x) in sum.iter_mut().zip(&template.0) {
                *total += x;
            }
        }
        Self::normalised(sum)
    }

    pub fn dimension(&self) -> usize {
        self.0.len()
    }
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Comparison score: the cosine of the two templates, -1.0..=1.0, higher is more alike. Both
    /// must come from the same embedder.
    pub fn compare(&self, other: &Self) -> f32 {
        debug_assert_eq!(self.dimension(), other.dimension());
        self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({}-d)", self.0.len())
    }
}

/// The least score that counts as a match; equality counts. A cosine, -1.0..=1.0.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Threshold(f32);

impl Threshold {
    pub fn new(value: f32) -> Option<Self> {
        (-1.0..=1.0).contains(&value).then_some(Self(value))
    }
    pub fn value(self) -> f32 {
        self.0
    }
    pub fn matches(self, score: f32) -> bool {
        score >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, SubjectId};
    use proptest::prelude::*;

    #[test]
    fn subject_id_fits_into_a_topic() {
        for good in ["a", "jdoe", "A.b_c-9", &"x".repeat(64)] {
            assert!(SubjectId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a#", "+", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(SubjectId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_free_text_within_bounds() {
        assert_eq!(
            Name::new("  Zoë Müller-Łukasz 小明 ").unwrap().as_str(),
            "Zoë Müller-Łukasz 小明"
        );
        for bad in ["", "   ", "a\nb", &"x".repeat(201)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_has_no_personal_data() {
        assert_eq!(format!("{:?}", Name::new("Jane").unwrap()), "Name(…)");
        assert_eq!(format!("{:?}", Template::normalised(vec![1.0; 4]).unwrap()), "Template(4-d)");
    }

    proptest! {
        #[test]
        fn template_is_normalised_or_rejected(raw in proptest::collection::vec(-1e3f32..1e3, 0..64)) {
            if let Some(template) = Template::normalised(raw) {
                let norm: f32 = template.as_slice().iter().map(|x| x * x).sum();
                prop_assert!((norm - 1.0).abs() < 1e-4);
                prop_assert!((template.compare(&template) - 1.0).abs() < 1e-4);
            }
        }
    }
}
