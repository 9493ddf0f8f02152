//! What the stages of the daemon share, as one value that is cloned for each stage.
//!
//! A stage's `new` takes the context and keeps what it uses. What only one stage needs is made by
//! that stage and is not here.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::app::state::counted::LatestCounts;
use crate::app::state::gallery::GalleryCell;
use crate::app::state::repeats;
use crate::app::state::repeats::RepeatFeed;
use crate::app::state::venues::VenueRegistry;
use crate::clock::{Clock, Stamp};
use crate::config::Settings;
use crate::health::Health;
use crate::ids::Origin;
use crate::keys::signer::SigningKey;
use crate::mqtt::topics::{TopicError, Topics};
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Embedder;
use crate::recognise::gallery::Gallery;
use crate::store::Store;
use crate::vision::Vision;
use crate::wire::command::Limits;

#[derive(Clone)]
pub struct Context {
    pub settings: Arc<Settings>,
    pub origin: Origin,
    pub topics: Topics,
    pub clock: Arc<dyn Clock>,
    /// When the daemon started.
    pub started: Stamp,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub health: Arc<Health>,
    pub venues: Arc<VenueRegistry>,
    /// Visits that are in the record already.
    pub repeats: RepeatFeed,
    /// Notified when the health message is to be published at once.
    pub changed: Arc<Notify>,
    /// The embedder in use.
    pub embedder: Embedder,
    /// The digest of each model's file, by the model's name.
    pub model_digests: Arc<BTreeMap<String, String>>,
    /// Counts of rows in the database, as they were read last.
    pub counted: Arc<LatestCounts>,
    /// Signs receipts.
    pub device_key: Arc<SigningKey>,
}

impl Context {
    pub fn new(
        settings: Settings,
        clock: Arc<dyn Clock>,
        store: Store,
        vision: &Vision,
        loaded: Loaded,
    ) -> Result<Self, TopicError> {
        let origin = Origin { site: settings.site.clone(), device: settings.device.clone() };
        Ok(Self {
            topics: Topics::new(&origin.site, &origin.device)?,
            origin,
            settings: Arc::new(settings),
            started: clock.now(),
            clock,
            store,
            gallery: Arc::new(GalleryCell::new(loaded.gallery)),
            health: Arc::default(),
            venues: Arc::new(loaded.venues),
            repeats: repeats::new_feed(),
            changed: Arc::default(),
            embedder: vision.embedder(),
            model_digests: Arc::new(vision.digests()),
            counted: Arc::default(),
            device_key: Arc::new(loaded.device_key),
        })
    }

    /// The limits that a command must keep to.
    pub fn command_limits(&self) -> Limits {
        let commands = &self.settings.commands;
        Limits {
            payload_bytes: commands.payload_bytes_max,
            images: commands.images_max,
            image_bytes: commands.image_bytes_max,
            ..Limits::default()
        }
    }
}

/// What was read from disk before the stages start.
pub struct Loaded {
    pub gallery: Gallery,
    pub venues: VenueRegistry,
    pub device_key: SigningKey,
}
