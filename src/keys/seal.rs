//! Templates sealed at rest: whoever takes the storage card learns nobody's face.
//!
//! XChaCha20-Poly1305 with a random nonce for each template. What a template belongs to (subject,
//! reference, embedder) is authenticated with it, so that a row moved to another subject no longer
//! opens.
//!
//! Invariants: the key never stands in the database; it is made once, is never written over, and a
//! key file that others may read is refused. A key that does not fit what is stored is an error,
//! never a reason to begin anew.
//!
//! Not here: names, which are in clear in the database (whoever may read it may know who passed).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead as _, Generate as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::bounded_file;
use crate::ids::SubjectId;
use crate::keys::secret_file::{OTHERS, OTHERS_OF_CREDENTIAL, create_secret, exposed_mode};
use crate::recognise::face::{ModelDigest, Template};

/// The key's name, as a systemd credential and as a file of the state directory.
pub const KEY_FILE: &str = "rollcall.key";
/// The key that a rotation makes, until it takes the place of the other.
pub const NEXT_KEY_FILE: &str = "rollcall.key.next";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(
        "the key {path} is missing, but the database holds sealed templates: put the key back from its backup; if it is \
         lost for good, `rollcall keys forget` and enrol again"
    )]
    KeyLost { path: PathBuf },
    #[error(
        "the key {path} is not the one the templates were sealed with: put the right key back from its backup; if it \
         is lost for good, `rollcall keys forget` and enrol again"
    )]
    WrongKey { path: PathBuf },
    #[error(
        "the key {path} is a credential, which only systemd can replace: `rollcall keys rotate --to FILE`, then make FILE the \
         credential"
    )]
    Elsewhere { path: PathBuf },
    #[error("the key {path} is the right one, nothing is lost: nothing was deleted")]
    NotLost { path: PathBuf },
    #[error("there is no key to open templates with")]
    NoKey,
    #[error("there is no key {path}: copy it from another device of the site, or make one")]
    SharedKeyMissing { path: PathBuf },
    #[error(
        "the key {path} may be read by others (mode {mode:03o}): `chmod 600` it, and consider it known"
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error(
        "the key {path} has {found} bytes; a key is {KEY_BYTES} random bytes (`head -c 32 /dev/urandom`)"
    )]
    KeyLength { path: PathBuf, found: usize },
    #[error("cannot use the key {path}")]
    KeyFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "a sealed template does not open: it was altered, or belongs to another subject or embedder"
    )]
    DoesNotOpen,
    #[error("the system gives no random numbers")]
    Random,
}

impl SealError {
    /// Whether no key, or another, stands where the right one should.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::KeyLost { .. } | Self::WrongKey { .. })
    }
}

/// What a sealed template belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Belongs<'a> {
    pub subject_id: &'a SubjectId,
    pub reference_id: &'a Uuid,
    pub embedder: &'a ModelDigest,
}

impl Belongs<'_> {
    /// Unambiguous: only the subject's id varies in length, and it ends with a byte that no id
    /// contains.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = b"rollcall template 1\0".to_vec();
        data.extend_from_slice(self.subject_id.as_str().as_bytes());
        data.push(0);
        data.extend_from_slice(self.reference_id.as_bytes());
        data.extend_from_slice(&self.embedder.0);
        data
    }
}

/// The key that templates are sealed with. Wiped from memory when dropped.
pub struct SealKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
    path: PathBuf,
}

/// A key that several devices have: the site's, for what doors exchange, or that of an
/// export. Wiped from memory when dropped.
pub struct SharedKey(SealKey);

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedKey({})", self.0.path.display())
    }
}

impl SharedKey {
    /// From a file of 32 random bytes that nobody else may read, or a credential of systemd's,
    /// which its group may.
    pub fn load(path: &Path, is_credential: bool) -> Result<Self, SealError> {
        let others = if is_credential { OTHERS_OF_CREDENTIAL } else { OTHERS };
        let missing = || SealError::SharedKeyMissing { path: path.to_owned() };
        let key = read_key(path, others)?.ok_or_else(missing)?;
        Ok(Self(SealKey { key, path: path.to_owned() }))
    }

