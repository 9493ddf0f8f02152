//! All that uses the MongoDB driver.

mod devices;
mod documents;
mod examine;
mod fault;
mod gallery;
mod legacy;
mod link;
mod record;
mod settings;
mod sink;
mod superseded;

pub use examine::examine;
pub use link::MongoLink;
pub use record::read_record;
pub use settings::{MongoSettings, settings_from};
pub use sink::MongoSink;
