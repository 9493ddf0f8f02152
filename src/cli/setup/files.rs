//! Files written so that they are whole or not there: beside their place, to the disk, then renamed
//! into it. Those of secrets belong to the daemon's user, and nobody else may read them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid, fchmod, fchown, flock};

/// To whom secrets belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: Uid,
    gid: Gid,
}

impl Owner {
    /// A user of this machine's own list; none where there is none of that name.
    pub fn of_user(name: &str) -> Option<Self> {
        Self::find(&fs::read_to_string("/etc/passwd").ok()?, name)
    }

    fn find(passwd: &str, name: &str) -> Option<Self> {
        let fields = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|it| it.first() == Some(&name))?;
        let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
        Some(Self { uid: Uid::from_raw(number(2)?), gid: Gid::from_raw(number(3)?) })
    }
}

/// Writes into a folder; what it wrote is taken away again unless it is kept.
pub struct Writer {
    folder: PathBuf,
    owner: Option<Owner>,
    written: Vec<PathBuf>,
    /// Held, so that two do not write at the same time.
    _lock: File,
}

impl Writer {
    pub fn new(folder: &Path, owner: Option<Owner>) -> anyhow::Result<Self> {
        let lock =
            File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("another `rollcall setup` writes there just now")?;
        Ok(Self { folder: folder.to_owned(), owner, written: Vec::new(), _lock: lock })
    }

    /// A new file, in a folder below or in the folder itself.
    pub fn write(
        &mut self,
        below: Option<&str>,
        name: &str,
        bytes: &[u8],
        secret: bool,
    ) -> anyhow::Result<()> {
        let place = below.map_or_else(|| self.folder.clone(), |below| self.folder.join(below));
        if below.is_some() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&place)
                .with_context(|| format!("cannot make {}", place.display()))?;
        }
        let path = place.join(name);
        let existed = path.exists();
        let mode = Mode::from_raw_mode(if secret { 0o600 } else { 0o644 });
        let owner = self.owner.clone().filter(|_| secret);
        put(&path, bytes, mode, owner.as_ref())?;
        if !existed {
            self.written.push(path);
        }
        Ok(())
    }

    /// In place of a file, with its mode and owner.
    pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let (mode, owner) = match fs::metadata(path) {
            Ok(it) => (
                Mode::from_raw_mode(it.mode() & 0o777),
                Some(Owner { uid: Uid::from_raw(it.uid()), gid: Gid::from_raw(it.gid()) }),
            ),
            Err(_) => (Mode::from_raw_mode(0o644), None),
        };
        put(path, bytes, mode, owner.as_ref())
    }

    /// What was written stays.
    pub fn keep(&mut self) {
        self.written.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for path in &self.written {
            fs::remove_file(path).ok();
        }
    }
}

fn put(path: &Path, bytes: &[u8], mode: Mode, owner: Option<&Owner>) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    let beside = beside(path);
    // Left by one that was interrupted here.
    fs::remove_file(&beside).ok();
    let written = write_whole(&beside, bytes, mode, owner).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        fs::remove_file(&beside).ok();
    }
    written.with_context(what)?;
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|it| it.sync_all()).with_context(what)
}

/// Where a file is until it is whole.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}

fn write_whole(
    path: &Path,
    bytes: &[u8],
    mode: Mode,
    owner: Option<&Owner>,
) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let mut file = options.open(path)?;
    // On the open file: nobody can put another in its place meanwhile. Only root may give a file
    // away.
    if let Some(owner) = owner
        && rustix::process::geteuid().is_root()
    {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    fchmod(&file, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_found_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nrollcall2:x:7:7::/:/bin/false\nrollcall:x:990:991::/:/usr/sbin/nologin\n";
        let owner = Owner::find(passwd, "rollcall").unwrap();
        assert_eq!((owner.uid.as_raw(), owner.gid.as_raw()), (990, 991));
        assert_eq!(Owner::find(passwd, "roll"), None);
        assert_eq!(Owner::find("rollcall:x:many", "rollcall"), None);
    }

    #[test]
    fn unkept_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), None).unwrap();
        writer.write(Some("secrets"), "a", b"x", true).unwrap();
        assert!(Writer::new(dir.path(), None).is_err(), "one at a time");
        drop(writer);
        assert!(!dir.path().join("secrets/a").exists());
        let mut writer = Writer::new(dir.path(), None).unwrap();
        writer.write(None, "ca.pem", b"x", false).unwrap();
        writer.keep();
        drop(writer);
        assert_eq!(fs::metadata(dir.path().join("ca.pem")).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(".config.toml.new")).unwrap();
        Writer::replace(&dir.path().join("config.toml"), b"ours").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "theirs");
        assert!(!dir.path().join("config.toml").is_symlink());
    }
}
