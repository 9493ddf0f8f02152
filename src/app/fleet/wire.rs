//! What doors tell one another about the gallery: one record for each subject, and the pages of the index.
//!
//! Invariants: nothing is told that is not sealed with the site's key; what is read is bounded and checked before it is
//! used. A page says which accounts the site has, so that a door learns what it lacks without hearing all of it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::recognise::face::{SubjectId, check_id};
use crate::record::portable::{Portable, Version};
use crate::record::seal::{SealError, SharedKey};
use crate::record::store::Account;

/// Pages of the index. A site of 10,000 has about 40 subjects on each.
pub const PAGES: usize = 256;

/// The largest message that is read: 64 references of 512 numbers, or 3,000 entries, are a fifth of it.
pub const BYTES_MAX: usize = 1 << 20;

const SCHEMA: u32 = 1;

/// Which account each subject has.
pub type Entries = BTreeMap<SubjectId, Account>;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("it is not what a door would say: {why}")]
    Shape { why: &'static str },
    #[error("it does not open with the site's key")]
    Sealed,
}

/// A record as it stands on its topic. It can be judged without being opened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
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
type Entry = (SubjectId, u32, u32, String, bool);

/// The page that a subject is on: the same at every door.
pub fn page_of(id: &SubjectId) -> u8 {
    Sha256::digest(id.as_str().as_bytes())[0]
}

pub fn record(portable: &Portable, key: &SharedKey, site: &str) -> Result<Vec<u8>, SealError> {
    let sealed = STANDARD.encode(portable.seal(key, site)?);
    let (version, withdrawn) = (portable.version.clone(), portable.is_withdrawn());
    Ok(to_json(&Envelope { schema: SCHEMA, version, withdrawn, sealed }))
}

impl Envelope {
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        if payload.len() > BYTES_MAX {
            return Err(WireError::Shape { why: "it is too large" });
        }
        let found: Self = serde_json::from_slice(payload)
            .map_err(|_| WireError::Shape { why: "it cannot be read" })?;
        if found.schema != SCHEMA {
            return Err(WireError::Shape { why: "it has another schema" });
        }
        if check_id(&found.version.device).is_err() {
            return Err(WireError::Shape { why: "its device is none" });
        }
        Ok(found)
    }

    /// What it says of itself.
    pub fn account(&self) -> Account {
        Account { version: self.version.clone(), withdrawn: self.withdrawn, erased: false }
    }

    pub fn open(&self, key: &SharedKey, site: &str, id: &SubjectId) -> Result<Portable, WireError> {
        let sealed = STANDARD
            .decode(&self.sealed)
            .map_err(|_| WireError::Shape { why: "it is not base64" })?;
        let portable = Portable::open(&sealed, key, site, id).map_err(|_| WireError::Sealed)?;
        // Outside it may say anything; inside, only who has the key.
        if portable.version != self.version || portable.is_withdrawn() != self.withdrawn {
            return Err(WireError::Shape { why: "it is not the version that it says" });
        }
        Ok(portable)
    }
}

pub fn page(
    entries: &Entries,
    page: u8,
    key: &SharedKey,
    site: &str,
) -> Result<Vec<u8>, SealError> {
    let entry = |(id, it): (&SubjectId, &Account)| -> Entry {
        let Version { withdrawals, changes, device } = it.version.clone();
        (id.clone(), withdrawals, changes, device, it.withdrawn)
    };
    let plain = to_json(&entries.iter().map(entry).collect::<Vec<_>>());
    let sealed = STANDARD.encode(key.seal(&plain, &belongs(page, site))?);
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
    let plain = key.open(&sealed, &belongs(page, site)).map_err(|_| WireError::Sealed)?;
    let listed: Vec<Entry> =
        serde_json::from_slice(&plain).map_err(|_| shape("its entries cannot be read"))?;
    let mut entries = Entries::new();
    for (id, withdrawals, changes, device, withdrawn) in listed {
        if page_of(&id) != page || check_id(&device).is_err() {
            return Err(shape("an entry does not belong there"));
        }
        let version = Version { withdrawals, changes, device };
        entries.insert(id, Account { version, withdrawn, erased: false });
    }
    Ok(entries)
}

fn to_json(it: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(it).expect("plain numbers and strings")
}

fn belongs(page: u8, site: &str) -> Vec<u8> {
    [b"rollcall gallery page 1\0", site.as_bytes(), b"\0", &[page]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::portable::State;

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
    fn a_record_that_says_another_version_outside_than_inside_is_refused() {
        let (key, jane) = (key(), jane());
        let payload = record(&jane, &key, "hq").unwrap();
        let envelope = Envelope::parse(&payload).unwrap();
        assert_eq!(envelope.open(&key, "hq", &jane.subject_id).unwrap(), jane);
        assert!(matches!(
            envelope.open(&self::key(), "hq", &jane.subject_id),
            Err(WireError::Sealed)
        ));
        let text = String::from_utf8(payload).unwrap();
        for altered in
            [text.replace("\"changes\":2", "\"changes\":9"), text.replace("true", "false")]
        {
            let envelope = Envelope::parse(altered.as_bytes()).unwrap();
            assert!(
                matches!(envelope.open(&key, "hq", &jane.subject_id), Err(WireError::Shape { .. })),
                "{altered}"
            );
        }
        for bad in [
            text.replace("door-1", "a/b"),
            text.replace("\"schema\":1", "\"schema\":2"),
            String::new(),
        ] {
            assert!(Envelope::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_opens_only_as_what_it_is() {
        let (key, jane) = (key(), jane());
        let at = page_of(&jane.subject_id);
        let entries = Entries::from([(jane.subject_id.clone(), Account::of(&jane))]);
        let payload = page(&entries, at, &key, "hq").unwrap();
        let read = open_page(&payload, at, &key, "hq").unwrap();
        assert_eq!(read[&jane.subject_id].version, jane.version);
        assert!(open_page(&payload, at ^ 1, &key, "hq").is_err());
        assert!(open_page(&payload, at, &key, "other").is_err());
        assert!(
            open_page(&page(&entries, at ^ 1, &key, "hq").unwrap(), at ^ 1, &key, "hq").is_err()
        );
        assert!(open_page(&payload[..40], at, &key, "hq").is_err());
    }
}
