//! The references that probes are compared with, and the exact 1:N search among them.
//!
//! A gallery is an immutable snapshot: a change makes a new one that shares with the old all but
//! the few blocks, and the page of the slot table, that it touches. So a running search is never
//! disturbed, and adding, renaming or withdrawing a subject costs less than a millisecond at a hundred
//! thousand references (`rollcall bench`; docs/performance.md).
//!
//! **A subject's score** is the best of its references and, where it has several, of their mean:
//! what the photographs have in common is the person, what they do not is light and pose. On
//! `faces-open` (144 subjects, 307 references) the mean takes FNIR at FPIR 1 % from 2.8 % to 2.1 %
//! without raising a stranger's score (mean of 40 draws of 100 subjects: 2.9 % to 2.2 %); two
//! photographs enrolled are worth more than a better model.
//!
//! **Exact and fast.** Each template is kept twice: in float, and in int8 with one scale. A search
//! first scans the int8 codes, whose score is off by no more than a bound known per template
//! (Cauchy-Schwarz on the rounding errors); then it compares in float only those that could still
//! be among the two best subjects. The answer is that of a float scan. At 100,000 references of 512
//! elements the scan reads 51 MB where a float scan reads 205 MB. Budget: 8 ms at 100,000 x 512 on
//! one core; `rollcall bench` measures it.

mod blocks;
mod slots;
mod subject;

use std::collections::HashMap;
use std::sync::Arc;

use blocks::{Blocks, Rounded};
use slots::SlotTable;
pub use subject::Subject;

use simsimd::SpatialSimilarity as _;

use crate::ids::{Name, SubjectId};
use crate::recognise::face::Template;

/// The snapshot. Cloning shares everything.
#[derive(Clone, Default)]
pub struct Gallery {
    dimension: usize,
    references: Blocks,
    /// The mean template of each subject with several references.
    means: Blocks,
    slots: SlotTable,
    digest: u64,
    version: u64,
}

/// The best two subjects for a probe.
#[derive(Clone, Debug)]
pub struct Candidates {
    pub best: Option<Candidate>,
    /// Score of the second-best *subject*; `None` when there is no other.
    pub second_score: Option<f32>,
}

#[derive(Clone, Debug)]
pub struct Candidate {
    pub subject: Arc<Subject>,
    pub score: f32,
}

impl Gallery {
    pub fn new(dimension: usize) -> Self {
        Self {
            dimension,
            references: Blocks::new(dimension),
            means: Blocks::new(dimension),
            slots: SlotTable::default(),
            digest: 0,
            version: 0,
        }
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }
    /// References in all.
    pub fn references(&self) -> usize {
        self.references.len()
    }
    pub fn subjects(&self) -> usize {
        self.slots.len()
    }
    /// A fingerprint of subjects and references in any order: devices with the same gallery have the
    /// same. Not a proof against forgery. Kept as the references come and go:
    /// the sum of a mark for each.
    pub fn digest(&self) -> u64 {
        self.digest
    }
    /// Counts the changes since start.
    pub fn version(&self) -> u64 {
        self.version
    }
    pub fn subject(&self, id: &SubjectId) -> Option<&Arc<Subject>> {
        self.slots.subject(self.slots.slot(id)?)
    }
    /// How many references a subject has here.
    pub fn references_of(&self, id: &SubjectId) -> usize {
        self.slots.slot(id).map_or(0, |slot| self.slots.references(slot))
    }

    /// A gallery with these references added to the subject (who is renamed, should the name
    /// differ). Templates of another dimension are left out: they come from another embedder.
    /// A subject without any is not added.
    #[must_use]
    pub fn with(mut self, subject: Subject, templates: &[Template]) -> Self {
        let known = self.slots.slot(&subject.id).is_some();
        let mut fitting =
            templates.iter().filter(|template| template.dimension() == self.dimension).peekable();
        if fitting.peek().is_none() && !known {
            return self;
        }
        let id = subject.id.clone();
        let slot = self.slots.put(subject);
        let before = self.slots.references(slot);
        for template in fitting {
            let codes = self.references.push(slot, template.as_slice());
            self.digest = self.digest.wrapping_add(digest_mark(&id, codes));
            self.slots.count(slot, 1);
        }
        self.renew_mean(slot, before);
        self.version += 1;
        self
    }

    /// A gallery in which the subject has these references and no others; without any that fit, a
    /// gallery without the subject.
    #[must_use]
    pub fn replaced(self, subject: Subject, templates: &[Template]) -> Self {
        let version = self.version + 1;
        Self { version, ..self.without(&subject.id).with(subject, templates) }
    }

    /// A gallery without the subject.
    #[must_use]
    pub fn without(mut self, id: &SubjectId) -> Self {
        let Some(slot) = self.slots.slot(id) else {
            return self;
        };
        let mut digest = self.digest;
        let count = self.slots.references(slot);
        self.references
            .remove(slot, count, |codes| digest = digest.wrapping_sub(digest_mark(id, codes)));
        self.digest = digest;
        if count > 1 {
            self.means.remove(slot, 1, |_| {});
        }
        self.slots.remove(slot);
        self.version += 1;
        self
    }

    /// A gallery in which the subject has another name; unchanged when there is no such subject.
    #[must_use]
    pub fn renamed(mut self, id: &SubjectId, name: Name) -> Self {
        if self.slots.slot(id).is_some() {
            self.slots.put(Subject { id: id.clone(), name });
            self.version += 1;
        }
        self
    }

