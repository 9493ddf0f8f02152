//! What was installed: configuration, networks, library, and the service that runs them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::app::exit;
use crate::cli::doctor::Place;
use crate::cli::doctor::finding::Verdict;
use crate::config::{self, ConfigError};
use crate::vision::manifest::ModelError;
use crate::vision::{self, Vision, runtime};

const STOPPED: &str = "the daemon does not start: nobody is recorded";

pub fn unusable(error: &anyhow::Error) -> Verdict {
    let causes = || error.chain();
    let denied = causes()
        .filter_map(|it| it.downcast_ref::<std::io::Error>())
        .any(|it| it.kind() == std::io::ErrorKind::PermissionDenied);
    let unread = causes().any(|it| matches!(it.downcast_ref(), Some(ConfigError::Read { .. })));
    let variable =
        causes().any(|it| matches!(it.downcast_ref(), Some(ConfigError::Environment { .. })));
    let remedy = if denied {
        "run it as root (sudo rollcall doctor); if it says the same then, the file's owner must be the daemon's user"
    } else if variable {
        "take the variable out of the environment, or of the service (systemctl cat rollcall)"
    } else if unread {
        "put the file where it is looked for, or name the right place; `rollcall setup` writes a new configuration"
    } else {
        "mend this key in the file, where its meaning stands beside it, then `rollcall check-config`; or `rollcall setup`"
    };
    Verdict::fault(format!("{error:#}"), STOPPED, remedy)
}

pub fn configuration(path: Option<&Path>, place: &Place) -> Verdict {
    let Some(path) = path else {
        return Verdict::warning(
            "there is none: the built-in defaults are in force",
            "no camera, no broker: only what is asked on the command line is done",
            "sudo rollcall setup",
        );
    };
    // The others are told where they belong.
    let own = |it: &&String| !it.starts_with("[mongo]") && !it.starts_with("[fleet]");
    match place.settings.warnings.iter().find(own) {
        Some(warning) => Verdict::warning(
            warning.clone(),
            "the daemon runs, but hardly as it was meant",
            format!("mend it in {}, then sudo systemctl restart rollcall", path.display()),
        ),
        None => Verdict::good(path.display().to_string()),
    }
}

pub fn networks(place: &Place) -> Verdict {
    match vision::verify(&place.settings.vision.models) {
        Ok(files) => Verdict::good(format!("{} files are as the manifest describes", files.len())),
        Err(error) => unloadable(error),
    }
}

pub fn library(place: &Place) -> Verdict {
    let vision = &place.settings.vision;
    if let Err(error) = Vision::load(vision) {
        return unloadable(error);
    }
    let version = runtime::PINNED_VERSION;
    if runtime::is_pinned(vision.runtime_library.as_deref(), &vision.models) == Some(true) {
        return Verdict::good(format!(
            "ONNX Runtime {version} loads; one inference uses {} of the cores",
            vision.threads
        ));
    }
    Verdict::warning(
        format!("another ONNX Runtime than {version} loads"),
        "nothing was measured with it: it may recognise worse, or more slowly",
        "reinstall the package (sudo apt install --reinstall rollcall); in a source tree `make setup`",
    )
}

fn unloadable(error: ModelError) -> Verdict {
    let remedy = match &error {
        ModelError::WrongDigest { .. } => {
            "reinstall the package (sudo apt install --reinstall rollcall). If a file changes by itself, the card is failing: \
             `rollcall backup`, then a new card"
        }
        ModelError::Manifest { .. }
        | ModelError::Inconsistent { .. }
        | ModelError::Session { .. } => {
            "reinstall the package (sudo apt install --reinstall rollcall); in a source tree `git checkout models`"
        }
        ModelError::Missing { .. } => {
            "reinstall the package, or correct [recognition] models and precision in config.toml"
        }
        ModelError::NoRuntime { .. } | ModelError::Runtime { .. } => {
            "reinstall the package (sudo apt install --reinstall rollcall), in a source tree `make setup`; [recognition] \
             runtime_library names another"
        }
        ModelError::Read { .. } => {
            "run doctor with sudo; if it says the same then, the card may be failing (dmesg)"
        }
    };
    Verdict::fault(format!("{:#}", anyhow::Error::new(error)), STOPPED, remedy)
}

