//! Who asked for a command, and how the answer gets there.
//!
//! An answer to MQTT is owed like an event: it is in the outbox, in the transaction that holds the command's effect. An answer
//! by HTTP goes to the connection that waits for it, when that transaction is on the disk; who hung up may ask again with the
//! same `request_id`.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::record::command::{Command, answer};
use crate::record::store::{StoreError, Tx};

/// A command that came by HTTP.
pub struct Request {
    pub command: Command,
    /// Gets the answer; let go of without one where the daemon is stopping.
    pub answer: oneshot::Sender<String>,
}

/// Commands of HTTP that wait for their turn; the next is refused as busy.
pub const REQUESTS_MAX: usize = 4;

/// A request, while it is carried out.
#[derive(Clone)]
pub(super) struct Asked {
    pub request_id: String,
    desk: Option<Arc<Desk>>,
}

/// Where an answer lies until what it says is done: handed over when the last who works on the request lets go of it.
struct Desk(Mutex<(Option<String>, Option<oneshot::Sender<String>>)>);

impl Drop for Desk {
    fn drop(&mut self) {
        let (reply, waiting) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(reply), Some(waiting)) = (reply.take(), waiting.take()) {
            // Whoever asked may have hung up.
            waiting.send(reply).ok();
        }
    }
}

impl Asked {
    pub fn by_mqtt(request_id: String) -> Self {
        Self { request_id, desk: None }
    }

    pub fn by_http(request_id: String, waiting: oneshot::Sender<String>) -> Self {
        Self { request_id, desk: Some(Arc::new(Desk(Mutex::new((None, Some(waiting)))))) }
    }

    pub fn is_by_mqtt(&self) -> bool {
        self.desk.is_none()
    }

    /// Keeps the answer, so that the same request changes nothing twice, and gives it.
    pub fn put_answer(&self, tx: &mut Tx<'_>, verb: &str, reply: &str) -> Result<(), StoreError> {
        let (id, topic) = (&self.request_id, answer::topic_part(Some(&self.request_id)));
        if tx.keep_answer(id, verb, &topic, reply)? {
            return self.owe_reply(tx, reply);
        }
        Ok(())
    }

    /// Gives an answer that is not kept, or that was kept before.
    pub fn owe_reply(&self, tx: &mut Tx<'_>, reply: &str) -> Result<(), StoreError> {
        if self.desk.is_none() {
            return tx.owe_reply(&answer::topic_part(Some(&self.request_id)), reply);
        }
        self.say(Some(reply.to_owned()));
        Ok(())
    }

    /// By HTTP only: what will be answered in the end, if anything.
    pub fn say(&self, reply: Option<String>) {
        if let Some(desk) = &self.desk {
            desk.0.lock().unwrap_or_else(PoisonError::into_inner).0 = reply;
        }
    }
}
