//! When the loss and the return of the camera become events.
//!
//! A cable with a loose contact can come and go every second for months, and each event is a row on disk and a message
//! owed. So losses have an allowance: `BURST` at once and one more each `EVERY`, at most 300 in a day. A loss beyond it is
//! counted and told with the next one. What must hold: each told loss is followed by its return, and a camera that stays
//! away is told to be lost as soon as the allowance permits, at the latest after `EVERY`.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Stamp};
use crate::health::Health;
use crate::record::event::{Body, Camera, CameraState, ClockState, NewEvent};
use crate::record::store::{Store, StoreError};

/// Losses told without a pause.
const BURST: u32 = 12;
const EVERY: Duration = Duration::from_mins(5);

pub struct CameraEvents {
    store: Store,
    health: Arc<Health>,
    /// The loss that lasts.
    loss: Option<Loss>,
    /// Losses that may still be told, and when one was last added.
    left: u32,
    added: Option<Stamp>,
    /// Losses since the last told one.
    untold: u32,
}

struct Loss {
    since: Since,
    reason: String,
    told: bool,
}

enum Since {
    ThisBoot(Stamp),
    /// By the wall clock, if that was right.
    EarlierBoot(Option<i64>),
}

impl Since {
    /// `None` when the clocks do not tell.
    fn passed(&self, now: &Stamp) -> Option<Duration> {
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
        Self { store, health, loss: None, left: BURST, added: None, untold: 0 }
    }

    /// Goes on where the daemon ended: `true` when the camera was told to be lost and not to be back.
    pub fn resume(&mut self, clock: &dyn Clock) -> Result<bool, StoreError> {
        let newest = match self.store.write(|tx| tx.newest_camera_event()) {
            Err(error) if !error.is_fatal() => {
                self.health.store_errors.add(1);
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "a camera event could not be read"
                );
                None
            }
            other => other?,
        };
        let Some(event) = newest else {
            return Ok(false);
        };
        let Body::Camera(Camera { state: CameraState::Lost, reason, .. }) = event.body else {
            return Ok(false);
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
        tracing::warn!(reason, "the camera was lost before the start");
        self.loss = Some(Loss { since, reason, told: true });
        Ok(true)
    }

    pub fn lost(&mut self, now: &Stamp, reason: &str) -> Result<(), StoreError> {
        self.loss =
            Some(Loss { since: Since::ThisBoot(*now), reason: reason.to_owned(), told: false });
        self.untold += 1;
        self.remind(now)
    }

    /// Tells a loss that lasts and was not told yet, when the allowance permits.
    pub fn remind(&mut self, now: &Stamp) -> Result<(), StoreError> {
        let all_told = self.loss.as_ref().is_none_or(|loss| loss.told);
        if all_told || !self.take_allowance(now) {
            return Ok(());
        }
        let Some(Loss { since: Since::ThisBoot(since), reason, told }) = &mut self.loss else {
            return Ok(());
        };
        *told = true;
        let (since, mut reason) = (*since, reason.clone());
        let others = std::mem::take(&mut self.untold).saturating_sub(1);
        if others > 0 {
            reason = format!("{reason}; {others} more losses since the last event");
        }
        self.record(since, Camera { state: CameraState::Lost, reason: Some(reason), lost_ms: None })
    }

    /// How long it was away, if that is known.
    pub fn back(&mut self, now: &Stamp) -> Result<Option<Duration>, StoreError> {
        let Some(loss) = self.loss.take() else {
            return Ok(None);
        };
        let away = loss.since.passed(now);
        if loss.told {
            let lost_ms = away.map(|away| away.as_millis() as u64);
            self.record(*now, Camera { state: CameraState::Back, reason: None, lost_ms })?;
        }
        Ok(away)
    }

    fn take_allowance(&mut self, now: &Stamp) -> bool {
        let added = *self.added.get_or_insert(*now);
        let more = now.since(&added).as_secs() / EVERY.as_secs();
        if more > 0 {
            self.left =
                self.left.saturating_add(u32::try_from(more).unwrap_or(u32::MAX)).min(BURST);
            self.added = Some(*now);
        }
        let permitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        permitted
    }

    /// A full disk is said, counted and survived; an error after which the store is of no use is returned.
    fn record(&self, at: Stamp, camera: Camera) -> Result<(), StoreError> {
        let event = NewEvent::new(at, Body::Camera(camera));
        match self.store.write(move |tx| tx.append_event(&event)) {
            Err(error) if !error.is_fatal() => {
                self.health.store_errors.add(1);
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "a camera event could not be stored"
                );
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::record::store::StoreOptions;

    #[test]
    fn a_loose_contact_does_not_fill_the_disk_and_the_last_word_is_true() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(0));
        let shared: Arc<dyn Clock> = clock.clone();
        let opened = Store::open(dir.path(), StoreOptions::new(Vec::new(), shared)).unwrap();
        let mut events = CameraEvents::new(opened.store.clone(), Arc::default());
        let told = || {
            let event = |seq| opened.store.write(move |tx| tx.event(seq)).unwrap();
            (1..).map_while(event).map(|event| event.body).collect::<Vec<_>>()
        };
        // A day of coming and going every ten seconds.
        for _ in 0..8640 {
            events.lost(&clock.now(), "unplugged").unwrap();
            clock.advance(Duration::from_secs(5));
            events.back(&clock.now()).unwrap();
            clock.advance(Duration::from_secs(5));
        }
        let bodies = told();
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
        // Then it stays away: told within the allowance, and only once.
        events.lost(&clock.now(), "unplugged").unwrap();
        for _ in 0..400 {
            clock.advance(Duration::from_secs(1));
            events.remind(&clock.now()).unwrap();
        }
        let pairs = states(&told());
        assert_eq!((pairs.len(), pairs.last()), (bodies.len() + 1, Some(&CameraState::Lost)));
    }

    #[test]
    fn the_time_away_is_told_across_a_reboot_only_by_a_clock_that_is_right() {
        let now = Stamp { wall_ms: 90_000, boottime_ms: 5, trusted: true };
        assert_eq!(Since::EarlierBoot(Some(30_000)).passed(&now), Some(Duration::from_mins(1)));
        assert_eq!(Since::EarlierBoot(Some(30_000)).passed(&Stamp { trusted: false, ..now }), None);
        assert_eq!(Since::EarlierBoot(Some(90_001)).passed(&now), None);
        assert_eq!(Since::EarlierBoot(None).passed(&now), None);
    }
}