/// Where systemd looks for what it manages, when it runs.
pub const SYSTEMD: &str = "/run/systemd/system";
pub const UNIT: &str = "rollcall.service";

pub fn service(place: &Place) -> Verdict {
    let unit = Path::new(SYSTEMD).is_dir().then(show_unit).flatten();
    let version = place.told("/version").and_then(|it| it.as_str()).map(str::to_owned);
    of_service(unit.as_ref(), place.answers, version.as_deref())
}

/// What systemd says of the unit; none when it does not answer.
fn show_unit() -> Option<BTreeMap<String, String>> {
    const WANTED: &str =
        "LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainCode,ExecMainStatus,NRestarts";
    let output = Command::new("systemctl").args(["show", UNIT, "-p", WANTED]).output().ok()?;
    output.status.success().then(|| properties(&String::from_utf8_lossy(&output.stdout)))
}

fn properties(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

fn of_service(
    unit: Option<&BTreeMap<String, String>>,
    answers: bool,
    version: Option<&str>,
) -> Verdict {
    const LOG: &str = "journalctl -u rollcall -e shows its last words";
    let own = env!("CARGO_PKG_VERSION");
    let unit = unit.filter(|unit| unit.get("LoadState").is_some_and(|it| it == "loaded"));
    let of = |key: &str| unit.and_then(|unit| unit.get(key)).map_or("", String::as_str);
    if let Some(version) = version.filter(|it| *it != own) {
        let words = format!("the running daemon is version {version}, installed is {own}");
        return Verdict::warning(
            words,
            "the old version goes on",
            "sudo systemctl restart rollcall",
        );
    }
    match (of("ActiveState"), unit) {
        ("active", _) if of("UnitFileState") == "disabled" => Verdict::warning(
            "the service runs, but is not enabled",
            "after the next power cut nobody is recorded",
            "sudo systemctl enable rollcall",
        ),
        ("active", _) => Verdict::good(match of("NRestarts") {
            "" | "0" => "runs".to_owned(),
            restarts => format!("runs; it was started again {restarts} times, {LOG}"),
        }),
        (state, Some(_)) if state != "inactive" || of("Result") != "success" => ended(&of),
        (_, Some(_)) if !answers => Verdict::fault(
            "the service is not started",
            "nobody is recorded",
            "sudo systemctl enable --now rollcall",
        ),
        _ if answers => Verdict::good("a daemon runs (not as a service)"),
        _ => Verdict::warning(
            "no daemon runs here",
            "nobody is recorded",
            "sudo systemctl enable --now rollcall where the package is installed, else `rollcall run`",
        ),
    }
}

/// The service failed, or is being started again and again.
fn ended<'a>(of: &impl Fn(&str) -> &'a str) -> Verdict {
    let status = of("ExecMainStatus");
    let (why, remedy) = match (of("Result"), status.parse::<u8>()) {
        ("exit-code", Ok(exit::CONFIG)) => (
            "the configuration cannot be used",
            "see \"configuration\" above; `rollcall check-config`, `rollcall setup`",
        ),
        ("exit-code", Ok(exit::STORAGE)) => (
            "the storage cannot be used",
            "see \"storage\" and \"disk\"; journalctl -u rollcall -e says what it could not do",
        ),
        ("exit-code", Ok(exit::MODEL)) => (
            "a network or the library is missing",
            "see \"networks\" and \"library\"; reinstall the package",
        ),
        ("exit-code", Ok(exit::USAGE)) => (
            "it was started with wrong arguments",
            "systemctl cat rollcall: take back what was changed in ExecStart",
        ),
        ("watchdog", _) => (
            "it hung and was stopped by the watchdog",
            "journalctl -u rollcall -e; is the card failing (dmesg)?",
        ),
        ("oom-kill", _) => ("the memory ran out", "end what else needs memory here; `free -m`"),
        ("timeout", _) => (
            "it did not get ready in time",
            "is the card very slow (dmesg)? journalctl -u rollcall -e",
        ),
        _ => ("it ended by itself", "journalctl -u rollcall -e shows its last words"),
    };
    let state = format!("{}, {}", of("ActiveState"), of("SubState"));
    let words =
        format!("the service does not stay up ({state}; exit {status}, {}): {why}", of("Result"));
    Verdict::fault(words, "nobody is recorded", remedy)
}

