//! Which photographs subjects were enrolled with, by digest: a repeated import examines none
//! twice.
//!
//! Known per embedder: after a change of the model every photograph counts as new. Rows go with
//! their subject.

use std::collections::HashSet;

use rusqlite::{OptionalExtension as _, Row, params};

use crate::ids::SubjectId;
use crate::recognise::face::ModelDigest;
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::tx::Tx;

/// The SHA-256 of a photograph's file.
pub type PhotographDigest = [u8; 32];

impl Tx<'_> {
    /// That the subject, who exists, was enrolled with these.
    pub fn note_photographs(
        &mut self,
        id: &SubjectId,
        embedder: &ModelDigest,
        digests: &[PhotographDigest],
    ) -> Result<(), StoreError> {
        let sql =
            "insert or ignore into photograph (subject_id, embedder, digest) values (?1, ?2, ?3)";
        let mut insert = self.conn.prepare(sql)?;
        digests
            .iter()
            .try_for_each(|it| insert.execute(params![id.as_str(), embedder.0, it]).map(drop))?;
        Ok(())
    }

    /// The references made of them were replaced.
    pub fn forget_photographs(&mut self, id: &SubjectId) -> Result<(), StoreError> {
        self.conn
            .prepare("delete from photograph where subject_id = ?1")?
            .execute([id.as_str()])?;
        Ok(())
    }
}

impl Reader {
    /// Which photographs the subject was enrolled with, each with the embedder that examined it.
    pub fn photographs(
        &self,
        id: &SubjectId,
    ) -> Result<HashSet<(ModelDigest, PhotographDigest)>, StoreError> {
        let sql = "select embedder, digest from photograph where subject_id = ?1";
        let mut query = self.conn.prepare_cached(sql)?;
        let pair = |row: &Row<'_>| Ok((ModelDigest(row.get(0)?), row.get(1)?));
        let found = query.query_map([id.as_str()], pair)?.collect::<Result<_, _>>()?;
        Ok(found)
    }

    /// Whether somebody was enrolled by this id and is no longer.
    pub fn was_withdrawn(&self, id: &SubjectId) -> Result<bool, StoreError> {
        let sql = "select 1 from withdrawn where subject_id = ?1";
        Ok(self
            .conn
            .prepare_cached(sql)?
            .query_row([id.as_str()], |_| Ok(()))
            .optional()?
            .is_some())
    }

    /// Whether the reply to a request is stored.
    pub fn has_reply(&self, request_id: &str) -> Result<bool, StoreError> {
        let sql = "select 1 from command where request_id = ?1";
        Ok(self.conn.prepare_cached(sql)?.query_row([request_id], |_| Ok(())).optional()?.is_some())
    }
}
