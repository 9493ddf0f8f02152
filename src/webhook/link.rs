//! The way to one receiver: makes requests of what is to be sent, one at a time, and keeps the
//! webhook's state for health.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http_body_util::Full;
use hyper::body::Bytes;
use rustls::ClientConfig;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::health::{Health, WebhookState};
use crate::webhook::answer::{self, Verdict};
use crate::webhook::client::{ReceiverClient, Reply, SendFault, Stream};
use crate::webhook::preset::{Preset, PresetRequest, Then};
use crate::webhook::retry_after;
use crate::webhook::settings::WebhookSettings;
use crate::webhook::signature;

/// Cheap to clone; all clones share one connection, which has one request at a time.
#[derive(Clone)]
pub struct WebhookLink {
    shared: Arc<SharedLink>,
}

struct SharedLink {
    settings: Arc<WebhookSettings>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    /// Of the webhook in `health`.
    at: usize,
    client: Mutex<ReceiverClient>,
    /// Until when the receiver asked us to wait.
    paused_until: std::sync::Mutex<Option<Instant>>,
}

/// What is sent.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'static str,
    /// Behind the path of the URL.
    pub(super) path: &'a str,
    pub(super) idempotency_key: Option<String>,
    pub(super) body: Vec<u8>,
}

/// With it a receiver can tell that it has seen a request before
/// (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const DATABASE: &str = "x-odoo-database";

impl WebhookLink {
    /// `at`: which of the webhooks in `health` it is. `tls`: with https.
    pub fn new(
        settings: Arc<WebhookSettings>,
        tls: Option<Arc<ClientConfig>>,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
        at: usize,
    ) -> Self {
        let client = Mutex::new(ReceiverClient::new(Arc::clone(&settings), tls));
        let paused_until = std::sync::Mutex::default();
        Self { shared: Arc::new(SharedLink { settings, clock, health, at, client, paused_until }) }
    }

    /// Sends the next request by an open connection instead of a new one: a fuzz target has no
    /// receiver.
    pub async fn use_stream(&self, stream: Box<dyn Stream>) -> Result<(), SendFault> {
        self.shared.client.lock().await.use_stream(stream).await
    }

    pub fn settings(&self) -> &WebhookSettings {
        &self.shared.settings
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.shared.clock.as_ref()
    }

