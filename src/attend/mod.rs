//! From an identification to an attendance: whose, where, in which session and direction, late or
//! not, and whether it is a new one; and from attendances to summaries: who was there, and
//! who was not.
//!
//! Only computes. The store asks [`judge`](judge::judge) inside the transaction that would record
//! the attendance, with the records it holds: so there is no state here that could be lost, and two
//! observers can never both record the same visit. Time zones come in as data; the
//! zone database is read downstream.

pub mod coverage;
pub mod judge;
pub mod session;
pub mod summary;
pub mod venue;

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Direction {
    In,
    Out,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    Present,
    Late,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
