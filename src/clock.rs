//! The only place that asks for the time.
//!
//! A Raspberry Pi has no clock of its own: until the network has told it the time, the wall clock may be years off.
//! So each moment is taken twice: as wall time, which people read, and as milliseconds since boot, which never jumps.
//! Together with the boot's id the second lets the first be corrected later.
//!
//! Invariants: `boottime_ms` never goes back within one boot; nothing else in the project calls the system clocks.

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
    /// Whether the wall time was known to be right at that moment.
    pub trusted: bool,
}

impl Stamp {
    /// Time from `earlier` to `self` by the clock that never jumps; zero when `earlier` is later.
    pub fn since(&self, earlier: &Stamp) -> Duration {
        Duration::from_millis(self.boottime_ms.saturating_sub(earlier.boottime_ms))
    }

    /// By how much the wall clock was set since `earlier`, of the same boot; none when both clocks agree but for what NTP
    /// slews.
    pub fn step_since(&self, earlier: &Stamp) -> Option<i64> {
        let step_ms = self.at_boottime(earlier.boottime_ms).wall_ms.saturating_sub(earlier.wall_ms);
        (step_ms.abs() > STEP_MS).then_some(step_ms)
    }

    /// Another moment of the same boot, by the wall clock as it is set now.
    #[must_use]
    pub fn at_boottime(&self, boottime_ms: u64) -> Stamp {
        let age_ms = (self.boottime_ms as i64).saturating_sub(boottime_ms as i64);
        Stamp { wall_ms: self.wall_ms.saturating_sub(age_ms), boottime_ms, trusted: self.trusted }
    }

    /// The moment so long before.
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

/// A wall clock that moved this much against the other was set. NTP slews at most 1 ms in 2 s, or 30 ms in a minute;
/// chrony in a hurry a few seconds in a minute, which may count as a step.
const STEP_MS: i64 = 2_000;

/// The kernel's id of this boot: `boottime_ms` of two events may be compared only when it is the same.
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

/// Where the time comes from: the system, or a test.
pub trait Clock: Send + Sync {
    fn now(&self) -> Stamp;
    fn boot_id(&self) -> BootId;
}

/// When wall time counts as right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// When the kernel says that something disciplines it (NTP, PTP): `adjtimex(2)` without `STA_UNSYNC`.
    #[default]
    Kernel,
    /// Always, unless it shows a time before 2020: the device has a battery-backed clock, or a hypervisor that keeps the
    /// time.
    Always,
}

/// 2020-01-01, years before this was written. A clock that shows an earlier time is wrong whatever anybody says of it: one
/// with an empty battery starts in 1970, 2000 or 2010.
const PLAUSIBLE_FROM_MS: i64 = 1_577_836_800_000;

/// The real clocks of this machine.
pub struct SystemClock {
    trust: Trust,
    /// The last moment at which the kernel said that something keeps the clock right.
    kept: Mutex<Option<Stamp>>,
}

/// How long a clock stays right by itself. The kernel gives up on it nine hours after the last word from a time server, but
/// crystals drift by less than 100 ppm, a minute in a week: a door without internet for a few days is not without time.
const HOLDOVER: Duration = Duration::from_hours(7 * 24);

impl SystemClock {
    pub fn new(trust: Trust) -> Self {
        Self { trust, kept: Mutex::default() }
    }

    fn is_kept(&self, now: &Stamp) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel_time_is_disciplined() {
            *kept = Some(*now);
            return true;
        }
        kept.is_some_and(|kept| holds_over(&kept, now))
    }
}

