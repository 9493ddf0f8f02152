//! A small MQTT client for the command line: sends one command to a daemon and waits for its answer.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::app;
use crate::cli::sign;
use crate::config::Settings;
use crate::mqtt::link::{self, Link, LinkEvent, Message};
use crate::mqtt::topics::Topics;
use crate::record::signer::SigningKey;

/// Runs `work` with a connection to the configured broker, subscribed to `topics` below the device's own.
pub fn with_console<T>(
    settings: &Settings,
    subscriptions: &[&str],
    work: impl AsyncFnOnce(&mut Console) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mqtt =
        settings.mqtt.as_ref().context("no broker is configured: see [mqtt] in config.toml")?;
    let topics = Topics::new(&settings.site, &settings.device)?;
    let mut link = app::serve::link_settings(mqtt, &topics);
    // A random name, so that two consoles never push each other off; nothing is kept for it.
    link.client_id = format!("rollcall-console-{}", Uuid::now_v7().simple());
    link.persistent = false;
    link.status_topic = topics.below(&format!("console/{}", link.client_id));
    link.packet_bytes_max_out = link.packet_bytes_max_in;
    link.subscriptions = subscriptions.iter().map(|part| topics.below(part)).collect();
    let signer = sign::signer(settings)?;
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

/// Of a signed command: its answer is waited for.
const LIFETIME: Duration = Duration::from_mins(5);

pub struct Console {
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    base: String,
    audience: String,
    signer: Option<SigningKey>,
    /// Messages that arrived while another was waited for.
    waiting: Vec<(String, Vec<u8>)>,
}

impl Console {
    /// Sends a command and waits for its answer. The subscription must cover `reply/+`.
    pub async fn request(
        &mut self,
        verb: &str,
        body: Value,
        patience: Duration,
    ) -> anyhow::Result<Value> {
        self.request_as(&Uuid::now_v7().simple().to_string(), verb, body, patience).await
    }

    /// The same by a request id of the caller's.
    pub async fn request_as(
        &mut self,
        request_id: &str,
        verb: &str,
        body: Value,
        patience: Duration,
    ) -> anyhow::Result<Value> {
        self.send(request_id, verb, body, patience).await?;
        self.answer(request_id, patience).await
    }

    /// Sends a command and does not wait for its answer: the broker has it.
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
            Some(key) => sign::token(key, &self.audience, verb, body, LIFETIME)?.into_bytes(),
            None => serde_json::to_vec(&body)?,
        };
        let message = Message { topic, payload, retain: false };
        self.connected(patience).await?;
        for sent in self.link.publish_batch(vec![message]).await {
            sent.context("the command did not reach the broker")?;
        }
        Ok(())
    }

    /// The answer to a command that was sent, whether others came before it or not.
    pub async fn answer(&mut self, request_id: &str, patience: Duration) -> anyhow::Result<Value> {
        let wanted = format!("reply/{request_id}");
        let (_, payload) = self
            .next(patience, |part, _| part == wanted)
            .await
            .context("no answer from the daemon")?;
        Ok(serde_json::from_slice(&payload)?)
    }

    async fn connected(&self, patience: Duration) -> anyhow::Result<()> {
        let mut online = self.link.online();
        let wait = tokio::time::timeout(patience, online.wait_for(|it| *it)).await;
        ensure!(matches!(wait, Ok(Ok(_))), "the broker cannot be reached");
        Ok(())
    }

    /// The next message that `wanted` accepts, by its topic below the device's own and its payload. Others are kept for
    /// later calls.
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
                let LinkEvent::Inbound(inbound) = event else { continue };
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
            Err(_) => bail!("nothing came within {patience:?}"),
        }
    }

    /// Everything that came and was not asked for yet.
    pub fn take_waiting(&mut self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.waiting)
    }
}
