//! Real photographs, read where they lie and never copied: `faces-open` beside the repository (or `$FACES_OPEN`), else
//! the demo's photographs, which `make setup` fetches.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;

/// One who can be enrolled.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: String,
    pub enrol: Vec<PathBuf>,
    pub probes: Vec<PathBuf>,
}

#[derive(Clone, Debug, Default)]
pub struct Faces {
    pub people: Vec<Person>,
    /// Strangers, one photograph each.
    pub impostors: Vec<PathBuf>,
    pub empty_scenes: Vec<PathBuf>,
    /// Several people in one picture: the ids of those who can be enrolled.
    pub groups: Vec<(PathBuf, Vec<String>)>,
    /// Printed photographs held before a camera, with the id of whom they show.
    pub prints: Vec<(String, PathBuf)>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The photographs of the demo: small, and there after `make setup`.
pub fn demo(name: &str) -> PathBuf {
    let path = root().join(".cache/photos").join(name);
    assert!(
        path.is_file(),
        "{} is missing: `make setup` (models/fetch.sh photos) fetches it",
        path.display()
    );
    path
}

impl Faces {
    pub fn find() -> Self {
        let open = std::env::var_os("FACES_OPEN")
            .map_or_else(|| root().join("../shared/faces-open"), PathBuf::from);
        if open.join("identify.csv").is_file() { Self::open(&open) } else { Self::of_the_demo() }
    }

    fn open(dir: &Path) -> Self {
        let mut people: BTreeMap<String, Person> = BTreeMap::new();
        let mut faces = Self::default();
        let mut protocol = csv::Reader::from_path(dir.join("identify.csv")).unwrap();
        for row in protocol.records().map(Result::unwrap) {
            let (file, id, role) = (dir.join(&row[0]), row[1].to_owned(), &row[2]);
            let person = || Person { id: id.clone(), enrol: Vec::new(), probes: Vec::new() };
            match role {
                "enrol" => people.entry(id.clone()).or_insert_with(person).enrol.push(file),
                "probe" => people.entry(id.clone()).or_insert_with(person).probes.push(file),
                "impostor" => faces.impostors.push(file),
                _ => {}
            }
        }
        faces.people = people.into_values().filter(|it| !it.enrol.is_empty()).collect();
        let mut groups = csv::Reader::from_path(dir.join("group/groups.csv")).unwrap();
        for row in groups
            .records()
            .map(Result::unwrap)
            .filter(|row| &row[1] == "real" && !row[2].is_empty())
        {
            faces.groups.push((
                dir.join("group").join(&row[0]),
                row[2].split(';').map(str::to_owned).collect(),
            ));
        }
        let mut spoof = csv::Reader::from_path(dir.join("spoof/spoof.csv")).unwrap();
        for row in spoof.records().map(Result::unwrap).filter(|row| &row[2] == "print") {
            faces.prints.push((row[1].to_owned(), dir.join("spoof").join(&row[0])));
        }
        let listed = fs::read_dir(dir.join("nofaces")).unwrap().map(|entry| entry.unwrap().path());
        faces.empty_scenes = listed.collect();
        faces.empty_scenes.sort();
        faces
    }

    fn of_the_demo() -> Self {
        let person = |id: &str, enrol: &str, probes: &[&str]| Person {
            id: id.into(),
            enrol: vec![demo(enrol)],
            probes: probes.iter().map(|name| demo(name)).collect(),
        };
        Self {
            people: vec![
                person("obama", "obama.jpg", &["obama2.jpg", "obama3.jpg"]),
                person("biden", "biden.jpg", &["biden.jpg"]),
            ],
            impostors: vec![demo("astronaut.png")],
            ..Self::default()
        }
    }
}

/// A photograph as commands carry it.
pub fn base64(path: &Path) -> String {
    base64::engine::general_purpose::STANDARD.encode(fs::read(path).unwrap())
}

/// An `enrol` command's fields.
pub fn enrolment(id: &str, name: &str, photographs: &[PathBuf]) -> serde_json::Value {
    let images: Vec<_> = photographs.iter().map(|path| base64(path)).collect();
    serde_json::json!({"subject": {"id": id, "name": name}, "images": images})
}
