//! Commands: what others ask of the device, read from bytes that may be hostile, and the answers (`docs/wire.md`).
//!
//! Invariants: nothing is believed: retained commands, unknown fields, wrong types, ids that do not fit into a topic,
//! and anything over a limit are refused with a code, a sentence and the field's name. Sizes are checked before memory
//! is taken for them. A command has a `request_id`; a refusal has one only if it could be read safely.
//!
//! Not here: who may command (the broker's ACL, signed commands), the stored answers that make a repeated command
//! harmless (`store`), and what a command does (`app`).

pub mod answer;
mod fields;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::attend::venue::{DATES_MAX, SESSIONS_MAX, SessionSpec, VenueSpec};
use crate::recognise::face::{Name, SubjectId};
use crate::record::event::Direction;
use fields::Fields;

/// The version of commands and answers.
pub const SCHEMA: u32 = 1;

/// The most subjects or attendances in one answer, and the number when none is asked for. An answer of 500 is about
/// 100 kB, which every broker carries.
pub const PAGE_MAX: u32 = 500;
pub const PAGE_DEFAULT: u32 = 100;

/// What is taken from outside at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub payload_bytes: usize,
    pub images: usize,
    /// One image, decoded from base64.
    pub image_bytes: usize,
    pub json_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload_bytes: 8 << 20, images: 10, image_bytes: 4 << 20, json_depth: 16 }
    }
}

/// A command that may be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub request_id: String,
    /// Not to be carried out after this wall time.
    pub expires_ms: Option<i64>,
    pub verb: Verb,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    Enrol(Enrol),
    EnrolFromCamera(EnrolFromCamera),
    Withdraw(Withdraw),
    Rename(Rename),
    Subjects(Subjects),
    Recognise(Recognise),
    Attend(Attend),
    Attendance(Attendance),
    VenuePut(VenueSpec),
    VenueDelete(VenueDelete),
    Venues(Venues),
    Sync(Sync),
}

impl Verb {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Enrol(_) => "enrol",
            Self::EnrolFromCamera(_) => "enrol_from_camera",
            Self::Withdraw(_) => "withdraw",
            Self::Rename(_) => "rename",
            Self::Subjects(_) => "subjects",
            Self::Recognise(_) => "recognise",
            Self::Attend(_) => "attend",
            Self::Attendance(_) => "attendance",
            Self::VenuePut(_) => "venue_put",
            Self::VenueDelete(_) => "venue_delete",
            Self::Venues(_) => "venues",
            Self::Sync(_) => "sync",
        }
    }
}

/// Deliver now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync {
    /// What was set aside as undeliverable is tried again.
    pub retry_buried: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Enrol {
    pub subject_id: SubjectId,
    pub name: Name,
    /// At least one.
    pub images: Vec<EncodedImage>,
    /// The new references take the place of the old ones.
    pub replace: bool,
    /// Enrol even if the face is already another subject's.
    pub allow_duplicate: bool,
}

/// The next person who is alone before the camera.
#[derive(Clone, Debug, PartialEq)]
pub struct EnrolFromCamera {
    pub subject_id: SubjectId,
    pub name: Name,
    /// How many samples to take.
    pub samples: usize,
    pub timeout: Duration,
    pub replace: bool,
    pub allow_duplicate: bool,
}

