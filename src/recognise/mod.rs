//! Frame → faces → tracks → decision. Only computes: no clock, file, database or socket
//! (`tests/tidy.rs` checks).

pub mod guarded;

/// A package of its own (`jpeg/`), which a debug build optimises: at the level of the rest a
/// photograph would take a quarter of a second.
pub use rollcall_jpeg as jpeg;

pub mod picture;

pub mod decode;

pub mod frame;

pub mod face;

pub mod align;

pub mod exposure;

pub mod quality;

pub mod stance;

pub mod gallery;

pub mod engine;

pub mod decision;

pub mod pad;

pub mod change;

pub mod track;

pub mod attention;

pub mod live;
pub mod still;
