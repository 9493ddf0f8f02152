//! State that stages share while the daemon runs: the gallery, the venues, counts of rows, the preview
//! of the newest frame, and repeated visits.

pub mod counted;
pub mod gallery;
pub mod preview;
pub mod repeats;
pub mod venues;
