//! A subject as it travels: from door to door of a site, into an export and out of it.
//!
//! Sealed with a key that both ends have; what it belongs to (a site and a subject, or an export)
//! is authenticated with it. References of every embedder travel, so that a door that does not use
//! one hands it on all the same.
//!
//! Invariants: everything that is read is bounded and checked; a record that opens is one that
//! somebody with the key made. Of two records of one subject `Version` decides which is newer, the
//! same at every door.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Name, SubjectId, check_id};
use crate::keys::seal::{SealError, SharedKey};
use crate::recognise::face::{ModelDigest, Template};
use crate::wire::consent::Consent;

/// The version of the sealed form.
const FORM: u32 = 1;

/// References of one subject that are taken at most, those of all embedders together.
pub const REFERENCES_MAX: usize = 64;
/// Elements of a template at most.
const DIMENSION_MAX: usize = 4096;

/// Which of two records of one subject counts: the one that knows of more withdrawals, else of
/// more changes; of equals a withdrawal, and at last the name of the device, so that every door
/// decides alike. Who enrols somebody anew after a withdrawal counts on from it; a door that had
/// not received the withdrawal can change as often as it likes and loses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub withdrawals: u32,
    pub changes: u32,
    /// Who made it.
    pub device: String,
}

/// One subject, as one device knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Portable {
    pub subject_id: SubjectId,
    pub version: Version,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Enrolled {
        name: Name,
        enrolled_ms: i64,
        references: Vec<PortableReference>,
        /// `None` also where a device of an earlier version handed the subject on.
        consent: Option<Consent>,
    },
    /// With `erased` the person is to be taken out of the record too.
    Withdrawn { erased: bool, at_ms: i64 },
}

