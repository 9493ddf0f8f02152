//! The chain of events in real databases: every change beside the daemon is found and named, and what
//! the daemon itself changes is none.
//!
//! By hand, with figures: `cargo nextest run --release --test store chain:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a path is not general over lifetimes"
)]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::fs;
use std::time::Duration;

use crate::support::daemon::scaled;
use crate::support::store_bench::{Bench, DAY, append, subject};
use rollcall::attend::venue::Venue;
use rollcall::cli::verify::sources;
use rollcall::clock::{Clock as _, Stopwatch};
use rollcall::store::{SinkName, Store};
use rollcall::wire::chain::{self, Place, Start};
use rollcall::wire::chain_check::{Expected, FaultKind, Report, Signed, check};
use rollcall::wire::event::{Body, Direction, NewEvent, StoredEvent, recorded};
use rusqlite::{Connection, params};

/// Attendances of 50 people and every tenth time the camera; the first five from before the time was
/// known, and corrected.
fn record(bench: &Bench, count: usize) -> Store {
    let store = bench.open();
    let append_all = |count: usize| {
        let mut events: Vec<NewEvent> = Vec::new();
        for at in 0..count {
            bench.clock.advance(Duration::from_secs(1));
            let person = at % 50;
            events.push(if at % 10 == 9 {
                bench.camera()
            } else {
                bench.attendance(&format!("p{person}"), &format!("Person {person}"), Direction::In)
            });
        }
        for group in events.chunks(500) {
            let group = group.to_vec();
            store
                .write(move |tx| {
                    group.iter().try_for_each(|event| tx.append_event(event).map(drop))
                })
                .unwrap();
        }
    };
    bench.clock.set_wall(5_000, false);
    append_all(5);
    bench.clock.set_wall(crate::support::store_bench::START_MS, true);
    let now = bench.clock.now();
    let venues = [Venue::plain("room-a")];
    assert_eq!(store.write(move |tx| tx.correct_times(&now, &venues)).unwrap(), 5);
    append_all(count - 10);
    store
}

fn signed(store: &Store) -> Signed {
    let head = store.write(|tx| tx.chain_head()).unwrap().unwrap();
    Signed {
        newest: Place { seq: head.seq, hash: head.hash },
        record: head.record,
        began: head.began,
        deleted_through: head.deleted_through,
    }
}

fn verify(bench: &Bench, signed: &Signed) -> Report {
    let (found, _) = sources::database(bench.path()).unwrap();
    let signed = Some(signed.clone());
    let expected = Expected { signed, set_apart: found.set_apart, ..Expected::default() };
    let mut report = check(found.rows, &expected);
    for fault in found.faults {
        report.add(fault);
    }
    report
}

fn first(report: &Report) -> Option<(FaultKind, i64)> {
    report.first_fault.as_ref().map(|it| (it.kind, it.seq.unwrap()))
}

/// A database that is altered beside the daemon and put back.
struct Tampering<'a> {
    bench: &'a Bench,
    signed: Signed,
    conn: Connection,
}

impl<'a> Tampering<'a> {
    fn begin(bench: &'a Bench, store: Store) -> Self {
        let signed = signed(&store);
        drop(store);
        let conn = bench.sqlite();
        conn.execute_batch(
            "pragma foreign_keys = off; attach ':memory:' as kept; \
             create table kept.event as select * from main.event;",
        )
        .unwrap();
        assert_eq!(first(&verify(bench, &signed)), None);
        Self { bench, signed, conn }
    }

