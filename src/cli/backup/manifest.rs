//! What a backup says of itself: its files with their digests, and what the database held.
//!
//! Against damage and mistakes, not against forgery: who can alter a backup can alter this too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::record::export::hex;
use crate::record::store::DATABASE;
use crate::record::store::backup::Contents;

pub const MANIFEST: &str = "manifest.json";
const FORM: u32 = 1;
/// Larger than any that we write.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub backup: u32,
    pub created_at: String,
    /// Of rollcall.
    pub version: String,
    pub site: String,
    pub device: String,
    /// Whether the keys are in it.
    pub keys: bool,
    pub contents: Held,
    pub files: Vec<ListedFile>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// `Contents` as it is written.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub schema: u32,
    pub events: u64,
    pub newest_seq: i64,
    pub owed: BTreeMap<String, u64>,
    pub subjects: u64,
    pub references: u64,
    pub unreadable: u64,
    /// Of each embedder, as health tells it of the one in use. None: the key was not there to tell.
    pub galleries: Option<Vec<HeldGallery>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldGallery {
    pub embedder: String,
    pub references: u64,
    pub digest: String,
}

impl Held {
    pub fn of(contents: &Contents, has_key: bool) -> Self {
        let galleries = contents.galleries.iter().map(|it| HeldGallery {
            embedder: it.embedder.to_string(),
            references: it.references,
            digest: format!("{:016x}", it.digest),
        });
        Self {
            schema: contents.schema,
            events: contents.events,
            newest_seq: contents.newest_seq,
            owed: contents.owed.clone(),
            subjects: contents.subjects,
            references: contents.references,
            unreadable: contents.unreadable,
            galleries: has_key.then(|| galleries.collect()),
        }
    }

    pub fn owed_rows(&self) -> u64 {
        self.owed.values().sum()
    }

    /// Whether what was counted now is what was written down. Without a key now, galleries are not compared.
    pub fn is_in(&self, found: &Self) -> bool {
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
    pub fn new(site: &str, device: &str, created_at: String, keys: bool, contents: Held) -> Self {
        Self {
            backup: FORM,
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
    pub fn list(&mut self, dir: &Path, name: &str) -> anyhow::Result<()> {
        let (bytes, sha256) = digest(&dir.join(name))?;
        self.files.push(ListedFile { name: name.into(), bytes, sha256 });
        Ok(())
    }

    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let what = || {
            format!("{} is no backup of rollcall's: it has no readable {MANIFEST}", dir.display())
        };
        let mut text = String::new();
        File::open(&path)
            .with_context(what)?
            .take(BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(what)?;
        let found: Form = serde_json::from_str(&text).with_context(what)?;
        ensure!(
            found.backup == FORM,
            "the backup has form {}, this version reads {FORM}",
            found.backup
        );
        let manifest: Self = serde_json::from_str(&text).with_context(what)?;
        let plain = |name: &str| name == DATABASE || is_key(Path::new(name));
        let odd = manifest.files.iter().find(|it| !plain(&it.name));
        ensure!(odd.is_none(), "the backup lists a file that is none of rollcall's");
        ensure!(
            manifest.files.iter().any(|it| it.name == DATABASE),
            "the backup lists no database"
        );
        Ok(manifest)
    }

    /// Every listed file is there, byte for byte.
    pub fn check_files(&self, dir: &Path) -> anyhow::Result<()> {
        for file in &self.files {
            let (bytes, sha256) = digest(&dir.join(&file.name))?;
            ensure!(
                (bytes, &sha256) == (file.bytes, &file.sha256),
                "{} is not as it was written ({bytes} bytes, sha256 {sha256}; expected {} and {}): the backup is damaged",
                dir.join(&file.name).display(),
                file.bytes,
                file.sha256
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Form {
    backup: u32,
}

/// A key file by its name, which is a plain one.
pub fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "key")
        && path.file_name().is_some_and(|it| it == path.as_os_str())
}

pub fn digest(path: &Path) -> anyhow::Result<(u64, String)> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
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
    fn a_key_is_known_by_a_plain_name() {
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
