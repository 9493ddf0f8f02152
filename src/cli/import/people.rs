//! The people to import: one photograph or one folder of photographs per person, in a folder or a zip
//! archive, or the rows of a CSV file.
//!
//! Only names are read here, and the first bytes of files whose name has no ending; photographs are
//! opened later.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::cli::consent::{parse_end, parse_start};
use crate::cli::import::archive::Archive;
use crate::cli::photograph;
use crate::ids::{Name, SubjectId};
use crate::recognise::decode::{KIND_BYTES, check_kind};
use crate::recognise::picture::DecodeError;
use crate::wire::consent::Consent;
use crate::wire::subject_id_from_name;

/// A photograph: a file, or an entry of an archive.
#[derive(Clone, Debug)]
pub struct Photograph {
    /// For people; below the archive if it is in one.
    pub path: PathBuf,
    entry: Option<(Archive, usize)>,
}

impl Photograph {
    fn file(path: PathBuf) -> Self {
        Self { path, entry: None }
    }

    /// The bytes, or the reason why they cannot be used.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match &self.entry {
            None => photograph::read_file(&self.path),
            Some((archive, index)) => archive.read(*index),
        }
    }
}

/// One person, with the photographs to use.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: SubjectId,
    pub name: Name,
    /// Whether id and name were given (`--map`), not made from a file name.
    pub chosen: bool,
    pub photographs: Vec<Photograph>,
    /// Photographs beyond the maximum.
    pub surplus: Vec<Photograph>,
    pub consent: Option<Consent>,
}

/// A file or folder that cannot be a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    pub file: PathBuf,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct FoundPeople {
    pub people: Vec<Person>,
    pub skipped: Vec<SkippedFile>,
    /// The number of files that are not photographs by their names.
    pub ignored: usize,
}

/// Extensions of photographs. JPEG, PNG and WebP can be read; the others are rejected by name.
const EXTENSIONS: [&str; 20] = [
    "jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "png", "webp", "heic", "heif", "avif", "bmp",
    "gif", "tif", "tiff", "jxl", "dng", "cr2", "nef", "arw",
];

/// Folders that systems and network storage make by themselves: previews, forks and waste.
const SYSTEM_FOLDERS: [&str; 8] = [
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
];

/// What was listed: photographs by their place below the folder or archive.
#[derive(Default)]
struct Listing {
    photographs: Vec<(PathBuf, Photograph)>,
    /// Folders without a photograph.
    empty: Vec<PathBuf>,
    ignored: usize,
}

/// Returns the people of a folder or a zip archive, `NAME.jpg` or `NAME/…jpg`, in the order of their
/// names.
pub fn from_folder(dir: &Path, photographs_max: usize) -> anyhow::Result<FoundPeople> {
    let listing = if dir.is_dir() { list_folders(dir)? } else { list_archive(dir)? };
    let mut found = FoundPeople { ignored: listing.ignored, ..FoundPeople::default() };
    // A file and a folder of the same name are the same person. Names are the same if they look it.
    let mut by_name: BTreeMap<String, (Name, Vec<Photograph>)> = BTreeMap::new();
    let empty = listing.empty.into_iter().map(|place| (place.join("-"), None));
    let photographs = listing.photographs.into_iter().map(|(place, it)| (place, Some(it)));
    for (place, photograph) in photographs.chain(empty) {
        let Some(text) = name_of(&place) else {
            let file = dir.join(&place);
            found.skipped.push(SkippedFile { file, why: "bad_name (it is not UTF-8)".into() });
            continue;
        };
        let file = dir.join(text);
        match Name::new(text) {
            Ok(name) => {
                let (_, photographs) =
                    by_name.entry(name.as_str().to_owned()).or_insert((name, Vec::new()));
                photographs.extend(photograph);
            }
            Err(error) => {
                let skipped = SkippedFile { file, why: format!("bad_name ({error})") };
                // Files of a folder follow one another.
                if found.skipped.last() != Some(&skipped) {
                    found.skipped.push(skipped);
                }
            }
        }
    }
    let mut ids: HashMap<SubjectId, String> = HashMap::new();
    for (text, (name, photographs)) in by_name {
        let file = dir.join(&text);
        let id = subject_id_from_name::from_name(&text);
        if let Some(other) = ids.insert(id.clone(), text) {
            let why = format!("same_id (as {other:?}: {id}; name ids with --map)");
            found.skipped.push(SkippedFile { file, why });
            ids.insert(id, other);
            continue;
        }
        let person =
            Person { id, name, chosen: false, photographs, surplus: Vec::new(), consent: None };
        found.add(person, file, photographs_max);
    }
    Ok(found)
}

