//! A client of the former service and the database that it has always read, with the daemon between them.

#![cfg(feature = "mongo")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/faces.rs"]
mod faces;
#[path = "support/http.rs"]
mod http;
#[path = "support/mongod.rs"]
mod mongod;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::{Home, until};
use mongod::Mongod;
use mongodb::bson::doc;
use mongodb::bson::oid::ObjectId;
use serde_json::json;

#[test]
fn the_venues_attendance_is_updated_where_it_always_was() {
    let server = Mongod::start();
    let hall = ObjectId::new();
    let before = doc! { "_id": hall, "name": "Hall", "attendance": ["Grace Hopper"] };
    server.command(doc! { "insert": "venues", "documents": [before] });
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [[venue]]\nid = \"{hall}\"\n[attendance]\nvenue = \"{hall}\"\n[mongo]\nuri_file = \"uri\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("uri"), server.uri()).unwrap();
    fs::set_permissions(home.path("uri"), fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = home.start();
    let to = http::address(&home);
    let photograph = fs::read(faces::demo("biden.jpg")).unwrap();
    assert_eq!(http::add_face(to, &[], "Joe Biden", &photograph).json(), json!({"success": true}));
    let image = format!("data:image/jpeg;base64,{}", STANDARD.encode(&photograph));
    for _ in 0..2 {
        let body = json!({"venue_id": hall.to_hex(), "image": image});
        let answer = http::post_json(to, "/get-attendance", &[], &body);
        assert_eq!(
            (answer.status, answer.json()["recognized_names"].clone()),
            (200, json!(["Joe Biden"]))
        );
    }
    let names = until("the database has it", || {
        let venue = server.all("venues").remove(0);
        let names: Vec<String> = venue
            .get_array("attendance")
            .unwrap()
            .iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect();
        (names.len() > 1).then_some(names)
    });
    assert_eq!(names, ["Grace Hopper", "Joe Biden"]);
    assert!(daemon.terminate().success());
    assert_eq!((server.count("venues"), server.count("attendance")), (1, 1));
}
