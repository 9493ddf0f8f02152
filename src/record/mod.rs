//! Makes durable: what happened, what is still owed to whom, who is enrolled, and what was asked and answered.

pub mod authority;
pub mod command;
pub mod event;
pub mod export;
pub mod ids;
pub mod outbox;
pub mod portable;
pub mod receipt;
pub mod seal;
pub mod signer;
pub mod store;
