//! The record as a spreadsheet: what LibreOffice reads of the workbook and of the CSV, with names that
//! would be formulas, and in other scripts than Latin.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::daemon::Home;
use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::ids::{Name, SubjectId};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::event::{Attendance, Body, Direction, NewEvent, Status, SubjectRef};

/// 2026-11-23T07:20:30Z, a Monday: twenty minutes late at 08:20:30 in Berlin.
const LATE_MS: i64 = 1_795_418_430_000;

const NAMES: [&str; 6] =
    ["Jürgen Größe", "Юлия Крылова", "=1+1", "x;=1+1", "a|=1+1", "\"=1+1\";\"=1+1\""];

const VENUE: &str = "[attendance]\nvenue = \"room\"\n[[venue]]\nid = \"room\"\ntime_zone = \"Europe/Berlin\"\n\
    [[venue.session]]\nid = \"mon-am\"\nweekdays = [\"mon\"]\nstart = \"08:00\"\nend = \"12:00\"\nlate_after = \"5m\"\n";

/// A device that recorded each of them late and, a minute before the end, leaving.
fn recorded() -> Home {
    let home = Home::new(1, VENUE);
    let clock = Arc::new(SimulatedClock::at(LATE_MS));
    let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&clock) as _);
    let store = Store::open(&home.state(), options).unwrap().store;
    for (direction, status, at_ms) in [
        (Direction::In, Status::Late, LATE_MS),
        (Direction::Out, Status::Present, LATE_MS + 3 * 3_600_000),
    ] {
        clock.set_wall(at_ms, true);
        for (number, name) in NAMES.iter().enumerate() {
            let id = SubjectId::new(&format!("p{number}")).unwrap();
            let body = Attendance {
                venue: "room".into(),
                session: Some("2026-11-23T07:00Z/mon-am".into()),
                subject: Some(SubjectRef { id, name: Name::new(name).unwrap() }),
                direction,
                status,
                score: 0.7,
                threshold: 0.4,
                frames: 4,
                track_ms: 600,
                latency_ms: 80,
            };
            let event = NewEvent::new(clock.now(), Body::Attendance(body));
            store.write(move |tx| tx.append_event(&event)).unwrap();
        }
    }
    store.close().unwrap();
    home
}

const PERIOD: [&str; 7] =
    ["attendance", "--venue", "room", "--from", "2026-11-23", "--to", "2026-11-24"];

fn workbook_of(home: &Home) -> PathBuf {
    let path = home.path("record.xlsx");
    let more = ["--summary", "--absent", "--xlsx", path.to_str().unwrap()];
    let output = home.output(&[&PERIOD[..], &more].concat());
    assert!(output.status.success(), "{output:?}");
    path
}

fn csv_of(home: &Home, name: &str, more: &[&str]) -> PathBuf {
    let output = home.output(&[&PERIOD[..], &["--csv"], more].concat());
    assert!(output.status.success(), "{output:?}");
    let path = home.path(name);
    fs::write(&path, output.stdout).unwrap();
    path
}

fn parts(path: &Path) -> BTreeMap<String, String> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let names: Vec<String> = archive.file_names().map(str::to_owned).collect();
    let mut part = |name: &String| {
        let mut text = String::new();
        archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    names.iter().map(|name| (name.clone(), part(name))).collect()
}

#[test]
fn workbook_has_totals_and_a_sheet_per_session() {
    let home = recorded();
    let path = workbook_of(&home);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "it has names");
    let parts = parts(&path);
    let titles = &parts["xl/workbook.xml"];
    for title in ["Totals", "mon-am", "Not known"] {
        assert!(titles.contains(&format!("<sheet name=\"{title}\"")), "{titles}");
    }
    let totals = &parts["xl/worksheets/sheet1.xml"];
    let first = "<c r=\"C2\"><v>0</v></c><c r=\"D2\"><v>1</v></c><c r=\"E2\"><v>0</v></c>\
                 <c r=\"F2\"><v>20</v></c><c r=\"G2\"><v>180</v></c>";
    assert!(totals.contains(first), "{totals}");
    let session = &parts["xl/worksheets/sheet2.xml"];
    // 23 November 2026; 08:20:30 and 11:20:30 at the venue.
    assert!(session.contains("<c r=\"A2\" s=\"2\"><v>46349</v></c>"), "{session}");
    let time = |hour: f64| (hour * 3600.0 + 20.0 * 60.0 + 30.0) / 86_400.0;
    let times = format!(
        "<c r=\"E2\" s=\"3\"><v>{}</v></c><c r=\"F2\" s=\"3\"><v>{}</v></c>",
        time(8.0),
        time(11.0)
    );
    assert!(session.contains(&times), "{session}");
    for name in ["Jürgen Größe", "Юлия Крылова", ">=1+1<"] {
        assert!(session.contains(name), "{session}");
    }
    assert!(parts.values().all(|it| !it.contains("<f>") && !it.contains("<f ")));
    // It is never overwritten.
    let again = ["--summary", "--xlsx", path.to_str().unwrap()];
    assert!(!home.output(&[&PERIOD[..], &again].concat()).status.success());
}

