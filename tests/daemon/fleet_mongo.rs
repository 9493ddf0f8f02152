//! A site's doors and the gallery that they share through MongoDB: real daemons, a real mongod. The broker carries
//! commands only.

#![cfg(feature = "mongo")]
#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/faces.rs"]
mod faces;
#[path = "support/mongod.rs"]
mod mongod;
#[path = "support/mosquitto.rs"]
mod mosquitto;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Home, PATIENCE, until, until_for};
use faces::{base64, demo, enrolment};
use mongod::Mongod;
use mongodb::bson::{Document, doc};
use mosquitto::Mosquitto;
use rollcall::clock::Stopwatch;
use rollcall::mqtt::link::{self, Link, LinkEvent, LinkSettings, Message};
use rollcall::record::seal::SharedKey;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Everything that the doors say: topic and payload.
type Heard = Vec<(String, Vec<u8>)>;

/// Somebody in an office: commands to any door, and what all of them say.
struct Office {
    link: Link,
    heard: Arc<Mutex<Heard>>,
    requests: AtomicU32,
    _stop: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
}

impl Office {
    fn open(port: u16) -> Self {
        let mut settings = LinkSettings::new("127.0.0.1", port, "office", "office/status".into());
        settings.subscriptions =
            vec!["rollcall/hq/+/health".into(), "rollcall/hq/+/reply/+".into()];
        settings.packet_bytes_max_out = 64 << 20;
        settings.retry.shortest = Duration::from_millis(20);
        settings.retry.longest = Duration::from_millis(200);
        let (link, driver, mut told) = link::open(settings).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, asked) = watch::channel(false);
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let keep = Arc::clone(&heard);
        runtime.spawn(async move {
            while let Some(event) = told.recv().await {
                if let LinkEvent::Inbound(it) = event {
                    keep.lock().unwrap().push((it.topic, it.payload));
                    it.ack.acknowledge();
                }
            }
        });
        runtime.spawn(driver.drive(asked));
        Self { link, heard, requests: AtomicU32::new(0), _stop: stop, runtime }
    }

    fn request(&self, door: &str, verb: &str, mut body: Value) -> Value {
        let id = format!("r-{}", self.requests.fetch_add(1, Ordering::Relaxed));
        body["request_id"] = id.as_str().into();
        let (topic, payload) =
            (format!("rollcall/hq/{door}/command/{verb}"), serde_json::to_vec(&body).unwrap());
        until("the broker acknowledges", || {
            let message = Message { topic: topic.clone(), payload: payload.clone(), retain: false };
            self.runtime.block_on(self.link.publish_batch(vec![message]))[0].is_ok().then_some(())
        });
        let topic = format!("rollcall/hq/{door}/reply/{id}");
        until(&topic, || {
            let heard = self.heard.lock().unwrap();
            heard.iter().find(|it| it.0 == topic).map(|it| serde_json::from_slice(&it.1).unwrap())
        })
    }

    fn enrol(&self, door: &str, id: &str, photograph: &str) {
        let said =
            self.request(door, "enrol", enrolment(id, &format!("Name {id}"), &[demo(photograph)]));
        assert_eq!(said["ok"], true, "{said}");
    }

    fn withdraw(&self, door: &str, id: &str, erase: bool) {
        let said = self.request(door, "withdraw", json!({"subject_id": id, "erase": erase}));
        assert_eq!(said["ok"], true, "{said}");
    }

    fn recognises(&self, door: &str, photograph: &str) -> bool {
        let said = self.request(door, "recognise", json!({"image": base64(&demo(photograph))}));
        said["names"].as_array().is_some_and(|names| !names.is_empty())
    }

    /// What the newest vital signs say of the gallery.
    fn gallery(&self, door: &str) -> Option<Value> {
        let topic = format!("rollcall/hq/{door}/health");
        let heard = self.heard.lock().unwrap();
        let newest = heard.iter().rev().find(|it| it.0 == topic)?;
        Some(serde_json::from_slice::<Value>(&newest.1).unwrap()["gallery"].clone())
    }

    fn until_gallery(&self, door: &str, state: &str, subjects: usize) {
        until_for(PATIENCE, &format!("{door} is {state} with {subjects} subjects"), || {
            self.gallery(door)
                .filter(|it| it["sharing"]["state"] == state && it["subjects"] == subjects)
        });
    }
}

/// A door of the site, with the key in this file.
fn door(broker: &Mosquitto, uri: &str, name: &str, key: &SharedKey) -> Home {
    let fleet = format!("[fleet]\nshare = \"mongo\"\nkey_file = \"{}\"\n", key.path().display());
    let mongo = "[mongo]\nuri_file = \"uri\"\ntimeout = \"3s\"\n";
    let mut home = Home::new(broker.port(), &format!("{fleet}{mongo}"));
    fs::write(home.path("uri"), uri).unwrap();
    fs::set_permissions(home.path("uri"), fs::Permissions::from_mode(0o600)).unwrap();
    home.environment.push(("ROLLCALL_DEVICE_NAME".into(), name.into()));
    home
}

struct Keys {
    _dir: tempfile::TempDir,
    site: SharedKey,
    wrong: SharedKey,
}

fn keys() -> Keys {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| SharedKey::create(&dir.path().join(name)).unwrap();
    Keys { site: make("site.key"), wrong: make("wrong.key"), _dir: dir }
}

fn count(home: &Home, sql: &str) -> usize {
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as usize
}

fn kept(server: &Mongod, id: &str) -> Option<Document> {
    server.all("gallery").into_iter().find(|it| it.get_str("_id").ok() == Some(id))
}

