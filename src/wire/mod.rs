//! What others read and write: events, commands and their replies, and the files that carry a
//! gallery.
//!
//! Every document has its version, is read strictly and is written in one place. Nothing in here
//! stores or sends anything.

pub mod consent;

pub mod chain;

pub mod event;

pub mod chain_check;

pub mod command;
pub mod reply;

pub mod subject;

pub mod export;

pub mod csv;
pub mod subject_id_from_name;
pub mod xlsx;
