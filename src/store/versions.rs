//! Versions of subjects, for devices that share a gallery. Part of a write transaction.
//!
//! Each change of a subject raises its version (`wire::subject::Version` defines which of two is
//! newer), in the same transaction. With a shared gallery, the change is also queued in the outbox:
//! one row for each subject, which holds only its id. So no template and no name is in the outbox,
//! and the newest version is the one that is sent.
//!
//! Invariant: a record is only ever replaced by a newer one. A record of another device keeps the
//! ids and templates of its references, bit by bit, sealed with this device's own key.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use uuid::Uuid;

use crate::ids::{Name, SubjectId};
use crate::keys::seal::Belongs;
use crate::recognise::face::ModelDigest;
use crate::store::error::StoreError;
use crate::store::reader::Reader;
use crate::store::rows::{SinkName, StoreOptions};
use crate::store::subjects::Erased;
use crate::store::tx::Tx;
use crate::wire::event::EndReason;
use crate::wire::subject::{Portable, PortableReference, REFERENCES_MAX, State, Version};

/// The version of a subject, and whether it is withdrawn. The default, for an unknown subject, is
/// older than any other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionRecord {
    pub version: Version,
    pub withdrawn: bool,
    pub erased: bool,
}

impl VersionRecord {
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.version.is_newer(self.withdrawn, &other.version, other.withdrawn)
    }

    pub fn of(portable: &Portable) -> Self {
        let erased = matches!(portable.state, State::Withdrawn { erased: true, .. });
        Self { version: portable.version.clone(), withdrawn: portable.is_withdrawn(), erased }
    }
}

/// Where a subject stands; that of an unknown one is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub is_enrolled: bool,
    pub withdrawals: u32,
}

impl Standing {
    /// Returns whether the subject was withdrawn since it stood there. A device that shares no gallery
    /// forgets with an erasure that there was one.
    pub fn was_withdrawn_until(self, now: Self) -> bool {
        self.withdrawals != now.withdrawals || self.is_enrolled && !now.is_enrolled
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSubject {
    pub subject_id: SubjectId,
    pub version: VersionRecord,
}

/// A subject as it is published: only devices with the site key can open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRecord {
    pub subject_id: SubjectId,
    pub version: VersionRecord,
    pub sealed: Vec<u8>,
}

/// What became of a record of another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    Accepted,
    Same,
    /// The local version is newer.
    Older,
}

/// Why a subject is to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishReason {
    /// It was changed here.
    Changed,
    /// Nothing changed, but the site seems not to have it.
    Missing,
}

impl PublishReason {
    const CHANGED: &'static str = "changed";
    const MISSING: &'static str = "missing";

    fn as_str(self) -> &'static str {
        match self {
            Self::Changed => Self::CHANGED,
            Self::Missing => Self::MISSING,
        }
    }

    /// Reads the payload of a row. An unknown one counts as `Missing`, the more careful of the two.
    pub fn parse(payload: &[u8]) -> Self {
        if payload == Self::CHANGED.as_bytes() { Self::Changed } else { Self::Missing }
    }
}

/// Begins the topic of a row; also the part of the MQTT topic after the site.
const TOPIC: &str = "gallery/";

/// Returns the subject that a row is about.
pub fn subject_of_topic(topic: &str) -> Option<SubjectId> {
    SubjectId::new(topic.strip_prefix(TOPIC)?).ok()
}

fn topic_of(id: &SubjectId) -> String {
    format!("{TOPIC}{id}")
}

/// Assigns subjects of an earlier version to this device; deletes pending rows where no gallery is
/// shared.
pub(super) fn settle_versions(
    conn: &mut Connection,
    options: &StoreOptions,
) -> Result<(), StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute(
        "update main.subject set changed_by = ?1 where changed_by = '' and ?1 <> ''",
        [&options.device],
    )?;
    if !options.shared {
        tx.execute("delete from main.outbox where sink = ?1", [SinkName::GALLERY.as_str()])?;
    }
    tx.commit()?;
    Ok(())
}

/// Deletes the pending rows of all enrolled subjects, before these are deleted: emptied records must
/// not be published.
pub(super) fn delete_pending_of_enrolled(conn: &Connection) -> Result<(), StoreError> {
    let sql = "delete from main.outbox where sink = ?1 and topic in (select ?2 || id from subject)";
    conn.execute(sql, params![SinkName::GALLERY.as_str(), TOPIC])?;
    Ok(())
}

