//! The daemon with a camera that is a command: what the command is given and not given, how it is
//! ended, and what is reported when it fails.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;

use serde_json::Value;

use crate::support::daemon::{Home, until};

/// A port that nobody serves: no broker is needed.
const NO_BROKER: u16 = 9;

/// A daemon's home whose camera is a shell script in it.
fn home(script: &str, more: &str) -> Home {
    let home = Home::new(NO_BROKER, "");
    let path = home.path("camera.sh");
    fs::write(&path, script.replace("HOME_DIR", &home.path("").display().to_string())).unwrap();
    let path = path.display();
    home.configure(
        NO_BROKER,
        &format!("[camera]\nsource = \"pipe\"\ncommand = [\"sh\", \"{path}\"]\n{more}[log]\nlevel = \"debug\"\n"),
    );
    home
}

/// The first line of a file that the command writes.
fn written(home: &Home, name: &str) -> String {
    until("the command has written its file", || {
        let text = fs::read_to_string(home.path(name)).unwrap_or_default();
        text.ends_with('\n').then(|| text.trim().to_owned())
    })
}

fn is_running(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

const WAITING: &str = "echo $$ > HOME_DIR/pid\nexec sleep 600\n";

#[test]
fn killed_daemon_takes_its_command_along() {
    let home = home(WAITING, "");
    let daemon = home.start();
    let pid = written(&home, "pid");
    assert!(is_running(&pid));
    daemon.kill();
    until("the command has ended with the daemon", || (!is_running(&pid)).then_some(()));
}

#[test]
fn stopped_daemon_ends_the_whole_group() {
    let home = home("sleep 600 &\necho $$ $! > HOME_DIR/pid\ntrap '' TERM\nwait\nwait\n", "");
    let daemon = home.start();
    let pids = written(&home, "pid");
    let status = daemon.terminate();
    assert!(status.success(), "{status}: {}", home.log());
    until("the group has ended", || (!pids.split(' ').any(is_running)).then_some(()));
}

#[test]
fn command_inherits_no_secret() {
    let mut home =
        home("env > HOME_DIR/env\nls -l /proc/self/fd >> HOME_DIR/env\nexec sleep 600\n", "");
    for (name, value) in [
        ("ROLLCALL_LOG_LEVEL", "debug"),
        ("CREDENTIALS_DIRECTORY", "/nowhere"),
        ("MY_TOKEN", "hunter2"),
        ("LC_ALL", "C.UTF-8"),
    ] {
        home.environment.push((name.into(), value.into()));
    }
    let _daemon = home.start();
    let given = until("the command has its environment", || {
        let text = fs::read_to_string(home.path("env")).unwrap_or_default();
        text.contains(" 2 -> ").then_some(text)
    });
    assert!(given.contains("PATH=") && given.contains("LC_ALL=C.UTF-8"), "{given}");
    for part in ["ROLLCALL", "CREDENTIALS", "hunter2", ".db", "socket:", "rollcall.lock"] {
        assert!(!given.contains(part), "{part}: {given}");
    }
}

#[test]
fn command_comes_from_configuration_only() {
    let mut home = home(WAITING, "");
    home.environment.push(("ROLLCALL_CAMERA_COMMAND".into(), "[\"true\"]".into()));
    let output = home.output(&["check-config"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(!home.path("pid").exists());
}

fn finding(home: &Home) -> Value {
    let reported: Value =
        serde_json::from_slice(&home.output(&["doctor", "--json"]).stdout).unwrap();
    let findings = reported["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["part"] == "camera").unwrap().clone()
}

#[test]
fn last_words_of_command_are_reported() {
    let script = "read -r url\necho \"cannot open $url: refused\" >&2\nexit 3\n";
    let home = home(script, "url_file = \"url\"\n");
    let url = home.path("url");
    fs::write(&url, "rtsp://admin:hunter2@192.0.2.4/stream\n").unwrap();
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&url, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let expected = "(exit status: 3): cannot open …: refused";
    // Without the daemon doctor runs the command itself; with it, it asks the daemon.
    let alone = finding(&home);
    let mut daemon = home.start();
    until("the command was tried again and again", || {
        (home.log().matches("not back yet").count() >= 2).then_some(())
    });
    let beside = until("the health message has the reason", || {
        let found = finding(&home);
        found["words"].as_str().unwrap().contains("exit status").then_some(found)
    });
    assert!(daemon.is_alive());
    for finding in [&alone, &beside] {
        assert_eq!(finding["state"], "fault", "{finding}");
        assert!(finding["words"].as_str().unwrap().contains(expected), "{finding}");
        assert!(finding["remedy"].as_str().unwrap().contains("by hand"), "{finding}");
    }
    let status = daemon.terminate();
    assert!(status.success(), "{status}");
    let kinds: Vec<String> = home.events().into_iter().map(|(_, _, kind)| kind).collect();
    assert_eq!(kinds, ["camera"]);
    assert!(!home.log().contains("hunter2") && home.log().contains(expected), "{}", home.log());
}

#[test]
fn missing_program_of_preset_names_package() {
    let mut home = Home::new(NO_BROKER, "[camera]\nsource = \"pipe\"\npreset = \"rpicam\"\n");
    home.environment.push(("PATH".into(), "/nowhere".into()));
    let finding = finding(&home);
    assert!(
        finding["words"].as_str().unwrap().contains("rpicam-vid is not installed"),
        "{finding}"
    );
    assert!(finding["remedy"].as_str().unwrap().contains("apt install rpicam-apps"), "{finding}");
}
