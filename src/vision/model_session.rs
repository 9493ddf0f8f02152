//! One model: a session, its input layout, and reused buffers.

use ort::session::Session;
use ort::value::TensorRef;

use crate::recognise::engine::EngineError;
use crate::recognise::face::ModelDigest;
use crate::vision::manifest::{Channels, Model};

pub(crate) struct ModelSession {
    name: String,
    session: Session,
    input: String,
    outputs: Vec<String>,
    channels: Channels,
    mean: f32,
    factor: f32,
    width: usize,
    height: usize,
    digest: ModelDigest,
    planes: Vec<f32>,
}

impl ModelSession {
    pub(crate) fn new(session: Session, model: &Model, digest: ModelDigest) -> Self {
        Self {
            name: model.name.clone(),
            session,
            input: model.input.name.clone(),
            outputs: model.output.names.clone(),
            channels: model.input.channels,
            mean: model.input.mean,
            factor: 1.0 / model.input.std,
            width: model.input.width,
            height: model.input.height,
            digest,
            planes: Vec::new(),
        }
    }

    /// Width and height that the model wants.
    pub(crate) fn input_size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// The first output for a picture of the model's own size, given as interleaved RGB, 0..=255.
    pub(crate) fn run(&mut self, rgb: &[f32]) -> Result<Vec<f32>, EngineError> {
        let width = self.width;
        let height = self.height;
        let outputs = self.run_sized(rgb, width, height, width, height)?;
        Ok(outputs.into_iter().next().unwrap_or_default())
    }

    /// One inference on a grainy picture of the model's own size.
    pub(crate) fn exercise(&mut self) -> Result<(), EngineError> {
        let grain: Vec<f32> =
            (0..self.width * self.height * 3).map(|n| (n * 7919 % 251) as f32).collect();
        self.run(&grain).map(drop)
    }

    /// All outputs, in the manifest's order, for a picture of `width` x `height` put at the top
    /// left of a canvas of `canvas_width` x `canvas_height` that is otherwise black.
    pub(crate) fn run_sized(
        &mut self,
        rgb: &[f32],
        width: usize,
        height: usize,
        canvas_width: usize,
        canvas_height: usize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        debug_assert_eq!(rgb.len(), width * height * 3);
        let planes = if self.channels == Channels::Gray { 1 } else { 3 };
        let plane = canvas_width * canvas_height;
        self.planes.clear();
        self.planes.resize(planes * plane, -self.mean * self.factor);
        for (y, row) in rgb.chunks_exact(width * 3).enumerate() {
            let at = y * canvas_width;
            self.fill_row(row, at, width, plane);
        }
        let shape = [1, planes, canvas_height, canvas_width];
        let failed =
            |source: ort::Error| EngineError { model: self.name.clone(), source: Box::new(source) };
        let tensor = TensorRef::from_array_view((shape, self.planes.as_slice())).map_err(failed)?;
        let results =
            self.session.run(ort::inputs![self.input.as_str() => tensor]).map_err(failed)?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let Some(value) = results.get(name) else {
                let missing = format!("the model has no output {name}");
                return Err(EngineError { model: self.name.clone(), source: missing.into() });
            };
            let (_, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
            outputs.push(values.to_vec());
        }
        Ok(outputs)
    }

    fn fill_row(&mut self, row: &[f32], at: usize, width: usize, plane: usize) {
        let mean = self.mean;
        let factor = self.factor;
        match self.channels {
            Channels::Gray => {
                let line = &mut self.planes[at..at + width];
                for (out, pixel) in line.iter_mut().zip(row.chunks_exact(3)) {
                    // BT.601 in the reference's 14-bit integers, so that both round alike.
                    let luma = (pixel[0] * 4899.0 + pixel[1] * 9617.0 + pixel[2] * 1868.0 + 8192.0)
                        / 16384.0;
                    *out = (luma.trunc() - mean) * factor;
                }
            }
            Channels::Rgb | Channels::Bgr => {
                let (first, rest) = self.planes.split_at_mut(plane);
                let (second, third) = rest.split_at_mut(plane);
                let mut red = &mut first[at..at + width];
                let mut blue = &mut third[at..at + width];
                if self.channels == Channels::Bgr {
                    std::mem::swap(&mut red, &mut blue);
                }
                let green = &mut second[at..at + width];
                let planes = red.iter_mut().zip(green).zip(blue);
                for (((red, green), blue), pixel) in planes.zip(row.chunks_exact(3)) {
                    *red = (pixel[0] - mean) * factor;
                    *green = (pixel[1] - mean) * factor;
                    *blue = (pixel[2] - mean) * factor;
                }
            }
        }
    }
}
