//! Security events, limited in number: rejected messages are counted, and reported together.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Stamp;
use crate::wire::command;
use crate::wire::event::{Security, SecurityReason};

/// The first alarm of a kind is reported at once, the next ones together after a minute, then after
/// twice as long, up to an hour: under an attack that never ends, some 170 events a day.
const REPORT_EVERY: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_hours(1));

/// Rejected messages by reason, counted until they are reported.
#[derive(Default)]
pub struct Alarms(Vec<Alarm>);

struct Alarm {
    reason: SecurityReason,
    /// None: several.
    verb: Option<String>,
    count: u32,
    reported: Option<Stamp>,
    /// How often it was reported without a quiet pause between.
    repeats: u32,
}

impl Alarms {
    /// Whether it is the first within its pause.
    pub fn note(&mut self, reason: SecurityReason, verb: &str, now: &Stamp) -> bool {
        // An invented verb is not repeated.
        let verb = Some(verb).filter(|it| command::is_verb(it)).map(str::to_owned);
        self.add(reason, verb, 1, now)
    }

    /// Counts several that concern no command. Returns whether they are the first within the pause.
    pub fn note_many(&mut self, reason: SecurityReason, count: u32, now: &Stamp) -> bool {
        self.add(reason, None, count, now)
    }

    fn add(
        &mut self,
        reason: SecurityReason,
        verb: Option<String>,
        count: u32,
        now: &Stamp,
    ) -> bool {
        match self.0.iter_mut().find(|it| it.reason == reason) {
            None => {
                self.0.push(Alarm { reason, verb, count, reported: None, repeats: 0 });
                true
            }
            Some(alarm) => {
                let is_first = alarm.count == 0 && alarm.is_due(now);
                if alarm.count == 0 {
                    alarm.verb = verb;
                } else if alarm.verb != verb {
                    alarm.verb = None;
                }
                alarm.count = alarm.count.saturating_add(count);
                is_first
            }
        }
    }

    /// Returns what is to be reported now.
    pub fn take_due(&mut self, now: &Stamp) -> Vec<Security> {
        let mut due = Vec::new();
        self.0.retain_mut(|alarm| {
            if !alarm.is_due(now) {
                return true;
            }
            if alarm.count == 0 {
                // Quiet for a whole pause: the next one is reported at once again.
                return false;
            }
            alarm.reported = Some(*now);
            alarm.repeats = alarm.repeats.saturating_add(1);
            due.push(alarm.take());
            true
        });
        due
    }

    /// Returns what would be reported later, for the end.
    pub fn take_all(&mut self) -> Vec<Security> {
        let counted = self.0.iter_mut().filter(|it| it.count > 0);
        counted.map(Alarm::take).collect()
    }

    /// Returns the time until there is something to report, if there is.
    pub fn pause(&self, now: &Stamp) -> Option<Duration> {
        let waiting = self.0.iter().filter(|it| it.count > 0);
        waiting
            .map(|it| {
                it.reported.map_or(Duration::ZERO, |at| it.pause().saturating_sub(now.since(&at)))
            })
            .min()
    }
}

impl Alarm {
    fn pause(&self) -> Duration {
        REPORT_EVERY.pause(self.repeats)
    }

    fn is_due(&self, now: &Stamp) -> bool {
        self.reported.is_none_or(|at| now.since(&at) >= self.pause())
    }

    fn take(&mut self) -> Security {
        Security {
            reason: self.reason,
            verb: self.verb.take(),
            count: std::mem::take(&mut self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: seconds * 1000, trusted: true }
    }

    #[test]
    fn security_reports_are_throttled_without_miscounting() {
        let mut alarms = Alarms::default();
        let mut events = 0;
        let mut counted = 0;
        for second in 0..86_400 {
            alarms.note(
                SecurityReason::Unsigned,
                if second < 10 { "enrol" } else { "withdraw" },
                &at(second),
            );
            for alarm in alarms.take_due(&at(second)) {
                if events == 0 {
                    assert_eq!((alarm.count, alarm.verb.as_deref()), (1, Some("enrol")), "at once");
                }
                if events == 1 {
                    assert_eq!(
                        (alarm.count, alarm.verb),
                        (60, None),
                        "a minute later, of several verbs"
                    );
                }
                events += 1;
                counted += alarm.count;
            }
        }
        counted += alarms.take_all().iter().map(|it| it.count).sum::<u32>();
        assert_eq!(counted, 86_400);
        assert!((20..40).contains(&events), "{events}");
    }

    #[test]
    fn first_report_after_quiet_time_is_immediate() {
        let mut alarms = Alarms::default();
        assert!(alarms.note(SecurityReason::Replayed, "enrol", &at(0)));
        assert!(!alarms.note(SecurityReason::Replayed, "enrol", &at(0)), "one gets a reply");
        assert_eq!(alarms.pause(&at(0)), Some(Duration::ZERO));
        assert_eq!(alarms.take_due(&at(0)).len(), 1);
        assert_eq!(alarms.pause(&at(1)), None);
        assert!(
            !alarms.note(SecurityReason::Replayed, "../../made up", &at(1)),
            "within the pause"
        );
        assert_eq!(
            (alarms.take_due(&at(20)).len(), alarms.pause(&at(20))),
            (0, Some(Duration::from_secs(40)))
        );
        assert_eq!(
            alarms.take_due(&at(60))[0].verb,
            None,
            "what the sender made up is not repeated"
        );
        assert!(alarms.take_due(&at(200)).is_empty());
        assert!(alarms.note(SecurityReason::Replayed, "enrol", &at(201)));
        assert_eq!(alarms.take_due(&at(201)).len(), 1);
    }
}
