//! What an error of the server or the driver means for a write.
//!
//! `Retry`: the server is ill or unreachable, and will recover. `Refused`: somebody has to correct
//! something (a password, a role, the kind of server), and until then everything waits. `Poison`:
//! this document will never be accepted. An error that is not in the table is `Retry` for a command
//! and `Unknown` for a single document, which is tried a number of times while the others go on,
//! and then dead-lettered.

use mongodb::bson::{Bson, Document};
use mongodb::error::{Error, ErrorKind, WriteFailure};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteVerdict {
    Retry,
    Refused,
    Poison,
    Unknown,
}

/// An error with its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MongoFault {
    pub(super) verdict: WriteVerdict,
    pub(super) code: Option<i32>,
    pub(super) why: String,
}

impl MongoFault {
    /// Whether only this document fails and others may be accepted.
    pub(super) fn is_of_document(&self) -> bool {
        matches!(self.verdict, WriteVerdict::Poison | WriteVerdict::Unknown)
    }

    /// Of a command: whether the cause is the server's state or the way to it, not the command.
    pub(super) fn is_transient(&self) -> bool {
        // Without a code nobody replied or access was refused.
        self.code.is_none_or(|code| {
            let is_access =
                matches!(code, USER_NOT_FOUND | AUTHENTICATION_FAILED | REAUTHENTICATION_REQUIRED);
            is_access || verdict_of(code) == WriteVerdict::Retry
        })
    }

    /// Whether the TLS handshake failed at a certificate. The driver has the reason only in the text
    /// of its error.
    pub(super) fn is_certificate_failure(&self) -> bool {
        self.code.is_none() && self.why.contains("certificate")
    }

    /// Whether the server gave up at the time limit that it was given.
    pub(super) fn is_time_limit(&self) -> bool {
        self.code == Some(MAX_TIME_EXPIRED)
    }
}

const USER_NOT_FOUND: i32 = 11;
const AUTHENTICATION_FAILED: i32 = 18;
const MAX_TIME_EXPIRED: i32 = 50;
const REAUTHENTICATION_REQUIRED: i32 = 391;
pub(super) const DUPLICATE_KEY: i32 = 11000;

/// Labels of server or driver that allow the same write to be sent again.
const RETRY_LABELS: [&str; 4] =
    ["RetryableWriteError", "TransientTransactionError", "SystemOverloadedError", "RetryableError"];

/// What the server's error codes mean for the write of one document, by the names of
/// `src/mongo/base/error_codes.yml` of the server; the last five have no name there.
#[rustfmt::skip]
const CODES: &[(i32, &str, WriteVerdict)] = &{
    use WriteVerdict::{Poison, Refused, Retry};
    [
        (6, "HostUnreachable", Retry),
        (7, "HostNotFound", Retry),
        (24, "LockTimeout", Retry),
        (43, "CursorNotFound", Retry),
        (46, "LockBusy", Retry),
        (MAX_TIME_EXPIRED, "MaxTimeMSExpired", Retry),
        (63, "StaleShardVersion", Retry),
        (64, "WriteConcernTimeout", Retry),
        (84, "DuplicateKeyValue", Retry),
        (89, "NetworkTimeout", Retry),
        (91, "ShutdownInProgress", Retry),
        (96, "OperationFailed", Retry),
        (112, "WriteConflict", Retry),
        (117, "ConflictingOperationInProgress", Retry),
        (132, "ConfigServersInconsistent", Retry),
        (133, "FailedToSatisfyReadPreference", Retry),
        (134, "ReadConcernMajorityNotAvailableYet", Retry),
        (146, "ExceededMemoryLimit", Retry),
        (150, "StaleEpoch", Retry),
        (175, "QueryPlanKilled", Retry),
        (189, "PrimarySteppedDown", Retry),
        (202, "NetworkInterfaceExceededTimeLimit", Retry),
        (237, "CursorKilled", Retry),
        (262, "ExceededTimeLimit", Retry),
        (290, "TransactionExceededLifetimeLimitSeconds", Retry),
        (314, "ObjectIsBusy", Retry),
        (317, "ConnectionPoolExpired", Retry),
        (358, "InternalTransactionNotSupported", Retry),
        (365, "TemporarilyUnavailable", Retry),
        (385, "ConflictingServerlessOperation", Retry),
        (402, "ResourceExhausted", Retry),
        (462, "IngressRequestRateLimitExceeded", Retry),
        (9001, "SocketException", Retry),
        (10107, "NotWritablePrimary", Retry),
        (11600, "InterruptedAtShutdown", Retry),
        (11601, "Interrupted", Retry),
        (11602, "InterruptedDueToReplStateChange", Retry),
        (13388, "StaleConfig", Retry),
        (13435, "NotPrimaryNoSecondaryOk", Retry),
        (13436, "NotPrimaryOrSecondary", Retry),
        (14031, "OutOfDiskSpace", Retry),
        (USER_NOT_FOUND, "UserNotFound", Refused),
        (13, "Unauthorized", Refused),
        (AUTHENTICATION_FAILED, "AuthenticationFailed", Refused),
        (20, "IllegalOperation", Refused),
        (31, "RoleNotFound", Refused),
        (59, "CommandNotFound", Refused),
        (61, "ShardKeyNotFound", Refused),
        (73, "InvalidNamespace", Refused),
        (79, "UnknownReplWriteConcern", Refused),
        (100, "UnsatisfiableWriteConcern", Refused),
        (115, "CommandNotSupported", Refused),
        (166, "CommandNotSupportedOnView", Refused),
        (322, "APIVersionError", Refused),
        (323, "APIStrictError", Refused),
        (334, "MechanismUnavailable", Refused),
        (REAUTHENTICATION_REQUIRED, "ReauthenticationRequired", Refused),
        (8000, "AtlasError", Refused),
        (2, "BadValue", Poison),
        (9, "FailedToParse", Poison),
        (14, "TypeMismatch", Poison),
        (15, "Overflow", Poison),
        (16, "InvalidLength", Poison),
        (22, "InvalidBSON", Poison),
        (28, "PathNotViable", Poison),
        (40, "ConflictingUpdateOperators", Poison),
        (52, "DollarPrefixedFieldName", Poison),
        (53, "InvalidIdField", Poison),
        (57, "DottedFieldName", Poison),
        (66, "ImmutableField", Poison),
        (121, "DocumentValidationFailure", Poison),
        (171, "CannotIndexParallelArrays", Poison),
        (10334, "BSONObjectTooLarge", Poison),
        (16755, "geo keys", Poison),
        (16756, "geo keys", Poison),
        (17261, "geo shapes", Poison),
        (17280, "KeyTooLong", Poison),
        (17419, "document too large after update", Poison),
        (17420, "document too large to upsert", Poison),
    ]
};

