//! What the store takes and returns: its options, its rows and the counts over them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::clock::Clock;
use crate::ids::{Name, SubjectId};
use crate::recognise::face::{ModelDigest, Template};
use crate::wire::consent::Consent;
use crate::wire::event::StoredEvent;

/// Where an erasure stands in the outbox.
pub(super) const ERASURE: &str = "erasure";

/// A destination of events. The name stands in the database: it is never given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SinkName(&'static str);

impl SinkName {
    pub const MQTT: Self = Self("mqtt");
    pub const MONGO: Self = Self("mongo");
    /// The gallery that the doors of a site share, wherever it is: it receives subjects, and no events.
    pub const GALLERY: Self = Self("gallery");

    /// Returns the sink of the webhook with this name. Each name stays in memory for good, once: there
    /// are as many as the configuration has.
    pub fn webhook(name: &str) -> Self {
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let sink = format!("{WEBHOOK}{name}");
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(sink.as_str()) {
            return Self(known);
        }
        let sink: &'static str = Box::leak(sink.into_boxed_str());
        names.insert(sink);
        Self(sink)
    }

    /// Whether it is a webhook, which receives the events from its first start on.
    pub fn is_webhook(self) -> bool {
        self.0.starts_with(WEBHOOK)
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// The beginning of the names of webhooks among the sinks.
pub(super) const WEBHOOK: &str = "webhook:";

pub struct StoreOptions {
    /// Destinations of every event. Replies go to `MQTT`, if it is among them.
    pub sinks: Vec<SinkName>,
    pub clock: Arc<dyn Clock>,
    /// This device's name, which is stored with its changes.
    pub device: String,
    /// Whether enrolments are shared with the site's other devices.
    pub shared: bool,
    /// `$CREDENTIALS_DIRECTORY`, where systemd passes one.
    pub credentials_dir: Option<PathBuf>,
    /// Kept back for when the disk is full.
    pub reserve_bytes: u64,
    /// For tests: the disk is full when the database has so many pages, those of the reserve among
    /// them.
    pub page_limit: Option<u32>,
}

impl StoreOptions {
    pub fn new(sinks: Vec<SinkName>, clock: Arc<dyn Clock>) -> Self {
        Self {
            sinks,
            clock,
            device: "device".into(),
            shared: false,
            credentials_dir: None,
            // About two thousand attendances.
            reserve_bytes: 3 << 19,
            page_limit: None,
        }
    }
}

/// What a row of the outbox delivers.
#[derive(Clone, Debug, PartialEq)]
pub enum OutboxPayload {
    Event {
        event: StoredEvent,
        /// Of a correction: the event that it corrects as it is now, unless it is gone. There may be
        /// other corrections of it, and they need not arrive in their order.
        corrected: Option<Box<StoredEvent>>,
    },
    /// A reply, a receipt, an erasure or a subject.
    Message {
        /// Below `rollcall/{site}/{device}/`.
        topic: String,
        bytes: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub id: i64,
    pub payload: OutboxPayload,
    pub created_ms: i64,
    /// How often it failed while its neighbours were delivered, or for a reason of its own.
    pub attempts: u32,
}

impl OutboxRow {
    pub fn event(&self) -> Option<&StoredEvent> {
        match &self.payload {
            OutboxPayload::Event { event, .. } => Some(event),
            OutboxPayload::Message { .. } => None,
        }
    }

    /// Returns topic and bytes.
    pub fn message(&self) -> Option<(&str, &[u8])> {
        match &self.payload {
            OutboxPayload::Message { topic, bytes } => Some((topic, bytes)),
            OutboxPayload::Event { .. } => None,
        }
    }
}

/// Counts of the rows of one sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxDepth {
    pub rows: u64,
    pub oldest_created_ms: Option<i64>,
    pub dead_letters: u64,
}

/// A row that its sink can never accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: i64,
    pub sink: String,
    pub event_seq: Option<i64>,
    pub reason: String,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReply {
    pub verb: String,
    pub topic: String,
    pub reply: String,
}

/// An enrolled subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub id: SubjectId,
    pub name: Name,
    pub enrolled_ms: i64,
    pub references: u32,
    /// The embedder of the newest reference.
    pub embedder: Option<ModelDigest>,
    pub consent: Option<Consent>,
}

/// An enrolled template.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    pub id: Uuid,
    pub subject_id: SubjectId,
    pub template: Template,
    pub quality: f32,
}

/// What became of all references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceCount {
    pub opened: u64,
    /// Those of other embedders, which were left alone.
    pub of_other_embedders: u64,
    /// Those that did not open: altered, or moved to another subject.
    pub unreadable: Vec<Uuid>,
}

/// Notifies the relays after each commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// Counts the commits that added to the outbox.
    pub committed: u64,
    /// Counts the calls of `deliver_now`.
    pub asked: u64,
    /// Counts how often the database was cleaned after an erasure.
    pub scrubbed: u64,
}

/// Vital signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreVitals {
    pub database_bytes: u64,
    pub free_bytes: Option<u64>,
    /// `false`: the disk was full, or nearly so at the start, and what is kept back for that is in
    /// use.
    pub reserve_held: bool,
    /// Writes waiting for the thread.
    pub queue: usize,
}

/// The reason that stands in the rows of an event that cannot be read.
pub(super) const UNREADABLE: &str =
    "unreadable: the event is damaged, `rollcall doctor --repair` lists it";

/// In `meta`: the number of the newest event when events were deleted last.
pub(super) const NEWEST_SEQ: &str = "newest_seq";

/// A row that cannot be read. Its content is not reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    pub table: String,
    /// Its key in the table.
    pub row: String,
    pub reason: String,
    pub found_ms: i64,
}
