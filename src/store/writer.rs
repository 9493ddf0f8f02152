//! The thread that owns the writing connection: opens it, commits in groups, keeps the reserve.

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
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::files::{self, Reserve};
use super::tx::{Effects, Setting, Tx};
use super::{StoreError, StoreOptions, Wake, before, fleet, rotate, schema};
use crate::clock::Stopwatch;
use crate::histogram::Histogram;
use crate::record::seal::{KEY_FILE, NEXT_KEY_FILE, SealError, SealKey};

/// How many writes share a commit. More would not be faster (the fsync is spread already) but let the first wait.
const GROUP: usize = 64;

/// How often the thread looks after the reserve and a log that is still to be written back.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// How often it looks whether a disk that ran full has room again.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);

/// How long the connection waits for readers before a log can be cut off.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

const PAGE_BYTES: u32 = 4096;

const FULL: &str = "the disk is full: writing into the reserve, make room";

pub(super) enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// A write, its outcome until the commit, and whom to tell.
pub(super) trait Job: Send {
    /// Carries it out; may be called again after a rollback.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    /// Tells the outcome of the last run, or the error of the commit, which undid it.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

pub(super) struct Task<T, F> {
    work: F,
    outcome: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Task<T, F> {
    pub(super) fn new(work: F, answer: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { work, outcome: None, answer }
    }
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let outcome = (self.work)(tx);
        let told = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.outcome = Some(outcome);
        told
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let outcome = match (committed, self.outcome) {
            (_, Some(Err(error))) | (Err(error), _) => Err(error),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // Whoever asked may have gone.
        self.answer.send(outcome).ok();
    }
}

pub(super) struct OpenedWriter {
    pub(super) writer: Writer,
    pub(super) set_aside: Option<PathBuf>,
    pub(super) key_created: bool,
    pub(super) key_path: PathBuf,
}

/// What is left to be done after an erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scrub {
    Done,
    /// Tried, and to be tried again after so many rounds of housekeeping.
    After(u32),
}

/// An hour: each try writes the whole database, on a disk that is probably full.
const SCRUB_AGAIN: Scrub = Scrub::After(60);

pub(super) struct Writer {
    conn: Connection,
    dir: PathBuf,
    setting: Setting,
    wake: watch::Sender<Wake>,
    reserve: Reserve,
    reserve_held: Arc<AtomicBool>,
    commits: Arc<Histogram>,
    /// The whole database is being written anew, which may take minutes.
    rewriting: Arc<AtomicBool>,
    page_limit: Option<u32>,
    reserve_pages: u32,
    /// Whether what was erased may still stand in the database file or its log.
    scrub: Scrub,
    /// Whether the file was written anew since the last erasure; the log may still be to be cut off.
    rewritten: bool,
    _lock: File,
}

pub(super) fn open(
    dir: &Path,
    options: StoreOptions,
    wake: watch::Sender<Wake>,
) -> Result<OpenedWriter, StoreError> {
    files::prepare_dir(dir)?;
    let lock = files::lock(dir)?;
    let (mut reserve, mut set_aside) = (Reserve::new(dir, options.reserve_bytes), None);
    let (conn, key, key_created) = match open_settled(dir, &options, &mut set_aside) {
        Err(StoreError::Full) if reserve.release() => {
            tracing::error!("{FULL}");
            open_settled(dir, &options, &mut set_aside)?
        }
        other => other?,
    };
    let key_path = key.path().to_owned();
    reserve.restore();
    let StoreOptions { clock, sinks, device, shared, .. } = options;
    let setting = Setting { clock, sinks, device, shared, key };
    let mut writer = Writer {
        conn,
        dir: dir.to_owned(),
        setting,
        wake,
        reserve_held: Arc::new(AtomicBool::new(reserve.is_held())),
        commits: Arc::default(),
        rewriting: Arc::default(),
        reserve,
        page_limit: options.page_limit,
        reserve_pages: u32::try_from(options.reserve_bytes / u64::from(PAGE_BYTES))
            .unwrap_or(u32::MAX),
        scrub: Scrub::Done,
        rewritten: false,
        _lock: lock,
    };
    writer.limit_pages()?;
    // After a kill the log may still have what was erased; if it cannot be cut off now, the stop will do it.
    writer.truncate_log().ok();
    if writer.scrub_owed()? {
        writer.scrub();
    }
    Ok(OpenedWriter { writer, set_aside, key_created, key_path })
}

/// The database and its key, with everything in it that a start puts right.
fn open_settled(
    dir: &Path,
    options: &StoreOptions,
    set_aside: &mut Option<PathBuf>,
) -> Result<(Connection, SealKey, bool), StoreError> {
    let mut conn = match open_database(dir) {
        Err(StoreError::Damaged { .. }) => {
            *set_aside = Some(files::set_aside(dir, options.clock.now().wall_ms)?);
            open_database(dir)?
        }
        other => other?,
    };
    let (key, key_created) = fitting_key(&conn, dir, options.credentials_dir.as_deref())?;
    settle_sinks(&mut conn, options)?;
    fleet::settle(&mut conn, options)?;
    Ok((conn, key, key_created))
}

pub(super) fn open_database(dir: &Path) -> Result<Connection, StoreError> {
    let path = files::create_database(dir)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    let opened = set_up(&mut conn, dir);
    if let Err(StoreError::Damaged { .. }) = opened {
        // It is set aside as it is: closing must not work on it any more.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    opened.map(|()| conn)
}

fn set_up(conn: &mut Connection, dir: &Path) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // Before anything is changed.
    schema::check_version(conn)?;
    conn.pragma_update(None, "page_size", PAGE_BYTES)?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is overwritten, and nothing spills into files elsewhere.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    conn.pragma_update(None, "trusted_schema", false)?;
    let verdict: String = conn.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { source: None });
    }
    if let Some(found) = schema::older(conn)? {
        before::keep(conn, dir, found);
    }
    schema::migrate(conn)
}

