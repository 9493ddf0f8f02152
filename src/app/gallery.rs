//! The one place where the current gallery is kept. Readers take the snapshot; a writer makes a new one and swaps it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::recognise::gallery::Gallery;

pub struct GalleryCell {
    current: Mutex<Arc<Gallery>>,
    turn: tokio::sync::Mutex<()>,
}

impl GalleryCell {
    pub fn new(gallery: Gallery) -> Self {
        Self { current: Mutex::new(Arc::new(gallery)), turn: tokio::sync::Mutex::new(()) }
    }

    /// Whoever changes the gallery holds this from before the store is written until the snapshot is swapped, so that both
    /// see the changes in one order.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub fn snapshot(&self) -> Arc<Gallery> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only whoever holds the turn writes, so nothing is lost between reading and swapping.
    pub fn update(&self, change: impl FnOnce(Gallery) -> Gallery) {
        let changed = Arc::new(change((*self.snapshot()).clone()));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }
}
