//! The values of the recognition pipeline: where a face is, who a subject is, what a template is.
//!
//! Each is made by a checking constructor and cannot be wrong afterwards: a check at the door beats
//! checks in each room.

use std::fmt;

use sha2::{Digest as _, Sha256};

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

/// The SHA-256 that names an embedder or one of its parts. Vectors of different networks are never
/// compared.
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

/// One network of an embedder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// The SHA-256 of the network's file.
    pub digest: ModelDigest,
    /// Elements of its vector.
    pub dimension: usize,
    /// Its share of the comparison score, 0.0..=1.0; those of an embedder's parts add up to 1.
    pub weight: f32,
}

/// What makes templates: one network, or a composite of two.
///
/// The score of a composite is the weighted mean of its parts' cosines. That is the cosine of the
/// parts' unit vectors put one after the other, each times the square root of its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedder {
    /// Names the embedder as a whole. Of a single network it is the digest of its file.
    pub digest: ModelDigest,
    /// The part that every template has, and that alone decides clear cases.
    pub first: Part,
    /// The slower and better part of a composite.
    pub second: Option<Part>,
}

impl Embedder {
    /// An embedder of one network whose vector has `dimension` elements.
    pub fn single(digest: ModelDigest, dimension: usize) -> Self {
        Self { digest, first: Part { digest, dimension, weight: 1.0 }, second: None }
    }

    /// A composite of two networks. Its digest is the SHA-256 of the parts' digests and weights:
    /// another file or another weight is another embedder.
    pub fn composite(first: Part, second: Part) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"rollcall composite embedder 1\0");
        for part in [first, second] {
            hash.update(part.digest.0);
            hash.update(part.weight.to_le_bytes());
        }
        Self { digest: ModelDigest(hash.finalize().into()), first, second: Some(second) }
    }

    /// Elements of the first part's vector.
    pub fn dimension(&self) -> usize {
        self.first.dimension
    }

    /// Whether references with this digest are compared by this embedder, wholly or in part.
    pub fn uses(&self, digest: &ModelDigest) -> bool {
        self.first.digest == *digest || self.second.is_some_and(|it| it.digest == *digest)
    }
}

/// The vector of one network: unit length, every element finite.
#[derive(Clone, Debug, PartialEq)]
struct UnitVector {
    elements: Box<[f32]>,
    /// Euclidean length before it was normalised; 1.0 where that is not known.
    length: f32,
}

impl UnitVector {
    fn normalised(mut raw: Vec<f32>) -> Option<Self> {
        // In f64, because squares of small f32 values underflow.
        let norm = norm(&raw);
        if !norm.is_normal() {
            return None;
        }
        for x in &mut raw {
            *x = (f64::from(*x) / norm) as f32;
        }
        Some(Self { elements: raw.into_boxed_slice(), length: norm as f32 })
    }

    fn dot(&self, other: &Self) -> f32 {
        self.elements.iter().zip(&other.elements).map(|(a, b)| a * b).sum()
    }

    /// The normalised sum of several, each times its weight; its length is the mean of theirs.
    fn mean<'a>(
        vectors: impl Iterator<Item = &'a Self> + Clone,
        weight: impl Fn(&Self) -> f32,
    ) -> Option<Self> {
        let mut sum = vec![0.0; vectors.clone().next()?.elements.len()];
        let mut length = 0.0;
        let mut count = 0.0;
        for vector in vectors {
            let weight = weight(vector);
            for (total, x) in sum.iter_mut().zip(&vector.elements) {
                *total += weight * x;
            }
            length += vector.length;
            count += 1.0;
        }
        Some(Self { length: length / count, ..Self::normalised(sum)? })
    }
}

