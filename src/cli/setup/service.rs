//! The service, where systemd runs: enabled, started, and waited for until it says that it is ready.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, bail};

use crate::cli::doctor::program::{SYSTEMD, UNIT};

/// The configuration that the service reads.
pub const CONFIG: &str = "/etc/rollcall/config.toml";

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Started {
    Runs,
    /// There is nothing to start, and why.
    Not(&'static str),
}

pub fn start(config: &Path) -> anyhow::Result<Started> {
    if !Path::new(SYSTEMD).is_dir() {
        return Ok(Started::Not("systemd does not run here"));
    }
    if Path::new(CONFIG).canonicalize().ok() != config.canonicalize().ok() {
        return Ok(Started::Not("the service reads /etc/rollcall/config.toml, which this is not"));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(Started::Not("only root may start it"));
    }
    start_with(Path::new("systemctl"))
}

fn start_with(systemctl: &Path) -> anyhow::Result<Started> {
    let call = |args: &[&str]| -> anyhow::Result<Output> {
        Command::new(systemctl)
            .args(args)
            .output()
            .with_context(|| format!("cannot run {}", systemctl.display()))
    };
    if !call(&["cat", UNIT])?.status.success() {
        return Ok(Started::Not("rollcall.service is not installed (the package has it)"));
    }
    // What failed too often is not started again without this.
    call(&["reset-failed", UNIT])?;
    for verb in ["enable", "restart"] {
        let output = call(&[verb, UNIT])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "the configuration is written, but systemctl {verb} {UNIT} failed: {}; `rollcall doctor` says why",
                said.trim()
            );
        }
    }
    Ok(Started::Runs)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Stands for systemctl: notes how it was called, and fails at one verb.
    fn with(fails: &str) -> (String, anyhow::Result<Started>) {
        let dir = tempfile::tempdir().unwrap();
        let (program, calls) = (dir.path().join("systemctl"), dir.path().join("calls"));
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
        assert_eq!(started.unwrap(), Started::Runs);
        let of_unit =
            ["cat", "reset-failed", "enable", "restart"].map(|verb| format!("{verb} {UNIT}"));
        assert_eq!(calls.lines().collect::<Vec<_>>(), of_unit);
        assert!(with("restart").1.unwrap_err().to_string().contains("doctor"));
        assert!(matches!(with("cat").1.unwrap(), Started::Not(_)));
    }
}
