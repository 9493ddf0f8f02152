//! Enables and starts the service, where systemd runs, and waits until it reports ready.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, bail};

use crate::cli::doctor::program::{SYSTEMD, UNIT};

/// The configuration that the service reads.
pub const CONFIG: &str = "/etc/rollcall/config.toml";

/// The drop-in of the package (docs/systemd.md), and where systemd looks for it.
const DROP_IN_SOURCE: &str = "/usr/share/rollcall/systemd/camera-command.conf";
const DROP_INS: &str = "/etc/systemd/system/rollcall.service.d";

/// Whether the service was started.
#[derive(Debug, PartialEq, Eq)]
pub enum ServiceStart {
    Running,
    /// It was not started, with the reason.
    Skipped(&'static str),
}

/// `is_command`: the camera is a command, which needs more devices.
pub fn start_service(config: &Path, is_command: bool) -> anyhow::Result<ServiceStart> {
    if !Path::new(SYSTEMD).is_dir() {
        return Ok(ServiceStart::Skipped("systemd is not running here"));
    }
    if Path::new(CONFIG).canonicalize().ok() != config.canonicalize().ok() {
        return Ok(ServiceStart::Skipped(
            "the service reads /etc/rollcall/config.toml, not this file",
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(ServiceStart::Skipped("only root may start it"));
    }
    set_drop_in(is_command, Path::new(DROP_IN_SOURCE), Path::new(DROP_INS))?;
    start_with(Path::new("systemctl"))
}

/// Links the packaged drop-in for cameras that are a command, or removes the link.
fn set_drop_in(is_command: bool, source: &Path, folder: &Path) -> anyhow::Result<()> {
    let Some(name) = source.file_name() else { return Ok(()) };
    let link = folder.join(name);
    // Somebody's own file of that name is left alone.
    let is_ours = fs::read_link(&link).is_ok_and(|target| target == source);
    let what = || format!("cannot change {}", link.display());
    if is_command && !link.exists() && source.exists() {
        fs::create_dir_all(folder).with_context(what)?;
        symlink(source, &link).with_context(what)?;
    } else if !is_command && is_ours {
        fs::remove_file(&link).with_context(what)?;
    }
    Ok(())
}

fn start_with(systemctl: &Path) -> anyhow::Result<ServiceStart> {
    let call = |args: &[&str]| -> anyhow::Result<Output> {
        Command::new(systemctl)
            .args(args)
            .output()
            .with_context(|| format!("cannot run {}", systemctl.display()))
    };
    if !call(&["cat", UNIT])?.status.success() {
        return Ok(ServiceStart::Skipped("rollcall.service is not installed (the package has it)"));
    }
    // For the drop-in.
    call(&["daemon-reload"])?;
    // Otherwise systemd does not start a service that failed too often.
    call(&["reset-failed", UNIT])?;
    for verb in ["enable", "restart"] {
        let output = call(&[verb, UNIT])?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr);
            bail!(
                "the configuration is written, but systemctl {verb} {UNIT} failed: {}; `rollcall doctor` shows the cause",
                output.trim()
            );
        }
    }
    Ok(ServiceStart::Running)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Stands for systemctl: notes how it was called, and fails at one verb.
    fn with(fails: &str) -> (String, anyhow::Result<ServiceStart>) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("systemctl");
        let calls = dir.path().join("calls");
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {}\n[ \"$1\" != \"{fails}\" ] || {{ echo no >&2; exit 1; }}\n",
            calls.display()
        );
        // Closed before it is run: a file that is open for writing cannot be.
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let started = start_with(&program);
        (fs::read_to_string(calls).unwrap(), started)
    }

    #[test]
    fn the_service_is_enabled_and_started() {
        let (calls, started) = with("-");
        assert_eq!(started.unwrap(), ServiceStart::Running);
        let [cat, reset, enable, restart] =
            ["cat", "reset-failed", "enable", "restart"].map(|verb| format!("{verb} {UNIT}"));
        let expected = [cat, "daemon-reload".into(), reset, enable, restart];
        assert_eq!(calls.lines().collect::<Vec<_>>(), expected);
        assert!(with("restart").1.unwrap_err().to_string().contains("doctor"));
        assert!(matches!(with("cat").1.unwrap(), ServiceStart::Skipped(_)));
    }

    #[test]
    fn drop_in_follows_the_camera() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("camera-command.conf");
        let folder = dir.path().join("rollcall.service.d");
        let link = folder.join("camera-command.conf");
        set_drop_in(true, &source, &folder).unwrap();
        assert!(!folder.exists(), "the package is not installed");
        fs::write(&source, "[Service]\n").unwrap();
        for _ in 0..2 {
            set_drop_in(true, &source, &folder).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), source);
        }
        set_drop_in(false, &source, &folder).unwrap();
        assert!(!link.exists());
        fs::write(&link, "somebody's own").unwrap();
        set_drop_in(true, &source, &folder).unwrap();
        set_drop_in(false, &source, &folder).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "somebody's own");
    }
}
