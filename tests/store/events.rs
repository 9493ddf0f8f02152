//! The store with real SQLite in real directories: what it promises, and what it does when things
//! go wrong.

#![expect(clippy::disallowed_methods, reason = "tasks of a test need no supervision")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a path is not general over lifetimes"
)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::support::store_bench::{
    Bench, DAY, START_MS, append, embedder, enrol, subject, template,
};
use rollcall::attend::venue::Venue;
use rollcall::clock::{Clock as _, Stamp};
use rollcall::store::{AttendanceQuery, SinkName, Store, StoreError, StoreOptions, Tx};
use rollcall::wire::event::{Body, ClockState, Direction, NewEvent, StoredEvent};

fn depth(store: &Store, sink: SinkName) -> (u64, u64) {
    let depth = store.write(move |tx| tx.outbox_depth(sink)).unwrap();
    (depth.rows, depth.dead_letters)
}

// Opening

#[test]
fn state_files_are_private() {
    let bench = Bench::new();
    let dir = bench.path().join("state");
    let opened = Store::open(&dir, bench.options()).unwrap();
    assert!(opened.key_created && opened.moved_aside.is_none());
    append(&opened.store, &bench.camera());
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    let expected =
        ["lock", "reserve", "rollcall.db", "rollcall.db-shm", "rollcall.db-wal", "rollcall.key"];
    assert_eq!(names, expected);
    opened.store.close().unwrap();
    assert!(!dir.join("rollcall.db-wal").exists(), "a clean stop leaves no log");
}

#[test]
fn a_second_daemon_is_rejected() {
    let bench = Bench::new();
    let first = bench.open();
    match bench.try_open().err().unwrap() {
        error @ StoreError::Locked { .. } => {
            assert!(error.is_fatal());
            assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        }
        other => panic!("{other}"),
    }
    let clone = first.clone();
    first.close().unwrap();
    bench.open();
    assert!(matches!(clone.write(|_| Ok(())), Err(StoreError::Closed)));
}

#[test]
fn newer_schema_is_refused_unchanged() {
    let bench = Bench::new();
    drop(bench.open());
    bench.sqlite().pragma_update(None, "user_version", 99).unwrap();
    let before = fs::read(bench.path().join("rollcall.db")).unwrap();
    let error = bench.try_open().err().unwrap();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 99, .. }) && error.is_fatal());
    assert_eq!(fs::read(bench.path().join("rollcall.db")).unwrap(), before);
}

#[test]
fn damaged_database_is_quarantined_whole() {
    for (case, damage, next) in [
        ("header", (0, 4096), 1),
        ("a page of a table", (4096, 4096), 201),
        ("everything behind the first page", (4096, usize::MAX), 1),
    ] {
        let bench = Bench::new();
        let store = bench.open();
        for _ in 0..200 {
            append(&store, &bench.camera());
        }
        drop(store);
        let path = bench.path().join("rollcall.db");
        let mut bytes = fs::read(&path).unwrap();
        let end = damage.0 + damage.1.min(bytes.len() - damage.0);
        bytes[damage.0..end].fill(0xa5);
        fs::write(&path, &bytes).unwrap();

        let opened = bench.try_open().unwrap();
        let aside = opened.moved_aside.unwrap_or_else(|| panic!("{case}"));
        assert!(
            aside.file_name().unwrap().to_str().unwrap().starts_with("rollcall.db.damaged-2026")
        );
        assert_eq!(fs::read(aside).unwrap(), bytes, "{case}: kept as it was");
        assert_eq!(
            append(&opened.store, &bench.camera()),
            next,
            "{case}: begun anew with what could be read"
        );
    }
}

#[test]
fn reader_works_beside_the_daemon() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    append(&store, &bench.attendance("jdoe", "Jane Doe", Direction::In));
    let check = || {
        let reader = Store::open_read_only(bench.path(), None).unwrap();
        let subjects = reader.subjects(None, 10).unwrap();
        assert_eq!((subjects[0].id.as_str(), subjects[0].references), ("jdoe", 1));
        let query = AttendanceQuery {
            venue: None,
            from_ms: 0,
            to_ms: i64::MAX,
            after_seq: 0,
            limit: 10,
            all: false,
        };
        assert_eq!(reader.attendance(&query).unwrap().len(), 1);
        assert_eq!(reader.outbox_depth(SinkName::MQTT).unwrap().rows, 1);
        let mut seen = 0;
        assert_eq!(reader.all_references(&embedder(1), |_| seen += 1).unwrap().opened, 1);
        assert_eq!(seen, 1);
    };
    check();
    drop(store);
    check();
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open_read_only(empty.path(), None), Err(StoreError::Io { .. })));
}