    /// Puts the mean of the slot's references in its place; a single reference is its own mean and
    /// needs none. `before` is how many references it had: who had several has a mean already.
    fn renew_mean(&mut self, slot: u32, before: usize) {
        let count = self.slots.references(slot);
        if count < 2 || count == before {
            return;
        }
        let mut sum = vec![0.0f32; self.dimension];
        for reference in self.references.of(slot, count) {
            sum.iter_mut().zip(reference).for_each(|(total, x)| *total += x);
        }
        if before > 1 {
            self.means.remove(slot, 1, |_| {});
        }
        // References that cancel out have no mean; they are no face's either.
        if let Some(mean) = Template::normalised(sum) {
            self.means.push(slot, mean.as_slice());
        }
    }

    /// The best and the second-best subject. A probe of another dimension finds nobody.
    pub fn search(&self, probe: &Template) -> Candidates {
        if self.references() == 0 || probe.dimension() != self.dimension {
            return Candidates { best: None, second_score: None };
        }
        let rounded = Rounded::of(probe.as_slice());
        let mut sure = TopTwo::default();
        let scan = self.scan(&rounded, |slot, least| sure.offer(slot, least));
        // What the second-best subject surely reaches.
        let floor = sure.second.map_or(f32::NEG_INFINITY, |(_, score)| score);
        let mut top = TopTwo::default();
        self.compare(probe, &rounded, &scan, floor, |slot, score| top.offer(slot, score));
        Candidates {
            best: top.best.and_then(|(slot, score)| self.candidate(slot, score)),
            second_score: top.second.map(|(_, score)| score),
        }
    }

    /// Every subject whose score is at least `floor`, the most alike first, without the one named.
    pub fn alike(&self, probe: &Template, floor: f32, except: &SubjectId) -> Vec<Candidate> {
        if self.references() == 0 || probe.dimension() != self.dimension {
            return Vec::new();
        }
        let own = self.slots.slot(except);
        let rounded = Rounded::of(probe.as_slice());
        let scan = self.scan(&rounded, |_, _| {});
        let mut best: HashMap<u32, f32> = HashMap::new();
        self.compare(probe, &rounded, &scan, floor, |slot, score| {
            if score >= floor && Some(slot) != own {
                let known = best.entry(slot).or_insert(score);
                *known = known.max(score);
            }
        });
        let mut found: Vec<_> =
            best.into_iter().filter_map(|(slot, score)| self.candidate(slot, score)).collect();
        found.sort_by(|a, b| {
            b.score.total_cmp(&a.score).then_with(|| a.subject.id.cmp(&b.subject.id))
        });
        found
    }

    /// The best score with the subject's own references; none where it has none here, or the probe
    /// is of another dimension.
    pub fn own_score(&self, probe: &Template, id: &SubjectId) -> Option<f32> {
        let slot = self.slots.slot(id).filter(|_| probe.dimension() == self.dimension)?;
        let own = self.references.of(slot, self.slots.references(slot));
        own.filter_map(|it| f32::dot(probe.as_slice(), it))
            .map(|score| score as f32)
            .max_by(f32::total_cmp)
    }

    fn candidate(&self, slot: u32, score: f32) -> Option<Candidate> {
        Some(Candidate { subject: Arc::clone(self.slots.subject(slot)?), score })
    }

    /// Each reference's int8 score, those of the means after them; shows for each the least that
    /// its float score can be.
    fn scan(&self, probe: &Rounded, mut least: impl FnMut(u32, f32)) -> Vec<f32> {
        let mut scores = Vec::with_capacity(self.references.len() + self.means.len());
        for blocks in [&self.references, &self.means] {
            blocks.scan(probe, &mut scores, &mut least);
        }
        scores
    }

    /// Shows the float scores of those that may reach `floor`.
    fn compare(
        &self,
        probe: &Template,
        rounded: &Rounded,
        scan: &[f32],
        floor: f32,
        mut show: impl FnMut(u32, f32),
    ) {
        let (of_references, of_means) = scan.split_at(self.references.len());
        for (blocks, scan) in [(&self.references, of_references), (&self.means, of_means)] {
            blocks.compare(probe.as_slice(), rounded, scan, floor, &mut show);
        }
    }
}

/// What one reference adds to the digest.
fn digest_mark(id: &SubjectId, codes: &[i8]) -> u64 {
    fnv1a(id.as_str().bytes().chain([0]).chain(codes.iter().map(|code| *code as u8)))
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The two best scores of different subjects.
#[derive(Default)]
struct TopTwo {
    best: Option<(u32, f32)>,
    second: Option<(u32, f32)>,
}

impl TopTwo {
    fn offer(&mut self, slot: u32, score: f32) {
        match self.best {
            Some((best, of_best)) if best == slot => self.best = Some((best, of_best.max(score))),
            Some((_, of_best)) if score <= of_best => {
                if self.second.is_none_or(|(_, of_second)| score > of_second) {
                    self.second = Some((slot, score));
                }
            }
            _ => {
                self.second = self.best.replace((slot, score));
            }
        }
    }
}

impl std::fmt::Debug for Gallery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gallery({} subjects, {} references)", self.subjects(), self.references())
    }
}

#[cfg(test)]
mod tests;
