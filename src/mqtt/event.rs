//! What the link reports to the rest of the daemon: its edges, and the messages that arrive.

use std::fmt;

use crate::mqtt::client::Received;
use crate::mqtt::fault::LinkFault;
use crate::mqtt::in_flight::AckToken;

/// What the link reports to the app. Edges, not levels: for the level there is `Link::online`.
#[derive(Debug)]
pub enum LinkEvent {
    /// Also after a reconnect of our own to have messages sent again, without a `Lost` before it.
    Connected {
        /// Whether the broker still had our session, and with it the commands sent meanwhile.
        session_present: bool,
    },
    Lost {
        fault: LinkFault,
    },
    /// An attempt failed; reported once, and again when the fault is another.
    Unreachable {
        fault: LinkFault,
    },
    Inbound(Inbound),
    Oversized(Oversized),
    /// The broker accepted subscriptions: what it retains for them arrives now.
    Subscribed {
        filters: Vec<String>,
    },
    /// The broker rejected this subscription: no command will arrive by it.
    SubscriptionRefused {
        filter: String,
    },
    /// The last resort against a message too large for us: the broker deleted our session, and
    /// commands that waited in it are lost.
    SessionPurged {
        fault: LinkFault,
    },
}

/// One inbound message.
pub struct Inbound {
    pub topic: String,
    pub payload: Vec<u8>,
    /// The broker had it stored, so its age is unknown: the contract rejects such a command.
    pub retained: bool,
    /// Marked as sent before (DUP). mosquitto and the embedded broker mark what we did not
    /// acknowledge, and only that; others pass on the sender's mark: nothing may depend on it alone.
    pub is_redelivered: bool,
    /// mosquitto and the embedded broker send it under the same id each time; not every broker
    /// does. 0 at QoS 0.
    pub packet_id: u16,
    pub ack: AckToken,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Inbound({}, {} bytes, retained {})",
            self.topic,
            self.payload.len(),
            self.retained
        )
    }
}

/// A message that was too large and was dropped unread, except for its beginning.
pub struct Oversized {
    /// Of the whole packet.
    pub bytes: usize,
    /// `None` if only the size is known. At QoS 0 nothing more ever is; at QoS 1 the broker sends
    /// the message again, and a second event follows with topic and head.
    pub topic: Option<String>,
    /// The first 64 KiB of the payload, so that a `request_id` near its beginning gets a reply.
    pub head: Vec<u8>,
}

impl fmt::Debug for Oversized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oversized({:?}, {} bytes)", self.topic, self.bytes)
    }
}

pub(super) fn inbound(received: Received, ack: AckToken) -> Inbound {
    let Received { topic, payload, retained, is_redelivered, pkid } = received;
    Inbound { topic, payload, retained, is_redelivered, packet_id: pkid, ack }
}
