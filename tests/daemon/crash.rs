//! Nothing is lost and nothing doubled when the daemon is killed, again and again, or the broker
//! is, under load.
//!
//! Visits come two ways at once: as `attend` commands through the broker, each with a `request_id`
//! of its own, and before the replay camera. Kills come at random instants of that.
//!
//! By hand, the whole of it (2,000 visits, 20 kills; the broker away for a minute):
//! `E2E_VISITS=2000 E2E_KILLS=20 E2E_OUTAGE_S=60 cargo nextest run --test daemon crash::
//! --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::daemon;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{Daemon, Home, scaled, until};
use crate::support::faces::{Faces, base64, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::clock::Stopwatch;
use serde_json::{Value, json};

const VISITS: usize = 200;
const KILLS: usize = 5;
const OUTAGE_S: usize = 2;
const PEOPLE: usize = 8;
/// Commands that may wait for their answers; mosquitto keeps them for the daemon while it is down.
const UNANSWERED_MAX: usize = 40;

/// The camera shows people for as long as the daemon runs, at its own pace beside the commands, and
/// slowly enough for a slow machine.
const CAMERA: &str = "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 4\nshow = \"2s\"\ngap = \"3s\"\n\
                      repeat = true\n[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n";

struct Scene {
    broker: Mosquitto,
    client: Client,
    home: Home,
    /// A subject, and a photograph (base64) by which the daemon knows that one and nobody else.
    probes: Vec<(String, String)>,
}

/// Broker and daemon, some people enrolled, and for each a photograph by which the daemon knows
/// them.
fn scene() -> (Scene, Daemon) {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), CAMERA);
    let faces = Faces::find();
    fs::write(home.path("visits.csv"), "-,100,0\n").unwrap();
    let daemon = client.started(&home);
    let mut list = String::new();
    let mut probes = Vec::new();
    for person in faces.people {
        if probes.len() == PEOPLE {
            break;
        }
        let id = person.id.clone();
        if client.request("enrol", &format!("enrol-{id}"), enrolment(&id, &id, &person.enrol))["ok"]
            != true
        {
            continue;
        }
        let look = |probe: &&std::path::PathBuf| {
            let image = base64(probe);
            let request_id = format!("look-{id}-{}", probe.file_stem().unwrap().display());
            client.request("recognise", &request_id, json!({"image": image}))["names"]
                == json!([id])
        };
        if let Some(probe) = person.probes.iter().find(look) {
            writeln!(list, "{}", probe.display()).unwrap();
            probes.push((id, base64(probe)));
        }
    }
    assert!(probes.len() >= 2, "too few people to go on with");
    fs::write(home.path("visits.csv"), list).unwrap();
    (Scene { broker, client, home, probes }, daemon)
}

impl Scene {
    fn attend(&self, number: usize) {
        let (_, image) = &self.probes[number % self.probes.len()];
        self.client.command(
            "attend",
            &json!({"request_id": visit_id(number), "venue": "main", "image": image}),
        );
    }

    fn attended(&self) -> usize {
        self.client.parts("reply/visit-").len()
    }

    /// The answers to `attend`, by request; a request answered twice got the same answer twice.
    fn answers(&self) -> HashMap<String, Value> {
        let mut answers: HashMap<String, Value> = HashMap::new();
        for received in self.client.received() {
            if let Some(id) = received.part.strip_prefix("reply/visit-") {
                let answer = received.json();
                let same = answers
                    .insert(id.to_owned(), answer.clone())
                    .is_none_or(|before| before == answer);
                assert!(same, "request {id} has two answers");
            }
        }
        answers
    }

