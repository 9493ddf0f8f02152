//! One frame of the camera, and the slot in which the newest waits.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::picture::{DecodeError, Picture};

/// The pixels of a frame, decoded no further than needed: most frames show nobody, and a
/// frame that is replaced in the slot is never decoded at all. All three views are upright, and
/// what the privacy mask covers is blank.
pub trait Pixels: fmt::Debug + Send + Sync {
    /// Width and height of the full picture.
    fn size(&self) -> (usize, usize);

    /// Brightness on a coarse grid of the whole picture: for noticing that something changed.
    fn luma(&self) -> Result<Luma, DecodeError>;

    /// The whole picture, its longer side at least `side_px` where the camera gives that many: for
    /// the detector.
    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError>;

    /// The picture as it was taken: for the face.
    fn full(&self) -> Result<&Picture, DecodeError>;
}

impl Pixels for Picture {
    fn size(&self) -> (usize, usize) {
        (self.width(), self.height())
    }

    fn luma(&self) -> Result<Luma, DecodeError> {
        Ok(Luma::of(self))
    }

    fn reduced(&self, _side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        Ok(Cow::Borrowed(self))
    }

    fn full(&self) -> Result<&Picture, DecodeError> {
        Ok(self)
    }
}

/// Brightness (BT.601, 0..=255) on a coarse grid, row by row. Invariant: `values.len() == width *
/// height`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luma {
    width: usize,
    values: Vec<u8>,
}

impl Luma {
    /// The longer side of the grid. At 80 a face that is large enough to be recognised covers at
    /// least two by two cells of a picture 640 wide.
    pub const SIDE: usize = 80;

    /// `None` when the values are not whole rows.
    pub fn from_rows(width: usize, values: Vec<u8>) -> Option<Self> {
        (width > 0 && !values.is_empty() && values.len().is_multiple_of(width))
            .then_some(Self { width, values })
    }

    /// Samples a few pixels of each cell: noise is the change detector's to bear.
    pub fn of(picture: &Picture) -> Self {
        let longer = picture.width().max(picture.height());
        let cell = longer.div_ceil(Self::SIDE).max(1);
        let width = picture.width().div_ceil(cell);
        let height = picture.height().div_ceil(cell);
        let mut values = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                values.push(cell_mean(picture, x * cell, y * cell, cell));
            }
        }
        Self { width, values }
    }

    pub fn width(&self) -> usize {
        self.width
    }
    pub fn height(&self) -> usize {
        self.values.len() / self.width
    }
    pub fn values(&self) -> &[u8] {
        &self.values
    }
}

/// Mean brightness of four by four pixels spread over a cell.
fn cell_mean(picture: &Picture, left: usize, top: usize, cell: usize) -> u8 {
    let step = cell.div_ceil(4);
    let right = (left + cell).min(picture.width());
    let bottom = (top + cell).min(picture.height());
    let mut sum = 0u32;
    let mut count = 0u32;
    for y in (top..bottom).step_by(step) {
        let row = picture.row(y);
        for x in (left..right).step_by(step) {
            let pixel = &row[x * 3..x * 3 + 3];
            sum +=
                (299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2]))
                    / 1000;
            count += 1;
        }
    }
    (sum / count.max(1)) as u8
}

/// A frame with the moment it was taken.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Counts the frames that the camera delivered, from 0.
    pub seq: u64,
    /// When it was taken, for the record.
    pub taken: Stamp,
    /// The source's own time, by which faces are followed: that of the boot clock for a camera,
    /// that of the recording for a replay, which may run faster.
    pub media_ms: u64,
    pub pixels: Arc<dyn Pixels>,
}

impl Frame {
    /// The moment by the source's own time.
    pub fn media(&self) -> Stamp {
        Stamp { boottime_ms: self.media_ms, ..self.taken }
    }
}

/// The slot between the camera and the models: one value, overwritten.
///
/// A new frame replaces one not yet taken: live video is worth its age, and a queue only stores
/// age.
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
        Self {
            slot: Mutex::new(Slot { value: None, replaced: 0, closed: false }),
            changed: Condvar::new(),
        }
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

    /// Waits for at most `patience` until the value was taken; `true` when the slot is free. For a
    /// replay at the pace of the models, so that each frame is seen.
    pub fn wait_free(&self, patience: Duration) -> bool {
        let slot = self.lock();
        let (slot, _) = self
            .changed
            .wait_timeout_while(slot, patience, |slot| slot.value.is_some() && !slot.closed)
            .unwrap_or_else(PoisonError::into_inner);
        slot.value.is_none()
    }

    /// Takes the newest value, waiting for at most `patience`; `None` when there was none, or the
    /// slot is closed.
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
    fn luma_grid_locates_bright_areas() {
        let width = 640;
        let height = 480;
        let bright = |x: usize, y: usize| x >= 320 && y < 240;
        let rgb = (0..width * height)
            .flat_map(|at| [if bright(at % width, at / width) { 255 } else { 0 }; 3])
            .collect();
        let luma = Luma::of(&Picture::from_rgb(width, height, rgb).unwrap());
        assert_eq!((luma.width(), luma.height()), (80, 60));
        let at = |x: usize, y: usize| luma.values()[y * 80 + x];
        assert_eq!(
            [at(0, 0), at(79, 0), at(0, 59), at(79, 59), at(40, 29), at(39, 29)],
            [0, 255, 0, 0, 255, 0]
        );
    }

    #[test]
    fn luma_grid_exists_for_odd_sizes() {
        for (width, height) in [(1, 1), (7, 3), (81, 1), (1, 200), (1279, 719)] {
            let luma = Luma::of(&Picture::plain(width, height, [9; 3]));
            assert!(luma.width().max(luma.height()) <= Luma::SIDE);
            assert!(luma.values().iter().all(|value| *value == 9), "{width} x {height}");
        }
    }

    #[test]
    fn newer_frame_replaces_waiting_one() {
        let slot = Latest::default();
        assert_eq!(slot.put(1), 0);
        assert_eq!(slot.put(2), 1);
        assert_eq!(slot.take(Duration::ZERO), Some(2));
        assert_eq!(slot.take(Duration::ZERO), None);
    }

    #[test]
    fn waiting_source_loses_no_frame() {
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
