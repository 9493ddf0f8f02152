//! One function for each place where a stranger's bytes enter. The targets in `targets/` hand them
//! what the fuzzer makes, and nothing else is done there.
//!
//! A finding is a panic (also one that `recognise::guarded` catches), an endless run, much memory,
//! or one of the assertions here.

pub mod broker;
pub mod command;
pub mod files;
pub mod gallery;
pub mod mqtt;
pub mod pictures;
pub mod token;
pub mod webhook;

use std::path::PathBuf;
use std::sync::OnceLock;

/// A folder of this process in memory, for what is read from files.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = base.join(format!("rollcall-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
        folder
    })
}

/// Splits a first byte off, by which a target chooses between several ways.
fn choice(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}