    /// Executes SQL, and expects to be told of it.
    fn check(&self, sql: &str, kind: FaultKind, seq: i64) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(first(&verify(self.bench, &self.signed)), Some((kind, seq)), "{sql}");
        let undo = "delete from main.event; insert into main.event select * from kept.event;";
        self.conn.execute_batch(undo).unwrap();
    }

    fn alter(&self, seq: i64) {
        for set in [
            "occurred_ms = occurred_ms + 60000",
            "event_id = randomblob(16)",
            "boot_id = 'other'",
            "boottime_ms = boottime_ms + 1",
            "clock = iif(clock = 'unsynced', 'synced', 'unsynced')",
            "venue = 'room-b'",
            "subject_id = 'somebody'",
            "direction = iif(direction is 'out', 'in', 'out')",
            "session = 'x'",
            "superseded_by = zeroblob(16)",
            "kind = iif(kind = 'unknown', 'attack', 'unknown')",
            "body = '{}'",
            "body = json_remove(body, '$.chain')",
            "body = json_remove(body, '$.chain.prev')",
            "body = json_set(body, '$.schema', 2)",
            "body = json_set(body, '$.chain.hash', json_extract(body, '$.chain.prev'))",
        ] {
            if seq == 1 && set.contains("prev") {
                continue;
            }
            self.check(
                &format!("update event set {set} where seq = {seq}"),
                FaultKind::Altered,
                seq,
            );
        }
        let is_attendance: bool = self
            .conn
            .query_row("select kind = 'attendance' from event where seq = ?1", [seq], |row| {
                row.get(0)
            })
            .unwrap();
        if is_attendance {
            for set in [
                "body = json_set(body, '$.venue', 'room-b'), venue = 'room-b'",
                "body = json_set(body, '$.subject.name', 'Somebody Else')",
                "body = json_set(body, '$.subject.id', 'somebody'), subject_id = 'somebody'",
                "body = json_set(body, '$.subject', null), subject_id = null",
                "body = json_set(json_remove(body, '$.chain.salt'), '$.subject', null), subject_id = null",
                "body = json_set(body, '$.direction', 'out'), direction = 'out'",
                "body = json_set(body, '$.score', 0.9)",
                "body = json_remove(body, '$.chain.salt')",
                "body = json_set(body, '$.chain.record.seq', 999)",
            ] {
                if seq == 1 && set.contains("record") {
                    continue;
                }
                self.check(
                    &format!("update event set {set} where seq = {seq}"),
                    FaultKind::Altered,
                    seq,
                );
            }
            self.alter_with_hash(seq);
        }
    }

    /// As somebody who knows the form: the link is made anew.
    fn alter_with_hash(&self, seq: i64) {
        let body = self.forged(seq, seq);
        let sql = "update event set body = ?2, venue = 'forged' where seq = ?1";
        self.conn.execute(sql, params![seq, body]).unwrap();
        self.check("", FaultKind::Altered, seq);
    }

    /// The body of an event with another venue, linked as if it had the number `to`.
    fn forged(&self, from: i64, to: i64) -> String {
        let mut event = self.event(from);
        let Body::Attendance(body) = &mut event.body else { panic!("{event:?}") };
        body.venue = "forged".into();
        let mut link = *event.chain.take().unwrap();
        event.seq = to;
        if to != from {
            let before = self.event(to - 1).chain.unwrap();
            (link.prev, link.start, link.was) = (Some(before.hash), None, None);
        }
        let content = chain::content(&recorded(&event), link.was.as_ref(), &link.commit);
        let record = link.record.as_ref();
        link.hash = chain::hash(to, &content, link.prev.as_ref(), record, link.start);
        event.body.to_stored(Some(&link))
    }

    fn event(&self, seq: i64) -> StoredEvent {
        let reader = Store::open_record(self.bench.path(), None).unwrap();
        reader.record_rows(seq - 1, 1, None).unwrap().remove(0).event.unwrap()
    }

    fn remove(&self, seq: i64, newest: i64) {
        let kind = if seq == newest { FaultKind::Truncated } else { FaultKind::Removed };
        self.check(&format!("delete from event where seq = {seq}"), kind, seq);
    }

    /// A new row at the end, or in the place of one that is pushed back.
    fn insert(&self, seq: i64, newest: i64) {
        const COLUMNS: &str = "kind, occurred_ms, boot_id, boottime_ms, clock, venue, subject_id, direction, body, session";
        let next = newest + 1;
        self.check(
            &format!(
                "insert into event (seq, event_id, {COLUMNS}) select {next}, randomblob(16), {COLUMNS} \
                 from event where seq = {seq}"
            ),
            FaultKind::Inserted,
            next,
        );
        self.check(
            &format!(
                "insert into event (seq, event_id, kind, occurred_ms, boot_id, boottime_ms, clock, body) \
                 values ({next}, randomblob(16), 'camera', 1, 'b', 1, 'synced', \
                 '{{\"schema\":1,\"state\":\"lost\",\"reason\":null,\"lost_ms\":null}}')"
            ),
            FaultKind::Inserted,
            next,
        );
        // All rows from there on get the next number: each of them is in another's place.
        self.check(
            &format!(
                "update event set seq = -seq where seq >= {seq}; \
                 update event set seq = 1 - seq where seq < 0; \
                 insert into event (seq, event_id, {COLUMNS}) select {seq}, randomblob(16), {COLUMNS} \
                 from event where seq = {seq} + 1"
            ),
            FaultKind::Inserted,
            seq,
        );
    }

    fn swap(&self, one: i64, other: i64) {
        self.check(
            &format!(
                "update event set seq = -1 where seq = {one}; update event set seq = {one} where seq = {other}; \
                 update event set seq = {other} where seq = -1"
            ),
            FaultKind::Swapped,
            one.min(other),
        );
    }

    fn truncate(&self, from: i64) {
        self.check(&format!("delete from event where seq >= {from}"), FaultKind::Truncated, from);
    }
}

