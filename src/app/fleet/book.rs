//! What is held here, what the site is said to have, and where the two differ. Computes only.
//!
//! The site's side is what its pages say, amended by the records that were heard since. A record stands for itself: what
//! it is when it is heard, the broker keeps. A page may be behind; then it is said anew.

use std::collections::{BTreeMap, HashMap};

use super::wire::{Entries, PAGES, page_of};
use crate::recognise::face::SubjectId;
use crate::record::store::{Account, Debt, Known};

#[derive(Debug)]
pub struct Book {
    /// By page.
    ours: Vec<Entries>,
    pages: Vec<Page>,
    /// Asked for and not there, or of no use: not asked for again on this connection.
    vain: HashMap<SubjectId, Account>,
    /// What the site has and we cannot open, by what it says of itself.
    sealed_off: HashMap<SubjectId, Account>,
    /// What was opened on this connection, pages and records.
    opened: u64,
}

#[derive(Clone, Debug, Default)]
struct Page {
    said: Entries,
    seen: BTreeMap<SubjectId, Option<Account>>,
    sealed_off: bool,
}

impl Book {
    pub fn new(known: Vec<Known>) -> Self {
        let mut book = Self {
            ours: vec![Entries::new(); PAGES],
            pages: vec![Page::default(); PAGES],
            vain: HashMap::new(),
            sealed_off: HashMap::new(),
            opened: 0,
        };
        for it in known {
            book.put(&it.subject_id, it.account);
        }
        book
    }

    /// A new connection: what the site has is to be heard anew.
    pub fn forget_site(&mut self) {
        self.pages.fill(Page::default());
        self.vain.clear();
        self.sealed_off.clear();
        self.opened = 0;
    }

    pub fn put(&mut self, id: &SubjectId, account: Account) {
        self.ours[usize::from(page_of(id))].insert(id.clone(), account);
    }

    pub fn ours(&self, id: &SubjectId) -> Option<&Account> {
        self.ours[usize::from(page_of(id))].get(id)
    }

    /// A page came.
    pub fn said(&mut self, page: u8, said: Entries) {
        self.pages[usize::from(page)] = Page { said, ..Page::default() };
        self.opened += 1;
    }

    pub fn page_sealed_off(&mut self, page: u8) {
        self.pages[usize::from(page)] = Page { sealed_off: true, ..Page::default() };
    }

    /// This is the record that the broker keeps, or that there is none.
    pub fn seen(&mut self, id: &SubjectId, account: Option<Account>) {
        self.sealed_off.remove(id);
        self.pages[usize::from(page_of(id))].seen.insert(id.clone(), account);
    }

    /// The record did open.
    pub fn opened(&mut self) {
        self.opened += 1;
    }

    pub fn record_sealed_off(&mut self, id: &SubjectId, account: Account) {
        self.seen(id, None);
        self.vain.insert(id.clone(), account.clone());
        self.sealed_off.insert(id.clone(), account);
    }

    /// Asked for, and it did not come, or is of no use.
    pub fn in_vain(&mut self, id: &SubjectId, account: Account) {
        self.vain.insert(id.clone(), account);
    }

    pub fn site(&self, id: &SubjectId) -> Option<&Account> {
        let page = &self.pages[usize::from(page_of(id))];
        page.seen.get(id).map_or_else(|| page.said.get(id), Option::as_ref)
    }

    /// Records and pages that do not open.
    pub fn sealed_off_count(&self) -> usize {
        self.sealed_off.len() + self.pages.iter().filter(|it| it.sealed_off).count()
    }

    /// Nothing of what the site has opens here: the key is another site's, or an older one.
    pub fn is_strange(&self) -> bool {
        self.opened == 0 && self.sealed_off_count() > 0
    }

    /// What the site has and we do not.
    pub fn needs(&self) -> Vec<(SubjectId, Account)> {
        let newer = |(id, theirs): &(&SubjectId, &Account)| {
            self.ours(id).is_none_or(|ours| theirs.is_newer_than(ours))
                && self.site(id) == Some(theirs)
                && self.vain.get(*id).is_none_or(|vain| theirs.is_newer_than(vain))
        };
        let all = self.pages.iter().flat_map(|page| {
            let seen = page.seen.iter().filter_map(|(id, it)| it.as_ref().map(|it| (id, it)));
            page.said.iter().filter(|(id, _)| !page.seen.contains_key(*id)).chain(seen)
        });
        all.filter(newer).map(|(id, account)| (id.clone(), account.clone())).collect()
    }

