//! `models/manifest.toml`: which model files there are, how each is fed, and its digest.
//!
//! A file whose SHA-256 is not the manifest's is rejected: the threshold, the preprocessing and
//! every stored template belong to exactly that file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bounded_file;
use crate::recognise::face::{Embedder, ModelDigest, Part};

/// The largest model in use, an fp32 twin, has some 200 MB.
const MODEL_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "{path} is missing: `git checkout models` (shipped) or `make fp32` (twins) in a source tree, or reinstall the package"
    )]
    Missing { path: PathBuf },
    #[error(
        "{path} is not the file that the manifest describes (sha256 {found}, expected {expected}): restore it"
    )]
    WrongDigest { path: PathBuf, found: String, expected: String },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a valid model manifest")]
    Manifest {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("the manifest {path} is wrong: {why}")]
    Inconsistent { path: PathBuf, why: String },
    #[error(
        "ONNX Runtime is not to be found at {tried}: `make setup` fetches it, or set [recognition] runtime_library"
    )]
    NoRuntime { tried: String },
    #[error("the ONNX Runtime library {path} cannot be used")]
    Runtime {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the model in {path} cannot be loaded")]
    Session {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[allow(dead_code, reason = "part of the format; checked below")]
    schema: u32,
    #[serde(rename = "model")]
    pub models: Vec<Model>,
    /// Embedders that consist of two of the models.
    #[serde(default, rename = "composite")]
    pub composites: Vec<Composite>,
    /// Where the manifest lies; the files' paths are relative to it.
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Detector,
    Refiner,
    Embedder,
    Pad,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub name: String,
    pub role: Role,
    pub file: String,
    pub precision: String,
    pub sha256: String,
    pub bytes: u64,
    pub measured: String,
    pub source: Source,
    pub input: Input,
    pub output: Output,
    pub template: Option<TemplateSpec>,
    pub twin: Option<Twin>,
}

/// Where the weights come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub registry: String,
    pub package: String,
    pub version: String,
    pub archive_sha256: String,
    pub path: String,
    pub sha256: String,
    pub licence: String,
    pub licence_note: String,
}

/// The input tensor: 1 x channels x height x width, each value `(x - mean) / std` of 0..=255.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub name: String,
    pub width: usize,
    pub height: usize,
    pub channels: Channels,
    pub mean: f32,
    pub std: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    Bgr,
    Rgb,
    Gray,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub names: Vec<String>,
}

/// An embedder of two networks: its score is the weighted mean of theirs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composite {
    pub name: String,
    /// The fast part, which alone decides clear cases, and the better one.
    pub parts: [CompositePart; 2],
    pub measured: String,
    /// Its dimension is that of the first part.
    pub template: TemplateSpec,
    pub early_exit: EarlyExitSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompositePart {
    /// Name of the model, an embedder.
    pub model: String,
    /// Share of the score; those of both parts add up to 1.
    pub weight: f32,
}

/// When the first part of a composite decides alone (`recognise::decision::EarlyExit`).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyExitSpec {
    pub above_decades: f32,
    pub below: f32,
}

/// An embedder by its name in the configuration: one model, or a composite of two.
#[derive(Clone, Copy, Debug)]
pub struct EmbedderEntry<'a> {
    pub first: &'a Model,
    pub composite: Option<(&'a Composite, &'a Model)>,
}

impl<'a> EmbedderEntry<'a> {
    /// The models of its parts.
    pub fn models(&self) -> impl Iterator<Item = &'a Model> + use<'a> {
        std::iter::once(self.first).chain(self.composite.map(|(_, second)| second))
    }

    /// What makes templates when the parts' files have these digests.
    pub fn embedder(&self, first: ModelDigest, second: Option<ModelDigest>) -> Embedder {
        let dimension = |model: &Model| model.template.map_or(0, |it| it.dimension);
        match (self.composite, second) {
            (Some((composite, model)), Some(second)) => {
                let [one, other] = composite.parts.each_ref().map(|it| it.weight);
                Embedder::composite(
                    Part { digest: first, dimension: dimension(self.first), weight: one },
                    Part { digest: second, dimension: dimension(model), weight: other },
                )
            }
            _ => Embedder::single(first, dimension(self.first)),
        }
    }

