//! The port to the networks: what recognition asks of them. `vision` implements it with ONNX Runtime, tests by a script.

use crate::recognise::align::Sample;
use crate::recognise::face::{Detection, ModelDigest, Template};
use crate::recognise::picture::Picture;

/// A network that fails on one frame may work on the next; one that fails always shows in health.
#[derive(Debug, thiserror::Error)]
#[error("the {network} network failed")]
pub struct EngineError {
    pub network: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// How far the detector looks: the longer side of the picture it is shown, in pixels.
///
/// At 320 a face must take up about 3 % of the picture's longer side to be found; at 640 half of that, at four times
/// the cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Near,
    Far,
}

impl Reach {
    pub fn side_px(self) -> usize {
        match self {
            Self::Near => 320,
            Self::Far => 640,
        }
    }
}

/// Detector, landmark refiner, embedder and PAD behind one door.
pub trait FaceEngine: Send {
    /// All faces of the picture in its own pixels, most confident first, with the detector's landmarks.
    fn detect(&mut self, picture: &Picture, reach: Reach) -> Result<Vec<Detection>, EngineError>;

    /// The same detection with landmarks refined on the full-resolution picture.
    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError>;

    /// The template of a sample; `None` when the network's output cannot be normalised.
    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError>;

    /// How live the face looks, 0.0 (surely an attack) to 1.0; `None` when no PAD network is loaded.
    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError>;

    /// Which embedder makes the templates.
    fn embedder(&self) -> ModelDigest;
    /// Elements of a template.
    fn dimension(&self) -> usize;
}