#[test]
fn summary_csv_has_separate_times() {
    let home = recorded();
    let path = csv_of(&home, "summary.csv", &["--summary"]);
    let mut reader = csv::Reader::from_path(path).unwrap();
    let row: BTreeMap<String, String> = reader.deserialize().next().unwrap().unwrap();
    let of = |key: &str| row[key].as_str();
    assert_eq!((of("date"), of("first_in_time")), ("2026-11-23", "08:20:30"));
    assert_eq!((of("last_out_time"), of("late_minutes")), ("11:20:30", "20"));
    let wrong = ["attendance", "--venue", "room", "--from", "2026-11-23T12:00", "--csv"];
    assert!(!home.output(&wrong).status.success(), "a time without an offset");
}

mod needs_libreoffice {
    use std::process::Command;

    use super::*;

    /// What LibreOffice makes of a file, as one XML document.
    fn read_by_libreoffice(home: &Home, path: &Path, filter: Option<&str>) -> String {
        let out = home.path("converted");
        fs::create_dir_all(&out).unwrap();
        let profile = format!("-env:UserInstallation=file://{}", home.path("profile").display());
        let mut command = Command::new("soffice");
        command.args(["--headless", "--norestore", &profile]);
        if let Some(filter) = filter {
            command.arg(format!("--infilter=Text - txt - csv (StarCalc):{filter}"));
        }
        command.args(["--convert-to", "fods", "--outdir"]).arg(&out).arg(path);
        let output = home.finish(&mut command);
        let name = path.with_extension("fods");
        let converted = out.join(name.file_name().unwrap());
        fs::read_to_string(converted).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn check_names(text: &str) {
        for name in ["Jürgen Größe", "Юлия Крылова"] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn libreoffice_reads_workbook_as_meant() {
        let home = recorded();
        let text = read_by_libreoffice(&home, &workbook_of(&home), None);
        check_names(&text);
        for name in ["Totals", "mon-am", "Not known"] {
            assert!(text.contains(&format!("<table:table table:name=\"{name}\"")), "{name}");
        }
        for typed in [
            "office:value-type=\"date\" office:date-value=\"2026-11-23\"",
            "office:value-type=\"time\" office:time-value=\"PT08H20M30S\"",
            "office:value-type=\"float\" office:value=\"20\"",
            "<text:p>=1+1</text:p>",
        ] {
            assert!(text.contains(typed), "{typed}: {text}");
        }
        assert!(!text.contains("table:formula"), "{text}");
    }

    #[test]
    fn libreoffice_reads_csv_without_formulas() {
        let home = recorded();
        // Separator, quote, UTF-8; dates and numbers are recognised.
        let filter = |separator: u8| format!("{separator},34,76,1,,0,false,true");
        let bait = home.path("bait.csv");
        fs::write(&bait, "a,=1+1\n").unwrap();
        let text = read_by_libreoffice(&home, &bait, Some(&filter(b',')));
        assert!(text.contains("table:formula"), "a formula would be seen: {text}");
        for (name, written) in [("comma.csv", ","), ("semicolon.csv", ";"), ("tab.csv", "\t")] {
            let path = csv_of(&home, name, &["--bom", "--separator", written]);
            // Also by a program that separates by something else.
            for read in *b",;\t|" {
                let text = read_by_libreoffice(&home, &path, Some(&filter(read)));
                assert!(!text.contains("table:formula"), "{name} by {read}: {text}");
                check_names(&text);
                if [read] == *written.as_bytes() {
                    let date = "office:value-type=\"date\" office:date-value=\"2026-11-23\"";
                    assert!(text.contains(date), "{name}: {text}");
                    let time = "office:value-type=\"time\" office:time-value=\"PT08H20M30S\"";
                    assert!(text.contains(time), "{name}: {text}");
                }
            }
        }
    }
}