fn read_version(row: &Row<'_>) -> rusqlite::Result<VersionRecord> {
    let version = Version { withdrawals: row.get(0)?, changes: row.get(1)?, device: row.get(2)? };
    Ok(VersionRecord { version, withdrawn: row.get(3)?, erased: row.get(4)? })
}

impl Reader {
    /// Returns the version of a subject, enrolled or withdrawn.
    pub fn version_record(&self, id: &SubjectId) -> Result<Option<VersionRecord>, StoreError> {
        let sql = "select withdrawals, changes, changed_by, false, false from subject where id = ?1 \
                   union all select withdrawals, changes, changed_by, true, erased from withdrawn where subject_id = ?1 \
                   limit 1";
        Ok(self.conn.prepare_cached(sql)?.query_row([id.as_str()], read_version).optional()?)
    }

    /// Whether a subject is enrolled now, and how often it was withdrawn before.
    pub fn standing(&self, id: &SubjectId) -> Result<Standing, StoreError> {
        let record = self.version_record(id)?;
        Ok(record.map_or_else(Standing::default, |it| Standing {
            is_enrolled: !it.withdrawn,
            withdrawals: it.version.withdrawals,
        }))
    }

    /// Returns all subjects, enrolled and withdrawn.
    pub fn known_subjects(&self) -> Result<Vec<KnownSubject>, StoreError> {
        let sql = "select withdrawals, changes, changed_by, false, false, id from subject \
                   union all select withdrawals, changes, changed_by, true, erased, subject_id from withdrawn";
        let mut query = self.conn.prepare(sql)?;
        let mut rows = query.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(KnownSubject {
                version: read_version(row)?,
                subject_id: subject_id(&row.get::<_, String>(5)?)?,
            });
        }
        Ok(found)
    }

    /// Returns a subject with its references; `None` if it is unknown, or if a reference of it was
    /// altered on the disk.
    pub fn portable(&self, id: &SubjectId) -> Result<Option<Portable>, StoreError> {
        let Some(known) = self.version_record(id)? else {
            return Ok(None);
        };
        let state = if known.withdrawn {
            let sql = "select at_ms from withdrawn where subject_id = ?1";
            let at_ms =
                self.conn.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?;
            State::Withdrawn { erased: known.erased, at_ms }
        } else {
            let sql = "select name, enrolled_ms from subject where id = ?1";
            let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?));
            let (name, enrolled_ms) =
                self.conn.prepare_cached(sql)?.query_row([id.as_str()], read)?;
            let name = Name::new(&name).map_err(|_| StoreError::Damaged { source: None })?;
            let Some(references) = self.portable_references(id)? else {
                return Ok(None);
            };
            State::Enrolled { name, enrolled_ms, references, consent: self.consent(id)? }
        };
        Ok(Some(Portable { subject_id: id.clone(), version: known.version, state }))
    }

    /// The newest that one record holds, the oldest of them first: of a subject with references of
    /// several networks, those of the network in use are there.
    fn portable_references(
        &self,
        subject_id: &SubjectId,
    ) -> Result<Option<Vec<PortableReference>>, StoreError> {
        let sql = "select id, embedder, sealed, quality, created_ms from reference where subject_id = ?1 \
                   order by row desc limit ?2";
        let key = self.key()?;
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query(params![subject_id.as_str(), REFERENCES_MAX as i64])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = Uuid::from_bytes(row.get(0)?);
            let embedder = ModelDigest(row.get(1)?);
            let sealed: Vec<u8> = row.get(2)?;
            let belongs = Belongs { subject_id, reference_id: &id, embedder: &embedder };
            let Ok(template) = key.open(&sealed, belongs) else {
                return Ok(None);
            };
            let quality = row.get(3)?;
            let created_ms = row.get(4)?;
            found.push(PortableReference { id, embedder, template, quality, created_ms });
        }
        found.reverse();
        Ok(Some(found))
    }
}

