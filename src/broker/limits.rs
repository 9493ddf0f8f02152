//! The bounds of the embedded broker. What one client exceeds it loses itself: a message of its
//! own, or its connection.
//!
//! Sizes follow the largest payload, so that a few of them always fit.

use std::time::Duration;

/// The least from which the sizes are derived: with a small payload the queues still hold the
/// events of some hours.
const UNIT_BYTES_MIN: usize = 4 << 20;
/// What the process needs beside messages. Measured: 3 MiB at rest. Every table and buffer at its
/// limit adds 13 MiB (computed), and the rest is a guess.
const BASE_BYTES: usize = 32 << 20;

#[derive(Clone, Debug)]
pub struct Limits {
    /// A PUBLISH without its fixed header.
    pub publish_bytes_max: usize,
    /// Any other packet. A CONNECT has at most five fields of 64 KiB, and has them only if somebody
    /// wants to do harm.
    pub packet_bytes_max: usize,
    /// What has arrived of incomplete packets, of all connections.
    pub inbound_bytes_max: usize,
    /// Replies that wait for a client that does not read; above it nothing is read from it.
    pub replies_bytes_max: usize,
    pub connections_max: usize,
    /// With those whose client is away. A new one takes the place of the one away for the longest.
    pub sessions_max: usize,
    pub client_id_bytes_max: usize,
    /// Of one session, and of all.
    pub subscriptions_max: usize,
    pub subscriptions_max_in_all: usize,
    /// Messages that wait for one client; the oldest is lost for a new one.
    pub queue_max: usize,
    /// What one client has not acknowledged and what waits for it, in bytes, and that of all.
    /// A message counts once for each client for which it waits.
    pub session_bytes_max: usize,
    pub sessions_bytes_max: usize,
    /// Messages that a client has not acknowledged, and their bytes unless it is one.
    pub window: usize,
    pub window_bytes_max: usize,
    /// Messages at QoS 2 that a client has not released.
    pub received_max: usize,
    pub retained_max: usize,
    pub retained_bytes_max: usize,
    /// From the connection to its CONNECT, the WebSocket handshake included.
    pub connect_timeout: Duration,
    /// From the first byte of a packet to its last.
    pub packet_timeout: Duration,
}

impl Limits {
    /// The connections, the window and the CONNECT's time are what rumqttd had here before; the
    /// rest are guesses for one device, its browser and its tools.
    pub fn for_payload(payload_bytes_max: usize) -> Self {
        let unit = unit(payload_bytes_max);
        Self {
            publish_bytes_max: payload_bytes_max,
            packet_bytes_max: 128 << 10,
            inbound_bytes_max: 4 * unit,
            replies_bytes_max: 16 << 10,
            connections_max: 64,
            sessions_max: 128,
            client_id_bytes_max: 1024,
            subscriptions_max: 1024,
            subscriptions_max_in_all: 4096,
            queue_max: 10_000,
            session_bytes_max: 3 * unit,
            sessions_bytes_max: 6 * unit,
            window: 100,
            window_bytes_max: unit,
            received_max: 1000,
            retained_max: 4096,
            retained_bytes_max: 2 * unit,
            connect_timeout: Duration::from_secs(5),
            packet_timeout: Duration::from_secs(30),
        }
    }
}

/// The memory of the process that these limits add up to, and half as much for fragmentation. The
/// process ends above it.
pub fn memory_bytes_max(payload_bytes_max: usize) -> usize {
    let limits = Limits::for_payload(payload_bytes_max);
    let messages = limits.inbound_bytes_max + limits.sessions_bytes_max + limits.retained_bytes_max;
    BASE_BYTES + messages + messages / 2
}

fn unit(payload_bytes_max: usize) -> usize {
    payload_bytes_max.max(UNIT_BYTES_MIN)
}