/// Whose photograph it is by its place: `NAME.jpg` or `NAME/…`.
fn name_of(place: &Path) -> Option<&str> {
    let mut parts = place.components();
    let Some(Component::Normal(first)) = parts.next() else { return None };
    let is_folder = parts.next().is_some();
    let name = if is_folder || !has_ending(Path::new(first)) {
        Some(first)
    } else {
        Path::new(first).file_stem()
    };
    name?.to_str()
}

fn list_folders(dir: &Path) -> anyhow::Result<Listing> {
    let mut listing = Listing::default();
    let mut list = |folder: &Path, place: &Path, inside: bool| -> anyhow::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        let mut count = 0;
        for path in list_folder(folder)? {
            let name = path.file_name().unwrap_or_default();
            if is_of_the_system(name) {
                listing.ignored += 1;
            } else if path.is_dir() {
                // Folders in a person's folder are not opened.
                if inside { listing.ignored += 1 } else { folders.push(path) }
            } else if is_photograph(&path, || head_of(&path)) {
                count += 1;
                listing.photographs.push((place.join(name), Photograph::file(path)));
            } else {
                listing.ignored += 1;
            }
        }
        if inside && count == 0 {
            listing.empty.push(place.to_owned());
        }
        Ok(folders)
    };
    for folder in list(dir, Path::new(""), false)? {
        let place = PathBuf::from(folder.file_name().unwrap_or_default());
        list(&folder, &place, true)?;
    }
    listing.photographs.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

fn list_archive(file: &Path) -> anyhow::Result<Listing> {
    let mut archive = Archive::open(file)?;
    let mut listing = Listing::default();
    let mut entries = archive.entries()?;
    let count = entries.len();
    entries.retain(|entry| !entry.path.iter().any(is_of_the_system));
    listing.ignored += count - entries.len();
    let paths: Vec<&Path> = entries.iter().map(|entry| entry.path.as_path()).collect();
    let wrapper = wrapper(file, &paths).map(Path::to_owned);
    for entry in &entries {
        let place = match &wrapper {
            Some(wrapper) => entry.path.strip_prefix(wrapper).unwrap_or(&entry.path).to_owned(),
            None => entry.path.clone(),
        };
        let is_deep = place.components().count() > 2;
        let index = entry.index;
        if is_deep || !is_photograph(&place, || archive.head(index, KIND_BYTES)) {
            listing.ignored += 1;
            continue;
        }
        let path = file.join(&entry.path);
        let photograph = Photograph { path, entry: Some((archive.clone(), index)) };
        listing.photographs.push((place, photograph));
    }
    Ok(listing)
}

/// The folder that was archived, if the archive has it as its only folder: it is named like the
/// archive, or has folders itself. Any other only folder is a person.
fn wrapper<'a>(archive: &Path, paths: &[&'a Path]) -> Option<&'a Path> {
    let first = Path::new(paths.first()?.iter().next()?);
    let is_only = paths.iter().all(|path| path.starts_with(first) && *path != first);
    let is_named_like_it = archive.file_stem() == Some(first.as_os_str());
    let is_deep = paths.iter().any(|path| path.components().count() > 2);
    (is_only && (is_named_like_it || is_deep)).then_some(first)
}

/// Columns of a map, in any order and case.
#[derive(Default)]
struct Columns {
    file: Option<usize>,
    id: Option<usize>,
    name: Option<usize>,
    consent_version: Option<usize>,
    consent_given: Option<usize>,
    consent_until: Option<usize>,
    recorded_by: Option<usize>,
}

impl Columns {
    /// Reads the consent of a row: none if it names no version of the text.
    fn consent(&self, row: &csv::StringRecord) -> anyhow::Result<Option<Consent>> {
        let cell = |at: Option<usize>| at.and_then(|at| row.get(at)).filter(|it| !it.is_empty());
        let Some(version) = cell(self.consent_version) else { return Ok(None) };
        let given = cell(self.consent_given).context("consent_given is missing")?;
        let given_ms = parse_start(given).map_err(|it| anyhow::anyhow!("consent_given {it}"))?;
        let until_ms = cell(self.consent_until).map(parse_end).transpose();
        let until_ms = until_ms.map_err(|it| anyhow::anyhow!("consent_until {it}"))?;
        let by = Name::new(cell(self.recorded_by).unwrap_or_default()).context("recorded_by")?;
        Ok(Some(Consent::new(given_ms, version, until_ms, by)?))
    }
}

