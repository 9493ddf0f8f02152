//! Everything put together: opened in order, supervised, stopped in order.
//!
//! The order of stopping is that of the flow: camera, networks, commands, deliveries, link, store; so that nothing that
//! was seen is dropped on the way. A crash at any point loses nothing that was recorded; this only saves work.

pub mod camera_events;
pub mod capture;
pub mod commander;
pub mod csv;
pub mod discovery;
pub mod exposition;
pub mod fleet;
pub mod gallery;
pub mod http;
pub mod inference;
pub mod metrics;
pub mod mqtt_sink;
pub mod notify;
pub mod observer;
pub mod power;
pub mod receipts;
pub mod recorder;
pub mod report;
pub mod scene;
pub mod serve;
pub mod supervise;
pub mod timing;
pub mod upkeep;
pub mod venues;
pub mod vitals;
pub mod watch;
pub mod watchdog;
pub mod watermark;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::app::serve::{Daemon, sinks};
use crate::app::venues::VenueBook;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Settings;
use crate::recognise::engine::FaceEngine;
use crate::recognise::face::{ModelDigest, Name, SubjectId};
use crate::recognise::gallery::{Gallery, Subject};
use crate::record::signer::{SignerError, SigningKey};
use crate::record::store::{
    self, Opened, Reader, Reference, ReferenceCount, Store, StoreError, StoreOptions, Tx,
};
use crate::vision::Vision;
use crate::vision::manifest::ModelError;

/// The exit codes of the contract (`docs/wire.md`), after sysexits(3).
pub mod exit {
    pub const USAGE: u8 = 64;
    pub const MODEL: u8 = 69;
    pub const STORAGE: u8 = 74;
    pub const CONFIG: u8 = 78;
}

const STORAGE_UNUSABLE: &str = "the storage cannot be used";

/// An error with the exit code that it ends the process with.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub code: u8,
    pub what: &'static str,
    #[source]
    pub source: anyhow::Error,
}

/// What the command line adds to the settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Stop when a replay has ended and everything is delivered (or cannot be).
    pub until_replay_ends: bool,
}

/// The daemon, from start to stop.
pub fn run(settings: Settings, options: RunOptions) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let store = open_store(&settings, &clock)?;
    let device_key = SigningKey::of_device(&settings.state_dir).map_err(unusable_key)?;
    let vision = load_vision(&settings)?;
    let gallery = load_gallery(&store, &vision)?;
    let stored = store.write(|tx| tx.venues()).map_err(storage)?;
    let venues = VenueBook::new(settings.venues.clone(), settings.door.clone(), &stored);
    tracing::info!(
        subjects = gallery.subjects(),
        references = gallery.references(),
        elapsed_ms = watch.elapsed().as_millis() as u64,
        "networks and gallery loaded"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let daemon =
        Daemon::new(settings, clock, store.clone(), &vision, gallery, venues, Arc::new(device_key));
    let outcome = runtime.block_on(daemon.serve(vision, options, watch)).map_err(|error| {
        // Whichever stage met it first: a store that is of no use ends the process by its own exit code.
        let of_storage = error.chain().any(|it| it.downcast_ref::<StoreError>().is_some());
        if of_storage {
            Failure { code: exit::STORAGE, what: STORAGE_UNUSABLE, source: error }.into()
        } else {
            error
        }
    });
    let closed = store.close();
    outcome.and(closed.map_err(storage))
}

fn unusable_key(error: SignerError) -> anyhow::Error {
    Failure {
        code: exit::STORAGE,
        what: "the device's own key cannot be used",
        source: error.into(),
    }
    .into()
}

pub fn storage(error: StoreError) -> anyhow::Error {
    Failure { code: exit::STORAGE, what: STORAGE_UNUSABLE, source: error.into() }.into()
}

fn config(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Failure { code: exit::CONFIG, what: "the configuration cannot be used", source: error.into() }
        .into()
}

fn model(error: ModelError) -> anyhow::Error {
    Failure { code: exit::MODEL, what: "recognition cannot start", source: error.into() }.into()
}

/// Where systemd passes credentials, if it does.
pub fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// How the store of these settings is opened, by the daemon and by commands alike.
pub fn store_options(settings: &Settings, clock: &Arc<dyn Clock>) -> StoreOptions {
    let mut options = StoreOptions::new(sinks(settings), Arc::clone(clock));
    options.credentials_dir = credentials_dir();
    options.device.clone_from(&settings.device);
    options.shared = settings.fleet.is_some();
    options
}

