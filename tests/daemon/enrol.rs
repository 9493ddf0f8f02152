//! Enrolment by a running daemon: from its camera, with more photographs than a subject keeps, and
//! over a change of the network.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{Home, until};
use crate::support::faces::{Faces, Person, enrolment};
use crate::support::mosquitto::Mosquitto;
use base64::Engine as _;
use rollcall::clock::Stopwatch;
use serde_json::{Value, json};

/// One photograph before the camera, over and over, with nothing between.
fn camera(photograph: &Path, more: &str) -> String {
    format!(
        "[camera]\nsource = \"replay\"\npath = \"{}\"\nfps = 10\nshow = \"1s\"\ngap = \"0s\"\nrepeat = true\n{more}",
        photograph.display()
    )
}

fn recognition(more: &str) -> String {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    format!("[recognition]\nmodels = \"{}\"\n{more}\n", models.display())
}

/// Two with a portrait that is large enough to tell whether it lives, and another photograph.
fn people() -> (Person, Person) {
    let wide = |path: &Path| {
        image::image_dimensions(path).is_ok_and(|(width, height)| width.min(height) >= 150)
    };
    let mut fit = Faces::find().people.into_iter().filter(|it| {
        let all: Vec<_> = it.enrol.iter().chain(&it.probes).collect();
        all.len() >= 2 && all.iter().all(|path| wide(path))
    });
    (fit.next().unwrap(), fit.next().unwrap())
}

fn image_of(path: &Path) -> String {
    base64::engine::general_purpose::STANDARD.encode(fs::read(path).unwrap())
}

fn photographs(person: &Person) -> Vec<&Path> {
    person.enrol.iter().chain(&person.probes).map(std::path::PathBuf::as_path).collect()
}

fn health(client: &Client) -> Option<Value> {
    client.received_on("health").pop()
}

fn reply(client: &Client, request_id: &str) -> Option<Value> {
    client.received_on(&format!("reply/{request_id}")).pop()
}

/// Says so anew after each start.
fn until_streaming(client: &Client) {
    client.await_health("the camera streams", |it| it["camera"]["state"] == "streaming");
}

fn names(answer: &Value) -> Vec<&str> {
    answer["names"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

#[test]
fn person_before_camera_is_enrolled() {
    let broker = Mosquitto::start();
    let (ann, _) = people();
    let home =
        Home::new(broker.port(), &camera(photographs(&ann)[0], &recognition("pad = \"off\"")));
    let _daemon = home.start();
    let client = Client::connect(broker.port());
    let wanted =
        json!({"subject": {"id": "ann", "name": "Ann"}, "samples": 3, "timeout_ms": 30_000});
    until_streaming(&client);
    let answer = client.request("enrol_from_camera", "cam-1", wanted.clone());
    assert_eq!((&answer["ok"], &answer["references"]), (&json!(true), &json!(3)), "{answer}");
    // A photograph does not turn its head.
    assert_eq!(answer["missing_views"].as_array().unwrap().len(), 2, "{answer}");
    // The same again is answered from what was stored.
    assert_eq!(client.request("enrol_from_camera", "cam-1", wanted), answer);
    let seen = client.request("recognise", "r-1", json!({"image": image_of(photographs(&ann)[1])}));
    assert_eq!(names(&seen), ["Ann"], "{seen}");
    // Who is enrolled already is not enrolled as somebody else.
    let other =
        json!({"subject": {"id": "eve", "name": "Eve"}, "samples": 1, "timeout_ms": 30_000});
    let refused = client.request("enrol_from_camera", "cam-2", other);
    assert_eq!(refused["error"]["code"], "duplicate_subject", "{refused}");
    assert_eq!(refused["duplicate_of"], "ann");
}

#[test]
fn camera_enrolment_times_out_without_blocking() {
    let broker = Mosquitto::start();
    let (ann, _) = people();
    let empty = tempfile::tempdir().unwrap();
    let scene = empty.path().join("empty.png");
    image::RgbImage::from_pixel(320, 240, image::Rgb([90, 110, 100])).save(&scene).unwrap();
    let home = Home::new(broker.port(), &camera(&scene, ""));
    let mut daemon = home.start();
    let client = Client::connect(broker.port());
    until_streaming(&client);
    let wanted = |id: &str, ms: u64| json!({"subject": {"id": id, "name": "N"}, "samples": 1, "timeout_ms": ms});
    let mut first = wanted("one", 20_000);
    first["request_id"] = "cam-1".into();
    client.command("enrol_from_camera", &first);
    let busy = client.request("enrol_from_camera", "cam-2", wanted("two", 1_000));
    assert_eq!(busy["error"]["code"], "busy", "{busy}");
    // Others do not wait for it.
    let answer =
        client.request("enrol", "e-1", enrolment("ann", "Ann", &[photographs(&ann)[0].to_owned()]));
    assert_eq!(answer["ok"], true, "{answer}");
    assert!(reply(&client, "cam-1").is_none(), "it still waits");
    // Killed meanwhile: the one who asked is told by the next start, and nothing begins anew.
    daemon.kill();
    daemon = home.start();
    let reported = until("the next start tells", || reply(&client, "cam-1"));
    assert_eq!(reported["error"]["code"], "timed_out", "{reported}");
    until_streaming(&client);
    let late = client.request("enrol_from_camera", "cam-3", wanted("three", 1_000));
    assert_eq!(late["error"]["code"], "timed_out", "{late}");
    assert!(late["error"]["message"].as_str().unwrap().contains("in time"), "{late}");
    assert!(daemon.terminate().success());
}

#[test]
fn camera_enrolment_without_camera_is_rejected() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), "");
    let _daemon = home.start();
    let client = Client::connect(broker.port());
    let wanted = json!({"subject": {"id": "ann", "name": "Ann"}});
    assert_eq!(client.request("enrol_from_camera", "cam-1", wanted)["error"]["code"], "not_ready");
}

