//! Consents in the store: they go with their subject, travel with it, and leave a receipt when they end.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::sync::Arc;
use std::time::Duration;

use crate::support::store_bench::{
    Bench, START_MS, append, enrol, erasures_carried_out, subject, template,
};
use rollcall::clock::Clock as _;
use rollcall::ids::Name;
use rollcall::store::{AcceptOutcome, ConsentCounts, Store, StoreError};
use rollcall::wire::consent::{Consent, ENDING_MS};
use rollcall::wire::event::{Body, Direction, EndReason};
use rollcall::wire::subject::State;

fn consent(valid_until_ms: Option<i64>) -> Consent {
    Consent::new(START_MS, "2026-1", valid_until_ms, Name::new("Front desk").unwrap()).unwrap()
}

fn put(store: &Store, id: &'static str, consent: &Consent) {
    let consent = consent.clone();
    store.write(move |tx| tx.put_consent(&subject(id), &consent)).unwrap();
}

fn consent_of(store: &Store, id: &'static str) -> Option<Consent> {
    store.write(move |tx| tx.consent(&subject(id))).unwrap()
}

/// Rows of the two tables with their checksums, by another connection.
fn rows(bench: &Bench) -> [i64; 3] {
    let sqlite = bench.sqlite();
    [
        "select count(*) from consent",
        "select count(*) from checksum where tbl = 12",
        "select count(*) from checksum where tbl = 13",
    ]
    .map(|sql| sqlite.query_row(sql, [], |row| row.get(0)).unwrap())
}

#[test]
fn consent_is_kept_and_renewed() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    let unknown = store.write(|tx| tx.put_consent(&subject("nobody"), &consent(None)));
    assert!(matches!(unknown, Err(StoreError::UnknownSubject { .. })));
    assert_eq!(consent_of(&store, "jdoe"), None);
    put(&store, "jdoe", &consent(Some(START_MS + 1)));
    put(&store, "jdoe", &consent(Some(START_MS + 2)));
    drop(store);
    let store = bench.open();
    assert_eq!(consent_of(&store, "jdoe"), Some(consent(Some(START_MS + 2))));
    let listed = store.write(|tx| tx.subjects(None, 10)).unwrap();
    assert_eq!(listed[0].consent, consent_of(&store, "jdoe"));
    assert_eq!(rows(&bench), [1, 1, 0]);
    let counts = |now_ms| store.write(move |tx| tx.consent_counts(now_ms)).unwrap();
    assert_eq!(counts(START_MS + 1 - ENDING_MS), ConsentCounts { recorded: 1, ending: 0 });
    assert_eq!(counts(START_MS + 2 - ENDING_MS), ConsentCounts { recorded: 1, ending: 1 });
}

#[test]
fn consent_goes_with_its_subject() {
    for erase in [false, true] {
        let bench = Bench::new();
        let store = bench.open();
        enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
        put(&store, "jdoe", &consent(None));
        store
            .write(move |tx| {
                if erase {
                    tx.erase_subject(&subject("jdoe")).map(drop)
                } else {
                    tx.delete_subject(&subject("jdoe")).map(drop)
                }
            })
            .unwrap();
        assert_eq!(rows(&bench), [0, 0, 0], "{erase}");
        enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
        assert_eq!(consent_of(&store, "jdoe"), None, "another enrolment needs another");
    }
}

#[test]
fn ended_consent_leaves_receipt_and_events() {
    let bench = Bench::new();
    let store = bench.open();
    for id in ["jdoe", "open", "later"] {
        enrol(&store, id, "Jane Doe", &[template(1)]);
        append(&store, &bench.attendance(id, "Jane Doe", Direction::In));
    }
    put(&store, "jdoe", &consent(Some(START_MS + 1_000)));
    put(&store, "open", &consent(None));
    put(&store, "later", &consent(Some(START_MS + 1_001)));
    bench.clock.advance(Duration::from_secs(1));
    let clock = Arc::clone(&bench.clock);
    let untrusted = rollcall::clock::Stamp { trusted: false, ..clock.now() };
    assert!(
        store
            .write(move |tx| tx.end_expired_consents(untrusted, untrusted.wall_ms, 10))
            .unwrap()
            .is_empty()
    );
    let at = clock.now();
    let ended = store.write(move |tx| tx.end_expired_consents(at, at.wall_ms, 10)).unwrap();
    assert_eq!(ended, [subject("jdoe")]);
    drop(store);
    let store = bench.open();
    assert_eq!(erasures_carried_out(&store), 0, "nothing is asked of MongoDB");
    let found = store.write(|tx| tx.erasures_without_receipt(10)).unwrap();
    let [erasure] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((erasure.references, erasure.events, erasure.mongo), (1, 0, false));
    assert_eq!((erasure.reason, erasure.events_kept), (Some(EndReason::ConsentExpired), true));
    assert_eq!(rows(&bench), [2, 2, 1]);
    let kept = store.write(|tx| tx.event(1)).unwrap().unwrap();
    assert_eq!(kept.body.subject().unwrap().id, subject("jdoe"), "what was recorded stays");
    let told = store.write(|tx| tx.event(4)).unwrap().unwrap();
    let Body::Enrolment(body) = told.body else { panic!("{told:?}") };
    assert_eq!(body.reason, Some(EndReason::ConsentExpired));
}