    /// Publishes visits from `from` on while it waits for `until` of them to be answered.
    fn keep_busy(&self, published: &mut usize, visits: usize, until: usize) {
        let mut watch = Stopwatch::start();
        let mut last = 0;
        loop {
            let attended = self.attended();
            if attended >= until {
                return;
            }
            if attended > last {
                (last, watch) = (attended, Stopwatch::start());
            }
            assert!(
                watch.elapsed() < daemon::PATIENCE,
                "{attended} of {until} answered, and no more:\n{}",
                self.home.log()
            );
            if *published < visits && *published < attended + UNANSWERED_MAX {
                self.attend(*published);
                *published += 1;
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Rows that the daemon still owes the broker.
    fn pending(&self) -> u64 {
        let from = self.client.received().len();
        self.client.await_from(from, "health").json()["outbox"][0]["rows"].as_u64().unwrap()
    }

    /// What must hold at the end of it all. Gives the figures.
    fn check(&self, daemon: Daemon, visits: usize) {
        assert!(daemon.terminate().success(), "{}", self.home.log());
        // What the last stop left owed is delivered by the next start; the camera is given nobody
        // any more.
        fs::write(self.home.path("visits.csv"), "-,100,0\n").unwrap();
        let quiet = self.client.started(&self.home);
        until("nothing is owed any more", || (self.pending() == 0).then_some(()));
        assert!(quiet.terminate().success());
        let events = self.client.check_events(&self.home);
        let recorded = self.home.json(&["attendance", "--json"]);
        let recorded = recorded.as_array().unwrap();
        let of_event = |event: &Value| event["event_id"].as_str().unwrap().to_owned();
        let reported: Vec<_> =
            events.values().filter(|event| event["kind"] == "attendance").map(of_event).collect();
        assert_eq!(reported, recorded.iter().map(of_event).collect::<Vec<_>>());

        let answers = self.answers();
        assert_eq!(answers.len(), visits, "every request was answered");
        let subjects: HashMap<_, _> =
            recorded.iter().map(|it| (of_event(it), it["subject"]["id"].clone())).collect();
        let mut of_visits = HashSet::new();
        for number in 0..visits {
            let answer = &answers[&visit_id(number)["visit-".len()..]];
            let event_ids =
                answer["event_ids"].as_array().unwrap_or_else(|| panic!("{number}: {answer}"));
            assert_eq!(event_ids.len(), 1, "visit {number}: {answer}");
            let event_id = event_ids[0].as_str().unwrap().to_owned();
            assert_eq!(subjects[&event_id], self.probes[number % self.probes.len()].0.as_str());
            assert!(of_visits.insert(event_id), "two visits with one event");
        }
        let deliveries = self.client.count(|received| received.part.starts_with("event/"));
        println!(
            "{visits} visits by command, {} before the camera, {} events in all, {} delivered more than once",
            recorded.len() - visits,
            events.len(),
            deliveries - events.len()
        );
    }
}

fn visit_id(number: usize) -> String {
    format!("visit-{number}")
}

/// Any number below `limit`.
fn random(limit: u64) -> u64 {
    RandomState::new().hash_one(0_u8) % limit
}

/// Numbers of answers after which to kill: spread over all visits, each somewhere in its stretch.
fn instants(visits: usize, kills: usize) -> Vec<usize> {
    let stretch = visits / (kills + 1);
    (0..kills).map(|kill| kill * stretch + random(stretch.max(1) as u64) as usize + 1).collect()
}

#[test]
fn repeated_kills_lose_and_duplicate_nothing() {
    let visits = scaled("E2E_VISITS", VISITS);
    let kills = scaled("E2E_KILLS", KILLS);
    let (scene, mut daemon) = scene();
    let mut published = 0;
    let watch = Stopwatch::start();
    let mut seen = BTreeMap::new();
    for instant in instants(visits, kills) {
        scene.keep_busy(&mut published, visits, instant);
        // Anywhere within the next command: between frame, commit, answer and acknowledgement.
        std::thread::sleep(Duration::from_micros(random(40_000)));
        daemon.kill();
        seen.insert(instant, scene.client.events().len());
        daemon = scene.client.started(&scene.home);
    }
    scene.keep_busy(&mut published, visits, visits);
    println!(
        "killed after so many answers (and events): {seen:?}; {:.1} s",
        watch.elapsed().as_secs_f64()
    );
    scene.check(daemon, visits);
}

#[test]
fn broker_outage_loses_nothing() {
    let visits = scaled("E2E_VISITS", VISITS) / 2;
    let outage = scaled("E2E_OUTAGE_S", OUTAGE_S);
    let (mut scene, mut daemon) = scene();
    let mut published = 0;
    scene.keep_busy(&mut published, visits, visits / 3);
    scene.broker.kill();
    // The outage is a length of time by definition; the camera goes on recording all the while.
    let before = scene.home.json(&["attendance", "--json"]).as_array().unwrap().len();
    std::thread::sleep(Duration::from_secs(outage as u64));
    let recorded = || scene.home.json(&["attendance", "--json"]).as_array().unwrap().len();
    until("visits are recorded without a broker", || (recorded() > before).then_some(()));
    println!("recorded while the broker was gone: {}", recorded() - before);
    assert!(daemon.is_alive());
    scene.broker.run();
    // A broker that is killed may forget what it had acknowledged; whoever got no answer asks
    // again, by the same id.
    let answers = scene.answers();
    for number in (0..published).filter(|number| !answers.contains_key(&number.to_string())) {
        scene.attend(number);
    }
    scene.keep_busy(&mut published, visits, visits);
    scene.check(daemon, visits);
}