    /// Dimension and thresholds, of a composite with those of its first part alone.
    pub fn template_spec(&self) -> Option<TemplateSpec> {
        let first = self.first.template?;
        let Some((composite, _)) = self.composite else { return Some(first) };
        let EarlyExitSpec { above_decades, below } = composite.early_exit;
        let first_part = Some(FirstPartSpec {
            threshold: first.threshold,
            threshold_subjects: first.threshold_subjects,
            threshold_per_decade: first.threshold_per_decade,
            above_decades,
            below,
        });
        let TemplateSpec { length_min, length_weak, .. } = first;
        Some(TemplateSpec { length_min, length_weak, first_part, ..composite.template })
    }
}

/// The first part of a composite: the threshold measured for it alone, and when it decides.
#[derive(Clone, Copy, Debug)]
pub struct FirstPartSpec {
    pub threshold: f32,
    pub threshold_subjects: f32,
    pub threshold_per_decade: f32,
    pub above_decades: f32,
    pub below: f32,
}

/// What an embedder makes, and the threshold measured for it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    pub dimension: usize,
    /// Vectors of a twentieth of samples are shorter than this, before they are normalised: they
    /// show too little of a face to call it a stranger's. 0.0: not known. Of a composite, the first
    /// part's.
    #[serde(default)]
    pub length_min: f32,
    /// Of a tenth of people even the longest reference is shorter than this, and they are missed
    /// more often. 0.0: not known. Of a composite, the first part's.
    #[serde(default)]
    pub length_weak: f32,
    /// Of a composite embedder.
    #[serde(skip)]
    pub first_part: Option<FirstPartSpec>,
    /// Identification threshold at FPIR 1 % with `threshold_subjects` enrolled.
    pub threshold: f32,
    pub threshold_subjects: f32,
    pub threshold_per_decade: f32,
}

/// The same model in fp32, made on request for measurements.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Twin {
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
}

/// Which file of a model to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Int8,
    Fp32,
}

