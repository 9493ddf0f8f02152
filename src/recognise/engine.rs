//! The port to the models. `vision` implements it with ONNX Runtime, tests with a script.

use crate::recognise::align::Sample;
use crate::recognise::face::{Detection, ModelDigest, Template};
use crate::recognise::picture::Picture;

/// An inference failed. The next frame may work; lasting failures show in the health message.
#[derive(Debug, thiserror::Error)]
#[error("the {model} model failed")]
pub struct EngineError {
    pub model: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Size of the detector's input: the longer side of the picture that it is given.
///
/// At 320 a face must take up about 3 % of the picture's longer side to be found; at 640 half of
/// that, at four times the cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectorInput {
    Small,
    Large,
}

impl DetectorInput {
    pub fn side_px(self) -> usize {
        match self {
            Self::Small => 320,
            Self::Large => 640,
        }
    }
}

/// Detector, landmark refiner, embedder and PAD model.
pub trait FaceEngine: Send {
    /// Returns all faces in pixels of the picture, the most confident first, with the detector's
    /// landmarks.
    fn detect(
        &mut self,
        picture: &Picture,
        input: DetectorInput,
    ) -> Result<Vec<Detection>, EngineError>;

    /// Returns the detection with landmarks refined on the full-resolution picture.
    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError>;

    /// Returns the template of a sample; `None` when the model's output cannot be normalised.
    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError>;

    /// Returns the PAD score, 0.0 (surely an attack) to 1.0 (live); `None` when no PAD model is
    /// loaded.
    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError>;

    /// The digest of the embedder.
    fn embedder(&self) -> ModelDigest;
    /// Elements of a template.
    fn dimension(&self) -> usize;
}