/// Where provisioning files are put on the boot partition, which everybody can read.
pub const CARDS: [&str; 2] = ["/boot/firmware/rollcall.toml", "/boot/rollcall.toml"];

/// A file with secrets that was left where everybody can read it; none where there is none, and nothing is worth saying.
pub fn card(_: &Place) -> Option<Verdict> {
    let left = CARDS.iter().map(Path::new).find(|path| path.is_file())?;
    let text = std::fs::read_to_string(left).unwrap_or_default();
    Some(if holds_secrets(&text) {
        Verdict::warning(
            format!("{} holds a password", left.display()),
            "whoever takes the card or logs in can read it, and publish in this device's name",
            format!(
                "sudo rollcall setup --from {0} (if that was not done), then sudo rm {0}",
                left.display()
            ),
        )
    } else {
        Verdict::good(format!("{} is still there and holds no password", left.display()))
    })
}

fn holds_secrets(text: &str) -> bool {
    let Ok(raw) = config::parse(text, Path::new("card"), &BTreeMap::new()) else {
        // Better a word too many.
        return text.contains("password") || text.contains("uri");
    };
    !raw.mqtt.password.is_empty() || raw.mongo.uri.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str, result: &str, status: &str) -> BTreeMap<String, String> {
        properties(&format!(
            "LoadState=loaded\nActiveState={active}\nSubState={sub}\nUnitFileState=enabled\nResult={result}\n\
             ExecMainCode=1\nExecMainStatus={status}\nNRestarts=0\n"
        ))
    }

    #[test]
    fn every_end_of_the_service_is_explained() {
        for (result, status, part) in [
            ("exit-code", "78", "configuration"),
            ("exit-code", "74", "storage"),
            ("exit-code", "69", "library"),
            ("exit-code", "64", "arguments"),
            ("exit-code", "1", "ended by itself"),
            ("watchdog", "6", "watchdog"),
            ("oom-kill", "9", "memory"),
            ("timeout", "15", "in time"),
            ("signal", "9", "ended by itself"),
        ] {
            for (active, sub) in [("failed", "failed"), ("activating", "auto-restart")] {
                let verdict = of_service(Some(&unit(active, sub, result, status)), false, None);
                assert!(verdict.words.contains(part), "{result} {status}: {}", verdict.words);
                assert!(!verdict.is_good() && !verdict.remedy.is_empty());
            }
        }
    }

    #[test]
    fn a_service_runs_or_does_not() {
        let own = Some(env!("CARGO_PKG_VERSION"));
        assert!(of_service(Some(&unit("active", "running", "success", "0")), true, own).is_good());
        assert!(
            of_service(Some(&unit("active", "running", "success", "0")), true, Some("0.0.1"))
                .words
                .contains("0.0.1")
        );
        let stopped = of_service(Some(&unit("inactive", "dead", "success", "0")), false, None);
        assert!(
            stopped.words.contains("not started") && stopped.remedy.contains("enable --now"),
            "{stopped:?}"
        );
        let absent = properties("LoadState=not-found\nActiveState=inactive\nResult=success\n");
        assert!(of_service(Some(&absent), true, own).is_good());
        assert!(of_service(Some(&absent), false, None).words.contains("no daemon"));
        assert!(of_service(None, false, None).words.contains("no daemon"));
        let mut disabled = unit("active", "running", "success", "0");
        disabled.insert("UnitFileState".into(), "disabled".into());
        assert!(of_service(Some(&disabled), true, own).remedy.contains("enable"));
    }

    #[test]
    fn what_is_left_on_the_card_is_looked_through() {
        assert!(holds_secrets("[mqtt]\nhost = \"b\"\nuser = \"u\"\npassword = \"s3cret\"\n"));
        assert!(holds_secrets("[mongo]\nuri = \"mongodb://u:p@h\"\n"));
        assert!(holds_secrets("password = broken"));
        assert!(!holds_secrets("[mqtt]\nhost = \"b\"\n"));
    }
}
