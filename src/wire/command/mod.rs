//! Commands, read from bytes that may be hostile, and their rejections (`docs/wire.md`).
//!
//! Invariants: retained commands, unknown fields, wrong types, ids that do not fit into a topic, and
//! anything over a limit are rejected with a code, a sentence and the field's name. Sizes are checked
//! before memory is taken for them. A command has a `request_id`; a rejection has one only if it
//! could be read safely.
//!
//! Not here: who may command (the broker's ACL, signed commands), the stored replies that make a
//! repeated command harmless (`store`), and what a command does (`app`).

mod fields;
mod image;
mod limits;
mod rejection;

use std::time::Duration;

use serde_json::{Map, Value};
use strum::{EnumDiscriminants, EnumString, IntoStaticStr};

use crate::attend::venue::{DATES_MAX, SESSIONS_MAX, SessionSpec, VenueSpec};
use crate::ids::{Name, SubjectId};
use crate::wire::command::limits::over;
use crate::wire::consent::Consent;
use crate::wire::event::Direction;
use fields::Fields;

pub use image::EncodedImage;
pub use limits::{Limits, PAGE_DEFAULT, PAGE_MAX};
pub use rejection::{ErrorCode, ImageOutcome, ImageReason, LookAlike, NotEnrolled, Rejection};

/// The version of commands and replies.
pub const SCHEMA: u32 = 1;

/// A command that may be executed.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub request_id: String,
    /// Not to be executed after this wall time.
    pub expires_ms: Option<i64>,
    pub verb: Verb,
}

/// What a command asks for. Each variant is declared here and nowhere else: its name in topics, routes
/// and replies follows from it, and parser and handler match on it exhaustively.
#[derive(Clone, Debug, PartialEq, EnumDiscriminants)]
#[strum_discriminants(
    name(VerbName),
    doc = "The name of a command, as in topics, routes and replies.",
    derive(EnumString, IntoStaticStr),
    strum(serialize_all = "snake_case")
)]
pub enum Verb {
    Enrol(Enrol),
    EnrolFromCamera(EnrolFromCamera),
    Withdraw(Withdraw),
    Consent(ConsentChange),
    Rename(Rename),
    Subjects(Subjects),
    Recognise(Recognise),
    Attend(Attend),
    Attendance(AttendanceRequest),
    VenuePut(VenueSpec),
    VenueDelete(VenueDelete),
    Venues(VenuesRequest),
    Sync(Sync),
}

impl Verb {
    /// Returns the name in topics, routes and replies.
    pub fn as_str(&self) -> &'static str {
        VerbName::from(self).into()
    }
}

/// Deliver now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Dead letters are delivered again.
    pub retry_dead_letters: bool,
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
    pub consent: Option<Consent>,
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
    pub consent: Option<Consent>,
}

/// Defaults and bounds of `enrol_from_camera`.
const SAMPLES_DEFAULT: i64 = 3;
const SAMPLES_MAX: i64 = 10;
const TIMEOUT_DEFAULT_MS: u64 = 30_000;
const TIMEOUT_RANGE_MS: std::ops::RangeInclusive<u64> = 1_000..=120_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Withdraw {
    pub subject_id: SubjectId,
    pub erase: bool,
}

