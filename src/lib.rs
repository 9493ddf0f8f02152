//! rollcall: records who passed the door, once, with the right time, and without loss.
//!
//! The modules follow the order of the data flow, and each may use only modules above it
//! (`tests/tidy.rs` checks this):
//!
//! ```text
//!  camera ─▶ vision ─▶ recognise ──────────────▶ attend ───────────▶ store ─────────────▶ mqtt
//!  frames    models     frame→face→track→decision  decision→attendance  event row + outbox   acknowledged → row deleted
//!                           ▲ gallery (immutable snapshot)                   ▲
//!  commands: mqtt ─▶ wire::command ──▶ enrol (computes only) ───────────────┘ references → new snapshot
//! ```
//!
//! `recognise`, `attend` and `enrol` only compute; `store` records durably; `camera`, `vision` and
//! `mqtt` are adapters, which never import each other and meet in `app`.

pub mod backoff;
pub mod bounded_file;
pub mod clock;
pub mod error_chain;
pub mod histogram;
pub mod ids;
pub mod rate_limiter;

pub mod log_throttle;

pub mod health;

pub mod recognise;

pub mod attend;
pub mod enrol;

pub mod wire;

pub mod keys;

pub mod store;

pub mod broker;
pub mod camera;
pub mod http;
pub mod mongo;
pub mod mqtt;
pub mod vision;
pub mod webhook;

pub mod config;

pub mod app;

pub mod cli;
