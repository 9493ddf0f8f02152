//! Consents of enrolled subjects, and what happens when one ends.
//!
//! Invariants: a consent goes with its subject, however that is removed. When one ends, references,
//! photographs' digests, name and consent go, the withdrawal is shared like any other, and a receipt
//! follows once the scrub is done.

use rusqlite::{OptionalExtension as _, params};

use crate::clock::Stamp;
use crate::ids::SubjectId;
use crate::store::error::StoreError;
use crate::store::read;
use crate::store::reader::Reader;
use crate::store::rows::Subject;
use crate::store::subjects::Erased;
use crate::store::tx::Tx;
use crate::wire::consent::{Consent, ENDING_MS};
use crate::wire::event::{Body, EndReason, Enrolment, EnrolmentAction, NewEvent, SubjectRef};

/// How many consents are recorded, and how many of them end within 30 days or have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsentCounts {
    pub recorded: u64,
    pub ending: u64,
}

impl Reader {
    pub fn consent(&self, id: &SubjectId) -> Result<Option<Consent>, StoreError> {
        let sql = "select given_ms, text_version, valid_until_ms, recorded_by from consent where subject_id = ?1";
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query([id.as_str()])?;
        rows.next()?.map_or(Ok(None), |row| read::consent(row, 0))
    }

    pub fn consent_counts(&self, now_ms: i64) -> Result<ConsentCounts, StoreError> {
        let sql = "select (select count(*) from main.consent), \
                   (select count(*) from main.consent where valid_until_ms <= ?1)";
        let until_ms = now_ms.saturating_add(ENDING_MS);
        let counts = self.conn.prepare_cached(sql)?.query_row([until_ms], |row| {
            let [recorded, ending] = [row.get::<_, i64>(0)?, row.get::<_, i64>(1)?];
            Ok(ConsentCounts { recorded: recorded as u64, ending: ending as u64 })
        })?;
        Ok(counts)
    }

    /// The subjects whose consent has ended, the earliest first.
    pub fn ended_consents(&self, now_ms: i64, limit: u32) -> Result<Vec<SubjectId>, StoreError> {
        let sql = "select subject_id from consent where valid_until_ms <= ?1 \
                   order by valid_until_ms, subject_id limit ?2";
        let mut query = self.conn.prepare_cached(sql)?;
        let ids = query.query_map(params![now_ms, limit], |row| row.get::<_, String>(0))?;
        let valid =
            |id: String| SubjectId::new(&id).map_err(|_| StoreError::Damaged { source: None });
        ids.map(|id| valid(id?)).collect()
    }
}

impl Tx<'_> {
    /// Records the consent of an enrolled subject in place of an earlier one.
    pub fn put_consent(&mut self, id: &SubjectId, consent: &Consent) -> Result<(), StoreError> {
        if self.subject(id)?.is_none() {
            return Err(StoreError::UnknownSubject { id: id.clone() });
        }
        self.write_consent(id, consent)?;
        self.bump_version(id)
    }

    pub(super) fn write_consent(
        &self,
        id: &SubjectId,
        consent: &Consent,
    ) -> Result<(), StoreError> {
        // Also in place of a damaged row, which cannot be changed.
        self.delete_consent(id)?;
        let sql = "insert into main.consent (subject_id, given_ms, text_version, valid_until_ms, recorded_by) \
                   values (?1, ?2, ?3, ?4, ?5)";
        self.conn.prepare_cached(sql)?.execute(params![
            id.as_str(),
            consent.given_ms(),
            consent.text_version(),
            consent.valid_until_ms(),
            consent.recorded_by().as_str(),
        ])?;
        Ok(())
    }

    pub(super) fn delete_consent(&self, id: &SubjectId) -> Result<(), StoreError> {
        let sql = "delete from main.consent where subject_id = ?1";
        self.conn.prepare_cached(sql)?.execute([id.as_str()])?;
        Ok(())
    }

    /// Withdraws the subjects whose consent had ended at a time, at most `limit`, by a trusted clock
    /// only.
    /// Returns their ids.
    pub fn end_expired_consents(
        &mut self,
        at: Stamp,
        ended_ms: i64,
        limit: u32,
    ) -> Result<Vec<SubjectId>, StoreError> {
        if !at.trusted {
            return Ok(Vec::new());
        }
        let ended = self.ended_consents(ended_ms, limit)?;
        for id in &ended {
            if let Some(subject) = self.subject(id)? {
                self.end_consent(subject, at, EndReason::ConsentExpired, None)?;
            } else {
                // Its subject was damaged and set apart.
                self.delete_consent(id)?;
                self.delete_references(id)?;
                self.schedule_scrub()?;
            }
        }
        Ok(ended)
    }

    /// Withdraws a subject for the end of its consent: what was recorded stays, all else goes, and a
    /// receipt follows. Returns how many references there were.
    pub fn end_consent(
        &mut self,
        subject: Subject,
        at: Stamp,
        reason: EndReason,
        request_id: Option<&str>,
    ) -> Result<u32, StoreError> {
        let references = self.delete_subject(&subject.id)?;
        let erased = Erased { enrolled: true, references, ..Erased::default() };
        let row = self.note_erasure(&subject.id, request_id, &erased, None)?;
        self.note_consent_end(row, reason, true)?;
        // Rows set apart may be of the person, as in an erasure.
        self.conn.execute("update unreadable set content = null", [])?;
        self.schedule_scrub()?;
        let Subject { id, name, consent, .. } = subject;
        let body = Enrolment {
            action: EnrolmentAction::Withdrawn,
            subject: Some(SubjectRef { id, name }),
            references,
            request_id: request_id.map(str::to_owned),
            consent,
            reason: Some(reason),
        };
        self.append_event(&NewEvent::new(at, Body::Enrolment(body)))?;
        Ok(references)
    }

    /// Notes that the subject's newest erasure follows a withdrawn consent.
    pub fn note_erased_for_consent(&mut self, id: &SubjectId) -> Result<(), StoreError> {
        let sql = "select max(row) from main.erasure where subject_id = ?1";
        let row: Option<i64> =
            self.conn.query_row(sql, [id.as_str()], |row| row.get(0)).optional()?.flatten();
        row.map_or(Ok(()), |row| self.note_consent_end(row, EndReason::ConsentWithdrawn, false))
    }

    pub(super) fn note_consent_end(
        &self,
        row: i64,
        reason: EndReason,
        events_kept: bool,
    ) -> Result<(), StoreError> {
        let sql =
            "insert into main.consent_end (erasure_row, reason, events_kept) values (?1, ?2, ?3)";
        self.conn.prepare_cached(sql)?.execute(params![row, reason.as_str(), events_kept])?;
        Ok(())
    }
}
