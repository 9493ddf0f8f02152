//! The built daemon as a whole, with real brokers, databases and browsers.

#[path = "../support/mod.rs"]
mod support;

mod attendance;
mod authority;
mod broker_acl;
mod broker_refuses;
mod camera;
mod consent;
mod crash;
mod demo;
mod documents;
mod enrol;
mod exposition;
mod fleet;
#[cfg(feature = "mongo")]
mod fleet_mongo;
mod home_assistant;
mod hostile;
mod hostile_pictures;
mod http;
mod http_load;
#[cfg(feature = "mongo")]
mod http_mongo;
mod http_strangers;
mod metrics;
#[cfg(feature = "mongo")]
mod mongo;
mod odd_files;
mod pad;
mod page;
mod page_scale;
mod pipe;
mod privacy;
mod reports;
mod service;
mod start;
mod visits;
mod watch;
mod wear;
mod webhook;
mod webhook_hr;
