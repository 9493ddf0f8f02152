//! From an identification to an attendance: whose, where, in which direction, and whether it is a new one.
//!
//! Only computes. The store asks [`is_due`] inside the transaction that would record the attendance, with the last one
//! it holds: so there is no state here that could be lost, and two observers can never both record the same visit.

pub mod watched;

use std::time::Duration;

use crate::clock::{BootId, Stamp};

/// A place where attendance is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Venue {
    pub id: String,
    pub name: String,
    /// A subject is recorded again only when this much time has passed since the last record. Zero: at every visit.
    pub re_entry_gap: Duration,
}

/// When a subject was last recorded at a venue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRecord {
    pub wall_ms: i64,
    pub boottime_ms: u64,
    pub boot_id: BootId,
}

/// Whether a sighting at `now` is a new attendance.
///
/// Within one boot the clock that never jumps decides. Across boots only wall time is left; where it seems to run
/// backwards nothing is known, and the attendance is recorded: one too many can be seen, one too few cannot.
pub fn is_due(last: Option<&LastRecord>, now: &Stamp, boot_id: &BootId, gap: Duration) -> bool {
    let Some(last) = last else {
        return true;
    };
    let gap_ms = gap.as_millis() as i64;
    if last.boot_id == *boot_id {
        // A sighting that waited for the networks may be recorded after a later one: the gap counts both ways.
        return now.boottime_ms.abs_diff(last.boottime_ms) as i64 >= gap_ms;
    }
    let passed_ms = now.wall_ms - last.wall_ms;
    passed_ms < 0 || passed_ms >= gap_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(last_wall_s: i64, last_boot_s: u64, same_boot: bool, expected: bool) {
        let boot = BootId::new("this");
        let last = LastRecord {
            wall_ms: last_wall_s * 1000,
            boottime_ms: last_boot_s * 1000,
            boot_id: if same_boot { boot.clone() } else { BootId::new("before") },
        };
        let now = Stamp { wall_ms: 100_000_000, boottime_ms: 500_000, trusted: true };
        assert_eq!(is_due(Some(&last), &now, &boot, Duration::from_mins(1)), expected, "{last:?}");
    }

    #[test]
    fn once_per_re_entry_gap() {
        check(99_941, 441, true, false);
        check(99_940, 440, true, true); // equality counts
        check(100_000, 501, true, false); // recorded already, but seen a second later than this one
        check(99_941, 441, false, false);
        check(99_940, 499, false, true);
    }

    #[test]
    fn a_clock_that_jumps_neither_doubles_nor_hides_a_visit() {
        check(50_000, 490, true, false); // the wall clock jumped forward within this boot
        check(150_000, 490, true, false); // and back
        check(150_000, 490, false, true); // an earlier boot that thought it was later
    }

    #[test]
    fn the_first_visit_is_recorded() {
        let now = Stamp { wall_ms: 0, boottime_ms: 0, trusted: false };
        assert!(is_due(None, &now, &BootId::new("this"), Duration::from_mins(1)));
    }
}
