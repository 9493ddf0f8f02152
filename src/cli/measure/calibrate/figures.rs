//! The arithmetic of `rollcall calibrate`: histograms, shares with how sure one may be of them, and
//! the threshold for a target from the best scores of searches by people who are not the one found.
//! Only computes.

use fastrand::Rng;

/// Width of a histogram's bin.
pub const BIN: f32 = 0.02;
/// Scores begin here; what is lower is in the first bin.
pub const LOWEST: f32 = -0.4;
pub const BINS: usize = 70;

/// How often each score came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram(pub Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; BINS])
    }
}

impl Histogram {
    pub fn add(&mut self, score: f32) {
        let bin = ((score - LOWEST) / BIN).floor().max(0.0) as usize;
        self.0[bin.min(BINS - 1)] += 1;
    }

    pub fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
    }

    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Each bin's lower end, and its share of all.
    pub fn shares(&self) -> impl Iterator<Item = (f32, f64)> {
        let all = self.count().max(1) as f64;
        self.0
            .iter()
            .enumerate()
            .map(move |(bin, count)| (LOWEST + BIN * bin as f32, *count as f64 / all))
    }
}

/// A share that was counted, and between which ends the true one lies with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Share {
    pub counted: u64,
    pub of: u64,
    pub low: f64,
    pub high: f64,
}

impl Share {
    /// Wilson's interval (1927), which holds for a count of none too. `independent` is how many of
    /// the trials are: looks at one person are not independent of one another.
    pub fn new(counted: u64, of: u64, independent: u64) -> Self {
        let n = independent.min(of).max(1) as f64;
        let share = counted as f64 / of.max(1) as f64;
        let z = 1.96_f64;
        let middle = share + z * z / (2.0 * n);
        let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        Self {
            counted,
            of,
            low: ((middle - half) / scale).max(0.0),
            high: ((middle + half) / scale).min(1.0),
        }
    }

    pub fn value(&self) -> f64 {
        self.counted as f64 / self.of.max(1) as f64
    }
}

/// How a threshold was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// There are enough searches to count.
    Counted,
    /// From the exponential tail of the scores, beyond what can be counted.
    Tail,
}

/// The threshold at which a target share of searches finds somebody.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Suggested {
    pub threshold: f32,
    /// Between these with a probability of 95 % (bootstrap over subjects).
    pub low: f32,
    pub high: f32,
    pub method: Method,
}

/// Searches above the threshold that are enough to count them.
const COUNTED_MIN: f64 = 10.0;
/// Searches in the tail that are enough to fit it, and the fewest subjects for a suggestion.
const TAIL_MIN: f64 = 20.0;
pub const SUBJECTS_MIN: usize = 100;
const DRAWS: usize = 200;
/// Any constant: the same scores give the same interval at every run.
const SEED: u64 = 0x5eed_0001;

/// `best` has, for each subject, the best scores of its searches among all others. None: too few to
/// tell.
pub fn suggest(best: &[Vec<f32>], fpir: f64) -> Option<Suggested> {
    let subjects = best.iter().filter(|it| !it.is_empty()).count();
    if subjects < SUBJECTS_MIN {
        return None;
    }
    let mut all: Vec<f32> = best.iter().flatten().copied().collect();
    let (threshold, method) = threshold_for(&mut all, fpir);
    let mut random = Rng::with_seed(SEED);
    let mut drawn: Vec<f32> = (0..DRAWS)
        .map(|_| {
            all.clear();
            (0..best.len()).for_each(|_| all.extend_from_slice(&best[random.usize(..best.len())]));
            if all.is_empty() { threshold } else { threshold_for(&mut all, fpir).0 }
        })
        .collect();
    drawn.sort_by(f32::total_cmp);
    let low = drawn[DRAWS / 40];
    let high = drawn[DRAWS - 1 - DRAWS / 40];
    Some(Suggested { threshold, low: low.min(threshold), high: high.max(threshold), method })
}

