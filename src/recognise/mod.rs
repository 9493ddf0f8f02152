//! Frame → faces → tracks → decision. Only computes: no clock, file, database or socket (`tests/tidy.rs` checks).

pub mod face;
