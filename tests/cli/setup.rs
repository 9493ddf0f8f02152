//! `rollcall setup` with real brokers and servers: what it asks, checks, writes, and leaves alone
//! when it is broken off.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::mosquitto;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::daemon::{Home, scaled, until};
use crate::support::mongod::Mongod;
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::terminal::Terminal;

/// A place for a new configuration, with a provisioning file that makes a photograph the camera.
struct Unit {
    home: Home,
}

impl Unit {
    fn new(more: &str) -> Self {
        let home = Home::new(9, "");
        fs::remove_file(home.path("config.toml")).unwrap();
        fs::create_dir(home.path("card")).unwrap();
        let unit = Self { home };
        unit.provision(more);
        unit
    }

    fn provision(&self, more: &str) {
        let photographs = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/photos");
        let text =
            format!("[camera]\nsource = \"replay\"\npath = \"{}\"\n{more}", photographs.display());
        fs::write(self.home.path("card/rollcall.toml"), text).unwrap();
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let card = self.home.path("card/rollcall.toml").display().to_string();
        self.home.command(&[&["setup", "--from", &card], args].concat())
    }

    fn setup(&self, args: &[&str]) -> Output {
        self.home.finish(&mut self.command(args))
    }

    fn written(&self) -> String {
        fs::read_to_string(self.home.path("config.toml")).unwrap_or_default()
    }

    fn table(&self) -> toml::Table {
        toml::from_str(&self.written()).unwrap()
    }

    /// Where the networks are, which on a unit the package says.
    fn with_models(&self) {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let text = self
            .written()
            .replace("models = \"models\"", &format!("models = \"{}\"", models.display()));
        fs::write(self.home.path("config.toml"), text).unwrap();
    }

    /// Every file below the configuration's folder that setup could have touched.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for folder in [self.home.path(""), self.home.path("secrets")] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let own = !entry.file_name().to_string_lossy().starts_with("command.");
                if own && entry.path().is_file() {
                    let mode = entry.metadata().unwrap().mode() & 0o777;
                    found.insert(entry.path(), (mode, fs::read(entry.path()).unwrap()));
                }
            }
        }
        found
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// With the models of the source tree: the unit's own have another place.
fn check_config(home: &Home) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    home.finish(home.command(&["check-config"]).env("ROLLCALL_RECOGNITION_MODELS", models))
}