    /// Makes a key file; an existing one stays, and is an error.
    pub fn create(path: &Path) -> Result<Self, SealError> {
        let key = Zeroizing::new(<[u8; KEY_BYTES]>::try_generate().map_err(|_| SealError::Random)?);
        create_secret(path, &*key)
            .map_err(|source| SealError::KeyFile { path: path.to_owned(), source })?;
        Ok(Self(SealKey { key, path: path.to_owned() }))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Tells two keys apart, and nothing else of them.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::new()
            .chain_update(b"rollcall key fingerprint 1\0")
            .chain_update(*self.0.key)
            .finalize();
        format!("{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
    }

    /// Nonce and ciphertext. `belongs` is authenticated, not hidden: it must be the same to open.
    pub fn seal(&self, plain: &[u8], belongs: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.encrypt(plain, belongs)
    }

    pub fn open(&self, sealed: &[u8], belongs: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.0.decrypt(sealed, belongs)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealKey({})", self.path.display())
    }
}

impl SealKey {
    /// The key of this device: the credential if systemd passed one, else the file in the state
    /// directory; `None` if there is neither.
    pub fn load(
        state_dir: &Path,
        credentials_dir: Option<&Path>,
    ) -> Result<Option<Self>, SealError> {
        if let Some(path) = credentials_dir.map(|it| it.join(KEY_FILE))
            && let Some(key) = read_key(&path, OTHERS_OF_CREDENTIAL)?
        {
            return Ok(Some(Self { key, path }));
        }
        let path = state_dir.join(KEY_FILE);
        Ok(read_key(&path, OTHERS)?.map(|key| Self { key, path }))
    }

    /// A key file by its path; none if there is no such file.
    pub fn load_from(path: &Path) -> Result<Option<Self>, SealError> {
        Ok(read_key(path, OTHERS)?.map(|key| Self { key, path: path.to_owned() }))
    }

    /// Makes the key file. Only when there is none and nothing is sealed yet: the caller sees to
    /// the second.
    pub fn create(state_dir: &Path) -> Result<Self, SealError> {
        Self::create_at(&state_dir.join(KEY_FILE))
    }

    /// The same anywhere; an existing file stays, and is an error.
    pub fn create_at(path: &Path) -> Result<Self, SealError> {
        let key = Zeroizing::new(<[u8; KEY_BYTES]>::try_generate().map_err(|_| SealError::Random)?);
        create_secret(path, &*key)
            .map_err(|source| SealError::KeyFile { path: path.to_owned(), source })?;
        Ok(Self { key, path: path.to_owned() })
    }

    /// Made for each use: setting it up is a copy of the key, and a cipher that is kept would not
    /// be wiped.
    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.key).into())
    }

    /// Where the key came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Nonce and ciphertext.
    pub fn seal(&self, template: &Template, belongs: Belongs<'_>) -> Result<Vec<u8>, SealError> {
        let mut plain = Zeroizing::new(Vec::with_capacity(template.dimension() * 4));
        for x in template.as_slice() {
            plain.extend_from_slice(&x.to_le_bytes());
        }
        self.encrypt(&plain, &belongs.associated_data())
    }

    pub fn open(&self, sealed: &[u8], belongs: Belongs<'_>) -> Result<Template, SealError> {
        let plain = self.decrypt(sealed, &belongs.associated_data())?;
        let (elements, rest) = plain.as_chunks::<4>();
        let raw = elements.iter().map(|it| f32::from_le_bytes(*it)).collect();
        match Template::restored(raw) {
            Some(template) if rest.is_empty() => Ok(template),
            _ => Err(SealError::DoesNotOpen),
        }
    }

    /// A proof to be stored beside the templates: `recognises` returns whether a key is the one that
    /// made it.
    pub fn proof(&self) -> Result<Vec<u8>, SealError> {
        self.encrypt(b"the key of this database", PROOF)
    }

    pub fn recognises(&self, proof: &[u8]) -> bool {
        self.decrypt(proof, PROOF).is_ok()
    }

    fn encrypt(&self, plain: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = <[u8; NONCE_BYTES]>::try_generate().map_err(|_| SealError::Random)?;
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad })
            .expect("what is sealed is far shorter than the cipher's 256 GB");
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn decrypt(&self, sealed: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, msg) =
            sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::DoesNotOpen)?;
        self.cipher()
            .decrypt(&XNonce::from(*nonce), Payload { msg, aad })
            .map(Zeroizing::new)
            .map_err(|_| SealError::DoesNotOpen)
    }
}

