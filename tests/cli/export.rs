//! `rollcall export` and `import` of a sealed gallery: the same references at the other end, bit by
//! bit, once.
//!
//! By hand, more: `E2E_SUBJECTS=100000 cargo nextest run --test cli export:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use crate::support::daemon::{Home, scaled, until};
use rollcall::clock::{SimulatedClock, Stopwatch};
use rollcall::ids::{Name, SubjectId};
use rollcall::keys::seal::SharedKey;
use rollcall::recognise::face::{Embedder, ModelDigest, Template};
use rollcall::store::{NewReference, SinkName, Store, StoreOptions};
use rollcall::wire::subject::Portable;
use serde_json::Value;

/// 2026-11-23T07:58:03.412Z
const START_MS: i64 = 1_795_420_683_412;

fn store(state: &Path) -> Store {
    let mut options =
        StoreOptions::new(vec![SinkName::MQTT], Arc::new(SimulatedClock::at(START_MS)));
    options.device = "door-1".into();
    Store::open(state, options).unwrap().store
}

fn id(number: usize) -> SubjectId {
    SubjectId::new(&format!("p{number:06}")).unwrap()
}

fn embedder(of: u8) -> Embedder {
    Embedder::single(ModelDigest([of; 32]), 4)
}

/// Subjects with one to three references, every fifth with one of another embedder.
fn enrol(store: &Store, numbers: std::ops::Range<usize>) {
    for from in numbers.clone().step_by(1000) {
        let numbers = from..(from + 1000).min(numbers.end);
        let write = move |tx: &mut rollcall::store::Tx<'_>| {
            for number in numbers.clone() {
                tx.put_subject(
                    &id(number),
                    &Name::new(&format!("Person Number {number}")).unwrap(),
                )?;
                let reference = |at: usize| {
                    let raw =
                        (0..512).map(|i| ((number * 7 + at * 31 + i * i) as f32).sin()).collect();
                    NewReference {
                        subject_id: id(number),
                        embedder: embedder(u8::from(at == 0 && number.is_multiple_of(5))),
                        template: Template::normalised(raw).unwrap(),
                        quality: 0.5,
                    }
                };
                let references: Vec<_> = (0..=number % 3).map(reference).collect();
                tx.add_references(&references)?;
            }
            Ok(())
        };
        store.write(write).unwrap();
    }
}

fn everybody(state: &Path) -> Vec<Portable> {
    let enrolled = Store::open_moment(state, None).unwrap();
    let mut found: Vec<Portable> = Vec::new();
    loop {
        let page = enrolled.subjects(found.last().map(|it| &it.subject_id), 500).unwrap();
        if page.is_empty() {
            return found;
        }
        found.extend(page.iter().map(|it| enrolled.portable(&it.id).unwrap().unwrap()));
    }
}

fn run(home: &Home, args: &[&str]) -> Output {
    home.output(args)
}

fn refused(output: &Output, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(why), "{text}");
}

