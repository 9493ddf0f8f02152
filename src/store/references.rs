//! The references of one subject, and how they stand against a change of the embedder.

use rusqlite::params;
use uuid::Uuid;

use crate::ids::SubjectId;
use crate::keys::seal::Belongs;
use crate::recognise::face::{Embedder, ModelDigest, Template};
use crate::store::error::StoreError;
use crate::store::parts::{IS_SECOND_PART, SecondParts, second_part_id};
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
    /// The ones that have references of the first part of a composite embedder, and none with both:
    /// they are recognised by the first part alone.
    pub partial: u64,
    /// Subjects that have references of each embedder, the most first.
    pub by_embedder: Vec<(ModelDigest, u64)>,
}

impl Tx<'_> {
    /// Better ones have taken their place. Whoever calls this changes the subject otherwise, too.
    pub fn drop_references(&mut self, ids: &[Uuid]) -> Result<(), StoreError> {
        let sql = "delete from main.reference where id in (?1, ?2)";
        let mut delete = self.conn.prepare_cached(sql)?;
        ids.iter().try_for_each(|id| {
            delete.execute([id.as_bytes(), second_part_id(id).as_bytes()]).map(drop)
        })?;
        Ok(())
    }

    /// Removes the second parts of a subject whose first parts are gone: a device that does not
    /// know them removed these alone.
    pub fn drop_orphaned_parts(&mut self, subject_id: &SubjectId) -> Result<(), StoreError> {
        let sql = format!(
            "select id from main.reference where subject_id = ?1 and {IS_SECOND_PART} and not exists \
             (select 1 from main.reference it where it.subject_id = ?1 and it.id <> reference.id \
             and substr(hex(it.id), 1, 12) = substr(hex(reference.id), 1, 12) \
             and substr(hex(it.id), 14) = substr(hex(reference.id), 14))"
        );
        let mut query = self.conn.prepare_cached(&sql)?;
        let ids: Vec<[u8; 16]> =
            query.query_map([subject_id.as_str()], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut delete = self.conn.prepare_cached("delete from main.reference where id = ?1")?;
        ids.iter().try_for_each(|id| delete.execute([id]).map(drop))?;
        Ok(())
    }

    /// Adds the second part to a reference of the subject that has only the first. Whoever calls
    /// this changes the subject otherwise, too.
    pub fn add_second_part(
        &mut self,
        subject_id: &SubjectId,
        first: &Uuid,
        embedder: &ModelDigest,
        template: &Template,
        quality: f32,
    ) -> Result<(), StoreError> {
        let id = second_part_id(first);
        let belongs = Belongs { subject_id, reference_id: &id, embedder };
        let sealed = self.key()?.seal(template, belongs)?;
        // A damaged one is replaced; one of another subject with this id is not.
        let sql = "insert into main.reference \
                   (id, subject_id, embedder, sealed, quality, created_ms) \
                   values (?1, ?2, ?3, ?4, ?5, ?6) \
                   on conflict (id) do update set sealed = excluded.sealed, quality = excluded.quality \
                   where subject_id = excluded.subject_id and embedder = excluded.embedder";
        let now_ms = self.now().wall_ms;
        let row = params![id.as_bytes(), subject_id.as_str(), embedder.0, sealed, quality, now_ms];
        self.conn.prepare_cached(sql)?.execute(row)?;
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

    /// Those of one embedder, in the order of enrolment, complete as far as the second part of a
    /// composite is there. One that does not open is left out, as everywhere.
    pub fn references_of(
        &self,
        subject_id: &SubjectId,
        embedder: &Embedder,
    ) -> Result<Vec<Reference>, StoreError> {
        let sql = format!(
            "select id, sealed, quality from reference \
             where subject_id = ?1 and embedder = ?2 and not {IS_SECOND_PART} order by row"
        );
        let key = self.key()?;
        let seconds = SecondParts { conn: &self.conn, key, embedder };
        let first = &embedder.first.digest;
        let mut query = self.conn.prepare_cached(&sql)?;
        let mut rows = query.query(params![subject_id.as_str(), first.0])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = Uuid::from_bytes(row.get(0)?);
            let belongs = Belongs { subject_id, reference_id: &id, embedder: first };
            let sealed: Vec<u8> = row.get(1)?;
            // One of another length is from an export that claims to be of this network.
            let opened = key.open(&sealed, belongs).ok();
            if let Some(template) = opened.filter(|it| it.dimension() == embedder.first.dimension) {
                let (template, _unreadable) = seconds.add_to(template, subject_id, &id)?;
                let quality = row.get(2)?;
                found.push(Reference { id, subject_id: subject_id.clone(), template, quality });
            }
        }
        Ok(found)
    }

    /// Shows each reference of one embedder, opened, in the order of enrolment.
    pub fn all_references(
        &self,
        embedder: &Embedder,
        visit: impl FnMut(Reference),
    ) -> Result<ReferenceCount, StoreError> {
        read::all_references(&self.conn, self.key()?, embedder, visit)
    }

    /// Whether the subject can be recognised by this embedder, and whether by all parts of it.
    pub fn recognition_of(
        &self,
        id: &SubjectId,
        embedder: &Embedder,
    ) -> Result<Recognisable, StoreError> {
        let first = &embedder.first.digest;
        let sql = format!(
            "select exists (select 1 from main.reference \
             where embedder = ?1 and subject_id = ?2 and not {IS_SECOND_PART})"
        );
        let has_first: bool = self
            .conn
            .prepare_cached(&sql)?
            .query_row(params![first.0, id.as_str()], |row| row.get(0))?;
        let Some(second) = embedder.second.filter(|_| has_first) else {
            return Ok(if has_first { Recognisable::Wholly } else { Recognisable::No });
        };
        let sql = format!("select exists ({COMPLETE} and a.subject_id = ?3)");
        let parts = params![first.0, second.digest.0, id.as_str()];
        let complete = self.conn.prepare_cached(&sql)?.query_row(parts, |row| row.get(0))?;
        Ok(if complete { Recognisable::Wholly } else { Recognisable::ByFirstPart })
    }

    pub fn migration(&self, embedder: &Embedder) -> Result<Migration, StoreError> {
        let sql = format!(
            "select embedder, count(distinct subject_id) from main.reference \
             where not {IS_SECOND_PART} group by embedder order by 2 desc, 1"
        );
        let mut query = self.conn.prepare_cached(&sql)?;
        let pair =
            |row: &rusqlite::Row<'_>| Ok((ModelDigest(row.get(0)?), row.get::<_, i64>(1)? as u64));
        let by_embedder: Vec<(ModelDigest, u64)> =
            query.query_map([], pair)?.collect::<Result<_, _>>()?;
        let current = by_embedder
            .iter()
            .find(|(digest, _)| *digest == embedder.first.digest)
            .map_or(0, |(_, count)| *count);
        let complete = match embedder.second {
            None => current,
            Some(second) => {
                let sql = format!("select count(*) from ({COMPLETE} group by a.subject_id)");
                let parts = params![embedder.first.digest.0, second.digest.0];
                let count: i64 =
                    self.conn.prepare_cached(&sql)?.query_row(parts, |row| row.get(0))?;
                count as u64
            }
        };
        let subjects = self.subject_count()?;
        let outdated = subjects.saturating_sub(current);
        let partial = current.saturating_sub(complete);
        Ok(Migration { subjects, outdated, partial, by_embedder })
    }
}

/// First parts (?1) that have a second part (?2).
const COMPLETE: &str = "select a.subject_id from main.reference a join main.reference b \
    on b.subject_id = a.subject_id and b.embedder = ?2 \
    and substr(hex(b.id), 1, 13) = substr(hex(a.id), 1, 12) || '8' \
    and substr(hex(b.id), 14) = substr(hex(a.id), 14) where a.embedder = ?1";

/// How a subject can be recognised by the embedder in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognisable {
    No,
    /// Only by the first part of a composite.
    ByFirstPart,
    Wholly,
}
