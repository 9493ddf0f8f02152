//! `rollcall backup` and `restore`: a copy taken under load goes on elsewhere as if nothing had
//! happened; a restore is whole or not there, and never over something.
//!
//! By hand, more of it: `E2E_EVENTS=20000 E2E_VISITS=300 E2E_KILLS=20 cargo nextest run --test cli
//! backup:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::door;
use crate::support::faces;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{Home, scaled, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mongod::Mongod;
use crate::support::mosquitto::Mosquitto;
use rollcall::clock::{Clock as _, SimulatedClock, Stopwatch, SystemClock, Trust};
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::face::{Embedder, ModelDigest, Template};
use rollcall::store::{NewReference, SinkName, Store, StoreOptions};
use serde_json::{Value, json};

fn home(broker: &Mosquitto, server: &Mongod) -> Home {
    let venue = "[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n";
    let home = Home::new(
        broker.port(),
        &format!("[mongo]\nuri_file = \"uri\"\ntimeout = \"5s\"\n{venue}"),
    );
    fs::write(home.path("uri"), server.uri()).unwrap();
    fs::set_permissions(home.path("uri"), Permissions::from_mode(0o600)).unwrap();
    home
}

/// Visits that were recorded before, a second apart, owed to both.
fn record(state: &Path, count: usize) {
    let last_ms = SystemClock::new(Trust::Always).now().wall_ms - 60_000;
    let clock = Arc::new(SimulatedClock::at(last_ms - count as i64 * 1000));
    let options = StoreOptions::new(vec![SinkName::MQTT, SinkName::MONGO], Arc::clone(&clock) as _);
    let store = Store::open(state, options).unwrap().store;
    let mut events = Vec::with_capacity(count);
    for number in 0..count {
        clock.advance(Duration::from_secs(1));
        events.push(door::visit(&clock, "main", &format!("p{}", number % 20)));
    }
    store.write(move |tx| events.iter().try_for_each(|it| tx.append_event(it).map(drop))).unwrap();
    store.close().unwrap();
}

/// Somebody enrolled, so that a key is of use.
fn enrol(state: &Path) {
    let clock = Arc::new(SimulatedClock::at(door::START_MS));
    let store = Store::open(state, StoreOptions::new(vec![SinkName::MQTT], clock)).unwrap().store;
    let id = SubjectId::new("jane").unwrap();
    let template = Template::normalised((0..512).map(|i| (i as f32).sin()).collect()).unwrap();
    let reference = NewReference {
        subject_id: id.clone(),
        embedder: Embedder::single(ModelDigest([7; 32]), 4),
        template,
        quality: 0.5,
    };
    let write = move |tx: &mut rollcall::store::Tx<'_>| {
        tx.put_subject(&id, &Name::new("Jane").unwrap())?;
        tx.add_references(std::slice::from_ref(&reference))
    };
    store.write(write).unwrap();
    store.close().unwrap();
}

fn backup(home: &Home, name: &str) -> Value {
    home.json(&["backup", home.path(name).to_str().unwrap(), "--json"])
}

