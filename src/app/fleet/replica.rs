//! What is held here, what the transport shows, and where the two differ. Only computes.
//!
//! Over MQTT the site's side is what its index pages list, amended by the records that were
//! received since; over MongoDB it is what the last complete scan showed. Subjects are grouped into
//! the pages of the index with either transport.
//!
//! Invariants: every table is bounded by the subjects that are known here or listed in a sealed
//! page. Content that is not sealed makes an entry only for such a subject; of other places
//! `UnknownPlaces` keeps a count and a bounded set.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tokio::time::{Duration, Instant};

use crate::app::fleet::reconcile::{Action, Observed, compare};
use crate::app::fleet::repair::Repairs;
use crate::app::fleet::wire::{Entries, PAGES, page_of};
use crate::ids::SubjectId;
use crate::store::{KnownSubject, PublishReason, VersionRecord};

/// Topics or documents of unknown subjects that are remembered at a time, some 100 kB. Enough for a
/// count that an operator can act on; beyond it they are only counted as refused.
pub const UNKNOWN_MAX: usize = 1024;
/// After so many publishes of the same version that did not stay, somebody interferes: one may be a
/// slow broker.
const CONTESTED_AFTER: u32 = 2;

/// What was last received on a page's topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PageState {
    #[default]
    NotReceived,
    Sealed,
    /// Emptied, or it does not open. What is known of the records stays.
    Damaged,
}

/// What to do about an outbox row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowAction {
    Settled,
    /// A newer version is about to be received, or the pause between two repairs has not passed.
    Hold,
    Publish,
}

#[derive(Debug)]
pub struct Replica {
    /// Local versions, by page.
    local: Vec<Entries>,
    pages: Vec<Page>,
    /// Requested and not there, or of no use: not requested again on this connection.
    unavailable: HashMap<SubjectId, VersionRecord>,
    /// Published here and not received back, or next in the audit: to be requested by name.
    unverified: BTreeSet<SubjectId>,
    /// The page that is audited next, and after which of its subjects.
    audited: (u8, Option<SubjectId>),
    unknown: UnknownPlaces,
    repairs: Repairs<SubjectId, VersionRecord>,
    page_repairs: Repairs<u8, Entries>,
    /// Whether anything of the site opened with this key, now or before this start.
    is_key_confirmed: bool,
    /// Whether something was received that may be sealed with another key.
    is_other_key_likely: bool,
}

#[derive(Clone, Debug, Default)]
struct Page {
    listed: Entries,
    observed: BTreeMap<SubjectId, Observed>,
    state: PageState,
    /// When what differs is to be published.
    due: Option<Instant>,
}

/// Topics or documents with unsealed content whose subject is unknown.
#[derive(Debug, Default)]
struct UnknownPlaces {
    subjects: HashSet<SubjectId>,
    /// Documents whose id is not a subject's.
    unnamed: u64,
}

impl UnknownPlaces {
    /// A full set takes no more: what is in it stays right, and the count is a lower bound.
    fn insert(&mut self, id: &SubjectId) {
        if self.subjects.len() < UNKNOWN_MAX {
            self.subjects.insert(id.clone());
        }
    }
}

/// What a complete scan of the collection showed.
#[derive(Debug, Default)]
pub struct ScanResult {
    observed: BTreeMap<SubjectId, Observed>,
    unknown: UnknownPlaces,
}

impl ScanResult {
    pub fn observe(&mut self, id: &SubjectId, observed: Observed, is_known: bool) {
        if is_known || matches!(observed, Observed::Sealed(_) | Observed::Unreadable) {
            self.observed.insert(id.clone(), observed);
        } else {
            self.unknown.insert(id);
        }
    }

    pub fn observe_unnamed(&mut self) {
        self.unknown.unnamed += 1;
    }
}

impl Replica {
    pub fn new(known: Vec<KnownSubject>, is_key_confirmed: bool) -> Self {
        let mut replica = Self {
            local: vec![Entries::new(); PAGES],
            pages: vec![Page::default(); PAGES],
            unavailable: HashMap::new(),
            unverified: BTreeSet::new(),
            audited: (0, None),
            unknown: UnknownPlaces::default(),
            repairs: Repairs::default(),
            page_repairs: Repairs::default(),
            is_key_confirmed,
            is_other_key_likely: false,
        };
        for it in known {
            replica.put_local(&it.subject_id, it.version);
        }
        replica
    }

