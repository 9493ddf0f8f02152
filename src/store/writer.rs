//! The thread that owns the writing connection.
//!
//! It takes the writes that wait, up to `GROUP`, and runs each in a savepoint of one transaction.
//! After the commit it reports to those who asked.
//!
//! Invariants:
//! - A write is reported as done only after its commit is on the disk.
//! - An error of a write undoes that write, not its neighbours. After a rollback a write runs again,
//!   so it does all it does through `Tx`.
//! - The reserve is given up for the first write that does not fit, and restored when the disk has
//!   room. Until then the write-ahead log (WAL, "the log" below) is kept short.
//! - After an erasure the unused parts of all pages are overwritten, some pages between other writes,
//!   and the log is cut off; the mark in `meta` goes last.
//!
//! Not here: what a write does (`tx`), how the database is opened (`open`), reads (`reading`).

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake as WakeThread, Waker};
use std::thread::Thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Stopwatch;
use crate::error_chain::error_chain;
use crate::histogram::Histogram;
use crate::store::check;
use crate::store::error::StoreError;
use crate::store::files;
use crate::store::files::Reserve;
use crate::store::open::{Database, open_settled};
use crate::store::reader::Reader;
use crate::store::rows::UnreadableRow;
use crate::store::rows::{StoreOptions, Wake};
use crate::store::schema::PAGE_BYTES;
use crate::store::scrub::{Pass, PassState};
use crate::store::tx::{Effects, StoreContext, Tx};
use crate::store::{migration_backup, salvage, scrub};

/// How many writes share a commit. More would not be faster (the fsync is spread already) but let
/// the first wait.
const GROUP: usize = 64;

/// How often the thread checks the reserve and a log that is still to be written back.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// How often it checks whether a disk that ran full has room again.
const ROOM_CHECK: Duration = Duration::from_secs(10);

/// Pages of the log after which it is written back, and bytes to which it is cut off then, while the
/// disk is full: the room is for the database. Otherwise SQLite's default applies, and no limit.
const FULL_LOG: (u32, i64) = (32, 128 << 10);
const USUAL_LOG: (u32, i64) = (1000, -1);

const FULL: &str = "the disk is full: writing into the reserve, make room";

pub(super) enum WriterMessage {
    Job(Box<dyn WriteJob>),
    Close(Closing),
}

pub(super) struct Closing {
    /// Whether what an erasure left is overwritten before, however long that takes.
    pub(super) finishes_scrub: bool,
    pub(super) result_to: oneshot::Sender<Result<(), StoreError>>,
}

/// A write, its outcome until the commit, and its requester.
pub(super) trait WriteJob: Send {
    /// Runs it; may be called again after a rollback.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    /// Reports the outcome of the last run, or the error of the commit, which undid it.
    fn report(self: Box<Self>, committed: Result<(), StoreError>);
}

pub(super) struct PendingWrite<T, F> {
    work: F,
    outcome: Option<Result<T, StoreError>>,
    result_to: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> PendingWrite<T, F> {
    pub(super) fn new(work: F, result_to: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { work, outcome: None, result_to }
    }
}

impl<T, F> WriteJob for PendingWrite<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let outcome = (self.work)(tx);
        let reported = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.outcome = Some(outcome);
        reported
    }

    fn report(self: Box<Self>, committed: Result<(), StoreError>) {
        let outcome = match (committed, self.outcome) {
            (_, Some(Err(error))) | (Err(error), _) => Err(error),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // The requester may have gone.
        self.result_to.send(outcome).ok();
    }
}

pub(super) struct OpenedWriter {
    pub(super) writer: Writer,
    pub(super) moved_aside: Option<PathBuf>,
    pub(super) unreadable: Vec<UnreadableRow>,
    pub(super) key_created: bool,
    pub(super) key_path: PathBuf,
}

