//! Who is to be imported: one photograph or one folder of them per person, or what a CSV file says.
//!
//! Nothing is looked at here but names: photographs are opened by whoever judges them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::recognise::face::{Name, SubjectId};
use crate::record::ids;

/// One person, with the photographs that count.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    pub id: SubjectId,
    pub name: Name,
    /// The id and name were chosen (`--map`), not made from a file's name.
    pub chosen: bool,
    pub photographs: Vec<PathBuf>,
    /// More than count.
    pub surplus: Vec<PathBuf>,
}

/// Something that cannot be a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: PathBuf,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct Found {
    pub people: Vec<Person>,
    pub faults: Vec<Fault>,
    /// Files that are no photographs by their names.
    pub passed_over: usize,
}

/// What is taken for a photograph; of these, JPEG, PNG and WebP can be read, and the others are refused by name.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "png", "webp", "heic", "heif", "avif", "bmp", "gif", "tif", "tiff"];

/// The people of a folder: `NAME.jpg`, or `NAME/…jpg`. In the order of their names.
pub fn of_folder(dir: &Path, photographs_max: usize) -> anyhow::Result<Found> {
    let mut found = Found::default();
    // The same name as a file and as a folder is the same person.
    let mut by_name: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in entries(dir)? {
        let is_folder = path.is_dir();
        if is_hidden(&path) || !(is_folder || is_photograph(&path)) {
            found.passed_over += 1;
            continue;
        }
        let stem = if is_folder { path.file_name() } else { path.file_stem() };
        let Some(name) = stem.and_then(OsStr::to_str) else {
            found.faults.push(Fault { file: path, why: "bad_name (it is not UTF-8)".into() });
            continue;
        };
        let photographs = by_name.entry(name.trim().to_owned()).or_default();
        if is_folder {
            let (inside, others) = photographs_of(&path)?;
            photographs.extend(inside);
            found.passed_over += others;
        } else {
            photographs.push(path);
        }
    }
    let mut ids: HashMap<SubjectId, String> = HashMap::new();
    for (text, photographs) in by_name {
        let file = dir.join(&text);
        let name = match Name::new(&text) {
            Ok(name) => name,
            Err(error) => {
                found.faults.push(Fault { file, why: format!("bad_name ({error})") });
                continue;
            }
        };
        let id = ids::from_name(&text);
        if let Some(other) = ids.insert(id.clone(), text) {
            let why = format!("same_id (as {other:?}: {id}; name ids with --map)");
            found.faults.push(Fault { file, why });
            ids.insert(id, other);
            continue;
        }
        found.add(
            Person { id, name, chosen: false, photographs, surplus: Vec::new() },
            file,
            photographs_max,
        );
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Row {
    file: PathBuf,
    id: String,
    #[serde(default)]
    name: String,
}

/// The people of a CSV file with the columns `file`, `id` and `name`: one row a photograph, or a folder of them, relative
/// to `dir`. Rows of one id are one person.
pub fn of_map(map: &Path, dir: &Path, photographs_max: usize) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(map);
    let reader = reader
        .as_mut()
        .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", map.display()))?;
    let mut by_id: BTreeMap<SubjectId, (Name, Vec<PathBuf>)> = BTreeMap::new();
    for (at, row) in reader.deserialize().enumerate() {
        let row: Row =
            row.with_context(|| format!("{} has a row that is not file,id,name", map.display()))?;
        let place = || format!("row {} of {}", at + 1, map.display());
        let id = SubjectId::new(&row.id).with_context(place)?;
        let name =
            Name::new(if row.name.is_empty() { &row.id } else { &row.name }).with_context(place)?;
        let path = dir.join(&row.file);
        let is_all =
            row.file.as_os_str().is_empty() || path.canonicalize().ok() == dir.canonicalize().ok();
        ensure!(
            !is_all || path.canonicalize().is_err(),
            "{}: its file is the whole folder",
            place()
        );
        let (known, photographs) =
            by_id.entry(id.clone()).or_insert_with(|| (name.clone(), Vec::new()));
        ensure!(*known == name, "{}: {id} has two names", place());
        if path.is_dir() {
            let (inside, others) = photographs_of(&path)?;
            photographs.extend(inside);
            found.passed_over += others;
        } else {
            photographs.push(path);
        }
    }
    for (id, (name, photographs)) in by_id {
        let file = PathBuf::from(id.as_str());
        found.add(
            Person { id, name, chosen: true, photographs, surplus: Vec::new() },
            file,
            photographs_max,
        );
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, mut person: Person, file: PathBuf, photographs_max: usize) {
        person.photographs.dedup();
        if person.photographs.is_empty() {
            self.faults.push(Fault { file, why: "no_photograph".into() });
            return;
        }
        // Always the same ones, or each import would add some more.
        person.surplus =
            person.photographs.split_off(person.photographs.len().min(photographs_max));
        self.people.push(person);
    }
}

fn photographs_of(dir: &Path) -> anyhow::Result<(Vec<PathBuf>, usize)> {
    let (photographs, others): (Vec<_>, Vec<_>) = entries(dir)?
        .into_iter()
        .partition(|path| is_photograph(path) && !is_hidden(path) && !path.is_dir());
    Ok((photographs, others.len()))
}

/// Sorted, so that an import always does the same.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read the folder {}", dir.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(failed)? {
        paths.push(entry.with_context(failed)?.path());
    }
    if paths.len() > ENTRIES_MAX {
        bail!("{} has {} entries; at most {ENTRIES_MAX} at a time", dir.display(), paths.len());
    }
    paths.sort();
    Ok(paths)
}

