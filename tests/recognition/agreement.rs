//! The daemon's steps agree with the reference pipeline: same files, same photographs, same boxes,
//! landmarks, templates.
//!
//! What "the same template" can mean depends on the precision. In fp32 the way from JPEG to
//! template agrees to a cosine of 0.999, step by step. An int8 model rounds its activations at
//! every layer: one pixel of the sample off by one already moves its template to a cosine of 0.998,
//! a shift of the landmarks by 0.02 px to 0.994 (measured with the reference alone), and no two
//! JPEG decoders agree to the last bit. So int8 must agree to 0.999 on a sample whose pixels are
//! the same, and from photographs to the model's own noise; where the fp32 twins are present,
//! they show that nothing but that noise is between them.
//!
//! `tests/golden/README.md` tells how the golden figures are made.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::faces;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rollcall::recognise::align::{self, SAMPLE_SIDE, Sample};
use rollcall::recognise::engine::{DetectorInput, FaceEngine as _};
use rollcall::recognise::face::{BoundingBox, Detection, Landmarks, Point, Template};
use rollcall::recognise::picture::{Picture, PictureLimits};
use rollcall::vision::manifest::{Manifest, Precision};
use rollcall::vision::{Vision, VisionSettings};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    /// For each model, the digests of the int8 file and of its fp32 twin.
    models: BTreeMap<String, [String; 2]>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Empty: the sample that is made of whole numbers (`grain`).
    file: String,
    precision: Precision,
    reach: usize,
    border: bool,
    faces: Vec<Face>,
}

#[derive(Deserialize)]
struct Face {
    confidence: f32,
    #[serde(rename = "box")]
    outline: [f32; 4],
    landmarks: [[f32; 2]; 5],
    template: Vec<f32>,
    /// The second part of the composite embedder.
    second: Vec<f32>,
}

impl Face {
    /// How well both parts of a template agree with the reference: the lesser of their cosines.
    fn cosine(&self, template: &Template) -> f32 {
        let golden = |raw: &Vec<f32>| Template::normalised(raw.clone()).unwrap();
        let first = template.first_part().compare(&golden(&self.template));
        first.min(template.second_part().unwrap().compare(&golden(&self.second)))
    }
}

const BOX_OFF_MAX: f32 = 1.0;
const LANDMARK_OFF_MAX: f32 = 1.0;
const COSINE_MIN: f32 = 0.999;
/// From photographs, int8: least seen is 0.989, see above.
const COSINE_MIN_INT8_PHOTOGRAPH: f32 = 0.98;
/// The whole way, at either precision. The refiner looks at a box of whole pixels: where a side of
/// the box lies by half a pixel, a hundredth more or less shows it another cutout (least seen:
/// 0.9974 in fp32, 0.989 in int8).
const WHOLE_WAY_MIN: f32 = 0.98;
/// A face this near to the bound on confidence may be in one list and not in the other.
const CONFIDENCE_MIN: f32 = 0.6;
const CONFIDENCE_OFF_MAX: f32 = 0.02;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/golden.json")).unwrap()
}

#[test]
fn golden_file_belongs_to_shipped_models() {
    let manifest = Manifest::read(&root().join("models")).unwrap();
    for (name, digests) in golden().models {
        let model = manifest.models.iter().find(|model| model.name == name).unwrap();
        let twin = model.twin.as_ref().map_or("(none)", |twin| twin.sha256.as_str());
        let shipped = [model.sha256.as_str(), twin];
        assert_eq!(
            shipped, digests,
            "{name} has changed since the golden figures were made: run tests/golden/make.sh"
        );
    }
}

#[test]
fn int8_template_matches_reference_on_equal_pixels() {
    compare_grain(Precision::Int8);
}

#[test]
fn int8_matches_reference_on_fetched_photographs() {
    compare_fetched_photographs(Precision::Int8);
}

mod needs_photographs {
    use super::{Precision, compare_many_photographs};

    #[test]
    fn int8_matches_reference_on_many_photographs() {
        compare_many_photographs(Precision::Int8);
    }
}

mod needs_fp32 {
    use super::{Precision, compare_fetched_photographs, compare_grain, compare_many_photographs};

    #[test]
    fn fp32_template_matches_reference_on_equal_pixels() {
        compare_grain(Precision::Fp32);
    }

    #[test]
    fn fp32_matches_reference_on_fetched_photographs() {
        compare_fetched_photographs(Precision::Fp32);
    }

    mod needs_photographs {
        use super::{Precision, compare_many_photographs};

        #[test]
        fn fp32_matches_reference_on_many_photographs() {
            compare_many_photographs(Precision::Fp32);
        }
    }
}

/// Where the golden figures have the photographs that `make setup` fetches, below `.cache`.
const FETCHED: &str = "photos/";

fn load_models(precision: Precision) -> Vision {
    let models = root().join("models");
    assert!(
        precision == Precision::Int8 || models.join("fp32/fr_feature.onnx").is_file(),
        "this test needs the fp32 twins of the models: run `make fp32`, or `make test`, which skips it without them"
    );
    Vision::load(&VisionSettings {
        models,
        runtime_library: None,
        embedder: "fr_sface".into(),
        precision,
        threads: 1,
        pad: false,
    })
    .unwrap()
}