#[derive(Clone, Debug, PartialEq)]
pub struct PortableReference {
    pub id: Uuid,
    pub embedder: ModelDigest,
    pub template: Template,
    /// Of the sample, 0.0..=1.0.
    pub quality: f32,
    pub created_ms: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    /// Another key, another site or subject, or altered on the way: it is not known which.
    #[error("it does not open with this key: it was sealed with another, or altered")]
    Sealed(#[source] SealError),
    #[error("it has form {found}, this version reads {FORM}")]
    Form { found: u32 },
    #[error("it is not a subject: {why}")]
    Shape { why: &'static str },
}

/// What of a record is text; the templates follow it as little-endian floats, one after the other.
#[derive(Serialize, Deserialize)]
struct Head {
    form: u32,
    subject_id: SubjectId,
    version: Version,
    withdrawn: Option<HeadWithdrawn>,
    name: Option<Name>,
    enrolled_ms: i64,
    references: Vec<HeadReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consent: Option<Consent>,
}

#[derive(Serialize, Deserialize)]
struct HeadWithdrawn {
    erased: bool,
    at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct HeadReference {
    id: Uuid,
    embedder: String,
    dimension: usize,
    quality: f32,
    created_ms: i64,
}

impl Version {
    /// Whether this version takes the place of the other; `withdrawn` states of each whether it is a
    /// withdrawal.
    pub fn is_newer(&self, withdrawn: bool, other: &Self, other_withdrawn: bool) -> bool {
        (self.withdrawals, self.changes, withdrawn, &self.device)
            > (other.withdrawals, other.changes, other_withdrawn, &other.device)
    }
}

impl Portable {
    pub fn is_withdrawn(&self) -> bool {
        matches!(self.state, State::Withdrawn { .. })
    }

    /// `realm` states the purpose: a site, or an export. Nonce and ciphertext.
    pub fn seal(&self, key: &SharedKey, realm: &str) -> Result<Vec<u8>, SealError> {
        key.seal(&self.to_bytes(), &belongs(realm, &self.subject_id))
    }

    pub fn open(
        sealed: &[u8],
        key: &SharedKey,
        realm: &str,
        subject_id: &SubjectId,
    ) -> Result<Self, PortableError> {
        let plain = key.open(sealed, &belongs(realm, subject_id)).map_err(PortableError::Sealed)?;
        let found = Self::from_bytes(&plain)?;
        if found.subject_id != *subject_id {
            return Err(PortableError::Shape { why: "it is of another subject" });
        }
        Ok(found)
    }

    fn to_bytes(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut head = Head {
            form: FORM,
            subject_id: self.subject_id.clone(),
            version: self.version.clone(),
            withdrawn: None,
            name: None,
            enrolled_ms: 0,
            references: Vec::new(),
            consent: None,
        };
        let mut templates: &[PortableReference] = &[];
        match &self.state {
            State::Withdrawn { erased, at_ms } => {
                head.withdrawn = Some(HeadWithdrawn { erased: *erased, at_ms: *at_ms });
            }
            State::Enrolled { name, enrolled_ms, references, consent } => {
                head.name = Some(name.clone());
                head.enrolled_ms = *enrolled_ms;
                head.references = references.iter().map(HeadReference::of).collect();
                head.consent.clone_from(consent);
                templates = references;
            }
        }
        let text = serde_json::to_vec(&head).expect("string keys, and it writes to memory");
        let floats = templates.iter().map(|it| it.template.dimension() * 4).sum::<usize>();
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(4 + text.len() + floats));
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&text);
        for x in templates.iter().flat_map(|it| it.template.as_slice()) {
            bytes.extend_from_slice(&x.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, PortableError> {
        let shape = |why| PortableError::Shape { why };
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(shape("it is cut off"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, floats) = rest.split_at_checked(length).ok_or(shape("it is cut off"))?;
        let found = serde_json::from_slice::<Form>(text)
            .map_err(|_| shape("its head cannot be read"))?
            .form;
        if found != FORM {
            return Err(PortableError::Form { found });
        }
        let head: Head =
            serde_json::from_slice(text).map_err(|_| shape("its head cannot be read"))?;
        if check_id(&head.version.device).is_err() {
            return Err(shape("its device is no valid id"));
        }
        if head.references.len() > REFERENCES_MAX {
            return Err(shape("it has too many references"));
        }
        let state = match (head.withdrawn, head.name) {
            (Some(withdrawn), _) => {
                State::Withdrawn { erased: withdrawn.erased, at_ms: withdrawn.at_ms }
            }
            (None, Some(name)) => {
                let references = read_references(head.references, floats)?;
                let (enrolled_ms, consent) = (head.enrolled_ms, head.consent);
                State::Enrolled { name, enrolled_ms, references, consent }
            }
            (None, None) => return Err(shape("it has no name")),
        };
        Ok(Self { subject_id: head.subject_id, version: head.version, state })
    }
}

#[derive(Deserialize)]
struct Form {
    form: u32,
}

fn read_references(
    heads: Vec<HeadReference>,
    mut floats: &[u8],
) -> Result<Vec<PortableReference>, PortableError> {
    let shape = |why| PortableError::Shape { why };
    let mut references = Vec::with_capacity(heads.len());
    for head in heads {
        if head.dimension == 0 || head.dimension > DIMENSION_MAX {
            return Err(shape("a template has an impossible dimension"));
        }
        let (raw, rest) =
            floats.split_at_checked(head.dimension * 4).ok_or(shape("a template is cut off"))?;
        floats = rest;
        let raw = raw.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
        let template = Template::restored(raw).ok_or(shape("a template is not of unit length"))?;
        let embedder =
            ModelDigest::from_hex(&head.embedder).ok_or(shape("an embedder's digest is none"))?;
        if !(0.0..=1.0).contains(&head.quality) {
            return Err(shape("a quality is out of range"));
        }
        let id = head.id;
        let quality = head.quality;
        let created_ms = head.created_ms;
        references.push(PortableReference { id, embedder, template, quality, created_ms });
    }
    if floats.is_empty() { Ok(references) } else { Err(shape("something follows it")) }
}

impl HeadReference {
    fn of(reference: &PortableReference) -> Self {
        Self {
            id: reference.id,
            embedder: reference.embedder.to_string(),
            dimension: reference.template.dimension(),
            quality: reference.quality,
            created_ms: reference.created_ms,
        }
    }
}

/// Unambiguous: neither a realm nor an id contains a zero.
fn belongs(realm: &str, subject_id: &SubjectId) -> Vec<u8> {
    [b"rollcall subject 1\0", realm.as_bytes(), b"\0", subject_id.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portable() -> Portable {
        let template = Template::normalised((0..512).map(|i| (i as f32).sin()).collect()).unwrap();
        let embedder = ModelDigest([3; 32]);
        let reference = |n| PortableReference {
            id: Uuid::from_u128(n),
            embedder,
            template: template.clone(),
            quality: 0.5,
            created_ms: 1,
        };
        Portable {
            subject_id: SubjectId::new("jane").unwrap(),
            version: Version { withdrawals: 1, changes: 2, device: "door-1".into() },
            state: State::Enrolled {
                name: Name::new("Jane Döe").unwrap(),
                enrolled_ms: 7,
                references: vec![reference(1), reference(2)],
                consent: None,
            },
        }
    }

    fn key() -> SharedKey {
        let dir = tempfile::tempdir().unwrap();
        SharedKey::create(&dir.path().join("site.key")).unwrap()
    }

    #[test]
    fn sealed_subject_is_bound_to_its_context() {
        let key = key();
        let portable = portable();
        let sealed = portable.seal(&key, "hq").unwrap();
        let jane = &portable.subject_id;
        assert_eq!(Portable::open(&sealed, &key, "hq", jane).unwrap(), portable);
        let john = SubjectId::new("john").unwrap();
        for (realm, id) in [("other", jane), ("hq", &john)] {
            assert!(
                matches!(Portable::open(&sealed, &key, realm, id), Err(PortableError::Sealed(_))),
                "{realm} {id}"
            );
        }
        assert!(matches!(
            Portable::open(&sealed, &self::key(), "hq", jane),
            Err(PortableError::Sealed(_))
        ));
        let withdrawn =
            Portable { state: State::Withdrawn { erased: true, at_ms: 9 }, ..portable.clone() };
        let sealed = withdrawn.seal(&key, "hq").unwrap();
        assert_eq!(Portable::open(&sealed, &key, "hq", jane).unwrap(), withdrawn);
    }

    #[test]
    fn impossible_device_is_refused() {
        let key = key();
        for device in ["a/b", "", "x".repeat(200).as_str()] {
            let mut portable = portable();
            portable.version.device = device.into();
            let sealed = portable.seal(&key, "hq").unwrap();
            let opened = Portable::open(&sealed, &key, "hq", &portable.subject_id);
            assert!(matches!(opened, Err(PortableError::Shape { .. })), "{device}: {opened:?}");
        }
    }

    #[test]
    fn earlier_versions_ignore_the_consent() {
        /// As a version without consents reads it.
        #[derive(Deserialize)]
        struct EarlierHead {
            name: Name,
            references: Vec<HeadReference>,
        }
        let by = Name::new("desk").unwrap();
        let consent = Consent::new(7, "v1", Some(9), by).unwrap();
        let mut portable = portable();
        let without = portable.to_bytes();
        if let State::Enrolled { consent: place, .. } = &mut portable.state {
            *place = Some(consent);
        }
        let bytes = portable.to_bytes();
        assert_eq!(Portable::from_bytes(&bytes).unwrap(), portable);
        let text = |bytes: &[u8]| {
            let length = u32::from_le_bytes(*bytes.first_chunk::<4>().unwrap()) as usize;
            String::from_utf8(bytes[4..4 + length].to_vec()).unwrap()
        };
        let head: EarlierHead = serde_json::from_str(&text(&bytes)).unwrap();
        assert_eq!((head.name.as_str(), head.references.len()), ("Jane Döe", 2));
        assert!(!text(&without).contains("consent"), "as before where there is none");
    }

    #[test]
    fn damaged_subject_bytes_are_rejected() {
        let bytes = portable().to_bytes();
        assert!(Portable::from_bytes(&bytes).is_ok());
        for cut in [0, 3, 4, 40, bytes.len() - 2048, bytes.len() - 1] {
            assert!(Portable::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Portable::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Portable::from_bytes(&[0xff; 64]).is_err());
        let mut doubled = bytes.clone();
        let end = doubled.len();
        doubled[end - 1] ^= 0x40;
        assert!(Portable::from_bytes(&doubled).is_err(), "not of unit length");
    }

    #[test]
    fn newer_version_is_decided_unambiguously() {
        let version = |withdrawals, changes, device: &str| Version {
            withdrawals,
            changes,
            device: device.into(),
        };
        for (newer, older) in [
            ((version(0, 2, "a"), false), (version(0, 1, "z"), false)),
            ((version(1, 0, "a"), true), (version(0, 9, "z"), false)),
            ((version(1, 1, "a"), false), (version(1, 0, "z"), true)),
            ((version(1, 1, "a"), true), (version(1, 1, "z"), false)),
            ((version(0, 1, "b"), false), (version(0, 1, "a"), false)),
        ] {
            assert!(newer.0.is_newer(newer.1, &older.0, older.1), "{newer:?} {older:?}");
            assert!(!older.0.is_newer(older.1, &newer.0, newer.1), "{newer:?} {older:?}");
            assert!(!newer.0.is_newer(newer.1, &newer.0, newer.1), "not newer than itself");
        }
    }
}