#[test]
fn exported_gallery_is_imported_exactly_once() {
    let count = scaled("E2E_SUBJECTS", 250);
    let here = Home::new(1, "");
    let there = Home::new(1, "");
    let path = |name: &str| here.path(name).to_str().unwrap().to_owned();
    let file = path("all.rollcall");
    let key = path("export.key");
    let other_key = path("other.key");
    SharedKey::create(Path::new(&key)).unwrap();
    SharedKey::create(Path::new(&other_key)).unwrap();
    let open = store(&here.state());
    enrol(&open, 0..count);
    // While the store is in use, as by a daemon.
    let watch = Stopwatch::start();
    let reported = here.json(&["export", &file, "--key-file", &key, "--json"]);
    println!("{count} subjects exported in {:.2} s", watch.elapsed().as_secs_f64());
    assert_eq!(
        (reported["subjects"].as_u64(), &reported["unreadable"]),
        (Some(count as u64), &Value::from(0))
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    refused(&run(&here, &["export", &file, "--key-file", &key]), "exists already");
    refused(&run(&here, &["import", &file, "--key-file", &key]), "stop the daemon first");
    refused(
        &run(&here, &["export", &path("x"), "--key-file", &key, "--subject", "nobody"]),
        "there is no subject nobody",
    );
    enrol(&open, count..count + 1);
    let withdrawn = id(count);
    open.write(move |tx| tx.delete_subject(&withdrawn)).unwrap();
    let withdrawn = id(count).to_string();
    let why = format!("there is no subject {withdrawn}");
    refused(
        &run(&here, &["export", &path("x"), "--key-file", &key, "--subject", &withdrawn]),
        &why,
    );
    open.close().unwrap();

    // Another key, a cut file: nothing is taken.
    refused(&run(&there, &["import", &file, "--key-file", &other_key]), "sealed with another key");
    let whole = fs::read(&file).unwrap();
    fs::write(path("cut"), &whole[..whole.len() / 2]).unwrap();
    refused(&run(&there, &["import", &path("cut"), "--key-file", &key]), "cut off");
    assert!(!there.state().exists());

    let args = ["import", file.as_str(), "--key-file", key.as_str(), "--json"];
    let watch = Stopwatch::start();
    let reported = there.json(&args);
    println!("{count} subjects imported in {:.2} s", watch.elapsed().as_secs_f64());
    assert_eq!(reported["taken"], count);
    assert_eq!(
        reported["references_of_other_embedders"],
        reported["references"]
            .as_object()
            .unwrap()
            .values()
            .map(|it| it.as_u64().unwrap())
            .sum::<u64>()
    );
    assert_eq!(
        everybody(&there.state()),
        everybody(&here.state()),
        "ids, versions, names and templates"
    );
    let events = there.events().len();
    assert_eq!(events, count, "one event for each");
    let reported = there.json(&args);
    assert_eq!(
        (&reported["taken"], reported["same"].as_u64()),
        (&Value::from(0), Some(count as u64))
    );
    assert_eq!(there.events().len(), events);

    // Changed there since: the older account does not come back. Changed here since: the newer one
    // goes.
    let open = store(&there.state());
    open.write(|tx| tx.rename_subject(&id(1), &Name::new("Renamed There").unwrap())).unwrap();
    open.close().unwrap();
    let open = store(&here.state());
    open.write(|tx| tx.rename_subject(&id(2), &Name::new("Renamed Here").unwrap())).unwrap();
    open.close().unwrap();
    let two = path("two.rollcall");
    let one = id(1).to_string();
    let other = id(2).to_string();
    here.json(&[
        "export",
        &two,
        "--key-file",
        &key,
        "--json",
        "--subject",
        &one,
        "--subject",
        &other,
    ]);
    let reported = there.json(&["import", &two, "--key-file", &key, "--json"]);
    assert_eq!(
        (&reported["taken"], &reported["older"]),
        (&Value::from(1), &Value::from(1)),
        "{reported}"
    );
    let names = there.json(&["subjects", "--json"]);
    assert_eq!(
        (&names[1]["name"], &names[2]["name"]),
        (&Value::from("Renamed There"), &Value::from("Renamed Here"))
    );
}

#[test]
fn killed_import_resumes() {
    let count = scaled("E2E_SUBJECTS", 2_000);
    let here = Home::new(1, "");
    let there = Home::new(1, "");
    let file = here.path("all.rollcall");
    let key = here.path("export.key");
    SharedKey::create(&key).unwrap();
    let open = store(&here.state());
    enrol(&open, 0..count);
    open.close().unwrap();
    let file = file.to_str().unwrap();
    let key = key.to_str().unwrap();
    here.json(&["export", file, "--key-file", key, "--json"]);
    let args = ["import", file, "--key-file", key, "--json"];
    let taken = || {
        let database = rusqlite::Connection::open(there.state().join("rollcall.db")).ok()?;
        database.query_row("select count(*) from subject", [], |row| row.get::<_, i64>(0)).ok()
    };
    for kill in 0..scaled("E2E_KILLS", 3) {
        let mut child =
            there.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let wanted = (kill * count / 4) as i64;
        until("some are in", || {
            let ended = child.try_wait().unwrap().is_some();
            (ended || taken().is_some_and(|it| it > wanted)).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let reported = there.json(&args);
    assert_eq!(
        reported["taken"].as_u64().unwrap() + reported["same"].as_u64().unwrap(),
        count as u64
    );
    assert_eq!(everybody(&there.state()), everybody(&here.state()));
    assert_eq!(there.events().len(), count, "one event for each");
}
