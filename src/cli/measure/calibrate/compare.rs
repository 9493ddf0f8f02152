//! A gallery compared with itself: references of one subject with each other, and everybody with
//! everybody else.
//!
//! Invariant: what comes out does not depend on the number of workers. A search is what the daemon
//! would do: a subject's score is the best of its references and of their mean.
//!
//! Budget: some 30 ns a comparison of 512 elements on one core; probes are taken in blocks, so that
//! each reference is read once for a block and not once for each of it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use simsimd::SpatialSimilarity;

use crate::cli::measure::calibrate::figures::{Histogram, sample_below};
use crate::ids::SubjectId;
use crate::recognise::face::{Embedder, Template};

/// Probes compared together: their templates fit into a processor's second cache.
const BLOCK: usize = 32;
/// Two references with this score are of one photograph: they show nothing of how a person varies.
pub const IDENTICAL: f32 = 0.9999;
/// Pairs kept while comparing; far more than are listed.
const PAIRS_KEPT: usize = 10_000;
const SEED: u64 = 0x5eed_0000;
/// Of each search so many of the best are kept until the doubles are known.
const BEST_KEPT: usize = 8;

/// References, subject after subject, and the mean of those who have several.
#[derive(Default)]
pub struct Matrix {
    shape: Shape,
    floats: Vec<f32>,
    rows: Vec<Row>,
    pub subjects: Vec<SubjectId>,
    pub references: usize,
    pub single: usize,
}

#[derive(Clone, Copy)]
struct Row {
    subject: u32,
    is_mean: bool,
    /// Whether it has both parts of a composite embedder.
    is_complete: bool,
}

/// How the parts of a composite embedder lie in a row, and count.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// Elements of a row: of both parts, each times the square root of its weight.
    width: usize,
    /// Elements of the first part.
    first: usize,
    /// Share of the first part.
    first_weight: f32,
    /// Added to the score of first parts where one of a pair has no second: it brings them to the
    /// scale of the others.
    partial_offset: f32,
}

impl Matrix {
    /// An empty matrix for references of this embedder; `partial_offset` is the distance of the
    /// threshold of both parts from that of the first.
    pub fn new(embedder: &Embedder, partial_offset: f32) -> Self {
        let second = embedder.second.map_or(0, |it| it.dimension);
        let first = embedder.dimension();
        let first_weight = embedder.first.weight;
        let shape = Shape { width: first + second, first, first_weight, partial_offset };
        Self { shape, ..Self::default() }
    }

    /// The references of one subject, all at once.
    pub fn add(&mut self, id: SubjectId, templates: &[Template]) {
        let subject = self.subjects.len() as u32;
        self.subjects.push(id);
        self.references += templates.len();
        self.single += usize::from(templates.len() == 1);
        let mean = (templates.len() > 1).then(|| Template::mean(templates)).flatten();
        for (template, is_mean) in
            templates.iter().map(|it| (it, false)).chain(mean.iter().map(|it| (it, true)))
        {
            let mut row = template.concatenated();
            let is_complete = template.is_complete();
            if !is_complete && self.shape.first_weight < 1.0 {
                for x in &mut row {
                    *x *= self.shape.first_weight.sqrt();
                }
            }
            row.resize(self.shape.width, 0.0);
            self.floats.extend_from_slice(&row);
            self.rows.push(Row { subject, is_mean, is_complete });
        }
    }

    fn row(&self, at: usize) -> &[f32] {
        &self.floats[at * self.shape.width..(at + 1) * self.shape.width]
    }

    fn score(&self, one: usize, other: usize) -> f32 {
        let Shape { first, first_weight, partial_offset, width } = self.shape;
        let dot = |elements: usize| {
            f32::dot(&self.row(one)[..elements], &self.row(other)[..elements]).unwrap_or(0.0) as f32
        };
        if first == width || (self.rows[one].is_complete && self.rows[other].is_complete) {
            dot(width)
        } else {
            dot(first) / first_weight + partial_offset
        }
    }

    /// Scores of all pairs of references of one subject; of one photograph enrolled twice only the
    /// number.
    pub fn genuine(&self) -> (Vec<f32>, u64) {
        let mut scores = Vec::new();
        let mut identical = 0;
        let mut from = 0;
        for at in 0..self.rows.len() {
            if self.rows[at].subject != self.rows[from].subject {
                from = at;
            }
            for other in (from..at).filter(|_| !self.rows[at].is_mean) {
                match self.score(at, other) {
                    score if score >= IDENTICAL => identical += 1,
                    score => scores.push(score),
                }
            }
        }
        (scores, identical)
    }
}

/// What comparing everybody with everybody else came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub comparisons: u64,
    /// Of single references of different subjects.
    pub histogram: Histogram,
    pub highest: f32,
    /// The best score of each search among the others, with its subject's number; probable doubles
    /// left out.
    pub best: Vec<(u32, f32)>,
    /// Two subjects and their best score.
    pub pairs: Vec<(u32, u32, f32)>,
    /// Not everybody was searched for.
    pub sampled: bool,
}

