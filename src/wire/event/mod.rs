//! Events: what the device saw or did, as it is stored and as it goes out (`docs/wire.md`).
//!
//! Invariants: the shapes here are contracts: a field may be added, never renamed, removed or given
//! another meaning, and the tests below compare each message with a literal. What depends on the
//! moment of sending (`historical`) is computed when sending and never stored. An event that is not
//! fresh without doubt is `historical`.
//!
//! Not here: where events are kept (`store`) and how they are delivered (`outbox`, the sinks).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

pub use crate::attend::{Direction, Status};
use crate::clock;
use crate::ids::{Name, Origin, SubjectId};
use crate::wire::chain::Link;
use crate::wire::consent::Consent;

/// The version of every message in this file.
pub const SCHEMA: u32 = 1;

/// How long after it occurred an event may still be acted upon (a door opened): the time a person
/// waits before a door.
pub const EXPIRES_AFTER_MS: i64 = 30_000;

/// How far wall time may step back between an event and its delivery before the event counts as
/// historical: NTP slews smaller offsets than this without a step (128 ms is ntpd's step
/// threshold).
const STEP_BACK_MS: i64 = 1_000;

/// A fact about to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub event_id: Uuid,
    pub occurred: clock::Stamp,
    pub body: Body,
}

impl NewEvent {
    /// With a new id, whose time part is that of the stamp.
    pub fn new(occurred: clock::Stamp, body: Body) -> Self {
        Self { event_id: id_at(&occurred), occurred, body }
    }
}

/// A new UUIDv7 whose time part is `at`: ids of one device sort by time as long as its clock is
/// right.
pub fn id_at(at: &clock::Stamp) -> Uuid {
    let wall_ms = at.wall_ms.max(0) as u64;
    let sub_ns = (wall_ms % 1000) as u32 * 1_000_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, wall_ms / 1000, sub_ns))
}

/// A fact as the store gives it back.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Counts this device's events from 1, without gaps.
    pub seq: i64,
    pub event_id: Uuid,
    pub occurred_ms: i64,
    pub boot_id: clock::BootId,
    pub boottime_ms: u64,
    pub clock: ClockState,
    /// Of an attendance: another one, of the same subject in the same session and direction, that
    /// counts in its stead. It stays as evidence and is left out of the record.
    pub superseded_by: Option<Uuid>,
    pub body: Body,
    /// What links it to the event before. None for events of versions that made no chain.
    pub chain: Option<Box<Link>>,
}

/// What `occurred_at` is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ClockState {
    /// The wall clock was trusted when it happened.
    Synced,
    /// It was not; `boot_id` and `boottime_ms` allow to correct it.
    Unsynced,
    /// It was not, and the time has been worked out since.
    Corrected,
}

impl ClockState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What kinds of events there are; also the last part of their topic.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub enum EventKind {
    Attendance,
    Unknown,
    Attack,
    Camera,
    Enrolment,
    Correction,
    Security,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Where an event is published, below `rollcall/{site}/{device}/`.
pub fn topic_part(kind: EventKind) -> String {
    format!("event/{kind}")
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Body {
    Attendance(Attendance),
    Unknown(Unknown),
    Attack(Attack),
    Camera(Camera),
    Enrolment(Enrolment),
    Correction(Correction),
    Security(Security),
}

/// Whom an event is about. The name is that of the moment: a later `rename` does not rewrite
/// history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectRef {
    pub id: SubjectId,
    pub name: Name,
}

/// A subject was seen at a venue (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attendance {
    pub venue: String,
    /// Which session of the venue's schedule; none when the venue has no schedule.
    pub session: Option<String>,
    /// None once the person has been erased.
    pub subject: Option<SubjectRef>,
    pub direction: Direction,
    pub status: Status,
    pub score: f32,
    pub threshold: f32,
    /// How many samples of the track agreed.
    pub frames: u32,
    /// From the first frame of the track to the decision.
    pub track_ms: u64,
    /// From the capture of the deciding frame to the decision.
    pub latency_ms: u64,
}

/// A face that matched nobody (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unknown {
    pub venue: Option<String>,
    /// The best score it reached; none when nobody is enrolled.
    pub score: Option<f32>,
    pub threshold: f32,
    pub frames: u32,
    pub track_ms: u64,
}

/// A presentation attack is suspected (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    pub venue: Option<String>,
    /// Whose face was shown, where it matched; none once the person has been erased.
    pub subject: Option<SubjectRef>,
    /// The PAD score of each frame that was scored; higher is more genuine.
    pub scores: Vec<f32>,
    pub threshold: f32,
    /// Whether attendance was withheld because of it.
    pub enforced: bool,
}

