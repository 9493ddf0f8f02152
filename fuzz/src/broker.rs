//! The embedded broker: what a client and what a browser sends.

use std::time::Duration;

use rollcall::broker::limits::Limits;
use rollcall::broker::state::BrokerState;
use rollcall::broker::websocket::{Decoder, answer};

use crate::choice;

const NOW: Duration = Duration::from_secs(1);
const CONNECT_311: &[u8] = b"\x10\x0d\0\x04MQTT\x04\0\0\0\0\x01a";
const CONNECT_5: &[u8] = b"\x10\x0e\0\x04MQTT\x05\0\0\0\0\0\x01a";
const OBSERVER: &[u8] = b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01o\x82\x06\0\x01\0\x01#\x02";

/// A client before and after its CONNECT, beside another that has subscribed to everything.
pub fn broker(bytes: &[u8]) {
    let (how, bytes) = choice(bytes);
    let mut state = BrokerState::new(Limits::for_payload(1 << 16), None);
    let (Some(client), Some(observer)) = (state.open(NOW), state.open(NOW)) else { return };
    state.feed(observer, OBSERVER, NOW);
    match how % 3 {
        0 => {}
        1 => state.feed(client, CONNECT_311, NOW),
        _ => state.feed(client, CONNECT_5, NOW),
    }
    for piece in bytes.chunks(usize::from(how / 3) + 1) {
        state.feed(client, piece, NOW);
        for id in [client, observer] {
            while !state.output(id, NOW).is_empty() {}
        }
    }
    state.tick(NOW * 1000);
    state.closed(client, NOW * 1000);
}

/// The request of a browser, then its frames.
pub fn websocket(bytes: &[u8]) {
    answer(bytes);
    let mut decoder = Decoder::default();
    let (mut payload, mut replies) = (Vec::new(), Vec::new());
    decoder.feed(bytes, &mut payload, &mut replies).ok();
    assert!(payload.len() + replies.len() <= bytes.len());
}