// Events and what is owed

#[test]
fn event_and_outbox_rows_are_atomic() {
    let bench = Bench::new();
    let store = bench.open();
    let wakes = store.wakes();
    let event = bench.attendance("jdoe", "Jane Doe", Direction::In);
    assert_eq!(append(&store, &event), 1);
    assert!(wakes.has_changed().unwrap());
    let stored = store.write(|tx| tx.event(1)).unwrap().unwrap();
    assert_eq!((stored.event_id, stored.occurred_ms), (event.event_id, START_MS));
    assert_eq!((stored.clock, &stored.body), (ClockState::Synced, &event.body));
    for sink in [SinkName::MQTT, SinkName::MONGO] {
        let batch = store.write(move |tx| tx.outbox_batch(sink, 0, 10)).unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].event(), Some(&stored));
    }
    // One that fails after the event was written leaves neither.
    let other = bench.camera();
    let failed = store.write(move |tx| {
        tx.append_event(&other)?;
        Err::<(), _>(StoreError::UnknownSubject { id: subject("nobody") })
    });
    assert!(matches!(failed, Err(StoreError::UnknownSubject { .. })));
    assert_eq!(depth(&store, SinkName::MQTT), (1, 0));
    assert_eq!(append(&store, &bench.camera()), 2, "and no gap");
}

