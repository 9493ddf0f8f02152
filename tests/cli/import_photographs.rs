//! `rollcall import --photos`: who comes in and who not, said why; begun again after a kill it doubles nobody; with the
//! daemon running it goes through it.
//!
//! By hand, more people: `E2E_PEOPLE=100 E2E_KILLS=10 cargo nextest run --test import_photographs`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

#[path = "support/client.rs"]
mod client;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/faces.rs"]
mod faces;
#[path = "support/mosquitto.rs"]
mod mosquitto;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use client::Client;
use daemon::{Home, scaled, until};
use faces::{Faces, Person};
use mosquitto::Mosquitto;
use serde_json::Value;

/// A folder as the former service had it: a file for some, a folder for others. Gives the ids and how many photographs.
fn folder(home: &Home, people: &[Person]) -> BTreeMap<String, usize> {
    let dir = home.path("users");
    fs::create_dir(&dir).unwrap();
    let mut expected = BTreeMap::new();
    for (number, person) in people.iter().enumerate() {
        let name = person.id.replace('_', " ");
        let id = name.to_lowercase().replace(' ', "-");
        let photographs = if number % 3 == 0 { &person.enrol[..1] } else { &person.enrol[..] };
        if number % 3 == 0 {
            fs::copy(&photographs[0], dir.join(format!("{name}.jpg"))).unwrap();
        } else {
            fs::create_dir(dir.join(&name)).unwrap();
            for (at, from) in photographs.iter().enumerate() {
                fs::copy(from, dir.join(&name).join(format!("{at}.jpg"))).unwrap();
            }
        }
        expected.insert(id, photographs.len());
    }
    expected
}

/// People whose names make ids without more ado.
fn people(count: usize) -> Vec<Person> {
    let plain = |person: &Person| person.id.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    let people: Vec<_> = Faces::find().people.into_iter().filter(plain).take(count).collect();
    assert!(people.len() >= 2, "too few people to go on with");
    people
}

/// References of each subject.
fn references(home: &Home) -> BTreeMap<String, u64> {
    let subjects = home.json(&["subjects", "--json"]);
    let pair =
        |it: &Value| (it["id"].as_str().unwrap().to_owned(), it["references"].as_u64().unwrap());
    subjects.as_array().unwrap().iter().map(pair).collect()
}

fn import(home: &Home, more: &[&str]) -> Value {
    let users = home.path("users");
    let args = [&["import", "--photos", users.to_str().unwrap(), "--json"], more].concat();
    let output = home.output(&args);
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(i32::from(told["refused"] != 0)), "{told}");
    told
}

fn enrolments(home: &Home) -> usize {
    home.events().iter().filter(|(_, _, kind)| kind == "enrolment").count()
}

/// The report's rows: outcome and reason by the file's name below the folder.
fn rows(home: &Home, report: &str) -> BTreeMap<String, (String, String)> {
    let mut reader = csv::Reader::from_path(home.path(report)).unwrap();
    let users = home.path("users");
    let row = |row: csv::StringRecord| {
        let file = PathBuf::from(&row[2]).strip_prefix(&users).unwrap().display().to_string();
        (file, (row[3].to_owned(), row[4].to_owned()))
    };
    reader.records().map(|it| row(it.unwrap())).collect()
}

