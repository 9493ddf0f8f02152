//! The checkpoint of a record: the newest event of the chain, by its hash, signed with the device's
//! key. Whoever kept one finds a record that was altered or cut off.
//!
//! A compact JWS of the type `rollcall-checkpoint`, as receipts are. It names nobody.

use serde::{Deserialize, Serialize};

use crate::keys::jws;
use crate::keys::jws::{PublicKey, Untrusted};
use crate::keys::signer::SigningKey;
use crate::wire::chain::{Hash, Place};

const TYP: &str = "rollcall-checkpoint";
const SCHEMA: u32 = 1;

/// The content of a checkpoint (schema 1). Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub schema: u32,
    pub site: String,
    pub device: String,
    /// The newest event, with its hash.
    pub seq: i64,
    pub hash: Hash,
    /// The newest attendance or correction.
    pub record: Option<Place>,
    /// How many events the chain has had; those before it have no link.
    pub count: i64,
    /// Up to this event, events may have been deleted by retention.
    pub deleted_through: i64,
    pub at: String,
    pub clock_trusted: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("it is no checkpoint of this device")]
    Signature(#[source] Untrusted),
    #[error("its signature holds, but this version cannot read it")]
    Shape(#[source] serde_json::Error),
}

impl Checkpoint {
    pub const SCHEMA: u32 = SCHEMA;

    pub fn sign(&self, key: &SigningKey) -> String {
        let claims = serde_json::to_vec(self).expect("string keys, and it writes to memory");
        key.sign(TYP, &claims)
    }

    pub fn verify(token: &[u8], key: &PublicKey) -> Result<Self, CheckpointError> {
        let signed = jws::verify(token, TYP, std::slice::from_ref(key))
            .map_err(CheckpointError::Signature)?;
        serde_json::from_slice(signed.bytes()).map_err(CheckpointError::Shape)
    }

    /// The first event of the chain.
    pub fn began(&self) -> i64 {
        self.seq.saturating_sub(self.count).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chain::Bytes;

    #[test]
    fn checkpoint_verifies_with_device_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let [key, other] =
            ["a", "b"].map(|name| SigningKey::create(&dir.path().join(name)).unwrap());
        let checkpoint = Checkpoint {
            schema: SCHEMA,
            site: "hq".into(),
            device: "door-1".into(),
            seq: 1841,
            hash: Bytes([1; 32]),
            record: Some(Place { seq: 1840, hash: Bytes([2; 32]) }),
            count: 841,
            deleted_through: 1200,
            at: "2026-11-23T07:58:03.412Z".into(),
            clock_trusted: true,
        };
        let token = checkpoint.sign(&key);
        assert_eq!(Checkpoint::verify(token.as_bytes(), key.public()).unwrap(), checkpoint);
        assert!(matches!(
            Checkpoint::verify(token.as_bytes(), other.public()),
            Err(CheckpointError::Signature(_))
        ));
        assert_eq!(checkpoint.began(), 1001);
        assert_eq!(
            serde_json::to_value(&checkpoint).unwrap().to_string(),
            r#"{"at":"2026-11-23T07:58:03.412Z","clock_trusted":true,"count":841,"deleted_through":1200,"device":"door-1","hash":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","record":{"hash":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI","seq":1840},"schema":1,"seq":1841,"site":"hq"}"#
        );
    }
}
