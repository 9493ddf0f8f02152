//! The inverse discrete cosine transform of blocks (ITU-T T.81, A.3.3), at full size and at a half,
//! a quarter or an eighth of it.
//!
//! Eight blocks that stand side by side are transformed together, each in a lane of its own: so the
//! compiler uses vectors in both directions. At full size in integers, with the roundings that the
//! reference implementation's accurate method has, so that every sample agrees with it.

/// Blocks in a group.
pub(super) const GROUP: usize = 8;

/// Coefficients of blocks side by side.
pub(super) struct Group {
    /// Row by row; of each place, those of all blocks.
    values: [[i16; GROUP]; 64],
    /// The last place, in the order of coding, that may not be zero.
    last: usize,
}

impl Group {
    pub(super) const EMPTY: Self = Self { values: [[0; GROUP]; 64], last: 0 };

    /// Sets a coefficient of the block in this column, by its place row by row.
    #[inline]
    pub(super) fn set(&mut self, column: usize, place: usize, value: i16) {
        self.values[place % 64][column % GROUP] = value;
    }

    /// Says that coefficients up to this place, in the order of coding, were set.
    #[inline]
    pub(super) fn extend_to(&mut self, last: usize) {
        self.last = self.last.max(last);
    }
}

/// Rows of samples of a group's blocks.
pub(super) struct Samples(pub(super) [[u8; 8 * GROUP]; 8]);

impl Samples {
    pub(super) const EMPTY: Self = Self([[0; 8 * GROUP]; 8]);
}

/// Fixed-point digits of the factors.
const FACTOR_BITS: u32 = 13;
/// Further digits that stand between both directions.
const BETWEEN_BITS: u32 = 2;

/// The factors of frequencies 0, 2, 4 and 6 in the samples 0 to 3, in [`FACTOR_BITS`]: the cosines
/// of T.81, A.3.3 times the square root of 8. The samples 7 to 4 have the same.
const EVEN: [[i16; 4]; 4] = [
    [8192, 8192, 8192, 8192],
    [10703, 4433, -4433, -10703],
    [8192, -8192, -8192, 8192],
    [4433, -10704, 10704, -4433],
];
/// The same of frequencies 1, 3, 5 and 7. The samples 7 to 4 have the opposite.
const ODD: [[i16; 4]; 4] = [
    [11363, 9633, 6437, 2260],
    [9633, -2259, -11362, -6436],
    [6437, -11362, 2261, 9633],
    [2260, -6436, 9633, -11363],
];

/// Factors of the inverse transform to fewer samples, by sample and frequency.
type Basis = [[f32; 8]; 8];

/// How a component's blocks become samples.
pub(super) struct Transform {
    /// Samples of a block.
    pub(super) across: usize,
    pub(super) down: usize,
    quantisation: [i16; 64],
    /// Across and down; `None` at full size.
    smaller: Option<Box<[Basis; 2]>>,
}

impl Transform {
    pub(super) fn new(across: usize, down: usize) -> Self {
        let is_full = across == 8 && down == 8;
        let smaller = (!is_full).then(|| Box::new([basis(across), basis(down)]));
        Self { across, down, quantisation: [1; 64], smaller }
    }

    /// No 8-bit picture has steps of more than 15 bits.
    pub(super) fn set_quantisation(&mut self, quantisation: &[u16; 64]) {
        self.quantisation = quantisation.map(|step| step as i16);
    }

    /// The samples of a group: `down` rows of `across` samples a block.
    pub(super) fn inverse(&self, group: &Group, samples: &mut Samples) {
        if let Some(bases) = &self.smaller {
            return self.inverse_smaller(group, bases, samples);
        }
        // The first three places in the order of coding are within the two lowest frequencies
        // across and down, the first ten within four, and so on.
        let inverse = match group.last {
            0 => inverse_flat,
            1..3 => inverse_lowest::<1>,
            3..10 => inverse_lowest::<2>,
            10..21 => inverse_lowest::<3>,
            _ => inverse_lowest::<4>,
        };
        inverse(group, &self.quantisation, samples);
    }

