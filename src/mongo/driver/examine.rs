//! The check of MongoDB for `doctor`, with texts for operators.

use std::time::Duration;

use mongodb::Client;
use mongodb::bson::{Bson, Document, doc};

use super::fault::{MongoFault, WriteVerdict};
use super::link::{WIRE_VERSION_MIN, bounded, create_client};
use super::settings::MongoSettings;
use crate::mongo::types::{Examined, MongoFlaw};

/// The actions that are needed, by collection (docs/operations.md has the role).
const NEEDED: [(&str, &[&str]); 3] = [
    ("attendance", &["find", "insert", "update", "createIndex"]),
    ("subjects", &["find", "insert", "update", "remove"]),
    ("devices", &["find", "insert", "update"]),
];

/// The same for the venues, whose collection may have another name.
const NEEDED_OF_VENUES: &[&str] = &["find", "insert", "update"];

/// What the former service named its database and its collection.
const FORMER_DATABASE: &str = "SmartAttendanceSystem";
const FORMER_COLLECTION: &str = "attendancevenues";

/// A larger difference of the clocks is reported; nothing of ours depends on the server's.
const SKEW_MAX_MS: i64 = 5_000;

/// Checks access without changing anything. `now_ms` is this device's wall clock.
pub async fn examine(settings: &MongoSettings, now_ms: i64) -> Examined {
    match examine_server(settings, now_ms).await {
        Ok(examined) => examined,
        Err(fault) if fault.verdict == WriteVerdict::Refused => Examined::Fault(format!(
            "{} refuses access: {}; check user, password and roles",
            settings.hosts, fault.why
        )),
        Err(fault) => {
            let advice = "events stay pending on disk until it can be reached. Check that it is \
                          running, the address, firewalls in between, and whether it uses TLS";
            let is_certificate = fault.is_certificate_failure();
            let flaw = if is_certificate { MongoFlaw::Certificate } else { MongoFlaw::Unreachable };
            Examined::Warning(flaw, format!("{}: {}; {advice}", settings.hosts, fault.why))
        }
    }
}

async fn examine_server(settings: &MongoSettings, now_ms: i64) -> Result<Examined, MongoFault> {
    let limit = settings.timeout.min(Duration::from_secs(10));
    let client = bounded("resolving the servers", limit, create_client(settings)).await?;
    let admin = client.database("admin");
    let hello = bounded("the command hello", limit, admin.run_command(doc! { "hello": 1 })).await?;
    let wire = hello.get_i32("maxWireVersion").unwrap_or_default();
    if wire < WIRE_VERSION_MIN {
        return Ok(Examined::Fault("this MongoDB is older than 4.4".into()));
    }
    let status = doc! { "connectionStatus": 1, "showPrivileges": true };
    let status = bounded("the command connectionStatus", limit, admin.run_command(status)).await?;
    let database = client.database(&settings.database);
    // Fails if the user has no access at all.
    let query = doc! { "find": "devices", "limit": 1, "projection": { "_id": 1 } };
    bounded("a first query", limit, database.run_command(query)).await?;
    let missing = missing_actions(&status, &settings.database, &settings.venues);
    if !missing.is_empty() {
        let advice = "create the role of docs/operations.md and grant it to the user";
        return Ok(Examined::Fault(format!("the user may not {}: {advice}", missing.join(", "))));
    }
    let mut findings = vec![format!("{} replies as {}", settings.hosts, describe_server(&hello))];
    let mut flaw = None;
    if hello.get_str("setName").is_err() && !matches!(hello.get_str("msg"), Ok("isdbgrid")) {
        flaw = Some(MongoFlaw::SingleServer);
        findings.push(
            "a single server without a replica set: if its disk fails, what was delivered is lost. \
             Start it with --replSet, even alone"
                .into(),
        );
    }
    if let Some(advice) = bounded(
        "looking for the former service's venues",
        limit,
        advice_on_former_service(&client, settings),
    )
    .await?
    {
        flaw = flaw.or(Some(MongoFlaw::FormerService));
        findings.push(advice);
    }
    if let Ok(theirs) = hello.get_datetime("localTime") {
        let skew_ms = theirs.timestamp_millis() - now_ms;
        if skew_ms.abs() > SKEW_MAX_MS {
            flaw = flaw.or(Some(MongoFlaw::Clock));
            findings.push(format!(
                "its clock and this device's are {} s apart: one of them is wrong",
                skew_ms.abs() / 1000
            ));
        }
    }
    let findings = findings.join("; ");
    Ok(match flaw {
        None => Examined::Good(findings),
        Some(flaw) => Examined::Warning(flaw, findings),
    })
}

