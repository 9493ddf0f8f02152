//! Why the store could not do something: one variant for each thing that a caller does differently.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::error_chain::error_chain;
use crate::ids::SubjectId;
use crate::keys::seal::SealError;
use crate::wire::event::BodyError;

/// One variant for each thing a caller does differently.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Say so, and go on: a later write may fit.
    #[error("the disk is full")]
    Full,
    #[error("the database is damaged")]
    Damaged {
        #[source]
        source: Option<Arc<rusqlite::Error>>,
    },
    #[error("another process{} uses the state directory (it holds {path})", pid_text(*pid))]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error(
        "the database has schema {found}, this version knows up to {newest}: use the version that wrote it"
    )]
    SchemaTooNew { found: u32, newest: u32 },
    /// Only when reading beside the daemon, which migrates.
    #[error("the database has schema {found}, this version needs {newest}: start the daemon once")]
    SchemaTooOld { found: u32, newest: u32 },
    #[error(
        "the state directory {path} may be read by others (mode {mode:03o}): `chmod 700` it, or name another"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("templates cannot be sealed or opened")]
    Sealed {
        #[source]
        source: Arc<SealError>,
    },
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The disk or the file system fails.
    #[error("the database cannot be read or written")]
    Storage {
        #[source]
        source: Arc<rusqlite::Error>,
    },
    #[error("there is no subject {id}")]
    UnknownSubject { id: SubjectId },
    #[error("event {seq} cannot be read")]
    Unreadable {
        seq: i64,
        #[source]
        source: Arc<BodyError>,
    },
    #[error("the store has been closed")]
    Closed,
    /// Reading took longer than it may; only of a read.
    #[error(
        "reading took longer than {deadline:?} and was interrupted: ask for a shorter period (`from`, `to`)"
    )]
    TooSlow { deadline: std::time::Duration },
    /// A report met more records than it may read; only of a read.
    #[error(
        "there are more than {records_max} records to look at: ask for a shorter period (`from`, `to`)"
    )]
    TooManyRecords { records_max: u64 },
    #[error(
        "SQLite was built without its table of pages, which an erasure needs: build in the project's folder, for its .cargo/config.toml"
    )]
    NoPageTable,
    /// A statement failed for a reason of its own: a mistake of ours.
    #[error("a statement failed")]
    Sqlite {
        #[source]
        source: Arc<rusqlite::Error>,
    },
}

impl StoreError {
    /// Logs the error with its causes and what failed, and returns `Ok`. A fatal error is returned
    /// instead, to be logged where the daemon ends.
    pub fn log_unless_fatal(self, what_failed: &'static str) -> Result<(), Self> {
        if self.is_fatal() {
            return Err(self);
        }
        tracing::error!(error = error_chain(&self), "{what_failed}");
        Ok(())
    }

    /// Whether going on is of no use: the process should end and leave it to its supervisor and the
    /// operator.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Locked { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::Exposed { .. }
            | Self::Sealed { .. }
            | Self::Io { .. }
            | Self::Storage { .. }
            | Self::NoPageTable
            | Self::Closed => true,
            Self::Full
            | Self::UnknownSubject { .. }
            | Self::Unreadable { .. }
            | Self::TooSlow { .. }
            | Self::TooManyRecords { .. }
            | Self::Sqlite { .. } => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        // The index of the log is a mapped file: that it cannot grow is reported as a failure of input
        // and output.
        if error
            .sqlite_error()
            .is_some_and(|it| it.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
        {
            return Self::Full;
        }
        let source = Arc::new(error);
        match code {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { source: Some(source) }
            }
            Some(ErrorCode::SystemIoFailure | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
                Self::Storage { source }
            }
            _ => Self::Sqlite { source },
        }
    }
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> Self {
        Self::Sealed { source: Arc::new(error) }
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}
