//! Announces this device to Home Assistant: after each connect, and when Home Assistant has started.
//! Nothing in the message changes while the daemon runs.
//!
//! Invariant: a retained message of this device is deleted when the announcement is switched off, or
//! belongs to another topic now (another prefix, site or device). So the topic is stored before the
//! first publish. A device that never published deletes nothing: its broker's access rules may
//! forbid it, and Home Assistant warns of entities that it never knew.

use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::supervise::StageResult;
use crate::config::Settings;
use crate::config::camera::CameraSettings;
use crate::health;
use crate::mqtt::discovery::Birth;
use crate::mqtt::discovery::{Described, Has};
use crate::mqtt::link::Link;
use crate::mqtt::message::Message;
use crate::mqtt::topics::{TopicError, Topics};
use crate::store::{Store, StoreError};

/// The key in `meta` of the topic that the message was published to.
const TOPIC_KEY: &str = "home_assistant";
/// When Home Assistant starts, the doors of a building publish spread over this time.
const SPREAD: Duration = Duration::from_secs(5);
/// A message that was not acknowledged is sent again after this time if the link is still up.
const RETRY_AFTER: Duration = Duration::from_secs(10);

pub struct Discovery {
    link: Link,
    store: Store,
    /// `None` if it is switched off.
    message: Option<Message>,
    birth: Option<Birth>,
}

/// Returns the watcher of Home Assistant's birth message; `None` if it is switched off.
pub fn birth(settings: &Settings) -> Result<Option<Birth>, TopicError> {
    settings.home_assistant.as_ref().map(|it| Birth::new(&it.discovery_prefix)).transpose()
}

/// Returns the discovery message with its topic.
fn discovery_message(settings: &Settings, topics: &Topics) -> Result<Option<Message>, TopicError> {
    let Some(home) = &settings.home_assistant else {
        return Ok(None);
    };
    let has_camera = !matches!(settings.camera, CameraSettings::None);
    let has = [
        (Has::Camera, has_camera),
        (Has::AttackDetection, settings.vision.pad),
        (Has::People, home.people),
        (Has::Thermometer, health::cpu_celsius().is_some()),
        (Has::Mongo, settings.mongo.is_some()),
        // Home Assistant cannot sign: where a device takes signed commands only, there is no
        // button.
        (Has::PlainCommands, settings.commands.trusted_keys.is_empty()),
    ];
    let has: Vec<Has> = has.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect();
    let payload = Described { topics, name: &home.name, has: &has }.payload();
    Ok(Some(Message { topic: topics.discovery(&home.discovery_prefix)?, payload, retain: true }))
}

impl Discovery {
    pub fn new(ctx: Context, link: Link, birth: Option<Birth>) -> Result<Self, TopicError> {
        let message = discovery_message(&ctx.settings, &ctx.topics)?;
        Ok(Self { link, store: ctx.store, message, birth })
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        tokio::select! {
            done = self.announce_always() => done.map_err(Into::into),
            // A publish that is interrupted here is repeated after the next start.
            _ = stop.wait_for(|it| *it) => Ok(()),
        }
    }

    async fn announce_always(&self) -> Result<(), StoreError> {
        let mut online = self.link.online();
        loop {
            if online.wait_for(|it| *it).await.is_err() {
                // The link has ended, which its own stage reports.
                return std::future::pending().await;
            }
            let acknowledged = self.announce().await?;
            tokio::select! {
                // Down, up again, or both before this task ran. An error returns at the top.
                _ = online.changed() => {}
                () = self.restart_of_home_assistant() => tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await,
                () = tokio::time::sleep(RETRY_AFTER), if !acknowledged => {}
            }
        }
    }

    async fn restart_of_home_assistant(&self) {
        match &self.birth {
            Some(birth) => birth.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Returns `false` if the broker did not acknowledge.
    async fn announce(&self) -> Result<bool, StoreError> {
        let topic = self.message.as_ref().map(|it| it.topic.clone()).unwrap_or_default();
        let stored = self.stored_topic().await?;
        if !stored.is_empty() && stored != topic {
            let deletion = Message { topic: stored.clone(), payload: Vec::new(), retain: true };
            if !self.publish(deletion).await {
                return Ok(false);
            }
            tracing::info!(topic = stored, "announcement to Home Assistant deleted");
        }
        if stored != topic {
            let bytes = topic.into_bytes();
            log_unless_fatal(
                self.store.write_async(move |tx| tx.put_meta(TOPIC_KEY, &bytes)).await,
            )?;
        }
        match &self.message {
            Some(message) => Ok(self.publish(message.clone()).await),
            None => Ok(true),
        }
    }

    async fn publish(&self, message: Message) -> bool {
        let results = self.link.publish_batch(vec![message]).await;
        let failed = results.into_iter().find_map(Result::err);
        match failed {
            None => true,
            Some(error) if error.is_poison() => {
                tracing::error!(%error, "this device cannot be announced to Home Assistant");
                true
            }
            Some(_) => false,
        }
    }

    async fn stored_topic(&self) -> Result<String, StoreError> {
        let read = self.store.read(|tx| tx.meta(TOPIC_KEY)).await;
        let topic = log_unless_fatal(read)?.flatten();
        Ok(topic.and_then(|it| String::from_utf8(it).ok()).unwrap_or_default())
    }
}

/// Logs an error of the store and goes on without the value, unless the store is unusable.
fn log_unless_fatal<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.is_fatal() => Err(error),
        Err(error) => {
            tracing::warn!(error = %error, "the topic of the announcement to Home Assistant is not known");
            Ok(None)
        }
    }
}
