//! The files of the state directory: permissions, the lock, and the reserve for a full disk.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bounded_file::{OPEN_FLAGS, check_regular_if_exists};
use crate::keys::secret_file::{OTHERS, exposed_mode};
use crate::store::error::StoreError;

pub const DATABASE: &str = "rollcall.db";
const LOCK: &str = "lock";
const RESERVE: &str = "reserve";

pub(super) fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::Io { path, source: Arc::new(source) }
}

/// Makes the state directory, for us alone. One that others may read is closed if it is plainly
/// ours (empty, or with our database), and rejected if it is not: somebody may have named their home
/// directory by mistake.
pub(super) fn prepare_dir(dir: &Path) -> Result<(), StoreError> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error(dir))?;
        // So that a power cut does not take it, with the keys that are made in it. Not every file
        // system lets us.
        dir.parent().and_then(|parent| File::open(parent).ok()?.sync_all().ok());
    }
    let Some(mode) = exposed_mode(&fs::metadata(dir).map_err(io_error(dir))?, OTHERS) else {
        return Ok(());
    };
    let empty = fs::read_dir(dir).map_err(io_error(dir))?.next().is_none();
    if !empty && !dir.join(DATABASE).exists() {
        return Err(StoreError::Exposed { path: dir.to_owned(), mode });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io_error(dir))
}

/// Held for as long as the file is open; the kernel releases it however the process ends.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.custom_flags(OPEN_FLAGS).open(&path).map_err(io_error(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok();
            return Err(StoreError::Locked { path, pid: pid.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
    }
    // For people only, so on a full disk the lock holds without it.
    let pid = format!("{}\n", std::process::id());
    file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).ok();
    Ok(file)
}

/// The write-ahead log of the database.
pub(super) fn log_path(dir: &Path) -> PathBuf {
    dir.join(format!("{DATABASE}-wal"))
}