fn open_store(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<Store> {
    let options = store_options(settings, clock);
    let opened = Store::open(&settings.state_dir, options).map_err(storage)?;
    tell_opened(&opened);
    Ok(opened.store)
}

/// What an operator must hear of a store that was opened.
pub fn tell_opened(opened: &Opened) {
    if let Some(path) = &opened.set_aside {
        tracing::error!(path = %path.display(), "the database was damaged: it was set aside whole, and a new one begun; restore a backup or enrol again");
    }
    if opened.key_created {
        tracing::warn!(path = %opened.key_path.display(), "a key for the templates was made: keep a copy of it, without it everybody must be enrolled again");
    }
}

pub fn load_vision(settings: &Settings) -> anyhow::Result<Vision> {
    Vision::load(&settings.vision).map_err(model)
}

/// Puts references, one by one, into a gallery; names come from the subjects.
struct GalleryLoader {
    names: HashMap<SubjectId, Name>,
    gallery: Gallery,
}

impl GalleryLoader {
    fn add(&mut self, reference: Reference) {
        if let Some(name) = self.names.get(&reference.subject_id) {
            let subject = Subject { id: reference.subject_id, name: name.clone() };
            let gallery = std::mem::take(&mut self.gallery);
            self.gallery = gallery.with(subject, std::slice::from_ref(&reference.template));
        }
    }
}

/// Subjects fetched from the store at a time.
const PAGE: u32 = 500;

pub fn load_gallery(store: &Store, vision: &Vision) -> anyhow::Result<Gallery> {
    let (embedder, dimension) = (vision.embedder(), vision.dimension());
    let load = move |tx: &mut Tx<'_>| {
        let mut loader = GalleryLoader {
            names: all_names(|after| tx.subjects(after, PAGE))?,
            gallery: Gallery::new(dimension),
        };
        let count = tx.all_references(&embedder, |reference| loader.add(reference))?;
        Ok((loader.gallery, count))
    };
    let (gallery, count) = store.write(load).map_err(storage)?;
    report_references(&count);
    Ok(gallery)
}

/// For the commands that only read, beside a daemon that may be running.
pub fn open_reader(settings: &Settings) -> anyhow::Result<Reader> {
    let dir = &settings.state_dir;
    if dir.join(store::DATABASE).is_file() {
        return Store::open_read_only(dir, credentials_dir().as_deref()).map_err(storage);
    }
    let missing = anyhow::anyhow!(
        "there is no database in {}: `rollcall run` or `rollcall enrol` makes one, or is [storage] directory another?",
        dir.display()
    );
    Err(Failure { code: exit::STORAGE, what: "nothing was recorded here yet", source: missing }
        .into())
}

/// The gallery as it stands in the store, read beside a daemon that may be running.
pub fn read_gallery(
    reader: &Reader,
    embedder: &ModelDigest,
    dimension: usize,
) -> Result<Gallery, StoreError> {
    let names = all_names(|after| reader.subjects(after, PAGE))?;
    let mut loader = GalleryLoader { names, gallery: Gallery::new(dimension) };
    let count = reader.all_references(embedder, |reference| loader.add(reference))?;
    report_references(&count);
    Ok(loader.gallery)
}

fn all_names(
    page: impl Fn(Option<&SubjectId>) -> Result<Vec<store::Subject>, StoreError>,
) -> Result<HashMap<SubjectId, Name>, StoreError> {
    let mut names = HashMap::new();
    let mut after = None;
    loop {
        let subjects = page(after.as_ref())?;
        let Some(last) = subjects.last() else {
            return Ok(names);
        };
        after = Some(last.id.clone());
        names.extend(subjects.into_iter().map(|subject| (subject.id, subject.name)));
    }
}

fn report_references(count: &ReferenceCount) {
    if count.of_other_embedders > 0 {
        tracing::warn!(
            references = count.of_other_embedders,
            "references of another embedder are kept but not compared: enrol these subjects again"
        );
    }
    if !count.unreadable.is_empty() {
        tracing::error!(
            references = count.unreadable.len(),
            "references cannot be opened: they were altered on the disk"
        );
    }
}
