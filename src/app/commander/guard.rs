//! The door before the commands, where only signed ones are taken: who made it, for whom, when, and was it here before?
//!
//! Invariants: nothing is believed of a message whose signature does not hold, so it is not answered by its own request id:
//! whoever may publish could otherwise write into anybody's answers. It is counted, told as `event/security` at a pace that
//! fills no disk, and with that once at `reply/unreadable`, for an honest sender who forgot to sign. A replay is not answered
//! either: its sender need not be who signed it. A command is remembered before it is carried out.

use std::time::Duration;

use super::{Commander, HEAD_BYTES};
use crate::clock::{Pace, Stamp};
use crate::mqtt::link::Inbound;
use crate::record::authority::{self, Claims, Unfit, Untrusted};
use crate::record::command::{self, Command, ErrorCode, Refusal, answer};
use crate::record::event::{Body, NewEvent, Security, SecurityReason};
use crate::record::store::{Seen, StoreError, Token};

/// The first of a kind is told at once, the next ones together after this, then after twice as long, up to the second:
/// under an attack that never ends, some 170 events a day.
const TOLD_EVERY: Duration = Duration::from_mins(1);
const TOLD_EVERY_MOST: Duration = Duration::from_hours(1);

/// What was tried, counted until it is told.
#[derive(Default)]
pub(super) struct Alarms(Vec<Alarm>);

struct Alarm {
    reason: SecurityReason,
    /// None: several.
    verb: Option<String>,
    count: u32,
    told: Option<Stamp>,
    pause: Duration,
}

impl Alarms {
    /// Whether it is the first within its pause.
    pub(super) fn note(&mut self, reason: SecurityReason, verb: &str, now: &Stamp) -> bool {
        // What the sender made up is not repeated.
        let verb = Some(verb).filter(|it| command::is_verb(it)).map(str::to_owned);
        match self.0.iter_mut().find(|it| it.reason == reason) {
            None => {
                self.0.push(Alarm { reason, verb, count: 1, told: None, pause: TOLD_EVERY });
                true
            }
            Some(alarm) => {
                let is_first = alarm.count == 0 && alarm.is_due(now);
                if alarm.count == 0 {
                    alarm.verb = verb;
                } else if alarm.verb != verb {
                    alarm.verb = None;
                }
                alarm.count = alarm.count.saturating_add(1);
                is_first
            }
        }
    }

    /// What is to be told now.
    pub(super) fn take_due(&mut self, now: &Stamp) -> Vec<Security> {
        let mut due = Vec::new();
        self.0.retain_mut(|alarm| {
            if !alarm.is_due(now) {
                return true;
            }
            if alarm.count == 0 {
                // Quiet for a whole pause: the next one is told at once again.
                return false;
            }
            if alarm.told.replace(*now).is_some() {
                alarm.pause = (alarm.pause * 2).min(TOLD_EVERY_MOST);
            }
            due.push(alarm.take());
            true
        });
        due
    }

    /// What would be told later, for the end.
    pub(super) fn take_all(&mut self) -> Vec<Security> {
        let counted = self.0.iter_mut().filter(|it| it.count > 0);
        counted.map(Alarm::take).collect()
    }

    /// How long until there is something to be told, if there is.
    pub(super) fn pause(&self, now: &Stamp) -> Option<Duration> {
        let waiting = self.0.iter().filter(|it| it.count > 0);
        waiting
            .map(|it| {
                it.told.map_or(Duration::ZERO, |told| it.pause.saturating_sub(now.since(&told)))
            })
            .min()
    }
}

impl Alarm {
    fn is_due(&self, now: &Stamp) -> bool {
        self.told.is_none_or(|told| now.since(&told) >= self.pause)
    }

    fn take(&mut self) -> Security {
        Security {
            reason: self.reason,
            verb: self.verb.take(),
            count: std::mem::take(&mut self.count),
        }
    }
}

impl Commander {
    pub(super) fn takes_signed_only(&self) -> bool {
        !self.trusted_keys.is_empty()
    }

