//! The relay between a real store and a sink that follows a script.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::backoff::Backoff;
use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::store::relay::{Delivery, RelaySettings, Sink, relay};
use rollcall::store::{OutboxRow, SinkName, Store, StoreOptions};
use rollcall::wire::event::{Body, Camera, CameraState, NewEvent};
use tokio::sync::{Notify, watch};

/// Pauses too short to notice, or too long to be waited out by any test.
const SHORT: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
const FOR_EVER: Backoff = Backoff::new(Duration::from_hours(24), Duration::from_hours(24));

/// What the sink does with the next batch: one delivery for each row, or fewer; after its end all
/// is acknowledged.
type Script = VecDeque<Vec<Delivery>>;

struct Scripted {
    script: Script,
    seen: Arc<Mutex<Vec<Vec<i64>>>>,
    called: Arc<Notify>,
    /// Waited for within each delivery, if there.
    gate: Option<Arc<Notify>>,
}

impl Sink for Scripted {
    fn name(&self) -> SinkName {
        SinkName::MQTT
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        self.seen.lock().unwrap().push(batch.iter().map(|it| it.id).collect());
        self.called.notify_one();
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        self.script.pop_front().unwrap_or_else(|| vec![Delivery::Acknowledged; batch.len()])
    }
}

struct RelayBench {
    _dir: tempfile::TempDir,
    clock: Arc<SimulatedClock>,
    store: Store,
    stop: watch::Sender<bool>,
    seen: Arc<Mutex<Vec<Vec<i64>>>>,
    called: Arc<Notify>,
}

impl RelayBench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(1_795_420_683_412));
        let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&clock) as _);
        let store = Store::open(dir.path(), options).unwrap().store;
        let (stop, _) = watch::channel(false);
        Self { _dir: dir, clock, store, stop, seen: Arc::default(), called: Arc::default() }
    }

    fn append(&self, count: usize) {
        for _ in 0..count {
            let body =
                Body::Camera(Camera { state: CameraState::Lost, reason: None, lost_ms: None });
            let event = NewEvent::new(self.clock.now(), body);
            self.store.write(move |tx| tx.append_event(&event)).unwrap();
        }
    }

    fn sink(&self, script: Script) -> Scripted {
        Scripted {
            script,
            seen: Arc::clone(&self.seen),
            called: Arc::clone(&self.called),
            gate: None,
        }
    }

    /// Runs the relay until nothing is owed any more, then stops it.
    async fn run_to_end(&self, script: Script) {
        let settings = RelaySettings { window: 3, backoff: SHORT };
        let run = relay(self.store.clone(), self.sink(script), self.stop.subscribe(), settings);
        let (outcome, ()) = tokio::join!(run, async {
            self.until_nothing_is_owed().await;
            self.stop.send(true).unwrap();
        });
        outcome.unwrap();
    }

    async fn until_nothing_is_owed(&self) {
        while self.pending().await > 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn pending(&self) -> u64 {
        self.store.write_async(|tx| tx.outbox_depth(SinkName::MQTT)).await.unwrap().rows
    }

    fn seen(&self) -> Vec<Vec<i64>> {
        self.seen.lock().unwrap().clone()
    }
}

fn retry() -> Delivery {
    Delivery::Retry("the link is down".into())
}

#[tokio::test]
async fn rejected_row_waits_while_others_pass() {
    let bench = RelayBench::new();
    bench.append(1);
    let refused = Delivery::Rejected("wrong password".into());
    let sink = bench.sink(Script::from([vec![retry()], vec![refused]]));
    let settings =
        RelaySettings { window: 3, backoff: Backoff::new(SHORT.shortest, FOR_EVER.longest) };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        // The first two follow one another at once; the third comes only when it is asked for.
        bench.called.notified().await;
        while bench.seen().len() < 2 {
            bench.called.notified().await;
        }
        bench.append(50);
        while bench.pending().await > 1 {
            tokio::task::yield_now().await;
        }
        let tries = || bench.seen().iter().filter(|batch| batch.contains(&1)).count();
        assert_eq!(tries(), 2);
        bench.store.deliver_now();
        bench.until_nothing_is_owed().await;
        assert_eq!(tries(), 3);
        bench.stop.send(true).unwrap();
    });
    outcome.unwrap();
}

#[tokio::test]
async fn rows_leave_in_order_when_acknowledged() {
    let bench = RelayBench::new();
    bench.append(7);
    let sink = bench.sink(Script::new());
    let settings = RelaySettings { window: 3, backoff: FOR_EVER };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        bench.until_nothing_is_owed().await;
        // Idle now; woken by a commit.
        bench.append(1);
        bench.until_nothing_is_owed().await;
        bench.stop.send(true).unwrap();
    });
    outcome.unwrap();
    assert_eq!(bench.seen(), [vec![1, 2, 3], vec![4, 5, 6], vec![7], vec![8]]);
}

