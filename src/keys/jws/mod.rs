//! Who may command: a message signed with a key that the device trusts, as a compact JWS (RFC 7515)
//! of one algorithm.
//!
//! `base64url(header) . base64url(claims) . base64url(signature)`, signed with Ed25519 (`"alg":
//! "EdDSA"`, RFC 8037). There is no other algorithm to be talked into, no key from the message, no
//! extension: a header with anything but `alg`, `kid` and `typ` is refused. The signature is
//! checked over the bytes as they came, before any of the claims is decoded.
//!
//! Invariants: nothing is believed of a message whose signature does not hold. Every altered
//! character is noticed, those that decode to the same bytes too (the base64 is strict). Nothing is
//! allocated beyond the size of what came.
//!
//! Not here: key files (`signer`), what was seen before (`store`), what a command may contain
//! (`command`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::clock::Stamp;
use crate::ids::check_id;

/// The longest that a message may be good for: a door that was off for the night still gets it, one
/// that was off for a week does not. As long as it is good its id is kept.
pub const LIFETIME_MAX_S: i64 = 86_400;
/// How far the clocks of sender and device may be apart.
pub const SKEW_S: i64 = 60;
/// Keys that a device trusts at most; with more than one a message must name the one it was signed
/// with.
pub const KEYS_MAX: usize = 16;

/// A command's `typ`, which may be left out.
pub const COMMAND: &str = "JWT";

const ALGORITHM: &str = "EdDSA";
const PREFIX: &str = "ed25519:";
const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
/// Three members, none of them long.
const HEADER_CHARS_MAX: usize = 1024;

/// An Ed25519 public key. As text: `ed25519:` and its 32 bytes in base64url.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no public key: `ed25519:` and 43 characters of base64url, as `rollcall keys show` prints it"
)]
pub struct NoKey;

impl PublicKey {
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// What follows after a blank is for people: whose key it is.
    pub fn parse(text: &str) -> Result<Self, NoKey> {
        let encoded =
            text.split_whitespace().next().and_then(|it| it.strip_prefix(PREFIX)).ok_or(NoKey)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NoKey)?;
        bytes.try_into().map(Self).map_err(|_| NoKey)
    }

    /// Which key it is: the thumbprint of RFC 7638, as every library makes it.
    pub fn kid(&self) -> String {
        let jwk =
            format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(self.0));
        URL_SAFE_NO_PAD.encode(Sha256::digest(jwk.as_bytes()))
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Nothing of such a message is believed, not even whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("this device takes signed commands only (`rollcall sign` makes one)")]
    Unsigned,
    #[error("the signature does not hold: {0}")]
    BadSignature(&'static str),
}

/// A message that the holder of a trusted key made.
pub struct Signed {
    claims: Vec<u8>,
    pub key: PublicKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
}

/// The content of a signed command; nothing else may stand beside it. Times are whole seconds since
/// 1970.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims<'a> {
    pub iat: i64,
    pub exp: i64,
    /// An id that its signer never uses again.
    pub jti: String,
    /// For whom: `{site}/{device}`, or `{site}/all`.
    pub aud: String,
    /// The body of the command, with its verb.
    #[serde(borrow)]
    pub cmd: &'a RawValue,
}

/// Why a command is not carried out though a trusted key made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the claims must be exactly iat, exp (whole seconds), jti, aud and cmd (an object)")]
    Claims,
    #[error("jti must be an id")]
    Id,
    #[error("it was signed for another device or site")]
    Audience,
    #[error("it is good for longer than a day, or ends before it begins")]
    Lifetime,
    #[error("it is too late for it")]
    Late,
    #[error("it was signed in the future: are the clocks right?")]
    Early,
    #[error(
        "this device does not know the time yet and cannot know whether the command is still valid: send it again when it \
         does (health: clock_trusted), or see [clock] trust"
    )]
    NoTime,
}

/// Whether a message has the form of a JWS. One that has not is not signed; plain commands never
/// have it.
pub fn is_compact(message: &[u8]) -> bool {
    parts(message).is_some_and(|(header, claims, signature)| {
        let all = [header, claims, signature];
        !header.is_empty()
            && all
                .iter()
                .all(|part| part.iter().all(|it| it.is_ascii_alphanumeric() || b"-_".contains(it)))
    })
}

fn parts(message: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // The dots are near the ends, the claims may be megabytes.
    let first = message.iter().take(HEADER_CHARS_MAX + 1).position(|it| *it == b'.')?;
    let last = message.iter().rposition(|it| *it == b'.').filter(|last| *last > first)?;
    Some((&message[..first], &message[first + 1..last], &message[last + 1..]))
}

