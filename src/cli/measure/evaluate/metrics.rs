//! The arithmetic of biometric performance, on plain lists of scores. Definitions: ISO/IEC
//! 19795-1:2021.
//!
//! Everywhere a score *matches* when it is at or above the threshold, and a failure to acquire is
//! the score of `NO_SCORE`: it matches at no threshold, so that it counts as an error where a match
//! was due and as nothing where none was. Not in it: photographs, files, output.

/// The score of a comparison that could not be made, below every cosine that a threshold is set at.
pub const NO_SCORE: f32 = -1.0;

/// Scores of one kind, sorted, so that shares are found by bisection.
#[derive(Clone, Debug, Default)]
struct Scores(Vec<f32>);

impl Scores {
    fn new(mut scores: Vec<f32>) -> Self {
        scores.sort_by(f32::total_cmp);
        Self(scores)
    }

    fn matching(&self, threshold: f32) -> usize {
        self.0.len() - self.0.partition_point(|score| *score < threshold)
    }

    fn share_matching(&self, threshold: f32) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.matching(threshold) as f64 / self.0.len() as f64 }
    }

    /// The smallest threshold that at most this share of the scores matches: just above the highest
    /// score that must not.
    fn threshold_for(&self, share: f64) -> f32 {
        // The small addend keeps 0.01 · 300 = 2.9999… from becoming 2.
        let allowed = (share * self.0.len() as f64 + 1e-9).floor() as usize;
        match self.0.len().checked_sub(allowed + 1) {
            Some(index) => self.0[index].max(NO_SCORE).next_up(),
            None => NO_SCORE.next_up(),
        }
    }
}

/// Scores of comparisons: of mated pairs (the same person) and of non-mated pairs (different
/// people).
#[derive(Clone, Debug, Default)]
pub struct Verification {
    mated: Scores,
    non_mated: Scores,
}

impl Verification {
    pub fn new(mated: Vec<f32>, non_mated: Vec<f32>) -> Self {
        Self { mated: Scores::new(mated), non_mated: Scores::new(non_mated) }
    }

    /// False match rate: share of the non-mated comparisons that match.
    pub fn fmr(&self, threshold: f32) -> f64 {
        self.non_mated.share_matching(threshold)
    }

    /// False non-match rate: share of the mated comparisons that do not match.
    pub fn fnmr(&self, threshold: f32) -> f64 {
        1.0 - self.mated.share_matching(threshold)
    }

    /// Every threshold at which something changes, ascending.
    pub fn thresholds(&self) -> Vec<f32> {
        let scores = self.mated.0.iter().chain(&self.non_mated.0);
        let mut all: Vec<f32> =
            scores.flat_map(|score| [*score, score.next_up()]).filter(|t| *t > NO_SCORE).collect();
        all.sort_by(f32::total_cmp);
        all.dedup();
        all
    }

    /// Equal error rate: where FMR and FNMR cross; between two thresholds, the mean of both where
    /// they differ least.
    pub fn eer(&self) -> f64 {
        let rates = self
            .thresholds()
            .into_iter()
            .map(|threshold| (self.fmr(threshold), self.fnmr(threshold)));
        let closest = rates.min_by(|a, b| (a.0 - a.1).abs().total_cmp(&(b.0 - b.1).abs()));
        closest.map_or(0.0, |(fmr, fnmr)| f64::midpoint(fmr, fnmr))
    }

    /// True match rate (1 − FNMR) at the smallest threshold whose FMR is no greater than this.
    pub fn tmr_at_fmr(&self, fmr: f64) -> f64 {
        1.0 - self.fnmr(self.threshold_at_fmr(fmr))
    }

    pub fn threshold_at_fmr(&self, fmr: f64) -> f32 {
        self.non_mated.threshold_for(fmr)
    }

    /// Share of all comparisons decided rightly.
    pub fn accuracy(&self, threshold: f32) -> f64 {
        let right = self.mated.matching(threshold) + self.non_mated.0.len()
            - self.non_mated.matching(threshold);
        right as f64 / (self.mated.0.len() + self.non_mated.0.len()).max(1) as f64
    }

    /// The threshold with the greatest accuracy on these very comparisons, and that accuracy: a
    /// bound, not a promise.
    pub fn best_accuracy(&self) -> (f32, f64) {
        let all =
            self.thresholds().into_iter().map(|threshold| (threshold, self.accuracy(threshold)));
        all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0.0, 0.0))
    }
}

/// What an identification transaction came to: the best candidate's score, and whether it is the
/// right subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    pub score: f32,
    pub own: bool,
}

/// Searches of an open set: by people who are enrolled (mated) and by strangers (non-mated).
#[derive(Clone, Debug, Default)]
pub struct OpenSet {
    /// Scores of mated searches whose best candidate was the right one.
    right: Scores,
    mated: usize,
    non_mated: Scores,
}

impl OpenSet {
    /// `None` is a failure to acquire: a miss for the mated, no false positive for a stranger.
    pub fn new(mated: &[Option<Search>], non_mated: &[Option<f32>]) -> Self {
        let right = mated.iter().flatten().filter(|search| search.own).map(|search| search.score);
        Self {
            right: Scores::new(right.collect()),
            mated: mated.len(),
            non_mated: Scores::new(
                non_mated.iter().map(|score| score.unwrap_or(NO_SCORE)).collect(),
            ),
        }
    }

    /// False negative identification rate (rank 1): share of the mated searches that do not return
    /// the own subject as best candidate at or above the threshold.
    pub fn fnir(&self, threshold: f32) -> f64 {
        1.0 - self.right.matching(threshold) as f64 / self.mated.max(1) as f64
    }

    /// False positive identification rate: share of the non-mated searches that return anybody at
    /// or above the threshold.
    pub fn fpir(&self, threshold: f32) -> f64 {
        self.non_mated.share_matching(threshold)
    }

    /// The smallest threshold whose FPIR is no greater than this.
    pub fn threshold_at_fpir(&self, fpir: f64) -> f32 {
        self.non_mated.threshold_for(fpir)
    }

    /// Share of the mated searches whose best candidate is the own subject, whatever the score.
    pub fn rank1(&self) -> f64 {
        self.right.0.len() as f64 / self.mated.max(1) as f64
    }

    /// Points (FPIR, FNIR) of the detection error trade-off, from loose to strict.
    pub fn det(&self) -> Vec<(f64, f64)> {
        let mut thresholds: Vec<f32> =
            self.non_mated.0.iter().map(|score| score.next_up()).collect();
        thresholds.dedup();
        thresholds
            .into_iter()
            .map(|threshold| (self.fpir(threshold), self.fnir(threshold)))
            .collect()
    }
}
