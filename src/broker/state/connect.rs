//! The beginning and the end of connections and sessions.

use std::time::Duration;

use subtle::ConstantTimeEq as _;

use crate::broker::packet::framing::Frame;
use crate::broker::packet::read::{self, ConnectError};
use crate::broker::packet::write::{self, Announced};
use crate::broker::packet::{Connect, Message, ProtocolVersion, Reason, Will};
use crate::broker::state::session::{Receiver, Session};
use crate::broker::state::{BrokerState, Client, ConnectionId};

/// A fixed header has at most this many bytes.
const FIXED_HEADER_BYTES: usize = 5;

impl BrokerState {
    /// Answers a CONNECT: the connection has a client afterwards, or ends.
    pub(super) fn connect(&mut self, id: ConnectionId, frame: &Frame, now: Duration) {
        let accepted = read::connect(frame).and_then(|connect| {
            let version = connect.version;
            self.check_connect(&connect).map_err(|reason| ConnectError { reason, version })?;
            Ok(connect)
        });
        match accepted {
            Ok(connect) => self.accept(id, connect, now),
            Err(ConnectError { reason, version }) => self.refuse(id, version, reason),
        }
    }

    fn check_connect(&self, connect: &Connect) -> Result<(), Reason> {
        if let Some((user, password)) = &self.credentials {
            let given_user = connect.user.as_deref().unwrap_or_default();
            let given_password = connect.password.as_deref().unwrap_or_default();
            // Both in constant time, and both always.
            let is_user = given_user.as_bytes().ct_eq(user.as_bytes());
            let is_password = given_password.ct_eq(password.as_bytes());
            if !bool::from(is_user & is_password) {
                return Err(Reason::BadCredentials);
            }
        }
        // A nameless session could not be found again.
        let is_nameless = connect.client_id.is_empty()
            && connect.version == ProtocolVersion::V311
            && !connect.clean_start;
        if is_nameless || connect.client_id.len() > self.limits.client_id_bytes_max {
            return Err(Reason::ClientIdInvalid);
        }
        Ok(())
    }

    fn refuse(&mut self, id: ConnectionId, version: ProtocolVersion, reason: Reason) {
        match reason {
            Reason::BadCredentials => self.counters.logins_refused += 1,
            _ => self.counters.connections_failed += 1,
        }
        let announced = self.announced(None);
        if let Some(connection) = self.connections.get_mut(&id) {
            write::connack(&mut connection.replies, version, false, reason, &announced);
        }
        self.close_quietly(id);
    }

    /// Ends a connection that has no client, or whose client has left.
    pub(super) fn close_quietly(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.close();
            self.woken.insert(id);
        }
    }

    fn announced<'a>(&self, assigned_client_id: Option<&'a str>) -> Announced<'a> {
        let packet_bytes = self.limits.publish_bytes_max + FIXED_HEADER_BYTES;
        Announced {
            assigned_client_id,
            receive_max: self.limits.received_max as u16,
            packet_bytes_max: packet_bytes.min(u32::MAX as usize) as u32,
        }
    }

    fn accept(&mut self, id: ConnectionId, mut connect: Connect, now: Duration) {
        let is_assigned = connect.client_id.is_empty();
        if is_assigned {
            connect.client_id = self.new_client_id();
        }
        let session_present = self.take_session(id, &connect, now);
        let receiver = Receiver {
            version: connect.version,
            window: self.limits.window.min(connect.receive_max.into()),
            packet_bytes_max: connect.packet_bytes_max,
        };
        let keep_alive = Duration::from_secs(connect.keep_alive_s.into());
        let client = Client {
            id: connect.client_id,
            receiver,
            keep_alive: Some(keep_alive).filter(|it| !it.is_zero()),
            will: connect.will,
        };
        let announced = self.announced(is_assigned.then_some(client.id.as_str()));
        if let Some(connection) = self.connections.get_mut(&id) {
            let replies = &mut connection.replies;
            let success = Reason::Success;
            write::connack(replies, connect.version, session_present, success, &announced);
            connection.client = Some(client);
        }
    }

    /// Names a client that gave itself no name.
    fn new_client_id(&self) -> String {
        loop {
            let name = format!("auto-{:016x}", fastrand::u64(..));
            if !self.sessions.contains_key(&name) {
                return name;
            }
        }
    }

    /// Makes the client's session the connection's. Another connection of the same client ends.
    /// Returns whether the session was there before.
    fn take_session(&mut self, id: ConnectionId, connect: &Connect, now: Duration) -> bool {
        let former = self.sessions.get(&connect.client_id).and_then(|it| it.connection);
        if let Some(former) = former {
            self.end(former, Reason::SessionTakenOver, now);
        }
        if connect.clean_start {
            self.end_session(&connect.client_id);
        }
        let is_present = self.sessions.contains_key(&connect.client_id);
        if !is_present {
            self.make_room_for_session();
        }
        let session = self.sessions.entry(connect.client_id.clone()).or_default();
        session.connection = Some(id);
        session.expiry_s = connect.session_expiry_s;
        session.delayed_will = None;
        session.resume();
        is_present
    }

    /// There are fewer connections than sessions, so that one is always away.
    fn make_room_for_session(&mut self) {
        while self.sessions.len() >= self.limits.sessions_max {
            let away = self.sessions.iter().filter(|it| it.1.connection.is_none());
            let Some((oldest, _)) = away.min_by_key(|it| it.1.offline_since) else {
                return;
            };
            let oldest = oldest.clone();
            self.end_session(&oldest);
            self.counters.sessions_lost += 1;
        }
    }

    /// Separates a connection from its client, whose session stays or ends.
    pub(super) fn detach(&mut self, id: ConnectionId, with_will: bool, now: Duration) {
        let client = self.connections.get_mut(&id).and_then(|it| it.client.take());
        let Some(client) = client else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&client.id) else {
            return;
        };
        session.connection = None;
        session.offline_since = now;
        session.writing_bytes = 0;
        let will = client.will.filter(|_| with_will);
        if let Some(Will { mut message, delay_s, expiry_s }) = will {
            let due_at = now + Duration::from_secs(delay_s.min(session.expiry_s).into());
            message.expires_at = expiry_s.map(|it| due_at + Duration::from_secs(it.into()));
            if due_at > now {
                session.delayed_will = Some((message, due_at));
            } else {
                self.due_wills.push(message);
            }
        }
        if self.sessions.get(&client.id).is_some_and(|it| it.expiry_s == 0) {
            self.end_session(&client.id);
        }
    }

    fn end_session(&mut self, client_id: &str) {
        let will: Option<(Message, Duration)> =
            self.sessions.remove(client_id).and_then(|it: Session| it.delayed_will);
        self.due_wills.extend(will.map(|it| it.0));
    }

    pub(super) fn end_expired_sessions(&mut self, now: Duration) {
        let expired = self.sessions.iter().filter(|it| it.1.has_expired(now));
        let expired: Vec<String> = expired.map(|it| it.0.clone()).collect();
        for client_id in expired {
            self.end_session(&client_id);
        }
        for session in self.sessions.values_mut() {
            let due = session.delayed_will.take_if(|(_, at)| *at <= now);
            self.due_wills.extend(due.map(|it| it.0));
        }
    }
}