    /// A signed command that may be carried out. `None`: it was refused, and all that was to be said about it is said.
    pub(super) async fn admit(
        &self,
        verb: &str,
        inbound: Inbound,
        pace: &mut Pace,
        alarms: &mut Alarms,
    ) -> Result<(Option<Command>, crate::mqtt::link::AckToken), StoreError> {
        let Inbound { payload, retained, again, packet_id, ack, .. } = inbound;
        let now = self.clock.now();
        let verified = authority::verify(&payload, authority::COMMAND, &self.trusted_keys);
        drop(payload);
        let signed = match verified {
            Ok(signed) => signed,
            Err(why) => {
                let (code, reason) = untrusted(why);
                self.count(code);
                alarms.note(reason, verb, &now);
                return Ok((None, ack));
            }
        };
        // Who signed it need not be who sent it: what comes too fast must cost little here too.
        if !pace.allows(now.boottime_ms) {
            let claims = signed.claims().ok();
            let request_id =
                claims.and_then(|it| command::request_id(it.cmd.get().as_bytes(), &self.limits));
            let message = format!("more than {} commands in a minute", self.per_minute_max);
            self.reply(verb, &Refusal::new(request_id.as_deref(), ErrorCode::RateLimited, message))
                .await?;
            return Ok((None, ack));
        }
        let claims = match signed.claims() {
            Ok(claims) => claims,
            Err(why) => {
                self.reply(verb, &Refusal::new(None, ErrorCode::BadValue, why.to_string())).await?;
                return Ok((None, ack));
            }
        };
        if let Err(why) = claims.check(&self.topics.audiences(), &now) {
            self.refuse_unfit(verb, &claims, why, alarms).await?;
            return Ok((None, ack));
        }
        match command::parse_signed(
            verb,
            retained,
            claims.cmd.get().as_bytes(),
            &self.limits,
            now.wall_ms,
        ) {
            Ok(command) => {
                let token = Token {
                    id: signed.token_id(&claims),
                    request_id: command.request_id.clone(),
                    gone_ms: claims.gone_ms(),
                    packet_id,
                    again,
                };
                let admitted = self.remember(verb, token, alarms).await?;
                Ok((admitted.then_some(command), ack))
            }
            Err(refusal) => {
                if let Some(reason) = reason_of(refusal.code) {
                    alarms.note(reason, verb, &now);
                }
                // As with any command: what was carried out once and comes again too late, was carried out.
                if !self.repeat_to_mqtt(refusal.request_id.as_deref()).await? {
                    self.reply(verb, &refusal).await?;
                } else if reason_of(refusal.code).is_some() {
                    self.count(refusal.code);
                }
                Ok((None, ack))
            }
        }
    }

    /// What is too late or for others anybody may have kept, and may send for ever: within a pause one such message is
    /// answered, the others are counted.
    async fn refuse_unfit(
        &self,
        verb: &str,
        claims: &Claims<'_>,
        why: Unfit,
        alarms: &mut Alarms,
    ) -> Result<(), StoreError> {
        let code = unfit(why);
        let is_first =
            reason_of(code).is_none_or(|reason| alarms.note(reason, verb, &self.clock.now()));
        if !is_first {
            self.count(code);
            return Ok(());
        }
        let request_id = command::request_id(claims.cmd.get().as_bytes(), &self.limits);
        self.reply(verb, &Refusal::new(request_id.as_deref(), code, why.to_string())).await
    }

    /// Whether it may be carried out. Written down before that: killed in between, the broker sends it once more, under the
    /// same packet id.
    async fn remember(
        &self,
        verb: &str,
        token: Token,
        alarms: &mut Alarms,
    ) -> Result<bool, StoreError> {
        let request_id = token.request_id.clone();
        let refuse = |code, message: &str| Refusal::new(Some(&request_id), code, message);
        let refusal = match self.store.write_async(move |tx| tx.remember(&token)).await {
            Ok(Seen::Never) => return Ok(true),
            Ok(Seen::Replayed) => {
                self.count(ErrorCode::Replayed);
                alarms.note(SecurityReason::Replayed, verb, &self.clock.now());
                return Ok(false);
            }
            Ok(Seen::Late) => {
                if !alarms.note(SecurityReason::Expired, verb, &self.clock.now()) {
                    self.count(ErrorCode::Expired);
                    return Ok(false);
                }
                refuse(ErrorCode::Expired, "later ones are forgotten already: sign it again")
            }
            Ok(Seen::Full) => refuse(
                ErrorCode::Busy,
                "too many signed commands are still good: give them shorter lives",
            ),
            Err(StoreError::Full) => refuse(ErrorCode::StorageFull, "the disk is full"),
            Err(error) if !error.is_fatal() => {
                refuse(ErrorCode::Internal, "it could not be remembered")
            }
            Err(error) => return Err(error),
        };
        self.reply(verb, &refusal).await?;
        Ok(false)
    }

