//! Another key for the templates: all of them sealed anew in one transaction, while no daemon runs.
//!
//! Killed at any instant, one of two keys fits what is stored, and the next start finds it: the new
//! key is on the disk before the transaction, beside the old one, and takes its name after it
//! (`writer::open`).

use std::fs::{self};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

use crate::ids::SubjectId;
use crate::keys::seal::{Belongs, KEY_FILE, NEXT_KEY_FILE, SealError, SealKey};
use crate::recognise::face::ModelDigest;
use crate::store::error::StoreError;
use crate::store::handle::Store;
use crate::store::open::open_database;
use crate::store::rows::StoreOptions;
use crate::store::template_key::settle;
use crate::store::template_key::{fitting_key, put_proof};
use crate::store::{files, versions};

const OWE_SCRUB: &str =
    "insert into main.meta (key, value) values ('scrub_owed', x'') on conflict (key) do nothing";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    pub resealed: u64,
    /// Those that the old key does not open either.
    pub unreadable: u64,
    pub path: PathBuf,
}

impl Store {
    /// With `to`, the new key is written there, for operators that keep keys elsewhere; otherwise it
    /// takes the place of the old.
    pub fn rotate_key(
        dir: &Path,
        options: StoreOptions,
        to: Option<&Path>,
    ) -> Result<Rotated, StoreError> {
        files::prepare_dir(dir)?;
        files::check_kinds(dir)?;
        let lock = files::lock(dir)?;
        let mut conn = open_database(dir, options.clock.now().wall_ms)?.conn;
        let (old, _) = fitting_key(&conn, dir, options.credentials_dir.as_deref())?;
        let kept_here = old.path() == dir.join(KEY_FILE);
        if !kept_here && to.is_none() {
            return Err(SealError::Elsewhere { path: old.path().to_owned() }.into());
        }
        let path = to.map_or_else(|| dir.join(NEXT_KEY_FILE), Path::to_owned);
        let new = SealKey::create_at(&path)?;
        let (resealed, unreadable) = reseal(&mut conn, &old, &new)?;
        // From here on the old key opens nothing.
        if kept_here {
            wipe(&dir.join(KEY_FILE)).map_err(files::io_error(dir))?;
        }
        drop(conn);
        let path = if to.is_some() { path } else { settle(dir)? };
        drop(lock);
        if to.is_none() {
            // Overwrites what is unused: what the old key sealed is in no page any more.
            Store::open(dir, options)?.store.close()?;
        }
        Ok(Rotated { resealed, unreadable, path })
    }

    /// The key is lost: the templates that it sealed go, and with them the subjects, as if this
    /// device had never received them. No tombstone, no emptied version record: the site's gallery teaches
    /// them again. Gives how many templates there were.
    pub fn forget_templates(dir: &Path, options: StoreOptions) -> Result<u64, StoreError> {
        files::prepare_dir(dir)?;
        files::check_kinds(dir)?;
        let lock = files::lock(dir)?;
        let mut conn = open_database(dir, options.clock.now().wall_ms)?.conn;
        match fitting_key(&conn, dir, options.credentials_dir.as_deref()) {
            Ok((key, _)) => return Err(SealError::NotLost { path: key.path().to_owned() }.into()),
            Err(StoreError::Sealed { source }) if source.is_lost() => {}
            Err(error) => return Err(error),
        }
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Pending withdrawals stay.
        versions::delete_pending_of_enrolled(&tx)?;
        tx.execute("delete from photograph", [])?;
        tx.execute("delete from main.consent", [])?;
        let deleted = tx.execute("delete from main.reference", [])?;
        tx.execute("delete from main.subject", [])?;
        tx.execute(OWE_SCRUB, [])?;
        tx.commit()?;
        drop((conn, lock));
        Store::open(dir, options)?.store.close()?;
        Ok(deleted as u64)
    }
}

/// As well as a file can be made to be forgotten.
fn wipe(path: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(&[0; 32])?;
    file.sync_all()?;
    fs::remove_file(path)
}

fn reseal(conn: &mut Connection, old: &SealKey, new: &SealKey) -> Result<(u64, u64), StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut after = 0_i64;
    let mut resealed = 0;
    let mut unreadable = 0;
    let sql = "select row, id, subject_id, embedder, sealed from reference where row > ?1 order by row limit 1";
    loop {
        let found = tx.prepare_cached(sql)?.query_row([after], |row| {
            let id: [u8; 16] = row.get(1)?;
            let (subject, embedder, sealed): (String, [u8; 32], Vec<u8>) =
                (row.get(2)?, row.get(3)?, row.get(4)?);
            Ok((
                row.get::<_, i64>(0)?,
                Uuid::from_bytes(id),
                subject,
                ModelDigest(embedder),
                sealed,
            ))
        });
        let (row, id, subject, embedder, sealed) = match found {
            Ok(found) => found,
            Err(rusqlite::Error::QueryReturnedNoRows) => break,
            Err(error) => return Err(error.into()),
        };
        after = row;
        let subject_id =
            SubjectId::new(&subject).map_err(|_| StoreError::Damaged { source: None })?;
        let belongs = Belongs { subject_id: &subject_id, reference_id: &id, embedder: &embedder };
        let Ok(template) = old.open(&sealed, belongs) else {
            unreadable += 1;
            continue;
        };
        let sealed = new.seal(&template, belongs)?;
        tx.prepare_cached("update main.reference set sealed = ?2 where row = ?1")?
            .execute(params![row, sealed])?;
        resealed += 1;
    }
    put_proof(&tx, new)?;
    tx.execute(OWE_SCRUB, [])?;
    tx.commit()?;
    Ok((resealed, unreadable))
}
