//! What was installed: configuration, models, library, and the service.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::app::exit;
use crate::bounded_file;
use crate::cli::doctor::Installation;
use crate::cli::doctor::finding::CheckResult;
use crate::config::checks::ConfigError;
use crate::config::{self, Settings};
use crate::error_chain::error_chain;
use crate::vision::manifest::ModelError;
use crate::vision::{self, Vision, VisionSettings, runtime};

const STOPPED: &str = "the daemon does not start: nobody is recorded";

pub fn explain_config_error(error: &anyhow::Error) -> CheckResult {
    let causes = || error.chain();
    let is_denied = causes()
        .filter_map(|it| it.downcast_ref::<std::io::Error>())
        .any(|it| it.kind() == std::io::ErrorKind::PermissionDenied);
    let is_missing = causes().any(|it| matches!(it.downcast_ref(), Some(ConfigError::Read { .. })));
    let is_variable =
        causes().any(|it| matches!(it.downcast_ref(), Some(ConfigError::Environment { .. })));
    let remedy = if is_denied {
        "run it as root (sudo rollcall doctor); if the result is the same, the daemon's user must own the file"
    } else if is_variable {
        "remove the variable from the environment, or from the service (systemctl cat rollcall)"
    } else if is_missing {
        "put the file at this path, or give the right path; `rollcall setup` writes a new configuration"
    } else {
        "correct this key in the file, where a comment explains it, then `rollcall check-config`; or `rollcall setup`"
    };
    CheckResult::fault(format!("{error:#}"), STOPPED, remedy)
}

pub fn check_configuration(path: Option<&Path>, settings: &Settings) -> CheckResult {
    let Some(path) = path else {
        return CheckResult::warning(
            "there is none: the built-in defaults are used",
            "no camera, no broker: only subcommands work",
            "sudo rollcall setup",
        );
    };
    // The others are reported with their part.
    let own = |it: &&String| !it.starts_with("[mongo]") && !it.starts_with("[fleet]");
    match settings.warnings.iter().find(own) {
        Some(warning) => CheckResult::warning(
            warning.clone(),
            "the daemon runs, but probably not as intended",
            format!("correct it in {}, then sudo systemctl restart rollcall", path.display()),
        ),
        None => CheckResult::good(path.display().to_string()),
    }
}

pub fn check_models(settings: &VisionSettings) -> CheckResult {
    match vision::verify(&settings.models) {
        Ok(files) => {
            CheckResult::good(format!("{} model files are as the manifest describes", files.len()))
        }
        Err(error) => explain_model_error(&error),
    }
}

pub fn check_library(settings: &VisionSettings) -> CheckResult {
    if let Err(error) = Vision::load(settings) {
        return explain_model_error(&error);
    }
    let version = runtime::PINNED_VERSION;
    if runtime::is_pinned(settings.runtime_library.as_deref(), &settings.models) == Some(true) {
        return CheckResult::good(format!(
            "ONNX Runtime {version} loads; one inference uses {} of the cores",
            settings.threads
        ));
    }
    CheckResult::warning(
        format!("another ONNX Runtime than {version} loads"),
        "nothing was measured with it: recognition may be worse or slower",
        "reinstall the package (sudo apt install --reinstall rollcall); in a source tree `make setup`",
    )
}

fn explain_model_error(error: &ModelError) -> CheckResult {
    let remedy = match error {
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
            "run doctor with sudo; if the result is the same, the card may be failing (dmesg)"
        }
    };
    CheckResult::fault(error_chain(error), STOPPED, remedy)
}

/// Exists while systemd manages this computer.
pub const SYSTEMD: &str = "/run/systemd/system";
pub const UNIT: &str = "rollcall.service";

pub fn check_service(installation: &Installation) -> CheckResult {
    let unit = Path::new(SYSTEMD).is_dir().then(read_unit).flatten();
    let version = installation.health_value("/version").and_then(|it| it.as_str());
    explain_service(unit.as_ref(), installation.is_running, version)
}