/// Checks who made a message. `typ` is the type it must have; `COMMAND` may be left out.
pub fn verify(message: &[u8], typ: &str, keys: &[PublicKey]) -> Result<Signed, Untrusted> {
    let message = message.trim_ascii();
    let bad = Untrusted::BadSignature;
    if !is_compact(message) {
        return Err(Untrusted::Unsigned);
    }
    let (header, claims, signature) = parts(message).ok_or(Untrusted::Unsigned)?;
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| bad("the header is not base64url"))?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| bad("the header may have alg, kid and typ, each once"))?;
    if header.alg != ALGORITHM {
        return Err(bad("the algorithm is not EdDSA"));
    }
    let kind = header.typ.as_deref();
    if !(kind == Some(typ) || kind.is_none() && typ == COMMAND) {
        return Err(bad("it is of another kind (typ)"));
    }
    let mut raw = [0; SIGNATURE_BYTES + 2];
    let length = URL_SAFE_NO_PAD
        .decode_slice(signature, &mut raw)
        .map_err(|_| bad("it is not base64url"))?;
    if length != SIGNATURE_BYTES {
        return Err(bad("it is not of 64 bytes"));
    }
    let text = &message[..message.len() - signature.len() - 1];
    let raw = &raw[..SIGNATURE_BYTES];
    if header.kid.is_none() && keys.len() > 1 {
        // Each key would have to read all of the message.
        return Err(bad(
            "with several trusted keys its header must name the one that made it (kid)",
        ));
    }
    let named = |key: &&PublicKey| header.kid.as_ref().is_none_or(|kid| *kid == key.kid());
    let key = keys.iter().filter(named).find(|key| key.verifies(text, raw));
    let key = key.ok_or(bad("no trusted key made it, or the message was altered"))?.clone();
    // Only now is its content read.
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| bad("the claims are not base64url"))?;
    Ok(Signed { claims, key })
}

/// Of a message that nobody can check here (no key is trusted): its content, to be able to reply
/// its sender.
pub fn unchecked(message: &[u8]) -> Option<Vec<u8>> {
    let (_, claims, _) = parts(message.trim_ascii())?;
    URL_SAFE_NO_PAD.decode(claims).ok()
}

impl Signed {
    pub fn bytes(&self) -> &[u8] {
        &self.claims
    }

    pub fn claims(&self) -> Result<Claims<'_>, Unfit> {
        Claims::read(&self.claims)
    }

    /// Returns the id of the key that made the signature.
    pub fn kid(&self) -> String {
        self.key.kid()
    }

    /// By what the message is known again: two keys may use the same `jti`.
    pub fn token_id(&self, claims: &Claims<'_>) -> String {
        format!("{}/{}", self.key.kid(), claims.jti)
    }
}

impl<'a> Claims<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, Unfit> {
        serde_json::from_slice(bytes).map_err(|_| Unfit::Claims)
    }

    /// `audiences` are the names that this device answers to.
    pub fn check(&self, audiences: &[String], now: &Stamp) -> Result<(), Unfit> {
        check_id(&self.jti).map_err(|_| Unfit::Id)?;
        if !audiences.contains(&self.aud) {
            return Err(Unfit::Audience);
        }
        let lifetime = self.exp.checked_sub(self.iat).ok_or(Unfit::Lifetime)?;
        if !(1..=LIFETIME_MAX_S).contains(&lifetime) {
            return Err(Unfit::Lifetime);
        }
        if !now.trusted {
            return Err(Unfit::NoTime);
        }
        let now_s = now.wall_ms.div_euclid(1000);
        if self.iat.saturating_sub(SKEW_S) > now_s {
            return Err(Unfit::Early);
        }
        if now_s >= self.exp.saturating_add(SKEW_S) {
            return Err(Unfit::Late);
        }
        Ok(())
    }

    /// From then on it is too late for it by any clock that we go by.
    pub fn gone_ms(&self) -> i64 {
        self.exp.saturating_add(SKEW_S).saturating_mul(1000)
    }
}

/// What is to be signed: header and claims, joined.
pub fn to_be_signed(kid: String, typ: &str, claims: &[u8]) -> String {
    let header = Header { alg: ALGORITHM.into(), kid: Some(kid), typ: Some(typ.into()) };
    let header = serde_json::to_vec(&header).expect("three strings");
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// With its signature, as it is sent.
pub fn joined(mut text: String, signature: &[u8]) -> String {
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    text
}

/// The 32 bytes of a private key in the form that every tool reads: PKCS #8 (RFC 8410) as PEM.
pub fn private_pem(seed: &[u8; KEY_BYTES]) -> zeroize::Zeroizing<String> {
    let der = zeroize::Zeroizing::new([&PKCS8_ED25519[..], seed].concat());
    let body = zeroize::Zeroizing::new(STANDARD_NO_PAD.encode(&*der));
    zeroize::Zeroizing::new(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        *body
    ))
}

/// All of the structure but the key itself, which has always the same length.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

#[cfg(test)]
mod tests;
