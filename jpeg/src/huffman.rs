//! Huffman codes and the bits they are read from (ITU-T T.81, annexes C and F.2.2).

use crate::segments::JpegFault;

/// Why the coded data could not be read to the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    EndsTooEarly,
    Broken,
    /// A table that the scan needs does not stand before it.
    NoTables,
}

impl From<Shortage> for JpegFault {
    fn from(shortage: Shortage) -> Self {
        Self::Damaged(match shortage {
            Shortage::EndsTooEarly => "it ends too early",
            Shortage::Broken => "its coded data is broken",
            Shortage::NoTables => "a table is missing",
        })
    }
}

/// Codes up to this length are found by one table access.
const QUICK_BITS: u32 = 10;

/// What the next bits begin with.
#[derive(Clone, Copy, Default)]
struct Entry {
    symbol: u8,
    /// Bits of the code; 0 for a longer one.
    length: u8,
    /// Bits of the code and of the value behind it.
    with_value: u8,
}

impl Entry {
    fn of(symbol: u8, length: u32) -> Self {
        Self { symbol, length: length as u8, with_value: length as u8 + symbol % 16 }
    }
}

/// A Huffman table.
pub(super) struct Table {
    /// By the next bits.
    quick: [Entry; 1 << QUICK_BITS],
    /// By length: behind the last code of it, filled up to 16 bits.
    limit: [u32; 17],
    /// By length: what must be added to a code to find its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// For scans that need no table.
pub(super) static EMPTY_TABLE: Table = Table::empty();

impl Table {
    const fn empty() -> Self {
        Self {
            quick: [Entry { symbol: 0, length: 0, with_value: 0 }; 1 << QUICK_BITS],
            limit: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
        }
    }

    /// `lengths` is the number of codes of each length (T.81, B.2.4.2).
    pub(super) fn new(lengths: &[u8; 16], symbols: &[u8]) -> Result<Self, Shortage> {
        let mut table = Self::empty();
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
                    // All that begins with the code.
                    let spread = QUICK_BITS - length;
                    table.quick[(code << spread) as usize..][..1 << spread]
                        .fill(Entry::of(symbols[index], length));
                }
                code += 1;
                index += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// The code longer than `QUICK_BITS` that `window`, 16 bits, begins with.
    #[cold]
    fn find_long(&self, window: u32) -> Option<Entry> {
        let length = (QUICK_BITS + 1..=16).find(|length| window < self.limit[*length as usize])?;
        let place = (window >> (16 - length)) as i32 + self.offset[length as usize];
        Some(Entry::of(*self.symbols.get(usize::try_from(place).ok()?)?, length))
    }
}

/// The value of the first `size` bits, up to 15 (T.81, F.2.2.1): where the first one is 0, all of
/// them are inverted and the value is negative.
#[inline]
fn extend(bits: u64, size: u32) -> i16 {
    let inverted = !(bits as i64 >> 63);
    let magnitude = (bits ^ inverted as u64) >> 1 >> (63 - size);
    (magnitude as i16 ^ inverted as i16).wrapping_sub(inverted as i16)
}

/// Whether one of eight bytes is 0xFF: its complement is zero, and borrows from the byte above when
/// one is subtracted from each.
#[inline]
fn has_marker_byte(bytes: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let complement = !bytes;
    complement.wrapping_sub(ONES) & bytes & (ONES << 7) != 0
}

/// Coded data bit by bit, to the next marker.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the top; `valid` of them.
    window: u64,
    valid: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn of(data: &'a [u8]) -> Self {
        Self { data, at: 0, window: 0, valid: 0 }
    }

    /// Makes at least 48 bits valid, if there are as many.
    #[inline]
    fn fill(&mut self) {
        if let Some(ahead) = self.data.get(self.at..).and_then(<[u8]>::first_chunk::<8>) {
            let ahead = u64::from_be_bytes(*ahead);
            if !has_marker_byte(ahead) {
                // The bits of a byte that is not whole come again with the next bytes.
                self.window |= ahead >> self.valid;
                let bytes = (63 - self.valid) / 8;
                self.at += bytes as usize;
                self.valid += 8 * bytes;
                return;
            }
        }
        self.fill_to_marker();
    }

    #[inline(never)]
    fn fill_to_marker(&mut self) {
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
    fn skip(&mut self, count: u32) -> Result<(), Shortage> {
        self.valid = self.valid.checked_sub(count).ok_or(Shortage::EndsTooEarly)?;
        self.window <<= count;
        Ok(())
    }

    /// Reads a code and the value whose number of bits is in its lower half: never more than 31
    /// bits. The value is 0 only when it has no bits.
    #[expect(
        clippy::inline_always,
        reason = "a call for each coefficient costs a fifth (measured)"
    )]
    #[inline(always)]
    pub(super) fn read_value(&mut self, table: &Table) -> Result<(u8, i16), Shortage> {
        if self.valid < 32 {
            self.fill();
        }
        let mut entry = table.quick[(self.window >> (64 - QUICK_BITS)) as usize];
        if entry.length == 0 {
            let found = table.find_long((self.window >> 48) as u32);
            entry = found.ok_or(self.why_no_code())?;
        }
        let value = extend(self.window << entry.length, u32::from(entry.symbol % 16));
        self.skip(entry.with_value.into())?;
        Ok((entry.symbol, value))
    }

    /// Reads up to 16 bits.
    #[inline]
    pub(super) fn read(&mut self, count: u32) -> Result<u32, Shortage> {
        if self.valid < count {
            self.fill();
        }
        let bits = (self.window >> 1 >> (63 - count)) as u32;
        self.skip(count)?;
        Ok(bits)
    }

    fn why_no_code(&self) -> Shortage {
        if self.valid < 16 { Shortage::EndsTooEarly } else { Shortage::Broken }
    }

    /// Passes over the restart marker of this number.
    pub(super) fn skip_restart(&mut self, number: u8) -> Result<(), Shortage> {
        // Less than a byte is filled up; more was lost or is too much.
        if self.valid >= 8 {
            return Err(Shortage::Broken);
        }
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

    pub(super) fn read_rest(mut self) -> Rest {
        self.fill();
        let filling = self.valid % 8;
        let filled_with_ones = self.window.leading_ones() >= filling;
        let ahead = self.window << filling;
        let begins_as_trailer =
            self.valid >= filling + 32 && ahead >> 48 == 0 && (ahead << 16) >> 48 != 0;
        let bytes = (self.valid / 8) as usize + (self.data.len() - self.at);
        Rest { filled_with_ones, bytes, begins_as_trailer }
    }
}

/// What stands behind the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The last byte is filled with ones, as encoders do.
    filled_with_ones: bool,
    bytes: usize,
    /// Two zeroes and the kind of a record, which is none: in a hole of zeroes more of them follow.
    begins_as_trailer: bool,
}

/// At the end of the data that one maker's telephones append. They leave the end marker out.
const TRAILER_END: &[u8] = b"SEFT";
/// The head of one record and a directory of it.
const TRAILER_BYTES_MIN: usize = 8 + 32;

impl Rest {
    /// Whether the picture surely ends here although it has no end marker: nothing follows, or a
    /// known trailer does. Had the last blocks been read out of the trailer, they would not end
    /// exactly where it begins.
    pub(super) fn is_end_of_picture(self, bytes: &[u8]) -> bool {
        let trailer = self.begins_as_trailer
            && self.bytes >= TRAILER_BYTES_MIN
            && bytes.ends_with(TRAILER_END);
        self.filled_with_ones && (self.bytes == 0 || trailer)
    }
}
