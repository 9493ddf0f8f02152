//! Everything that speaks MQTT: the link to a broker, the names of the topics, and a small broker of our own.
//!
//! - `link` is what the rest of the daemon sees: publish and hear when it was acknowledged, receive and say when it
//!   was committed. Behind it stand `drive` (the one loop that polls), `ledger` (what is under way), `sift` (how a
//!   message too large for us is got rid of) and `tls`. Together they are the sole owner of rumqttc.
//! - `topics` is the only place that puts a topic together or takes one apart.
//! - `discovery` is what Home Assistant is told of a device.
//! - `broker` is the embedded broker for the demo and for a single unit (rumqttd).
//!
//! Not in here: what a payload means. Bodies are made and read by `record`; they meet in `app`.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

pub mod broker;
pub mod discovery;
mod drive;
mod ledger;
pub mod link;
mod sift;
pub mod tls;
pub mod topics;

/// 0.0..1.0, different in each process and call: enough to spread a fleet, and no dependency.
pub fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}
