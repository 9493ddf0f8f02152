//! What must never be found: a photograph or a template in clear in any file, and a name, a
//! photograph or a template in the log or in the vital signs. And after an erasure: nothing of the
//! person at all.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::client::Client;
use crate::support::daemon::{Home, until};
use crate::support::faces::{demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::recognise::engine::FaceEngine as _;
use rollcall::recognise::picture::{Picture, PictureLimits};
use rollcall::recognise::still;
use rollcall::store::{Reference, Store};
use rollcall::vision::manifest::Precision;
use rollcall::vision::{Vision, VisionSettings};
use serde_json::json;

const NAME: &str = "Zephyrine Quittengelb";
const ID: &str = "subject-4711";
/// The length of what is looked for. In 16 bytes a chance hit will not happen; less than two of
/// them of a photograph, or four numbers of a template, tell nobody anything.
const WINDOW: usize = 16;

/// What is looked for: windows of the secret bytes, and what they are part of.
#[derive(Default)]
struct Needles(HashMap<[u8; WINDOW], &'static str>);

impl Needles {
    /// All that lie at a multiple of `step`. Runs of few values (a white wall) are in every file,
    /// and left out.
    fn add(&mut self, what: &'static str, bytes: &[u8], step: usize) {
        for window in bytes.windows(WINDOW).step_by(step) {
            let mut values = window.to_vec();
            values.sort_unstable();
            values.dedup();
            if values.len() >= WINDOW / 2 {
                self.0.insert(window.try_into().unwrap(), what);
            }
        }
    }

    fn found_in(&self, bytes: &[u8]) -> Option<&'static str> {
        bytes.windows(WINDOW).find_map(|window| self.0.get(window).copied())
    }
}

fn vision() -> Vision {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let precision = Precision::Int8;
    let settings = VisionSettings {
        models,
        runtime_library: None,
        embedder: "fr_feature".into(),
        precision,
        threads: 1,
        pad: false,
    };
    Vision::load(&settings).unwrap()
}

/// The photograph as it was sent and as pixels; its faces as samples and as templates, in every
/// form we have of one.
fn needles_of(photographs: &[PathBuf]) -> Needles {
    let mut needles = Needles::default();
    let mut vision = vision();
    for path in photographs {
        let file = fs::read(path).unwrap();
        // A window at each multiple of its length: whoever copied 31 bytes is caught.
        needles.add("a photograph", &file, WINDOW);
        needles.add("a photograph in base64", faces::base64(path).as_bytes(), WINDOW);
        let picture = Picture::decode(&file, PictureLimits::default()).unwrap();
        needles.add("pixels of a photograph", picture.rgb(), WINDOW);
        for face in still::faces(&mut vision, &picture).unwrap() {
            needles.add("an aligned face", face.sample.picture.rgb(), WINDOW);
            let of_frames = vision.template(&face.sample).unwrap().unwrap();
            let of_stills = still::template(&mut vision, &face.sample).unwrap().unwrap();
            add_template(&mut needles, of_frames.as_slice());
            add_template(&mut needles, of_stills.as_slice());
        }
    }
    needles
}

/// In every form that we, or a library, might write one.
fn add_template(needles: &mut Needles, template: &[f32]) {
    let bytes = |of: fn(&f32) -> Vec<u8>| template.iter().flat_map(of).collect::<Vec<u8>>();
    needles.add("a template", &bytes(|x| x.to_le_bytes().to_vec()), 4);
    needles.add("a template", &bytes(|x| x.to_be_bytes().to_vec()), 4);
    needles.add(
        "a template in double precision",
        &bytes(|x| f64::from(*x).to_le_bytes().to_vec()),
        8,
    );
    let largest = template.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let codes: Vec<u8> =
        template.iter().map(|x| (x / (largest / 127.0)).round() as i8 as u8).collect();
    needles.add("a template as int8", &codes, 1);
    let text = template.iter().map(|x| format!("{x}")).collect::<Vec<_>>().join(",");
    needles.add("a template as text", text.as_bytes(), 1);
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.is_file() {
            // The socket of `watch` holds nothing.
            files.push(path);
        }
    }
    files
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// All that the daemon left behind, but for what the test itself wrote.
fn check_files(home: &Home, needles: &Needles) {
    assert_eq!(
        files_below(&home.path("tmp")),
        [] as [PathBuf; 0],
        "the home directory and the temporary files"
    );
    let own = ["config.toml", "visits.csv"].map(|name| home.path(name));
    let files = files_below(&home.path(""));
    assert!(files.iter().any(|path| path.ends_with("rollcall.db")), "{files:?}");
    for path in files.iter().filter(|path| !own.contains(path)) {
        let bytes = fs::read(path).unwrap();
        assert_eq!(needles.found_in(&bytes), None, "in {}", path.display());
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        assert!(
            !["jpg", "jpeg", "png", "webp", "bmp", "tmp"].iter().any(|it| extension == *it),
            "{}",
            path.display()
        );
    }
}

fn check_log_and_health(home: &Home, client: &Client, needles: &Needles) {
    let log = home.log();
    assert!(log.contains("attendance recorded"), "the log is that of the daemon: {log}");
    let health: Vec<_> = client
        .received()
        .into_iter()
        .filter(|it| it.part == "health")
        .map(|it| it.payload)
        .collect();
    assert!(!health.is_empty());
    for bytes in health.iter().map(Vec::as_slice).chain([log.as_bytes()]) {
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            !holds(bytes, NAME) && !holds(bytes, "Quittengelb") && !holds(bytes, ID),
            "{shown}"
        );
        // Nor the name of a file, which may be that of a person.
        assert!(!holds(bytes, "obama"), "{shown}");
        assert_eq!(needles.found_in(bytes), None, "{shown}");
    }
}

