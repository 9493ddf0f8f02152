//! A gallery in a file: subjects one after the other, each sealed with a key that both ends have,
//! and at the end how many they were. Read and written as a stream: a hundred thousand subjects
//! never stand in memory.
//!
//! ```text
//! ROLLCALL-GALLERY-1\n
//! H  header, JSON in clear: whence, when, how many, which embedders
//! K  sealed: SHA-256 of the header's bytes                   distinguishes another key from a damaged file
//! S  sealed: length of the id, id, `Portable` (realm "export")         once a subject
//! E  sealed: JSON with the number of subjects and the SHA-256 of every byte before
//! ```
//! Each part is a letter, its length as four little-endian bytes, and so many bytes. What is sealed
//! is bound to this export (its id) and to its place, so that parts can be neither moved, nor
//! dropped, nor mixed with another's.
//!
//! Invariants: nobody's id or name is in clear; what is read is bounded; a file that was cut or
//! altered is an error.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::ids::SubjectId;
use crate::keys::seal::{SealError, SharedKey};
use crate::recognise::face::ModelDigest;
use crate::wire::subject::{Portable, PortableError};

const MAGIC: &[u8; 19] = b"ROLLCALL-GALLERY-1\n";
const REALM: &str = "export";
const FORM: u32 = 1;
/// 64 templates of 4,096 elements and their text.
const PART_BYTES_MAX: usize = 2 << 20;

