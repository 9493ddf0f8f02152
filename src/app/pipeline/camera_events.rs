//! Decides when the loss and the return of the camera become events.
//!
//! A cable with a loose contact can lose the camera every second for months, and each event is a row
//! on disk and a message. So losses have an allowance: `BURST` at once and one more every
//! `INTERVAL`, which is at most 300 in a day. A loss beyond the allowance is counted and reported
//! with the next one.
//!
//! Invariants: each recorded loss is followed by its return. A lasting loss is recorded as soon as
//! the allowance permits, at the latest after `INTERVAL`.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Stamp};
use crate::health::Health;
use crate::store::{Store, StoreError};
use crate::wire::event::{Body, Camera, CameraState, ClockState, NewEvent};

/// Losses that may be recorded without a pause.
const BURST: u32 = 12;
const INTERVAL: Duration = Duration::from_mins(5);

pub struct CameraEvents {
    store: Store,
    health: Arc<Health>,
    /// The present loss.
    loss: Option<Loss>,
    /// How many losses may be recorded now.
    allowance: u32,
    /// When the allowance was last raised.
    raised_at: Option<Stamp>,
    /// Losses since the last recorded one.
    unrecorded: u32,
}

struct Loss {
    since: Since,
    reason: String,
    is_recorded: bool,
}

enum Since {
    ThisBoot(Stamp),
    /// The wall time of the loss, if the clock was trusted.
    EarlierBoot(Option<i64>),
}

impl Since {
    /// Returns the time since the loss; `None` if the clocks do not show it.
    fn elapsed(&self, now: &Stamp) -> Option<Duration> {
        match self {
            Self::ThisBoot(at) => Some(now.since(at)),
            Self::EarlierBoot(at_ms) => {
                let passed_ms = now.wall_ms.checked_sub(at_ms.filter(|_| now.trusted)?)?;
                u64::try_from(passed_ms).ok().map(Duration::from_millis)
            }
        }
    }
}

impl CameraEvents {
    pub fn new(store: Store, health: Arc<Health>) -> Self {
        Self { store, health, loss: None, allowance: BURST, raised_at: None, unrecorded: 0 }
    }

    /// Restores the state from the newest event. Returns why the camera was lost at the end of the
    /// last run, if it was.
    pub fn resume(&mut self, clock: &dyn Clock) -> Result<Option<String>, StoreError> {
        let newest = match self.store.write(|tx| tx.newest_camera_event()) {
            Ok(newest) => newest,
            Err(error) => {
                self.log_unless_fatal(error, "a camera event could not be read")?;
                None
            }
        };
        let Some(event) = newest else {
            return Ok(None);
        };
        let Body::Camera(Camera { state: CameraState::Lost, reason, .. }) = event.body else {
            return Ok(None);
        };
        let trusted = event.clock != ClockState::Unsynced;
        let since = if event.boot_id == clock.boot_id() {
            Since::ThisBoot(Stamp {
                wall_ms: event.occurred_ms,
                boottime_ms: event.boottime_ms,
                trusted,
            })
        } else {
            Since::EarlierBoot(trusted.then_some(event.occurred_ms))
        };
        let reason = reason.unwrap_or_default();
        tracing::warn!(reason, "camera was lost before the start");
        self.loss = Some(Loss { since, reason: reason.clone(), is_recorded: true });
        Ok(Some(reason))
    }

    pub fn camera_lost(&mut self, now: &Stamp, reason: &str) -> Result<(), StoreError> {
        let since = Since::ThisBoot(*now);
        self.loss = Some(Loss { since, reason: reason.to_owned(), is_recorded: false });
        self.unrecorded += 1;
        self.record_pending_loss(now)
    }

    /// Records a loss that lasts and is not recorded yet, if the allowance permits.
    pub fn record_pending_loss(&mut self, now: &Stamp) -> Result<(), StoreError> {
        let is_pending = self.loss.as_ref().is_some_and(|loss| !loss.is_recorded);
        if !is_pending || !self.take_allowance(now) {
            return Ok(());
        }
        let Some(Loss { since: Since::ThisBoot(since), reason, is_recorded }) = &mut self.loss
        else {
            return Ok(());
        };
        *is_recorded = true;
        let since = *since;
        let mut reason = reason.clone();
        let others = std::mem::take(&mut self.unrecorded).saturating_sub(1);
        if others > 0 {
            reason = format!("{reason}; {others} more losses since the last event");
        }
        self.record(since, Camera { state: CameraState::Lost, reason: Some(reason), lost_ms: None })
    }