#[test]
fn everybody_comes_in_or_is_told_why_not() {
    let home = Home::new(1, "");
    let people = people(4);
    let expected = folder(&home, &people);
    let users = home.path("users");
    let image = image::RgbImage::from_pixel(320, 240, image::Rgb([90, 90, 90]));
    image.save_with_format(users.join("Wall.png"), image::ImageFormat::Png).unwrap();
    fs::write(users.join("Phone.heic"), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap();
    fs::write(users.join("Half.jpg"), &fs::read(&people[0].enrol[0]).unwrap()[..2000]).unwrap();
    fs::write(users.join("notes.txt"), "nobody").unwrap();
    // The same face by another name, later in the alphabet.
    fs::copy(&people[0].enrol[0], users.join("Zz Double.jpg")).unwrap();
    let report = home.path("report.csv");
    let told = import(&home, &["--report", report.to_str().unwrap()]);
    assert_eq!(
        (told["enrolled"].as_u64(), told["refused"].as_u64()),
        (Some(expected.len() as u64), Some(4)),
        "{told}"
    );
    let rows = rows(&home, "report.csv");
    for (file, reason) in [
        ("Wall.png", "no_usable_image (no image can be used: no_face)"),
        ("Phone.heic", "decode_error (HEIC is not supported"),
        ("Half.jpg", "decode_error (the JPEG is damaged"),
        ("Zz Double.jpg", "duplicate_subject (the face is already enrolled as"),
    ] {
        let (outcome, why) = &rows[file];
        assert!(
            outcome == "refused" && (why.contains(reason) || reason.contains("no_face")),
            "{file}: {rows:?}"
        );
    }
    let found = references(&home);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let accepted = rows.values().filter(|(outcome, _)| outcome == "accepted").count() as u64;
    assert_eq!(found.values().sum::<u64>(), accepted);

    // Again: nobody is looked at twice, and nothing is recorded.
    let events = enrolments(&home);
    let told = import(&home, &[]);
    assert_eq!(
        (told["already"].as_u64(), told["refused"].as_u64()),
        (Some(expected.len() as u64), Some(4)),
        "{told}"
    );
    assert_eq!((references(&home), enrolments(&home)), (found.clone(), events));

    // A photograph more: one reference more. Renamed since: it is the same person, with the new name.
    let id = people[0].id.to_lowercase().replace('_', "-");
    let name = people[0].id.replace('_', " ");
    fs::create_dir(users.join(&name)).unwrap();
    fs::copy(&people[0].probes[0], users.join(&name).join("new.jpg")).unwrap();
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    database.execute("update subject set name = 'Somebody Else' where id = ?1", [&id]).unwrap();
    let told = import(&home, &[]);
    assert_eq!(
        (told["added"].as_u64(), told["already"].as_u64()),
        (Some(1), Some(expected.len() as u64 - 1)),
        "{told}"
    );
    assert_eq!(references(&home)[&id], found[&id] + 1);
    let name: String = database
        .query_row("select name from subject where id = ?1", [&id], |row| row.get(0))
        .unwrap();
    assert_eq!(name, "Somebody Else");

    // Withdrawn since (and whose double is not there any more): not brought back by an import that is begun again.
    database.execute("pragma foreign_keys = on", []).unwrap();
    database.execute("delete from reference where subject_id = ?1", [&id]).unwrap();
    database.execute("delete from subject where id = ?1", [&id]).unwrap();
    let sql = "insert into withdrawn (subject_id, withdrawals, changes, changed_by, erased, at_ms) values (?1, 1, 0, '', 0, 0)";
    database.execute(sql, [&id]).unwrap();
    fs::remove_file(users.join("Zz Double.jpg")).unwrap();
    assert_eq!(import(&home, &[])["refused"].as_u64(), Some(4));
    assert!(!references(&home).contains_key(&id));
    assert_eq!(import(&home, &["--also-withdrawn"])["enrolled"].as_u64(), Some(1));
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    let home = Home::new(1, "");
    let expected = folder(&home, &people(scaled("E2E_PEOPLE", 12)));
    let users = home.path("users");
    let args = ["import", "--photos", users.to_str().unwrap(), "--json", "--workers", "1"];
    let kills = scaled("E2E_KILLS", 3).min(expected.len() - 1);
    for kill in 0..kills {
        let mut child =
            home.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // As many as that are in, then it ends in the middle of whatever it does.
        let wanted = 1 + kill * expected.len() / (kills + 1);
        let count = || {
            let database = rusqlite::Connection::open(home.state().join("rollcall.db")).ok()?;
            database.query_row("select count(*) from subject", [], |row| row.get::<_, i64>(0)).ok()
        };
        until("some are in", || {
            let ended = child.try_wait().unwrap().is_some();
            (ended || count().is_some_and(|it| it as usize >= wanted)).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let told = import(&home, &[]);
    assert_eq!(told["refused"], 0, "{told}");
    let found = references(&home);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found.iter().all(|(id, count)| *count as usize <= expected[id]), "{found:?}");
    let ids: Vec<_> =
        home.events().into_iter().filter(|(_, _, kind)| kind == "enrolment").collect();
    assert_eq!(ids.len(), expected.len(), "one event for each person: {ids:?}");
}

#[test]
fn beside_a_running_daemon_it_goes_through_it() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let people = people(5);
    let expected = folder(&home, &people);
    fs::write(home.path("users").join("Broken.jpg"), b"\xff\xd8\xff no picture").unwrap();
    let daemon = client.started(&home);
    let told = import(&home, &[]);
    assert_eq!(
        (told["enrolled"].as_u64(), told["refused"].as_u64()),
        (Some(expected.len() as u64), Some(1)),
        "{told}"
    );
    let person = &people[1];
    let id = person.id.to_lowercase().replace('_', "-");
    let image = faces::base64(&person.probes[0]);
    let answer = client.request("recognise", "who", serde_json::json!({"image": image}));
    assert_eq!(answer["faces"][0]["subject"]["id"], id, "{answer}");
    let found = references(&home);
    assert_eq!(import(&home, &[])["already"].as_u64(), Some(expected.len() as u64));
    assert_eq!(references(&home), found);
    assert!(daemon.terminate().success());
    // Without it, the same photographs are known too.
    assert_eq!(import(&home, &[])["already"].as_u64(), Some(expected.len() as u64));
    client.check_events(&home);
}
