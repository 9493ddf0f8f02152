//! The manifest of a backup: its files with their digests, and counts of what the database held.
//!
//! It protects against damage and mistakes, not against forgery: anybody who can alter a backup can
//! alter its manifest.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bounded_file;
use crate::store::DATABASE;
use crate::store::backup::Contents;
use crate::wire::export::hex;

pub const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;
/// Larger than any manifest that is written.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub backup: u32,
    pub created_at: String,
    /// The version of rollcall.
    pub version: String,
    pub site: String,
    pub device: String,
    /// Whether the backup holds the keys.
    pub keys: bool,
    pub contents: BackupContents,
    pub files: Vec<ListedFile>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// The counts of a database, as the manifest has them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupContents {
    pub schema: u32,
    pub events: u64,
    pub newest_seq: i64,
    pub owed: BTreeMap<String, u64>,
    pub subjects: u64,
    pub references: u64,
    pub unreadable: u64,
    /// One for each embedder, as in health. `None` where the key was missing.
    pub galleries: Option<Vec<GalleryContents>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct GalleryContents {
    pub embedder: String,
    pub references: u64,
    pub digest: String,
}

impl BackupContents {
    pub fn of(contents: &Contents, has_key: bool) -> Self {
        let galleries = contents.galleries.iter().map(|it| GalleryContents {
            embedder: it.embedder.to_string(),
            references: it.references,
            digest: format!("{:016x}", it.digest),
        });
        Self {
            schema: contents.schema,
            events: contents.events,
            newest_seq: contents.newest_seq,
            owed: contents.pending.clone(),
            subjects: contents.subjects,
            references: contents.references,
            unreadable: contents.unreadable,
            galleries: has_key.then(|| galleries.collect()),
        }
    }

    pub fn pending_rows(&self) -> u64 {
        self.owed.values().sum()
    }

    /// Returns whether what was counted now is what the manifest has. Without a key, galleries are not
    /// compared.
    pub fn matches(&self, found: &Self) -> bool {
        let comparable = found.galleries.is_some() && self.galleries.is_some();
        let bare = |it: &Self| {
            let Self { schema, events, newest_seq, owed, subjects, references, .. } = it;
            (*schema, *events, *newest_seq, owed.clone(), *subjects, *references)
        };
        bare(self) == bare(found)
            && (!comparable
                || (&self.galleries, self.unreadable) == (&found.galleries, found.unreadable))
    }
}

impl Manifest {
    pub fn new(
        site: &str,
        device: &str,
        created_at: String,
        keys: bool,
        contents: BackupContents,
    ) -> Self {
        Self {
            backup: FORMAT,
            created_at,
            version: env!("CARGO_PKG_VERSION").into(),
            site: site.into(),
            device: device.into(),
            keys,
            contents,
            files: Vec::new(),
        }
    }

    /// Adds a file of the folder.
    pub fn add_file(&mut self, dir: &Path, name: &str) -> anyhow::Result<()> {
        let (bytes, sha256) = hash_file(&dir.join(name))?;
        self.files.push(ListedFile { name: name.into(), bytes, sha256 });
        Ok(())
    }

    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let what = || {
            format!("{} is not a backup of rollcall: it has no readable {MANIFEST}", dir.display())
        };
        let mut text = String::new();
        bounded_file::open_no_link(&path)
            .with_context(what)?
            .take(BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(what)?;
        let found: FormatVersion = serde_json::from_str(&text).with_context(what)?;
        ensure!(
            found.backup == FORMAT,
            "the backup has format {}, but this version of rollcall reads {FORMAT}",
            found.backup
        );
        let manifest: Self = serde_json::from_str(&text).with_context(what)?;
        let plain = |name: &str| name == DATABASE || is_key(Path::new(name));
        let odd = manifest.files.iter().find(|it| !plain(&it.name));
        ensure!(odd.is_none(), "the manifest lists a file that is not one of rollcall");
        ensure!(
            manifest.files.iter().any(|it| it.name == DATABASE),
            "the manifest lists no database"
        );
        Ok(manifest)
    }

    /// Checks that every listed file is there, byte for byte.
    pub fn check_files(&self, dir: &Path) -> anyhow::Result<()> {
        for file in &self.files {
            let (bytes, sha256) = hash_file(&dir.join(&file.name))?;
            ensure!(
                (bytes, &sha256) == (file.bytes, &file.sha256),
                "the backup is damaged: {} has {bytes} bytes and sha256 {sha256}, but should have {} and {}",
                dir.join(&file.name).display(),
                file.bytes,
                file.sha256
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct FormatVersion {
    backup: u32,
}

/// Returns whether this is the plain name of a key file.
pub fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "key")
        && path.file_name().is_some_and(|it| it == path.as_os_str())
}

pub fn hash_file(path: &Path) -> anyhow::Result<(u64, String)> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = bounded_file::open_no_link(path).with_context(failed)?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).with_context(failed)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((bytes, hex(&hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_file_needs_plain_name() {
        for (name, expected) in [
            ("rollcall.key", true),
            ("a.key", true),
            ("../a.key", false),
            ("/x/a.key", false),
            (".key", false),
            ("key", false),
        ] {
            assert_eq!(is_key(Path::new(name)), expected, "{name}");
        }
    }
}
