//! A site's doors and the gallery that they share: real daemons, a real broker with its default
//! limits.
//!
//! By hand, at full size: `E2E_SUBJECTS=10000 cargo nextest run --test daemon fleet:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::daemon::{Daemon, Home, PATIENCE, scaled, until, until_for};
use crate::support::faces::{base64, demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use crate::support::office::{Keys, Office, count, keys};
use base64::Engine as _;
use rollcall::clock::{SimulatedClock, Stopwatch};
use rollcall::ids::{Name, SubjectId};
use rollcall::keys::seal::SharedKey;
use rollcall::mqtt::event::LinkEvent;
use rollcall::mqtt::link;
use rollcall::mqtt::message::Message;
use rollcall::mqtt::settings::LinkSettings;
use rollcall::recognise::face::{Embedder, ModelDigest, Template};
use rollcall::store::{NewReference, Store, StoreOptions};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Mosquitto with the limits that it has when nobody set any, and without writing all it keeps
/// after each change.
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

/// A door of the site, with the key in this file.
fn door(broker: &Mosquitto, name: &str, key: &SharedKey) -> Home {
    let mut home =
        Home::new(broker.port(), &format!("[fleet]\nkey_file = \"{}\"\n", key.path().display()));
    home.environment.push(("ROLLCALL_DEVICE_NAME".into(), name.into()));
    home
}

const DOORS: [&str; 3] = ["door-1", "door-2", "door-3"];

#[test]
fn enrolments_and_withdrawals_reach_every_device() {
    let broker = usual_broker();
    let keys = keys();
    let office = Office::open(broker.port());
    let homes = DOORS.map(|name| door(&broker, name, &keys.site));
    let mut running: Vec<Daemon> = homes[..2].iter().map(Home::start).collect();
    let biden = enrolment("biden", "Joe", &[demo("biden.jpg")]);
    let obama = enrolment("obama", "Barack", &[demo("obama.jpg")]);
    for (subject, probe) in [(biden, "biden.jpg"), (obama, "obama2.jpg")] {
        let said = office.request("door-1", "enrol", subject);
        assert_eq!(said["ok"], true, "{said}");
        let watch = Stopwatch::start();
        until("the other door recognises", || office.recognises("door-2", probe).then_some(()));
        println!("recognised elsewhere after {} ms", watch.elapsed().as_millis());
    }
    // One that was off for all of it.
    running.push(homes[2].start());
    until("all is there", || {
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
fn doors_with_and_without_second_part_share() {
    let broker = usual_broker();
    let keys = keys();
    let office = Office::open(broker.port());
    let [new, former] = ["door-1", "door-2"].map(|name| door(&broker, name, &keys.site));
    let config = fs::read_to_string(former.path("config.toml")).unwrap();
    let recognition = "[recognition]\nembedder = \"fr_feature\"\n";
    let config = config.replace("[recognition]\n", recognition);
    fs::write(former.path("config.toml"), config).unwrap();
    let _running = [new.start(), former.start()];
    let request = |door: &str, body: Value| {
        let said = office.request(door, "enrol", body);
        assert_eq!(said["ok"], true, "{said}");
    };
    let both_recognise = |probe: &str| {
        for name in ["door-1", "door-2"] {
            until(name, || office.recognises(name, probe).then_some(()));
        }
    };
    let partial = |count: u64| {
        until("the newer door says who lacks the second part", || {
            (office.gallery("door-1")?["partial"] == count).then_some(())
        });
    };
    // Enrolled at the newer door: the other one uses the part that it knows.
    request("door-1", enrolment("biden", "Joe", &[demo("biden.jpg")]));
    both_recognise("biden.jpg");
    partial(0);
    // Enrolled at the former door: the newer one recognises by that part.
    request("door-2", enrolment("obama", "Barack", &[demo("obama.jpg")]));
    both_recognise("obama2.jpg");
    partial(1);
    // The photograph sent again adds the other part, and changes nothing at the former door.
    request("door-1", enrolment("obama", "Barack", &[demo("obama.jpg")]));
    partial(0);
    both_recognise("obama2.jpg");
    let references = |name: &str| office.gallery(name).map(|it| it["references"].clone());
    until("one reference each", || {
        (references("door-2")? == 2 && references("door-1")? == 2).then_some(())
    });
}

#[test]
fn consent_is_shared_and_ends_everywhere() {
    let broker = usual_broker();
    let keys = keys();
    let office = Office::open(broker.port());
    let doors = &DOORS[..2];
    let homes = [door(&broker, DOORS[0], &keys.site), door(&broker, DOORS[1], &keys.site)];
    let running: Vec<Daemon> = homes.iter().map(Home::start).collect();
    let mut enrol = enrolment("biden", "Joe", &[demo("biden.jpg")]);
    let consent = |until: Option<&str>| {
        json!({"given_at": "2026-01-02T03:04:05Z", "text_version": "v1", "valid_until": until,
               "recorded_by": "desk"})
    };
    enrol["consent"] = consent(None);
    assert_eq!(office.request(DOORS[0], "enrol", enrol)["ok"], true);
    office.until_same(doors, 1);
    let listed = homes[1].json(&["subjects", "--json"]);
    assert_eq!(listed[0]["consent"]["text_version"], "v1", "{listed}");
    // Renewed at the other door, for a moment only.
    let end = jiff::Timestamp::now() + Duration::from_secs(8);
    let change = json!({"subject_id": "biden", "consent": consent(Some(&end.to_string()))});
    assert_eq!(office.request(DOORS[1], "consent", change)["ok"], true);
    office.until_same(doors, 0);
    for (name, home) in doors.iter().zip(&homes) {
        assert!(!office.recognises(name, "biden.jpg"));
        assert_eq!(count(home, "select count(*) from consent"), 0);
        assert_eq!(count(home, "select count(*) from reference"), 0);
    }
    let ended = "select count(*) from consent_end where reason = 'consent_expired'";
    assert!(homes.iter().any(|home| count(home, ended) == 1), "whoever was first");
    for daemon in running {
        assert!(daemon.terminate().success());
    }
}

#[test]
fn wrong_key_device_learns_and_spoils_nothing() {
    let broker = usual_broker();
    let keys = keys();
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
fn concurrent_enrolments_of_one_id_converge() {
    let broker = usual_broker();
    let keys = keys();
    let office = Office::open(broker.port());
    let homes = DOORS.map(|name| door(&broker, name, &keys.site));
    let _running = homes.each_ref().map(Home::start);
    let mut photograph_of_another = enrolment("jane", "B", &[demo("obama.jpg")]);
    photograph_of_another["allow_duplicate"] = true.into();
    let first = office.command("door-1", "enrol", enrolment("jane", "A", &[demo("biden.jpg")]));
    let second = office.command("door-2", "enrol", photograph_of_another);
    office.reply("door-1", &first);
    office.reply("door-2", &second);
    office.until_same(&DOORS, 1);
    let withdraw = |door: &str| office.request(door, "withdraw", json!({"subject_id": "jane"}));
    assert_eq!(withdraw("door-3")["ok"], true);
    office.until_same(&DOORS, 0);
    // To all of them at once: each makes its own account, and one counts.
    let all = office.command("all", "enrol", enrolment("jane", "A", &[demo("biden.jpg")]));
    // A slow one would enrol her again after the withdrawal below.
    for door in DOORS {
        office.reply(door, &all);
    }
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
        database
            .query_row("select embedder from reference order by row desc", [], |row| row.get(0))
            .unwrap()
    };
    let options = StoreOptions::new(Vec::new(), Arc::new(SimulatedClock::at(1_795_420_683_412)));
    let store = Store::open(&home.state(), options).unwrap().store;
    for start in (0..subjects).step_by(500) {
        let people: Vec<_> = (start..subjects.min(start + 500))
            .map(|number| {
                let subject_id = SubjectId::new(&format!("p-{number}")).unwrap();
                let raw = (0..512).map(|at| ((at * 31 + number * 7919) as f32).sin()).collect();
                let template = Template::normalised(raw).unwrap();
                NewReference {
                    subject_id,
                    embedder: Embedder::single(ModelDigest(embedder), 4),
                    template,
                    quality: 0.5,
                }
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
fn large_gallery_reaches_new_device_and_broker() {
    let subjects = scaled("E2E_SUBJECTS", 1_500);
    let mut broker = usual_broker();
    let keys = keys();
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

/// A withdrawal of an earlier time, or whatever else a device once sealed.
fn retained(broker: &Mosquitto, topic: &str) -> Vec<u8> {
    let out = broker.subscribe(&["-t", topic, "-C", "1", "-W", "5", "-N"]);
    out.stdout
}

/// As large a version as there can be, and nothing sealed.
fn forged_record() -> Vec<u8> {
    let version = json!({"withdrawals": u32::MAX, "changes": u32::MAX, "device": "zzz"});
    serde_json::to_vec(
        &json!({"schema": 1, "version": version, "withdrawn": false, "sealed": "AAAA"}),
    )
    .unwrap()
}

/// Two devices that know biden and obama, and the office.
fn two_doors_with_two_people(broker: &Mosquitto, keys: &Keys) -> (Office, [Home; 2], Vec<Daemon>) {
    let office = Office::open(broker.port());
    let homes = ["door-1", "door-2"].map(|name| door(broker, name, &keys.site));
    let running = homes.iter().map(Home::start).collect();
    for (id, photograph) in [("biden", "biden.jpg"), ("obama", "obama.jpg")] {
        let reply =
            office.request("door-1", "enrol", enrolment(id, "Somebody", &[demo(photograph)]));
        assert_eq!(reply["ok"], true, "{reply}");
    }
    office.until_same(&["door-1", "door-2"], 2);
    (office, homes, running)
}

fn until_settled(office: &Office, doors: &[&str]) {
    for door in doors {
        until(&format!("{door} has nothing pending"), || {
            office.gallery(door).filter(|it| {
                it["sharing"]["state"] == "shared"
                    && it["sharing"]["pending"] == 0
                    && it["sharing"]["unsealed"] == 0
            })
        });
    }
}

#[test]
fn unsealed_record_does_not_block_an_erasure() {
    let broker = usual_broker();
    let keys = keys();
    let (office, homes, running) = two_doors_with_two_people(&broker, &keys);
    office.publish("rollcall/hq/gallery/biden", &forged_record(), true);
    let erase = json!({"subject_id": "biden", "erase": true});
    assert_eq!(office.request("door-1", "withdraw", erase)["ok"], true);
    office.until_same(&["door-1", "door-2"], 1);
    assert_eq!(count(&homes[1], "select count(*) from withdrawn where erased"), 1);
    until_settled(&office, &["door-1", "door-2"]);
    assert_eq!(count(&homes[0], "select count(*) from outbox where sink = 'gallery'"), 0);
    drop(running);
}

/// Somebody writes the topic again for each record that a device publishes.
#[test]
fn erasure_stays_pending_while_topic_is_overwritten() {
    let broker = usual_broker();
    let keys = keys();
    let (office, homes, running) = two_doors_with_two_people(&broker, &keys);
    let [topic, page] = ["rollcall/hq/gallery/biden".to_owned(), page_topic("biden")];
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stranger = {
        let stop = Arc::clone(&stop);
        let topics = [topic.clone(), page];
        let port = broker.port();
        std::thread::spawn(move || overwrite_until(&stop, port, &topics))
    };
    until("it is reported", || {
        office.gallery("door-1").filter(|it| it["sharing"]["state"] == "blocked")
    });
    let erase = json!({"subject_id": "biden", "erase": true});
    assert_eq!(office.request("door-1", "withdraw", erase)["ok"], true);
    until("it is pending and reported", || {
        let sharing = office.gallery("door-1").map(|it| it["sharing"].clone());
        sharing.filter(|it| it["state"] == "blocked" && it["pending"].as_u64() > Some(0))
    });
    until("the row is pending", || {
        (count(&homes[0], "select count(*) from outbox where sink = 'gallery'") == 1).then_some(())
    });
    let report = String::from_utf8(homes[0].output(&["doctor"]).stdout).unwrap();
    assert!(report.contains("not sealed with the site's key"), "{report}");
    // Whoever listens received the withdrawal before it was overwritten.
    office.until_same(&["door-1", "door-2"], 1);
    stop.store(true, Ordering::Relaxed);
    let overwritten = stranger.join().unwrap();
    println!("overwritten {overwritten} times");
    // The longest pause between two repairs is a minute.
    for name in ["door-1", "door-2"] {
        until_for(PATIENCE * 2, "it heals", || {
            let settled =
                |it: &Value| it["sharing"]["state"] == "shared" && it["sharing"]["pending"] == 0;
            office.gallery(name).filter(settled).map(drop)
        });
    }
    until("the row is settled", || {
        (count(&homes[0], "select count(*) from outbox where sink = 'gallery'") == 0).then_some(())
    });
    // One that comes later learns of the withdrawal.
    let third = door(&broker, "door-3", &keys.site);
    let _third = third.start();
    office.until_same(&DOORS, 1);
    drop(running);
}

/// Publishes nonsense after each message of somebody else on these topics. Returns how often.
fn overwrite_until(stop: &std::sync::atomic::AtomicBool, port: u16, topics: &[String; 2]) -> usize {
    let mut settings = LinkSettings::new("127.0.0.1", port, "stranger", "stranger/status".into());
    settings.subscriptions = topics.to_vec();
    let (link, driver, mut events) = link::open(settings).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (end, asked) = watch::channel(false);
    runtime.spawn(driver.drive(asked));
    let count = runtime.block_on(async {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok(event) = tokio::time::timeout(Duration::from_millis(50), events.recv()).await
            else {
                continue;
            };
            let Some(LinkEvent::Inbound(it)) = event else { continue };
            let is_own = it.payload == b"x";
            let topic = it.topic.clone();
            it.ack.acknowledge();
            if !is_own {
                count += 1;
                link.publish_batch(vec![Message { topic, payload: b"x".to_vec(), retain: true }])
                    .await;
            }
        }
        count
    });
    end.send_replace(true);
    runtime.shutdown_timeout(Duration::from_secs(3));
    count
}

fn page_topic(id: &str) -> String {
    use sha2::Digest as _;
    format!("rollcall/hq/gallery-index/{:02x}", sha2::Sha256::digest(id.as_bytes())[0])
}

#[test]
fn forged_page_is_written_again() {
    let broker = usual_broker();
    let keys = keys();
    let (office, _homes, running) = two_doors_with_two_people(&broker, &keys);
    until("the index is whole", || (listed(&broker, &keys.site) == 2).then_some(()));
    until_settled(&office, &["door-1", "door-2"]);
    let honest = retained(&broker, &page_topic("obama"));
    for forged in [&b"{\"schema\":1,\"sealed\":\"AAAA\"}"[..], &b""[..], &honest] {
        // The page of one person, on the topic of another's, too.
        office.publish(&page_topic("biden"), forged, true);
    }
    until("the page is right again", || {
        let page = retained(&broker, &page_topic("biden"));
        (page.len() > 60 && page != honest).then_some(())
    });
    until("the index is whole", || (listed(&broker, &keys.site) == 2).then_some(()));
    until_settled(&office, &["door-1", "door-2"]);
    drop(running);
}

/// An old record that was sealed opens: it must not take the place of a newer one.
#[test]
fn old_sealed_record_does_not_undo_an_erasure() {
    let broker = usual_broker();
    let keys = keys();
    let (office, homes, running) = two_doors_with_two_people(&broker, &keys);
    until("the index is whole", || (listed(&broker, &keys.site) == 2).then_some(()));
    let record = "rollcall/hq/gallery/biden";
    let page = page_topic("biden");
    let [old_record, old_page] = [retained(&broker, record), retained(&broker, &page)];
    let erase = json!({"subject_id": "biden", "erase": true});
    assert_eq!(office.request("door-1", "withdraw", erase)["ok"], true);
    office.until_same(&["door-1", "door-2"], 1);
    until("the withdrawal is retained", || (retained(&broker, record) != old_record).then_some(()));
    // Also under another person's name.
    office.publish("rollcall/hq/gallery/obama", &old_record, true);
    office.publish(record, &old_record, true);
    office.publish(&page, &old_page, true);
    until("the withdrawal is retained again", || {
        let now = retained(&broker, record);
        (!now.is_empty() && now != old_record).then_some(())
    });
    until_settled(&office, &["door-1", "door-2"]);
    // One that comes anew learns of the withdrawal and not of the person.
    let third = door(&broker, "door-3", &keys.site);
    let _third = third.start();
    office.until_same(&DOORS, 1);
    assert_eq!(count(&third, "select count(*) from withdrawn"), 1);
    assert_eq!(count(&homes[1], "select count(*) from subject where id = 'biden'"), 0);
    drop(running);
}

#[test]
fn restarted_devices_repair_spoilt_records() {
    let broker = usual_broker();
    let keys = keys();
    let (office, homes, running) = two_doors_with_two_people(&broker, &keys);
    until_settled(&office, &["door-1", "door-2"]);
    for daemon in running {
        assert!(daemon.terminate().success());
    }
    // All that the site has is sealed with another key now, as far as anybody can see.
    let sealed = base64::engine::general_purpose::STANDARD.encode([7; 200]);
    let version = json!({"withdrawals": 9, "changes": 9, "device": "door-9"});
    let record =
        json!({"schema": 1, "version": version, "withdrawn": true, "sealed": sealed}).to_string();
    let page = json!({"schema": 1, "sealed": sealed}).to_string();
    for id in ["biden", "obama"] {
        office.publish(&format!("rollcall/hq/gallery/{id}"), record.as_bytes(), true);
        office.publish(&page_topic(id), page.as_bytes(), true);
    }
    let _running: Vec<Daemon> = homes.iter().map(Home::start).collect();
    until("the index is whole", || {
        let sealed =
            |id: &str| retained(&broker, &format!("rollcall/hq/gallery/{id}")) != record.as_bytes();
        (sealed("biden") && sealed("obama")).then_some(())
    });
    until_settled(&office, &["door-1", "door-2"]);
}

#[test]
fn invented_subjects_are_counted_and_bounded() {
    let broker = usual_broker();
    let keys = keys();
    let (office, _homes, running) = two_doors_with_two_people(&broker, &keys);
    let messages: Vec<Message> = (0..3_000)
        .map(|number| Message {
            topic: format!("rollcall/hq/gallery/invented-{number}"),
            payload: b"x".to_vec(),
            retain: false,
        })
        .collect();
    let sent = office.runtime.block_on(office.link.publish_batch(messages));
    assert!(sent.iter().all(Result::is_ok));
    let sharing = until("they are refused", || {
        let sharing = office.gallery("door-1")?["sharing"].clone();
        (sharing["refused"].as_u64() >= Some(2_000)).then_some(sharing)
    });
    assert!(sharing["unsealed"].as_u64() <= Some(1_024), "{sharing}");
    assert_eq!((&sharing["state"], &sharing["pending"]), (&json!("shared"), &json!(0)));
    let erase = json!({"subject_id": "biden", "erase": true});
    assert_eq!(office.request("door-1", "withdraw", erase)["ok"], true);
    office.until_same(&["door-1", "door-2"], 1);
    drop(running);
}
