//! Back-off: how long to wait before the next attempt after several failures in a row.
//!
//! Each pause is twice the one before, up to a maximum. The callers count the failures, because
//! they differ in what resets the count. Only `shortened` is random.

use std::time::Duration;

/// The bounds of the pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub shortest: Duration,
    pub longest: Duration,
}

impl Backoff {
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest }
    }

    /// Returns the pause after this many failures in a row; zero after none.
    pub fn pause(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.shortest.saturating_mul(factor).min(self.longest)
    }
}

/// Shortens a pause at random by up to this share of it, so that the devices of a site do not
/// return to a restarted server at the same moment.
pub fn shortened(pause: Duration, share_max: f64) -> Duration {
    pause.mul_f64(1.0 - share_max * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        for (failures, seconds) in
            [(0, 0), (1, 1), (2, 2), (6, 32), (7, 60), (33, 60), (u32::MAX, 60)]
        {
            assert_eq!(backoff.pause(failures), Duration::from_secs(seconds), "{failures}");
        }
    }

    #[test]
    fn shortened_pauses_stay_within_their_share() {
        for _ in 0..100 {
            let pause = shortened(Duration::from_secs(4), 0.25);
            assert!((3..=4).contains(&pause.as_secs()) && pause <= Duration::from_secs(4));
        }
    }
}