    fn page(&self, id: &SubjectId) -> &Page {
        &self.pages[usize::from(page_of(id))]
    }

    // What is held here

    /// Records a local version. An older one never displaces a newer one, whatever the order.
    pub fn put_local(&mut self, id: &SubjectId, version: VersionRecord) {
        let local = &mut self.local[usize::from(page_of(id))];
        if local.get(id).is_none_or(|held| !held.is_newer_than(&version)) {
            local.insert(id.clone(), version);
        }
    }

    pub fn local(&self, id: &SubjectId) -> Option<&VersionRecord> {
        self.local[usize::from(page_of(id))].get(id)
    }

    fn is_known(&self, id: &SubjectId) -> bool {
        let page = self.page(id);
        self.local(id).is_some() || page.listed.contains_key(id) || page.observed.contains_key(id)
    }

    // What the transport shows

    /// Forgets what was observed: on a new connection what the broker retains is received anew. The
    /// back-off stays, or reconnects would defeat it.
    pub fn forget_site(&mut self) {
        self.pages.fill(Page::default());
        self.unavailable.clear();
        self.unverified.clear();
        self.unknown = UnknownPlaces::default();
        self.is_other_key_likely = false;
    }

    /// Records a sealed page. It may be an old one, so it does not displace received records.
    pub fn receive_page(&mut self, page: u8, listed: Entries) {
        let at = usize::from(page);
        let local = &self.local[at];
        let stays = |id: &SubjectId, observed: &Observed| match (observed, listed.get(id)) {
            (_, None) => *observed != Observed::Absent || local.contains_key(id),
            (Observed::Sealed(received), Some(listed)) => !listed.is_newer_than(received),
            // Listed newer than the local version: worth requesting again.
            (_, Some(listed)) => local.get(id).is_some_and(|local| !listed.is_newer_than(local)),
        };
        let page = &mut self.pages[at];
        page.observed.retain(|id, observed| stays(id, observed));
        page.listed = listed;
        page.state = PageState::Sealed;
        page.due = None;
        self.is_key_confirmed = true;
    }

    /// Records that a page is empty or does not open.
    pub fn mark_page_damaged(&mut self, page: u8) {
        self.pages[usize::from(page)].state = PageState::Damaged;
    }

    /// Records that something was received that may be sealed with another key.
    pub fn suspect_key(&mut self) {
        self.is_other_key_likely = true;
    }

    pub fn confirm_key(&mut self) {
        self.is_key_confirmed = true;
    }

    /// Records what the transport has for the subject. Returns whether the subject is known.
    pub fn receive(&mut self, id: &SubjectId, observed: Observed) -> bool {
        self.unverified.remove(id);
        let is_sealed = matches!(observed, Observed::Sealed(_) | Observed::Unreadable);
        self.is_key_confirmed |= is_sealed;
        let is_known = is_sealed || self.is_known(id);
        if observed == Observed::Unsealed && !is_known {
            self.unknown.insert(id);
        } else {
            self.unknown.subjects.remove(id);
        }
        if is_known {
            self.pages[usize::from(page_of(id))].observed.insert(id.clone(), observed);
        }
        is_known
    }

    /// Replaces all observations by those of a complete scan.
    pub fn finish_scan(&mut self, scan: ScanResult) {
        self.pages.iter_mut().for_each(|page| page.observed.clear());
        for (id, observed) in scan.observed {
            self.pages[usize::from(page_of(&id))].observed.insert(id, observed);
        }
        self.unknown = scan.unknown;
    }

    /// Records that a version was requested and did not come, or is of no use.
    pub fn mark_unavailable(&mut self, id: &SubjectId, version: VersionRecord) {
        self.unavailable.insert(id.clone(), version);
    }