fn verdict_of(code: i32) -> WriteVerdict {
    CODES.iter().find(|it| it.0 == code).map_or(WriteVerdict::Unknown, |it| it.2)
}

/// Describes an error with the name of its code.
fn describe(code: i32, message: &str) -> String {
    match CODES.iter().find(|it| it.0 == code) {
        Some((_, name, _)) => format!("code {code} ({name}): {message}"),
        None => format!("code {code}: {message}"),
    }
}

/// Judges the write of one document.
pub(super) fn document_fault(code: i32, message: &str) -> MongoFault {
    // The rest of the message quotes the document.
    let message = message.split(" dup key").next().unwrap_or_default();
    MongoFault { verdict: verdict_of(code), code: Some(code), why: describe(code, message) }
}

/// Judges a whole command: no single document makes a command fail.
fn command_fault(code: Option<i32>, is_retryable: bool, why: String) -> MongoFault {
    let verdict = match code.map(verdict_of) {
        _ if is_retryable => WriteVerdict::Retry,
        Some(WriteVerdict::Refused) => WriteVerdict::Refused,
        _ => WriteVerdict::Retry,
    };
    MongoFault { verdict, code, why }
}

/// The fault of a call that reached our own time limit.
pub(super) fn timed_out(what: &str, limit: std::time::Duration) -> MongoFault {
    MongoFault {
        verdict: WriteVerdict::Retry,
        code: None,
        why: format!("{what} took longer than {limit:?}"),
    }
}

pub(super) fn driver_fault(error: &Error) -> MongoFault {
    let is_retryable = RETRY_LABELS.iter().any(|label| error.contains_label(label));
    match error.kind.as_ref() {
        ErrorKind::Command(it) => {
            command_fault(Some(it.code), is_retryable, describe(it.code, &it.message))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(it)) => {
            command_fault(Some(it.code), is_retryable, describe(it.code, &it.message))
        }
        ErrorKind::Authentication { message, .. } => {
            refused(format!("the server refuses access: {message}"))
        }
        ErrorKind::InvalidTlsConfig { message, .. }
        | ErrorKind::InvalidArgument { message, .. }
        | ErrorKind::IncompatibleServer { message, .. } => refused(message.clone()),
        ErrorKind::SessionsNotSupported => refused(error.to_string()),
        ErrorKind::ServerSelection { message, .. } if is_authentication_failure(message) => {
            refused("the server refuses access: authentication failed".into())
        }
        ErrorKind::ServerSelection { message, .. } => {
            command_fault(None, is_retryable, describe_unreachable(message))
        }
        _ => command_fault(None, is_retryable, error.to_string()),
    }
}

