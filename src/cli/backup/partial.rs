//! A folder that is made completely or not at all: filled under another name, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::cli::backup::manifest::{MANIFEST, is_key};
use crate::store::DATABASE;

pub struct PartialFolder {
    path: PathBuf,
    place: PathBuf,
}

/// Returns whether the path is free: nothing is there, or an empty folder that may be replaced.
pub fn is_free(place: &Path) -> anyhow::Result<bool> {
    match fs::read_dir(place) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", place.display())),
    }
}

impl PartialFolder {
    /// Makes the folder. Removes the rest of an interrupted run.
    pub fn new(place: &Path) -> anyhow::Result<Self> {
        // A link stays, and its target is replaced.
        let place = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        let Some(name) = place.file_name() else {
            bail!("{} is not a folder name", place.display())
        };
        let parent =
            place.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = parent.join(format!(".{}.partial", name.to_string_lossy()));
        let failed = || format!("cannot make a folder in {}", parent.display());
        if path.exists() {
            for entry in fs::read_dir(&path).with_context(failed)? {
                let name = PathBuf::from(entry.with_context(failed)?.file_name());
                let ours = name == Path::new(MANIFEST)
                    || is_key(&name)
                    || name
                        .to_string_lossy()
                        .strip_prefix(DATABASE)
                        .is_some_and(|it| ["", "-wal", "-shm", "-journal"].contains(&it));
                ensure!(
                    ours,
                    "{} is in the way and holds files that are not of rollcall: move it away",
                    path.display()
                );
            }
            fs::remove_dir_all(&path).with_context(failed)?;
        }
        DirBuilder::new().mode(0o700).create(&path).with_context(failed)?;
        let parent = parent.to_owned();
        Ok(Self { path, place: parent.join(name) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder in which it is made.
    pub fn parent(&self) -> &Path {
        self.path.parent().expect("it was made in one")
    }

    /// Writes and syncs a file that only its owner can read.
    pub fn write(&self, name: &str, content: &mut dyn io::Read) -> anyhow::Result<u64> {
        let path = self.path.join(name);
        let mut write = || -> io::Result<u64> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            let bytes = io::copy(content, &mut file)?;
            file.flush()?;
            file.sync_all()?;
            Ok(bytes)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives the folder its name. Fails if something was put there meanwhile.
    pub fn finish(self) -> anyhow::Result<()> {
        let rename = || -> io::Result<()> {
            File::open(&self.path)?.sync_all()?;
            fs::rename(&self.path, &self.place)?;
            File::open(self.parent())?.sync_all()
        };
        rename().with_context(|| {
            format!("cannot rename the finished folder to {}", self.place.display())
        })
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        // After the renaming there is nothing to remove.
        fs::remove_dir_all(&self.path).ok();
    }
}
