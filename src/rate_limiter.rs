//! A rate limiter: a token bucket that holds one minute's worth and fills evenly.

const MS_PER_MINUTE: f64 = 60_000.0;

#[derive(Debug)]
pub struct RateLimiter {
    per_minute_max: f64,
    tokens: f64,
    filled_at_ms: Option<u64>,
}

impl RateLimiter {
    /// Starts with a full bucket.
    pub fn new(per_minute_max: u32) -> Self {
        let full = f64::from(per_minute_max);
        Self { per_minute_max: full, tokens: full, filled_at_ms: None }
    }

    /// Takes a token if there is one. `now_ms` is the time since boot, which never jumps.
    pub fn allows(&mut self, now_ms: u64) -> bool {
        if let Some(filled_at_ms) = self.filled_at_ms {
            let minutes = now_ms.saturating_sub(filled_at_ms) as f64 / MS_PER_MINUTE;
            self.tokens = (self.tokens + minutes * self.per_minute_max).min(self.per_minute_max);
        }
        self.filled_at_ms = Some(now_ms);
        let is_allowed = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(is_allowed));
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_limited_and_recovers() {
        let mut limiter = RateLimiter::new(60);
        assert_eq!((0..100).filter(|_| limiter.allows(0)).count(), 60);
        assert!(!limiter.allows(900));
        assert!(limiter.allows(2_000));
    }
}
