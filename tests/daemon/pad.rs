//! Printed photographs and live faces before the replay camera, with `pad` off, as a flag and
//! enforced: what is recorded and what is told. By hand, with every photograph of
//! `faces-open/spoof` and its people: `E2E_PRINTS=1000 E2E_LIVE=1000 cargo nextest run --test
//! daemon pad:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::faces;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::support::client::Client;
use crate::support::daemon::{Home, scaled};
use crate::support::faces::Faces;
use crate::support::mosquitto::Mosquitto;
use serde_json::Value;

const PRINTS: usize = 4;
const LIVE: usize = 4;

/// The people of whom there are prints, with their prints and some live photographs of each.
struct Shown {
    people: Vec<faces::Person>,
    prints: Vec<(String, PathBuf)>,
    live: Vec<(String, PathBuf)>,
}

/// Printed photographs cannot be made of others, so all of these tests need those of `faces-open`.
fn shown() -> Shown {
    let faces = Faces::required();
    let whose = |id: &str| faces.people.iter().any(|person| person.id == id);
    let prints: Vec<_> = faces.prints.iter().filter(|(id, _)| whose(id)).cloned().collect();
    let ids: BTreeSet<_> = prints.iter().map(|(id, _)| id.clone()).collect();
    let people: Vec<_> =
        faces.people.iter().filter(|person| ids.contains(&person.id)).cloned().collect();
    let live = people
        .iter()
        .flat_map(|person| person.probes.iter().map(|file| (person.id.clone(), file.clone())));
    let live: Vec<_> = live.collect();
    assert!(!prints.is_empty(), "no printed photograph of anybody who can be enrolled");
    Shown {
        people,
        prints: spread(prints, scaled("E2E_PRINTS", PRINTS)),
        live: spread(live, scaled("E2E_LIVE", LIVE)),
    }
}

/// So many of them, from all over the list.
fn spread<T: Clone>(all: Vec<T>, wanted: usize) -> Vec<T> {
    let step = all.len().div_ceil(wanted.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

/// Plays the photographs, half a second each, and gives what was told: attendance and attacks.
fn play(mode: &str, shown: &Shown, files: &[(String, PathBuf)]) -> (Vec<Value>, Vec<Value>) {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let home = Home::new(
        broker.port(),
        &format!(
            "[recognition]\nmodels = \"{}\"\npad = \"{mode}\"\n[camera]\nsource = \"replay\"\npath = \"visits.csv\"\n\
             show = \"500ms\"\ngap = \"1s\"\npace = \"networks\"\n[attendance]\nunknown_every = \"0s\"\n\
             [[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n",
            models.display()
        ),
    );
    let mut list = String::new();
    for (_, file) in files {
        writeln!(list, "{}", file.display()).unwrap();
    }
    fs::write(home.path("visits.csv"), list).unwrap();
    for person in &shown.people {
        let photographs = person.enrol.iter().map(|file| file.to_str().unwrap());
        let args: Vec<&str> =
            ["enrol", "--id", &person.id].into_iter().chain(photographs).collect();
        assert!(home.output(&args).status.success());
    }
    let mut daemon = home.spawn(&["run", "--until-replay-ends"]);
    assert!(daemon.wait().success(), "{}", home.log());
    let events = client.check_events(&home);
    let of_kind = |kind: &str| {
        events.values().filter(|event| event["kind"] == kind).cloned().collect::<Vec<_>>()
    };
    (of_kind("attendance"), of_kind("attack"))
}

mod needs_photographs {
    use super::{Value, play, shown};

    #[test]
    fn flag_mode_reports_and_records_prints() {
        let shown = shown();
        let (attendance, attacks) = play("flag", &shown, &shown.prints);
        println!(
            "flag: {} prints, {} attendances, {} attacks",
            shown.prints.len(),
            attendance.len(),
            attacks.len()
        );
        assert!(attacks.len() * 10 >= shown.prints.len() * 9, "{attacks:#?}");
        assert!(
            attacks
                .iter()
                .all(|it| it["enforced"] == false && it["scores"].as_array().unwrap().len() >= 2)
        );
        assert!(!attendance.is_empty(), "a print of somebody enrolled is recognised as them");
        assert!(
            attendance
                .iter()
                .all(|it| attacks.iter().any(|attack| attack["subject"] == it["subject"]))
        );
    }

    #[test]
    fn enforce_mode_records_only_live_faces() {
        let shown = shown();
        let (attendance, attacks) = play("enforce", &shown, &shown.prints);
        println!(
            "enforce: {} prints, {} attendances, {} attacks",
            shown.prints.len(),
            attendance.len(),
            attacks.len()
        );
        assert!(attendance.len() * 10 <= shown.prints.len(), "{attendance:#?}");
        let enforced = attacks
            .iter()
            .filter(|it| it["enforced"] == true && it["subject"]["id"].is_string())
            .count();
        assert!(enforced > 0, "{attacks:#?}");
        let (attendance, attacks) = play("enforce", &shown, &shown.live);
        println!(
            "enforce: {} live, {} attendances, {} attacks",
            shown.live.len(),
            attendance.len(),
            attacks.len()
        );
        assert!(attendance.len() * 100 >= shown.live.len() * 95, "{attacks:#?}");
    }

    #[test]
    fn off_mode_reports_no_attacks() {
        let shown = shown();
        let (attendance, attacks) = play("off", &shown, &shown.prints);
        assert_eq!(attacks, [] as [Value; 0]);
        assert!(!attendance.is_empty());
    }
}
