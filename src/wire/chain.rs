//! The chain of events: what a link is, and over which bytes its hashes are (`docs/wire.md`, *The
//! chain of events*).
//!
//! Works on the JSON of the wire, whatever kind of event it is: a field that is added later is
//! covered without a change here. The form is a contract; a test compares it with literals, and
//! `docs/examples/verify.py` has it in Python.
//!
//! Not here: where links are made and kept (`store`), and how a record is checked (`chain_check`).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Bytes that are base64url (without padding) in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes<const N: usize>(pub [u8; N]);

pub type Hash = Bytes<32>;
/// Random bytes that keep a commitment from being guessed.
pub type Salt = Bytes<16>;

impl<const N: usize> Bytes<N> {
    fn parse(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("is not base64url of this length"))
    }
}

/// An event of the chain, by its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub seq: i64,
    pub hash: Hash,
}

/// Why a chain begins at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It is the device's first event.
    New,
    /// The events before were recorded by a version without a chain.
    Existing,
    /// The event before could not be read.
    Break,
}

/// The SHA-256 over salt and value of each field that names a person.
pub type Commitments = BTreeMap<String, Hash>;

/// What links an event to the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The hash of the event before; none where the chain begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Hash>,
    pub hash: Hash,
    /// The attendance or correction before; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// None for an event without a person, and once the person has been erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<Salt>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commit: Commitments,
    /// The fields of [`CORRECTABLE`] as they were first recorded, once one of them has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Map<String, Value>>,
}

/// The fields that a correction sets right. They are hashed as they were first recorded.
pub const CORRECTABLE: [&str; 5] = ["clock", "occurred_at", "session", "status", "superseded_by"];

/// Fields that are not hashed as they are: those that name the person, those of the sending, and
/// those of the link.
const APART: [&str; 8] =
    ["chain", "consent", "device", "expires_at", "historical", "seq", "site", "subject"];

/// Returns whether events of a kind are in the chain of the record.
pub fn is_of_record(kind: &str) -> bool {
    matches!(kind, "attendance" | "correction")
}

/// Returns the canonical bytes of a JSON value: a letter for its type, the length of its content as
/// four bytes (big-endian), and the content. An object has its members in the order of their keys,
/// without those that are null. A number is counted in millionths.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    put(&mut bytes, value);
    bytes
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => framed(bytes, b'n', |_| {}),
        Value::Bool(it) => framed(bytes, b'b', |bytes| bytes.push(b'0' + u8::from(*it))),
        Value::Number(it) => {
            let millionths = millionths(it).to_string();
            framed(bytes, b'd', |bytes| bytes.extend_from_slice(millionths.as_bytes()));
        }
        Value::String(it) => put_text(bytes, it),
        Value::Array(it) => framed(bytes, b'l', |bytes| it.iter().for_each(|it| put(bytes, it))),
        Value::Object(it) => framed(bytes, b'o', |bytes| {
            for (key, value) in it.iter().filter(|it| !it.1.is_null()) {
                put_text(bytes, key);
                put(bytes, value);
            }
        }),
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    framed(bytes, b's', |bytes| bytes.extend_from_slice(text.as_bytes()));
}

