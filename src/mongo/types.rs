//! What the rest of the daemon gives to MongoDB and reads from it; the same in a build without the
//! driver.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::DateTime;

use crate::attend::venue::DirectionMode;
use crate::ids::SubjectId;
use crate::store::VersionRecord;

/// The most rows that one batch may have.
pub const WINDOW_MAX: usize = 2_000;

/// `[mongo]` as it is configured, unchecked.
#[derive(Clone)]
pub struct UriSource {
    pub uri: String,
    /// Empty: the one that the URI names, or `rollcall`.
    pub database: String,
    /// The former service's is `attendancevenues`.
    pub venues_collection: String,
    /// An authority besides Mozilla's, for TLS.
    pub ca_file: Option<PathBuf>,
    pub tls: bool,
    pub timeout: Duration,
    pub window: usize,
}

/// Which key of `[mongo]` cannot be used, and why. Never quotes the URI, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {why}")]
pub struct SettingsError {
    pub key: &'static str,
    pub why: String,
}

/// A venue, as far as it is published to readers of MongoDB.
#[derive(Clone, Debug, PartialEq)]
pub struct VenueRecord {
    pub id: String,
    pub name: String,
    /// As in `venue_put`.
    pub schedule: Option<serde_json::Value>,
    pub direction: DirectionMode,
    pub re_entry_gap: Duration,
    /// As in `venue_put`.
    pub date_time: Option<DateTime>,
}

/// A venue of the collection as clients of the legacy API read it.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyVenue {
    pub id: String,
    pub name: String,
    pub date_time: Option<DateTime>,
    /// Whoever was ever recorded there, by any device and by the former service.
    pub attendance: Vec<String>,
}

/// Returns the venues as they are now.
pub type Venues = Arc<dyn Fn() -> Vec<VenueRecord> + Send + Sync>;

/// A time in which the device was not watching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoverageGap {
    pub from_ms: i64,
    pub to_ms: i64,
    pub reason: &'static str,
}

/// The device's document in `devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    pub site: String,
    pub device: String,
    /// Everything that was recorded up to then is in MongoDB; `None` leaves the stored value.
    pub complete_through_ms: Option<i64>,
    pub last_seen_ms: i64,
    pub seq: i64,
    /// Those of the last days.
    pub gaps: Vec<CoverageGap>,
    /// The newest checkpoint of the chain, a compact JWS; `None` leaves the stored one.
    pub checkpoint: Option<String>,
}

/// A document of the gallery as it can be judged without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRecord {
    /// `None`: the document's id names no subject.
    pub subject_id: Option<SubjectId>,
    /// `None`: the document claims no version.
    pub version: Option<VersionRecord>,
    /// Of the whole document.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordPage {
    pub listed: Vec<ListedRecord>,
    /// Where the next page begins; `None` after an empty one.
    pub last: Option<String>,
}

/// A document of the gallery, whatever it contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    pub subject_id: SubjectId,
    pub version: Option<VersionRecord>,
    /// Of the whole document.
    pub bytes: i64,
    /// Empty if it is missing, or too large to be a record.
    pub sealed: Vec<u8>,
}

/// What is not as it should be, by what somebody would do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MongoFlaw {
    /// The server's certificate is not accepted.
    Certificate,
    /// No server can be reached.
    Unreachable,
    /// A server without a replica set.
    SingleServer,
    /// It has the venues of the former service, which are not used.
    FormerService,
    /// Its clock and this device's differ.
    Clock,
}

/// The result of `doctor`'s check, with a text for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examined {
    Good(String),
    /// It works, but not as well as it could.
    Warning(MongoFlaw, String),
    /// Nothing is delivered until this is corrected.
    Fault(String),
}
