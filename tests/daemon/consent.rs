//! Consents by a running daemon: required, recorded, withdrawn, and at their end.

use crate::support::client::Client;
use crate::support::daemon::{Home, until};
use crate::support::faces::{base64, demo, enrolment};
use crate::support::mosquitto::Mosquitto;
use rollcall::clock::{Clock as _, SystemClock, Trust, rfc3339};
use serde_json::{Value, json};

fn now_ms() -> i64 {
    SystemClock::new(Trust::Always).now().wall_ms
}

fn consent(valid_until_ms: Option<i64>) -> Value {
    json!({"given_at": "2026-01-02T03:04:05.000Z", "text_version": "2026-1",
           "valid_until": valid_until_ms.map(rfc3339), "recorded_by": "Front desk"})
}

fn recognised(client: &Client, request_id: &str) -> Value {
    let image = base64(&demo("obama3.jpg"));
    client.request("recognise", request_id, json!({"image": image}))["names"].clone()
}

#[test]
fn ended_consent_removes_templates_with_receipt() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "[camera]\nsource = \"none\"\n");
    let _daemon = client.started(&home);
    let mut enrol = enrolment("jdoe", "Jane Doe", &[demo("obama.jpg")]);
    enrol["consent"] = consent(None);
    assert_eq!(client.request("enrol", "c-1", enrol)["ok"], true);
    assert_eq!(recognised(&client, "c-2"), json!(["Jane Doe"]));
    // It ends in the moment in which it is recorded, or soon after.
    let until_ms = now_ms() + 8_000;
    let change = json!({"subject_id": "jdoe", "consent": consent(Some(until_ms))});
    let reply = client.request("consent", "c-3", change);
    assert_eq!(reply["consent"]["valid_until"], rfc3339(until_ms), "{reply}");

    let receipt = client.await_one("the receipt", |it| it.part == "receipt/jdoe");
    std::fs::write(home.path("receipt"), &receipt.payload).unwrap();
    let receipt = home.path("receipt");
    let verified = home.json(&["verify-receipt", receipt.to_str().unwrap()]);
    assert_eq!(verified["reason"], "consent_expired", "{verified}");
    assert_eq!((&verified["references"], &verified["kept"]), (&json!(1), &json!(["events"])));
    let event = client.await_one("the event", |it| {
        it.part == "event/enrolment" && it.json()["action"] == "withdrawn"
    });
    let event = event.json();
    assert_eq!(event["reason"], "consent_expired", "{event}");
    assert_eq!(event["consent"]["text_version"], "2026-1", "{event}");
    assert_eq!(recognised(&client, "c-4"), json!([]));
    assert_eq!(home.json(&["subjects", "--json"]), json!([]));
    let health = client.await_health("the count", |it| it["gallery"]["consents_ended"] == 1);
    assert_eq!(health["gallery"]["references"], 0, "{health}");
    let listed = home.json(&["erasures", "--json"]);
    assert_eq!(
        (&listed[0]["reason"], &listed[0]["events_kept"]),
        (&json!("consent_expired"), &json!(true))
    );
    assert!(!home.log().contains("Jane") && !home.log().contains("jdoe"), "{}", home.log());
}

