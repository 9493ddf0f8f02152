//! Admission of signed commands: signature, audience, time, and whether it is a replay.
//!
//! Invariants: a message with a bad signature gets no reply at its own request id, because any
//! publisher could otherwise write into other senders' replies. It is counted and reported as
//! `event/security`, at a rate that fills no disk, with one reply at `reply/unreadable` for an honest
//! sender that forgot to sign. A replay gets no reply either, not even one that has expired meanwhile:
//! its sender need not be its signer. A command is remembered before it is executed, and only a
//! command that would be executed counts against the limit of its key.

use crate::app::commands::alarms::Alarms;
use crate::app::commands::command_rate::CommandRate;
use crate::app::commands::commander::{Commander, HEAD_BYTES};
use crate::keys::jws;
use crate::keys::jws::{Claims, Unfit, Untrusted};
use crate::mqtt::event::Inbound;
use crate::mqtt::in_flight::AckToken;
use crate::store::{ReplayCheck, SignedToken, StoreError, TokenState};
use crate::wire::command::{Command, ErrorCode, Received, Rejection};
use crate::wire::event::{Body, NewEvent, Security, SecurityReason};
use crate::wire::{command, reply};

impl Commander {
    pub(super) fn takes_signed_only(&self) -> bool {
        !self.trusted_keys.is_empty()
    }

    /// Returns a signed command that may be executed. `None`: it was rejected, and counted, reported
    /// or replied to.
    pub(super) async fn admit(
        &self,
        verb: &str,
        inbound: Inbound,
        rate: &mut CommandRate,
        alarms: &mut Alarms,
    ) -> Result<(Option<Command>, AckToken), StoreError> {
        let Inbound { payload, retained, is_redelivered, packet_id, ack, .. } = inbound;
        let now = self.clock.now();
        let verified = jws::verify(&payload, jws::COMMAND, &self.trusted_keys);
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
        let claims = match signed.claims() {
            Ok(claims) => claims,
            Err(why) => {
                let rejection = Rejection::new(None, ErrorCode::BadValue, why.to_string());
                self.reply_unstored(verb, &rejection, rate).await;
                return Ok((None, ack));
            }
        };
        if let Err(why) = claims.check(&self.topics.audiences(), &now) {
            self.reject_unfit(verb, &claims, why, (rate, alarms)).await;
            return Ok((None, ack));
        }
        let cmd = claims.cmd.get().as_bytes();
        let token = SignedToken {
            id: signed.token_id(&claims),
            request_id: command::request_id(cmd, &self.limits).unwrap_or_default(),
            gone_ms: claims.gone_ms(),
            packet_id,
            again: is_redelivered,
        };
        let state = self.token_state(&token).await?;
        let is_redelivery = state == TokenState::Redelivered && rate.allows_reply(now.boottime_ms);
        if state == TokenState::Replayed || state == TokenState::Redelivered && !is_redelivery {
            self.count(ErrorCode::Replayed);
            alarms.note(SecurityReason::Replayed, verb, &now);
            return Ok((None, ack));
        }
        let received = Received::by_mqtt(verb, cmd, retained).signed();
        let command = match command::parse(received, &self.limits, now.wall_ms) {
            Ok(command) => command,
            Err(rejection) => {
                self.reject_signed(verb, &rejection, is_redelivery, (rate, alarms)).await?;
                return Ok((None, ack));
            }
        };
        // A copy of one that is being executed costs its signer nothing, and few of them are let
        // through. The broker's own redelivery always is: the execution may have ended with a crash.
        let is_copy = state == TokenState::Unfinished && !is_redelivered;
        if is_copy && !rate.allows_reply(now.boottime_ms) {
            self.count(ErrorCode::RateLimited);
            return Ok((None, ack));
        }
        if state == TokenState::Unknown && !rate.allows_signed(signed.kid(), now.boottime_ms) {
            let rejection = rate.rate_limited(Some(&command.request_id));
            self.reply_unstored(verb, &rejection, rate).await;
            return Ok((None, ack));
        }
        let admitted = self.remember(verb, token, (rate, alarms)).await?;
        Ok((admitted.then_some(command), ack))
    }

    /// Returns what is known of a token, before anything is written.
    async fn token_state(&self, token: &SignedToken) -> Result<TokenState, StoreError> {
        let token = token.clone();
        match self.store.read(move |tx| tx.token_state(&token)).await {
            // If it cannot be read now, the write that follows decides.
            Err(error) if !error.is_fatal() => {
                self.log_unless_fatal(Err(error)).map(|()| TokenState::Unknown)
            }
            state => state,
        }
    }

    /// Rejects a signed message that is not a command, or whose command has expired. A redelivery of
    /// a command that was executed gets its stored reply.
    async fn reject_signed(
        &self,
        verb: &str,
        rejection: &Rejection,
        is_redelivery: bool,
        (rate, alarms): (&mut CommandRate, &mut Alarms),
    ) -> Result<(), StoreError> {
        let reason = reason_of(rejection.code);
        if let Some(reason) = reason {
            alarms.note(reason, verb, &self.clock.now());
        }
        if !is_redelivery || !self.resend_to_mqtt(rejection.request_id.as_deref()).await? {
            self.reply_unstored(verb, rejection, rate).await;
        } else if reason.is_some() {
            self.count(rejection.code);
        }
        Ok(())
    }

