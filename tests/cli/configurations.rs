//! Configurations through `check-config`, `doctor` and `run`: none is good in one and fatal in another,
//! and every fault is named with its line and what to do.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::daemon::{Home, until};
use serde_json::Value;

/// What the daemon makes of a configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Runs,
    /// Ends at once with a code that the service manager does not retry.
    Ends,
}

/// Sections, and what the message names; empty for those that are good.
const CONFIGURATIONS: [(&str, &[&str]); 66] = [
    ("", &[]),
    ("[mqtt]\nhost = \"127.0.0.1\"\nport = 1", &[]),
    ("[mqtt]\nhost = \"::1\"\nport = 1", &[]),
    ("[mqtt]\nhost = \"broker.invalid\"", &[]),
    ("[mqtt]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\npassword_file = \"bom.txt\"", &[]),
    ("[mqtt]\nhost = \"127.0.0.1\"\nport = 1\ntls = true\nca_file = \"ca.pem\"", &[]),
    ("[mqtt]\nhost = \"127.0.0.1\"\nport = 1\ntls = true\nca_file = \"bom.pem\"", &[]),
    ("[mongo]\nuri = \"mongodb://127.0.0.1:1\"", &[]),
    ("[mongo]\nuri = \"mongodb://127.0.0.1:1/SmartAttendanceSystem\"", &[]),
    ("[http]\nlisten = \"127.0.0.1:0\"", &[]),
    ("[http]\nlisten = \"TAKEN\"", &[]),
    ("[http]\nlisten = \"192.0.2.1:8080\"\ntoken_file = \"token\"", &[]),
    ("[broker]\nenabled = true\nlisten = \"127.0.0.1:0\"", &["[broker] listen"]),
    ("[camera]\nsource = \"v4l2\"\ndevice = \"/dev/video99\"", &[]),
    ("[camera]\nsource = \"replay\"\npath = \"scene.csv\"", &[]),
    ("[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Berlin\"", &[]),
    ("[fleet]\nshare = \"mongo\"\n[mongo]\nuri = \"mongodb://127.0.0.1:1\"", &[]),
    ("[commands]\nsigning_key_file = \"nowhere.key\"", &[]),
    ("[log]\nlevel = \"debug\"", &[]),
    ("[storage]\nkeep_days = 30", &[]),
    // Words and forms.
    ("[mqtt", &["line 4", "not TOML"]),
    ("[mqtt]\nhost = broker", &["line 5", "not TOML"]),
    ("[mqtt]\nhost = \"a\"\nhost = \"b\"", &["line 6", "duplicate"]),
    ("[mqt]\nhost = \"a\"", &["line 4", "[mqt]", "did you mean \"mqtt\"?"]),
    ("[mqtt]\nhots = \"a\"", &["line 5", "hots", "did you mean \"host\"?"]),
    ("[recognition]\nthresold = 0.4", &["line 5", "did you mean \"threshold\"?"]),
    ("[mqtt]\nport = \"1883\"", &["line 5", "[mqtt] port", "a whole number, 0 to 65535"]),
    ("[mqtt]\nport = 99999", &["line 5", "[mqtt] port = 99999", "0 to 65535"]),
    ("[mqtt]\nport = -1", &["line 5", "[mqtt] port = -1", "0 to 65535"]),
    ("[mqtt]\ntls = \"yes\"", &["line 5", "[mqtt] tls", "true or false"]),
    ("[mqtt]\nhost = 7", &["line 5", "[mqtt] host = 7", "a text in quotes"]),
    ("[mqtt]\nkeep_alive = 30", &["line 5", "[mqtt] keep_alive", "\"10s\""]),
    ("[mqtt]\nhealth_every = \"soon\"", &["line 5", "health_every", "\"10s\""]),
    ("[recognition]\nfpir = \"low\"", &["line 5", "[recognition] fpir", "a number"]),
    ("[recognition]\nprecision = \"int4\"", &["line 5", "none of", "\"int8\""]),
    ("[camera]\nsource = \"usb\"", &["line 5", "none of", "\"v4l2\""]),
    ("[log]\nlevel = \"verbose\"", &["line 5", "none of", "\"debug\""]),
    ("[camera]\nregion = [0.0, 0.0, 1.0]", &["line 5", "[camera] region", "4"]),
    ("mqtt = 7", &["mqtt"]),
    ("[venue]\nid = \"main\"", &["line 4", "[[venue]]"]),
    ("[[venue]]\nid = \"main\"\nzone = \"UTC\"", &["line 6", "has no key zone"]),
    // Values.
    ("[device]\nsite = \"a/b\"", &["[device] site"]),
    ("[mqtt]\nhost = \"mqtt://broker\"", &["line 5", "[mqtt] host", "URL", "\"broker\""]),
    ("[mqtt]\nhost = \"broker:1883\"", &["line 5", "[mqtt] host", "port = 1883"]),
    ("[mqtt]\nhost = \"my broker\"", &["line 5", "[mqtt] host", "no host name"]),
    ("[mqtt]\nhost = \"a\"\npassword = \"s3cret\"", &["[mqtt] user"]),
    ("[mqtt]\nhost = \"a\"\nuser = \"u\"\npassword_file = \"none\"", &["line 7", "password_file"]),
    ("[mqtt]\nhost = \"a\"\ntls = true\nca_file = \"none\"", &["line 7", "ca_file", "cannot read"]),
    ("[mqtt]\nhost = \"a\"\ntls = true\nca_file = \"ca.der\"", &["line 7", "DER", "openssl x509"]),
    ("[mqtt]\nhost = \"a\"\ntls = true\nca_file = \"scene.csv\"", &["line 7", "no certificate"]),
    (
        "[mqtt]\nhost = \"a\"\ntls = true\nca_file = \"ca.pem\"\nclient_cert_file = \"ca.pem\"\nclient_key_file = \"other.key\"",
        &["client key", "made for"],
    ),
    ("[mqtt]\nhost = \"a\"\nca_file = \"ca.pem\"", &["[mqtt] tls"]),
    ("[mqtt]\nhost = \"a\"\n[broker]\nenabled = true", &["[mqtt] host", "exclude"]),
    ("[mongo]\nuri = \"localhost:27017\"", &["line 5", "[mongo] uri", "no connection string"]),
    ("[mongo]\nuri = \"mongodb://a/?w=0\"", &["line 5", "[mongo] uri", "w"]),
    ("[mongo]\nuri = \"mongodb://a\"\nvenues_collection = \"attendance\"", &["venues_collection"]),
    ("[mongo]\nuri = \"mongodb://a/?tls=true\"\nca_file = \"ca.der\"", &["[mongo] ca_file", "DER"]),
    ("[http]\nlisten = \"8080\"", &["line 5", "[http] listen"]),
    ("[http]\nlisten = \"0.0.0.0:8080\"", &["line 5", "[http] listen", "token_file"]),
    ("[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"open.txt\"", &["token_file", "chmod 600"]),
    ("[camera]\nsource = \"replay\"\npath = \"none.csv\"", &["none.csv"]),
    ("[recognition]\nmodels = \"none\"", &["none"]),
    ("[fleet]\nkey_file = \"none.key\"", &["line 5", "[fleet] key_file"]),
    ("[attendance]\nvenue = \"x\"\n[[venue]]\nid = \"y\"", &["[attendance] venue"]),
    (
        "[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Berln\"",
        &["did you mean \"Europe/Berlin\"?"],
    ),
    ("[[venue]]\nid = \"main\"\n[[venue]]\nid = \"main\"", &["line 6", "stands twice"]),
];

fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let output = command.args(args.split_whitespace()).current_dir(dir).output();
    let output = output.expect("apt-get install -y openssl");
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with every file that the configurations name.
fn home() -> Home {
    let home = Home::new(1, "");
    let folder = home.path("");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["ca", "other"] {
        openssl(
            &folder,
            &format!("req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN=ca -days 2"),
        );
    }
    openssl(&folder, "x509 -in ca.pem -outform der -out ca.der");
    let pem = fs::read_to_string(home.path("ca.pem")).unwrap();
    for (name, text) in [
        ("bom.pem", format!("\u{feff}{pem}").as_str()),
        ("bom.txt", "\u{feff}s3cret\r\n"),
        ("scene.csv", "-,100,0\n"),
        ("token", "Zb7!kQ2#vR9$mX4&tL6w"),
        ("open.txt", "Zb7!kQ2#vR9$mX4&tL6w"),
    ] {
        fs::write(home.path(name), text).unwrap();
        let mode = if name.starts_with("open") { 0o644 } else { 0o600 };
        fs::set_permissions(home.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    home
}

fn configure(home: &Home, sections: &str, taken: &str) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut text = String::new();
    if sections.contains("[device]") || sections.starts_with("mqtt") {
        text.push_str("\n\n\n");
    } else {
        text.push_str("[device]\nname = \"door-1\"\n\n");
    }
    text.push_str(&sections.replace("TAKEN", taken));
    if !sections.contains("[recognition]") {
        write!(text, "\n[recognition]\nmodels = \"{}\"", models.display()).unwrap();
    } else if !sections.contains("models") {
        write!(text, "\nmodels = \"{}\"", models.display()).unwrap();
    }
    fs::write(home.path("config.toml"), text + "\n").unwrap();
    fs::set_permissions(home.path("config.toml"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// The message of `check-config`, or nothing if all is good.
fn check_config(home: &Home) -> Option<String> {
    let output = home.output(&["check-config"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(text)
}

/// Whether `doctor` finds what keeps the daemon from starting.
fn doctor(home: &Home) -> Outcome {
    let output = home.output(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let is_fatal = |finding: &Value| {
        let part = finding["part"].as_str().unwrap();
        let means = finding["means"].as_str().unwrap_or_default();
        finding["state"] == "fault" && (part == "configuration" || means.contains("does not start"))
    };
    let is_fatal = report["findings"].as_array().unwrap().iter().any(is_fatal);
    if is_fatal { Outcome::Ends } else { Outcome::Runs }
}

fn run(home: &Home) -> Outcome {
    fs::write(home.path("log"), "").unwrap();
    let mut daemon = home.spawn(&["run"]);
    loop {
        if home.log().contains(" ready ") {
            assert!(daemon.terminate().success(), "{}", home.log());
            return Outcome::Runs;
        }
        if !daemon.is_alive() {
            // The service manager does not start it again.
            assert!(matches!(daemon.wait().code(), Some(64 | 69 | 78)), "{}", home.log());
            return Outcome::Ends;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn configuration_is_judged_alike_everywhere() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let home = home();
    for (sections, named) in CONFIGURATIONS {
        configure(&home, sections, &taken);
        let message = check_config(&home);
        let expected = if named.is_empty() { Outcome::Runs } else { Outcome::Ends };
        assert_eq!(message.is_none(), named.is_empty(), "{sections}: {message:?}");
        let message = message.unwrap_or_default();
        for words in named {
            assert!(message.contains(words), "{sections}: {words:?} is not in {message}");
        }
        for secret in ["s3cret", "usize", "u16", "f32", "i64", "RawConfig", "Some("] {
            assert!(!message.contains(secret), "{sections}: {message}");
        }
        assert_eq!(run(&home), expected, "{sections}: {}", home.log());
        assert_eq!(doctor(&home), expected, "{sections}");
        assert!(!home.log().contains("s3cret"), "{sections}");
    }
}

#[test]
fn closed_configuration_is_named_and_not_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let allow = |name: &str, mode| {
        fs::set_permissions(place(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir(place("closed")).unwrap();
    fs::create_dir(place("open")).unwrap();
    fs::write(place("closed/config.toml"), "").unwrap();
    symlink("../closed/config.toml", place("open/config.toml")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_rollcall"), place("rollcall")).unwrap();
    for (name, mode) in [("", 0o755), ("open", 0o755), ("rollcall", 0o755), ("closed", 0)] {
        allow(name, mode);
    }
    let mut command = Command::new(place("rollcall"));
    command.arg("check-config").current_dir(place("open")).env_clear();
    if rustix::process::geteuid().is_root() {
        // Nothing is closed to root, so that nobody asks.
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    allow("closed", 0o700);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{message}");
    assert!(message.contains("cannot read config.toml (run it with sudo)"), "{message}");
}

#[test]
fn every_fault_is_listed_at_once() {
    let home = home();
    let sections = "[mqtt]\nhost = \"mqtt://a\"\nport = 99999\nhots = \"b\"\n[http]\nlisten = \"x\"\n\
                    [recognition]\nthreshold = 4.0\nfpir = nan\nprecision = \"int4\"\n[[venue]]\nid = \"a\"\n\
                    time_zone = \"Europe/Berln\"\n[[venue]]\nid = \"b\"\ntime_zone = \"Asia/Tokio\"\n";
    fs::write(home.path("config.toml"), sections).unwrap();
    let message = check_config(&home).unwrap();
    for words in [
        "line 2: [mqtt] host",
        "line 3: [mqtt] port",
        "line 4: [mqtt] has no key hots",
        "line 6: [http] listen",
        "line 8: [recognition] threshold",
        "line 9: [recognition] fpir",
        "line 10: [recognition] precision",
        "\"Europe/Berlin\"?",
        "\"Asia/Tokyo\"?",
    ] {
        assert!(message.contains(words), "{words} is not in {message}");
    }
}

#[test]
fn taken_port_leaves_attendance_running() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = home();
    configure(&home, "[http]\nlisten = \"TAKEN\"", &address.to_string());
    let daemon = home.start();
    let logs = |words: &str| until(words, || home.log().contains(words).then_some(()));
    logs("cannot listen");
    drop(taken);
    logs("http listening");
    assert!(daemon.terminate().success());
}
