//! The store: events, what is owed to whom, who is enrolled, and answers given, in one SQLite database.
//!
//! Invariants: one thread, `store`, owns the only writing connection, and one process the state directory. What
//! `write` has answered is on the disk (WAL, `synchronous=FULL`). An event and its outbox rows are one transaction; a
//! row leaves the outbox only when acknowledged, or stays buried with its reason. `seq` has no gaps. Nothing that is
//! owed is ever deleted. A damaged database is set aside, not deleted. Files are for us alone (0700/0600).
//!
//! The queue to the thread has a bound; who finds it full waits: `write` its thread, `write_async` its task.
//!
//! Not here: what a payload looks like (`event`, `command`), delivery (`outbox` and the sinks).
//!
//! Budget: a group of up to 64 writes costs one commit, that is one fsync; a Raspberry Pi's card does 20 to 100 a
//! second.

mod attendance;
pub mod backup;
mod before;
mod enrolled;
mod erasure;
mod files;
mod fleet;
mod observation;
mod people;
mod photographs;
mod read;
mod references;
mod retention;
mod rotate;
mod schema;
mod signed;
mod standing;
mod tx;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::clock::Clock;
use crate::histogram::Histogram;
use crate::recognise::face::{ModelDigest, Name, SubjectId, Template};
use crate::record::event::{BodyError, StoredEvent};
use crate::record::seal::SealError;

use tx::Tx as Transaction;
use writer::{Job, Message, Task, wait};

pub use attendance::StoredVenue;
pub use enrolled::Enrolled;
pub use erasure::{Left, StoredErasure};
pub use files::DATABASE;
pub use fleet::{Account, Debt, Known, Outcome, subject_of};
pub use observation::Observation;
pub use people::{Erased, Erasure, NewReference};
pub use photographs::PhotographDigest;
pub use read::{AttendanceQuery, Reader};
pub use references::Migration;
pub use retention::Prunable;
pub use rotate::Rotated;
pub use signed::{Seen, Token};
pub use standing::{Held, SinkStanding, Standing, Unwatched};
pub use tx::Tx;

/// Where events are owed. The name stands in the database: it is never given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SinkName(&'static str);

impl SinkName {
    pub const MQTT: Self = Self("mqtt");
    pub const MONGO: Self = Self("mongo");
    /// The gallery that the doors of a site share, wherever it is: owed subjects, and no events.
    pub const GALLERY: Self = Self("gallery");

    pub fn as_str(self) -> &'static str {
        self.0
    }
}

pub struct StoreOptions {
    /// To whom every event is owed. Replies are owed to `MQTT`, if it is among them.
    pub sinks: Vec<SinkName>,
    pub clock: Arc<dyn Clock>,
    /// This device's name, which stands beside what it changed.
    pub device: String,
    /// Whether the site's other doors are to know who is enrolled here.
    pub shared: bool,
    /// `$CREDENTIALS_DIRECTORY`, where systemd passes one.
    pub credentials_dir: Option<PathBuf>,
    /// Kept back for when the disk is full.
    pub reserve_bytes: u64,
    /// For tests: the disk is full when the database has so many pages, those of the reserve among them.
    pub page_limit: Option<u32>,
}

impl StoreOptions {
    pub fn new(sinks: Vec<SinkName>, clock: Arc<dyn Clock>) -> Self {
        Self {
            sinks,
            clock,
            device: "device".into(),
            shared: false,
            credentials_dir: None,
            // About two thousand attendances.
            reserve_bytes: 1 << 20,
            page_limit: None,
        }
    }
}

/// A store that was opened, and what there is to tell about it.
pub struct Opened {
    pub store: Store,
    /// Where the database was put that was found damaged. The one in use began empty.
    pub set_aside: Option<PathBuf>,
    /// Whether the key for templates was made just now: the operator should make a copy of it.
    pub key_created: bool,
    /// Where the key for templates is.
    pub key_path: PathBuf,
}

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
    /// A statement failed for a reason of its own: a mistake of ours.
    #[error("a statement failed")]
    Sqlite {
        #[source]
        source: Arc<rusqlite::Error>,
    },
}

impl StoreError {
    /// Whether going on is of no use: the process should end and leave it to its supervisor and the operator.
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
            | Self::Closed => true,
            Self::Full
            | Self::UnknownSubject { .. }
            | Self::Unreadable { .. }
            | Self::Sqlite { .. } => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        // The index of the log is a mapped file: that it cannot grow is said as a failure of input and output.
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

/// A row of the outbox: an event, or a message with its topic.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub id: i64,
    pub event: Option<StoredEvent>,
    /// Of a correction: the event that it corrects as it is now, unless it is gone. There may be other corrections of it,
    /// and they need not arrive in their order.
    pub corrected: Option<Box<StoredEvent>>,
    /// The topic below `rollcall/{site}/{device}/`, and the payload.
    pub reply: Option<(String, Vec<u8>)>,
    pub created_ms: i64,
    /// How often it failed while its neighbours were delivered, or for a reason of its own.
    pub attempts: u32,
}

/// What a sink is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxDepth {
    pub rows: u64,
    pub oldest_created_ms: Option<i64>,
    pub buried: u64,
}

/// A row that its sink will never take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuriedRow {
    pub id: i64,
    pub sink: String,
    pub event_seq: Option<i64>,
    pub reason: String,
}

/// The answer that a request got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    pub verb: String,
    pub topic: String,
    pub reply: String,
}

