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
//!
//! **Two parts.** A reference of a composite embedder has a second vector, and a probe may have one
//! ([`Template::is_complete`]). [`Gallery::search`] compares first parts only: everybody has one.
//! [`Gallery::search_complete`] compares both parts, and does not read the long first part of
//! everybody for it: the second part's int8 score alone bounds the score, since the first cannot
//! add more than its weight times the best score that a search by it found. So it is faster than a search of the first parts, and as exact.

mod blocks;
mod slots;
mod subject;

use std::collections::HashMap;
use std::sync::Arc;

use blocks::{Blocks, Probe, Rounded, Width};
use slots::SlotTable;
pub use subject::Subject;

use simsimd::SpatialSimilarity as _;

use crate::ids::{Name, SubjectId};
use crate::recognise::face::{Embedder, Template};

/// The snapshot. Cloning shares everything.
#[derive(Clone, Default)]
pub struct Gallery {
    width: Width,
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
    /// Whether both parts were compared; `false` for a score of first parts.
    pub complete: bool,
}

impl Gallery {
    /// An empty gallery for an embedder of one network whose vector has `dimension` elements.
    pub fn new(dimension: usize) -> Self {
        Self::with_width(Width { first: dimension, second: 0 })
    }

    /// An empty gallery for this embedder.
    pub fn of(embedder: &Embedder) -> Self {
        let second = embedder.second.map_or(0, |it| it.dimension);
        Self::with_width(Width { first: embedder.dimension(), second })
    }

    fn with_width(width: Width) -> Self {
        Self {
            width,
            references: Blocks::new(width),
            means: Blocks::new(width),
            slots: SlotTable::default(),
            digest: 0,
            version: 0,
        }
    }