/// What to set so that venues of the former service are used, where there are some and another
/// database or collection is configured.
async fn advice_on_former_service(
    client: &Client,
    settings: &MongoSettings,
) -> mongodb::error::Result<Option<String>> {
    if settings.venues == FORMER_COLLECTION {
        return Ok(None);
    }
    let filter = doc! { "name": FORMER_COLLECTION };
    let mut found = None;
    for name in [settings.database.as_str(), FORMER_DATABASE] {
        let list = doc! {
            "listCollections": 1, "filter": filter.clone(), "nameOnly": true,
            "authorizedCollections": true,
        };
        // Who may not list them has no use for the advice.
        let Ok(reply) = client.database(name).run_command(list).await else { continue };
        let batch = reply.get_document("cursor").and_then(|it| it.get_array("firstBatch"));
        if batch.is_ok_and(|it| !it.is_empty()) {
            found = Some(name);
            break;
        }
    }
    Ok(found.map(|database| {
        format!(
            "the database {database} has the venues of the former service: to go on with them set \
             [mongo] database = \"{database}\" and venues_collection = \"{FORMER_COLLECTION}\" \
             (docs/migration.md)"
        )
    }))
}

fn describe_server(hello: &Document) -> String {
    match (hello.get_str("setName"), hello.get_str("msg")) {
        (Ok(name), _) => {
            let hosts = hello.get_array("hosts").map_or(0, Vec::len);
            format!("replica set {name} with {hosts} member{}", if hosts == 1 { "" } else { "s" })
        }
        (_, Ok("isdbgrid")) => "a sharded cluster".into(),
        _ => "a single server".into(),
    }
}

/// Returns the needed actions that the user may not do. Without access control nothing is missing.
fn missing_actions(status: &Document, database: &str, venues: &str) -> Vec<String> {
    let info = status.get_document("authInfo").cloned().unwrap_or_default();
    let list = |key: &str| info.get_array(key).cloned().unwrap_or_default();
    if list("authenticatedUsers").is_empty() {
        return Vec::new();
    }
    let privileges = list("authenticatedUserPrivileges");
    let allowed = |collection: &str, action: &str| {
        privileges.iter().filter_map(Bson::as_document).any(|privilege| {
            let of = privilege
                .get_document("resource")
                .is_ok_and(|it| covers_collection(it, database, collection));
            let actions = privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default();
            of && actions.iter().any(
                |it| matches!(it.as_str(), Some(name) if name == action || name == "anyAction"),
            )
        })
    };
    let mut missing = Vec::new();
    for (collection, actions) in NEEDED.into_iter().chain([(venues, NEEDED_OF_VENUES)]) {
        let lacking: Vec<&str> =
            actions.iter().copied().filter(|it| !allowed(collection, it)).collect();
        if !lacking.is_empty() {
            missing.push(format!("{} in {database}.{collection}", lacking.join(" and ")));
        }
    }
    missing
}

fn covers_collection(resource: &Document, database: &str, collection: &str) -> bool {
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
    fn missing_actions_are_named() {
        let with = |privileges: Vec<Document>| {
            let status = doc! { "authInfo": {
                "authenticatedUsers": [{ "user": "door", "db": "admin" }], "authenticatedUserPrivileges": privileges,
            } };
            missing_actions(&status, "rollcall", "venues")
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
        assert!(
            missing_actions(
                &doc! { "authInfo": { "authenticatedUsers": [] } },
                "rollcall",
                "venues"
            )
            .is_empty()
        );
    }
}
