//! Secrets and what they prove: sealed templates, signed commands and the receipts of erasures.
//!
//! Invariant: key material is zeroed when dropped and never reaches a log, an error or a message.

pub mod secret_file;

pub mod seal;

pub mod jws;

pub mod signer;

pub mod receipt;

pub mod checkpoint;