/// What is left to be done after an erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scrub {
    Done,
    /// Pages, between other writes.
    Pages(Pass),
    /// The log alone, when the next housekeeping comes: a reader needs it.
    Log,
    /// All of it, after so many rounds of housekeeping.
    Again {
        rounds: u32,
    },
}

/// Rounds of housekeeping, hence minutes, after a failure.
const FAILED_ROUNDS: u32 = 60;
/// The same while the disk is full, or a reader holds the log.
const HELD_ROUNDS: u32 = 1;

/// What an erasure may take of the scrub before it is reported as done: all of a small database.
const SCRUB_AT_ONCE: Duration = Duration::from_millis(100);

/// Writes that share a commit, and a request to close that came behind them.
#[derive(Default)]
struct Batch {
    jobs: Vec<Box<dyn WriteJob>>,
    closing: Option<Closing>,
}

impl Batch {
    /// Takes what waits, up to `GROUP` writes or a request to close.
    fn collect(first: WriterMessage, inbox: &mut mpsc::Receiver<WriterMessage>) -> Self {
        let mut batch = Self::default();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                WriterMessage::Job(job) => batch.jobs.push(job),
                WriterMessage::Close(closing) => batch.closing = Some(closing),
            }
            let has_room = batch.jobs.len() < GROUP && batch.closing.is_none();
            next = if has_room { inbox.try_recv().ok() } else { None };
        }
        batch
    }
}

pub(super) struct Writer {
    /// The writing connection with its queries: a `Reader` is what every connection has.
    reader: Reader,
    dir: PathBuf,
    context: Arc<StoreContext>,
    wake: watch::Sender<Wake>,
    reserve: Reserve,
    reserve_held: Arc<AtomicBool>,
    commits: Arc<Histogram>,
    page_limit: Option<u32>,
    reserve_pages: u32,
    /// Whether what was erased may still stand in the database file or its log.
    scrub: Scrub,
    _lock: File,
}

/// Takes the lock, finishes an interrupted salvage, opens and checks the database (out of the
/// reserve if the disk is full), and goes on with an erasure that was not finished.
pub(super) fn open(
    dir: &Path,
    options: StoreOptions,
    wake: watch::Sender<Wake>,
) -> Result<OpenedWriter, StoreError> {
    files::prepare_dir(dir)?;
    files::check_kinds(dir)?;
    let lock = files::lock(dir)?;
    salvage::finish(dir)?;
    let mut reserve = Reserve::new(dir, options.reserve_bytes);
    let mut moved_aside = None;
    let (database, key, key_created) = match open_settled(dir, &options, &mut moved_aside) {
        Err(StoreError::Full) if reserve.release() => {
            tracing::error!("{FULL}");
            open_settled(dir, &options, &mut moved_aside)?
        }
        other => other?,
    };
    let Database { conn, damage, findings } = database;
    let key_path = key.path().to_owned();
    reserve.restore();
    let StoreOptions { clock, sinks, device, shared, .. } = options;
    let context = Arc::new(StoreContext { clock, sinks, device, shared });
    let mut writer = Writer {
        reader: Reader { conn, damage, key: Some(Arc::new(key)) },
        dir: dir.to_owned(),
        context,
        wake,
        reserve_held: Arc::new(AtomicBool::new(reserve.is_held())),
        commits: Arc::default(),
        reserve,
        page_limit: options.page_limit,
        reserve_pages: u32::try_from(options.reserve_bytes / u64::from(PAGE_BYTES))
            .unwrap_or(u32::MAX),
        scrub: Scrub::Done,
        _lock: lock,
    };
    writer.limit_pages()?;
    writer.limit_log()?;
    // After a kill the log may still have what was erased; if it cannot be cut off now, the stop
    // will do it.
    writer.truncate_log().ok();
    if scrub::is_pending(&writer.reader.conn)? {
        writer.start_scrub();
    }
    let unreadable = findings.unreadable;
    Ok(OpenedWriter { writer, moved_aside, unreadable, key_created, key_path })
}

