//! The models on photographs, beside the reference pipeline.

#[path = "../support/mod.rs"]
mod support;

mod agreement;
mod clips;
mod enrolment;
mod field_cases;
mod jpeg;
mod memory;
mod pictures;
mod visit_rates;
