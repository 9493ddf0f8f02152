//! Wrong tokens, logged and published as `event/security`: the first at once, further ones counted
//! and reported together.

use std::sync::Arc;

use tokio::sync::watch;

use crate::app::commands::alarms::Alarms;
use crate::app::supervise::StageResult;
use crate::clock::Clock;
use crate::error_chain::error_chain;
use crate::http::guard::WrongTokens;
use crate::store::{Store, StoreError, Tx};
use crate::wire::event::{Body, NewEvent, Security, SecurityReason};

pub(super) struct GuessReporter {
    wrong: Arc<WrongTokens>,
    store: Store,
    clock: Arc<dyn Clock>,
    alarms: Alarms,
}

impl GuessReporter {
    pub fn new(wrong: Arc<WrongTokens>, store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { wrong, store, clock, alarms: Alarms::default() }
    }

    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> StageResult {
        loop {
            let pause = self.alarms.pause(&self.clock.now());
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                (count, peer) = self.wrong.next() => {
                    let now = self.clock.now();
                    let is_first =
                        self.alarms.note_many(SecurityReason::WrongToken, count, &now);
                    if let Some(peer) = peer.filter(|_| is_first) {
                        tracing::warn!(%peer, "requests by HTTP with a wrong token are rejected");
                    }
                }
                () = due => {
                    let due = self.alarms.take_due(&self.clock.now());
                    self.record(due).await?;
                }
                () = async { drop(stop.wait_for(|it| *it).await) } => break,
            }
        }
        let rest = self.alarms.take_all();
        Ok(self.record(rest).await?)
    }

    async fn record(&self, counted: Vec<Security>) -> Result<(), StoreError> {
        for security in counted {
            tracing::warn!(count = security.count, "wrong tokens were presented by HTTP");
            let event = NewEvent::new(self.clock.now(), Body::Security(security));
            let write = move |tx: &mut Tx<'_>| tx.append_event(&event).map(drop);
            match self.store.write_async(write).await {
                Err(error) if !error.is_fatal() => {
                    tracing::error!(error = error_chain(&error), "a security event is lost");
                }
                written => written?,
            }
        }
        Ok(())
    }
}
