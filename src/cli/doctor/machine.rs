//! The computer that the daemon runs on: clock, processor, power supply.

use std::fs;
use std::path::Path;

use crate::cli::doctor::Installation;
use crate::cli::doctor::finding::CheckResult;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::health;

/// Above this the processor slows itself down on the usual boards.
const HOT_CELSIUS: f32 = 80.0;

pub fn check_clock(settings: &Settings) -> CheckResult {
    let now = SystemClock::new(settings.trust).now();
    if now.trusted {
        return CheckResult::good("synchronised");
    }
    CheckResult::warning(
        format!("the clock is not synchronised (no NTP); it shows {}", rfc3339(now.wall_ms)),
        "attendance is recorded, but marked \"unsynced\", without session and lateness, until the time is known",
        "connect the network, sudo timedatectl set-ntp true; on a device with a battery-backed clock [clock] trust = \"always\"",
    )
}

pub fn check_processor(installation: &Installation) -> CheckResult {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let slowed = installation
        .health_value("/recognition/pace_step")
        .and_then(serde_json::Value::as_u64)
        .is_some_and(|step| step > 0);
    check_heat(cores, health::cpu_celsius(), slowed)
}

fn check_heat(cores: usize, celsius: Option<f32>, slowed: bool) -> CheckResult {
    let hot = |words: String| {
        CheckResult::warning(
            words,
            "recognition slows down to cool the device: somebody who passes quickly may be missed",
            "give it air: move it out of the sun or the closed box, add a heat sink or a fan",
        )
    };
    match celsius {
        Some(celsius) if celsius >= HOT_CELSIUS => {
            hot(format!("{cores} cores at {celsius:.0} °C: hot"))
        }
        Some(celsius) if slowed => {
            hot(format!("{cores} cores at {celsius:.0} °C, slowed down because it was hotter"))
        }
        Some(celsius) => CheckResult::good(format!("{cores} cores at {celsius:.0} °C")),
        None => CheckResult::good(format!("{cores} cores; no temperature sensor")),
    }
}

pub fn check_power() -> CheckResult {
    check_supply(Path::new("/sys"))
}

/// A Raspberry Pi reports a weak supply: by the kernel's `rpi_volt` sensor, and on some models by
/// the firmware's flags.
fn check_supply(sys: &Path) -> CheckResult {
    let low = |words: &str| {
        CheckResult::fault(
            words,
            "the device may stop at any moment, and its card may be damaged; a stop loses nothing that was recorded",
            "use the maker's own power supply (Raspberry Pi 4: 5 V 3 A, 5: 5 V 5 A), a short cable, and fewer USB devices",
        )
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let sensors = fs::read_dir(sys.join("class/hwmon"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let volt = sensors.into_iter().find(|sensor| read(&sensor.join("name")) == "rpi_volt");
    if let Some(volt) = &volt
        && read(&volt.join("in0_lcrit_alarm")) == "1"
    {
        return low("the power supply is too weak: undervoltage");
    }
    let flags = read(&sys.join("devices/platform/soc/soc:firmware/get_throttled"));
    // Bit 0: now; bit 16: since the start.
    match u32::from_str_radix(flags.trim_start_matches("0x"), 16) {
        Ok(flags) if flags & 1 != 0 => low("the power supply is too weak: undervoltage now"),
        Ok(flags) if flags & (1 << 16) != 0 => {
            low("the power supply was too weak since the device was switched on")
        }
        Ok(_) => CheckResult::good("the supply is strong enough"),
        Err(_) if volt.is_some() => CheckResult::good("the supply is strong enough"),
        Err(_) => CheckResult::good("this machine does not report on its supply"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_warning_lasts_until_slow_down_ends() {
        for (celsius, slowed, good) in [
            (Some(60.0), false, true),
            (Some(80.0), false, false),
            (Some(75.0), true, false),
            (None, false, true),
        ] {
            assert_eq!(check_heat(4, celsius, slowed).is_good(), good, "{celsius:?} {slowed}");
        }
    }

    #[test]
    fn undervoltage_is_read_from_either_source() {
        let words = |sensor: Option<&str>, flags: Option<&str>| {
            let sys = tempfile::tempdir().unwrap();
            if let Some(alarm) = sensor {
                let volt = sys.path().join("class/hwmon/hwmon1");
                fs::create_dir_all(&volt).unwrap();
                fs::write(volt.join("name"), "rpi_volt\n").unwrap();
                fs::write(volt.join("in0_lcrit_alarm"), alarm).unwrap();
            }
            if let Some(flags) = flags {
                let firmware = sys.path().join("devices/platform/soc/soc:firmware");
                fs::create_dir_all(&firmware).unwrap();
                fs::write(firmware.join("get_throttled"), flags).unwrap();
            }
            check_supply(sys.path()).words
        };
        for (sensor, flags, part) in [
            (None, None, "does not report"),
            (Some("0\n"), None, "strong enough"),
            (Some("1\n"), None, "undervoltage"),
            (Some("0\n"), Some("50000\n"), "was too weak"),
            (None, Some("0x50005\n"), "undervoltage now"),
            (None, Some("0\n"), "strong enough"),
        ] {
            let found = words(sensor, flags);
            assert!(found.contains(part), "{sensor:?} {flags:?}: {found}");
        }
    }
}
