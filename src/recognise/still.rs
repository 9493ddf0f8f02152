//! One picture instead of a stream: a command's image, a photograph to enrol, a file on the command
//! line.

use crate::recognise::align::{self, Sample};
use crate::recognise::decision::{self, Decision, DecisionSettings};
use crate::recognise::engine::{DetectorInput, EngineError, FaceEngine};
use crate::recognise::face::{BoundingBox, Detection, Landmarks, Point, Template};
use crate::recognise::gallery::Gallery;
use crate::recognise::picture::Picture;
use crate::recognise::stance::Stance;

/// Longest side of a picture that gets a border, in pixels.
const FRAMED_SIDE_MAX: usize = 1024;

/// A face of a picture, ready for the embedder.
#[derive(Debug)]
pub struct FoundFace {
    /// In the picture's own pixels, landmarks refined.
    pub detection: Detection,
    pub sample: Sample,
    pub stance: Stance,
    /// Quarters by which the picture was turned clockwise for this face to stand upright.
    pub quarters: usize,
}

/// Least detection confidence in stills. At this value the detector found a face in all of 255
/// portraits.
pub const CONFIDENCE_MIN: f32 = 0.6;

/// The template of a still, of a composite embedder a complete one. The first part is the mean of
/// those of the sample and of its mirror image.
///
/// A stream has many samples to average over; a still has one, and this halves some of its noise
/// for one more inference. The second part is made of the sample alone: its mirror image doubles
/// the cost and changes no figure on `faces-open` (docs/accuracy.md).
pub fn template(
    engine: &mut dyn FaceEngine,
    sample: &Sample,
) -> Result<Option<Template>, EngineError> {
    let first = first_part(engine, sample)?;
    first.map(|first| engine.complete(sample, first)).transpose()
}

fn first_part(
    engine: &mut dyn FaceEngine,
    sample: &Sample,
) -> Result<Option<Template>, EngineError> {
    let plain = engine.template(sample)?;
    let mirrored = engine.template(&sample.mirrored())?;
    Ok(Template::mean(plain.iter().chain(&mirrored)))
}

/// Decides on the face of a still, and makes the second part of a composite embedder only where the
/// first does not decide. `None` when the model's output cannot be normalised.
pub fn identify(
    engine: &mut dyn FaceEngine,
    sample: &Sample,
    gallery: &Gallery,
    settings: &DecisionSettings,
) -> Result<Option<Decision>, EngineError> {
    let Some(first) = first_part(engine, sample)? else { return Ok(None) };
    let look = decision::look_first(&first, gallery, settings);
    let probe = if look.is_clear { first } else { engine.complete(sample, first)? };
    Ok(Some(decision::decide_still(&probe, look, gallery, settings)))
}