/// The camera went away or came back (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Camera {
    pub state: CameraState,
    pub reason: Option<String>,
    /// For `back`: how long it was away.
    pub lost_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameraState {
    Lost,
    Back,
}

/// Who is enrolled has changed (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Enrolment {
    pub action: EnrolmentAction,
    /// None for `erased`, and for earlier events of a person who was erased.
    pub subject: Option<SubjectRef>,
    /// How many references the subject has now; for `withdrawn` and `erased`, how many were
    /// deleted.
    pub references: u32,
    /// The command that asked for it.
    pub request_id: Option<String>,
    /// The consent as it was recorded with this change, or that ended with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
    /// Of `withdrawn` and `erased`: why, if it was for the consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
}

impl Enrolment {
    /// Without a consent.
    pub fn new(
        action: EnrolmentAction,
        subject: Option<SubjectRef>,
        references: u32,
        request_id: Option<String>,
    ) -> Self {
        Self { action, subject, references, request_id, consent: None, reason: None }
    }
}

/// How a consent ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum EndReason {
    /// Its time was over.
    ConsentExpired,
    ConsentWithdrawn,
}

impl EndReason {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrolmentAction {
    Enrolled,
    Updated,
    Renamed,
    Withdrawn,
    Erased,
}

/// The time of an earlier event is now known better (schema 1). The message's own `occurred_at`,
/// `boot_id` and `boottime_ms` are those of the corrected event, `occurred_at` with its right
/// value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    pub corrects: Uuid,
    /// What `occurred_at` was before, RFC 3339.
    pub was: String,
    /// Of an attendance: the session, status and place in the record that the right time gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// See [`StoredEvent::superseded_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Uuid>,
}

/// Somebody tried what they may not (schema 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Security {
    pub reason: SecurityReason,
    pub verb: Option<String>,
    /// How many times since the last such event: they are counted, not repeated.
    pub count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityReason {
    Unsigned,
    BadSignature,
    Expired,
    Replayed,
    WrongAudience,
    Retained,
    /// By HTTP.
    WrongToken,
}

/// A stored body that cannot be read: the database was written by something else, or is damaged.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the kind {kind:?} is not known")]
    Kind { kind: String },
    #[error("the body of kind {kind} has schema {found}, this version reads {SCHEMA}")]
    Schema { kind: EventKind, found: u32 },
    #[error("the body of kind {kind} is not what it should be")]
    Shape {
        kind: EventKind,
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize)]
struct StoredBody<'a> {
    schema: u32,
    #[serde(flatten)]
    body: &'a Body,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a Link>,
}

#[derive(Deserialize)]
struct LinkOnly {
    chain: Option<Box<Link>>,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

impl Body {
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Attendance(_) => EventKind::Attendance,
            Self::Unknown(_) => EventKind::Unknown,
            Self::Attack(_) => EventKind::Attack,
            Self::Camera(_) => EventKind::Camera,
            Self::Enrolment(_) => EventKind::Enrolment,
            Self::Correction(_) => EventKind::Correction,
            Self::Security(_) => EventKind::Security,
        }
    }

    pub fn subject(&self) -> Option<&SubjectRef> {
        match self {
            Self::Attendance(it) => it.subject.as_ref(),
            Self::Attack(it) => it.subject.as_ref(),
            Self::Enrolment(it) => it.subject.as_ref(),
            Self::Unknown(_) | Self::Camera(_) | Self::Correction(_) | Self::Security(_) => None,
        }
    }

    /// Takes the person out; what else happened stays.
    pub fn erase_subject(&mut self) {
        match self {
            Self::Attendance(it) => it.subject = None,
            Self::Attack(it) => it.subject = None,
            // Who recorded a consent, and when, leads to the person too.
            Self::Enrolment(it) => (it.subject, it.consent) = (None, None),
            Self::Unknown(_) | Self::Camera(_) | Self::Correction(_) | Self::Security(_) => {}
        }
    }

    pub fn venue(&self) -> Option<&str> {
        match self {
            Self::Attendance(it) => Some(&it.venue),
            Self::Unknown(it) => it.venue.as_deref(),
            Self::Attack(it) => it.venue.as_deref(),
            Self::Camera(_) | Self::Enrolment(_) | Self::Correction(_) | Self::Security(_) => None,
        }
    }

    pub fn session(&self) -> Option<&str> {
        match self {
            Self::Attendance(it) => it.session.as_deref(),
            _ => None,
        }
    }

    pub fn direction(&self) -> Option<Direction> {
        match self {
            Self::Attendance(it) => Some(it.direction),
            _ => None,
        }
    }

    /// As it stands in the database, with the link of its event.
    pub fn to_stored(&self, chain: Option<&Link>) -> String {
        serde_json::to_string(&StoredBody { schema: SCHEMA, body: self, chain })
            .expect("a body has string keys only and writes to memory")
    }

    pub fn from_stored(kind: &str, json: &str) -> Result<Self, BodyError> {
        let kind =
            kind.parse::<EventKind>().map_err(|_| BodyError::Kind { kind: kind.to_owned() })?;
        let shape = |source| BodyError::Shape { kind, source };
        let SchemaOnly { schema } = serde_json::from_str(json).map_err(shape)?;
        if schema != SCHEMA {
            return Err(BodyError::Schema { kind, found: schema });
        }
        match kind {
            EventKind::Attendance => serde_json::from_str(json).map(Self::Attendance),
            EventKind::Unknown => serde_json::from_str(json).map(Self::Unknown),
            EventKind::Attack => serde_json::from_str(json).map(Self::Attack),
            EventKind::Camera => serde_json::from_str(json).map(Self::Camera),
            EventKind::Enrolment => serde_json::from_str(json).map(Self::Enrolment),
            EventKind::Correction => serde_json::from_str(json).map(Self::Correction),
            EventKind::Security => serde_json::from_str(json).map(Self::Security),
        }
        .map_err(shape)
    }
}

