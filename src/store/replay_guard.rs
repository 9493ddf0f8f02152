//! The replay guard: signed commands are remembered, so that none is executed twice.
//!
//! Each is recorded before it is executed, and stays until it has expired. It is done with the
//! transaction that holds its reply, and with it its effect. A command that is not done (killed in
//! between) has changed nothing, so it may be sent again under any packet id. A command that is done
//! is a replay, except for the broker's own redelivery of what was not acknowledged, which has the
//! DUP flag and the same packet id and gets the stored reply. Flag and packet id may be a sender's
//! (some brokers pass them on or give others): that reply is all that they can obtain.
//!
//! Invariant: what is forgotten is never taken again, whatever the clock does afterwards: the end
//! of the last one forgotten stays, and nothing that ends before it is new.

use rusqlite::{OptionalExtension as _, Row, params};

use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::tx::Tx;

/// So many are remembered at a time, about 15 MB. More commands than that within their lifetimes
/// are rejected for the moment: to forget one would let it be replayed.
const REMEMBERED_MAX: i64 = 100_000;

/// In `meta`: the end of the last one that was forgotten.
const FORGOTTEN: &str = "signed_forgotten";

/// A signed command as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedToken {
    /// Its signer and its `jti`.
    pub id: String,
    pub request_id: String,
    /// It expires at this time.
    pub gone_ms: i64,
    pub packet_id: u16,
    /// The DUP flag.
    pub again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayCheck {
    /// To be executed, or replied to again: new, not done, or the same publication once more.
    Accept,
    Replay,
    /// Others that expired later are forgotten already: whether this one is a replay is not known.
    Expired,
    /// Too many to remember another.
    CapacityReached,
}

/// What is known of a token when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// Never seen, or forgotten.
    Unknown,
    /// Remembered, but its request has no reply yet.
    Unfinished,
    /// Its request has a stored reply, and the broker redelivers the same publication.
    Redelivered,
    /// Its request has been replied to.
    Replayed,
}

impl Reader {
    /// Returns what is known of a token.
    pub fn token_state(&self, token: &SignedToken) -> Result<TokenState, StoreError> {
        let of = "select packet_id, done, request_id from signed where jti = ?1";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let known: Option<(u16, bool, String)> =
            self.conn.prepare_cached(of)?.query_row([&token.id], read).optional()?;
        let Some((packet_id, done, request_id)) = known else {
            return Ok(TokenState::Unknown);
        };
        if request_id != token.request_id {
            return Ok(TokenState::Replayed);
        }
        if !done {
            return Ok(TokenState::Unfinished);
        }
        let is_redelivered = token.again && packet_id == token.packet_id;
        let has_reply = is_redelivered && self.stored_reply(&request_id)?.is_some();
        Ok(if has_reply { TokenState::Redelivered } else { TokenState::Replayed })
    }
}

impl Tx<'_> {
    /// Remembers a signed command, if it may be executed.
    pub fn remember(&mut self, token: &SignedToken) -> Result<ReplayCheck, StoreError> {
        match self.token_state(token)? {
            TokenState::Unknown => {}
            TokenState::Unfinished | TokenState::Redelivered => return Ok(ReplayCheck::Accept),
            TokenState::Replayed => return Ok(ReplayCheck::Replay),
        }
        if token.gone_ms <= self.forget_late()? {
            return Ok(ReplayCheck::Expired);
        }
        let count: i64 =
            self.conn.query_row("select count(*) from main.signed", [], |row| row.get(0))?;
        if count >= REMEMBERED_MAX {
            return Ok(ReplayCheck::CapacityReached);
        }
        let insert = "insert into main.signed (jti, request_id, expires_ms, packet_id) values (?1, ?2, ?3, ?4)";
        let row = params![token.id, token.request_id, token.gone_ms, token.packet_id];
        self.conn.prepare(insert)?.execute(row)?;
        Ok(ReplayCheck::Accept)
    }

    /// Marks a request as done, in the transaction of its reply.
    pub fn end_signed(&mut self, request_id: &str) -> Result<(), StoreError> {
        let sql = "update main.signed set done = 1 where request_id = ?1 and done = 0";
        self.conn.prepare_cached(sql)?.execute([request_id])?;
        Ok(())
    }

    /// Forgets those that have expired. Returns the end of the last one that ever was forgotten.
    fn forget_late(&mut self) -> Result<i64, StoreError> {
        let before = self
            .meta(FORGOTTEN)?
            .and_then(|it| String::from_utf8(it).ok()?.parse().ok())
            .unwrap_or(i64::MIN);
        let now = self.now();
        if !now.trusted {
            return Ok(before);
        }
        let latest = "select max(expires_ms) from main.signed where expires_ms <= ?1";
        let latest: Option<i64> = self.conn.query_row(latest, [now.wall_ms], |row| row.get(0))?;
        let Some(latest) = latest else {
            return Ok(before);
        };
        self.conn.execute("delete from main.signed where expires_ms <= ?1", [now.wall_ms])?;
        let forgotten = before.max(latest);
        self.put_meta(FORGOTTEN, forgotten.to_string().as_bytes())?;
        Ok(forgotten)
    }
}