    /// What we have on this page and the site does not.
    pub fn lacks(&self, page: u8) -> Vec<SubjectId> {
        if self.pages[usize::from(page)].sealed_off {
            return Vec::new();
        }
        let is_lacking = |(id, ours): &(&SubjectId, &Account)| {
            !self.sealed_off.contains_key(*id)
                && self.site(id).is_none_or(|theirs| ours.is_newer_than(theirs))
        };
        self.ours[usize::from(page)].iter().filter(is_lacking).map(|(id, _)| id.clone()).collect()
    }

    /// Whether the broker's record gives way to ours.
    pub fn may_publish(&self, id: &SubjectId, ours: &Account, debt: Debt) -> bool {
        if let Some(theirs) = self.sealed_off.get(id) {
            // Never only because we cannot read it: but somebody changed it here, knowing it or not.
            return debt == Debt::Changed && ours.is_newer_than(theirs);
        }
        self.site(id).is_none_or(|theirs| ours.is_newer_than(theirs))
    }

    /// What the page should say, if it says something else.
    pub fn correction(&self, page: u8) -> Option<Entries> {
        let Page { said, seen, sealed_off } = &self.pages[usize::from(page)];
        if *sealed_off || seen.is_empty() {
            return None;
        }
        let mut entries = said.clone();
        for (id, account) in seen {
            match account {
                Some(account) => entries.insert(id.clone(), account.clone()),
                None => entries.remove(id),
            };
        }
        let same = |a: &Account, b: &Account| a.version == b.version && a.withdrawn == b.withdrawn;
        let unchanged = entries.len() == said.len()
            && entries.iter().zip(said).all(|(a, b)| a.0 == b.0 && same(a.1, b.1));
        (!unchanged).then_some(entries)
    }

    /// Whether there is anything to be put right on the page.
    pub fn differs(&self, page: u8) -> bool {
        self.correction(page).is_some() || !self.lacks(page).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::portable::Version;

    fn id(text: &str) -> SubjectId {
        SubjectId::new(text).unwrap()
    }

    fn account(changes: u32) -> Account {
        let version = Version { withdrawals: 0, changes, device: "door-1".into() };
        Account { version, withdrawn: false, erased: false }
    }

    fn book(changes: u32) -> Book {
        Book::new(vec![Known { subject_id: id("jane"), account: account(changes) }])
    }

    fn page() -> u8 {
        page_of(&id("jane"))
    }

    fn says(changes: u32) -> Entries {
        Entries::from([(id("jane"), account(changes))])
    }

    #[test]
    fn what_the_site_has_newer_is_needed_and_what_it_has_older_is_lacking() {
        let mut book = book(3);
        assert_eq!(book.lacks(page()), [id("jane")]);
        book.said(page(), says(3));
        assert!(book.needs().is_empty() && book.lacks(page()).is_empty() && !book.differs(page()));
        book.said(page(), says(2));
        assert_eq!(book.lacks(page()), [id("jane")]);
        assert!(book.may_publish(&id("jane"), &account(3), Debt::Missing));
        book.said(page(), says(4));
        assert_eq!(book.needs(), [(id("jane"), account(4))]);
        assert!(!book.may_publish(&id("jane"), &account(3), Debt::Changed));
        book.in_vain(&id("jane"), account(4));
        assert!(book.needs().is_empty(), "asked for once");
    }

    #[test]
    fn a_record_stands_for_itself_and_the_page_follows_it() {
        let mut book = book(3);
        book.said(page(), says(2));
        book.seen(&id("jane"), Some(account(3)));
        assert!(book.lacks(page()).is_empty());
        assert_eq!(book.correction(page()), Some(says(3)));
        book.said(page(), says(3));
        assert_eq!(book.correction(page()), None);
        book.seen(&id("jane"), None);
        assert_eq!(book.correction(page()), Some(Entries::new()));
        assert_eq!(book.lacks(page()), [id("jane")]);
    }

    #[test]
    fn what_does_not_open_is_left_alone() {
        let mut book = book(3);
        book.record_sealed_off(&id("jane"), account(2));
        assert!(book.is_strange() && book.lacks(page()).is_empty());
        assert!(!book.may_publish(&id("jane"), &account(3), Debt::Missing));
        assert!(book.may_publish(&id("jane"), &account(3), Debt::Changed));
        book.page_sealed_off(page());
        assert_eq!((book.correction(page()), book.sealed_off_count()), (None, 2));
        book.forget_site();
        assert_eq!(book.lacks(page()), [id("jane")]);
    }
}
