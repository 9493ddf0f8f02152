//! How the daemon reports on itself: health, metrics, the watchdog and systemd.

pub mod health_message;
pub mod metrics;
pub mod prometheus;
pub mod systemd;
pub mod watchdog;
