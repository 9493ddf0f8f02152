//! The counts of database rows that were read last, for metrics, which never read the store.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::DeliveryStatus;

/// Written by stages that read the counts anyway: delivery every three seconds, people with each
/// health message.
#[derive(Default)]
pub struct LatestCounts(Mutex<RowCounts>);

#[derive(Clone, Default)]
pub struct RowCounts {
    pub status: Option<DeliveryStatus>,
    pub outdated: Option<u64>,
    pub partial: Option<u64>,
    pub erasures_pending: Option<u64>,
    pub consents_ending: Option<u64>,
}

/// Counts of subjects.
#[derive(Clone, Copy, Debug)]
pub struct PeopleCounts {
    /// Subjects without a reference of the embedder in use.
    pub outdated: u64,
    /// Subjects whose references all lack the second part of the embedder in use.
    pub partial: u64,
    pub erasures_pending: u64,
    /// Consents that end within 30 days.
    pub consents_ending: u64,
}

impl LatestCounts {
    pub fn set_delivery_status(&self, status: &DeliveryStatus) {
        self.lock().status = Some(status.clone());
    }

    pub fn set_people(&self, people: PeopleCounts) {
        let mut counts = self.lock();
        counts.outdated = Some(people.outdated);
        counts.partial = Some(people.partial);
        counts.erasures_pending = Some(people.erasures_pending);
        counts.consents_ending = Some(people.consents_ending);
    }

    pub fn get(&self) -> RowCounts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, RowCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
