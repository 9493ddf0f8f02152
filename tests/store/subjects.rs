//! What the store does with those who are enrolled: templates sealed, the key kept, persons erased.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::store_bench::{
    Bench, START_MS, append, digest, embedder, enrol, erasures_carried_out, subject, template,
};
use rollcall::clock::Stamp;
use rollcall::ids::Name;
use rollcall::keys::seal::SealError;
use rollcall::recognise::face::Template;
use rollcall::store::{NewReference, SinkName, Store, StoreError};
use rollcall::wire::event::{Body, Direction, Enrolment, EnrolmentAction, NewEvent};
use rollcall::wire::reply;
use rollcall::wire::reply::Reply;

/// The files of the state directory that contain any of the needles.
fn files_with(dir: &Path, needles: &[&[u8]]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let begins = |at: usize| needles.iter().any(|it| bytes[at..].starts_with(it));
        let mut first = [false; 256];
        for needle in needles {
            first[usize::from(needle[0])] = true;
        }
        if (0..bytes.len()).any(|at| first[usize::from(bytes[at])] && begins(at)) {
            found.push(path);
        }
    }
    found
}

// Templates

#[test]
fn no_file_has_a_template_in_clear() {
    let bench = Bench::new();
    let store = bench.open();
    let templates: Vec<Template> = (0..20).map(template).collect();
    enrol(&store, "jdoe", "Jane Doe", &templates);
    let bytes: Vec<u8> = templates
        .iter()
        .flat_map(|it| it.as_slice().iter().flat_map(|x| x.to_le_bytes()))
        .collect();
    let windows: Vec<&[u8]> = bytes.chunks(16).step_by(101).collect();
    let check = || assert_eq!(files_with(bench.path(), &windows), Vec::<PathBuf>::new());
    check();
    let counted = store
        .write(|tx| {
            let mut seen = Vec::new();
            let count = tx.all_references(&embedder(1), |it| seen.push(it.template))?;
            Ok((seen, count))
        })
        .unwrap();
    assert_eq!(counted.1.opened, 20);
    assert!(counted.0.iter().zip(&templates).all(|(a, b)| a.compare(b) > 0.999_999));
    drop(store);
    check();
}

#[test]
fn other_embedders_references_are_only_counted() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1), template(2)]);
    let count = store.write(|tx| tx.all_references(&embedder(2), |_| panic!("not ours"))).unwrap();
    assert_eq!((count.opened, count.of_other_embedders), (0, 2));
    let replaced = store.write(|tx| {
        let new = NewReference {
            subject_id: subject("jdoe"),
            embedder: embedder(2),
            template: template(3),
            quality: 0.5,
        };
        tx.replace_references(&subject("jdoe"), &[new])
    });
    assert_eq!(replaced.unwrap().len(), 1);
    let found = store.write(|tx| tx.subject(&subject("jdoe"))).unwrap().unwrap();
    assert_eq!((found.references, found.embedder), (1, Some(digest(2))));
}

#[test]
fn swapped_reference_rows_do_not_open() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jane", "Jane Doe", &[template(1)]);
    enrol(&store, "john", "John Roe", &[template(2), template(3)]);
    drop(store);
    let conn = bench.sqlite();
    let sealed = |row: i64| -> Vec<u8> {
        conn.query_row("select sealed from reference where row = ?1", [row], |it| it.get(0))
            .unwrap()
    };
    for (row, blob) in [(1, sealed(2)), (2, sealed(1))] {
        let update = "update reference set sealed = ?2 where row = ?1";
        conn.execute(update, rusqlite::params![row, blob]).unwrap();
    }
    // As if checksums and rows were swapped together.
    conn.execute("delete from checksum", []).unwrap();
    conn.close().unwrap();
    let store = bench.open();
    let count = store.write(|tx| tx.all_references(&embedder(1), |_| ())).unwrap();
    assert_eq!((count.opened, count.unreadable.len()), (1, 2));
}

#[test]
fn lost_or_wrong_key_is_never_replaced() {
    let bench = Bench::new();
    let key = bench.path().join("rollcall.key");
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    drop(store);
    let right = fs::read(&key).unwrap();
    let seal_error = || match bench.try_open().err().unwrap() {
        error @ StoreError::Sealed { .. } => {
            assert!(error.is_fatal());
            let StoreError::Sealed { source } = error else { unreachable!() };
            source
        }
        other => panic!("{other}"),
    };
    fs::remove_file(&key).unwrap();
    assert!(matches!(*seal_error(), SealError::KeyLost { .. }));
    assert!(!key.exists(), "none is made");

    std::os::unix::fs::symlink("/dev/null", bench.path().join("unrelated")).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let error = seal_error();
    assert!(
        matches!(*error, SealError::WrongKey { .. }) && error.to_string().contains("rollcall.key")
    );
    assert_eq!(fs::read(&key).unwrap(), [7; 32]);

    fs::write(&key, right).unwrap();
    let opened = bench.try_open().unwrap();
    assert!(!opened.key_created);
    // With nothing sealed any more, another key is as good.
    opened.store.write(|tx| tx.delete_subject(&subject("jdoe"))).unwrap();
    drop(opened);
    fs::write(&key, [7; 32]).unwrap();
    bench.open();
}

