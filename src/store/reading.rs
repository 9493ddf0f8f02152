//! Reading within the daemon: threads with a read-only connection each, beside the writer.
//!
//! Invariants: a read never waits for the writer, nor the writer for a read; what a write has
//! returned is seen by every read that begins afterwards (WAL: a read sees what was committed
//! before it began). A read gets the transaction by shared reference, and every method of `Tx` that
//! writes takes it by `&mut`; besides, the connection is `query_only`. A read that takes longer
//! than its lane's deadline is interrupted and rejected.
//!
//! There are two lanes, so that a report over a long period delays neither the health message nor
//! the relays.
//!
//! A read that is in progress keeps the log from being cut off, so an erasure waits for it: at most
//! for the deadline.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Stopwatch;
use crate::store::error::StoreError;
use crate::store::files;
use crate::store::reader::{Beside, Reader};
use crate::store::tx::{Effects, StoreContext, Tx};

/// How many reads may wait for their thread; a further one waits in its task until there is room.
const QUEUE: usize = 32;

/// SQLite's virtual machine checks the deadline after so many of its instructions: some 0.1 ms.
const INSTRUCTIONS: i32 = 10_000;

/// What a read is for. Each lane has a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// A few rows, or what is counted with an index.
    Short,
    /// As many rows as a period has.
    Report,
}

impl Lane {
    /// Seen by `top` and in core dumps; at most 15 characters.
    fn thread_name(self) -> &'static str {
        match self {
            Self::Short => "store-read",
            Self::Report => "store-report",
        }
    }

    fn deadline(self) -> Duration {
        match self {
            // Not a budget but an end: the slowest of them (counting a long outbox) takes some 0.1
            // s on a Raspberry Pi.
            Self::Short => Duration::from_secs(10),
            // A million records take 3 s on one core of an x86 and four times that on a Raspberry
            // Pi.
            Self::Report => Duration::from_secs(15),
        }
    }
}

/// A read that sends its result to the requester.
type ReadJob = Box<dyn FnOnce(&mut ReadConnection) + Send>;

pub(super) struct ReadConnection {
    beside: Beside,
    /// Open between two reads. A report, which is rare, opens its own: an open connection takes a
    /// quarter of a megabyte.
    kept: Option<Reader>,
    context: Arc<StoreContext>,
    lane: Lane,
    deadline: Duration,
    /// Set when the store is closed, which waits for no report.
    is_closing: Arc<AtomicBool>,
}

impl ReadConnection {
    fn open(
        dir: &Path,
        context: Arc<StoreContext>,
        writer: &Reader,
        lane: Lane,
    ) -> Result<Self, StoreError> {
        let mut connection = Self {
            beside: writer.beside(dir),
            kept: None,
            context,
            lane,
            deadline: lane.deadline(),
            is_closing: Arc::default(),
        };
        if lane == Lane::Short {
            connection.kept = Some(connection.open_reader()?);
        }
        Ok(connection)
    }

    fn open_reader(&self) -> Result<Reader, StoreError> {
        let reader = self.beside.open()?;
        reader.conn.pragma_update(None, "query_only", true)?;
        Ok(reader)
    }

    /// Runs `read` on one state of the database.
    fn run_read<T>(
        &mut self,
        read: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut reader = self.kept.take().map_or_else(|| self.open_reader(), Ok)?;
        let outcome = self.run_read_by(&mut reader, read);
        if self.lane == Lane::Short {
            self.kept = Some(reader);
        }
        outcome
    }

    fn run_read_by<T>(
        &self,
        reader: &mut Reader,
        read: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let watch = Stopwatch::start();
        let deadline = self.deadline;
        let is_closing = Arc::clone(&self.is_closing);
        let must_end = move || watch.elapsed() > deadline || is_closing.load(Ordering::Relaxed);
        reader.conn.progress_handler(INSTRUCTIONS, Some(must_end))?;
        let outcome = self.on_one_state(reader, read);
        reader.conn.progress_handler(0, None::<fn() -> bool>)?;
        match outcome {
            Err(StoreError::Sqlite { source }) if is_interrupted(&source) => {
                let closed = self.is_closing.load(Ordering::Relaxed);
                Err(if closed { StoreError::Closed } else { StoreError::TooSlow { deadline } })
            }
            other => other,
        }
    }

