//! Reads the coded data of a sequential JPEG block by block: to check that it is whole, or for its
//! pixels (`pixels`).
//!
//! Takes no memory but the tables. Data lost anywhere leaves too few blocks, a wrong restart marker
//! or an impossible code, because the codes after a gap are read from the wrong place until they
//! fall into step again. Only counting the blocks costs less than half of decoding.

use crate::recognise::jpeg::outline::Outline;
use crate::recognise::jpeg::segments::{
    END, HUFFMAN_TABLES, JpegFault, QUANTISATION_TABLES, RESTART_INTERVAL, START, START_OF_SCAN,
    Segments,
};

/// Why the blocks could not be read to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    EndsTooEarly,
    Broken,
    /// A table that the scan needs is not in the file.
    NoTables,
}

impl From<Shortage> for JpegFault {
    fn from(shortage: Shortage) -> Self {
        Self::Damaged(match shortage {
            Shortage::EndsTooEarly => "it ends too early",
            Shortage::Broken => "its coded data is broken",
            Shortage::NoTables => "it has no Huffman tables",
        })
    }
}

/// 64 coefficients, row by row.
pub(super) type Block = [i16; 64];

/// What becomes of the blocks.
pub(super) trait BlockSink {
    /// Whether the blocks' values are read. Otherwise they are passed over.
    const WANTS_VALUES: bool;

    /// The blocks of this component come next, quantised by this table (row by row).
    fn begin_component(&mut self, component: usize, quantisation: &[u16; 64]);

    /// The block in this column and row of the component's blocks.
    fn take_block(&mut self, component: usize, column: usize, row: usize, block: &Block);
}

/// Counts the blocks and drops them.
pub(super) struct Dropped;

impl BlockSink for Dropped {
    const WANTS_VALUES: bool = false;

    fn begin_component(&mut self, _component: usize, _quantisation: &[u16; 64]) {}

    fn take_block(&mut self, _component: usize, _column: usize, _row: usize, _block: &Block) {}
}

/// What stands behind the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The last byte is filled with ones, as encoders do.
    filled_with_ones: bool,
    bytes: usize,
    begins_with_zeroes: bool,
}

/// At the end of the data that one maker's telephones append. They leave the end marker out.
const TRAILER_END: &[u8] = b"SEFT";

impl Rest {
    /// Whether the picture surely ends here although it has no end marker: nothing follows, or a
    /// known trailer does. Had the last blocks been read out of the trailer, they would not end
    /// exactly where it begins.
    pub(super) fn is_end_of_picture(self, bytes: &[u8]) -> bool {
        let trailer = self.begins_with_zeroes && bytes.ends_with(TRAILER_END);
        self.filled_with_ones && (self.bytes == 0 || trailer)
    }
}

/// Reads every block of every scan of `bytes`, whose outline is `outline`.
pub(super) fn read_blocks<S: BlockSink>(
    outline: &Outline,
    bytes: &[u8],
    sink: &mut S,
) -> Result<Rest, Shortage> {
    let mut tables = Tables::default();
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
            (START_OF_SCAN, [count, named @ ..]) => {
                let from = segment.at + 4 + payload.len();
                let data = bytes.get(from..outline.end).ok_or(Shortage::EndsTooEarly)?;
                let named = named.as_chunks::<2>().0.get(..usize::from(*count));
                let scan = Scan::of(outline, &tables, named.ok_or(Shortage::Broken)?)?;
                rest = Some(scan.read(data, tables.restart_interval, sink)?);
            }
            _ => {}
        }
    }
    rest.ok_or(Shortage::EndsTooEarly)
}

/// A block of a minimum coded unit.
#[derive(Clone, Copy)]
struct ScanPart<'a> {
    component: usize,
    /// Blocks of this component in a unit, and which of them this is.
    across: usize,
    down: usize,
    column: usize,
    row: usize,
    dc: &'a Table,
    ac: &'a Table,
}

