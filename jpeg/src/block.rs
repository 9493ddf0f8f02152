//! One block of coefficients out of the coded data: the procedures of sequential (ITU-T T.81,
//! F.2.2) and progressive coding (G.1.2, G.2).
//!
//! A code that leads beyond the block or its band is an error, never passed over: it means that
//! data was lost.

use crate::huffman::{Bits, Shortage, Table};

/// 64 coefficients, row by row.
pub(super) type Block = [i16; 64];

/// The order in which a block's coefficients are coded: their places, row by row (T.81, figure
/// A.6). A longest run from the last place ends within the table.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 80] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// The longest run of zeroes that one code has.
const RUN_MAX: usize = 15;
/// The largest category of a difference of mean values, of 8-bit samples (T.81, table F.1).
const DIFFERENCE_BITS_MAX: u8 = 11;

/// Reads the difference to the mean value before.
#[inline]
pub(super) fn read_difference(bits: &mut Bits<'_>, dc: &Table) -> Result<i16, Shortage> {
    let (symbol, difference) = bits.read_value(dc)?;
    if symbol > DIFFERENCE_BITS_MAX { Err(Shortage::Broken) } else { Ok(difference) }
}

/// Reads the coefficients behind the mean value of a sequential block: gives each that is not zero
/// to `put` with its place, row by row. Returns the place of the last one in the order of coding.
#[inline]
pub(super) fn read_coefficients(
    bits: &mut Bits<'_>,
    ac: &Table,
    mut put: impl FnMut(usize, i16),
) -> Result<usize, Shortage> {
    let mut place = 0;
    while place < 63 {
        let (symbol, value) = bits.read_value(ac)?;
        let run = usize::from(symbol >> 4);
        if symbol % 16 != 0 {
            place += run + 1;
            put(usize::from(ZIGZAG[place]), value);
        } else if run == RUN_MAX {
            place += RUN_MAX + 1;
        } else {
            break;
        }
    }

    if place <= 63 { Ok(place) } else { Err(Shortage::Broken) }
}

/// What a progressive scan brings: coefficients of a band, to a bit.
#[derive(Clone, Copy)]
pub(super) struct Band {
    /// The first and the last place in the order of coding.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Whether the coefficients are there already, without the bit.
    pub(super) refines: bool,
    pub(super) bit: u32,
}

/// A block of a progressive picture, with the places of its coefficients, in the order of coding,
/// that are not zero.
pub(super) struct Progress<'a> {
    pub(super) block: &'a mut Block,
    pub(super) nonzero: &'a mut u64,
}

impl Progress<'_> {
    /// Reads the band's coefficients for the first time. `end_run` is the number of blocks that
    /// come without any (EOBRUN).
    #[inline]
    pub(super) fn read_first(
        &mut self,
        bits: &mut Bits<'_>,
        ac: &Table,
        band: Band,
        end_run: &mut u32,
    ) -> Result<(), Shortage> {
        if *end_run > 0 {
            *end_run -= 1;
            return Ok(());
        }
        let mut place = band.from - 1;
        while place < band.to {
            let (symbol, value) = bits.read_value(ac)?;
            let run = usize::from(symbol >> 4);
            if symbol % 16 != 0 {
                place += run + 1;
                self.block[usize::from(ZIGZAG[place])] = value << band.bit;
                *self.nonzero |= 1 << (place & 63);
            } else if run == RUN_MAX {
                place += RUN_MAX + 1;
            } else {
                *end_run = (1 << run) - 1 + bits.read(run as u32)?;
                return Ok(());
            }
        }
        if place == band.to { Ok(()) } else { Err(Shortage::Broken) }
    }

    /// Reads one more bit of each coefficient of the band that is not zero, and new coefficients
    /// between them.
    #[inline]
    pub(super) fn refine(
        &mut self,
        bits: &mut Bits<'_>,
        ac: &Table,
        band: Band,
        end_run: &mut u32,
    ) -> Result<(), Shortage> {
        let known = *self.nonzero;
        // The places that are still to come.
        let mut ahead = !0 << band.from & !0 >> (63 - band.to);
        while ahead != 0 && *end_run == 0 {
            let (symbol, value) = bits.read_value(ac)?;
            let run = u32::from(symbol >> 4);
            if symbol % 16 == 0 && run < RUN_MAX as u32 {
                *end_run = (1 << run) + bits.read(run)?;
                break;
            }
            if symbol % 16 > 1 {
                return Err(Shortage::Broken);
            }
            // The zero behind a run of zeroes. It becomes the new coefficient, if there is one.
            let mut zeroes = ahead & !known;
            for _ in 0..run {
                zeroes &= zeroes.wrapping_sub(1);
            }
            if zeroes == 0 {
                return Err(Shortage::Broken);
            }
            let place = zeroes.trailing_zeros();
            let before = (1 << place) - 1;
            self.correct(bits, ahead & before & known, band.bit)?;
            if symbol % 16 != 0 {
                self.block[usize::from(ZIGZAG[place as usize])] = value << band.bit;
                *self.nonzero |= 1 << place;
            }
            ahead &= !before << 1;
        }
        if *end_run > 0 {
            *end_run -= 1;
            self.correct(bits, ahead & known, band.bit)?;
        }
        Ok(())
    }

    /// Reads a bit for each of these places: whether the coefficient there is larger by one.
    #[inline]
    fn correct(&mut self, bits: &mut Bits<'_>, mut places: u64, bit: u32) -> Result<(), Shortage> {
        while places != 0 {
            let coefficient =
                &mut self.block[usize::from(ZIGZAG[places.trailing_zeros() as usize])];
            places &= places - 1;
            let larger = (bits.read(1)? as i16) << bit;
            // Away from zero, without asking which sign it has: the bit is as good as random.
            let sign = *coefficient >> 15;
            *coefficient = coefficient.wrapping_add((larger ^ sign) - sign);
        }
        Ok(())
    }
}
