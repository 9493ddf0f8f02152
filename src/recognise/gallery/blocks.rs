//! Templates packed for the scan: each in float, and in int8 with one scale and the length of what
//! rounding took.
//!
//! Kept in blocks that snapshots share; what changes is copied, a block at a time. A template that
//! leaves is replaced by the very last one, so that all blocks but the last stay full however many
//! come and go.

use std::sync::Arc;

use simsimd::SpatialSimilarity;

use crate::recognise::face::Template;

/// Templates in one block. Copying one of 512 elements takes 0.05 ms; a gallery of 100,000 has 800
/// of them.
const BLOCK: usize = 128;

/// Elements of the vectors in a row: those of the first part, and of a composite embedder's second
/// part (0 where the embedder is a single network).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Width {
    pub(super) first: usize,
    pub(super) second: usize,
}

#[derive(Clone, Default)]
pub(super) struct Blocks {
    width: Width,
    /// Full, but for the last.
    list: Vec<Arc<Block>>,
    len: usize,
    /// Templates that have the second part.
    complete: usize,
}

#[derive(Clone, Default)]
struct Block {
    /// For each template, the slot of its subject.
    slots: Vec<u32>,
    first: Rows,
    /// Zeros where a template is partial.
    second: Rows,
    /// Whether each template has the second part.
    complete: Vec<bool>,
}

