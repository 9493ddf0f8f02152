//! Private keys of Ed25519 and their files: that of whoever commands, and the device's own, which
//! signs receipts.
//!
//! A file is PKCS #8 in PEM, as `openssl genpkey -algorithm ed25519` makes it too, and nobody but
//! its owner may read it. It is made once and never written over.

use std::path::{Path, PathBuf};

use chacha20poly1305::aead::Generate as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::bounded_file;
use crate::keys::jws;
use crate::keys::jws::PublicKey;
use crate::keys::secret_file::{OTHERS, create_secret, exposed_mode};

/// The device's own key, in the state directory.
pub const DEVICE_KEY_FILE: &str = "device.key";

/// A PEM file of one key has about 120 bytes; with comments some more.
const FILE_BYTES_MAX: u64 = 16 << 10;

pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("there is no key {path}: `rollcall keys signer {path}` makes one")]
    Missing { path: PathBuf },
    #[error("there is no key {path} yet: the daemon makes it at its first start")]
    NoDeviceKey { path: PathBuf },
    #[error(
        "the key {path} may be read by others (mode {mode:03o}): `chmod 600` it, and consider it known"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} holds no Ed25519 private key (PKCS #8 in PEM)")]
    NoKey { path: PathBuf },
    #[error("cannot use the key {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the system gives no random numbers")]
    Random,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    pub fn load(path: &Path) -> Result<Self, SignerError> {
        let fault = |source| SignerError::File { path: path.to_owned(), source };
        let file = match bounded_file::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SignerError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(fault(error)),
        };
        if let Some(mode) = exposed_mode(&file.metadata().map_err(fault)?, OTHERS) {
            return Err(SignerError::Exposed { path: path.to_owned(), mode });
        }
        let pem = Zeroizing::new(bounded_file::read_all(file, FILE_BYTES_MAX).map_err(fault)?);
        let no_key = || SignerError::NoKey { path: path.to_owned() };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| no_key())?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| no_key())?;
        Self::of(pair).ok_or_else(no_key)
    }

    /// Makes a key file; an existing one stays, and is an error.
    pub fn create(path: &Path) -> Result<Self, SignerError> {
        let seed = Zeroizing::new(<[u8; 32]>::try_generate().map_err(|_| SignerError::Random)?);
        create_secret(path, jws::private_pem(&seed).as_bytes())
            .map_err(|source| SignerError::File { path: path.to_owned(), source })?;
        Self::load(path)
    }

    /// The device's own; made where there is none.
    pub fn of_device(state_dir: &Path) -> Result<Self, SignerError> {
        let path = state_dir.join(DEVICE_KEY_FILE);
        match Self::load(&path) {
            Err(SignerError::Missing { .. }) => Self::create(&path),
            other => other,
        }
    }

    /// The public half of the device's own, which is not made here.
    pub fn device_public(state_dir: &Path) -> Result<PublicKey, SignerError> {
        match Self::load(&state_dir.join(DEVICE_KEY_FILE)) {
            Ok(key) => Ok(key.public),
            Err(SignerError::Missing { path }) => Err(SignerError::NoDeviceKey { path }),
            Err(error) => Err(error),
        }
    }

    fn of(pair: Ed25519KeyPair) -> Option<Self> {
        let public = PublicKey::new(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair, public })
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A compact JWS.
    pub fn sign(&self, typ: &str, claims: &[u8]) -> String {
        let text = jws::to_be_signed(self.public.kid(), typ, claims);
        let signature = self.pair.sign(text.as_bytes());
        jws::joined(text, signature.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn signing_key_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("office.key");
        assert!(matches!(SigningKey::load(&path), Err(SignerError::Missing { .. })));
        let made = SigningKey::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::load(&path).unwrap().public(), made.public());
        assert!(matches!(SigningKey::create(&path), Err(SignerError::File { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::load(&path), Err(SignerError::Exposed { mode: 0o640, .. })));
        let garbage = dir.path().join("garbage.key");
        create_secret(&garbage, b"not a key").unwrap();
        assert!(matches!(SigningKey::load(&garbage), Err(SignerError::NoKey { .. })));
    }
}