#[test]
fn references_stay_within_their_maximum() {
    let broker = Mosquitto::start();
    let person =
        Faces::find().people.into_iter().max_by_key(|it| it.enrol.len() + it.probes.len()).unwrap();
    let home = Home::new(broker.port(), "[enrolment]\nreferences_max = 2\n");
    let daemon = home.start();
    let client = Client::connect(broker.port());
    let all: Vec<_> = photographs(&person).into_iter().map(Path::to_owned).collect();
    let answer = client.request("enrol", "e-1", enrolment("ann", "Ann", &all[..all.len().min(4)]));
    assert_eq!(answer["ok"], true, "{answer}");
    assert!(answer["references"].as_u64().unwrap() <= 2, "{answer}");
    let kept = |answer: &Value| {
        answer["images"].as_array().unwrap().iter().filter(|it| it["kept"] == true).count() as u64
    };
    assert_eq!(kept(&answer), answer["references"].as_u64().unwrap(), "{answer}");
    let accepted =
        answer["images"].as_array().unwrap().iter().position(|it| it["accepted"] == true).unwrap();
    let more = client.request("enrol", "e-2", enrolment("ann", "Ann", &all[accepted..=accepted]));
    assert_eq!(more["ok"], true, "{more}");
    assert!(more["references"].as_u64().unwrap() <= 2, "{more}");
    let settled = until("the gallery is that of the database", || {
        let health = health(&client)?;
        (health["gallery"]["references"] == more["references"]).then_some(health)
    });
    let digest = settled["gallery"]["digest"].clone();
    drop(daemon);
    let _again = home.start();
    client.await_health("the same after a restart", |it| it["gallery"]["digest"] == digest);
}

