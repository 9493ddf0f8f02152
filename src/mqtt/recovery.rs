//! What the driver remembers from one connection to the next: the pauses, which version of MQTT the
//! broker speaks, and on which publish it closes the connection.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::shortened;
use crate::mqtt::fault::{ConnectRefusal, LinkFault};
use crate::mqtt::settings::{RetrySettings, Version, VersionChoice};

/// Each pause is shortened at random by up to this share.
const JITTER: f64 = 0.5;
/// A broker that is killed does not die three times over the same message.
const CLOSED_ON_MAX: u32 = 3;
/// Connections in a row that may end within a tick before the pauses grow, whatever the broker
/// acknowledged: two devices with one client id end each other's for ever. A broker that restarts
/// does it a few times.
const SHORT_IN_A_ROW_MAX: u32 = 8;
/// How long a broker is taken for one without MQTT 5.
const SETTLED_FOR: Duration = Duration::from_hours(24);
/// The same, while the probes of 3.1.1 are lost: with 5 the broker could tell what it refuses.
const DOUBTED_AFTER: Duration = Duration::from_mins(10);

pub(super) struct Recovery {
    pub(super) reconnects: Reconnects,
    pub(super) versions: Versions,
    pub(super) closed_on: ClosedOn,
    /// Connections in a row that ended at a message too large for us.
    pub(super) oversized_in_a_row: u32,
    pub(super) failed_drains: u32,
    /// Connections in a row that did not last for a tick.
    short_in_a_row: u32,
    /// Whether others still see this device as online: it left by a clean DISCONNECT and means to
    /// come back.
    pub(super) is_announced: bool,
    pub(super) is_connected: bool,
    pub(super) resubscribe: Resubscribe,
    /// Whether the broker accepted our subscriptions since the start; only then may the link rely
    /// on them.
    pub(super) was_subscribed: bool,
    pub(super) last_fault: Option<LinkFault>,
}

/// A *retained* message that is too large is sent again at each SUBSCRIBE. After a drain the broker
/// still has our subscriptions, so the next connection relies on them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resubscribe {
    Always,
    UnlessSessionPresent,
}

impl Recovery {
    pub(super) fn new(retry: RetrySettings, version: VersionChoice) -> Self {
        Self {
            reconnects: Reconnects { retry, failures: 0 },
            versions: Versions { choice: version, found: Found::Nothing },
            closed_on: ClosedOn::default(),
            oversized_in_a_row: 0,
            failed_drains: 0,
            short_in_a_row: 0,
            is_announced: false,
            is_connected: false,
            resubscribe: Resubscribe::Always,
            was_subscribed: false,
            last_fault: None,
        }
    }

    /// The broker forgot our session.
    pub(super) fn forget_session(&mut self) {
        self.oversized_in_a_row = 0;
        self.failed_drains = 0;
        self.is_announced = false;
        self.is_connected = false;
        self.resubscribe = Resubscribe::Always;
        self.was_subscribed = false;
        self.last_fault = None;
    }

    /// The connection has been good for a tick.
    pub(super) fn record_good_tick(&mut self) {
        self.reconnects.failures = 0;
        self.oversized_in_a_row = 0;
        self.short_in_a_row = 0;
    }

    /// A connection that the broker had accepted has ended.
    pub(super) fn record_end(&mut self) {
        self.short_in_a_row = self.short_in_a_row.saturating_add(1);
    }

    /// The broker acknowledged our status. A broker that closes at our next publish does that too.
    pub(super) fn record_online(&mut self) {
        if !self.closed_on.is_suspected() && self.short_in_a_row < SHORT_IN_A_ROW_MAX {
            self.reconnects.record_success();
        }
    }
}

/// The pauses between attempts.
#[derive(Clone, Copy)]
pub(super) struct Reconnects {
    retry: RetrySettings,
    failures: u32,
}

impl Reconnects {
    /// Counts a connection that ended, and returns the pause before the next one.
    pub(super) fn next_pause(&mut self, is_refused: bool) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = self.retry.backoff.pause(self.failures);
        let pause = if is_refused { pause.max(self.retry.refused) } else { pause };
        shortened(pause, JITTER)
    }

    /// Returns the pause before an attempt with another version, which is no failure.
    pub(super) fn shortest_pause(&self) -> Duration {
        shortened(self.retry.backoff.shortest, JITTER)
    }

    /// The broker acknowledged a publish of ours. The count does not return to zero, because a
    /// message that ends each connection arrives after this.
    fn record_success(&mut self) {
        self.failures = self.failures.min(1);
    }
}

