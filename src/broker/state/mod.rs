//! The embedded broker without its sockets: what it keeps, and what it does with the bytes of its
//! clients.
//!
//! The server opens a connection for each socket, gives it the bytes that arrive (`feed`), writes
//! what `output` returns, wakes the connections of `take_woken`, and calls `tick` now and then. All
//! times are the server's, measured from any fixed moment.
//!
//! Invariants: no input panics; memory is bounded by `Limits`; a client that is too slow or sends
//! nonsense loses its own messages or its connection. A session has at most one connection.
//!
//! `connect` takes and ends sessions, `requests` does what clients ask for, `deliver` distributes
//! messages. Not here: sockets, WebSocket, the process.

mod connect;
mod deliver;
mod requests;
mod retained;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::limits::Limits;
use crate::broker::packet::framing::{Assembler, Frame};
use crate::broker::packet::{AckKind, Message, Reason, Will, read, write};
use crate::broker::state::retained::Retained;
use crate::broker::state::session::{Next, Receiver, Session};

/// A chunk for a socket ends above this many bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// A larger payload is written from where it lies instead of being copied into a chunk.
const COPIED_BYTES_MAX: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// Bytes for a socket: `head`, then the payload of the message.
#[derive(Debug, Default)]
pub struct Chunk {
    pub head: Vec<u8>,
    pub message: Option<Arc<Message>>,
}

impl Chunk {
    pub fn payload(&self) -> &[u8] {
        self.message.as_ref().map_or(&[], |message| message.payload())
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.message.is_none()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// Nothing more is read until the replies are written.
    Paused,
    /// What `output` still returns is written, then the socket is closed.
    Closing,
}

/// What was lost or refused since the start, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that did not fit into the queue of a client.
    pub messages_lost: u64,
    /// Retained messages for which there was no room.
    pub not_retained: u64,
    /// Connections beyond the limit.
    pub connections_refused: u64,
    /// Wrong users or passwords.
    pub logins_refused: u64,
    /// Connections that broke a rule of the protocol or exceeded a limit.
    pub connections_failed: u64,
    /// Sessions that had to make room for a new one.
    pub sessions_lost: u64,
}

struct Connection {
    opened_at: Duration,
    heard_at: Duration,
    packet_began_at: Option<Duration>,
    assembler: Assembler,
    /// Replies, encoded.
    replies: Vec<u8>,
    /// `None` before CONNECT, and from the end of the connection on.
    client: Option<Client>,
    is_closing: bool,
}

/// The client of a connection, by its CONNECT.
struct Client {
    id: String,
    receiver: Receiver,
    keep_alive: Option<Duration>,
    will: Option<Will>,
}

pub struct BrokerState {
    limits: Limits,
    credentials: Option<(String, String)>,
    connections: BTreeMap<ConnectionId, Connection>,
    sessions: BTreeMap<String, Session>,
    retained: Retained,
    /// Last wills that are to be published now.
    due_wills: Vec<Message>,
    woken: BTreeSet<ConnectionId>,
    last_connection: u64,
    counters: Counters,
}

impl BrokerState {
    pub fn new(limits: Limits, credentials: Option<(String, String)>) -> Self {
        Self {
            limits,
            credentials,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            retained: Retained::default(),
            due_wills: Vec::new(),
            woken: BTreeSet::new(),
            last_connection: 0,
            counters: Counters::default(),
        }
    }

    /// A new connection. `None`: there are too many.
    pub fn open(&mut self, now: Duration) -> Option<ConnectionId> {
        if self.connections.len() >= self.limits.connections_max {
            self.counters.connections_refused += 1;
            return None;
        }
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        let connection = Connection {
            opened_at: now,
            heard_at: now,
            packet_began_at: None,
            assembler: Assembler::default(),
            replies: Vec::new(),
            client: None,
            is_closing: false,
        };
        self.connections.insert(id, connection);
        Some(id)
    }

    /// Takes bytes that arrived on a connection.
    pub fn feed(&mut self, id: ConnectionId, mut bytes: &[u8], now: Duration) {
        while !bytes.is_empty() {
            match self.next_frame(id, &mut bytes, now) {
                Ok(Some(frame)) => {
                    if let Err(reason) = self.handle(id, frame, now) {
                        self.fail(id, reason, now);
                    }
                }
                Ok(None) => break,
                Err(reason) => self.fail(id, reason, now),
            }
            self.settle(now);
        }
        self.bound_inbound(now);
        self.settle(now);
    }

    /// While the incomplete packets hold too much together, the connection whose packet has taken
    /// the longest ends: what stalls gives way to what flows.
    fn bound_inbound(&mut self, now: Duration) {
        let held = |state: &Self| -> usize {
            state.connections.values().map(|it| it.assembler.bytes()).sum()
        };
        while held(self) > self.limits.inbound_bytes_max {
            let holding = self.connections.iter().filter(|it| it.1.assembler.bytes() > 0);
            let Some((&id, _)) = holding.min_by_key(|it| it.1.packet_began_at) else {
                return;
            };
            self.fail(id, Reason::QuotaExceeded, now);
        }
    }

