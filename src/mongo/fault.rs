//! What an error of the server or the driver means for what was to be written.
//!
//! Three answers, and the table of them: `Retry`, the server is ill or away and will be well again; `Refused`, somebody
//! has to put something right (a password, a role, the kind of server), and until then everything waits; `Poison`, this
//! document will never be taken. What is not known is `Retry` for a command and `Unknown` for a single document: that
//! one is tried a number of times while its neighbours go on, then it is poison.

use mongodb::bson::{Bson, Document};
use mongodb::error::{Error, ErrorKind, WriteFailure};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Retry,
    Refused,
    Poison,
    Unknown,
}

/// An error, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) verdict: Verdict,
    pub(super) code: Option<i32>,
    pub(super) why: String,
}

impl Fault {
    /// Whether others may fare better: the trouble is with one document.
    pub(super) fn is_of_document(&self) -> bool {
        matches!(self.verdict, Verdict::Poison | Verdict::Unknown)
    }

    /// Of a command: whether it is the server's state or the way to it, and not what was asked.
    pub(super) fn passes_by_itself(&self) -> bool {
        // Without a code nobody answered, or nobody let us in; UserNotFound, AuthenticationFailed,
        // ReauthenticationRequired mean the same.
        self.code
            .is_none_or(|code| matches!(code, 11 | 18 | 391) || of_code(code) == Verdict::Retry)
    }

    /// The server itself gave up, for the limit of time that it was given.
    pub(super) fn took_too_long(&self) -> bool {
        self.code == Some(TOO_LONG)
    }
}

/// MaxTimeMSExpired.
const TOO_LONG: i32 = 50;
pub(super) const DUPLICATE_KEY: i32 = 11000;

/// Labels with which server or driver say that the same write may be sent again.
const RETRY_LABELS: [&str; 4] =
    ["RetryableWriteError", "TransientTransactionError", "SystemOverloadedError", "RetryableError"];

/// By the server's error code (`src/mongo/base/error_codes.yml` of the server names them), within a document's write.
const fn of_code(code: i32) -> Verdict {
    match code {
        // HostUnreachable, HostNotFound, LockTimeout, CursorNotFound, ExceededTimeLimit (50), WriteConcernFailed,
        // NetworkTimeout, ShutdownInProgress, OperationFailed, WriteConflict, ExceededMemoryLimit, PrimarySteppedDown,
        // ReadConcernMajorityNotAvailableYet, ExceededTimeLimit (262), TemporarilyUnavailable, SocketException,
        // NotWritablePrimary, InterruptedAtShutdown, Interrupted, InterruptedDueToReplStateChange,
        // NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary, OutOfDiskSpace, stale shard versions, migrations under way.
        6 | 7 | 24 | 43 | 46 | 50 | 63 | 64 | 84 | 89 | 91 | 96 | 112 | 117 | 132 | 133 | 134
        | 146 | 150 | 175 | 189 | 202 | 237 | 262 | 290 | 314 | 317 | 358 | 365 | 385 | 402
        | 462 | 9001 | 10107 | 11600 | 11601 | 11602 | 13388 | 13435 | 13436 | 14031 => {
            Verdict::Retry
        }
        // UserNotFound, Unauthorized, AuthenticationFailed, IllegalOperation (a standalone), RoleNotFound,
        // CommandNotFound, ShardKeyNotFound, InvalidNamespace, UnknownReplWriteConcern, UnsatisfiableWriteConcern,
        // CommandNotSupportedOnView, CommandNotSupported, NetworkInterfaceExceededTimeLimit is none of these;
        // ReauthenticationRequired, AtlasError, APIVersionError.
        11 | 13 | 18 | 20 | 31 | 59 | 61 | 73 | 79 | 100 | 115 | 166 | 322 | 323 | 334 | 391
        | 8000 => Verdict::Refused,
        // BadValue, FailedToParse, TypeMismatch, Overflow, InvalidLength, InvalidBSON, PathNotViable,
        // ConflictingUpdateOperators, DollarPrefixedFieldName, InvalidIdField, DottedFieldName, ImmutableField,
        // DocumentValidationFailure, CannotIndexParallelArrays, BSONObjectTooLarge, documents too large for a field or
        // an index.
        2 | 9 | 14 | 15 | 16 | 22 | 28 | 40 | 52 | 53 | 57 | 66 | 121 | 171 | 10334 | 16755
        | 16756 | 17261 | 17280 | 17419 | 17420 => Verdict::Poison,
        _ => Verdict::Unknown,
    }
}

