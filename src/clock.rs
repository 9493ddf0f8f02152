//! The only module that reads the system clocks.
//!
//! A Raspberry Pi has no battery-backed clock. Until it has the time from the network, its wall
//! clock may be years off. So each moment is taken twice: as wall time, which people read, and as
//! milliseconds since boot, which never jump. With the boot's id, the second lets the first be
//! corrected later.
//!
//! Invariants: `boottime_ms` never decreases within one boot; nothing else in the project calls the
//! system clocks.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Wall time in milliseconds since 1970-01-01T00:00:00Z.
    pub wall_ms: i64,
    /// Milliseconds since boot, time asleep included (`CLOCK_BOOTTIME`).
    pub boottime_ms: u64,
    /// Whether the wall clock was trusted at that moment.
    pub trusted: bool,
}

impl Stamp {
    /// Returns the time since `earlier` by the time since boot; zero when `earlier` is later.
    pub fn since(&self, earlier: &Stamp) -> Duration {
        Duration::from_millis(self.boottime_ms.saturating_sub(earlier.boottime_ms))
    }

    /// Returns by how much the wall clock was set since `earlier` of the same boot. `None` when both
    /// clocks agree, apart from what NTP slews.
    pub fn step_since(&self, earlier: &Stamp) -> Option<i64> {
        let step_ms = self.at_boottime(earlier.boottime_ms).wall_ms.saturating_sub(earlier.wall_ms);
        (step_ms.abs() > STEP_MS).then_some(step_ms)
    }

    /// Returns another moment of the same boot, by the wall clock as it is set now.
    #[must_use]
    pub fn at_boottime(&self, boottime_ms: u64) -> Stamp {
        let age_ms = (self.boottime_ms as i64).saturating_sub(boottime_ms as i64);
        Stamp { wall_ms: self.wall_ms.saturating_sub(age_ms), boottime_ms, trusted: self.trusted }
    }

    /// Returns the moment that is earlier by this much.
    #[must_use]
    pub fn before(&self, by: Duration) -> Self {
        let by_ms = by.as_millis() as u64;
        Self {
            wall_ms: self.wall_ms.saturating_sub_unsigned(by_ms),
            boottime_ms: self.boottime_ms.saturating_sub(by_ms),
            ..*self
        }
    }
}

/// A wall clock that differs this much from the time since boot was set. NTP slews at most 1 ms in
/// 2 s, or 30 ms in a minute. chrony may slew a few seconds in a minute, which may count as a step.
const STEP_MS: i64 = 2_000;

/// The kernel's id of this boot: `boottime_ms` of two events may be compared only when it is the
/// same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootId(Arc<str>);

impl BootId {
    pub fn new(id: &str) -> Self {
        Self(id.trim().into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The source of the time: the system, or a test.
pub trait Clock: Send + Sync {
    fn now(&self) -> Stamp;
    fn boot_id(&self) -> BootId;
}

/// When the wall clock is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// While the kernel reports that NTP or PTP disciplines it: `adjtimex(2)` without
    /// `STA_UNSYNC`.
    #[default]
    Kernel,
    /// Always, unless it shows a time before 2020. For devices with a battery-backed clock or a
    /// hypervisor that keeps the time.
    Always,
}

/// 2020-01-01, years before this was written. A clock that shows an earlier time is never trusted:
/// one with an empty battery starts in 1970, 2000 or 2010.
const PLAUSIBLE_FROM_MS: i64 = 1_577_836_800_000;

/// The clocks of this machine.
pub struct SystemClock {
    trust: Trust,
    /// The last moment at which the kernel reported a disciplined clock.
    disciplined_at: Mutex<Option<Stamp>>,
}

/// How long the clock is trusted without a time server. The kernel stops trusting it nine hours
/// after the last reply of one. Crystals drift by less than 100 ppm, a minute in a week, so a few
/// days without internet do no harm.
const HOLDOVER: Duration = Duration::from_hours(7 * 24);

impl SystemClock {
    pub fn new(trust: Trust) -> Self {
        Self { trust, disciplined_at: Mutex::default() }
    }

    fn is_disciplined(&self, now: &Stamp) -> bool {
        let mut last = self.disciplined_at.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel_time_is_disciplined() {
            *last = Some(*now);
            return true;
        }
        last.is_some_and(|last| holds_over(&last, now))
    }
}

/// Returns whether a clock that was right at `disciplined_at` still is, although nothing
/// disciplines it. One that was set in between is not.
fn holds_over(disciplined_at: &Stamp, now: &Stamp) -> bool {
    now.since(disciplined_at) < HOLDOVER && now.step_since(disciplined_at).is_none()
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the lint points to this module")]
    fn now(&self) -> Stamp {
        // Through the C library, where tests can move the time (tests/torture/clock.c).
        let wall = std::time::SystemTime::now();
        let wall_ms = match wall.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        };
        let boottime_ms = boottime_ms();
        let now = Stamp { wall_ms, boottime_ms, trusted: true };
        let trusted = wall_ms >= PLAUSIBLE_FROM_MS
            && (self.trust == Trust::Always || self.is_disciplined(&now));
        Stamp { trusted, ..now }
    }

    fn boot_id(&self) -> BootId {
        static BOOT_ID: OnceLock<BootId> = OnceLock::new();
        BOOT_ID
            .get_or_init(|| {
                let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
                BootId::new(&id.unwrap_or_else(|_| "unknown".into()))
            })
            .clone()
    }
}

/// Returns `CLOCK_BOOTTIME`, through the C library as the wall time: rustix asks the kernel itself,
/// and then tests could move only one of the two clocks.
fn boottime_ms() -> u64 {
    #[expect(
        unsafe_code,
        reason = "clock_gettime of the C library has no safe wrapper in a crate we use"
    )]
    let boot = {
        let mut boot = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec that lives as long as the call.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut boot) };
        debug_assert_eq!(failed, 0, "Linux has had CLOCK_BOOTTIME since 2.6.39");
        boot
    };
    boot.tv_sec as u64 * 1000 + boot.tv_nsec as u64 / 1_000_000
}

