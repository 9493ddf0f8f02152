//! One frame of the camera, and the slot in which the newest waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::picture::Picture;

/// A decoded frame with the moment it was taken.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Counts the frames that the camera delivered, from 0.
    pub seq: u64,
    /// When it was taken, for the record.
    pub taken: Stamp,
    /// The source's own time, by which faces are followed: that of the boot clock for a camera, that of the recording
    /// for a replay, which may run faster.
    pub media_ms: u64,
    pub picture: Arc<Picture>,
}

impl Frame {
    /// The moment by the source's own time.
    pub fn media(&self) -> Stamp {
        Stamp { boottime_ms: self.media_ms, ..self.taken }
    }
}

/// The slot between the camera and the networks: one value, overwritten.
///
/// A new frame replaces one not yet taken: live video is worth its age, and a queue only stores age.
pub struct Latest<T> {
    slot: Mutex<Slot<T>>,
    changed: Condvar,
}

struct Slot<T> {
    value: Option<T>,
    replaced: u64,
    closed: bool,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { slot: Mutex::new(Slot { value: None, replaced: 0, closed: false }), changed: Condvar::new() }
    }
}

impl<T> Latest<T> {
    /// Puts a value, replacing one that nobody took; returns how many have been replaced so far.
    pub fn put(&self, value: T) -> u64 {
        let mut slot = self.lock();
        if slot.value.replace(value).is_some() {
            slot.replaced += 1;
        }
        let replaced = slot.replaced;
        drop(slot);
        self.changed.notify_all();
        replaced
    }

    /// Puts a value after the one before was taken: replay at the pace of the networks, so that a test sees each frame.
    /// Returns `false` when the slot was closed meanwhile.
    pub fn put_when_free(&self, value: T) -> bool {
        let mut slot = self.lock();
        while slot.value.is_some() && !slot.closed {
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
        if slot.closed {
            return false;
        }
        slot.value = Some(value);
        drop(slot);
        self.changed.notify_all();
        true
    }

    /// Takes the newest value, waiting for at most `patience`; `None` when there was none, or the slot is closed.
    pub fn take(&self, patience: Duration) -> Option<T> {
        let slot = self.lock();
        let (mut slot, _) = self
            .changed
            .wait_timeout_while(slot, patience, |slot| slot.value.is_none() && !slot.closed)
            .unwrap_or_else(PoisonError::into_inner);
        let value = slot.value.take();
        drop(slot);
        self.changed.notify_all();
        value
    }

    /// Wakes everybody who waits; nothing more is put.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_frame_replaces_one_not_taken() {
        let slot = Latest::default();
        assert_eq!(slot.put(1), 0);
        assert_eq!(slot.put(2), 1);
        assert_eq!(slot.take(Duration::ZERO), Some(2));
        assert_eq!(slot.take(Duration::ZERO), None);
    }

    #[test]
    fn a_patient_source_loses_no_frame() {
        let slot = Latest::default();
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| (0..100).for_each(|n| assert!(slot.put_when_free(n))));
            (0..100).map(|_| slot.take(Duration::from_secs(5)).unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn closing_wakes_both_sides() {
        let slot = Latest::default();
        slot.put(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slot.put_when_free(2));
            slot.close();
            assert!(!waiting.join().unwrap());
        });
    }
}