/// Why a group was not committed.
enum Setback {
    /// The job at this place took the whole transaction with it.
    Job(usize, StoreError),
    Group(StoreError),
}

impl Writer {
    pub(super) fn context(&self) -> Arc<StoreContext> {
        Arc::clone(&self.context)
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    pub(super) fn reserve_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reserve_held)
    }

    pub(super) fn commits(&self) -> Arc<Histogram> {
        Arc::clone(&self.commits)
    }

    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<WriterMessage>) {
        let mut last_housekeeping = Stopwatch::start();
        let mut last_room_check = Stopwatch::start();
        let mut closing = None;
        while closing.is_none() {
            let pause = match self.scrub {
                Scrub::Pages(_) => Duration::ZERO,
                _ if self.reserve.is_held() => HOUSEKEEPING,
                _ => ROOM_CHECK,
            };
            let batch = match wait_for(inbox.recv(), pause) {
                Some(None) => break,
                Some(Some(first)) => Batch::collect(first, &mut inbox),
                None => Batch::default(),
            };
            closing = batch.closing;
            if !batch.jobs.is_empty() {
                self.commit(batch.jobs);
                self.quarantine_damage(true);
            }
            if matches!(self.scrub, Scrub::Pages(_)) {
                self.scrub();
            }
            if !self.reserve.is_held() && last_room_check.elapsed() >= ROOM_CHECK {
                self.restore_reserve();
                last_room_check = Stopwatch::start();
            }
            if last_housekeeping.elapsed() >= HOUSEKEEPING {
                migration_backup::expire(&self.dir, &self.context.clock.now());
                self.scrub_if_due();
                last_housekeeping = Stopwatch::start();
            }
        }
        while closing.as_ref().is_some_and(|it| it.finishes_scrub)
            && matches!(self.scrub, Scrub::Pages(_))
        {
            self.scrub();
        }
        let closed = if self.reserve.is_held() || self.reserve.is_none() {
            self.truncate_log().map(|_| ())
        } else {
            // On a full disk the log is kept as it is: the room that it takes would be gone at the
            // next start, which reads it.
            self.reader
                .conn
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .map(|_| ())
                .map_err(Into::into)
        };
        // Everything is released before the report, so that the caller may open the store again.
        drop(self);
        drop(inbox);
        if let Some(closing) = closing {
            closing.result_to.send(closed).ok();
        }
    }

    /// Runs the jobs in one transaction and reports to them once it is on the disk.
    fn commit(&mut self, mut jobs: Vec<Box<dyn WriteJob>>) {
        while !jobs.is_empty() {
            match self.attempt(&mut jobs) {
                Ok(effects) => {
                    self.after_commit(&effects);
                    jobs.drain(..).for_each(|job| job.report(Ok(())));
                }
                Err(Setback::Group(StoreError::Full) | Setback::Job(_, StoreError::Full))
                    if self.release_reserve() => {}
                Err(Setback::Job(at, error)) => jobs.remove(at).report(Err(error)),
                Err(Setback::Group(StoreError::Full)) if jobs.len() > 1 => {
                    // Together they do not fit; the small ones may.
                    jobs.drain(..).for_each(|job| self.commit(vec![job]));
                }
                Err(Setback::Group(error)) => {
                    jobs.drain(..).for_each(|job| job.report(Err(error.clone())));
                }
            }
        }
    }

    fn attempt(&mut self, jobs: &mut [Box<dyn WriteJob>]) -> Result<Effects, Setback> {
        let group = |error: rusqlite::Error| Setback::Group(error.into());
        let mut effects = Effects::default();
        let changes_before = self.reader.conn.total_changes();
        // Rolls back when dropped.
        let begun = Transaction::new_unchecked(&self.reader.conn, TransactionBehavior::Immediate);
        let transaction = begun.map_err(group)?;
        for (at, job) in jobs.iter_mut().enumerate() {
            transaction.execute_batch("savepoint job").map_err(group)?;
            let mut own = Effects::default();
            let outcome = job.run(&mut Tx::new(&self.reader, &self.context, &mut own));
            // After some errors SQLite has undone the whole transaction, whether the job noticed or
            // not.
            if transaction.is_autocommit() {
                return Err(Setback::Job(at, outcome.err().unwrap_or(StoreError::Full)));
            }
            match outcome {
                Ok(()) => {
                    effects.join(&own);
                    transaction.execute_batch("release job").map_err(group)?;
                }
                Err(StoreError::Full) if self.reserve.is_held() => {
                    return Err(Setback::Group(StoreError::Full));
                }
                Err(_) => {
                    transaction.execute_batch("rollback to job; release job").map_err(group)?;
                }
            }
        }
        let watch = Stopwatch::start();
        let changed = transaction.total_changes() != changes_before;
        transaction.commit().map_err(group)?;
        // Those that only read wait for no disk.
        if changed {
            self.commits.observe(watch.elapsed());
        }
        Ok(effects)
    }

    /// Sets the damaged rows apart that statements came upon.
    fn quarantine_damage(&mut self, keep_content: bool) {
        if self.reader.damage.count() == 0 {
            return;
        }
        let now_ms = self.context.clock.now().wall_ms;
        match check::noted(&mut self.reader.conn, &self.reader.damage, now_ms, keep_content) {
            Ok(findings) => {
                findings.log();
                // Relays may have received less than there is.
                self.wake.send_modify(|it| it.committed += 1);
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "damaged rows could not be set apart, will retry when they are met"
                );
            }
        }
    }

    fn after_commit(&mut self, effects: &Effects) {
        if effects.outbox_grew {
            self.wake.send_modify(|it| it.committed += 1);
        }
        if effects.erased {
            // Before the scrub. Nothing is kept of them: they may be of the person.
            self.quarantine_damage(false);
            self.start_scrub();
        }
    }

    /// Gives the reserve up. Returns whether there was one.
    fn release_reserve(&mut self) -> bool {
        if !self.reserve.release() {
            return false;
        }
        self.reserve_held.store(false, Ordering::Relaxed);
        tracing::error!("{FULL}");
        self.apply_limits();
        true
    }

    fn apply_limits(&self) {
        if let Err(error) = self.limit_pages().and_then(|()| self.limit_log()) {
            let error = error_chain(&error);
            tracing::error!(error, "SQLite does not take the limits for a full disk");
        }
    }

    fn restore_reserve(&mut self) {
        self.reserve.restore();
        if self.reserve.is_held() {
            self.reserve_held.store(true, Ordering::Relaxed);
            tracing::info!("the disk has room again, the reserve is kept back");
            self.apply_limits();
            // The relays wait longest after a disk that was full; there is no reason to any more.
            self.wake.send_modify(|it| it.asked += 1);
        }
    }

    fn scrub_if_due(&mut self) {
        match &mut self.scrub {
            Scrub::Done | Scrub::Pages(_) => {}
            Scrub::Log => self.scrub(),
            Scrub::Again { rounds } if *rounds > 1 => *rounds -= 1,
            Scrub::Again { .. } => self.start_scrub(),
        }
    }

    /// Removes what was erased from file and log: all of it at once if that is quick, else a part.
    fn start_scrub(&mut self) {
        let watch = Stopwatch::start();
        self.scrub = match self.scrub {
            Scrub::Pages(pass) => Scrub::Pages(pass.once_more()),
            Scrub::Done | Scrub::Log | Scrub::Again { .. } => Scrub::Pages(Pass::over_all()),
        };
        self.apply_limits();
        while matches!(self.scrub, Scrub::Pages(_)) && watch.elapsed() < SCRUB_AT_ONCE {
            self.scrub();
        }
    }

    /// Takes the next step of the scrub.
    fn scrub(&mut self) {
        let next = match self.scrub {
            Scrub::Pages(pass) => self.clean_pages(pass),
            Scrub::Log => self.cut_log(),
            Scrub::Done | Scrub::Again { .. } => return,
        };
        self.scrub = next.unwrap_or_else(|error| {
            let error = error_chain(&error);
            tracing::error!(
                error,
                "an erased person may still stand in the database file, will retry"
            );
            Scrub::Again { rounds: FAILED_ROUNDS }
        });
        if !matches!(self.scrub, Scrub::Pages(_)) {
            self.apply_limits();
        }
    }

    fn clean_pages(&self, pass: Pass) -> Result<Scrub, StoreError> {
        if !scrub::is_pending(&self.reader.conn)? {
            return self.cut_log();
        }
        // The reserve is for what happens at the door.
        if !self.reserve.is_held() && !self.reserve.is_none() {
            return Ok(Scrub::Again { rounds: HELD_ROUNDS });
        }
        migration_backup::forget(&self.dir)?;
        let log = files::log_path(&self.dir);
        match scrub::take_step(&self.reader.conn, &log, pass)? {
            PassState::Next(pass) => Ok(Scrub::Pages(pass)),
            PassState::Done => self.cut_log(),
            PassState::LogHeld => Ok(Scrub::Again { rounds: HELD_ROUNDS }),
        }
    }

    /// The mark that it is pending is deleted last: a receipt rests on it.
    fn cut_log(&self) -> Result<Scrub, StoreError> {
        if !self.truncate_log()? {
            return Ok(Scrub::Log);
        }
        self.reader.conn.execute("delete from main.meta where key = 'scrub_owed'", [])?;
        self.wake.send_modify(|it| it.scrubbed += 1);
        Ok(Scrub::Done)
    }

    /// Writes the log back and cuts it off; `false` if a reader still needs it.
    fn truncate_log(&self) -> Result<bool, StoreError> {
        let busy: bool =
            self.reader.conn.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0))?;
        Ok(!busy)
    }

    /// Keeps the log short while the disk is full: it would take the whole reserve for some twenty
    /// events before it is written back for the first time.
    fn limit_log(&self) -> Result<(), StoreError> {
        let is_full = !self.reserve.is_held() && !self.reserve.is_none();
        let (usual_pages, bytes) = if is_full { FULL_LOG } else { USUAL_LOG };
        // A pass has the log written back itself, after it has read which pages are in it.
        let pages = if matches!(self.scrub, Scrub::Pages(_)) { 0 } else { usual_pages };
        for set in [
            format!("pragma wal_autocheckpoint = {pages}"),
            format!("pragma journal_size_limit = {bytes}"),
        ] {
            self.reader.conn.query_row(&set, [], |_| Ok(()))?;
        }
        Ok(())
    }

    fn limit_pages(&self) -> Result<(), StoreError> {
        let Some(limit) = self.page_limit else {
            return Ok(());
        };
        let kept = if self.reserve.is_held() { self.reserve_pages } else { 0 };
        let set = format!("pragma max_page_count = {}", limit.saturating_sub(kept).max(1));
        self.reader.conn.query_row(&set, [], |_| Ok(()))?;
        Ok(())
    }
}

/// Waits for a future on this thread, in a runtime's thread too (where `block_on` would panic).
/// Without tokio's budget for tasks, which would never be filled up again here.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    poll_until(future, || {
        std::thread::park();
        true
    })
    .expect("waits without end")
}

/// `None` if the time is up first.
fn wait_for<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    let since = Stopwatch::start();
    poll_until(future, || {
        let left = limit.saturating_sub(since.elapsed());
        std::thread::park_timeout(left);
        !left.is_zero()
    })
}

fn poll_until<F: Future>(future: F, mut rest: impl FnMut() -> bool) -> Option<F::Output> {
    struct Unpark(Thread);
    impl WakeThread for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if !rest() {
            return None;
        }
    }
}
