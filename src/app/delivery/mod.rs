//! From the outbox to the broker, and what is published about it: events, completeness,
//! checkpoints, receipts and discovery.

pub mod checkpoint;
pub mod completeness;
pub mod home_assistant;
pub mod mongo_venues;
pub mod mqtt_sink;
pub mod receipts;
pub mod watermark;