#[test]
fn what_one_door_enrols_or_withdraws_all_of_them_know() {
    let (broker, keys, mut server) = (Mosquitto::start(), keys(), Mongod::start());
    let office = Office::open(broker.port());
    let homes =
        ["door-1", "door-2", "door-3"].map(|name| door(&broker, &server.uri(), name, &keys.site));
    let _first = homes[0].start();
    let _second = homes[1].start();
    office.until_gallery("door-2", "shared", 0);
    for (id, photograph, probe) in
        [("biden", "biden.jpg", "biden.jpg"), ("obama", "obama.jpg", "obama2.jpg")]
    {
        office.enrol("door-1", id, photograph);
        let watch = Stopwatch::start();
        until_for(PATIENCE, "the other door recognises", || {
            office.recognises("door-2", probe).then_some(())
        });
        println!("recognised elsewhere after {} ms", watch.elapsed().as_millis());
    }
    // One that was off for all of it.
    let third = homes[2].start();
    office.until_gallery("door-3", "shared", 2);
    assert!(office.recognises("door-3", "obama2.jpg"));
    // They meet him; one of them is off while he is erased.
    let said = office.request(
        "door-3",
        "attend",
        json!({"venue": "main", "image": base64(&demo("obama2.jpg"))}),
    );
    assert_eq!(said["ok"], true, "{said}");
    assert!(third.terminate().success());
    // MongoDB goes away: what is done meanwhile is told when it is back.
    server.kill_all();
    until("both know", || {
        (0..2).all(|at| homes[at].log().contains("MongoDB is not reached")).then_some(())
    });
    office.until_gallery("door-1", "away", 2);
    office.withdraw("door-1", "obama", true);
    office.withdraw("door-2", "biden", false);
    server.run_all();
    let watch = Stopwatch::start();
    for name in ["door-1", "door-2"] {
        office.until_gallery(name, "shared", 0);
    }
    println!("even {} ms after MongoDB was back", watch.elapsed().as_millis());
    let _third = homes[2].start();
    office.until_gallery("door-3", "shared", 0);
    for home in &homes {
        assert_eq!(count(home, "select count(*) from event where subject_id = 'obama'"), 0);
        assert_eq!(count(home, "select count(*) from reference"), 0);
        assert_eq!(count(home, "select count(*) from withdrawn"), 2);
        assert!(!home.log().contains("Name ") && !home.log().contains("obama"), "{}", home.log());
    }
    // The tombstones outlive the erasure in `subjects`.
    until("he is erased in MongoDB", || {
        (!server.all("subjects").iter().any(|it| it.get_str("_id").ok() == Some("obama")))
            .then_some(())
    });
    for id in ["hq/obama", "hq/biden"] {
        let document = kept(&server, id).unwrap();
        assert_eq!(document.get_bool("withdrawn").ok(), Some(true), "{document}");
        assert!(!document.to_string().contains("Name "), "{document}");
    }
    // Who was withdrawn comes back.
    office.enrol("door-3", "biden", "biden.jpg");
    for name in ["door-1", "door-2", "door-3"] {
        office.until_gallery(name, "shared", 1);
    }
}

#[test]
fn a_door_with_another_key_learns_nothing_and_spoils_nothing() {
    let (broker, keys, server) = (Mosquitto::start(), keys(), Mongod::start());
    let office = Office::open(broker.port());
    let homes = [("door-1", &keys.site), ("door-2", &keys.wrong)]
        .map(|(name, key)| door(&broker, &server.uri(), name, key));
    let _first = homes[0].start();
    office.enrol("door-1", "biden", "biden.jpg");
    let told = until("the record is told", || kept(&server, "hq/biden"));
    // Its own account of the same id counts for more, by its name: and does not displace the site's.
    let second = homes[1].start();
    office.enrol("door-2", "biden", "biden.jpg");
    office.enrol("door-2", "obama", "obama.jpg");
    until("it says so", || {
        office.gallery("door-2").filter(|it| it["sharing"]["state"] == "wrong_key")
    });
    until("its row is refused", || {
        homes[1].log().contains("does not open with this key (").then_some(())
    });
    assert_eq!(kept(&server, "hq/biden").as_ref(), Some(&told));
    assert_eq!(kept(&server, "hq/obama"), None);
    // Nonsense is counted and left alone; what is only said to be older gives way to what is right.
    let spoil = |id: &str, set: Document| {
        let update = doc! { "q": { "_id": id }, "u": { "$set": set }, "upsert": true };
        server.command(doc! { "update": "gallery", "updates": [update] });
    };
    spoil("hq/nonsense", doc! { "version": "none", "sealed": "x" });
    spoil("hq/a b", doc! { "withdrawn": true });
    let high = doc! { "withdrawals": 9_i64, "changes": 9_i64, "device": "door-9" };
    spoil("hq/jane", doc! { "version": high, "withdrawn": true, "sealed": "x" });
    spoil("hq/biden", doc! { "version.changes": 0_i64 });
    server.command(
        doc! { "update": "gallery", "updates": [{ "q": { "_id": "hq" }, "u": { "$inc": { "rung": 1_i64 } } }] },
    );
    until("it is counted", || {
        office.gallery("door-1").filter(|it| it["sharing"]["refused"].as_u64() >= Some(3))
    });
    assert!(office.recognises("door-1", "biden.jpg"));
    until("it is put right", || {
        kept(&server, "hq/biden")
            .filter(|it| it.get_document("version").ok() == told.get_document("version").ok())
    });
    assert_eq!(kept(&server, "hq/nonsense").unwrap().get_str("version").ok(), Some("none"));
    // With the right key it has all, and tells what it has.
    assert!(second.terminate().success());
    fs::copy(keys.site.path(), keys.wrong.path()).unwrap();
    let _second = homes[1].start();
    office.until_gallery("door-2", "shared", 2);
    office.until_gallery("door-1", "shared", 2);
}
