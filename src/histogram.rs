//! Histograms of durations, in fixed buckets from a millisecond to ten seconds.
//!
//! Every frame writes some, so an observation takes no lock and allocates nothing: it is two relaxed
//! additions. The count is the sum of the buckets, so both always agree. A reader may see a bucket's
//! newest entry before its share of the sum.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The inclusive upper bounds of the buckets. One more bucket holds what takes longer.
pub const BOUNDS: [Duration; 13] = [
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// The contents of a histogram at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The observations between the previous bound and this one; the last is beyond all bounds.
    pub buckets: [u64; BOUNDS.len() + 1],
    pub sum: Duration,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        // 64 bits of nanoseconds last for five hundred years.
        self.sum_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn read(&self) -> Reading {
        let buckets = std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed));
        Reading { buckets, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

impl Reading {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_bounds_are_inclusive() {
        let histogram = Histogram::default();
        for us in [0, 1_000, 1_001, 2_500, 99_999, 10_000_000, 10_000_001, 86_400_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let read = histogram.read();
        assert_eq!(read.buckets, [2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((read.count(), read.sum), (8, Duration::from_micros(86_420_104_501)));
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn concurrent_observations_are_all_counted() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    (0..10_000).for_each(|_| histogram.observe(Duration::from_millis(3)));
                });
            }
        });
        assert_eq!(
            (histogram.read().count(), histogram.read().sum),
            (20_000, Duration::from_mins(1))
        );
    }
}
