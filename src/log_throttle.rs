//! Limits how often a repeated fault is logged: the first at once, then at most one line per
//! interval. Counting what is not logged stays with the caller.

use std::time::Duration;

use crate::clock::Stamp;

#[derive(Debug)]
pub struct LogThrottle {
    interval: Duration,
    logged_at: Option<Stamp>,
}

impl LogThrottle {
    pub const fn new(interval: Duration) -> Self {
        Self { interval, logged_at: None }
    }

    /// Returns whether a line may be logged now, and if so starts the next interval.
    pub fn is_due(&mut self, now: &Stamp) -> bool {
        let is_due = self.logged_at.is_none_or(|at| now.since(&at) >= self.interval);
        if is_due {
            self.logged_at = Some(*now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_due_per_interval() {
        let mut throttle = LogThrottle::new(Duration::from_mins(1));
        let at = |seconds| Stamp { wall_ms: 0, boottime_ms: seconds * 1000, trusted: false };
        let due: Vec<u64> = (0..180).filter(|second| throttle.is_due(&at(*second))).collect();
        assert_eq!(due, [0, 60, 120]);
    }
}
