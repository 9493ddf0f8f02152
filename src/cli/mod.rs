//! The command line: one file for each subcommand, each with its `Args` and a `run`.

pub mod bench;
pub mod evaluate;
pub mod plot;
