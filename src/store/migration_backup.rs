//! The copy of a database that is made before a newer version changes its schema: the way back to
//! the version before, which rejects the changed one (docs/updating.md).
//!
//! Invariants: the copy is whole and on the disk under its name before the first step is made, or
//! there is none; it is for us alone. It goes with the first erasure, since it has the erased
//! person too, and after a week by a clock that is right.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use crate::clock::Stamp;
use crate::error_chain::error_chain;
use crate::store::error::StoreError;
use crate::store::files;

/// Long enough to find that a new version does not do, and short beside what events are kept for.
const KEPT: Duration = Duration::from_hours(7 * 24);

const NAME: &str = ".schema-";
const UNFINISHED: &str = ".part";

/// Copied at a time, 4 MiB.
const STEP_PAGES: i32 = 1024;

/// Makes the copy of a database of this schema. Without room for it the daemon starts all the same:
/// without a way back the device still works.
pub(super) fn keep(conn: &Connection, dir: &Path, schema: u32) {
    let path = dir.join(format!("{}{NAME}{schema}", files::DATABASE));
    match copy(conn, dir, &path) {
        Ok(()) => {
            let file = path.display();
            tracing::warn!(%file, schema, "this version changes the database; a copy for the version before is kept for a week");
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(
                error,
                schema,
                "no copy of the database was kept: the version before cannot use it any more"
            );
        }
    }
}

fn copy(conn: &Connection, dir: &Path, path: &Path) -> Result<(), StoreError> {
    let unfinished = PathBuf::from(format!("{}{UNFINISHED}", path.display()));
    let copied = write(conn, &unfinished).and_then(|()| {
        fs::rename(&unfinished, path).map_err(files::io_error(path))?;
        File::open(dir).and_then(|it| it.sync_all()).map_err(files::io_error(dir))
    });
    if copied.is_err() {
        fs::remove_file(&unfinished).ok();
    }
    copied
}

fn write(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(files::io_error(path))?;
    let mut copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // One fsync at the end: until then nobody would use it.
    copy.pragma_update(None, "synchronous", "off")?;
    Backup::new(conn, &mut copy)?.run_to_completion(STEP_PAGES, Duration::ZERO, None)?;
    copy.close().map_err(|(_, error)| StoreError::from(error))?;
    file.sync_all().map_err(files::io_error(path))
}

/// Removes all copies.
pub(super) fn forget(dir: &Path) -> Result<(), StoreError> {
    for path in copies(dir) {
        fs::remove_file(&path).map_err(files::io_error(&path))?;
    }
    Ok(())
}

/// Removes those that are older than a week, if the clock is trusted.
pub(super) fn expire(dir: &Path, now: &Stamp) {
    for path in copies(dir) {
        let age = fs::metadata(&path).and_then(|it| it.modified()).map(|modified| {
            let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Duration::from_millis(now.wall_ms.max(0) as u64).saturating_sub(modified)
        });
        if now.trusted && age.is_ok_and(|age| age > KEPT) && fs::remove_file(&path).is_ok() {
            tracing::info!(file = %path.display(), "the copy for the version before is a week old: removed");
        }
    }
}

fn copies(dir: &Path) -> Vec<PathBuf> {
    let begin = format!("{}{NAME}", files::DATABASE);
    let is_one = |path: &PathBuf| {
        path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(begin.as_bytes()))
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|it| it.path()).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};
    use crate::store::handle::Store;
    use crate::store::rows::StoreOptions;
    use crate::store::schema;

    const EVENT: &str = "insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, body) \
                         values (zeroblob(16), 'attendance', 1, 'b', 2, 'synced', '{}')";

    /// A database of the first version, with one event.
    fn first_version() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let conn = Connection::open(files::create_database(dir.path()).unwrap()).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch(include_str!("migrations/0001.sql")).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn.execute(EVENT, []).unwrap();
        dir
    }

    fn open(dir: &Path, clock: &Arc<SimulatedClock>) -> Store {
        let clock: Arc<dyn Clock> = Arc::<SimulatedClock>::clone(clock);
        Store::open(dir, StoreOptions::new(Vec::new(), clock)).unwrap().store
    }

    fn version_and_events(path: &Path) -> (u32, u32) {
        let conn = Connection::open(path).unwrap();
        let events = conn.query_row("select count(*) from event", [], |row| row.get(0)).unwrap();
        (conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap(), events)
    }

    #[test]
    fn migration_keeps_copy_of_old_schema() {
        let dir = first_version();
        let clock = Arc::new(SimulatedClock::at(1_790_000_000_000));
        open(dir.path(), &clock).close().unwrap();
        assert_eq!(version_and_events(&dir.path().join(files::DATABASE)), (schema::NEWEST, 1));
        let copy = dir.path().join("rollcall.db.schema-1");
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(copies(dir.path()), std::slice::from_ref(&copy), "nothing is left unfinished");
        // The way back, and forward again.
        fs::rename(&copy, dir.path().join(files::DATABASE)).unwrap();
        assert_eq!(version_and_events(&dir.path().join(files::DATABASE)), (1, 1));
        open(dir.path(), &clock).close().unwrap();
        assert_eq!(version_and_events(&copy), (1, 1));
        // A start that changes nothing keeps nothing.
        forget(dir.path()).unwrap();
        open(dir.path(), &clock).close().unwrap();
        assert!(copies(dir.path()).is_empty());
    }

    #[test]
    fn migration_runs_without_room_for_copy() {
        let dir = first_version();
        let clock = Arc::new(SimulatedClock::at(1_790_000_000_000));
        // Where the copy would be written is something else.
        fs::create_dir(dir.path().join("rollcall.db.schema-1.part")).unwrap();
        open(dir.path(), &clock).close().unwrap();
        assert_eq!(version_and_events(&dir.path().join(files::DATABASE)), (schema::NEWEST, 1));
    }

    #[test]
    fn erasure_removes_migration_copies() {
        let dir = first_version();
        let clock = Arc::new(SimulatedClock::at(1_790_000_000_000));
        open(dir.path(), &clock).close().unwrap();
        let conn = Connection::open(dir.path().join(files::DATABASE)).unwrap();
        conn.execute("insert into meta (key, value) values ('scrub_owed', x'')", []).unwrap();
        drop(conn);
        assert_eq!(copies(dir.path()).len(), 1);
        open(dir.path(), &clock).close().unwrap();
        assert!(copies(dir.path()).is_empty());
    }

    #[test]
    fn migration_copy_expires_by_trusted_clock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollcall.db.schema-1");
        File::create(&path)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + Duration::from_hours(24))
            .unwrap();
        let at = |days: u64, trusted| Stamp {
            wall_ms: (days * 86_400_000) as i64,
            boottime_ms: 0,
            trusted,
        };
        for kept in [at(0, true), at(8, true), at(9000, false)] {
            expire(dir.path(), &kept);
            assert!(path.exists(), "{kept:?}");
        }
        expire(dir.path(), &at(9, true));
        assert!(!path.exists());
    }
}
