//! The check of `doctor`: whether the receiver can be connected to. Nothing is sent, so that nothing
//! is recorded there.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::webhook::client::{ReceiverClient, SendFault};
use crate::webhook::settings::WebhookSettings;

/// Why a receiver cannot be connected to.
pub type ProbeFault = SendFault;

/// Resolves the name, connects and, with https, checks the certificate.
pub async fn probe(
    settings: Arc<WebhookSettings>,
    tls: Option<Arc<ClientConfig>>,
) -> Result<(), ProbeFault> {
    ReceiverClient::new(settings, tls).try_connecting().await
}