fn check(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

const PLACE: [&str; 8] =
    ["--site", "hq", "--device", "door-1", "--venue", "hall", "--time-zone", "Europe/Berlin"];

#[test]
fn setup_without_terminal_names_missing_answer() {
    let unit = Unit::new("");
    let before = unit.files();
    let all: [(&str, &[&str]); 7] = [
        ("--site", &[]),
        ("--device", &["--site", "hq"]),
        ("--venue", &PLACE[..4]),
        ("--time-zone", &PLACE[..6]),
        ("--mqtt-host", &PLACE),
        ("--mongo-uri-file", &[&PLACE[..], &["--mqtt-host", "none"]].concat()),
        (
            "--http-listen",
            &[&PLACE[..], &["--mqtt-host", "none", "--mongo-uri-file", "none"]].concat(),
        ),
    ];
    for (missing, given) in all {
        check(&unit.setup(given), 64, &[&format!("{missing} "), "missing", "--yes"]);
    }
    // What is usual has no site.
    check(&unit.setup(&["--yes"]), 64, &["--site"]);
    for (wrong, parts) in [
        (&["--site", "a/b"][..], &["--site", "a/b"][..]),
        (&["--device", "all"], &["--device", "whole site"]),
        (&["--time-zone", "berlin"], &["Europe/Berlin"]),
        (&["--mqtt-host", "mqtt://b"], &["--mqtt-host"]),
        (&["--mqtt-host", "b", "--mqtt-port", "70000"], &["--mqtt-port"]),
        (&["--mqtt-host", "b", "--mqtt-tls", "perhaps"], &["--mqtt-tls"]),
        (&["--camera", "../x"], &["--camera"]),
    ] {
        // A later flag of the same name would be a mistake of its own.
        let mut args: Vec<&str> =
            PLACE.chunks(2).filter(|it| it[0] != wrong[0]).flatten().copied().collect();
        args.extend(wrong);
        args.push("--yes");
        check(&unit.setup(&args), 64, parts);
    }
    check(&unit.home.output(&["setup", "--sight", "hq"]), 64, &["--sight"]);
    assert_eq!(unit.files(), before, "nothing was written");
}

#[test]
fn url_of_network_camera_is_kept_secret() {
    let unit = Unit::new("");
    let more =
        ["--mqtt-host", "none", "--mongo-uri-file", "none", "--http-listen", "none", "--yes"];
    let setup = |camera: &[&str]| unit.setup(&[&PLACE[..], camera, &more].concat());
    check(&setup(&["--camera", "rtsp"]), 64, &["--camera-url-file"]);
    let url = unit.file("url", "rtsp://admin:hunter2@127.0.0.1:9/stream\n");
    let output = setup(&["--camera", "rtsp", "--camera-url-file", &url]);
    // Nothing answers there, with or without ffmpeg.
    check(&output, 0, &["camera: ", "to do:", "Written"]);
    assert!(!said(&output).contains("hunter2"), "{}", said(&output));
    let table = unit.table();
    assert_eq!(table["camera"]["source"].as_str(), Some("pipe"));
    assert_eq!(table["camera"]["preset"].as_str(), Some("rtsp"));
    assert!(!unit.written().contains("hunter2"));
    let kept = unit.home.path(table["camera"]["url_file"].as_str().unwrap());
    assert!(fs::read_to_string(&kept).unwrap().contains("hunter2"));
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
    // Another camera needs no URL: it is removed.
    check(&setup(&["--camera", "none"]), 0, &["Written"]);
    assert_eq!(unit.table()["camera"]["preset"].as_str(), Some(""));
    assert!(!kept.exists());
}

fn with_password(dir: &Path) -> String {
    let mut passwd = Command::new("mosquitto_passwd");
    passwd.args(["-b", "-c", "passwd", "door-1", "s3cret"]).current_dir(dir);
    assert!(passwd.status().unwrap().success());
    format!("allow_anonymous false\npassword_file {}/passwd\n", dir.display())
}

#[test]
fn setup_flags_make_working_configuration() {
    let broker = Mosquitto::start_with(with_password);
    let server = Mongod::start();
    let unit = Unit::new("[clock]\ntrust = \"always\"\n");
    let right = unit.file("right", "s3cret\n");
    let wrong = unit.file("wrong", "guess\n");
    let uri = unit.file("uri", &format!("{}\n", server.uri()));
    let port = broker.port().to_string();
    let listen = format!("0.0.0.0:{}", mosquitto::free_port());
    let with = |password: &str, more: &[&str]| {
        let broker = [
            "--mqtt-host",
            "127.0.0.1",
            "--mqtt-port",
            &port,
            "--mqtt-user",
            "door-1",
            "--mqtt-password-file",
        ];
        unit.setup(
            &[
                &PLACE[..],
                &broker,
                &[password, "--mongo-uri-file", &uri, "--http-listen", &listen, "--user", "nobody"],
                more,
            ]
            .concat(),
        )
    };
    let before = unit.files();
    check(&with(&wrong, &[]), 1, &["does not let this device in", "nothing was changed", "--yes"]);
    assert_eq!(unit.files(), before);
    let refused = with(&wrong, &["--yes"]);
    check(&refused, 0, &["does not let this device in", "to do:"]);
    let good = with(&right, &[]);
    check(
        &good,
        0,
        &[
            "accepts this device as \"door-1\"",
            "replica set rs0",
            "Written",
            "Next:",
            "service was not started",
        ],
    );
    assert!(!said(&good).contains("s3cret"));
    let table = unit.table();
    assert_eq!(table["mqtt"]["password"].as_str(), Some(""));
    assert_eq!(table["venue"][0]["time_zone"].as_str(), Some("Europe/Berlin"));
    let password = unit.home.path(table["mqtt"]["password_file"].as_str().unwrap());
    assert_eq!(fs::read_to_string(&password).unwrap(), "s3cret");
    let meta = fs::metadata(&password).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    if rustix::process::geteuid().is_root() {
        assert_ne!(meta.uid(), 0, "it is the daemon's user's");
    }
    assert_eq!(
        fs::read_dir(unit.home.path("secrets")).unwrap().count(),
        3,
        "the refused password is gone"
    );
    // Pages beyond this device take a token: one was made.
    let token = fs::read_to_string(unit.home.path("secrets/http_token")).unwrap();
    assert!(token.len() >= 32 && !said(&good).contains(&token));
    // The shipped file's words are all there.
    assert!(unit.written().contains("# Where this device belongs"));
    // Again, with nothing said: all is known.
    let written = unit.written();
    check(
        &unit.home.output(&["setup", "--yes", "--user", "nobody"]),
        0,
        &["is up to date: nothing was changed"],
    );
    assert_eq!(unit.written(), written);
    unit.with_models();
    let daemon = unit.home.start();
    until("the broker has it", || broker.log().contains("rollcall-hq-door-1").then_some(()));
    assert!(daemon.terminate().success());
}

#[test]
fn setup_applies_provisioning_and_moves_secrets() {
    let broker = Mosquitto::start_with(with_password);
    let port = broker.port();
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[attendance]\nvenue = \"hall\"\n[mongo]\nuri = \"\"\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"door-1\"\npassword = \"s3cret\"\n\
         [[venue]]\nid = \"hall\"\ntime_zone = \"Europe/Berlin\"\n"
    );
    let unit = Unit::new(&text);
    let card = unit.home.path("card/rollcall.toml");
    let done = unit.setup(&["--yes"]);
    check(
        &done,
        0,
        &["accepts this device", &format!("{} holds a secret", card.display()), "sudo rm"],
    );
    assert!(!unit.written().contains("s3cret"));
    assert_eq!(fs::read_to_string(unit.home.path("secrets/mqtt_password")).unwrap(), "s3cret");
    check(&check_config(&unit.home), 0, &["valid"]);
    // The card is as it was: who deletes from it is told, and does it.
    assert!(fs::read_to_string(&card).unwrap().contains("s3cret"));
    unit.provision("[recognition]\nruntime_library = \"/tmp/x.so\"\n");
    check(&unit.setup(&["--yes"]), 1, &["runtime_library", "may not set"]);
    unit.provision("command = [\"/bin/sh\", \"-c\", \"id\"]\n");
    check(&unit.setup(&["--yes"]), 1, &["command", "may not set"]);
}

