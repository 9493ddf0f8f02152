//! The one place where the current gallery is kept. Readers take the snapshot; a writer makes a new one and swaps it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::recognise::gallery::Gallery;

pub struct GalleryCell {
    current: Mutex<Arc<Gallery>>,
    /// Held by whoever changes who is enrolled, from before the store is written until the gallery is as it says.
    changing: tokio::sync::Mutex<()>,
}

impl GalleryCell {
    pub fn new(gallery: Gallery) -> Self {
        Self { current: Mutex::new(Arc::new(gallery)), changing: tokio::sync::Mutex::default() }
    }

    pub fn snapshot(&self) -> Arc<Gallery> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nobody else changes who is enrolled; MQTT's commands and HTTP's requests come side by side.
    pub async fn alone(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Only by who is [`alone`](Self::alone), so nothing is lost between reading and swapping.
    pub fn update(&self, change: impl FnOnce(Gallery) -> Gallery) {
        let changed = Arc::new(change((*self.snapshot()).clone()));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }
}
