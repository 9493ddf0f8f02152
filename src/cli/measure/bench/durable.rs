//! `rollcall bench --store`: how fast events become durable, beside what the disk itself can do.
//!
//! Wall time here, not CPU time: what is measured is waiting for the disk. Each part takes a quarter
//! of the time; all write into one folder beside the state directory. Then the same for how long a
//! commit takes while others read, and while the file is cleaned after an erasure.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::measure::bench::{Args, show};
use crate::cli::scratch::Scratch;
use crate::clock::{Clock, Stopwatch};
use crate::ids::{Name, SubjectId};
use crate::store::relay::{self, Delivery, RelaySettings, Sink};
use crate::store::{DATABASE, OutboxRow, SinkName, Store, StoreError, StoreOptions, Tx};
use crate::wire::event::{
    Attendance, Body, Camera, CameraState, Direction, NewEvent, Status, SubjectRef,
};

/// What one write of a row is to the disk: a page of the database.
const PAGE: [u8; 4096] = [0x5a; 4096];
/// The raw file is written over from its beginning after so many pages, as SQLite does with its
/// log.
const RAW_PAGES: u64 = 1024;
/// Writers at a time whose events the store puts into common commits.
const WRITERS: usize = 32;

/// Each figure: so many a second.
#[derive(Debug, Serialize)]
pub struct DurableReport {
    /// A page written and `fdatasync`, in turn, on a file of its own.
    pub raw_syncs: f64,
    /// Commits of one event each.
    pub single_commits: f64,
    /// Events of `writers` at a time, which share commits.
    pub grouped_events: f64,
    /// The same, until a sink that acknowledges at once has them and their rows are gone.
    pub delivered_events: f64,
    pub writers: usize,
    /// `grouped_events` / `raw_syncs`.
    pub grouped_to_raw: f64,
    /// Commits of one event each on a database of `database_bytes`.
    pub alone: CommitTimes,
    /// The same while reports read the whole record, one after the other.
    pub beside_reports: CommitTimes,
    /// The same from an erasure until the file has been cleaned.
    pub beside_erasure: CommitTimes,
    pub database_bytes: u64,
}

/// How long a commit takes, in milliseconds.
#[derive(Debug, Serialize)]
pub struct CommitTimes {
    pub count: usize,
    pub median_ms: f64,
    pub longest_ms: f64,
}

impl CommitTimes {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let ms = |it: Option<&Duration>| it.map_or(f64::NAN, |it| it.as_secs_f64() * 1000.0);
        Self {
            count: times.len(),
            median_ms: ms(times.get(times.len() / 2)),
            longest_ms: ms(times.last()),
        }
    }

    fn line(&self, what: &str) -> String {
        format!(
            "{what:<31} {:>9.1} ms median   {:.1} ms at most, of {}\n",
            self.median_ms, self.longest_ms, self.count
        )
    }
}

impl DurableReport {
    fn table(&self) -> String {
        let rates = format!(
            "fdatasync of a page, raw file   {:>9.0} a second\n\
             commits, one event each         {:>9.0} a second\n\
             events of {} writers            {:>9.0} a second   {:.2} of raw\n\
             events through to a sink        {:>9.0} a second\n",
            self.raw_syncs,
            self.single_commits,
            self.writers,
            self.grouped_events,
            self.grouped_to_raw,
            self.delivered_events
        );
        let size = format!("a commit, {} MB alone", self.database_bytes / 1_000_000);
        rates
            + &self.alone.line(&size)
            + &self.beside_reports.line("a commit beside reports")
            + &self.beside_erasure.line("a commit beside an erasure")
    }
}

/// Measures in a folder of its own in `parent`, which is on the disk of the state directory.
pub fn run(args: &Args, parent: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<()> {
    let folder = Scratch::new_in(parent, "bench")?;
    let part = Duration::from_secs(args.seconds.max(4)) / 4;
    let raw_syncs = raw_syncs(&folder.path().join("raw"), part)?;
    let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(clock));
    let store = Store::open(folder.path(), options)?.store;
    let runtime = Runtime::new().context("cannot start threads")?;
    let single_commits = runtime.block_on(appended(&store, clock, 1, part))?;
    let grouped_events = runtime.block_on(appended(&store, clock, WRITERS, part))?;
    // So that the last figure is of its own events alone.
    runtime.block_on(drained(&store))?;
    let delivered_events = runtime.block_on(delivered(&store, clock, part))?;
    let (path, aged) = aged_store(folder.path(), clock)?;
    let database_bytes = std::fs::metadata(path.join(DATABASE)).map_or(0, |it| it.len());
    let alone = runtime.block_on(commit_times(&aged, clock, ended_after(part)))?;
    let beside_reports = runtime.block_on(beside_reports(&aged, clock, part))?;
    let beside_erasure = runtime.block_on(beside_erasure(&aged, clock))?;
    let report = DurableReport {
        raw_syncs,
        single_commits,
        grouped_events,
        delivered_events,
        writers: WRITERS,
        grouped_to_raw: grouped_events / raw_syncs,
        alone: CommitTimes::of(alone),
        beside_reports: CommitTimes::of(beside_reports),
        beside_erasure: CommitTimes::of(beside_erasure),
        database_bytes,
    };
    show(args, &report, || report.table())
}

fn raw_syncs(path: &Path, time: Duration) -> anyhow::Result<f64> {
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let watch = Stopwatch::start();
    let mut count = 0;
    while watch.elapsed() < time {
        if count % RAW_PAGES == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        file.write_all(&PAGE)?;
        file.sync_data().context("the disk does not take what is written")?;
        count += 1;
    }
    Ok(count as f64 / watch.elapsed().as_secs_f64())
}

