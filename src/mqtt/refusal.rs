//! Why a broker refused a publish, and which topics it refuses at present.
//!
//! MQTT 5 states a reason code in PUBACK (3.4.2.1). MQTT 3.1.1 cannot: there, the missing echo of a
//! probe is the only sign (`echo`). Some brokers answer a publish that their access rules forbid by
//! closing the connection, in either version.
//!
//! Memory: at most `REFUSED_TOPICS_MAX` topics, which name no person (`topics::rule_of`).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::mqtt::topics::{is_own, rule_of};

/// What is refused is attempted again within a minute, so this is what nobody attempts any more.
const LIFETIME: Duration = Duration::from_mins(10);
/// What is not in the outbox is not sent to a refused topic for this long: its senders know no
/// longer pauses than seconds.
const DAMPED: Duration = Duration::from_secs(30);
/// A device publishes on fewer topics than this.
const REFUSED_TOPICS_MAX: usize = 16;

/// Why the broker refused a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefusal {
    #[error("access rules")]
    NotAuthorised,
    /// MQTT 3.1.1: a probe did not come back, so the access rules forbid to publish or to subscribe
    /// to it.
    #[error("access rules; what is published does not come back")]
    NoEcho,
    #[error("access rules; it closes the connection at each attempt")]
    Closed,
    #[error("it does not accept the topic")]
    TopicName,
    #[error("it does not accept the content of a message")]
    Payload,
    #[error("a quota is exhausted")]
    Quota,
    #[error("without a known reason")]
    Unspecified,
}

impl PublishRefusal {
    /// Sorts a reason code of PUBACK. `None`: the broker has the message, even if nobody has
    /// subscribed to it (0x10).
    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            0x00 | 0x10 => None,
            0x87 => Some(Self::NotAuthorised),
            0x90 => Some(Self::TopicName),
            0x97 => Some(Self::Quota),
            0x99 => Some(Self::Payload),
            _ => Some(Self::Unspecified),
        }
    }

    /// Returns whether somebody has to correct something at the broker before a retry can help.
    pub fn needs_correction(self) -> bool {
        matches!(self, Self::NotAuthorised | Self::NoEcho | Self::Closed | Self::TopicName)
    }
}

/// A topic on which the broker refuses messages at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedTopic {
    pub topic: String,
    pub refusal: PublishRefusal,
}

impl fmt::Display for RefusedTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the broker accepts our connection and refuses our messages: {} (topic {})",
            self.refusal, self.topic
        )
    }
}

/// The topics that are refused, over connections.
#[derive(Default)]
pub(super) struct RefusedTopics {
    topics: BTreeMap<String, (PublishRefusal, Instant)>,
}

impl RefusedTopics {
    /// Records a refusal, and logs it unless it is known already.
    pub(super) fn record(&mut self, topic: &str, refusal: PublishRefusal) {
        let now = Instant::now();
        self.topics.retain(|_, (_, at)| now < *at + LIFETIME);
        let topic = rule_of(topic);
        let known = self.topics.get(&topic).is_some_and(|(before, _)| *before == refusal);
        let is_kept = self.topics.len() < REFUSED_TOPICS_MAX || self.topics.contains_key(&topic);
        if is_kept {
            self.topics.insert(topic.clone(), (refusal, now));
        }
        if is_kept && !known {
            tracing::error!(
                topic,
                reason = %refusal,
                "the broker accepts our connection and refuses our messages"
            );
        }
    }

    /// Records that the broker accepted a message.
    pub(super) fn clear(&mut self, topic: &str) {
        if self.topics.is_empty() {
            return;
        }
        let topic = rule_of(topic);
        if self.topics.remove(&topic).is_some() {
            tracing::info!(topic, "the broker accepts our messages again");
        }
    }

    /// Returns why the topic was refused within the last `DAMPED`.
    pub(super) fn refused_recently(&self, topic: &str) -> Option<PublishRefusal> {
        if self.topics.is_empty() {
            return None;
        }
        let (refusal, at) = self.topics.get(&rule_of(topic))?;
        (Instant::now() < *at + DAMPED).then_some(*refusal)
    }

    pub(super) fn is_refused(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// Returns one of them: an event's topic before others. Home Assistant's is logged only, because
    /// a broker without Home Assistant need not have a rule for it.
    pub(super) fn first(&self) -> Option<RefusedTopic> {
        let now = Instant::now();
        let present =
            self.topics.iter().filter(|(topic, (_, at))| is_own(topic) && now < *at + LIFETIME);
        let (topic, (refusal, _)) = present.min_by_key(|it| !it.0.contains("/event/"))?;
        Some(RefusedTopic { topic: topic.clone(), refusal: *refusal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_code_is_sorted() {
        use PublishRefusal::{NotAuthorised, Payload, Quota, TopicName, Unspecified};
        for (code, expected) in [
            (0x00, None),
            (0x10, None),
            (0x80, Some(Unspecified)),
            (0x83, Some(Unspecified)),
            (0x87, Some(NotAuthorised)),
            (0x90, Some(TopicName)),
            (0x91, Some(Unspecified)),
            (0x97, Some(Quota)),
            (0x99, Some(Payload)),
            (0xff, Some(Unspecified)),
        ] {
            assert_eq!(PublishRefusal::from_code(code), expected, "{code:#x}");
        }
    }

    #[test]
    fn refused_topics_are_bounded_and_cleared() {
        let mut refused = RefusedTopics::default();
        let topic = |number| format!("rollcall/hq/door-{number}/status");
        for number in 0..1000 {
            refused.record(&topic(number), PublishRefusal::NotAuthorised);
        }
        assert_eq!(refused.topics.len(), REFUSED_TOPICS_MAX);
        assert!(refused.first().is_some());
        for number in 0..1000 {
            refused.clear(&topic(number));
        }
        assert_eq!(refused.first(), None);
    }

    #[test]
    fn refused_events_are_named_first() {
        let mut refused = RefusedTopics::default();
        let mut record = |topic| refused.record(topic, PublishRefusal::NotAuthorised);
        record("homeassistant/device/rollcall-hq/door-1/config");
        record("rollcall/hq/door-1/a");
        record("rollcall/hq/door-1/event/attendance");
        assert_eq!(refused.first().unwrap().topic, "rollcall/hq/door-1/event/attendance");
        refused.clear("rollcall/hq/door-1/event/attendance");
        assert_eq!(refused.first().unwrap().topic, "rollcall/hq/door-1/a");
        refused.clear("rollcall/hq/door-1/a");
        assert_eq!(refused.first(), None, "Home Assistant");
    }

    #[test]
    fn refused_topic_names_no_person() {
        let mut refused = RefusedTopics::default();
        refused.record("rollcall/hq/door-1/receipt/jane", PublishRefusal::NotAuthorised);
        let found = refused.first().unwrap();
        assert_eq!(found.topic, "rollcall/hq/door-1/receipt/+");
        assert_eq!(
            found.to_string(),
            "the broker accepts our connection and refuses our messages: access rules \
             (topic rollcall/hq/door-1/receipt/+)"
        );
        refused.clear("rollcall/hq/door-1/receipt/joe");
        assert_eq!(refused.first(), None);
    }
}