    /// Returns what was last observed of the subject: the record itself, or else the page's entry.
    fn observed(&self, id: &SubjectId) -> Observed {
        let page = self.page(id);
        page.observed.get(id).cloned().unwrap_or_else(|| {
            page.listed.get(id).map_or(Observed::Absent, |it| Observed::Listed(it.clone()))
        })
    }

    pub fn is_received(&self, id: &SubjectId, local: &VersionRecord) -> bool {
        self.page(id).observed.get(id).is_some_and(|it| it.confirms(local))
    }

    pub fn is_key_confirmed(&self) -> bool {
        self.is_key_confirmed
    }

    /// Returns whether nothing of the site ever opened with this key while something may be sealed
    /// with another. Once the key is confirmed, what does not open is foreign.
    pub fn has_wrong_key(&self) -> bool {
        !self.is_key_confirmed && self.is_other_key_likely
    }

    // Where they differ

    /// Returns what the site has newer, with its version.
    pub fn missing_locally(&self) -> Vec<(SubjectId, VersionRecord)> {
        let is_missing = |(id, remote): &(&SubjectId, &VersionRecord)| {
            self.local(id).is_none_or(|local| remote.is_newer_than(local))
                && self.unavailable.get(*id).is_none_or(|it| remote.is_newer_than(it))
        };
        let remote = self.pages.iter().flat_map(|page| {
            let received = page.observed.iter().filter_map(|(id, it)| match it {
                Observed::Sealed(version) => Some((id, version)),
                _ => None,
            });
            page.listed.iter().filter(|(id, _)| !page.observed.contains_key(*id)).chain(received)
        });
        remote.filter(is_missing).map(|(id, version)| (id.clone(), version.clone())).collect()
    }

    fn is_pending(&self, id: &SubjectId, local: &VersionRecord) -> bool {
        compare(Some(local), &self.observed(id)).is_pending()
    }

    /// Returns the subjects of this page that the site lacks or has older.
    pub fn missing_remotely(&self, page: u8) -> Vec<SubjectId> {
        let local = self.local[usize::from(page)].iter();
        local.filter(|(id, local)| self.is_pending(id, local)).map(|(id, _)| id.clone()).collect()
    }

    /// Decides about an outbox row.
    pub fn row_action(
        &self,
        id: &SubjectId,
        local: &VersionRecord,
        reason: PublishReason,
        now: Instant,
    ) -> RowAction {
        let observed = self.observed(id);
        let action = compare(Some(local), &observed);
        // A claim proves nothing. A page may be an old one or may list what is no longer retained,
        // so a change of this device is to be received back.
        let is_credible = !matches!(observed, Observed::Claimed(_));
        let is_present = reason == PublishReason::Missing && is_credible && !action.is_pending();
        if observed.confirms(local) || is_present {
            RowAction::Settled
        } else if (is_credible && action == Action::Receive)
            || !self.repairs.wait(id, local, now).is_zero()
        {
            RowAction::Hold
        } else {
            RowAction::Publish
        }
    }

    pub fn record_published(&mut self, id: &SubjectId, version: &VersionRecord, now: Instant) {
        self.repairs.record_attempt(id.clone(), version.clone(), now);
    }

    /// Returns the entries that the page should have, if it has others.
    pub fn page_correction(&self, page: u8) -> Option<Entries> {
        let at = usize::from(page);
        let Page { listed, observed, state, .. } = &self.pages[at];
        let mut entries = listed.clone();
        for (id, observed) in observed {
            match observed {
                Observed::Sealed(version) => {
                    // Pages do not carry it.
                    entries.insert(id.clone(), VersionRecord { erased: false, ..version.clone() });
                }
                Observed::Absent if !self.local[at].contains_key(id) => {
                    entries.remove(id);
                }
                // A device that has the record publishes it again; until then it stays listed.
                _ => {}
            }
        }
        let same = |a: &VersionRecord, b: &VersionRecord| {
            a.version == b.version && a.withdrawn == b.withdrawn
        };
        let unchanged = entries.len() == listed.len()
            && entries.iter().zip(listed).all(|(a, b)| a.0 == b.0 && same(a.1, b.1));
        (*state == PageState::Damaged || !unchanged).then_some(entries)
    }

