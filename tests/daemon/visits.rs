//! The main job on real photographs: people are enrolled by `mosquitto_pub`, photographs pass the
//! replay camera, and each visit is one attendance in SQLite and on MQTT. Strangers and scenes
//! without a face never become a subject.
//!
//! By hand, everybody of the data set, with the figures on standard output (ten of its people have
//! photographs of 23 x 28 pixels only, which are too small to enrol): `E2E_PEOPLE=144
//! E2E_IMPOSTORS=304 cargo nextest run --test daemon visits:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::daemon;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::support::client::Client;
use crate::support::daemon::{BASE, Home, scaled};
use crate::support::faces::{Faces, Person, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::clock::Stopwatch;
use serde_json::Value;

const PEOPLE: usize = 25;
const IMPOSTORS: usize = 40;
/// Of the suite's people nearly everybody must be recognised; how many exactly is for `rollcall
/// evaluate`.
const IDENTIFIED_SHARE_MIN: f64 = 0.85;

/// Who else can be recognised in whose photographs, in the background: no mistake.
const BEHIND: [(&str, &str); 1] = [("nuaa_0001", "nuaa_0008")];
/// Strangers taken for somebody, over all of the data set's 304, at the false positive
/// identification rate of 0.001 that the shipped configuration aims at: none is expected, one is
/// chance. In the suite's part there is none.
const MISTAKEN_MAX: usize = 1;

/// What passes the camera.
#[derive(Clone, Debug)]
struct Visit {
    file: PathBuf,
    /// The subject who ought to be recorded.
    subject: Option<String>,
}

/// Two frames a second: five of each photograph (a stranger is called one after five), and one of
/// an empty scene. Whoever comes next is another person: the same one would be on the same visit
/// until two looks have missed them.
const REPLAY: &str = "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 2\nshow = \"2500ms\"\ngap = \"500ms\"\n\
                      pace = \"networks\"\n[attendance]\nunknown_every = \"0s\"\n[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n";

/// The probes of the people in turns, and every so often a stranger, or nobody.
fn visits(people: &[Person], strangers: &[PathBuf]) -> Vec<Visit> {
    let rounds = people.iter().map(|it| it.probes.len()).max().unwrap_or(0);
    let of_round = |round: usize| {
        people.iter().filter_map(move |person| {
            Some(Visit {
                file: person.probes.get(round)?.clone(),
                subject: Some(person.id.clone()),
            })
        })
    };
    let mut probes = (0..rounds).flat_map(of_round);
    let mut strangers = strangers.iter().map(|file| Visit { file: file.clone(), subject: None });
    let mut visits = Vec::new();
    loop {
        let probe = probes.next();
        let stranger = strangers.next();
        if probe.is_none() && stranger.is_none() {
            return visits;
        }
        visits.extend(probe.into_iter().chain(stranger));
    }
}

fn write_list(home: &Home, visits: &[Visit]) {
    let mut list = String::from("file,show_ms,gap_ms\n");
    for visit in visits {
        writeln!(list, "{}", visit.file.display()).unwrap();
    }
    fs::write(home.path("visits.csv"), list).unwrap();
}

/// Enrols by mosquitto_pub; gives the answers by subject.
fn enrol(broker: &Mosquitto, client: &Client, people: &[Person]) -> BTreeMap<String, Value> {
    let mut answers = BTreeMap::new();
    for person in people {
        let request_id = format!("enrol-{}", person.id);
        let mut body = enrolment(&person.id, &format!("Name of {}", person.id), &person.enrol);
        body["request_id"] = request_id.as_str().into();
        broker.publish_payload(&format!("{BASE}/command/enrol"), body.to_string().as_bytes(), &[]);
        answers
            .insert(person.id.clone(), client.await_from(0, &format!("reply/{request_id}")).json());
    }
    answers
}

fn enrolled(answers: &BTreeMap<String, Value>) -> HashSet<&str> {
    answers.iter().filter(|(_, answer)| answer["ok"] == true).map(|(id, _)| id.as_str()).collect()
}

/// An attendance that finds its visit counts more than any number of strangers that find theirs:
/// somebody in the background makes an `unknown` event that belongs to no visit.
const OF_A_SUBJECT: u32 = 10_000;

/// The best way to lay visits and events side by side in their order; gives the events that belong
/// to no visit, each with the photograph shown about then.
fn without_a_visit<'a>(visits: &[Visit], events: &'a [Value]) -> Vec<(&'a Value, String)> {
    let worth = |visit: &Visit, event: &Value| match (
        visit.subject.as_deref(),
        event["subject"]["id"].as_str(),
    ) {
        (Some(expected), Some(recorded)) if expected == recorded => OF_A_SUBJECT,
        (None, None) => 1,
        _ => 0,
    };
    let mut best = vec![vec![0_u32; events.len() + 1]; visits.len() + 1];
    for (v, visit) in visits.iter().enumerate().rev() {
        for (e, event) in events.iter().enumerate().rev() {
            let paired = worth(visit, event) + best[v + 1][e + 1];
            best[v][e] = paired.max(best[v + 1][e]).max(best[v][e + 1]);
        }
    }
    let mut v = 0;
    let mut e = 0;
    let mut alone = Vec::new();
    while e < events.len() {
        let worth = visits.get(v).map_or(0, |visit| worth(visit, &events[e]));
        if worth > 0 && best[v][e] == best[v + 1][e + 1] + worth {
            (v, e) = (v + 1, e + 1);
        } else if v < visits.len() && best[v][e] == best[v + 1][e] {
            v += 1;
        } else {
            alone.push((
                &events[e],
                visits.get(v).map_or_else(String::new, |visit| visit.file.display().to_string()),
            ));
            e += 1;
        }
    }
    alone
}

