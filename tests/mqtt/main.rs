//! The link to a broker and the embedded broker, beside mosquitto.

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod link;
mod refused;
mod scripted;
