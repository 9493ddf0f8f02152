//! What the store does about damaged rows and pages: the rest is delivered and listed as it was, and the loss is named.

#![expect(clippy::print_stdout, reason = "the seed, for a run by hand")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a path is not general over lifetimes"
)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rollcall::clock::Clock as _;
use rollcall::store::{
    AttendanceQuery, OutboxPayload, Reference, SinkName, Store, StoreError, Subject, UnreadableRow,
};
use rollcall::wire::event::{Direction, StoredEvent};

use crate::support::store_bench::{Bench, append, embedder, enrol, subject, template};

const EVENTS: i64 = 3_000;
const SUBJECTS: u16 = 20;

/// A xorshift generator: the same flips for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// All that can be listed of a store.
#[derive(Default)]
struct Content {
    events: BTreeMap<i64, StoredEvent>,
    replies: BTreeSet<(String, Vec<u8>)>,
    subjects: BTreeMap<String, Subject>,
    references: BTreeMap<String, Vec<Reference>>,
    venues: BTreeMap<String, String>,
    answers: BTreeMap<String, String>,
    unreadable: Vec<UnreadableRow>,
}

fn everything() -> AttendanceQuery {
    AttendanceQuery {
        venue: None,
        from_ms: 0,
        to_ms: i64::MAX,
        after_seq: 0,
        limit: 10_000,
        all: true,
    }
}

/// Delivers through a sink that takes everything, and lists the rest.
fn drain(store: &Store) -> Content {
    let mut content = Content::default();
    loop {
        let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 500)).unwrap();
        if batch.is_empty() {
            // What was found damaged on the way may have made other rows due.
            if store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 1)).unwrap().is_empty() {
                break;
            }
            continue;
        }
        let ids: Vec<i64> = batch.iter().map(|it| it.id).collect();
        for row in batch {
            match row.payload {
                OutboxPayload::Event { event, .. } => drop(content.events.insert(event.seq, event)),
                OutboxPayload::Message { topic, bytes } => {
                    content.replies.insert((topic, bytes));
                }
            }
        }
        store.write(move |tx| tx.acknowledge(&ids)).unwrap();
    }
    let listed = store
        .write(|tx| {
            let mut references = Vec::new();
            tx.all_references(&embedder(1), |it| references.push(it))?;
            let answers: Vec<_> =
                (0..10).map(|n| tx.stored_reply(&format!("r-{n}"))).collect::<Result<_, _>>()?;
            Ok((
                tx.subjects(None, 500)?,
                references,
                tx.venues()?,
                answers,
                tx.attendance(&everything())?,
            ))
        })
        .unwrap();
    let (subjects, references, venues, answers, attendance) = listed;
    content.subjects = subjects.into_iter().map(|it| (it.id.to_string(), it)).collect();
    for it in references {
        content.references.entry(it.subject_id.to_string()).or_default().push(it);
    }
    content.venues = venues.into_iter().map(|it| (it.id, it.body)).collect();
    content.answers =
        (0..10).zip(answers).filter_map(|(n, it)| Some((format!("r-{n}"), it?.reply))).collect();
    for event in attendance {
        assert_eq!(content.events.get(&event.seq), Some(&event), "delivered and listed alike");
    }
    content.unreadable = store.write(|tx| tx.unreadable_rows(10_000)).unwrap();
    content
}

/// A stopped daemon's state directory with pending events, people, venues and answers.
fn prepared() -> Bench {
    let bench = Bench::new();
    let store = bench.open();
    for n in 0..SUBJECTS {
        enrol(&store, &format!("s{n}"), &format!("Name {n}"), &[template(n), template(n + 100)]);
    }
    store
        .write(|tx| {
            for n in 0..10 {
                tx.store_and_queue_reply(
                    &format!("r-{n}"),
                    "sync",
                    &format!("reply/r-{n}"),
                    &format!("{{\"n\":{n}}}"),
                )?;
                tx.put_venue(&format!("v{n}"), &format!("{{\"id\":\"v{n}\"}}"))?;
            }
            Ok(())
        })
        .unwrap();
    let events: Vec<_> = (0..EVENTS)
        .map(|n| {
            bench.clock.advance(Duration::from_secs(1));
            let id = n % i64::from(SUBJECTS);
            bench.attendance(&format!("s{id}"), &format!("Name {id}"), Direction::In)
        })
        .collect();
    store.write(move |tx| events.iter().try_for_each(|it| tx.append_event(it).map(drop))).unwrap();
    store.close().unwrap();
    bench
}

