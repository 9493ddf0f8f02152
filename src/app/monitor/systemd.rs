//! A word to systemd (`sd_notify`): datagrams to the socket that `NOTIFY_SOCKET` names. Without that variable nobody listens,
//! and everything here does nothing.
//!
//! Thirty lines of our own: std knows abstract sockets, and a crate would add only names for the four words we say.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// The longest that a word may take, should systemd not read: it is said from the runtime's threads.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    pub fn from_environment() -> Self {
        let named = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty());
        Self(named.and_then(|named| {
            let opened = open(&named);
            opened
                .inspect_err(|error| tracing::warn!(%error, "systemd cannot be told how we are"))
                .ok()
        }))
    }

    /// Nobody listens.
    #[cfg(test)]
    pub fn nobody() -> Self {
        Self(None)
    }

    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Words as in sd_notify(3), one a line. A word that is lost is no failure of ours: the next one tells as much.
    pub fn tell(&self, words: &str) {
        if let Some((socket, to)) = &self.0
            && let Err(error) = socket.send_to_addr(words.as_bytes(), to)
        {
            tracing::warn!(%error, "systemd did not hear us");
        }
    }
}

fn open(named: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
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

/// Within which time systemd wants to hear from us again and again, if at all: `WATCHDOG_USEC`, meant for this process.
pub fn watchdog_limit() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    limit(
        variable("WATCHDOG_USEC").as_deref(),
        variable("WATCHDOG_PID").as_deref(),
        std::process::id(),
    )
}

fn limit(usec: Option<&str>, meant: Option<&str>, us: u32) -> Option<Duration> {
    if meant.is_some_and(|pid| pid.parse() != Ok(us)) {
        return None;
    }
    usec?.parse().ok().filter(|usec| *usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_heard_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@rollcall-notify-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        for (named, heard) in [(path.as_os_str(), by_path), (OsStr::new(&name), by_name)] {
            Notifier(Some(open(named).unwrap())).tell("READY=1\nSTATUS=well");
            let mut word = [0; 64];
            let length = heard.recv(&mut word).unwrap();
            assert_eq!(&word[..length], b"READY=1\nSTATUS=well");
        }
        assert!(open(OsStr::new("vsock:2:1234")).is_err());
        // Nobody is there: said, and no failure.
        Notifier(Some(open(dir.path().join("nobody").as_os_str()).unwrap())).tell("READY=1");
    }

    #[test]
    fn a_watchdog_is_ours_only_when_it_is_meant_for_us() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(limit(Some("30000000"), None, 7), seconds(30));
        assert_eq!(limit(Some("30000000"), Some("7"), 7), seconds(30));
        assert_eq!(limit(Some("30000000"), Some("8"), 7), None);
        assert_eq!(limit(Some("30000000"), Some("self"), 7), None);
        for nothing in [None, Some("0"), Some("-1"), Some("soon")] {
            assert_eq!(limit(nothing, None, 7), None);
        }
    }
}