    pub fn page_wait(&self, page: u8, entries: &Entries, now: Instant) -> Duration {
        self.page_repairs.wait(&page, entries, now)
    }

    pub fn record_page_published(&mut self, page: u8, entries: Entries, now: Instant) {
        self.page_repairs.record_attempt(page, entries, now);
    }

    // When to publish

    /// Returns whether the page or a record of it is to be published.
    pub fn page_differs(&self, page: u8) -> bool {
        self.page_correction(page).is_some() || !self.missing_remotely(page).is_empty()
    }

    /// Schedules the page for this time, unless it is due sooner.
    pub fn schedule_page(&mut self, page: u8, at: Instant) {
        let due = &mut self.pages[usize::from(page)].due;
        *due = Some(due.map_or(at, |due| due.min(at)));
    }

    pub fn schedule(&mut self, id: &SubjectId, at: Instant) {
        self.schedule_page(page_of(id), at);
    }

    pub fn is_scheduled(&self, page: u8) -> bool {
        self.pages[usize::from(page)].due.is_some()
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.pages.iter().filter_map(|page| page.due).min()
    }

    pub fn take_due_pages(&mut self, now: Instant) -> Vec<u8> {
        let mut due = Vec::new();
        for (page, at) in self.pages.iter_mut().zip(0..=u8::MAX) {
            if page.due.take_if(|due| *due <= now).is_some() {
                due.push(at);
            }
        }
        due
    }

    // Verification

    /// Marks a published record that did not come back.
    pub fn mark_unverified(&mut self, id: &SubjectId) {
        self.unverified.insert(id.clone());
    }

    /// Marks the next local subjects to be requested by name: a page or a document may claim what
    /// is no longer there, and a resumed session brings no retained record again.
    pub fn audit(&mut self, limit: usize) {
        let mut left = limit;
        for _ in 0..=PAGES {
            let (page, after) = self.audited.clone();
            let ids = self.local[usize::from(page)]
                .keys()
                .filter(|id| after.as_ref().is_none_or(|after| *id > after));
            let next: Vec<SubjectId> = ids.take(left).cloned().collect();
            left -= next.len();
            self.audited.1 = next.last().cloned().or(after);
            self.unverified.extend(next);
            if left == 0 {
                return;
            }
            self.audited = (page.wrapping_add(1), None);
        }
    }

    pub fn has_unverified(&self) -> bool {
        !self.unverified.is_empty()
    }

    /// Takes up to so many of the subjects that are to be requested by name.
    pub fn take_unverified(&mut self, limit: usize) -> Vec<(SubjectId, VersionRecord)> {
        let ids: Vec<SubjectId> = self.unverified.iter().take(limit).cloned().collect();
        for id in &ids {
            self.unverified.remove(id);
        }
        let known = |id: SubjectId| self.local(&id).cloned().map(|version| (id, version));
        ids.into_iter().filter_map(known).collect()
    }

    // For the health message

    /// Returns how many topics or documents do not open, pages included. Of unknown subjects at
    /// most `UNKNOWN_MAX` are counted.
    pub fn unsealed_count(&self) -> u64 {
        let known: usize = self.pages.iter().map(Page::unsealed_count).sum();
        (known + self.unknown.subjects.len()) as u64 + self.unknown.unnamed
    }

    /// Returns how many local versions are not at the site.
    pub fn pending_count(&self) -> u64 {
        let all = self.local.iter().flatten();
        all.filter(|(id, local)| self.is_pending(id, local)).count() as u64
    }

    /// Returns whether content that does not open, or an old version, stands in the place of a
    /// record or page of the site.
    pub fn is_blocked(&self) -> bool {
        let is_contested = |(id, local): (&SubjectId, &VersionRecord)| {
            self.repairs.count(id, local) >= CONTESTED_AFTER && self.is_pending(id, local)
        };
        self.pages.iter().any(|page| page.unsealed_count() > 0)
            || self.local.iter().flatten().any(is_contested)
    }
}

