//! What the tests of more than one group use: the daemon and its neighbours, started and never left
//! behind.

#![allow(dead_code, reason = "each group of tests uses a part of this")]

pub mod browser;
pub mod client;
pub mod daemon;
pub mod door;
pub mod exposition;
pub mod faces;
pub mod http;
pub mod jpegs;
pub mod link;
pub mod mongod;
pub mod mosquitto;
pub mod office;
pub mod openssl;
pub mod proxy;
pub mod receiver;
pub mod store_bench;
pub mod terminal;
pub mod volume;
