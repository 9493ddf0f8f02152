//! From an identification to an attendance: whose, where, in which session and direction, late or not, and whether it is
//! a new one; and from attendances to what people ask: who was there, and who was not.
//!
//! Only computes. The store asks [`judge`](judge::judge) inside the transaction that would record the attendance, with
//! the records it holds: so there is no state here that could be lost, and two observers can never both record the same
//! visit. Time zones come in as data; whoever reads the zone database stands downstream.

pub mod judge;
pub mod session;
pub mod summary;
pub mod venue;
pub mod watched;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    In,
    Out,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::In, Self::Out].into_iter().find(|it| it.as_str() == text)
    }

    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Present,
    Late,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Late => "late",
        }
    }
}