/// After a rotation that was cut short: the new key takes the place of the old where the templates are sealed with it, and
/// goes where the old one fits. Where neither can be told (the database was lost, or set aside as damaged) it may be the only
/// one that opens a copy of it: it is kept under another name.
fn settle_rotation(dir: &Path, proof: Option<&Vec<u8>>) -> Result<(), StoreError> {
    let next = dir.join(NEXT_KEY_FILE);
    let Some(key) = SealKey::load_from(&next)? else {
        return Ok(());
    };
    if proof.is_some_and(|it| key.recognises(it)) {
        rotate::settle(dir)?;
        return Ok(());
    }
    let old = SealKey::load_from(&dir.join(KEY_FILE))?;
    if proof.is_some_and(|proof| old.is_some_and(|it| it.recognises(proof))) {
        return std::fs::remove_file(&next).map_err(files::io_error(&next));
    }
    let names = (1..u32::MAX).map(|number| dir.join(format!("{NEXT_KEY_FILE}.{number}")));
    let free = names.into_iter().find(|it| !it.exists()).unwrap_or_else(|| next.clone());
    std::fs::rename(&next, &free).map_err(files::io_error(&next))
}

pub(super) fn put_proof(conn: &Connection, key: &SealKey) -> Result<(), StoreError> {
    conn.execute(
        "insert into meta (key, value) values ('key_proof', ?1) on conflict (key) do update set value = ?1",
        [key.proof()?],
    )?;
    Ok(())
}

/// The key that what is stored was sealed with. A new one only where nothing is sealed.
pub(super) fn fitting_key(
    conn: &Connection,
    dir: &Path,
    credentials_dir: Option<&Path>,
) -> Result<(SealKey, bool), StoreError> {
    let proof: Option<Vec<u8>> = conn
        .query_row("select value from meta where key = 'key_proof'", [], |row| row.get(0))
        .optional()?;
    settle_rotation(dir, proof.as_ref())?;
    let loaded = SealKey::load(dir, credentials_dir)?;
    let sealed: bool =
        conn.query_row("select exists (select 1 from reference)", [], |row| row.get(0))?;
    let fits = |key: &SealKey| proof.as_ref().is_some_and(|it| key.recognises(it));
    let (key, created) = match loaded {
        Some(key) if fits(&key) => return Ok((key, false)),
        Some(key) if sealed => {
            return Err(SealError::WrongKey { path: key.path().to_owned() }.into());
        }
        None if sealed => {
            return Err(SealError::KeyLost { path: dir.join(KEY_FILE) }.into());
        }
        Some(key) => (key, false),
        None => (SealKey::create(dir)?, true),
    };
    put_proof(conn, &key)?;
    Ok((key, created))
}

/// In `meta`, for each sink there ever was: `sink.mqtt` → the `seq` up to which it was owed every event, or this while
/// it still is.
const STILL_OWED: i64 = -1;

