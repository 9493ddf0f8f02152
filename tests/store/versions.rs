//! Subjects as other doors know them: which account counts, what the site is owed, and what an erasure takes along.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::sync::Arc;

use rollcall::clock::SimulatedClock;
use rollcall::recognise::face::{ModelDigest, Name, SubjectId, Template};
use rollcall::record::portable::Portable;
use rollcall::record::store::{
    Debt, NewReference, Outcome, SinkName, Store, StoreOptions, subject_of,
};

struct Door {
    store: Store,
    _dir: tempfile::TempDir,
}

fn jane() -> SubjectId {
    SubjectId::new("jane").unwrap()
}

impl Door {
    fn open(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options =
            StoreOptions::new(Vec::new(), Arc::new(SimulatedClock::at(1_795_420_683_412)));
        options.device = name.into();
        options.shared = true;
        Self { store: Store::open(dir.path(), options).unwrap().store, _dir: dir }
    }

    fn enrol(&self, name: &str, number: usize) {
        let raw = (0..512).map(|at| ((at * 31 + number * 7919) as f32).sin()).collect();
        let template = Template::normalised(raw).unwrap();
        let reference = NewReference {
            subject_id: jane(),
            embedder: ModelDigest([7; 32]),
            template,
            quality: 0.5,
        };
        let name = Name::new(name).unwrap();
        let write = move |tx: &mut rollcall::record::store::Tx<'_>| {
            tx.put_subject(&jane(), &name)?;
            tx.add_references(std::slice::from_ref(&reference)).map(drop)
        };
        self.store.write(write).unwrap();
    }

    fn withdraw(&self, erase: bool) {
        self.store
            .write(move |tx| {
                if erase {
                    tx.erase_subject(&jane()).map(drop)
                } else {
                    tx.delete_subject(&jane()).map(drop)
                }
            })
            .unwrap();
    }

    fn portable(&self) -> Portable {
        self.store.write(|tx| tx.portable(&jane())).unwrap().unwrap()
    }

    fn accept(&self, portable: &Portable) -> Outcome {
        let portable = portable.clone();
        self.store.write(move |tx| tx.accept(&portable)).unwrap()
    }

    fn learn(&self, other: &Self) -> Outcome {
        self.accept(&other.portable())
    }

    /// What the site is owed: of whom, and why.
    fn owed(&self) -> Vec<(SubjectId, Debt)> {
        let rows = self.store.write(|tx| tx.outbox_batch(SinkName::GALLERY, 0, 100)).unwrap();
        let debt = |(topic, payload): (String, Vec<u8>)| {
            (subject_of(&topic).unwrap(), Debt::parse(&payload))
        };
        rows.into_iter().map(|row| debt(row.reply.unwrap())).collect()
    }
}

#[test]
fn an_account_travels_bit_by_bit_and_is_taken_once() {
    let (a, b) = (Door::open("a"), Door::open("b"));
    a.enrol("Jane", 1);
    a.enrol("Jane Doe", 2);
    assert_eq!(b.learn(&a), Outcome::Taken);
    assert_eq!(b.portable(), a.portable());
    assert_eq!((b.learn(&a), a.learn(&b)), (Outcome::Same, Outcome::Same));
    assert_eq!(a.owed(), [(jane(), Debt::Changed)], "one row, however often she was changed");
    assert_eq!(b.owed(), [], "what came from the site is not owed to it");
    b.enrol("Jane Doe", 3);
    assert_eq!((b.learn(&a), a.learn(&b)), (Outcome::Older, Outcome::Taken));
    assert_eq!(a.owed(), [], "overtaken");
    assert_eq!(a.portable(), b.portable());
}

#[test]
fn a_withdrawal_counts_for_more_than_any_change_that_had_not_heard_of_it() {
    let (a, b) = (Door::open("a"), Door::open("b"));
    a.enrol("Jane", 1);
    b.learn(&a);
    a.withdraw(false);
    (0..5).for_each(|number| b.enrol("Jane", number));
    assert_eq!((a.learn(&b), b.learn(&a)), (Outcome::Older, Outcome::Taken));
    assert!(b.store.write(|tx| tx.subject(&jane())).unwrap().is_none());
    // Enrolled anew, she counts on from it.
    b.enrol("Jane", 9);
    assert_eq!(a.learn(&b), Outcome::Taken);
    assert_eq!(a.portable(), b.portable());
    // An erasure at one door and a withdrawal at another at the same time: erased.
    a.withdraw(false);
    b.withdraw(true);
    assert_eq!((a.learn(&b), b.learn(&a)), (Outcome::Taken, Outcome::Same));
    assert_eq!(a.portable(), b.portable());
}

#[test]
fn two_doors_that_change_at_once_agree() {
    let (a, b) = (Door::open("a"), Door::open("b"));
    a.enrol("Jane", 1);
    b.enrol("Janet", 2);
    let (of_a, of_b) = (a.portable(), b.portable());
    assert_eq!((a.accept(&of_b), b.accept(&of_a)), (Outcome::Taken, Outcome::Older));
    assert_eq!(a.portable(), b.portable());
    a.store.write(|tx| tx.owe_gallery(&jane(), Debt::Missing)).unwrap();
    assert_eq!(a.owed(), [(jane(), Debt::Missing)]);
    a.enrol("Jane", 3);
    a.store.write(|tx| tx.owe_gallery(&jane(), Debt::Missing)).unwrap();
    assert_eq!(a.owed(), [(jane(), Debt::Changed)]);
}
