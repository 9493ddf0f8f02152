//! YuNet's outputs become detections.

use crate::recognise::engine::EngineError;
use crate::recognise::face::{BoundingBox, Detection, Landmarks, Point};
use crate::recognise::picture::Picture;
use crate::vision::model_session::ModelSession;
use crate::vision::resample::{Mode, resample};

/// Detections below this are never reported; callers ask for more.
const CONFIDENCE_FLOOR: f32 = 0.5;
/// Of two boxes that overlap by more than this, the less confident is dropped (YuNet's own
/// evaluation uses 0.3 to 0.45).
const OVERLAP_MAX: f32 = 0.3;
/// Faces in one picture; a crowd beyond that is cut, the least confident first.
const FACES_MAX: usize = 64;
const STRIDES: [usize; 3] = [8, 16, 32];

pub(crate) struct Detector {
    model: ModelSession,
}

impl Detector {
    pub(crate) fn new(model: ModelSession) -> Self {
        Self { model }
    }

    pub(crate) fn model(&self) -> &ModelSession {
        &self.model
    }

    pub(crate) fn exercise(&mut self) -> Result<(), EngineError> {
        self.model.exercise()
    }

    /// The picture is shrunk or enlarged so that its longer side is `side` pixels, and padded with
    /// black to multiples of 32 on the right and below. The canvas is a square of `side`, as it was
    /// when accuracy was measured.
    pub(crate) fn detect(
        &mut self,
        picture: &Picture,
        side: usize,
    ) -> Result<Vec<Detection>, EngineError> {
        let ratio =
            (side as f32 / picture.width() as f32).min(side as f32 / picture.height() as f32);
        let scaled =
            |length: usize| ((length as f32 * ratio).round_ties_even() as usize).clamp(1, side);
        let width = scaled(picture.width());
        let height = scaled(picture.height());
        let mode = if ratio < 1.0 { Mode::Area } else { Mode::Linear };
        let pixels = resample(picture, width, height, mode);
        let outputs = self.model.run_sized(&pixels, width, height, side, side)?;
        let mut faces = Vec::new();
        for (level, stride) in STRIDES.into_iter().enumerate() {
            let of = |kind: usize| outputs[kind * 3 + level].as_slice();
            read_level(stride, side / stride, [of(0), of(1), of(2), of(3)], &mut faces);
        }
        Ok(suppress_overlaps(faces)
            .into_iter()
            .map(|face| rescale_detection(&face, 1.0 / ratio))
            .collect())
    }
}

/// One stride's grid: for each cell class and object confidence, box (centre offset and log size)
/// and five landmarks.
fn read_level(
    stride: usize,
    columns: usize,
    [class, object, boxes, points]: [&[f32]; 4],
    faces: &mut Vec<Detection>,
) {
    let stride = stride as f32;
    for (index, (class, object)) in class.iter().zip(object).enumerate() {
        let confidence = (class.clamp(0.0, 1.0) * object.clamp(0.0, 1.0)).sqrt();
        if confidence.is_nan() || confidence <= CONFIDENCE_FLOOR {
            continue;
        }
        let column = (index % columns) as f32;
        let row = (index / columns) as f32;
        let (Some(cell), Some(marks)) =
            (boxes.get(index * 4..index * 4 + 4), points.get(index * 10..index * 10 + 10))
        else {
            continue;
        };
        let x = (column + cell[0]) * stride;
        let y = (row + cell[1]) * stride;
        let half_width = cell[2].exp() * stride / 2.0;
        let half_height = cell[3].exp() * stride / 2.0;
        let mark = |n: usize| Point {
            x: (marks[2 * n] + column) * stride,
            y: (marks[2 * n + 1] + row) * stride,
        };
        let bounding_box = BoundingBox {
            left: x - half_width,
            top: y - half_height,
            right: x + half_width,
            bottom: y + half_height,
        };
        let landmarks = Landmarks::from_points([mark(0), mark(1), mark(2), mark(3), mark(4)]);
        let sound =
            bounding_box.area() > 0.0 && cell.iter().chain(marks).all(|value| value.is_finite());
        if sound && bounding_box.area().is_finite() {
            faces.push(Detection { bounding_box, confidence, landmarks });
        }
    }
}

/// Greedy non-maximum suppression, most confident first.
fn suppress_overlaps(mut faces: Vec<Detection>) -> Vec<Detection> {
    faces.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let mut kept: Vec<Detection> = Vec::new();
    for face in faces {
        if kept.len() < FACES_MAX
            && kept
                .iter()
                .all(|other| other.bounding_box.overlap(&face.bounding_box) <= OVERLAP_MAX)
        {
            kept.push(face);
        }
    }
    kept
}

fn rescale_detection(face: &Detection, by: f32) -> Detection {
    Detection {
        bounding_box: face.bounding_box.scaled(by),
        confidence: face.confidence,
        landmarks: Landmarks::from_points(
            face.landmarks.points().map(|p| Point { x: p.x * by, y: p.y * by }),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(left: f32, confidence: f32) -> Detection {
        let bounding_box = BoundingBox { left, top: 0.0, right: left + 10.0, bottom: 10.0 };
        Detection { bounding_box, confidence, landmarks: Landmarks::default() }
    }

    #[test]
    fn most_confident_overlapping_box_stays() {
        let kept = suppress_overlaps(vec![face(0.0, 0.7), face(2.0, 0.9), face(50.0, 0.6)]);
        assert_eq!(kept.iter().map(|f| f.confidence).collect::<Vec<_>>(), [0.9, 0.6]);
    }

    #[test]
    fn invalid_model_output_gives_no_faces() {
        let mut faces = Vec::new();
        let nan = vec![f32::NAN; 4];
        let infinite = vec![f32::INFINITY; 40];
        read_level(8, 2, [&nan, &nan, &infinite, &infinite], &mut faces);
        read_level(8, 2, [&[1.0; 4], &[1.0; 4], &infinite, &infinite], &mut faces);
        read_level(8, 2, [&[1.0; 4], &[1.0; 4], &[], &[]], &mut faces);
        assert!(faces.is_empty());
    }
}
