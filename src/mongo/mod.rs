//! MongoDB: the shared record of all devices (`docs/wire.md`, *MongoDB*).
//!
//! Invariants: a row is `Acknowledged` only when a majority of the servers has what it stands for,
//! journaled. Every write may be repeated at any time and changes nothing the second time. Every
//! call to the server ends within a timeout of our own, because the driver has none for a reply.
//! Nothing is dead-lettered because of what can be corrected on the server's side (a password, a
//! role, a full disk): only what the server will never accept.
//!
//! Not used: `Client::bulk_write` (servers before 8.0 have none), transactions, the server's clock.

mod types;

pub use types::{
    CoverageGap, DeviceRecord, Examined, LegacyVenue, ListedRecord, MongoFlaw, RecordPage,
    SettingsError, StoredRecord, UriSource, VenueRecord, Venues, WINDOW_MAX,
};

#[cfg(not(feature = "mongo"))]
mod disabled;
#[cfg(not(feature = "mongo"))]
pub use disabled::{MongoLink, MongoSettings, MongoSink, examine, read_record, settings_from};

/// One switch for the driver and all that uses it.
#[cfg(feature = "mongo")]
mod driver;
#[cfg(feature = "mongo")]
pub use driver::{MongoLink, MongoSettings, MongoSink, examine, read_record, settings_from};