fn framed(bytes: &mut Vec<u8>, letter: u8, content: impl FnOnce(&mut Vec<u8>)) {
    bytes.push(letter);
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    content(bytes);
    let length = u32::try_from(bytes.len() - at - 4).unwrap_or(u32::MAX);
    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Scores are 32-bit numbers, MongoDB has them to six places, JSON in as few digits as tell them apart,
/// and JavaScript without a point where they are whole: this is the same for all of them.
fn millionths(number: &serde_json::Number) -> i128 {
    let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    let rounded = || (f64::from(number.as_f64().unwrap_or_default() as f32) * 1e6).round() as i128;
    whole.map_or_else(rounded, |it| it * 1_000_000)
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    Bytes(digest.finalize().into())
}

/// Returns the fields of an event that name the person, with the names of their commitments.
pub fn personal(event: &Map<String, Value>) -> Vec<(&'static str, &Value)> {
    let subject = event.get("subject").filter(|it| !it.is_null());
    let of_subject = |field| subject.and_then(|it| it.get(field));
    let fields = [
        ("id", of_subject("id")),
        ("name", of_subject("name")),
        ("consent", event.get("consent").filter(|it| !it.is_null())),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

pub fn commitments(event: &Map<String, Value>, salt: &Salt) -> Commitments {
    let commitment = |(name, value): (&str, &Value)| {
        (name.to_owned(), sha256(&[&salt.0, &encode(&json!([name, value]))]))
    };
    personal(event).into_iter().map(commitment).collect()
}

/// Returns the hash of what an event states: its fields as they were first recorded, and the
/// commitments in place of the person.
pub fn content(
    event: &Map<String, Value>,
    was: Option<&Map<String, Value>>,
    commit: &Commitments,
) -> Hash {
    let is_hashed =
        |key: &str| !APART.contains(&key) && (was.is_none() || !CORRECTABLE.contains(&key));
    let present = event.iter().filter(|(key, _)| is_hashed(key));
    let first = was.into_iter().flatten().filter(|(key, _)| CORRECTABLE.contains(&key.as_str()));
    let mut fields: Map<String, Value> =
        present.chain(first).map(|(key, value)| (key.clone(), value.clone())).collect();
    if !commit.is_empty() {
        fields.insert("commit".into(), json!(commit));
    }
    sha256(&[&encode(&Value::Object(fields))])
}

/// Returns the hash of an event in its place: its content, its number, and what comes before it.
pub fn hash(
    seq: i64,
    content: &Hash,
    prev: Option<&Hash>,
    record: Option<&Place>,
    start: Option<Start>,
) -> Hash {
    let place = json!({
        "content": content, "prev": prev, "record": record, "seq": seq, "start": start,
    });
    sha256(&[&encode(&place)])
}

/// Returns the fields that a correction may change, as they are now.
pub fn correctable(event: &Map<String, Value>) -> Map<String, Value> {
    let field = |key: &&str| Some(((*key).to_owned(), event.get(*key)?.clone()));
    CORRECTABLE.iter().filter_map(field).filter(|it| !it.1.is_null()).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn event() -> Map<String, Value> {
        let event = json!({
            "schema": 1, "event_id": "0192f0c1-0000-7000-8000-000000000001", "seq": 2,
            "kind": "attendance", "site": "hq", "device": "door-1", "venue": "room-a",
            "session": null, "subject": {"id": "jdoe", "name": "Jané"}, "direction": "in",
            "status": "present", "score": 0.713, "threshold": 0.42, "frames": 4, "track_ms": 610,
            "latency_ms": 84, "occurred_at": "2026-11-23T07:58:03.412Z", "clock": "synced",
            "boot_id": "boot", "boottime_ms": 912_345, "historical": false,
            "expires_at": "2026-11-23T07:58:33.412Z",
        });
        event.as_object().unwrap().clone()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, it| {
            write!(text, "{it:02x}").unwrap();
            text
        })
    }

    #[test]
    fn canonical_form_is_as_documented() {
        for (value, expected) in [
            (json!(null), "6e00000000"),
            (json!(true), "620000000131"),
            (json!(-12), "64000000092d3132303030303030"),
            (json!(1.0), "640000000731303030303030"),
            (json!(0.713), "6400000006373133303030"),
            (json!(0.713_f32), "6400000006373133303030"),
            (json!(0.007_812_5), "640000000437383133"),
            (json!(-0.007_812_5), "64000000052d37383133"),
            (json!("é"), "7300000002c3a9"),
            (json!([1, null]), "6c00000011640000000731303030303030 6e00000000"),
            (
                json!({"b": 1, "a": "", "c": null}),
                "6f0000001d 730000000161 7300000000 730000000162 640000000731303030303030",
            ),
        ] {
            assert_eq!(hex(&encode(&value)), expected.replace(' ', ""), "{value}");
        }
    }

    #[test]
    fn hashes_are_the_documented_ones() {
        let salt = Bytes([7; 16]);
        let commit = commitments(&event(), &salt);
        let content = content(&event(), None, &commit);
        let prev = Bytes([1; 32]);
        let record = Place { seq: 1, hash: Bytes([1; 32]) };
        let hash = hash(2, &content, Some(&prev), Some(&record), None);
        let found = [commit["id"], commit["name"], content, hash].map(|it| it.to_string());
        // Made by docs/examples/verify.py.
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [&str; 4] = [
        "uGT6xPkhFdh5F_mVtnzi6SiEBRKOAULEiTiPzKEnIXE",
        "modhb3ENTgmK2DJ7f_L9acCSSfOW6axa1x-DsSfn_fU",
        "0K806o38JH3BBIL6j8Y7lsAJe9c56fafhsZwxP1IgEI",
        "LcCu5A_jU68pGm8-LuULBRmNVxViPl9SmiZs3lTbnoE",
    ];

    #[test]
    fn sending_and_correcting_do_not_change_the_content() {
        let salt = Bytes([7; 16]);
        let commit = commitments(&event(), &salt);
        let first = content(&event(), None, &commit);
        let was = correctable(&event());
        let mut later = event();
        later.insert("historical".into(), true.into());
        later.insert("occurred_at".into(), "2026-11-23T09:00:00.000Z".into());
        later.insert("expires_at".into(), "2026-11-23T09:00:30.000Z".into());
        later.insert("clock".into(), "corrected".into());
        later.insert("session".into(), "2026-11-23T08:00Z/mon-am".into());
        assert_eq!(content(&later, Some(&was), &commit), first);
        assert_ne!(content(&later, None, &commit), first);
        later.insert("subject".into(), Value::Null);
        assert_eq!(content(&later, Some(&was), &commit), first);
        later.insert("venue".into(), "room-b".into());
        assert_ne!(content(&later, Some(&was), &commit), first);
    }

    #[test]
    fn link_is_read_as_written() {
        let link = Link {
            prev: Some(Bytes([1; 32])),
            hash: Bytes([2; 32]),
            record: Some(Place { seq: 1, hash: Bytes([1; 32]) }),
            start: None,
            salt: Some(Bytes([3; 16])),
            commit: Commitments::from([("id".to_owned(), Bytes([4; 32]))]),
            was: None,
        };
        let text = serde_json::to_string(&link).unwrap();
        assert_eq!(
            text,
            r#"{"prev":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","hash":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI","record":{"seq":1,"hash":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"},"salt":"AwMDAwMDAwMDAwMDAwMDAw","commit":{"id":"BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ"}}"#
        );
        assert_eq!(serde_json::from_str::<Link>(&text).unwrap(), link);
        assert!(serde_json::from_str::<Link>(r#"{"hash":"AQ"}"#).is_err());
    }
}
