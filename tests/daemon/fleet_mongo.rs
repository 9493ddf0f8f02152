//! A site's doors and the gallery that they share through MongoDB: real daemons, a real mongod. The
//! broker carries commands only.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::daemon::{Home, PATIENCE, until, until_for};
use crate::support::faces::{base64, demo};
use crate::support::mongod::Mongod;
use crate::support::mosquitto::Mosquitto;
use crate::support::office::{Office, count, keys};
use mongodb::bson::{Document, doc};
use rollcall::clock::Stopwatch;
use rollcall::keys::seal::SharedKey;
use serde_json::{Value, json};

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

fn kept(server: &Mongod, id: &str) -> Option<Document> {
    server.all("gallery").into_iter().find(|it| it.get_str("_id").ok() == Some(id))
}

#[test]
fn enrolments_and_withdrawals_reach_every_device() {
    let broker = Mosquitto::start();
    let keys = keys();
    let mut server = Mongod::start();
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
fn wrong_key_device_learns_and_spoils_nothing() {
    let broker = Mosquitto::start();
    let keys = keys();
    let server = Mongod::start();
    let office = Office::open(broker.port());
    let homes = [("door-1", &keys.site), ("door-2", &keys.wrong)]
        .map(|(name, key)| door(&broker, &server.uri(), name, key));
    let _first = homes[0].start();
    office.enrol("door-1", "biden", "biden.jpg");
    let reported = until("the record is told", || kept(&server, "hq/biden"));
    // Its own account of the same id counts for more, by its name: and does not displace the
    // site's.
    let second = homes[1].start();
    office.enrol("door-2", "biden", "biden.jpg");
    office.enrol("door-2", "obama", "obama.jpg");
    until("it says so", || {
        office.gallery("door-2").filter(|it| it["sharing"]["state"] == "wrong_key")
    });
    until("its row is refused", || {
        homes[1].log().contains("does not open with this key (").then_some(())
    });
    assert_eq!(kept(&server, "hq/biden").as_ref(), Some(&reported));
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
            .filter(|it| it.get_document("version").ok() == reported.get_document("version").ok())
    });
    assert_eq!(kept(&server, "hq/nonsense").unwrap().get_str("version").ok(), Some("none"));
    // With the right key it has all, and tells what it has.
    assert!(second.terminate().success());
    fs::copy(keys.site.path(), keys.wrong.path()).unwrap();
    let _second = homes[1].start();
    office.until_gallery("door-2", "shared", 2);
    office.until_gallery("door-1", "shared", 2);
}

/// Somebody who may write the collection and has no key.
#[test]
fn unsealed_documents_do_not_block_an_erasure() {
    let broker = Mosquitto::start();
    let keys = keys();
    let server = Mongod::start();
    let office = Office::open(broker.port());
    let homes = ["door-1", "door-2"].map(|name| door(&broker, &server.uri(), name, &keys.site));
    let _running = homes.each_ref().map(Home::start);
    office.enrol("door-1", "biden", "biden.jpg");
    office.enrol("door-1", "obama", "obama.jpg");
    office.until_gallery("door-2", "shared", 2);
    let old = kept(&server, "hq/obama").unwrap();
    let write = |id: &str, set: Document| {
        let update = doc! { "q": { "_id": id }, "u": { "$set": set }, "upsert": true };
        server.command(doc! { "update": "gallery", "updates": [update] });
    };
    let highest = doc! { "withdrawals": i64::from(u32::MAX), "changes": i64::from(u32::MAX), "device": "zzz" };
    write(
        "hq/biden",
        doc! { "version": highest, "withdrawn": false, "sealed": "x", "more": "y".repeat(2 << 20) },
    );
    office.withdraw("door-1", "biden", true);
    office.withdraw("door-1", "obama", true);
    office.until_gallery("door-2", "shared", 0);
    assert_eq!(count(&homes[1], "select count(*) from withdrawn where erased"), 2);
    until("nothing is pending", || {
        (count(&homes[0], "select count(*) from outbox where sink = 'gallery'") == 0).then_some(())
    });
    let document = kept(&server, "hq/biden").unwrap();
    assert!(
        document.get_bool("withdrawn").unwrap() && !document.contains_key("more"),
        "{document}"
    );
    // An old document that was sealed, and one that says the version that was sealed.
    let withdrawal = kept(&server, "hq/obama").unwrap();
    let set = doc! { "version": old.get_document("version").unwrap(), "withdrawn": false, "sealed": old.get("sealed").unwrap() };
    write("hq/obama", set);
    write("hq/biden", doc! { "sealed": "x" });
    until_for(PATIENCE * 2, "the withdrawals are there again", || {
        let is_withdrawn = |id: &str| {
            kept(&server, id).filter(|it| {
                it.get_binary_generic("sealed").is_ok() && it.get_bool("withdrawn").unwrap_or(false)
            })
        };
        is_withdrawn("hq/biden").and(is_withdrawn("hq/obama"))
    });
    assert_eq!(kept(&server, "hq/obama").unwrap().get("version"), withdrawal.get("version"));
    for name in ["door-1", "door-2"] {
        until_for(PATIENCE * 2, "nothing is pending", || {
            let settled =
                |it: &Value| it["state"] == "shared" && it["pending"] == 0 && it["unsealed"] == 0;
            office.gallery(name).map(|it| it["sharing"].clone()).filter(settled)
        });
    }
}