#[test]
fn former_references_are_recognised_and_completed() {
    let broker = Mosquitto::start();
    let (ann, bob) = people();
    let with = |embedder: &str| recognition(&format!("embedder = \"{embedder}\""));
    let home = Home::new(broker.port(), &with("fr_feature"));
    let mut daemon = home.start();
    let client = Client::connect(broker.port());
    let send = |request: &str, person: &Person, id: &str, photograph: usize| {
        let photograph = photographs(person)[photograph].to_owned();
        let answer = client.request("enrol", request, enrolment(id, id, &[photograph]));
        assert_eq!(answer["ok"], true, "{answer}");
        answer["references"].as_u64().unwrap()
    };
    for (person, id) in [(&ann, "ann"), (&bob, "bob")] {
        assert_eq!(send(&format!("e-{id}"), person, id, 0), 1);
    }
    let look = |request: &str, person: &Person| {
        let image = image_of(photographs(person)[1]);
        let answer = client.request("recognise", request, json!({"image": image}));
        names(&answer).iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()
    };
    let gallery = |outdated: u64, partial: u64| {
        until("health tells who lacks a part", || {
            let gallery = health(&client)?["gallery"].clone();
            (gallery["outdated"] == outdated && gallery["partial"] == partial).then_some(())
        });
    };
    assert_eq!((look("r-1", &ann), look("r-2", &bob)), (vec!["ann".into()], vec!["bob".into()]));
    gallery(0, 0);
    assert!(daemon.terminate().success());
    // The composite: everybody is recognised as before.
    home.configure(broker.port(), &with("fr_sface"));
    daemon = home.start();
    gallery(0, 2);
    assert_eq!((look("r-3", &ann), look("r-4", &bob)), (vec!["ann".into()], vec!["bob".into()]));
    let doctor = home.output(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("2 of them less surely"), "{said}");
    // The same photograph completes the reference, another one adds a complete one.
    assert_eq!(send("e-3", &ann, "ann", 0), 1);
    gallery(0, 1);
    assert_eq!(send("e-4", &bob, "bob", 1), 2);
    gallery(0, 0);
    assert_eq!((look("r-5", &ann), look("r-6", &bob)), (vec!["ann".into()], vec!["bob".into()]));
    let listed = client.request("subjects", "s-1", json!({}));
    let listed = listed["subjects"].as_array().unwrap();
    assert!(listed.iter().all(|it| it["recognisable"] == true && it["partial"].is_null()));
    assert!(daemon.terminate().success());
    // And back: nothing is lost, and the parts that are not used are not counted.
    home.configure(broker.port(), &with("fr_feature"));
    daemon = home.start();
    gallery(0, 0);
    assert_eq!((look("r-7", &ann), look("r-8", &bob)), (vec!["ann".into()], vec!["bob".into()]));
    assert!(daemon.terminate().success());
}

/// The reference of `ann` has the first part only, and she stands before a camera of the composite.
fn partial_before_camera(broker: &Mosquitto, home: &Home, client: &Client, learn: &str) {
    let (ann, _) = people();
    let photograph = photographs(&ann)[0];
    let daemon = client.started(home);
    let answer = client.request("enrol", "e-1", enrolment("ann", "Ann", &[photograph.to_owned()]));
    assert_eq!(answer["ok"], true, "{answer}");
    assert!(daemon.terminate().success());
    let composite = recognition("embedder = \"fr_sface\"");
    let seen = camera(photograph, &format!("{composite}[enrolment]\n{learn}"));
    home.configure(broker.port(), &seen);
}

#[test]
fn door_learns_missing_part_from_its_camera() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), &recognition("embedder = \"fr_feature\""));
    partial_before_camera(&broker, &home, &client, "learn = true\n");
    let daemon = client.started(&home);
    until("the missing part is learned", || {
        let seen = health(&client)?;
        let is_composite = seen["recognition"]["embedder"] == "fr_sface";
        (is_composite && seen["gallery"]["partial"] == 0).then_some(())
    });
    // The photograph before the camera is that of the reference, which is completed by it.
    let listed = client.request("subjects", "s-1", json!({}))["subjects"][0].clone();
    assert_eq!((&listed["id"], &listed["references"]), (&json!("ann"), &json!(1)), "{listed}");
    assert!(listed["partial"].is_null() && listed["single_reference"] == true, "{listed}");
    assert!(daemon.terminate().success());
    assert_eq!(home.log().matches("learned from the camera").count(), 1, "{}", home.log());
    assert!(!home.log().contains("Ann"), "no name in the log");
}

#[test]
fn door_learns_nothing_by_default() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), &recognition("embedder = \"fr_feature\""));
    partial_before_camera(&broker, &home, &client, "");
    let daemon = client.started(&home);
    // That nothing happens takes a length of time: an attempt to learn is made at most once a second.
    let mut identified = None;
    let seen = until("she is identified, and seen for some seconds", || {
        let seen = health(&client)?;
        let recognition = &seen["recognition"];
        let faces = recognition["faces"].as_u64()?;
        if recognition["identified"].as_u64()? == 0 {
            return None;
        }
        let (since, first) = identified.get_or_insert_with(|| (Stopwatch::start(), faces));
        (since.elapsed() > Duration::from_secs(4) && faces > *first + 5).then_some(seen)
    });
    assert_eq!(
        (&seen["gallery"]["partial"], &seen["gallery"]["references"]),
        (&json!(1), &json!(1))
    );
    let listed = client.request("subjects", "s-1", json!({}))["subjects"][0].clone();
    assert_eq!((&listed["partial"], &listed["single_reference"]), (&json!(true), &json!(true)));
    assert!(daemon.terminate().success());
}