/// The minimum coded units of a scan.
struct Scan<'a> {
    columns: usize,
    rows: usize,
    parts: [Option<ScanPart<'a>>; 10],
    /// Which components it has, with their tables.
    quantisation: [Option<&'a [u16; 64]>; 4],
}

impl<'a> Scan<'a> {
    /// `named` is each component's name with its tables' numbers.
    fn of(outline: &Outline, tables: &'a Tables, named: &[[u8; 2]]) -> Result<Self, Shortage> {
        let finest = outline.components[0];
        let alone = named.len() == 1;
        let mut scan = Self { columns: 0, rows: 0, parts: [None; 10], quantisation: [None; 4] };
        let mut free = scan.parts.iter_mut();
        for [id, chosen] in named {
            let found = outline.components().iter().position(|component| component.id == *id);
            let component = found.ok_or(Shortage::Broken)?;
            let sampled = outline.components[component];
            // A component that is alone has one block a unit, and no blocks beyond its own edge
            // (T.81, A.2.2).
            let across = if alone { 1 } else { usize::from(sampled.horizontal) };
            let down = if alone { 1 } else { usize::from(sampled.vertical) };
            let units = |pixels: usize, own: u8, most: u8| {
                if alone {
                    (pixels * usize::from(own)).div_ceil(usize::from(most)).div_ceil(8)
                } else {
                    pixels.div_ceil(8 * usize::from(most))
                }
            };
            scan.columns = units(outline.width, sampled.horizontal, finest.horizontal);
            scan.rows = units(outline.height, sampled.vertical, finest.vertical);
            let dc = tables.dc[usize::from(chosen >> 4 & 3)].as_ref().ok_or(Shortage::NoTables)?;
            let ac = tables.ac[usize::from(chosen & 3)].as_ref().ok_or(Shortage::NoTables)?;
            scan.quantisation[component] = Some(&tables.quantisation[usize::from(sampled.table)]);
            for row in 0..down {
                for column in 0..across {
                    let place = free.next().ok_or(Shortage::Broken)?;
                    *place = Some(ScanPart { component, across, down, column, row, dc, ac });
                }
            }
        }
        Ok(scan)
    }

    fn read<S: BlockSink>(
        &self,
        data: &[u8],
        restart_interval: usize,
        sink: &mut S,
    ) -> Result<Rest, Shortage> {
        for (component, quantisation) in self.quantisation.iter().enumerate() {
            if let Some(quantisation) = quantisation {
                sink.begin_component(component, quantisation);
            }
        }
        let mut bits = Bits { data, at: 0, window: 0, valid: 0 };
        let mut restarts = 0u8;
        let mut means = [0i16; 4];
        for unit in 0..self.columns * self.rows {
            if restart_interval > 0 && unit > 0 && unit % restart_interval == 0 {
                bits.skip_restart(restarts)?;
                restarts = (restarts + 1) % 8;
                means = [0; 4];
            }
            let unit_column = unit % self.columns;
            let unit_row = unit / self.columns;
            for part in self.parts.iter().map_while(|part| *part) {
                if !S::WANTS_VALUES {
                    bits.skip_block(part.dc, part.ac)?;
                    continue;
                }
                let mut block = [0i16; 64];
                bits.read_block(part.dc, part.ac, &mut block)?;
                // A hostile file can make it overflow.
                means[part.component] = means[part.component].wrapping_add(block[0]);
                block[0] = means[part.component];
                let column = unit_column * part.across + part.column;
                let row = unit_row * part.down + part.row;
                sink.take_block(part.component, column, row, &block);
            }
        }
        Ok(bits.read_rest())
    }
}

/// What stands before a scan.
struct Tables {
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// Row by row.
    quantisation: [[u16; 64]; 4],
    /// Units between restart markers; 0 for none.
    restart_interval: usize,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            dc: Default::default(),
            ac: Default::default(),
            quantisation: [[1; 64]; 4],
            restart_interval: 0,
        }
    }
}

/// The order in which a block's coefficients are coded: their places, row by row (T.81, figure A.6).
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

impl Tables {
    fn read_huffman(&mut self, mut payload: &[u8]) -> Result<(), Shortage> {
        while let Some(([place, lengths @ ..], rest)) = payload.split_first_chunk::<17>() {
            let count = lengths.iter().map(|count| usize::from(*count)).sum();
            let symbols = rest.get(..count).ok_or(Shortage::Broken)?;
            let tables = if place >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let table = tables.get_mut(usize::from(place & 0xF)).ok_or(Shortage::Broken)?;
            let table = table.insert(Table::new(lengths, symbols)?);
            if place >> 4 != 0 {
                table.join_codes();
            }
            payload = &rest[count..];
        }
        Ok(())
    }

    /// Tables of bytes or of 16-bit numbers.
    fn read_quantisation(&mut self, mut payload: &[u8]) -> Result<(), Shortage> {
        while let Some((place, rest)) = payload.split_first() {
            let table =
                self.quantisation.get_mut(usize::from(place & 0xF)).ok_or(Shortage::Broken)?;
            let width = if place >> 4 == 0 { 1 } else { 2 };
            let steps = rest.get(..64 * width).ok_or(Shortage::Broken)?;
            for (place, step) in ZIGZAG.iter().zip(steps.chunks_exact(width)) {
                let step = step.iter().fold(0, |step, byte| step << 8 | u16::from(*byte));
                table[usize::from(*place)] = step;
            }
            payload = &rest[64 * width..];
        }
        Ok(())
    }
}

