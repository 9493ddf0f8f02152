//! What `doctor` finds out about MongoDB, in words for whoever looks after the device.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};

use super::fault::{Fault, Verdict};
use super::link::{WIRE_VERSION_MIN, bounded, connect};
use super::settings::MongoSettings;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examined {
    Good(String),
    /// It works, but not as well as it could.
    Warning(String),
    /// Nothing is delivered until this is put right.
    Fault(String),
}

/// What is needed where (docs/operations.md has the role).
const NEEDED: [(&str, &[&str]); 4] = [
    ("attendance", &["find", "insert", "update", "createIndex"]),
    ("venues", &["find", "insert", "update"]),
    ("subjects", &["find", "insert", "update", "remove"]),
    ("devices", &["find", "insert", "update"]),
];

/// Clocks further apart than this are worth a word; nothing of ours depends on the server's.
const SKEW_MAX_MS: i64 = 5_000;

/// Changes nothing. `now_ms` is this device's wall clock.
pub async fn examine(settings: &MongoSettings, now_ms: i64) -> Examined {
    match look(settings, now_ms).await {
        Ok(examined) => examined,
        Err(fault) if fault.verdict == Verdict::Refused => Examined::Fault(format!(
            "{} refuses us: {}; check user, password and roles",
            settings.place, fault.why
        )),
        Err(fault) => {
            let words = "events wait on disk until it can be reached. Is it running, is the address right, is a firewall in \
                         between, does it speak TLS if we do?";
            Examined::Warning(format!("{}: {}; {words}", settings.place, fault.why))
        }
    }
}

async fn look(settings: &MongoSettings, now_ms: i64) -> Result<Examined, Fault> {
    let limit = settings.timeout.min(Duration::from_secs(10));
    let client = bounded("the look-up of the servers", limit, connect(settings)).await?;
    let admin = client.database("admin");
    let hello = bounded("the greeting", limit, admin.run_command(doc! { "hello": 1 })).await?;
    let wire = hello.get_i32("maxWireVersion").unwrap_or_default();
    if wire < WIRE_VERSION_MIN {
        return Ok(Examined::Fault("this MongoDB is older than 4.4".into()));
    }
    let status = doc! { "connectionStatus": 1, "showPrivileges": true };
    let status = bounded("the question who we are", limit, admin.run_command(status)).await?;
    let database = client.database(&settings.database);
    // Tells whether it wants to know us at all.
    let ask = doc! { "find": "devices", "limit": 1, "projection": { "_id": 1 } };
    bounded("a first question", limit, database.run_command(ask)).await?;
    let missing = missing(&status, &settings.database);
    if !missing.is_empty() {
        let words = "make the role of docs/operations.md and grant it to the user";
        return Ok(Examined::Fault(format!("the user may not {}: {words}", missing.join(", "))));
    }
    let mut words = vec![format!("{} answers as {}", settings.place, kind(&hello))];
    let mut good = true;
    if hello.get_str("setName").is_err() && !matches!(hello.get_str("msg"), Ok("isdbgrid")) {
        good = false;
        words.push(
            "a single server without a replica set: if its disk dies, so does what was delivered. Start it with --replSet, even alone"
                .into(),
        );
    }
    if let Ok(theirs) = hello.get_datetime("localTime") {
        let skew_ms = theirs.timestamp_millis() - now_ms;
        if skew_ms.abs() > SKEW_MAX_MS {
            good = false;
            words.push(format!(
                "its clock and ours are {} s apart: one of them is wrong",
                skew_ms.abs() / 1000
            ));
        }
    }
    let words = words.join("; ");
    Ok(if good { Examined::Good(words) } else { Examined::Warning(words) })
}

fn kind(hello: &Document) -> String {
    match (hello.get_str("setName"), hello.get_str("msg")) {
        (Ok(name), _) => {
            let hosts = hello.get_array("hosts").map_or(0, Vec::len);
            format!("replica set {name} with {hosts} member{}", if hosts == 1 { "" } else { "s" })
        }
        (_, Ok("isdbgrid")) => "a sharded cluster".into(),
        _ => "a single server".into(),
    }
}

/// What the user may not do of what is needed. Without users (no access control) everything may be done.
fn missing(status: &Document, database: &str) -> Vec<String> {
    let info = status.get_document("authInfo").cloned().unwrap_or_default();
    let list = |key: &str| info.get_array(key).cloned().unwrap_or_default();
    if list("authenticatedUsers").is_empty() {
        return Vec::new();
    }
    let privileges = list("authenticatedUserPrivileges");
    let allowed = |collection: &str, action: &str| {
        privileges.iter().filter_map(Bson::as_document).any(|privilege| {
            let of =
                privilege.get_document("resource").is_ok_and(|it| covers(it, database, collection));
            let actions = privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default();
            of && actions.iter().any(
                |it| matches!(it.as_str(), Some(name) if name == action || name == "anyAction"),
            )
        })
    };
    let mut missing = Vec::new();
    for (collection, actions) in NEEDED {
        let lacking: Vec<&str> =
            actions.iter().copied().filter(|it| !allowed(collection, it)).collect();
        if !lacking.is_empty() {
            missing.push(format!("{} in {database}.{collection}", lacking.join(" and ")));
        }
    }
    missing
}

fn covers(resource: &Document, database: &str, collection: &str) -> bool {
    if resource.get_bool("anyResource").unwrap_or_default() {
        return true;
    }
    let fits =
        |key: &str, name: &str| resource.get_str(key).is_ok_and(|it| it.is_empty() || it == name);
    fits("db", database) && fits("collection", collection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_may_not_do_is_named() {
        let with = |privileges: Vec<Document>| {
            let status = doc! { "authInfo": {
                "authenticatedUsers": [{ "user": "door", "db": "admin" }], "authenticatedUserPrivileges": privileges,
            } };
            missing(&status, "rollcall")
        };
        let all = ["find", "insert", "update", "remove", "createIndex"];
        let on = |collection: &str, actions: &[&str]| {
            doc! { "resource": { "db": "rollcall", "collection": collection }, "actions": actions }
        };
        assert!(with(vec![on("", &all)]).is_empty());
        assert!(
            with(vec![doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] }])
                .is_empty()
        );
        let only = vec![
            on("attendance", &all),
            on("venues", &all),
            on("devices", &all),
            on("subjects", &["find"]),
        ];
        assert_eq!(with(only), ["insert and update and remove in rollcall.subjects"]);
        let elsewhere =
            doc! { "resource": { "db": "other", "collection": "" }, "actions": all.to_vec() };
        assert_eq!(with(vec![elsewhere]).len(), 4);
        assert!(missing(&doc! { "authInfo": { "authenticatedUsers": [] } }, "rollcall").is_empty());
    }
}
