//! `rollcall watch` and `rollcall snapshot` beside the real daemon: what they show, who may ask,
//! what is written.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::daemon;
use crate::support::faces;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::daemon::{Home, until};
use serde_json::Value;

/// A daemon without a broker before which a person stands again and again.
fn watched(more: &str) -> (Home, daemon::Daemon) {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[recognition]\nmodels = \"{}\"\n\
         [camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n{more}",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("list.csv"), format!("{},2000,100\n", faces::demo("obama2.jpg").display()))
        .unwrap();
    let enrolled =
        home.output(&["enrol", "--id", "barack", faces::demo("obama.jpg").to_str().unwrap()]);
    assert!(enrolled.status.success(), "{enrolled:?}");
    let daemon = home.start();
    (home, daemon)
}

fn lines(home: &Home, args: &[&str]) -> Vec<Value> {
    let output = home.output(args);
    assert!(output.status.success(), "{output:?}");
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Watches until somebody was identified.
fn identified(home: &Home, names: bool) -> Value {
    let args: &[&str] = &["watch", "--json", "--frames", "10", "--names"];
    until("somebody is identified", || {
        let seen = lines(home, if names { args } else { &args[..4] });
        let mut faces = seen.iter().flat_map(|line| line["faces"].as_array().unwrap());
        faces.rfind(|face| face["decision"] == "identified").cloned()
    })
}

#[test]
fn watch_shows_faces_of_current_frame() {
    let (home, daemon) = watched("");
    let face = identified(&home, true);
    assert_eq!((&face["subject_id"], &face["presentation"]), (&"barack".into(), &"live".into()));
    assert!(face["score"].as_f64().unwrap() >= face["threshold"].as_f64().unwrap());
    let [left, top, right, bottom] = [0, 1, 2, 3].map(|n| face["box"][n].as_f64().unwrap());
    let [x, y] = [0, 1].map(|n| face["landmarks"][2][n].as_f64().unwrap());
    assert!(
        (left..right).contains(&x) && (top..bottom).contains(&y),
        "the nose is in the box: {face}"
    );
    let nameless = identified(&home, false);
    assert_eq!((&nameless["subject_id"], &nameless["name"]), (&Value::Null, &Value::Null));
    let screen = home.output(&["watch", "--frames", "1"]);
    let screen = String::from_utf8(screen.stdout).unwrap();
    assert!(screen.contains("camera streaming") && screen.contains('+'), "{screen}");
    assert!(daemon.terminate().success());
    assert!(!home.state().join("watch.sock").exists());
    let alone = home.output(&["watch"]);
    assert!(!alone.status.success());
    assert!(String::from_utf8_lossy(&alone.stderr).contains("rollcall run"), "{alone:?}");
}

#[test]
fn snapshot_is_confirmed_logged_and_private() {
    let (home, daemon) = watched("");
    identified(&home, false);
    let path = home.path("shot.jpg");
    let target = path.to_str().unwrap();
    let unconfirmed = home.output(&["snapshot", "--annotated", target]);
    assert!(!unconfirmed.status.success() && !path.exists(), "{unconfirmed:?}");
    let taken = home.output(&["snapshot", "--annotated", target, "--yes"]);
    assert!(taken.status.success(), "{taken:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let picture = image::open(&path).unwrap();
    let scene = image::open(faces::demo("obama2.jpg")).unwrap();
    assert_eq!((picture.width(), picture.height()), (scene.width(), scene.height()));
    let again = home.output(&["snapshot", "--annotated", target, "--yes"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"), "{again:?}");
    assert!(home.output(&["snapshot", "--annotated", target, "--yes", "--force"]).status.success());
    let uid = rustix::process::getuid().as_raw();
    let log = home.log();
    let reported = log
        .lines()
        .filter(|line| line.contains("snapshot taken") && line.contains(&format!("uid={uid}")));
    assert_eq!(reported.count(), 2, "{log}");
    assert!(!log.contains("barack"));
    assert!(daemon.terminate().success());
}

#[test]
fn snapshots_can_be_forbidden() {
    let (home, daemon) = watched("[privacy]\nsnapshot = false\n");
    let refused =
        home.output(&["snapshot", "--annotated", home.path("x.jpg").to_str().unwrap(), "--yes"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("[privacy] snapshot"), "{refused:?}");
    assert!(!home.path("x.jpg").exists());
    assert!(daemon.terminate().success());
}

#[test]
fn watch_socket_is_private_and_rejects_nonsense() {
    let (home, mut daemon) = watched("");
    let socket = home.state().join("watch.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let endless = vec![b'x'; 1 << 20];
    for nonsense in [
        &b"\n"[..],
        b"{}\n",
        b"{\"ask\":\"watch\"}\n",
        b"{\"ask\":\"gallery\",\"names\":true}\n",
        b"\xff\xfe\n",
        &endless,
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // What is too long is not read to its end.
        stream.write_all(nonsense).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(
            answer.is_empty() || answer.starts_with(b"{\"error\""),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    // Those who ask nothing hold no place for ever, and more than a few are sent away.
    let idle: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    until("one too many is refused", || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let mut answer = String::new();
        stream.write_all(b"{\"ask\":\"watch\",\"names\":false}\n").ok();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        stream.read_to_string(&mut answer).ok();
        answer.contains("clients already").then_some(())
    });
    drop(idle);
    identified(&home, false);
    assert!(daemon.is_alive());
    assert!(daemon.terminate().success());
}
