//! The MongoDB sink with a real mongod.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "mongo")]
mod chain;
#[cfg(feature = "mongo")]
mod sink;