/// A sink that is new, or back after a time without it, is owed all events that it was not owed so far.
fn settle_sinks(conn: &mut Connection, options: &StoreOptions) -> Result<(), StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let newest: i64 =
        tx.query_row("select coalesce(max(seq), 0) from event", [], |row| row.get(0))?;
    let known: Vec<(String, String)> = tx
        .prepare("select key, cast(value as text) from meta where key like 'sink.%'")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let keys: Vec<String> =
        options.sinks.iter().map(|it| format!("sink.{}", it.as_str())).collect();
    let put = "insert into meta (key, value) values (?1, cast(?2 as blob)) on conflict (key) do update set value = cast(?2 as blob)";
    for (key, _) in known
        .iter()
        .filter(|(key, through)| !keys.contains(key) && *through == STILL_OWED.to_string())
    {
        tx.execute(put, [key.clone(), newest.to_string()])?;
    }
    for (key, sink) in keys.iter().zip(&options.sinks) {
        let through =
            known.iter().find(|it| it.0 == *key).map_or(0, |it| it.1.parse().unwrap_or(0));
        if through != STILL_OWED {
            tx.execute(
                "insert into outbox (sink, event_seq, created_ms) select ?1, seq, ?2 from event where seq > ?3 order by seq",
                rusqlite::params![sink.as_str(), options.clock.now().wall_ms, through],
            )?;
            tx.execute(put, [key.clone(), STILL_OWED.to_string()])?;
        }
    }
    tx.commit()?;
    Ok(())
}

/// Why a group was not committed.
enum Setback {
    /// The job at this place took the whole transaction with it.
    Job(usize, StoreError),
    Group(StoreError),
}