/// The header of a file, in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportHeader {
    pub export: u32,
    pub id: Uuid,
    pub created_at: String,
    pub site: String,
    pub device: String,
    pub subjects: u64,
    /// Whose templates they are.
    pub embedders: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct End {
    subjects: u64,
    sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("it is no gallery that `rollcall export` made")]
    NotAGallery,
    #[error("it has form {found}, this version reads {FORM}")]
    Form { found: u32 },
    #[error("it was sealed with another key than {key}")]
    OtherKey { key: String },
    /// A copy that did not finish.
    #[error("it is cut off after {subjects} subjects")]
    Cut { subjects: u64 },
    #[error("it was altered after it was written")]
    Altered,
    #[error("subject {at} of it cannot be read")]
    Subject {
        at: u64,
        #[source]
        source: PortableError,
    },
    #[error("a subject is too large for an export")]
    TooLarge,
    #[error("it cannot be sealed")]
    Seal(#[source] SealError),
    #[error("it cannot be read or written")]
    Io(#[from] io::Error),
}

impl ExportHeader {
    pub fn new(
        created_at: String,
        site: &str,
        device: &str,
        subjects: u64,
        embedders: &[ModelDigest],
    ) -> Self {
        Self {
            export: FORM,
            id: Uuid::now_v7(),
            created_at,
            site: site.into(),
            device: device.into(),
            subjects,
            embedders: embedders.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Writes a gallery; nothing of it counts before `finish`.
pub struct ExportWriter<'a, W> {
    to: W,
    key: &'a SharedKey,
    id: Uuid,
    hash: Sha256,
    subjects: u64,
}

impl<'a, W: Write> ExportWriter<'a, W> {
    pub fn begin(to: W, key: &'a SharedKey, header: &ExportHeader) -> Result<Self, ExportError> {
        let mut writing = Self { to, key, id: header.id, hash: Sha256::new(), subjects: 0 };
        writing.put(MAGIC)?;
        let text = serde_json::to_vec(header).expect("string keys, and it writes to memory");
        writing.part(b'H', &text)?;
        let proof = key
            .seal(&Sha256::digest(&text), &belongs(b"key", header.id, 0))
            .map_err(ExportError::Seal)?;
        writing.part(b'K', &proof)?;
        Ok(writing)
    }

    pub fn subject(&mut self, portable: &Portable) -> Result<(), ExportError> {
        let id = portable.subject_id.as_str().as_bytes();
        let sealed = portable.seal(self.key, REALM).map_err(ExportError::Seal)?;
        let plain = [&[id.len() as u8], id, &sealed].concat();
        let sealed = self
            .key
            .seal(&plain, &belongs(b"subject", self.id, self.subjects))
            .map_err(ExportError::Seal)?;
        if sealed.len() > PART_BYTES_MAX {
            return Err(ExportError::TooLarge);
        }
        self.part(b'S', &sealed)?;
        self.subjects += 1;
        Ok(())
    }

    /// The closing record; gives back what was written to, and how many subjects there are.
    pub fn finish(mut self) -> Result<(W, u64), ExportError> {
        let end = End { subjects: self.subjects, sha256: hex(&self.hash.clone().finalize()) };
        let text = serde_json::to_vec(&end).expect("string keys, and it writes to memory");
        let sealed =
            self.key.seal(&text, &belongs(b"end", self.id, 0)).map_err(ExportError::Seal)?;
        self.part(b'E', &sealed)?;
        Ok((self.to, self.subjects))
    }

    fn part(&mut self, kind: u8, bytes: &[u8]) -> Result<(), ExportError> {
        self.put(&[kind])?;
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.hash.update(bytes);
        Ok(self.to.write_all(bytes)?)
    }
}

/// Reads a gallery.
pub struct ExportReader<'a, R> {
    from: R,
    key: &'a SharedKey,
    pub header: ExportHeader,
    hash: Sha256,
    subjects: u64,
    ended: bool,
}

impl<'a, R: Read> ExportReader<'a, R> {
    pub fn begin(mut from: R, key: &'a SharedKey) -> Result<Self, ExportError> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(|_| ExportError::NotAGallery)?;
        if magic != *MAGIC {
            return Err(ExportError::NotAGallery);
        }
        let mut hash = Sha256::new();
        hash.update(magic);
        let (Some((b'H', text)), Some((b'K', proof))) = (part(&mut from)?, part(&mut from)?) else {
            return Err(ExportError::NotAGallery);
        };
        absorb(&mut hash, b'H', &text);
        absorb(&mut hash, b'K', &proof);
        let found: ExportForm =
            serde_json::from_slice(&text).map_err(|_| ExportError::NotAGallery)?;
        if found.export != FORM {
            return Err(ExportError::Form { found: found.export });
        }
        let header: ExportHeader =
            serde_json::from_slice(&text).map_err(|_| ExportError::NotAGallery)?;
        let other_key = |_| ExportError::OtherKey { key: key.path().display().to_string() };
        let proved = key.open(&proof, &belongs(b"key", header.id, 0)).map_err(other_key)?;
        if **proved != *Sha256::digest(&text) {
            return Err(ExportError::Altered);
        }
        Ok(Self { from, key, header, hash, subjects: 0, ended: false })
    }

    /// Reads to the end without opening anybody: whether all of it is there, as it was written.
    /// Gives how many subjects.
    pub fn verify(mut self, mut progress: impl FnMut(u64)) -> Result<u64, ExportError> {
        while self.sealed_subject()?.is_some() {
            progress(self.subjects);
        }
        Ok(self.subjects)
    }

    /// None: that was all, and it was checked that it was.
    pub fn subject(&mut self) -> Result<Option<Portable>, ExportError> {
        let at = self.subjects;
        let Some(sealed) = self.sealed_subject()? else {
            return Ok(None);
        };
        let plain = self
            .key
            .open(&sealed, &belongs(b"subject", self.header.id, at))
            .map_err(|_| ExportError::Altered)?;
        let (length, rest) = plain.split_first().ok_or(ExportError::Altered)?;
        let (id, sealed) =
            rest.split_at_checked(usize::from(*length)).ok_or(ExportError::Altered)?;
        let id = std::str::from_utf8(id)
            .ok()
            .and_then(|it| SubjectId::new(it).ok())
            .ok_or(ExportError::Altered)?;
        let portable = Portable::open(sealed, self.key, REALM, &id);
        portable.map(Some).map_err(|source| ExportError::Subject { at: at + 1, source })
    }

    fn sealed_subject(&mut self) -> Result<Option<Vec<u8>>, ExportError> {
        if self.ended {
            return Ok(None);
        }
        match part(&mut self.from)? {
            Some((b'S', sealed)) => {
                absorb(&mut self.hash, b'S', &sealed);
                self.subjects += 1;
                Ok(Some(sealed))
            }
            Some((b'E', sealed)) => self.end(&sealed).map(|()| None),
            Some(_) => Err(ExportError::Altered),
            None => Err(ExportError::Cut { subjects: self.subjects }),
        }
    }

    fn end(&mut self, sealed: &[u8]) -> Result<(), ExportError> {
        let altered = |_| ExportError::Altered;
        let text = self.key.open(sealed, &belongs(b"end", self.header.id, 0)).map_err(altered)?;
        let end: End = serde_json::from_slice(&text).map_err(|_| ExportError::Altered)?;
        let whole =
            end.subjects == self.subjects && end.sha256 == hex(&self.hash.clone().finalize());
        let mut more = [0; 1];
        if !whole || self.from.read(&mut more)? != 0 {
            return Err(ExportError::Altered);
        }
        self.ended = true;
        Ok(())
    }
}

#[derive(Deserialize)]
struct ExportForm {
    export: u32,
}

/// The next part, or none where the file ends, within a part or before it.
fn part(from: &mut impl Read) -> Result<Option<(u8, Vec<u8>)>, ExportError> {
    let mut head = [0; 5];
    if !filled(from, &mut head)? {
        return Ok(None);
    }
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    if length > PART_BYTES_MAX {
        return Err(ExportError::Altered);
    }
    let mut bytes = vec![0; length];
    Ok(filled(from, &mut bytes)?.then_some((kind, bytes)))
}

fn filled(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool, ExportError> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn absorb(hash: &mut Sha256, kind: u8, bytes: &[u8]) {
    hash.update([kind]);
    hash.update((bytes.len() as u32).to_le_bytes());
    hash.update(bytes);
}

/// Unambiguous: the words have no zero, and what follows has a fixed length.
fn belongs(what: &[u8], id: Uuid, at: u64) -> Vec<u8> {
    [b"rollcall export 1\0", what, b"\0", id.as_bytes(), &at.to_le_bytes()].concat()
}

/// A digest as people write it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::recognise::face::Template;
    use crate::wire::subject::{PortableReference, State, Version};

    fn portable(number: u32) -> Portable {
        let template =
            Template::normalised((0..64).map(|i| ((i + number) as f32).sin()).collect()).unwrap();
        let reference = PortableReference {
            id: Uuid::from_u128(u128::from(number)),
            embedder: ModelDigest([3; 32]),
            template,
            quality: 0.5,
            created_ms: 1,
        };
        Portable {
            subject_id: SubjectId::new(&format!("jane-{number}")).unwrap(),
            version: Version { withdrawals: 0, changes: number, device: "door-1".into() },
            state: State::Enrolled {
                name: Name::new("Jane").unwrap(),
                enrolled_ms: 7,
                references: vec![reference],
                consent: None,
            },
        }
    }

    fn key() -> SharedKey {
        let dir = tempfile::tempdir().unwrap();
        SharedKey::create(&dir.path().join("export.key")).unwrap()
    }

    fn written(key: &SharedKey, count: u32) -> Vec<u8> {
        let header = ExportHeader::new(
            "2026-11-23T07:58:03.412Z".into(),
            "hq",
            "door-1",
            u64::from(count),
            &[],
        );
        let mut writing = ExportWriter::begin(Vec::new(), key, &header).unwrap();
        (1..=count).for_each(|number| writing.subject(&portable(number)).unwrap());
        writing.finish().unwrap().0
    }

    fn read(bytes: &[u8], key: &SharedKey) -> Result<Vec<Portable>, ExportError> {
        let mut reading = ExportReader::begin(bytes, key)?;
        let mut found = Vec::new();
        while let Some(portable) = reading.subject()? {
            found.push(portable);
        }
        assert!(reading.subject()?.is_none(), "it stays at its end");
        Ok(found)
    }

    #[test]
    fn export_file_round_trips() {
        let key = key();
        let bytes = written(&key, 3);
        assert_eq!(read(&bytes, &key).unwrap(), (1..=3).map(portable).collect::<Vec<_>>());
        assert_eq!(ExportReader::begin(&bytes[..], &key).unwrap().verify(|_| ()).unwrap(), 3);
        assert_eq!(read(&written(&key, 0), &key).unwrap(), []);
        for clear in [&b"jane-"[..], b"Jane"] {
            assert!(
                !bytes.windows(clear.len()).any(|it| it == clear),
                "in clear: {}",
                String::from_utf8_lossy(clear)
            );
        }
        assert!(matches!(read(&bytes, &self::key()), Err(ExportError::OtherKey { .. })));
    }

    #[test]
    fn damaged_export_is_rejected_before_import() {
        let key = key();
        let bytes = written(&key, 2);
        let verify =
            |bytes: &[u8]| ExportReader::begin(bytes, &key).and_then(|it| it.verify(|_| ()));
        for cut in 0..bytes.len() {
            assert!(verify(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(verify(&altered).is_err(), "altered at {at}");
        }
        assert!(verify(&[&bytes[..], b"x"].concat()).is_err(), "something follows");
        assert!(verify(b"").is_err());
    }

    #[test]
    fn swapped_export_subjects_are_rejected() {
        let key = key();
        let header = ExportHeader::new(String::new(), "hq", "door-1", 2, &[]);
        let mut writing = ExportWriter::begin(Vec::new(), &key, &header).unwrap();
        writing.subject(&portable(1)).unwrap();
        let swapped = key.seal(b"whatever", &belongs(b"subject", header.id, 7)).unwrap();
        writing.part(b'S', &swapped).unwrap();
        let (bytes, _) = writing.finish().unwrap();
        assert!(matches!(read(&bytes, &key), Err(ExportError::Altered)));
    }
}
