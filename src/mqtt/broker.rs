//! The embedded broker: for the demo, and for one door that has no broker to talk to. rumqttd 0.20 as a library.
//!
//! **It runs as a process of its own** (`BrokerProcess`, whose other end is `serve_as_child`), although it is a library:
//! some of its tasks panic on what a client does (see below), and our release builds abort on panic. As a child it takes
//! only itself down, its memory is its own, and it can be stopped, which rumqttd itself cannot. It ends when its parent
//! does: the parent holds the child's standard input, and its end is the signal. `Embedded`, in threads of this process,
//! is for tests; it ends with the process.
//!
//! What rumqttd 0.20 does, read in its source and tried in `tests/mqtt_broker.rs`:
//! - QoS 1 is acknowledged, retained messages, last wills and persistent sessions work, unacknowledged messages are sent
//!   again on reconnect, payloads up to our limit pass, a larger one costs its sender the connection.
//! - **Nothing is on disk.** When it ends, sessions, queued commands and retained messages are gone. Our own events are
//!   not: the outbox only lets go of what was acknowledged, and a subscriber that was away then has missed it.
//! - Every filter ever subscribed to has a log of its own, kept after delivery, `SEGMENT_BYTES` × `SEGMENTS` and the
//!   messages that overhang; a subscriber further behind than that silently loses the oldest.
//! - At most 100 retained messages reach a new subscription, and none a resumed one (rumqtt issue 1069). So it does not
//!   do for a fleet's gallery.
//! - A client that acknowledges out of order, as MQTT forbids, is disconnected and loses a message. Messages arrive at
//!   the subscription's QoS, even above the publisher's. An empty payload deletes a retained message even unretained.
//! - A wrong password closes the connection without a reason (no CONNACK). A keep-alive of 0 is refused.
//! - A WebSocket handshake that never ends blocks every other one; there is no TLS in our build.
//! - It panics when a client id that was refused once (`+`, `#`, `$`, `/`, too many connections) comes again; seen in
//!   a test. By its source also when a persistent session with a shared subscription goes with messages under way.
//!
//! Hence: loopback, or a network that is trusted with a password. For a building: mosquitto or another (docs).

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};
use serde::{Deserialize, Serialize};

/// rumqttd logs each connection as an error: whoever installs a subscriber silences this target.
pub const LOG_TARGET: &str = "rumqttd";

/// 6 MiB of events are some eight thousand for a subscriber that was away; with only the largest commands it is 54 MiB.
const SEGMENT_BYTES: usize = 1024 * 1024;
const SEGMENTS: usize = 6;
const CONNECTIONS_MAX: usize = 64;
/// Until a new connection has sent its CONNECT.
const CONNECT_TIMEOUT_MS: u16 = 5000;
/// It listens within milliseconds, or never.
const READY_ATTEMPTS: u32 = 500;
const READY_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    pub tcp: SocketAddr,
    /// MQTT over WebSocket, for pages in a browser.
    pub websocket: Option<SocketAddr>,
    /// User and password that every client must give.
    pub credentials: Option<(String, String)>,
    /// The largest payload, topic included: what the link takes, so that no message gets in that it could not take.
    pub payload_bytes_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(
        "{address} can be reached from other machines: give the broker a user and a password, or use 127.0.0.1"
    )]
    Exposed { address: SocketAddr },
    #[error(
        "the broker's port must be a number other than 0: rumqttd does not tell which one it got"
    )]
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

    /// rumqttd only logs that it cannot listen; so it is tried beforehand.
    fn try_ports(&self) -> Result<(), BrokerError> {
        for address in self.addresses() {
            TcpListener::bind(address).map_err(|source| BrokerError::Listen { address, source })?;
        }
        Ok(())
    }

    /// Ready is when a connection is accepted, not when some time has passed.
    fn await_ready(
        &self,
        mut ended: impl FnMut() -> Option<BrokerError>,
    ) -> Result<(), BrokerError> {
        for address in self.addresses() {
            let mut attempts = 0;
            while TcpStream::connect_timeout(&reachable(address), Duration::from_secs(1)).is_err() {
                if let Some(error) = ended() {
                    return Err(error);
                }
                attempts += 1;
                if attempts == READY_ATTEMPTS {
                    return Err(BrokerError::NotReady { address });
                }
                std::thread::sleep(READY_PAUSE);
            }
        }
        Ok(())
    }

    fn config(&self) -> Config {
        let connections = ConnectionSettings {
            connection_timeout_ms: CONNECT_TIMEOUT_MS,
            max_payload_size: self.payload_bytes_max,
            max_inflight_count: 100,
            auth: self
                .credentials
                .clone()
                .map(|(user, password)| HashMap::from([(user, password)])),
            external_auth: None,
            dynamic_filters: false,
        };
        let server = |name: &str, listen| {
            let connections = connections.clone();
            let settings = ServerSettings {
                name: name.to_owned(),
                listen,
                tls: None,
                next_connection_delay_ms: 1,
                connections,
            };
            HashMap::from([(name.to_owned(), settings)])
        };
        Config {
            router: RouterConfig {
                max_connections: CONNECTIONS_MAX,
                max_outgoing_packet_count: 200,
                max_segment_size: SEGMENT_BYTES,
                max_segment_count: SEGMENTS,
                ..RouterConfig::default()
            },
            v4: Some(server("broker-tcp", self.tcp)),
            ws: self.websocket.map(|listen| server("broker-ws", listen)),
            ..Config::default()
        }
    }
}

