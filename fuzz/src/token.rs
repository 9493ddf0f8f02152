//! Signed commands: the token as it comes, and claims that a trusted key has signed.

use std::sync::OnceLock;

use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::keys::jws::{self, Claims, PublicKey};
use rollcall::keys::signer::SigningKey;
use rollcall::wire::command::{self, Limits, Received};

use crate::{choice, folder};

const NOW_MS: i64 = 1_795_420_683_412;

fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::create(&folder().join("signer")).expect("a key can be made"))
}

fn keys() -> &'static [PublicKey] {
    static KEYS: OnceLock<Vec<PublicKey>> = OnceLock::new();
    KEYS.get_or_init(|| vec![key().public().clone(), PublicKey::new([7; 32])])
}

/// The first byte: whether the rest is the token itself, or claims to be signed.
pub fn token(bytes: &[u8]) {
    let (first, rest) = choice(bytes);
    if first % 2 == 0 {
        let signed = jws::verify(rest, jws::COMMAND, keys());
        assert!(signed.is_err(), "nobody has signed it");
        if let Some(claims) = jws::unchecked(rest) {
            Claims::read(&claims).ok();
        }
        return;
    }
    let text = key().sign(jws::COMMAND, rest);
    let signed = jws::verify(text.as_bytes(), jws::COMMAND, keys()).expect("it was just signed");
    assert_eq!(signed.bytes(), rest);
    let Ok(claims) = signed.claims() else { return };
    let now = SimulatedClock::at(NOW_MS).now();
    if claims.check(&["hq/door-1".into(), "hq/all".into()], &now).is_ok() {
        assert!(claims.gone_ms() > NOW_MS - 120_000);
    }
    let body = claims.cmd.get().as_bytes();
    let received = Received::by_mqtt("rename", body, false).signed();
    command::parse(received, &Limits::default(), NOW_MS).ok();
}