// Erasure

#[test]
fn erased_person_is_in_no_file() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "j.miller", "Jane Doe", &[template(1)]);
    enrol(&store, "other", "Somebody Else", &[template(2)]);
    for at in 0..400 {
        let name = if at < 200 { "Jane Doe" } else { "Jane Miller-Doe" };
        append(&store, &bench.attendance("j.miller", name, Direction::In));
        append(&store, &bench.attendance("other", "Somebody Else", Direction::Out));
    }
    let history = store.write(move |tx| {
        tx.rename_subject(&subject("j.miller"), &Name::new("Jane Miller-Doe").unwrap())?;
        let body = Reply::Renamed(reply::Renamed {
            subject_id: subject("j.miller"),
            name: Name::new("Jane Miller-Doe").unwrap(),
        });
        tx.store_and_queue_reply(
            "r-1",
            "rename",
            "reply/r-1",
            &reply::accepted("r-1", "rename", &body),
        )?;
        for (request_id, name) in [("r-2", "Jane Doe"), ("r-3", "Somebody Else")] {
            let names = vec![Name::new(name).unwrap()];
            let body = Reply::Recognised(reply::Recognised { faces: vec![], names });
            let json = reply::accepted(request_id, "recognise", &body);
            tx.store_and_queue_reply(
                request_id,
                "recognise",
                &reply::topic_part(Some(request_id)),
                &json,
            )?;
        }
        let first = tx.outbox_batch(SinkName::MQTT, 0, 1)?[0].id;
        tx.dead_letter(first, "refused: Jane Doe")
    });
    history.unwrap();
    let needles: [&[u8]; 3] = [b"Jane", b"Miller", b"j.miller"];
    assert!(!files_with(bench.path(), &needles).is_empty());

    let erased = store
        .write(|tx| {
            let erased = tx.erase_subject(&subject("j.miller"))?;
            let receipt = Body::Enrolment(Enrolment {
                action: EnrolmentAction::Erased,
                subject: None,
                references: erased.references,
                consent: None,
                reason: None,
                request_id: Some("r-4".into()),
            });
            let occurred = Stamp { wall_ms: START_MS, boottime_ms: 1, trusted: true };
            tx.append_event(&NewEvent::new(occurred, receipt))?;
            Ok(erased)
        })
        .unwrap();
    assert_eq!((erased.enrolled, erased.references, erased.events), (true, 1, 400));
    assert_eq!(erased.replies, 4, "two answers, and the same on their way");
    assert_eq!(
        files_with(bench.path(), &[b"Jane", b"Miller"]),
        Vec::<PathBuf>::new(),
        "while the daemon runs"
    );
    assert_eq!(erasures_carried_out(&store), 1);
    assert_eq!(
        files_with(bench.path(), &[b"Jane", b"Miller"]),
        Vec::<PathBuf>::new(),
        "while the daemon runs"
    );
    assert_eq!(
        tables_with(&bench, "j.miller"),
        ["erasure"],
        "the id stays as that which can be proved, and there alone"
    );

    let rows = store.write(|tx| tx.outbox_batch(SinkName::MONGO, 0, 2_000)).unwrap();
    assert_eq!(rows.len(), 801, "what happened stays, and stays owed");
    assert!(rows[0].event().unwrap().body.subject().is_none());
    assert!(rows[1].event().unwrap().body.subject().is_some());
    let answer = store.write(|tx| tx.stored_reply("r-1")).unwrap().unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&answer.reply).unwrap(),
        serde_json::json!({"schema": 1, "request_id": "r-1", "verb": "rename", "ok": true, "erased": true})
    );
    assert!(store.write(|tx| tx.stored_reply("r-3")).unwrap().unwrap().reply.contains("Somebody"));
    let again = store.write(|tx| tx.erase_subject(&subject("j.miller"))).unwrap();
    assert_eq!((again.enrolled, again.events, again.replies), (false, 0, 0));
    erasures_carried_out(&store);
    drop(store);
    assert_eq!(files_with(bench.path(), &[b"Jane", b"Miller"]), Vec::<PathBuf>::new());
    assert_eq!(tables_with(&bench, "j.miller"), ["erasure"]);
}