/// Returns the link in a stored body, if there is one that can be read.
pub fn stored_link(json: &str) -> Option<Box<Link>> {
    serde_json::from_str::<LinkOnly>(json).ok()?.chain
}

#[derive(Serialize)]
struct EventMessage<'a> {
    schema: u32,
    event_id: Uuid,
    seq: i64,
    kind: &'static str,
    site: &'a str,
    device: &'a str,
    #[serde(flatten)]
    body: &'a Body,
    occurred_at: String,
    clock: ClockState,
    boot_id: &'a str,
    boottime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<Uuid>,
    historical: bool,
    expires_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a Link>,
}

#[derive(Serialize)]
struct RecordedEvent<'a> {
    schema: u32,
    event_id: Uuid,
    seq: i64,
    kind: &'static str,
    #[serde(flatten)]
    body: &'a Body,
    occurred_at: String,
    clock: ClockState,
    boot_id: &'a str,
    boottime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a Link>,
}

/// Returns an event as on the wire, without what depends on the sender and on the moment of sending.
pub fn recorded(event: &StoredEvent) -> Map<String, Value> {
    let fields = RecordedEvent {
        schema: SCHEMA,
        event_id: event.event_id,
        seq: event.seq,
        kind: event.body.kind().as_str(),
        body: &event.body,
        occurred_at: clock::rfc3339(event.occurred_ms),
        clock: event.clock,
        boot_id: event.boot_id.as_str(),
        boottime_ms: event.boottime_ms,
        superseded_by: event.superseded_by,
        chain: event.chain.as_deref(),
    };
    match serde_json::to_value(&fields) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a struct with string keys is an object"),
    }
}

/// The payload of an event, sent by `origin` at `now` of boot `boot_id`.
pub fn wire(
    event: &StoredEvent,
    origin: &Origin,
    now: &clock::Stamp,
    boot_id: &clock::BootId,
) -> Vec<u8> {
    let message = EventMessage {
        schema: SCHEMA,
        event_id: event.event_id,
        seq: event.seq,
        kind: event.body.kind().as_str(),
        site: &origin.site,
        device: &origin.device,
        body: &event.body,
        occurred_at: clock::rfc3339(event.occurred_ms),
        clock: event.clock,
        boot_id: event.boot_id.as_str(),
        boottime_ms: event.boottime_ms,
        superseded_by: event.superseded_by,
        historical: is_historical(event, now, boot_id),
        expires_at: clock::rfc3339(event.occurred_ms.saturating_add(EXPIRES_AFTER_MS)),
        chain: event.chain.as_deref(),
    };
    serde_json::to_vec(&message).expect("a message has string keys only and writes to memory")
}

/// A door opener acts on what is not historical, so doubt makes an event historical. Within one
/// boot the clock that never jumps decides; wall time is not asked, as it may be wrong on a device
/// without network. After a restart of the machine wall time must show it beyond doubt: trusted at
/// both ends and not stepped back in between.
fn is_historical(event: &StoredEvent, now: &clock::Stamp, boot_id: &clock::BootId) -> bool {
    if event.boot_id == *boot_id {
        return now.boottime_ms.saturating_sub(event.boottime_ms) > EXPIRES_AFTER_MS as u64;
    }
    let age_ms = now.wall_ms.saturating_sub(event.occurred_ms);
    let known = event.clock != ClockState::Unsynced && now.trusted;
    !known || !(-STEP_BACK_MS..=EXPIRES_AFTER_MS).contains(&age_ms)
}

#[cfg(test)]
mod tests;