/// Rejects a state directory in which something else stands in place of a file, such as a pipe, which
/// an open would wait for.
pub(super) fn check_kinds(dir: &Path) -> Result<(), StoreError> {
    let database = ["", "-wal", "-shm", "-journal"].map(|end| format!("{DATABASE}{end}"));
    for name in database.iter().map(String::as_str).chain([LOCK, RESERVE]) {
        let path = dir.join(name);
        check_regular_if_exists(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

/// SQLite gives `-wal` and `-shm` the permissions of the database, so that file must exist before
/// SQLite makes it.
pub(super) fn create_database(dir: &Path) -> Result<PathBuf, StoreError> {
    let path = dir.join(DATABASE);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(io_error(&path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io_error(&path))?;
    Ok(path)
}

/// Renames a damaged database together with its log. Nothing is deleted: what can be saved from it
/// is for people to decide.
pub(super) fn move_aside(dir: &Path, now_ms: i64) -> Result<PathBuf, StoreError> {
    let stamp = crate::clock::rfc3339(now_ms).replace([':', '-'], "").replace('.', "-");
    let mut aside = dir.join(format!("{DATABASE}.damaged-{stamp}"));
    // On a device without a clock each start may have the same time.
    while aside.exists() {
        aside.as_mut_os_string().push("-again");
    }
    for end in ["-wal", "-shm", ""] {
        let from = dir.join(format!("{DATABASE}{end}"));
        let to = PathBuf::from(format!("{}{end}", aside.display()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(&from)(error));
            }
            _ => {}
        }
    }
    File::open(dir).and_then(|it| it.sync_all()).map_err(io_error(dir))?;
    Ok(aside)
}

/// Room for the log of the database beside the reserve's own: each commit goes through the log, and
/// a log that was just cut off has no room on a full disk. Twice what it grows to then (`FULL_LOG` of
/// the writer).
const LOG_BYTES: u64 = 256 << 10;

/// Room kept back, given up when the disk is full so that what happens meanwhile can still be
/// written.
pub(super) struct Reserve {
    path: PathBuf,
    /// For the database; the log comes on top of that.
    bytes: u64,
    held: bool,
}

/// The reserve of earlier versions: on a full disk it cannot grow, and is better than none.
const EARLIER_BYTES: u64 = 1 << 20;

impl Reserve {
    pub(super) fn new(dir: &Path, bytes: u64) -> Self {
        let path = dir.join(RESERVE);
        let held = bytes > 0 && allocated(&path) >= bytes.min(EARLIER_BYTES);
        Self { path, bytes, held }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Whether none is wanted.
    pub(super) fn is_none(&self) -> bool {
        self.bytes == 0
    }

    /// Whether there was something to give up.
    pub(super) fn release(&mut self) -> bool {
        let released = self.held && fs::remove_file(&self.path).is_ok();
        self.held = false;
        released
    }

    /// Makes the reserve if the disk has room for four of it: with less the database could not grow
    /// beside it.
    pub(super) fn restore(&mut self) {
        // One of an earlier version is smaller, or has no room for the log.
        let is_whole = self.held && allocated(&self.path) >= self.bytes + LOG_BYTES;
        if is_whole || self.bytes == 0 {
            return;
        }
        let dir = self.path.parent().expect("it lies in the state directory");
        if free_bytes(dir).is_some_and(|free| free >= 4 * self.bytes) {
            let was_held = self.held;
            let least = self.bytes.min(EARLIER_BYTES);
            self.held = self.allocate().is_ok() || was_held && allocated(&self.path) >= least;
            if !self.held {
                fs::remove_file(&self.path).ok();
            }
        }
    }

    fn allocate(&self) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        // What is there stays: on a disk that fills up meanwhile it would not come back.
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.custom_flags(OPEN_FLAGS).open(&self.path)?;
        let bytes = self.bytes + LOG_BYTES;
        if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
            // Not every file system can; writing takes the blocks as well.
            file.write_all(&vec![0; bytes as usize])?;
        }
        file.sync_all()
    }
}

/// The bytes that a file takes on the disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |it| it.blocks() * 512)
}

pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// The size of the database with its log.
pub(super) fn database_bytes(dir: &Path) -> u64 {
    let size =
        |end: &str| fs::metadata(dir.join(format!("{DATABASE}{end}"))).map_or(0, |it| it.len());
    size("") + size("-wal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_state_directory_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let open = |mode| fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        open(0o755);
        prepare_dir(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700, "empty: ours");
        fs::write(dir.path().join("letters.txt"), "").unwrap();
        open(0o755);
        assert!(matches!(prepare_dir(dir.path()), Err(StoreError::Exposed { mode: 0o755, .. })));
        create_database(dir.path()).unwrap();
        prepare_dir(dir.path()).unwrap();
    }

    #[test]
    fn reserve_is_held_and_released() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(dir.path(), 1 << 20);
        assert!(!reserve.release());
        reserve.restore();
        assert!(reserve.is_held());
        assert!(Reserve::new(dir.path(), 1 << 20).is_held(), "found at the next start");
        assert!(reserve.release());
        assert!(!reserve.release(), "only once");
        assert!(!dir.path().join(RESERVE).exists());
    }

    #[test]
    fn reserve_of_earlier_version_counts_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        Reserve::new(dir.path(), EARLIER_BYTES).restore();
        let mut reserve = Reserve::new(dir.path(), 3 << 19);
        assert!(reserve.is_held());
        reserve.restore();
        assert!(allocated(&dir.path().join(RESERVE)) >= 3 << 19);
    }

    #[test]
    fn quarantined_database_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text| fs::write(dir.path().join(DATABASE), text).unwrap();
        write("one");
        let first = move_aside(dir.path(), 0).unwrap();
        write("two");
        let second = move_aside(dir.path(), 0).unwrap();
        assert_eq!(first.file_name().unwrap(), "rollcall.db.damaged-19700101T000000-000Z");
        assert_eq!(fs::read(first).unwrap(), b"one");
        assert_eq!(fs::read(second).unwrap(), b"two");
    }
}
