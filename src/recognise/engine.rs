//! The port to the models. `vision` implements it with ONNX Runtime, tests with a script.

use crate::recognise::align::Sample;
use crate::recognise::face::{Detection, Embedder, Template};
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

    /// Returns the template of a sample, of a composite embedder its first part; `None` when the
    /// model's output cannot be normalised.
    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError>;

    /// Returns the template with the second part of the same sample, which a composite embedder
    /// makes only on request, because it costs several times the first. The template stays as it
    /// is where the embedder is a single network, or the output cannot be normalised.
    fn complete(&mut self, sample: &Sample, template: Template) -> Result<Template, EngineError>;

    /// Returns the PAD score, 0.0 (surely an attack) to 1.0 (live); `None` when no PAD model is
    /// loaded.
    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError>;

    /// What makes the templates.
    fn embedder(&self) -> Embedder;

    /// Elements of a template's first part.
    fn dimension(&self) -> usize {
        self.embedder().dimension()
    }
}
