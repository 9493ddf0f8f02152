//! What may be done within a write: subjects as other doors of the site know them.
//!
//! Each change of a subject makes its account a newer one (`record::portable` says which of two counts), in the same
//! transaction. Where the gallery is shared, the site is then owed that account: one row for each subject, which says
//! whom it is about and not what, so that no template and no name stands in the outbox and the newest account is the one
//! that is sent.
//!
//! Invariant: an account is only ever replaced by a newer one. What came from another door keeps the ids and templates of
//! its references, bit by bit, under this device's own key.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use uuid::Uuid;

use super::tx::Tx;
use super::{SinkName, StoreError, StoreOptions};
use crate::recognise::face::{ModelDigest, Name, SubjectId};
use crate::record::portable::{Portable, PortableReference, REFERENCES_MAX, State, Version};
use crate::record::seal::Belongs;

/// Which account of a subject is held here. That of one who is not known says nothing, and every other counts for more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub version: Version,
    pub withdrawn: bool,
    pub erased: bool,
}

impl Account {
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.version.is_newer(self.withdrawn, &other.version, other.withdrawn)
    }

    pub fn of(portable: &Portable) -> Self {
        let erased = matches!(portable.state, State::Withdrawn { erased: true, .. });
        Self { version: portable.version.clone(), withdrawn: portable.is_withdrawn(), erased }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub subject_id: SubjectId,
    pub account: Account,
}

/// What became of an account that came from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    Same,
    /// Ours is newer.
    Older,
}

/// Why the site is owed a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debt {
    /// Somebody changed it here.
    Changed,
    /// Nothing changed, but the site seems not to have it.
    Missing,
}

impl Debt {
    const CHANGED: &'static str = "changed";
    const MISSING: &'static str = "missing";

    fn as_str(self) -> &'static str {
        match self {
            Self::Changed => Self::CHANGED,
            Self::Missing => Self::MISSING,
        }
    }

    /// As it stands in the row; what is not known is the more careful of the two.
    pub fn parse(payload: &[u8]) -> Self {
        if payload == Self::CHANGED.as_bytes() { Self::Changed } else { Self::Missing }
    }
}

/// The topic of a row, and in MQTT what follows the site.
const TOPIC: &str = "gallery/";

/// Whom a row is about.
pub fn subject_of(topic: &str) -> Option<SubjectId> {
    SubjectId::new(topic.strip_prefix(TOPIC)?).ok()
}

fn topic_of(id: &SubjectId) -> String {
    format!("{TOPIC}{id}")
}

/// Subjects of an earlier version are this device's own; where nothing is shared, nothing is owed.
pub(super) fn settle(conn: &mut Connection, options: &StoreOptions) -> Result<(), StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute(
        "update subject set changed_by = ?1 where changed_by = '' and ?1 <> ''",
        [&options.device],
    )?;
    if !options.shared {
        tx.execute("delete from outbox where sink = ?1", [SinkName::GALLERY.as_str()])?;
    }
    tx.commit()?;
    Ok(())
}

/// Before those who are enrolled are forgotten: the site is not to hear of emptied accounts.
pub(super) fn forget_debts_of_enrolled(conn: &Connection) -> Result<(), StoreError> {
    let sql = "delete from outbox where sink = ?1 and topic in (select ?2 || id from subject)";
    conn.execute(sql, params![SinkName::GALLERY.as_str(), TOPIC])?;
    Ok(())
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let version = Version { withdrawals: row.get(0)?, changes: row.get(1)?, device: row.get(2)? };
    Ok(Account { version, withdrawn: row.get(3)?, erased: row.get(4)? })
}

