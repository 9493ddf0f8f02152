//! The models: detector, landmark refiner, embedder and PAD, run by ONNX Runtime. Implements
//! `FaceEngine`.
//!
//! The manifest determines the input of each model; the code knows only the layout of its outputs. Buffers are reused from call to call.
//!
//! Agreement with the reference pipeline (boxes within a pixel, templates with cosine ≥ 0.999) is
//! `tests/recognition/agreement.rs`.

pub mod detector;
pub mod manifest;
mod model_session;
mod resample;
pub mod runtime;
mod smooth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::recognise::align::{SAMPLE_SIDE, Sample};
use crate::recognise::engine::{DetectorInput, EngineError, FaceEngine};
use crate::recognise::face::{BoundingBox, Detection, Embedder, Landmarks, Point, Template};
use crate::recognise::pad::{self, NEAR_CROP, WIDE_CROP};
use crate::recognise::picture::Picture;
use crate::vision::detector::Detector;
use crate::vision::manifest::{Manifest, Model, ModelError, Precision, Role, TemplateSpec};
use crate::vision::model_session::ModelSession;
use crate::vision::resample::{Mode, crop, resample};
use crate::vision::smooth::smoothed;

/// Which models to load and how to run them.
#[derive(Clone, Debug)]
pub struct VisionSettings {
    pub models: PathBuf,
    pub runtime_library: Option<PathBuf>,
    /// Name of the embedder in the manifest: a model, or a composite.
    pub embedder: String,
    pub precision: Precision,
    /// Threads for one inference.
    pub threads: usize,
    /// Whether to load the PAD model.
    pub pad: bool,
}

pub struct Vision {
    detector: Detector,
    refiner: ModelSession,
    first: ModelSession,
    /// The second part of a composite embedder.
    second: Option<ModelSession>,
    embedder: Embedder,
    /// Its name in the manifest.
    embedder_name: String,
    pad: Option<ModelSession>,
    template: TemplateSpec,
}

impl Vision {
    pub fn load(settings: &VisionSettings) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&settings.models)?;
        let environment = runtime::load(settings.runtime_library.as_deref(), &settings.models)?;
        let open = |model: &Model| {
            let (path, bytes, digest) = manifest.load(model, settings.precision)?;
            let session = runtime::session(environment, &path, &bytes, settings.threads)?;
            Ok::<_, ModelError>(ModelSession::new(session, model, digest))
        };
        let of_role = |role| manifest.model(role, None).and_then(open);
        let entry = manifest.embedder(&settings.embedder)?;
        let first = open(entry.first)?;
        let second = entry.composite.map(|(_, model)| open(model)).transpose()?;
        let template = entry.template_spec();
        Ok(Self {
            detector: Detector::new(of_role(Role::Detector)?),
            refiner: of_role(Role::Refiner)?,
            embedder: entry.embedder(first.digest(), second.as_ref().map(ModelSession::digest)),
            embedder_name: settings.embedder.clone(),
            first,
            second,
            pad: settings.pad.then(|| of_role(Role::Pad)).transpose()?,
            template: template.expect("the manifest was checked: an embedder has a template"),
        })
    }

    /// One inference of one model on a grey input of its own size, of an embedder of each of its
    /// parts: for measuring what it costs alone. Does nothing when the model is not loaded.
    pub fn exercise(&mut self, role: Role) -> Result<(), EngineError> {
        let model = match role {
            Role::Detector => return self.detector.exercise(),
            Role::Refiner => &mut self.refiner,
            Role::Embedder => {
                self.first.exercise()?;
                return self.second.iter_mut().try_for_each(ModelSession::exercise);
            }
            Role::Pad => match &mut self.pad {
                Some(pad) => pad,
                None => return Ok(()),
            },
        };
        model.exercise()
    }

    /// The digest of each loaded model's file, and that of the embedder, by name in the manifest.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let models = [self.detector.model(), &self.refiner, &self.first];
        let models = models.into_iter().chain(&self.second).chain(&self.pad);
        let files = models.map(|model| (model.name().to_owned(), model.digest().to_string()));
        let embedder = (self.embedder_name.clone(), self.embedder.digest.to_string());
        files.chain([embedder]).collect()
    }

    /// The embedder's entry in the manifest.
    pub fn template_spec(&self) -> TemplateSpec {
        self.template
    }
}

/// The embedder that these settings name, without starting anything.
pub fn embedder(settings: &VisionSettings) -> Result<Embedder, ModelError> {
    let manifest = Manifest::read(&settings.models)?;
    let entry = manifest.embedder(&settings.embedder)?;
    let digest = |model| manifest.load(model, settings.precision).map(|(_, _, digest)| digest);
    let second = entry.composite.map(|(_, model)| digest(model)).transpose()?;
    Ok(entry.embedder(digest(entry.first)?, second))
}

/// What `rollcall models verify` and `doctor` do: every file there and as described, the library
/// loadable.
pub fn verify(models: &Path) -> Result<Vec<(String, u64)>, ModelError> {
    let manifest = Manifest::read(models)?;
    let check = |model: &manifest::Model| {
        let (_, bytes, _) = manifest.load(model, Precision::Int8)?;
        Ok((model.file.clone(), bytes.len() as u64))
    };
    manifest.models.iter().map(check).collect()
}

impl FaceEngine for Vision {
    fn detect(
        &mut self,
        picture: &Picture,
        input: DetectorInput,
    ) -> Result<Vec<Detection>, EngineError> {
        self.detector.detect(picture, input.side_px())
    }

