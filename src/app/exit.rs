//! The exit codes of the process, and the error that carries one.

use crate::keys::signer::SignerError;
use crate::store::StoreError;
use crate::vision::manifest::ModelError;

// The exit codes of docs/wire.md, after sysexits(3).
pub const USAGE: u8 = 64;
/// `rollcall verify`: the record is not as it was recorded.
pub const RECORD: u8 = 65;
pub const MODEL: u8 = 69;
pub const STORAGE: u8 = 74;
pub const CONFIG: u8 = 78;

pub(super) const STORAGE_UNUSABLE: &str = "the storage cannot be used";

/// An error that ends the process with an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub code: u8,
    pub what: &'static str,
    #[source]
    pub source: anyhow::Error,
}

pub(super) fn unusable_key(error: SignerError) -> anyhow::Error {
    Failure { code: STORAGE, what: "the device key cannot be used", source: error.into() }.into()
}

pub fn storage(error: StoreError) -> anyhow::Error {
    Failure { code: STORAGE, what: STORAGE_UNUSABLE, source: error.into() }.into()
}

pub fn record(why: anyhow::Error) -> anyhow::Error {
    Failure { code: RECORD, what: "the record is not as it was recorded", source: why }.into()
}

pub(super) fn config(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Failure { code: CONFIG, what: "the configuration cannot be used", source: error.into() }.into()
}

pub(super) fn model(error: ModelError) -> anyhow::Error {
    Failure { code: MODEL, what: "recognition cannot start", source: error.into() }.into()
}
