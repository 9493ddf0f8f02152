//! When to retry a lost camera: after a pause that grows to a few seconds, and, for a camera of the
//! kernel, sooner when a node appears in `/dev`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use crate::backoff::Backoff;
use crate::clock::Stopwatch;

/// Never sooner than this after an attempt, whatever happens in `/dev`.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest pause: somebody who plugs the camera in again should not have to wait.
const RETRY_MAX: Duration = Duration::from_secs(4);
const BACKOFF: Backoff = Backoff::new(RETRY_MIN, RETRY_MAX);

pub struct Retry {
    backoff: Backoff,
    watches_nodes: bool,
    failures: u32,
    /// Since the last attempt; `None` before the first.
    tried: Option<Stopwatch>,
    /// Watches for nodes in `/dev`. `None` if the machine has no inotify left: then only the pauses
    /// count.
    nodes: Option<OwnedFd>,
}

impl Retry {
    pub fn new() -> Self {
        Self::within(BACKOFF)
    }

    /// With other pauses.
    pub fn within(backoff: Backoff) -> Self {
        Self { backoff, watches_nodes: false, failures: 0, tried: None, nodes: None }
    }

    /// Retries at once when a camera's node appears.
    pub fn watching_nodes() -> Self {
        Self { watches_nodes: true, ..Self::new() }
    }

    /// Records that an attempt failed or the stream ended: the next attempt follows a pause.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.tried = Some(Stopwatch::start());
        if self.watches_nodes && self.nodes.is_none() {
            self.nodes = watch_nodes();
        }
    }

    /// Records a usable frame: the next loss begins with a short pause.
    pub fn succeeded(&mut self) {
        if self.tried.is_some() {
            *self = Self { watches_nodes: self.watches_nodes, ..Self::within(self.backoff) };
        }
    }

    /// Waits for at most `slice`; returns `true` when it is time to retry.
    pub fn wait(&mut self, slice: Duration) -> bool {
        let Some(tried) = &self.tried else {
            return true;
        };
        let left = self.backoff.pause(self.failures).saturating_sub(tried.elapsed());
        if left.is_zero() {
            return true;
        }
        let slice = left.min(slice);
        match &self.nodes {
            Some(nodes) => {
                if video_node_changed(nodes, slice) {
                    self.failures = 1;
                }
            }
            None => std::thread::sleep(slice),
        }
        false
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

/// `poll(2)`; a signal counts as the time being over.
pub fn wait_for(fds: &mut [PollFd<'_>], patience: Duration) -> io::Result<bool> {
    let limit =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    match rustix::event::poll(fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn watch_nodes() -> Option<OwnedFd> {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
    // A node is made, and then gets its owner and mode.
    inotify::add_watch(&watch, "/dev", WatchFlags::CREATE | WatchFlags::ATTRIB).ok()?;
    Some(watch)
}

fn video_node_changed(nodes: &OwnedFd, patience: Duration) -> bool {
    if !wait_for(&mut [PollFd::new(nodes, PollFlags::IN)], patience).unwrap_or(false) {
        return false;
    }
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(nodes, &mut space);
    let mut changed = false;
    while let Ok(event) = reader.next() {
        changed |= event.file_name().is_some_and(|name| name.to_bytes().starts_with(b"video"));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_is_bounded_and_reset() {
        let mut retry = Retry::watching_nodes();
        assert!(retry.wait(Duration::ZERO), "the first attempt is at once");
        let mut pauses = Vec::new();
        for _ in 0..7 {
            retry.failed();
            pauses.push(BACKOFF.pause(retry.failures).as_millis());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 4000]);
        assert!(!retry.wait(Duration::from_millis(1)));
        retry.succeeded();
        assert!(retry.wait(Duration::ZERO));
    }

    #[test]
    fn retry_waits_at_least_the_minimum() {
        let mut retry = Retry::new();
        retry.failed();
        let watch = Stopwatch::start();
        while !retry.wait(Duration::from_millis(20)) {}
        assert!(watch.elapsed() >= RETRY_MIN);
    }
}
