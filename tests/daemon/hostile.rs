//! What an enemy, or a mistake, can send: refused by name, counted, and nothing else. The daemon
//! goes on, in its memory.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::daemon;
use crate::support::faces;
use std::fs;

use crate::support::client::Client;
use crate::support::daemon::{BASE, Home};
use crate::support::faces::{demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use base64::Engine as _;
use serde_json::{Value, json};

/// How much more than after its first enrolment the daemon may ever have taken: the 24 MiB of
/// messages that it may hold at a time, one of them decoded from base64, and the pieces of the
/// allocator.
const GROWTH_MAX_BYTES: u64 = 96 << 20;
const GARBAGE: usize = 300;

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A JPEG that claims another size, in the picture's header and in those of its thumbnails.
fn lying(jpeg: &[u8], side: u16) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    for at in 0..bytes.len() - 9 {
        if bytes[at] == 0xFF && (0xC0..=0xC2).contains(&bytes[at + 1]) {
            bytes[at + 5..at + 7].copy_from_slice(&side.to_be_bytes());
            bytes[at + 7..at + 9].copy_from_slice(&side.to_be_bytes());
        }
    }
    bytes
}

/// A PNG that is a header, with a right checksum, and claims 30,000 x 30,000.
const LYING_PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0\xe9\x45\x6f\xed\0\0\0\0IDAT";

struct Case {
    verb: &'static str,
    payload: Vec<u8>,
    /// `None`: the id cannot be read, so the answer goes to `reply/unreadable`.
    request_id: Option<String>,
    code: &'static str,
    /// What the answer must speak of.
    about: &'static str,
}

/// A command with an id of its own that must be refused.
fn refused(
    cases: &mut Vec<Case>,
    verb: &'static str,
    mut body: Value,
    code: &'static str,
    about: &'static str,
) {
    let request_id = format!("case-{}", cases.len());
    body["request_id"] = request_id.as_str().into();
    cases.push(Case {
        verb,
        payload: body.to_string().into_bytes(),
        request_id: Some(request_id),
        code,
        about,
    });
}

fn unreadable(
    cases: &mut Vec<Case>,
    payload: impl Into<Vec<u8>>,
    code: &'static str,
    about: &'static str,
) {
    cases.push(Case { verb: "enrol", payload: payload.into(), request_id: None, code, about });
}

fn broken_messages(cases: &mut Vec<Case>) {
    unreadable(cases, "", "bad_json", "");
    unreadable(cases, "not json", "bad_json", "line 1");
    unreadable(cases, "[1, 2, 3]", "bad_json", "object");
    unreadable(cases, "\"text\"", "bad_json", "object");
    unreadable(cases, b"\xff\xfe\x00{".to_vec(), "bad_json", "");
    unreadable(cases, "{\"request_id\": \"cut", "bad_json", "early");
    unreadable(cases, "{}", "missing_field", "request_id");
    unreadable(cases, "{\"request_id\": \"a\", \"request_id\": \"b\"}", "bad_json", "");
    for id in ["\"a/b\"", "\"+\"", "\"#\"", "\"\"", "\"../../etc\"", "\"Jane Doe\""] {
        unreadable(cases, format!("{{\"request_id\": {id}}}"), "bad_value", "request_id");
    }
    unreadable(
        cases,
        format!("{{\"request_id\": \"{}\"}}", "x".repeat(65)),
        "bad_value",
        "request_id",
    );
    for id in ["7", "null", "[\"a\"]", "{}"] {
        unreadable(cases, format!("{{\"request_id\": {id}}}"), "wrong_type", "request_id");
    }
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    unreadable(cases, deep(1_000_000), "too_deep", "");
    unreadable(cases, format!("{{\"a\": {}}}", deep(100_000)), "too_deep", "");
    refused(
        cases,
        "enrol",
        json!({"a": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}),
        "too_deep",
        "",
    );
    refused(cases, "enrol", json!({"a": vec![0; 1_000_000]}), "too_many", "");
}