/// Which version of MQTT the next attempt speaks.
///
/// A broker without MQTT 5 should say so, but some only close the connection or stay silent. So
/// does whatever stands in front of a broker that is just starting. Therefore such an attempt is
/// believed only if the broker answers to 3.1.1, and then again not to 5.
pub(super) struct Versions {
    choice: VersionChoice,
    found: Found,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Nothing,
    /// An attempt with 5 ended without a CONNACK.
    Suspicion,
    /// After that, an attempt with 3.1.1 got one.
    Alive,
    /// Only 3.1.1, since then.
    Only311(Instant),
}

/// What to do with a connection that the broker accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Keep,
    /// It has shown what it was for; the next one speaks another version.
    Leave,
}

impl Versions {
    pub(super) fn next(&mut self) -> Version {
        if let Found::Only311(since) = self.found
            && Instant::now() >= since + SETTLED_FOR
        {
            self.found = Found::Nothing;
        }
        match (self.choice, self.found) {
            (VersionChoice::Only(version), _) => version,
            (VersionChoice::Auto, Found::Nothing | Found::Alive) => Version::V5,
            (VersionChoice::Auto, Found::Suspicion | Found::Only311(_)) => Version::V311,
        }
    }

    /// A probe was lost. Returns whether the next connection tries MQTT 5 again.
    pub(super) fn doubt_version_311(&mut self) -> bool {
        let is_due =
            matches!(self.found, Found::Only311(since) if Instant::now() >= since + DOUBTED_AFTER);
        if is_due && self.choice == VersionChoice::Auto {
            self.found = Found::Nothing;
        }
        self.found == Found::Nothing && is_due
    }

    pub(super) fn record_accepted(&mut self) -> Verdict {
        match (self.choice, self.found) {
            (VersionChoice::Auto, Found::Suspicion) => {
                self.found = Found::Alive;
                Verdict::Leave
            }
            (VersionChoice::Auto, Found::Alive) => {
                self.found = Found::Nothing;
                Verdict::Keep
            }
            _ => Verdict::Keep,
        }
    }

    /// Records an attempt that failed before its CONNACK. Returns whether the next one speaks
    /// another version, and so may get further.
    pub(super) fn record_failure(&mut self, fault: &LinkFault) -> bool {
        if self.choice != VersionChoice::Auto {
            return false;
        }
        let is_stated = matches!(fault, LinkFault::Refused(ConnectRefusal::ProtocolVersion));
        let before = self.found;
        self.found = match before {
            Found::Nothing if is_stated => Found::Only311(Instant::now()),
            Found::Nothing if fault.may_be_the_version() => Found::Suspicion,
            Found::Alive if fault.may_be_the_version() => Found::Only311(Instant::now()),
            Found::Only311(_) if !is_stated => before,
            _ => Found::Nothing,
        };
        if matches!(self.found, Found::Only311(_)) && before != self.found {
            tracing::info!(%fault, "the broker has no MQTT 5, so 3.1.1 is spoken");
        }
        self.found != before && self.found != Found::Nothing
    }
}

/// Recognises a broker that answers a forbidden publish by closing the connection.
#[derive(Default)]
pub(super) struct ClosedOn {
    topic: String,
    in_a_row: u32,
}

impl ClosedOn {
    /// Records that a connection ended while the publish to `topic` was the oldest without an
    /// acknowledgement. Returns whether this is the broker's answer to it.
    pub(super) fn record_end(&mut self, topic: &str, fault: &LinkFault) -> bool {
        if !fault.may_be_a_refused_publish() {
            return false;
        }
        if self.topic == topic {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            *self = Self { topic: topic.to_owned(), in_a_row: 1 };
        }
        self.in_a_row >= CLOSED_ON_MAX || fault.denies()
    }