/// What is taken of `enrol_from_camera` when nothing else is said, and at most.
const SAMPLES_DEFAULT: i64 = 3;
const SAMPLES_MAX: i64 = 10;
const TIMEOUT_DEFAULT_MS: u64 = 30_000;
const TIMEOUT_RANGE_MS: std::ops::RangeInclusive<u64> = 1_000..=120_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Withdraw {
    pub subject_id: SubjectId,
    pub erase: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rename {
    pub subject_id: SubjectId,
    pub name: Name,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subjects {
    /// Only subjects whose id sorts after this one.
    pub after: Option<SubjectId>,
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Recognise {
    pub image: EncodedImage,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attend {
    pub venue: String,
    pub image: EncodedImage,
    pub direction: Option<Direction>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attendance {
    pub venue: String,
    /// From here on.
    pub from_ms: i64,
    /// Up to here, which is no longer included.
    pub to_ms: i64,
    /// Only events with a greater `seq`; of a summary, only rows after so many.
    pub after: i64,
    pub limit: u32,
    /// Those too in whose stead another counts.
    pub all: bool,
    /// Per subject and session or day.
    pub summary: bool,
    /// And who was not there.
    pub absent: bool,
}

/// The longest period of a summary; a page of it looks at all of it.
pub const SUMMARY_DAYS_MAX: i64 = 62;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VenueDelete {
    pub venue: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Venues {
    /// Only venues whose id sorts after this one.
    pub after: Option<String>,
    pub limit: u32,
}

/// An image as it was sent, JPEG, PNG or WebP as far as anybody claims. Only its size has been looked at.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage(Vec<u8>);

impl EncodedImage {
    /// From base64 or a data URL that did not come in a command; `field` stands in the refusal.
    pub fn from_text(field: &str, text: &str, limits: &Limits) -> Result<Self, Refusal> {
        fields::image(field, text, limits).map_err(|fault| fault.into_refusal(None))
    }

    /// As it is.
    pub fn from_bytes(field: &str, bytes: Vec<u8>, limits: &Limits) -> Result<Self, Refusal> {
        if bytes.is_empty() {
            return Err(Refusal::new(None, ErrorCode::BadImage, format!("{field} is empty")));
        }
        if bytes.len() > limits.image_bytes {
            return Err(Refusal::new(
                None,
                ErrorCode::TooLarge,
                over(field, bytes.len(), limits.image_bytes),
            ));
        }
        Ok(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedImage({} bytes)", self.0.len())
    }
}

/// Why a command was not carried out: a closed set, documented in `docs/wire.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    // The message itself:
    Retained,
    TooLarge,
    TooDeep,
    BadJson,
    UnknownVerb,
    NotSupported,
    MissingField,
    UnknownField,
    WrongType,
    BadValue,
    TooMany,
    BadImage,
    Expired,
    // Who sent it:
    Unsigned,
    BadSignature,
    WrongAudience,
    Replayed,
    // Carrying it out:
    UnknownSubject,
    UnknownVenue,
    DuplicateSubject,
    NoUsableImage,
    NotReady,
    Busy,
    TimedOut,
    RateLimited,
    StorageFull,
    Internal,
}

impl ErrorCode {
    pub const ALL: [Self; 27] = [
        Self::Retained,
        Self::TooLarge,
        Self::TooDeep,
        Self::BadJson,
        Self::UnknownVerb,
        Self::NotSupported,
        Self::MissingField,
        Self::UnknownField,
        Self::WrongType,
        Self::BadValue,
        Self::TooMany,
        Self::BadImage,
        Self::Expired,
        Self::Unsigned,
        Self::BadSignature,
        Self::WrongAudience,
        Self::Replayed,
        Self::UnknownSubject,
        Self::UnknownVenue,
        Self::DuplicateSubject,
        Self::NoUsableImage,
        Self::NotReady,
        Self::Busy,
        Self::TimedOut,
        Self::RateLimited,
        Self::StorageFull,
        Self::Internal,
    ];

    /// As it stands in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retained => "retained",
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::BadJson => "bad_json",
            Self::UnknownVerb => "unknown_verb",
            Self::NotSupported => "not_supported",
            Self::MissingField => "missing_field",
            Self::UnknownField => "unknown_field",
            Self::WrongType => "wrong_type",
            Self::BadValue => "bad_value",
            Self::TooMany => "too_many",
            Self::BadImage => "bad_image",
            Self::Expired => "expired",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
            Self::WrongAudience => "wrong_audience",
            Self::Replayed => "replayed",
            Self::UnknownSubject => "unknown_subject",
            Self::UnknownVenue => "unknown_venue",
            Self::DuplicateSubject => "duplicate_subject",
            Self::NoUsableImage => "no_usable_image",
            Self::NotReady => "not_ready",
            Self::Busy => "busy",
            Self::TimedOut => "timed_out",
            Self::RateLimited => "rate_limited",
            Self::StorageFull => "storage_full",
            Self::Internal => "internal",
        }
    }
}

/// Why a command was refused, to be told to whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub request_id: Option<String>,
    pub code: ErrorCode,
    /// For people. Quotes nothing of the command but names of fields and lengths.
    pub message: String,
    pub field: Option<String>,
}

impl Refusal {
    pub fn new(request_id: Option<&str>, code: ErrorCode, message: impl Into<String>) -> Self {
        let request_id = request_id.map(str::to_owned);
        Self { request_id, code, message: message.into(), field: None }
    }
}

/// Reads one command from the payload that came on `…/command/{verb}`, at wall time `now_ms`.
pub fn parse(
    verb: &str,
    retained: bool,
    payload: &[u8],
    limits: &Limits,
    now_ms: i64,
) -> Result<Command, Refusal> {
    read_command(verb, retained, payload, limits, now_ms, false)
}

/// The same of a signed command, whose body says its verb too: what was signed for one is not carried to another.
pub fn parse_signed(
    verb: &str,
    retained: bool,
    payload: &[u8],
    limits: &Limits,
    now_ms: i64,
) -> Result<Command, Refusal> {
    read_command(verb, retained, payload, limits, now_ms, true)
}

/// The request id of a command that is refused for another reason, if it can be had.
pub fn request_id(payload: &[u8], limits: &Limits) -> Option<String> {
    fields::salvage_request_id(payload, limits)
}

/// Whether there is such a verb.
pub fn is_verb(verb: &str) -> bool {
    is_supported(verb).err().is_none_or(|(code, _)| code != ErrorCode::UnknownVerb)
}

fn read_command(
    verb: &str,
    retained: bool,
    payload: &[u8],
    limits: &Limits,
    now_ms: i64,
    signed: bool,
) -> Result<Command, Refusal> {
    let whole = |code, message: String| Refusal {
        request_id: fields::salvage_request_id(payload, limits),
        code,
        message,
        field: None,
    };
    if payload.len() > limits.payload_bytes {
        let message = over("the command", payload.len(), limits.payload_bytes);
        return Err(whole(ErrorCode::TooLarge, message));
    }
    if retained {
        let message = "a command must not be retained: it would be carried out at every start";
        return Err(whole(ErrorCode::Retained, message.into()));
    }
    if let Err((code, message)) = is_supported(verb) {
        return Err(whole(code, message));
    }
    let mut fields =
        fields::read(payload, limits).map_err(|fault| whole(fault.code, fault.message))?;

    let request_id = fields.id("request_id").map_err(|fault| fault.into_refusal(None))?;
    if signed {
        let said =
            fields.text("verb").map_err(|fault| fault.into_refusal(Some(request_id.clone())))?;
        if said != verb {
            let fault = fields.fault(
                ErrorCode::WrongAudience,
                "verb",
                "is not that of the topic it came on",
            );
            return Err(fault.into_refusal(Some(request_id)));
        }
    }
    read_verb(verb, &mut fields, limits, now_ms)
        .map(|(expires_ms, verb)| Command { request_id: request_id.clone(), expires_ms, verb })
        .map_err(|fault| fault.into_refusal(Some(request_id)))
}

fn is_supported(verb: &str) -> Result<(), (ErrorCode, String)> {
    match verb {
        "enrol" | "withdraw" | "rename" | "subjects" | "recognise" | "attend" | "attendance"
        | "venue_put" | "venue_delete" | "venues" | "sync" | "enrol_from_camera" => Ok(()),
        _ => Err((ErrorCode::UnknownVerb, "there is no such command".into())),
    }
}

fn read_verb(
    verb: &str,
    fields: &mut Fields,
    limits: &Limits,
    now_ms: i64,
) -> Result<(Option<i64>, Verb), fields::Fault> {
    let schema = fields.optional("schema", Fields::whole)?;
    if schema.is_some_and(|it| it != i64::from(SCHEMA)) {
        return Err(fields.fault(ErrorCode::BadValue, "schema", "must be 1"));
    }
    let expires_ms = fields.optional("expires_at", Fields::time)?;
    let verb = match verb {
        "enrol" => enrol(fields, limits).map(Verb::Enrol)?,
        "enrol_from_camera" => enrol_from_camera(fields).map(Verb::EnrolFromCamera)?,
        "withdraw" => Verb::Withdraw(Withdraw {
            subject_id: fields.subject_id("subject_id")?,
            erase: fields.optional("erase", Fields::flag)?.unwrap_or(false),
        }),
        "rename" => Verb::Rename(Rename {
            subject_id: fields.subject_id("subject_id")?,
            name: fields.name("name")?,
        }),
        "subjects" => Verb::Subjects(Subjects {
            after: fields.optional("after", Fields::subject_id)?,
            limit: fields.page()?,
        }),
        "recognise" => Verb::Recognise(Recognise { image: fields.image("image", limits)? }),
        "attend" => Verb::Attend(Attend {
            venue: fields.id("venue")?,
            image: fields.image("image", limits)?,
            direction: fields.optional("direction", Fields::direction)?,
        }),
        "attendance" => attendance(fields).map(Verb::Attendance)?,
        "venue_put" => venue_put(fields).map(Verb::VenuePut)?,
        "venue_delete" => Verb::VenueDelete(VenueDelete { venue: fields.id("venue")? }),
        "venues" => Verb::Venues(Venues {
            after: fields.optional("after", Fields::id)?,
            limit: fields.page()?,
        }),
        _ => Verb::Sync(Sync {
            retry_buried: fields.optional("retry_buried", Fields::flag)?.unwrap_or(false),
        }),
    };
    fields.finish()?;
    // Last, so that a command with a fault is told of the fault however late it is.
    if expires_ms.is_some_and(|it| it < now_ms) {
        return Err(fields.fault(ErrorCode::Expired, "expires_at", "is past"));
    }
    Ok((expires_ms, verb))
}

fn enrol(fields: &mut Fields, limits: &Limits) -> Result<Enrol, fields::Fault> {
    let mut subject = fields.object("subject")?;
    let enrol = Enrol {
        subject_id: subject.subject_id("id")?,
        name: subject.name("name")?,
        images: fields.images("images", limits)?,
        replace: fields.optional("replace", Fields::flag)?.unwrap_or(false),
        allow_duplicate: fields.optional("allow_duplicate", Fields::flag)?.unwrap_or(false),
    };
    subject.finish()?;
    Ok(enrol)
}

fn enrol_from_camera(fields: &mut Fields) -> Result<EnrolFromCamera, fields::Fault> {
    let mut subject = fields.object("subject")?;
    let samples = fields.optional("samples", Fields::whole)?.unwrap_or(SAMPLES_DEFAULT);
    if !(1..=SAMPLES_MAX).contains(&samples) {
        return Err(fields.fault(ErrorCode::BadValue, "samples", "must be 1 to 10"));
    }
    let timeout_ms =
        fields.optional("timeout_ms", Fields::milliseconds)?.unwrap_or(TIMEOUT_DEFAULT_MS);
    if !TIMEOUT_RANGE_MS.contains(&timeout_ms) {
        return Err(fields.fault(ErrorCode::BadValue, "timeout_ms", "must be 1000 to 120000"));
    }
    let wanted = EnrolFromCamera {
        subject_id: subject.subject_id("id")?,
        name: subject.name("name")?,
        samples: samples as usize,
        timeout: Duration::from_millis(timeout_ms),
        replace: fields.optional("replace", Fields::flag)?.unwrap_or(false),
        allow_duplicate: fields.optional("allow_duplicate", Fields::flag)?.unwrap_or(false),
    };
    subject.finish()?;
    Ok(wanted)
}

fn attendance(fields: &mut Fields) -> Result<Attendance, fields::Fault> {
    let attendance = Attendance {
        venue: fields.id("venue")?,
        from_ms: fields.optional("from", Fields::time)?.unwrap_or(0),
        // Without an end: all there is, whatever the clock was.
        to_ms: fields.optional("to", Fields::time)?.unwrap_or(i64::MAX),
        after: fields.optional("after", Fields::whole)?.unwrap_or(0),
        limit: fields.page()?,
        all: fields.optional("all", Fields::flag)?.unwrap_or(false),
        summary: fields.optional("summary", Fields::flag)?.unwrap_or(false),
        absent: fields.optional("absent", Fields::flag)?.unwrap_or(false),
    };
    if attendance.absent && !attendance.summary {
        return Err(fields.fault(ErrorCode::BadValue, "absent", "is part of a summary"));
    }
    if attendance.all && attendance.summary {
        return Err(fields.fault(ErrorCode::BadValue, "all", "has no meaning in a summary"));
    }
    if attendance.after < 0 {
        return Err(fields.fault(ErrorCode::BadValue, "after", "must not be negative"));
    }
    if attendance.to_ms < attendance.from_ms {
        return Err(fields.fault(ErrorCode::BadValue, "to", "must not be before `from`"));
    }
    Ok(attendance)
}

/// Read, not yet checked: that takes the time zone database.
fn venue_put(fields: &mut Fields) -> Result<VenueSpec, fields::Fault> {
    let venue = fields.id("venue")?;
    let plain = VenueSpec::plain(&venue);
    let session = |fields: &mut Fields| {
        Ok(SessionSpec {
            id: fields.id("id")?,
            weekdays: fields
                .optional("weekdays", |fields, key| fields.texts(key, 7))?
                .unwrap_or_default(),
            dates: fields
                .optional("dates", |fields, key| fields.texts(key, DATES_MAX))?
                .unwrap_or_default(),
            start: fields.text("start")?,
            end: fields.text("end")?,
            late_after_ms: fields.optional("late_after_ms", Fields::milliseconds)?,
            early_ms: fields.optional("early_ms", Fields::milliseconds)?,
        })
    };
    Ok(VenueSpec {
        name: fields
            .optional("name", Fields::name)?
            .map_or(plain.name, |it| it.as_str().to_owned()),
        time_zone: fields.optional("time_zone", Fields::text)?.unwrap_or(plain.time_zone),
        direction: fields.optional("direction", Fields::direction_mode)?.unwrap_or(plain.direction),
        re_entry_gap_ms: fields
            .optional("re_entry_gap_ms", Fields::milliseconds)?
            .unwrap_or(plain.re_entry_gap_ms),
        sessions: fields
            .optional("sessions", |fields, key| fields.objects(key, SESSIONS_MAX, session))?
            .unwrap_or_default(),
        venue,
    })
}

/// `what is 9.1 MB; at most 4 MB`, to two digits and by 1024².
fn over(what: &str, bytes: usize, most: usize) -> String {
    format!("{what} is {}; at most {}", megabytes(bytes), megabytes(most))
}

fn megabytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    match (tenths / 10, tenths % 10) {
        (0, 0) => format!("{bytes} bytes"),
        (whole, 0) => format!("{whole} MB"),
        (whole, tenth) => format!("{whole}.{tenth} MB"),
    }
}

#[cfg(test)]
mod tests;