#[test]
fn failed_writes_leave_no_seq_gaps() {
    let bench = Bench::new();
    let store = bench.open();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let store = store.clone();
            let events = (0..60).map(|_| bench.camera()).collect::<Vec<_>>();
            std::thread::spawn(move || {
                for (at, event) in events.into_iter().enumerate() {
                    let fails = (at + thread) % 3 == 0;
                    let outcome = store.write(move |tx| {
                        let seq = tx.append_event(&event)?;
                        // The second time the id is taken: SQLite refuses the row.
                        if fails { tx.append_event(&event) } else { Ok(seq) }
                    });
                    assert_eq!(outcome.is_err(), fails);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(store);
    let conn = bench.sqlite();
    let figures: (i64, i64, i64) = conn
        .query_row(
            "select count(*), max(seq), (select count(*) from outbox) from event",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert_eq!(figures, (160, 160, 320));
}

#[tokio::test]
async fn tasks_write_without_blocking_the_runtime() {
    let bench = Bench::new();
    let store = bench.open();
    // More than the queue holds, on a runtime of one thread.
    let mut tasks = tokio::task::JoinSet::new();
    for event in (0..600).map(|_| bench.camera()) {
        let store = store.clone();
        tasks.spawn(async move { store.write_async(move |tx| tx.append_event(&event)).await });
    }
    let mut seqs: Vec<i64> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=600).collect::<Vec<_>>());
    // `write` works in a runtime as well, though it has no business there.
    assert_eq!(append(&store, &bench.camera()), 601);
}

#[test]
fn new_sink_receives_earlier_events() {
    let bench = Bench::new();
    let open = |sinks: &[SinkName]| {
        let options = StoreOptions { sinks: sinks.to_vec(), ..bench.options() };
        Store::open(bench.path(), options).unwrap().store
    };
    let one_more = |store: &Store| append(store, &bench.camera());
    one_more(&open(&[SinkName::MQTT]));
    let both = open(&[SinkName::MQTT, SinkName::MONGO]);
    assert_eq!(depth(&both, SinkName::MONGO).0, 1);
    one_more(&both);
    // Delivered, then without it for a while.
    let delivered = both.write(|tx| {
        let batch = tx.outbox_batch(SinkName::MONGO, 0, 10)?;
        tx.acknowledge(&batch.iter().map(|it| it.id).collect::<Vec<_>>())
    });
    delivered.unwrap();
    drop(both);
    one_more(&open(&[SinkName::MQTT]));
    let both = open(&[SinkName::MQTT, SinkName::MONGO]);
    let pending = both.write(|tx| tx.outbox_batch(SinkName::MONGO, 0, 10)).unwrap();
    assert_eq!(pending.iter().map(|it| it.event().unwrap().seq).collect::<Vec<_>>(), [3]);
    assert_eq!(depth(&both, SinkName::MQTT).0, 3);
}

#[test]
fn unreadable_event_is_dead_lettered_alone() {
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..3 {
        append(&store, &bench.camera());
    }
    drop(store);
    bench.sqlite().execute("update event set body = '{\"schema\":1}' where seq = 2", []).unwrap();
    let store = bench.open();
    assert_eq!(store.write(|tx| tx.event(2)).unwrap(), None);
    let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 10)).unwrap();
    assert_eq!(batch.iter().map(|it| it.event().unwrap().seq).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(depth(&store, SinkName::MQTT), (2, 1));
    let buried = store.write(|tx| tx.dead_letters(10)).unwrap();
    assert!(buried[0].event_seq == Some(2) && buried[0].reason.starts_with("unreadable"));
}

#[test]
fn attendance_query_filters_and_pages() {
    let bench = Bench::new();
    let store = bench.open();
    for at in 0..5 {
        let direction = if at % 2 == 0 { Direction::In } else { Direction::Out };
        append(&store, &bench.attendance("jdoe", "Jane Doe", direction));
        append(&store, &bench.camera());
        bench.clock.advance(Duration::from_mins(1));
    }
    let ask = |venue: &str, from_min: i64, to_min: i64, after_seq: i64, limit: u32| {
        let query = AttendanceQuery {
            venue: Some(venue.into()),
            from_ms: START_MS + from_min * 60_000,
            to_ms: START_MS + to_min * 60_000,
            after_seq,
            limit,
            all: false,
        };
        let found = store.write(move |tx| tx.attendance(&query)).unwrap();
        found.into_iter().map(|it| it.seq).collect::<Vec<_>>()
    };
    assert_eq!(ask("room-a", 0, 9, 0, 9), [1, 3, 5, 7, 9]);
    assert_eq!(ask("room-a", 1, 3, 0, 9), [3, 5]);
    assert_eq!(ask("room-a", 0, 9, 3, 2), [5, 7]);
    assert_eq!(ask("room-b", 0, 9, 0, 9), [0_i64; 0]);
    let now = bench.clock.now();
    let records = store
        .write(move |tx| tx.records_for(&Venue::plain("room-a"), &subject("jdoe"), &now))
        .unwrap();
    assert_eq!(records.iter().map(|it| it.seq).collect::<Vec<_>>(), [1, 3, 5, 7, 9]);
    let reader = Store::open_read_only(bench.path(), None).unwrap();
    let mut reported = Vec::new();
    let query = AttendanceQuery {
        venue: None,
        from_ms: START_MS + 60_000,
        to_ms: i64::MAX,
        after_seq: 0,
        limit: 0,
        all: false,
    };
    let note = |event: StoredEvent| {
        reported.push(event.seq);
        Ok(ControlFlow::Continue(()))
    };
    reader.attendance_by_time(&query, note).unwrap();
    assert_eq!(reported, [3, 5, 7, 9]);
}

#[test]
fn unsynced_event_times_are_corrected() {
    let bench = Bench::new();
    let store = bench.open();
    bench.clock.set_wall(5_000, false); // 1970, as a Pi boots
    let event = bench.attendance("jdoe", "Jane Doe", Direction::In);
    append(&store, &event);
    let untrusted = bench.clock.now();
    assert_eq!(store.write(move |tx| tx.correct_times(&untrusted, &[])).unwrap(), 0);

    bench.clock.advance(Duration::from_secs(10));
    bench.clock.set_wall(START_MS, true);
    let now = bench.clock.now();
    assert_eq!(store.write(move |tx| tx.correct_times(&now, &[])).unwrap(), 1);
    assert_eq!(store.write(move |tx| tx.correct_times(&now, &[])).unwrap(), 0);
    let [first, second] = [1, 2].map(|seq| store.write(move |tx| tx.event(seq)).unwrap().unwrap());
    assert_eq!((first.occurred_ms, first.clock), (START_MS - 10_000, ClockState::Corrected));
    assert_eq!((second.occurred_ms, second.boottime_ms), (first.occurred_ms, first.boottime_ms));
    let Body::Correction(correction) = second.body else { panic!("{second:?}") };
    assert_eq!(correction.corrects, event.event_id);
    assert_eq!(correction.was, "1970-01-01T00:00:05.000Z");
}

#[test]
fn retention_deletes_only_old_delivered_events() {
    let bench = Bench::new();
    let store = bench.open();
    let at = |trusted: bool, wall_ms: i64| {
        let occurred = Stamp { wall_ms, boottime_ms: 1, trusted };
        append(&store, &NewEvent { occurred, ..bench.camera() });
    };
    at(true, START_MS); // 1: delivered
    at(true, START_MS); // 2: still owed
    at(true, START_MS); // 3: buried
    at(false, 5_000); // 4: delivered, time unknown, but 5 is later and old
    at(true, START_MS); // 5: delivered
    at(false, 5_000); // 6: delivered, time unknown: may be of today
    let settle = store.write(|tx| {
        for sink in [SinkName::MQTT, SinkName::MONGO] {
            let rows = tx.outbox_batch(sink, 0, 10)?;
            let delivered: Vec<i64> = [0, 3, 4, 5].iter().map(|at| rows[*at].id).collect();
            tx.acknowledge(&delivered)?;
            tx.dead_letter(rows[2].id, "too large")?;
        }
        Ok(())
    });
    settle.unwrap();
    assert_eq!(store.write(|tx| tx.retention(30)).unwrap(), 0, "nothing is old");
    bench.clock.advance(31 * DAY);
    bench.clock.set_wall(bench.clock.now().wall_ms, false);
    assert_eq!(store.write(|tx| tx.retention(30)).unwrap(), 0, "who knows what day it is");
    bench.clock.set_wall(bench.clock.now().wall_ms, true);
    assert_eq!(store.write(|tx| tx.retention(30)).unwrap(), 3);
    let left: Vec<i64> = (1..=6)
        .filter(|seq| {
            let seq = *seq;
            store.write(move |tx| tx.event(seq)).unwrap().is_some()
        })
        .collect();
    assert_eq!(left, [2, 3, 6]);
    assert_eq!(append(&store, &bench.camera()), 7, "the count goes on");
}

// Answers

#[test]
fn first_reply_of_request_is_kept() {
    let bench = Bench::new();
    let store = bench.open();
    let put = |request: &'static str, reply: &'static str| {
        store
            .write(move |tx| tx.store_and_queue_reply(request, "sync", "reply/r-1", reply))
            .unwrap()
    };
    assert!(put("r-1", r#"{"ok":true}"#));
    assert!(!put("r-1", r#"{"ok":false}"#));
    let answer = store.write(|tx| tx.stored_reply("r-1")).unwrap().unwrap();
    assert_eq!((answer.topic.as_str(), answer.reply.as_str()), ("reply/r-1", r#"{"ok":true}"#));
    let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 10)).unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!(batch[0].message(), Some(("reply/r-1", &br#"{"ok":true}"#[..])));
    assert_eq!(depth(&store, SinkName::MONGO), (0, 0), "replies are for MQTT");
    // Forgotten after a week.
    bench.clock.advance(8 * DAY);
    assert!(put("r-2", "{}"));
    assert_eq!(store.write(|tx| tx.delete_old_replies()).unwrap(), 1);
    assert!(store.write(|tx| tx.stored_reply("r-1")).unwrap().is_none());
}

#[test]
fn stored_replies_are_bounded() {
    let bench = Bench::new();
    let store = bench.open();
    // 100 answers of 400 kB are 40 MB; at most 32 MiB stay.
    let reply = format!("\"{}\"", "x".repeat(400_000));
    for part in 0..10 {
        let reply = reply.clone();
        let put = store.write(move |tx| {
            for at in 0..10 {
                tx.store_and_queue_reply(&format!("r-{part}-{at}"), "subjects", "reply/r", &reply)?;
            }
            let rows = tx.outbox_batch(SinkName::MQTT, 0, 100)?;
            tx.acknowledge(&rows.iter().map(|it| it.id).collect::<Vec<_>>())
        });
        put.unwrap();
    }
    let kept: i64 =
        bench.sqlite().query_row("select count(*) from command", [], |it| it.get(0)).unwrap();
    assert_eq!(kept, (32 << 20) / 400_002);
}

// A full disk

#[test]
fn reserve_bridges_full_disk_then_fails() {
    let bench = Bench::new();
    let options =
        StoreOptions { page_limit: Some(110), reserve_bytes: 64 * 4096, ..bench.options() };
    let store = Store::open(bench.path(), options).unwrap().store;
    assert!(store.vitals().reserve_held);
    let mut written = Vec::new();
    let mut with_reserve = 0;
    let error = loop {
        let event = bench.attendance("jdoe", "Jane Doe", Direction::In);
        let id = event.event_id;
        match store.write(move |tx| tx.append_event(&event)) {
            Ok(seq) => written.push((seq, id)),
            Err(error) => break error,
        }
        if store.vitals().reserve_held {
            with_reserve = written.len();
        }
    };
    assert!(matches!(error, StoreError::Full) && !error.is_fatal(), "{error}");
    assert!(!store.vitals().reserve_held && !bench.path().join("reserve").exists());
    let in_reserve = written.len() - with_reserve;
    assert!(in_reserve > 100, "{in_reserve} events fit into the reserve");

    // Delivered rows make room again, and nothing is lost.
    let rows = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, usize::MAX >> 1)).unwrap();
    assert_eq!(rows.len(), written.len());
    let ids: Vec<i64> = rows.iter().map(|it| it.id).collect();
    store.write(move |tx| tx.acknowledge(&ids)).unwrap();
    assert_eq!(append(&store, &bench.camera()), written.len() as i64 + 1);
    for ((seq, id), row) in written.iter().zip(&rows) {
        let event = row.event().unwrap();
        assert_eq!((event.seq, event.event_id), (*seq, *id));
    }
    drop(store);
    assert!(bench.open().vitals().reserve_held, "made anew at the next start");
}

#[test]
fn failed_large_write_spares_small_ones() {
    let bench = Bench::new();
    let options = StoreOptions { page_limit: Some(60), reserve_bytes: 0, ..bench.options() };
    let store = Store::open(bench.path(), options).unwrap().store;
    let threads: Vec<_> = (0..8)
        .map(|at| {
            let store = store.clone();
            let event = bench.camera();
            std::thread::spawn(move || {
                store.write(move |tx| {
                    let seq = tx.append_event(&event)?;
                    if at == 0 {
                        tx.put_meta("large", &vec![0; 1 << 20])?;
                    }
                    Ok(seq)
                })
            })
        })
        .collect();
    let outcomes: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
    assert!(matches!(outcomes[0], Err(StoreError::Full)));
    let mut seqs: Vec<i64> = outcomes[1..].iter().map(|it| *it.as_ref().unwrap()).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn replies_precede_pending_events() {
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..100 {
        append(&store, &bench.camera());
    }
    store.write(|tx| tx.queue_reply("reply/r-1", "{}")).unwrap();
    let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 8)).unwrap();
    assert!(
        batch[0].message().is_some() && batch[1..].iter().all(|it| it.event().is_some()),
        "{batch:?}"
    );
    assert_eq!(batch.len(), 8);
    // However many answers there are, events go on.
    for n in 0..20 {
        store.write(move |tx| tx.queue_reply(&format!("reply/s-{n}"), "{}")).unwrap();
    }
    let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 8)).unwrap();
    assert_eq!(batch.iter().filter(|it| it.message().is_some()).count(), 4);
}

// Reading beside the writer

/// A closure that waits inside the store until it is let go, and what lets it go.
fn held() -> (std::sync::mpsc::Receiver<()>, std::sync::mpsc::SyncSender<()>) {
    let (release, released) = std::sync::mpsc::sync_channel(1);
    (released, release)
}

#[tokio::test(flavor = "multi_thread")]
async fn report_runs_while_the_writer_is_busy() {
    let bench = Bench::new();
    let store = bench.open();
    append(&store, &bench.attendance("a", "Ann", Direction::In));
    let (released, release) = held();
    let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
    let write = tokio::spawn({
        let store = store.clone();
        let mut held = Some(released);
        async move {
            let wait = move |_: &mut Tx<'_>| {
                begun.send(()).ok();
                held.take().map_or(Ok(()), |it| it.recv().map_err(|_| StoreError::Closed))
            };
            store.write_async(wait).await
        }
    });
    has_begun.recv().unwrap();
    assert_eq!(store.read(|tx| tx.newest_seq()).await.unwrap(), 1, "what was written before");
    assert_eq!(store.report(|tx| tx.newest_seq()).await.unwrap(), 1);
    release.send(()).unwrap();
    write.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_report_delays_neither_writes_nor_reads() {
    let bench = Bench::new();
    let store = bench.open();
    let (released, release) = held();
    let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
    let report = tokio::spawn({
        let store = store.clone();
        async move {
            let wait = move |tx: &Tx<'_>| {
                let before = tx.newest_seq()?;
                begun.send(()).ok();
                released.recv().map_err(|_| StoreError::Closed)?;
                Ok((before, tx.newest_seq()?))
            };
            store.report(wait).await
        }
    });
    has_begun.recv().unwrap();
    let event = bench.camera();
    store.write_async(move |tx| tx.append_event(&event)).await.unwrap();
    assert_eq!(
        store.read(|tx| tx.newest_seq()).await.unwrap(),
        1,
        "a write is seen by the read that follows it"
    );
    release.send(()).unwrap();
    assert_eq!(report.await.unwrap().unwrap(), (0, 0), "a report sees one state of the record");
    store.close().unwrap();
    assert!(matches!(store.report(|tx| tx.newest_seq()).await, Err(StoreError::Closed)));
}
