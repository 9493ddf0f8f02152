//! `rollcall import --photos`: who comes in and who not, said why; begun again after a kill it
//! doubles nobody; with the daemon running it goes through it.
//!
//! By hand, more people: `E2E_PEOPLE=100 E2E_KILLS=10 cargo nextest run --test cli
//! import_photographs::`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::client::Client;
use crate::support::daemon::{Home, scaled, until};
use crate::support::faces::{Faces, Person};
use crate::support::mosquitto::Mosquitto;
use serde_json::Value;

/// A folder as the former service had it: a file for some, a folder for others. Gives the ids and
/// how many photographs.
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
    let reported: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(i32::from(reported["refused"] != 0)), "{reported}");
    reported
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
fn import_enrols_or_reports_each_photograph() {
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
    fs::copy(&people[0].enrol[0], users.join("zz double.jpg")).unwrap();
    let report = home.path("report.csv");
    let reported = import(&home, &["--report", report.to_str().unwrap()]);
    assert_eq!(
        (reported["enrolled"].as_u64(), reported["refused"].as_u64()),
        (Some(expected.len() as u64), Some(4)),
        "{reported}"
    );
    let rows = rows(&home, "report.csv");
    for (file, reason) in [
        ("Wall.png", "no_face"),
        ("Phone.heic", "decode_error (HEIC is not supported"),
        ("Half.jpg", "decode_error (the JPEG is damaged"),
        ("zz double.jpg", "duplicate_subject (the face is already enrolled as"),
    ] {
        let (outcome, why) = &rows[file];
        assert!(outcome == "refused" && why.contains(reason), "{file}: {rows:?}");
    }
    let found = references(&home);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let accepted = rows.values().filter(|(outcome, _)| outcome == "accepted").count() as u64;
    assert_eq!(found.values().sum::<u64>(), accepted);

    // Again: nobody is looked at twice, and nothing is recorded.
    let events = enrolments(&home);
    let reported = import(&home, &[]);
    assert_eq!(
        (reported["already"].as_u64(), reported["refused"].as_u64()),
        (Some(expected.len() as u64), Some(4)),
        "{reported}"
    );
    assert_eq!((references(&home), enrolments(&home)), (found.clone(), events));

    // A photograph more: one reference more. Renamed since: it is the same person, with the new
    // name.
    let id = people[0].id.to_lowercase().replace('_', "-");
    let name = people[0].id.replace('_', " ");
    fs::create_dir(users.join(&name)).unwrap();
    fs::copy(&people[0].probes[0], users.join(&name).join("new.jpg")).unwrap();
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    database.execute("update subject set name = 'Somebody Else' where id = ?1", [&id]).unwrap();
    database.execute("delete from checksum", []).unwrap();
    let reported = import(&home, &[]);
    assert_eq!(
        (reported["added"].as_u64(), reported["already"].as_u64()),
        (Some(1), Some(expected.len() as u64 - 1)),
        "{reported}"
    );
    assert_eq!(references(&home)[&id], found[&id] + 1);
    let name: String = database
        .query_row("select name from subject where id = ?1", [&id], |row| row.get(0))
        .unwrap();
    assert_eq!(name, "Somebody Else");

    // Withdrawn since (and whose double is not there any more): not brought back by an import that
    // is begun again.
    database.execute("pragma foreign_keys = on", []).unwrap();
    database.execute("delete from reference where subject_id = ?1", [&id]).unwrap();
    database.execute("delete from subject where id = ?1", [&id]).unwrap();
    let sql = "insert into withdrawn (subject_id, withdrawals, changes, changed_by, erased, at_ms) values (?1, 1, 0, '', 0, 0)";
    database.execute(sql, [&id]).unwrap();
    fs::remove_file(users.join("zz double.jpg")).unwrap();
    assert_eq!(import(&home, &[])["refused"].as_u64(), Some(4));
    assert!(!references(&home).contains_key(&id));
    assert_eq!(import(&home, &["--also-withdrawn"])["enrolled"].as_u64(), Some(1));
}

#[test]
fn killed_import_resumes() {
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
    let reported = import(&home, &[]);
    assert_eq!(reported["refused"], 0, "{reported}");
    let found = references(&home);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found.iter().all(|(id, count)| *count as usize <= expected[id]), "{found:?}");
    let ids: Vec<_> =
        home.events().into_iter().filter(|(_, _, kind)| kind == "enrolment").collect();
    assert_eq!(ids.len(), expected.len(), "one event for each person: {ids:?}");
}