#[test]
fn required_consent_is_demanded_everywhere() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let more = "[camera]\nsource = \"none\"\n[enrolment]\nconsent = \"required\"\n";
    let home = Home::new(broker.port(), more);
    let _daemon = client.started(&home);
    let without = enrolment("jdoe", "Jane Doe", &[demo("obama.jpg")]);
    let reply = client.request("enrol", "q-1", without.clone());
    assert_eq!(reply["error"]["code"], "consent_required", "{reply}");
    assert_eq!(reply["error"]["field"], "consent", "{reply}");
    let mut past = without.clone();
    past["consent"] = consent(Some(now_ms() - 1));
    let reply = client.request("enrol", "q-2", past);
    assert_eq!(reply["error"]["field"], "consent.valid_until", "{reply}");
    let camera = json!({"subject": {"id": "jdoe", "name": "Jane Doe"}});
    let reply = client.request("enrol_from_camera", "q-3", camera);
    assert_eq!(reply["error"]["code"], "consent_required", "{reply}");

    let photograph = demo("obama.jpg");
    let photograph = photograph.to_str().unwrap();
    let enrol = ["enrol", "--id", "jdoe", "--name", "Jane Doe", photograph];
    assert!(!home.output(&enrol).status.success());
    let stated =
        ["--consent-version", "2026-1", "--consent-until", "2099-12-31", "--recorded-by", "Desk"];
    let output = home.output(&[&enrol[..], &stated].concat());
    assert!(output.status.success(), "{output:?}");
    let listed = home.json(&["subjects", "--json"]);
    assert_eq!(listed[0]["consent"]["valid_until"], "2100-01-01T00:00:00.000Z", "{listed}");
    assert_eq!(home.json(&["subjects", "--json", "--consent-ending"]), json!([]));
    // Another photograph needs no second consent.
    assert_eq!(client.request("enrol", "q-4", without)["ok"], true);

    let unknown =
        client.request("consent", "q-5", json!({"subject_id": "x", "consent": consent(None)}));
    assert_eq!(unknown["error"]["code"], "unknown_subject", "{unknown}");
    let output = home.output(&["consent", "jdoe", "--withdraw"]);
    assert!(output.status.success(), "{output:?}");
    let erased = client.await_one("the event", |it| {
        it.part == "event/enrolment" && it.json()["action"] == "erased"
    });
    assert_eq!(erased.json()["reason"], "consent_withdrawn");
    until("the receipt", || {
        let listed = home.json(&["erasures", "--json"]);
        (listed[0]["receipt"].is_string() && listed[0]["events_kept"] == false).then_some(())
    });
}

#[test]
fn import_records_consents_of_the_table() {
    let broker = Mosquitto::start();
    let more = "[camera]\nsource = \"none\"\n[enrolment]\nconsent = \"required\"\n";
    let home = Home::new(broker.port(), more);
    let folder = home.path("photos");
    std::fs::create_dir(&folder).unwrap();
    for name in ["obama.jpg", "biden.jpg"] {
        std::fs::copy(demo(name), folder.join(name)).unwrap();
    }
    let map = home.path("people.csv");
    let import = |rows: &str, more: &[&str]| {
        let heading = "file;id;name;consent_version;consent_given;consent_until;recorded_by";
        std::fs::write(&map, format!("{heading}\n{rows}\n")).unwrap();
        let [folder, map] = [&folder, &map].map(|it| it.to_str().unwrap());
        let args = [&["import", "--json", "--photos", folder, "--map", map], more].concat();
        home.output(&args)
    };
    let rows = "obama.jpg;1;A;v1;2026-01-02;2098-12-31;Desk\nbiden.jpg;2;B;;;;";
    assert!(!import(rows, &[]).status.success(), "one has none");
    assert_eq!(home.json(&["subjects", "--json"]).as_array().unwrap().len(), 1);
    assert!(
        !import(rows, &["--consent-version", "v0", "--recorded-by", "Office"]).status.success()
    );
    let stated =
        ["--consent-version", "v0", "--consent-given", "2026-01-01", "--recorded-by", "Office"];
    let output = import(rows, &stated);
    assert!(output.status.success(), "{output:?}");
    // Known photographs, and a later consent; an earlier one changes nothing.
    let renewed = rows.replace(";v1;2026-01-02;", ";v2;2026-02-02;");
    assert!(import(&renewed, &stated).status.success());
    assert!(import(rows, &stated).status.success());
    let listed = home.json(&["subjects", "--json"]);
    let versions = [0, 1].map(|at: usize| listed[at]["consent"]["text_version"].clone());
    assert_eq!(versions, ["v2", "v0"], "{listed}");
    for wrong in [
        "obama.jpg;1;A;v 1;2026-01-02;;Desk",
        "obama.jpg;1;A;v1;;;Desk",
        "obama.jpg;1;A;v1;2026-01-02;;",
    ] {
        assert!(!import(wrong, &[]).status.success(), "{wrong}");
    }
}