/// Events a second that `writers` tasks append, each waiting for its commit before the next.
async fn appended(
    store: &Store,
    clock: &Arc<dyn Clock>,
    writers: usize,
    time: Duration,
) -> anyhow::Result<f64> {
    let watch = Arc::new(Stopwatch::start());
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let (store, clock, watch) = (store.clone(), Arc::clone(clock), Arc::clone(&watch));
        tasks.spawn(async move {
            let mut count = 0_u64;
            while watch.elapsed() < time {
                append_one(&store, &clock).await?;
                count += 1;
            }
            Ok::<_, anyhow::Error>(count)
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done.context("a writer ended")??;
    }
    Ok(count as f64 / watch.elapsed().as_secs_f64())
}

async fn append_one(store: &Store, clock: &Arc<dyn Clock>) -> Result<i64, StoreError> {
    let body = Body::Camera(Camera { state: CameraState::Back, reason: None, lost_ms: None });
    let event = NewEvent::new(clock.now(), body);
    store.write_async(move |tx| tx.append_event(&event)).await
}

/// Attendances in the database of the last figures: a small site's of half a year.
const ATTENDANCES: usize = 40_000;
const PEOPLE: usize = 50;

/// A store with a record, which no sink waits for.
fn aged_store(parent: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<(PathBuf, Store)> {
    let path = parent.join("aged");
    let store = Store::open(&path, StoreOptions::new(Vec::new(), Arc::clone(clock)))?.store;
    for first in (0..ATTENDANCES).step_by(1000) {
        let clock = Arc::clone(clock);
        store.write(move |tx| {
            for number in first..first + 1000 {
                let body = Body::Attendance(attendance(number % PEOPLE));
                tx.append_event(&NewEvent::new(clock.now(), body))?;
            }
            Ok(())
        })?;
    }
    Ok((path, store))
}

fn person(number: usize) -> SubjectId {
    SubjectId::new(&format!("p{number}")).expect("letters and digits are an id")
}

fn attendance(number: usize) -> Attendance {
    let name = Name::new(&format!("Person {number}")).expect("letters and digits are a name");
    Attendance {
        venue: "main".into(),
        session: None,
        subject: Some(SubjectRef { id: person(number), name }),
        direction: Direction::In,
        status: Status::Present,
        score: 0.7,
        threshold: 0.42,
        frames: 4,
        track_ms: 600,
        latency_ms: 80,
    }
}

/// Appends one event after the other until `ended`, and returns how long each took.
async fn commit_times(
    store: &Store,
    clock: &Arc<dyn Clock>,
    mut ended: impl FnMut() -> bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !ended() {
        let watch = Stopwatch::start();
        append_one(store, clock).await?;
        times.push(watch.elapsed());
    }
    Ok(times)
}

fn ended_after(time: Duration) -> impl FnMut() -> bool {
    let watch = Stopwatch::start();
    move || watch.elapsed() >= time
}

async fn beside_reports(
    store: &Store,
    clock: &Arc<dyn Clock>,
    time: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let reports = async {
        let mut ended = ended_after(time);
        while !ended() {
            store.report(|reader| reader.events_after(0, u32::MAX)).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (times, read) = tokio::join!(commit_times(store, clock, ended_after(time)), reports);
    read?;
    times
}

/// Also counts the commit of the erasure itself.
async fn beside_erasure(store: &Store, clock: &Arc<dyn Clock>) -> anyhow::Result<Vec<Duration>> {
    let wakes = store.wakes();
    let before = wakes.borrow().scrubbed;
    let watch = Stopwatch::start();
    store.write_async(|tx| tx.erase_subject(&person(0))).await?;
    let erased = watch.elapsed();
    let mut times = commit_times(store, clock, || wakes.borrow().scrubbed != before).await?;
    times.push(erased);
    Ok(times)
}

/// Takes everything at once, and counts it.
struct Taken(Arc<AtomicU64>);

impl Sink for Taken {
    fn name(&self) -> SinkName {
        SinkName::MQTT
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        self.0.fetch_add(batch.len() as u64, Ordering::Relaxed);
        vec![Delivery::Acknowledged; batch.len()]
    }
}

/// Relays until nothing is pending. Returns how many rows the sink got.
async fn drained(store: &Store) -> anyhow::Result<u64> {
    let taken = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(false);
    let relaying =
        relay::relay(store.clone(), Taken(Arc::clone(&taken)), stopped, RelaySettings::default());
    let until_empty = async {
        let first = |tx: &mut Tx<'_>| tx.outbox_batch_except(SinkName::MQTT, 0, 1, &[]);
        while !store.write_async(first).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send_replace(true);
        Ok::<_, anyhow::Error>(())
    };
    let (relayed, emptied) = tokio::join!(relaying, until_empty);
    relayed?;
    emptied?;
    Ok(taken.load(Ordering::Relaxed))
}

/// Events a second from `append` to the deletion of their rows, with the relay beside the writers.
async fn delivered(store: &Store, clock: &Arc<dyn Clock>, time: Duration) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let (stop, stopped) = watch::channel(false);
    let taken = Arc::new(AtomicU64::new(0));
    let relaying =
        relay::relay(store.clone(), Taken(Arc::clone(&taken)), stopped, RelaySettings::default());
    let writing = async {
        let written = appended(store, clock, WRITERS, time).await;
        stop.send_replace(true);
        written
    };
    let (relayed, written) = tokio::join!(relaying, writing);
    relayed?;
    written?;
    let count = taken.load(Ordering::Relaxed) + drained(store).await?;
    Ok(count as f64 / watch.elapsed().as_secs_f64())
}
