//! The receipt of an erasure: what a device attests with its own key once nothing of a person is
//! left on it.
//!
//! A compact JWS of the type `rollcall-receipt`. Whoever has the device's public key (in its
//! health) can check it, years later too. It names the subject's id, and nothing else of the
//! person.

use serde::{Deserialize, Serialize};

use crate::ids::SubjectId;
use crate::keys::jws;
use crate::keys::jws::{PublicKey, Untrusted};
use crate::keys::signer::SigningKey;
use crate::wire::event::EndReason;

const TYP: &str = "rollcall-receipt";
const SCHEMA: u32 = 1;

/// The content of a receipt (schema 1). Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub schema: u32,
    pub site: String,
    pub device: String,
    pub subject_id: SubjectId,
    /// The command that asked for it; null when another door sent it.
    pub request_id: Option<String>,
    pub asked_at: String,
    pub done_at: String,
    /// Whether the device's clock was trusted at both times.
    pub clock_trusted: bool,
    /// How many templates were deleted, and in how many events the person stood.
    pub references: u32,
    pub events: u32,
    /// `database`, `mongodb`.
    pub cleaned: Vec<String>,
    /// Databases that lie beside it because they were found damaged, and that were not searched.
    pub set_aside: u32,
    /// Why, where it followed the end of a consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// What keeps id and name: `events`. Empty for an erasure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    #[error("it is no receipt of this device")]
    Signature(#[source] Untrusted),
    #[error("its signature holds, but this version cannot read it")]
    Shape(#[source] serde_json::Error),
}

/// Where a receipt is published, below `rollcall/{site}/{device}/`.
pub fn topic_part(subject_id: &SubjectId) -> String {
    format!("receipt/{subject_id}")
}

impl Receipt {
    pub const SCHEMA: u32 = SCHEMA;

    pub fn sign(&self, key: &SigningKey) -> String {
        let claims = serde_json::to_vec(self).expect("string keys, and it writes to memory");
        key.sign(TYP, &claims)
    }

    pub fn verify(token: &[u8], key: &PublicKey) -> Result<Self, ReceiptError> {
        let signed =
            jws::verify(token, TYP, std::slice::from_ref(key)).map_err(ReceiptError::Signature)?;
        serde_json::from_slice(signed.bytes()).map_err(ReceiptError::Shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::jws::COMMAND;

    #[test]
    fn receipt_verifies_with_device_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let [key, other] =
            ["a", "b"].map(|name| SigningKey::create(&dir.path().join(name)).unwrap());
        let receipt = Receipt {
            schema: SCHEMA,
            site: "hq".into(),
            device: "door-1".into(),
            subject_id: SubjectId::new("jdoe").unwrap(),
            request_id: Some("r-1".into()),
            asked_at: "2026-11-23T07:58:03.412Z".into(),
            done_at: "2026-11-23T07:58:04.000Z".into(),
            clock_trusted: true,
            references: 3,
            events: 41,
            cleaned: vec!["database".into(), "mongodb".into()],
            set_aside: 0,
            reason: None,
            kept: Vec::new(),
        };
        let token = receipt.sign(&key);
        assert_eq!(Receipt::verify(token.as_bytes(), key.public()).unwrap(), receipt);
        assert_eq!(
            Receipt::verify(format!("{token}\n").as_bytes(), key.public()).unwrap(),
            receipt,
            "from a file"
        );
        assert!(matches!(
            Receipt::verify(token.as_bytes(), other.public()),
            Err(ReceiptError::Signature(_))
        ));
        let as_command = jws::verify(token.as_bytes(), COMMAND, std::slice::from_ref(key.public()));
        assert!(matches!(as_command, Err(Untrusted::BadSignature(_))));
        let written = serde_json::to_value(&receipt).unwrap();
        assert_eq!(
            written.to_string(),
            r#"{"asked_at":"2026-11-23T07:58:03.412Z","cleaned":["database","mongodb"],"clock_trusted":true,"device":"door-1","done_at":"2026-11-23T07:58:04.000Z","events":41,"references":3,"request_id":"r-1","schema":1,"set_aside":0,"site":"hq","subject_id":"jdoe"}"#
        );
        let expired = Receipt {
            request_id: None,
            events: 0,
            reason: Some(EndReason::ConsentExpired),
            kept: vec!["events".into()],
            ..receipt
        };
        assert_eq!(
            serde_json::to_value(&expired).unwrap().to_string(),
            r#"{"asked_at":"2026-11-23T07:58:03.412Z","cleaned":["database","mongodb"],"clock_trusted":true,"device":"door-1","done_at":"2026-11-23T07:58:04.000Z","events":0,"kept":["events"],"reason":"consent_expired","references":3,"request_id":null,"schema":1,"set_aside":0,"site":"hq","subject_id":"jdoe"}"#
        );
    }
}
