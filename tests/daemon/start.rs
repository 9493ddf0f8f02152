//! Beginning and end: what keeps the daemon from starting is said with its exit code and what to
//! do; a stop is clean; a restart knows everything.

#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]
#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::client::Client;
use crate::support::daemon::{Home, until};
use crate::support::faces::{demo, enrolment};
use crate::support::mosquitto::{Mosquitto, free_port};
use rollcall::app::exit;
use serde_json::json;

/// A port that nobody serves: none of these starts needs a broker.
const NO_BROKER: u16 = 9;

fn check(output: &Output, code: u8, about: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(code)), "{said}");
    for part in about {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

fn run(more: &str, code: u8, about: &[&str]) {
    check(&Home::new(NO_BROKER, more).output(&["run"]), code, about);
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

#[test]
fn usage_errors_exit_with_64() {
    let home = Home::new(NO_BROKER, "");
    check(&home.output(&[]), exit::USAGE, &["Usage"]);
    check(&home.output(&["frobnicate"]), exit::USAGE, &["frobnicate"]);
    check(&home.output(&["run", "--fast"]), exit::USAGE, &["--fast"]);
    check(&home.output(&["enrol", "--id", "a/b", "x.jpg"]), exit::USAGE, &["a/b"]);
    check(&home.output(&["attendance", "--from", "yesterday"]), exit::USAGE, &["yesterday"]);
    check(&home.output(&["--help"]), 0, &[]);
    check(&home.output(&["--version"]), 0, &[]);
}

#[test]
fn configuration_errors_exit_with_78() {
    run("[camera]\nsorce = \"replay\"\n", exit::CONFIG, &["sorce"]);
    run("[recognition]\nfpir = 2.0\n", exit::CONFIG, &["[recognition] fpir", "0.5"]);
    run("[camera]\nsource = \"replay\"\n", exit::CONFIG, &["[camera] path"]);
    run(
        "[camera]\nsource = \"replay\"\npath = \"nothing-here\"\n",
        exit::CONFIG,
        &["nothing-here"],
    );
    run("tls = true\nca_file = \"missing.pem\"\n", exit::CONFIG, &["missing.pem"]);
    run("ca_file = \"ca.pem\"\n", exit::CONFIG, &["tls"]);
    run("[broker]\nenabled = true\n", exit::CONFIG, &["one broker"]);
    run("[attendance]\nvenue = \"room\"\n[[venue]]\nid = \"hall\"\n", exit::CONFIG, &["room"]);
    let home = Home::new(NO_BROKER, "");
    let set = |name: &str, value: &str| home.finish(home.command(&["run"]).env(name, value));
    check(&set("ROLLCALL_MQTT_PORT", "many"), exit::CONFIG, &["ROLLCALL_MQTT_PORT", "many"]);
    check(&set("ROLLCALL_MQTT_PROT", "1883"), exit::CONFIG, &["ROLLCALL_MQTT_PROT"]);
    fs::remove_file(home.path("config.toml")).unwrap();
    check(&home.output(&["run"]), exit::CONFIG, &["config.toml"]);
}

#[test]
fn model_errors_exit_with_69() {
    let with = |key: &str, path: &Path| {
        format!("[recognition]\nmodels = {:?}\n{key} = {path:?}\n", models())
    };
    run(
        &with("runtime_library", Path::new("/nowhere/libonnxruntime.so")),
        exit::MODEL,
        &["/nowhere", "make setup"],
    );
    let home = Home::new(NO_BROKER, "[recognition]\nmodels = \"networks\"\n");
    check(&home.output(&["run"]), exit::MODEL, &["networks", "git checkout models"]);
    check(&home.output(&["models", "verify"]), exit::MODEL, &["networks"]);

    let copy = home.path("networks");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(models())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
    {
        fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let network = copy.join("yunet.int8.onnx");
    let mut bytes = fs::read(&network).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&network, &bytes).unwrap();
    // Below the models lies no library here, and a network is looked at before it is run.
    let library = models()
        .join("../.cache/onnxruntime")
        .join(std::env::consts::ARCH)
        .join("libonnxruntime.so");
    home.configure(
        NO_BROKER,
        &format!("[recognition]\nmodels = \"networks\"\nruntime_library = {library:?}\n"),
    );
    check(&home.output(&["run"]), exit::MODEL, &["yunet.int8.onnx", "sha256", "restore"]);
    fs::remove_file(&network).unwrap();
    check(
        &home.output(&["run"]),
        exit::MODEL,
        &["yunet.int8.onnx", "missing", "git checkout models"],
    );
    fs::write(home.path("not-a-library.so"), "text").unwrap();
    run(
        &with("runtime_library", &home.path("not-a-library.so")),
        exit::MODEL,
        &["not-a-library.so"],
    );
}

#[test]
fn storage_errors_exit_with_74() {
    let home = Home::new(NO_BROKER, "");
    // Nothing was ever recorded here, which is said and is no reason to make a database.
    check(&home.output(&["attendance"]), exit::STORAGE, &["state"]);
    check(&home.output(&["subjects"]), exit::STORAGE, &["state"]);
    assert!(!home.state().exists());

    let first = home.start();
    let pid = first.pid().to_string();
    check(&home.output(&["run"]), exit::STORAGE, &["another process", &pid]);
    assert!(first.terminate().success());

    let database = home.state().join("rollcall.db");
    let set_version = |version: u32| {
        rusqlite::Connection::open(&database)
            .unwrap()
            .pragma_update(None, "user_version", version)
            .unwrap();
    };
    let connection = rusqlite::Connection::open(&database).unwrap();
    let version: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    drop(connection);
    // A newer version changes the schema; the number alone could be a damaged byte.
    let change_schema = |sql: &str| {
        rusqlite::Connection::open(&database).unwrap().execute_batch(sql).unwrap();
    };
    change_schema("create table newer (x integer) strict");
    set_version(version + 1);
    check(&home.output(&["run"]), exit::STORAGE, &["schema", "use the version that wrote it"]);
    check(&home.output(&["attendance"]), exit::STORAGE, &["schema"]);
    change_schema("drop table newer");
    set_version(version);

    fs::set_permissions(home.state(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(home.start().terminate().success());
    let mode = fs::metadata(home.state()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "what is plainly ours is closed to others");
    let somebodys = Home::new(NO_BROKER, "");
    fs::create_dir(somebodys.state()).unwrap();
    fs::set_permissions(somebodys.state(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(somebodys.state().join("letter"), "Dear").unwrap();
    check(&somebodys.output(&["run"]), exit::STORAGE, &["chmod 700"]);

    let key = home.state().join("rollcall.key");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, "no key").unwrap();
    check(&home.output(&["run"]), exit::STORAGE, &["rollcall.key"]);
    fs::write(&key, &kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    check(&home.output(&["run"]), exit::STORAGE, &["chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(home.start().terminate().success(), "and with everything right it starts again");
}

#[test]
fn database_is_quarantined_key_is_never_replaced() {
    let home = Home::new(NO_BROKER, "");
    let photograph = demo("obama.jpg").display().to_string();
    assert!(home.output(&["enrol", "--id", "obama", &photograph]).status.success());
    let key = home.state().join("rollcall.key");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    check(&home.output(&["run"]), exit::STORAGE, &["key"]);
    fs::write(&key, kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::write(home.state().join("rollcall.db"), "this was a database").unwrap();
    let daemon = home.start();
    assert!(home.log().contains("moved aside"), "{}", home.log());
    assert!(daemon.terminate().success());
    let aside = fs::read_dir(home.state())
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap_or_default());
    let entries: Vec<_> = aside.collect();
    let inside = |entry: &Vec<u8>| entry == b"this was a database";
    let folders = fs::read_dir(home.state())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let deeper = folders.flat_map(|dir| {
        fs::read_dir(dir).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap_or_default())
    });
    assert!(
        entries.iter().any(inside) || deeper.collect::<Vec<_>>().iter().any(inside),
        "never deleted"
    );
}

#[test]
fn restart_after_clean_stop_keeps_everything() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[[venue]]\nid = \"main\"\nre_entry_gap = \"1h\"\n");
    let [obama, other, biden] =
        ["obama.jpg", "obama2.jpg", "biden.jpg"].map(|name| demo(name).display().to_string());
    // Without a daemon the program does it itself.
    let said = home.json(&["enrol", "--id", "obama", "--name", "Barack", &obama, "--json"]);
    assert_eq!((&said["ok"], &said["references"]), (&json!(true), &json!(1)));

    let daemon = client.started(&home);
    let ready = home.log().lines().find(|line| line.contains(" ready ")).unwrap().to_owned();
    assert!(ready.contains("elapsed_ms="), "{ready}");
    println!("{ready}");
    client.await_one("the enrolment is told now", |it| {
        it.part == "event/enrolment" && it.json()["seq"] == 1
    });
    // With a daemon it asks that one.
    let said = home.json(&["enrol", "--id", "obama", "--name", "Barack", &other, "--json"]);
    assert_eq!((&said["ok"], &said["references"]), (&json!(true), &json!(2)));
    check(&home.output(&["enrol", "--id", "again", &obama]), 1, &["already enrolled as obama"]);
    check(
        &home.output(&[
            "enrol",
            "--id",
            "nobody",
            &format!("{}/Cargo.toml", env!("CARGO_MANIFEST_DIR")),
        ]),
        1,
        &["cannot be used: decode_error"],
    );
    let visit = json!({"venue": "main", "image": faces::base64(&demo("obama3.jpg"))});
    assert_eq!(client.request("attend", "v-1", visit.clone())["recorded"], json!(["Barack"]));
    let seen = client.received().len();
    assert!(daemon.terminate().success(), "{}", home.log());
    assert_eq!(client.await_from(seen, "status").payload, b"offline");

    // What is published while it is away waits for it.
    client.command("enrol", &{
        let mut body = enrolment("biden", "Joe", &[demo("biden.jpg")]);
        body["request_id"] = "waited".into();
        body
    });
    let subjects = home.json(&["subjects", "--json"]);
    let attendance = home.json(&["attendance", "--json"]);
    let daemon = client.started(&home);
    assert_eq!(client.await_one("the answer", |it| it.part == "reply/waited").json()["ok"], true);
    let recognised = client.request("recognise", "v-2", json!({"image": visit["image"]}));
    assert_eq!(recognised["names"], json!(["Barack"]));
    let again = client.request("attend", "v-3", visit);
    assert_eq!(
        (&again["recorded"], &again["recognised"]),
        (&json!([]), &json!(["Barack"])),
        "within the hour"
    );
    assert_eq!(home.json(&["attendance", "--json"]), attendance);
    let now = home.json(&["subjects", "--json"]);
    assert_eq!((now.as_array().unwrap().len(), &now[1]), (2, &subjects[0]));
    let said = home.output(&["recognise", &biden, "--json"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("\"Joe\""), "{said:?}");
    assert!(daemon.terminate().success());
}

/// A device with its own broker on this port.
fn with_embedded_broker(port: u16) -> Home {
    let websocket = free_port();
    let home = Home::new(port, "");
    let config =
        fs::read_to_string(home.path("config.toml")).unwrap().replace("host = \"127.0.0.1\"\n", "");
    let config = config.replace(&format!("port = {port}\n"), "");
    let broker = format!(
        "[broker]\nenabled = true\nlisten = \"127.0.0.1:{port}\"\nwebsocket = \"127.0.0.1:{websocket}\"\n"
    );
    fs::write(home.path("config.toml"), config + &broker).unwrap();
    home
}

/// The process that another one has started.
fn child_of(parent: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let ids = processes.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The name, which may hold anything, is in brackets; the state follows.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    ids.into_iter().find(is_child)
}

#[test]
fn flooded_broker_leaves_the_daemon_running() {
    let port = free_port();
    let home = with_embedded_broker(port);
    let mut daemon = home.start();
    let broker = child_of(daemon.pid()).unwrap();
    let client = Client::connect(port);
    client.await_one("it is online", |it| it.part == "status" && it.payload == b"online");
    // More connections than there are places, each with most of a large message; and large
    // retained messages.
    let mut streams = Vec::new();
    for number in 0..100_u8 {
        let mut bytes =
            vec![0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 2, b'f', number];
        bytes.extend([0x31, 0x83, 0x80, 0x40, 0, 1, number]);
        bytes.resize(bytes.len() + (1 << 20), b'x');
        bytes.extend([0x30, 0xff, 0xff, 0xff, 0x03]);
        bytes.resize(bytes.len() + (1 << 20), 0);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(&bytes).ok(); // The broker may end it.
        streams.push(stream);
    }
    assert_eq!(client.request("sync", "s-flooded", json!({}))["ok"], true);
    assert_eq!(child_of(daemon.pid()), Some(broker), "the broker has lived through it");
    drop(streams);
    let from = client.received().len();
    // As the kernel does when memory is short.
    let broker = rustix::process::Pid::from_raw(broker as i32).unwrap();
    rustix::process::kill_process(broker, rustix::process::Signal::KILL).unwrap();
    until("there is another broker", || {
        child_of(daemon.pid()).filter(|id| *id != broker.as_raw_nonzero().get() as u32)
    });
    // The new one knows nobody: a command counts once the device is back.
    client.await_from(from, "status");
    assert_eq!(client.request("sync", "s-again", json!({}))["ok"], true);
    assert!(daemon.is_alive());
    assert!(home.log().contains("the embedded broker ended; starting another"), "{}", home.log());
    assert!(daemon.terminate().success(), "{}", home.log());
}

#[test]
fn embedded_broker_ends_with_the_daemon() {
    let port = free_port();
    let home = with_embedded_broker(port);
    let free = || {
        until("the broker's port is free", || {
            TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(())
        });
    };
    for end in ["SIGKILL", "SIGTERM"] {
        let daemon = home.start();
        let client = Client::connect(port);
        client.await_one("it is online", |it| it.part == "status" && it.payload == b"online");
        assert_eq!(client.request("sync", &format!("s-{end}"), json!({}))["ok"], true);
        drop(client);
        if end == "SIGKILL" {
            daemon.kill();
        } else {
            assert!(daemon.terminate().success(), "{}", home.log());
        }
        free();
    }
}
