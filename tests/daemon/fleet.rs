//! A site's doors and the gallery that they share: real daemons, a real broker with its default limits.
//!
//! By hand, at full size: `E2E_SUBJECTS=10000 cargo nextest run --test daemon_fleet --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/faces.rs"]
mod faces;
#[path = "support/mosquitto.rs"]
mod mosquitto;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use daemon::{Daemon, Home, PATIENCE, scaled, until, until_for};
use faces::{base64, demo, enrolment};
use mosquitto::Mosquitto;
use rollcall::clock::{SimulatedClock, Stopwatch};
use rollcall::mqtt::link::{self, Link, LinkEvent, LinkSettings, Message};
use rollcall::recognise::face::{ModelDigest, Name, SubjectId, Template};
use rollcall::record::seal::SharedKey;
use rollcall::record::store::{NewReference, Store, StoreOptions};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Mosquitto with the limits that it has when nobody set any, and without writing all it keeps after each change.
fn usual_broker() -> Mosquitto {
    let limits = "max_inflight_messages 20\nmax_queued_messages 1000\n";
    Mosquitto::start_with(|_| {
        format!("allow_anonymous true\nautosave_interval 1800\nautosave_on_changes false\n{limits}")
    })
}

/// How many subjects the index on the broker has, read as a door reads it.
fn listed(broker: &Mosquitto, key: &SharedKey) -> usize {
    let out = broker.subscribe(&[
        "-t",
        "rollcall/hq/gallery-index/+",
        "-F",
        "%t %p",
        "--retained-only",
        "-W",
        "1",
    ]);
    let on_page = |line: &str| {
        let (topic, payload) = line.split_once(' ').unwrap();
        let page = u8::from_str_radix(&topic[topic.len() - 2..], 16).unwrap();
        let payload: Value = serde_json::from_str(payload).unwrap();
        let sealed = base64::engine::general_purpose::STANDARD
            .decode(payload["sealed"].as_str().unwrap())
            .unwrap();
        let plain = key
            .open(&sealed, &[b"rollcall gallery page 1\0hq\0".as_slice(), &[page]].concat())
            .unwrap();
        serde_json::from_slice::<Vec<Value>>(&plain).unwrap().len()
    };
    String::from_utf8_lossy(&out.stdout).lines().map(on_page).sum()
}

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

    fn publish(&self, topic: &str, payload: &[u8], retain: bool) {
        until("the broker acknowledges", || {
            let message = Message { topic: topic.into(), payload: payload.to_vec(), retain };
            self.runtime.block_on(self.link.publish_batch(vec![message]))[0].is_ok().then_some(())
        });
    }

    /// Gives the request's id.
    fn command(&self, door: &str, verb: &str, mut body: Value) -> String {
        let id = format!("r-{}", self.requests.fetch_add(1, Ordering::Relaxed));
        body["request_id"] = id.as_str().into();
        self.publish(
            &format!("rollcall/hq/{door}/command/{verb}"),
            &serde_json::to_vec(&body).unwrap(),
            false,
        );
        id
    }

    fn answer(&self, door: &str, id: &str) -> Value {
        let topic = format!("rollcall/hq/{door}/reply/{id}");
        until(&topic, || {
            let heard = self.heard.lock().unwrap();
            heard.iter().find(|it| it.0 == topic).map(|it| serde_json::from_slice(&it.1).unwrap())
        })
    }

    fn request(&self, door: &str, verb: &str, body: Value) -> Value {
        let id = self.command(door, verb, body);
        self.answer(door, &id)
    }

    fn recognises(&self, door: &str, photograph: &str) -> bool {
        let said = self.request(door, "recognise", json!({"image": base64(&demo(photograph))}));
        said["names"].as_array().is_some_and(|names| !names.is_empty())
    }

    /// The newest vital signs.
    fn health(&self, door: &str) -> Option<Value> {
        let topic = format!("rollcall/hq/{door}/health");
        let heard = self.heard.lock().unwrap();
        heard.iter().rev().find(|it| it.0 == topic).map(|it| serde_json::from_slice(&it.1).unwrap())
    }

    fn gallery(&self, door: &str) -> Option<Value> {
        self.health(door).map(|it| it["gallery"].clone())
    }

    /// Waits until all of them have so many subjects, and the same.
    fn until_same(&self, doors: &[&str], subjects: usize) {
        let what = format!("{doors:?} have the same {subjects} subjects");
        until_for(PATIENCE * 3, &what, || {
            let found: Vec<Value> = doors.iter().filter_map(|door| self.gallery(door)).collect();
            let digests: BTreeSet<_> = found.iter().map(|it| it["digest"].to_string()).collect();
            let all =
                found.len() == doors.len() && found.iter().all(|it| it["subjects"] == subjects);
            (all && digests.len() == 1).then_some(())
        });
    }
}

