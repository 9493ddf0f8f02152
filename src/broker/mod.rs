//! The embedded broker, for the demo and for a single door without a broker: MQTT 3.1.1 and 5 over
//! TCP and WebSocket.
//!
//! - `state` is the broker without its sockets; `packet` its codec, `topic` its filters, `limits`
//!   its bounds. They only compute.
//! - `server` is the sockets, `websocket` the framing for browsers.
//! - `process` runs it as a child process of the daemon, with a memory limit of its own.
//!
//! What it does:
//! - QoS 0, 1 and 2 both ways; retained messages; last wills, also delayed; clean and persistent
//!   sessions, whose unacknowledged messages are sent again; take-over by the same client id; user
//!   and password. Of MQTT 5: reason codes, expiry of sessions and messages, user and other
//!   properties passed on, options of subscriptions, receive maximum and maximum packet size.
//! - It announces that it has no subscription identifiers, shared subscriptions or topic aliases.
//!   It has no TLS, no bridges and no `$SYS`.
//! - **Nothing is on disk.** When it ends, sessions, queued commands and retained messages are
//!   gone. Our own events are not: the outbox only deletes what was acknowledged. A subscriber that
//!   was away then has missed them.
//! - A subscriber that is further behind than `Limits` allows loses the oldest messages; that is
//!   logged as a count.
//!
//! So use it on loopback, or with a password on a trusted network; for a building use mosquitto or
//! another broker (docs).
//!
//! Not here: `mqtt`, which is the daemon's client and knows nothing of this broker.

pub mod limits;
pub mod packet;
pub mod process;
mod server;
pub mod state;
pub mod topic;
pub mod websocket;

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    pub tcp: SocketAddr,
    /// MQTT over WebSocket, for pages in a browser.
    pub websocket: Option<SocketAddr>,
    /// User and password that every client must give.
    pub credentials: Option<(String, String)>,
    /// The largest payload, topic included. It is the link's limit, so that no message arrives that
    /// the link could not receive.
    pub payload_bytes_max: usize,
    /// The process ends when it needs more memory than this.
    pub memory_bytes_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(
        "{address} can be reached from other machines: give the broker a user and a password, or use 127.0.0.1"
    )]
    Exposed { address: SocketAddr },
    #[error("the broker's port must be a number other than 0: its clients could not know it")]
    NoPort,
    #[error("the broker cannot listen on {address}: is another broker running there?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the broker's process or thread cannot be started")]
    Start(#[source] io::Error),
    #[error("the broker does not answer on {address}")]
    NotReady { address: SocketAddr },
    #[error("the broker's settings on its standard input cannot be read")]
    Settings(#[source] serde_json::Error),
    #[error("the broker ended by itself ({why})")]
    Ended { why: String },
}

impl BrokerSettings {
    /// On TCP alone and for everybody, with the memory that the payload needs.
    pub fn new(tcp: SocketAddr, payload_bytes_max: usize) -> Self {
        let memory_bytes_max = limits::memory_bytes_max(payload_bytes_max);
        Self { tcp, websocket: None, credentials: None, payload_bytes_max, memory_bytes_max }
    }

    pub fn check(&self) -> Result<(), BrokerError> {
        for address in self.addresses() {
            if !address.ip().is_loopback() && self.credentials.is_none() {
                return Err(BrokerError::Exposed { address });
            }
            if address.port() == 0 {
                return Err(BrokerError::NoPort);
            }
        }
        Ok(())
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.tcp).chain(self.websocket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_broker_needs_a_password() {
        let settings = |tcp: &str| BrokerSettings::new(tcp.parse().unwrap(), 1024);
        assert!(settings("127.0.0.1:1883").check().is_ok());
        assert!(settings("[::1]:1883").check().is_ok());
        assert!(matches!(settings("0.0.0.0:1883").check(), Err(BrokerError::Exposed { .. })));
        assert!(matches!(settings("192.0.2.1:1883").check(), Err(BrokerError::Exposed { .. })));
        let mut with_password = settings("0.0.0.0:1883");
        with_password.credentials = Some(("door".to_owned(), "secret".to_owned()));
        assert!(with_password.check().is_ok());
        with_password.websocket = Some("127.0.0.1:0".parse().unwrap());
        assert!(matches!(with_password.check(), Err(BrokerError::NoPort)));
    }
}
