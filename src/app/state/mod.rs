//! State that stages share while the daemon runs: the gallery, the venues, counts of rows, and the
//! preview of the newest frame.

pub mod counted;
pub mod gallery;
pub mod preview;
pub mod venues;
