//! The embedded broker as a child process of the daemon.
//!
//! **It runs as a process of its own** (`BrokerProcess`, whose other end is `serve_as_child`),
//! although it is a library: clients that the daemon does not know reach it, so it has its own
//! memory with a limit, and a panic or the lack of memory ends it alone. The daemon starts another.
//! It ends with its parent: the parent holds the child's standard input, and the end of that is the
//! signal. `Embedded`, in a thread of this process, is for tests.

use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::broker::server::{Listeners, serve};
use crate::broker::{BrokerError, BrokerSettings};

/// The broker listens within milliseconds, or never.
const READY_ATTEMPTS: u32 = 500;
const READY_PAUSE: Duration = Duration::from_millis(10);
/// When the machine runs out of memory, the kernel ends the broker before the daemon. -1000 to
/// 1000; a guess that outweighs the daemon's size.
const OOM_SCORE: &str = "900";

impl BrokerSettings {
    /// Tries the addresses first, so that the daemon knows why the child would fail.
    fn try_ports(&self) -> Result<(), BrokerError> {
        for address in self.addresses() {
            TcpListener::bind(address).map_err(|source| BrokerError::Listen { address, source })?;
        }
        Ok(())
    }

    /// Waits until a connection is accepted.
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
}

/// Returns where to connect to a listener on "all addresses".
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        address.set_ip(loopback.parse().expect("written as an address"));
    }
    address
}

/// The broker in a thread of this process, until the process ends.
pub struct Embedded;

impl Embedded {
    /// Accepts connections when this returns.
    pub fn start(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        settings.check()?;
        let listeners = Listeners::bind(settings)?;
        let settings = settings.clone();
        let thread = std::thread::Builder::new().name("broker".to_owned());
        thread.spawn(move || serve(listeners, &settings)).map_err(BrokerError::Start)?;
        Ok(Self)
    }
}

/// The broker as a child process. Dropping it stops the process.
pub struct BrokerProcess {
    child: Child,
}

impl BrokerProcess {
    /// Starts `command`, which must end in `serve_as_child`, and blocks until it accepts
    /// connections. The settings go over standard input, because a command line can be read by
    /// every user of the machine.
    pub fn start(
        program: &Path,
        args: &[&str],
        settings: &BrokerSettings,
    ) -> Result<Self, BrokerError> {
        settings.check()?;
        settings.try_ports()?;
        // A process group of its own: Ctrl-C in a terminal stops the daemon, and the broker must
        // outlive it.
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

    /// Returns the exit status once the process has ended. A new one has the same content, so the
    /// app starts another.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // An error means that the process is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs the child: reads its settings from standard input and serves until that ends with the
/// parent.
pub fn serve_as_child() -> BrokerError {
    let mut line = String::new();
    if let Err(error) = io::stdin().lock().read_line(&mut line) {
        return BrokerError::Start(error);
    }
    let settings = match serde_json::from_str::<BrokerSettings>(&line) {
        Ok(settings) => settings,
        Err(error) => return BrokerError::Settings(error),
    };
    if let Err(error) = limit_memory(settings.memory_bytes_max) {
        return BrokerError::Start(error);
    }
    let watch = std::thread::Builder::new().name("parent".to_owned()).spawn(|| {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        std::process::exit(0);
    });
    if let Err(error) = watch {
        return BrokerError::Start(error);
    }
    match Listeners::bind(&settings) {
        Ok(listeners) => serve(listeners, &settings),
        Err(error) => error,
    }
}

/// Limits this process's memory (heap and stacks; not the code, which it shares with the daemon).
fn limit_memory(bytes: usize) -> io::Result<()> {
    let former = getrlimit(Resource::Data);
    let bytes = former.maximum.map_or(bytes as u64, |maximum| maximum.min(bytes as u64));
    setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
    // Where the kernel has no such file, nothing is worse than before.
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_port_fails_at_start() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = BrokerSettings::new(taken.local_addr().unwrap(), 1024);
        assert!(matches!(Embedded::start(&settings), Err(BrokerError::Listen { .. })));
    }
}
