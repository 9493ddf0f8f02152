//! Crash-loop guard: how often a command was begun without coming to its end.
//!
//! A command that ends the process (a decoder that aborts, memory that runs out) comes again: the
//! broker repeats what was not acknowledged, a client of HTTP may ask again with the same
//! `request_id`. So each attempt of every command is recorded before it is executed and deleted when
//! it has ended; a command that was begun too often is rejected.
//!
//! What must survive is the end of the process, not of the machine: bytes passed to `write` are in
//! the page cache and survive a kill, an abort and an out-of-memory kill. So nothing waits for the
//! disk (no fsync), and a command costs two writes of 128 bytes, some 5 µs. After a power cut the
//! file may be old or torn: attempts are counted anew, and what is not a valid entry is
//! none. The file is made with its full size, so an attempt is recorded on a full disk too.
//!
//! The file holds only what has not ended, so an entry that stands there at a start ended with the
//! process, or the process with it. There are several, because commands come by MQTT and by HTTP in
//! any order. Of more than [`ENTRIES`] the one that was begun first is forgotten.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// In the state directory.
const FILE: &str = "attempts";

/// Commands that each ended the process and were not sent again yet. One is in progress at a time.
const ENTRIES: usize = 32;

/// A count of at most ten digits, a space, a request id of at most 64 bytes (`check_id`), spaces
/// and a line feed.
const ENTRY_BYTES: usize = 128;

/// Attempts of one command; more than a bad power supply explains.
pub const ATTEMPTS_MAX: u32 = 4;

/// The commands that were begun and have not ended.
pub struct Attempts {
    table: Mutex<AttemptTable>,
}

struct AttemptTable {
    /// None: it cannot be written, and attempts are counted as long as the process lives.
    file: Option<File>,
    entries: [Option<AttemptEntry>; ENTRIES],
    /// Given to the next entry that is begun.
    order: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AttemptEntry {
    request_id: String,
    attempts: u32,
    order: u64,
}

impl Attempts {
    /// Opens the file in the state directory, or creates it. Without it commands are executed all
    /// the same.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let (file, entries) = match read(&path) {
            Ok((file, entries)) => (Some(file), entries),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "attempts of commands cannot be recorded");
                (None, [const { None }; ENTRIES])
            }
        };
        Self { table: Mutex::new(AttemptTable { file, entries, order: ENTRIES as u64 }) }
    }

    /// Records that a command is begun. Returns false if it was begun too often already.
    pub fn begin(&self, request_id: &str) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let at = table.place_of(request_id).unwrap_or_else(|| table.free_place());
        let before = table.entries[at].as_ref().filter(|it| it.request_id == request_id);
        let attempts = before.map_or(0, |it| it.attempts).saturating_add(1);
        let order = table.order;
        table.order += 1;
        table.put(at, Some(AttemptEntry { request_id: request_id.to_owned(), attempts, order }));
        attempts <= ATTEMPTS_MAX
    }

    /// The command came to its end, whatever that was.
    pub fn end(&self, request_id: &str) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = table.place_of(request_id) {
            table.put(at, None);
        }
    }
}

impl AttemptTable {
    fn place_of(&self, request_id: &str) -> Option<usize> {
        self.entries.iter().position(|it| it.as_ref().is_some_and(|it| it.request_id == request_id))
    }

    /// A free place, or that of the entry that was begun first.
    fn free_place(&self) -> usize {
        let order = |at: &usize| self.entries[*at].as_ref().map(|it| it.order);
        (0..ENTRIES).min_by_key(order).unwrap_or(0)
    }

    fn put(&mut self, at: usize, entry: Option<AttemptEntry>) {
        let line = line(entry.as_ref());
        self.entries[at] = entry;
        let Some(file) = &self.file else { return };
        if let Err(error) = file.write_all_at(&line, (at * ENTRY_BYTES) as u64) {
            tracing::warn!(%error, "attempts of commands cannot be recorded any more");
            self.file = None;
        }
    }
}

fn line(entry: Option<&AttemptEntry>) -> [u8; ENTRY_BYTES] {
    let mut line = [b' '; ENTRY_BYTES];
    line[ENTRY_BYTES - 1] = b'\n';
    let text = entry.map_or_else(String::new, |it| format!("{} {}", it.attempts, it.request_id));
    for (to, from) in line[..ENTRY_BYTES - 1].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    line
}

fn read(path: &Path) -> io::Result<(File, [Option<AttemptEntry>; ENTRIES])> {
    // A file that is none (a FIFO would wait for ever) is not opened.
    if std::fs::symlink_metadata(path).is_ok_and(|it| !it.is_file()) {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut options = File::options();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut bytes = vec![0; ENTRIES * ENTRY_BYTES];
    let mut entries = [const { None }; ENTRIES];
    // Shorter when it is new, or was cut short.
    if file.read_exact_at(&mut bytes, 0).is_ok() {
        for (at, (line, entry)) in bytes.chunks(ENTRY_BYTES).zip(&mut entries).enumerate() {
            *entry = parse(line, at as u64);
        }
    }
    // As it was understood, in its full size.
    let whole: Vec<u8> = entries.iter().flat_map(|it| line(it.as_ref())).collect();
    file.write_all_at(&whole, 0)?;
    Ok((file, entries))
}

fn parse(line: &[u8], order: u64) -> Option<AttemptEntry> {
    let (attempts, request_id) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    crate::ids::check_id(request_id).ok()?;
    Some(AttemptEntry {
        request_id: request_id.to_owned(),
        attempts: attempts.parse().ok()?,
        order,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_begun_too_often_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..ATTEMPTS_MAX {
            // Each time by another process.
            assert!(Attempts::open(dir.path()).begin("r-1"));
        }
        let attempts = Attempts::open(dir.path());
        assert!(!attempts.begin("r-1"));
        assert!(attempts.begin("r-2"), "another one is executed");
        attempts.end("r-1");
        assert!(attempts.begin("r-1"), "once it has ended it counts anew");
    }

    #[test]
    fn commands_in_turn_are_counted_each() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..ATTEMPTS_MAX {
            assert!(Attempts::open(dir.path()).begin("by-mqtt"));
            assert!(Attempts::open(dir.path()).begin("by-http"));
        }
        let attempts = Attempts::open(dir.path());
        assert_eq!((attempts.begin("by-mqtt"), attempts.begin("by-http")), (false, false));
    }

    #[test]
    fn full_table_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..ATTEMPTS_MAX {
            Attempts::open(dir.path()).begin("first");
        }
        let attempts = Attempts::open(dir.path());
        for at in 0..ENTRIES {
            assert!(attempts.begin(&format!("r-{at}")));
        }
        let attempts = Attempts::open(dir.path());
        assert!(attempts.begin("first"), "it was forgotten");
        assert_eq!(attempts.table.lock().unwrap().entries.iter().flatten().count(), ENTRIES);
    }

    #[test]
    fn damaged_file_counts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for bytes in [&b""[..], &[0xFF; 10_000], &b"9 r-1\n".repeat(1_000), b"4294967295 r-1"] {
            std::fs::write(&path, bytes).unwrap();
            let attempts = Attempts::open(dir.path());
            assert!(attempts.begin("r-1"));
            assert!(std::fs::metadata(&path).unwrap().len() >= (ENTRIES * ENTRY_BYTES) as u64);
        }
    }

    #[test]
    fn without_a_file_commands_are_executed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        let attempts = Attempts::open(dir.path());
        assert!(attempts.begin("r-1"));
    }
}