/// A document's write.
pub(super) fn of_document(code: i32, message: &str) -> Fault {
    // What follows quotes the document.
    let message = message.split(" dup key").next().unwrap_or_default();
    Fault { verdict: of_code(code), code: Some(code), why: format!("code {code}: {message}") }
}

/// A command as a whole: nothing that fails a command is the fault of one document.
fn of_command(code: Option<i32>, labelled: bool, why: String) -> Fault {
    let verdict = match code.map(of_code) {
        _ if labelled => Verdict::Retry,
        Some(Verdict::Refused) => Verdict::Refused,
        _ => Verdict::Retry,
    };
    Fault { verdict, code, why }
}

/// Our own limit of time.
pub(super) fn timed_out(what: &str, limit: std::time::Duration) -> Fault {
    Fault { verdict: Verdict::Retry, code: None, why: format!("{what} took longer than {limit:?}") }
}

pub(super) fn of_error(error: &Error) -> Fault {
    let labelled = RETRY_LABELS.iter().any(|label| error.contains_label(label));
    match error.kind.as_ref() {
        ErrorKind::Command(it) => {
            of_command(Some(it.code), labelled, format!("code {}: {}", it.code, it.message))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(it)) => {
            of_command(Some(it.code), labelled, format!("code {}: {}", it.code, it.message))
        }
        ErrorKind::Authentication { message, .. } => {
            refused(format!("the server does not let us in: {message}"))
        }
        ErrorKind::InvalidTlsConfig { message, .. }
        | ErrorKind::InvalidArgument { message, .. }
        | ErrorKind::IncompatibleServer { message, .. } => refused(message.clone()),
        ErrorKind::SessionsNotSupported => refused(error.to_string()),
        ErrorKind::ServerSelection { message, .. } if lets_us_not_in(message) => {
            refused("the server does not let us in: authentication failed".into())
        }
        ErrorKind::ServerSelection { message, .. } => {
            of_command(None, labelled, unreachable(message))
        }
        _ => of_command(None, labelled, error.to_string()),
    }
}

fn refused(why: String) -> Fault {
    Fault { verdict: Verdict::Refused, code: None, why }
}

/// After a refused password the driver takes the server for unknown, and tells why only within its words about that.
fn lets_us_not_in(message: &str) -> bool {
    message.contains("AuthenticationFailed")
}

/// The driver's words about an unreachable server run over many lines.
fn unreachable(message: &str) -> String {
    let short: String = message.chars().take(300).collect();
    format!("no server can be reached: {short}")
}

/// What a reply says besides `ok: 1`: which statements failed, and whether a majority has what was written.
pub(super) struct Written {
    pub(super) faults: Vec<(usize, Fault)>,
    pub(super) concern: Option<Fault>,
}

pub(super) fn of_reply(reply: &Document) -> Written {
    let mut faults = Vec::new();
    for error in reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default() {
        let Some(error) = error.as_document() else { continue };
        let index = error.get("index").and_then(number).unwrap_or(i64::MAX);
        let code = error.get("code").and_then(number).unwrap_or_default() as i32;
        faults
            .push((index as usize, of_document(code, error.get_str("errmsg").unwrap_or_default())));
    }
    let labels = reply.get_array("errorLabels").map(Vec::as_slice).unwrap_or_default();
    let labelled =
        labels.iter().filter_map(Bson::as_str).any(|label| RETRY_LABELS.contains(&label));
    let concern = reply.get_document("writeConcernError").ok().map(|error| {
        let code = error.get("code").and_then(number).unwrap_or_default() as i32;
        let message = error.get_str("errmsg").unwrap_or_default();
        of_command(Some(code), labelled, format!("code {code}: {message} (no majority has it yet)"))
    });
    Written { faults, concern }
}