/// All faces, the main one (largest, weighed by nearness to the centre) first.
///
/// Where the main face does not surely stand upright, the picture is tried in the other three ways up
/// and the way with the best stance is taken: photographs lose their EXIF orientation on their way.
pub fn faces(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Vec<FoundFace>, EngineError> {
    let found = faces_as_it_is(engine, picture)?;
    let stance = found.first().map(|main| main.stance);
    if stance.is_some_and(|stance| stance >= Stance::SURE) {
        return Ok(found);
    }
    let Some(quarters) = find_way_up(engine, picture, stance)? else { return Ok(found) };
    let turned = picture.turned(quarters);
    let mut faces = faces_as_it_is(engine, &turned)?;
    if faces.first().map(|main| main.stance) <= stance {
        return Ok(found);
    }
    for face in &mut faces {
        face.quarters = quarters;
        turn_back(&mut face.detection, quarters, &turned);
    }
    Ok(faces)
}

/// Longest side of a picture in which the way up is searched: twice what the detector is given, for
/// the refiner.
const SEARCHED_SIDE_MAX: usize = 640;

/// Returns by how many quarters the picture must be turned for its main face to stand upright, if any
/// way but the present one is better than `stance`.
fn find_way_up(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
    stance: Option<Stance>,
) -> Result<Option<usize>, EngineError> {
    let step = picture.width().max(picture.height()).div_ceil(SEARCHED_SIDE_MAX).max(1);
    let small = picture.thinned(step);
    let mut best = (None, stance);
    for quarters in 1..4 {
        let turned = small.turned(quarters);
        let mut detections = detect_sorted(engine, &turned, DetectorInput::Small)?;
        if detections.is_empty() {
            detections = detect_with_border(engine, &turned)?;
        }
        let Some(main) = detections.first() else { continue };
        let found = Some(Stance::of(main, &engine.refine(&turned, main)?));
        // A face that is found only when the picture is turned must be a plausible one.
        if found > best.1 && found >= Some(Stance::REFERENCE_MIN) {
            best = (Some(quarters), found);
        }
        if found >= Some(Stance::SURE) {
            break;
        }
    }
    Ok(best.0)
}

/// From the turned picture to the one that it was turned from.
fn turn_back(detection: &mut Detection, quarters: usize, turned: &Picture) {
    let right = turned.width() as f32 - 1.0;
    let bottom = turned.height() as f32 - 1.0;
    let back = |point: Point| match quarters {
        1 => Point { x: point.y, y: right - point.x },
        2 => Point { x: right - point.x, y: bottom - point.y },
        3 => Point { x: bottom - point.y, y: point.x },
        _ => point,
    };
    let outline = detection.bounding_box;
    let start = back(Point { x: outline.left, y: outline.top });
    let end = back(Point { x: outline.right, y: outline.bottom });
    detection.bounding_box = BoundingBox {
        left: start.x.min(end.x),
        top: start.y.min(end.y),
        right: start.x.max(end.x),
        bottom: start.y.max(end.y),
    };
    detection.landmarks = Landmarks::from_points(detection.landmarks.points().map(back));
}

/// A group needs the large detector input; a portrait that the face fills to the edge needs a
/// border. Each costs a detection, so the cheap way is tried first.
fn faces_as_it_is(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Vec<FoundFace>, EngineError> {
    let mut detections = detect_sorted(engine, picture, DetectorInput::Small)?;
    let side = picture.width().max(picture.height());
    if side > DetectorInput::Small.side_px()
        && (detections.is_empty()
            || detections.len() > 1
            || smallest_width(&detections) < 0.12 * side as f32)
    {
        let far = detect_sorted(engine, picture, DetectorInput::Large)?;
        if far.len() >= detections.len() {
            detections = far;
        }
    }
    if detections.is_empty() {
        detections = detect_with_border(engine, picture)?;
    }
    align_faces(engine, picture, detections)
}

/// Returns the main face only, for `evaluate` and the benches: one detection with the small detector
/// input where that finds a face.
pub fn main_face(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Option<FoundFace>, EngineError> {
    let mut detections = detect_sorted(engine, picture, DetectorInput::Small)?;
    if detections.is_empty() {
        detections = detect_with_border(engine, picture)?;
    }
    if detections.is_empty()
        && picture.width().max(picture.height()) > DetectorInput::Small.side_px()
    {
        detections = detect_sorted(engine, picture, DetectorInput::Large)?;
    }
    detections.truncate(1);
    Ok(align_faces(engine, picture, detections)?.into_iter().next())
}

fn detect_sorted(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
    input: DetectorInput,
) -> Result<Vec<Detection>, EngineError> {
    let mut detections = engine.detect(picture, input)?;
    detections.retain(|face| face.confidence >= CONFIDENCE_MIN);
    let prominence = |face: &Detection| prominence(face, picture);
    detections.sort_by(|a, b| prominence(b).total_cmp(&prominence(a)));
    Ok(detections)
}

fn detect_with_border(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
) -> Result<Vec<Detection>, EngineError> {
    // The framed picture has four times the pixels: a large one is thinned first, or it would take
    // the memory of many.
    let step = picture.width().max(picture.height()).div_ceil(FRAMED_SIDE_MAX).max(1);
    let (framed, border) =
        if step == 1 { picture.with_border(0.5) } else { picture.thinned(step).with_border(0.5) };
    let mut detections = detect_sorted(engine, &framed, DetectorInput::Small)?;
    let shift = border as f32;
    let scale = step as f32;
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

fn align_faces(
    engine: &mut dyn FaceEngine,
    picture: &Picture,
    detections: Vec<Detection>,
) -> Result<Vec<FoundFace>, EngineError> {
    let mut found = Vec::with_capacity(detections.len());
    for detected in detections {
        let detection = engine.refine(picture, &detected)?;
        if let Some(sample) = align::align(picture, &detection.landmarks) {
            let stance = Stance::of(&detected, &detection);
            found.push(FoundFace { detection, sample, stance, quarters: 0 });
        }
    }
    Ok(found)
}

fn smallest_width(detections: &[Detection]) -> f32 {
    detections.iter().map(|face| face.bounding_box.width()).fold(f32::INFINITY, f32::min)
}

/// Returns the area, weighed by nearness to the centre: a passer-by in the background is not the
/// subject of a photograph.
pub fn prominence(face: &Detection, picture: &Picture) -> f32 {
    let centre = Point { x: picture.width() as f32 / 2.0, y: picture.height() as f32 / 2.0 };
    let half_diagonal = centre.x.hypot(centre.y);
    let away = face.bounding_box.centre().distance(centre) / half_diagonal;
    face.bounding_box.area() * (1.0 - 0.7 * away.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turned_detections_are_turned_back() {
        // A picture 40 wide and 30 high, and a box and a point in it.
        let picture = Picture::plain(40, 30, [0; 3]);
        let inside = BoundingBox { left: 5.0, top: 10.0, right: 8.0, bottom: 20.0 };
        for quarters in 0..4 {
            let turned = picture.turned(quarters);
            let (left, top, right, bottom) = match quarters {
                1 => (9.0, 5.0, 19.0, 8.0),
                2 => (31.0, 9.0, 34.0, 19.0),
                3 => (10.0, 31.0, 20.0, 34.0),
                _ => (5.0, 10.0, 8.0, 20.0),
            };
            let bounding_box = BoundingBox { left, top, right, bottom };
            let mut detection =
                Detection { bounding_box, confidence: 0.9, landmarks: Landmarks::default() };
            turn_back(&mut detection, quarters, &turned);
            assert_eq!(detection.bounding_box, inside, "{quarters} quarters");
        }
    }
}
