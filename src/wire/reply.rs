//! Answers to commands, as they go out at `…/reply/{request_id}`.
//!
//! Invariant: every answer has `schema`, `request_id`, `verb` and `ok`; with `ok: false` also `error`. Never templates.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{ErrorCode, Refusal, SCHEMA};
use crate::attend::venue::VenueSpec;
use crate::recognise::face::{Name, SubjectId};
use crate::record::event::{ClockState, Direction, Status, StoredEvent, SubjectRef};

/// Where a refusal goes whose request id could not be read.
pub const UNREADABLE: &str = "reply/unreadable";

/// Where the answer to a request goes, below `rollcall/{site}/{device}/`.
pub fn topic_part(request_id: Option<&str>) -> String {
    request_id.map_or_else(|| UNREADABLE.to_owned(), |it| format!("reply/{it}"))
}

/// The answer to a command that was carried out.
pub fn accepted(request_id: &str, verb: &str, body: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Accepted<'a, T> {
        schema: u32,
        request_id: &'a str,
        verb: &'a str,
        ok: bool,
        #[serde(flatten)]
        body: &'a T,
    }
    let answer = Accepted { schema: SCHEMA, request_id, verb, ok: true, body };
    serde_json::to_string(&answer).expect("an answer has string keys only and writes to memory")
}

/// The answer to a command that was not.
pub fn refused(verb: &str, refusal: &Refusal) -> String {
    refused_with(verb, refusal, &serde_json::Map::new())
}

/// The same, with what else the sender should know: why each image was not taken, say.
pub fn refused_with(verb: &str, refusal: &Refusal, details: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Refused<'a, T> {
        schema: u32,
        request_id: Option<&'a str>,
        verb: &'a str,
        ok: bool,
        error: Error<'a>,
        #[serde(flatten)]
        details: &'a T,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        code: ErrorCode,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'a str>,
    }
    let error =
        Error { code: refusal.code, message: &refusal.message, field: refusal.field.as_deref() };
    let request_id = refusal.request_id.as_deref();
    let answer = Refused { schema: SCHEMA, request_id, verb, ok: false, error, details };
    serde_json::to_string(&answer).expect("an answer has string keys only and writes to memory")
}

/// What an enrolment that was refused tells beside the error.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotEnrolled {
    pub images: Vec<ImageOutcome>,
    pub duplicate_of: Option<SubjectId>,
    pub look_alikes: Vec<LookAlike>,
}

/// Another subject, near enough to be taken for this one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LookAlike {
    pub subject_id: SubjectId,
    pub score: f32,
}

