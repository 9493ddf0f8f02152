//! When the door was watching: stretches of time, and the gaps between them.
//!
//! Who was not seen is absent only where somebody could have been seen.

/// Stretches of time in milliseconds since 1970, ascending and apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched(Vec<Stretch>);

/// From a moment up to another, which is no longer included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from_ms: i64,
    pub to_ms: i64,
}

impl Watched {
    /// From stretches in any order, which may overlap (the clock went back in between).
    pub fn new(mut stretches: Vec<Stretch>) -> Self {
        stretches.sort_unstable_by_key(|it| it.from_ms);
        let mut merged: Vec<Stretch> = Vec::with_capacity(stretches.len());
        for stretch in stretches {
            match merged.last_mut() {
                Some(last) if stretch.from_ms <= last.to_ms => {
                    last.to_ms = last.to_ms.max(stretch.to_ms)
                }
                _ => merged.push(stretch),
            }
        }
        Self(merged)
    }

    pub fn stretches(&self) -> &[Stretch] {
        &self.0
    }

    /// When nobody was watching between two moments; empty when somebody was throughout.
    pub fn gaps(&self, from_ms: i64, to_ms: i64) -> Vec<Stretch> {
        let (mut gaps, mut at_ms) = (Vec::new(), from_ms);
        let first = self.0.partition_point(|it| it.to_ms <= from_ms);
        for stretch in self.0[first..].iter().take_while(|it| it.from_ms < to_ms) {
            if stretch.from_ms > at_ms {
                gaps.push(Stretch { from_ms: at_ms, to_ms: stretch.from_ms });
            }
            at_ms = stretch.to_ms;
        }
        if at_ms < to_ms {
            gaps.push(Stretch { from_ms: at_ms, to_ms });
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(pairs: &[(i64, i64)]) -> Vec<Stretch> {
        pairs.iter().map(|(from_ms, to_ms)| Stretch { from_ms: *from_ms, to_ms: *to_ms }).collect()
    }

    fn check(watched: &[(i64, i64)], (from_ms, to_ms): (i64, i64), gaps: &[(i64, i64)]) {
        assert_eq!(
            Watched::new(stretches(watched)).gaps(from_ms, to_ms),
            stretches(gaps),
            "{watched:?}"
        );
    }

    #[test]
    fn gaps_are_what_nobody_watched() {
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