/// As many as a gallery may become.
const ENTRIES_MAX: usize = 1_000_000;

fn is_photograph(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    #[test]
    fn one_file_or_folder_a_person() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "Jane Doe.jpg",
            "Jane Doe/b.PNG",
            "Jane Doe/a.jpg",
            "Jane Doe/notes.txt",
            "Zoë.webp",
            "Zoe.heic",
        ];
        touch(dir.path(), &names);
        touch(dir.path(), &[".DS_Store", "Thumbs.db", "Nobody/readme.md"]);
        let found = of_folder(dir.path(), 2).unwrap();
        let list: Vec<_> =
            found.people.iter().map(|it| (it.id.as_str(), it.name.as_str())).collect();
        assert_eq!(list, [("jane-doe", "Jane Doe"), ("zoe", "Zoe")]);
        let file = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        let jane = &found.people[0];
        assert_eq!(
            jane.photographs.iter().map(file).collect::<Vec<_>>(),
            ["Jane Doe/a.jpg", "Jane Doe/b.PNG"]
        );
        assert_eq!(jane.surplus.iter().map(file).collect::<Vec<_>>(), ["Jane Doe.jpg"]);
        let faults: Vec<_> =
            found.faults.iter().map(|it| (file(&it.file), it.why.as_str())).collect();
        assert_eq!(faults[0], ("Nobody".into(), "no_photograph"));
        assert_eq!(faults[1].0, "Zoë");
        assert!(faults[1].1.starts_with("same_id (as \"Zoe\": zoe"), "{faults:?}");
        assert_eq!(found.passed_over, 4);
    }

    #[test]
    fn a_csv_file_names_ids() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["1.jpg", "2.jpg", "more/3.jpg"]);
        let map = dir.path().join("map.csv");
        fs::write(&map, "file,id,name\n1.jpg,j1,Jane Doe\nmore,j1,Jane Doe\n2.jpg,j2,\n").unwrap();
        let found = of_map(&map, dir.path(), 10).unwrap();
        let list: Vec<_> = found
            .people
            .iter()
            .map(|it| (it.id.as_str(), it.name.as_str(), it.photographs.len()))
            .collect();
        assert_eq!(list, [("j1", "Jane Doe", 2), ("j2", "j2", 1)]);
        for bad in [
            "file,id\n1.jpg,a b\n",
            "file,id,name\n1.jpg,a,A\n2.jpg,a,B\n",
            "a,b\n1,2\n",
            "file,id,name\n,a,A\n",
            "file,id,name\n./,a,A\n",
        ] {
            fs::write(&map, bad).unwrap();
            assert!(of_map(&map, dir.path(), 10).is_err(), "{bad}");
        }
    }
}