/// Whether a clock that was right at `kept` still is, with nothing to keep it so. One that was set in between is not.
fn holds_over(kept: &Stamp, now: &Stamp) -> bool {
    now.since(kept) < HOLDOVER && now.step_since(kept).is_none()
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place that the lint points to")]
    fn now(&self) -> Stamp {
        // By way of the C library, where whoever tries the daemon in another year can reach in.
        let wall = std::time::SystemTime::now();
        let wall_ms = match wall.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        };
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boottime_ms = (boot.tv_sec * 1000 + boot.tv_nsec / 1_000_000) as u64;
        let now = Stamp { wall_ms, boottime_ms, trusted: true };
        let trusted =
            wall_ms >= PLAUSIBLE_FROM_MS && (self.trust == Trust::Always || self.is_kept(&now));
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

fn kernel_time_is_disciplined() -> bool {
    #[expect(
        unsafe_code,
        reason = "adjtimex has no safe wrapper in a crate we use; a zeroed timex asks and sets nothing"
    )]
    let state = {
        // SAFETY: `timex` is plain data for which all zeroes is valid, and `modes = 0` makes the call read-only.
        unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            libc::adjtimex(&raw mut timex)
        }
    };
    state >= 0 && state != libc::TIME_ERROR
}

/// A clock that a test moves. Starts trusted, at the given wall time and one second after boot.
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

    /// The clock of another boot of the same machine.
    #[must_use]
    pub fn of_boot(self, number: u32) -> Self {
        Self { boot_id: BootId::new(&format!("00000000-0000-4000-8000-{number:012}")), ..self }
    }

    pub fn advance(&self, by: Duration) {
        let by_ms = by.as_millis() as u64;
        self.wall_ms.fetch_add(by_ms as i64, Ordering::SeqCst);
        self.boottime_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the wall clock, as NTP or a person does; time since boot goes on undisturbed.
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

/// A stopwatch for figures (latency, benches), never for decisions: those take a `Stamp`.
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "this is the place that the lint points to")]
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

/// CPU time used by the calling thread so far: what a bench reports on a noisy machine.
pub fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time used by all threads of this process so far.
pub fn process_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `CLOCK_MONOTONIC`, by which drivers stamp frames: since boot, time asleep left out.
pub fn since_boot_awake() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// RFC 3339 in UTC with milliseconds, as every contract of the project writes time.
pub fn rfc3339(wall_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(wall_ms)
        .map_or_else(|_| "invalid".to_owned(), |at| format!("{at:.3}"))
}

/// A zone by its name in the IANA database: the system's, or the one built in where the system has none.
pub fn time_zone(name: &str) -> Option<jiff::tz::TimeZone> {
    let zone = jiff::tz::TimeZone::get(name).ok()?;
    // What has no name cannot be stored and found again.
    zone.iana_name().is_some().then_some(zone)
}

/// So much in a minute: a bucket that fills evenly and holds a minute's worth.
#[derive(Debug)]
pub struct Pace {
    per_minute: f64,
    left: f64,
    last_ms: Option<u64>,
}

impl Pace {
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute: f64::from(per_minute), left: f64::from(per_minute), last_ms: None }
    }

    /// `now_ms`: of a clock that never jumps.
    pub fn allows(&mut self, now_ms: u64) -> bool {
        if let Some(last_ms) = self.last_ms {
            let minutes = now_ms.saturating_sub(last_ms) as f64 / 60_000.0;
            self.left = (self.left + minutes * self.per_minute).min(self.per_minute);
        }
        self.last_ms = Some(now_ms);
        let allowed = self.left >= 1.0;
        self.left -= f64::from(u8::from(allowed));
        allowed
    }
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
    fn a_clock_that_nobody_keeps_any_more_stays_right_for_days_unless_it_is_set() {
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
    fn a_jump_of_the_wall_clock_does_not_move_the_other() {
        let clock = SimulatedClock::at(0);
        let before = clock.now();
        clock.set_wall(1_795_420_683_412, true);
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.now().since(&before), Duration::from_millis(250));
    }

    #[test]
    fn a_frame_was_taken_before_it_arrived_by_both_clocks() {
        let now = SimulatedClock::at(5_000).now();
        let taken = now.before(Duration::from_millis(40));
        assert_eq!((taken.wall_ms, taken.boottime_ms, taken.trusted), (4_960, 960, true));
        assert_eq!(now.before(Duration::from_mins(1)).boottime_ms, 0);
    }

    #[test]
    fn the_pace_is_kept_and_recovers() {
        let mut pace = Pace::new(60);
        assert_eq!((0..100).filter(|_| pace.allows(0)).count(), 60);
        assert!(!pace.allows(900));
        assert!(pace.allows(2_000));
    }
}