/// Where to connect to something that listens on "all addresses".
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        address.set_ip(loopback.parse().expect("written as an address"));
    }
    address
}

/// Serves in the calling thread, and returns only when it cannot go on.
fn serve(settings: &BrokerSettings) -> BrokerError {
    match Broker::new(settings.config()).start() {
        Ok(()) => BrokerError::Ended { why: "its servers are gone".to_owned() },
        Err(error) => BrokerError::Ended { why: error.to_string() },
    }
}

/// The broker in threads of this process, until the process ends.
pub struct Embedded;

impl Embedded {
    /// Blocks until it accepts connections: milliseconds.
    pub fn start(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        settings.check()?;
        settings.try_ports()?;
        let served = settings.clone();
        let thread = std::thread::Builder::new().name("broker".to_owned());
        let thread = thread.spawn(move || serve(&served)).map_err(BrokerError::Start)?;
        settings.await_ready(|| {
            thread.is_finished().then(|| BrokerError::Ended { why: "while starting".to_owned() })
        })?;
        Ok(Self)
    }
}

/// The broker as a child process. Dropped, it is stopped.
pub struct BrokerProcess {
    child: Child,
}

impl BrokerProcess {
    /// Starts `command`, which must end in `serve_as_child`, and blocks until it accepts connections. The settings go
    /// over standard input, because a command line can be read by every user of the machine.
    pub fn start(
        program: &Path,
        args: &[&str],
        settings: &BrokerSettings,
    ) -> Result<Self, BrokerError> {
        settings.check()?;
        settings.try_ports()?;
        // A process group of its own: Ctrl-C in a terminal asks the daemon to stop, and the broker must outlive that.
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(BrokerError::Start)?;
        let mut line = serde_json::to_vec(settings).map_err(BrokerError::Settings)?;
        line.push(b'\n');
        let written = child.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(&line));
        let mut process = Self { child };
        written.map_err(BrokerError::Start)?;
        settings.await_ready(|| {
            process.ended().map(|status| BrokerError::Ended { why: status.to_string() })
        })?;
        Ok(process)
    }

    /// How it ended, once it has. It holds nothing that a restart would not hold, so the app starts another.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the child does: reads its settings from standard input and serves until that ends with the parent.
pub fn serve_as_child() -> BrokerError {
    let mut line = String::new();
    if let Err(error) = io::stdin().lock().read_line(&mut line) {
        return BrokerError::Start(error);
    }
    let settings = match serde_json::from_str::<BrokerSettings>(&line) {
        Ok(settings) => settings,
        Err(error) => return BrokerError::Settings(error),
    };
    let watch = std::thread::Builder::new().name("parent".to_owned()).spawn(|| {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        std::process::exit(0);
    });
    match watch {
        Ok(_) => serve(&settings),
        Err(error) => BrokerError::Start(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(tcp: &str) -> BrokerSettings {
        BrokerSettings {
            tcp: tcp.parse().unwrap(),
            websocket: None,
            credentials: None,
            payload_bytes_max: 1024,
        }
    }

    #[test]
    fn other_machines_need_a_password() {
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

    #[test]
    fn a_taken_port_is_said_at_once() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = settings(&taken.local_addr().unwrap().to_string());
        assert!(matches!(Embedded::start(&settings), Err(BrokerError::Listen { .. })));
    }
}