#[test]
fn changed_embedder_outdates_subjects_until_enrolled() {
    let broker = Mosquitto::start();
    let (ann, bob) = people();
    let with = |embedder: &str| recognition(&format!("embedder = \"{embedder}\""));
    let home = Home::new(broker.port(), &with("fr_feature"));
    let mut daemon = home.start();
    let client = Client::connect(broker.port());
    for (person, id) in [(&ann, "ann"), (&bob, "bob")] {
        let answer = client.request(
            "enrol",
            &format!("e-{id}"),
            enrolment(id, id, &[photographs(person)[0].to_owned()]),
        );
        assert_eq!(answer["ok"], true, "{answer}");
    }
    let look = |id: &str, person: &Person| {
        let answer =
            client.request("recognise", id, json!({"image": image_of(photographs(person)[1])}));
        names(&answer).iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()
    };
    let outdated = |count: u64| {
        until("health tells how far it is", || {
            (health(&client)?["gallery"]["outdated"] == count).then_some(())
        });
    };
    assert_eq!(look("r-1", &ann), ["ann"]);
    outdated(0);
    assert!(daemon.terminate().success());
    home.configure(broker.port(), &with("mobilefacenet"));
    daemon = home.start();
    outdated(2);
    assert!(look("r-2", &ann).is_empty());
    let listed = client.request("subjects", "s-1", json!({}));
    assert!(
        listed["subjects"].as_array().unwrap().iter().all(|it| it["recognisable"] == false),
        "{listed}"
    );
    let doctor = home.output(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("2 of 2"), "{said}");
    // Published again: found again.
    let again =
        client.request("enrol", "e-3", enrolment("ann", "ann", &[photographs(&ann)[0].to_owned()]));
    assert_eq!(again["references"], 2, "those of the other network stay: {again}");
    outdated(1);
    assert_eq!(look("r-3", &ann), ["ann"]);
    let list = home.output(&["subjects", "--outdated", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().iter().map(|it| &it["id"]).collect::<Vec<_>>(), ["bob"]);
    assert!(daemon.terminate().success());
    home.configure(broker.port(), &with("fr_feature"));
    daemon = home.start();
    outdated(0);
    assert_eq!(
        (look("r-4", &ann), look("r-5", &bob)),
        (vec!["ann".to_owned()], vec!["bob".to_owned()])
    );
    assert!(daemon.terminate().success());
}

#[test]
fn withdrawn_while_waited_for_stays_withdrawn() {
    let broker = Mosquitto::start();
    let (ann, _) = people();
    let home = Home::new(broker.port(), "");
    let shown = image::open(photographs(&ann)[0]).unwrap().to_rgb8();
    image::RgbImage::from_pixel(shown.width(), shown.height(), image::Rgb([90, 110, 100]))
        .save(home.path("empty.jpg"))
        .unwrap();
    shown.save(home.path("person.jpg")).unwrap();
    let folder = home.path("");
    let script = format!(
        "cd {}; while sleep 0.1; do if [ -e here ]; then cat person.jpg; else cat empty.jpg; fi; done",
        folder.display()
    );
    fs::write(home.path("camera.sh"), script).unwrap();
    let command = home.path("camera.sh");
    home.configure(
        broker.port(),
        &format!(
            "[camera]\nsource = \"pipe\"\ncommand = [\"sh\", \"{}\"]\n{}",
            command.display(),
            recognition("pad = \"off\"")
        ),
    );
    let _daemon = home.start();
    let client = Client::connect(broker.port());
    until_streaming(&client);
    let photograph = photographs(&ann)[0].to_owned();
    let enrolled = client.request("enrol", "e-1", enrolment("ann", "Ann", &[photograph]));
    assert_eq!(enrolled["ok"], true, "{enrolled}");
    let wanted = json!({"request_id": "cam-1", "subject": {"id": "ann", "name": "Ann"}, "samples": 1, "timeout_ms": 60_000});
    client.command("enrol_from_camera", &wanted);
    let erased = client.request("withdraw", "w-1", json!({"subject_id": "ann", "erase": true}));
    assert_eq!(erased["ok"], true, "{erased}");
    assert!(reply(&client, "cam-1").is_none(), "it still waits");
    fs::write(home.path("here"), "").unwrap();
    let refused = until("the person was seen", || reply(&client, "cam-1"));
    assert_eq!(refused["error"]["code"], "unknown_subject", "{refused}");
    assert_eq!(client.request("subjects", "s-1", json!({}))["subjects"], json!([]));
}