impl Tx<'_> {
    /// What is known of a subject, enrolled or withdrawn.
    pub fn account(&self, id: &SubjectId) -> Result<Option<Account>, StoreError> {
        let sql = "select withdrawals, changes, changed_by, false, false from subject where id = ?1 \
                   union all select withdrawals, changes, changed_by, true, erased from withdrawn where subject_id = ?1 \
                   limit 1";
        Ok(self.conn.prepare_cached(sql)?.query_row([id.as_str()], account).optional()?)
    }

    /// All that is known, enrolled and withdrawn.
    pub fn all_accounts(&self) -> Result<Vec<Known>, StoreError> {
        let sql = "select withdrawals, changes, changed_by, false, false, id from subject \
                   union all select withdrawals, changes, changed_by, true, erased, subject_id from withdrawn";
        let mut query = self.conn.prepare(sql)?;
        let mut rows = query.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(Known {
                account: account(row)?,
                subject_id: subject_id(&row.get::<_, String>(5)?)?,
            });
        }
        Ok(found)
    }

    /// A subject as it travels. None: nothing is known of it, or a reference of it was altered on the disk.
    pub fn portable(&self, id: &SubjectId) -> Result<Option<Portable>, StoreError> {
        let Some(account) = self.account(id)? else {
            return Ok(None);
        };
        let state = if account.withdrawn {
            let sql = "select at_ms from withdrawn where subject_id = ?1";
            let at_ms =
                self.conn.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?;
            State::Withdrawn { erased: account.erased, at_ms }
        } else {
            let sql = "select name, enrolled_ms from subject where id = ?1";
            let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?));
            let (name, enrolled_ms) =
                self.conn.prepare_cached(sql)?.query_row([id.as_str()], read)?;
            let name = Name::new(&name).map_err(|_| StoreError::Damaged { source: None })?;
            let Some(references) = self.portable_references(id)? else {
                return Ok(None);
            };
            State::Enrolled { name, enrolled_ms, references }
        };
        Ok(Some(Portable { subject_id: id.clone(), version: account.version, state }))
    }

    fn portable_references(
        &self,
        subject_id: &SubjectId,
    ) -> Result<Option<Vec<PortableReference>>, StoreError> {
        let sql = "select id, embedder, sealed, quality, created_ms from reference where subject_id = ?1 order by row \
                   limit ?2";
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query(params![subject_id.as_str(), REFERENCES_MAX as i64])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, embedder) = (Uuid::from_bytes(row.get(0)?), ModelDigest(row.get(1)?));
            let sealed: Vec<u8> = row.get(2)?;
            let belongs = Belongs { subject_id, reference_id: &id, embedder: &embedder };
            let Ok(template) = self.setting.key.open(&sealed, belongs) else {
                return Ok(None);
            };
            let (quality, created_ms) = (row.get(3)?, row.get(4)?);
            found.push(PortableReference { id, embedder, template, quality, created_ms });
        }
        Ok(Some(found))
    }

    /// Takes another door's account of a subject if it is newer than ours. One that was erased there is erased here.
    pub fn accept(&mut self, portable: &Portable) -> Result<Outcome, StoreError> {
        let (id, theirs) = (&portable.subject_id, Account::of(portable));
        let ours = self.account(id)?;
        if let Some(ours) = &ours
            && !theirs.is_newer_than(ours)
        {
            let same = ours.version == theirs.version && ours.withdrawn == theirs.withdrawn;
            return Ok(if same { Outcome::Same } else { Outcome::Older });
        }
        match &portable.state {
            State::Enrolled { name, enrolled_ms, references } => {
                self.delete_references(id)?;
                let sql = "insert into subject (id, name, enrolled_ms) values (?1, ?2, ?3) \
                           on conflict (id) do update set name = ?2, enrolled_ms = ?3";
                self.conn.prepare_cached(sql)?.execute(params![
                    id.as_str(),
                    name.as_str(),
                    enrolled_ms
                ])?;
                self.put_version(id, &theirs.version)?;
                self.conn
                    .prepare_cached("delete from withdrawn where subject_id = ?1")?
                    .execute([id.as_str()])?;
                references.iter().try_for_each(|it| self.put_reference(id, it))?;
            }
            State::Withdrawn { erased, at_ms } => {
                // A door that never knew the person has nothing to erase, and is spared writing its database anew.
                if *erased && (ours.is_some() || self.stands_in_events(id)?) {
                    self.erase_subject(id)?;
                } else {
                    self.delete_references(id)?;
                    self.conn
                        .prepare_cached("delete from subject where id = ?1")?
                        .execute([id.as_str()])?;
                }
                self.put_withdrawn(id, &theirs, *at_ms)?;
            }
        }
        // What the site was owed of it has been overtaken.
        self.forget_debt(id)?;
        Ok(Outcome::Taken)
    }

    fn put_reference(
        &self,
        subject_id: &SubjectId,
        it: &PortableReference,
    ) -> Result<(), StoreError> {
        let belongs = Belongs { subject_id, reference_id: &it.id, embedder: &it.embedder };
        let sealed = self.setting.key.seal(&it.template, belongs)?;
        let sql = "insert into reference (id, subject_id, embedder, sealed, quality, created_ms) \
                   values (?1, ?2, ?3, ?4, ?5, ?6)";
        let (id, embedder) = (it.id.as_bytes(), it.embedder.0);
        let row = params![id, subject_id.as_str(), embedder, sealed, it.quality, it.created_ms];
        self.conn.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    fn stands_in_events(&self, id: &SubjectId) -> Result<bool, StoreError> {
        let sql = "select exists (select 1 from event where subject_id = ?1)";
        Ok(self.conn.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?)
    }

    /// A subject was changed here: its account is newer than any that is known.
    pub(super) fn raise(&mut self, id: &SubjectId) -> Result<(), StoreError> {
        // One who was withdrawn and comes back counts on from there.
        let sql = "select withdrawals, changes, changed_by, true, erased from withdrawn where subject_id = ?1";
        let withdrawn =
            self.conn.prepare_cached(sql)?.query_row([id.as_str()], account).optional()?;
        let device = self.setting.device.clone();
        if let Some(Account { version, .. }) = withdrawn {
            self.conn
                .prepare_cached("delete from withdrawn where subject_id = ?1")?
                .execute([id.as_str()])?;
            self.put_version(
                id,
                &Version { changes: version.changes.saturating_add(1), device, ..version },
            )?;
        } else {
            let sql = "update subject set changes = min(changes + (changed_by <> ''), 4294967295), changed_by = ?2 \
                       where id = ?1";
            self.conn.prepare_cached(sql)?.execute(params![id.as_str(), device])?;
        }
        self.owe_gallery(id, Debt::Changed)
    }

    /// A subject was withdrawn here. `before` is what was known of it. Where nothing is shared, one who was erased
    /// leaves nothing, not even the id.
    pub(super) fn withdrawn(
        &mut self,
        id: &SubjectId,
        before: Option<&Account>,
        erased: bool,
    ) -> Result<(), StoreError> {
        if erased && !self.setting.shared {
            self.conn.execute("delete from withdrawn where subject_id = ?1", [id.as_str()])?;
            return Ok(());
        }
        let Some(before) = before else {
            return Ok(());
        };
        let Version { withdrawals, changes, .. } = before.version;
        // An erasure counts for more than a withdrawal at another door at the same time.
        let (withdrawals, changes) = if before.withdrawn {
            (withdrawals, changes.saturating_add(1))
        } else {
            (withdrawals.saturating_add(1), u32::from(erased))
        };
        let version = Version { withdrawals, changes, device: self.setting.device.clone() };
        let now_ms = self.now().wall_ms;
        self.put_withdrawn(id, &Account { version, withdrawn: true, erased }, now_ms)?;
        self.owe_gallery(id, Debt::Changed)
    }

    fn put_withdrawn(
        &self,
        id: &SubjectId,
        account: &Account,
        at_ms: i64,
    ) -> Result<(), StoreError> {
        let Version { withdrawals, changes, device } = &account.version;
        let sql = "insert or replace into withdrawn (subject_id, withdrawals, changes, changed_by, erased, at_ms) \
                   values (?1, ?2, ?3, ?4, ?5, ?6)";
        let row = params![id.as_str(), withdrawals.max(&1), changes, device, account.erased, at_ms];
        self.conn.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    fn put_version(&self, id: &SubjectId, version: &Version) -> Result<(), StoreError> {
        let Version { withdrawals, changes, device } = version;
        let sql =
            "update subject set withdrawals = ?2, changes = ?3, changed_by = ?4 where id = ?1";
        self.conn.prepare_cached(sql)?.execute(params![
            id.as_str(),
            withdrawals,
            changes.max(&1),
            device
        ])?;
        Ok(())
    }

    // What the site is owed

    /// Owes the site a subject; what it was owed of the same before is overtaken. A subject that is owed because it
    /// changed stays so.
    pub fn owe_gallery(&mut self, id: &SubjectId, debt: Debt) -> Result<(), StoreError> {
        if !self.setting.shared {
            return Ok(());
        }
        let topic = topic_of(id);
        let sql = "select payload from outbox where sink = 'gallery' and topic = ?1 and buried_reason is null";
        let before: Option<Vec<u8>> = self
            .conn
            .prepare_cached(sql)?
            .query_row([&topic], |row| Ok(row.get::<_, String>(0)?.into()))
            .optional()?;
        if debt == Debt::Missing && before.is_some() {
            return Ok(());
        }
        // A new row with a new id: the old one may be under way, and its acknowledgement must not end this one.
        self.forget_debt(id)?;
        let sql =
            "insert into outbox (sink, topic, payload, created_ms) values ('gallery', ?1, ?2, ?3)";
        let now_ms = self.now().wall_ms;
        self.conn.prepare_cached(sql)?.execute(params![topic, debt.as_str(), now_ms])?;
        self.effects.outbox_grew = true;
        Ok(())
    }

    fn forget_debt(&self, id: &SubjectId) -> Result<(), StoreError> {
        let sql = "delete from outbox where sink = 'gallery' and topic = ?1";
        self.conn.prepare_cached(sql)?.execute([topic_of(id)])?;
        Ok(())
    }
}

fn subject_id(text: &str) -> Result<SubjectId, StoreError> {
    SubjectId::new(text).map_err(|_| StoreError::Damaged { source: None })
}