/// What SQLite holds is what MQTT said, once each; gives the sightings.
fn check_record(home: &Home, client: &Client) -> Vec<Value> {
    let events = client.check_events(home);
    let recorded = home.json(&["attendance", "--json"]);
    let reported: Vec<_> = events.values().filter(|event| event["kind"] == "attendance").collect();
    let pairs = reported.iter().zip(recorded.as_array().unwrap());
    assert_eq!(reported.len(), recorded.as_array().unwrap().len());
    pairs.for_each(|(reported, kept)| {
        assert_eq!(
            (&reported["event_id"], &reported["subject"]),
            (&kept["event_id"], &kept["subject"])
        );
    });
    let seen = |event: &&Value| event["kind"] == "attendance" || event["kind"] == "unknown";
    events.values().filter(seen).cloned().collect()
}

/// Whether the event is of somebody in the background of one of the people's photographs.
fn is_behind(people: &[Person], event: &Value) -> bool {
    let whose = BEHIND.iter().find(|(_, behind)| event["subject"]["id"] == *behind);
    whose.is_some_and(|(before, _)| people.iter().any(|person| person.id == *before))
}

fn play(home: &Home) {
    let watch = Stopwatch::start();
    let mut daemon = home.spawn(&["run", "--until-replay-ends"]);
    daemon::until_for(std::time::Duration::from_mins(20), "the replay has ended", || {
        (!daemon.is_alive()).then_some(())
    });
    assert!(daemon.wait().success(), "{}", home.log());
    println!("replayed in {:.1} s", watch.elapsed().as_secs_f64());
}

