//! The sink of the shared gallery: subjects that the site is owed become retained messages.
//!
//! A row says whom, not what: the account is read when it is sent, so that it is the newest.

use std::sync::Arc;
use std::time::Duration;

use super::wire;
use super::{AUTHOR_PAUSE, Fleet};
use crate::mqtt::link::{Link, Message};
use crate::mqtt::topics::Topics;
use crate::recognise::face::SubjectId;
use crate::record::outbox::{Delivery, Sink};
use crate::record::store::{Account, Debt, OutboxRow, SinkName, Store, StoreError, Tx, subject_of};

/// A connection that stands is heard out within this, mostly.
const HEARING: Duration = Duration::from_secs(3);

pub struct GallerySink {
    pub fleet: Arc<Fleet>,
    pub link: Link,
    pub topics: Topics,
    pub store: Store,
}

/// What is to be done about a row.
enum Errand {
    /// Nothing is left to be told.
    Done,
    Failed(String),
    Publish {
        id: SubjectId,
        account: Account,
        payload: Vec<u8>,
    },
}

impl GallerySink {
    async fn errands(&self, batch: &[OutboxRow]) -> Result<Vec<Errand>, StoreError> {
        let owed = |row: &OutboxRow| {
            let (topic, payload) = row.reply.as_ref()?;
            Some((subject_of(topic)?, Debt::parse(payload)))
        };
        let owed: Vec<_> = batch.iter().map(owed).collect();
        let fleet = Arc::clone(&self.fleet);
        // Sealed on the store's thread: what is in clear does not leave it.
        let read = move |tx: &mut Tx<'_>| {
            let errand = |row: &Option<(SubjectId, Debt)>| -> Result<Errand, StoreError> {
                let Some((id, debt)) = row else {
                    return Ok(Errand::Failed("it is about nobody".into()));
                };
                let Some(portable) = tx.portable(id)? else {
                    return Ok(Errand::Done);
                };
                let account = Account::of(&portable);
                if !fleet.desk().book.may_publish(id, &account, *debt) {
                    return Ok(Errand::Done);
                }
                let payload = wire::record(&portable, &fleet.key, &fleet.site)?;
                Ok(Errand::Publish { id: id.clone(), account, payload })
            };
            owed.iter().map(errand).collect()
        };
        self.store.write_async(read).await
    }

    async fn heard(&self) -> bool {
        let mut ready = self.fleet.ready.subscribe();
        tokio::time::timeout(HEARING, ready.wait_for(|it| *it)).await.is_ok_and(|it| it.is_ok())
    }
}

impl Sink for GallerySink {
    fn name(&self) -> SinkName {
        SinkName::GALLERY
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let all = |answer: Delivery| vec![answer; batch.len()];
        if !self.heard().await {
            return all(Delivery::Retry("the site's gallery was not heard yet".into()));
        }
        if self.fleet.desk().book.is_strange() {
            return all(Delivery::Refused(
                "the site's gallery does not open with this key ([fleet] key_file)".into(),
            ));
        }
        let errands = match self.errands(batch).await {
            Ok(errands) => errands,
            Err(error) => return all(Delivery::Retry(error.to_string())),
        };
        let message = |errand: &Errand| match errand {
            Errand::Publish { id, payload, .. } => Some(Message {
                topic: self.topics.gallery(id),
                payload: payload.clone(),
                retain: true,
            }),
            _ => None,
        };
        let messages: Vec<_> = errands.iter().filter_map(message).collect();
        let mut results = self.link.publish_batch(messages).await.into_iter();
        let mut deliveries = Vec::with_capacity(batch.len());
        let mut desk = self.fleet.desk();
        for errand in errands {
            deliveries.push(match errand {
                Errand::Done => Delivery::Acknowledged,
                Errand::Failed(why) => Delivery::Poison(why),
                Errand::Publish { id, account, .. } => match results.next() {
                    Some(Ok(())) => {
                        desk.book.put(&id, account.clone());
                        desk.book.seen(&id, Some(account));
                        desk.touch(&id, AUTHOR_PAUSE);
                        Delivery::Acknowledged
                    }
                    Some(Err(why)) if why.is_poison() => Delivery::Poison(why.to_string()),
                    Some(Err(why)) => Delivery::Retry(why.to_string()),
                    None => Delivery::Retry("the link gave no answer".into()),
                },
            });
        }
        drop(desk);
        self.fleet.nudge.notify_one();
        deliveries
    }
}
