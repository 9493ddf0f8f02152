//! Commands, as they come by MQTT and HTTP: every verb, plain and as the body of a signed one.

use rollcall::wire::command::{self, Limits, Received};
use rollcall::wire::event::Body;

use crate::choice;

const VERBS: [&str; 14] = [
    "enrol",
    "enrol_from_camera",
    "withdraw",
    "consent",
    "rename",
    "subjects",
    "recognise",
    "attend",
    "attendance",
    "venue_put",
    "venue_delete",
    "venues",
    "sync",
    "no_such_verb",
];
const KINDS: [&str; 7] =
    ["attendance", "unknown", "attack", "camera", "enrolment", "correction", "security"];
/// 2026-11-23T07:58:03.412Z
const NOW_MS: i64 = 1_795_420_683_412;
/// Small, so that the fuzzer reaches them.
const LIMITS: Limits = Limits { payload_bytes: 4096, images: 3, image_bytes: 64, json_depth: 16 };

/// The first byte chooses the verb, and whether the command was signed.
pub fn command(bytes: &[u8]) {
    let (first, payload) = choice(bytes);
    let verb = VERBS[usize::from(first) % VERBS.len()];
    let is_signed = first >= 128;
    let received = |is_retained| {
        let received = Received::by_mqtt(verb, payload, is_retained);
        if is_signed { received.signed() } else { received }
    };
    match command::parse(received(false), &LIMITS, NOW_MS) {
        Ok(command) => {
            assert!(command::is_verb(verb));
            assert_eq!(command::request_id(payload, &LIMITS), Some(command.request_id));
        }
        Err(refusal) => {
            assert!(!refusal.message.is_empty());
            // A refusal is published: it must stay small, whatever it quotes.
            assert!(refusal.message.len() < 2 * LIMITS.payload_bytes + 512, "{}", refusal.message);
        }
    }
    command::parse(received(true), &LIMITS, NOW_MS).expect_err("a retained command is rejected");
}

/// The body of an event as the database has it; the first byte chooses the kind.
pub fn event(bytes: &[u8]) {
    let (first, json) = choice(bytes);
    let kind = KINDS[usize::from(first) % KINDS.len()];
    let Ok(json) = std::str::from_utf8(json) else { return };
    if let Ok(body) = Body::from_stored(kind, json) {
        let stored = body.to_stored(None);
        let again = Body::from_stored(kind, &stored).expect("what was written can be read");
        assert_eq!(again.to_stored(None), stored);
    }
}
