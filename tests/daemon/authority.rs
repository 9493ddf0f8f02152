//! Signed commands against a real broker: what is not signed by a trusted key, for this device, now
//! and for the first time, is refused, counted and told; what is, passes. And the receipt of an
//! erasure.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::daemon;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::daemon::{BASE, Home};
use crate::support::faces::{demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::cli::sign::sign_command;
use rollcall::clock::{Clock as _, SystemClock, Trust};
use rollcall::keys::jws::{COMMAND, PublicKey};
use rollcall::keys::receipt::Receipt;
use rollcall::keys::signer::SigningKey;
use serde_json::{Value, json};

const FIVE_MINUTES: Duration = Duration::from_mins(5);

fn keyed(broker: &Mosquitto) -> (Home, SigningKey, SigningKey) {
    let home = Home::new(broker.port(), "");
    let [office, other] =
        ["office.key", "other.key"].map(|name| SigningKey::create(&home.path(name)).unwrap());
    home.configure(
        broker.port(),
        &format!("[commands]\ntrusted_keys = [\"{} office\"]\n", office.public()),
    );
    (home, office, other)
}

fn signed(key: &SigningKey, aud: &str, verb: &str, request_id: &str, mut body: Value) -> String {
    body["request_id"] = request_id.into();
    sign_command(key, aud, verb, body, FIVE_MINUTES).unwrap()
}

/// Signed ten minutes ago, good for one.
fn expired(key: &SigningKey, request_id: &str) -> String {
    let iat = SystemClock::new(Trust::Always).now().wall_ms / 1000 - 600;
    let cmd = json!({"verb": "withdraw", "request_id": request_id, "subject_id": "biden"});
    let claims =
        json!({"iat": iat, "exp": iat + 60, "jti": "late-1", "aud": "hq/door-1", "cmd": cmd});
    key.sign(COMMAND, &serde_json::to_vec(&claims).unwrap())
}

/// Signed now, and no command: with a field that none has.
fn malformed(key: &SigningKey, request_id: &str) -> String {
    let iat = SystemClock::new(Trust::Always).now().wall_ms / 1000;
    let cmd = json!({"verb": "sync", "request_id": request_id, "what": 1});
    let claims =
        json!({"iat": iat, "exp": iat + 60, "jti": "odd-1", "aud": "hq/door-1", "cmd": cmd});
    key.sign(COMMAND, &serde_json::to_vec(&claims).unwrap())
}

#[test]
fn only_valid_signed_commands_are_executed() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let (home, office, other) = keyed(&broker);
    let daemon = client.started(&home);
    let send = |verb: &str, payload: &str| {
        client.publish(&format!("{BASE}/command/{verb}"), payload.as_bytes());
    };
    let alarm = |reason: &str| {
        client
            .await_one(reason, |it| it.part == "event/security" && it.json()["reason"] == reason)
            .json()
    };
    // A photograph of 300 KB passes.
    let photograph = demo("biden.jpg");
    let mut body = enrolment("biden", "Joe", std::slice::from_ref(&photograph));
    let image = body["images"][0].clone();
    body["images"] = vec![image; 10].into();
    let enrol = signed(&office, "hq/door-1", "enrol", "e-1", body);
    assert!(enrol.len() > 300_000, "{} bytes", enrol.len());
    send("enrol", &enrol);
    let answer = client.await_from(0, "reply/e-1").json();
    assert_eq!(answer["ok"], true, "{answer}");
    let sync = signed(&office, "hq/all", "sync", "s-1", json!({}));
    send("sync", &sync);
    assert_eq!(client.await_from(0, "reply/s-1").json()["ok"], true);
    let subjects = home.json(&["subjects", "--json"]);

    send("withdraw", r#"{"request_id":"u-1","subject_id":"biden"}"#);
    assert_eq!(
        (&alarm("unsigned")["verb"], &alarm("unsigned")["count"]),
        (&json!("withdraw"), &json!(1))
    );
    send(
        "withdraw",
        &signed(&other, "hq/door-1", "withdraw", "u-2", json!({"subject_id": "biden"})),
    );
    alarm("bad_signature");
    // Altered on the way; too late.
    let mut altered =
        signed(&office, "hq/door-1", "withdraw", "u-5", json!({"subject_id": "biden"}))
            .into_bytes();
    let at = altered.iter().position(|it| *it == b'.').unwrap() + 40;
    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
    client.publish(&format!("{BASE}/command/withdraw"), &altered);
    let late = expired(&office, "u-6");
    send("withdraw", &late);
    send("withdraw", &late);
    assert_eq!(alarm("expired")["verb"], "withdraw");
    assert_eq!(client.await_from(0, "reply/u-6").json()["error"]["code"], "expired");
    send(
        "withdraw",
        &signed(&office, "hq/door-2", "withdraw", "u-3", json!({"subject_id": "biden"})),
    );
    alarm("wrong_audience");
    assert_eq!(client.await_from(0, "reply/u-3").json()["error"]["code"], "wrong_audience");
    send(
        "subjects",
        &signed(&office, "hq/door-1", "withdraw", "u-4", json!({"subject_id": "biden"})),
    );
    assert_eq!(client.await_from(0, "reply/u-4").json()["error"]["code"], "wrong_audience");
    send("sync", &sync);
    alarm("replayed");
    let health = client.await_health("all of it is counted", |it| it["commands"] == 10);
    assert_eq!(
        health["commands_refused"],
        json!({"bad_signature": 2, "expired": 2, "replayed": 1, "unsigned": 1, "wrong_audience": 2})
    );
    assert_eq!(
        client.received_on("reply/u-1").len() + client.received_on("reply/u-2").len(),
        0,
        "not answered"
    );
    assert_eq!(client.received_on("reply/s-1").len(), 1, "a replay is not answered");
    assert_eq!(
        (client.received_on("reply/u-5").len(), client.received_on("reply/u-6").len()),
        (0, 1),
        "one of the late"
    );

    // Killed without a word, it still knows.
    daemon.kill();
    let from = client.received().len();
    let daemon = client.started(&home);
    send("sync", &sync);
    send("enrol", &enrol);
    let health = client.await_health("both are counted", |it| it["commands"] == 2);
    assert_eq!(health["commands_refused"], json!({"replayed": 2}));
    assert!(client.received()[from..].iter().all(|it| !it.part.starts_with("reply/")));
    assert_eq!(home.json(&["subjects", "--json"]), subjects, "nothing has changed");
    assert!(daemon.terminate().success());
}

/// The number of rows that the outbox ever had.
fn outbox_rows(home: &Home) -> i64 {
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    let sql = "select seq from sqlite_sequence where name = 'outbox'";
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn captured_tokens_do_not_slow_honest_commands() {
    const COPIES: usize = 300;
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let (home, office, _) = keyed(&broker);
    home.configure(
        broker.port(),
        &format!("[commands]\nper_minute_max = 10\ntrusted_keys = [\"{}\"]\n", office.public()),
    );
    let daemon = client.started(&home);
    let topic = |verb: &str| format!("{BASE}/command/{verb}");
    let executed = signed(&office, "hq/door-1", "sync", "s-1", json!({}));
    client.publish(&topic("sync"), executed.as_bytes());
    assert_eq!(client.await_from(0, "reply/s-1").json()["ok"], true);
    // The others can be made by whoever listened: late, for another device, and no command.
    let late = expired(&office, "s-2");
    let elsewhere = signed(&office, "hq/door-2", "sync", "s-3", json!({}));
    let malformed = malformed(&office, "s-4");
    let rows = outbox_rows(&home);
    for _ in 0..COPIES {
        client.publish(&topic("sync"), executed.as_bytes());
        client.publish(&topic("withdraw"), late.as_bytes());
        client.publish(&topic("sync"), elsewhere.as_bytes());
        client.publish(&topic("sync"), malformed.as_bytes());
    }
    for number in 0..5 {
        let request_id = format!("honest-{number}");
        let honest = signed(&office, "hq/door-1", "sync", &request_id, json!({}));
        client.publish(&topic("sync"), honest.as_bytes());
        let reply = client.await_from(0, &format!("reply/{request_id}")).json();
        assert_eq!(reply["ok"], true, "{reply}");
    }
    let health = client.await_health("all are counted", |it| {
        it["commands"].as_u64().unwrap() >= 6 + 4 * COPIES as u64
    });
    assert_eq!(health["commands_refused"]["replayed"], COPIES, "{health}");
    assert_eq!(health["commands_refused"]["expired"], COPIES, "{health}");
    assert_eq!(client.received_on("reply/s-1").len(), 1, "a replay is not answered");
    // Replies of the honest commands, and a few security events.
    let written = outbox_rows(&home) - rows;
    assert!((5..20).contains(&written), "{written} rows");
    // The sixth honest one and those up to the limit pass; what exceeds it is rejected.
    for number in 0..20 {
        let request_id = format!("fast-{number}");
        let fast = signed(&office, "hq/door-1", "sync", &request_id, json!({}));
        client.publish(&topic("sync"), fast.as_bytes());
    }
    let last = client.await_from(0, "reply/fast-19").json();
    assert_eq!(last["error"]["code"], "rate_limited", "{last}");
    assert!(daemon.terminate().success());
}

#[test]
fn replay_after_inner_expiry_is_rejected() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let (home, office, _) = keyed(&broker);
    let daemon = client.started(&home);
    let clock = SystemClock::new(Trust::Always);
    let expires_ms = clock.now().wall_ms + 8_000;
    let body = json!({"expires_at": rollcall::clock::rfc3339(expires_ms)});
    let token = signed(&office, "hq/door-1", "venues", "v-1", body);
    let send = || client.publish(&format!("{BASE}/command/venues"), token.as_bytes());
    send();
    assert_eq!(client.await_from(0, "reply/v-1").json()["ok"], true);
    daemon::until("the command is too late", || (clock.now().wall_ms > expires_ms).then_some(()));
    let rows = outbox_rows(&home);
    for _ in 0..50 {
        send();
    }
    let health = client.await_health("all are counted", |it| it["commands"] == 51);
    assert_eq!(health["commands_refused"], json!({"replayed": 50}));
    assert_eq!(client.received_on("reply/v-1").len(), 1, "the stored reply is not repeated");
    let written = outbox_rows(&home) - rows;
    assert!(written <= 2, "{written} rows for fifty replays");
    assert!(daemon.terminate().success());
}

#[test]
fn erasure_publishes_verifiable_receipt() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let daemon = client.started(&home);
    let answer = client.request("enrol", "e-1", enrolment("biden", "Joe", &[demo("biden.jpg")]));
    assert_eq!(answer["ok"], true, "{answer}");
    // Its answer is not kept: each time it is looked at again.
    for _ in 0..6 {
        let image = enrolment("x", "x", &[demo("biden.jpg")])["images"][0].clone();
        let seen = client.request("recognise", "r-1", json!({"image": image}));
        assert_eq!(seen["names"], json!(["Joe"]), "{seen}");
    }
    assert_eq!(
        client.request("withdraw", "w-1", json!({"subject_id": "biden", "erase": true}))["erased"],
        true
    );
    let listed = daemon::until("the receipt is there", || {
        let listed = home.json(&["erasures", "--json"]);
        listed[0]["receipt"].is_string().then(|| listed[0].clone())
    });
    let health = client.await_health("the device's key", |it| it["device_key"].is_string());
    let key = PublicKey::parse(health["device_key"].as_str().unwrap()).unwrap();
    let received = client.await_from(0, "receipt/biden");
    assert_eq!(
        String::from_utf8(received.payload).unwrap(),
        listed["receipt"],
        "published as it is kept"
    );
    let receipt = Receipt::verify(listed["receipt"].as_str().unwrap().as_bytes(), &key).unwrap();
    let reported = (receipt.subject_id.as_str(), receipt.request_id.as_deref(), receipt.references);
    assert_eq!(reported, ("biden", Some("w-1"), 1));
    assert_eq!(receipt.cleaned, ["database"]);
    assert!(daemon.terminate().success());
}
