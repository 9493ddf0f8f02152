//! The pixels of a sequential JPEG at full size or at a half, a quarter or an eighth of it, for what
//! the decoder in use cannot do: large photographs within little memory, and components in scans of
//! their own.
//!
//! A block at a smaller size is the inverse transform of its lowest frequencies alone, so nothing is
//! computed that is not used. Takes three bytes for each pixel of the result and nothing else,
//! however large the photograph is. Costs about 1.5 times as much as the decoder in use for the same
//! photograph at its full size.

use crate::recognise::jpeg::outline::{Colours, Outline};
use crate::recognise::jpeg::scan::{Block, BlockSink};
use crate::recognise::jpeg::segments::JpegFault;

/// A decoded picture, three bytes (red, green, blue) for each pixel.
pub struct Shrunk {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// The most halvings: one pixel for a block of eight by eight.
pub const HALVINGS_MAX: u32 = 3;

/// Factors of the inverse transform to some number of samples, by sample and frequency (T.81, A.3.3,
/// for fewer samples).
type Basis = [[f32; 8]; 8];

/// How a component's blocks become pixels.
#[derive(Clone)]
struct Layer {
    /// Samples of a block, across and down.
    across: usize,
    down: usize,
    /// Pixels that each sample covers.
    wide: usize,
    high: usize,
    basis_across: Basis,
    basis_down: Basis,
    quantisation: [f32; 64],
}

/// Gathers the blocks of all components in one picture. The components are stored as if they were
/// red, green and blue.
pub(super) struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    colours: Colours,
    layers: Vec<Layer>,
}

impl Pixels {
    pub(super) fn new(outline: &Outline, halvings: u32) -> Result<Self, JpegFault> {
        if outline.colours == Colours::Four {
            return Err(JpegFault::Unsupported("four colours (for printing)"));
        }
        let width = outline.width.div_ceil(1 << halvings);
        let height = outline.height.div_ceil(1 << halvings);
        let finest = outline.components[0];
        let full = 8 >> halvings;
        let layer = |horizontal: u8, vertical: u8| {
            // Pixels of a block. A coarser component has more of them, and is decoded as finely as
            // it was stored.
            let block_width = full * usize::from(finest.horizontal / horizontal);
            let block_height = full * usize::from(finest.vertical / vertical);
            let across = block_width.min(8);
            let down = block_height.min(8);
            Layer {
                across,
                down,
                wide: block_width / across,
                high: block_height / down,
                basis_across: basis(across),
                basis_down: basis(down),
                quantisation: [1.0; 64],
            }
        };
        let layers = outline.components().iter().map(|it| layer(it.horizontal, it.vertical));
        Ok(Self {
            width,
            height,
            rgb: vec![0; width * height * 3],
            colours: outline.colours,
            layers: layers.collect(),
        })
    }

    pub(super) fn finish(mut self) -> Shrunk {
        match self.colours {
            Colours::Grey => {
                self.rgb.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = [pixel[0]; 3]);
            }
            Colours::YCbCr => {
                self.rgb.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = rgb(*pixel));
            }
            Colours::Rgb | Colours::Four => {}
        }
        Shrunk { width: self.width, height: self.height, rgb: self.rgb }
    }
}

impl BlockSink for Pixels {
    const WANTS_VALUES: bool = true;

    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]) {
        self.layers[component].quantisation = quantisation.map(f32::from);
    }

    fn take_block(&mut self, component: usize, column: usize, row: usize, block: &Block) {
        let layer = &self.layers[component];
        let samples = layer.transform(block);
        let left = column * layer.across * layer.wide;
        let mut y = row * layer.down * layer.high;
        for line in samples.iter().take(layer.down) {
            for _ in 0..layer.high.min(self.height.saturating_sub(y)) {
                let pixels = &mut self.rgb[y * self.width * 3..(y + 1) * self.width * 3];
                let pixels = pixels.as_chunks_mut::<3>().0.iter_mut().skip(left);
                let samples = line.iter().take(layer.across);
                let spread = samples.flat_map(|sample| std::iter::repeat_n(*sample, layer.wide));
                pixels.zip(spread).for_each(|(pixel, sample)| pixel[component] = sample);
                y += 1;
            }
        }
    }
}

impl Layer {
    /// The inverse transform of the lowest frequencies, row by row.
    fn transform(&self, block: &Block) -> [[u8; 8]; 8] {
        let is_flat = block[1..].iter().all(|value| *value == 0);
        if is_flat {
            return [[sample(f32::from(block[0]) * self.quantisation[0] / 8.0); 8]; 8];
        }
        // First along the rows of frequencies, then down the columns.
        let mut half = [[0.0f32; 8]; 8];
        for (row, line) in half.iter_mut().enumerate().take(self.down) {
            let values = &block[row * 8..][..8];
            let steps = &self.quantisation[row * 8..][..8];
            let mut frequencies = [0.0f32; 8];
            for (at, frequency) in frequencies.iter_mut().enumerate().take(self.across) {
                *frequency = f32::from(values[at]) * steps[at];
            }
            for (sample, factors) in line.iter_mut().zip(&self.basis_across).take(self.across) {
                *sample = factors.iter().zip(&frequencies).map(|(a, b)| a * b).sum();
            }
        }
        let mut samples = [[0u8; 8]; 8];
        for (line, factors) in samples.iter_mut().zip(&self.basis_down).take(self.down) {
            let mut sums = [0.0f32; 8];
            for (factor, row) in factors.iter().zip(&half).take(self.down) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
            }
            *line = sums.map(sample);
        }
        samples
    }
}

fn sample(value: f32) -> u8 {
    // The cast saturates.
    (value + 128.5) as u8
}

fn basis(samples: usize) -> Basis {
    let mut basis = [[0.0; 8]; 8];
    for (x, factors) in basis.iter_mut().enumerate().take(samples) {
        for (frequency, factor) in factors.iter_mut().enumerate().take(samples) {
            let angle = (2 * x + 1) as f32 * frequency as f32 * std::f32::consts::PI;
            let scale = if frequency == 0 { std::f32::consts::FRAC_1_SQRT_2 } else { 1.0 };
            *factor = 0.5 * scale * (angle / (2 * samples) as f32).cos();
        }
    }
    basis
}

/// JFIF's YCbCr as red, green and blue, in 16-bit fixed point.
fn rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let y = (i32::from(y) << 16) + (1 << 15);
    let cb = i32::from(cb) - 128;
    let cr = i32::from(cr) - 128;
    let part = |value: i32| (value >> 16).clamp(0, 255) as u8;
    [part(y + 91_881 * cr), part(y - 22_554 * cb - 46_802 * cr), part(y + 116_130 * cb)]
}
