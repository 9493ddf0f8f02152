//! The token that HTTP clients present, and how fast wrong ones may be tried.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::http::places::Peer;
use crate::rate_limiter::RateLimiter;

const LENGTH_MIN: usize = 16;
/// Characters that are not foreseeable from those before them, and different ones among these. Eight
/// random ones of base64 are 48 bits: at the rate below, millions of years. Few enough that 16 random
/// hexadecimal digits pass.
const UNFORESEEABLE_MIN: usize = 8;
const DIFFERENT_MIN: usize = 6;
/// What whoever guesses tries first.
const COMMON_WORDS: [&str; 12] = [
    "password",
    "passwort",
    "changeme",
    "rollcall",
    "secret",
    "qwertyuiop",
    "qwerty",
    "letmein",
    "welcome",
    "default",
    "example",
    "admin",
];

/// The digest of the secret that a client must present.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakToken {
    #[error("needs {LENGTH_MIN} visible characters or more")]
    Short,
    #[error("is easily guessed: write a random one, for example by `openssl rand -base64 24`")]
    Foreseeable,
}

impl Token {
    /// Accepts at least 16 visible ASCII characters, since the token travels in a header, that are
    /// not easily guessed.
    pub fn new(text: &str) -> Result<Self, WeakToken> {
        if text.len() < LENGTH_MIN || !text.bytes().all(|it| it.is_ascii_graphic()) {
            return Err(WeakToken::Short);
        }
        let rest = unforeseeable(text);
        let different = rest.iter().collect::<std::collections::BTreeSet<_>>().len();
        if rest.len() < UNFORESEEABLE_MIN || different < DIFFERENT_MIN {
            return Err(WeakToken::Foreseeable);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Compares in constant time.
    pub fn matches(&self, presented: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.0.ct_eq(&presented).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Returns the characters without common words, runs such as `aaa`, `123` and `fed`, and
/// repetitions of what came before.
fn unforeseeable(text: &str) -> Vec<u8> {
    let mut text = text.to_ascii_lowercase();
    for word in COMMON_WORDS {
        text = text.replace(word, "");
    }
    let bytes = text.as_bytes();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let is_run = at > 0 && bytes[at].abs_diff(bytes[at - 1]) <= 1;
        // The longest piece from here that stands before as well.
        let repeated = (3..=bytes.len() - at)
            .rev()
            .find(|length| bytes[..at].windows(*length).any(|it| it == &bytes[at..at + length]));
        if let Some(length) = repeated {
            at += length;
            continue;
        }
        if !is_run {
            kept.push(bytes[at]);
        }
        at += 1;
    }
    kept
}

/// Wrong tokens of one address in a minute that are answered at once. A guess: a page that was left
/// open with an old token asks a dozen times.
const AT_ONCE_PER_MINUTE: u32 = 30;
/// Further ones wait so long for their answer, so many of one address at a time. Meanwhile nothing
/// more from that address is compared.
pub const GUESS_PAUSE: Duration = Duration::from_secs(1);
const PAUSED_MAX: usize = 4;
/// Addresses that are remembered. More than a stranger in the building has.
const PEERS_MAX: usize = 1024;

/// Slows down whoever tries tokens: some four a second of one address, and others are not affected.
#[derive(Debug, Default)]
pub struct GuessLimiter {
    peers: BTreeMap<Peer, Guesses>,
}

#[derive(Debug)]
struct Guesses {
    at_once: RateLimiter,
    last_ms: u64,
    paused: usize,
}

impl GuessLimiter {
    /// Returns whether a token of this address is compared at all.
    pub fn may_try(&self, peer: Peer) -> bool {
        self.peers.get(&peer).is_none_or(|it| it.paused < PAUSED_MAX)
    }

    /// Counts a wrong token. Returns whether its answer has to wait for [`GUESS_PAUSE`]; then
    /// [`end_pause`](Self::end_pause) follows it.
    pub fn note_wrong(&mut self, peer: Peer, now_ms: u64) -> bool {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&peer) {
            // The one that was quiet for longest.
            let free = self.peers.iter().filter(|it| it.1.paused == 0);
            if let Some(oldest) = free.min_by_key(|it| it.1.last_ms).map(|it| *it.0) {
                self.peers.remove(&oldest);
            }
        }
        let guesses = self.peers.entry(peer).or_insert_with(|| Guesses {
            at_once: RateLimiter::new(AT_ONCE_PER_MINUTE),
            last_ms: now_ms,
            paused: 0,
        });
        guesses.last_ms = now_ms;
        let must_wait = !guesses.at_once.allows(now_ms);
        guesses.paused += usize::from(must_wait);
        must_wait
    }

    pub fn end_pause(&mut self, peer: Peer) {
        if let Some(guesses) = self.peers.get_mut(&peer) {
            guesses.paused = guesses.paused.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_tokens_are_rejected() {
        for (text, fault) in [
            ("short", WeakToken::Short),
            ("with a blank in it", WeakToken::Short),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", WeakToken::Foreseeable),
            ("0123456789abcdef", WeakToken::Foreseeable),
            ("zyxwvutsrqponmlkjihg", WeakToken::Foreseeable),
            ("x7Kp2x7Kp2x7Kp2x7Kp2x7Kp2", WeakToken::Foreseeable),
            ("changemechangemechangeme", WeakToken::Foreseeable),
            ("Password123456789!", WeakToken::Foreseeable),
            ("rollcall-rollcall-rollcall", WeakToken::Foreseeable),
            ("1111111111111111x", WeakToken::Foreseeable),
            ("abababababababababab", WeakToken::Foreseeable),
        ] {
            assert_eq!(Token::new(text).err(), Some(fault), "{text}");
        }
        for text in [
            "a-token-of-enough-characters",
            "correct-horse-battery-staple",
            "q83JvN0xTz1LmW5r",
            "6f1ed002ab5595859014ebf0951522d9",
        ] {
            assert!(Token::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn only_exact_token_matches() {
        let token = Token::new("q83JvN0xTz1LmW5r").unwrap();
        assert!(token.matches(b"q83JvN0xTz1LmW5r"));
        assert!(!token.matches(b"q83JvN0xTz1LmW5R") && !token.matches(b""));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn guesses_are_slowed_per_address() {
        let peer = |host| Peer::new([192, 0, 2, host].into());
        let mut limiter = GuessLimiter::default();
        let at_once = (0..40).filter(|_| !limiter.note_wrong(peer(1), 0)).count();
        assert_eq!(at_once, AT_ONCE_PER_MINUTE as usize);
        assert!(!limiter.may_try(peer(1)), "ten wait for their answer");
        assert!(limiter.may_try(peer(2)) && !limiter.note_wrong(peer(2), 0));
        (0..7).for_each(|_| limiter.end_pause(peer(1)));
        assert!(limiter.may_try(peer(1)));
        assert!(!limiter.note_wrong(peer(1), 60_000), "a minute later");
    }

    #[test]
    fn remembered_addresses_are_bounded() {
        let mut limiter = GuessLimiter::default();
        for host in 0..5000_u32 {
            limiter.note_wrong(Peer::new(std::net::Ipv4Addr::from(host).into()), host.into());
        }
        assert_eq!(limiter.peers.len(), PEERS_MAX);
    }
}