    fn on_one_state<T>(
        &self,
        reader: &Reader,
        read: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Rolls back when dropped, which ends the read.
        let _transaction = reader.conn.unchecked_transaction()?;
        let mut effects = Effects::default();
        read(&Tx::new(reader, &self.context, &mut effects))
    }
}

fn is_interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}

/// The handle to a thread that reads. The thread ends with it.
pub(super) struct ReadThread {
    /// `None` once it was closed.
    requests: Mutex<Option<mpsc::Sender<ReadJob>>>,
    is_closing: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ReadThread {
    /// The writer must have opened the database before. It sets apart the damaged rows that reads
    /// note.
    pub(super) fn start(
        dir: &Path,
        context: Arc<StoreContext>,
        writer: &Reader,
        lane: Lane,
    ) -> Result<Self, StoreError> {
        let mut connection = ReadConnection::open(dir, context, writer, lane)?;
        let is_closing = Arc::clone(&connection.is_closing);
        let (requests, mut inbox) = mpsc::channel::<ReadJob>(QUEUE);
        let thread = std::thread::Builder::new()
            .name(lane.thread_name().into())
            .spawn(move || {
                while let Some(job) = crate::store::writer::wait(inbox.recv()) {
                    job(&mut connection);
                }
            })
            .map_err(files::io_error(dir))?;
        Ok(Self {
            requests: Mutex::new(Some(requests)),
            is_closing,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let requests =
            self.requests.lock().ok().and_then(|it| it.clone()).ok_or(StoreError::Closed)?;
        let (result_to, result) = oneshot::channel();
        let job = move |connection: &mut ReadConnection| {
            // The requester may have given up while this waited.
            if !result_to.is_closed() {
                result_to.send(connection.run_read(read)).ok();
            }
        };
        requests.send(Box::new(job)).await.map_err(|_| StoreError::Closed)?;
        drop(requests);
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Interrupts what takes long, and closes the connection.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        if let Ok(mut requests) = self.requests.lock() {
            *requests = None;
        }
        let thread = self.thread.lock().ok().and_then(|mut it| it.take());
        // The thread itself may hold the last handle of the store, within a closure.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            // A panic of the thread was reported by the hook, and the release build ended with it.
            thread.join().ok();
        }
    }
}

impl Drop for ReadThread {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::store::rows::{StoreOptions, Wake};
    use crate::store::writer;
    use tokio::sync::watch;

    fn count(tx: &Tx<'_>, sql: &str) -> Result<i64, StoreError> {
        Ok(tx.conn.query_row(sql, [], |row| row.get(0))?)
    }

    #[test]
    fn slow_read_is_interrupted_and_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(Vec::new(), Arc::new(SimulatedClock::at(0)));
        let opened = writer::open(dir.path(), options, watch::channel(Wake::default()).0).unwrap();
        let mut connection = ReadConnection::open(
            dir.path(),
            opened.writer.context(),
            opened.writer.reader(),
            Lane::Report,
        )
        .unwrap();
        connection.deadline = Duration::from_millis(1);
        let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n";
        let error = connection.run_read(|tx| count(tx, endless)).unwrap_err();
        assert!(matches!(error, StoreError::TooSlow { .. }) && !error.is_fatal(), "{error}");
        assert!(error.to_string().contains("`from`"), "{error}");
        connection.deadline = Lane::Report.deadline();
        connection.is_closing.store(true, Ordering::Relaxed);
        let closed = connection.run_read(|tx| count(tx, endless));
        assert!(matches!(closed, Err(StoreError::Closed)), "{closed:?}");
        connection.is_closing.store(false, Ordering::Relaxed);
        assert_eq!(connection.run_read(|tx| count(tx, "select count(*) from event")).unwrap(), 0);
        let written = connection.run_read(|tx| Ok(tx.conn.execute("delete from event", [])?));
        assert!(written.is_err(), "{written:?}");
    }
}