impl Page {
    fn unsealed_count(&self) -> usize {
        let records = self.observed.values().filter(|it| **it == Observed::Unsealed).count();
        records + usize::from(self.state == PageState::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::subject::Version;

    fn id(text: &str) -> SubjectId {
        SubjectId::new(text).unwrap()
    }

    fn version(changes: u32) -> VersionRecord {
        let version = Version { withdrawals: 0, changes, device: "door-1".into() };
        VersionRecord { version, withdrawn: false, erased: false }
    }

    fn replica(changes: u32) -> Replica {
        Replica::new(
            vec![KnownSubject { subject_id: id("jane"), version: version(changes) }],
            false,
        )
    }

    /// What happens to a row about Jane in version 3.
    fn row(replica: &Replica, reason: PublishReason) -> RowAction {
        replica.row_action(&id("jane"), &version(3), reason, Instant::now())
    }

    fn page() -> u8 {
        page_of(&id("jane"))
    }

    fn listing(changes: u32) -> Entries {
        Entries::from([(id("jane"), version(changes))])
    }

    #[test]
    fn newer_versions_are_fetched_older_ones_published() {
        let mut replica = replica(3);
        assert_eq!(replica.missing_remotely(page()), [id("jane")]);
        replica.receive_page(page(), listing(3));
        assert!(
            replica.missing_locally().is_empty()
                && replica.missing_remotely(page()).is_empty()
                && !replica.page_differs(page())
        );
        replica.receive_page(page(), listing(2));
        assert_eq!(replica.missing_remotely(page()), [id("jane")]);
        assert_eq!(row(&replica, PublishReason::Missing), RowAction::Publish);
        replica.receive_page(page(), listing(4));
        assert_eq!(replica.missing_locally(), [(id("jane"), version(4))]);
        assert_eq!(row(&replica, PublishReason::Changed), RowAction::Hold);
        replica.mark_unavailable(&id("jane"), version(4));
        assert!(replica.missing_locally().is_empty(), "requested once");
    }

    #[test]
    fn received_record_corrects_its_index_page() {
        let mut replica = replica(3);
        replica.receive_page(page(), listing(2));
        replica.receive(&id("jane"), Observed::Sealed(version(3)));
        assert!(replica.missing_remotely(page()).is_empty());
        assert_eq!(replica.page_correction(page()), Some(listing(3)));
        replica.receive_page(page(), listing(3));
        assert_eq!(replica.page_correction(page()), None);
        replica.receive(&id("jane"), Observed::Absent);
        assert_eq!(
            replica.page_correction(page()),
            None,
            "it is published again, and stays listed"
        );
        assert_eq!(replica.missing_remotely(page()), [id("jane")]);
    }

    #[test]
    fn unsealed_record_counts_as_missing() {
        let mut replica = replica(3);
        replica.receive_page(page(), listing(3));
        replica.receive(&id("jane"), Observed::Unsealed);
        assert_eq!(replica.missing_remotely(page()), [id("jane")]);
        assert_eq!(row(&replica, PublishReason::Changed), RowAction::Publish);
        assert_eq!(row(&replica, PublishReason::Missing), RowAction::Publish);
        assert!(replica.is_blocked() && !replica.has_wrong_key());
        assert_eq!((replica.unsealed_count(), replica.pending_count()), (1, 1));
        // A page that lists it as there does not make it there.
        replica.receive_page(page(), listing(3));
        assert_eq!(replica.missing_remotely(page()), [id("jane")]);
        replica.receive(&id("jane"), Observed::Sealed(version(3)));
        assert_eq!(row(&replica, PublishReason::Changed), RowAction::Settled);
        assert!(!replica.is_blocked());
        assert_eq!((replica.unsealed_count(), replica.pending_count()), (0, 0));
    }

    #[test]
    fn old_sealed_page_does_not_displace_a_record() {
        let mut replica = replica(3);
        replica.receive(&id("jane"), Observed::Sealed(version(3)));
        replica.receive_page(page(), listing(1));
        assert!(replica.missing_remotely(page()).is_empty());
        assert_eq!(replica.page_correction(page()), Some(listing(3)));
        replica.receive_page(page(), Entries::new());
        assert_eq!(replica.page_correction(page()), Some(listing(3)));
    }

    #[test]
    fn spoilt_page_is_rewritten_from_known_versions() {
        let mut replica = replica(3);
        replica.receive_page(page(), listing(3));
        replica.mark_page_damaged(page());
        assert!(replica.missing_remotely(page()).is_empty() && replica.is_blocked());
        assert_eq!(replica.page_correction(page()), Some(listing(3)));
        replica.receive_page(page(), listing(3));
        assert!(!replica.is_blocked() && replica.page_correction(page()).is_none());
    }

    #[test]
    fn replaced_version_is_contested_after_two_publishes() {
        let mut replica = replica(3);
        let now = Instant::now();
        replica.record_published(&id("jane"), &version(3), now);
        replica.receive(&id("jane"), Observed::Sealed(version(1)));
        assert!(!replica.is_blocked());
        let action = |replica: &Replica, changes| {
            replica.row_action(&id("jane"), &version(changes), PublishReason::Changed, now)
        };
        assert_eq!(action(&replica, 3), RowAction::Hold);
        replica.record_published(&id("jane"), &version(3), now);
        assert!(replica.is_blocked());
        assert_eq!(action(&replica, 4), RowAction::Publish, "a new version waits for nothing");
    }

    /// A document claims a version; nobody opened it.
    #[test]
    fn claimed_version_settles_no_row() {
        let mut replica = replica(3);
        for changes in [3, 4] {
            let mut scan = ScanResult::default();
            scan.observe(&id("jane"), Observed::Claimed(version(changes)), true);
            replica.finish_scan(scan);
            assert_eq!(replica.pending_count(), 0);
            assert_eq!(row(&replica, PublishReason::Missing), RowAction::Publish);
            assert!(replica.missing_locally().is_empty(), "only what was opened counts");
        }
        let mut scan = ScanResult::default();
        scan.observe(&id("joe"), Observed::Unsealed, false);
        scan.observe_unnamed();
        replica.finish_scan(scan);
        assert_eq!((replica.unsealed_count(), replica.pending_count()), (2, 1));
    }

    #[test]
    fn key_is_suspect_until_a_record_opens() {
        let mut replica = replica(3);
        replica.receive(&id("jane"), Observed::Unsealed);
        assert!(!replica.has_wrong_key(), "no record of any key");
        replica.suspect_key();
        assert!(replica.has_wrong_key());
        replica.receive(&id("jane"), Observed::Sealed(version(3)));
        assert!(!replica.has_wrong_key() && replica.is_key_confirmed());
        replica.forget_site();
        replica.suspect_key();
        assert!(!replica.has_wrong_key(), "confirmed before");
    }

    #[test]
    fn audit_takes_every_subject_in_turn() {
        let version = version(1);
        let known = (0..100)
            .map(|at| KnownSubject { subject_id: id(&format!("p-{at}")), version: version.clone() })
            .collect();
        let mut replica = Replica::new(known, true);
        let mut taken = BTreeSet::new();
        for _ in 0..7 {
            replica.audit(16);
            taken.extend(replica.take_unverified(100).into_iter().map(|it| it.0));
        }
        assert_eq!(taken.len(), 100);
        let mut small = self::replica(1);
        small.audit(16);
        assert_eq!(small.take_unverified(16).len(), 1);
    }

    #[test]
    fn invented_subjects_do_not_grow_the_tables() {
        let mut replica = replica(3);
        for number in 0..100_000 {
            let invented = id(&format!("invented-{number}"));
            let found = if number % 2 == 0 { Observed::Unsealed } else { Observed::Absent };
            replica.receive(&invented, found);
        }
        assert_eq!(replica.unsealed_count(), UNKNOWN_MAX as u64);
        assert!(replica.pages.iter().all(|it| it.observed.is_empty() && it.listed.is_empty()));
        assert!(
            replica.unavailable.is_empty()
                && replica.unverified.is_empty()
                && replica.repairs.len() == 0
        );
        // A subject that is known is still distinguished from them.
        replica.receive(&id("jane"), Observed::Unsealed);
        assert!(replica.is_blocked());
        replica.receive(&id("invented-0"), Observed::Absent);
        assert_eq!(replica.unsealed_count(), UNKNOWN_MAX as u64, "one cleared, one known");
    }
}
