//! A small MQTT client for the command line: sends commands to a daemon and waits for the replies.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::app::links;
use crate::cli::sign;
use crate::config::Settings;
use crate::keys::signer::SigningKey;
use crate::mqtt::event::LinkEvent;
use crate::mqtt::link;
use crate::mqtt::link::Link;
use crate::mqtt::message::Message;
use crate::mqtt::topics::Topics;

/// Runs `work` with a connection to the configured broker, subscribed to `topics` below the
/// device's own.
pub fn with_console<T>(
    settings: &Settings,
    subscriptions: &[&str],
    work: impl AsyncFnOnce(&mut Console) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mqtt =
        settings.mqtt.as_ref().context("no broker is configured: see [mqtt] in config.toml")?;
    let topics = Topics::new(&settings.site, &settings.device)?;
    let mut link = links::link_settings(mqtt, &topics);
    // A random client id, so that the broker never disconnects one console for another. The
    // session is not persistent.
    link.client_id = format!("rollcall-console-{}", Uuid::now_v7().simple());
    link.persistent = false;
    link.status_topic = topics.below(&format!("console/{}", link.client_id));
    link.packet_bytes_max_out = link.packet_bytes_max_in;
    // Its commands are answered, which is proof enough.
    link.probe_topic = None;
    link.subscriptions = subscriptions.iter().map(|part| topics.below(part)).collect();
    let signer = sign::load_signer(settings)?;
    let audience = topics.audiences()[0].clone();
    let (link, driver, events) = link::open(link)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut console =
            Console { link, events, base: topics.base(), audience, signer, waiting: Vec::new() };
        let work = async {
            let outcome = work(&mut console).await;
            stop.send_replace(true);
            outcome
        };
        let (outcome, goodbye) = tokio::join!(work, driver.drive(stopped));
        goodbye.or_else(|error| if outcome.is_ok() { Err(error) } else { Ok(()) })?;
        outcome
    })
}

/// The lifetime of a signed command, whose reply is awaited.
const LIFETIME: Duration = Duration::from_mins(5);

pub struct Console {
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    base: String,
    audience: String,
    signer: Option<SigningKey>,
    /// Messages that arrived while another was awaited.
    waiting: Vec<(String, Vec<u8>)>,
}

impl Console {
    /// Sends a command and waits for its reply. The subscription must cover `reply/+`.
    pub async fn request(
        &mut self,
        verb: &str,
        body: Value,
        patience: Duration,
    ) -> anyhow::Result<Value> {
        self.request_as(&Uuid::now_v7().simple().to_string(), verb, body, patience).await
    }

    /// Does the same with a given request id.
    pub async fn request_as(
        &mut self,
        request_id: &str,
        verb: &str,
        body: Value,
        patience: Duration,
    ) -> anyhow::Result<Value> {
        self.send(request_id, verb, body, patience).await?;
        self.wait_for_reply(request_id, patience).await
    }

    /// Sends a command and returns when the broker has acknowledged it.
    pub async fn send(
        &mut self,
        request_id: &str,
        verb: &str,
        mut body: Value,
        patience: Duration,
    ) -> anyhow::Result<()> {
        body["schema"] = 1.into();
        body["request_id"] = request_id.into();
        let topic = format!("{}/command/{verb}", self.base);
        let payload = match &self.signer {
            Some(key) => {
                sign::sign_command(key, &self.audience, verb, body, LIFETIME)?.into_bytes()
            }
            None => serde_json::to_vec(&body)?,
        };
        let message = Message { topic, payload, retain: false };
        self.connected(patience).await?;
        for sent in self.link.publish_batch(vec![message]).await {
            sent.context("the command did not reach the broker")?;
        }
        Ok(())
    }

    /// Waits for the reply to a command that was sent.
    pub async fn wait_for_reply(
        &mut self,
        request_id: &str,
        patience: Duration,
    ) -> anyhow::Result<Value> {
        let wanted = format!("reply/{request_id}");
        let (_, payload) = self
            .next(patience, |part, _| part == wanted)
            .await
            .context("no reply from the daemon")?;
        Ok(serde_json::from_slice(&payload)?)
    }

    async fn connected(&self, patience: Duration) -> anyhow::Result<()> {
        let mut online = self.link.online();
        let wait = tokio::time::timeout(patience, online.wait_for(|it| *it)).await;
        ensure!(matches!(wait, Ok(Ok(_))), "the broker cannot be reached");
        Ok(())
    }

    /// The next message that `wanted` accepts, by its topic below the device's own and its payload.
    /// Keeps others for later calls.
    pub async fn next(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str, &[u8]) -> bool,
    ) -> anyhow::Result<(String, Vec<u8>)> {
        if let Some(at) = self.waiting.iter().position(|(part, payload)| wanted(part, payload)) {
            return Ok(self.waiting.remove(at));
        }
        let receive = async {
            while let Some(event) = self.events.recv().await {
                let inbound = match event {
                    LinkEvent::Inbound(inbound) => inbound,
                    LinkEvent::SubscriptionRefused { filter } => {
                        bail!("the broker rejects the subscription to {filter}: check its ACL")
                    }
                    _ => continue,
                };
                let part = inbound
                    .topic
                    .strip_prefix(&self.base)
                    .unwrap_or_default()
                    .trim_start_matches('/')
                    .to_owned();
                let payload = inbound.payload;
                inbound.ack.acknowledge();
                if wanted(&part, &payload) {
                    return Ok((part, payload));
                }
                self.waiting.push((part, payload));
            }
            bail!("the connection to the broker ended")
        };
        match tokio::time::timeout(patience, receive).await {
            Ok(received) => received,
            Err(_) => bail!("no message arrived within {patience:?}"),
        }
    }
}