#[test]
fn import_uses_the_running_daemon() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let people = people(5);
    let expected = folder(&home, &people);
    fs::write(home.path("users").join("Broken.jpg"), b"\xff\xd8\xff no picture").unwrap();
    let daemon = client.started(&home);
    let reported = import(&home, &[]);
    assert_eq!(
        (reported["enrolled"].as_u64(), reported["refused"].as_u64()),
        (Some(expected.len() as u64), Some(1)),
        "{reported}"
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

/// A photograph larger than a command may carry gives the same with and without a daemon, and is
/// known again.
#[test]
fn large_photograph_is_made_smaller() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let more = "[commands]\nimage_bytes_max = 400000\nimage_pixels_max = 500000\n";
    let home = Home::new(broker.port(), more);
    fs::create_dir(home.path("users")).unwrap();
    let file = home.path("users").join("Large Photograph.jpg");
    let small = image::open(&people(2)[0].enrol[0]).unwrap();
    small.resize(1600, 1600, image::imageops::FilterType::Triangle).to_rgb8().save(&file).unwrap();
    let large = file.to_str().unwrap();
    let daemon = client.started(&home);
    let reported = import(&home, &[]);
    assert_eq!((&reported["enrolled"], &reported["refused"]), (&1.into(), &0.into()), "{reported}");
    let by_daemon = home.output(&["enrol", "--id", "more", "--allow-duplicate", large]);
    assert!(by_daemon.status.success(), "{}", String::from_utf8_lossy(&by_daemon.stderr));
    assert!(daemon.terminate().success());
    assert_eq!(import(&home, &[])["already"], 1);
    let alone = home.output(&["enrol", "--id", "again", "--allow-duplicate", large]);
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
    let seen = home.output(&["recognise", large]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
}

#[test]
fn files_that_are_no_photographs_are_named() {
    let home = Home::new(1, "");
    let gif = home.path("a.gif");
    fs::write(&gif, b"GIF89a\x01\0\x01\0").unwrap();
    let fifo = home.path("fifo.jpg");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let huge = home.path("huge.jpg");
    fs::write(&huge, b"\xFF\xD8\xFF\xE0").unwrap();
    fs::OpenOptions::new().write(true).open(&huge).unwrap().set_len(3 << 30).unwrap();
    for (file, expected) in [
        (&gif, "GIF is not supported: save it as JPEG"),
        (&fifo, "it is not a file"),
        (&huge, "too_large (at most 64 MiB)"),
    ] {
        for args in [&["recognise"][..], &["enrol", "--id", "x"]] {
            let output = home.output(&[args, &[file.to_str().unwrap()]].concat());
            let reported = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && reported.contains(expected),
                "{args:?}: {reported}"
            );
        }
    }
}

mod needs_field_cases {
    use std::path::Path;

    use super::{Home, Value, fs};
    use crate::support::faces::field_case;

    /// The report of an import of this folder or archive, and the names of those enrolled.
    fn import(home: &Home, folder: &Path, more: &[&str]) -> (Value, Vec<String>) {
        let args = [&["import", "--photos", folder.to_str().unwrap(), "--json"], more].concat();
        let output = home.output(&args);
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{reported}"));
        let subjects = home.json(&["subjects", "--json"]);
        let names = subjects.as_array().unwrap().iter();
        (report, names.map(|it| it["name"].as_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn folders_collected_by_hand_are_read() {
        let home = Home::new(1, "");
        let (report, names) = import(&home, &field_case("import_jfif"), &[]);
        assert_eq!((report["refused"].as_u64(), names.len()), (Some(0), 2), "{report}");
        let home = Home::new(1, "");
        let (report, names) = import(&home, &field_case("import_junk"), &[]);
        assert_eq!((report["refused"].as_u64(), names), (Some(0), vec!["Carl".into()]), "{report}");
    }

    #[test]
    fn one_name_in_two_forms_is_one_person() {
        let home = Home::new(1, "");
        let (first, _) = import(&home, &field_case("import_nfd"), &[]);
        let (second, names) = import(&home, &field_case("import_nfc"), &[]);
        assert_eq!(first["enrolled"], 1, "{first}");
        assert_eq!((&second["refused"], &second["enrolled"]), (&0.into(), &0.into()), "{second}");
        assert_eq!(names, ["Zo\u{eb} M\u{fc}ller"]);
    }

    #[test]
    fn table_with_semicolons_is_read() {
        let home = Home::new(1, "");
        let map = field_case("map_semicolon.csv");
        let more = ["--map", map.to_str().unwrap()];
        let (report, names) = import(&home, &field_case("import_jfif"), &more);
        assert_eq!(
            (report["refused"].as_u64(), names),
            (Some(0), vec!["J\u{f6}rg M\u{fc}ller".into()])
        );
    }

    #[test]
    fn table_names_no_file_outside_its_folder() {
        let home = Home::new(1, "");
        let folder = field_case("import_jfif");
        let outside = folder.parent().unwrap().join("face.jpg");
        for file in [outside.to_str().unwrap(), "../face.jpg"] {
            let map = home.path("map.csv");
            fs::write(&map, format!("file,id,name\n{file},jane,Jane\n")).unwrap();
            let place = folder.to_str().unwrap();
            let args = ["import", "--photos", place, "--map", map.to_str().unwrap()];
            let output = home.output(&args);
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && message.contains("is not within"), "{message}");
        }
    }

    #[test]
    fn archive_is_imported_like_its_folder() {
        let home = Home::new(1, "");
        let path = home.path("people.zip");
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for name in ["Anna Jpg.jpg", "Carl Jfif.jfif"] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            let bytes = fs::read(field_case("import_jfif").join(name)).unwrap();
            std::io::Write::write_all(&mut zip, &bytes).unwrap();
        }
        zip.finish().unwrap();
        let (report, names) = import(&home, &path, &[]);
        assert_eq!((report["refused"].as_u64(), names.len()), (Some(0), 2), "{report}");
        // The same files in a folder are known.
        let (report, _) = import(&home, &field_case("import_jfif"), &[]);
        assert_eq!(report["already"], 2, "{report}");
    }
}
