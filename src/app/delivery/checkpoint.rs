//! Signs the end of the chain of events: at most once a minute while events are recorded, and at once
//! when retention has deleted some. The newest checkpoint is kept in the database; the watermark
//! carries it to the broker and to MongoDB.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Stamp, rfc3339};
use crate::ids::Origin;
use crate::keys::checkpoint::Checkpoint;
use crate::keys::signer::SigningKey;
use crate::store::{ChainHead, Store, StoreError, Tx};

/// What is recorded within this time may be cut off unseen; each checkpoint is a write to the card.
const INTERVAL: Duration = Duration::from_mins(1);

pub struct Checkpoints {
    store: Store,
    clock: Arc<dyn Clock>,
    key: Arc<SigningKey>,
    origin: Origin,
    newest: Option<Checkpoint>,
    token: Option<String>,
    signed_at: Option<Stamp>,
}

impl Checkpoints {
    pub fn new(store: Store, clock: Arc<dyn Clock>, key: Arc<SigningKey>, origin: Origin) -> Self {
        Self { store, clock, key, origin, newest: None, token: None, signed_at: None }
    }

    /// Signs `head` if that is due. Returns the newest checkpoint.
    pub async fn refresh(
        &mut self,
        head: Option<&ChainHead>,
    ) -> Result<Option<String>, StoreError> {
        if self.newest.is_none() {
            self.token = self.store.read(|tx: &Tx<'_>| tx.checkpoint()).await?;
            let token = self.token.as_deref().unwrap_or_default();
            let stored = Checkpoint::verify(token.as_bytes(), self.key.public()).ok();
            // A device that was given another name signs anew.
            let Origin { site, device } = &self.origin;
            self.newest = stored.filter(|it| it.site == *site && it.device == *device);
        }
        let now = self.clock.now();
        if head.is_some_and(|head| self.is_due(head, &now)) {
            let (key, origin) = (Arc::clone(&self.key), self.origin.clone());
            let sign = move |tx: &mut Tx<'_>| sign(tx, &key, &origin, &now);
            if let Some((checkpoint, token)) = self.store.write_async(sign).await? {
                (self.newest, self.token) = (Some(checkpoint), Some(token));
            }
            self.signed_at = Some(now);
        }
        Ok(self.token.clone())
    }

    fn is_due(&self, head: &ChainHead, now: &Stamp) -> bool {
        let Some(newest) = &self.newest else { return true };
        let is_pruned = newest.deleted_through != head.deleted_through;
        let is_same = newest.seq == head.seq && newest.hash == head.hash;
        let is_time = self.signed_at.is_none_or(|at| now.since(&at) >= INTERVAL);
        is_pruned || (!is_same && is_time)
    }
}

/// Signs the end of the chain and keeps the checkpoint. `None`: there is no chain.
pub fn sign(
    tx: &mut Tx<'_>,
    key: &SigningKey,
    origin: &Origin,
    now: &Stamp,
) -> Result<Option<(Checkpoint, String)>, StoreError> {
    let Some(head) = tx.chain_head()? else { return Ok(None) };
    let checkpoint = Checkpoint {
        schema: Checkpoint::SCHEMA,
        site: origin.site.clone(),
        device: origin.device.clone(),
        seq: head.seq,
        hash: head.hash,
        record: head.record,
        count: head.seq - head.began + 1,
        deleted_through: head.deleted_through,
        at: rfc3339(now.wall_ms),
        clock_trusted: now.trusted,
    };
    let token = checkpoint.sign(key);
    tx.put_checkpoint(&token)?;
    Ok(Some((checkpoint, token)))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::redundant_closure_for_method_calls,
        reason = "a path is not general over lifetimes"
    )]

    use super::*;
    use crate::clock::SimulatedClock;
    use crate::store::{SinkName, StoreOptions};
    use crate::wire::event::{Body, Camera, CameraState, NewEvent};

    #[test]
    fn checkpoint_is_signed_once_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(1_795_420_683_412));
        let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&clock) as _);
        let store = Store::open(dir.path(), options).unwrap().store;
        let key = Arc::new(SigningKey::of_device(dir.path()).unwrap());
        let origin = Origin { site: "hq".into(), device: "door-1".into() };
        let made = || {
            Checkpoints::new(
                store.clone(),
                Arc::clone(&clock) as _,
                Arc::clone(&key),
                origin.clone(),
            )
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let append = || {
            let body =
                Body::Camera(Camera { state: CameraState::Lost, reason: None, lost_ms: None });
            let event = NewEvent::new(clock.now(), body);
            store.write(move |tx| tx.append_event(&event)).unwrap();
        };
        let refresh = |checkpoints: &mut Checkpoints| {
            let head = store.write(|tx| tx.chain_head()).unwrap();
            let token = runtime.block_on(checkpoints.refresh(head.as_ref())).unwrap();
            token.map(|it| Checkpoint::verify(it.as_bytes(), key.public()).unwrap().seq)
        };
        let mut checkpoints = made();
        assert_eq!(refresh(&mut checkpoints), None);
        append();
        assert_eq!(refresh(&mut checkpoints), Some(1));
        append();
        assert_eq!(refresh(&mut checkpoints), Some(1));
        clock.advance(INTERVAL);
        assert_eq!(refresh(&mut checkpoints), Some(2));
        // After a restart the stored one counts.
        let mut checkpoints = made();
        assert_eq!(refresh(&mut checkpoints), Some(2));
        assert_eq!(checkpoints.signed_at, None);
    }
}
