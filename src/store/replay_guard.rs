//! What may be done within a write: signed commands are remembered, so that none is taken twice.
//!
//! Each is written down before it is carried out, and stays until it would be too late for it anyway. It is done with the
//! transaction that holds its answer, and with it its effect. One that is not done (killed in between) has changed nothing:
//! whoever sends it again, under whatever packet id, brings what its signer asked for. One that is done is a replay, but for
//! the broker's own repetition of what was not acknowledged, which comes flagged under the packet id it had and is answered
//! from the stored answer. Flag and packet id may be a sender's (the embedded broker passes them on or gives others): so
//! that answer is all that they are ever worth.
//!
//! Invariant: what is forgotten is never taken again, whatever the clock does afterwards: the end of the last one forgotten
//! stays, and nothing that ends before it is new.

use rusqlite::{OptionalExtension as _, Row, params};

use super::StoreError;
use super::tx::Tx;

/// So many are remembered at a time, about 15 MB. More commands than that within their lifetimes are refused for the
/// moment: to forget one would let it be replayed.
const REMEMBERED_MAX: i64 = 100_000;

/// In `meta`: the end of the last one that was forgotten.
const FORGOTTEN: &str = "signed_forgotten";

/// A signed command as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who signed it and its `jti`.
    pub id: String,
    pub request_id: String,
    /// From then on it is too late for it.
    pub gone_ms: i64,
    pub packet_id: u16,
    /// The broker says that it has sent this before.
    pub again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// To be carried out, or answered again: new, not done, or the same publication once more.
    Never,
    Replayed,
    /// Others that ended later are forgotten already: whether this one was seen cannot be told.
    Late,
    /// Too many to remember another.
    Full,
}

impl Tx<'_> {
    /// Remembers a signed command, if it may be carried out.
    pub fn remember(&mut self, token: &Token) -> Result<Seen, StoreError> {
        let of = "select packet_id, done, request_id from signed where jti = ?1";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let before: Option<(u16, bool, String)> =
            self.conn.prepare(of)?.query_row([&token.id], read).optional()?;
        if let Some((packet_id, done, request_id)) = before {
            if request_id != token.request_id {
                return Ok(Seen::Replayed);
            }
            let repeated = token.again && packet_id == token.packet_id;
            let may_come = !done || repeated && self.answer_of(&request_id)?.is_some();
            return Ok(if may_come { Seen::Never } else { Seen::Replayed });
        }
        if token.gone_ms <= self.forget_late()? {
            return Ok(Seen::Late);
        }
        let count: i64 =
            self.conn.query_row("select count(*) from signed", [], |row| row.get(0))?;
        if count >= REMEMBERED_MAX {
            return Ok(Seen::Full);
        }
        let insert =
            "insert into signed (jti, request_id, expires_ms, packet_id) values (?1, ?2, ?3, ?4)";
        let row = params![token.id, token.request_id, token.gone_ms, token.packet_id];
        self.conn.prepare(insert)?.execute(row)?;
        Ok(Seen::Never)
    }

    /// The request was answered: in the transaction of the answer.
    pub fn end_signed(&mut self, request_id: &str) -> Result<(), StoreError> {
        let sql = "update signed set done = 1 where request_id = ?1 and done = 0";
        self.conn.prepare_cached(sql)?.execute([request_id])?;
        Ok(())
    }

    /// Forgets those that it is too late for; gives the end of the last one that ever was forgotten.
    fn forget_late(&mut self) -> Result<i64, StoreError> {
        let before = self
            .meta(FORGOTTEN)?
            .and_then(|it| String::from_utf8(it).ok()?.parse().ok())
            .unwrap_or(i64::MIN);
        let now = self.now();
        if !now.trusted {
            return Ok(before);
        }
        let latest = "select max(expires_ms) from signed where expires_ms <= ?1";
        let latest: Option<i64> = self.conn.query_row(latest, [now.wall_ms], |row| row.get(0))?;
        let Some(latest) = latest else {
            return Ok(before);
        };
        self.conn.execute("delete from signed where expires_ms <= ?1", [now.wall_ms])?;
        let forgotten = before.max(latest);
        self.put_meta(FORGOTTEN, forgotten.to_string().as_bytes())?;
        Ok(forgotten)
    }
}
