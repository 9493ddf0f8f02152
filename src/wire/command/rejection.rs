//! Why a command is rejected: the closed set of error codes and the text that goes with one.

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::ids::SubjectId;

/// Why a command was not executed: a closed set, documented in `docs/wire.md`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr, VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
    // Executing it:
    UnknownSubject,
    UnknownVenue,
    DuplicateSubject,
    ConsentRequired,
    NoUsableImage,
    NotReady,
    Busy,
    TimedOut,
    RateLimited,
    StorageFull,
    Internal,
}

impl ErrorCode {
    /// Returns the name in messages.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The rejection of a command, as its sender receives it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rejection {
    #[serde(skip)]
    pub request_id: Option<String>,
    pub code: ErrorCode,
    /// For people. Quotes nothing of the command but names of fields and lengths.
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Stands beside the error in the reply.
    #[serde(skip)]
    pub details: Option<Box<NotEnrolled>>,
}

impl Rejection {
    pub fn new(request_id: Option<&str>, code: ErrorCode, message: impl Into<String>) -> Self {
        let request_id = request_id.map(str::to_owned);
        Self { request_id, code, message: message.into(), field: None, details: None }
    }

    /// Returns the rejection of one field; `why` continues a sentence that begins with its name.
    pub fn of_field(code: ErrorCode, field: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("{field} {why}");
        Self { field: Some(field.to_owned()), ..Self::new(None, code, message) }
    }
}

/// The details of a rejected enrolment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotEnrolled {
    pub images: Vec<ImageOutcome>,
    pub duplicate_of: Option<SubjectId>,
    pub look_alikes: Vec<LookAlike>,
}

/// Another subject whose score is near the threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LookAlike {
    pub subject_id: SubjectId,
    pub score: f32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageOutcome {
    pub accepted: bool,
    pub reason: Option<ImageReason>,
    /// Whether the image is a reference now. An accepted one is not where better or more different
    /// ones fill the subject's places.
    pub kept: bool,
}

/// Why an image became no reference: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
