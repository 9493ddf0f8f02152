//! rollcall: who passed the door, once, with the right time, and never lost.
//!
//! The modules stand in the order of the flow, and each may use only what stands above it (`tests/tidy.rs` checks):
//!
//! ```text
//!  camera ─▶ vision ─▶ recognise ──────────────▶ attend ───────────▶ record ────────────▶ mqtt
//!  frames    networks   frame→face→track→decision  decision→attendance  event row + outbox   acknowledged → row leaves
//!                           ▲ gallery (immutable snapshot)                   ▲
//!  commands: mqtt ─▶ record::command ─▶ enrol (computes only) ───────────────┘ references → new snapshot
//! ```
//!
//! `recognise`, `attend` and `enrol` only compute; `record` makes durable; `camera`, `vision` and `mqtt` are adapters
//! that never meet one another except in `app`.

pub mod clock;

pub mod health;

pub mod recognise;

pub mod attend;
pub mod enrol;

pub mod record;

pub mod camera;
pub mod http;
#[cfg(feature = "mongo")]
pub mod mongo;
#[cfg(not(feature = "mongo"))]
#[path = "mongo/absent.rs"]
pub mod mongo;
pub mod mqtt;
pub mod vision;

pub mod config;

pub mod app;

pub mod cli;
