//! The current gallery. Readers take the immutable snapshot; a writer makes a new one and swaps it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::recognise::gallery::Gallery;

pub struct GalleryCell {
    current: Mutex<Arc<Gallery>>,
    /// Held during an update, so that of two concurrent updates none is lost. Readers do not take it.
    updating: Mutex<()>,
    write_order: tokio::sync::Mutex<()>,
}

impl GalleryCell {
    pub fn new(gallery: Gallery) -> Self {
        let current = Mutex::new(Arc::new(gallery));
        Self { current, updating: Mutex::new(()), write_order: tokio::sync::Mutex::new(()) }
    }

    /// Returns a guard that is held from before a change is written to the store until the snapshot
    /// is swapped, so that store and snapshot see all changes in the same order.
    pub async fn lock_for_change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.write_order.lock().await
    }

    pub fn snapshot(&self) -> Arc<Gallery> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn update(&self, change: impl FnOnce(Gallery) -> Gallery) {
        let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(change((*self.snapshot()).clone()));
        let old = std::mem::replace(
            &mut *self.current.lock().unwrap_or_else(PoisonError::into_inner),
            changed,
        );
        // Dropping the last reference to a snapshot frees its memory, which takes a while. So this
        // happens after the lock on the current one is released.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, SubjectId};
    use crate::recognise::face::Template;
    use crate::recognise::gallery::Subject;

    #[test]
    fn concurrent_gallery_updates_lose_no_subject() {
        let cell = GalleryCell::new(Gallery::new(4));
        let add = |from: usize| {
            for n in from..from + 200 {
                let subject = Subject {
                    id: SubjectId::new(&format!("s{n}")).unwrap(),
                    name: Name::new("One").unwrap(),
                };
                let template = Template::normalised(vec![1.0, n as f32, 0.0, 1.0]).unwrap();
                cell.update(|gallery| gallery.with(subject, &[template]));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| add(0));
            scope.spawn(|| add(200));
        });
        assert_eq!((cell.snapshot().subjects(), cell.snapshot().version()), (400, 400));
    }
}