/// Codes up to this length are found by one table access. Nearly all are.
const QUICK_BITS: u32 = 9;
/// So many bits are passed over by one table access, where they hold whole codes with their values.
const RUN_BITS: u32 = 10;

/// A Huffman table (T.81, annex C).
struct Table {
    /// By the next bits: the code's length in the upper byte and its symbol; 0 for a longer code.
    quick: [u16; 1 << QUICK_BITS],
    /// By the next bits: all codes that end with their values within them, up to the end of a block.
    runs: [Span; 1 << RUN_BITS],
    /// By length: behind the last code of it, filled up to 16 bits.
    limit: [u32; 17],
    /// By length: what must be added to a code to find its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// How far codes of coefficients lead.
#[derive(Clone, Copy, Default)]
struct Span {
    /// Of the codes and their values.
    bits: u8,
    /// Coefficients, and [`TO_THE_END`] where no more follow.
    places: u8,
}

/// More than a block has, wherever in it the code stands.
const TO_THE_END: u8 = 128;

impl Span {
    /// Of one code.
    #[inline]
    fn of(length: u32, symbol: u8) -> Self {
        let places = match symbol {
            0xF0 => 16,
            symbol if symbol % 16 == 0 => TO_THE_END,
            symbol => (symbol >> 4) + 1,
        };
        Self { bits: length as u8 + symbol % 16, places }
    }

