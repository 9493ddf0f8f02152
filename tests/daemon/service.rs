//! The daemon under a supervisor that speaks systemd's protocol: what it is told, when, and that a
//! busy daemon keeps talking.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::daemon::{Home, PATIENCE};
use rollcall::clock::Stopwatch;

/// A port that nobody serves: the daemon is ready without a network.
const NO_BROKER: u16 = 9;

struct Supervisor {
    socket: UnixDatagram,
}

impl Supervisor {
    fn of(home: &mut Home, watchdog: Option<Duration>) -> Self {
        let path = home.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        home.environment.push(("NOTIFY_SOCKET".into(), path.to_str().unwrap().into()));
        if let Some(limit) = watchdog {
            home.environment.push(("WATCHDOG_USEC".into(), limit.as_micros().to_string()));
        }
        Self { socket }
    }

    /// The next word; several lines may come together.
    fn hears(&self) -> String {
        let mut word = [0; 4096];
        let length = self.socket.recv(&mut word).expect("the daemon says something in time");
        String::from_utf8(word[..length].to_vec()).unwrap()
    }

    fn until(&self, line: &str) -> Vec<String> {
        let mut received = Vec::new();
        while !received.iter().any(|it: &String| it.lines().any(|said| said == line)) {
            received.push(self.hears());
        }
        received
    }
}

#[test]
fn systemd_receives_ready_watchdog_and_stopping() {
    let mut home = Home::new(NO_BROKER, "");
    let limit = Duration::from_secs(5);
    let supervisor = Supervisor::of(&mut home, Some(limit));
    let daemon = home.spawn(&["run"]);
    let before = supervisor.until("READY=1");
    assert!(!before.iter().any(|it| it.contains("STOPPING")), "{before:?}");
    // Longer than a supervisor waits for one word: it is told often enough all the time.
    let watch = Stopwatch::start();
    let mut last = Stopwatch::start();
    while watch.elapsed() < 2 * limit {
        let word = supervisor.until("WATCHDOG=1").pop().unwrap();
        assert!(word.contains("STATUS=camera absent, 0 enrolled, 0 recorded"), "{word}");
        assert!(last.elapsed() < limit);
        last = Stopwatch::start();
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    supervisor.until("STOPPING=1");
}

#[test]
fn no_heartbeat_without_systemd_watchdog() {
    let mut home = Home::new(NO_BROKER, "");
    let supervisor = Supervisor::of(&mut home, None);
    let daemon = home.spawn(&["run"]);
    supervisor.until("READY=1");
    assert_eq!(daemon.terminate().code(), Some(0));
    let received = supervisor.until("STOPPING=1");
    assert!(!received.concat().contains("WATCHDOG"), "{received:?}");
}
