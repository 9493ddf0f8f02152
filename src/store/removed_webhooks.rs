//! What is pending for a webhook that is not configured any more: it is kept for a while, in case the
//! webhook was left out by mistake or comes back, and not for ever.
//!
//! Other sinks keep what is pending for them: of them there is one each, and it holds the record.

use crate::store::error::StoreError;
use crate::store::rows::WEBHOOK;
use crate::store::tx::{BATCH, Tx};

/// As long as somebody may be on holiday who left it out by mistake.
const KEPT_MS: i64 = 30 * 86_400_000;

impl Tx<'_> {
    /// Deletes what is pending for webhooks that have not been configured for 30 days, and forgets
    /// them: such a one is new when it comes back. Returns how many rows were deleted, at most a
    /// thousand; 0 when nothing is left to do. Only by a trusted clock.
    pub fn forget_removed_webhooks(&mut self) -> Result<usize, StoreError> {
        let now = self.now();
        if !now.trusted {
            return Ok(0);
        }
        for sink in self.known_webhooks()? {
            let removed = format!("removed.{sink}");
            if self.context.sinks.iter().any(|it| it.as_str() == sink) {
                self.delete_meta(&removed)?;
                continue;
            }
            let since_ms =
                self.meta(&removed)?.and_then(|it| String::from_utf8(it).ok()?.parse::<i64>().ok());
            let Some(since_ms) = since_ms else {
                self.put_meta(&removed, now.wall_ms.to_string().as_bytes())?;
                continue;
            };
            if now.wall_ms.saturating_sub(since_ms) < KEPT_MS {
                continue;
            }
            let sql = "delete from main.outbox where id in \
                       (select id from main.outbox where sink = ?1 order by id limit ?2)";
            let deleted = self.conn.prepare(sql)?.execute(rusqlite::params![sink, BATCH])?;
            if deleted > 0 {
                tracing::warn!(
                    sink,
                    deleted,
                    "messages for a webhook that was removed 30 days ago are deleted"
                );
                return Ok(deleted);
            }
            self.delete_meta(&removed)?;
            self.delete_meta(&format!("sink.{sink}"))?;
        }
        Ok(0)
    }

    /// The webhooks that were configured at some start.
    fn known_webhooks(&self) -> Result<Vec<String>, StoreError> {
        let sql = "select substr(key, 6) from meta where key like 'sink.%' order by key";
        let mut query = self.conn.prepare(sql)?;
        let known: Vec<String> =
            query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(known.into_iter().filter(|it| it.starts_with(WEBHOOK)).collect())
    }

    fn delete_meta(&self, key: &str) -> Result<(), StoreError> {
        self.conn.prepare_cached("delete from main.meta where key = ?1")?.execute([key])?;
        Ok(())
    }
}