fn copied(from: &Path) -> Bench {
    let bench = Bench::new();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "reserve" {
            fs::copy(&path, bench.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    bench
}

/// Every value found is as it was; gives what is missing.
fn missing<K: Ord + Clone + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Vec<K> {
    for (key, value) in after {
        assert_eq!(before.get(key), Some(value), "altered: {key:?}");
    }
    before.keys().filter(|it| !after.contains_key(it)).cloned().collect()
}

fn names(content: &Content, table: &str) -> usize {
    content.unreadable.iter().filter(|it| it.table == table).count()
}

fn check_flip(original: &Content, content: &Content) -> usize {
    let named = |table: &str, row: &str| {
        content.unreadable.iter().any(|it| it.table == table && it.row == row)
    };
    let lost = missing(&original.events, &content.events);
    for seq in &lost {
        assert!(named("event", &seq.to_string()), "event {seq} is neither delivered nor named");
    }
    assert!(content.replies.is_subset(&original.replies), "an answer was altered");
    assert!(
        original.replies.len() - content.replies.len() <= names(content, "outbox"),
        "an answer is not named"
    );
    // A subject has one reference fewer when that is lost.
    let people = |it: &Content, exact: bool| -> BTreeMap<String, Subject> {
        let subjects = it.subjects.iter().map(|(id, it)| (id.clone(), it.clone()));
        subjects
            .map(|(id, it)| {
                (id, if exact { it } else { Subject { references: 0, embedder: None, ..it } })
            })
            .collect()
    };
    let exact = names(content, "reference") == 0;
    for id in missing(&people(original, exact), &people(content, exact)) {
        assert!(names(content, "subject") > 0, "subject {id} is not named");
    }
    for (id, references) in &content.references {
        let before = &original.references[id];
        assert!(references.iter().all(|it| before.contains(it)), "a reference of {id} was altered");
    }
    let count = |it: &Content| it.references.values().map(Vec::len).sum::<usize>();
    assert!(
        count(original) - count(content) <= names(content, "reference"),
        "a reference is not named"
    );
    assert!(missing(&original.venues, &content.venues).len() <= names(content, "venue"));
    assert!(missing(&original.answers, &content.answers).len() <= names(content, "command"));
    lost.len()
}

/// Before the daemon starts again, other commands read the file as it is.
fn check_reading(bench: &Bench, original: &Content) {
    let Ok(reader) = Store::open_read_only(bench.path(), None) else { return };
    if let Ok(listed) = reader.attendance(&everything()) {
        for event in listed {
            assert_eq!(original.events.get(&event.seq), Some(&event), "listed altered");
        }
    }
}

#[test]
fn single_bit_flips_alter_nothing_and_block_nothing() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(default)
    };
    let (seed, flips) = (number("ROLLCALL_FLIP_SEED", 20_261_129), number("ROLLCALL_FLIPS", 50));
    println!("seed {seed}, {flips} flips (ROLLCALL_FLIP_SEED, ROLLCALL_FLIPS)");
    let prepared = prepared();
    let original = drain(&copied(prepared.path()).open());
    assert_eq!(original.events.len() as i64, EVENTS);
    assert!(original.unreadable.is_empty());
    let bytes = fs::read(prepared.path().join("rollcall.db")).unwrap();
    let mut random = Random(seed.max(1));
    let (mut lost, mut rebuilt, mut emptied) = (0, 0, 0);
    for flip in 0..flips {
        let bit = random.below(bytes.len() as u64 * 8);
        let mut damaged = bytes.clone();
        damaged[(bit / 8) as usize] ^= 1 << (bit % 8);
        let bench = copied(prepared.path());
        fs::write(bench.path().join("rollcall.db"), &damaged).unwrap();
        println!("flip {flip}: bit {} of byte {}", bit % 8, bit / 8);
        check_reading(&bench, &original);
        let opened = bench.try_open().unwrap();
        rebuilt += u64::from(opened.moved_aside.is_some());
        let content = drain(&opened.store);
        if content.events.is_empty() && opened.moved_aside.is_some() {
            emptied += 1;
            continue;
        }
        lost += check_flip(&original, &content);
        assert_eq!(append(&opened.store, &bench.camera()), EVENTS + 1, "the count goes on");
    }
    println!(
        "{flips} flips: {lost} events lost and named, {rebuilt} databases rebuilt, {emptied} of them empty"
    );
    assert!(emptied * 20 <= flips, "nearly every damaged database can be rebuilt");
}

