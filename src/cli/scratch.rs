//! A folder of a command's own, removed at its end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in the system's own for such.
    pub fn new(what: &str) -> anyhow::Result<Self> {
        Self::new_in(&std::env::temp_dir(), what)
    }

    /// A new folder in `parent`, readable by nobody else.
    pub fn new_in(parent: &Path, what: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = parent.join(format!("rollcall-{what}-{}", uuid::Uuid::now_v7().simple()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning of its temporary folder.
        fs::remove_dir_all(&self.0).ok();
    }
}
