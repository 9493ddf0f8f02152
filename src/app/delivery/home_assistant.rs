//! Home Assistant is told of this device: after each connect, and when it says that it has started. Nothing in the message
//! changes while the daemon runs, so that is all there is to tell.
//!
//! What must hold: a message that this device once left with a broker is taken back when it is switched off, or belongs
//! elsewhere now (another prefix, site or device). So the topic is written down before the first word is said. A device
//! that never said anything takes nothing back, for its broker's rules may forbid it there, and Home Assistant warns of
//! what it never knew.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::app::supervise::StageResult;
use crate::config::{CameraSettings, HomeAssistantSettings, Settings};
use crate::health;
use crate::mqtt::discovery::{Described, Has};
use crate::mqtt::link::{Inbound, Link, Message};
use crate::mqtt::random_fraction;
use crate::mqtt::topics::{self, TopicError, Topics};
use crate::record::store::{Store, StoreError};

/// In `meta`: the topic at which the message was left.
const SAID_AT: &str = "home_assistant";
/// When Home Assistant starts, a building of doors answers within this time, and not all at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After this a message that was not acknowledged is sent again, should the link be up all the same.
const RETRY_AFTER: Duration = Duration::from_secs(10);

pub struct Discovery {
    pub link: Link,
    pub store: Store,
    /// None: switched off.
    pub message: Option<Message>,
    pub birth: Option<Birth>,
}

/// Home Assistant says on this topic that it has started.
#[derive(Clone)]
pub struct Birth {
    pub topic: String,
    heard: Arc<Notify>,
}

impl Birth {
    pub fn new(settings: &HomeAssistantSettings) -> Result<Self, TopicError> {
        let topic = topics::home_assistant_status(&settings.discovery_prefix)?;
        Ok(Self { topic, heard: Arc::new(Notify::new()) })
    }

    /// For what comes from the broker and is no command. A retained `online` is old, and was answered by connecting.
    pub fn hear(&self, inbound: &Inbound) {
        if inbound.topic == self.topic && inbound.payload == b"online" && !inbound.retained {
            self.heard.notify_one();
        }
    }
}

/// What Home Assistant is told, and where.
pub fn message(settings: &Settings, topics: &Topics) -> Result<Option<Message>, TopicError> {
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
        // Home Assistant cannot sign: where a device takes signed commands only, there is no button.
        (Has::PlainCommands, settings.commands.trusted_keys.is_empty()),
    ];
    let has: Vec<Has> = has.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect();
    let payload = Described { topics, name: &home.name, has: &has }.payload();
    Ok(Some(Message { topic: topics.discovery(&home.discovery_prefix)?, payload, retain: true }))
}

impl Discovery {
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        tokio::select! {
            done = self.tell_always() => done.map_err(Into::into),
            // What was under way is told again after the next start.
            _ = stop.wait_for(|it| *it) => Ok(()),
        }
    }

    async fn tell_always(&self) -> Result<(), StoreError> {
        let mut online = self.link.online();
        loop {
            if online.wait_for(|it| *it).await.is_err() {
                // The link has ended, which its own stage tells.
                return std::future::pending().await;
            }
            let told = self.tell().await?;
            tokio::select! {
                // Down, up again, or so quickly both that only the change is seen. An error comes back at the top.
                _ = online.changed() => {}
                () = self.started() => tokio::time::sleep(ANSWER_WITHIN.mul_f64(random_fraction())).await,
                () = tokio::time::sleep(RETRY_AFTER), if !told => {}
            }
        }
    }

    /// Home Assistant has.
    async fn started(&self) {
        match &self.birth {
            Some(birth) => birth.heard.notified().await,
            None => std::future::pending().await,
        }
    }

    /// `false`: the broker did not acknowledge.
    async fn tell(&self) -> Result<bool, StoreError> {
        let topic = self.message.as_ref().map(|it| it.topic.clone()).unwrap_or_default();
        let said_at = self.said_at().await?;
        if !said_at.is_empty() && said_at != topic {
            let gone = Message { topic: said_at.clone(), payload: Vec::new(), retain: true };
            if !self.publish(gone).await {
                return Ok(false);
            }
            tracing::info!(topic = said_at, "taken back from Home Assistant");
        }
        if said_at != topic {
            let remembered = topic.into_bytes();
            survive(self.store.write_async(move |tx| tx.put_meta(SAID_AT, &remembered)).await)?;
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
            Some(why) if why.is_poison() => {
                tracing::error!(%why, "Home Assistant cannot be told of this device");
                true
            }
            Some(_) => false,
        }
    }

    async fn said_at(&self) -> Result<String, StoreError> {
        let read = self.store.write_async(|tx| tx.meta(SAID_AT)).await;
        Ok(survive(read)?.flatten().and_then(|it| String::from_utf8(it).ok()).unwrap_or_default())
    }
}

/// What this needs of the store is not worth an end, unless the store has come to its own.
fn survive<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.is_fatal() => Err(error),
        Err(error) => {
            tracing::warn!(error = %error, "where Home Assistant was told of this device is not known");
            Ok(None)
        }
    }
}
