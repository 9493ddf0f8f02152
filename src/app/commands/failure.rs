//! Why a command was not executed, and whether its rejection is stored as the reply.

use crate::recognise::engine::EngineError;
use crate::store::StoreError;
use crate::wire::command::{ErrorCode, Rejection};

/// Why a command was not executed.
pub(super) enum CommandError {
    /// The daemon is stopping; the broker delivers the command again.
    Stopping,
    /// Reported to the sender; stored as the reply if `lasting`.
    Rejected { rejection: Rejection, lasting: bool },
    /// A fault of this device: the log has its causes, the sender its text.
    Failed(Box<dyn std::error::Error + Send + Sync>),
    /// The store cannot be used any more: the daemon ends.
    Fatal(StoreError),
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        if error.is_fatal() {
            return Self::Fatal(error);
        }
        let (code, lasting) = match &error {
            StoreError::Full => (ErrorCode::StorageFull, false),
            StoreError::UnknownSubject { .. } => (ErrorCode::UnknownSubject, true),
            StoreError::TooManyRecords { .. } => (ErrorCode::TooMany, true),
            StoreError::TooSlow { .. } => (ErrorCode::TimedOut, false),
            _ => return Self::Failed(Box::new(error)),
        };
        Self::Rejected { rejection: Rejection::new(None, code, error.to_string()), lasting }
    }
}

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// Rejects a command for good: the rejection is stored as its reply.
pub(super) fn reject(code: ErrorCode, message: impl Into<String>) -> CommandError {
    CommandError::Rejected { rejection: Rejection::new(None, code, message), lasting: true }
}

/// Rejects a command for now: the same request may be sent again.
pub(super) fn reject_for_now(code: ErrorCode, message: impl Into<String>) -> CommandError {
    CommandError::Rejected { rejection: Rejection::new(None, code, message), lasting: false }
}
