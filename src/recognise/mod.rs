//! Frame → faces → tracks → decision. Only computes: no clock, file, database or socket
//! (`tests/tidy.rs` checks).

pub mod guarded;
pub mod jpeg;

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