fn cases(precision: Precision) -> impl Iterator<Item = Case> {
    golden().cases.into_iter().filter(move |case| case.precision == precision)
}

fn compare_grain(precision: Precision) {
    let case = cases(precision).find(|case| case.file.is_empty()).unwrap();
    let mut vision = load_models(precision);
    let first = vision.template(&grain()).unwrap().unwrap();
    let cosine = case.faces[0].cosine(&vision.complete(&grain(), first).unwrap());
    assert!(cosine >= COSINE_MIN, "the same sample, {precision:?}: cosine {cosine:.5}");
}

/// Compares the photographs that `make setup` fetches.
fn compare_fetched_photographs(precision: Precision) {
    let fetched = cases(precision).filter(|case| case.file.starts_with(FETCHED));
    compare_photographs(precision, &root().join(".cache"), fetched);
}

/// Compares those that only the folder of many people's photographs has.
fn compare_many_photographs(precision: Precision) {
    let is_fetched = |file: &str| file.is_empty() || file.starts_with(FETCHED);
    let others = cases(precision).filter(|case| !is_fetched(&case.file));
    compare_photographs(precision, &faces::required_dir(), others);
}

fn compare_photographs(precision: Precision, dir: &Path, cases: impl Iterator<Item = Case>) {
    let mut vision = load_models(precision);
    let mut faults = Vec::new();
    let cases: Vec<Case> = cases.collect();
    assert!(!cases.is_empty(), "the golden figures have no such photograph");
    for case in &cases {
        compare(&mut vision, dir, case, &mut faults);
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A sample of no face whose pixels are the same in every language.
fn grain() -> Sample {
    let rgb = (0..SAMPLE_SIDE * SAMPLE_SIDE * 3).map(|n| (n * 7919 % 251) as u8).collect();
    Sample {
        picture: Picture::from_rgb(SAMPLE_SIDE, SAMPLE_SIDE, rgb).unwrap(),
        landmarks: Landmarks::default(),
        eye_distance_px: 0.0,
    }
}

fn compare(vision: &mut Vision, photographs: &Path, case: &Case, faults: &mut Vec<String>) {
    let file = &case.file;
    let bytes = std::fs::read(photographs.join(file)).unwrap();
    let mut picture = Picture::decode(&bytes, PictureLimits::default()).unwrap();
    if case.border {
        picture = picture.with_border(0.5).0;
    }
    let input = if case.reach == 320 { DetectorInput::Small } else { DetectorInput::Large };
    let detections = vision.detect(&picture, input).unwrap();
    let surely =
        detections.iter().filter(|it| it.confidence >= CONFIDENCE_MIN + CONFIDENCE_OFF_MAX).count();
    if surely > case.faces.len() {
        faults.push(format!("{file}: {surely} faces, the reference has {}", case.faces.len()));
    }
    for face in &case.faces {
        let [left, top, right, bottom] = face.outline;
        let outline = BoundingBox { left, top, right, bottom };
        let nearest = detections.iter().max_by(|a, b| {
            a.bounding_box.overlap(&outline).total_cmp(&b.bounding_box.overlap(&outline))
        });
        let Some(detection) = nearest.filter(|it| it.bounding_box.overlap(&outline) > 0.5) else {
            if face.confidence > CONFIDENCE_MIN + CONFIDENCE_OFF_MAX {
                faults.push(format!("{file}: the face at {left:.0},{top:.0} was not found"));
            }
            continue;
        };
        let found = detection.bounding_box;
        let sides =
            [found.left - left, found.top - top, found.right - right, found.bottom - bottom];
        let box_off = sides.into_iter().fold(0.0f32, |max, side| max.max(side.abs()));
        let expected = face.landmarks.map(|[x, y]| Point { x, y });
        // Each step on what the reference's step before it gave ...
        let refined =
            vision.refine(&picture, &Detection { bounding_box: outline, ..*detection }).unwrap();
        let offs = refined.landmarks.points().into_iter().zip(expected).map(|(a, b)| a.distance(b));
        let landmark_off = offs.fold(0.0f32, f32::max);
        let cosine = face.cosine(&template(vision, &picture, &Landmarks::from_points(expected)));
        // ... and the whole way.
        let refined = vision.refine(&picture, detection).unwrap();
        let whole = face.cosine(&template(vision, &picture, &refined.landmarks));
        let cosine_min =
            if case.precision == Precision::Int8 { COSINE_MIN_INT8_PHOTOGRAPH } else { COSINE_MIN };
        println!(
            "{:?} {file}: box {box_off:.2} px, landmarks {landmark_off:.2} px, cosine {cosine:.5}, whole way {whole:.5}",
            case.precision
        );
        let near = box_off <= BOX_OFF_MAX && landmark_off <= LANDMARK_OFF_MAX;
        if !near || cosine < cosine_min || whole < WHOLE_WAY_MIN {
            faults.push(format!(
                "{file}: box off {box_off:.2} px, landmarks {landmark_off:.2} px, cosine {cosine:.5}, whole way {whole:.5}"
            ));
        }
    }
}

fn template(vision: &mut Vision, picture: &Picture, landmarks: &Landmarks) -> Template {
    let sample = align::align(picture, landmarks).unwrap();
    let first = vision.template(&sample).unwrap().unwrap();
    vision.complete(&sample, first).unwrap()
}
