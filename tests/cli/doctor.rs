//! `rollcall doctor` beside real brokers, with real faults: each is told in words, with what it
//! means and what to do.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::daemon::{Home, until};
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::openssl::openssl;
use serde_json::Value;

/// A port that nobody serves: most of these need no broker.
const NO_BROKER: u16 = 9;

fn report(home: &Home) -> Value {
    let output = home.output(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for finding in findings.iter().filter(|it| it["state"] != "good") {
        for key in ["words", "means", "remedy"] {
            assert!(finding[key].as_str().is_some_and(|it| !it.is_empty()), "{key} of {finding}");
        }
    }
    let faults = findings.iter().filter(|it| it["state"] == "fault").count();
    assert_eq!(output.status.code(), Some(i32::from(faults > 0)), "{report}");
    assert_eq!(report["good"], faults == 0);
    report
}

fn finding(home: &Home, part: &str) -> Value {
    let report = report(home);
    let found =
        report["findings"].as_array().unwrap().iter().find(|it| it["part"] == part).cloned();
    found.unwrap_or_else(|| panic!("{part} is not in {report}"))
}

fn check(home: &Home, part: &str, state: &str, parts: &[&str]) {
    let finding = finding(home, part);
    assert_eq!(finding["state"], state, "{finding}");
    for part in parts {
        assert!(finding.to_string().contains(part), "{part:?} is not in {finding}");
    }
}

/// A broker with TLS whose certificate is for `san` (`openssl ca` because it alone takes dates).
fn tls_broker(san: &str, expired: bool) -> Mosquitto {
    Mosquitto::start_with(|dir| {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(dir, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"));
        openssl(
            dir,
            &format!("req -x509 {key} -keyout other.key -out other.pem -subj /CN=other -days 2"),
        );
        openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
        fs::write(dir.join("index"), "").unwrap();
        let settings = "[ca]\ndefault_ca=c\n[c]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\n\
                        policy=p\n[p]\ncommonName=supplied\n";
        fs::write(dir.join("ca.conf"), settings).unwrap();
        fs::write(dir.join("san"), format!("subjectAltName={san}\n")).unwrap();
        let dates =
            if expired { "-startdate 20200101000000Z -enddate 20200201000000Z" } else { "-days 2" };
        openssl(
            dir,
            &format!(
                "ca -batch -notext -config ca.conf -cert ca.pem -keyfile ca.key -in server.csr -out server.pem -extfile san {dates}"
            ),
        );
        let at = dir.display();
        format!("certfile {at}/server.pem\nkeyfile {at}/server.key\nallow_anonymous true\n")
    })
}

#[test]
fn doctor_explains_broker_refusal() {
    let broker = Mosquitto::start_with(|dir| {
        let mut passwd = Command::new("mosquitto_passwd");
        passwd.args(["-b", "-c", "passwd", "door-1", "s3cret"]).current_dir(dir);
        assert!(passwd.status().unwrap().success());
        format!("allow_anonymous false\npassword_file {}/passwd\n", dir.display())
    });
    let with = |port: u16, more: &str| Home::new(port, more);
    let user = "user = \"door-1\"\npassword = ";
    check(&with(broker.port(), &format!("{user}\"s3cret\"\n")), "broker", "good", &["door-1"]);
    check(
        &with(broker.port(), &format!("{user}\"guess\"\n")),
        "broker",
        "fault",
        &["does not let this device in", "setup"],
    );
    check(&with(broker.port(), "tls = true\n"), "broker", "fault", &["does not use TLS", "8883"]);
    check(
        &with(free_port(), ""),
        "broker",
        "warning",
        &["no broker answers at this port", "waits on this device"],
    );
    let home = with(NO_BROKER, "");
    let text = fs::read_to_string(home.path("config.toml")).unwrap();
    fs::write(home.path("config.toml"), text.replace("127.0.0.1", "broker..invalid")).unwrap();
    check(&home, "broker", "fault", &["has no address", "typing mistake"]);
}

#[test]
fn doctor_explains_certificate_errors() {
    let check_with = |broker: &Mosquitto, ca: &str, state: &str, parts: &[&str]| {
        let ca = broker.path(ca);
        check(
            &Home::new(broker.port(), &format!("tls = true\nca_file = {ca:?}\n")),
            "broker",
            state,
            parts,
        );
    };
    let good = tls_broker("IP:127.0.0.1", false);
    check_with(&good, "ca.pem", "good", &["over TLS"]);
    check_with(&good, "other.pem", "fault", &["unknown authority", "ca_file"]);
    check(
        &Home::new(good.port(), ""),
        "broker",
        "fault",
        &["does not answer as a broker", "tls = true"],
    );
    check_with(
        &tls_broker("DNS:broker.example.net", false),
        "ca.pem",
        "fault",
        &["for another name", "[mqtt] host"],
    );
    check_with(
        &tls_broker("IP:127.0.0.1", true),
        "ca.pem",
        "fault",
        &["not valid at this time", "renew"],
    );
}

/// A photograph of 640 by 480, made here: squares of 80 pixels, `low` and `high` bright, blurred by
/// so many pixels.
fn photograph(home: &Home, name: &str, (low, high): (u8, u8), blur: u32) -> PathBuf {
    let square = |x: u32, y: u32| if (x / 80 + y / 80).is_multiple_of(2) { low } else { high };
    let picture = image::ImageBuffer::from_fn(640, 480, |x, y| image::Luma([square(x, y)]));
    let picture = if blur > 0 { image::imageops::blur(&picture, blur as f32) } else { picture };
    let path = home.path(name);
    picture.save(&path).unwrap();
    path
}

#[test]
fn doctor_judges_light_and_sharpness() {
    let home = Home::new(NO_BROKER, "");
    for (name, bright, blur, part) in [
        ("good.png", (60, 200), 0, "a replay is configured"),
        ("dark.png", (0, 20), 0, "is dark"),
        ("bright.png", (230, 254), 0, "too bright"),
        ("covered.png", (100, 104), 0, "shows nothing"),
        ("blurred.png", (60, 200), 12, "is blurred"),
    ] {
        let path = photograph(&home, name, bright, blur);
        home.configure(NO_BROKER, &format!("[camera]\nsource = \"replay\"\npath = {path:?}\n"));
        check(&home, "camera", "warning", &[part]);
    }
    home.configure(NO_BROKER, "[camera]\nsource = \"replay\"\npath = \"nowhere\"\n");
    check(&home, "camera", "fault", &["nowhere", "nobody is recorded"]);
}

#[test]
fn doctor_asks_the_running_daemon() {
    let home = Home::new(NO_BROKER, "");
    check(&home, "service", "warning", &["no daemon runs", "nobody is recorded"]);
    let dark = photograph(&home, "dark.png", (0, 20), 0);
    let replay = |path: &Path| {
        format!("[camera]\nsource = \"replay\"\npath = {path:?}\nrepeat = true\nshow = \"1m\"\n")
    };
    home.configure(NO_BROKER, &replay(&dark));
    let daemon = home.start();
    until("its camera streams", || {
        let camera = finding(&home, "camera");
        camera["words"].as_str().unwrap().contains("is dark").then_some(())
    });
    check(&home, "service", "good", &["a daemon runs"]);
    assert!(daemon.terminate().success());
    home.configure(
        NO_BROKER,
        "[camera]\nsource = \"v4l2\"\ndevice = \"usb-nothing-of-that-name\"\n",
    );
    let daemon = home.start();
    until("its camera is lost", || (finding(&home, "camera")["state"] == "fault").then_some(()));
    check(&home, "camera", "fault", &["no camera of that name", "rollcall cameras"]);
    assert!(daemon.terminate().success());
}

#[test]
fn doctor_explains_failed_start() {
    let home = Home::new(NO_BROKER, "[camera]\nsorce = \"v4l2\"\n");
    check(&home, "configuration", "fault", &["sorce", "check-config"]);
    home.configure(NO_BROKER, "password_file = \"nowhere\"\nuser = \"u\"\n");
    check(&home, "configuration", "fault", &["nowhere", "setup"]);
    home.configure(NO_BROKER, "[recognition]\nmodels = \"nowhere\"\n");
    check(&home, "networks", "fault", &["nowhere", "reinstall"]);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let library = home.path("libonnxruntime.so");
    fs::write(&library, "no library").unwrap();
    let text = format!("[recognition]\nmodels = {models:?}\nruntime_library = {library:?}\n");
    home.configure(NO_BROKER, &text);
    check(&home, "library", "fault", &["libonnxruntime.so", "reinstall"]);
}

#[test]
fn doctor_checks_key_and_database() {
    let home = Home::new(NO_BROKER, "");
    // The first of all makes database and key.
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/photos/biden.jpg");
    let enrolled =
        home.output(&["enrol", "--id", "joe", "--name", "Joe", photograph.to_str().unwrap()]);
    assert!(enrolled.status.success(), "{enrolled:?}");
    check(&home, "storage", "good", &["1 people"]);
    check(&home, "people", "good", &["all 1"]);
    let key = home.state().join("rollcall.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    check(&home, "storage", "fault", &["may be read by others", "keys rotate"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    check(&home, "storage", "fault", &["not the one", "backup", "recorded attendance is intact"]);
    fs::remove_file(&key).unwrap();
    check(&home, "storage", "fault", &["is missing", "backup"]);
    let database = home.state().join("rollcall.db");
    let version = |to: u32| {
        rusqlite::Connection::open(&database)
            .unwrap()
            .pragma_update(None, "user_version", to)
            .unwrap();
    };
    version(99);
    check(&home, "storage", "fault", &["schema 99", "newer version"]);
    fs::write(&database, "no database at all, but long enough to be taken for one: ".repeat(40))
        .unwrap();
    for end in ["-wal", "-shm"] {
        fs::remove_file(home.state().join(format!("rollcall.db{end}"))).ok();
    }
    check(&home, "storage", "fault", &["damaged", "restore"]);
}

#[test]
fn doctor_reports_taken_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = Home::new(NO_BROKER, &format!("[http]\nlisten = \"{address}\"\n"));
    check(&home, "http", "fault", &["another program uses", "ss -ltnp"]);
    fs::write(home.path("token"), "a-token-of-this-test").unwrap();
    fs::set_permissions(home.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    home.configure(NO_BROKER, "[http]\nlisten = \"192.0.2.7:8080\"\ntoken_file = \"token\"\n");
    check(&home, "http", "fault", &["no address of this device"]);
    drop(taken);
    home.configure(NO_BROKER, &format!("[http]\nlisten = \"{address}\"\n"));
    check(&home, "http", "good", &["is free"]);
    let daemon = home.start();
    check(&home, "http", "good", &["the daemon answers"]);
    assert!(daemon.terminate().success());
}

#[test]
fn doctor_prints_text_for_people() {
    let home = Home::new(NO_BROKER, "");
    let output = home.output(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("it means: ") && text.contains("to do: "), "{text}");
    for part in ["configuration", "service", "camera", "disk", "broker", "clock", "power"] {
        assert!(
            text.lines().any(|line| line.get(9..).is_some_and(|rest| rest.starts_with(part))),
            "{part}: {text}"
        );
    }
}