/// Returns what systemd reports of the unit; `None` if it does not answer.
fn read_unit() -> Option<BTreeMap<String, String>> {
    const WANTED: &str =
        "LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainCode,ExecMainStatus,NRestarts";
    let output = Command::new("systemctl").args(["show", UNIT, "-p", WANTED]).output().ok()?;
    output.status.success().then(|| parse_properties(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_properties(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

fn explain_service(
    unit: Option<&BTreeMap<String, String>>,
    is_running: bool,
    version: Option<&str>,
) -> CheckResult {
    const LOG: &str = "journalctl -u rollcall -e shows why";
    let own = env!("CARGO_PKG_VERSION");
    let unit = unit.filter(|unit| unit.get("LoadState").is_some_and(|it| it == "loaded"));
    let of = |key: &str| unit.and_then(|unit| unit.get(key)).map_or("", String::as_str);
    if let Some(version) = version.filter(|it| *it != own) {
        let words = format!("the running daemon is version {version}, installed is {own}");
        return CheckResult::warning(
            words,
            "the old version is still used",
            "sudo systemctl restart rollcall",
        );
    }
    match (of("ActiveState"), unit) {
        ("active", _) if of("UnitFileState") == "disabled" => CheckResult::warning(
            "the service runs, but is not enabled",
            "after the next power cut nobody is recorded",
            "sudo systemctl enable rollcall",
        ),
        ("active", _) => CheckResult::good(match of("NRestarts") {
            "" | "0" => "runs".to_owned(),
            restarts => format!("runs; it was restarted {restarts} times, {LOG}"),
        }),
        (state, Some(_)) if state != "inactive" || of("Result") != "success" => explain_exit(&of),
        (_, Some(_)) if !is_running => CheckResult::fault(
            "the service is not started",
            "nobody is recorded",
            "sudo systemctl enable --now rollcall",
        ),
        _ if is_running => CheckResult::good("a daemon runs (not as a service)"),
        _ => CheckResult::warning(
            "no daemon runs here",
            "nobody is recorded",
            "sudo systemctl enable --now rollcall where the package is installed, else `rollcall run`",
        ),
    }
}

/// Explains why the service failed, or is restarted again and again.
fn explain_exit<'a>(of: &impl Fn(&str) -> &'a str) -> CheckResult {
    let status = of("ExecMainStatus");
    let (why, remedy) = match (of("Result"), status.parse::<u8>()) {
        ("exit-code", Ok(exit::CONFIG)) => (
            "the configuration cannot be used",
            "see \"configuration\" above; `rollcall check-config`, `rollcall setup`",
        ),
        ("exit-code", Ok(exit::STORAGE)) => (
            "the storage cannot be used",
            "see \"storage\" and \"disk\"; journalctl -u rollcall -e shows what failed",
        ),
        ("exit-code", Ok(exit::MODEL)) => (
            "a model or the library is missing",
            "see \"networks\" and \"library\"; reinstall the package",
        ),
        ("exit-code", Ok(exit::USAGE)) => (
            "it was started with wrong arguments",
            "systemctl cat rollcall: undo what was changed in ExecStart",
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
        _ => ("it ended by itself", "journalctl -u rollcall -e shows why"),
    };
    let state = format!("{}, {}", of("ActiveState"), of("SubState"));
    let words =
        format!("the service does not stay up ({state}; exit {status}, {}): {why}", of("Result"));
    CheckResult::fault(words, "nobody is recorded", remedy)
}

/// Where provisioning files are put on the boot partition, which everybody can read.
/// A larger one is rejected by `setup`.
pub const CARD_BYTES_MAX: u64 = 64 << 10;
pub const CARDS: [&str; 2] = ["/boot/firmware/rollcall.toml", "/boot/rollcall.toml"];

/// Checks for a provisioning file that was left where everybody can read it; `None` without one.
pub fn check_card() -> Option<CheckResult> {
    let left = CARDS.iter().map(Path::new).find(|path| path.is_file())?;
    let text = bounded_file::read_text(left, CARD_BYTES_MAX).unwrap_or_default();
    let mut secrets = secret_files(&text, left.parent().unwrap_or(Path::new("")));
    if holds_secrets(&text) {
        secrets.push(left.to_owned());
    }
    Some(if let [first, ..] = secrets.as_slice() {
        let all: Vec<String> = secrets.iter().map(|path| path.display().to_string()).collect();
        CheckResult::warning(
            format!("{} holds a secret", first.display()),
            "everybody who takes the card or logs in can read it, and publish in this device's name",
            format!(
                "sudo rollcall setup --from {} (if that was not done), then sudo rm {}",
                left.display(),
                all.join(" ")
            ),
        )
    } else {
        CheckResult::good(format!("{} is still there and holds no password", left.display()))
    })
}

/// Returns the files with secrets that a provisioning file names and that still lie beside it.
fn secret_files(text: &str, folder: &Path) -> Vec<PathBuf> {
    let Ok(document) = text.parse::<toml::Table>() else {
        return Vec::new();
    };
    let keys = document.values().filter_map(toml::Value::as_table).flatten();
    // Certificates are public.
    let is_secret =
        |key: &str| key.ends_with("_file") && key != "ca_file" && key != "client_cert_file";
    keys.filter(|(key, _)| is_secret(key))
        .filter_map(|(_, name)| name.as_str().filter(|name| !name.contains('/')))
        .map(|name| folder.join(name))
        .filter(|path| path.is_file())
        .collect()
}

fn holds_secrets(text: &str) -> bool {
    let Ok(raw) = config::load::parse(text, &BTreeMap::new()) else {
        // A warning too many is better than one too few.
        return text.contains("password") || text.contains("uri");
    };
    !raw.mqtt.password.is_empty() || raw.mongo.uri.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str, result: &str, status: &str) -> BTreeMap<String, String> {
        parse_properties(&format!(
            "LoadState=loaded\nActiveState={active}\nSubState={sub}\nUnitFileState=enabled\nResult={result}\n\
             ExecMainCode=1\nExecMainStatus={status}\nNRestarts=0\n"
        ))
    }

    #[test]
    fn each_service_failure_is_explained() {
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
                let unit = unit(active, sub, result, status);
                let check = explain_service(Some(&unit), false, None);
                assert!(check.words.contains(part), "{result} {status}: {}", check.words);
                assert!(!check.is_good() && !check.remedy.is_empty());
            }
        }
    }

    #[test]
    fn service_state_gives_matching_verdict() {
        let own = Some(env!("CARGO_PKG_VERSION"));
        assert!(
            explain_service(Some(&unit("active", "running", "success", "0")), true, own).is_good()
        );
        assert!(
            explain_service(Some(&unit("active", "running", "success", "0")), true, Some("0.0.1"))
                .words
                .contains("0.0.1")
        );
        let stopped = explain_service(Some(&unit("inactive", "dead", "success", "0")), false, None);
        assert!(
            stopped.words.contains("not started") && stopped.remedy.contains("enable --now"),
            "{stopped:?}"
        );
        let absent =
            parse_properties("LoadState=not-found\nActiveState=inactive\nResult=success\n");
        assert!(explain_service(Some(&absent), true, own).is_good());
        assert!(explain_service(Some(&absent), false, None).words.contains("no daemon"));
        assert!(explain_service(None, false, None).words.contains("no daemon"));
        let mut disabled = unit("active", "running", "success", "0");
        disabled.insert("UnitFileState".into(), "disabled".into());
        assert!(explain_service(Some(&disabled), true, own).remedy.contains("enable"));
    }

    #[test]
    fn provisioning_file_secrets_are_detected() {
        assert!(holds_secrets("[mqtt]\nhost = \"b\"\nuser = \"u\"\npassword = \"s3cret\"\n"));
        assert!(holds_secrets("[mongo]\nuri = \"mongodb://u:p@h\"\n"));
        assert!(holds_secrets("password = broken"));
        assert!(!holds_secrets("[mqtt]\nhost = \"b\"\n"));
        let card = tempfile::tempdir().unwrap();
        for name in ["pw", "ca.pem"] {
            std::fs::write(card.path().join(name), "x").unwrap();
        }
        let text = "[mqtt]\npassword_file = \"pw\"\nca_file = \"ca.pem\"\n[http]\ntoken_file = \"gone\"\n\
            [fleet]\nkey_file = \"../pw\"\n";
        assert_eq!(secret_files(text, card.path()), [card.path().join("pw")]);
    }
}
