//! Webhooks: events as HTTPS requests to receivers such as an HR system (`docs/webhook.md`).
//!
//! Invariants: a row is `Acknowledged` only when the receiver answered that it has the event. Every
//! request may be repeated at any time, and the receiver can tell by its `Idempotency-Key` (the
//! event's id) or, in HR systems, by employee and time. One request at a time for each webhook; no
//! redirect is followed; no address is connected to that the settings do not allow; everything that a
//! receiver sends is bounded in bytes and time.
//!
//! Not here: the choice of certificate authorities (`app`), the order and the repetition of
//! deliveries (`store::relay`).

pub mod address;
mod answer;
mod client;
mod link;
mod preset;
mod probe;
mod retry_after;
mod settings;
mod signature;
mod sink;
mod url;

pub use link::WebhookLink;
pub use preset::Preset;
pub use probe::{ProbeFault, probe};
pub use settings::{BATCH_MAX, WEBHOOKS_MAX, WebhookSettings};
pub use sink::WebhookSink;
pub use url::{UrlError, WebhookUrl};
