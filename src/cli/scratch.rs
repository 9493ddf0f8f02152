//! A temporary folder that is removed at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a folder in the system's temporary folder.
    pub fn new(what: &str) -> anyhow::Result<Self> {
        Self::new_in(&std::env::temp_dir(), what)
    }

    /// Makes a folder in `parent` that nobody else can read.
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
        // The system cleans its temporary folder of what cannot be removed here.
        fs::remove_dir_all(&self.0).ok();
    }
}