    /// Rejects a command that is too late or for another device. Anybody may have kept one and send
    /// it for ever: within a pause one gets a reply, the others are counted.
    async fn reject_unfit(
        &self,
        verb: &str,
        claims: &Claims<'_>,
        why: Unfit,
        (rate, alarms): (&mut CommandRate, &mut Alarms),
    ) {
        let code = unfit(why);
        let is_first =
            reason_of(code).is_none_or(|reason| alarms.note(reason, verb, &self.clock.now()));
        if !is_first {
            return self.count(code);
        }
        let request_id = command::request_id(claims.cmd.get().as_bytes(), &self.limits);
        let rejection = Rejection::new(request_id.as_deref(), code, why.to_string());
        self.reply_unstored(verb, &rejection, rate).await;
    }

    /// Whether the command may be executed. It is remembered before that: after a kill in between, the
    /// broker sends it once more, under the same packet id.
    async fn remember(
        &self,
        verb: &str,
        token: SignedToken,
        (rate, alarms): (&mut CommandRate, &mut Alarms),
    ) -> Result<bool, StoreError> {
        let request_id = token.request_id.clone();
        let reject = |code, message: &str| Rejection::new(Some(&request_id), code, message);
        let rejection = match self.store.write_async(move |tx| tx.remember(&token)).await {
            Ok(ReplayCheck::Accept) => return Ok(true),
            Ok(ReplayCheck::Replay) => {
                self.count(ErrorCode::Replayed);
                alarms.note(SecurityReason::Replayed, verb, &self.clock.now());
                return Ok(false);
            }
            Ok(ReplayCheck::Expired) => {
                if !alarms.note(SecurityReason::Expired, verb, &self.clock.now()) {
                    self.count(ErrorCode::Expired);
                    return Ok(false);
                }
                reject(ErrorCode::Expired, "later ones are forgotten already: sign it again")
            }
            Ok(ReplayCheck::CapacityReached) => reject(
                ErrorCode::Busy,
                "too many signed commands are still good: give them shorter lives",
            ),
            Err(StoreError::Full) => reject(ErrorCode::StorageFull, "the disk is full"),
            Err(error) if !error.is_fatal() => {
                reject(ErrorCode::Internal, "it could not be remembered")
            }
            Err(error) => return Err(error),
        };
        self.reply_unstored(verb, &rejection, rate).await;
        Ok(false)
    }

    /// Records events of what was rejected, and replies to an honest sender what to do.
    pub(super) async fn record_alarms(&self, alarms: Vec<Security>) -> Result<(), StoreError> {
        if alarms.is_empty() {
            return Ok(());
        }
        for Security { reason, verb, count } in &alarms {
            tracing::warn!(?reason, verb, count, "commands rejected");
        }
        let now = self.clock.now();
        let write = move |tx: &mut crate::store::Tx<'_>| {
            for security in &alarms {
                tx.append_event(&NewEvent::new(now, Body::Security(security.clone())))?;
                let why = match security.reason {
                    SecurityReason::Unsigned => (ErrorCode::Unsigned, Untrusted::Unsigned),
                    SecurityReason::BadSignature => (
                        ErrorCode::BadSignature,
                        Untrusted::BadSignature("see [commands] trusted_keys"),
                    ),
                    _ => continue,
                };
                let rejection = Rejection::new(None, why.0, why.1.to_string());
                let verb = security.verb.as_deref().unwrap_or_default();
                tx.queue_reply(reply::UNREADABLE, &reply::rejected(verb, &rejection))?;
            }
            Ok(())
        };
        let written = self.store.write_async(write).await;
        self.log_unless_fatal(written)
    }

    /// Rejects a signed message that this device cannot check.
    pub(super) fn uncheckable(&self, payload: &[u8]) -> Option<Rejection> {
        if !jws::is_compact(payload.trim_ascii()) {
            return None;
        }
        let unchecked = jws::unchecked(payload).unwrap_or_default();
        let claims = Claims::read(&unchecked).ok();
        let request_id =
            claims.and_then(|it| command::request_id(it.cmd.get().as_bytes(), &self.limits));
        let message = "the command is signed, and this device has no [commands] trusted_keys to check it with";
        Some(Rejection::new(request_id.as_deref(), ErrorCode::BadSignature, message))
    }

    /// Returns the request id in the beginning of a message that is not read as a whole. Where
    /// signatures are required, it cannot be trusted.
    pub(super) fn request_id_at_head(&self, payload: &[u8]) -> Option<String> {
        let head = &payload[..payload.len().min(HEAD_BYTES)];
        if self.takes_signed_only() {
            None
        } else {
            crate::app::commands::commander::request_id_in(head)
        }
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
