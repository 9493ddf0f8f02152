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

    /// Waits for at most `patience` until the value was taken; `true` when the slot is free. For a replay at the pace of
    /// the networks, so that each frame is seen.
    pub fn wait_free(&self, patience: Duration) -> bool {
        let slot = self.lock();
        let (slot, _) = self
            .changed
            .wait_timeout_while(slot, patience, |slot| slot.value.is_some() && !slot.closed)
            .unwrap_or_else(PoisonError::into_inner);
        slot.value.is_none()
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
        let put = |n| {
            assert!(slot.wait_free(Duration::from_secs(5)));
            slot.put(n);
        };
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| (0..100).for_each(put));
            (0..100).map(|_| slot.take(Duration::from_secs(5)).unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn closing_wakes_both_sides() {
        let slot: Latest<u32> = Latest::default();
        let watch = crate::clock::Stopwatch::start();
        slot.put(1);
        std::thread::scope(|scope| {
            let source = scope.spawn(|| slot.wait_free(Duration::from_mins(1)));
            slot.close();
            assert!(!source.join().unwrap());
        });
        assert_eq!(slot.take(Duration::from_mins(1)), Some(1));
        assert_eq!(slot.take(Duration::from_mins(1)), None);
        assert!(watch.elapsed() < Duration::from_secs(50));
    }
}
