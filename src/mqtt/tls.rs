//! TLS for the link: PEM files on disk become one checked rustls configuration, or a refusal that
//! states what to do.
//!
//! Invariants: a TLS option that is given is used, or the start is refused; the broker's name is
//! always checked against its certificate (there is no switch for that); ring does the arithmetic
//! on every architecture.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use crate::bounded_file::{self, PEM_BYTES_MAX};

/// Where the common systems keep their CA certificates in one file. Read by ourselves, because
/// rumqttc's own loading panics on the first certificate that it cannot use.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Raspberry Pi OS, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora
    "/etc/ssl/ca-bundle.pem",             // openSUSE
    "/etc/ssl/cert.pem",                  // Alpine, BSDs
];

/// How the link is secured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The CA that signed the broker's certificate; none = the system's CAs.
    pub ca: Option<PathBuf>,
    pub client: Option<ClientCertificate>,
}

/// By which the device proves to the broker who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "{option} is set, but TLS is off, so it would not be used: switch TLS on, or remove it"
    )]
    WouldNotBeUsed { option: &'static str },
    #[error("{given} is set without {missing}: a client certificate needs both")]
    Half { given: &'static str, missing: &'static str },
    #[error(
        "cannot read {path}: check that it exists, is PEM, and that the daemon's user may read it"
    )]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is damaged: it is not PEM after \"-----BEGIN\"")]
    Damaged {
        path: PathBuf,
        #[source]
        source: PemError,
    },
    #[error("{path} holds no {what} in PEM form (a section \"-----BEGIN …\")")]
    Empty { path: PathBuf, what: &'static str },
    #[error(
        "{path} is in DER form, not PEM: openssl x509 -inform der -in {path} -out ca.pem \
         (a key: openssl pkey -inform der)"
    )]
    Der { path: PathBuf },
    #[error("{path} holds a CA certificate that cannot be used")]
    BadCa {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "client key {key} cannot be used with certificate {cert}: give the key that the certificate was made for"
    )]
    BadClient {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("this system has no CA certificates: install ca-certificates, or set `ca`")]
    NoSystemCas,
    #[error("\"{host}\" is neither a host name nor an address that a certificate could be for")]
    BadHost { host: String },
    #[error("this build of rustls supports no TLS version")]
    NoVersion(#[source] rustls::Error),
}

/// Makes settings from the configuration; refuses options that would be ignored.
pub fn settings_from(
    enabled: bool,
    ca: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
) -> Result<Option<TlsSettings>, TlsError> {
    if !enabled {
        let given = [("ca", &ca), ("client_cert", &client_cert), ("client_key", &client_key)];
        return match given.iter().find(|(_, path)| path.is_some()) {
            Some((option, _)) => Err(TlsError::WouldNotBeUsed { option }),
            None => Ok(None),
        };
    }
    let client = match (client_cert, client_key) {
        (Some(cert), Some(key)) => Some(ClientCertificate { cert, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(TlsError::Half { given: "client_cert", missing: "client_key" });
        }
        (None, Some(_)) => {
            return Err(TlsError::Half { given: "client_key", missing: "client_cert" });
        }
    };
    Ok(Some(TlsSettings { ca, client }))
}

/// Reads and checks everything now, so that a mistake is a refusal to start and not a link that
/// never comes up.
pub fn client_config(settings: &TlsSettings, host: &str) -> Result<Arc<ClientConfig>, TlsError> {
    server_name(host)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = match &settings.ca {
        Some(path) => read_ca(path)?,
        None => system_cas()?,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::NoVersion)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if let Some(client) = &settings.client {
        config.client_auth_cert_resolver = read_client(client, &provider)?;
    }
    Ok(Arc::new(config))
}

pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::BadHost { host: host.to_owned() })
}

pub fn read_ca(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::BadCa { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn system_cas() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for bundle in SYSTEM_BUNDLES {
        if let Ok(certificates) = read_certificates(Path::new(bundle)) {
            // A system's bundle may hold one that rustls cannot use; the others are no worse for
            // it.
            roots.add_parsable_certificates(certificates);
            break;
        }
    }
    if roots.is_empty() { Err(TlsError::NoSystemCas) } else { Ok(roots) }
}

/// Reads a PEM file, without the mark that Windows' editors put before a text.
fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let bytes = bounded_file::read(path, PEM_BYTES_MAX).map_err(unreadable)?;
    // A sequence of ASN.1, with the length in bytes that follow.
    if bytes.first() == Some(&0x30) && bytes.get(1).is_some_and(|it| *it >= 0x80) {
        return Err(TlsError::Der { path: path.to_owned() });
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let damaged = |source| TlsError::Damaged { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_slice_iter(&read_pem(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(damaged)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(certificates)
}

fn read_client(
    client: &ClientCertificate,
    provider: &CryptoProvider,
) -> Result<Arc<dyn ResolvesClientCert>, TlsError> {
    let certificates = read_certificates(&client.cert)?;
    let key = read_key(&client.key)?;
    let bad =
        |source| TlsError::BadClient { cert: client.cert.clone(), key: client.key.clone(), source };
    let certified = CertifiedKey::from_der(certificates, key, provider).map_err(bad)?;
    certified.keys_match().map_err(bad)?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(read_pem(path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| match source {
        PemError::NoItemsFound => TlsError::Empty { path: path.to_owned(), what: "private key" },
        source => TlsError::Damaged { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tls_option_is_rejected() {
        assert!(matches!(settings_from(false, None, None, None), Ok(None)));
        assert!(matches!(
            settings_from(false, Some("ca".into()), None, None),
            Err(TlsError::WouldNotBeUsed { option: "ca" })
        ));
        assert!(matches!(
            settings_from(false, None, None, Some("k".into())),
            Err(TlsError::WouldNotBeUsed { .. })
        ));
        assert!(matches!(
            settings_from(true, None, Some("c".into()), None),
            Err(TlsError::Half { .. })
        ));
        assert!(matches!(
            settings_from(true, None, None, Some("k".into())),
            Err(TlsError::Half { .. })
        ));
        assert!(matches!(settings_from(true, None, None, None), Ok(Some(_))));
    }

    #[test]
    fn unusable_tls_files_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let of = |ca: &Path| {
            client_config(&TlsSettings { ca: Some(ca.to_owned()), client: None }, "broker.example")
        };
        assert!(matches!(of(&empty), Err(TlsError::Empty { .. })));
        assert!(matches!(of(&dir.path().join("none.pem")), Err(TlsError::Unreadable { .. })));
        std::fs::write(&empty, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(matches!(of(&empty), Err(TlsError::BadCa { .. })));
        std::fs::write(&empty, [0x30, 0x82, 0x01, 0x0a, 0x02]).unwrap();
        assert!(matches!(of(&empty), Err(TlsError::Der { .. })));
        std::fs::write(&empty, "-----BEGIN CERTIFICATE-----\nAA").unwrap();
        assert!(matches!(of(&empty), Err(TlsError::Damaged { .. })));
        assert!(matches!(server_name("not a host"), Err(TlsError::BadHost { .. })));
        assert!(server_name("192.0.2.1").is_ok());
    }
}