#[test]
fn each_visit_is_recorded_and_published_once() {
    let faces = Faces::find();
    let people = &faces.people[..scaled("E2E_PEOPLE", PEOPLE).min(faces.people.len())];
    let strangers =
        &faces.impostors[..scaled("E2E_IMPOSTORS", IMPOSTORS).min(faces.impostors.len())];
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let running = client.started(&home);
    let watch = Stopwatch::start();
    let answers = enrol(&broker, &client, people);
    let each_ms = watch.elapsed_ms() / people.len() as f64;
    assert!(running.terminate().success());

    let enrolled = enrolled(&answers);
    for (id, answer) in answers.iter().filter(|(_, answer)| answer["ok"] != true) {
        println!("not enrolled: {id}: {}: {}", answer["error"]["code"], answer["error"]["message"]);
    }
    assert!(
        enrolled.len() * 10 >= people.len() * 9,
        "{} of {} enrolled",
        enrolled.len(),
        people.len()
    );
    let subjects = home.json(&["subjects", "--json"]);
    let kept: HashSet<_> =
        subjects.as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(kept, enrolled);

    let others: Vec<_> = strangers.iter().chain(&faces.empty_scenes).cloned().collect();
    let visits = visits(people, &others);
    write_list(&home, &visits);
    home.configure(broker.port(), REPLAY);
    play(&home);

    let seen = check_record(&home, &client);
    let count = |kind: &str| seen.iter().filter(|event| event["kind"] == kind).count();
    let mut mistaken = without_a_visit(&visits, &seen);
    mistaken.retain(|(event, _)| event["kind"] == "attendance");
    let identified = count("attendance") - mistaken.len();
    mistaken.retain(|(event, _)| !is_behind(people, event));
    let expected = visits
        .iter()
        .filter(|it| it.subject.as_deref().is_some_and(|id| enrolled.contains(id)))
        .count();
    println!(
        "enrolled {} of {} in {each_ms:.0} ms each; visits {}, of them to be recorded {expected}: identified {identified}; \
         unknown {}; mistaken {}; threshold {}",
        enrolled.len(),
        people.len(),
        visits.len(),
        count("unknown"),
        mistaken.len(),
        seen[0]["threshold"]
    );
    let allowed = if strangers.len() > IMPOSTORS { MISTAKEN_MAX } else { 0 };
    assert!(mistaken.len() <= allowed, "taken for somebody, or recorded twice: {mistaken:#?}");
    assert!(
        identified as f64 >= expected as f64 * IDENTIFIED_SHARE_MIN,
        "{identified} of {expected}"
    );
    let after = home.json(&["subjects", "--json"]);
    assert_eq!(after, subjects, "who passes the camera is not enrolled by it");
}

/// Of the people enrolled in all group photographs together, so many must be recorded; who is
/// missed stands half cut or in profile, below the threshold.
const IN_GROUPS_SHARE_MIN: f64 = 0.9;

#[test]
fn group_photograph_records_every_member() {
    let faces = Faces::find();
    let known = |id: &String| faces.people.iter().any(|it| it.id == *id);
    let groups: Vec<_> =
        faces.groups.iter().filter(|(_, members)| members.iter().all(known)).collect();
    assert!(!groups.is_empty(), "no group photograph of people who can be enrolled");
    let members: HashSet<_> = groups.iter().flat_map(|(_, members)| members).collect();
    let people: Vec<_> =
        faces.people.iter().filter(|it| members.contains(&it.id)).cloned().collect();
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let running = client.started(&home);
    let answers = enrol(&broker, &client, &people);
    assert_eq!(enrolled(&answers).len(), people.len(), "{answers:#?}");
    assert!(running.terminate().success());
    home.configure(broker.port(), REPLAY);
    let mut expected = 0;
    let mut found = 0;
    let mut before = 0;
    for (picture, members) in groups {
        write_list(&home, &[Visit { file: picture.clone(), subject: None }]);
        play(&home);
        let seen = check_record(&home, &client);
        let attended: Vec<_> = seen.iter().filter(|it| it["kind"] == "attendance").collect();
        let mut recorded: Vec<_> =
            attended[before..].iter().map(|it| it["subject"]["id"].as_str().unwrap()).collect();
        before = attended.len();
        let all = recorded.len();
        println!("{} of {}: {}", all, members.len(), picture.file_name().unwrap().display());
        recorded.sort_unstable();
        recorded.dedup();
        assert_eq!(recorded.len(), all, "nobody is recorded twice: {recorded:?}");
        assert!(
            recorded.iter().all(|id| members.iter().any(|member| member == id)),
            "only who is there: {recorded:?}"
        );
        assert!(
            members.len() < 5 || all >= 4,
            "of five or more at most one is missed: {recorded:?} of {members:?}"
        );
        (expected, found) = (expected + members.len(), found + all);
    }
    println!("{found} of {expected} in group photographs");
    assert!(found as f64 >= expected as f64 * IN_GROUPS_SHARE_MIN, "{found} of {expected}");
}
