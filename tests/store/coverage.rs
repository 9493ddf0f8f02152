//! When the device was watching, as the store keeps it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::Duration;

use crate::support::store_bench::{Bench, START_MS, append};
use rollcall::attend::coverage::Interval;
use rollcall::clock::Clock as _;
use rollcall::store::{SinkName, Store};
use rollcall::wire::event::ClockState;

fn observe(bench: &Bench, store: &Store, row: Option<i64>) -> i64 {
    let now = bench.clock.now();
    store.write(move |tx| tx.observe(row, &now)).unwrap()
}

/// The intervals, in seconds after the start.
fn watched(store: &Store) -> Vec<(i64, i64)> {
    let found = store.write(|tx| tx.watched(i64::MIN, i64::MAX)).unwrap();
    let seconds = |it: &Interval| ((it.from_ms - START_MS) / 1000, (it.to_ms - START_MS) / 1000);
    found.intervals().iter().map(seconds).collect()
}

fn advance(bench: &Bench, seconds: u64) {
    bench.clock.advance(Duration::from_secs(seconds));
}

#[test]
fn coverage_row_grows_while_watching() {
    let bench = Bench::new();
    let store = bench.open();
    let row = observe(&bench, &store, None);
    for _ in 0..10 {
        advance(&bench, 60);
        assert_eq!(observe(&bench, &store, Some(row)), row);
    }
    assert_eq!(watched(&store), [(0, 600)]);
    // The camera was away, or the daemon.
    advance(&bench, 100);
    let next = observe(&bench, &store, None);
    advance(&bench, 60);
    observe(&bench, &store, Some(next));
    assert_eq!(watched(&store), [(0, 600), (700, 760)]);
    // The machine slept: nobody extended the row for longer than an upkeep takes.
    advance(&bench, 3600);
    assert_ne!(observe(&bench, &store, Some(next)), next);
    assert_eq!(watched(&store), [(0, 600), (700, 760), (4360, 4360)]);
    let reader = Store::open_read_only(bench.path(), None).unwrap();
    assert_eq!(
        reader.watched(START_MS + 601_000, START_MS + 720_000).unwrap().intervals().len(),
        1
    );
}

#[test]
fn clock_step_adds_no_coverage() {
    let bench = Bench::new();
    let store = bench.open();
    let first = observe(&bench, &store, None);
    advance(&bench, 60);
    assert_eq!(observe(&bench, &store, Some(first)), first);
    advance(&bench, 30);
    bench.clock.set_wall(bench.clock.now().wall_ms + 1_000_000_000, true);
    let second = observe(&bench, &store, Some(first));
    assert_ne!(second, first);
    // Half a minute before the step is told by the new clock, and nothing between the two.
    assert_eq!(watched(&store), [(0, 60), (1_000_060, 1_000_090)]);
    advance(&bench, 60);
    bench.clock.set_wall(bench.clock.now().wall_ms - 1_000_000_000, true);
    let third = observe(&bench, &store, Some(second));
    assert_eq!(watched(&store), [(0, 60), (90, 150), (1_000_060, 1_000_090)]);
    // What NTP slews is no step.
    advance(&bench, 60);
    bench.clock.set_wall(bench.clock.now().wall_ms + 500, true);
    assert_eq!(observe(&bench, &store, Some(third)), third);
}

#[test]
fn unsynced_coverage_is_corrected_later() {
    let bench = Bench::new();
    let store = bench.open();
    bench.clock.set_wall(5_000, false); // 1970
    let row = observe(&bench, &store, None);
    advance(&bench, 100);
    assert_eq!(observe(&bench, &store, Some(row)), row);
    assert_eq!(watched(&store), [], "nobody knows when that was");
    advance(&bench, 20);
    bench.clock.set_wall(START_MS + 120_000, true);
    let now = bench.clock.now();
    store.write(move |tx| tx.correct_times(&now, &[])).unwrap();
    assert_eq!(watched(&store), [(0, 100)]);
    assert_eq!(observe(&bench, &store, Some(row)), row, "and goes on without a gap");
    assert_eq!(watched(&store), [(0, 120)]);
    let newest = store.write(|tx| tx.newest_observation()).unwrap().unwrap();
    assert_eq!((newest.row, newest.clock), (row, ClockState::Corrected));
    // The trust is lost again (holdover is over): the time after that is not claimed until it is
    // known.
    advance(&bench, 60);
    bench.clock.set_wall(bench.clock.now().wall_ms, false);
    let unsure = observe(&bench, &store, Some(row));
    assert_ne!(unsure, row);
    assert_eq!(watched(&store), [(0, 120)]);
    bench.clock.set_wall(bench.clock.now().wall_ms, true);
    let now = bench.clock.now();
    store.write(move |tx| tx.correct_times(&now, &[])).unwrap();
    assert_eq!(watched(&store), [(0, 180)]);
}

#[test]
fn retention_removes_coverage_of_deleted_events() {
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..40 {
        let row = observe(&bench, &store, None);
        append(&store, &bench.camera());
        advance(&bench, 120);
        observe(&bench, &store, Some(row));
        bench.clock.advance(Duration::from_mins(24 * 60 - 2));
    }
    let settle = store.write(|tx| {
        for sink in [SinkName::MQTT, SinkName::MONGO] {
            let rows = tx.outbox_batch(sink, 0, 100)?;
            tx.acknowledge(&rows.iter().map(|it| it.id).collect::<Vec<_>>())?;
        }
        Ok(())
    });
    settle.unwrap();
    // A minute into the tenth day.
    let cut = 10 * 86_400 + 60;
    bench.clock.set_wall(START_MS + (40 * 86_400 + 60) * 1000, true);
    assert_eq!(store.write(|tx| tx.retention(30)).unwrap(), 11);
    let left = watched(&store);
    assert_eq!((left.len(), left[0]), (30, (cut, cut + 60)));
}
