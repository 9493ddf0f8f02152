//! MongoDB: the shared record of all doors (`docs/wire.md`, *MongoDB*).
//!
//! Invariants: a row is answered `Acknowledged` only when a majority of the servers has what it stands for, journaled.
//! Every write may be repeated at any time and changes nothing the second time. Every call to the server ends within a
//! time of our own, as the driver knows no limit for an answer. Nothing is buried because of what can be put right on
//! the server's side (a password, a role, a full disk): only what it will never take.
//!
//! Not relied upon: `Client::bulk_write` (servers before 8.0 have none), transactions, the server's clock.

mod devices;
mod documents;
mod doors;
mod examine;
mod fault;
mod gallery;
mod link;
mod settings;
mod sink;

pub use devices::{DeviceNote, Gap};
pub use documents::VenueNote;
pub use examine::{Examined, examine};
pub use gallery::{Listed, ListedPage, SealedAccount};
pub use link::MongoLink;
pub use settings::{MongoSettings, SettingsError, UriSource, settings_from};
pub use sink::{MongoSink, Venues, WINDOW_MAX};
