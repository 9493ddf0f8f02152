//! Commands that measure: accuracy on labelled photographs, the site's own scores, speed and
//! memory.

pub mod bench;
pub mod calibrate;
pub mod evaluate;
pub mod plot;