/// The tables of which any column of any row contains a text.
fn tables_with(bench: &Bench, text: &str) -> Vec<String> {
    let conn = bench.sqlite();
    let mut query =
        conn.prepare("select name from sqlite_schema where type = 'table' order by name").unwrap();
    let tables: Vec<String> =
        query.query_map([], |it| it.get(0)).unwrap().map(Result::unwrap).collect();
    let holds = |table: &String| {
        let mut rows = conn.prepare(&format!("select * from {table}")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        let mut found = false;
        while let Some(row) = rows.next().unwrap() {
            found |= (0..columns).any(|at| {
                let value = row.get_ref(at).unwrap();
                let bytes = value.as_bytes().unwrap_or_default();
                String::from_utf8_lossy(bytes).contains(text)
            });
        }
        found
    };
    tables.into_iter().filter(|it| holds(it)).collect()
}

#[test]
fn erasure_receipt_waits_for_complete_removal() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1), template(2)]);
    append(&store, &bench.attendance("jdoe", "Jane Doe", Direction::In));
    store.write(|tx| tx.erase_as_asked(&subject("jdoe"), Some("r-1"))).unwrap();
    let erasures_without_receipt =
        |store: &Store| store.write(|tx| tx.erasures_without_receipt(10)).unwrap();
    assert_eq!(erasures_without_receipt(&store), [], "MongoDB has not confirmed");
    drop(store);
    let store = bench.open();
    assert_eq!(erasures_without_receipt(&store), [], "nor after a restart");
    assert_eq!(erasures_carried_out(&store), 1);
    let found = erasures_without_receipt(&store);
    let reported =
        (found[0].references, found[0].events, found[0].request_id.as_deref(), found[0].mongo);
    assert_eq!((found.len(), reported), (1, (2, 1, Some("r-1"), true)));
    let row = found[0].row;
    for _ in 0..2 {
        store.write(move |tx| tx.put_receipt(row, &subject("jdoe"), "a.receipt.x")).unwrap();
    }
    assert_eq!(erasures_without_receipt(&store), []);
    let pending = store.write(|tx| tx.outbox_batch(SinkName::MQTT, 0, 100)).unwrap();
    let receipts = pending
        .iter()
        .filter(|it| it.message().is_some_and(|reply| reply.0 == "receipt/jdoe"))
        .count();
    assert_eq!(receipts, 1, "owed once");
    let reader = Store::open_read_only(bench.path(), None).unwrap();
    assert_eq!(reader.erasures(i64::MAX, 10).unwrap()[0].receipt.as_deref(), Some("a.receipt.x"));
}

// Another key

#[test]
fn interrupted_key_rotation_is_finished() {
    let bench = Bench::new();
    let key = bench.path().join("rollcall.key");
    let next = bench.path().join("rollcall.key.next");
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &(0..20).map(template).collect::<Vec<_>>());
    let opened =
        |store: &Store| store.write(|tx| tx.all_references(&embedder(1), |_| ())).unwrap().opened;
    let rotate = |to: Option<&Path>| Store::rotate_key(bench.path(), bench.options(), to);
    assert!(matches!(rotate(None), Err(StoreError::Locked { .. })), "not beside the daemon");
    drop(store);
    let old = fs::read(&key).unwrap();
    assert_eq!(rotate(None).unwrap().resealed, 20);
    let new = fs::read(&key).unwrap();
    assert!(new != old && !next.exists());
    assert_eq!(opened(&bench.open()), 20);
    let write = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    // Cut short before the transaction, after it, and after the old key was wiped or deleted.
    for (at_key, at_next) in
        [(Some(&new), &old), (Some(&old), &new), (Some(&vec![0; 32]), &new), (None, &new)]
    {
        fs::remove_file(&key).unwrap();
        if let Some(bytes) = at_key {
            write(&key, bytes);
        }
        write(&next, at_next);
        assert_eq!(opened(&bench.open()), 20);
        assert!(fs::read(&key).unwrap() == new && !next.exists());
    }
    let elsewhere = bench.path().join("elsewhere.key");
    rotate(Some(&elsewhere)).unwrap();
    assert!(!key.exists() && bench.try_open().is_err());
    fs::copy(&elsewhere, &key).unwrap();
    assert!(Store::forget_templates(bench.path(), bench.options()).is_err(), "nothing is lost");
    assert_eq!(opened(&bench.open()), 20);
    fs::remove_file(&key).unwrap();
    assert_eq!(Store::forget_templates(bench.path(), bench.options()).unwrap(), 20);
    let store = bench.open();
    assert_eq!(
        (opened(&store), store.write(|tx| tx.known_subjects()).unwrap().len()),
        (0, 0),
        "no account, no tombstone"
    );
    drop(store);
    // A key that is made before the database, or is left beside a new one, is nobody's to delete.
    write(&next, &old);
    rusqlite::Connection::open(bench.path().join("rollcall.db"))
        .unwrap()
        .execute("delete from meta where key = 'key_proof'", [])
        .unwrap();
    drop(bench.open());
    assert!(!next.exists() && fs::read(bench.path().join("rollcall.key.next.1")).unwrap() == old);
}

