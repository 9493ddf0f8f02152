//! Files that a start reads and that are none: a pipe, a folder, a device, or far too large. The
//! start ends with the reason, and never waits.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::support::daemon::Home;
use rustix::fs::{CWD, Mode, mkfifoat};

const KINDS: [&str; 4] = ["pipe", "folder", "device", "huge"];

fn put(path: &Path, kind: &str) {
    match kind {
        "pipe" => mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).unwrap(),
        "folder" => fs::create_dir(path).unwrap(),
        "device" => symlink("/dev/zero", path).unwrap(),
        _ => {
            File::create(path).unwrap().set_len(1 << 40).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn remove(path: &Path) {
    fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)).unwrap();
}

/// Starts the daemon, and returns why it ended.
fn ended_start(home: &Home, what: &str) -> String {
    let output = home.output(&["run"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(69 | 74 | 78)), "{what}: {output:?}");
    text
}

#[test]
fn odd_files_of_state_end_start() {
    let home = Home::new(1, "");
    assert!(home.start().terminate().success());
    for name in ["rollcall.key", "device.key", "rollcall.db", "lock", "reserve"] {
        let path = home.state().join(name);
        let aside = home.path("aside");
        fs::rename(&path, &aside).unwrap();
        for kind in KINDS {
            // A database, a lock and a reserve of any size are what they are.
            if kind == "huge" && Path::new(name).extension().is_none_or(|it| it != "key") {
                continue;
            }
            put(&path, kind);
            let why = ended_start(&home, &format!("{name}: {kind}"));
            assert!(why.contains(name), "{name}: {kind}: {why}");
            remove(&path);
        }
        fs::rename(&aside, &path).unwrap();
    }
    assert!(home.start().terminate().success());
}

#[test]
fn odd_files_of_configuration_end_start() {
    let home = Home::new(1, "");
    for more in [
        "user = \"u\"\npassword_file = \"odd\"\n",
        "tls = true\nca_file = \"odd\"\n",
        "tls = true\nclient_cert_file = \"odd\"\nclient_key_file = \"odd\"\n",
        "[fleet]\nkey_file = \"odd\"\n",
        "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"odd\"\n",
        #[cfg(feature = "mongo")]
        "[mongo]\nuri_file = \"odd\"\n",
        "[camera]\nsource = \"replay\"\npath = \"odd.csv\"\n",
    ] {
        home.configure(1, more);
        for kind in KINDS {
            let path = home.path(if more.contains("odd.csv") { "odd.csv" } else { "odd" });
            // A folder of photographs is a replay.
            if kind == "folder" && more.contains("replay") {
                continue;
            }
            put(&path, kind);
            let why = ended_start(&home, &format!("{more}: {kind}"));
            assert!(why.contains("odd"), "{more}: {kind}: {why}");
            remove(&path);
        }
    }
    let config = home.path("config.toml");
    for kind in KINDS {
        remove(&config);
        put(&config, kind);
        let why = ended_start(&home, kind);
        assert!(why.contains("config.toml"), "{kind}: {why}");
    }
}

#[test]
fn secrets_that_others_may_read_end_start() {
    let home = Home::new(1, "");
    for (key, more) in [
        ("[mqtt] password_file", "user = \"u\"\npassword_file = \"secret\"\n"),
        (
            "[mqtt] client_key_file",
            "tls = true\nclient_cert_file = \"config.toml\"\nclient_key_file = \"secret\"\n",
        ),
        ("[http] token_file", "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"secret\"\n"),
        ("[fleet] key_file", "[fleet]\nkey_file = \"secret\"\n"),
        #[cfg(feature = "mongo")]
        ("[mongo] uri_file", "[mongo]\nuri_file = \"secret\"\n"),
    ] {
        home.configure(1, more);
        let path = home.path("secret");
        fs::write(&path, "q83JvN0xTz1LmW5r").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let why = ended_start(&home, key);
        assert!(why.contains(key) && why.contains("chmod"), "{key}: {why}");
        assert!(!why.contains("q83J"), "{key}: {why}");
    }
}
