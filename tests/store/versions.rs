//! Versions of subjects: which record is newer, what is pending for the site, and what an erasure
//! removes.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::sync::Arc;

use rollcall::clock::SimulatedClock;
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::face::{Embedder, ModelDigest, Template};
use rollcall::store::{
    AcceptOutcome, NewReference, PublishReason, SinkName, Store, StoreOptions, subject_of_topic,
};
use rollcall::wire::subject::{Portable, State};

struct Device {
    store: Store,
    _dir: tempfile::TempDir,
}

fn jane() -> SubjectId {
    SubjectId::new("jane").unwrap()
}

fn template(number: usize) -> Template {
    let raw = (0..512).map(|at| ((at * 31 + number * 7919) as f32).sin()).collect();
    Template::normalised(raw).unwrap()
}

impl Device {
    fn open(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options =
            StoreOptions::new(Vec::new(), Arc::new(SimulatedClock::at(1_795_420_683_412)));
        options.device = name.into();
        options.shared = true;
        Self { store: Store::open(dir.path(), options).unwrap().store, _dir: dir }
    }

    fn enrol(&self, name: &str, number: usize) {
        let reference = NewReference {
            subject_id: jane(),
            embedder: Embedder::single(ModelDigest([7; 32]), 4),
            template: template(number),
            quality: 0.5,
        };
        let name = Name::new(name).unwrap();
        let write = move |tx: &mut rollcall::store::Tx<'_>| {
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

    fn accept(&self, portable: &Portable) -> AcceptOutcome {
        let portable = portable.clone();
        self.store.write(move |tx| tx.accept_portable(&portable)).unwrap()
    }

    fn receive_from(&self, other: &Self) -> AcceptOutcome {
        self.accept(&other.portable())
    }

    /// Returns the pending rows: subject and reason.
    fn pending(&self) -> Vec<(SubjectId, PublishReason)> {
        let rows = self.store.write(|tx| tx.outbox_batch(SinkName::GALLERY, 0, 100)).unwrap();
        let row = |(topic, payload): (&str, &[u8])| {
            (subject_of_topic(topic).unwrap(), PublishReason::parse(payload))
        };
        rows.iter().map(|it| row(it.message().unwrap())).collect()
    }
}

#[test]
fn newer_subject_version_is_accepted_once() {
    let a = Device::open("a");
    let b = Device::open("b");
    a.enrol("Jane", 1);
    a.enrol("Jane Doe", 2);
    assert_eq!(b.receive_from(&a), AcceptOutcome::Accepted);
    assert_eq!(b.portable(), a.portable());
    assert_eq!(
        (b.receive_from(&a), a.receive_from(&b)),
        (AcceptOutcome::Same, AcceptOutcome::Same)
    );
    assert_eq!(
        a.pending(),
        [(jane(), PublishReason::Changed)],
        "one row, however often she was changed"
    );
    assert_eq!(b.pending(), [], "what came from the site is not pending");
    b.enrol("Jane Doe", 3);
    assert_eq!(
        (b.receive_from(&a), a.receive_from(&b)),
        (AcceptOutcome::Older, AcceptOutcome::Accepted)
    );
    assert_eq!(a.pending(), [], "outdated");
    assert_eq!(a.portable(), b.portable());
}

#[test]
fn withdrawal_outranks_the_highest_version() {
    let a = Device::open("a");
    let b = Device::open("b");
    a.enrol("Jane", 1);
    let mut highest = a.portable();
    highest.version.withdrawals = u32::MAX;
    highest.version.changes = u32::MAX;
    for device in [&a, &b] {
        device.accept(&highest);
    }
    a.withdraw(true);
    assert_eq!(a.accept(&highest), AcceptOutcome::Older);
    assert_eq!(b.receive_from(&a), AcceptOutcome::Accepted);
    assert!(matches!(b.portable().state, State::Withdrawn { erased: true, .. }));
}

#[test]
fn erasure_of_a_subject_known_elsewhere_reaches_the_site() {
    let a = Device::open("a");
    let b = Device::open("b");
    a.enrol("Jane", 1);
    // Device b has only events of her.
    b.withdraw(true);
    assert_eq!(b.pending(), [(jane(), PublishReason::Changed)]);
    assert_eq!(b.receive_from(&a), AcceptOutcome::Older);
    assert_eq!(a.receive_from(&b), AcceptOutcome::Accepted);
    assert!(a.store.write(|tx| tx.subject(&jane())).unwrap().is_none());
}

#[test]
fn withdrawal_outranks_concurrent_changes() {
    let a = Device::open("a");
    let b = Device::open("b");
    a.enrol("Jane", 1);
    b.receive_from(&a);
    a.withdraw(false);
    (0..5).for_each(|number| b.enrol("Jane", number));
    assert_eq!(
        (a.receive_from(&b), b.receive_from(&a)),
        (AcceptOutcome::Older, AcceptOutcome::Accepted)
    );
    assert!(b.store.write(|tx| tx.subject(&jane())).unwrap().is_none());
    // Enrolled anew, she counts on from it.
    b.enrol("Jane", 9);
    assert_eq!(a.receive_from(&b), AcceptOutcome::Accepted);
    assert_eq!(a.portable(), b.portable());
    // An erasure at one door and a withdrawal at another at the same time: erased.
    a.withdraw(false);
    b.withdraw(true);
    assert_eq!(
        (a.receive_from(&b), b.receive_from(&a)),
        (AcceptOutcome::Accepted, AcceptOutcome::Same)
    );
    assert_eq!(a.portable(), b.portable());
}

#[test]
fn concurrent_changes_converge() {
    let a = Device::open("a");
    let b = Device::open("b");
    a.enrol("Jane", 1);
    b.enrol("Janet", 2);
    let of_a = a.portable();
    let of_b = b.portable();
    assert_eq!((a.accept(&of_b), b.accept(&of_a)), (AcceptOutcome::Accepted, AcceptOutcome::Older));
    assert_eq!(a.portable(), b.portable());
    a.store.write(|tx| tx.queue_for_gallery(&jane(), PublishReason::Missing)).unwrap();
    assert_eq!(a.pending(), [(jane(), PublishReason::Missing)]);
    a.enrol("Jane", 3);
    a.store.write(|tx| tx.queue_for_gallery(&jane(), PublishReason::Missing)).unwrap();
    assert_eq!(a.pending(), [(jane(), PublishReason::Changed)]);
}

#[test]
fn record_holds_the_newest_references_only() {
    let device = Device::open("a");
    (0..70).for_each(|number| device.enrol("Jane", number));
    let State::Enrolled { references, .. } = device.portable().state else {
        panic!("she is enrolled")
    };
    let newest = (6..70).map(template).collect::<Vec<_>>();
    assert_eq!(references.len(), newest.len());
    for (reference, expected) in references.iter().zip(&newest) {
        assert!(reference.template.compare(expected) > 0.999);
    }
}
