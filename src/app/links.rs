//! The settings of the daemon's connections to the broker and to webhooks, derived from the
//! configuration.

use std::sync::Arc;

use crate::app::fleet::BYTES_MAX;
use crate::config::mqtt::MqttSettings;
use crate::mqtt::settings::LinkSettings;
use crate::mqtt::tls::{self, TlsError, TlsSettings};
use crate::mqtt::topics::Topics;
use crate::webhook::WebhookSettings;

pub fn link_settings(mqtt: &MqttSettings, topics: &Topics) -> LinkSettings {
    let mut link = LinkSettings::new(&mqtt.host, mqtt.port, &mqtt.client_id, topics.status());
    link.keep_alive = mqtt.keep_alive;
    link.credentials.clone_from(&mqtt.credentials);
    link.tls.clone_from(&mqtt.tls);
    // Room for the topic and the header around the largest payload.
    link.packet_bytes_max_in = mqtt.packet_bytes_max + (64 << 10);
    link.window = mqtt.window;
    link.subscriptions = topics.command_subscriptions();
    link.version = mqtt.version;
    link.probe_topic = Some(topics.probe());
    link
}

/// Returns the settings of the gallery's connection, which has a session of its own.
pub(super) fn gallery_link_settings(mqtt: &MqttSettings, topics: &Topics) -> LinkSettings {
    let mut link = link_settings(mqtt, topics);
    link.client_id = format!("{}-gallery", mqtt.client_id);
    link.status_topic = topics.gallery_status();
    link.packet_bytes_max_in = BYTES_MAX + (64 << 10);
    link.packet_bytes_max_out = BYTES_MAX;
    // Brokers that do not wait for acknowledgements send many messages at once.
    link.inbound_count_max = 2048;
    link.subscriptions = Vec::new();
    // Its records are probes of their own: each has to come back.
    link.probe_topic = None;
    link.scanned = vec![topics.all_gallery_pages(), topics.all_gallery()];
    link
}

/// Returns what a webhook's receiver must prove; `None` without https.
pub fn webhook_tls(
    webhook: &WebhookSettings,
) -> Result<Option<Arc<rustls::ClientConfig>>, TlsError> {
    if !webhook.url.is_https {
        return Ok(None);
    }
    let settings = TlsSettings { ca: webhook.ca_file.clone(), client: None };
    tls::client_config(&settings, webhook.url.host()).map(Some)
}
