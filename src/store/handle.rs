//! The handle to the store's thread: cheap to clone, asynchronous or blocking.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use crate::histogram::Histogram;
use crate::store::error::StoreError;
use crate::store::files;
use crate::store::reader::Reader;
use crate::store::reading::{Lane, ReadThread};
use crate::store::rows::UnreadableRow;
use crate::store::rows::{StoreOptions, StoreVitals, Wake};
use crate::store::tx::Tx as Transaction;
use crate::store::writer;
use crate::store::writer::{Closing, PendingWrite, WriteJob, WriterMessage, wait};

/// A store that was opened, and what is to be reported about it.
pub struct Opened {
    pub store: Store,
    /// Where a damaged database was moved. The one in use began empty.
    pub moved_aside: Option<PathBuf>,
    /// Rows that cannot be read and were set apart at this start.
    pub unreadable: Vec<UnreadableRow>,
    /// Whether the key for templates was made just now: the operator should make a copy of it.
    pub key_created: bool,
    /// Where the key for templates is.
    pub key_path: PathBuf,
}

/// How many writes may wait for the thread.
const QUEUE: usize = 256;

/// The handle to the thread. The thread ends, after all that was asked of it, with the last handle
/// or by `close`.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    // Closed before the writer, whose connection must be the last: that one writes the log back.
    short_reads: ReadThread,
    reports: ReadThread,
    /// `None` only while it is dropped.
    messages: Option<mpsc::Sender<WriterMessage>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wake: watch::Sender<Wake>,
    reserve_held: Arc<std::sync::atomic::AtomicBool>,
    commits: Arc<Histogram>,
    dir: PathBuf,
}

impl Store {
    /// Opens the state directory, makes it if there is none, and starts the thread.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Opened, StoreError> {
        let (wake, _) = watch::channel(Wake::default());
        let (messages, inbox) = mpsc::channel(QUEUE);
        let opened = writer::open(dir, options, wake.clone())?;
        let reserve_held = opened.writer.reserve_flag();
        let commits = opened.writer.commits();
        let writer = opened.writer;
        let reader = |lane| ReadThread::start(dir, writer.context(), writer.reader(), lane);
        let short_reads = reader(Lane::Short)?;
        let reports = reader(Lane::Report)?;
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(inbox))
            .map_err(files::io_error(dir))?;
        let handle = Handle {
            short_reads,
            reports,
            messages: Some(messages),
            thread: Mutex::new(Some(thread)),
            wake,
            reserve_held,
            commits,
            dir: dir.to_owned(),
        };
        Ok(Opened {
            store: Self { handle: Arc::new(handle) },
            moved_aside: opened.moved_aside,
            unreadable: opened.unreadable,
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

    /// The same, as of this moment.
    pub fn open_record(dir: &Path, credentials_dir: Option<&Path>) -> Result<Reader, StoreError> {
        let reader = Reader::open(dir, credentials_dir)?;
        reader.hold_moment()?;
        Ok(reader)
    }

    /// The same, as of this moment, with the key for templates.
    pub fn open_moment(dir: &Path, credentials_dir: Option<&Path>) -> Result<Reader, StoreError> {
        let reader = Reader::open(dir, credentials_dir)?;
        reader.key()?;
        reader.hold_moment()?;
        Ok(reader)
    }

    /// Runs `f` in the thread and returns once it is on the disk. An error of `f` undoes
    /// what `f` did, and only that. `f` may be called again (after a full disk, say): it does all
    /// it does through `Tx`.
    ///
    /// Blocks the calling thread; a task uses `write_async`. Never to be called within another `f`,
    /// which would wait for itself.
    pub fn write<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        wait(self.write_async(f))
    }

    /// `write` for tasks: never blocks the runtime. The queue is tokio's bounded channel, whose
    /// `send` gives the task back to the runtime until there is room, and the result comes over a
    /// oneshot. If the future is dropped after `f` has been queued, `f` is run all the same.
    pub async fn write_async<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (result_to, result) = oneshot::channel();
        let job: Box<dyn WriteJob> = Box::new(PendingWrite::new(f, result_to));
        self.messages().send(WriterMessage::Job(job)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `f`, which only reads, beside the writer: it sees all writes that returned before.
    /// For a few rows; a read of a whole period is a `report`.
    pub async fn read<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.handle.short_reads.read(f).await
    }

    /// `read`, for a whole period: in a thread of its own, one after the other.
    pub async fn report<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.handle.reports.read(f).await
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

    /// Runs what was requested before, overwrites what an erasure left, writes the log back into the
    /// database, and ends the thread. Later requests, by this or another handle, fail with `Closed`.
    pub fn close(&self) -> Result<(), StoreError> {
        self.end(true)
    }

    /// The same, but leaves what takes long to the next start: a stop has to be quick.
    pub fn stop(&self) -> Result<(), StoreError> {
        self.end(false)
    }

    fn end(&self, finishes_scrub: bool) -> Result<(), StoreError> {
        self.handle.close_reads();
        let (result_to, result) = oneshot::channel();
        let closed = wait(async {
            self.messages()
                .send(WriterMessage::Close(Closing { finishes_scrub, result_to }))
                .await
                .map_err(|_| StoreError::Closed)?;
            result.await.map_err(|_| StoreError::Closed)?
        });
        self.handle.join();
        closed
    }

    fn messages(&self) -> &mpsc::Sender<WriterMessage> {
        self.handle.messages.as_ref().expect("taken only when the last handle is dropped")
    }
}

impl Handle {
    fn close_reads(&self) {
        self.short_reads.close();
        self.reports.close();
    }

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
        self.close_reads();
        self.messages = None;
        self.join();
    }
}
