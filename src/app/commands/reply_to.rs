//! Where the reply to a command goes.
//!
//! A reply to MQTT is pending like an event: it is in the outbox, written in the transaction that holds
//! the command's effect. A reply by HTTP goes to the connection that waits for it, after that
//! transaction is on the disk; a client that disconnected may ask again with the same `request_id`.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tokio::sync::oneshot;

use crate::store::{StoreError, Tx};
use crate::wire::command::{Command, ErrorCode, Rejection};
use crate::wire::reply::{self, Reply};

/// A command that came by HTTP.
pub struct Request {
    pub command: Command,
    /// Receives the reply; dropped without one where the daemon is stopping.
    pub reply: oneshot::Sender<WrittenReply>,
}

/// Commands by HTTP that wait for their turn; the next is rejected as busy.
pub const REQUESTS_MAX: usize = 4;

/// A reply and its JSON, which is written once, here.
pub struct WrittenReply {
    pub content: ReplyContent,
    pub json: String,
}

pub enum ReplyContent {
    Executed(Reply),
    Rejected(Rejection),
    /// Of a request that was executed before: only its JSON is stored.
    Stored(Option<ErrorCode>),
}

impl WrittenReply {
    pub fn rejected(verb: &str, rejection: Rejection) -> Self {
        let json = reply::rejected(verb, &rejection);
        Self { content: ReplyContent::Rejected(rejection), json }
    }

    fn from_stored(json: String) -> Self {
        #[derive(Deserialize)]
        struct Stored {
            error: Option<StoredError>,
        }
        #[derive(Deserialize)]
        struct StoredError {
            code: ErrorCode,
        }
        let stored = serde_json::from_str::<Stored>(&json).ok();
        let code = stored.and_then(|it| it.error).map(|it| it.code);
        Self { content: ReplyContent::Stored(code), json }
    }

    /// Returns the error code; `None` if the command was executed.
    pub fn error(&self) -> Option<ErrorCode> {
        match &self.content {
            ReplyContent::Executed(_) => None,
            ReplyContent::Rejected(rejection) => Some(rejection.code),
            ReplyContent::Stored(code) => *code,
        }
    }
}

/// The largest reply by MQTT: with topic and header it fits into the largest packet that the link
/// sends (1 MiB).
const MQTT_BYTES_MAX: usize = 960 << 10;
/// The same by HTTP, for a page of the record: 500 rows with names of 200 characters have 0.6 MB, and
/// as much again those sessions of two months of which nothing is known, once each with one gap.
const HTTP_BYTES_MAX: usize = 4 << 20;

/// The commands that change nothing, whose replies would be stored.
const READ_VERBS: [&str; 3] = ["attendance", "subjects", "venues"];

/// The request that is being executed, and where its reply goes.
#[derive(Clone)]
pub(super) struct ReplyTo {
    pub request_id: String,
    pub verb: &'static str,
    /// `None`: MQTT.
    client: Option<Arc<Mutex<Option<oneshot::Sender<WrittenReply>>>>>,
}

impl ReplyTo {
    pub fn mqtt(request_id: String, verb: &'static str) -> Self {
        Self { request_id, verb, client: None }
    }

    pub fn http(
        request_id: String,
        verb: &'static str,
        client: oneshot::Sender<WrittenReply>,
    ) -> Self {
        Self { request_id, verb, client: Some(Arc::new(Mutex::new(Some(client)))) }
    }

    pub fn is_mqtt(&self) -> bool {
        self.client.is_none()
    }

    /// Whether it only reads, for a client that waits: then nothing is stored, and nothing that was
    /// stored is given. Who may only read could else take the request id of another's command, or
    /// push stored replies out.
    pub fn is_read_by_http(&self) -> bool {
        !self.is_mqtt() && READ_VERBS.contains(&self.verb)
    }

    /// Writes the reply of a command that was executed; a rejection instead of one that is too large.
    pub fn write(&self, reply: Reply) -> WrittenReply {
        let json = reply::accepted(&self.request_id, self.verb, &reply);
        let bytes = json.len();
        let bytes_max = if self.is_mqtt() { MQTT_BYTES_MAX } else { HTTP_BYTES_MAX };
        if bytes <= bytes_max {
            return WrittenReply { content: ReplyContent::Executed(reply), json };
        }
        let message = format!(
            "the page would have {bytes} bytes; at most {bytes_max}: ask for fewer rows (`limit`) \
             or a shorter period (`from`, `to`)"
        );
        let rejection = Rejection::new(Some(&self.request_id), ErrorCode::TooMany, message);
        WrittenReply::rejected(self.verb, rejection)
    }

    /// Writes the reply of a command that was executed and stores it, so that the same request
    /// changes nothing twice.
    pub fn accept(&self, tx: &mut Tx<'_>, reply: Reply) -> Result<WrittenReply, StoreError> {
        let written = self.write(reply);
        self.store(tx, &written.json)?;
        Ok(written)
    }

    /// Stores a reply and queues it, unless the request has a stored one already.
    pub fn store(&self, tx: &mut Tx<'_>, json: &str) -> Result<(), StoreError> {
        if self.is_read_by_http() {
            return Ok(());
        }
        let topic = reply::topic_part(Some(&self.request_id));
        if tx.store_reply(&self.request_id, self.verb, &topic, json)? {
            self.queue(tx, json)?;
        }
        Ok(())
    }

    /// Queues a reply for MQTT without storing it.
    pub fn queue(&self, tx: &mut Tx<'_>, json: &str) -> Result<(), StoreError> {
        if self.is_mqtt() {
            tx.queue_reply(&reply::topic_part(Some(&self.request_id)), json)?;
        }
        Ok(())
    }

    /// Sends a reply by HTTP once everything it reports is on the disk. No effect for MQTT.
    pub fn send(&self, reply: WrittenReply) {
        let client = self.client.as_ref();
        let client = client.and_then(|it| it.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(client) = client {
            // The client may have disconnected.
            client.send(reply).ok();
        }
    }

    /// Sends a reply that was stored before.
    pub fn send_stored(&self, json: String) {
        self.send(WrittenReply::from_stored(json));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::wire::reply::Recognised;

    #[test]
    fn reply_that_is_too_large_is_rejected() {
        let names = vec![Name::new(&"n".repeat(200)).expect("it is a name"); 10_000];
        let reply = Reply::Recognised(Recognised { faces: Vec::new(), names });
        let (client, _waits) = oneshot::channel();
        let by_http = ReplyTo::http("r-1".into(), "recognise", client).write(reply.clone());
        assert!(by_http.error().is_none() && by_http.json.len() > MQTT_BYTES_MAX);
        let by_mqtt = ReplyTo::mqtt("r-1".into(), "recognise").write(reply);
        assert_eq!(by_mqtt.error(), Some(ErrorCode::TooMany));
        assert!(by_mqtt.json.contains("r-1") && by_mqtt.json.len() < 1000, "{}", by_mqtt.json);
    }
}