impl Manifest {
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("manifest.toml");
        let text = read(&path)?;
        let text = String::from_utf8_lossy(&text);
        let mut manifest: Self = toml::from_str(&text).map_err(|source| ModelError::Manifest {
            path: path.clone(),
            source: Box::new(source),
        })?;
        dir.clone_into(&mut manifest.dir);
        manifest.check().map_err(|why| ModelError::Inconsistent { path, why })?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != 1 {
            return Err(format!("schema {} is not the one this version reads (1)", self.schema));
        }
        for model in &self.models {
            let name = &model.name;
            if model.input.std == 0.0 || model.input.width == 0 || model.input.height == 0 {
                return Err(format!("{name} has an impossible input"));
            }
            if (model.role == Role::Embedder) != model.template.is_some() {
                return Err(format!("{name}: an embedder, and only one, has a [model.template]"));
            }
            if model.output.names.is_empty() {
                return Err(format!("{name} has no output"));
            }
            if ModelDigest::from_hex(&model.sha256).is_none() {
                return Err(format!("{name}: sha256 is not 64 hexadecimal digits"));
            }
        }
        self.composites.iter().try_for_each(|composite| self.check_composite(composite))
    }

    fn check_composite(&self, composite: &Composite) -> Result<(), String> {
        let name = &composite.name;
        let embedder = |it: &CompositePart| {
            self.models
                .iter()
                .find(|model| model.name == it.model && model.role == Role::Embedder)
                .and_then(|model| model.template)
                .ok_or_else(|| format!("{name}: {} is no embedder", it.model))
        };
        let [first, second] = &composite.parts;
        let dimension = embedder(first)?.dimension;
        embedder(second)?;
        if composite.template.dimension != dimension {
            return Err(format!("{name}: its dimension is not that of its first part"));
        }
        let is_share = |weight: f32| weight > 0.0 && weight < 1.0;
        let total = first.weight + second.weight;
        if !is_share(first.weight) || !is_share(second.weight) || (total - 1.0).abs() > 1e-6 {
            return Err(format!("{name}: the weights of its parts do not add up to 1"));
        }
        if self.models.iter().any(|model| model.name == *name) {
            return Err(format!("{name} is the name of a model as well"));
        }
        Ok(())
    }

    /// The embedder of that name: a model, or a composite of two.
    pub fn embedder(&self, name: &str) -> Result<EmbedderEntry<'_>, ModelError> {
        let Some(composite) = self.composites.iter().find(|it| it.name == name) else {
            let first = self.model(Role::Embedder, Some(name))?;
            return Ok(EmbedderEntry { first, composite: None });
        };
        let [first, second] =
            composite.parts.each_ref().map(|it| self.model(Role::Embedder, Some(&it.model)));
        Ok(EmbedderEntry { first: first?, composite: Some((composite, second?)) })
    }

    /// The only model of a role, or the one of that name.
    pub fn model(&self, role: Role, name: Option<&str>) -> Result<&Model, ModelError> {
        let mut fitting = self.models.iter().filter(|model| model.role == role);
        let found = match name {
            Some(name) => fitting.find(|model| model.name == name),
            None => fitting.next(),
        };
        found.ok_or_else(|| {
            let of_role = self.models.iter().filter(|m| m.role == role).map(|m| m.name.as_str());
            let composites = self.composites.iter().map(|it| it.name.as_str());
            let composites = composites.filter(|_| role == Role::Embedder);
            let known: Vec<_> = of_role.chain(composites).collect();
            ModelError::Inconsistent {
                path: self.dir.join("manifest.toml"),
                why: format!(
                    "no {role:?} named {}; there is {}",
                    name.unwrap_or("(any)"),
                    known.join(", ")
                ),
            }
        })
    }

    /// The file's bytes, checked against its digest: what was checked is what is run.
    pub fn load(
        &self,
        model: &Model,
        precision: Precision,
    ) -> Result<(PathBuf, Vec<u8>, ModelDigest), ModelError> {
        let (file, expected) = match (precision, &model.twin) {
            (Precision::Int8, _) => (&model.file, &model.sha256),
            (Precision::Fp32, Some(twin)) => (&twin.file, &twin.sha256),
            (Precision::Fp32, None) => {
                let why = format!("{} has no fp32 twin", model.name);
                return Err(ModelError::Inconsistent { path: self.dir.join("manifest.toml"), why });
            }
        };
        let path = self.dir.join(file);
        let bytes = read(&path)?;
        let digest = ModelDigest(Sha256::digest(&bytes).into());
        if digest.to_string() != *expected {
            return Err(ModelError::WrongDigest {
                path,
                found: digest.to_string(),
                expected: expected.clone(),
            });
        }
        Ok((path, bytes, digest))
    }

    /// Whether the file is there at all.
    pub fn has(&self, model: &Model, precision: Precision) -> bool {
        match (precision, &model.twin) {
            (Precision::Int8, _) => self.dir.join(&model.file).is_file(),
            (Precision::Fp32, Some(twin)) => self.dir.join(&twin.file).is_file(),
            (Precision::Fp32, None) => false,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    bounded_file::read(path, MODEL_BYTES_MAX).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        _ => ModelError::Read { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
    }

    #[test]
    fn shipped_models_match_the_manifest() {
        let manifest = Manifest::read(&shipped()).unwrap();
        for model in &manifest.models {
            manifest.load(model, Precision::Int8).unwrap();
        }
        for role in [Role::Detector, Role::Refiner, Role::Embedder, Role::Pad] {
            manifest.model(role, None).unwrap();
        }
    }

    #[test]
    fn changed_or_missing_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(shipped().join("manifest.toml"), dir.path().join("manifest.toml")).unwrap();
        let manifest = Manifest::read(dir.path()).unwrap();
        let model = manifest.model(Role::Embedder, None).unwrap();
        let missing = manifest.load(model, Precision::Int8).unwrap_err();
        assert!(
            matches!(missing, ModelError::Missing { .. })
                && missing.to_string().contains(&model.file)
        );
        fs::write(dir.path().join(&model.file), b"something else").unwrap();
        let wrong = manifest.load(model, Precision::Int8).unwrap_err();
        assert!(
            matches!(wrong, ModelError::WrongDigest { .. })
                && wrong.to_string().contains(&model.file)
        );
    }
}