fn restore(home: &Home, from: &Path, more: &[&str]) -> Output {
    home.output(&[&["restore", from.to_str().unwrap()], more].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every event has its number, and none is missing.
fn check_numbers(state: &Path) -> i64 {
    let database = rusqlite::Connection::open(state.join("rollcall.db")).unwrap();
    let (count, newest): (i64, i64) = database
        .query_row("select count(*), coalesce(max(seq), 0) from event", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(count, newest);
    let orphans = "select count(*) from outbox where event_seq is not null and event_seq not in (select seq from event)";
    assert_eq!(database.query_row(orphans, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    count
}

/// Visits by command, while copies are made; half-way the broker is away for a moment.
fn visit_and_copy(
    broker: &mut Mosquitto,
    client: &Client,
    home: &Home,
    image: &str,
    visits: usize,
) -> Vec<String> {
    let mut copies = Vec::new();
    for number in 0..visits {
        let request_id = format!("visit-{number}");
        client
            .command("attend", &json!({"request_id": request_id, "venue": "main", "image": image}));
        if number % (visits / 4).max(1) == 0 {
            let name = format!("copy-{number}");
            let manifest = backup(home, &name);
            assert_eq!(
                manifest["contents"]["events"], manifest["contents"]["newest_seq"],
                "{manifest}"
            );
            copies.push(name);
        }
        if number == visits / 2 {
            broker.stop();
            backup(home, "away");
            copies.push("away".into());
            broker.run();
        }
    }
    copies
}

#[test]
fn backup_under_load_restores_on_another_device() {
    let recorded = scaled("E2E_EVENTS", 1_000);
    let visits = scaled("E2E_VISITS", 40);
    let mut broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let mut server = Mongod::start();
    let first = home(&broker, &server);
    record(&first.state(), recorded);
    server.kill_all();
    let daemon = client.started(&first);
    let person = Faces::find().people.into_iter().next().unwrap();
    let answer = client.request("enrol", "enrol", enrolment(&person.id, &person.id, &person.enrol));
    assert_eq!(answer["ok"], true, "{answer}");

    let image = faces::base64(&person.enrol[0]);
    let copies = visit_and_copy(&mut broker, &client, &first, &image, visits);
    client.await_replies(visits + 1);
    let reported =
        client.await_health("the gallery", |it| it["gallery"]["references"] != 0)["gallery"]
            .clone();

    // The broker goes away for good, the last is recorded, then the device dies.
    broker.stop();
    let watch = Stopwatch::start();
    let manifest = backup(&first, "last");
    println!(
        "{} events backed up in {:.2} s",
        manifest["contents"]["events"],
        watch.elapsed().as_secs_f64()
    );
    assert!(
        manifest["contents"]["owed"]["mongo"].as_u64().unwrap() >= recorded as u64,
        "{manifest}"
    );
    // One gallery for each part of the embedder; together they are what the daemon searches.
    let galleries = manifest["contents"]["galleries"].as_array().unwrap();
    let number = |it: &Value| u64::from_str_radix(it["digest"].as_str().unwrap(), 16).unwrap();
    let together = galleries.iter().map(number).fold(0, u64::wrapping_add);
    assert_eq!((galleries.len(), together), (2, number(&reported)));
    daemon.kill();

    for name in &copies {
        let to = first.path(&format!("{name}-restored"));
        let output = restore(&first, &first.path(name), &["--to", to.to_str().unwrap()]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        assert!(check_numbers(&to) >= recorded as i64, "{name}");
    }

    let second = home(&broker, &server);
    let output = restore(&second, &first.path("last"), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&second.state()), 0o700);
    for entry in fs::read_dir(second.state()).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    assert_eq!(second.events(), first.events(), "the same events by the same ids");
    broker.run();
    server.run_all();
    let daemon = client.started(&second);
    let health = client.await_health("nothing is owed", |it| {
        it["outbox"].as_array().unwrap().iter().all(|sink| sink["rows"] == 0)
    });
    assert_eq!(
        (&health["gallery"]["digest"], &health["gallery"]["references"]),
        (&reported["digest"], &reported["references"])
    );
    let answer = client.request("recognise", "who", json!({"image": image}));
    assert_eq!(answer["names"], json!([person.id]), "the templates open: {answer}");
    assert!(daemon.terminate().success());
    let received = client.check_events(&second);
    let attended: BTreeSet<_> = received
        .values()
        .filter(|it| it["kind"] == "attendance")
        .map(|it| it["event_id"].as_str().unwrap().to_owned())
        .collect();
    let stored: Vec<_> =
        server.all("attendance").iter().map(|it| it.get_str("_id").unwrap().to_owned()).collect();
    assert_eq!(stored.len(), attended.len(), "each once");
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), attended);
}

#[test]
fn damaged_or_conflicting_backup_is_rejected() {
    let home = Home::new(1, "");
    enrol(&home.state());
    fs::write(home.state().join("other.key"), [1; 32]).unwrap();
    backup(&home, "good");
    let manifest = backup(&home, "keyless");
    assert_eq!(manifest["keys"], true);
    let refused = |args: &[&str], why: &str| {
        let output = home.output(args);
        let text = said(&output);
        assert!(!output.status.success() && text.contains(why), "{args:?}: {text}");
    };
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let good = path("good");
    let elsewhere = path("elsewhere");
    let bare = path("bare");
    assert!(home.path("good").join("other.key").is_file());
    refused(&["backup", &good], "exists already");
    refused(&["restore", &good], "exists already and is never overwritten");
    refused(&["restore", &path("tmp"), "--to", &elsewhere], "is not a backup of rollcall");

    // Without keys.
    assert!(home.output(&["backup", &bare, "--without-keys"]).status.success());
    let names: BTreeSet<_> =
        fs::read_dir(&bare).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, BTreeSet::from(["manifest.json".into(), "rollcall.db".into()]));
    refused(&["restore", &bare, "--to", &elsewhere], "the backup has no key");
    fs::write(path("wrong"), [9; 32]).unwrap();
    fs::set_permissions(path("wrong"), Permissions::from_mode(0o600)).unwrap();
    refused(
        &["restore", &bare, "--to", &elsewhere, "--key", &path("wrong")],
        "is not the one the templates were sealed with",
    );
    assert!(!home.path("elsewhere").exists());
    let key = home.state().join("rollcall.key");
    let output =
        home.output(&["restore", &bare, "--to", &elsewhere, "--key", key.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let output = home.output(&["restore", &bare, "--to", &path("later"), "--without-keys"]);
    assert!(
        output.status.success() && !home.path("later").join("rollcall.key").exists(),
        "{}",
        said(&output)
    );

    // Damaged: a byte turned, a file cut, a file gone.
    let database = home.path("keyless").join("rollcall.db");
    let whole = fs::read(&database).unwrap();
    let mut turned = whole.clone();
    turned[whole.len() / 2] ^= 1;
    for damaged in [&turned[..], &whole[..whole.len() - 1]] {
        fs::write(&database, damaged).unwrap();
        refused(&["restore", &path("keyless"), "--to", &path("never")], "the backup is damaged");
    }
    fs::remove_file(&database).unwrap();
    refused(&["restore", &path("keyless"), "--to", &path("never")], "cannot read");
    // Not a file: neither read without end nor waited for.
    std::os::unix::fs::symlink("/dev/zero", &database).unwrap();
    refused(&["restore", &path("keyless"), "--to", &path("never")], "cannot read");
    let manifest = home.path("keyless").join("manifest.json");
    fs::remove_file(&manifest).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &manifest, mode).unwrap();
    refused(&["restore", &path("keyless"), "--to", &path("never")], "is not a backup");
    assert!(!home.path("never").exists());
    let left = fs::read_dir(home.path("."))
        .unwrap()
        .any(|it| it.unwrap().file_name().to_string_lossy().contains("partial"));
    assert!(!left, "nothing half is left behind");
}

/// The command, where no file may become larger than a megabyte or two: a write fails as on a full
/// disk.
fn on_a_full_disk(home: &Home, args: &[&str]) -> Output {
    let usual = home.command(args);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\""])
        .arg(usual.get_program())
        .args(usual.get_args());
    home.finish(&mut limited)
}

#[test]
fn full_disk_leaves_no_partial_backup() {
    let home = Home::new(1, "");
    record(&home.state(), 6_000);
    let names = || {
        fs::read_dir(home.path("."))
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect::<BTreeSet<_>>()
    };
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    // So that it stands in both lists.
    home.output(&["--version"]);
    let before = names();
    let output = on_a_full_disk(&home, &["backup", &path("copy")]);
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!(names(), before);
    backup(&home, "copy");
    let output = on_a_full_disk(&home, &["restore", &path("copy"), "--to", &path("to")]);
    assert!(
        !output.status.success() && said(&output).contains("cannot write"),
        "{}",
        said(&output)
    );
    assert!(!home.path("to").exists() && !home.path(".to.partial").exists());
}

#[test]
fn killed_restore_leaves_no_partial_state() {
    let home = Home::new(1, "");
    record(&home.state(), scaled("E2E_EVENTS", 3_000));
    backup(&home, "copy");
    let from = home.path("copy");
    let to = home.path("to");
    let args = ["restore", from.to_str().unwrap(), "--to", to.to_str().unwrap()];
    let partial = home.path(".to.partial");
    for kill in 0..scaled("E2E_KILLS", 4) {
        let mut child =
            home.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let files = || fs::read_dir(&partial).map_or(0, Iterator::count);
        until("it is in the middle", || {
            let ended = child.try_wait().unwrap().is_some();
            (ended || files() > kill % 3).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if to.exists() {
            // It was quicker: then all of it is there.
            assert_eq!(check_numbers(&to), check_numbers(&home.state()));
            fs::remove_dir_all(&to).unwrap();
        }
    }
    let output = home.output(&args);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(check_numbers(&to), check_numbers(&home.state()));
    assert!(!partial.exists());
}