fn refused(why: String) -> MongoFault {
    MongoFault { verdict: WriteVerdict::Refused, code: None, why }
}

/// After a refused password the driver treats the server as unknown, and has the reason only in the
/// text of that error.
fn is_authentication_failure(message: &str) -> bool {
    message.contains("AuthenticationFailed")
}

/// Shortens the driver's description of an unreachable server, which has many lines.
fn describe_unreachable(message: &str) -> String {
    let short: String = message.chars().take(300).collect();
    format!("no server can be reached: {short}")
}

/// The faults in a reply with `ok: 1`.
pub(super) struct WriteReply {
    /// Of single statements, by index.
    pub(super) faults: Vec<(usize, MongoFault)>,
    /// Why no majority has what was written.
    pub(super) concern: Option<MongoFault>,
}

pub(super) fn read_reply(reply: &Document) -> WriteReply {
    let mut faults = Vec::new();
    for error in reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default() {
        let Some(error) = error.as_document() else { continue };
        let index = error.get("index").and_then(read_number).unwrap_or(i64::MAX);
        let code = error.get("code").and_then(read_number).unwrap_or_default() as i32;
        faults.push((
            index as usize,
            document_fault(code, error.get_str("errmsg").unwrap_or_default()),
        ));
    }
    let labels = reply.get_array("errorLabels").map(Vec::as_slice).unwrap_or_default();
    let is_retryable =
        labels.iter().filter_map(Bson::as_str).any(|label| RETRY_LABELS.contains(&label));
    let concern = reply.get_document("writeConcernError").ok().map(|error| {
        let code = error.get("code").and_then(read_number).unwrap_or_default() as i32;
        let message = error.get_str("errmsg").unwrap_or_default();
        command_fault(
            Some(code),
            is_retryable,
            describe(code, message) + " (no majority has it yet)",
        )
    });
    WriteReply { faults, concern }
}

fn read_number(value: &Bson) -> Option<i64> {
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
    fn each_code_has_one_verdict() {
        // code, of one document, of a command, of a command labelled as retryable
        use WriteVerdict::{Poison, Refused, Retry, Unknown};
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
            (DUPLICATE_KEY, Unknown, Retry), // settled by reading whether the document is there
            (424_242, Unknown, Retry),
        ] {
            assert_eq!(document_fault(code, "").verdict, document, "document {code}");
            assert_eq!(
                command_fault(Some(code), false, String::new()).verdict,
                command,
                "command {code}"
            );
            assert_eq!(
                command_fault(Some(code), true, String::new()).verdict,
                Retry,
                "labelled {code}"
            );
        }
        assert_eq!(command_fault(None, false, String::new()).verdict, Retry);
    }

    #[test]
    fn reply_lists_failed_statements_and_missing_majority() {
        let written = read_reply(&doc! { "ok": 1.0, "n": 3, "nModified": 0 });
        assert!(written.faults.is_empty() && written.concern.is_none());
        let written = read_reply(&doc! {
            "ok": 1, "writeErrors": [{ "index": 2, "code": 121, "errmsg": "Document failed validation" }],
            "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" },
        });
        assert_eq!(written.faults[0].0, 2);
        assert_eq!(written.faults[0].1.verdict, WriteVerdict::Poison);
        assert_eq!(written.concern.unwrap().verdict, WriteVerdict::Retry);
        let stepped_down = doc! {
            "ok": 1, "errorLabels": ["RetryableWriteError"], "writeConcernError": { "code": 424_242, "errmsg": "" },
        };
        assert_eq!(read_reply(&stepped_down).concern.unwrap().verdict, WriteVerdict::Retry);
    }

    #[test]
    fn driver_errors_are_judged_by_kind() {
        let invalid: Error = ErrorKind::Shutdown.into();
        assert_eq!(driver_fault(&invalid).verdict, WriteVerdict::Retry);
        let io = Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(driver_fault(&io).verdict, WriteVerdict::Retry);
        assert_eq!(
            driver_fault(&ErrorKind::SessionsNotSupported.into()).verdict,
            WriteVerdict::Refused
        );
        let away = |why: &str| command_fault(None, false, why.into());
        assert!(away("… invalid peer certificate: UnknownIssuer …").is_certificate_failure());
        assert!(!away("… Connection refused (os error 111) …").is_certificate_failure());
        assert!(is_authentication_failure(
            "… Error: Kind: SCRAM failure: …, code_name: \"AuthenticationFailed\", …"
        ));
        assert!(!is_authentication_failure(
            "… Error: Kind: I/O error: Connection refused (os error 111) …"
        ));
    }
}
