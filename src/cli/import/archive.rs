//! A folder of photographs in a zip archive. Nothing is unpacked to disk: each entry is read into
//! memory when its turn comes, within the bounds of a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use zip::ZipArchive;

use crate::cli::photograph;

/// Entries of an archive; a gallery is not larger.
const ENTRIES_MAX: usize = 1_000_000;
/// Directories at the end of an archive that are read into memory: some 100 bytes an entry.
const NAME_BYTES_MAX: usize = 1 << 12;

/// An open archive. Clones read it independently.
#[derive(Clone, Debug)]
pub struct Archive {
    zip: ZipArchive<SharedFile>,
}

/// A file of an archive.
pub struct ArchiveEntry {
    pub index: usize,
    /// Its path inside the archive.
    pub path: PathBuf,
}

impl Archive {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let unusable = || format!("{} cannot be read as a zip archive", path.display());
        let file = File::open(path).with_context(unusable)?;
        let length = file.metadata().with_context(unusable)?.len();
        let shared = SharedFile { file: Arc::new(file), length, at: 0 };
        // The library's own words are for its developers.
        let zip = ZipArchive::new(shared).map_err(|_| {
            anyhow::anyhow!("it is damaged, or of a kind that is not supported").context(unusable())
        })?;
        ensure!(
            zip.len() <= ENTRIES_MAX,
            "{} has {} entries; at most {ENTRIES_MAX} at a time",
            path.display(),
            zip.len()
        );
        Ok(Self { zip })
    }

    /// The files of the archive, sorted by their paths; a path that leads out of it is an error.
    pub fn entries(&mut self) -> anyhow::Result<Vec<ArchiveEntry>> {
        let mut entries = Vec::new();
        for index in 0..self.zip.len() {
            let Ok(entry) = self.zip.by_index_raw(index) else {
                bail!("entry {} of the archive is damaged", index + 1);
            };
            if !entry.is_file() {
                continue;
            }
            ensure!(entry.name_raw().len() <= NAME_BYTES_MAX, "an entry's name is too long");
            // Some writers have names in UTF-8 and do not say so.
            let name = std::str::from_utf8(entry.name_raw());
            let path = PathBuf::from(name.unwrap_or_else(|_| entry.name()).replace('\\', "/"));
            let is_inside =
                path.components().all(|it| matches!(it, std::path::Component::Normal(_)));
            ensure!(is_inside, "an entry of the archive leads out of it");
            entries.push(ArchiveEntry { index, path });
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Reads a photograph, or says why it cannot be used.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, String> {
        let mut zip = self.zip.clone();
        let entry = zip.by_index(index).map_err(|_| {
            "unreadable (it is encrypted, damaged, or packed by a method that is not supported)"
                .to_owned()
        })?;
        let claimed = entry.size();
        photograph::read(entry, claimed)
    }

    /// The first bytes of an entry, fewer if it cannot be read.
    pub fn head(&mut self, index: usize, most: usize) -> Vec<u8> {
        let mut head = Vec::with_capacity(most);
        if let Ok(entry) = self.zip.by_index(index) {
            entry.take(most as u64).read_to_end(&mut head).ok();
        }
        head
    }
}

/// A file with a position of its own for each clone.
#[derive(Clone, Debug)]
struct SharedFile {
    file: Arc<File>,
    length: u64,
    at: u64,
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