#[test]
fn failed_setup_check_writes_nothing() {
    let server = Mongod::start_with_users();
    let port = free_port().to_string();
    let unit = Unit::new("");
    unit.provision("");
    fs::write(unit.home.path("card/rollcall.toml"), "[camera]\nsource = \"none\"\n").unwrap();
    let before = unit.files();
    let with = |more: &[&str]| unit.setup(&[&PLACE[..], more].concat());
    let refused =
        with(&["--mqtt-host", "127.0.0.1", "--mqtt-port", &port, "--mongo-uri-file", "none"]);
    check(&refused, 1, &["no broker answers at this port", "it means:", "nothing was changed"]);
    let uri = unit.file("uri", &server.uri_as("door:wrong@"));
    let before = (before.len() + 1, unit.written());
    check(
        &with(&["--mqtt-host", "none", "--mongo-uri-file", &uri]),
        1,
        &["refuses access", "uri_file"],
    );
    let uri = unit.file("uri", "mongodb://h/?w=0");
    check(
        &with(&["--mqtt-host", "none", "--mongo-uri-file", &uri]),
        64,
        &["[mongo] uri may not set w"],
    );
    check(
        &with(&["--mqtt-host", "none", "--mongo-uri-file", "/nowhere/uri"]),
        1,
        &["/nowhere/uri"],
    );
    check(
        &with(&["--mqtt-host", "none", "--mongo-uri-file", "none", "--camera", "/dev/null"]),
        1,
        &["no camera"],
    );
    assert_eq!((unit.files().len(), unit.written()), before);
    // One that cannot be used is not written on.
    fs::write(unit.home.path("config.toml"), "[recognition]\nfpir = 7.0\n").unwrap();
    check(&with(&["--mqtt-host", "none"]), 78, &["[recognition] fpir"]);
}