fn norm(raw: &[f32]) -> f64 {
    raw.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// A face template: what the embedder makes of one sample. Invariant: the vector of each part has
/// unit length, every element finite.
///
/// A template of a composite embedder is *complete* with both parts, and *partial* with the first
/// alone. A template of a single network has one part and is never complete.
#[derive(Clone)]
pub struct Template {
    first: UnitVector,
    second: Option<SecondPart>,
}

#[derive(Clone, PartialEq)]
struct SecondPart {
    vector: UnitVector,
    /// Its share of the score, 0.0..=1.0.
    weight: f32,
}

impl Template {
    /// A template of one part. `None` when the model's output cannot be normalised (empty, zero,
    /// NaN or infinite).
    pub fn normalised(raw: Vec<f32>) -> Option<Self> {
        UnitVector::normalised(raw).map(|first| Self { first, second: None })
    }

    /// A part that was stored: taken bit by bit, since normalising it once more may move its last
    /// bits, and doors that share a template must hold the same. `None` for what is not of unit
    /// length.
    pub fn restored(raw: Vec<f32>) -> Option<Self> {
        // What rounding to f32 leaves of a unit vector is far nearer to 1.
        let first = UnitVector { length: 1.0, elements: raw.into_boxed_slice() };
        ((norm(&first.elements) - 1.0).abs() < 1e-4).then_some(Self { first, second: None })
    }

    /// The complete template of a first part and the second part of the same sample; `weight` is
    /// the second part's share of the score, 0.0..=1.0.
    #[must_use]
    pub fn with_second(self, second: &Self, weight: f32) -> Self {
        let second = Some(SecondPart { vector: second.first.clone(), weight });
        Self { first: self.first, second }
    }

    /// The first part alone.
    #[must_use]
    pub fn first_part(&self) -> Self {
        Self { first: self.first.clone(), second: None }
    }

    /// The second part as a template of its own; `None` where there is none.
    pub fn second_part(&self) -> Option<Self> {
        let second = self.second.as_ref()?;
        Some(Self { first: second.vector.clone(), second: None })
    }

    /// Whether both parts of a composite embedder are there.
    pub fn is_complete(&self) -> bool {
        self.second.is_some()
    }

    /// The normalised mean of several templates of one face: less noise than any one of them. It is
    /// complete when all are. `None` without any, or when they cancel out.
    pub fn mean<'a>(templates: impl IntoIterator<Item = &'a Template>) -> Option<Self> {
        Self::mean_by(templates, |_| 1.0)
    }

    /// The same, each template weighted by its length: a sample that shows the face well counts
    /// more than one that does not. For templates that were just made, whose lengths are known.
    pub fn mean_by_length<'a>(templates: impl IntoIterator<Item = &'a Template>) -> Option<Self> {
        Self::mean_by(templates, |vector| vector.length)
    }

    fn mean_by<'a>(
        templates: impl IntoIterator<Item = &'a Template>,
        weight: impl Fn(&UnitVector) -> f32,
    ) -> Option<Self> {
        let templates: Vec<&Self> = templates.into_iter().collect();
        let first = UnitVector::mean(templates.iter().map(|it| &it.first), &weight)?;
        let seconds: Option<Vec<&SecondPart>> =
            templates.iter().map(|it| it.second.as_ref()).collect();
        let second = seconds.and_then(|seconds| {
            let share = seconds.first()?.weight;
            UnitVector::mean(seconds.iter().map(|it| &it.vector), &weight)
                .map(|vector| SecondPart { vector, weight: share })
        });
        Some(Self { first, second })
    }

    /// Elements of the first part.
    pub fn dimension(&self) -> usize {
        self.first.elements.len()
    }
    /// The first part: unit length.
    pub fn as_slice(&self) -> &[f32] {
        &self.first.elements
    }
    /// The second part, of unit length, and its share of the score.
    pub fn second(&self) -> Option<(&[f32], f32)> {
        self.second.as_ref().map(|it| (&*it.vector.elements, it.weight))
    }
    /// Euclidean length of the first part before it was normalised: a measure of the sample's
    /// quality, in the embedder's own units. 1.0 for a template that was stored.
    pub fn length(&self) -> f32 {
        self.first.length
    }

    /// All parts as one vector of unit length, each times the square root of its weight: its cosine
    /// with another complete template's is their score.
    pub fn concatenated(&self) -> Vec<f32> {
        let weight = self.second.as_ref().map_or(0.0, |it| it.weight);
        let scaled = |vector: &UnitVector, weight: f32| -> Vec<f32> {
            vector.elements.iter().map(|x| x * weight.sqrt()).collect()
        };
        let mut all = scaled(&self.first, 1.0 - weight);
        all.extend(self.second.iter().flat_map(|it| scaled(&it.vector, it.weight)));
        all
    }

    /// Comparison score, -1.0..=1.0, higher is more alike: the weighted cosine of the parts where
    /// both templates are complete, else that of the first parts. Both must come from the same
    /// embedder.
    pub fn compare(&self, other: &Self) -> f32 {
        debug_assert_eq!(self.dimension(), other.dimension());
        let first = self.first.dot(&other.first);
        match (&self.second, &other.second) {
            (Some(a), Some(b)) => (1.0 - a.weight) * first + a.weight * a.vector.dot(&b.vector),
            _ => first,
        }
    }
}

