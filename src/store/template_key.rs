//! The key that templates are sealed with: found, checked against what is stored, and taken over
//! after a rotation.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

use crate::keys::seal::{KEY_FILE, NEXT_KEY_FILE, SealError, SealKey};
use crate::store::error::StoreError;
use crate::store::files;

/// After a rotation that was cut short: the new key takes the place of the old where the templates
/// are sealed with it, and goes where the old one fits. Where neither is known (the database was
/// lost, or moved aside as damaged) it may be the only one that opens a copy of it: it is kept under
/// another name.
fn settle_rotation(dir: &Path, proof: Option<&Vec<u8>>) -> Result<(), StoreError> {
    let next = dir.join(NEXT_KEY_FILE);
    let Some(key) = SealKey::load_from(&next)? else {
        return Ok(());
    };
    if proof.is_some_and(|it| key.recognises(it)) {
        settle(dir)?;
        return Ok(());
    }
    let old = SealKey::load_from(&dir.join(KEY_FILE))?;
    if proof.is_some_and(|proof| old.is_some_and(|it| it.recognises(proof))) {
        return std::fs::remove_file(&next).map_err(files::io_error(&next));
    }
    let names = (1..u32::MAX).map(|number| dir.join(format!("{NEXT_KEY_FILE}.{number}")));
    let free = names.into_iter().find(|it| !it.exists()).unwrap_or_else(|| next.clone());
    std::fs::rename(&next, &free).map_err(files::io_error(&next))
}

pub(super) fn put_proof(conn: &Connection, key: &SealKey) -> Result<(), StoreError> {
    conn.execute(
        "insert into main.meta (key, value) values ('key_proof', ?1) on conflict (key) do update set value = ?1",
        [key.proof()?],
    )?;
    Ok(())
}

/// The key that what is stored was sealed with. A new one only where nothing is sealed.
pub(super) fn fitting_key(
    conn: &Connection,
    dir: &Path,
    credentials_dir: Option<&Path>,
) -> Result<(SealKey, bool), StoreError> {
    let proof: Option<Vec<u8>> = conn
        .query_row("select value from meta where key = 'key_proof'", [], |row| row.get(0))
        .optional()?;
    settle_rotation(dir, proof.as_ref())?;
    let loaded = SealKey::load(dir, credentials_dir)?;
    let sealed: bool =
        conn.query_row("select exists (select 1 from reference)", [], |row| row.get(0))?;
    let fits = |key: &SealKey| proof.as_ref().is_some_and(|it| key.recognises(it));
    let (key, created) = match loaded {
        Some(key) if fits(&key) => return Ok((key, false)),
        Some(key) if sealed => {
            return Err(SealError::WrongKey { path: key.path().to_owned() }.into());
        }
        None if sealed => {
            return Err(SealError::KeyLost { path: dir.join(KEY_FILE) }.into());
        }
        Some(key) => (key, false),
        None => (SealKey::create(dir)?, true),
    };
    put_proof(conn, &key)?;
    Ok((key, created))
}

/// Gives the new key the name of the old; both are files of `dir`.
pub(super) fn settle(dir: &Path) -> Result<PathBuf, StoreError> {
    let path = dir.join(KEY_FILE);
    std::fs::rename(dir.join(NEXT_KEY_FILE), &path).map_err(files::io_error(&path))?;
    std::fs::File::open(dir).and_then(|it| it.sync_all()).map_err(files::io_error(dir))?;
    Ok(path)
}