#[tokio::test]
async fn failures_are_retried_poison_is_dead_lettered() {
    let bench = RelayBench::new();
    bench.append(4);
    let script = Script::from([
        vec![retry(), retry(), retry()],
        vec![Delivery::Acknowledged, Delivery::Poison("too large".into()), retry()],
        // No answer at all: nothing is taken for delivered.
        vec![],
    ]);
    bench.run_to_end(script).await;
    assert_eq!(bench.seen(), [vec![1, 2, 3], vec![1, 2, 3], vec![3, 4], vec![3, 4]]);
    let buried = bench.store.write(|tx| tx.dead_letters(10)).unwrap();
    assert_eq!((buried.len(), buried[0].id, buried[0].reason.as_str()), (1, 2, "too large"));
}

#[tokio::test]
async fn held_rows_do_not_block_others() {
    let bench = RelayBench::new();
    bench.append(5);
    let held = || vec![Delivery::Held; 3];
    let script = Script::from([held(), vec![Delivery::Held, Delivery::Acknowledged]]);
    bench.run_to_end(script).await;
    // Passed over, then tried again from the beginning.
    assert_eq!(bench.seen(), [vec![1, 2, 3], vec![4, 5], vec![1, 2, 3], vec![4]]);
}

#[tokio::test]
async fn outage_does_not_count_as_delivery_attempt() {
    let bench = RelayBench::new();
    bench.append(2);
    let doubtful = || Delivery::Doubtful("nobody knows why".into());
    let sink = bench.sink(Script::from([
        vec![retry(), retry()],
        vec![doubtful(), retry()],
        vec![doubtful(), retry()],
    ]));
    let gate = Arc::new(Notify::new());
    let sink = Scripted { gate: Some(Arc::clone(&gate)), ..sink };
    let settings = RelaySettings { window: 3, backoff: SHORT };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        for delivery in 0..4 {
            bench.called.notified().await;
            if delivery == 3 {
                let batch = bench
                    .store
                    .write_async(|tx| tx.outbox_batch(SinkName::MQTT, 0, 3))
                    .await
                    .unwrap();
                assert_eq!(batch.iter().map(|it| it.attempts).collect::<Vec<_>>(), [2, 0]);
                bench.stop.send(true).unwrap();
            }
            gate.notify_one();
        }
    });
    outcome.unwrap();
    assert_eq!(bench.seen().len(), 4);
}

#[tokio::test]
async fn only_deliver_now_ends_the_pause() {
    let bench = RelayBench::new();
    bench.append(1);
    let sink = bench.sink(Script::from([vec![retry()]]));
    let settings = RelaySettings { window: 3, backoff: FOR_EVER };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        bench.called.notified().await;
        bench.append(1);
        assert_eq!(bench.pending().await, 2);
        assert_eq!(bench.seen().len(), 1, "a new row is no reason to hurry");
        bench.store.deliver_now();
        bench.called.notified().await;
        bench.until_nothing_is_owed().await;
        bench.stop.send(true).unwrap();
    });
    outcome.unwrap();
    assert_eq!(bench.seen(), [vec![1], vec![1, 2]]);
}

#[tokio::test]
async fn running_delivery_finishes_before_stop() {
    let bench = RelayBench::new();
    bench.append(5);
    let gate = Arc::new(Notify::new());
    let sink = Scripted { gate: Some(Arc::clone(&gate)), ..bench.sink(Script::new()) };
    let settings = RelaySettings { window: 3, backoff: FOR_EVER };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        bench.called.notified().await;
        bench.stop.send(true).unwrap();
        tokio::task::yield_now().await;
        gate.notify_one();
    });
    outcome.unwrap();
    assert_eq!(bench.seen(), [vec![1, 2, 3]]);
    assert_eq!(bench.pending().await, 2, "what was delivered is settled, the rest stays owed");
}

#[tokio::test]
async fn stop_ends_the_pause_at_once() {
    let bench = RelayBench::new();
    bench.append(1);
    let sink = bench.sink(Script::from([vec![retry()]]));
    let settings = RelaySettings { window: 3, backoff: FOR_EVER };
    let run = relay(bench.store.clone(), sink, bench.stop.subscribe(), settings);
    let (outcome, ()) = tokio::join!(run, async {
        bench.called.notified().await;
        bench.stop.send(true).unwrap();
    });
    outcome.unwrap();
    assert_eq!(bench.pending().await, 1);
}

#[test]
fn few_dead_replies_are_kept() {
    let bench = RelayBench::new();
    bench.append(3);
    let kept = bench.store.write(|tx| {
        for number in 0..40 {
            tx.queue_reply(&format!("reply/r-{number}"), "{}")?;
        }
        let rows: Vec<i64> =
            tx.outbox_batch(SinkName::MQTT, 0, 100)?.iter().map(|row| row.id).collect();
        assert_eq!(rows.len(), 43);
        rows.iter().try_for_each(|id| tx.dead_letter(*id, "larger than the broker takes"))?;
        tx.dead_letters(100)
    });
    let kept = kept.unwrap();
    assert_eq!(kept.iter().filter(|it| it.event_seq.is_some()).count(), 3, "no event is dropped");
    assert_eq!(kept.len(), 3 + 32);
}
