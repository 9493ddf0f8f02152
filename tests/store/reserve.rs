//! How many events the reserve takes on a disk that is full, measured on a real file system of its
//! own, in each state that the log of the database may be in. For figures, to the end of the
//! reserve: `RESERVE_EVENTS=100000 cargo nextest run --test store reserve:: --no-capture`.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::path::PathBuf;

use crate::support::daemon::scaled;
use crate::support::store_bench::Bench;
use crate::support::volume::Volume;
use rollcall::store::{SinkName, Store, StoreError};
use rollcall::wire::event::{Direction, NewEvent};
use tempfile::TempDir;

/// What the documents promise.
const EVENTS_MIN: usize = 2000;
const MEBIBYTES: u64 = 24;

/// A store on a small file system.
struct SmallDisk {
    // Dropped in this order: the file system after the store.
    store: Option<Store>,
    volume: Volume,
    bench: Bench,
    state: PathBuf,
    _dir: TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let volume = Volume::mount(&state, MEBIBYTES);
        let mut disk = Self { store: None, volume, bench: Bench::new(), state, _dir: dir };
        disk.start();
        disk
    }

    fn start(&mut self) {
        let mut options = self.bench.options();
        options.sinks = vec![SinkName::MQTT];
        self.store = Some(Store::open(&self.state, options).unwrap().store);
    }

    fn stop(&mut self) {
        self.store.take().unwrap().close().unwrap();
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.state.join("rollcall.db-wal")).map_or(0, |it| it.len())
    }

    /// A sighting that is recorded, and then delivered.
    fn record(&self) -> Result<(), StoreError> {
        let event: NewEvent = self.bench.attendance("jdoe", "Jane Doe", Direction::In);
        self.store().write(move |tx| tx.append_event(&event).map(drop))?;
        // On a full disk an acknowledgement may have to wait; the sighting is recorded.
        let acknowledge = self.store().write(|tx| {
            let rows = tx.outbox_batch(SinkName::MQTT, 0, 10)?;
            tx.acknowledge(&rows.iter().map(|it| it.id).collect::<Vec<_>>())
        });
        match acknowledge {
            Ok(()) | Err(StoreError::Full) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn record_until_log_has(&self, bytes: u64) {
        while self.log_bytes() < bytes {
            self.record().unwrap();
        }
    }

    /// Returns how many sightings are recorded on a full disk, up to the number that is wanted. Nobody
    /// takes what the reserve gives back.
    fn recorded_on_full_disk(&self, state: &str) -> usize {
        let wanted = scaled("RESERVE_EVENTS", EVENTS_MIN);
        let mut count = 0;
        // It is restored as soon as there is room for it again.
        let mut was_used = false;
        while count < wanted {
            let recorded = self.record();
            was_used |= !self.store().is_reserve_held();
            match recorded {
                Ok(()) => count += 1,
                Err(StoreError::Full) => break,
                Err(error) => panic!("{state}: {error}"),
            }
        }
        assert!(was_used, "{state}");
        println!("{state}: {count} sightings, then the log has {} KiB", self.log_bytes() >> 10);
        count
    }
}

mod needs_mounts {
    use super::{EVENTS_MIN, SmallDisk, Volume};
    use crate::support::volume::in_own_mounts;

    fn check(state: &str, prepare: impl FnOnce(&mut SmallDisk)) {
        let mut disk = SmallDisk::new();
        prepare(&mut disk);
        let count = disk.recorded_on_full_disk(state);
        assert!(count >= EVENTS_MIN, "{state}: {count} sightings");
        // With room again all is as before.
        Volume::clear(&disk.volume);
        disk.record().unwrap();
        disk.stop();
    }

    #[test]
    fn reserve_takes_two_thousand_sightings_after_start() {
        in_own_mounts("reserve_takes_two_thousand_sightings_after_start", || {
            check("new database", |disk| disk.volume.fill());
            check("after a start", |disk| {
                disk.record_until_log_has(1 << 20);
                disk.stop();
                disk.start();
                assert!(disk.log_bytes() < 1 << 16, "{}", disk.log_bytes());
                disk.volume.fill();
            });
            check("started on a full disk", |disk| {
                disk.record_until_log_has(1 << 20);
                disk.stop();
                disk.volume.fill();
                disk.start();
            });
        });
    }

    #[test]
    fn reserve_takes_two_thousand_sightings_with_log() {
        in_own_mounts("reserve_takes_two_thousand_sightings_with_log", || {
            check("short log", |disk| {
                disk.record_until_log_has(100 << 10);
                disk.volume.fill();
            });
            check("middling log", |disk| {
                disk.record_until_log_has(1 << 20);
                disk.volume.fill();
            });
            check("long log", |disk| {
                // It is written back, and begun anew, at 1000 pages: it grows no longer.
                disk.record_until_log_has(4_000_000);
                disk.volume.fill();
            });
        });
    }
}
