//! Opens the store, the models and the gallery, for the daemon and the command line.

use std::collections::HashMap;
use std::sync::Arc;

use crate::app::exit;
use crate::app::exit::{Failure, model, storage};
use crate::clock::Clock;
use crate::config::Settings;
use crate::ids::{Name, SubjectId};
use crate::keys::secret_file::credentials_dir;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Embedder;
use crate::recognise::gallery::{Gallery, Subject};
use crate::store;
use crate::store::{
    Opened, Reader, Reference, ReferenceCount, SinkName, Store, StoreError, StoreOptions, Tx,
};
use crate::vision::Vision;

/// Returns the options with which the daemon and the command line open the store.
pub fn store_options(settings: &Settings, clock: &Arc<dyn Clock>) -> StoreOptions {
    let mut options = StoreOptions::new(sinks(settings), Arc::clone(clock));
    options.credentials_dir = credentials_dir();
    options.device.clone_from(&settings.device);
    options.shared = settings.fleet.is_some();
    options
}

pub(super) fn open_store(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<Store> {
    let options = store_options(settings, clock);
    let opened = Store::open(&settings.state_dir, options).map_err(storage)?;
    log_opened(&opened);
    Ok(opened.store)
}

/// Logs what an operator must know about a store that was opened.
pub fn log_opened(opened: &Opened) {
    if let Some(path) = &opened.moved_aside {
        tracing::error!(path = %path.display(), "the database is damaged: it was moved aside as a whole, and what could be read of it is in the new one; check who is enrolled");
    }
    if opened.key_created {
        tracing::warn!(path = %opened.key_path.display(), "a template key was created: keep a copy of it, because without it everybody must be enrolled again");
    }
}

pub fn load_vision(settings: &Settings) -> anyhow::Result<Vision> {
    Vision::load(&settings.vision).map_err(model)
}

/// Adds references to a gallery, with the names of their subjects.
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

/// How many subjects are read from the store at a time.
const SUBJECTS_PER_PAGE: u32 = 500;

pub fn load_gallery(store: &Store, vision: &Vision) -> anyhow::Result<Gallery> {
    let embedder = vision.embedder();
    let load = move |tx: &mut Tx<'_>| {
        let mut loader = GalleryLoader {
            names: load_names(|after| tx.subjects(after, SUBJECTS_PER_PAGE))?,
            gallery: Gallery::of(&embedder),
        };
        let count = tx.all_references(&embedder, |reference| loader.add(reference))?;
        Ok((loader.gallery, count))
    };
    let (gallery, count) = store.write(load).map_err(storage)?;
    log_reference_problems(&count);
    Ok(gallery)
}

/// Opens the store for reading, beside a daemon that may be running.
pub fn open_reader(settings: &Settings) -> anyhow::Result<Reader> {
    let dir = &settings.state_dir;
    if dir.join(store::DATABASE).is_file() {
        return Store::open_read_only(dir, credentials_dir().as_deref()).map_err(storage);
    }
    let missing = anyhow::anyhow!(
        "there is no database in {}: `rollcall run` or `rollcall enrol` creates one; check [storage] directory",
        dir.display()
    );
    Err(Failure { code: exit::STORAGE, what: "nothing is recorded here yet", source: missing }
        .into())
}

/// Reads the gallery from the store, beside a daemon that may be running.
pub fn read_gallery(reader: &Reader, embedder: &Embedder) -> Result<Gallery, StoreError> {
    let names = load_names(|after| reader.subjects(after, SUBJECTS_PER_PAGE))?;
    let mut loader = GalleryLoader { names, gallery: Gallery::of(embedder) };
    let count = reader.all_references(embedder, |reference| loader.add(reference))?;
    log_reference_problems(&count);
    Ok(loader.gallery)
}

fn load_names(
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

fn log_reference_problems(count: &ReferenceCount) {
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

/// Returns the sinks that events are delivered to.
pub fn sinks(settings: &Settings) -> Vec<SinkName> {
    let mqtt = settings.mqtt.iter().map(|_| SinkName::MQTT);
    let mongo = settings.mongo.iter().map(|_| SinkName::MONGO);
    mqtt.chain(mongo).chain(settings.webhooks.iter().map(|it| it.sink())).collect()
}