    pub(super) fn record_acknowledged(&mut self, topic: &str) {
        if self.topic == topic {
            *self = Self::default();
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.in_a_row > CLOSED_ON_MAX
    }

    fn is_suspected(&self) -> bool {
        self.in_a_row >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::fault::DisconnectReason;

    fn versions(choice: VersionChoice) -> Versions {
        Versions { choice, found: Found::Nothing }
    }

    const STATED: LinkFault = LinkFault::Refused(ConnectRefusal::ProtocolVersion);

    #[test]
    fn back_off_grows_and_is_never_zero() {
        let mut reconnects = Reconnects { retry: RetrySettings::default(), failures: 0 };
        let pauses: Vec<_> = (0..40).map(|_| reconnects.next_pause(false)).collect();
        assert!(
            pauses
                .iter()
                .all(|it| *it >= Duration::from_millis(125) && *it <= Duration::from_secs(30))
        );
        assert!(pauses[0] <= Duration::from_millis(250));
        assert!(pauses[39] >= Duration::from_secs(15));
        reconnects.record_success();
        assert!(reconnects.next_pause(false) <= Duration::from_millis(500));
        assert!(reconnects.next_pause(true) >= Duration::from_secs(5), "after a refusal");
    }

    #[test]
    fn stated_version_is_believed_at_once() {
        let mut versions = versions(VersionChoice::Auto);
        assert_eq!(versions.next(), Version::V5);
        assert!(versions.record_failure(&STATED));
        assert_eq!(versions.next(), Version::V311);
        assert_eq!(versions.record_accepted(), Verdict::Keep);
        // Later outages are no reason to try again.
        assert!(!versions.record_failure(&LinkFault::Closed));
        assert_eq!(versions.next(), Version::V311);
    }

    #[test]
    fn closed_connection_is_believed_after_a_test() {
        let mut versions = versions(VersionChoice::Auto);
        assert!(versions.record_failure(&LinkFault::Closed));
        assert_eq!(versions.next(), Version::V311);
        assert_eq!(versions.record_accepted(), Verdict::Leave);
        assert_eq!(versions.next(), Version::V5);
        assert!(versions.record_failure(&LinkFault::Closed));
        assert_eq!(versions.next(), Version::V311);
        assert_eq!(versions.record_accepted(), Verdict::Keep);
    }

    #[test]
    fn starting_broker_gets_version_5_in_the_end() {
        let mut versions = versions(VersionChoice::Auto);
        for _ in 0..5 {
            assert!(versions.record_failure(&LinkFault::Closed));
            assert!(!versions.record_failure(&LinkFault::Closed), "3.1.1 gets no further");
        }
        assert!(versions.record_failure(&LinkFault::Closed));
        assert_eq!(versions.record_accepted(), Verdict::Leave);
        assert_eq!(versions.next(), Version::V5);
        assert_eq!(versions.record_accepted(), Verdict::Keep);
        assert_eq!(versions.next(), Version::V5);
    }

    #[test]
    fn lost_probe_tries_version_5_again() {
        let mut versions = versions(VersionChoice::Auto);
        versions.record_failure(&STATED);
        assert!(!versions.doubt_version_311(), "at once");
        let long_ago = Instant::now() - DOUBTED_AFTER;
        versions.found = Found::Only311(long_ago);
        assert!(versions.doubt_version_311());
        assert_eq!(versions.next(), Version::V5);
        versions.record_failure(&STATED);
        assert!(!versions.doubt_version_311(), "once in a while");
        let choice = VersionChoice::Only(Version::V311);
        let mut chosen = Versions { choice, found: Found::Only311(long_ago) };
        assert!(!chosen.doubt_version_311(), "the version is chosen");
    }

    #[test]
    fn other_faults_do_not_change_the_version() {
        let mut versions = versions(VersionChoice::Auto);
        for fault in [
            LinkFault::Refused(ConnectRefusal::Credentials),
            LinkFault::Refused(ConnectRefusal::NotAuthorised),
            LinkFault::Dns(String::new()),
        ] {
            assert!(!versions.record_failure(&fault));
            assert_eq!(versions.next(), Version::V5);
        }
    }

    #[test]
    fn chosen_version_is_kept() {
        for version in [Version::V5, Version::V311] {
            let mut versions = versions(VersionChoice::Only(version));
            assert!(!versions.record_failure(&STATED));
            assert_eq!(versions.record_accepted(), Verdict::Keep);
            assert_eq!(versions.next(), version);
        }
    }

    #[test]
    fn third_close_on_same_topic_is_an_answer() {
        let mut closed_on = ClosedOn::default();
        let ended = |it: &mut ClosedOn, topic| it.record_end(topic, &LinkFault::Closed);
        assert!(!ended(&mut closed_on, "a"));
        assert!(!ended(&mut closed_on, "a"));
        assert!(!ended(&mut closed_on, "b"), "another topic");
        assert!(!ended(&mut closed_on, "a"));
        assert!(!ended(&mut closed_on, "a"));
        assert!(!closed_on.record_end("a", &LinkFault::NoPingReply), "the network");
        assert!(ended(&mut closed_on, "a"));
        closed_on.record_acknowledged("a");
        assert!(!ended(&mut closed_on, "a"));
        let denied = LinkFault::Disconnected(DisconnectReason::NotAuthorised);
        assert!(closed_on.record_end("a", &denied), "stated");
        let moved = LinkFault::Disconnected(DisconnectReason::SessionTakenOver);
        assert!(!closed_on.record_end("a", &moved));
    }
}