/// One row of each kind, by its key.
const ROWS: [(&str, &str, &str, &str); 8] = [
    ("event", "seq", "5", "body"),
    ("outbox", "id", "20", "sink"),
    ("subject", "id", "s3", "name"),
    ("reference", "row", "7", "subject_id"),
    ("command", "row", "2", "reply"),
    ("venue", "id", "v4", "body"),
    ("meta", "key", "sink.mqtt", "value"),
    ("outbox", "id", "3", "payload"),
];

#[test]
fn one_wrong_bit_is_corrected() {
    let prepared = prepared();
    let original = drain(&copied(prepared.path()).open());
    for (table, key, row, column) in ROWS {
        let bench = copied(prepared.path());
        let sqlite = bench.sqlite();
        sqlite.pragma_update(None, "foreign_keys", false).unwrap();
        // The highest bit of the first byte: text is no UTF-8 any more.
        let read = format!("select cast({column} as blob) from {table} where {key} = ?1");
        let mut value: Vec<u8> = sqlite.query_row(&read, [row], |it| it.get(0)).unwrap();
        value[0] ^= 0x80;
        let as_was = if table == "meta" { "?2" } else { "cast(?2 as text)" };
        let write = format!("update {table} set {column} = {as_was} where {key} = ?1");
        assert_eq!(sqlite.execute(&write, rusqlite::params![row, value]).unwrap(), 1, "{table}");
        drop(sqlite);
        let opened = bench.try_open().unwrap();
        assert!(opened.moved_aside.is_none() && opened.unreadable.is_empty(), "{table}.{column}");
        let content = drain(&opened.store);
        assert_eq!(check_flip(&original, &content), 0, "{table}.{column}");
        assert_eq!(content.unreadable, [], "{table}.{column}");
        assert_eq!(content.events.len(), original.events.len(), "{table}.{column}");
    }
}

#[test]
fn an_altered_row_is_passed_over_and_named() {
    let prepared = prepared();
    let original = drain(&copied(prepared.path()).open());
    for (table, key, row, column) in ROWS {
        let bench = copied(prepared.path());
        let sqlite = bench.sqlite();
        sqlite.pragma_update(None, "foreign_keys", false).unwrap();
        let altered = if table == "meta" { "x'616263'" } else { "'abc'" };
        let write = format!("update {table} set {column} = {altered} where {key} = ?1");
        assert_eq!(sqlite.execute(&write, [row]).unwrap(), 1, "{table}");
        drop(sqlite);
        let opened = bench.try_open().unwrap();
        let found: Vec<(&str, &str)> =
            opened.unreadable.iter().map(|it| (it.table.as_str(), it.row.as_str())).collect();
        assert_eq!(found, [(table, row)], "{table}.{column}");
        let content = drain(&opened.store);
        let lost = check_flip(&original, &content);
        assert_eq!(lost, usize::from(table == "event"), "{table}.{column}");
    }
}

#[test]
fn a_lost_event_holds_the_watermark_until_accepted() {
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..5 {
        bench.clock.advance(Duration::from_mins(1));
        append(&store, &bench.camera());
    }
    let watched = bench.clock.now();
    store.write(move |tx| tx.observe(None, &watched)).unwrap();
    drop(store);
    bench
        .sqlite()
        .execute("update event set occurred_ms = occurred_ms * 3 where seq = 3", [])
        .unwrap();
    let store = bench.open();
    for sink in [SinkName::MQTT, SinkName::MONGO] {
        let batch = store.write(move |tx| tx.outbox_batch(sink, 0, 10)).unwrap();
        let seqs: Vec<i64> = batch.iter().map(|it| it.event().unwrap().seq).collect();
        assert_eq!(seqs, [1, 2, 4, 5]);
        let ids: Vec<i64> = batch.iter().map(|it| it.id).collect();
        store.write(move |tx| tx.acknowledge(&ids)).unwrap();
    }
    let standing = store.write(|tx| tx.delivery_status()).unwrap();
    let (sink, held) = standing.held_back_by().unwrap();
    assert_eq!((sink, held.seq, held.is_dead_letter), (SinkName::MQTT, 3, true));
    assert_eq!((standing.unreadable.rows, standing.unreadable.events), (1, 1));
    let second = store.write(|tx| tx.event(2)).unwrap().unwrap();
    assert!(standing.complete_through_ms(None).unwrap() < second.occurred_ms);
    assert_eq!(store.write(|tx| tx.forget_unreadable()).unwrap(), 1);
    let standing = store.write(|tx| tx.delivery_status()).unwrap();
    assert_eq!(standing.held_back_by(), None);
    assert_eq!(standing.unreadable.rows, 0);
}

