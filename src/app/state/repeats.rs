//! Visits that were not recorded because they are in the record already, for those who watch the
//! door at this moment. Nothing of it is stored or published.
//!
//! A full feed drops the oldest: whoever is that late shows nothing of it.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::attend::Direction;
use crate::wire::event::SubjectRef;

pub type RepeatFeed = broadcast::Sender<Arc<RepeatedVisit>>;

/// Visits that a client may be behind. A guess: one client takes them at once.
const HELD_MAX: usize = 16;

pub fn new_feed() -> RepeatFeed {
    broadcast::channel(HELD_MAX).0
}

/// Somebody was recognised at the door and is in the record already; as JSON in the page's event
/// stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RepeatedVisit {
    pub occurred_at: String,
    /// The face's track, as in the preview.
    pub track: u64,
    pub venue: String,
    pub subject: SubjectRef,
    /// Of the attendance by which the visit is recorded.
    pub direction: Direction,
    pub session: Option<String>,
    /// When that was; `None` while its time is not known.
    pub recorded_at: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, SubjectId};

    #[test]
    fn message_is_as_documented() {
        let visit = RepeatedVisit {
            occurred_at: "2026-11-23T09:12:00.000Z".into(),
            track: 7,
            venue: "room-a".into(),
            subject: SubjectRef {
                id: SubjectId::new("jdoe").unwrap(),
                name: Name::new("Jane Doe").unwrap(),
            },
            direction: Direction::In,
            session: None,
            recorded_at: Some("2026-11-23T09:08:00.000Z".into()),
        };
        assert_eq!(
            serde_json::to_string(&visit).unwrap(),
            r#"{"occurred_at":"2026-11-23T09:12:00.000Z","track":7,"venue":"room-a","subject":{"id":"jdoe","name":"Jane Doe"},"direction":"in","session":null,"recorded_at":"2026-11-23T09:08:00.000Z"}"#
        );
    }
}