/// From which scores on a pair is reported, and from which two subjects are taken for one person.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    pub near: f32,
    pub double: f32,
}

#[derive(Default)]
struct Partition {
    comparisons: u64,
    histogram: Histogram,
    highest: f32,
    /// Of each search its subject, and the best of the others, the most alike first.
    best: Vec<(u32, Best)>,
    pairs: HashMap<(u32, u32), f32>,
    floor: f32,
}

/// Everybody with everybody else, or, where that is more than `comparisons_max`, a sample that is
/// always the same.
pub fn compare(
    matrix: &Matrix,
    marks: Marks,
    comparisons_max: u64,
    workers: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Tally {
    let references: Vec<usize> =
        (0..matrix.rows.len()).filter(|at| !matrix.rows[*at].is_mean).collect();
    let affordable = (comparisons_max / matrix.rows.len().max(1) as u64).max(1) as usize;
    let sampled = affordable < references.len();
    let probes: Vec<usize> = if sampled {
        sample_below(references.len(), affordable, SEED)
            .into_iter()
            .map(|at| references[at])
            .collect()
    } else {
        references
    };
    let mut is_probe = vec![false; matrix.rows.len()];
    for at in &probes {
        is_probe[*at] = true;
    }
    let blocks: Vec<&[usize]> = probes.chunks(BLOCK).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut part = Partition { floor: marks.near, highest: -1.0, ..Partition::default() };
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            part.search(matrix, block, &is_probe);
            progress(block.len() as u64);
        }
        part
    };
    let parts: Vec<Partition> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|it| it.join().expect("a worker does not panic")).collect()
    });
    let mut tally = Tally { sampled, highest: -1.0, ..Tally::default() };
    let mut pairs: HashMap<(u32, u32), f32> = HashMap::new();
    let mut searches: Vec<(u32, Best)> = Vec::new();
    for part in parts {
        tally.comparisons += part.comparisons;
        tally.histogram.join(&part.histogram);
        tally.highest = tally.highest.max(part.highest);
        searches.extend(part.best);
        for (pair, score) in part.pairs {
            let best = pairs.entry(pair).or_insert(score);
            *best = best.max(score);
        }
    }
    let doubles: HashSet<(u32, u32)> =
        pairs.iter().filter(|(_, score)| **score >= marks.double).map(|(pair, _)| *pair).collect();
    let without_doubles = |(own, best): (u32, Best)| {
        // Pairs are let go of when there are very many: a score alone is enough.
        let is_double = |(other, score): &&(u32, f32)| {
            *score >= marks.double || doubles.contains(&pair(own, *other))
        };
        (own, best.0.iter().find(|it| !is_double(it)).map_or(-1.0, |(_, score)| *score))
    };
    tally.best = searches.into_iter().map(without_doubles).collect();
    tally.best.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    tally.pairs = pairs.into_iter().map(|((one, other), score)| (one, other, score)).collect();
    tally.pairs.sort_by(|a, b| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1))));
    tally
}

/// The best other subjects of a search, the most alike first.
#[derive(Default)]
struct Best(Vec<(u32, f32)>);

impl Best {
    fn offer(&mut self, other: u32, score: f32) {
        if self.0.len() == BEST_KEPT && self.0[BEST_KEPT - 1].1 >= score {
            return;
        }
        self.0.insert(self.0.partition_point(|(_, it)| *it >= score), (other, score));
        self.0.truncate(BEST_KEPT);
    }
}

/// The same whichever is first.
fn pair(one: u32, other: u32) -> (u32, u32) {
    (one.min(other), one.max(other))
}

impl Partition {
    fn search(&mut self, matrix: &Matrix, block: &[usize], is_probe: &[bool]) {
        let mut best: Vec<Best> = block.iter().map(|_| Best::default()).collect();
        // The score of each probe with the subject whose rows are being read.
        let mut merged = vec![-1.0_f32; block.len()];
        for (at, row) in matrix.rows.iter().enumerate() {
            for (probe, merged) in block.iter().zip(&mut merged) {
                if row.subject == matrix.rows[*probe].subject {
                    continue;
                }
                let score = matrix.score(*probe, at);
                *merged = merged.max(score);
                // Two probes meet twice, and are one comparison.
                if !row.is_mean && (at > *probe || !is_probe[at]) {
                    self.comparisons += 1;
                    self.histogram.add(score);
                    self.highest = self.highest.max(score);
                }
            }
            if matrix.rows.get(at + 1).is_none_or(|next| next.subject != row.subject) {
                for ((probe, best), merged) in block.iter().zip(&mut best).zip(&mut merged) {
                    let own = matrix.rows[*probe].subject;
                    let score = std::mem::replace(merged, -1.0);
                    if own == row.subject {
                        continue;
                    }
                    if score >= self.floor {
                        self.pair(own, row.subject, score);
                    }
                    best.offer(row.subject, score);
                }
            }
        }
        self.best.extend(
            block.iter().zip(best).map(|(probe, best)| (matrix.rows[*probe].subject, best)),
        );
    }

