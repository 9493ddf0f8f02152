//! The scans of a JPEG, block by block in the order of coding, whatever becomes of the blocks.
//!
//! Data lost nearly anywhere leaves too few blocks, a wrong restart marker or an impossible code,
//! because the codes after a gap are read from the wrong place until they fall into step again.

use crate::block::{Band, ZIGZAG, read_coefficients, read_difference};
use crate::huffman::{Bits, EMPTY_TABLE, Rest, Shortage, Table};
use crate::outline::{COMPONENTS_MAX, Outline, Process};
use crate::segments::{
    END, HUFFMAN_TABLES, QUANTISATION_TABLES, RESTART_INTERVAL, START, START_OF_SCAN, Segments,
};
use crate::standard_tables::STANDARD_TABLES;
use crate::transform::Group;

/// Reads the blocks of scans.
pub(super) trait BlockReader {
    /// The blocks of such a component come next, quantised by this table (row by row).
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]);

    /// A scan of such a band begins.
    fn begin_scan(&mut self, band: Band);

    /// Mean values are counted from zero again.
    fn restart(&mut self);

    /// All blocks to a restart marker or to the end of the scan were read.
    fn end_interval(&mut self) -> Result<(), Shortage>;

    /// Reads the block in this column and row of the component's blocks.
    fn read_block(
        &mut self,
        bits: &mut Bits<'_>,
        part: &Part<'_>,
        column: usize,
        row: usize,
    ) -> Result<(), Shortage>;

    /// A row of minimum coded units is complete.
    fn end_row(&mut self);
}

/// What becomes of a sequential picture's blocks.
pub(super) trait BlockSink {
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]);

    /// The group in which the block in this column and row of the component's blocks is.
    fn group(&mut self, component: usize, column: usize, row: usize) -> &mut Group;

    fn end_row(&mut self);
}

/// Drops the blocks, which are only to be counted.
pub(super) struct Dropped(pub(super) Group);

impl BlockSink for Dropped {
    fn begin_component(&mut self, _component: usize, _quantisation: &[u16; 64]) {}

    fn group(&mut self, _component: usize, _column: usize, _row: usize) -> &mut Group {
        &mut self.0
    }

    fn end_row(&mut self) {}
}

/// Reads whole blocks.
pub(super) struct Sequential<'a, S> {
    pub(super) sink: &'a mut S,
    /// Of the blocks before.
    pub(super) means: [i16; COMPONENTS_MAX],
}

impl<S: BlockSink> BlockReader for Sequential<'_, S> {
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]) {
        self.sink.begin_component(component, quantisation);
    }

    fn begin_scan(&mut self, _band: Band) {
        self.restart();
    }

    fn restart(&mut self) {
        self.means = [0; COMPONENTS_MAX];
    }

    fn end_interval(&mut self) -> Result<(), Shortage> {
        Ok(())
    }

    #[inline]
    fn read_block(
        &mut self,
        bits: &mut Bits<'_>,
        part: &Part<'_>,
        column: usize,
        row: usize,
    ) -> Result<(), Shortage> {
        let mean = &mut self.means[part.component];
        // A hostile file can make it overflow.
        *mean = mean.wrapping_add(read_difference(bits, part.dc)?);
        let group = self.sink.group(part.component, column, row);
        group.set(column, 0, *mean);
        let last = read_coefficients(bits, part.ac, |place, value| {
            group.set(column, place, value);
        })?;
        group.extend_to(last);
        Ok(())
    }

    fn end_row(&mut self) {
        self.sink.end_row();
    }
}

/// Reads every block of every scan of `bytes`, whose outline is `outline`.
pub(super) fn read_scans<R: BlockReader>(
    outline: &Outline,
    bytes: &[u8],
    reader: &mut R,
) -> Result<Rest, Shortage> {
    let mut tables = Tables::default();
    if !outline.has_tables {
        tables.read_huffman(&STANDARD_TABLES)?;
    }
    let mut rest = None;
    for segment in Segments::of(bytes).map_err(|_| Shortage::Broken)? {
        if segment.marker == END || segment.marker == START && rest.is_some() {
            break;
        }
        let payload = segment.payload.ok_or(Shortage::EndsTooEarly)?;
        match (segment.marker, payload) {
            (HUFFMAN_TABLES, _) => tables.read_huffman(payload)?,
            (QUANTISATION_TABLES, _) => tables.read_quantisation(payload)?,
            (RESTART_INTERVAL, [high, low]) => {
                tables.restart_interval = u16::from_be_bytes([*high, *low]).into();
            }
            (RESTART_INTERVAL, _) => return Err(Shortage::Broken),
            (START_OF_SCAN, _) => {
                let from = segment.at + 4 + payload.len();
                let data = bytes.get(from..outline.end).ok_or(Shortage::EndsTooEarly)?;
                let scan = Scan::of(outline, &tables, payload)?;
                rest = Some(scan.read(data, tables.restart_interval, reader)?);
            }
            _ => {}
        }
    }
    rest.ok_or(Shortage::EndsTooEarly)
}

/// A block of a minimum coded unit.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) component: usize,
    pub(super) dc: &'a Table,
    pub(super) ac: &'a Table,
    /// Blocks of this component in a unit, and which of them this is.
    across: usize,
    down: usize,
    column: usize,
    row: usize,
}

/// The minimum coded units of a scan.
struct Scan<'a> {
    columns: usize,
    rows: usize,
    parts: Vec<Part<'a>>,
    band: Band,
    /// Of the components that it has.
    quantisation: [Option<&'a [u16; 64]>; COMPONENTS_MAX],
}

