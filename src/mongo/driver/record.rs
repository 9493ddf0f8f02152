//! Reads the attendance of one device as events, for `rollcall verify`.

use mongodb::bson::{Bson, Document, doc};
use serde_json::{Map, Value, json};

use super::fault::{MongoFault, driver_fault};
use super::link::{bounded, create_client};
use super::settings::MongoSettings;
use crate::clock::rfc3339;
use crate::ids::Origin;

/// Documents in one reply of the server.
const PAGE: u32 = 500;

/// Visits the attendances of a device, in no order, as events of the wire; `chain.corrections` has
/// their corrections. Returns the checkpoint beside them. The error is for operators.
pub async fn read_record(
    settings: &MongoSettings,
    origin: &Origin,
    visit: &mut dyn FnMut(Value),
) -> Result<Option<String>, String> {
    read(settings, origin, visit).await.map_err(|fault| fault.why)
}

async fn read(
    settings: &MongoSettings,
    origin: &Origin,
    visit: &mut dyn FnMut(Value),
) -> Result<Option<String>, MongoFault> {
    let limit = settings.timeout;
    let client = bounded("resolving the servers", limit, create_client(settings)).await?;
    let database = client.database(&settings.database);
    let devices = database.collection::<Document>("devices");
    let device = devices.find_one(doc! { "_id": &origin.device });
    let device = bounded("reading devices", limit, device).await?;
    let attendance = database.collection::<Document>("attendance");
    let wanted = doc! { "site": &origin.site, "device": &origin.device };
    let found = attendance.find(wanted).batch_size(PAGE);
    let mut cursor = bounded("reading attendance", limit, found).await?;
    while bounded("reading attendance", limit, cursor.advance()).await? {
        let document = cursor.deserialize_current().map_err(|error| driver_fault(&error))?;
        visit(event_of(&document));
    }
    let token = device.and_then(|it| it.get_str("checkpoint").ok().map(str::to_owned));
    Ok(token)
}

/// Returns a document as the event that it was made from.
fn event_of(document: &Document) -> Value {
    let field = |(key, value): (&String, &Bson)| {
        let key = if key == "_id" { "event_id" } else { key };
        (key.to_owned(), to_json(value))
    };
    Value::Object(document.iter().map(field).collect())
}

fn to_json(value: &Bson) -> Value {
    match value {
        Bson::Null => Value::Null,
        Bson::Boolean(it) => json!(it),
        Bson::Int32(it) => json!(it),
        Bson::Int64(it) => json!(it),
        Bson::Double(it) => json!(it),
        Bson::String(it) => json!(it),
        Bson::DateTime(it) => json!(rfc3339(it.timestamp_millis())),
        Bson::Array(it) => Value::Array(it.iter().map(to_json).collect()),
        Bson::Document(it) => {
            let members = it.iter().map(|(key, it)| (key.clone(), to_json(it)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        // Nothing of ours has another type.
        other => json!(other.to_string()),
    }
}
