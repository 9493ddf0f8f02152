//! The record and its relay: a real SQLite database, killed and filled up.

#[path = "../support/mod.rs"]
mod support;

mod attendance;
mod chain;
mod consents;
mod coverage;
mod damage;
mod disk_full;
mod events;
mod kill;
mod relay;
mod reserve;
mod subjects;
mod versions;
