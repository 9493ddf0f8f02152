//! A connection with its damage and key: the writer's, or one that only reads beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::keys::seal::{SealError, SealKey};
use crate::store::checksum::{self, Damage};
use crate::store::error::StoreError;
use crate::store::{files, schema};

/// A connection and its queries. Beside the writer it takes no lock and never waits; within a write
/// the transaction derefs to it.
pub struct Reader {
    pub(super) conn: Connection,
    /// Damaged rows that statements passed over.
    pub(super) damage: Damage,
    pub(super) key: Option<Arc<SealKey>>,
}

/// Opens connections that only read beside another one, whose damage and key they share.
pub(super) struct Beside {
    dir: PathBuf,
    damage: Damage,
    key: Option<Arc<SealKey>>,
}

impl Beside {
    pub(super) fn open(&self) -> Result<Reader, StoreError> {
        let damage = self.damage.clone();
        Ok(Reader { conn: connect(&self.dir, &damage)?, damage, key: self.key.clone() })
    }
}

/// A connection that only reads the database of `dir`, whose schema is this version's. Damaged rows
/// are passed over, and noted in `damage`.
fn connect(dir: &Path, damage: &Damage) -> Result<Connection, StoreError> {
    let path = dir.join(files::DATABASE);
    // SQLite's error would not state why it cannot be opened.
    std::fs::metadata(&path).map_err(files::io_error(&path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&path, flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    schema::check_version(&conn)?;
    schema::check_migrated(&conn)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    conn.pragma_update(None, "trusted_schema", false)?;
    checksum::install(&conn, damage, false)?;
    Ok(conn)
}

impl Reader {
    pub(super) fn open(dir: &Path, credentials_dir: Option<&Path>) -> Result<Self, StoreError> {
        let damage = Damage::default();
        let conn = connect(dir, &damage)?;
        let key = SealKey::load(dir, credentials_dir)?.map(Arc::new);
        Ok(Self { conn, damage, key })
    }

    /// What further connections that only read are opened by.
    pub(super) fn beside(&self, dir: &Path) -> Beside {
        Beside { dir: dir.to_owned(), damage: self.damage.clone(), key: self.key.clone() }
    }

    /// Lets all reads from now on see the database as it is at this moment.
    pub(super) fn hold_moment(&self) -> Result<(), StoreError> {
        // The moment is that of the first read, not of `begin`.
        Ok(self.conn.execute_batch("begin; select count(*) from main.subject")?)
    }

    pub(super) fn key(&self) -> Result<&SealKey, StoreError> {
        self.key.as_deref().ok_or_else(|| SealError::NoKey.into())
    }

    /// Whether the key fits the templates that are stored, as the daemon asks at its start.
    pub fn check_key(&self, dir: &Path) -> Result<(), StoreError> {
        let sealed: bool =
            self.conn.query_row("select exists (select 1 from reference)", [], |row| row.get(0))?;
        let proof = "select value from meta where key = 'key_proof'";
        let proof: Option<Vec<u8>> = self.conn.query_row(proof, [], |row| row.get(0)).optional()?;
        match &self.key {
            _ if !sealed => Ok(()),
            Some(key) if proof.is_some_and(|it| key.recognises(&it)) => Ok(()),
            Some(key) => Err(SealError::WrongKey { path: key.path().to_owned() }.into()),
            None => Err(SealError::KeyLost { path: dir.join(crate::keys::seal::KEY_FILE) }.into()),
        }
    }
}
