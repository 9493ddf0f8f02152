//! The gallery that the devices of a site share.
//!
//! Each subject is a record, sealed with the site key, with a version. A change on one device is
//! published, and every other device applies it when it is newer than its own version. Two
//! transports carry the records (`GalleryTransport`):
//!
//! - MQTT: one retained message for each subject. A new device cannot rely on the subscription for
//!   all of them, because brokers drop what does not fit into a queue (mosquitto all but the first
//!   thousand, by default). So 256 retained index pages list the versions. A device reads the index
//!   when it connects, requests by name what it lacks, and publishes what the site lacks. A link of
//!   its own carries this, so that commands never wait for a gallery.
//! - MongoDB: the collection `gallery` has one document for each subject, and a change counter.
//!
//! `reconcile` compares versions and `replica` keeps what was observed; both only compute.
//! `reconciler` applies and queues for either transport; `mqtt` and `mongo` are the adapters.
//!
//! Invariants: what is applied was sealed with the site key and is newer than the local version. A
//! sealed record is replaced by a newer version only. Content that is not sealed, and an old
//! version, is replaced by any device that has the subject, at a bounded rate (`repair`). An outbox
//! row is settled when the sealed record was received back, and is pending until then. Nothing is
//! published before the site's gallery was read.

mod mongo;
mod mqtt;
mod reconcile;
mod reconciler;
mod repair;
mod replica;
mod shared;
mod sink;
pub mod wire;

pub use mongo::{MongoGallery, MongoTransport};
pub use mqtt::{MqttGallery, MqttTransport};
pub use reconciler::Reconciler;
pub use sink::GallerySink;
pub use wire::BYTES_MAX;