impl<'a> Scan<'a> {
    /// `header` has the number of components, two bytes for each (its name and its tables'
    /// numbers), and the band (T.81, B.2.3).
    fn of(outline: &Outline, tables: &'a Tables, header: &[u8]) -> Result<Self, Shortage> {
        let Some(([count, named @ ..], [from, to, bits])) = header.split_last_chunk::<3>() else {
            return Err(Shortage::Broken);
        };
        let (from, to) = match outline.process {
            Process::Sequential => (0, 63),
            Process::Progressive => (usize::from(*from), usize::from(*to)),
        };
        let refines = outline.process == Process::Progressive && bits >> 4 > 0;
        let band = Band { from, to, refines, bit: u32::from(bits & 0xF) };
        let named = named.as_chunks::<2>().0.get(..usize::from(*count)).ok_or(Shortage::Broken)?;
        let alone = named.len() == 1;
        let mut scan = Self {
            columns: 0,
            rows: 0,
            parts: Vec::new(),
            band,
            quantisation: [None; COMPONENTS_MAX],
        };
        for [id, chosen] in named {
            let found = outline.components().iter().position(|component| component.id == *id);
            let component = found.ok_or(Shortage::Broken)?;
            let sampled = outline.components[component];
            (scan.columns, scan.rows) =
                if alone { outline.blocks_alone(component) } else { outline.units() };
            // A component that is alone has one block a unit (T.81, A.2.2).
            let across = if alone { 1 } else { usize::from(sampled.horizontal) };
            let down = if alone { 1 } else { usize::from(sampled.vertical) };
            let dc = chosen_table(&tables.dc, chosen >> 4, from == 0 && !band.refines)?;
            let ac = chosen_table(&tables.ac, chosen & 0xF, to > 0)?;
            let quantisation = tables.quantisation[usize::from(sampled.table)].as_ref();
            scan.quantisation[component] = Some(quantisation.ok_or(Shortage::NoTables)?);
            for row in 0..down {
                for column in 0..across {
                    scan.parts.push(Part { component, dc, ac, across, down, column, row });
                }
            }
        }
        Ok(scan)
    }

    fn read<R: BlockReader>(
        &self,
        data: &[u8],
        restart_interval: usize,
        reader: &mut R,
    ) -> Result<Rest, Shortage> {
        for (component, quantisation) in self.quantisation.iter().enumerate() {
            if let Some(quantisation) = quantisation {
                reader.begin_component(component, quantisation);
            }
        }
        reader.begin_scan(self.band);
        let mut bits = Bits::of(data);
        let mut restarts = 0u8;
        let mut until_restart = restart_interval;
        for unit_row in 0..self.rows {
            for unit_column in 0..self.columns {
                if restart_interval > 0 {
                    if until_restart == 0 {
                        reader.end_interval()?;
                        bits.skip_restart(restarts)?;
                        restarts = (restarts + 1) % 8;
                        reader.restart();
                        until_restart = restart_interval;
                    }
                    until_restart -= 1;
                }
                for part in &self.parts {
                    let column = unit_column * part.across + part.column;
                    let row = unit_row * part.down + part.row;
                    reader.read_block(&mut bits, part, column, row)?;
                }
            }
            reader.end_row();
        }
        reader.end_interval()?;
        Ok(bits.read_rest())
    }
}

/// The table of this number, if it is needed.
fn chosen_table(
    tables: &[Option<Box<Table>>; 4],
    number: u8,
    is_needed: bool,
) -> Result<&Table, Shortage> {
    if !is_needed {
        return Ok(&EMPTY_TABLE);
    }
    tables.get(usize::from(number)).and_then(Option::as_deref).ok_or(Shortage::NoTables)
}

/// What stands before a scan.
#[derive(Default)]
struct Tables {
    dc: [Option<Box<Table>>; 4],
    ac: [Option<Box<Table>>; 4],
    /// Row by row.
    quantisation: [Option<[u16; 64]>; 4],
    /// Units between restart markers; 0 for none.
    restart_interval: usize,
}

impl Tables {
    fn read_huffman(&mut self, mut payload: &[u8]) -> Result<(), Shortage> {
        while let Some(([place, lengths @ ..], rest)) = payload.split_first_chunk::<17>() {
            let count = lengths.iter().map(|count| usize::from(*count)).sum();
            let symbols = rest.get(..count).ok_or(Shortage::Broken)?;
            let tables = match place >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(Shortage::Broken),
            };
            let table = tables.get_mut(usize::from(place & 0xF)).ok_or(Shortage::Broken)?;
            *table = Some(Box::new(Table::new(lengths, symbols)?));
            payload = &rest[count..];
        }
        if payload.is_empty() { Ok(()) } else { Err(Shortage::Broken) }
    }

    /// Tables of bytes or of 16-bit numbers.
    fn read_quantisation(&mut self, mut payload: &[u8]) -> Result<(), Shortage> {
        while let Some((place, rest)) = payload.split_first() {
            let chosen =
                self.quantisation.get_mut(usize::from(place & 0xF)).ok_or(Shortage::Broken)?;
            let width = if place >> 4 == 0 { 1 } else { 2 };
            let steps = rest.get(..64 * width).ok_or(Shortage::Broken)?;
            let mut table = [1; 64];
            for (place, step) in ZIGZAG.iter().zip(steps.chunks_exact(width)) {
                let step = step.iter().fold(0, |step, byte| step << 8 | u16::from(*byte));
                table[usize::from(*place)] = step;
            }
            *chosen = Some(table);
            payload = &rest[64 * width..];
        }
        Ok(())
    }
}