#[test]
fn damage_while_running_is_dead_lettered_by_itself() {
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..3 {
        append(&store, &bench.camera());
    }
    bench
        .sqlite()
        .execute("update event set body = cast(x'7bff7d' as text) where seq = 2", [])
        .unwrap();
    let batch = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 10)).unwrap();
    assert_eq!(batch.iter().map(|it| it.event().unwrap().seq).collect::<Vec<_>>(), [1, 3]);
    let rows = store.write(|tx| tx.unreadable_rows(10)).unwrap();
    assert_eq!((rows[0].table.as_str(), rows[0].row.as_str()), ("event", "2"));
    let buried = store.write(|tx| tx.dead_letters(10)).unwrap();
    assert!(buried.iter().any(|it| it.event_seq == Some(2) && it.reason.starts_with("unreadable")));
}

#[test]
fn a_damaged_row_is_never_made_valid() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    bench.sqlite().execute("update subject set name = 'Jane Roe'", []).unwrap();
    let rename = |store: &Store| {
        let (id, name) = (subject("jdoe"), rollcall::ids::Name::new("Jane Poe").unwrap());
        store.write(move |tx| tx.rename_subject(&id, &name))
    };
    assert!(matches!(rename(&store), Err(StoreError::UnknownSubject { .. })));
    assert_eq!(store.write(|tx| tx.subjects(None, 10)).unwrap(), []);
    assert_eq!(store.write(|tx| tx.unreadable()).unwrap().rows, 1);
    enrol(&store, "jdoe", "Jane Doe", &[template(2)]);
    assert_eq!(store.write(|tx| tx.subjects(None, 10)).unwrap()[0].references, 2);
}

#[test]
fn rows_of_another_tool_are_adopted_or_named() {
    let bench = Bench::new();
    drop(bench.open());
    let sqlite = bench.sqlite();
    sqlite.execute("insert into venue values ('good', '{}', 1)", []).unwrap();
    sqlite.execute("insert into venue values ('bad', cast(x'7bef7d' as text), 1)", []).unwrap();
    drop(sqlite);
    let opened = bench.try_open().unwrap();
    let venues = opened.store.write(|tx| tx.venues()).unwrap();
    assert_eq!(venues.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(
        (opened.unreadable[0].table.as_str(), opened.unreadable[0].row.as_str()),
        ("venue", "bad")
    );
}

#[test]
fn an_erasure_keeps_nothing_of_damaged_rows() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    append(&store, &bench.attendance("jdoe", "Jane Doe", Direction::In));
    drop(store);
    bench.sqlite().execute("update event set occurred_ms = 1", []).unwrap();
    let store = bench.open();
    store.write(|tx| tx.erase_subject(&subject("jdoe"))).unwrap();
    store.close().unwrap();
    let file = fs::read(bench.path().join("rollcall.db")).unwrap();
    assert!(!file.windows(8).any(|it| it == b"Jane Doe"));
}

/// As after a kill: what was committed last is in the log alone.
#[test]
fn flipped_log_bit_loses_no_event() {
    const COMMITTED: i64 = 60;
    let bench = Bench::new();
    let store = bench.open();
    for _ in 0..COMMITTED {
        append(&store, &bench.attendance("jdoe", "Jane Doe", Direction::In));
    }
    let mut random = Random(0x5eed);
    for _ in 0..24 {
        let copy = Bench::new();
        for name in ["rollcall.db", "rollcall.db-wal", "rollcall.key"] {
            fs::copy(bench.path().join(name), copy.path().join(name)).unwrap();
        }
        let path = copy.path().join("rollcall.db-wal");
        let mut log = fs::read(&path).unwrap();
        let bit = random.below(log.len() as u64 * 8) as usize;
        log[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &log).unwrap();
        drop(copy.open());
        let sql = "select (select count(*) from event) \
                   + (select count(*) from unreadable where tbl = 'event')";
        let found: i64 = copy.sqlite().query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(found, COMMITTED, "bit {bit} of {}", log.len() * 8);
    }
}