    /// 68 points (300-W order) relative to the detector's box; of those, the five that alignment
    /// wants.
    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        let outline = round_to_pixels(&detection.bounding_box);
        let left = outline.left as isize;
        let top = outline.top as isize;
        let width = outline.width();
        let height = outline.height();
        let widest = picture.width() as f32 * 2.0;
        let highest = picture.height() as f32 * 2.0;
        if width < 2.0 || height < 2.0 || width > widest || height > highest {
            return Ok(*detection);
        }
        let part = crop(picture, left, top, width as usize, height as usize);
        let (to_width, to_height) = self.refiner.input_size();
        let shrinks = part.width() >= to_width && part.height() >= to_height;
        let mode = if shrinks { Mode::Area } else { Mode::AreaEnlarging };
        let pixels = resample(&part, to_width, to_height, mode);
        let points = self.refiner.run(&pixels)?;
        let point = |index: usize| {
            let x = points[2 * index];
            let y = points[2 * index + 1];
            Point { x: outline.left + x * width, y: outline.top + y * height }
        };
        let mean = |indices: &[usize]| {
            let sum =
                indices.iter().map(|i| point(*i)).fold((0.0, 0.0), |s, p| (s.0 + p.x, s.1 + p.y));
            Point { x: sum.0 / indices.len() as f32, y: sum.1 / indices.len() as f32 }
        };
        if points.len() != 136 || points.iter().any(|value| !value.is_finite()) {
            return Ok(*detection);
        }
        let landmarks = Landmarks {
            left_eye: mean(&[37, 38, 40, 41]),
            right_eye: mean(&[43, 44, 46, 47]),
            nose: point(30),
            left_mouth: mean(&[48, 60]),
            right_mouth: mean(&[54, 64]),
        };
        Ok(Detection { landmarks, ..*detection })
    }

    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        embed(&mut self.first, sample)
    }

    fn complete(&mut self, sample: &Sample, template: Template) -> Result<Template, EngineError> {
        let (Some(model), Some(part)) = (&mut self.second, self.embedder.second) else {
            return Ok(template);
        };
        let second = embed(model, sample)?;
        Ok(match second {
            Some(second) => template.with_second(&second, part.weight),
            None => template,
        })
    }

    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        let Some(model) = &mut self.pad else {
            return Ok(None);
        };
        let near = enlarge_box(&detection.bounding_box, NEAR_CROP, picture);
        let Some(score) = pad_score(model, picture, &near)? else {
            return Ok(None);
        };
        let wide = enlarge_box(&detection.bounding_box, WIDE_CROP, picture);
        let fused = pad::fuse_crops(score, || {
            if wide == near { Ok(None) } else { pad_score(model, picture, &wide) }
        });
        fused.map(Some)
    }

    fn embedder(&self) -> Embedder {
        self.embedder
    }
}

/// What one network makes of an aligned face of `SAMPLE_SIDE` pixels a side.
fn embed(model: &mut ModelSession, sample: &Sample) -> Result<Option<Template>, EngineError> {
    debug_assert_eq!(model.input_size(), (SAMPLE_SIDE, SAMPLE_SIDE));
    let pixels: Vec<f32> = sample.picture.rgb().iter().map(|value| f32::from(*value)).collect();
    Ok(Template::normalised(model.run(&pixels)?))
}

/// MiniFASNet's way: the part of the picture, grain taken out; softmax of three, the first is *live*.
fn pad_score(
    model: &mut ModelSession,
    picture: &Picture,
    part: &BoundingBox,
) -> Result<Option<f32>, EngineError> {
    let width = part.width() as usize + 1;
    let height = part.height() as usize + 1;
    let part = crop(picture, part.left as isize, part.top as isize, width, height);
    let (to_width, to_height) = model.input_size();
    let pixels = resample(&part, to_width, to_height, Mode::Linear);
    let logits = model.run(&smoothed(&pixels, to_width, to_height))?;
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    Ok(logits
        .first()
        .map(|logit| (logit - largest).exp() / total)
        .filter(|value| value.is_finite()))
}

fn round_to_pixels(outline: &BoundingBox) -> BoundingBox {
    BoundingBox {
        left: outline.left.round_ties_even(),
        top: outline.top.round_ties_even(),
        right: outline.right.round_ties_even(),
        bottom: outline.bottom.round_ties_even(),
    }
}

/// The box enlarged about its centre as far as the picture allows, shifted inside, in whole pixels.
fn enlarge_box(outline: &BoundingBox, by: f32, picture: &Picture) -> BoundingBox {
    let right_edge = picture.width() as f32 - 1.0;
    let bottom_edge = picture.height() as f32 - 1.0;
    let by = by
        .min(right_edge / outline.width().max(1.0))
        .min(bottom_edge / outline.height().max(1.0))
        .max(0.0);
    let half_width = outline.width() * by / 2.0;
    let half_height = outline.height() * by / 2.0;
    let centre = outline.centre();
    let fit = |low: f32, high: f32, edge: f32| {
        let shift = (-low).max(0.0) - (high - edge).max(0.0);
        ((low + shift).max(0.0).trunc(), (high + shift).min(edge).trunc())
    };
    let (left, right) = fit(centre.x - half_width, centre.x + half_width, right_edge);
    let (top, bottom) = fit(centre.y - half_height, centre.y + half_height, bottom_edge);
    BoundingBox { left, top, right, bottom }
}