fn number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(it) => Some(i64::from(*it)),
        Bson::Int64(it) => Some(*it),
        Bson::Double(it) => Some(*it as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn each_code_means_one_thing() {
        // code, of one document, of a command, of a command labelled as retryable
        use Verdict::{Poison, Refused, Retry, Unknown};
        for (code, document, command) in [
            (91, Retry, Retry),              // ShutdownInProgress
            (189, Retry, Retry),             // PrimarySteppedDown
            (10107, Retry, Retry),           // NotWritablePrimary
            (11600, Retry, Retry),           // InterruptedAtShutdown
            (64, Retry, Retry),              // WriteConcernFailed: no majority in time
            (112, Retry, Retry),             // WriteConflict
            (262, Retry, Retry),             // ExceededTimeLimit
            (50, Retry, Retry),              // MaxTimeMSExpired
            (14031, Retry, Retry),           // OutOfDiskSpace
            (13, Refused, Refused),          // Unauthorized
            (18, Refused, Refused),          // AuthenticationFailed
            (20, Refused, Refused),          // IllegalOperation
            (61, Refused, Refused),          // ShardKeyNotFound
            (79, Refused, Refused),          // UnknownReplWriteConcern
            (8000, Refused, Refused),        // AtlasError
            (121, Poison, Retry),            // DocumentValidationFailure
            (2, Poison, Retry),              // BadValue
            (10334, Poison, Retry),          // BSONObjectTooLarge
            (17419, Poison, Retry),          // the document would become too large
            (66, Poison, Retry),             // ImmutableField
            (DUPLICATE_KEY, Unknown, Retry), // settled by looking whether the document is there
            (424_242, Unknown, Retry),
        ] {
            assert_eq!(of_document(code, "").verdict, document, "document {code}");
            assert_eq!(
                of_command(Some(code), false, String::new()).verdict,
                command,
                "command {code}"
            );
            assert_eq!(
                of_command(Some(code), true, String::new()).verdict,
                Retry,
                "labelled {code}"
            );
        }
        assert_eq!(of_command(None, false, String::new()).verdict, Retry);
    }

    #[test]
    fn a_reply_tells_which_statements_failed_and_whether_a_majority_has_it() {
        let written = of_reply(&doc! { "ok": 1.0, "n": 3, "nModified": 0 });
        assert!(written.faults.is_empty() && written.concern.is_none());
        let written = of_reply(&doc! {
            "ok": 1, "writeErrors": [{ "index": 2, "code": 121, "errmsg": "Document failed validation" }],
            "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" },
        });
        assert_eq!(written.faults[0].0, 2);
        assert_eq!(written.faults[0].1.verdict, Verdict::Poison);
        assert_eq!(written.concern.unwrap().verdict, Verdict::Retry);
        let stepped_down = doc! {
            "ok": 1, "errorLabels": ["RetryableWriteError"], "writeConcernError": { "code": 424_242, "errmsg": "" },
        };
        assert_eq!(of_reply(&stepped_down).concern.unwrap().verdict, Verdict::Retry);
    }

    #[test]
    fn the_drivers_own_errors_are_judged_by_kind() {
        let invalid: Error = ErrorKind::Shutdown.into();
        assert_eq!(of_error(&invalid).verdict, Verdict::Retry);
        let io = Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(of_error(&io).verdict, Verdict::Retry);
        assert_eq!(of_error(&ErrorKind::SessionsNotSupported.into()).verdict, Verdict::Refused);
        assert!(lets_us_not_in(
            "… Error: Kind: SCRAM failure: …, code_name: \"AuthenticationFailed\", …"
        ));
        assert!(!lets_us_not_in("… Error: Kind: I/O error: Connection refused (os error 111) …"));
    }
}
