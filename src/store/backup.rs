//! A copy of the database as it stands at one moment, beside a daemon that writes, and the proof of
//! what a copy holds.
//!
//! Invariants: a copy is one read transaction, so that an event and its outbox rows are both in it or
//! neither; `contents` never writes to what it reads, and returns nothing of a database that is not
//! whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::ids::Name;
use crate::keys::seal::{SealError, SealKey};
use crate::recognise::face::{Embedder, ModelDigest};
use crate::recognise::gallery::{Gallery, Subject};
use crate::store::error::StoreError;
use crate::store::rows::ReferenceCount;
use crate::store::{files, read, schema, scrub};

/// Copied at a time: 4 MiB, then progress is reported.
const STEP_PAGES: i32 = 1024;

/// One moment of a database; later writes are not seen.
pub struct Snapshot(Connection);

/// What a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub schema: u32,
    pub events: u64,
    /// The number of the event that was stored last.
    pub newest_seq: i64,
    /// Outbox rows by sink, dead letters among them.
    pub pending: BTreeMap<String, u64>,
    pub subjects: u64,
    pub references: u64,
    /// Of each embedder; empty without a key.
    pub galleries: Vec<GalleryMark>,
    /// References that do not open: they were altered.
    pub unreadable: u64,
}

/// The references of one embedder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GalleryMark {
    pub embedder: ModelDigest,
    pub references: u64,
    /// As in health.
    pub digest: u64,
}

impl Snapshot {
    /// Of any schema up to ours: before a new version migrates is when a copy is wanted most.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(files::DATABASE);
        std::fs::metadata(&path).map_err(files::io_error(&path))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&path, flags)?;
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        schema::check_version(&conn)?;
        // The moment is that of the first read, not of `begin`.
        conn.execute_batch("begin; select count(*) from sqlite_schema")?;
        Ok(Self(conn))
    }

    pub fn bytes(&self) -> Result<u64, StoreError> {
        let pragma = |name| self.0.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        Ok((pragma("page_count")? * pragma("page_size")?) as u64)
    }

    /// Into a new file, for its owner only. On the disk once this has returned.
    pub fn copy_to(
        &self,
        dir: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let path = files::create_database(dir)?;
        let mut copy = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // One fsync at the end: until then the copy is nothing that anybody would use.
        copy.pragma_update(None, "synchronous", "off")?;
        {
            let backup = Backup::new(&self.0, &mut copy)?;
            while backup.step(STEP_PAGES)? != StepResult::Done {
                let state = backup.progress();
                progress((state.pagecount - state.remaining) as u64, state.pagecount as u64);
            }
        }
        if scrub::is_pending(&copy)? {
            // A copy that is kept must not have what the database is just being cleaned of.
            scrub::clean_all(&copy)?;
        }
        copy.close().map_err(|(_, error)| StoreError::from(error))?;
        std::fs::File::open(&path).and_then(|it| it.sync_all()).map_err(files::io_error(&path))
    }
}

/// Reads all of a database that nobody writes to. With the key every template is opened.
pub fn contents(dir: &Path, key: Option<&SealKey>) -> Result<Contents, StoreError> {
    let path = dir.join(files::DATABASE);
    std::fs::metadata(&path).map_err(files::io_error(&path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(immutable(&path), flags)?;
    schema::check_version(&conn)?;
    let verdict: String = conn.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { source: None });
    }
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|it| it as u64);
    let mut pending = conn.prepare("select sink, count(*) from outbox group by sink")?;
    let pending = pending
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?
        .collect::<Result<_, _>>()?;
    let mut found = Contents {
        schema: conn.pragma_query_value(None, "user_version", |row| row.get(0))?,
        events: count("select count(*) from event")?,
        newest_seq: read::last_seq(&conn)?,
        pending,
        subjects: count("select count(*) from subject")?,
        references: count("select count(*) from reference")?,
        galleries: Vec::new(),
        unreadable: 0,
    };
    if let Some(key) = key {
        check_key(&conn, key, found.references > 0)?;
        let mut embedders =
            conn.prepare("select distinct embedder from reference order by embedder")?;
        for embedder in embedders.query_map([], |row| row.get(0).map(ModelDigest))? {
            let (mark, count) = mark(&conn, key, embedder?)?;
            found.unreadable += count.unreadable.len() as u64;
            found.galleries.push(mark);
        }
    }
    Ok(found)
}

fn check_key(conn: &Connection, key: &SealKey, sealed: bool) -> Result<(), StoreError> {
    let sql = "select value from meta where key = 'key_proof'";
    let proof: Option<Vec<u8>> = conn.query_row(sql, [], |row| row.get(0)).optional()?;
    if sealed && !proof.is_some_and(|proof| key.recognises(&proof)) {
        return Err(SealError::WrongKey { path: key.path().to_owned() }.into());
    }
    Ok(())
}

fn mark(
    conn: &Connection,
    key: &SealKey,
    embedder: ModelDigest,
) -> Result<(GalleryMark, ReferenceCount), StoreError> {
    let mut gallery: Option<Gallery> = None;
    let nobody = Name::new("-").expect("it is a name");
    // Each part of a composite embedder by itself; the dimension is that of the templates.
    let single = Embedder::single(embedder, 0);
    let count = read::all_rows(conn, key, &single, |reference| {
        let so_far = gallery.take().unwrap_or_else(|| Gallery::new(reference.template.dimension()));
        let subject = Subject { id: reference.subject_id, name: nobody.clone() };
        gallery = Some(so_far.with(subject, std::slice::from_ref(&reference.template)));
    })?;
    let digest = gallery.map_or(0, |it| it.digest());
    Ok((GalleryMark { embedder, references: count.opened, digest }, count))
}

/// As a URI by which SQLite takes the file as it is: no lock, no files beside it, on a read-only
/// disk too.
fn immutable(path: &Path) -> PathBuf {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            write!(uri, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    uri.push_str("?immutable=1");
    PathBuf::from(uri)
}

/// Room on the file system of a folder.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    files::free_bytes(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_copies_first_schema_unchanged() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let path = files::create_database(from.path()).unwrap();
        let conn = Connection::open(path).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch(include_str!("migrations/0001.sql")).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn.execute("insert into meta (key, value) values ('a', x'00')", []).unwrap();
        let snapshot = Snapshot::open(from.path()).unwrap();
        // Written after the moment of the copy: not in it.
        conn.execute("insert into meta (key, value) values ('b', x'00')", []).unwrap();
        snapshot.copy_to(to.path(), |_, _| ()).unwrap();
        let found = contents(to.path(), None).unwrap();
        assert_eq!((found.schema, found.events, found.newest_seq), (1, 0, 0));
        let names: Vec<_> =
            std::fs::read_dir(to.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, [files::DATABASE], "nothing beside it");
        let copy = Connection::open_with_flags(
            immutable(&to.path().join(files::DATABASE)),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
        );
        let kept: i64 =
            copy.unwrap().query_row("select count(*) from meta", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 1);
    }

    #[test]
    fn database_uri_escapes_any_path() {
        let path = Path::new("/tmp/a b?c#d%e/ü");
        assert_eq!(
            immutable(path),
            PathBuf::from("file:/tmp/a%20b%3Fc%23d%25e/%C3%BC?immutable=1")
        );
    }
}