    /// Events that say what was tried; to an honest sender one that says what to do.
    pub(super) async fn tell_alarms(&self, told: Vec<Security>) -> Result<(), StoreError> {
        if told.is_empty() {
            return Ok(());
        }
        for Security { reason, verb, count } in &told {
            tracing::warn!(?reason, verb, count, "commands were not believed");
        }
        let now = self.clock.now();
        let write = move |tx: &mut crate::record::store::Tx<'_>| {
            for security in &told {
                tx.append_event(&NewEvent::new(now, Body::Security(security.clone())))?;
                let why = match security.reason {
                    SecurityReason::Unsigned => (ErrorCode::Unsigned, Untrusted::Unsigned),
                    SecurityReason::BadSignature => (
                        ErrorCode::BadSignature,
                        Untrusted::BadSignature("see [commands] trusted_keys"),
                    ),
                    _ => continue,
                };
                let refusal = Refusal::new(None, why.0, why.1.to_string());
                let verb = security.verb.as_deref().unwrap_or_default();
                tx.owe_reply(answer::UNREADABLE, &answer::refused(verb, &refusal))?;
            }
            Ok(())
        };
        let written = self.store.write_async(write).await;
        self.survive(written)
    }

    /// A signed message where nobody can check it: answered like any command that is not understood.
    pub(super) fn uncheckable(&self, payload: &[u8]) -> Option<Refusal> {
        if !authority::is_compact(payload.trim_ascii()) {
            return None;
        }
        let said = authority::unchecked(payload).unwrap_or_default();
        let claims = Claims::read(&said).ok();
        let request_id =
            claims.and_then(|it| command::request_id(it.cmd.get().as_bytes(), &self.limits));
        let message = "the command is signed, and this device has no [commands] trusted_keys to check it with";
        Some(Refusal::new(request_id.as_deref(), ErrorCode::BadSignature, message))
    }

    /// The request id in the beginning of a message that is not read as a whole; where signatures count, nobody can say whose.
    pub(super) fn request_id_at_head(&self, payload: &[u8]) -> Option<String> {
        let head = &payload[..payload.len().min(HEAD_BYTES)];
        if self.takes_signed_only() { None } else { super::request_id_in(head) }
    }
}

fn untrusted(why: Untrusted) -> (ErrorCode, SecurityReason) {
    match why {
        Untrusted::Unsigned => (ErrorCode::Unsigned, SecurityReason::Unsigned),
        Untrusted::BadSignature(_) => (ErrorCode::BadSignature, SecurityReason::BadSignature),
    }
}

fn unfit(why: Unfit) -> ErrorCode {
    match why {
        Unfit::Claims | Unfit::Id | Unfit::Lifetime => ErrorCode::BadValue,
        Unfit::Audience => ErrorCode::WrongAudience,
        Unfit::Late | Unfit::Early => ErrorCode::Expired,
        Unfit::NoTime => ErrorCode::NotReady,
    }
}

pub(super) fn reason_of(code: ErrorCode) -> Option<SecurityReason> {
    match code {
        ErrorCode::Retained => Some(SecurityReason::Retained),
        ErrorCode::WrongAudience => Some(SecurityReason::WrongAudience),
        ErrorCode::Expired => Some(SecurityReason::Expired),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: seconds * 1000, trusted: true }
    }

    #[test]
    fn an_attack_is_told_at_once_and_then_ever_more_seldom_and_never_miscounted() {
        let mut alarms = Alarms::default();
        let (mut events, mut counted) = (0, 0);
        for second in 0..86_400 {
            alarms.note(
                SecurityReason::Unsigned,
                if second < 10 { "enrol" } else { "withdraw" },
                &at(second),
            );
            for told in alarms.take_due(&at(second)) {
                if events == 0 {
                    assert_eq!((told.count, told.verb.as_deref()), (1, Some("enrol")), "at once");
                }
                if events == 1 {
                    assert_eq!(
                        (told.count, told.verb),
                        (60, None),
                        "a minute later, of several verbs"
                    );
                }
                events += 1;
                counted += told.count;
            }
        }
        counted += alarms.take_all().iter().map(|it| it.count).sum::<u32>();
        assert_eq!(counted, 86_400);
        assert!((20..40).contains(&events), "{events}");
    }

    #[test]
    fn after_a_quiet_time_the_next_is_told_at_once_again() {
        let mut alarms = Alarms::default();
        assert!(alarms.note(SecurityReason::Replayed, "enrol", &at(0)));
        assert!(!alarms.note(SecurityReason::Replayed, "enrol", &at(0)), "one is answered");
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
