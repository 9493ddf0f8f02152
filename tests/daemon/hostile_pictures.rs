//! Pictures made to end the daemon, by every way in: it answers, and lives on.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of these tests: a failure there is a failed test"
)]

use crate::support::http;
use std::fs;
use std::path::Path;

use crate::support::client::Client;
use crate::support::daemon::{Home, until};
use crate::support::faces::demo;
use crate::support::jpegs::{Data, Scan, Spec};
use crate::support::mosquitto::Mosquitto;
use base64::Engine as _;
use serde_json::{Value, json};

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Scans with fewer components than the frame, while a colour is sampled finer than the brightness:
/// the decoder panics.
fn lethal_pictures() -> Vec<Vec<u8>> {
    let samplings = [
        [(1, 1), (1, 1), (2, 1)],
        [(1, 1), (1, 1), (4, 1)],
        [(1, 1), (1, 1), (2, 2)],
        [(2, 2), (1, 2), (4, 1)],
        [(2, 2), (1, 1), (4, 1)],
        [(1, 1), (2, 2), (1, 1)],
    ];
    let mut pictures = Vec::new();
    for sampling in samplings {
        for components in [vec![0], vec![1], vec![2], vec![0, 1]] {
            let mut spec = Spec::flat(160, 120, &sampling);
            let bytes = (0..6000u32).map(|at| ((at * at) >> 4) as u8).collect();
            spec.scans = vec![Scan { data: Data::Bytes(bytes), ..Scan::sequential(components) }];
            pictures.push(spec.bytes());
        }
    }
    // Beside the project in its workshop only.
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/attack");
    for file in fs::read_dir(shared).into_iter().flatten().flatten() {
        if file.path().extension().is_some_and(|it| it == "jpg") {
            pictures.push(fs::read(file.path()).unwrap());
        }
    }
    pictures
}

#[test]
fn lethal_pictures_are_rejected_with_reply() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), HTTP);
    let mut daemon = client.started(&home);
    let to = http::address(&home);
    for (number, picture) in lethal_pictures().iter().enumerate() {
        let image = base64(picture);
        for (verb, code, body) in [
            ("recognise", "bad_image", json!({"image": image})),
            ("attend", "bad_image", json!({"venue": "main", "image": image})),
            (
                "enrol",
                "no_usable_image",
                json!({"subject": {"id": "x", "name": "X"}, "images": [image]}),
            ),
        ] {
            let answer = client.request(verb, &format!("{verb}-{number}"), body);
            assert_eq!(answer["error"]["code"], code, "{answer}");
            assert!(answer["error"].to_string().contains("not supported"), "{answer}");
        }
        // As the former service answered an image that it could not read.
        let answer = http::post_json(to, "/recognize_faces", &[], &json!({"image": image}));
        assert!((400..500).contains(&answer.status), "{answer:?}");
        let answer = http::add_face(to, &[], "X", picture);
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert!(daemon.is_alive());
    }
    assert_eq!(client.request("sync", "last", json!({}))["ok"], true);
    assert!(!home.log().contains("panic"), "{}", home.log());
    assert!(daemon.terminate().success());
}

#[test]
fn lethal_frames_are_dropped_alone() {
    let home =
        Home::new(1, "[camera]\nsource = \"replay\"\npath = \"clip.mjpeg\"\nrepeat = true\n");
    let good = fs::read(demo("biden.jpg")).unwrap();
    let mut clip = Vec::new();
    for picture in lethal_pictures() {
        clip.extend(&good);
        clip.extend(picture);
    }
    fs::write(home.path("clip.mjpeg"), clip).unwrap();
    let enrolled = home.output(&["enrol", "--id", "joe", demo("biden.jpg").to_str().unwrap()]);
    assert!(enrolled.status.success(), "{enrolled:?}");
    let mut daemon = home.start();
    let visits = || -> Vec<Value> {
        home.json(&["attendance", "--json"]).as_array().cloned().unwrap_or_default()
    };
    until("the person between the hostile frames is recognised", || {
        (!visits().is_empty()).then_some(())
    });
    assert!(daemon.is_alive());
    assert!(!home.log().contains("panic"), "{}", home.log());
    assert!(daemon.terminate().success());
}