    /// The inverse transform of the lowest frequencies alone.
    fn inverse_smaller(&self, group: &Group, bases: &[Basis; 2], samples: &mut Samples) {
        let [basis_across, basis_down] = bases;
        for block in 0..GROUP {
            // First along the rows of frequencies, then down the columns.
            let mut half = [[0.0f32; 8]; 8];
            for (row, line) in half.iter_mut().enumerate().take(self.down) {
                let mut frequencies = [0.0f32; 8];
                for (at, frequency) in frequencies.iter_mut().enumerate().take(self.across) {
                    let place = row * 8 + at;
                    let value = f32::from(group.values[place][block]);
                    *frequency = value * f32::from(self.quantisation[place]);
                }
                for (sample, factors) in line.iter_mut().zip(basis_across).take(self.across) {
                    *sample = factors.iter().zip(&frequencies).map(|(a, b)| a * b).sum();
                }
            }
            let rows = samples.0.iter_mut().zip(basis_down);
            for (line, factors) in rows.take(self.down) {
                let mut sums = [0.0f32; 8];
                for (factor, row) in factors.iter().zip(&half).take(self.down) {
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
                }
                let place = &mut line[block * self.across..][..self.across];
                // The cast saturates.
                place.iter_mut().zip(sums).for_each(|(sample, sum)| *sample = (sum + 128.5) as u8);
            }
        }
    }
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

/// Of blocks that have a mean value alone.
fn inverse_flat(group: &Group, quantisation: &[i16; 64], samples: &mut Samples) {
    let mut row = [0; 8 * GROUP];
    for (same, mean) in row.as_chunks_mut::<8>().0.iter_mut().zip(group.values[0]) {
        let mean = i32::from(mean.wrapping_mul(quantisation[0]));
        *same = [(((mean + 4) >> 3) + 128).clamp(0, 255) as u8; 8];
    }
    samples.0 = [row; 8];
}

/// Of the lowest `2 * PAIRS` frequencies across and down.
fn inverse_lowest<const PAIRS: usize>(
    group: &Group,
    quantisation: &[i16; 64],
    samples: &mut Samples,
) {
    let mut between = [[[0; GROUP]; 8]; 8];
    for column in 0..2 * PAIRS {
        inverse_down::<PAIRS>(group, quantisation, column, &mut between);
    }
    for (frequencies, row) in between.iter().zip(&mut samples.0) {
        let mut lanes = [[0; GROUP]; 8];
        inverse_across::<PAIRS>(frequencies, &mut lanes);
        transpose(&lanes, row);
    }
}

/// Down a column of frequencies, to a row of `between` for each sample.
#[inline]
fn inverse_down<const PAIRS: usize>(
    group: &Group,
    quantisation: &[i16; 64],
    column: usize,
    between: &mut [[[i16; GROUP]; 8]; 8],
) {
    const SHIFT: u32 = FACTOR_BITS - BETWEEN_BITS;
    for block in 0..GROUP {
        // A hostile file can make it overflow.
        let frequency = |row: usize| {
            group.values[row * 8 + column][block].wrapping_mul(quantisation[row * 8 + column])
        };
        let sums = inverse_line::<PAIRS>(frequency, 1 << (SHIFT - 1));
        for (row, sum) in between.iter_mut().zip(sums) {
            row[column][block] = (sum >> SHIFT).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
        }
    }
}

/// Along a row of frequencies.
#[inline(never)]
fn inverse_across<const PAIRS: usize>(
    frequencies: &[[i16; GROUP]; 8],
    samples: &mut [[u8; GROUP]; 8],
) {
    const SHIFT: u32 = FACTOR_BITS + BETWEEN_BITS + 3;
    const HALF: i32 = 1 << (SHIFT - 1);
    for block in 0..GROUP {
        let sums = inverse_line::<PAIRS>(|at| frequencies[at][block], (128 << SHIFT) + HALF);
        for (sample, sum) in samples.iter_mut().zip(sums) {
            sample[block] = (sum >> SHIFT).clamp(0, 255) as u8;
        }
    }
}

/// The samples of a line; `start` is added to each.
#[inline]
fn inverse_line<const PAIRS: usize>(frequency: impl Fn(usize) -> i16, start: i32) -> [i32; 8] {
    let mut even = [start; 4];
    let mut odd = [0; 4];
    for pair in 0..PAIRS {
        let first = i32::from(frequency(2 * pair));
        let second = i32::from(frequency(2 * pair + 1));
        for sample in 0..4 {
            even[sample] += first * i32::from(EVEN[pair][sample]);
            odd[sample] += second * i32::from(ODD[pair][sample]);
        }
    }
    let mut sums = [0; 8];
    for sample in 0..4 {
        sums[sample] = even[sample] + odd[sample];
        sums[7 - sample] = even[sample] - odd[sample];
    }
    sums
}

/// Samples of blocks side by side. A function of its own, so that the compiler makes it of vectors.
#[inline(never)]
fn transpose(lanes: &[[u8; GROUP]; 8], row: &mut [u8; 8 * GROUP]) {
    for (block, samples) in row.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        for (sample, lane) in samples.iter_mut().zip(lanes) {
            *sample = lane[block];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of few and one of all frequencies beside the transform in floating point.
    #[test]
    fn integer_transform_agrees_with_its_formula() {
        for lowest in [1, 2, 4, 6, 8] {
            let mut group = Group::EMPTY;
            for row in 0..lowest {
                for column in 0..lowest {
                    let value = (row * 37 + column * 23) % 41;
                    group.set(5, row * 8 + column, value as i16 - 20);
                }
            }
            group.extend_to(if lowest == 1 { 0 } else { 63 });
            let mut full = Transform::new(8, 8);
            full.set_quantisation(&[3; 64]);
            let mut samples = Samples::EMPTY;
            full.inverse(&group, &mut samples);
            full.smaller = Some(Box::new([basis(8), basis(8)]));
            let mut expected = Samples::EMPTY;
            full.inverse(&group, &mut expected);
            let pairs = samples.0.as_flattened().iter().zip(expected.0.as_flattened());
            assert!(pairs.clone().all(|(a, b)| a.abs_diff(*b) <= 1), "{lowest}");
            assert!(samples.0[0][..40].iter().all(|sample| *sample == 128), "other blocks");
        }
    }

    /// Where fewer frequencies are there, the shorter way gives the same.
    #[test]
    fn shorter_ways_agree_with_the_longest() {
        let zigzag = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40];
        for count in 1..=zigzag.len() {
            let make = |last| {
                let mut group = Group::EMPTY;
                for (at, place) in zigzag.iter().enumerate().take(count) {
                    group.set(at, *place, 90 - 17 * at as i16);
                }
                group.extend_to(last);
                let mut samples = Samples::EMPTY;
                Transform::new(8, 8).inverse(&group, &mut samples);
                samples.0
            };
            assert_eq!(make(count - 1), make(63), "{count}");
        }
    }
}