fn threshold_for(scores: &mut [f32], fpir: f64) -> (f32, Method) {
    let n = scores.len();
    scores.sort_unstable_by(f32::total_cmp);
    // So many may be at or above it.
    let above = |share: f64| scores[n - 1 - ((share * n as f64) as usize).min(n - 1)];
    if fpir * n as f64 >= COUNTED_MIN {
        return (above(fpir).next_up(), Method::Counted);
    }
    let share = (TAIL_MIN / n as f64).clamp(0.05, 0.5);
    let from = above(share);
    let tail: Vec<f64> =
        scores.iter().rev().take_while(|it| **it > from).map(|it| f64::from(it - from)).collect();
    let mean = tail.iter().sum::<f64>() / tail.len().max(1) as f64;
    let share = tail.len() as f64 / n as f64;
    (from + (mean * (share / fpir).ln().max(0.0)) as f32, Method::Tail)
}

/// A target that makes the rule give this threshold at so many subjects: it goes on following the
/// gallery's growth.
pub fn fpir_for(threshold: f32, at_one_percent: f32, per_decade: f32) -> Option<f64> {
    let fpir = 0.01 * 10_f64.powf(-f64::from((threshold - at_one_percent) / per_decade));
    // What the configuration takes.
    (1e-6..=0.5).contains(&fpir).then_some(fpir)
}

/// Returns `count` different numbers below `n`, ascending, the same at every run.
pub fn sample_below(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut sample = Rng::with_seed(seed).choose_multiple(0..n, count);
    sample.sort_unstable();
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_has_confidence_interval() {
        let check = |counted, of, low: f64, high: f64| {
            let share = Share::new(counted, of, of);
            assert!(
                (share.low - low).abs() < 0.0005 && (share.high - high).abs() < 0.0005,
                "{share:?}"
            );
        };
        // Brown, Cai, DasGupta (2001) and by hand.
        check(0, 10, 0.0, 0.2775);
        check(5, 10, 0.2366, 0.7634);
        check(10, 1000, 0.0054, 0.0183);
        assert!(
            Share::new(10, 1000, 100).high > Share::new(10, 1000, 1000).high,
            "fewer people give wider bounds"
        );
    }

    /// Best scores with an exponential tail: threshold(fpir) = 0.3 − 0.05 ln(fpir).
    fn searches(count: usize) -> Vec<Vec<f32>> {
        let mut random = Rng::with_seed(7);
        (0..count).map(|_| vec![(0.3 - 0.05 * random.f64().max(1e-12).ln()) as f32]).collect()
    }

    #[test]
    fn threshold_is_counted_or_extrapolated() {
        for (count, fpir, method) in
            [(20_000, 0.01, Method::Counted), (2_000, 0.0005, Method::Tail)]
        {
            let found = suggest(&searches(count), fpir).unwrap();
            let truth = (0.3 - 0.05 * fpir.ln()) as f32;
            assert_eq!(found.method, method);
            assert!((found.threshold - truth).abs() < 0.03, "{found:?}, in truth {truth}");
            assert!(found.low <= truth && truth <= found.high, "{found:?}, in truth {truth}");
        }
        assert!(suggest(&searches(SUBJECTS_MIN - 1), 0.01).is_none(), "too few for a suggestion");
        assert_eq!(
            suggest(&searches(500), 0.001),
            suggest(&searches(500), 0.001),
            "the same at every run"
        );
    }

    #[test]
    fn fpir_is_found_for_threshold() {
        assert!((fpir_for(0.50, 0.50, 0.055).unwrap() - 0.01).abs() < 1e-9);
        assert!((fpir_for(0.555, 0.50, 0.055).unwrap() - 0.001).abs() < 1e-6);
        assert!(fpir_for(0.99, 0.50, 0.055).is_none());
    }

    #[test]
    fn random_sample_has_distinct_numbers() {
        let sample = sample_below(1000, 300, 1);
        assert_eq!(sample.len(), 300);
        assert!(sample.windows(2).all(|it| it[0] < it[1]) && sample[299] < 1000);
        assert_eq!(sample_below(5, 9, 1), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn scores_fall_into_their_bins() {
        let mut histogram = Histogram::default();
        for score in [-1.0, LOWEST, LOWEST + BIN * 1.5, 1.0, 2.0] {
            histogram.add(score);
        }
        assert_eq!(
            (histogram.0[0], histogram.0[1], histogram.0[BINS - 1], histogram.count()),
            (2, 1, 2, 5)
        );
    }
}
