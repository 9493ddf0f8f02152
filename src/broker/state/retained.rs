//! The retained messages, by topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::limits::Limits;
use crate::broker::packet::Message;

#[derive(Default)]
pub(super) struct Retained {
    messages: BTreeMap<String, Arc<Message>>,
    bytes: usize,
}

impl Retained {
    /// Replaces what is retained for the message's topic; an empty payload deletes it. Returns
    /// whether there was room. If not, the former message is gone too, because it is no longer
    /// true.
    pub(super) fn put(&mut self, message: &Arc<Message>, limits: &Limits) -> bool {
        self.remove(&message.topic);
        if message.payload().is_empty() {
            return true;
        }
        let has_room = self.messages.len() < limits.retained_max
            && self.bytes + message.bytes() <= limits.retained_bytes_max;
        if has_room {
            self.bytes += message.bytes();
            self.messages.insert(message.topic.clone(), Arc::clone(message));
        }
        has_room
    }

    fn remove(&mut self, topic: &str) {
        if let Some(message) = self.messages.remove(topic) {
            self.bytes -= message.bytes();
        }
    }

    pub(super) fn remove_expired(&mut self, now: Duration) {
        let bytes = &mut self.bytes;
        self.messages.retain(|_, message| {
            let stays = !message.has_expired(now);
            *bytes -= if stays { 0 } else { message.bytes() };
            stays
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.messages.values()
    }

    #[cfg(test)]
    pub(super) fn counted(&self) -> (usize, usize) {
        let bytes: usize = self.messages.values().map(|it| it.bytes()).sum();
        assert_eq!(self.bytes, bytes);
        (self.messages.len(), bytes)
    }
}