const PROOF: &[u8] = b"rollcall key 1";

fn read_key(path: &Path, others: u32) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, SealError> {
    let fault = |source| SealError::KeyFile { path: path.to_owned(), source };
    let mut file = match bounded_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    if let Some(mode) = exposed_mode(&file.metadata().map_err(fault)?, others) {
        return Err(SealError::KeyExposed { path: path.to_owned(), mode });
    }
    // One byte more than a key has shows a longer file; the buffer never grows, so no copy stays
    // behind.
    let mut bytes = Zeroizing::new([0_u8; KEY_BYTES + 1]);
    let mut found = 0;
    loop {
        match file.read(&mut bytes[found..]).map_err(fault)? {
            0 => break,
            count => found += count,
        }
    }
    if found != KEY_BYTES {
        let found = file.metadata().map_err(fault)?.len() as usize;
        return Err(SealError::KeyLength { path: path.to_owned(), found });
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(&bytes[..KEY_BYTES]);
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn template() -> Template {
        Template::normalised((0..512).map(|i| (i as f32).sin()).collect()).unwrap()
    }

    #[test]
    fn sealed_template_is_bound_to_its_reference() {
        let dir = tempfile::tempdir().unwrap();
        let key = SealKey::create(dir.path()).unwrap();
        let jane = SubjectId::new("jane").unwrap();
        let john = SubjectId::new("john").unwrap();
        let one = Uuid::from_u128(1);
        let two = Uuid::from_u128(2);
        let a = ModelDigest([1; 32]);
        let b = ModelDigest([2; 32]);
        let belongs = Belongs { subject_id: &jane, reference_id: &one, embedder: &a };
        let sealed = key.seal(&template(), belongs).unwrap();
        assert!((key.open(&sealed, belongs).unwrap().compare(&template()) - 1.0).abs() < 1e-6);
        for other in [
            Belongs { subject_id: &john, ..belongs },
            Belongs { reference_id: &two, ..belongs },
            Belongs { embedder: &b, ..belongs },
        ] {
            assert!(matches!(key.open(&sealed, other), Err(SealError::DoesNotOpen)), "{other:?}");
        }
        for at in [0, 24, sealed.len() - 1] {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open(&altered, belongs).is_err());
        }
        for cut in 0..40 {
            assert!(key.open(&sealed[..cut], belongs).is_err());
        }
        assert_ne!(key.seal(&template(), belongs).unwrap(), sealed, "each time another nonce");
    }

    #[test]
    fn key_file_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SealKey::load(dir.path(), None).unwrap().is_none());
        fs::write(dir.path().join("rollcall.key.new"), "half a ke").unwrap();
        let key = SealKey::create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let before = fs::read(&path).unwrap();
        assert!(matches!(SealKey::create(dir.path()), Err(SealError::KeyFile { .. })));
        assert_eq!(fs::read(&path).unwrap(), before, "an existing key stays");
        let again = SealKey::load(dir.path(), None).unwrap().unwrap();
        assert!(again.recognises(&key.proof().unwrap()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn systemd_credential_precedes_key_file() {
        let state = tempfile::tempdir().unwrap();
        let credentials = tempfile::tempdir().unwrap();
        SealKey::create(state.path()).unwrap();
        let from = |it: &Path| SealKey::load(state.path(), Some(it)).unwrap().unwrap();
        assert_eq!(from(credentials.path()).path(), state.path().join(KEY_FILE), "there is none");
        let path = credentials.path().join(KEY_FILE);
        fs::write(&path, [7; KEY_BYTES]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        assert_eq!(from(credentials.path()).path(), path);
    }

    #[test]
    fn exposed_or_wrong_length_key_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let load = || SealKey::load(dir.path(), None);
        for (length, mode) in [(32, 0o640), (32, 0o604), (31, 0o600), (33, 0o600), (0, 0o600)] {
            fs::write(&path, vec![7; length]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match load().unwrap_err() {
                SealError::KeyExposed { mode: found, .. } => assert_eq!(found, mode),
                SealError::KeyLength { found, .. } => assert_eq!(found, length),
                other => panic!("{other}"),
            }
        }
    }
}
