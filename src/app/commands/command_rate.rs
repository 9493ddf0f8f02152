//! How many commands are executed in a minute, and how many of the others are replied to.
//!
//! Invariants: `per_minute_max` bounds what commands write, and a message beyond it writes nothing.
//! Its reply is published without being stored, at a bounded rate; beyond that, it is only counted.
//! Signed commands are limited for each key, after everything else is checked, so that a captured
//! token that is late or a replay takes nothing from those who sign honestly.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::app::commands::commander::Commander;
use crate::mqtt::message::Message;
use crate::rate_limiter::RateLimiter;
use crate::wire::command::{ErrorCode, Rejection};
use crate::wire::reply;

/// Replies in a minute to what is not executed. A guess: enough for an honest client that is too
/// fast, and some 200 KB.
const UNSTORED_REPLIES_PER_MINUTE_MAX: u32 = 600;
/// The broker acknowledges such a reply within this time, or it is given up.
const UNSTORED_REPLY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct CommandRate {
    per_minute_max: u32,
    /// Without signatures; and messages that are too large to be checked.
    unsigned: RateLimiter,
    /// By the id of the key; there are no more than trusted keys.
    by_key: BTreeMap<String, RateLimiter>,
    replies: RateLimiter,
}

impl CommandRate {
    pub fn new(per_minute_max: u32) -> Self {
        Self {
            per_minute_max,
            unsigned: RateLimiter::new(per_minute_max),
            by_key: BTreeMap::new(),
            replies: RateLimiter::new(UNSTORED_REPLIES_PER_MINUTE_MAX),
        }
    }

    pub fn allows_unsigned(&mut self, now_ms: u64) -> bool {
        self.unsigned.allows(now_ms)
    }

    /// Limits the commands of a trusted key.
    pub fn allows_signed(&mut self, kid: String, now_ms: u64) -> bool {
        let fresh = || RateLimiter::new(self.per_minute_max);
        self.by_key.entry(kid).or_insert_with(fresh).allows(now_ms)
    }

    pub fn allows_reply(&mut self, now_ms: u64) -> bool {
        self.replies.allows(now_ms)
    }

    pub fn rate_limited(&self, request_id: Option<&str>) -> Rejection {
        let message = format!("more than {} commands in a minute", self.per_minute_max);
        Rejection::new(request_id, ErrorCode::RateLimited, message)
    }
}

impl Commander {
    /// Replies to a message that is not executed, without storing anything.
    pub(super) async fn reply_unstored(
        &self,
        verb: &str,
        rejection: &Rejection,
        rate: &mut CommandRate,
    ) {
        self.count(rejection.code);
        let Some(link) = &self.link else { return };
        if !rate.allows_reply(self.clock.now().boottime_ms) {
            return;
        }
        let topic = self.topics.below(&reply::topic_part(rejection.request_id.as_deref()));
        let payload = reply::rejected(verb, rejection).into_bytes();
        let sent = link.publish_batch(vec![Message { topic, payload, retain: false }]);
        // The message came by this link: without a connection now, nobody waits for the reply.
        tokio::time::timeout(UNSTORED_REPLY_TIMEOUT, sent).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_does_not_slow_another() {
        let mut rate = CommandRate::new(60);
        let allowed = |rate: &mut CommandRate, kid: &str| {
            (0..100).filter(|_| rate.allows_signed(kid.to_owned(), 0)).count()
        };
        assert_eq!(allowed(&mut rate, "office"), 60);
        assert_eq!(allowed(&mut rate, "gate"), 60);
        assert!(rate.allows_unsigned(0));
    }

    #[test]
    fn unstored_replies_have_a_bound() {
        let mut rate = CommandRate::new(1_000_000);
        assert_eq!((0..5000).filter(|_| rate.allows_reply(0)).count(), 600);
        assert!(rate.allows_reply(1000));
    }
}
