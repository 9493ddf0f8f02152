//! The commands of the program.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "mongo")]
mod backup;
mod calibrate;
mod configurations;
mod doctor;
mod evaluate;
mod evaluate_pad;
mod examples;
mod export;
mod import_photographs;
mod output;
mod setup;
mod verify;
mod workbook;