/// What becomes of the consent of an enrolled subject.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsentChange {
    pub subject_id: SubjectId,
    pub action: ConsentAction,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ConsentAction {
    /// Given for the first time, or renewed.
    Record(Consent),
    /// Withdrawn: the subject is erased, or with `erase` false only its record stays.
    Withdraw { erase: bool },
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
pub struct AttendanceRequest {
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
    /// And absent subjects.
    pub absent: bool,
}

/// The longest period of a summary; a page of it reads all records before its end.
pub const SUMMARY_DAYS_MAX: i64 = 62;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VenueDelete {
    pub venue: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VenuesRequest {
    /// Only venues whose id sorts after this one.
    pub after: Option<String>,
    pub limit: u32,
}

/// A command as it was received.
pub struct Received<'a> {
    verb: &'a str,
    payload: &'a [u8],
    retained: bool,
    signed: bool,
    /// For a payload that has none.
    request_id: Option<String>,
}

impl<'a> Received<'a> {
    /// By MQTT, on `…/command/{verb}`.
    pub fn by_mqtt(verb: &'a str, payload: &'a [u8], retained: bool) -> Self {
        Self { verb, payload, retained, signed: false, request_id: None }
    }

    /// By HTTP; `request_id` is used where the payload has none.
    pub fn by_http(verb: &'a str, payload: &'a [u8], request_id: String) -> Self {
        Self { verb, payload, retained: false, signed: false, request_id: Some(request_id) }
    }

    /// A signed payload states its verb too, so that it is not executed as another one.
    #[must_use]
    pub fn signed(self) -> Self {
        Self { signed: true, ..self }
    }
}

/// Returns the request id of a command that is rejected for another reason, if it can be read.
pub fn request_id(payload: &[u8], limits: &Limits) -> Option<String> {
    fields::salvage_request_id(payload, limits, None)
}

/// Whether a verb of this name exists.
pub fn is_verb(verb: &str) -> bool {
    verb.parse::<VerbName>().is_ok()
}

/// Reads one command, at wall time `now_ms`.
pub fn parse(received: Received<'_>, limits: &Limits, now_ms: i64) -> Result<Command, Rejection> {
    let Received { verb, payload, retained, signed, request_id } = received;
    let whole = |code, message: String| {
        let found = fields::salvage_request_id(payload, limits, request_id.as_deref());
        Rejection::new(found.as_deref(), code, message)
    };
    if payload.len() > limits.payload_bytes {
        let why = over(payload.len(), limits.payload_bytes);
        return Err(whole(ErrorCode::TooLarge, format!("the command {why}")));
    }
    if retained {
        let message = "a command must not be retained: it would be executed at every start";
        return Err(whole(ErrorCode::Retained, message.into()));
    }
    let Ok(name) = verb.parse::<VerbName>() else {
        return Err(whole(ErrorCode::UnknownVerb, "there is no such command".into()));
    };
    let mut fields = fields::read(payload, limits).map_err(|it| whole(it.code, it.message))?;
    let request_id = match request_id {
        Some(generated) => fields.optional("request_id", Fields::id)?.unwrap_or(generated),
        None => fields.id("request_id")?,
    };
    let stated = if signed { check_stated_verb(&mut fields, verb) } else { Ok(()) };
    match stated.and_then(|()| read_verb(name, &mut fields, limits, now_ms)) {
        Ok((expires_ms, verb)) => Ok(Command { request_id, expires_ms, verb }),
        Err(rejection) => Err(Rejection { request_id: Some(request_id), ..rejection }),
    }
}

fn check_stated_verb(fields: &mut Fields, verb: &str) -> Result<(), Rejection> {
    if fields.text("verb")? == verb {
        return Ok(());
    }
    Err(fields.reject(ErrorCode::WrongAudience, "verb", "is not that of the topic it came on"))
}

/// Reads an `attendance` command from fields that did not come as JSON.
pub fn attendance_of(members: Map<String, Value>) -> Result<AttendanceRequest, Rejection> {
    let mut fields = Fields::new(members);
    let wanted = attendance(&mut fields)?;
    fields.finish()?;
    Ok(wanted)
}

fn read_verb(
    name: VerbName,
    fields: &mut Fields,
    limits: &Limits,
    now_ms: i64,
) -> Result<(Option<i64>, Verb), Rejection> {
    let schema = fields.optional("schema", Fields::whole)?;
    if schema.is_some_and(|it| it != i64::from(SCHEMA)) {
        return Err(fields.reject(ErrorCode::BadValue, "schema", "must be 1"));
    }
    let expires_ms = fields.optional("expires_at", Fields::time)?;
    let verb = match name {
        VerbName::Enrol => enrol(fields, limits).map(Verb::Enrol)?,
        VerbName::EnrolFromCamera => enrol_from_camera(fields).map(Verb::EnrolFromCamera)?,
        VerbName::Withdraw => Verb::Withdraw(Withdraw {
            subject_id: fields.subject_id("subject_id")?,
            erase: fields.optional("erase", Fields::flag)?.unwrap_or(false),
        }),
        VerbName::Consent => consent_change(fields).map(Verb::Consent)?,
        VerbName::Rename => Verb::Rename(Rename {
            subject_id: fields.subject_id("subject_id")?,
            name: fields.name("name")?,
        }),
        VerbName::Subjects => Verb::Subjects(Subjects {
            after: fields.optional("after", Fields::subject_id)?,
            limit: fields.page()?,
        }),
        VerbName::Recognise => Verb::Recognise(Recognise { image: fields.image("image", limits)? }),
        VerbName::Attend => Verb::Attend(Attend {
            venue: fields.id("venue")?,
            image: fields.image("image", limits)?,
            direction: fields.optional("direction", Fields::direction)?,
        }),
        VerbName::Attendance => attendance(fields).map(Verb::Attendance)?,
        VerbName::VenuePut => venue_put(fields).map(Verb::VenuePut)?,
        VerbName::VenueDelete => Verb::VenueDelete(VenueDelete { venue: fields.id("venue")? }),
        VerbName::Venues => Verb::Venues(VenuesRequest {
            after: fields.optional("after", Fields::id)?,
            limit: fields.page()?,
        }),
        VerbName::Sync => Verb::Sync(Sync {
            retry_dead_letters: fields.optional("retry_buried", Fields::flag)?.unwrap_or(false),
        }),
    };
    fields.finish()?;
    // Last, so that a faulty command is rejected for its fault however late it is.
    if expires_ms.is_some_and(|it| it < now_ms) {
        return Err(fields.reject(ErrorCode::Expired, "expires_at", "is past"));
    }
    Ok((expires_ms, verb))
}

fn enrol(fields: &mut Fields, limits: &Limits) -> Result<Enrol, Rejection> {
    let mut subject = fields.object("subject")?;
    let enrol = Enrol {
        subject_id: subject.subject_id("id")?,
        name: subject.name("name")?,
        images: fields.images("images", limits)?,
        replace: fields.optional("replace", Fields::flag)?.unwrap_or(false),
        allow_duplicate: fields.optional("allow_duplicate", Fields::flag)?.unwrap_or(false),
        consent: fields.optional("consent", Fields::consent)?,
    };
    subject.finish()?;
    Ok(enrol)
}

fn enrol_from_camera(fields: &mut Fields) -> Result<EnrolFromCamera, Rejection> {
    let mut subject = fields.object("subject")?;
    let samples = fields.optional("samples", Fields::whole)?.unwrap_or(SAMPLES_DEFAULT);
    if !(1..=SAMPLES_MAX).contains(&samples) {
        return Err(fields.reject(ErrorCode::BadValue, "samples", "must be 1 to 10"));
    }
    let timeout_ms =
        fields.optional("timeout_ms", Fields::milliseconds)?.unwrap_or(TIMEOUT_DEFAULT_MS);
    if !TIMEOUT_RANGE_MS.contains(&timeout_ms) {
        return Err(fields.reject(ErrorCode::BadValue, "timeout_ms", "must be 1000 to 120000"));
    }
    let wanted = EnrolFromCamera {
        subject_id: subject.subject_id("id")?,
        name: subject.name("name")?,
        samples: samples as usize,
        timeout: Duration::from_millis(timeout_ms),
        replace: fields.optional("replace", Fields::flag)?.unwrap_or(false),
        allow_duplicate: fields.optional("allow_duplicate", Fields::flag)?.unwrap_or(false),
        consent: fields.optional("consent", Fields::consent)?,
    };
    subject.finish()?;
    Ok(wanted)
}

fn consent_change(fields: &mut Fields) -> Result<ConsentChange, Rejection> {
    let subject_id = fields.subject_id("subject_id")?;
    let consent = fields.optional("consent", Fields::consent)?;
    let withdraw = fields.optional("withdraw", Fields::flag)?.unwrap_or(false);
    let erase = fields.optional("erase", Fields::flag)?;
    let action = match (consent, withdraw, erase) {
        (Some(consent), false, None) => ConsentAction::Record(consent),
        (None, true, erase) => ConsentAction::Withdraw { erase: erase.unwrap_or(true) },
        (None, false, _) => {
            let what = "is missing; or `withdraw` must be true";
            return Err(fields.reject(ErrorCode::MissingField, "consent", what));
        }
        (Some(_), true, _) => {
            return Err(fields.reject(ErrorCode::BadValue, "withdraw", "contradicts `consent`"));
        }
        (Some(_), false, Some(_)) => {
            return Err(fields.reject(ErrorCode::BadValue, "erase", "is part of `withdraw`"));
        }
    };
    Ok(ConsentChange { subject_id, action })
}

fn attendance(fields: &mut Fields) -> Result<AttendanceRequest, Rejection> {
    let attendance = AttendanceRequest {
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
        return Err(fields.reject(ErrorCode::BadValue, "absent", "is part of a summary"));
    }
    if attendance.all && attendance.summary {
        return Err(fields.reject(ErrorCode::BadValue, "all", "has no meaning in a summary"));
    }
    if attendance.after < 0 {
        return Err(fields.reject(ErrorCode::BadValue, "after", "must not be negative"));
    }
    if attendance.to_ms < attendance.from_ms {
        return Err(fields.reject(ErrorCode::BadValue, "to", "must not be before `from`"));
    }
    Ok(attendance)
}

/// Read, not yet checked: that takes the time zone database.
fn venue_put(fields: &mut Fields) -> Result<VenueSpec, Rejection> {
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
        date_time: fields.optional("date_time", Fields::text)?,
        venue,
    })
}

#[cfg(test)]
mod tests;
