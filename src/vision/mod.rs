//! The networks: detector, landmark refiner, embedder and PAD, run by ONNX Runtime. Implements `FaceEngine`.
//!
//! Each network is fed exactly as its manifest entry says; nothing about a particular network stands in the code but the
//! layout of its outputs. Buffers are reused from call to call.
//!
//! Agreement with the reference pipeline (boxes within a pixel, templates with cosine ≥ 0.999) is `tests/agreement.rs`.

pub mod detector;
pub mod manifest;
mod network;
mod resample;
pub mod runtime;
mod smooth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::recognise::align::{SAMPLE_SIDE, Sample};
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{BoundingBox, Detection, Landmarks, ModelDigest, Point, Template};
use crate::recognise::picture::Picture;
use crate::vision::detector::Detector;
use crate::vision::manifest::{Manifest, ModelError, Precision, Role, TemplateSpec};
use crate::vision::network::Network;
use crate::vision::resample::{Mode, crop, resample};
use crate::vision::smooth::smoothed;

/// Which networks to load and how to run them.
#[derive(Clone, Debug)]
pub struct VisionSettings {
    pub models: PathBuf,
    pub runtime_library: Option<PathBuf>,
    /// Name of the embedder in the manifest.
    pub embedder: String,
    pub precision: Precision,
    /// Threads for one inference.
    pub threads: usize,
    /// Whether to load the PAD network.
    pub pad: bool,
}

pub struct Vision {
    detector: Detector,
    refiner: Network,
    embedder: Network,
    pad: Option<Network>,
    template: TemplateSpec,
}

impl Vision {
    pub fn load(settings: &VisionSettings) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&settings.models)?;
        let environment = runtime::load(settings.runtime_library.as_deref(), &settings.models)?;
        let open = |role, name: Option<&str>| {
            let model = manifest.model(role, name)?;
            let (path, bytes, digest) = manifest.load(model, settings.precision)?;
            let session = runtime::session(environment, &path, &bytes, settings.threads)?;
            Ok(Network::new(session, model, digest))
        };
        let template = manifest.model(Role::Embedder, Some(&settings.embedder))?.template;
        Ok(Self {
            detector: Detector::new(open(Role::Detector, None)?),
            refiner: open(Role::Refiner, None)?,
            embedder: open(Role::Embedder, Some(&settings.embedder))?,
            pad: settings.pad.then(|| open(Role::Pad, None)).transpose()?,
            template: template.expect("the manifest was checked: an embedder has a template"),
        })
    }

    /// One inference of one network on a grey input of its own size: for measuring what it costs alone. Does nothing
    /// when the network is not loaded.
    pub fn exercise(&mut self, role: Role) -> Result<(), EngineError> {
        let network = match role {
            Role::Detector => return self.detector.exercise(),
            Role::Refiner => &mut self.refiner,
            Role::Embedder => &mut self.embedder,
            Role::Pad => match &mut self.pad {
                Some(pad) => pad,
                None => return Ok(()),
            },
        };
        network.exercise()
    }

    /// The digest of each loaded network's file, by its name in the manifest.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let networks =
            [self.detector.network(), &self.refiner, &self.embedder].into_iter().chain(&self.pad);
        networks.map(|network| (network.name().to_owned(), network.digest().to_string())).collect()
    }

    /// What the manifest says of the embedder's templates.
    pub fn template_spec(&self) -> TemplateSpec {
        self.template
    }
}

/// The digest of the embedder that these settings name, without starting anything.
pub fn embedder_digest(settings: &VisionSettings) -> Result<ModelDigest, ModelError> {
    let manifest = Manifest::read(&settings.models)?;
    let model = manifest.model(Role::Embedder, Some(&settings.embedder))?;
    manifest.load(model, settings.precision).map(|(_, _, digest)| digest)
}

/// What `rollcall models verify` and `doctor` do: every file there and as described, the library loadable.
pub fn verify(models: &Path) -> Result<Vec<(String, u64)>, ModelError> {
    let manifest = Manifest::read(models)?;
    let check = |model: &manifest::Model| {
        let (_, bytes, _) = manifest.load(model, Precision::Int8)?;
        Ok((model.file.clone(), bytes.len() as u64))
    };
    manifest.models.iter().map(check).collect()
}

impl FaceEngine for Vision {
    fn detect(&mut self, picture: &Picture, reach: Reach) -> Result<Vec<Detection>, EngineError> {
        self.detector.detect(picture, reach.side_px())
    }

    /// 68 points (300-W order) relative to the detector's box; of those, the five that alignment wants.
    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        let outline = whole_pixels(&detection.bounding_box);
        let (left, top) = (outline.left as isize, outline.top as isize);
        let (width, height) = (outline.width(), outline.height());
        let (widest, highest) = (picture.width() as f32 * 2.0, picture.height() as f32 * 2.0);
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
            let (x, y) = (points[2 * index], points[2 * index + 1]);
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
        debug_assert_eq!(self.embedder.input_size(), (SAMPLE_SIDE, SAMPLE_SIDE));
        let pixels: Vec<f32> = sample.picture.rgb().iter().map(|value| f32::from(*value)).collect();
        Ok(Template::normalised(self.embedder.run(&pixels)?))
    }

    /// MiniFASNet's way: the box enlarged 2.7 times, kept inside the picture, grain taken out; softmax of three, the first is *live*.
    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        let Some(pad) = &mut self.pad else {
            return Ok(None);
        };
        let outline = enlarged(&detection.bounding_box, 2.7, picture);
        let (width, height) = (outline.width() as usize + 1, outline.height() as usize + 1);
        let part = crop(picture, outline.left as isize, outline.top as isize, width, height);
        let (to_width, to_height) = pad.input_size();
        let pixels = resample(&part, to_width, to_height, Mode::Linear);
        let logits = pad.run(&smoothed(&pixels, to_width, to_height))?;
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        Ok(logits
            .first()
            .map(|logit| (logit - largest).exp() / total)
            .filter(|value| value.is_finite()))
    }

    fn embedder(&self) -> ModelDigest {
        self.embedder.digest()
    }

    fn dimension(&self) -> usize {
        self.template.dimension
    }
}

fn whole_pixels(outline: &BoundingBox) -> BoundingBox {
    BoundingBox {
        left: outline.left.round_ties_even(),
        top: outline.top.round_ties_even(),
        right: outline.right.round_ties_even(),
        bottom: outline.bottom.round_ties_even(),
    }
}

/// The box enlarged about its centre as far as the picture allows, shifted inside, in whole pixels.
fn enlarged(outline: &BoundingBox, by: f32, picture: &Picture) -> BoundingBox {
    let (right_edge, bottom_edge) = (picture.width() as f32 - 1.0, picture.height() as f32 - 1.0);
    let by = by
        .min(right_edge / outline.width().max(1.0))
        .min(bottom_edge / outline.height().max(1.0))
        .max(0.0);
    let (half_width, half_height) = (outline.width() * by / 2.0, outline.height() * by / 2.0);
    let centre = outline.centre();
    let fit = |low: f32, high: f32, edge: f32| {
        let shift = (-low).max(0.0) - (high - edge).max(0.0);
        ((low + shift).max(0.0).trunc(), (high + shift).min(edge).trunc())
    };
    let (left, right) = fit(centre.x - half_width, centre.x + half_width, right_edge);
    let (top, bottom) = fit(centre.y - half_height, centre.y + half_height, bottom_edge);
    BoundingBox { left, top, right, bottom }
}
