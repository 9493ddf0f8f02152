//! Pixels out of blocks, at full size or at a half, a quarter or an eighth of it.
//!
//! Takes the bytes of the result, and the blocks and samples of one row of minimum coded units:
//! they become pixels as soon as such a row is complete. Where the components are in scans of their
//! own, the samples of the whole picture are kept until the last one.

use crate::colour::Row;
use crate::outline::{COMPONENTS_MAX, Colours, Outline};
use crate::plane::Plane;
use crate::scan::BlockSink;
use crate::transform::Group;

/// A decoded picture.
pub struct Decoded {
    pub width: usize,
    pub height: usize,
    /// Red, green and blue of each pixel, or its brightness alone.
    pub bytes: Vec<u8>,
}

/// The most halvings: one pixel for a block of eight by eight.
pub const HALVINGS_MAX: u32 = 3;

/// What is made of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Rgb,
    /// Brightness only; the blocks of colours are dropped.
    Luma,
}

pub(super) struct Pixels {
    width: usize,
    height: usize,
    /// Of the rows that are complete.
    bytes: Vec<u8>,
    rows: usize,
    output: Output,
    colours: Colours,
    planes: Vec<Plane>,
    /// For components that are not wanted.
    dropped: Group,
    /// Rows of pixels in a row of units, and where the current one ends.
    unit_height: usize,
    unit_end: usize,
    /// Whether the planes keep all samples.
    keeps_all: bool,
    /// A row of each component at full width.
    lines: [Vec<u8>; COMPONENTS_MAX],
    row: Row,
}

impl Pixels {
    pub(super) fn new(outline: &Outline, halvings: u32, output: Output) -> Self {
        let width = outline.width.div_ceil(1 << halvings);
        let height = outline.height.div_ceil(1 << halvings);
        let keeps_all = outline.is_in_parts();
        let (bytes, components) = match output {
            Output::Rgb => (3, outline.components().len()),
            Output::Luma => (1, 1),
        };
        let planes: Vec<_> = (0..components)
            .map(|component| Plane::new(outline, component, halvings, keeps_all))
            .collect();
        let unit_height = (8 >> halvings) * usize::from(outline.components[0].vertical);
        Self {
            width,
            height,
            bytes: Vec::with_capacity(width * height * bytes),
            rows: 0,
            output,
            colours: outline.colours,
            dropped: Group::EMPTY,
            unit_height,
            unit_end: unit_height,
            keeps_all,
            lines: std::array::from_fn(|at| vec![0; planes.get(at).map_or(0, Plane::full_width)]),
            row: Row::of(width),
            planes,
        }
    }

    pub(super) fn finish(mut self) -> Decoded {
        self.complete_rows(self.height);
        Decoded { width: self.width, height: self.height, bytes: self.bytes }
    }

    /// Makes the pixels of all rows before `end`.
    fn complete_rows(&mut self, end: usize) {
        for y in self.rows..end.min(self.height) {
            let mut rows: [&[u8]; COMPONENTS_MAX] = [&[]; COMPONENTS_MAX];
            let lines = rows.iter_mut().zip(&mut self.lines);
            for (plane, (row, line)) in self.planes.iter_mut().zip(lines) {
                *row = plane.full_row(y, line);
            }
            match self.output {
                Output::Rgb => {
                    // Row by row: memory that is cleared right before it is written costs least.
                    let begin = self.bytes.len();
                    self.bytes.resize(begin + 3 * self.width, 0);
                    self.row.convert(self.colours, rows, &mut self.bytes[begin..]);
                }
                Output::Luma => self.bytes.extend_from_slice(&rows[0][..self.width]),
            }
            self.rows = y + 1;
        }
    }
}

impl BlockSink for Pixels {
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]) {
        if let Some(plane) = self.planes.get_mut(component) {
            plane.set_quantisation(quantisation);
        }
    }

    #[inline]
    fn group(&mut self, component: usize, column: usize, row: usize) -> &mut Group {
        match self.planes.get_mut(component) {
            Some(plane) => plane.group(column, row),
            None => &mut self.dropped,
        }
    }

    fn end_row(&mut self) {
        self.planes.iter_mut().for_each(Plane::transform_blocks);
        if !self.keeps_all {
            // The last row may need samples of the next units.
            self.complete_rows(self.unit_end - 1);
            self.unit_end += self.unit_height;
            self.planes.iter_mut().for_each(Plane::advance);
        }
    }
}