    /// Whether these are codes of a block of which so many coefficients are there already.
    #[inline]
    fn is_within_block(self, place: u8) -> bool {
        self.bits != 0 && place + self.places % TO_THE_END < 64
    }
}

impl Table {
    fn new(lengths: &[u8; 16], symbols: &[u8]) -> Result<Self, Shortage> {
        let mut table = Self {
            quick: [0; 1 << QUICK_BITS],
            runs: [Span::default(); 1 << RUN_BITS],
            limit: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
        };
        table.symbols.get_mut(..symbols.len()).ok_or(Shortage::Broken)?.copy_from_slice(symbols);
        let mut code = 0u32;
        let mut index = 0usize;
        for length in 1..=16u32 {
            let count = u32::from(lengths[length as usize - 1]);
            table.offset[length as usize] = index as i32 - code as i32;
            if code + count > 1 << length {
                return Err(Shortage::Broken);
            }
            for _ in 0..count {
                if length <= QUICK_BITS {
                    let spread = QUICK_BITS - length;
                    let symbol = table.symbols[index];
                    let same = (code << spread) as usize..((code + 1) << spread) as usize;
                    table.quick[same].fill((length as u16) << 8 | u16::from(symbol));
                }
                code += 1;
                index += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Makes the table of what is passed over at once.
    fn join_codes(&mut self) {
        for bits in 0..1u32 << RUN_BITS {
            let mut run = Span::default();
            while let Some((length, symbol)) =
                self.find_code(bits << (16 - RUN_BITS + u32::from(run.bits)) & 0xFFFF)
            {
                let next = Span::of(length, symbol);
                let is_end = next.places == TO_THE_END;
                let known = u32::from(run.bits + next.bits) <= RUN_BITS;
                if !known || !is_end && run.places + next.places > 63 {
                    break;
                }
                run = Span { bits: run.bits + next.bits, places: run.places + next.places };
                if is_end {
                    break;
                }
            }
            self.runs[bits as usize] = run;
        }
    }

    /// The length and symbol of the code that `window`, 16 bits, begins with.
    #[inline]
    fn find_code(&self, window: u32) -> Option<(u32, u8)> {
        let quick = self.quick[(window >> (16 - QUICK_BITS)) as usize];
        if quick != 0 {
            return Some((u32::from(quick >> 8), quick as u8));
        }
        let length = (QUICK_BITS + 1..=16).find(|length| window < self.limit[*length as usize])?;
        let place = (window >> (16 - length)) as i32 + self.offset[length as usize];
        Some((length, *self.symbols.get(usize::try_from(place).ok()?)?))
    }
}

/// Whether one of eight bytes is 0xFF: its complement is zero, and borrows from the byte above when one
/// is subtracted from each.
#[inline]
fn has_marker_byte(bytes: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let complement = !bytes;
    complement.wrapping_sub(ONES) & bytes & (ONES << 7) != 0
}

/// Coded data bit by bit, to the next marker.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the top; `valid` of them.
    window: u64,
    valid: u32,
}

impl Bits<'_> {
    #[inline]
    fn fill_window(&mut self) {
        if let Some(ahead) = self.data.get(self.at..).and_then(<[u8]>::first_chunk::<8>) {
            let ahead = u64::from_be_bytes(*ahead);
            if !has_marker_byte(ahead) && self.valid <= 56 {
                let bytes = 8 - self.valid.div_ceil(8);
                self.window |= ahead >> (64 - 8 * bytes) << (64 - 8 * bytes - self.valid);
                self.valid += 8 * bytes;
                self.at += bytes as usize;
                return;
            }
        }
        while self.valid <= 48 {
            let Some(byte) = self.data.get(self.at) else { return };
            if *byte == 0xFF {
                if self.data.get(self.at + 1) != Some(&0) {
                    return;
                }
                self.at += 1;
            }
            self.at += 1;
            self.window |= u64::from(*byte) << (56 - self.valid);
            self.valid += 8;
        }
    }

    #[inline]
    fn skip_bits(&mut self, count: u32) -> Result<(), Shortage> {
        self.valid = self.valid.checked_sub(count).ok_or(Shortage::EndsTooEarly)?;
        self.window <<= count;
        Ok(())
    }

    /// Reads a code and the value whose number of bits is in its lower half: never more than 31
    /// bits.
    #[inline]
    fn read_symbol(&mut self, table: &Table) -> Result<(u8, i16), Shortage> {
        if self.valid < 32 {
            self.fill_window();
        }
        let Some((length, symbol)) = table.find_code((self.window >> 48) as u32) else {
            return Err(self.shortage());
        };
        let size = u32::from(symbol & 0xF);
        let raw = ((self.window << length) >> 1 >> (63 - size)) as i32;
        self.skip_bits(length + size)?;
        Ok((symbol, signed(raw, size)))
    }

    /// Passes over a block.
    #[inline]
    fn skip_block(&mut self, dc: &Table, ac: &Table) -> Result<(), Shortage> {
        if self.read_symbol(dc)?.0 > 11 {
            return Err(Shortage::Broken);
        }
        let mut place = 1;
        while place < 64 {
            if self.valid < 32 {
                self.fill_window();
            }
            let mut run = ac.runs[(self.window >> (64 - RUN_BITS)) as usize];
            if !run.is_within_block(place) {
                run = self.find_span(ac)?;
            }
            self.skip_bits(run.bits.into())?;
            place += run.places;
        }
        if place == 64 || place >= TO_THE_END { Ok(()) } else { Err(Shortage::Broken) }
    }

    /// The span of the next code alone.
    #[inline]
    fn find_span(&self, table: &Table) -> Result<Span, Shortage> {
        let found = table.find_code((self.window >> 48) as u32);
        found.map(|(length, symbol)| Span::of(length, symbol)).ok_or_else(|| self.shortage())
    }

    /// Why no code was found.
    fn shortage(&self) -> Shortage {
        if self.valid < 16 { Shortage::EndsTooEarly } else { Shortage::Broken }
    }

    /// Reads a block. Its first value is the difference to the one before.
    #[inline]
    fn read_block(&mut self, dc: &Table, ac: &Table, block: &mut Block) -> Result<(), Shortage> {
        let (symbol, difference) = self.read_symbol(dc)?;
        if symbol > 11 {
            return Err(Shortage::Broken);
        }
        block[0] = difference;
        let mut place = 1;
        while place < 64 {
            match self.read_symbol(ac)? {
                (0xF0, _) => place += 16,
                (symbol, _) if symbol % 16 == 0 => return Ok(()),
                (symbol, value) => {
                    place += usize::from(symbol >> 4) + 1;
                    if place <= 64 {
                        block[usize::from(ZIGZAG[place - 1])] = value;
                    }
                }
            }
        }
        if place == 64 { Ok(()) } else { Err(Shortage::Broken) }
    }

    /// Passes over the restart marker of this number.
    fn skip_restart(&mut self, number: u8) -> Result<(), Shortage> {
        self.window = 0;
        self.valid = 0;
        let ahead = self.data.get(self.at..).unwrap_or_default();
        let filling = ahead.iter().take_while(|byte| **byte == 0xFF).count();
        let marker = ahead.get(filling).ok_or(Shortage::EndsTooEarly)?;
        if filling == 0 || *marker != 0xD0 + number {
            return Err(Shortage::Broken);
        }
        self.at += filling + 1;
        Ok(())
    }

    fn read_rest(mut self) -> Rest {
        self.fill_window();
        let filling = self.valid % 8;
        let filled_with_ones = self.window.leading_ones() >= filling;
        let begins_with_zeroes = self.valid >= filling + 16 && (self.window << filling) >> 48 == 0;
        let bytes = (self.valid / 8) as usize + (self.data.len() - self.at);
        Rest { filled_with_ones, bytes, begins_with_zeroes }
    }
}

/// A value of `size` bits, of which the lower half stands for the negative ones (T.81, F.2.2.1).
#[inline]
fn signed(raw: i32, size: u32) -> i16 {
    let is_negative = raw < ((1 << size) >> 1);
    (if is_negative { raw + 1 - (1 << size) } else { raw }) as i16
}