fn kernel_time_is_disciplined() -> bool {
    #[expect(
        unsafe_code,
        reason = "adjtimex has no safe wrapper in a crate we use; a zeroed timex reads and sets nothing"
    )]
    let state = {
        // SAFETY: `timex` is plain data for which all zeroes is valid, and `modes = 0` makes the
        // call read-only.
        unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            libc::adjtimex(&raw mut timex)
        }
    };
    state >= 0 && state != libc::TIME_ERROR
}

/// A clock that a test moves. It starts trusted, at the given wall time and one second after boot.
pub struct SimulatedClock {
    wall_ms: AtomicI64,
    boottime_ms: AtomicU64,
    trusted: AtomicBool,
    boot_id: BootId,
}

impl SimulatedClock {
    pub fn at(wall_ms: i64) -> Self {
        Self {
            wall_ms: AtomicI64::new(wall_ms),
            boottime_ms: AtomicU64::new(1_000),
            trusted: AtomicBool::new(true),
            boot_id: BootId::new("00000000-0000-4000-8000-000000000001"),
        }
    }

    /// Returns the clock of another boot of the same machine.
    #[must_use]
    pub fn of_boot(self, number: u32) -> Self {
        Self { boot_id: BootId::new(&format!("00000000-0000-4000-8000-{number:012}")), ..self }
    }

    pub fn advance(&self, by: Duration) {
        let by_ms = by.as_millis() as u64;
        self.wall_ms.fetch_add(by_ms as i64, Ordering::SeqCst);
        self.boottime_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the wall clock, as NTP or a person does. The time since boot is not affected.
    pub fn set_wall(&self, wall_ms: i64, trusted: bool) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
        self.trusted.store(trusted, Ordering::SeqCst);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Stamp {
        Stamp {
            wall_ms: self.wall_ms.load(Ordering::SeqCst),
            boottime_ms: self.boottime_ms.load(Ordering::SeqCst),
            trusted: self.trusted.load(Ordering::SeqCst),
        }
    }

    fn boot_id(&self) -> BootId {
        self.boot_id.clone()
    }
}

/// Measures durations for metrics and benchmarks. Decisions use a `Stamp`.
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the lint points to this module")]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
    pub fn elapsed_ms(&self) -> f64 {
        self.0.elapsed().as_secs_f64() * 1e3
    }
}

/// Returns the CPU time that all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Returns `CLOCK_MONOTONIC`, by which drivers stamp frames: the time since boot without suspend.
pub fn since_boot_awake() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Formats a time as RFC 3339 in UTC with milliseconds, as all messages and reports do.
pub fn rfc3339(wall_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(wall_ms)
        .map_or_else(|_| "invalid".to_owned(), |at| format!("{at:.3}"))
}

/// Looks a zone up by its IANA name in the system's database, or else in the one built in.
pub fn time_zone(name: &str) -> Option<jiff::tz::TimeZone> {
    let zone = jiff::tz::TimeZone::get(name).ok()?;
    // A zone without a name could not be stored and found again.
    zone.iana_name().is_some().then_some(zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_with_milliseconds_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_420_683_412), "2026-11-23T07:58:03.412Z");
    }

    #[test]
    fn clock_holdover_ends_after_days_or_step() {
        let clock = SimulatedClock::at(1_795_420_683_412);
        let kept = clock.now();
        clock.advance(Duration::from_hours(6 * 24));
        assert!(holds_over(&kept, &clock.now()));
        let set = Stamp { wall_ms: clock.now().wall_ms + 3_600_000, ..clock.now() };
        assert!(!holds_over(&kept, &set));
        clock.advance(Duration::from_hours(24));
        assert!(!holds_over(&kept, &clock.now()));
    }

    #[test]
    fn wall_clock_jump_keeps_boottime() {
        let clock = SimulatedClock::at(0);
        let before = clock.now();
        clock.set_wall(1_795_420_683_412, true);
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.now().since(&before), Duration::from_millis(250));
    }

    #[test]
    fn stamp_before_shifts_both_clocks() {
        let now = SimulatedClock::at(5_000).now();
        let taken = now.before(Duration::from_millis(40));
        assert_eq!((taken.wall_ms, taken.boottime_ms, taken.trusted), (4_960, 960, true));
        assert_eq!(now.before(Duration::from_mins(1)).boottime_ms, 0);
    }
}
