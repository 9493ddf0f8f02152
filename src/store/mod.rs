//! The store: events, the outbox, enrolled subjects and replies, in one SQLite database.
//!
//! Invariants: one thread, `store`, owns the only writing connection, and one process the state
//! directory. Reads go past it, through connections and threads of their own (`reading`). What
//! `write` has returned is on the disk (WAL, `synchronous=FULL`). An event and its outbox rows are
//! one transaction; a row leaves the outbox only when acknowledged, or stays as a dead letter
//! with its reason. `seq` has no gaps. Nothing pending is ever deleted. A damaged database is moved
//! aside, not deleted. Files are for the owner alone (0700/0600).
//!
//! The queue to the thread has a bound. If it is full, `write` blocks its thread and `write_async`
//! its task.
//!
//! Not here: the format of payloads (`event`, `command`), delivery (the sinks).
//!
//! Budget: a group of up to 64 writes costs one commit, that is one fsync; a Raspberry Pi's card
//! does 20 to 100 a second.

mod attendance;
pub mod backup;
mod chain;
mod check;
mod checksum;
mod consent;
mod coverage;
mod delivery_status;
mod erase_texts;
mod erasure;
mod error;
mod files;
mod handle;
mod log_bits;
mod migration_backup;
mod open;
mod parts;
mod photographs;
mod read;
mod reader;
mod reading;
mod references;
pub mod relay;
mod removed_webhooks;
mod replay_guard;
mod retention;
mod rotate;
mod rows;
mod salvage;
mod schema;
mod scrub;
mod subjects;
mod template_key;
mod tx;
mod unreadable;
mod versions;
mod writer;

pub use chain::{ChainHead, RecordRow};
pub use consent::ConsentCounts;
pub use delivery_status::{DeliveryStatus, Held, RetriedRows, SinkStatus, Unwatched};
pub use erasure::{Left, StoredErasure};
pub use error::StoreError;
pub use files::DATABASE;
pub use handle::{Opened, Store};
pub use parts::{count_references, join_parts};
pub use photographs::PhotographDigest;
pub use read::{AttendanceQuery, Observation, StoredVenue, VenuesSize};
pub use reader::Reader;
pub use references::{Migration, Recognisable};
pub use replay_guard::{ReplayCheck, SignedToken, TokenState};
pub use retention::Prunable;
pub use rotate::Rotated;
pub use rows::UnreadableRow;
pub use rows::{
    DeadLetter, OutboxDepth, OutboxPayload, OutboxRow, Reference, ReferenceCount, SinkName,
    StoreOptions, StoreVitals, StoredReply, Subject, Wake,
};
pub use subjects::{Erased, Erasure, NewReference};
pub use tx::Tx;
pub use unreadable::Unreadable;
pub use versions::{
    AcceptOutcome, KnownSubject, PublishReason, SealedRecord, Standing, VersionRecord,
    subject_of_topic,
};