    /// Records the return of the camera. Returns how long it was lost, if that is known.
    pub fn camera_back(&mut self, now: &Stamp) -> Result<Option<Duration>, StoreError> {
        let Some(loss) = self.loss.take() else {
            return Ok(None);
        };
        let away = loss.since.elapsed(now);
        if loss.is_recorded {
            let lost_ms = away.map(|away| away.as_millis() as u64);
            self.record(*now, Camera { state: CameraState::Back, reason: None, lost_ms })?;
        }
        Ok(away)
    }

    fn take_allowance(&mut self, now: &Stamp) -> bool {
        let raised_at = *self.raised_at.get_or_insert(*now);
        let intervals = now.since(&raised_at).as_secs() / INTERVAL.as_secs();
        if intervals > 0 {
            let more = u32::try_from(intervals).unwrap_or(u32::MAX);
            self.allowance = self.allowance.saturating_add(more).min(BURST);
            self.raised_at = Some(*now);
        }
        let is_permitted = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        is_permitted
    }

    fn record(&self, at: Stamp, camera: Camera) -> Result<(), StoreError> {
        let event = NewEvent::new(at, Body::Camera(camera));
        match self.store.write(move |tx| tx.append_event(&event)) {
            Ok(_) => Ok(()),
            Err(error) => self.log_unless_fatal(error, "a camera event could not be stored"),
        }
    }

    fn log_unless_fatal(&self, error: StoreError, what: &'static str) -> Result<(), StoreError> {
        self.health.store_errors.add(1);
        error.log_unless_fatal(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::store::StoreOptions;

    #[test]
    fn flapping_camera_records_bounded_events() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(0));
        let shared: Arc<dyn Clock> = clock.clone();
        let opened = Store::open(dir.path(), StoreOptions::new(Vec::new(), shared)).unwrap();
        let mut events = CameraEvents::new(opened.store.clone(), Arc::default());
        let recorded = || {
            let event = |seq| opened.store.write(move |tx| tx.event(seq)).unwrap();
            (1..).map_while(event).map(|event| event.body).collect::<Vec<_>>()
        };
        // A day of coming and going every ten seconds.
        for _ in 0..8640 {
            events.camera_lost(&clock.now(), "unplugged").unwrap();
            clock.advance(Duration::from_secs(5));
            events.camera_back(&clock.now()).unwrap();
            clock.advance(Duration::from_secs(5));
        }
        let bodies = recorded();
        assert!(bodies.len() <= 2 * 300, "{}", bodies.len());
        let states = |bodies: &[Body]| {
            let state = |body: &Body| {
                if let Body::Camera(camera) = body { camera.state } else { unreachable!() }
            };
            bodies.iter().map(state).collect::<Vec<_>>()
        };
        let pairs = states(&bodies);
        assert!(pairs.chunks(2).all(|pair| pair == [CameraState::Lost, CameraState::Back]));
        assert!(
            matches!(&bodies[bodies.len() - 2], Body::Camera(Camera { reason: Some(reason), .. })
            if reason.contains("29 more losses")),
            "{:?}",
            bodies[bodies.len() - 2]
        );
        // Then it stays away: recorded within the allowance, and only once.
        events.camera_lost(&clock.now(), "unplugged").unwrap();
        for _ in 0..400 {
            clock.advance(Duration::from_secs(1));
            events.record_pending_loss(&clock.now()).unwrap();
        }
        let pairs = states(&recorded());
        assert_eq!((pairs.len(), pairs.last()), (bodies.len() + 1, Some(&CameraState::Lost)));
    }

    #[test]
    fn loss_duration_across_reboot_needs_trusted_clock() {
        let now = Stamp { wall_ms: 90_000, boottime_ms: 5, trusted: true };
        assert_eq!(Since::EarlierBoot(Some(30_000)).elapsed(&now), Some(Duration::from_mins(1)));
        assert_eq!(
            Since::EarlierBoot(Some(30_000)).elapsed(&Stamp { trusted: false, ..now }),
            None
        );
        assert_eq!(Since::EarlierBoot(Some(90_001)).elapsed(&now), None);
        assert_eq!(Since::EarlierBoot(None).elapsed(&now), None);
    }
}