/// A door of the site, with the key in this file.
fn door(broker: &Mosquitto, name: &str, key: &SharedKey) -> Home {
    let mut home =
        Home::new(broker.port(), &format!("[fleet]\nkey_file = \"{}\"\n", key.path().display()));
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

const DOORS: [&str; 3] = ["door-1", "door-2", "door-3"];

#[test]
fn what_one_door_enrols_or_withdraws_all_of_them_know() {
    let (broker, keys) = (usual_broker(), keys());
    let office = Office::open(broker.port());
    let homes = DOORS.map(|name| door(&broker, name, &keys.site));
    let mut running: Vec<Daemon> = homes[..2].iter().map(Home::start).collect();
    let biden = enrolment("biden", "Joe", &[demo("biden.jpg")]);
    let obama = enrolment("obama", "Barack", &[demo("obama.jpg")]);
    for (subject, probe) in [(biden, "biden.jpg"), (obama, "obama2.jpg")] {
        let said = office.request("door-1", "enrol", subject);
        assert_eq!(said["ok"], true, "{said}");
        let watch = Stopwatch::start();
        until_for(Duration::from_secs(2), "the other door recognises", || {
            office.recognises("door-2", probe).then_some(())
        });
        println!("recognised elsewhere after {} ms", watch.elapsed().as_millis());
    }
    // One that was off for all of it.
    running.push(homes[2].start());
    until_for(Duration::from_secs(5), "all is there", || {
        office
            .gallery("door-3")
            .filter(|it| it["subjects"] == 2 && it["sharing"]["state"] == "shared")
    });
    office.until_same(&DOORS, 2);
    // They meet him, and he is erased everywhere: at each door out of the events too.
    for name in ["door-2", "door-3"] {
        let said = office.request(
            name,
            "attend",
            json!({"venue": "main", "image": base64(&demo("obama2.jpg"))}),
        );
        assert_eq!(said["ok"], true, "{said}");
    }
    assert_eq!(
        office.request("door-1", "withdraw", json!({"subject_id": "obama", "erase": true}))["ok"],
        true
    );
    assert_eq!(office.request("door-2", "withdraw", json!({"subject_id": "biden"}))["ok"], true);
    office.until_same(&DOORS, 0);
    for home in &homes {
        assert_eq!(count(home, "select count(*) from event where subject_id = 'obama'"), 0);
        assert_eq!(count(home, "select count(*) from reference"), 0);
        assert_eq!(count(home, "select count(*) from withdrawn"), 2);
        assert!(!home.log().contains("Barack") && !home.log().contains("obama"), "{}", home.log());
    }
    // Who was withdrawn comes back.
    assert_eq!(
        office.request("door-3", "enrol", enrolment("biden", "Joe", &[demo("biden.jpg")]))["ok"],
        true
    );
    office.until_same(&DOORS, 1);
    for daemon in running {
        assert!(daemon.terminate().success());
    }
}

#[test]
fn a_door_with_another_key_learns_nothing_and_says_so_and_spoils_nothing() {
    let (broker, keys) = (usual_broker(), keys());
    let office = Office::open(broker.port());
    let homes = [door(&broker, "door-1", &keys.site), door(&broker, "door-2", &keys.wrong)];
    let first = homes[0].start();
    assert_eq!(
        office.request("door-1", "enrol", enrolment("biden", "Joe", &[demo("biden.jpg")]))["ok"],
        true
    );
    until("the record is told", || {
        broker.log().contains("rollcall/hq/gallery/biden").then_some(())
    });
    let second = homes[1].start();
    let strange = |it: &Value| {
        it["sharing"]["state"] == "wrong_key" && it["sharing"]["refused"].as_u64() > Some(0)
    };
    until("it says so", || office.gallery("door-2").filter(strange));
    assert_eq!(office.gallery("door-2").unwrap()["subjects"], 0);
    assert!(homes[1].log().contains("does not open with this key"), "{}", homes[1].log());
    // Its own account of the same id does not displace the site's, nor does it get out.
    assert_eq!(
        office.request("door-2", "enrol", enrolment("biden", "Joe", &[demo("biden.jpg")]))["ok"],
        true
    );
    assert_eq!(
        office.request("door-2", "enrol", enrolment("obama", "B", &[demo("obama.jpg")]))["ok"],
        true
    );
    let third = door(&broker, "door-3", &keys.site);
    let _third = third.start();
    office.until_same(&["door-1", "door-3"], 1);
    assert!(!broker.log().contains("rollcall/hq/gallery/obama"));
    // Nonsense is counted, and hurts nobody.
    office.publish("rollcall/hq/gallery/nonsense", b"{\"schema\":1", true);
    office.publish("rollcall/hq/gallery-index/07", &[0xff; 100], true);
    until("it is counted", || office.gallery("door-1").filter(|it| it["sharing"]["refused"] == 2));
    assert!(office.recognises("door-1", "biden.jpg"));
    // With the right key it has all, and tells what it has.
    assert!(second.terminate().success());
    fs::copy(keys.site.path(), keys.wrong.path()).unwrap();
    let _second = homes[1].start();
    office.until_same(&DOORS, 2);
    drop(first);
}

#[test]
fn two_doors_that_enrol_one_id_at_once_end_with_the_same() {
    let (broker, keys) = (usual_broker(), keys());
    let office = Office::open(broker.port());
    let homes = DOORS.map(|name| door(&broker, name, &keys.site));
    let _running = homes.each_ref().map(Home::start);
    let mut photograph_of_another = enrolment("jane", "B", &[demo("obama.jpg")]);
    photograph_of_another["allow_duplicate"] = true.into();
    let first = office.command("door-1", "enrol", enrolment("jane", "A", &[demo("biden.jpg")]));
    let second = office.command("door-2", "enrol", photograph_of_another);
    office.answer("door-1", &first);
    office.answer("door-2", &second);
    office.until_same(&DOORS, 1);
    let withdraw = |door: &str| office.request(door, "withdraw", json!({"subject_id": "jane"}));
    assert_eq!(withdraw("door-3")["ok"], true);
    office.until_same(&DOORS, 0);
    // To all of them at once: each makes its own account, and one counts.
    office.command("all", "enrol", enrolment("jane", "A", &[demo("biden.jpg")]));
    office.until_same(&DOORS, 1);
    let id = "select hex(reference.id) || changed_by from reference join subject on subject.id = subject_id";
    let held = |home: &Home| {
        let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
        let mut query = database.prepare(id).unwrap();
        query
            .query_map([], |row| row.get::<_, String>(0))
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>()
    };
    until("the very same references", || {
        let all: BTreeSet<Vec<String>> = homes.iter().map(held).collect();
        (all.len() == 1).then_some(())
    });
    assert_eq!(withdraw("door-1")["ok"], true);
    office.until_same(&DOORS, 0);
}

/// People who were enrolled before the door knew of the others; the daemon is not running.
fn enrol_many(home: &Home, subjects: usize) {
    let embedder: [u8; 32] = {
        let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
        database.query_row("select embedder from reference", [], |row| row.get(0)).unwrap()
    };
    let options = StoreOptions::new(Vec::new(), Arc::new(SimulatedClock::at(1_795_420_683_412)));
    let store = Store::open(&home.state(), options).unwrap().store;
    for start in (0..subjects).step_by(500) {
        let people: Vec<_> = (start..subjects.min(start + 500))
            .map(|number| {
                let subject_id = SubjectId::new(&format!("p-{number}")).unwrap();
                let raw = (0..512).map(|at| ((at * 31 + number * 7919) as f32).sin()).collect();
                let template = Template::normalised(raw).unwrap();
                NewReference { subject_id, embedder: ModelDigest(embedder), template, quality: 0.5 }
            })
            .collect();
        store
            .write(move |tx| {
                for it in &people {
                    tx.put_subject(&it.subject_id, &Name::new("Somebody").unwrap())?;
                }
                tx.add_references(&people).map(drop)
            })
            .unwrap();
    }
    store.close().unwrap();
}

/// More than the broker's queue holds at once, so that subscribing alone does not bring them all.
#[test]
fn a_large_gallery_reaches_a_new_door_a_wiped_one_and_a_broker_that_lost_it() {
    let subjects = scaled("E2E_SUBJECTS", 1_500);
    let (mut broker, keys) = (usual_broker(), keys());
    let office = Office::open(broker.port());
    let homes = DOORS.map(|name| door(&broker, name, &keys.site));
    let first = homes[0].start();
    assert_eq!(
        office.request("door-1", "enrol", enrolment("biden", "Joe", &[demo("biden.jpg")]))["ok"],
        true
    );
    assert!(first.terminate().success());
    enrol_many(&homes[0], subjects);
    let first = homes[0].start();
    let watch = Stopwatch::start();
    let second = homes[1].start();
    office.until_same(&DOORS[..2], subjects + 1);
    println!("{subjects} subjects told and learnt in {:.1} s", watch.elapsed().as_secs_f64());
    until_for(PATIENCE, "the index is whole", || {
        (listed(&broker, &keys.site) == subjects + 1).then_some(())
    });
    // From here on there is only the broker to learn from.
    assert!(first.terminate().success());
    assert!(second.terminate().success());
    fs::remove_dir_all(homes[1].state()).unwrap();
    let watch = Stopwatch::start();
    let third = homes[2].start();
    let second = homes[1].start();
    office.until_same(&DOORS, subjects + 1);
    println!(
        "a new one and a wiped one learnt them from the broker in {:.1} s",
        watch.elapsed().as_secs_f64()
    );
    // A broker that begins anew has them from the doors.
    broker.kill();
    fs::remove_file(broker.path("mosquitto.db")).ok();
    broker.run();
    let watch = Stopwatch::start();
    until_for(PATIENCE * 3, "the broker has it again", || {
        (listed(&broker, &keys.site) == subjects + 1).then_some(())
    });
    println!("told to the new broker in {:.1} s", watch.elapsed().as_secs_f64());
    assert!(third.terminate().success());
    assert!(second.terminate().success());
    fs::remove_dir_all(homes[2].state()).unwrap();
    let _third = homes[2].start();
    office.until_same(&DOORS, subjects + 1);
}