/// Enrolment, recognition, attendance by command and by camera, a refused duplicate, a picture that
/// cannot be read.
fn live_through_everything(client: &Client) {
    let said = client.request("enrol", "p-1", enrolment(ID, NAME, &[demo("obama.jpg")]));
    assert_eq!(said["ok"], true, "{said}");
    let said =
        client.request("enrol", "p-2", enrolment("other", "Somebody Else", &[demo("obama2.jpg")]));
    assert_eq!(said["error"]["code"], "duplicate_subject", "{said}");
    let said = client.request("enrol", "p-3", enrolment("biden", "Joe", &[demo("biden.jpg")]));
    assert_eq!(said["ok"], true, "{said}");
    let image = faces::base64(&demo("obama3.jpg"));
    assert_eq!(client.request("recognise", "p-4", json!({"image": image}))["names"], json!([NAME]));
    let said = client.request("attend", "p-5", json!({"venue": "main", "image": image}));
    assert_eq!(said["recognised"], json!([NAME]), "{said}");
    let damaged = json!({"venue": "main", "image": &image[..image.len() / 8 * 4]});
    assert_eq!(client.request("attend", "p-6", damaged)["error"]["code"], "bad_image");
    assert_eq!(
        client.request("rename", "p-7", json!({"subject_id": ID, "name": format!("{NAME} II")}))["ok"],
        true
    );
    assert_eq!(
        client.request("withdraw", "p-8", json!({"subject_id": NAME}))["error"]["code"],
        "bad_value"
    );
    client.await_health("the vital signs of all this", |health| health["commands"] == 8);
    client.await_one("the camera's attendance", |it| {
        it.part == "event/attendance" && it.json()["frames"] != 1
    });
}

#[test]
fn no_photograph_template_or_name_leaks() {
    let photographs = ["obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg"].map(demo);
    let needles = needles_of(&photographs);
    let itself = fs::read(&photographs[0]).unwrap();
    assert!(needles.found_in(&itself[1..]).is_some(), "the search would find it");

    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(
        broker.port(),
        "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 10\nshow = \"3s\"\nrepeat = true\n[log]\nlevel = \"debug\"\n\
         [[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n",
    );
    let missing = home.path("missing.jpg");
    let mut list = String::new();
    for path in &photographs {
        writeln!(list, "{}\n{}", path.display(), missing.display()).unwrap();
    }
    fs::write(home.path("visits.csv"), list).unwrap();
    let daemon = client.started(&home);
    live_through_everything(&client);

    // What the daemon itself keeps, opened with its key, is what is searched for.
    let mut templates = 0;
    let reader = Store::open_read_only(&home.state(), None).unwrap();
    let open = |reference: Reference| {
        let bytes: Vec<u8> =
            reference.template.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(needles.found_in(&bytes), Some("a template"));
        templates += 1;
    };
    reader.all_references(&vision().embedder(), open).unwrap();
    assert_eq!(templates, 2);
    drop(reader);

    // While it runs, with the journal of the database beside it, and when it has ended.
    check_files(&home, &needles);
    check_log_and_health(&home, &client, &needles);
    let receipt = client.request("withdraw", "p-9", json!({"subject_id": ID, "erase": true}));
    assert_eq!(receipt["erased"], true, "{receipt}");
    until("what was owed is delivered", || {
        let pending = client.request("sync", &format!("s-{}", client.received().len()), json!({}))
            ["owed"][0]["rows"]
            .clone();
        (pending == 0 || pending == 1).then_some(())
    });
    assert!(daemon.terminate().success());
    check_files(&home, &needles);
    check_log_and_health(&home, &client, &needles);
    for path in files_below(&home.state()) {
        let bytes = fs::read(&path).unwrap();
        assert!(!holds(&bytes, "Quittengelb"), "the erased are gone from {}", path.display());
    }
}