/// Whatever is changed in whichever row of a small record.
#[test]
fn every_change_of_a_small_record_is_named() {
    let bench = Bench::new();
    let count = 20;
    let store = record(&bench, count as usize);
    let tampering = Tampering::begin(&bench, store);
    for seq in 1..=count {
        tampering.alter(seq);
        tampering.remove(seq, count);
        tampering.insert(seq, count);
        tampering.truncate(seq);
        for other in seq + 1..=count {
            tampering.swap(seq, other);
        }
    }
}

/// The same in a large one, for rows here and there.
#[test]
fn changes_of_ten_thousand_events_are_named() {
    let bench = Bench::new();
    let count = scaled("E2E_EVENTS", 10_000) as i64;
    let store = record(&bench, count as usize);
    let tampering = Tampering::begin(&bench, store);
    let watch = Stopwatch::start();
    assert_eq!(verify(&bench, &tampering.signed).checked, count as u64);
    println!("{count} events checked in {:.2} s", watch.elapsed().as_secs_f64());
    let rows = scaled("E2E_ROWS", 2) as i64;
    for at in 0..=rows {
        let seq = 1 + at * (count - 1) / rows;
        let checks = ["occurred_ms = occurred_ms + 60000", "boot_id = 'other'", "venue = 'room-b'"];
        for set in checks {
            let sql = format!("update event set {set} where seq = {seq}");
            tampering.check(&sql, FaultKind::Altered, seq);
        }
        tampering.remove(seq, count);
        tampering.insert(seq, count);
        tampering.truncate(seq);
        let other = 1 + (seq + count / 3) % count;
        tampering.swap(seq, if other == seq { seq + 1 } else { other });
    }
}

#[test]
fn erasure_keeps_the_chain_and_leaves_no_name() {
    const NAME: &str = "Zephyrine Quittengelb";
    let bench = Bench::new();
    let store = record(&bench, 50);
    let mut salts = Vec::new();
    for _ in 0..20 {
        let seq = append(&store, &bench.attendance("zq", NAME, Direction::In));
        let event = store.write(move |tx| tx.event(seq)).unwrap().unwrap();
        salts.push(event.chain.unwrap().salt.unwrap().to_string());
    }
    let before = signed(&store);
    store.write(|tx| tx.erase_subject(&subject("zq"))).unwrap();
    append(&store, &bench.camera());
    store.close().unwrap();
    let report = verify(&bench, &before);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.erased, report.unsigned), (20, 1));
    for entry in fs::read_dir(bench.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(!has("Zephyrine") && !has("Quittengelb"), "{}", path.display());
        assert!(!salts.iter().any(|it| has(it)), "{}", path.display());
    }
}

#[test]
fn record_of_earlier_version_is_continued() {
    let bench = Bench::new();
    let store = record(&bench, 20);
    drop(store);
    // As it was before there was a chain.
    bench.rewrite(
        "update event set body = json_remove(body, '$.chain'); delete from meta where key like 'chain%'",
    );
    let store = bench.open();
    let seq = append(&store, &bench.attendance("p1", "Person 1", Direction::In));
    append(&store, &bench.camera());
    let event = store.write(move |tx| tx.event(seq)).unwrap().unwrap();
    assert_eq!(event.chain.unwrap().start, Some(Start::Existing));
    let signed = signed(&store);
    assert_eq!(signed.began, 21);
    let report = verify(&bench, &signed);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.checked, report.not_covered), (2, 20));
}

#[test]
fn damaged_newest_event_breaks_the_chain_visibly() {
    let bench = Bench::new();
    let store = record(&bench, 20);
    let signed_before = signed(&store);
    drop(store);
    bench.sqlite().execute("update event set body = 'damaged' where seq = 20", []).unwrap();
    let store = bench.open();
    assert_eq!(store.write(|tx| tx.chain_head()).unwrap(), None);
    let seq = append(&store, &bench.camera());
    assert_eq!(seq, 21);
    append(&store, &bench.camera());
    let event = store.write(move |tx| tx.event(seq)).unwrap().unwrap();
    assert_eq!(event.chain.unwrap().start, Some(Start::Break));
    let report = verify(&bench, &signed(&store));
    assert_eq!(first(&report), Some((FaultKind::Altered, 20)), "{report:?}");
    assert_eq!((report.breaks.as_slice(), report.faults), (&[21][..], 1));
    assert_eq!(verify(&bench, &signed_before).breaks, [21]);
    let reader = Store::open_read_only(bench.path(), None).unwrap();
    assert_eq!(reader.chain_broken_at().unwrap(), Some(21));
}

