//! In place of the driver in a build without the feature `mongo`: a configuration with MongoDB is
//! rejected, so that no settings exist and nothing below can be called.

#![allow(
    unreachable_code,
    clippy::unused_async,
    clippy::clone_on_copy,
    reason = "no value of these types exists: only the signatures count"
)]

use std::future::ready;
use std::sync::Arc;

use crate::clock::Clock;
use crate::health::Health;
use crate::ids::{Origin, SubjectId};
use crate::mongo::types::{
    DeviceRecord, Examined, LegacyVenue, RecordPage, SettingsError, StoredRecord, UriSource,
    VenueRecord, Venues,
};
use crate::store::relay::{Delivery, Sink};
use crate::store::{OutboxRow, SealedRecord, SinkName};

#[derive(Clone, Copy, Debug)]
pub enum MongoSettings {}

impl MongoSettings {
    pub fn window(&self) -> usize {
        match *self {}
    }

    pub fn has_password(&self) -> bool {
        match *self {}
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of the build with MongoDB")]
pub fn settings_from(from: UriSource) -> Result<Option<MongoSettings>, SettingsError> {
    if from.uri.is_empty() && !from.tls && from.ca_file.is_none() {
        return Ok(None);
    }
    let why = "is set, but this program was built without MongoDB (cargo feature `mongo`)".into();
    Err(SettingsError { key: "[mongo] uri", why })
}

pub fn examine(settings: &MongoSettings, _: i64) -> impl Future<Output = Examined> {
    ready(match *settings {})
}

pub fn read_record(
    settings: &MongoSettings,
    _: &Origin,
    _: &mut dyn FnMut(serde_json::Value),
) -> impl Future<Output = Result<Option<String>, String>> {
    ready(match *settings {})
}

#[derive(Clone)]
pub struct MongoLink(MongoSettings);

impl MongoLink {
    pub fn new(settings: MongoSettings, _: Arc<dyn Clock>, _: Arc<Health>) -> Self {
        Self(settings)
    }

    pub async fn put_device(&self, _: &DeviceRecord) -> Result<(), String> {
        match self.0 {}
    }

    pub async fn read_change_counter(&self, _: &str) -> Result<Option<i64>, String> {
        match self.0 {}
    }

    pub async fn list_records(&self, _: &str, _: Option<&str>) -> Result<RecordPage, String> {
        match self.0 {}
    }

    pub async fn read_records(
        &self,
        _: &str,
        _: &[SubjectId],
    ) -> Result<Vec<StoredRecord>, String> {
        match self.0 {}
    }

    pub async fn replace_unsealed(
        &self,
        _: &str,
        _: &[(SealedRecord, StoredRecord)],
    ) -> Result<(), String> {
        match self.0 {}
    }

    pub async fn list_legacy_venues(&self) -> Result<Vec<LegacyVenue>, String> {
        match self.0 {}
    }

    pub async fn find_legacy_venue(&self, _: &str) -> Result<Option<LegacyVenue>, String> {
        match self.0 {}
    }

    pub async fn put_legacy_venue(&self, _: &VenueRecord) -> Result<(), String> {
        match self.0 {}
    }

    pub async fn add_legacy_name(&self, _: &str, _: &str) -> Result<(), String> {
        match self.0 {}
    }

    pub async fn put_records(&self, _: &str, _: &[SealedRecord], _: &[u32]) -> Vec<Delivery> {
        match self.0 {}
    }
}

pub struct MongoSink(MongoLink);

impl MongoSink {
    pub fn new(link: MongoLink, _: Origin, _: Venues) -> Self {
        Self(link)
    }
}

impl Sink for MongoSink {
    fn name(&self) -> SinkName {
        SinkName::MONGO
    }

    async fn deliver(&mut self, _: &[OutboxRow]) -> Vec<Delivery> {
        match self.0.0 {}
    }
}