#[test]
fn erasure_removes_consent_from_events() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    put(&store, "jdoe", &consent(Some(START_MS + 1)));
    bench.clock.advance(Duration::from_secs(1));
    let at = bench.clock.now();
    store.write(move |tx| tx.end_expired_consents(at, at.wall_ms, 10)).unwrap();
    store.write(|tx| tx.erase_as_asked(&subject("jdoe"), Some("r-1"))).unwrap();
    let event = store.write(|tx| tx.event(1)).unwrap().unwrap();
    let Body::Enrolment(body) = event.body else { panic!("{event:?}") };
    assert_eq!((body.subject, body.consent), (None, None));
    assert_eq!(body.reason, Some(EndReason::ConsentExpired));
}

#[test]
fn consent_travels_and_outlives_older_doors() {
    let [first, second] = [Bench::new(), Bench::new()];
    let stores = [("a", &first), ("b", &second)].map(|(name, bench)| {
        let mut options = bench.options();
        options.device = name.into();
        options.shared = true;
        Store::open(bench.path(), options).unwrap().store
    });
    let [a, b] = &stores;
    let portable =
        |store: &Store| store.write(|tx| tx.portable(&subject("jdoe"))).unwrap().unwrap();
    enrol(a, "jdoe", "Jane Doe", &[template(1)]);
    put(a, "jdoe", &consent(Some(START_MS + 1)));
    let sent = portable(a);
    let accept = |store: &Store, sent: &rollcall::wire::subject::Portable| {
        let sent = sent.clone();
        store.write(move |tx| tx.accept_portable(&sent)).unwrap()
    };
    assert_eq!(accept(b, &sent), AcceptOutcome::Accepted);
    assert_eq!(consent_of(b, "jdoe"), Some(consent(Some(START_MS + 1))));
    // A door of an earlier version renames the person and knows of no consent.
    let mut older = sent.clone();
    older.version.changes += 1;
    if let State::Enrolled { name, consent, .. } = &mut older.state {
        (*name, *consent) = (Name::new("Jane Roe").unwrap(), None);
    }
    assert_eq!(accept(b, &older), AcceptOutcome::Accepted);
    assert_eq!(consent_of(b, "jdoe"), Some(consent(Some(START_MS + 1))), "it is not lost");
    second.clock.advance(Duration::from_secs(1));
    let at = second.clock.now();
    b.write(move |tx| tx.end_expired_consents(at, at.wall_ms, 10)).unwrap();
    let ended = portable(b);
    assert!(ended.is_withdrawn());
    assert_eq!(accept(a, &ended), AcceptOutcome::Accepted);
    // Its end is proved there too.
    assert_eq!((consent_of(a, "jdoe"), rows(&first)), (None, [0, 0, 1]));
    let gone = a.write(|tx| tx.subject(&subject("jdoe"))).unwrap();
    assert_eq!(gone, None);
}

#[test]
fn damaged_consent_is_set_apart_and_replaced() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    put(&store, "jdoe", &consent(None));
    drop(store);
    bench.sqlite().execute_batch("update consent set text_version = 'forged-9'").unwrap();
    let opened = bench.try_open().unwrap();
    assert_eq!(opened.unreadable.len(), 1);
    assert_eq!(opened.unreadable[0].table, "consent");
    assert_eq!(consent_of(&opened.store, "jdoe"), None);
    put(&opened.store, "jdoe", &consent(None));
    assert_eq!(consent_of(&opened.store, "jdoe"), Some(consent(None)));
}
