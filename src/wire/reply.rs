//! Replies to commands, as they are published at `…/reply/{request_id}`.
//!
//! Invariant: every reply has `schema`, `request_id`, `verb` and `ok`; with `ok: false` also
//! `error`. Never templates.

use serde::Serialize;
use serde_json::Value;
use strum::IntoStaticStr;
use uuid::Uuid;

use crate::attend::venue::VenueSpec;
use crate::enrol::camera::FaceView;
use crate::ids::{Name, SubjectId};
use crate::wire::command::{ImageOutcome, LookAlike, NotEnrolled, Rejection, SCHEMA};
use crate::wire::consent::Consent;
use crate::wire::event::{ClockState, Direction, Status, StoredEvent, SubjectRef};

/// The topic of a rejection whose request id could not be read.
pub const UNREADABLE: &str = "reply/unreadable";

/// Returns the topic of the reply to a request, below `rollcall/{site}/{device}/`.
pub fn topic_part(request_id: Option<&str>) -> String {
    request_id.map_or_else(|| UNREADABLE.to_owned(), |it| format!("reply/{it}"))
}

/// What a command that was executed replies.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    Enrolled(Enrolled),
    Withdrawn(Withdrawn),
    Renamed(Renamed),
    ConsentRecorded(ConsentRecorded),
    Subjects(SubjectList),
    Recognised(Recognised),
    Attended(Attended),
    Attendance(AttendanceList),
    Summary(AttendanceSummary),
    VenuePut(VenuePut),
    VenueDeleted(VenueDeleted),
    Venues(VenueList),
    Synced(Synced),
}

/// Returns the JSON of the reply to a command that was executed.
pub fn accepted(request_id: &str, verb: &str, reply: &Reply) -> String {
    to_json(Some(request_id), verb, Ok(reply))
}

/// Returns the JSON of the reply to a command that was rejected.
pub fn rejected(verb: &str, rejection: &Rejection) -> String {
    to_json(rejection.request_id.as_deref(), verb, Err(rejection))
}

fn to_json(request_id: Option<&str>, verb: &str, outcome: Result<&Reply, &Rejection>) -> String {
    #[derive(Serialize)]
    struct ReplyMessage<'a> {
        schema: u32,
        request_id: Option<&'a str>,
        verb: &'a str,
        ok: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a Rejection>,
        #[serde(flatten)]
        reply: Option<&'a Reply>,
        #[serde(flatten)]
        details: Option<&'a NotEnrolled>,
    }
    let error = outcome.err();
    let message = ReplyMessage {
        schema: SCHEMA,
        request_id,
        verb,
        ok: error.is_none(),
        error,
        reply: outcome.ok(),
        details: error.and_then(|it| it.details.as_deref()),
    };
    serde_json::to_string(&message).expect("a reply has string keys only and writes to memory")
}

/// Returns a stored reply without the person who was erased: only whether the request was executed.
pub fn erased(reply: &str) -> String {
    let whole: Value = serde_json::from_str(reply).unwrap_or(Value::Null);
    let part = |key: &str| whole.get(key).cloned().unwrap_or(Value::Null);
    let reply = serde_json::json!({
        "schema": SCHEMA, "request_id": part("request_id"), "verb": part("verb"), "ok": part("ok"), "erased": true,
    });
    reply.to_string()
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
    /// Whether even the best image shows little of the face, so that the subject is likely to be
    /// missed: another photograph is wanted. Omitted if not.
    #[serde(skip_serializing_if = "is_false")]
    pub weak: bool,
    /// Whether this is the subject's only reference: it is recognised less surely. Omitted if not.
    #[serde(skip_serializing_if = "is_false")]
    pub single_reference: bool,
    /// For `enrol_from_camera`, the views that the person did not show in time. Omitted if none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_views: Vec<FaceView>,
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

/// The consent of a subject as it is recorded now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConsentRecorded {
    pub subject_id: SubjectId,
    pub consent: Consent,
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
    /// Whether all references lack the second part of the embedder in use: the subject is
    /// recognised by the first part alone. Omitted if not.
    #[serde(skip_serializing_if = "is_false")]
    pub partial: bool,
    /// Whether there is only one reference: the subject is recognised less surely. Omitted if not.
    #[serde(skip_serializing_if = "is_false")]
    pub single_reference: bool,
    /// Omitted if none is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_false(value: &bool) -> bool {
    !value
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

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Attended {
    pub venue: String,
    /// Whose attendance was recorded now.
    pub recorded: Vec<Name>,
    /// Who was recognised, recorded before or now.
    pub recognised: Vec<Name>,
    /// The subjects of `recognised`, in its order: an erasure finds the reply by them.
    pub subject_ids: Vec<SubjectId>,
    pub event_ids: Vec<Uuid>,
    /// How many faces were nobody's.
    pub unknown: u32,
    /// Who was recognised and not recorded, because they are in the record already. Omitted if there
    /// is nobody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub already_recorded: Vec<AlreadyRecorded>,
}

impl Attended {
    pub fn add_recognised(&mut self, subject: SubjectRef) {
        self.recognised.push(subject.name);
        self.subject_ids.push(subject.id);
    }
}

/// The attendance by which a visit is recorded already.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlreadyRecorded {
    pub subject_id: SubjectId,
    pub direction: Direction,
    pub session: Option<String>,
    /// `None` while its time is not known.
    pub recorded_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttendanceList {
    pub venue: String,
    pub attendance: Vec<AttendanceEntry>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<i64>,
    /// Events of the whole record that cannot be read: some may belong here. Omitted if there are
    /// none.
    #[serde(skip_serializing_if = "is_zero")]
    pub unreadable: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
fn is_zero(count: &u64) -> bool {
    *count == 0
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
    /// A page of `limit` at most; one event more shows that there is another.
    pub fn page(venue: String, mut found: Vec<StoredEvent>, limit: u32) -> Self {
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let next_after = found.last().filter(|_| more).map(|last| last.seq);
        Self {
            venue,
            attendance: found.iter().filter_map(AttendanceEntry::of).collect(),
            next_after,
            unreadable: 0,
        }
    }
}

impl AttendanceEntry {
    /// `None` if the event is not an attendance.
    pub fn of(event: &StoredEvent) -> Option<Self> {
        let crate::wire::event::Body::Attendance(body) = &event.body else {
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
    /// Sessions of which absence is not known; on the first page, if absence is requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_known: Option<Vec<NotKnown>>,
    /// What to send as `after` for the next page; none on the last one.
    pub next_after: Option<i64>,
    /// As in [`AttendanceList`].
    #[serde(skip_serializing_if = "is_zero")]
    pub unreadable: u64,
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

/// Where a venue comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum VenueSource {
    Config,
    Command,
    /// Not set anywhere: the device's own.
    Default,
}

impl VenueSource {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Synced {
    #[serde(rename = "owed")]
    pub pending: Vec<PendingRows>,
    #[serde(rename = "buried")]
    pub dead_letters: Vec<DeadLetterEntry>,
    /// Everything this device saw up to then has been delivered; null when that is not known.
    pub complete_through: Option<String>,
    /// How many dead letters are pending again.
    pub retried: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadLetterEntry {
    pub sink: String,
    pub seq: Option<i64>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PendingRows {
    pub sink: String,
    pub rows: u64,
    pub oldest_at: Option<String>,
    #[serde(rename = "buried")]
    pub dead_letters: u64,
    /// Why the broker or receiver is not reached or refuses what is sent, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}
