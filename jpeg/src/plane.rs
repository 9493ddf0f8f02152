//! The samples of a component, and its rows at the full width of the picture.

use crate::colour::LANES;
use crate::outline::Outline;
use crate::transform::{GROUP, Group, Samples, Transform};

/// The blocks and samples of a component, as far as they are kept.
pub(super) struct Plane {
    transform: Transform,
    /// Samples of the whole component.
    width: usize,
    height: usize,
    /// Pixels that each sample covers.
    wide: usize,
    high: usize,
    /// Whether samples between are interpolated.
    is_smooth: bool,
    /// The blocks of a row of minimum coded units: for each row of blocks its groups.
    groups: Vec<Group>,
    /// Groups in a row, and samples across one.
    group_count: usize,
    group_width: usize,
    /// For each row in `groups`, which row of the component's blocks is there.
    group_rows: Vec<Option<usize>>,
    /// The row of samples before `top`, then `kept` rows from there.
    samples: Vec<u8>,
    stride: usize,
    top: usize,
    kept: usize,
    /// Room for the row of samples that is made wider.
    sums: Vec<u16>,
}

impl Plane {
    /// `keeps_all`: the samples of the whole component are kept, not of one row of units only.
    pub(super) fn new(outline: &Outline, component: usize, halvings: u32, keeps_all: bool) -> Self {
        let finest = outline.components[0];
        let own = outline.components[component];
        let down = usize::from(own.vertical);
        let full = 8 >> halvings;
        // Pixels of a block. A coarser component has more of them, and is decoded as finely as it
        // was stored.
        let block_width = full * usize::from(finest.horizontal / own.horizontal);
        let block_height = full * usize::from(finest.vertical / own.vertical);
        let transform = Transform::new(block_width.min(8), block_height.min(8));
        let wide = block_width / transform.across;
        let high = block_height / transform.down;
        let width = outline.width.div_ceil(1 << halvings).div_ceil(wide);
        let height = outline.height.div_ceil(1 << halvings).div_ceil(high);
        let (unit_columns, unit_rows) = outline.units();
        let group_count = (unit_columns * usize::from(own.horizontal)).div_ceil(GROUP);
        let group_width = GROUP * transform.across;
        let stride = (group_count * group_width).next_multiple_of(LANES);
        let kept = down * transform.down * if keeps_all { unit_rows } else { 1 };
        Self {
            width,
            height,
            wide,
            high,
            // As the reference implementation does it.
            is_smooth: (wide, high) == (1, 2) || wide == 2 && high <= 2 && width > 2,
            groups: (0..group_count * down).map(|_| Group::EMPTY).collect(),
            group_count,
            group_width,
            group_rows: vec![None; down],
            samples: vec![0; (1 + kept) * stride],
            stride,
            top: 0,
            kept,
            sums: vec![0; width + 2],
            transform,
        }
    }

    pub(super) fn set_quantisation(&mut self, quantisation: &[u16; 64]) {
        self.transform.set_quantisation(quantisation);
    }

    /// Room for a row at full width.
    pub(super) fn full_width(&self) -> usize {
        (self.width * self.wide).next_multiple_of(LANES)
    }

    /// The group of the block in this column and row of the component's blocks.
    #[inline]
    pub(super) fn group(&mut self, column: usize, row: usize) -> &mut Group {
        // Sampling factors are powers of two.
        let line = row & (self.group_rows.len() - 1);
        self.group_rows[line] = Some(row);
        &mut self.groups[line * self.group_count + column / GROUP]
    }

    /// Makes the samples of all blocks that came.
    pub(super) fn transform_blocks(&mut self) {
        let down = self.transform.down;
        let mut samples = Samples::EMPTY;
        let lines = self.groups.chunks_exact_mut(self.group_count).zip(&mut self.group_rows);
        for (groups, row) in lines {
            let Some(row) = row.take() else { continue };
            let left = (1 + row * down - self.top) * self.stride;
            for (place, group) in groups.iter_mut().enumerate() {
                self.transform.inverse(group, &mut samples);
                *group = Group::EMPTY;
                let mut at = left + place * self.group_width;
                for row in samples.0.iter().take(down) {
                    let row = &row[..self.group_width];
                    self.samples[at..at + row.len()].copy_from_slice(row);
                    at += self.stride;
                }
            }
        }
    }

    /// Drops all rows of samples but the last, for those of the next row of units.
    pub(super) fn advance(&mut self) {
        self.samples.copy_within(self.kept * self.stride.., 0);
        self.top += self.kept;
    }

    /// The row of samples, or the last one.
    fn row(&self, row: usize) -> &[u8] {
        let at = (1 + row.min(self.height - 1) - self.top) * self.stride;
        &self.samples[at..at + self.stride]
    }

    /// A row of pixels at full width: the samples as they are stored, or made of them in `line`.
    ///
    /// Twice as fine, each is a mean of the nearest samples, 3 to 1 in a row or a column and 9 to 3
    /// to 3 to 1 in both, rounded as the reference implementation does it.
    pub(super) fn full_row<'a>(&'a mut self, y: usize, line: &'a mut [u8]) -> &'a [u8] {
        if self.is_smooth {
            self.interpolate(y, line);
            return line;
        }
        let near = self.row(y / self.high);
        if self.wide == 1 {
            return near;
        }
        for (same, sample) in line.chunks_mut(self.wide).zip(near) {
            same.fill(*sample);
        }
        line
    }

    fn interpolate(&mut self, y: usize, line: &mut [u8]) {
        let mut sums = std::mem::take(&mut self.sums);
        let inner = &mut sums[1..=self.width];
        let near = self.row(y / self.high);
        let is_upper = y.is_multiple_of(2);
        if self.high == 1 {
            inner.iter_mut().zip(near).for_each(|(sum, near)| *sum = u16::from(*near));
        } else {
            let far = self.row(if is_upper { (y / 2).saturating_sub(1) } else { y / 2 + 1 });
            for ((sum, near), far) in inner.iter_mut().zip(near).zip(far) {
                *sum = 3 * u16::from(*near) + u16::from(*far);
            }
        }
        sums[0] = sums[1];
        sums[self.width + 1] = sums[self.width];
        match (self.wide, self.high) {
            (1, _) => {
                let bias = if is_upper { 1 } else { 2 };
                let sums = sums[1..].iter();
                line.iter_mut()
                    .zip(sums)
                    .for_each(|(pixel, sum)| *pixel = ((sum + bias) >> 2) as u8);
            }
            (_, 1) => widen::<2>(&sums, line, [1, 2]),
            _ => widen::<4>(&sums, line, [8, 7]),
        }
        self.sums = sums;
    }
}

/// Two pixels of each value but the first and the last, each with the neighbour on its side.
#[inline]
fn widen<const SHIFT: u32>(values: &[u16], line: &mut [u8], [left, right]: [u16; 2]) {
    let pairs = line.as_chunks_mut::<2>().0.iter_mut();
    let neighbours = values.iter().zip(&values[1..]).zip(&values[2..]);
    for (pair, ((before, here), behind)) in pairs.zip(neighbours) {
        pair[0] = ((3 * here + before + left) >> SHIFT) as u8;
        pair[1] = ((3 * here + behind + right) >> SHIFT) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widened_row_keeps_its_ends() {
        let mut line = [0; 6];
        widen::<2>(&[10, 10, 20, 40, 40], &mut line, [1, 2]);
        assert_eq!(line, [10, 13, 17, 25, 35, 40]);
    }
}
