//! Which connections are served, which wait, and which are closed to make room.
//!
//! Invariants: a connection takes a place only once something has arrived on it, and keeps it until
//! somebody else needs it, unless its request arrives within a second: silent and slow connections
//! keep nobody out. One address holds at most half of the places. A few places more are for
//! `/healthz` and `/metrics` only, so that a device that is busy, or under attack, still reports
//! that. The number of connections that wait is bounded.
//!
//! Elsewhere: how long a request may take (`http::guard`), and the sockets (`http`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock::Stopwatch;

/// Connections that wait for a place. A guess: together with the usual 64 places well below the 1024
/// descriptors that a process usually may have.
const WAITING_MAX: usize = 256;
/// Places for `/healthz` and `/metrics`: a few scrapers at a time.
const LANE_PLACES: usize = 8;
/// A request that has begun to arrive keeps its place at least so long. A guess: more than a round
/// trip over a bad link.
const GRACE_MS: u64 = 1000;
/// Of the places, so many belong to one address even where there are few.
const PER_PEER_MIN: usize = 5;

/// The address of a client: an IPv4 address, or the network of an IPv6 address, of which one host
/// has as many as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(IpAddr);

impl Peer {
    pub fn new(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            // Everybody on the link has the same network there.
            IpAddr::V6(it) if !it.is_unicast_link_local() => {
                IpAddr::V6((it.to_bits() >> 64 << 64).into())
            }
            other => other,
        })
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns how many of `places` one address may hold.
pub const fn per_peer_max(places: usize) -> usize {
    if places / 2 < PER_PEER_MIN { PER_PEER_MIN } else { places / 2 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is read from the connection yet.
    Waiting,
    Served,
    /// Served in a place for `/healthz` and `/metrics`.
    InLane,
    /// To be closed at once.
    Closed,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    stage: watch::Sender<Stage>,
    /// Something has arrived.
    has_begun: bool,
    /// The whole head of a request has arrived.
    has_request: bool,
    wants_lane: bool,
    /// When it got its place.
    since_ms: u64,
}

impl Entry {
    fn is(&self, stage: Stage) -> bool {
        *self.stage.borrow() == stage
    }
}

/// The connections that are open, by age.
#[derive(Debug)]
struct Table {
    places: usize,
    next_id: u64,
    entries: BTreeMap<u64, Entry>,
}

pub struct Places {
    table: Mutex<Table>,
    started: Stopwatch,
}

impl Places {
    pub fn new(places: usize) -> Arc<Self> {
        let table = Table { places, next_id: 0, entries: BTreeMap::new() };
        Arc::new(Self { table: Mutex::new(table), started: Stopwatch::start() })
    }

    /// Takes in a new connection, which waits until something arrives.
    pub fn enter(self: &Arc<Self>, peer: Peer) -> Place {
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        let (sender, stage) = watch::channel(Stage::Waiting);
        let entry = Entry {
            peer,
            stage: sender,
            has_begun: false,
            has_request: false,
            wants_lane: false,
            since_ms: 0,
        };
        table.entries.insert(id, entry);
        if table.count(Stage::Waiting, None) > WAITING_MAX {
            let silent = |it: &Entry| it.is(Stage::Waiting) && !it.has_begun;
            if !table.close_one(silent) {
                table.close_one(|it| it.is(Stage::Waiting));
            }
        }
        drop(table);
        Place { id, places: Arc::clone(self), stage }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl Table {
    fn count(&self, stage: Stage, peer: Option<Peer>) -> usize {
        let of_peer = |it: &&Entry| peer.is_none_or(|peer| peer == it.peer);
        self.entries.values().filter(|it| it.is(stage)).filter(of_peer).count()
    }

    /// Gives a connection a place if there is one, or if one can be made.
    fn admit(&mut self, id: u64, now_ms: u64) {
        let entry = self.entries.get(&id).filter(|it| it.is(Stage::Waiting) && it.has_begun);
        let Some(wants_lane) = entry.map(|it| it.wants_lane) else {
            return;
        };
        if !self.admit_to(Stage::Served, id, now_ms) && wants_lane {
            self.admit_to(Stage::InLane, id, now_ms);
        }
    }

    fn admit_to(&mut self, stage: Stage, id: u64, now_ms: u64) -> bool {
        let Some(peer) = self.entries.get(&id).map(|it| it.peer) else {
            return false;
        };
        let (places, per_peer) = match stage {
            Stage::InLane => (LANE_PLACES, LANE_PLACES / 2),
            _ => (self.places, per_peer_max(self.places)),
        };
        let own = self.count(stage, Some(peer));
        let is_slow = |it: &Entry| {
            it.is(stage) && !it.has_request && now_ms.saturating_sub(it.since_ms) >= GRACE_MS
        };
        let is_free = if own >= per_peer {
            self.close_one(|it| is_slow(it) && it.peer == peer)
        } else if self.count(stage, None) >= places {
            self.close_one(is_slow)
        } else {
            true
        };
        if is_free && let Some(entry) = self.entries.get_mut(&id) {
            entry.since_ms = now_ms;
            entry.stage.send_replace(stage);
        }
        is_free
    }

    /// Closes a connection: of those that may be closed, the oldest of the address with the most.
    fn close_one(&mut self, may_close: impl Fn(&Entry) -> bool) -> bool {
        let mut counts = BTreeMap::<Peer, usize>::new();
        for entry in self.entries.values().filter(|it| may_close(it)) {
            *counts.entry(entry.peer).or_default() += 1;
        }
        let candidates = self.entries.iter().filter(|it| may_close(it.1));
        // Of several that are equal the last: the oldest.
        let chosen = candidates.rev().max_by_key(|it| counts.get(&it.1.peer)).map(|it| *it.0);
        let closed = chosen.and_then(|id| self.entries.remove(&id));
        closed.map(|it| it.stage.send_replace(Stage::Closed)).is_some()
    }

    /// Hands places that are free to those that wait, in their order.
    fn admit_waiting(&mut self, now_ms: u64) {
        let waiting = self.entries.iter().filter(|it| it.1.is(Stage::Waiting));
        let waiting: Vec<u64> = waiting.map(|it| *it.0).collect();
        for id in waiting {
            self.admit(id, now_ms);
        }
    }
}

/// A connection's place. Dropping it gives the place to the next.
pub struct Place {
    id: u64,
    places: Arc<Places>,
    stage: watch::Receiver<Stage>,
}

impl Place {
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Returns when the stage has changed.
    pub async fn changed(&mut self) {
        if self.stage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the connection is to be closed.
    pub async fn closed(&mut self) {
        while self.stage() != Stage::Closed {
            self.changed().await;
        }
    }

    /// Asks for a place, since something has arrived: `in_lane` if it is a request for `/healthz` or
    /// `/metrics`. To be repeated as long as there is none.
    pub fn ask(&self, in_lane: bool) {
        self.ask_at(in_lane, self.places.now_ms());
    }

    fn ask_at(&self, in_lane: bool, now_ms: u64) {
        let mut table = self.places.table();
        if let Some(entry) = table.entries.get_mut(&self.id) {
            entry.has_begun = true;
            entry.wants_lane = in_lane;
        }
        table.admit(self.id, now_ms);
    }

    /// Returns what keeps the place once the request has arrived.
    pub fn on_request(&self) -> impl Fn() + Clone + use<> {
        let (id, places) = (self.id, Arc::clone(&self.places));
        move || {
            if let Some(entry) = places.table().entries.get_mut(&id) {
                entry.has_request = true;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.places.table();
        table.entries.remove(&self.id);
        table.admit_waiting(self.places.now_ms());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: u8) -> Peer {
        Peer::new(IpAddr::from([192, 0, 2, host]))
    }

    fn enter(places: &Arc<Places>, host: u8, count: usize) -> Vec<Place> {
        (0..count).map(|_| places.enter(peer(host))).collect()
    }

    /// Connections on which a request begins to arrive.
    fn begin(places: &Arc<Places>, host: u8, count: usize, now_ms: u64) -> Vec<Place> {
        let entered = enter(places, host, count);
        for it in &entered {
            it.ask_at(false, now_ms);
        }
        entered
    }

    fn count(places: &[Place], stage: Stage) -> usize {
        places.iter().filter(|it| it.stage() == stage).count()
    }

    #[test]
    fn silent_connections_take_no_place() {
        let places = Places::new(10);
        let crowd: Vec<_> = (1..=4).flat_map(|host| enter(&places, host, 200)).collect();
        assert_eq!((count(&crowd, Stage::Served), count(&crowd, Stage::Waiting)), (0, WAITING_MAX));
        let honest = begin(&places, 99, 1, 0);
        assert_eq!(count(&honest, Stage::Served), 1);
        // The one with the fewest is not closed for the others.
        let quiet = enter(&places, 98, 1);
        let more: Vec<_> = (1..=4).flat_map(|host| enter(&places, host, 200)).collect();
        assert_eq!((count(&quiet, Stage::Waiting), count(&honest, Stage::Served)), (1, 1));
        assert_eq!(count(&crowd, Stage::Waiting) + count(&more, Stage::Waiting), WAITING_MAX - 1);
    }

    #[test]
    fn slow_requests_give_way_after_grace() {
        let places = Places::new(10);
        let slow: Vec<_> = (1..=2).flat_map(|host| begin(&places, host, 5, 0)).collect();
        assert_eq!(count(&slow, Stage::Served), 10);
        let honest = places.enter(peer(99));
        honest.ask_at(false, GRACE_MS - 1);
        assert_eq!(honest.stage(), Stage::Waiting, "they may still be on their way");
        honest.ask_at(false, GRACE_MS);
        assert_eq!((honest.stage(), count(&slow, Stage::Served)), (Stage::Served, 9));
        assert_eq!(slow[0].stage(), Stage::Closed, "the oldest");
        honest.on_request()();
        let more: Vec<_> =
            (3..=9).flat_map(|host| begin(&places, host, 5, 10 * GRACE_MS)).collect();
        assert_eq!((honest.stage(), count(&more, Stage::Served)), (Stage::Served, 9));
    }

    #[test]
    fn one_address_holds_half_of_places() {
        let places = Places::new(20);
        let mut busy = begin(&places, 1, 15, 0);
        for it in &busy {
            it.on_request()();
        }
        assert_eq!((count(&busy, Stage::Served), count(&busy, Stage::Waiting)), (10, 5));
        // Others are served; its own wait for their turn, however long.
        let other = begin(&places, 2, 10, 10 * GRACE_MS);
        assert_eq!(count(&other, Stage::Served), 10);
        for it in &busy {
            it.ask_at(false, 20 * GRACE_MS);
        }
        assert_eq!((count(&busy, Stage::Served), count(&busy, Stage::Waiting)), (10, 5));
        drop(busy.remove(0));
        assert_eq!((count(&busy, Stage::Served), count(&busy, Stage::Waiting)), (10, 4));
    }

    #[test]
    fn lane_is_reserved_and_shared() {
        let places = Places::new(10);
        let busy: Vec<_> = (1..=2).flat_map(|host| begin(&places, host, 5, 0)).collect();
        for it in &busy {
            it.on_request()();
        }
        let probe = places.enter(peer(1));
        probe.ask_at(false, 0);
        assert_eq!(probe.stage(), Stage::Waiting);
        probe.ask_at(true, 0);
        assert_eq!(probe.stage(), Stage::InLane);
        probe.on_request()();
        // Who begins such a request and does not finish it keeps nobody out.
        let stuck: Vec<_> = (3..=8).flat_map(|host| enter(&places, host, 3)).collect();
        for it in &stuck {
            it.ask_at(true, 0);
        }
        assert_eq!(count(&stuck, Stage::InLane), LANE_PLACES - 1);
        let next = places.enter(peer(9));
        next.ask_at(true, GRACE_MS);
        assert_eq!((probe.stage(), next.stage()), (Stage::InLane, Stage::InLane));
    }

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let of = |text: &str| Peer::new(text.parse().unwrap());
        for (one, other, same) in [
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:2", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("fe80::1", "fe80::2", false),
        ] {
            assert_eq!(of(one) == of(other), same, "{one} {other}");
        }
    }
}