    /// Returns the next complete packet; `None` when the bytes are used up, or nobody wants them.
    fn next_frame(
        &mut self,
        id: ConnectionId,
        bytes: &mut &[u8],
        now: Duration,
    ) -> Result<Option<Frame>, Reason> {
        let Some(connection) = self.connections.get_mut(&id).filter(|it| !it.is_closing) else {
            return Ok(None);
        };
        connection.heard_at = now;
        let is_connected = connection.client.is_some();
        let limits = &self.limits;
        let frame = connection.assembler.next(bytes, |first| match first >> 4 {
            read::CONNECT if !is_connected => Ok(limits.packet_bytes_max),
            _ if !is_connected => Err(Reason::ProtocolError),
            read::PUBLISH => Ok(limits.publish_bytes_max),
            _ => Ok(limits.packet_bytes_max),
        })?;
        connection.packet_began_at = if connection.assembler.is_partial() {
            connection.packet_began_at.or(Some(now))
        } else {
            None
        };
        Ok(frame)
    }

    fn handle(&mut self, id: ConnectionId, frame: Frame, now: Duration) -> Result<(), Reason> {
        let connection = self.connections.get(&id).ok_or(Reason::ProtocolError)?;
        let Some(client) = &connection.client else {
            self.connect(id, &frame, now);
            return Ok(());
        };
        let request = read::request(frame, client.receiver.version)?;
        self.carry_out(id, request, now)
    }

    /// Returns what is to be written next.
    pub fn output(&mut self, id: ConnectionId, now: Duration) -> Chunk {
        let mut chunk = Chunk::default();
        let Some(connection) = self.connections.get_mut(&id) else {
            return chunk;
        };
        chunk.head = std::mem::take(&mut connection.replies);
        let Some(client) = connection.client.as_ref().filter(|_| !connection.is_closing) else {
            return chunk;
        };
        let Some(session) = self.sessions.get_mut(&client.id) else {
            return chunk;
        };
        let receiver = &client.receiver;
        session.writing_bytes = 0;
        while chunk.head.len() < CHUNK_BYTES && chunk.message.is_none() {
            match session.next(receiver, self.limits.window_bytes_max, now) {
                Some(Next::Release { packet_id }) => {
                    let kind = AckKind::PubRel;
                    let success = Reason::Success;
                    write::ack(&mut chunk.head, receiver.version, kind, packet_id, success);
                }
                Some(Next::Publish { delivery, packet_id, is_repeated }) => {
                    let outgoing = receiver.outgoing(&delivery, packet_id, is_repeated, now);
                    outgoing.head(&mut chunk.head);
                    let payload = delivery.message.payload();
                    if payload.len() <= COPIED_BYTES_MAX {
                        chunk.head.extend_from_slice(payload);
                        continue;
                    }
                    if packet_id == 0 {
                        session.writing_bytes = delivery.message.bytes();
                    }
                    chunk.message = Some(delivery.message);
                }
                None => break,
            }
        }
        chunk
    }

    pub fn flow(&self, id: ConnectionId) -> Flow {
        match self.connections.get(&id) {
            Some(it) if it.is_closing => Flow::Closing,
            Some(it) if it.replies.len() > self.limits.replies_bytes_max => Flow::Paused,
            Some(_) => Flow::Open,
            None => Flow::Closing,
        }
    }

    /// The connection's socket is closed.
    pub fn closed(&mut self, id: ConnectionId, now: Duration) {
        self.detach(id, true, now);
        self.connections.remove(&id);
        self.settle(now);
    }

    /// Ends what has exceeded its time, and publishes last wills that are due.
    pub fn tick(&mut self, now: Duration) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            let connection = self.connections.get(&id).filter(|it| !it.is_closing);
            if let Some(reason) = connection.and_then(|it| it.overdue(&self.limits, now)) {
                self.fail(id, reason, now);
            }
        }
        self.end_expired_sessions(now);
        self.retained.remove_expired(now);
        self.settle(now);
    }

    /// The connections for which there is something new: output, or their end.
    pub fn take_woken(&mut self) -> BTreeSet<ConnectionId> {
        std::mem::take(&mut self.woken)
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Ends a connection for a fault of its client.
    fn fail(&mut self, id: ConnectionId, reason: Reason, now: Duration) {
        self.counters.connections_failed += 1;
        self.end(id, reason, now);
    }

    /// Ends a connection from this side. Its last will is published.
    fn end(&mut self, id: ConnectionId, reason: Reason, now: Duration) {
        if let Some(connection) = self.connections.get_mut(&id).filter(|it| !it.is_closing) {
            if let Some(client) = &connection.client {
                write::disconnect(&mut connection.replies, client.receiver.version, reason);
            }
            connection.close();
            self.woken.insert(id);
            self.detach(id, true, now);
        }
    }
}

impl Connection {
    /// Nothing more is read; what it has read of a packet is dropped.
    fn close(&mut self) {
        self.is_closing = true;
        self.assembler = Assembler::default();
    }

    /// Why its time is up.
    fn overdue(&self, limits: &Limits, now: Duration) -> Option<Reason> {
        let is_stalled =
            self.packet_began_at.is_some_and(|began_at| now >= began_at + limits.packet_timeout);
        let is_late = match &self.client {
            None => now >= self.opened_at + limits.connect_timeout,
            // One and a half times what it promised (section 3.1.2.10).
            Some(client) => client.keep_alive.is_some_and(|it| now >= self.heard_at + it * 3 / 2),
        };
        (is_stalled || is_late).then_some(Reason::KeepAliveTimeout)
    }
}
