//! Coverage: the intervals in which the device was watching, and the gaps between them.
//!
//! Absence is claimed only within coverage.

/// Stretches of time in milliseconds since 1970, ascending and apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(Vec<Interval>);

/// From a moment up to another, which is not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub from_ms: i64,
    pub to_ms: i64,
}

impl Coverage {
    /// From intervals in any order, which may overlap (the clock went back in between).
    pub fn new(mut intervals: Vec<Interval>) -> Self {
        intervals.sort_unstable_by_key(|it| it.from_ms);
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for interval in intervals {
            match merged.last_mut() {
                Some(last) if interval.from_ms <= last.to_ms => {
                    last.to_ms = last.to_ms.max(interval.to_ms);
                }
                _ => merged.push(interval),
            }
        }
        Self(merged)
    }

    pub fn intervals(&self) -> &[Interval] {
        &self.0
    }

    /// Returns the gaps in coverage between two moments.
    pub fn gaps(&self, from_ms: i64, to_ms: i64) -> Vec<Interval> {
        let mut gaps = Vec::new();
        let mut at_ms = from_ms;
        let first = self.0.partition_point(|it| it.to_ms <= from_ms);
        for interval in self.0[first..].iter().take_while(|it| it.from_ms < to_ms) {
            if interval.from_ms > at_ms {
                gaps.push(Interval { from_ms: at_ms, to_ms: interval.from_ms });
            }
            at_ms = interval.to_ms;
        }
        if at_ms < to_ms {
            gaps.push(Interval { from_ms: at_ms, to_ms });
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intervals(pairs: &[(i64, i64)]) -> Vec<Interval> {
        pairs.iter().map(|(from_ms, to_ms)| Interval { from_ms: *from_ms, to_ms: *to_ms }).collect()
    }

    fn check(watched: &[(i64, i64)], (from_ms, to_ms): (i64, i64), gaps: &[(i64, i64)]) {
        assert_eq!(
            Coverage::new(intervals(watched)).gaps(from_ms, to_ms),
            intervals(gaps),
            "{watched:?}"
        );
    }

    #[test]
    fn gaps_are_intervals_without_coverage() {
        check(&[], (0, 10), &[(0, 10)]);
        check(&[(0, 10)], (0, 10), &[]);
        check(&[(5, 10), (0, 5)], (0, 10), &[]);
        check(&[(2, 4), (3, 6)], (0, 10), &[(0, 2), (6, 10)]);
        check(&[(0, 3), (4, 20)], (5, 10), &[]);
        check(&[(0, 3), (4, 20)], (2, 10), &[(3, 4)]);
        check(&[(0, 5), (20, 30)], (5, 20), &[(5, 20)]);
        check(&[(0, 30), (2, 4)], (5, 20), &[]);
    }
}
