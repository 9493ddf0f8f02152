//! The MQTT payloads of the shared gallery: one record for each subject, and the pages of the index.
//!
//! Invariants: everything that is published is sealed with the site key; what is read is bounded
//! and checked before it is used. A page lists the versions that the site has, so that a device
//! learns what it lacks without receiving all records.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::{SubjectId, check_id};
use crate::keys::seal::{SealError, SharedKey};
use crate::store::{SealedRecord, VersionRecord};
use crate::wire::subject::{Portable, PortableError, Version};

/// Pages of the index. A site of 10,000 has about 40 subjects on each.
pub const PAGES: usize = 256;

/// The largest message that is read: 64 references of 512 numbers, or 3,000 entries, are a fifth of
/// it.
pub const BYTES_MAX: usize = 1 << 20;

const SCHEMA: u32 = 1;

/// Nonce (24 bytes) and tag (16) of XChaCha20-Poly1305: what is shorter was sealed with no key.
pub const SEALED_BYTES_MIN: usize = 40;
const TOO_SHORT: &str = "it is too short to be sealed";

/// The version of each subject.
pub type Entries = BTreeMap<SubjectId, VersionRecord>;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("it is no valid message of a device: {why}")]
    Shape { why: &'static str },
    #[error("it does not open with the site key")]
    Sealed,
    #[error("it opens with the site key, but this version cannot read it")]
    Unreadable,
}

/// A record as its topic has it. What is in clear counts only after the record was opened.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    schema: u32,
    version: Version,
    #[serde(default)]
    withdrawn: bool,
    sealed: String,
}

#[derive(Serialize, Deserialize)]
struct SealedPage {
    schema: u32,
    sealed: String,
}

/// Subject, withdrawals, changes, device, whether withdrawn.
type PageEntry = (SubjectId, u32, u32, String, bool);

/// Returns the page that a subject is on: the same on every device.
pub fn page_of(id: &SubjectId) -> u8 {
    Sha256::digest(id.as_str().as_bytes())[0]
}

pub fn encode_record(record: &SealedRecord) -> Vec<u8> {
    let sealed = STANDARD.encode(&record.sealed);
    let VersionRecord { version, withdrawn, .. } = record.version.clone();
    to_json(&Envelope { schema: SCHEMA, version, withdrawn, sealed })
}

pub fn open_record(
    payload: &[u8],
    key: &SharedKey,
    site: &str,
    id: &SubjectId,
) -> Result<Portable, WireError> {
    if payload.len() > BYTES_MAX {
        return Err(WireError::Shape { why: "it is too large" });
    }
    let envelope: Envelope = serde_json::from_slice(payload)
        .map_err(|_| WireError::Shape { why: "it cannot be read" })?;
    if envelope.schema != SCHEMA {
        return Err(WireError::Shape { why: "it has another schema" });
    }
    if check_id(&envelope.version.device).is_err() {
        return Err(WireError::Shape { why: "its device is no valid id" });
    }
    let sealed = STANDARD
        .decode(&envelope.sealed)
        .map_err(|_| WireError::Shape { why: "it is not base64" })?;
    let portable = Portable::open(&sealed, key, site, id).map_err(|error| match error {
        PortableError::Sealed(_) if sealed.len() < SEALED_BYTES_MIN => {
            WireError::Shape { why: TOO_SHORT }
        }
        PortableError::Sealed(_) => WireError::Sealed,
        PortableError::Form { .. } | PortableError::Shape { .. } => WireError::Unreadable,
    })?;
    // Anybody can write the clear part; the sealed one needs the key.
    if portable.version != envelope.version || portable.is_withdrawn() != envelope.withdrawn {
        return Err(WireError::Shape { why: "its clear and its sealed version differ" });
    }
    Ok(portable)
}

pub fn seal_page(
    entries: &Entries,
    page: u8,
    key: &SharedKey,
    site: &str,
) -> Result<Vec<u8>, SealError> {
    let entry = |(id, it): (&SubjectId, &VersionRecord)| -> PageEntry {
        let Version { withdrawals, changes, device } = it.version.clone();
        (id.clone(), withdrawals, changes, device, it.withdrawn)
    };
    let plain = to_json(&entries.iter().map(entry).collect::<Vec<_>>());
    let sealed = STANDARD.encode(key.seal(&plain, &associated_data(page, site))?);
    Ok(to_json(&SealedPage { schema: SCHEMA, sealed }))
}