impl Writer {
    pub(super) fn reserve_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reserve_held)
    }

    pub(super) fn commits(&self) -> Arc<Histogram> {
        Arc::clone(&self.commits)
    }

    pub(super) fn rewriting_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.rewriting)
    }

    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let (mut since, mut looked) = (Stopwatch::start(), Stopwatch::start());
        let mut closing = None;
        while closing.is_none() {
            let mut jobs = Vec::new();
            let pause = if self.reserve.is_held() { HOUSEKEEPING } else { LOOK_FOR_ROOM };
            match wait_for(inbox.recv(), pause) {
                Some(None) => break,
                Some(Some(message)) => {
                    let mut next = Some(message);
                    while let Some(message) = next {
                        match message {
                            Message::Job(job) => jobs.push(job),
                            Message::Close(answer) => closing = Some(answer),
                        }
                        let room = jobs.len() < GROUP && closing.is_none();
                        next = if room { inbox.try_recv().ok() } else { None };
                    }
                }
                None => {}
            }
            if !jobs.is_empty() {
                self.commit(jobs);
            }
            if !self.reserve.is_held() && looked.elapsed() >= LOOK_FOR_ROOM {
                self.restore_reserve();
                looked = Stopwatch::start();
            }
            if since.elapsed() >= HOUSEKEEPING {
                before::expire(&self.dir, &self.setting.clock.now());
                self.scrub_if_due();
                since = Stopwatch::start();
            }
        }
        let closed = if self.reserve.is_held() || self.reserve.is_none() {
            self.truncate_log().map(|_| ())
        } else {
            // On a full disk the log is kept as it is: the room that it takes would be gone at the next start, which reads it.
            self.conn
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .map(|_| ())
                .map_err(Into::into)
        };
        // Everything is released before the answer, so that whoever closed may open again.
        drop(self);
        drop(inbox);
        if let Some(answer) = closing {
            answer.send(closed).ok();
        }
    }

    /// Carries the jobs out in one transaction and answers them once it is on the disk.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        while !jobs.is_empty() {
            match self.attempt(&mut jobs) {
                Ok(effects) => {
                    self.after_commit(&effects);
                    jobs.drain(..).for_each(|job| job.answer(Ok(())));
                }
                Err(Setback::Group(StoreError::Full) | Setback::Job(_, StoreError::Full))
                    if self.release_reserve() => {}
                Err(Setback::Job(at, error)) => jobs.remove(at).answer(Err(error)),
                Err(Setback::Group(StoreError::Full)) if jobs.len() > 1 => {
                    // Together they do not fit; the small ones may.
                    jobs.drain(..).for_each(|job| self.commit(vec![job]));
                }
                Err(Setback::Group(error)) => {
                    jobs.drain(..).for_each(|job| job.answer(Err(error.clone())))
                }
            }
        }
    }

    fn attempt(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<Effects, Setback> {
        let group = |error: rusqlite::Error| Setback::Group(error.into());
        let mut effects = Effects::default();
        let changes_before = self.conn.total_changes();
        // Rolls back when dropped.
        let transaction =
            self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(group)?;
        for (at, job) in jobs.iter_mut().enumerate() {
            transaction.execute_batch("savepoint job").map_err(group)?;
            let mut own = Effects::default();
            let outcome = job.run(&mut Tx::new(&transaction, &self.setting, &mut own));
            // After some errors SQLite has undone the whole transaction, whether the job noticed or not.
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
                    transaction.execute_batch("rollback to job; release job").map_err(group)?
                }
            }
        }
        let (watch, changed) = (Stopwatch::start(), transaction.total_changes() != changes_before);
        transaction.commit().map_err(group)?;
        // Those that only read wait for no disk.
        if changed {
            self.commits.observe(watch.elapsed());
        }
        Ok(effects)
    }

    fn after_commit(&mut self, effects: &Effects) {
        if effects.outbox_grew {
            self.wake.send_modify(|it| it.committed += 1);
        }
        if effects.erased {
            self.rewritten = false;
            self.scrub();
        }
    }

    /// Gives the reserve up; whether there was one.
    fn release_reserve(&mut self) -> bool {
        if !self.reserve.release() {
            return false;
        }
        self.reserve_held.store(false, Ordering::Relaxed);
        tracing::error!("{FULL}");
        self.limit_pages().is_ok()
    }

    fn restore_reserve(&mut self) {
        self.reserve.restore();
        if self.reserve.is_held() {
            self.reserve_held.store(true, Ordering::Relaxed);
            tracing::info!("the disk has room again, the reserve is kept back");
            self.limit_pages().ok();
            // The relays wait longest after a disk that was full; there is no reason to any more.
            self.wake.send_modify(|it| it.asked += 1);
        }
    }

    fn scrub_if_due(&mut self) {
        match self.scrub {
            Scrub::Done => {}
            Scrub::After(0 | 1) => self.scrub(),
            Scrub::After(rounds) => self.scrub = Scrub::After(rounds - 1),
        }
    }

    /// After an erasure: writes the database anew and cuts the log off. `secure_delete` is not enough: when SQLite
    /// balances its tree it leaves copies of rows in the unused middle of pages (found by searching the file).
    fn scrub(&mut self) {
        self.rewriting.store(true, Ordering::Relaxed);
        let cleaned = self.clean();
        self.rewriting.store(false, Ordering::Relaxed);
        self.scrub = match cleaned {
            Ok(true) => {
                self.rewritten = false;
                self.wake.send_modify(|it| it.scrubbed += 1);
                Scrub::Done
            }
            // A reader holds the log: gone in a moment.
            Ok(false) => Scrub::After(1),
            Err(error) => {
                tracing::error!(%error, "an erased person may still stand in the database file, will retry");
                SCRUB_AGAIN
            }
        };
    }

    fn scrub_owed(&self) -> Result<bool, StoreError> {
        let sql = "select exists (select 1 from meta where key = 'scrub_owed')";
        Ok(self.conn.query_row(sql, [], |row| row.get(0))?)
    }

    /// That it is owed is forgotten at the very end: a receipt rests on it. `false` if a reader still needs the log.
    fn clean(&mut self) -> Result<bool, StoreError> {
        if !self.scrub_owed()? {
            return self.truncate_log();
        }
        before::forget(&self.dir)?;
        if !self.rewritten {
            self.rewrite()?;
            self.rewritten = true;
        }
        if !self.truncate_log()? {
            return Ok(false);
        }
        self.conn.execute("delete from meta where key = 'scrub_owed'", [])?;
        Ok(true)
    }

    fn rewrite(&self) -> Result<(), StoreError> {
        // The copy may be larger than the memory of the device; SQLite's temporary files have no name.
        self.conn.pragma_update(None, "temp_store", "file")?;
        let rewritten = self.conn.execute_batch("vacuum");
        self.conn.pragma_update(None, "temp_store", "memory")?;
        Ok(rewritten?)
    }

    /// Writes the log back and cuts it off; `false` if a reader still needs it.
    fn truncate_log(&self) -> Result<bool, StoreError> {
        let busy: bool =
            self.conn.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0))?;
        Ok(!busy)
    }

    fn limit_pages(&self) -> Result<(), StoreError> {
        let Some(limit) = self.page_limit else {
            return Ok(());
        };
        let kept = if self.reserve.is_held() { self.reserve_pages } else { 0 };
        let set = format!("pragma max_page_count = {}", limit.saturating_sub(kept).max(1));
        self.conn.query_row(&set, [], |_| Ok(()))?;
        Ok(())
    }
}

/// Waits for a future on this thread, in a runtime's thread too (where `block_on` would panic). Without tokio's
/// budget for tasks, which would never be filled up again here.
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
