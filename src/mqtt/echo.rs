//! The probes of MQTT 3.1.1, whose PUBACK does not tell a forbidden publish from a delivered one.
//!
//! The link subscribes to a topic of its own and publishes a probe to it. The broker passes it on
//! only if the access rules allow both. What was acknowledged before a probe on the same connection
//! counts as delivered when the probe has come back.
//!
//! What this cannot prove: that the rules are the same for the topics of the messages. It has as
//! many levels as those, and docs/mosquitto gives it the same rule. MQTT 5 has no such gap.

use std::collections::VecDeque;

use tokio::sync::oneshot;

/// A probe that waited through this many ticks of the driver is lost: 15 to 30 s.
const TICKS_MAX: u8 = 2;

/// What became of a probe. A lost connection drops the sender instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    Heard,
    Missing,
}

/// The probes on the present connection.
#[derive(Default)]
pub(super) struct Probes {
    serial: u64,
    waiting: VecDeque<Probe>,
    /// Whether the broker has rejected the subscription: none will come back.
    is_deaf: bool,
    /// Whether the last probe came back.
    is_proven: bool,
}

struct Probe {
    payload: String,
    sender: oneshot::Sender<Echo>,
    ticks: u8,
}

impl Probes {
    /// Returns the payload of a new probe.
    pub(super) fn add(&mut self, sender: oneshot::Sender<Echo>) -> String {
        self.serial += 1;
        // Random, so that no probe of an earlier connection is taken for this one.
        let payload = format!("{}-{:016x}", self.serial, fastrand::u64(..));
        self.waiting.push_back(Probe { payload: payload.clone(), sender, ticks: 0 });
        payload
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    pub(super) fn is_proven(&self) -> bool {
        self.is_proven
    }

    pub(super) fn record_subscription(&mut self, is_accepted: bool) {
        self.is_deaf = !is_accepted;
        if self.is_deaf {
            self.fail_all();
        }
    }

    /// Completes the probe with this payload, and all before it: the broker keeps the order.
    /// Returns whether there was one.
    pub(super) fn record_echo(&mut self, payload: &[u8]) -> bool {
        let Some(at) = self.waiting.iter().position(|it| it.payload.as_bytes() == payload) else {
            return false;
        };
        self.is_proven = true;
        for probe in self.waiting.drain(..=at) {
            probe.sender.send(Echo::Heard).ok();
        }
        true
    }

    /// Gives up the probes that have waited too long. Returns whether there were any.
    pub(super) fn tick(&mut self) -> bool {
        for probe in &mut self.waiting {
            probe.ticks += 1;
        }
        let is_lost = self.waiting.front().is_some_and(|it| it.ticks >= TICKS_MAX);
        if is_lost {
            self.fail_all();
        }
        is_lost
    }

    /// Forgets everything, at the end of a connection.
    pub(super) fn clear(&mut self) {
        *self = Self { serial: self.serial, ..Self::default() };
    }

    fn fail_all(&mut self) {
        self.is_proven = false;
        for probe in self.waiting.drain(..) {
            probe.sender.send(Echo::Missing).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(probes: &mut Probes) -> (String, oneshot::Receiver<Echo>) {
        let (sender, receiver) = oneshot::channel();
        (probes.add(sender), receiver)
    }

    #[test]
    fn echo_completes_all_before_it() {
        let mut probes = Probes::default();
        let (_, mut first) = add(&mut probes);
        let (payload, mut second) = add(&mut probes);
        let (_, mut third) = add(&mut probes);
        assert!(!probes.record_echo(b"1-of an earlier connection"));
        assert!(!probes.is_proven());
        assert!(probes.record_echo(payload.as_bytes()));
        assert_eq!(first.try_recv(), Ok(Echo::Heard));
        assert_eq!(second.try_recv(), Ok(Echo::Heard));
        assert!(third.try_recv().is_err());
        assert!(probes.is_proven());
    }

    #[test]
    fn missing_echo_withdraws_the_proof() {
        let mut probes = Probes::default();
        let (payload, _) = add(&mut probes);
        probes.record_echo(payload.as_bytes());
        let (_, mut lost) = add(&mut probes);
        assert!(!probes.tick());
        assert!(probes.tick());
        assert_eq!(lost.try_recv(), Ok(Echo::Missing));
        assert!(!probes.is_proven());
    }

    #[test]
    fn rejected_subscription_fails_every_probe() {
        let mut probes = Probes::default();
        let (_, mut waiting) = add(&mut probes);
        probes.record_subscription(false);
        assert_eq!(waiting.try_recv(), Ok(Echo::Missing));
        assert!(probes.is_deaf());
        probes.record_subscription(true);
        assert!(!probes.is_deaf());
    }
}
