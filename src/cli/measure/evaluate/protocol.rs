//! The lists of the photographs to compare: CSV files with a header, read and checked.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Clone, Debug, Deserialize)]
pub struct Pair {
    pub file1: String,
    pub file2: String,
    #[serde(deserialize_with = "zero_or_one")]
    pub same: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProtocolRow {
    pub file: String,
    pub identity: String,
    pub role: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Group {
    pub file: String,
    expected: String,
    #[serde(default)]
    pub n_faces: Option<usize>,
}

/// A photograph or clip of a face shown, and how: `live`, or a species of attack.
#[derive(Clone, Debug, Deserialize)]
pub struct Spoof {
    pub file: String,
    pub kind: String,
}

/// A clip, and who is in it.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipEntry {
    pub file: String,
    pub person: String,
}

impl Group {
    /// The identities that must be found.
    pub fn expected(&self) -> Vec<String> {
        self.expected
            .split(';')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// All rows; columns beyond those wanted are passed over.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let rows: Result<Vec<T>, _> = reader.deserialize().collect();
    let rows =
        rows.with_context(|| format!("{} is not the list that is wanted here", path.display()))?;
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}

/// The values of one column, row by row.
pub fn column(path: &Path, name: &str) -> anyhow::Result<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let at = reader.headers()?.iter().position(|header| header == name);
    let at = at.with_context(|| format!("{} has no column {name}", path.display()))?;
    let value = |record: csv::StringRecord| record.get(at).unwrap_or_default().to_owned();
    Ok(reader.records().map(|record| record.map(value)).collect::<Result<_, _>>()?)
}

/// The entries of one role.
pub fn of_role<'a>(
    entries: &'a [ProtocolRow],
    role: &'a str,
) -> impl Iterator<Item = &'a ProtocolRow> {
    entries.iter().filter(move |entry| entry.role == role)
}

/// JPEG, PNG and WebP files of a folder, the shorter name first, so that 2.jpg stands before
/// 10.jpg.
pub fn photographs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    files(dir, |path| ["jpg", "jpeg", "png", "webp"].contains(&extension(path).as_str()))
}

/// The clips of a folder, in the same order.
pub fn clips(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    files(dir, is_clip)
}

/// Whether it is a clip, by the end of its name.
pub fn is_clip(path: &Path) -> bool {
    ["mjpeg", "mjpg", "mp4", "mkv", "mov", "avi", "webm", "gif"].contains(&extension(path).as_str())
}

fn files(dir: &Path, wanted: impl Fn(&Path) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let listing =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut found = Vec::new();
    for entry in listing {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        found.extend(wanted(&path).then_some(path));
    }
    found.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(found)
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_ascii_lowercase()
}

fn zero_or_one<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(serde::de::Error::custom(format!("same is 1 or 0, not {other:?}"))),
    }
}
