//! Commands from MQTT and HTTP, one after the other: read, executed, replied to, and only then
//! acknowledged to the broker.
//!
//! Invariants: what a command changes, the event about it and its reply are one transaction, and
//! the reply is stored by `request_id`: a command that arrives twice (the broker redelivers what was
//! not acknowledged) changes nothing twice. A command that cannot be executed *now* (busy, no room,
//! failing models) is rejected, but the rejection is not stored, so that the same request may be
//! sent again.

mod admission;
pub mod alarms;
pub mod attempts;
mod attendance;
mod camera_enrolment;
mod command_rate;
mod commander;
pub mod consent;
mod dispatch;
mod enrol_from_camera;
pub mod enrolment;
mod failure;
mod handlers;
pub mod in_process;
pub mod learning;
mod page;
pub mod reply_to;
pub mod report;
pub mod sync;
pub mod workbook;

pub use commander::Commander;