fn wrong_fields(cases: &mut Vec<Case>, photograph: &str) {
    let subject = json!({"id": "jdoe", "name": "Jane Doe"});
    let enrol = |subject: Value, images: Value| json!({"subject": subject, "images": images});
    for id in ["a/b", "a+b", "#", "$SYS", "", "ä", "a b", &"x".repeat(65)] {
        refused(
            cases,
            "enrol",
            enrol(json!({"id": id, "name": "J"}), json!([photograph])),
            "bad_value",
            "subject.id",
        );
        refused(cases, "withdraw", json!({"subject_id": id}), "bad_value", "subject_id");
        refused(cases, "attend", json!({"venue": id, "image": photograph}), "bad_value", "venue");
    }
    for name in ["", "a\nb", "\u{7}", &"n".repeat(201)] {
        refused(
            cases,
            "enrol",
            enrol(json!({"id": "j", "name": name}), json!([photograph])),
            "bad_value",
            "subject.name",
        );
    }
    refused(cases, "enrol", json!({"images": [photograph]}), "missing_field", "subject");
    refused(cases, "enrol", json!({"subject": subject}), "missing_field", "images");
    refused(cases, "enrol", enrol(json!("jdoe"), json!([photograph])), "wrong_type", "subject");
    refused(
        cases,
        "enrol",
        enrol(json!({"id": 7, "name": "J"}), json!([photograph])),
        "wrong_type",
        "subject.id",
    );
    refused(cases, "enrol", enrol(subject.clone(), json!(photograph)), "wrong_type", "images");
    refused(cases, "enrol", enrol(subject.clone(), json!([7])), "wrong_type", "images[0]");
    refused(cases, "enrol", enrol(subject.clone(), json!([])), "bad_value", "images");
    refused(cases, "enrol", enrol(subject.clone(), json!(vec!["A"; 11])), "too_many", "images");
    refused(cases, "enrol", enrol(subject.clone(), json!(["!!!"])), "bad_image", "images[0]");
    refused(cases, "enrol", enrol(subject.clone(), json!([""])), "bad_image", "images[0]");
    refused(
        cases,
        "enrol",
        enrol(subject.clone(), json!(["data:text/html;base64,AAAA"])),
        "bad_image",
        "images[0]",
    );
    refused(
        cases,
        "enrol",
        enrol(subject.clone(), json!(["A".repeat(6 << 20)])),
        "too_large",
        "images[0]",
    );
    let mut more = enrol(subject.clone(), json!([photograph]));
    more["replce"] = true.into();
    refused(cases, "enrol", more, "unknown_field", "replce");
    let inside = json!({"id": "j", "name": "J", "role": "boss"});
    refused(cases, "enrol", enrol(inside, json!([photograph])), "unknown_field", "subject.role");
    refused(
        cases,
        "withdraw",
        json!({"subject_id": "jdoe", "erase": "yes"}),
        "wrong_type",
        "erase",
    );
    refused(cases, "subjects", json!({"limit": "10"}), "wrong_type", "limit");
    refused(cases, "subjects", json!({"limit": 501}), "bad_value", "limit");
    refused(
        cases,
        "attendance",
        json!({"venue": "main", "from": "yesterday"}),
        "bad_value",
        "from",
    );
    refused(
        cases,
        "attend",
        json!({"venue": "main", "image": photograph, "direction": "up"}),
        "bad_value",
        "direction",
    );
    refused(cases, "sync", json!({"schema": 2}), "bad_value", "schema");
    refused(cases, "sync", json!({"expires_at": "2020-01-01T00:00:00Z"}), "expired", "expires_at");
    refused(cases, "fly", json!({}), "unknown_verb", "");
    refused(
        cases,
        "enrol_from_camera",
        json!({"subject": {"id": "x", "name": "X"}, "samples": 11}),
        "bad_value",
        "samples",
    );
    refused(cases, "withdraw", json!({"subject_id": "nobody"}), "unknown_subject", "nobody");
    refused(
        cases,
        "rename",
        json!({"subject_id": "nobody", "name": "N"}),
        "unknown_subject",
        "nobody",
    );
    refused(
        cases,
        "attend",
        json!({"venue": "elsewhere", "image": photograph}),
        "unknown_venue",
        "venue",
    );
}

