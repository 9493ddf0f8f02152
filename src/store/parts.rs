//! References of a composite embedder.
//!
//! A reference of a composite embedder is two rows, one for each part, sealed and exchanged like
//! those of two embedders. A device that knows only the first part's network reads its row and
//! leaves the other. The rows belong together by their ids: the second part's is the first's with
//! version 8 in place of 7 (RFC 9562, sections 5.7 and 5.8). A second part whose first is gone is
//! not compared.

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use crate::ids::SubjectId;
use crate::keys::seal::{Belongs, SealKey};
use crate::recognise::face::{Embedder, Template};
use crate::store::error::StoreError;
use crate::wire::subject::PortableReference;

/// In SQL: whether a row of `reference` is a second part.
pub(super) const IS_SECOND_PART: &str = "substr(hex(reference.id), 13, 1) = '8'";

/// The id of the second part of a reference.
pub(super) fn second_part_id(first: &Uuid) -> Uuid {
    let mut bytes = *first.as_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    Uuid::from_bytes(bytes)
}

/// Reads the second parts that belong to references of a composite embedder.
pub(super) struct SecondParts<'a> {
    pub(super) conn: &'a Connection,
    pub(super) key: &'a SealKey,
    pub(super) embedder: &'a Embedder,
}

impl SecondParts<'_> {
    /// The complete template, where the second part is there and opens; else the partial one, with the
    /// id of the second part if it is there and does not open.
    pub(super) fn add_to(
        &self,
        template: Template,
        subject_id: &SubjectId,
        id: &Uuid,
    ) -> Result<(Template, Option<Uuid>), StoreError> {
        let Some(part) = &self.embedder.second else { return Ok((template, None)) };
        let id = second_part_id(id);
        let sql =
            "select sealed from reference where id = ?1 and subject_id = ?2 and embedder = ?3";
        let values = params![id.as_bytes(), subject_id.as_str(), part.digest.0];
        let mut query = self.conn.prepare_cached(sql)?;
        let sealed: Option<Vec<u8>> = query.query_row(values, |row| row.get(0)).optional()?;
        let belongs = Belongs { subject_id, reference_id: &id, embedder: &part.digest };
        let Some(sealed) = sealed else { return Ok((template, None)) };
        let opened = self.key.open(&sealed, belongs).ok();
        Ok(match opened.filter(|second| second.dimension() == part.dimension) {
            Some(second) => (template.with_second(&second, part.weight), None),
            None => (template, Some(id)),
        })
    }
}

/// Joins the parts of one subject's references as they are exchanged; those of other embedders are
/// left out.
pub fn join_parts(references: &[PortableReference], embedder: &Embedder) -> Vec<Template> {
    let firsts = references.iter().filter(|it| it.embedder == embedder.first.digest);
    let joined = |first: &PortableReference| {
        let part = embedder.second?;
        let id = second_part_id(&first.id);
        let second = references.iter().find(|it| it.id == id && it.embedder == part.digest)?;
        let fits = second.template.dimension() == part.dimension;
        fits.then(|| first.template.clone().with_second(&second.template, part.weight))
    };
    firsts.map(|first| joined(first).unwrap_or_else(|| first.template.clone())).collect()
}

/// How many references these are: the parts of one are not counted apart.
pub fn count_references(references: &[PortableReference]) -> u32 {
    references.iter().filter(|it| it.id.get_version_num() != 8).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::{ModelDigest, Part};

    #[test]
    fn parts_are_joined_by_their_ids() {
        let digest = |of| ModelDigest([of; 32]);
        let part = |of, dimension, weight| Part { digest: digest(of), dimension, weight };
        let embedder = Embedder::composite(part(1, 2, 0.3), part(2, 3, 0.7));
        let unit = |raw: &[f32]| Template::normalised(raw.to_vec()).unwrap();
        let reference = |id, of, template| PortableReference {
            id,
            embedder: digest(of),
            template,
            quality: 1.0,
            created_ms: 0,
        };
        let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
        let all = [
            reference(second_part_id(&ids[0]), 2, unit(&[1.0, 2.0, 3.0])),
            reference(ids[0], 1, unit(&[1.0, 0.0])),
            reference(ids[1], 1, unit(&[0.0, 1.0])),
            // Its first part was removed.
            reference(second_part_id(&ids[2]), 2, unit(&[3.0, 2.0, 1.0])),
            reference(Uuid::now_v7(), 3, unit(&[1.0])),
        ];
        let joined = join_parts(&all, &embedder);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined.iter().map(Template::is_complete).collect::<Vec<_>>(), [true, false]);
        assert_eq!(joined[0].second_part().unwrap(), all[0].template);
        assert_eq!(count_references(&all), 3);
        // A door that uses the first part's network alone.
        let single = Embedder::single(digest(1), 2);
        assert_eq!(join_parts(&all, &single), [unit(&[1.0, 0.0]), unit(&[0.0, 1.0])]);
    }
}
