//! Who has which slot: subjects by id and by number, in pages and shards that snapshots share.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::subject::Subject;
use crate::ids::SubjectId;

/// Slots in a page, and shards of the ids: at 100,000 subjects either copy is of some 400 entries,
/// a few microseconds.
const PAGE: usize = 256;
const SHARDS: usize = 256;

#[derive(Clone, Default)]
pub(super) struct SlotTable {
    pages: Vec<Arc<Vec<Option<SlotEntry>>>>,
    /// Empty until the first subject; then `SHARDS` of them.
    shards: Vec<Arc<HashMap<SubjectId, u32>>>,
    /// Slots of subjects who were withdrawn, for those who come.
    free: Vec<u32>,
    /// Slots ever given.
    slots: u32,
}

#[derive(Clone)]
struct SlotEntry {
    subject: Arc<Subject>,
    references: usize,
}

impl SlotTable {
    pub(super) fn len(&self) -> usize {
        self.slots as usize - self.free.len()
    }

    pub(super) fn slot(&self, id: &SubjectId) -> Option<u32> {
        self.shards.get(shard_of(id))?.get(id).copied()
    }

    pub(super) fn subject(&self, slot: u32) -> Option<&Arc<Subject>> {
        Some(&self.entry(slot)?.subject)
    }

    pub(super) fn references(&self, slot: u32) -> usize {
        self.entry(slot).map_or(0, |entry| entry.references)
    }

    fn entry(&self, slot: u32) -> Option<&SlotEntry> {
        self.pages.get(slot as usize / PAGE)?[slot as usize % PAGE].as_ref()
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Option<SlotEntry> {
        let page = &mut self.pages[slot as usize / PAGE];
        &mut Arc::make_mut(page)[slot as usize % PAGE]
    }

    /// Gives the subject a slot, or a new name to the slot that it has.
    pub(super) fn put(&mut self, subject: Subject) -> u32 {
        if let Some(slot) = self.slot(&subject.id) {
            if let Some(entry) = self.entry_mut(slot) {
                entry.subject = Arc::new(subject);
            }
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            if (self.slots as usize).is_multiple_of(PAGE) {
                self.pages.push(Arc::new(vec![None; PAGE]));
            }
            self.slots += 1;
            self.slots - 1
        });
        self.shards.resize_with(SHARDS, Arc::default);
        Arc::make_mut(&mut self.shards[shard_of(&subject.id)]).insert(subject.id.clone(), slot);
        *self.entry_mut(slot) = Some(SlotEntry { subject: Arc::new(subject), references: 0 });
        slot
    }

    pub(super) fn count(&mut self, slot: u32, more: usize) {
        if let Some(entry) = self.entry_mut(slot) {
            entry.references += more;
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        if let Some(entry) = self.entry_mut(slot).take() {
            let id = &entry.subject.id;
            Arc::make_mut(&mut self.shards[shard_of(id)]).remove(id);
            self.free.push(slot);
        }
    }
}

fn shard_of(id: &SubjectId) -> usize {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish() as usize % SHARDS
}