// Signed commands

#[test]
fn signed_command_is_accepted_once() {
    use rollcall::store::{ReplayCheck, SignedToken};
    let bench = Bench::new();
    let token = |id: &str, after_ms: i64, packet_id, again| SignedToken {
        id: id.into(),
        request_id: "r-1".into(),
        gone_ms: START_MS + after_ms,
        packet_id,
        again,
    };
    let take =
        |store: &Store, token: SignedToken| store.write(move |tx| tx.remember(&token)).unwrap();
    let store = bench.open();
    assert_eq!(take(&store, token("k/a", 60_000, 1, false)), ReplayCheck::Accept);
    drop(store);
    let store = bench.open();
    assert_eq!(
        take(&store, token("k/a", 60_000, 2, false)),
        ReplayCheck::Accept,
        "not answered: killed, sent again by any broker"
    );
    let other = SignedToken { request_id: "r-2".into(), ..token("k/a", 60_000, 1, true) };
    assert_eq!(take(&store, other), ReplayCheck::Replay, "for another request");
    store.write(|tx| tx.store_and_queue_reply("r-1", "sync", "reply/r-1", "{}")).unwrap();
    assert_eq!(
        take(&store, token("k/a", 60_000, 1, true)),
        ReplayCheck::Accept,
        "the broker's own repetition"
    );
    assert_eq!(
        take(&store, token("k/a", 60_000, 2, true)),
        ReplayCheck::Replay,
        "another publication, flagged by a flood"
    );
    assert_eq!(take(&store, token("k/a", 60_000, 1, false)), ReplayCheck::Replay);
    assert_eq!(
        take(&store, token("other/a", 60_000, 2, true)),
        ReplayCheck::Accept,
        "another key's; not seen when first sent"
    );
    bench.clock.advance(std::time::Duration::from_mins(1));
    assert_eq!(take(&store, token("k/b", 90_000, 3, false)), ReplayCheck::Accept);
    bench.clock.set_wall(START_MS, true);
    assert_eq!(
        take(&store, token("k/a", 60_000, 1, false)),
        ReplayCheck::Expired,
        "forgotten, and the clock set back"
    );
}

#[test]
fn earlier_names_are_erased_from_stored_replies() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "j.doe", "Oldname", &[template(1)]);
    enrol(&store, "other", "Somebody Else", &[template(2)]);
    let attended = |id: &str, name: &str| {
        Reply::Attended(reply::Attended {
            venue: "main".into(),
            recorded: vec![Name::new(name).unwrap()],
            recognised: vec![Name::new(name).unwrap()],
            subject_ids: vec![subject(id)],
            unknown: 0,
            event_ids: vec![],
            already_recorded: vec![],
        })
    };
    let replies = [
        ("r-1", reply::accepted("r-1", "attend", &attended("j.doe", "Oldname"))),
        ("r-2", reply::accepted("r-2", "attend", &attended("other", "Somebody Else"))),
        // As an earlier version wrote it: nobody can say whose name that was.
        (
            "r-3",
            r#"{"schema":1,"request_id":"r-3","verb":"attend","ok":true,"recorded":[],"recognised":["Oldname"]}"#
                .to_owned(),
        ),
    ];
    store
        .write(move |tx| {
            for (request_id, reply) in &replies {
                tx.store_and_queue_reply(
                    request_id,
                    "attend",
                    &format!("reply/{request_id}"),
                    reply,
                )?;
            }
            // No event of the person has the earlier name any more, and the subject has another.
            tx.rename_subject(&subject("j.doe"), &Name::new("Newname").unwrap())
        })
        .unwrap();
    let erased = store.write(|tx| tx.erase_subject(&subject("j.doe"))).unwrap();
    assert_eq!(erased.replies, 4, "two replies, and the same on their way");
    erasures_carried_out(&store);
    assert_eq!(files_with(bench.path(), &[b"Oldname", b"Newname"]), Vec::<PathBuf>::new());
    let kept = store.write(|tx| tx.stored_reply("r-2")).unwrap().unwrap();
    assert!(kept.reply.contains("Somebody Else"));
    let receipts = store.write(|tx| tx.erasures_without_receipt(10)).unwrap();
    assert_eq!(receipts.len(), 1, "nothing is left of the person: the receipt may be made");
}