fn hostile_pictures(cases: &mut Vec<Case>, jpeg: &[u8]) {
    let pictures: [(Vec<u8>, &'static str); 7] = [
        (jpeg[..jpeg.len() / 2].to_vec(), "early"),
        // The end marker alone may be missing; more may not, even when the marker is there.
        (jpeg[..jpeg.len() - 40].to_vec(), "early"),
        ([&jpeg[..jpeg.len() - 1000], &[0xFF, 0xD9]].concat(), "early"),
        (jpeg[..20].to_vec(), "JPEG"),
        (lying(jpeg, 30_000), "30000 x 30000"),
        (LYING_PNG.to_vec(), "30000 x 30000"),
        (b"GIF89a and so on".to_vec(), "save it as JPEG, PNG or WebP"),
    ];
    for (picture, about) in pictures {
        let image = base64(&picture);
        refused(cases, "recognise", json!({"image": image}), "bad_image", about);
        refused(cases, "attend", json!({"venue": "main", "image": image}), "bad_image", about);
        let body = json!({"subject": {"id": "liar", "name": "Liar"}, "images": [image]});
        refused(cases, "enrol", body, "no_usable_image", about);
    }
}

#[test]
fn hostile_commands_are_rejected_with_mqtt_5() {
    hostile_commands_are_rejected("5");
}

#[test]
fn hostile_commands_are_rejected_with_mqtt_3() {
    hostile_commands_are_rejected("3.1.1");
}

fn hostile_commands_are_rejected(version: &str) {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), &format!("version = \"{version}\"\n"));
    let mut daemon = client.started(&home);
    let photograph = demo("biden.jpg");
    let answer = client.request(
        "enrol",
        "first",
        enrolment("biden", "Joe", std::slice::from_ref(&photograph)),
    );
    assert_eq!(answer["ok"], true, "{answer}");
    let subjects = home.json(&["subjects", "--json"]);
    let before = daemon.memory_bytes("VmHWM");

    let jpeg = fs::read(&photograph).unwrap();
    let mut cases = Vec::new();
    broken_messages(&mut cases);
    wrong_fields(&mut cases, &base64(&jpeg));
    hostile_pictures(&mut cases, &jpeg);
    let mut from = client.received().len();
    for case in &cases {
        client.publish(&format!("{BASE}/command/{}", case.verb), &case.payload);
        let part = format!("reply/{}", case.request_id.as_deref().unwrap_or("unreadable"));
        let answer = client.await_from(from, &part).json();
        from = client.received().len();
        let shown =
            String::from_utf8_lossy(&case.payload[..case.payload.len().min(200)]).into_owned();
        let reported = (&answer["ok"], &answer["error"]["code"], &answer["request_id"]);
        assert_eq!(
            reported,
            (&json!(false), &json!(case.code), &json!(case.request_id)),
            "{} {shown}: {answer}",
            case.verb
        );
        assert!(answer["error"].to_string().contains(case.about), "{shown}: {answer}");
    }
    let sent = cases.len() as u64 + 1;
    let health = client.await_health("every command is counted", |it| it["commands"] == sent);
    let refusals = health["commands_refused"].as_object().unwrap();
    assert_eq!(
        refusals.values().map(|it| it.as_u64().unwrap()).sum::<u64>(),
        sent - 1,
        "{refusals:?}"
    );

    garbage(&client, &base64(&jpeg));
    client.await_health("garbage is counted too", |it| it["commands"] == sent + GARBAGE as u64);
    assert_eq!(home.json(&["subjects", "--json"]), subjects, "nothing has changed");
    assert_eq!(home.json(&["attendance", "--json"]), json!([]));

    too_large(&broker, &client, version);
    assert!(daemon.is_alive());
    let growth = daemon.memory_bytes("VmHWM") - before;
    println!(
        "{sent} commands and {GARBAGE} of garbage; memory grew by {} KiB at most",
        growth >> 10
    );
    assert!(growth < GROWTH_MAX_BYTES, "grew by {growth} bytes");
    assert_eq!(client.request("sync", "last", json!({}))["ok"], true);
    assert!(daemon.terminate().success());
}

/// Bytes at random, and an honest command with bytes changed at random. Each gets an answer; that
/// none of them changes anything is asked afterwards.
fn garbage(client: &Client, photograph: &str) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |limit: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let honest = json!({"request_id": "garbled", "subject_id": "nobody-at-all", "erase": true, "note": &photograph[..200]});
    let honest = honest.to_string().into_bytes();
    let verbs = [
        "enrol",
        "withdraw",
        "rename",
        "subjects",
        "recognise",
        "attend",
        "attendance",
        "sync",
        "venues",
    ];
    for round in 0..GARBAGE {
        let mut payload = honest.clone();
        if round % 2 == 0 {
            payload = (0..random(2_000)).map(|_| random(256) as u8).collect();
        } else {
            for _ in 0..=random(8) {
                let at = random(payload.len());
                payload[at] = random(256) as u8;
            }
        }
        client.publish(&format!("{BASE}/command/{}", verbs[random(verbs.len())]), &payload);
    }
}

