//! Templates packed for the scan: each in float, and in int8 with one scale and the length of what
//! rounding took.
//!
//! Kept in blocks that snapshots share; what changes is copied, a block at a time. A template that
//! leaves is replaced by the very last one, so that all blocks but the last stay full however many
//! come and go.

use std::sync::Arc;

use simsimd::SpatialSimilarity;

/// Templates in one block. Copying one of 512 elements takes 0.05 ms; a gallery of 100,000 has 800
/// of them.
const BLOCK: usize = 128;

#[derive(Clone, Default)]
pub(super) struct Blocks {
    dimension: usize,
    /// Full, but for the last.
    list: Vec<Arc<Block>>,
    len: usize,
}

#[derive(Clone, Default)]
struct Block {
    /// For each template, the slot of its subject.
    slots: Vec<u32>,
    floats: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// Length of the rounding error of each template: how far its int8 score can be off.
    errors: Vec<f32>,
}

/// A template rounded to int8: `template ≈ scale · codes`, with `|template − scale · codes| =
/// error`.
pub(super) struct Rounded {
    codes: Vec<i8>,
    scale: f32,
    error: f32,
}

impl Rounded {
    pub(super) fn of(template: &[f32]) -> Self {
        let largest = template.iter().fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
        let scale = largest / 127.0;
        let codes: Vec<i8> = template.iter().map(|x| (x / scale).round() as i8).collect();
        let error = template
            .iter()
            .zip(&codes)
            .map(|(x, code)| (x - scale * f32::from(*code)).powi(2))
            .sum::<f32>();
        // A hair more than computed, for the rounding of this very sum and of the float comparison.
        Self { codes, scale, error: error.sqrt() * 1.001 + 1e-6 }
    }
}

impl Blocks {
    pub(super) fn new(dimension: usize) -> Self {
        Self { dimension, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a template of our dimension at the end; gives its codes.
    pub(super) fn push(&mut self, slot: u32, template: &[f32]) -> &[i8] {
        if self.len.is_multiple_of(BLOCK) {
            self.list.push(Arc::default());
        }
        self.len += 1;
        let last = Arc::make_mut(self.list.last_mut().expect("there is one now"));
        let rounded = Rounded::of(template);
        last.slots.push(slot);
        last.floats.extend_from_slice(template);
        last.codes.extend_from_slice(&rounded.codes);
        last.scales.push(rounded.scale);
        last.errors.push(rounded.error);
        &last.codes[last.codes.len() - template.len()..]
    }

    /// Removes the templates of a slot, `count` at most; shows the codes of each.
    pub(super) fn remove(&mut self, slot: u32, count: usize, mut gone: impl FnMut(&[i8])) {
        // From the end, so that the last template, which takes the place of one that leaves, is
        // never one that leaves later.
        let places: Vec<usize> = self.places(slot).take(count).collect();
        let dimension = self.dimension;
        for place in places {
            let block = place / BLOCK;
            let index = place % BLOCK;
            gone(self.list[block].codes(index, dimension));
            let mut last = self.list.pop().expect("what has a place has a block");
            let from = last.slots.len() - 1;
            if place != self.len - 1 {
                if let Some(block) = self.list.get_mut(block) {
                    Arc::make_mut(block).copy(index, &last, from, dimension);
                } else {
                    Arc::make_mut(&mut last).move_within(from, index, dimension);
                }
            }
            self.len -= 1;
            if from > 0 {
                Arc::make_mut(&mut last).truncate(from, dimension);
                self.list.push(last);
            }
        }
    }

    /// The templates of a slot, those added last first.
    pub(super) fn of(&self, slot: u32, count: usize) -> impl Iterator<Item = &[f32]> {
        let floats = |place: usize| self.list[place / BLOCK].floats(place % BLOCK, self.dimension);
        self.places(slot).take(count).map(floats)
    }

    /// Where templates of a slot lie, from the end: galleries are loaded subject by subject.
    fn places(&self, slot: u32) -> impl Iterator<Item = usize> {
        self.list.iter().enumerate().rev().flat_map(move |(at, block)| {
            let indices =
                (0..block.slots.len()).rev().filter(move |index| block.slots[*index] == slot);
            indices.map(move |index| at * BLOCK + index)
        })
    }

    /// Appends each template's int8 score; shows the least that its float score can be.
    pub(super) fn scan(
        &self,
        probe: &Rounded,
        scores: &mut Vec<f32>,
        least: &mut impl FnMut(u32, f32),
    ) {
        for block in &self.list {
            let codes = block.codes.chunks_exact(self.dimension);
            for (index, (slot, codes)) in block.slots.iter().zip(codes).enumerate() {
                let dot = i8::dot(&probe.codes, codes).expect("both have the gallery's dimension");
                let score = dot as f32 * probe.scale * block.scales[index];
                scores.push(score);
                least(*slot, score - block.bound(index, probe));
            }
        }
    }

    /// Shows the float scores of the templates whose int8 score allows that they reach `floor`.
    pub(super) fn compare(
        &self,
        probe: &[f32],
        rounded: &Rounded,
        scan: &[f32],
        floor: f32,
        show: &mut impl FnMut(u32, f32),
    ) {
        for (block, scan) in self.list.iter().zip(scan.chunks(BLOCK)) {
            for (index, score) in scan.iter().enumerate() {
                if score + block.bound(index, rounded) >= floor {
                    show(block.slots[index], block.score(index, probe));
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn bound(&self, place: usize, probe: &Rounded) -> f32 {
        self.list[place / BLOCK].bound(place % BLOCK, probe)
    }
}

impl Block {
    fn floats(&self, index: usize, dimension: usize) -> &[f32] {
        &self.floats[index * dimension..(index + 1) * dimension]
    }

    fn codes(&self, index: usize, dimension: usize) -> &[i8] {
        &self.codes[index * dimension..(index + 1) * dimension]
    }

    fn copy(&mut self, index: usize, other: &Self, from: usize, dimension: usize) {
        let place = index * dimension..(index + 1) * dimension;
        self.slots[index] = other.slots[from];
        self.floats[place.clone()].copy_from_slice(other.floats(from, dimension));
        self.codes[place].copy_from_slice(other.codes(from, dimension));
        self.scales[index] = other.scales[from];
        self.errors[index] = other.errors[from];
    }

    fn move_within(&mut self, from: usize, to: usize, dimension: usize) {
        let place = from * dimension..(from + 1) * dimension;
        self.slots[to] = self.slots[from];
        self.floats.copy_within(place.clone(), to * dimension);
        self.codes.copy_within(place, to * dimension);
        self.scales[to] = self.scales[from];
        self.errors[to] = self.errors[from];
    }

    fn truncate(&mut self, len: usize, dimension: usize) {
        self.slots.truncate(len);
        self.floats.truncate(len * dimension);
        self.codes.truncate(len * dimension);
        self.scales.truncate(len);
        self.errors.truncate(len);
    }

    /// How far the int8 score of this template can be from the float score: with `q = Q + e` and `r
    /// = R + f`, `|q·r − Q·R| = |e·r + Q·f| ≤ |e||r| + |Q||f|`, where `|r| = 1` and `|Q| ≤ 1 +
    /// |e|`.
    fn bound(&self, index: usize, probe: &Rounded) -> f32 {
        probe.error + (1.0 + probe.error) * self.errors[index] + 1e-5
    }

    fn score(&self, index: usize, probe: &[f32]) -> f32 {
        let template = self.floats(index, probe.len());
        f32::dot(probe, template).expect("both have the gallery's dimension") as f32
    }
}