/// Two templates are equal when their vectors are; the length is not stored and does not count.
impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.first.elements == other.first.elements && self.second() == other.second()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.second {
            Some(second) => {
                write!(f, "Template({}+{}-d)", self.dimension(), second.vector.elements.len())
            }
            None => write!(f, "Template({}-d)", self.dimension()),
        }
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

    #[test]
    fn composite_score_is_cosine_of_concatenation() {
        let unit = |raw: &[f32]| Template::normalised(raw.to_vec()).unwrap();
        let a = unit(&[1.0, 2.0, 2.0]).with_second(&unit(&[3.0, 4.0]), 0.7);
        let b = unit(&[2.0, 1.0, 2.0]).with_second(&unit(&[4.0, 3.0]), 0.7);
        let (first, second) = (8.0 / 9.0, 24.0 / 25.0);
        assert!((a.compare(&b) - (0.3 * first + 0.7 * second)).abs() < 1e-6);
        let dot: f32 = a.concatenated().iter().zip(b.concatenated()).map(|(x, y)| x * y).sum();
        assert!((a.compare(&b) - dot).abs() < 1e-6);
        assert!((a.compare(&b.first_part()) - first).abs() < 1e-6, "a partial one: the first part");
        let mean = Template::mean([&a, &b]).unwrap();
        assert!(
            mean.is_complete() && !Template::mean([&a, &b.first_part()]).unwrap().is_complete()
        );
        assert!((mean.compare(&a) - mean.compare(&b)).abs() < 1e-6);
    }

    #[test]
    fn longer_vectors_weigh_more_in_mean() {
        let long = Template::normalised(vec![3.0, 0.0]).unwrap();
        let short = Template::normalised(vec![0.0, 1.0]).unwrap();
        assert!((long.length() - 3.0).abs() < 1e-6 && (short.length() - 1.0).abs() < 1e-6);
        let plain = Template::mean([&long, &short]).unwrap();
        let weighted = Template::mean_by_length([&long, &short]).unwrap();
        assert!((plain.compare(&long) - plain.compare(&short)).abs() < 1e-6);
        assert!((weighted.compare(&long) / weighted.compare(&short) - 3.0).abs() < 1e-5);
        assert!((weighted.length() - 2.0).abs() < 1e-6, "the mean of theirs");
    }

    #[test]
    fn composite_digest_follows_parts_and_weights() {
        let part = |of: u8, weight| Part { digest: ModelDigest([of; 32]), dimension: 4, weight };
        let one = Embedder::composite(part(1, 0.3), part(2, 0.7));
        assert_eq!(one, Embedder::composite(part(1, 0.3), part(2, 0.7)));
        for (first, second) in [
            (part(1, 0.4), part(2, 0.6)),
            (part(3, 0.3), part(2, 0.7)),
            (part(2, 0.7), part(1, 0.3)),
        ] {
            assert_ne!(one.digest, Embedder::composite(first, second).digest);
        }
        assert!(one.uses(&ModelDigest([2; 32])) && !one.uses(&one.digest));
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