#[test]
fn retention_keeps_the_chain_provable() {
    let bench = Bench::new();
    let store = record(&bench, 30);
    let deliver = |store: &Store, kept: i64| {
        let settle = move |tx: &mut rollcall::store::Tx<'_>| {
            for sink in [SinkName::MQTT, SinkName::MONGO] {
                let rows = tx.outbox_batch(sink, 0, 1000)?;
                let is_delivered =
                    |it: &&rollcall::store::OutboxRow| it.event().is_none_or(|it| it.seq != kept);
                tx.acknowledge(
                    &rows.iter().filter(is_delivered).map(|it| it.id).collect::<Vec<_>>(),
                )?;
            }
            Ok(())
        };
        store.write(settle).unwrap();
    };
    // One is kept, because it was not delivered.
    deliver(&store, 3);
    bench.clock.advance(60 * DAY);
    append(&store, &bench.camera());
    append(&store, &bench.camera());
    let before = signed(&store);
    assert_eq!(store.write(|tx| tx.retention(30)).unwrap(), 29);
    let after = signed(&store);
    assert_eq!((after.deleted_through, after.newest.seq), (30, 32));
    assert!(verify(&bench, &after).is_intact(), "{:?}", verify(&bench, &after));
    // A checkpoint from before does not say that they may be missing.
    assert_eq!(first(&verify(&bench, &before)), Some((FaultKind::Removed, 1)));
    // All of them, the newest too.
    deliver(&store, 0);
    bench.clock.advance(60 * DAY);
    while store.write(|tx| tx.retention(30)).unwrap() > 0 {}
    let after = signed(&store);
    assert_eq!((after.deleted_through, after.newest.seq), (32, 32));
    assert_eq!(append(&store, &bench.camera()), 33);
    let report = verify(&bench, &signed(&store));
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.checked, report.breaks.len()), (1, 0));
}

/// A passage that counts in the stead of another changes that one before and after it was linked.
#[test]
fn superseded_attendance_is_explained_by_its_correction() {
    use rollcall::attend::venue::{SessionSpec, VenueSpec};
    let bench = Bench::new();
    let store = bench.open();
    let session = SessionSpec {
        id: "mon-am".into(),
        weekdays: vec!["mon".into()],
        start: "08:00".into(),
        end: "12:00".into(),
        ..SessionSpec::default()
    };
    let spec = VenueSpec { sessions: vec![session], ..VenueSpec::plain("room-a") };
    let venue = Venue::new(&spec, rollcall::clock::time_zone("UTC").unwrap()).unwrap();
    let at = |minutes: u64| {
        bench.clock.advance(Duration::from_mins(minutes));
        let mut event = bench.attendance("p1", "Person 1", Direction::In);
        let Body::Attendance(body) = &mut event.body else { unreachable!() };
        body.session = Some("2026-11-23T08:00Z/mon-am".into());
        event
    };
    let [early, late, later] = [5, 5, 5].map(at);
    for event in [late, early, later] {
        let venue = venue.clone();
        store.write(move |tx| tx.append_attendance(&venue, &event)).unwrap();
    }
    let events = store.write(|tx| tx.events_after(0, 10)).unwrap();
    let kinds: Vec<&str> = events.iter().map(|it| it.body.kind().as_str()).collect();
    assert!(kinds.contains(&"correction"), "{kinds:?}");
    assert!(events.iter().any(|it| it.chain.as_ref().unwrap().was.is_some()));
    assert!(events.iter().filter(|it| it.superseded_by.is_some()).count() >= 2);
    let report = verify(&bench, &signed(&store));
    assert!(report.is_intact(), "{report:?} {events:#?}");
}

/// What the chain adds to an event, beside all that an event costs.
#[test]
fn chain_is_a_small_part_of_a_commit() {
    let bench = Bench::new();
    let store = bench.open();
    let count = scaled("E2E_COMMITS", 300);
    let watch = Stopwatch::start();
    for at in 0..count {
        append(&store, &bench.attendance(&format!("p{at}"), "Person", Direction::In));
    }
    let commit_us = watch.elapsed().as_secs_f64() * 1e6 / count as f64;
    let mut events = store.write(move |tx| tx.events_after(0, count as u32)).unwrap();
    let links: Vec<_> = events.iter_mut().map(|it| it.chain.take().unwrap()).collect();
    let watch = Stopwatch::start();
    for (event, link) in events.iter().zip(&links) {
        let fields = recorded(event);
        let commit = chain::commitments(&fields, link.salt.as_ref().unwrap());
        let content = chain::content(&fields, None, &commit);
        let prev = link.prev.as_ref();
        let hash = chain::hash(event.seq, &content, prev, link.record.as_ref(), link.start);
        assert_eq!(hash, link.hash);
        assert!(event.body.to_stored(Some(link)).len() < 1000);
    }
    let chain_us = watch.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!(
        "a commit of one event {commit_us:.0} us, its hashes {chain_us:.1} us: {:.1} %",
        100.0 * chain_us / commit_us
    );
}
