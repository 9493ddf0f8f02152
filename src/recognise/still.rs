//! One picture instead of a stream: a command's image, a photograph to enrol, a file on the command line.

use crate::recognise::align::{self, Sample};
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{BoundingBox, Detection, Landmarks, Point, Template};
use crate::recognise::picture::Picture;

/// Longest side of a picture that gets a border, in pixels.
const FRAMED_SIDE_MAX: usize = 1024;

/// A face of a picture, ready for the embedder.
#[derive(Debug)]
pub struct Found {
    /// In the picture's own pixels, landmarks refined.
    pub detection: Detection,
    pub sample: Sample,
}

/// Detections below this are left out of stills: the detector's own figure, at which it found a face in all of 255
/// portraits.
pub const CONFIDENCE_MIN: f32 = 0.6;

/// The template of a still: the mean of those of the sample and of its mirror image.
///
/// A stream has many samples to average over; a still has one, and this halves some of its noise for one more inference.
pub fn template(
    engine: &mut dyn FaceEngine,
    sample: &Sample,
) -> Result<Option<Template>, EngineError> {
    let (plain, mirrored) = (engine.template(sample)?, engine.template(&sample.mirrored())?);
    Ok(Template::mean(plain.iter().chain(&mirrored)))
}

/// All faces, the main one (largest, weighed by nearness to the centre) first.
///
/// A group needs the far reach; a portrait that the face fills to the edge needs a border. Each costs a detection, so
/// the cheap way is tried first.
pub fn faces(engine: &mut dyn FaceEngine, picture: &Picture) -> Result<Vec<Found>, EngineError> {
    let mut detections = detect(engine, picture, Reach::Near)?;
    let side = picture.width().max(picture.height());
    if side > Reach::Near.side_px()
        && (detections.is_empty()
            || detections.len() > 1
            || smallest(&detections) < 0.12 * side as f32)
    {
        let far = detect(engine, picture, Reach::Far)?;
        if far.len() >= detections.len() {
            detections = far;
        }
    }
    if detections.is_empty() {
        detections = detect_with_border(engine, picture)?;
    }
    finish(engine, picture, detections)
}

/// The main face only, as `evaluate` and the benches take it: one detection at the near reach where that finds a face.
pub fn main_face(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Option<Found>, EngineError> {
    let mut detections = detect(engine, picture, Reach::Near)?;
    if detections.is_empty() {
        detections = detect_with_border(engine, picture)?;
    }
    if detections.is_empty() && picture.width().max(picture.height()) > Reach::Near.side_px() {
        detections = detect(engine, picture, Reach::Far)?;
    }
    detections.truncate(1);
    Ok(finish(engine, picture, detections)?.into_iter().next())
}

fn detect(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
    reach: Reach,
) -> Result<Vec<Detection>, EngineError> {
    let mut detections = engine.detect(picture, reach)?;
    detections.retain(|face| face.confidence >= CONFIDENCE_MIN);
    let prominence = |face: &Detection| prominence(face, picture);
    detections.sort_by(|a, b| prominence(b).total_cmp(&prominence(a)));
    Ok(detections)
}

fn detect_with_border(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Vec<Detection>, EngineError> {
    // The framed picture has four times the pixels: a large one is thinned first, or it would take the memory of many.
    let step = picture.width().max(picture.height()).div_ceil(FRAMED_SIDE_MAX).max(1);
    let (framed, border) =
        if step == 1 { picture.with_border(0.5) } else { picture.thinned(step).with_border(0.5) };
    let mut detections = detect(engine, &framed, Reach::Near)?;
    let (shift, scale) = (border as f32, step as f32);
    let moved = |value: f32| (value - shift) * scale;
    for face in &mut detections {
        let outline = face.bounding_box;
        face.bounding_box = BoundingBox {
            left: moved(outline.left),
            top: moved(outline.top),
            right: moved(outline.right),
            bottom: moved(outline.bottom),
        };
        let points = face.landmarks.points().map(|p| Point { x: moved(p.x), y: moved(p.y) });
        face.landmarks = Landmarks::from_points(points);
    }
    Ok(detections)
}

fn finish(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
    detections: Vec<Detection>,
) -> Result<Vec<Found>, EngineError> {
    let mut found = Vec::with_capacity(detections.len());
    for detection in detections {
        let detection = engine.refine(picture, &detection)?;
        if let Some(sample) = align::align(picture, &detection.landmarks) {
            found.push(Found { detection, sample });
        }
    }
    Ok(found)
}

fn smallest(detections: &[Detection]) -> f32 {
    detections.iter().map(|face| face.bounding_box.width()).fold(f32::INFINITY, f32::min)
}

/// Area, less the further from the centre: a passer-by in the background is not whom the photograph is of.
pub fn prominence(face: &Detection, picture: &Picture) -> f32 {
    let centre = Point { x: picture.width() as f32 / 2.0, y: picture.height() as f32 / 2.0 };
    let half_diagonal = centre.x.hypot(centre.y);
    let away = face.bounding_box.centre().distance(centre) / half_diagonal;
    face.bounding_box.area() * (1.0 - 0.7 * away.min(1.0))
}