/// A stored answer without the person who was erased: only that the request was answered, and how.
pub fn erased(reply: &str) -> String {
    let whole: Value = serde_json::from_str(reply).unwrap_or(Value::Null);
    let part = |key: &str| whole.get(key).cloned().unwrap_or(Value::Null);
    let answer = serde_json::json!({
        "schema": SCHEMA, "request_id": part("request_id"), "verb": part("verb"), "ok": part("ok"), "erased": true,
    });
    answer.to_string()
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Enrolled {
    pub subject_id: SubjectId,
    /// How many references the subject has now.
    pub references: u32,
    pub images: Vec<ImageOutcome>,
    /// The subject whose face this already is, where there is one.
    pub duplicate_of: Option<SubjectId>,
    /// Others near the threshold, the most alike first.
    pub look_alikes: Vec<LookAlike>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageOutcome {
    pub accepted: bool,
    pub reason: Option<ImageReason>,
    /// Whether it is a reference now; an accepted one is not where better or more different ones fill the subject's places.
    pub kept: bool,
}

/// Why an image became no reference: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageReason {
    NoFace,
    SeveralFaces,
    TooSmall,
    Blurred,
    Dark,
    Overexposed,
    Turned,
    DecodeError,
    OtherPerson,
}

impl ImageReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoFace => "no_face",
            Self::SeveralFaces => "several_faces",
            Self::TooSmall => "too_small",
            Self::Blurred => "blurred",
            Self::Dark => "dark",
            Self::Overexposed => "overexposed",
            Self::Turned => "turned",
            Self::DecodeError => "decode_error",
            Self::OtherPerson => "other_person",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Withdrawn {
    /// How many references were deleted.
    pub references: u32,
    pub erased: bool,
    /// For `erase`: in how many events the person stood.
    pub events: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Renamed {
    pub subject_id: SubjectId,
    pub name: Name,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubjectList {
    pub subjects: Vec<SubjectEntry>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<SubjectId>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubjectEntry {
    pub id: SubjectId,
    pub name: Name,
    pub references: u32,
    pub enrolled_at: String,
    /// The embedder of the newest reference, in hex.
    pub model_digest: Option<String>,
    /// Whether there is a reference of the embedder in use.
    pub recognisable: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recognised {
    pub faces: Vec<FaceEntry>,
    /// The names of those recognised, each once.
    pub names: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaceEntry {
    /// Left, top, right, bottom, in pixels of the image.
    #[serde(rename = "box")]
    pub bounding_box: [f32; 4],
    pub subject: Option<SubjectRef>,
    pub score: Option<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attended {
    pub venue: String,
    /// Whose attendance was recorded now.
    pub recorded: Vec<Name>,
    /// Who was recognised, recorded before or now.
    pub recognised: Vec<Name>,
    pub event_ids: Vec<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttendanceList {
    pub venue: String,
    pub attendance: Vec<AttendanceEntry>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttendanceEntry {
    pub seq: i64,
    pub event_id: Uuid,
    pub session: Option<String>,
    pub subject: Option<SubjectRef>,
    pub direction: Direction,
    pub status: Status,
    pub occurred_at: String,
    pub clock: ClockState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Uuid>,
}

impl AttendanceList {
    /// A page of `limit` at most; one event more than that tells that there is another.
    pub fn page(venue: String, mut found: Vec<StoredEvent>, limit: u32) -> Self {
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let next_after = found.last().filter(|_| more).map(|last| last.seq);
        Self {
            venue,
            attendance: found.iter().filter_map(AttendanceEntry::of).collect(),
            next_after,
        }
    }
}

impl AttendanceEntry {
    /// `None` if the event is not an attendance.
    pub fn of(event: &StoredEvent) -> Option<Self> {
        let crate::record::event::Body::Attendance(body) = &event.body else {
            return None;
        };
        Some(Self {
            seq: event.seq,
            event_id: event.event_id,
            session: body.session.clone(),
            subject: body.subject.clone(),
            direction: body.direction,
            status: body.status,
            occurred_at: crate::clock::rfc3339(event.occurred_ms),
            clock: event.clock,
            superseded_by: event.superseded_by,
        })
    }
}

/// What the record of a period comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttendanceSummary {
    pub venue: String,
    pub time_zone: String,
    pub from: String,
    pub to: String,
    pub rows: Vec<SummaryRow>,
    /// Sessions of which it is not known who was absent; on the first page, when absence is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_known: Option<Vec<NotKnown>>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<i64>,
}

/// A subject in a session; or on a local day, for what belongs to no session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SummaryRow {
    pub date: String,
    pub session: Option<String>,
    pub subject: SubjectRef,
    pub status: SummaryStatus,
    pub first_in: Option<String>,
    pub last_out: Option<String>,
    pub late_ms: Option<i64>,
    pub present_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SummaryStatus {
    Present,
    Late,
    Absent,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotKnown {
    pub session: String,
    pub starts_at: String,
    pub ends_at: String,
    /// When the door was not watching, the first few times.
    pub not_watching: Vec<Period>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Period {
    pub from: String,
    pub to: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VenuePut {
    pub venue: String,
    /// Whether it took the place of another of this id.
    pub replaced: bool,
    /// The session that runs or comes next, so that a wrong time zone is seen.
    pub next_session: Option<SessionEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionEntry {
    pub session: String,
    pub starts_at: String,
    pub ends_at: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VenueDeleted {
    pub venue: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VenueList {
    pub venues: Vec<VenueEntry>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VenueEntry {
    #[serde(flatten)]
    pub spec: VenueSpec,
    pub source: VenueSource,
    /// Whether this device's camera records for it.
    pub door: bool,
}

/// Who said what a venue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VenueSource {
    Config,
    Command,
    /// Nobody: it is this device's own, with nothing set.
    Default,
}

impl VenueSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Command => "command",
            Self::Default => "default",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Synced {
    pub owed: Vec<Owed>,
    /// The first of those that were set aside.
    pub buried: Vec<Buried>,
    /// Everything this device saw up to then has been delivered; null when that cannot be said.
    pub complete_through: Option<String>,
    /// How many were put back among what is owed.
    pub retried: u64,
}

/// What its sink will never take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Buried {
    pub sink: String,
    pub seq: Option<i64>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Owed {
    pub sink: String,
    pub rows: u64,
    pub oldest_at: Option<String>,
    pub buried: u64,
}
