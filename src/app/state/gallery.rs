//! The one place where the current gallery is kept. Readers take the snapshot; a writer makes a new one and swaps it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::recognise::gallery::Gallery;

pub struct GalleryCell {
    current: Mutex<Arc<Gallery>>,
    /// Held by whoever changes, so that of two changes at once none is lost, and readers wait for neither.
    changing: Mutex<()>,
    turn: tokio::sync::Mutex<()>,
}

impl GalleryCell {
    pub fn new(gallery: Gallery) -> Self {
        let current = Mutex::new(Arc::new(gallery));
        Self { current, changing: Mutex::new(()), turn: tokio::sync::Mutex::new(()) }
    }

    /// Whoever changes the gallery holds this from before the store is written until the snapshot is swapped, so that both
    /// see the changes in one order.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub fn snapshot(&self) -> Arc<Gallery> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn update(&self, change: impl FnOnce(Gallery) -> Gallery) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(change((*self.snapshot()).clone()));
        let old = std::mem::replace(
            &mut *self.current.lock().unwrap_or_else(PoisonError::into_inner),
            changed,
        );
        // The last to let go of a snapshot gives its memory back: not while others wait for the current one.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::{Name, SubjectId, Template};
    use crate::recognise::gallery::Subject;

    #[test]
    fn of_two_who_change_at_once_nobody_is_lost() {
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
