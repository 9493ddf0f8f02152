//! The gallery that the doors of a site share: told to the site when it changes here, taken over when it changes there.
//!
//! Over MQTT each subject is a retained message, sealed with the site's key, on a topic of its own: a change is one
//! message, and every door has it at once. A door that comes anew would have them all by subscribing, were there not
//! brokers that let go of what does not fit into a queue (mosquitto of everything after the first thousand, by default).
//! So the site keeps an index besides, in 256 retained pages that say which account of whom there is. A door reads the
//! index when it connects, asks for what it lacks one by one, and tells the site what that lacks: after an outage of
//! either side, and with a broker that lost what it kept, all end with the same.
//!
//! Where a site has no liking for that, MongoDB keeps the same records (`collection`); the rest of this is about MQTT.
//!
//! A connection of its own carries this, so that commands never wait for a gallery.
//!
//! Invariants: what is taken over was sealed with the site's key and is newer than what is here; the site's record is
//! only written over by a newer account. What does not open is counted, told, and left alone. Nothing is published before
//! the site was heard.

mod book;
mod collection;
mod keeper;
mod sink;
mod takeover;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use collection::{CollectionKeeper, CollectionSink, Shelf};
pub use keeper::Keeper;
pub use sink::GallerySink;
pub use wire::BYTES_MAX;

use crate::app::fleet::book::Book;
use crate::app::fleet::wire::{PAGES, page_of};
use crate::health::{Health, Sharing, SharingState};
use crate::recognise::face::SubjectId;
use crate::record::seal::SharedKey;
use crate::record::store::Known;

/// After a change of ours the page follows so soon: long enough to be one message for many changes.
const AUTHOR_PAUSE: Duration = Duration::from_secs(1);

/// What keeper and sink share.
pub struct Fleet {
    pub key: Arc<SharedKey>,
    pub site: String,
    desk: Mutex<Desk>,
    /// The sink tells the keeper that a page is due.
    nudge: Notify,
    /// Whether the site was heard, so that we may speak.
    ready: watch::Sender<bool>,
}

/// How far this door is with the site's gallery, whichever way that is shared.
struct Stand {
    reached: bool,
    /// Nothing of the site's opens with our key.
    strange: bool,
    ready: bool,
    behind: u64,
    refused: u64,
}

impl Stand {
    /// For the vital signs; a change is told at once.
    fn tell(self, health: &Health, changed: &Notify) {
        let Self { behind, refused, .. } = self;
        let state = if !self.reached {
            SharingState::Away
        } else if self.strange {
            SharingState::WrongKey
        } else if behind > 0 || !self.ready {
            SharingState::Learning
        } else {
            SharingState::Shared
        };
        let before = health.set_sharing(Sharing { state, behind, refused });
        if before.is_none_or(|before| before.state != state) {
            if state == SharingState::WrongKey {
                tracing::error!(
                    "the site's gallery does not open with this key: nothing is learnt, and nothing is told"
                );
            }
            changed.notify_one();
        }
    }
}

struct Desk {
    book: Book,
    /// When each page is to be looked at.
    due: Vec<Option<Instant>>,
}

impl Fleet {
    pub fn new(key: Arc<SharedKey>, site: &str, known: Vec<Known>) -> Self {
        let desk = Desk { book: Book::new(known), due: vec![None; PAGES] };
        let ready = watch::Sender::new(false);
        Self { key, site: site.to_owned(), desk: Mutex::new(desk), nudge: Notify::new(), ready }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// The subject's page is looked at after this time, or sooner if it is due sooner.
    fn touch(&mut self, id: &SubjectId, pause: Duration) {
        self.touch_page(page_of(id), pause);
    }

    fn touch_page(&mut self, page: u8, pause: Duration) {
        let (due, at) = (&mut self.due[usize::from(page)], Instant::now() + pause);
        *due = Some(due.map_or(at, |due| due.min(at)));
    }
}