pub fn open_page(
    payload: &[u8],
    page: u8,
    key: &SharedKey,
    site: &str,
) -> Result<Entries, WireError> {
    let shape = |why| WireError::Shape { why };
    if payload.len() > BYTES_MAX {
        return Err(shape("it is too large"));
    }
    let found: SealedPage =
        serde_json::from_slice(payload).map_err(|_| shape("it cannot be read"))?;
    if found.schema != SCHEMA {
        return Err(shape("it has another schema"));
    }
    let sealed = STANDARD.decode(&found.sealed).map_err(|_| shape("it is not base64"))?;
    if sealed.len() < SEALED_BYTES_MIN {
        return Err(shape(TOO_SHORT));
    }
    let plain = key.open(&sealed, &associated_data(page, site)).map_err(|_| WireError::Sealed)?;
    let listed: Vec<PageEntry> =
        serde_json::from_slice(&plain).map_err(|_| shape("its entries cannot be read"))?;
    let mut entries = Entries::new();
    for (id, withdrawals, changes, device, withdrawn) in listed {
        if page_of(&id) != page || check_id(&device).is_err() {
            return Err(shape("an entry does not belong there"));
        }
        let version = Version { withdrawals, changes, device };
        entries.insert(id, VersionRecord { version, withdrawn, erased: false });
    }
    Ok(entries)
}

fn to_json(it: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(it).expect("plain numbers and strings")
}

fn associated_data(page: u8, site: &str) -> Vec<u8> {
    [b"rollcall gallery page 1\0", site.as_bytes(), b"\0", &[page]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::subject::State;

    fn key() -> SharedKey {
        let dir = tempfile::tempdir().unwrap();
        SharedKey::create(&dir.path().join("site.key")).unwrap()
    }

    fn jane() -> Portable {
        let version = Version { withdrawals: 1, changes: 2, device: "door-1".into() };
        let state = State::Withdrawn { erased: true, at_ms: 9 };
        Portable { subject_id: SubjectId::new("jane").unwrap(), version, state }
    }

    #[test]
    fn altered_record_is_rejected() {
        let key = key();
        let jane = jane();
        let record = SealedRecord {
            subject_id: jane.subject_id.clone(),
            version: VersionRecord::of(&jane),
            sealed: jane.seal(&key, "hq").unwrap(),
        };
        let payload = encode_record(&record);
        let open = |payload: &[u8]| open_record(payload, &key, "hq", &jane.subject_id);
        assert_eq!(open(&payload).unwrap(), jane);
        let other = open_record(&payload, &self::key(), "hq", &jane.subject_id);
        assert!(matches!(other, Err(WireError::Sealed)));
        let text = String::from_utf8(payload).unwrap();
        for bad in [
            text.replace("\"changes\":2", "\"changes\":9"),
            text.replace("true", "false"),
            text.replace("door-1", "a/b"),
            text.replace("\"schema\":1", "\"schema\":2"),
            String::new(),
        ] {
            assert!(matches!(open(bad.as_bytes()), Err(WireError::Shape { .. })), "{bad}");
        }
    }

    #[test]
    fn index_page_is_bound_to_its_number() {
        let key = key();
        let jane = jane();
        let at = page_of(&jane.subject_id);
        let entries = Entries::from([(jane.subject_id.clone(), VersionRecord::of(&jane))]);
        let payload = seal_page(&entries, at, &key, "hq").unwrap();
        let read = open_page(&payload, at, &key, "hq").unwrap();
        assert_eq!(read[&jane.subject_id].version, jane.version);
        assert!(open_page(&payload, at ^ 1, &key, "hq").is_err());
        assert!(open_page(&payload, at, &key, "other").is_err());
        assert!(
            open_page(&seal_page(&entries, at ^ 1, &key, "hq").unwrap(), at ^ 1, &key, "hq")
                .is_err()
        );
        assert!(open_page(&payload[..40], at, &key, "hq").is_err());
    }
}
