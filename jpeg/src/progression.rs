//! The coefficients of a progressive picture, which are complete only after its last scan.
//!
//! Takes two bytes for each coefficient of all blocks, and an eighth of a byte to know which are
//! not zero.

use crate::block::{Band, Block, Progress, ZIGZAG, read_difference};
use crate::huffman::{Bits, Shortage};
use crate::outline::{COMPONENTS_MAX, Outline};
use crate::scan::{BlockReader, BlockSink, Part};
use crate::transform::Group;

/// The blocks of a component in whole minimum coded units.
struct Layer {
    columns: usize,
    /// In a unit.
    down: usize,
    blocks: Vec<Block>,
    /// Of each block, the places that are not zero in the order of coding; the mean value's is not
    /// noted.
    nonzero: Vec<u64>,
    /// As it stood before the component's first scan.
    quantisation: Option<[u16; 64]>,
}

pub(super) struct Progression {
    unit_rows: usize,
    layers: Vec<Layer>,
    band: Band,
    /// Blocks that come without coefficients (EOBRUN).
    end_run: u32,
    /// Of the blocks before.
    means: [i16; COMPONENTS_MAX],
}

impl Progression {
    pub(super) fn new(outline: &Outline) -> Self {
        let (unit_columns, unit_rows) = outline.units();
        let layer = |across: u8, down: u8| {
            let columns = unit_columns * usize::from(across);
            let down = usize::from(down);
            let count = columns * unit_rows * down;
            Layer {
                columns,
                down,
                blocks: vec![[0; 64]; count],
                nonzero: vec![0; count],
                quantisation: None,
            }
        };
        Self {
            unit_rows,
            layers: outline
                .components()
                .iter()
                .map(|it| layer(it.horizontal, it.vertical))
                .collect(),
            band: Band { from: 0, to: 0, refines: false, bit: 0 },
            end_run: 0,
            means: [0; COMPONENTS_MAX],
        }
    }

    /// Gives the complete blocks away, unit by unit.
    pub(super) fn finish<S: BlockSink>(self, sink: &mut S) {
        for (component, layer) in self.layers.iter().enumerate() {
            sink.begin_component(component, &layer.quantisation.unwrap_or([1; 64]));
        }
        for unit_row in 0..self.unit_rows {
            for (component, layer) in self.layers.iter().enumerate() {
                for row in unit_row * layer.down..(unit_row + 1) * layer.down {
                    let here = row * layer.columns..(row + 1) * layer.columns;
                    let blocks = layer.blocks[here.clone()].iter().zip(&layer.nonzero[here]);
                    for (column, (block, nonzero)) in blocks.enumerate() {
                        put(sink.group(component, column, row), column, block, nonzero | 1);
                    }
                }
            }
            sink.end_row();
        }
    }
}

fn put(group: &mut Group, column: usize, block: &Block, nonzero: u64) {
    group.extend_to(63 - nonzero.leading_zeros() as usize);
    let mut places = nonzero;
    while places != 0 {
        let place = usize::from(ZIGZAG[places.trailing_zeros() as usize]);
        places &= places - 1;
        group.set(column, place, block[place]);
    }
}

impl BlockReader for Progression {
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]) {
        self.layers[component].quantisation.get_or_insert(*quantisation);
    }

    fn begin_scan(&mut self, band: Band) {
        self.band = band;
        self.restart();
    }

    fn restart(&mut self) {
        self.end_run = 0;
        self.means = [0; COMPONENTS_MAX];
    }

    fn end_interval(&mut self) -> Result<(), Shortage> {
        // More blocks would be empty than there are.
        if self.end_run > 0 { Err(Shortage::Broken) } else { Ok(()) }
    }

    #[inline]
    fn read_block(
        &mut self,
        bits: &mut Bits<'_>,
        part: &Part<'_>,
        column: usize,
        row: usize,
    ) -> Result<(), Shortage> {
        let layer = &mut self.layers[part.component];
        let at = row * layer.columns + column;
        let band = self.band;
        let block = &mut layer.blocks[at];
        if band.from > 0 {
            let mut progress = Progress { block, nonzero: &mut layer.nonzero[at] };
            if band.refines {
                progress.refine(bits, part.ac, band, &mut self.end_run)
            } else {
                progress.read_first(bits, part.ac, band, &mut self.end_run)
            }
        } else if band.refines {
            block[0] |= (bits.read(1)? as i16) << band.bit;
            Ok(())
        } else {
            let mean = &mut self.means[part.component];
            *mean = mean.wrapping_add(read_difference(bits, part.dc)?);
            block[0] = *mean << band.bit;
            Ok(())
        }
    }

    fn end_row(&mut self) {}
}
