//! The one place where the current gallery is kept. Readers take the snapshot; a writer makes a new one and swaps it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::recognise::gallery::Gallery;

pub struct GalleryCell(Mutex<Arc<Gallery>>);

impl GalleryCell {
    pub fn new(gallery: Gallery) -> Self {
        Self(Mutex::new(Arc::new(gallery)))
    }

    pub fn snapshot(&self) -> Arc<Gallery> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only the commander writes, one command after the other, so nothing is lost between reading and swapping.
    pub fn update(&self, change: impl FnOnce(Gallery) -> Gallery) {
        let changed = Arc::new(change((*self.snapshot()).clone()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }
}
