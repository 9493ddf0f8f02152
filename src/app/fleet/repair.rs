//! Back-off of repairs: how often one record or page is published again when it does not stay what
//! this device wrote.
//!
//! Somebody without the site's key may overwrite what the devices publish, as often as they like.
//! Each repair of the same content therefore waits longer than the one before. New content is never
//! delayed.
//!
//! Invariants: the table has at most one entry for each key that the caller passes, and callers
//! pass only subjects that are known here. Entries that are older than `FORGET_AFTER` are removed.
//! Computes only.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The pause before the first repair of the same content. Longer than a broker needs to return a
/// message (measured: below 0.1 s), so that an honest broker causes no repair.
const PAUSE_MIN: Duration = Duration::from_secs(4);
/// The longest pause, as between deliveries (`store::relay`): the repair follows within a minute after the last
/// interference.
pub const PAUSE_MAX: Duration = Duration::from_mins(1);
const BACKOFF: Backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
/// A key that needed no repair for this long starts from the beginning. Ten times the longest pause
/// (a guess).
const FORGET_AFTER: Duration = Duration::from_mins(10);
/// Below this many entries old ones are not searched: 1,024 are about 150 kB.
const SWEEP_AT: usize = 1024;

/// When each key was last published, and how often with this content. `C` identifies the content.
#[derive(Debug)]
pub struct Repairs<K, C> {
    attempts: HashMap<K, Attempt<C>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Attempt<C> {
    content: C,
    count: u32,
    at: Instant,
}

impl<K, C> Default for Repairs<K, C> {
    fn default() -> Self {
        Self { attempts: HashMap::new(), sweep_at: SWEEP_AT }
    }
}

impl<K: Eq + Hash, C: PartialEq> Repairs<K, C> {
    /// Counts a publish of this content.
    pub fn record_attempt(&mut self, key: K, content: C, now: Instant) {
        if self.attempts.len() >= self.sweep_at {
            self.attempts.retain(|_, it| now.duration_since(it.at) < FORGET_AFTER);
            self.sweep_at = SWEEP_AT.max(self.attempts.len() * 2);
        }
        let count = match self.attempts.get(&key) {
            Some(it) if it.content == content && now.duration_since(it.at) < FORGET_AFTER => {
                it.count.saturating_add(1)
            }
            _ => 1,
        };
        self.attempts.insert(key, Attempt { content, count, at: now });
    }

    /// Returns how long this content still has to wait; zero when it may be published now.
    pub fn wait(&self, key: &K, content: &C, now: Instant) -> Duration {
        let Some(it) = self.attempts.get(key).filter(|it| it.content == *content) else {
            return Duration::ZERO;
        };
        (it.at + BACKOFF.pause(it.count)).saturating_duration_since(now)
    }

    /// Returns how often this content was published in a row.
    pub fn count(&self, key: &K, content: &C) -> u32 {
        self.attempts.get(key).filter(|it| it.content == *content).map_or(0, |it| it.count)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.attempts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn repeated_repairs_wait_longer_up_to_a_minute() {
        let mut repairs = Repairs::default();
        let mut now = Instant::now();
        assert_eq!(repairs.wait(&"jane", &1, now), Duration::ZERO);
        for pause in [4, 8, 16, 32, 60, 60] {
            repairs.record_attempt("jane", 1, now);
            assert_eq!(repairs.wait(&"jane", &1, now), seconds(pause));
            now += seconds(pause);
            assert_eq!(repairs.wait(&"jane", &1, now), Duration::ZERO);
        }
        assert_eq!(repairs.count(&"jane", &1), 6);
    }

    #[test]
    fn new_content_is_not_delayed() {
        let mut repairs = Repairs::default();
        let now = Instant::now();
        (0..9).for_each(|_| repairs.record_attempt("jane", 1, now));
        assert_eq!(repairs.wait(&"jane", &2, now), Duration::ZERO);
        repairs.record_attempt("jane", 2, now);
        assert_eq!((repairs.wait(&"jane", &2, now), repairs.count(&"jane", &2)), (seconds(4), 1));
    }

    #[test]
    fn old_entries_are_removed() {
        let mut repairs = Repairs::default();
        let now = Instant::now();
        (0..SWEEP_AT).for_each(|key| repairs.record_attempt(key, 1, now));
        repairs.record_attempt(SWEEP_AT, 1, now + FORGET_AFTER);
        assert_eq!(repairs.len(), 1);
    }
}