impl Tx<'_> {
    /// Stores another device's record of a subject if it is newer than the local one. A subject that
    /// was erased there is erased here.
    pub fn accept_portable(&mut self, portable: &Portable) -> Result<AcceptOutcome, StoreError> {
        let id = &portable.subject_id;
        let remote = VersionRecord::of(portable);
        let local = self.version_record(id)?;
        if let Some(local) = &local
            && !remote.is_newer_than(local)
        {
            let same = local.version == remote.version && local.withdrawn == remote.withdrawn;
            return Ok(if same { AcceptOutcome::Same } else { AcceptOutcome::Older });
        }
        let mut is_consent_kept = false;
        match &portable.state {
            State::Enrolled { name, enrolled_ms, references, consent } => {
                self.delete_references(id)?;
                let sql = "insert into main.subject (id, name, enrolled_ms) values (?1, ?2, ?3) \
                           on conflict (id) do update set name = ?2, enrolled_ms = ?3";
                self.conn.prepare_cached(sql)?.execute(params![
                    id.as_str(),
                    name.as_str(),
                    enrolled_ms
                ])?;
                self.put_version(id, &remote.version)?;
                self.conn
                    .prepare_cached("delete from main.withdrawn where subject_id = ?1")?
                    .execute([id.as_str()])?;
                references.iter().try_for_each(|it| self.put_reference(id, it))?;
                // A device of an earlier version hands a subject on without it: it does not end for that.
                match consent {
                    Some(consent) => self.write_consent(id, consent)?,
                    // It goes back to the site.
                    None => is_consent_kept = self.consent(id)?.is_some(),
                }
            }
            State::Withdrawn { erased, at_ms } => {
                // A device that never had the subject has nothing to erase, and need not rewrite its
                // database.
                if *erased && (local.is_some() || self.has_events_of(id)?) {
                    self.erase_subject(id)?;
                } else {
                    // Another device was faster: the end of a consent is proved here all the same.
                    let is_consent_end = self.consent(id)?.is_some_and(|it| it.has_ended(*at_ms));
                    let references = self.delete_references(id)?;
                    self.delete_consent(id)?;
                    self.conn
                        .prepare_cached("delete from main.subject where id = ?1")?
                        .execute([id.as_str()])?;
                    if is_consent_end && local.is_some() {
                        let erased = Erased { enrolled: true, references, ..Erased::default() };
                        let row = self.note_erasure(id, None, &erased, None)?;
                        self.note_consent_end(row, EndReason::ConsentExpired, true)?;
                        self.schedule_scrub()?;
                    }
                }
                self.put_withdrawn(id, &remote, *at_ms)?;
            }
        }
        // A pending row of it is outdated.
        self.delete_pending(id)?;
        if is_consent_kept {
            self.bump_version(id)?;
        }
        Ok(AcceptOutcome::Accepted)
    }

    fn put_reference(
        &self,
        subject_id: &SubjectId,
        it: &PortableReference,
    ) -> Result<(), StoreError> {
        let belongs = Belongs { subject_id, reference_id: &it.id, embedder: &it.embedder };
        let sealed = self.key()?.seal(&it.template, belongs)?;
        let sql = "insert into main.reference (id, subject_id, embedder, sealed, quality, created_ms) \
                   values (?1, ?2, ?3, ?4, ?5, ?6)";
        let id = it.id.as_bytes();
        let embedder = it.embedder.0;
        let row = params![id, subject_id.as_str(), embedder, sealed, it.quality, it.created_ms];
        self.conn.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    fn has_events_of(&self, id: &SubjectId) -> Result<bool, StoreError> {
        let sql = "select exists (select 1 from event where subject_id = ?1)";
        Ok(self.conn.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?)
    }

    /// Records that a subject was changed here: its version becomes newer than any known one.
    pub(super) fn bump_version(&mut self, id: &SubjectId) -> Result<(), StoreError> {
        // A withdrawn subject that is enrolled again continues from the withdrawal.
        let sql = "select withdrawals, changes, changed_by, true, erased from withdrawn where subject_id = ?1";
        let withdrawn =
            self.conn.prepare_cached(sql)?.query_row([id.as_str()], read_version).optional()?;
        let device = self.context.device.clone();
        if let Some(VersionRecord { version, .. }) = withdrawn {
            self.conn
                .prepare_cached("delete from main.withdrawn where subject_id = ?1")?
                .execute([id.as_str()])?;
            self.put_version(
                id,
                &Version { changes: version.changes.saturating_add(1), device, ..version },
            )?;
        } else {
            let sql = "update main.subject set changes = min(changes + (changed_by <> ''), 4294967295), changed_by = ?2 \
                       where id = ?1";
            self.conn.prepare_cached(sql)?.execute(params![id.as_str(), device])?;
        }
        self.queue_for_gallery(id, PublishReason::Changed)
    }

    /// Records that a subject was withdrawn here. `before` is its version until then. Without a
    /// shared gallery an erased subject leaves nothing, not even the id.
    pub(super) fn record_withdrawal(
        &mut self,
        id: &SubjectId,
        before: Option<&VersionRecord>,
        erased: bool,
    ) -> Result<(), StoreError> {
        if erased && !self.context.shared {
            self.conn.execute("delete from main.withdrawn where subject_id = ?1", [id.as_str()])?;
            return Ok(());
        }
        // Of whom only events are known, another device may know more: an erasure reaches it.
        let unknown = VersionRecord::default();
        let Some(before) = before.or(erased.then_some(&unknown)) else {
            return Ok(());
        };
        let Version { withdrawals, changes, .. } = before.version;
        // An erasure is newer than a withdrawal on another device at the same time. Where nothing can
        // be counted on, a withdrawal is newer than an enrolment with the same numbers.
        let (withdrawals, changes) = if before.withdrawn || withdrawals == u32::MAX {
            (withdrawals, changes.saturating_add(1))
        } else {
            (withdrawals.saturating_add(1), u32::from(erased))
        };
        let version = Version { withdrawals, changes, device: self.context.device.clone() };
        let now_ms = self.now().wall_ms;
        self.put_withdrawn(id, &VersionRecord { version, withdrawn: true, erased }, now_ms)?;
        self.queue_for_gallery(id, PublishReason::Changed)
    }

    fn put_withdrawn(
        &self,
        id: &SubjectId,
        record: &VersionRecord,
        at_ms: i64,
    ) -> Result<(), StoreError> {
        let Version { withdrawals, changes, device } = &record.version;
        let sql = "insert or replace into main.withdrawn (subject_id, withdrawals, changes, changed_by, erased, at_ms) \
                   values (?1, ?2, ?3, ?4, ?5, ?6)";
        let row = params![id.as_str(), withdrawals.max(&1), changes, device, record.erased, at_ms];
        self.conn.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    fn put_version(&self, id: &SubjectId, version: &Version) -> Result<(), StoreError> {
        let Version { withdrawals, changes, device } = version;
        let sql =
            "update main.subject set withdrawals = ?2, changes = ?3, changed_by = ?4 where id = ?1";
        self.conn.prepare_cached(sql)?.execute(params![
            id.as_str(),
            withdrawals,
            changes.max(&1),
            device
        ])?;
        Ok(())
    }

    // The outbox of the shared gallery

    /// Queues a subject for the shared gallery, in place of an earlier row. A row that was queued
    /// because of a change stays one.
    pub fn queue_for_gallery(
        &mut self,
        id: &SubjectId,
        reason: PublishReason,
    ) -> Result<(), StoreError> {
        if !self.context.shared {
            return Ok(());
        }
        let topic = topic_of(id);
        let sql = "select payload from outbox where sink = 'gallery' and topic = ?1 and buried_reason is null";
        let before: Option<Vec<u8>> = self
            .conn
            .prepare_cached(sql)?
            .query_row([&topic], |row| Ok(row.get::<_, String>(0)?.into()))
            .optional()?;
        if reason == PublishReason::Missing && before.is_some() {
            return Ok(());
        }
        // A new row with a new id: the old one may be in flight, and its acknowledgement must not
        // settle this one.
        self.delete_pending(id)?;
        let sql = "insert into main.outbox (sink, topic, payload, created_ms) values ('gallery', ?1, ?2, ?3)";
        let now_ms = self.now().wall_ms;
        self.conn.prepare_cached(sql)?.execute(params![topic, reason.as_str(), now_ms])?;
        self.effects.outbox_grew = true;
        Ok(())
    }

    fn delete_pending(&self, id: &SubjectId) -> Result<(), StoreError> {
        let sql = "delete from main.outbox where sink = 'gallery' and topic = ?1";
        self.conn.prepare_cached(sql)?.execute([topic_of(id)])?;
        Ok(())
    }
}

fn subject_id(text: &str) -> Result<SubjectId, StoreError> {
    SubjectId::new(text).map_err(|_| StoreError::Damaged { source: None })
}