#[test]
fn setup_asks_at_terminal_until_valid() {
    let broker = Mosquitto::start_with(with_password);
    let unit = Unit::new("");
    let mut terminal = Terminal::run(unit.command(&[]));
    terminal.answer("Site", "my site");
    terminal.answer("cannot be used", "");
    terminal.answer("Site", "hq");
    terminal.answer("Device", "door-1");
    terminal.answer("Venue (", "");
    terminal.answer("Time zone", "Berlin");
    terminal.wait_for("Europe/Berlin?");
    terminal.answer("Time zone", "Europe/Berlin");
    terminal.wait_for("a replay is configured instead of a camera");
    terminal.answer("MQTT broker", "127.0.0.1");
    terminal.answer("TLS", "no");
    terminal.answer("Port [1883]", &broker.port().to_string());
    terminal.answer("User", "door-1");
    terminal.answer_hidden("Password", "guess");
    terminal.wait_for("does not let this device in");
    terminal.answer("or stop (s)", "a");
    // What was answered is what Enter gives.
    terminal.answer("MQTT broker (name or address; embedded; none) [127.0.0.1]", "");
    terminal.answer("TLS (yes, no) [no]", "");
    terminal.answer(&format!("Port [{}]", broker.port()), "");
    terminal.answer("User (or none) [door-1]", "");
    terminal.answer_hidden("Password", "s3cret");
    terminal.wait_for("accepts this device");
    terminal.answer_hidden("MongoDB URI", "");
    terminal.answer("HTTP", "");
    assert!(terminal.wait().success(), "{}", terminal.screen());
    assert!(terminal.echoes(), "the terminal is as it was");
    assert!(
        !terminal.screen().contains("s3cret") && !terminal.screen().contains("guess"),
        "{}",
        terminal.screen()
    );
    assert_eq!(unit.table()["attendance"]["venue"].as_str(), Some("main"));
    assert_eq!(unit.table()["venue"][0]["time_zone"].as_str(), Some("Europe/Berlin"));
    assert_eq!(fs::read_to_string(unit.home.path("secrets/mqtt_password")).unwrap(), "s3cret");

    // Once more: everything has its answer, and Enter through all of it changes nothing.
    let before = unit.files();
    let mut terminal = Terminal::run(unit.command(&[]));
    terminal.answer("[hq]", "");
    terminal.answer("[door-1]", "");
    terminal.answer("[main]", "");
    terminal.answer("[Europe/Berlin]", "");
    terminal.answer("[127.0.0.1]", "");
    terminal.answer("[no]", "");
    terminal.answer(&format!("[{}]", broker.port()), "");
    terminal.answer("[door-1]", "");
    terminal.answer_hidden("empty: as it is", "");
    terminal.answer_hidden("MongoDB URI", "");
    terminal.answer("HTTP", "");
    terminal.wait_for("nothing was changed");
    assert!(terminal.wait().success(), "{}", terminal.screen());
    assert_eq!(unit.files(), before);
}