/// Vectors of one part, one after the other.
#[derive(Clone, Default)]
struct Rows {
    floats: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// Length of the rounding error of each vector: how far its int8 score can be off.
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

/// A probe, rounded for the scan.
pub(super) struct Probe<'a> {
    pub(super) template: &'a Template,
    pub(super) first: Rounded,
    /// The second part's vector, its rounding, and its share of the score.
    pub(super) second: Option<(&'a [f32], Rounded, f32)>,
}

impl<'a> Probe<'a> {
    pub(super) fn of(template: &'a Template) -> Self {
        let second =
            template.second().map(|(vector, weight)| (vector, Rounded::of(vector), weight));
        Self { template, first: Rounded::of(template.as_slice()), second }
    }
}

impl Blocks {
    pub(super) fn new(width: Width) -> Self {
        Self { width, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Templates that have the second part.
    pub(super) fn complete(&self) -> usize {
        self.complete
    }

    /// Adds a template of our width at the end; gives the codes of its parts, those of the second
    /// empty where it is partial.
    pub(super) fn push(&mut self, slot: u32, template: &Template) -> (&[i8], &[i8]) {
        if self.len.is_multiple_of(BLOCK) {
            self.list.push(Arc::default());
        }
        self.len += 1;
        let last = Arc::make_mut(self.list.last_mut().expect("there is one now"));
        let second = template.second().map(|(vector, _)| vector);
        let second = second.filter(|it| self.width.second > 0 && it.len() == self.width.second);
        self.complete += usize::from(second.is_some());
        last.slots.push(slot);
        last.complete.push(second.is_some());
        last.first.push(template.as_slice());
        match second {
            Some(vector) => last.second.push(vector),
            None => last.second.push_zeros(self.width.second),
        }
        last.codes(last.slots.len() - 1, self.width)
    }

    /// Removes the templates of a slot, `count` at most; shows the codes of each part.
    pub(super) fn remove(&mut self, slot: u32, count: usize, mut gone: impl FnMut(&[i8], &[i8])) {
        // From the end, so that the last template, which takes the place of one that leaves, is
        // never one that leaves later.
        let places: Vec<usize> = self.places(slot).take(count).collect();
        let width = self.width;
        for place in places {
            let block = place / BLOCK;
            let index = place % BLOCK;
            let (first, second) = self.list[block].codes(index, width);
            gone(first, second);
            self.complete -= usize::from(self.list[block].complete[index]);
            let mut last = self.list.pop().expect("what has a place has a block");
            let from = last.slots.len() - 1;
            if place != self.len - 1 {
                if let Some(block) = self.list.get_mut(block) {
                    Arc::make_mut(block).copy(index, &last, from, width);
                } else {
                    Arc::make_mut(&mut last).move_within(from, index, width);
                }
            }
            self.len -= 1;
            if from > 0 {
                Arc::make_mut(&mut last).truncate(from, width);
                self.list.push(last);
            }
        }
    }

    /// The parts of a slot's templates, those added last first; the second is `None` where the
    /// template is partial.
    pub(super) fn of(
        &self,
        slot: u32,
        count: usize,
    ) -> impl Iterator<Item = (&[f32], Option<&[f32]>)> {
        let parts = |place: usize| self.list[place / BLOCK].parts(place % BLOCK, self.width);
        self.places(slot).take(count).map(parts)
    }

    /// Where templates of a slot lie, from the end: galleries are loaded subject by subject.
    fn places(&self, slot: u32) -> impl Iterator<Item = usize> {
        self.list.iter().enumerate().rev().flat_map(move |(at, block)| {
            let indices =
                (0..block.slots.len()).rev().filter(move |index| block.slots[*index] == slot);
            indices.map(move |index| at * BLOCK + index)
        })
    }

    /// Appends the int8 score of each template's first part; shows the least that its float score
    /// can be.
    pub(super) fn scan(
        &self,
        probe: &Rounded,
        scores: &mut Vec<f32>,
        least: &mut impl FnMut(u32, f32),
    ) {
        for block in &self.list {
            let codes = block.first.codes.chunks_exact(self.width.first);
            for (index, (slot, codes)) in block.slots.iter().zip(codes).enumerate() {
                let dot = i8::dot(&probe.codes, codes).expect("both have the gallery's dimension");
                let score = dot as f32 * probe.scale * block.first.scales[index];
                scores.push(score);
                least(*slot, score - block.first.bound(index, probe));
            }
        }
    }

    /// Shows the float scores of the first parts whose int8 score allows that they reach `floor`.
    pub(super) fn compare(
        &self,
        probe: &Probe<'_>,
        scan: &[f32],
        floor: f32,
        show: &mut impl FnMut(u32, f32),
    ) {
        for (block, scan) in self.list.iter().zip(scan.chunks(BLOCK)) {
            for (index, score) in scan.iter().enumerate() {
                if score + block.first.bound(index, &probe.first) >= floor {
                    show(block.slots[index], block.first.score(index, probe.template.as_slice()));
                }
            }
        }
    }

    /// Appends the most that each template's score with a complete probe can be, judged by the
    /// second part and `first_max`, the most that the first part of any template can score. A
    /// partial template may have any score.
    pub(super) fn scan_second(&self, probe: &Probe<'_>, first_max: f32, most: &mut Vec<f32>) {
        let Some((_, rounded, weight)) = &probe.second else {
            most.resize(most.len() + self.len, f32::INFINITY);
            return;
        };
        for block in &self.list {
            let codes = block.second.codes.chunks_exact(self.width.second);
            for (index, codes) in codes.enumerate() {
                most.push(if block.complete[index] {
                    let dot = i8::dot(&rounded.codes, codes).expect("both have the second's width");
                    let score = dot as f32 * rounded.scale * block.second.scales[index];
                    weight * (score + block.second.bound(index, rounded))
                        + (1.0 - weight) * first_max
                } else {
                    f32::INFINITY
                });
            }
        }
    }

    /// The float score of the template at this place with the probe, if it may reach `floor`: of a
    /// complete one the weighted score of both parts, of a partial one that of the first part and
    /// `partial_offset`. Says also whether it is complete.
    pub(super) fn score_both(
        &self,
        place: usize,
        probe: &Probe<'_>,
        partial_offset: f32,
        floor: f32,
    ) -> Option<(u32, f32, bool)> {
        let block = &self.list[place / BLOCK];
        let index = place % BLOCK;
        let (first, second) = block.parts(index, self.width);
        let pair = probe.second.as_ref().zip(second);
        let of_second = pair.map(|((vector, _, weight), other)| (dot(vector, other), *weight));
        let total = |of_first: f32| match of_second {
            Some((score, weight)) => (1.0 - weight) * of_first + weight * score,
            None => of_first + partial_offset,
        };
        let codes = block.first.codes(index, self.width.first);
        let rough = i8::dot(&probe.first.codes, codes).expect("both have the gallery's dimension");
        let rough = rough as f32 * probe.first.scale * block.first.scales[index];
        if total(rough + block.first.bound(index, &probe.first)) < floor {
            return None;
        }
        let score = total(dot(probe.template.as_slice(), first));
        Some((block.slots[index], score, of_second.is_some()))
    }

    #[cfg(test)]
    pub(super) fn bound(&self, place: usize, probe: &Rounded) -> f32 {
        self.list[place / BLOCK].first.bound(place % BLOCK, probe)
    }
}

impl Block {
    /// The codes of both parts; those of the second empty where the template is partial.
    fn codes(&self, index: usize, width: Width) -> (&[i8], &[i8]) {
        let second = if self.complete[index] { width.second } else { 0 };
        let from = index * width.second;
        (self.first.codes(index, width.first), &self.second.codes[from..from + second])
    }

    fn parts(&self, index: usize, width: Width) -> (&[f32], Option<&[f32]>) {
        let second = || self.second.floats(index, width.second);
        (self.first.floats(index, width.first), self.complete[index].then(second))
    }

    fn copy(&mut self, index: usize, other: &Self, from: usize, width: Width) {
        self.slots[index] = other.slots[from];
        self.complete[index] = other.complete[from];
        self.first.copy(index, &other.first, from, width.first);
        self.second.copy(index, &other.second, from, width.second);
    }

    fn move_within(&mut self, from: usize, to: usize, width: Width) {
        self.slots[to] = self.slots[from];
        self.complete[to] = self.complete[from];
        self.first.move_within(from, to, width.first);
        self.second.move_within(from, to, width.second);
    }

    fn truncate(&mut self, len: usize, width: Width) {
        self.slots.truncate(len);
        self.complete.truncate(len);
        self.first.truncate(len, width.first);
        self.second.truncate(len, width.second);
    }
}

impl Rows {
    fn push(&mut self, vector: &[f32]) {
        let rounded = Rounded::of(vector);
        self.floats.extend_from_slice(vector);
        self.codes.extend_from_slice(&rounded.codes);
        self.scales.push(rounded.scale);
        self.errors.push(rounded.error);
    }

    fn push_zeros(&mut self, dimension: usize) {
        self.floats.resize(self.floats.len() + dimension, 0.0);
        self.codes.resize(self.codes.len() + dimension, 0);
        self.scales.push(0.0);
        self.errors.push(0.0);
    }

    fn floats(&self, index: usize, dimension: usize) -> &[f32] {
        &self.floats[index * dimension..(index + 1) * dimension]
    }

    fn codes(&self, index: usize, dimension: usize) -> &[i8] {
        &self.codes[index * dimension..(index + 1) * dimension]
    }

    fn copy(&mut self, index: usize, other: &Self, from: usize, dimension: usize) {
        let place = index * dimension..(index + 1) * dimension;
        self.floats[place.clone()].copy_from_slice(other.floats(from, dimension));
        self.codes[place].copy_from_slice(other.codes(from, dimension));
        self.scales[index] = other.scales[from];
        self.errors[index] = other.errors[from];
    }

    fn move_within(&mut self, from: usize, to: usize, dimension: usize) {
        let place = from * dimension..(from + 1) * dimension;
        self.floats.copy_within(place.clone(), to * dimension);
        self.codes.copy_within(place, to * dimension);
        self.scales[to] = self.scales[from];
        self.errors[to] = self.errors[from];
    }

    fn truncate(&mut self, len: usize, dimension: usize) {
        self.floats.truncate(len * dimension);
        self.codes.truncate(len * dimension);
        self.scales.truncate(len);
        self.errors.truncate(len);
    }

    /// How far the int8 score of this vector can be from the float score: with `q = Q + e` and `r
    /// = R + f`, `|q·r − Q·R| = |e·r + Q·f| ≤ |e||r| + |Q||f|`, where `|r| = 1` and `|Q| ≤ 1 +
    /// |e|`.
    fn bound(&self, index: usize, probe: &Rounded) -> f32 {
        probe.error + (1.0 + probe.error) * self.errors[index] + 1e-5
    }

    fn score(&self, index: usize, probe: &[f32]) -> f32 {
        dot(probe, self.floats(index, probe.len()))
    }
}

/// The dot product of two vectors of one length.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    f32::dot(one, other).expect("both have the gallery's dimension") as f32
}