/// One who is enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub id: SubjectId,
    pub name: Name,
    pub enrolled_ms: i64,
    pub references: u32,
    /// The embedder of the newest reference.
    pub embedder: Option<ModelDigest>,
}

/// An enrolled template.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    pub id: Uuid,
    pub subject_id: SubjectId,
    pub template: Template,
    pub quality: f32,
}

/// What became of all references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceCount {
    pub opened: u64,
    /// Those of other embedders, which were left alone.
    pub of_other_embedders: u64,
    /// Those that did not open: altered, or moved to another subject.
    pub unreadable: Vec<Uuid>,
}

/// Told to the relays after each commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// Counts the commits that added to the outbox.
    pub committed: u64,
    /// Counts the calls of `deliver_now`.
    pub asked: u64,
    /// Counts how often the database was cleaned after an erasure.
    pub scrubbed: u64,
}

/// Vital signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreVitals {
    pub database_bytes: u64,
    pub free_bytes: Option<u64>,
    /// `false`: the disk was full, or nearly so at the start, and what is kept back for that is in use.
    pub reserve_held: bool,
    /// Writes waiting for the thread.
    pub queue: usize,
}

/// How many writes may wait for the thread.
const QUEUE: usize = 256;

/// The handle to the thread. The thread ends, after all that was asked of it, with the last handle or by `close`.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    /// `None` only while it is dropped.
    messages: Option<mpsc::Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wake: watch::Sender<Wake>,
    reserve_held: Arc<std::sync::atomic::AtomicBool>,
    commits: Arc<Histogram>,
    rewriting: Arc<std::sync::atomic::AtomicBool>,
    dir: PathBuf,
}

impl Store {
    /// Opens the state directory, makes it if there is none, and starts the thread.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Opened, StoreError> {
        let (wake, _) = watch::channel(Wake::default());
        let (messages, inbox) = mpsc::channel(QUEUE);
        let opened = writer::open(dir, options, wake.clone())?;
        let (reserve_held, commits) = (opened.writer.reserve_flag(), opened.writer.commits());
        let rewriting = opened.writer.rewriting_flag();
        let writer = opened.writer;
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(inbox))
            .map_err(files::io_error(dir))?;
        let handle = Handle {
            messages: Some(messages),
            thread: Mutex::new(Some(thread)),
            wake,
            reserve_held,
            commits,
            rewriting,
            dir: dir.to_owned(),
        };
        Ok(Opened {
            store: Self { handle: Arc::new(handle) },
            set_aside: opened.set_aside,
            key_created: opened.key_created,
            key_path: opened.key_path,
        })
    }

    /// Reads beside a daemon that runs, without its lock. `credentials_dir` as in `StoreOptions`.
    pub fn open_read_only(
        dir: &Path,
        credentials_dir: Option<&Path>,
    ) -> Result<Reader, StoreError> {
        Reader::open(dir, credentials_dir)
    }

    /// Carries out `f` in the thread and answers once it is on the disk. An error of `f` undoes what `f` did, and only
    /// that. `f` may be called again (after a full disk, say): it does all it does through `Tx`.
    ///
    /// Blocks the calling thread; a task uses `write_async`. Never to be called within another `f`, which would wait
    /// for itself.
    pub fn write<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        wait(self.write_async(f))
    }

    /// `write` for tasks: never blocks the runtime. The queue is tokio's bounded channel, whose `send` gives the task
    /// back to the runtime until there is room, and the answer comes over a oneshot. If the future is dropped after
    /// `f` has been queued, `f` is carried out all the same.
    pub async fn write_async<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(Task::new(f, answer));
        self.messages().send(Message::Job(job)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Wakes a relay when there may be something to deliver.
    pub fn wakes(&self) -> watch::Receiver<Wake> {
        self.handle.wake.subscribe()
    }

    /// Ends the relays' waiting after failures (`sync`, the link is back).
    pub fn deliver_now(&self) {
        self.handle.wake.send_modify(|it| it.asked += 1);
    }

    pub fn vitals(&self) -> StoreVitals {
        let messages = self.messages();
        StoreVitals {
            database_bytes: files::database_bytes(&self.handle.dir),
            free_bytes: files::free_bytes(&self.handle.dir),
            reserve_held: self.is_reserve_held(),
            queue: messages.max_capacity() - messages.capacity(),
        }
    }

    /// How long the disk took for each group of writes.
    pub fn commits(&self) -> &Histogram {
        &self.handle.commits
    }

    /// Whether what is kept back for a full disk is still kept back.
    pub fn is_reserve_held(&self) -> bool {
        self.handle.reserve_held.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether the whole database is being written anew after an erasure: other writes wait for minutes then.
    pub fn is_rewriting(&self) -> bool {
        self.handle.rewriting.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Carries out what was asked before, writes the log back into the database, and ends the thread. What is asked
    /// later, by this or another handle, is answered with `Closed`.
    pub fn close(&self) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let closed = wait(async {
            self.messages().send(Message::Close(answer)).await.map_err(|_| StoreError::Closed)?;
            answered.await.map_err(|_| StoreError::Closed)?
        });
        self.handle.join();
        closed
    }

    fn messages(&self) -> &mpsc::Sender<Message> {
        self.handle.messages.as_ref().expect("taken only when the last handle is dropped")
    }
}

impl Handle {
    fn join(&self) {
        let thread = self.thread.lock().ok().and_then(|mut it| it.take());
        // The thread itself may hold the last handle, within a closure.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            // A panic of the thread was reported by the hook, and the release build ended with it.
            thread.join().ok();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.messages = None;
        self.join();
    }
}