/// A person of a table, without the id.
type MappedPerson = (Name, Vec<Photograph>, Option<Consent>);

/// Returns the people of a CSV file with the columns `file`, `id` and `name`, and their consents if it
/// has columns for them. Each row is a photograph
/// or a folder of photographs, relative to `dir`; rows with the same id are one person.
pub fn from_map(map: &Path, dir: &Path, photographs_max: usize) -> anyhow::Result<FoundPeople> {
    ensure!(dir.is_dir(), "--map works with a folder, not with an archive");
    let mut found = FoundPeople::default();
    let text = read_table(map)?;
    let (separator, text) = separator(&text);
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .delimiter(separator)
        .flexible(true)
        .from_reader(text.as_bytes());
    let broken = || format!("{} is no table that can be read", map.display());
    let mut columns = Columns::default();
    for (at, title) in reader.headers().map_err(|_| anyhow::anyhow!(broken()))?.iter().enumerate() {
        match title.to_ascii_lowercase().as_str() {
            "file" => columns.file = Some(at),
            "id" => columns.id = Some(at),
            "name" => columns.name = Some(at),
            "consent_version" => columns.consent_version = Some(at),
            "consent_given" => columns.consent_given = Some(at),
            "consent_until" => columns.consent_until = Some(at),
            "recorded_by" => columns.recorded_by = Some(at),
            _ => {}
        }
    }
    let (Some(file), Some(id)) = (columns.file, columns.id) else {
        bail!("{} does not begin with the titles of its columns: file,id,name", map.display());
    };
    let mut by_id: BTreeMap<SubjectId, MappedPerson> = BTreeMap::new();
    for (at, row) in reader.records().enumerate() {
        let place = || format!("row {} of {}", at + 1, map.display());
        let row = row.map_err(|_| anyhow::anyhow!("{} cannot be read", place()))?;
        let cell = |at: usize| row.get(at).unwrap_or_default();
        if row.iter().all(str::is_empty) {
            continue;
        }
        let id = SubjectId::new(cell(id)).with_context(place)?;
        let name = columns.name.map(cell).filter(|name| !name.is_empty());
        let name = Name::new(name.unwrap_or(id.as_str())).with_context(place)?;
        let is_within = Path::new(cell(file))
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        ensure!(is_within, "{}: its file is not within {}", place(), dir.display());
        let path = find(dir, cell(file));
        let is_all = cell(file).is_empty() || path.canonicalize().ok() == dir.canonicalize().ok();
        ensure!(
            !is_all || path.canonicalize().is_err(),
            "{}: its file is the whole folder",
            place()
        );
        let consent = columns.consent(&row).with_context(place)?;
        let (known, photographs, known_consent) =
            by_id.entry(id.clone()).or_insert_with(|| (name.clone(), Vec::new(), None));
        ensure!(*known == name, "{}: {id} has two names", place());
        if consent.is_some() {
            let is_same = known_consent.is_none() || *known_consent == consent;
            ensure!(is_same, "{}: {id} has two consents", place());
            *known_consent = consent;
        }
        if path.is_dir() {
            let (inside, others) = list_photographs(&path)?;
            photographs.extend(inside);
            found.ignored += others;
        } else {
            photographs.push(Photograph::file(path));
        }
    }
    for (id, (name, photographs, consent)) in by_id {
        let file = PathBuf::from(id.as_str());
        let person = Person { id, name, chosen: true, photographs, surplus: Vec::new(), consent };
        found.add(person, file, photographs_max);
    }
    Ok(found)
}

/// As large as a table of a gallery may be.
const TABLE_BYTES_MAX: u64 = 256 << 20;

