//! The settings of one webhook, as the configuration checked them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use ring::hmac;

use crate::store::SinkName;
use crate::webhook::preset::Preset;
use crate::webhook::url::WebhookUrl;

/// Webhooks of one device; a guess. Each costs an outbox row for every event.
pub const WEBHOOKS_MAX: usize = 8;
/// Events of one request: some 300 kB.
pub const BATCH_MAX: usize = 500;

#[derive(Clone)]
pub struct WebhookSettings {
    pub name: String,
    pub url: WebhookUrl,
    pub preset: Preset,
    /// Signs the requests.
    pub key: Option<hmac::Key>,
    /// The value of the header `Authorization`; sensitive.
    pub authorization: Option<HeaderValue>,
    /// The authority that signed the receiver's certificate; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    pub allow_private: bool,
    /// For connecting, for the head and for the body of an answer, each.
    pub timeout: Duration,
    /// Events of one request.
    pub batch: usize,
}

impl WebhookSettings {
    pub fn sink(&self) -> SinkName {
        SinkName::webhook(&self.name)
    }

    /// Rows that the relay passes at a time. Single requests share a connection and a commit; more of
    /// them would delay the end of the daemon.
    pub fn window(&self) -> usize {
        self.batch.max(SINGLES)
    }
}

const SINGLES: usize = 8;

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSettings({} to {:?})", self.name, self.url)
    }
}
