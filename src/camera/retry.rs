//! When to try a lost camera again: after a pause that grows to a few seconds, and sooner when something happens in `/dev`.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use crate::camera::v4l2::device::wait_for;
use crate::clock::Stopwatch;

/// Never sooner than this after an attempt, whatever happens in `/dev`.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest pause: somebody who plugs the camera in again should not wait for it.
const RETRY_MAX: Duration = Duration::from_secs(4);

pub(super) struct Retry {
    pause: Duration,
    /// Since the last attempt; `None` before the first.
    tried: Option<Stopwatch>,
    /// New nodes in `/dev`. Without it (no inotify left on the machine) the pauses alone decide.
    nodes: Option<OwnedFd>,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self { pause: RETRY_MIN, tried: None, nodes: None }
    }

    /// An attempt has failed, or the stream has ended: the next is after a pause.
    pub(super) fn failed(&mut self) {
        self.pause = if self.tried.is_some() { (self.pause * 2).min(RETRY_MAX) } else { RETRY_MIN };
        self.tried = Some(Stopwatch::start());
        if self.nodes.is_none() {
            self.nodes = watch_nodes();
        }
    }

    /// There was a usable frame: the next loss begins with a short pause.
    pub(super) fn succeeded(&mut self) {
        if self.tried.is_some() {
            *self = Self::new();
        }
    }

    /// Waits for at most `slice`; `true` when it is time to try.
    pub(super) fn wait(&mut self, slice: Duration) -> bool {
        let Some(tried) = &self.tried else {
            return true;
        };
        let left = self.pause.saturating_sub(tried.elapsed());
        if left.is_zero() {
            return true;
        }
        let slice = left.min(slice);
        match &self.nodes {
            Some(nodes) => {
                if video_node_changed(nodes, slice) {
                    self.pause = RETRY_MIN;
                }
            }
            None => std::thread::sleep(slice),
        }
        false
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
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut retry = Retry::new();
        assert!(retry.wait(Duration::ZERO), "the first attempt is at once");
        let mut pauses = Vec::new();
        for _ in 0..7 {
            retry.failed();
            pauses.push(retry.pause.as_millis());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 4000]);
        assert!(!retry.wait(Duration::from_millis(1)));
        retry.succeeded();
        assert!(retry.wait(Duration::ZERO));
    }

    #[test]
    fn no_attempt_follows_another_at_once() {
        let mut retry = Retry::new();
        retry.failed();
        let watch = Stopwatch::start();
        while !retry.wait(Duration::from_millis(20)) {}
        assert!(watch.elapsed() >= RETRY_MIN);
    }
}
