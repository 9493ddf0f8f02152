//! The venues as clients of the legacy API read and write them: documents with a name, a time and the
//! names of whoever was ever there.

use mongodb::bson::{Bson, Document, doc};

use super::documents;
use super::link::MongoLink;
use crate::mongo::types::{LegacyVenue, VenueRecord};

/// The most venues of one list. The server ends a reply at 16 MB besides.
const VENUES_MAX: i64 = 5_000;

impl MongoLink {
    pub(super) fn venues(&self) -> &str {
        &self.settings().venues
    }

    /// Lists the venues of the collection, the oldest document first. The error, here and below, is
    /// for operators.
    pub async fn list_legacy_venues(&self) -> Result<Vec<LegacyVenue>, String> {
        self.find_legacy_venues(doc! {}, VENUES_MAX).await
    }

    pub async fn find_legacy_venue(&self, id: &str) -> Result<Option<LegacyVenue>, String> {
        let filter = doc! { "_id": documents::venue_id(id) };
        Ok(self.find_legacy_venues(filter, 1).await?.pop())
    }

    /// Writes a venue at once that the sink would write with the next event.
    pub async fn put_legacy_venue(&self, venue: &VenueRecord) -> Result<(), String> {
        self.update_venue(documents::put_venue(venue)).await
    }

    /// Adds a name that stands for no subject.
    pub async fn add_legacy_name(&self, id: &str, name: &str) -> Result<(), String> {
        self.update_venue(documents::add_venue_names(id, [name])).await
    }

    async fn update_venue(&self, statement: Document) -> Result<(), String> {
        let faults = self.update(self.venues(), &[statement]).await.map_err(|fault| fault.why)?;
        faults.into_iter().next().map_or(Ok(()), |(_, fault)| Err(fault.why))
    }

    async fn find_legacy_venues(
        &self,
        filter: Document,
        limit: i64,
    ) -> Result<Vec<LegacyVenue>, String> {
        let command = doc! {
            "find": self.venues(),
            "filter": filter,
            "projection": { "name": 1, "date_time": 1, "attendance": 1 },
            "limit": limit,
            "batchSize": limit,
            "singleBatch": true,
            "maxTimeMS": self.server_limit_ms(),
        };
        let reply = self.run_command("reading the venues", command).await;
        let reply = reply.map_err(|fault| fault.why)?;
        let batch = reply.get_document("cursor").and_then(|it| it.get_array("firstBatch"));
        let batch = batch.map_err(|_| "the server's reply has no documents".to_owned())?;
        Ok(batch.iter().filter_map(Bson::as_document).filter_map(read_venue).collect())
    }
}

fn read_venue(document: &Document) -> Option<LegacyVenue> {
    let id = match document.get("_id")? {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(id) => id.clone(),
        _ => return None,
    };
    let names = document.get_array("attendance").map(Vec::as_slice).unwrap_or_default();
    Some(LegacyVenue {
        name: document.get_str("name").unwrap_or(&id).to_owned(),
        date_time: document.get("date_time").and_then(documents::read_date_time),
        attendance: names.iter().filter_map(Bson::as_str).map(str::to_owned).collect(),
        id,
    })
}
