//! Notifications to systemd (`sd_notify`): datagrams to the socket that `NOTIFY_SOCKET` names.
//! Without that variable there are no notifications.
//!
//! std supports abstract sockets, so this needs thirty lines and no crate.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// How long a notification may block if systemd does not read. The runtime's threads send it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    pub fn from_environment() -> Self {
        let named = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty());
        Self(named.and_then(|named| {
            let opened = open(&named);
            opened.inspect_err(|error| tracing::warn!(%error, "systemd cannot be notified")).ok()
        }))
    }

    #[cfg(test)]
    pub fn disconnected() -> Self {
        Self(None)
    }

    pub fn is_connected(&self) -> bool {
        self.0.is_some()
    }

    /// Sends assignments as in sd_notify(3), one a line. A failure is only logged, because the next
    /// notification replaces this one.
    pub fn notify(&self, state: &str) {
        if let Some((socket, to)) = &self.0
            && let Err(error) = socket.send_to_addr(state.as_bytes(), to)
        {
            tracing::warn!(%error, "systemd could not be notified");
        }
    }
}

fn open(named: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok((socket, address(named)?))
}

fn address(named: &OsStr) -> io::Result<SocketAddr> {
    match named.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(Path::new(named)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "NOTIFY_SOCKET is neither a path nor an abstract name",
        )),
    }
}

/// Returns the interval within which systemd expects heartbeats from this process, if any
/// (`WATCHDOG_USEC` and `WATCHDOG_PID`).
pub fn watchdog_limit() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    parse_limit(
        variable("WATCHDOG_USEC").as_deref(),
        variable("WATCHDOG_PID").as_deref(),
        std::process::id(),
    )
}

fn parse_limit(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    usec?.parse().ok().filter(|usec| *usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_socket_is_path_or_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@rollcall-notify-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        for (named, received) in [(path.as_os_str(), by_path), (OsStr::new(&name), by_name)] {
            Notifier(Some(open(named).unwrap())).notify("READY=1\nSTATUS=well");
            let mut buffer = [0; 64];
            let length = received.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=well");
        }
        assert!(open(OsStr::new("vsock:2:1234")).is_err());
        // Without a receiver the failure is only logged.
        Notifier(Some(open(dir.path().join("missing").as_os_str()).unwrap())).notify("READY=1");
    }

    #[test]
    fn watchdog_limit_requires_own_pid() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(parse_limit(Some("30000000"), None, 7), seconds(30));
        assert_eq!(parse_limit(Some("30000000"), Some("7"), 7), seconds(30));
        assert_eq!(parse_limit(Some("30000000"), Some("8"), 7), None);
        assert_eq!(parse_limit(Some("30000000"), Some("self"), 7), None);
        for nothing in [None, Some("0"), Some("-1"), Some("soon")] {
            assert_eq!(parse_limit(nothing, None, 7), None);
        }
    }
}