    /// Returns for how long the receiver asked us to send nothing.
    pub(super) fn pause(&self) -> Option<Duration> {
        let until = *self.shared.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now()).filter(|it| !it.is_zero())
    }

    /// Sends a request and sorts the answer. Returns the text of the answer too.
    pub(super) async fn send(&self, outgoing: Outgoing<'_>) -> (Verdict, String) {
        let request = match self.request(outgoing) {
            Ok(request) => request,
            Err(error) => return (Verdict::Never(error.to_string()), String::new()),
        };
        let answer = self.shared.client.lock().await.send(request).await;
        match answer {
            Ok(reply) => {
                let verdict = self.sort(&reply);
                (verdict, reply.text)
            }
            Err(fault) => (of_fault(&fault), String::new()),
        }
    }

    fn request(&self, outgoing: Outgoing<'_>) -> Result<Request<Full<Bytes>>, http::Error> {
        let settings = &self.shared.settings;
        let Outgoing { method, path, idempotency_key, body } = outgoing;
        let agent = concat!("rollcall/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder()
            .method(method)
            .uri(settings.url.target(path))
            .header(HOST, settings.url.authority())
            .header(USER_AGENT, agent)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = idempotency_key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(key) = &settings.key {
            let unix_s = self.shared.clock.now().wall_ms.div_euclid(1000);
            request = request.header(signature::HEADER, signature::sign(key, unix_s, &body));
        }
        if let Some(value) = &settings.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        if let Preset::Odoo { database: Some(name) } = &settings.preset {
            request = request.header(DATABASE, name.clone());
        }
        request.body(Full::new(Bytes::from(body)))
    }

    fn sort(&self, reply: &Reply) -> Verdict {
        // Of a refusal of which a part is missing, the words may be missing that make it another one.
        if reply.is_cut && !(200..300).contains(&reply.status) {
            return Verdict::retry(format!("status {}, and the answer was cut", reply.status));
        }
        let verdict =
            answer::sort(self.shared.settings.preset.answers(), reply.status, &reply.text);
        if matches!(verdict, Verdict::Retry { .. }) && reply.headers.contains_key(RETRY_AFTER) {
            let now_ms = self.shared.clock.now().wall_ms;
            if let Some(pause) = retry_after::read(&reply.headers, now_ms) {
                let mut until =
                    self.shared.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
                *until = Some(Instant::now() + pause);
            }
        }
        verdict
    }

    /// Makes the requests of a record one after the other.
    pub(super) async fn send_steps(
        &self,
        steps: &[PresetRequest],
        idempotency_key: Option<&str>,
    ) -> Verdict {
        let mut ids = None;
        for step in steps {
            let mut body = step.body.clone();
            if let Some(ids) = ids.take() {
                body["ids"] = ids;
            }
            let outgoing = Outgoing {
                method: step.method,
                path: &step.path,
                // A search changes nothing.
                idempotency_key: idempotency_key
                    .filter(|_| step.then == Then::Delivered)
                    .map(str::to_owned),
                body: body.to_string().into_bytes(),
            };
            let (verdict, text) = self.send(outgoing).await;
            if verdict != Verdict::Delivered || step.then == Then::Delivered {
                return verdict;
            }
            let found = serde_json::from_str::<serde_json::Value>(&text).ok();
            let Some(found) = found.filter(serde_json::Value::is_array) else {
                return Verdict::retry("the answer to a search is no list of ids");
            };
            let is_empty = found.as_array().is_none_or(Vec::is_empty);
            match step.then {
                Then::ThereIfFound if !is_empty => return Verdict::AlreadyThere,
                Then::IdsOfNext(why) if is_empty => return Verdict::Never(why.to_owned()),
                Then::IdsOfNext(_) => ids = Some(found),
                Then::ThereIfFound | Then::Delivered => {}
            }
        }
        Verdict::retry("the preset has no last request")
    }

    /// States at the receiver up to when the record is complete there. Returns whether it knows now;
    /// `Err`: why it never will.
    pub async fn put_completeness(&self, complete_through_ms: i64) -> Result<bool, String> {
        if self.pause().is_some() {
            return Ok(false);
        }
        for step in self.shared.settings.preset.completeness(complete_through_ms) {
            let verdict = self.send_steps(&[step], None).await;
            self.record(&verdict);
            match verdict {
                Verdict::Delivered | Verdict::AlreadyThere => {}
                Verdict::Never(reason) | Verdict::TooLarge(reason) => return Err(reason),
                Verdict::Refused(_) | Verdict::Retry { .. } => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Keeps the state that an outcome shows; a change is logged.
    pub(super) fn record(&self, verdict: &Verdict) {
        let (state, reason) = match verdict {
            // The receiver answers; what it did not take is a dead letter.
            Verdict::Delivered
            | Verdict::AlreadyThere
            | Verdict::TooLarge(_)
            | Verdict::Never(_) => (WebhookState::Connected, None),
            Verdict::Refused(reason) => (WebhookState::Refused, Some(reason.clone())),
            Verdict::Retry { reason, .. } => (WebhookState::Away, Some(reason.clone())),
        };
        let at_ms = self.shared.clock.now().wall_ms;
        if !self.shared.health.set_webhook(self.shared.at, state, reason, at_ms) {
            return;
        }
        let webhook = self.shared.settings.name.as_str();
        match verdict {
            Verdict::Refused(reason) => {
                tracing::error!(
                    webhook,
                    reason,
                    "the webhook is refused until it is corrected; everything stays pending"
                );
            }
            // The relay logs it, with the pause.
            Verdict::Retry { .. } => {}
            _ => tracing::info!(webhook, "the webhook's receiver answers"),
        }
    }
}

fn of_fault(fault: &SendFault) -> Verdict {
    if fault.needs_correction() {
        Verdict::Refused(fault.to_string())
    } else {
        Verdict::retry(fault.to_string())
    }
}