/// The text of a table: UTF-8, or UTF-16 with a mark, as spreadsheets write it.
fn read_table(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot read {}", path.display());
    ensure!(path.is_file(), "cannot read {}: it is not a file", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(failed)?;
    file.take(TABLE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(failed)?;
    ensure!(bytes.len() as u64 <= TABLE_BYTES_MAX, "{} is too large", path.display());
    let unit: Option<fn([u8; 2]) -> u16> = match bytes.get(..2) {
        Some([0xFF, 0xFE]) => Some(u16::from_le_bytes),
        Some([0xFE, 0xFF]) => Some(u16::from_be_bytes),
        _ => None,
    };
    let text = match unit {
        Some(unit) => {
            let units = bytes[2..].as_chunks::<2>().0.iter().map(|it| unit(*it));
            char::decode_utf16(units).collect::<Result<String, _>>().ok()
        }
        None => String::from_utf8(bytes).ok(),
    };
    let text =
        text.with_context(|| format!("{} is not UTF-8: save it as \"CSV UTF-8\"", path.display()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// What separates the columns: as the first line says (`sep=;`), or what it has most of.
fn separator(text: &str) -> (u8, &str) {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Some(&[separator]) = first.trim_end().strip_prefix("sep=").map(str::as_bytes) {
        return (separator, rest);
    }
    let count = |separator: &u8| first.bytes().filter(|byte| byte == separator).count();
    // The first of equals.
    let most = [b'\t', b';', b','].into_iter().max_by_key(count);
    (most.unwrap_or(b','), text)
}

/// The file of this name below a folder, also if the folder has the name composed in another way.
fn find(dir: &Path, file: &str) -> PathBuf {
    let path = dir.join(file);
    if path.exists() {
        return path;
    }
    let wanted = subject_id_from_name::composed(file);
    let mut path = dir.to_owned();
    for part in Path::new(&wanted) {
        let is_same = |entry: &PathBuf| {
            let name = entry.file_name().and_then(OsStr::to_str);
            name.is_some_and(|name| part == OsStr::new(&subject_id_from_name::composed(name)))
        };
        let entries = list_folder(&path).unwrap_or_default();
        path = entries.into_iter().find(is_same).unwrap_or_else(|| path.join(part));
    }
    path
}

impl FoundPeople {
    fn add(&mut self, mut person: Person, file: PathBuf, photographs_max: usize) {
        person.photographs.dedup_by(|a, b| a.path == b.path);
        if person.photographs.is_empty() {
            self.skipped.push(SkippedFile { file, why: "no_photograph".into() });
            return;
        }
        // The choice is always the same; otherwise each import would add more.
        person.surplus =
            person.photographs.split_off(person.photographs.len().min(photographs_max));
        self.people.push(person);
    }
}

fn list_photographs(dir: &Path) -> anyhow::Result<(Vec<Photograph>, usize)> {
    let (photographs, others): (Vec<_>, Vec<_>) = list_folder(dir)?.into_iter().partition(|path| {
        let is_of_the_system = path.file_name().is_none_or(is_of_the_system);
        !is_of_the_system && !path.is_dir() && is_photograph(path, || head_of(path))
    });
    Ok((photographs.into_iter().map(Photograph::file).collect(), others.len()))
}

/// Returns the entries of a folder, sorted, so that an import is repeatable.
fn list_folder(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
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

/// As large as a gallery may be.
const ENTRIES_MAX: usize = 1_000_000;

/// By its ending; without one by what it begins with.
fn is_photograph(path: &Path, head: impl FnOnce() -> Vec<u8>) -> bool {
    if has_ending(path) {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        return EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension));
    }
    let kind = check_kind(&head());
    matches!(kind, Ok(_) | Err(DecodeError::Heic | DecodeError::OtherFormat(_)))
}

/// The longest ending of a file name: `pjpeg`.
const ENDING_MAX: usize = 5;

/// Whether what follows the last dot is an ending, and not a part of a name (`Dr. Jane Doe`).
fn has_ending(path: &Path) -> bool {
    path.extension().is_some_and(|it| {
        let ending = it.as_encoded_bytes();
        (1..=ENDING_MAX).contains(&ending.len())
            && ending.iter().all(u8::is_ascii_alphanumeric)
            && !ending.iter().all(u8::is_ascii_digit)
    })
}

fn head_of(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // Opening a FIFO would wait for its writer.
    if path.is_file()
        && let Ok(file) = File::open(path)
    {
        file.take(KIND_BYTES as u64).read_to_end(&mut head).ok();
    }
    head
}

/// Hidden files, and folders that no person made.
fn is_of_the_system(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
        || SYSTEM_FOLDERS.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests;