    /// An empty gallery for the same embedder.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self::with_width(self.width)
    }

    /// Elements of a template's first part.
    pub fn dimension(&self) -> usize {
        self.width.first
    }
    /// Elements of a template's second part; 0 where the embedder is a single network.
    pub fn second_dimension(&self) -> usize {
        self.width.second
    }
    /// References that have both parts of a composite embedder; 0 for a single network.
    pub fn complete_references(&self) -> usize {
        self.references.complete()
    }
    /// Whether the subject has a reference with both parts.
    pub fn is_complete(&self, id: &SubjectId) -> bool {
        let Some(slot) = self.slots.slot(id) else { return false };
        self.references.of(slot, self.slots.references(slot)).any(|(_, second)| second.is_some())
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
            templates.iter().filter(|template| template.dimension() == self.width.first).peekable();
        if fitting.peek().is_none() && !known {
            return self;
        }
        let id = subject.id.clone();
        let slot = self.slots.put(subject);
        let before = self.slots.references(slot);
        for template in fitting {
            let (first, second) = self.references.push(slot, template);
            self.digest = self.digest.wrapping_add(digest_marks(&id, first, second));
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
        self.references.remove(slot, count, |first, second| {
            digest = digest.wrapping_sub(digest_marks(id, first, second));
        });
        self.digest = digest;
        if count > 1 {
            self.means.remove(slot, 1, |_, _| {});
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
        let mean = self.mean_of(slot, count);
        if before > 1 {
            self.means.remove(slot, 1, |_, _| {});
        }
        // References that cancel out have no mean; they are no face's either.
        if let Some(mean) = mean {
            self.means.push(slot, &mean);
        }
    }

    /// The mean of all first parts, and of the second parts that there are.
    fn mean_of(&self, slot: u32, count: usize) -> Option<Template> {
        let mut first = vec![0.0f32; self.width.first];
        let mut second = vec![0.0f32; self.width.second];
        let add = |sum: &mut Vec<f32>, vector: &[f32]| {
            sum.iter_mut().zip(vector).for_each(|(total, x)| *total += x);
        };
        for (of_first, of_second) in self.references.of(slot, count) {
            add(&mut first, of_first);
            if let Some(of_second) = of_second {
                add(&mut second, of_second);
            }
        }
        let mean = Template::normalised(first)?;
        // The share of the score is the probe's; a gallery does not use that of a reference.
        Some(match Template::normalised(second) {
            Some(second) => mean.with_second(&second, 0.0),
            None => mean,
        })
    }

    /// The best and the second-best subject by the first part. A probe of another dimension finds
    /// nobody.
    pub fn search(&self, probe: &Template) -> Candidates {
        if self.references() == 0 || probe.dimension() != self.width.first {
            return Candidates { best: None, second_score: None };
        }
        let probe = Probe::of(probe);
        let mut sure = TopTwo::default();
        let scan = self.scan(&probe.first, |slot, least| sure.offer(slot, least, false));
        // What the second-best subject surely reaches.
        let mut top = TopTwo::default();
        self.compare(&probe, &scan, sure.floor(), |slot, score| top.offer(slot, score, false));
        self.candidates(&top)
    }

    /// The best and the second-best subject for a complete probe. The score of a complete reference
    /// is that of both parts; of a partial one it is that of the first part and `partial_offset`,
    /// which brings it to the scale of the others. A partial probe is searched by the first part.
    ///
    /// `first_max` is the most that the probe's first part scores with anybody, as
    /// [`Self::search`] found; 1.0 where that is not known. The lower it is, the fewer references
    /// must be read whole.
    pub fn search_complete(
        &self,
        probe: &Template,
        partial_offset: f32,
        first_max: f32,
    ) -> Candidates {
        if !self.can_search_complete(probe) {
            return self.search(probe);
        }
        let probe = Probe::of(probe);
        // A hair more, for the rounding of the search that found it.
        let most = self.scan_second(&probe, first_max + 1e-4);
        let mut top = TopTwo::default();
        // The most promising first: they set a floor that few of the others can reach.
        for place in promising(&most) {
            self.offer(place, &probe, partial_offset, &mut top);
        }
        for (place, most) in most.iter().enumerate() {
            if *most >= top.floor() {
                self.offer(place, &probe, partial_offset, &mut top);
            }
        }
        self.candidates(&top)
    }

    fn can_search_complete(&self, probe: &Template) -> bool {
        probe.dimension() == self.width.first
            && self.complete_references() > 0
            && probe.second().is_some_and(|(vector, _)| vector.len() == self.width.second)
    }

    /// Every subject whose score is at least `floor`, the most alike first, without the one named;
    /// scored as in [`Self::search_complete`].
    pub fn alike(
        &self,
        probe: &Template,
        floor: f32,
        partial_offset: f32,
        except: &SubjectId,
    ) -> Vec<Candidate> {
        if self.references() == 0 || probe.dimension() != self.width.first {
            return Vec::new();
        }
        let own = self.slots.slot(except);
        let complete = self.can_search_complete(probe);
        let probe = Probe::of(probe);
        let mut best: HashMap<u32, (f32, bool)> = HashMap::new();
        let mut note = |slot: u32, score: f32, complete: bool| {
            if score >= floor && Some(slot) != own {
                let known = best.entry(slot).or_insert((score, complete));
                if score > known.0 {
                    *known = (score, complete);
                }
            }
        };
        if complete {
            for (place, most) in self.scan_second(&probe, 1.0).iter().enumerate() {
                if *most >= floor
                    && let Some((slot, score, complete)) =
                        self.score_both(place, &probe, partial_offset, floor)
                {
                    note(slot, score, complete);
                }
            }
        } else {
            let scan = self.scan(&probe.first, |_, _| {});
            self.compare(&probe, &scan, floor, |slot, score| note(slot, score, false));
        }
        let mut found: Vec<_> = best
            .into_iter()
            .filter_map(|(slot, (score, complete))| self.candidate(slot, score, complete))
            .collect();
        found.sort_by(|a, b| {
            b.score.total_cmp(&a.score).then_with(|| a.subject.id.cmp(&b.subject.id))
        });
        found
    }

    /// The best score with the subject's own references; none where it has none here, or the probe
    /// is of another dimension.
    pub fn own_score(&self, probe: &Template, id: &SubjectId) -> Option<f32> {
        let slot = self.slots.slot(id).filter(|_| probe.dimension() == self.width.first)?;
        let score = |(first, second): (&[f32], Option<&[f32]>)| {
            let of_first = f32::dot(probe.as_slice(), first)? as f32;
            Some(match probe.second().zip(second) {
                Some(((vector, weight), other)) => {
                    (1.0 - weight) * of_first + weight * f32::dot(vector, other)? as f32
                }
                None => of_first,
            })
        };
        let own = self.references.of(slot, self.slots.references(slot));
        own.filter_map(score).max_by(f32::total_cmp)
    }

    fn candidates(&self, top: &TopTwo) -> Candidates {
        Candidates {
            best: top.best.and_then(|it| self.candidate(it.slot, it.score, it.complete)),
            second_score: top.second.map(|it| it.score),
        }
    }

    fn candidate(&self, slot: u32, score: f32, complete: bool) -> Option<Candidate> {
        Some(Candidate { subject: Arc::clone(self.slots.subject(slot)?), score, complete })
    }

    /// The int8 score of each reference's first part, those of the means after them; shows for each
    /// the least that its float score can be.
    fn scan(&self, probe: &Rounded, mut least: impl FnMut(u32, f32)) -> Vec<f32> {
        let mut scores = Vec::with_capacity(self.references.len() + self.means.len());
        for blocks in [&self.references, &self.means] {
            blocks.scan(probe, &mut scores, &mut least);
        }
        scores
    }

    /// Shows the float scores of the first parts that may reach `floor`.
    fn compare(&self, probe: &Probe<'_>, scan: &[f32], floor: f32, mut show: impl FnMut(u32, f32)) {
        let (of_references, of_means) = scan.split_at(self.references.len());
        for (blocks, scan) in [(&self.references, of_references), (&self.means, of_means)] {
            blocks.compare(probe, scan, floor, &mut show);
        }
    }

    /// The most that the score of each reference can be, those of the means after them.
    fn scan_second(&self, probe: &Probe<'_>, first_max: f32) -> Vec<f32> {
        let mut most = Vec::with_capacity(self.references.len() + self.means.len());
        for blocks in [&self.references, &self.means] {
            blocks.scan_second(probe, first_max, &mut most);
        }
        most
    }

    fn score_both(
        &self,
        place: usize,
        probe: &Probe<'_>,
        partial_offset: f32,
        floor: f32,
    ) -> Option<(u32, f32, bool)> {
        match place.checked_sub(self.references.len()) {
            None => self.references.score_both(place, probe, partial_offset, floor),
            Some(place) => self.means.score_both(place, probe, partial_offset, floor),
        }
    }

    fn offer(&self, place: usize, probe: &Probe<'_>, partial_offset: f32, top: &mut TopTwo) {
        let scored = self.score_both(place, probe, partial_offset, top.floor());
        if let Some((slot, score, complete)) = scored {
            top.offer(slot, score, complete);
        }
    }
}

/// Places compared before the others.
const PROMISING: usize = 16;

/// The places of the complete references with the highest bounds.
fn promising(most: &[f32]) -> Vec<usize> {
    let mut places: Vec<usize> = Vec::with_capacity(PROMISING + 1);
    for (place, bound) in most.iter().enumerate().filter(|(_, bound)| bound.is_finite()) {
        if places.len() == PROMISING && most[places[PROMISING - 1]] >= *bound {
            continue;
        }
        places.insert(places.partition_point(|it| most[*it] >= *bound), place);
        places.truncate(PROMISING);
    }
    places
}

/// What one reference adds to the digest: a mark for each part.
fn digest_marks(id: &SubjectId, first: &[i8], second: &[i8]) -> u64 {
    let first = digest_mark(id, first);
    if second.is_empty() { first } else { first.wrapping_add(digest_mark(id, second)) }
}

fn digest_mark(id: &SubjectId, codes: &[i8]) -> u64 {
    fnv1a(id.as_str().bytes().chain([0]).chain(codes.iter().map(|code| *code as u8)))
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Clone, Copy)]
struct Scored {
    slot: u32,
    score: f32,
    complete: bool,
}

/// The two best scores of different subjects.
#[derive(Default)]
struct TopTwo {
    best: Option<Scored>,
    second: Option<Scored>,
}

impl TopTwo {
    /// Below this score a reference changes nothing.
    fn floor(&self) -> f32 {
        self.second.map_or(f32::NEG_INFINITY, |it| it.score)
    }

    fn offer(&mut self, slot: u32, score: f32, complete: bool) {
        let offered = Scored { slot, score, complete };
        match self.best {
            Some(best) if best.slot == slot => {
                if score > best.score {
                    self.best = Some(offered);
                }
            }
            Some(best) if score <= best.score => {
                if self.second.is_none_or(|second| score > second.score) {
                    self.second = Some(offered);
                }
            }
            _ => self.second = self.best.replace(offered),
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