/// 50 MB at both qualities of service. What comes behind them is answered; with MQTT 3.1.1, so are
/// they.
fn too_large(broker: &Mosquitto, client: &Client, version: &str) {
    let command = format!("{BASE}/command/enrol");
    let large = |id: &str| {
        [format!("{{\"request_id\": \"{id}\", \"images\": [\"").as_bytes(), &vec![b'A'; 50_000_000]]
            .concat()
    };
    for (id, qos) in [("large-0", "0"), ("large-1", "1")] {
        broker.publish_payload(&command, &large(id), &["-q", qos]);
        assert_eq!(client.request("sync", &format!("after-{id}"), json!({}))["ok"], true);
    }
    if version == "5" {
        // The broker has discarded them, as it must: the daemon does not know that they existed.
        assert!(!client.received().iter().any(|it| it.part.starts_with("reply/large")));
        return;
    }
    let answer = client.await_from(0, "reply/large-1").json();
    assert_eq!(answer["error"]["code"], "too_large", "{answer}");
    client.await_health("both were counted", |health| {
        health["commands_refused"]["too_large"].as_u64() >= Some(2)
    });
}

#[test]
fn repeated_request_returns_first_reply() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n");
    let daemon = client.started(&home);
    let obama = enrolment("obama", "Barack", &[demo("obama.jpg")]);
    let first = client.request("enrol", "r-1", obama.clone());
    assert_eq!(first["ok"], true, "{first}");
    let visit = json!({"venue": "main", "image": faces::base64(&demo("obama2.jpg"))});
    let attended = client.request("attend", "r-2", visit.clone());
    assert_eq!(attended["recorded"], json!(["Barack"]), "{attended}");
    let refused = client.request("withdraw", "r-3", json!({"subject_id": "nobody"}));

    let daemon = {
        assert!(daemon.terminate().success());
        client.started(&home)
    };
    assert_eq!(client.request("enrol", "r-1", obama), first);
    assert_eq!(client.request("attend", "r-2", visit.clone()), attended);
    assert_eq!(client.request("withdraw", "r-3", json!({"subject_id": "nobody"})), refused);
    // The id decides, whatever else is in it by now: another person, another verb, too late,
    // damaged.
    assert_eq!(
        client.request("enrol", "r-1", enrolment("biden", "Joe", &[demo("biden.jpg")])),
        first
    );
    assert_eq!(client.request("withdraw", "r-1", json!({"subject_id": "obama"})), first);
    assert_eq!(
        client.request("enrol", "r-1", json!({"expires_at": "2020-01-01T00:00:00Z"})),
        first
    );
    let subjects = home.json(&["subjects", "--json"]);
    assert_eq!(
        (subjects.as_array().unwrap().len(), &subjects[0]["references"]),
        (1, &json!(1)),
        "{subjects}"
    );
    assert_eq!(home.json(&["attendance", "--json"]).as_array().unwrap().len(), 1);
    // Another id is another visit.
    assert_eq!(client.request("attend", "r-4", visit)["recorded"], json!(["Barack"]));
    assert!(daemon.terminate().success());
}

#[test]
fn retained_command_is_rejected_at_start() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let body = json!({"request_id": "kept", "subject": {"id": "obama", "name": "B"}, "images": [faces::base64(&demo("obama.jpg"))]});
    broker.publish_payload(&format!("{BASE}/command/enrol"), body.to_string().as_bytes(), &["-r"]);
    for _ in 0..2 {
        let from = client.received().len();
        let daemon = client.started(&home);
        assert_eq!(client.await_from(from, "reply/kept").json()["error"]["code"], "retained");
        client.await_health("it is counted", |health| health["commands_refused"]["retained"] == 1);
        assert!(daemon.terminate().success());
    }
    assert_eq!(home.json(&["subjects", "--json"]), json!([]));
}

#[test]
fn command_flood_is_limited_and_answered() {
    const WALL: usize = 200;
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[commands]\nper_minute_max = 60\n");
    let daemon = client.started(&home);
    for number in 0..WALL {
        client.command("sync", &json!({"request_id": format!("wall-{number}")}));
    }
    client.await_replies(WALL);
    let answers: Vec<_> = (0..WALL)
        .map(|number| client.received_on(&format!("reply/wall-{number}")).remove(0))
        .collect();
    let allowed = answers.iter().filter(|answer| answer["ok"] == true).count();
    let limited = answers.iter().filter(|answer| answer["error"]["code"] == "rate_limited").count();
    assert_eq!(allowed + limited, WALL);
    assert!((60..WALL).contains(&allowed), "{allowed} were allowed");
    // What was beyond the limit has written nothing.
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    let rows = "select seq from sqlite_sequence where name = 'outbox'";
    let rows: usize = database.query_row(rows, [], |row| row.get::<_, i64>(0)).unwrap() as usize;
    assert!((allowed..allowed + 20).contains(&rows), "{rows} rows for {allowed} commands");
    daemon::until("the pace recovers", || {
        (client.request("sync", &format!("later-{}", client.received().len()), json!({}))["ok"]
            == true)
            .then_some(())
    });
    assert!(daemon.terminate().success());
}
