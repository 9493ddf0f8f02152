//! Everybody who is enrolled, as of one moment, beside a daemon that may be running: what `rollcall export` writes down.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::tx::{Effects, Setting, Tx};
use super::{StoreError, Subject, read};
use crate::clock::Clock;
use crate::recognise::face::{ModelDigest, SubjectId};
use crate::record::portable::Portable;
use crate::record::seal::{SealError, SealKey};

pub struct Enrolled {
    conn: Connection,
    setting: Setting,
}

impl Enrolled {
    pub fn open(
        dir: &Path,
        credentials_dir: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let conn = read::connect(dir)?;
        let key = SealKey::load(dir, credentials_dir)?.ok_or(SealError::NoKey)?;
        // The moment is that of the first read, not of `begin`.
        conn.execute_batch("begin; select count(*) from subject")?;
        let setting =
            Setting { clock, sinks: Vec::new(), device: String::new(), shared: false, key };
        Ok(Self { conn, setting })
    }

    pub fn count(&self) -> Result<u64, StoreError> {
        let count: i64 =
            self.conn.query_row("select count(*) from subject", [], |row| row.get(0))?;
        Ok(count as u64)
    }

    pub fn embedders(&self) -> Result<Vec<ModelDigest>, StoreError> {
        let mut query =
            self.conn.prepare("select distinct embedder from reference order by embedder")?;
        let found =
            query.query_map([], |row| row.get(0).map(ModelDigest))?.collect::<Result<_, _>>()?;
        Ok(found)
    }

    /// Sorted by id, after `after`.
    pub fn subjects(
        &self,
        after: Option<&SubjectId>,
        limit: u32,
    ) -> Result<Vec<Subject>, StoreError> {
        read::subjects(&self.conn, after, limit)
    }

    /// None: there is no such subject, or a reference of it was altered on the disk.
    pub fn portable(&self, id: &SubjectId) -> Result<Option<Portable>, StoreError> {
        let mut effects = Effects::default();
        Tx::new(&self.conn, &self.setting, &mut effects).portable(id)
    }
}
