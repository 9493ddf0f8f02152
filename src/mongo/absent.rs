//! In place of `mongo` in a program built without it: a configuration with MongoDB is refused, and nothing else exists.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::attend::venue::DirectionMode;
use crate::clock::Clock;
use crate::health::Health;
use crate::recognise::face::SubjectId;
use crate::record::outbox::{Delivery, Sink};
use crate::record::store::{Account, OutboxRow, SinkName};

pub const WINDOW_MAX: usize = 2_000;

pub struct UriSource {
    pub uri: String,
    pub database: String,
    pub ca_file: Option<PathBuf>,
    pub tls: bool,
    pub timeout: Duration,
    pub window: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {why}")]
pub struct SettingsError {
    pub key: &'static str,
    pub why: String,
}

/// There are none: nothing here makes one.
#[derive(Clone, Debug)]
pub struct MongoSettings(());

impl MongoSettings {
    pub fn window(&self) -> usize {
        WINDOW_MAX
    }

    pub fn has_password(&self) -> bool {
        false
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the same shape as where there is MongoDB")]
pub fn settings_from(from: UriSource) -> Result<Option<MongoSettings>, SettingsError> {
    if from.uri.is_empty() && !from.tls && from.ca_file.is_none() {
        return Ok(None);
    }
    let why = "is set, but this program was built without MongoDB (cargo feature `mongo`)".into();
    Err(SettingsError { key: "[mongo] uri", why })
}

pub struct VenueNote {
    pub id: String,
    pub name: String,
    pub schedule: Option<serde_json::Value>,
    pub direction: DirectionMode,
    pub re_entry_gap: Duration,
}

pub struct Gap {
    pub from_ms: i64,
    pub to_ms: i64,
    pub reason: &'static str,
}

pub struct DeviceNote {
    pub site: String,
    pub device: String,
    pub complete_through_ms: Option<i64>,
    pub last_seen_ms: i64,
    pub seq: i64,
    pub gaps: Vec<Gap>,
}

#[derive(Clone)]
pub struct MongoLink(MongoSettings);

impl MongoLink {
    pub fn new(settings: MongoSettings, _: Arc<dyn Clock>, _: Arc<Health>) -> Self {
        Self(settings)
    }

    pub async fn put_device(&self, _: &DeviceNote) -> Result<(), String> {
        std::future::ready(Err(ABSENT.into())).await
    }

    pub async fn gallery_bell(&self, _: &str) -> Result<Option<i64>, String> {
        std::future::ready(Err(ABSENT.into())).await
    }

    pub async fn gallery_page(&self, _: &str, _: Option<&str>) -> Result<ListedPage, String> {
        std::future::ready(Err(ABSENT.into())).await
    }

    pub async fn gallery_records(
        &self,
        _: &str,
        _: &[SubjectId],
    ) -> Result<Vec<SealedAccount>, String> {
        std::future::ready(Err(ABSENT.into())).await
    }

    pub async fn put_gallery(&self, _: &str, records: &[(SealedAccount, u32)]) -> Vec<Delivery> {
        std::future::ready(vec![Delivery::Refused(ABSENT.into()); records.len()]).await
    }
}

pub struct Listed {
    pub subject_id: Option<SubjectId>,
    pub account: Option<Account>,
    pub bytes: u64,
}

pub struct ListedPage {
    pub listed: Vec<Listed>,
    pub last: Option<String>,
}

pub struct SealedAccount {
    pub subject_id: SubjectId,
    pub account: Account,
    pub sealed: Vec<u8>,
}

pub type Venues = Arc<dyn Fn() -> Vec<VenueNote> + Send + Sync>;

pub struct MongoSink(MongoLink);

impl MongoSink {
    pub fn new(link: MongoLink, _: &str, _: &str, _: Venues) -> Self {
        Self(link)
    }
}

impl Sink for MongoSink {
    fn name(&self) -> SinkName {
        SinkName::MONGO
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        vec![Delivery::Refused(ABSENT.into()); batch.len()]
    }
}

pub enum Examined {
    Good(String),
    Warning(String),
    Fault(String),
}

pub async fn examine(_: &MongoSettings, _: i64) -> Examined {
    std::future::ready(Examined::Fault(ABSENT.into())).await
}

const ABSENT: &str = "this program was built without MongoDB";
