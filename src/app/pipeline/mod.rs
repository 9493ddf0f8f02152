//! From the camera to the record: capture, inference, recording, and what is measured on the way.

pub mod camera_events;
pub mod capture;
pub mod coverage;
pub mod inference;
pub mod learning;
pub mod recorder;
pub mod thermal;
pub mod timing;