#[test]
fn interrupted_setup_writes_nothing() {
    let broker = Mosquitto::start_with(with_password);
    let unit = Unit::new("");
    let before = unit.files();
    let started = |questions: usize| {
        let port = broker.port().to_string();
        let answers = [
            ("Site", "hq"),
            ("Device", "door-1"),
            ("Venue (", "hall"),
            ("Time zone", "UTC"),
            ("MQTT broker", "127.0.0.1"),
            ("TLS", "no"),
            ("Port", &port),
            ("User", "door-1"),
        ];
        let mut terminal = Terminal::run(unit.command(&[]));
        for (question, answer) in &answers[..questions] {
            terminal.answer(question, answer);
        }
        terminal
    };
    for questions in [0, 3, 4, 8] {
        let mut terminal = started(questions);
        terminal.interrupt();
        assert!(!terminal.wait().success());
        assert_eq!(unit.files(), before, "after {questions} questions");
    }
    // Where nothing is shown, Ctrl-C is a key like others; the terminal shows again.
    let mut terminal = started(8);
    terminal.wait_for("Password");
    until("nothing is shown", || (!terminal.echoes()).then_some(()));
    terminal.type_bytes(b"s3cr\x03");
    assert_eq!(terminal.wait().code(), Some(1));
    assert!(terminal.echoes() && !terminal.screen().contains("s3cr"), "{}", terminal.screen());
    // So is the end of all input.
    let mut terminal = started(1);
    terminal.wait_for("Device");
    terminal.type_bytes(b"\x04");
    assert_eq!(terminal.wait().code(), Some(1));
    let mut terminal = started(4);
    terminal.answer("MQTT broker", "127.0.0.1");
    terminal.answer("TLS", "no");
    terminal.answer("Port", &free_port().to_string());
    terminal.answer("User", "none");
    terminal.answer("or stop (s)", "s");
    assert_eq!(terminal.wait().code(), Some(1));
    assert_eq!(unit.files(), before);
}

/// SIGKILL at any moment: the configuration is the old one or the new one, with the password that
/// belongs to it.
#[test]
fn killed_setup_leaves_whole_configuration() {
    let unit = Unit::new("");
    fs::write(unit.home.path("card/rollcall.toml"), "[camera]\nsource = \"none\"\n").unwrap();
    let base = [
        &PLACE[..],
        &["--mongo-uri-file", "none", "--yes", "--mqtt-host", "127.0.0.1", "--mqtt-port", "9"],
    ]
    .concat();
    let with = |user: &str| {
        let file = unit.file(user, user);
        unit.command(&[&base[..], &["--mqtt-user", user, "--mqtt-password-file", &file]].concat())
    };
    check(&unit.home.finish(&mut with("zero")), 0, &[]);
    let mut ended = 0;
    for round in 0..scaled("E2E_SETUP_KILLS", 25) {
        let user = ["one", "two", "three"][round % 3];
        let mut child = with(user).stdout(std::process::Stdio::null()).spawn().unwrap();
        // The moments are spread over what a run takes, its end included.
        std::thread::sleep(Duration::from_millis(round as u64 * 6 % 150));
        ended += usize::from(child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        let table = unit.table();
        let user = table["mqtt"]["user"].as_str().unwrap();
        let password = unit.home.path(table["mqtt"]["password_file"].as_str().unwrap());
        assert_eq!(fs::read_to_string(&password).unwrap(), user, "round {round}");
        assert_eq!(fs::metadata(&password).unwrap().permissions().mode() & 0o777, 0o600);
        check(&check_config(&unit.home), 0, &["valid"]);
    }
    // What the killed ones left, the next one clears away.
    check(&unit.home.finish(&mut with("four")), 0, &[]);
    assert_eq!(
        fs::read_dir(unit.home.path("secrets")).unwrap().count(),
        1,
        "{ended} of them had ended"
    );
}