    fn pair(&mut self, one: u32, other: u32, score: f32) {
        let best = self.pairs.entry(pair(one, other)).or_insert(score);
        *best = best.max(score);
        if self.pairs.len() >= 2 * PAIRS_KEPT {
            let mut scores: Vec<f32> = self.pairs.values().copied().collect();
            scores.sort_unstable_by(|a, b| b.total_cmp(a));
            self.floor = scores[PAIRS_KEPT];
            self.pairs.retain(|_, score| *score > self.floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::{ModelDigest, Part};

    #[test]
    fn partial_pairs_are_compared_by_first_part() {
        let part =
            |of, dimension, weight| Part { digest: ModelDigest([of; 32]), dimension, weight };
        let embedder = Embedder::composite(part(1, 64, 0.3), part(2, 64, 0.7));
        let whole = |seed| template(seed).with_second(&template(seed + 1000), 0.7);
        let mut matrix = Matrix::new(&embedder, -0.01);
        let references = [whole(1), whole(2), template(3)];
        for (at, it) in references.iter().enumerate() {
            let id = SubjectId::new(&format!("p{at}")).unwrap();
            matrix.add(id, std::slice::from_ref(it));
        }
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} {b}");
        close(matrix.score(0, 1), references[0].compare(&references[1]));
        close(matrix.score(0, 2), references[0].compare(&references[2]) - 0.01);
    }

    fn template(seed: u64) -> Template {
        let mut random = fastrand::Rng::with_seed(seed);
        Template::normalised((0..64).map(|_| random.usize(..2001) as f32 / 1000.0 - 1.0).collect())
            .unwrap()
    }

    fn matrix() -> Matrix {
        let mut matrix = Matrix::new(&Embedder::single(ModelDigest([0; 32]), 64), 0.0);
        for number in 0..150_u64 {
            let templates: Vec<_> = (0..=number % 3).map(|at| template(number * 10 + at)).collect();
            matrix.add(SubjectId::new(&format!("p{number}")).unwrap(), &templates);
        }
        // One photograph under two ids.
        matrix.add(SubjectId::new("double").unwrap(), &[template(70)]);
        matrix
    }

    const MARKS: Marks = Marks { near: 0.4, double: 0.9 };

    #[test]
    fn all_pairs_are_compared_with_any_workers() {
        let matrix = matrix();
        let one = compare(&matrix, MARKS, u64::MAX, 1, &|_| ());
        let three = compare(&matrix, MARKS, u64::MAX, 3, &|_| ());
        assert_eq!(
            (&one.best, &one.pairs, &one.histogram),
            (&three.best, &three.pairs, &three.histogram)
        );
        assert_eq!((one.best.len(), one.sampled), (matrix.references, false));
        let own: u64 = (0..150_u64).map(|it| (it % 3 + 1).pow(2)).sum::<u64>() + 1;
        assert_eq!(one.comparisons, ((matrix.references as u64).pow(2) - own) / 2);
        assert_eq!(one.pairs[0].0, 7);
        assert_eq!(one.pairs[0].1, 150);
        assert!(
            one.pairs[0].2 > IDENTICAL && one.best.iter().all(|(_, score)| *score < MARKS.double)
        );
        let (genuine, identical) = matrix.genuine();
        assert_eq!((genuine.len(), identical), (50 + 3 * 50, 0));
    }

    #[test]
    fn duplicate_is_excluded_from_every_search() {
        let direction = |at: usize, share: f32| {
            let mut raw = vec![0.0; 8];
            (raw[0], raw[at]) = (share, (1.0 - share * share).sqrt());
            Template::normalised(raw).unwrap()
        };
        let mut matrix = Matrix::new(&Embedder::single(ModelDigest([0; 32]), 8), 0.0);
        // Of one person: the first two agree wholly, the other references less, and would look like
        // a stranger's.
        matrix.add(SubjectId::new("one").unwrap(), &[direction(1, 1.0), direction(2, 0.7)]);
        matrix.add(SubjectId::new("double").unwrap(), &[direction(1, 1.0), direction(3, 0.7)]);
        matrix.add(SubjectId::new("other").unwrap(), &[direction(4, 0.1)]);
        let tally = compare(&matrix, MARKS, u64::MAX, 2, &|_| ());
        assert_eq!(tally.pairs.iter().filter(|it| it.2 >= MARKS.double).count(), 1);
        assert!(tally.best.iter().all(|(_, score)| *score < 0.2), "{:?}", tally.best);
    }

    #[test]
    fn comparison_sample_is_deterministic() {
        let matrix = matrix();
        let some = |workers| compare(&matrix, MARKS, 10_000, workers, &|_| ());
        assert!(some(1).sampled && some(1).best.len() < matrix.references);
        assert_eq!(some(1).best, some(2).best);
    }
}
