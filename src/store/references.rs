//! The references of one subject, and how they stand against a change of the embedder.

use rusqlite::params;
use uuid::Uuid;

use crate::ids::SubjectId;
use crate::keys::seal::Belongs;
use crate::recognise::face::ModelDigest;
use crate::store::error::StoreError;
use crate::store::read;
use crate::store::reader::Reader;
use crate::store::rows::{Reference, ReferenceCount};
use crate::store::tx::Tx;

/// How far the enrolled are from being recognised by the embedder in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    pub subjects: u64,
    /// Of those, the ones without a reference of the embedder in use: they are not recognised until
    /// photographed again.
    pub outdated: u64,
    /// Subjects that have references of each embedder, the most first.
    pub by_embedder: Vec<(ModelDigest, u64)>,
}

impl Tx<'_> {
    /// Better ones have taken their place. Whoever calls this changes the subject otherwise, too.
    pub fn drop_references(&mut self, ids: &[Uuid]) -> Result<(), StoreError> {
        let mut delete = self.conn.prepare_cached("delete from main.reference where id = ?1")?;
        ids.iter().try_for_each(|id| delete.execute([id.as_bytes()]).map(drop))?;
        Ok(())
    }
}

impl Reader {
    /// The embedders of all references, sorted.
    pub fn embedders(&self) -> Result<Vec<ModelDigest>, StoreError> {
        let sql = "select distinct embedder from main.reference order by embedder";
        let mut query = self.conn.prepare(sql)?;
        let found = query.query_map([], |row| row.get(0).map(ModelDigest))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// Those of one embedder, in the order of enrolment. One that does not open is left out, as
    /// everywhere.
    pub fn references_of(
        &self,
        subject_id: &SubjectId,
        embedder: &ModelDigest,
    ) -> Result<Vec<Reference>, StoreError> {
        let sql = "select id, sealed, quality from reference where subject_id = ?1 and embedder = ?2 order by row";
        let key = self.key()?;
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query(params![subject_id.as_str(), embedder.0])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = Uuid::from_bytes(row.get(0)?);
            let belongs = Belongs { subject_id, reference_id: &id, embedder };
            let sealed: Vec<u8> = row.get(1)?;
            if let Ok(template) = key.open(&sealed, belongs) {
                found.push(Reference {
                    id,
                    subject_id: subject_id.clone(),
                    template,
                    quality: row.get(2)?,
                });
            }
        }
        Ok(found)
    }

    /// Shows each reference of one embedder, opened, in the order of enrolment.
    pub fn all_references(
        &self,
        embedder: &ModelDigest,
        visit: impl FnMut(Reference),
    ) -> Result<ReferenceCount, StoreError> {
        read::all_references(&self.conn, self.key()?, embedder, visit)
    }

    /// Whether the subject can be recognised by this embedder.
    pub fn is_recognisable(
        &self,
        id: &SubjectId,
        embedder: &ModelDigest,
    ) -> Result<bool, StoreError> {
        let sql =
            "select exists (select 1 from main.reference where embedder = ?1 and subject_id = ?2)";
        Ok(self
            .conn
            .prepare_cached(sql)?
            .query_row(params![embedder.0, id.as_str()], |row| row.get(0))?)
    }

    pub fn migration(&self, embedder: &ModelDigest) -> Result<Migration, StoreError> {
        let sql = "select embedder, count(distinct subject_id) from main.reference group by embedder order by 2 desc, 1";
        let mut query = self.conn.prepare_cached(sql)?;
        let pair =
            |row: &rusqlite::Row<'_>| Ok((ModelDigest(row.get(0)?), row.get::<_, i64>(1)? as u64));
        let by_embedder: Vec<(ModelDigest, u64)> =
            query.query_map([], pair)?.collect::<Result<_, _>>()?;
        let current = by_embedder
            .iter()
            .find(|(digest, _)| digest == embedder)
            .map_or(0, |(_, count)| *count);
        let subjects = self.subject_count()?;
        Ok(Migration { subjects, outdated: subjects.saturating_sub(current), by_embedder })
    }
}
