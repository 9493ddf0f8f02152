//! A disk that is full, or has no room for another name, or takes no more writes: the device keeps
//! recognising, says so, loses nothing that it owes, and recovers by itself. On a small file system
//! of its own, with real networks and a replay camera.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::support::client::Client;
use crate::support::daemon::{Daemon, Home, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mosquitto::Mosquitto;
use crate::support::volume::{Volume, freeze, freeze_root, in_own_mounts};
use rollcall::clock::Stopwatch;
use serde_json::Value;

const PEOPLE: usize = 3;
const MEBIBYTES: u64 = 24;

/// People pass for as long as the daemon runs, slowly enough for a slow machine, and each is a visit
/// of its own.
const CAMERA: &str = "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 4\nshow = \"3s\"\ngap = \"1s\"\n\
                      repeat = true\n[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n";

struct Scene {
    // Dropped in this order: the file system after whatever uses it.
    client: Client,
    broker: Mosquitto,
    volume: Volume,
    home: Home,
}

impl Scene {
    /// A daemon with its state on a small file system, some people enrolled, who pass from now on.
    fn begin() -> (Self, Daemon) {
        let broker = Mosquitto::start();
        let client = Client::connect(broker.port());
        let home = Home::new(broker.port(), CAMERA);
        let volume = Volume::mount(&home.state(), MEBIBYTES);
        fs::write(home.path("visits.csv"), "-,100,0\n").unwrap();
        let scene = Self { client, broker, volume, home };
        let daemon = scene.client.started(&scene.home);
        let mut visits = String::new();
        for person in Faces::find().people.iter().take(PEOPLE) {
            let enrolled = scene.client.request(
                "enrol",
                &format!("enrol-{}", person.id),
                enrolment(&person.id, &person.id, &person.enrol),
            );
            if enrolled["ok"] == true {
                let shown: &PathBuf = person.probes.first().unwrap_or(&person.enrol[0]);
                writeln!(visits, "{}", shown.display()).unwrap();
            }
        }
        fs::write(scene.home.path("visits.csv"), visits).unwrap();
        scene.until_recorded("before anything happens");
        (scene, daemon)
    }

    fn health(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.client.await_health(what, wanted)
    }

    /// Somebody who passes from now on is in the record, and has been told to the broker.
    fn until_recorded(&self, what: &str) {
        let received = self.client.received_on("event/attendance").len();
        until(&format!("attendance {what}"), || {
            (self.client.received_on("event/attendance").len() > received + 1).then_some(())
        });
    }

    /// People are recognised: the networks work on, and decide.
    fn until_recognised(&self, what: &str) -> Value {
        let before = self.health("any", |_| true);
        let count = |it: &Value, of: [&str; 2]| it[of[0]][of[1]].as_u64().unwrap();
        let frames = ["camera", "frames_analysed"];
        let identified = ["recognition", "identified"];
        self.health(what, |it| {
            count(it, frames) > count(&before, frames) + 5
                && count(it, identified) > count(&before, identified) + 1
        })
    }

    fn doctor(&self) -> String {
        let output = self.home.output(&["doctor", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let disk =
            report["findings"].as_array().unwrap().iter().find(|it| it["part"] == "disk").unwrap();
        format!("{}: {}", disk["state"].as_str().unwrap(), disk["words"].as_str().unwrap())
    }

    /// Takes all the room, and again what the reserve gives back.
    fn fill_up(&self) {
        self.volume.fill();
        self.health("the reserve is in use", |it| it["store"]["reserve_held"] == false);
        self.volume.fill();
    }

    /// At the end: what is in the record was told, once by its id, without a gap.
    fn check(self, daemon: Daemon) -> usize {
        fs::write(self.home.path("visits.csv"), "-,100,0\n").unwrap();
        self.health("nothing is owed any more", |it| it["outbox"][0]["rows"] == 0);
        assert!(daemon.terminate().success(), "{}", self.home.log());
        let events = self.client.check_events(&self.home);
        assert!(!self.home.log().contains("panicked"));
        events.len()
    }
}

mod needs_mounts {
    use std::fs;

    use serde_json::json;

    use super::{Faces, Scene, Stopwatch, Value, freeze, freeze_root, in_own_mounts, until};

    #[test]
    fn full_disk_stops_only_recording() {
        in_own_mounts("full_disk_stops_only_recording", || {
            let (mut scene, daemon) = Scene::begin();
            let id = &Faces::find().people[0].id;
            let earlier = json!({"subject_id": id, "name": "Earlier"});
            assert_eq!(scene.client.request("rename", "r-before", earlier.clone())["ok"], true);
            // Some of what was recorded is still owed when the disk runs full.
            scene.broker.kill();
            let recorded = || scene.home.json(&["attendance", "--json"]).as_array().unwrap().len();
            let before = recorded();
            until("visits are recorded without a broker", || {
                (recorded() > before + 1).then_some(())
            });
            scene.broker.run();
            scene.volume.fill();
            let log = || scene.home.log();
            until("it is said in the log", || {
                log().contains("the disk is full: writing into the reserve").then_some(())
            });
            scene.until_recorded("into the reserve");

            scene.fill_up();
            let full = scene.until_recognised("people are recognised on a full disk");
            let lost = |it: &Value| it["store"]["errors"].as_u64().unwrap();
            scene.health("sightings that do not fit are counted", |it| lost(it) > lost(&full));
            assert!(scene.doctor().starts_with("fault: the disk is full"), "{}", scene.doctor());
            let again = scene.client.request("rename", "r-before", earlier);
            assert_eq!(again["ok"], true, "{again}: the stored reply needs no room");
            let rename = json!({"subject_id": id, "name": "Somebody"});
            let refused = scene.client.request("rename", "r-full", rename.clone());
            assert_eq!(refused["error"]["code"], "storage_full", "{refused}");
            let refused = scene.client.request(
                "rename",
                "r-nobody",
                json!({"subject_id": "nobody", "name": "Nobody"}),
            );
            assert_eq!(refused["error"]["code"], "unknown_subject", "{refused}");

            scene.volume.clear();
            let watch = Stopwatch::start();
            scene.until_recorded("once there is room again");
            let recorded_s = watch.elapsed().as_secs_f64();
            scene
                .health("the reserve is kept back again", |it| it["store"]["reserve_held"] == true);
            println!(
                "recorded again after {recorded_s:.1} s, the reserve back after {:.1} s",
                watch.elapsed().as_secs_f64()
            );
            assert_eq!(
                scene.client.request("rename", "r-full", rename)["ok"],
                true,
                "the same request, now with room"
            );
            println!("{} events", scene.check(daemon));
        });
    }

    #[test]
    fn daemon_starts_on_full_disk() {
        in_own_mounts("daemon_starts_on_full_disk", || {
            let (scene, daemon) = Scene::begin();
            // Stopped in order: its log is gone, and the disk is filled before it makes another.
            assert!(daemon.terminate().success());
            scene.volume.fill();
            let daemon = scene.client.started(&scene.home);
            scene.until_recorded("into the reserve, after a start on a full disk");
            // Killed, or stopped, when there is no reserve any more.
            scene.fill_up();
            scene.until_recognised("before the kill");
            daemon.kill();
            scene.volume.fill();
            let daemon = scene.client.started(&scene.home);
            scene.until_recognised("after the kill");
            assert!(daemon.terminate().success(), "{}", scene.home.log());
            scene.volume.fill();
            let daemon = scene.client.started(&scene.home);
            scene.until_recognised("after the stop");
            scene.volume.clear();
            scene.until_recorded("once there is room again");
            println!("{} events", scene.check(daemon));
        });
    }

    #[test]
    fn daemon_works_without_free_inodes() {
        in_own_mounts("daemon_works_without_free_inodes", || {
            let (scene, daemon) = Scene::begin();
            scene.volume.fill_inodes();
            scene.until_recorded("without room for names");
            daemon.kill();
            let daemon = scene.client.started(&scene.home);
            scene.until_recorded("after a kill");
            scene.volume.clear_inodes();
            println!("{} events", scene.check(daemon));
        });
    }

    /// As on a device whose root is read-only: only the state directory (and this test's own log)
    /// can be written.
    #[test]
    fn daemon_works_on_read_only_root() {
        in_own_mounts("daemon_works_on_read_only_root", || {
            Faces::find(); // What it makes, it makes before the root is read-only.
            freeze_root();
            let (scene, daemon) = Scene::begin();
            assert!(daemon.terminate().success());
            let tmp = scene.home.path("tmp");
            let config = scene.home.path("config.toml");
            freeze(&tmp);
            freeze(&config);
            assert!(fs::write(tmp.join("probe"), "").is_err());
            let daemon = scene.client.started(&scene.home);
            scene.until_recorded("with nothing but the state directory to write to");
            println!("{} events", scene.check(daemon));
        });
    }
}

mod needs_root {
    use super::{Scene, in_own_mounts};

    /// Nothing can be recorded any more, and no later write will fit: that is for the supervisor
    /// and the operator. What was recorded is there once the card is exchanged, or mended.
    #[test]
    fn write_failure_ends_daemon_with_message() {
        in_own_mounts("write_failure_ends_daemon_with_message", || {
            let (scene, mut daemon) = Scene::begin();
            scene.volume.fail();
            assert_eq!(daemon.wait().code(), Some(74), "{}", scene.home.log());
            assert!(
                scene.home.log().contains("the storage cannot be used"),
                "{}",
                scene.home.log()
            );
            let again = scene.home.output(&["run"]);
            assert_eq!(again.status.code(), Some(74));
            println!("{}", String::from_utf8_lossy(&again.stderr));
        });
    }
}
