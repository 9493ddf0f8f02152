//! Real photographs. Those of many people (`faces-open`) lie in `$FACES_OPEN`, by default in
//! `../shared/faces-open`, and are never copied. Where they are missing, tests use the demo's
//! photographs, which `make setup` fetches, and pictures made of them. A test that cannot do
//! without many people stands in a module `needs_photographs`, which `tests/run.sh` leaves out
//! where they are missing.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use image::{ImageFormat, RgbImage, imageops};

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

/// The folder in which the photographs of many people are expected.
fn many_people_dir() -> PathBuf {
    let named = std::env::var_os("FACES_OPEN").unwrap_or_else(|| "../shared/faces-open".into());
    root().join(named)
}

/// The list of the photographs of many people: a folder without it counts as missing.
const PROTOCOL: &str = "identify.csv";

/// The folder of the photographs of many people, for tests that cannot do without them.
pub fn required_dir() -> PathBuf {
    let dir = many_people_dir();
    assert!(
        dir.join(PROTOCOL).is_file(),
        "this test needs the photographs of faces-open, and there is no {}: set FACES_OPEN to their folder, or run \
         `make test`, which skips the tests that need them",
        dir.join(PROTOCOL).display()
    );
    dir
}

/// A file or folder of the field cases: inputs of people's bug reports, made small. They lie in
/// `$FIELD_CASES`, by default in `../shared/field-cases`, and are never copied.
pub fn field_case(name: &str) -> PathBuf {
    let dir = std::env::var_os("FIELD_CASES").unwrap_or_else(|| "../shared/field-cases".into());
    let path = root().join(dir).join(name);
    assert!(
        path.exists(),
        "this test needs the field cases, and there is no {}: set FIELD_CASES to their folder, or run `make test`, \
         which skips the tests that need them",
        path.display()
    );
    path
}

impl Faces {
    /// The photographs of many people if they are there, else those that the project fetches.
    pub fn find() -> Self {
        /// Made once: later on a test may have made the file system read-only.
        static OF_THE_DEMO: OnceLock<Faces> = OnceLock::new();
        let dir = many_people_dir();
        if dir.join(PROTOCOL).is_file() {
            Self::open(&dir)
        } else {
            OF_THE_DEMO.get_or_init(Self::of_the_demo).clone()
        }
    }

    /// The photographs of many people, for tests that cannot do without them.
    pub fn required() -> Self {
        Self::open(&required_dir())
    }

    fn open(dir: &Path) -> Self {
        let mut people: BTreeMap<String, Person> = BTreeMap::new();
        let mut faces = Self::default();
        let mut protocol = csv::Reader::from_path(dir.join(PROTOCOL)).unwrap();
        for row in protocol.records().map(Result::unwrap) {
            let file = dir.join(&row[0]);
            let id = row[1].to_owned();
            let role = &row[2];
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

    /// Two people and a stranger. Of one of the two there is a single photograph: the other one is
    /// its mirror image.
    fn of_the_demo() -> Self {
        let mirrored = || imageops::flip_horizontal(&open(&demo("biden.jpg")));
        let biden = made("biden-mirrored.jpg", mirrored);
        let group = made("group.jpg", || {
            side_by_side(&[demo("obama2.jpg"), demo("biden.jpg"), demo("astronaut.png")])
        });
        let wall = made("wall.jpg", || RgbImage::from_pixel(320, 240, image::Rgb([90, 120, 90])));
        let person = |id: &str, enrol: Vec<PathBuf>, probes: Vec<PathBuf>| Person {
            id: id.into(),
            enrol,
            probes,
        };
        Self {
            people: vec![
                person(
                    "obama",
                    vec![demo("obama.jpg"), demo("obama2.jpg")],
                    vec![demo("obama3.jpg")],
                ),
                person("biden", vec![demo("biden.jpg")], vec![biden]),
            ],
            impostors: vec![demo("astronaut.png")],
            empty_scenes: vec![wall],
            groups: vec![(group, vec!["obama".into(), "biden".into()])],
            prints: Vec::new(),
        }
    }
}

fn open(path: &Path) -> RgbImage {
    image::open(path).unwrap().to_rgb8()
}

/// A picture made of the demo's. It lies in the folder that cargo keeps for tests, and is made anew
/// each time, so that it is always that of this code.
fn made(name: &str, picture: impl FnOnce() -> RgbImage) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("photographs");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    // Renamed when it is whole: tests run beside one another.
    let half = tempfile::NamedTempFile::new_in(&dir).unwrap();
    picture().save_with_format(half.path(), ImageFormat::Jpeg).unwrap();
    half.persist(&path).unwrap();
    path
}

/// All of one height, without a gap.
fn side_by_side(photographs: &[PathBuf]) -> RgbImage {
    const HEIGHT: u32 = 800;
    let fitted = photographs.iter().map(|path| {
        let picture = open(path);
        let width = picture.width() * HEIGHT / picture.height();
        imageops::resize(&picture, width, HEIGHT, imageops::FilterType::Triangle)
    });
    let fitted: Vec<RgbImage> = fitted.collect();
    let mut all = RgbImage::new(fitted.iter().map(RgbImage::width).sum(), HEIGHT);
    let mut left = 0;
    for picture in fitted {
        imageops::overlay(&mut all, &picture, i64::from(left), 0);
        left += picture.width();
    }
    all
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