#[test]
fn erasure_clears_unused_database_space() {
    // SQLite leaves such copies when it balances its tree, `secure_delete` or not; with these seeds
    // it did.
    for seed in [3, 10] {
        let bench = Bench::new();
        let store = bench.open();
        let mut state: u64 = seed * 7919;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for round in 0..4 {
            let events: Vec<NewEvent> = (0..500)
                .map(|_| {
                    let id = format!("person{:02}x", random(20));
                    let name = format!("{id} N{}", "z".repeat(random(180) as usize));
                    let mut event = bench.attendance(&id, &name, Direction::In);
                    if let Body::Attendance(body) = &mut event.body {
                        body.session = Some("s".repeat(random(600) as usize));
                    }
                    event
                })
                .collect();
            let gone = format!("person{:02}x", round * 3);
            let id = subject(&gone);
            let erased = store.write(move |tx| {
                events.iter().try_for_each(|it| tx.append_event(it).map(|_| ()))?;
                let rows = tx.outbox_batch(SinkName::MQTT, 0, 150)?;
                tx.acknowledge(&rows.iter().map(|it| it.id).collect::<Vec<_>>())?;
                tx.erase_subject(&id)
            });
            assert!(erased.unwrap().events > 0);
            erasures_carried_out(&store);
            assert_eq!(
                files_with(bench.path(), &[format!("{gone} N").as_bytes()]),
                Vec::<PathBuf>::new(),
                "{seed} {round}"
            );
        }
    }
}

#[test]
fn interrupted_erasure_finishes_at_start() {
    let bench = Bench::new();
    let store = bench.open();
    erase_without_rewriting(&bench, store);
    drop(bench.open());
    assert_eq!(files_with(bench.path(), &[b"Jane"]), Vec::<PathBuf>::new());
    let pending = "select count(*) from meta where key = 'scrub_owed'";
    assert_eq!(bench.sqlite().query_row(pending, [], |it| it.get::<_, i64>(0)).unwrap(), 0);
}

/// As a kill right after the commit leaves it: the flag set, and the name in a page that is no
/// longer used.
fn erase_without_rewriting(bench: &Bench, store: Store) {
    append(&store, &bench.attendance("jane", "Jane Doe", Direction::In));
    drop(store);
    let conn = bench.sqlite();
    conn.pragma_update(None, "secure_delete", false).unwrap();
    conn.execute_batch(
        "delete from outbox; delete from event; insert into meta values ('scrub_owed', x'')",
    )
    .unwrap();
    conn.close().unwrap();
    assert!(!files_with(bench.path(), &[b"Jane"]).is_empty(), "or this would show nothing");
}

#[test]
fn subjects_are_listed_in_pages() {
    let bench = Bench::new();
    let store = bench.open();
    for id in ["b", "a", "c"] {
        enrol(&store, id, "Jane Doe", &[template(1)]);
    }
    let ids = |after: Option<&str>, limit| {
        let after = after.map(subject);
        let page = store.write(move |tx| tx.subjects(after.as_ref(), limit)).unwrap();
        page.into_iter().map(|it| it.id.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, 2), ["a", "b"]);
    assert_eq!(ids(Some("b"), 2), ["c"]);
    let unknown = store.write(|tx| tx.rename_subject(&subject("x"), &Name::new("X").unwrap()));
    assert!(matches!(unknown, Err(StoreError::UnknownSubject { .. })));
    assert_eq!(store.write(|tx| tx.delete_subject(&subject("b"))).unwrap(), 1);
    assert_eq!(ids(None, 9), ["a", "c"]);
}

#[test]
fn erasure_keeps_last_seq_after_pruning() {
    let bench = Bench::new();
    let store = bench.open();
    enrol(&store, "jdoe", "Jane Doe", &[template(1)]);
    let seq = append(&store, &bench.attendance("jdoe", "Jane Doe", Direction::In));
    bench.sqlite().execute_batch("delete from outbox; delete from event").unwrap();
    store.write(|tx| tx.erase_subject(&subject("jdoe"))).unwrap();
    let pending = store.write(|tx| tx.outbox_batch(SinkName::MONGO, 0, 10)).unwrap();
    let (_, payload) = pending[0].message().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(payload).unwrap()["seq"], seq);
}
