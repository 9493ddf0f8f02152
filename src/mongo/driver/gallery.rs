//! The site's gallery in MongoDB: one sealed document for each subject and site, in a collection of
//! its own.
//!
//! Not in `subjects`: an erasure deletes the document there, and a tombstone has to outlive it; and
//! readers of names need not be able to read templates, sealed or not.
//!
//! Invariants: a sealed document is replaced by a newer version only, which the server decides in
//! the statement that writes. One that does not open is replaced only while it is still the one
//! that was read. Each reply is bounded, whatever is in the collection.

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};

use super::fault::{DUPLICATE_KEY, MongoFault, WriteVerdict};
use super::link::MongoLink;
use super::sink::to_delivery;
use crate::ids::{SubjectId, check_id};
use crate::mongo::types::{ListedRecord, RecordPage, StoredRecord};
use crate::store::relay::Delivery;
use crate::store::{SealedRecord, VersionRecord};
use crate::wire::subject::Version;

const COLLECTION: &str = "gallery";
/// Versions that are read at a time, without the sealed content.
const PAGE: i64 = 1_000;
/// The largest document that a device writes: a sealed record of 1 MiB and its fields. `sealed` of
/// a larger one is not read.
const DOCUMENT_BYTES_MAX: i64 = (1 << 20) + 4096;

impl MongoLink {
    /// Reads the change counter, which each delivery to the gallery increments. The error, here and
    /// below, is for operators.
    pub async fn read_change_counter(&self, site: &str) -> Result<Option<i64>, String> {
        let found = self.find_in_gallery(doc! { "_id": site }, doc! { "rung": 1 }, 1).await?;
        Ok(found.first().and_then(|it| integer(it, "rung")))
    }

    /// Lists the versions that the site has, by subject, after this document.
    pub async fn list_records(
        &self,
        site: &str,
        after: Option<&str>,
    ) -> Result<RecordPage, String> {
        let from = after.map_or_else(|| format!("{site}/"), str::to_owned);
        // Ids hold no slash, and the character that follows it is the zero.
        let filter = doc! { "_id": { "$gt": from, "$lt": format!("{site}0") } };
        let projection = doc! {
            "version.withdrawals": 1, "version.changes": 1, "version.device": 1, "withdrawn": 1,
            "bytes": { "$bsonSize": "$$ROOT" },
        };
        let found = self.find_in_gallery(filter, projection, PAGE).await?;
        let last = found.last().and_then(|it| it.get_str("_id").ok()).map(str::to_owned);
        let listed = |it: &Document| ListedRecord {
            subject_id: subject_of(it, site),
            version: version_of(it),
            bytes: integer(it, "bytes").map_or(u64::MAX, i64::unsigned_abs),
        };
        Ok(RecordPage { listed: found.iter().map(listed).collect(), last })
    }

    /// Reads the documents of these subjects. Those that are gone are left out, and those that do
    /// not fit into one reply of the server (16 MB).
    pub async fn read_records(
        &self,
        site: &str,
        ids: &[SubjectId],
    ) -> Result<Vec<StoredRecord>, String> {
        let wanted: Vec<String> = ids.iter().map(|id| document_id(site, id)).collect();
        let fits = doc! { "$lte": [{ "$bsonSize": "$$ROOT" }, DOCUMENT_BYTES_MAX] };
        let projection = doc! {
            "version.withdrawals": 1, "version.changes": 1, "version.device": 1, "withdrawn": 1,
            "bytes": { "$bsonSize": "$$ROOT" },
            "sealed": { "$cond": [fits, "$sealed", Bson::Null] },
        };
        let found = self
            .find_in_gallery(doc! { "_id": { "$in": wanted } }, projection, ids.len() as i64)
            .await?;
        let read = |it: &Document| {
            let subject_id = subject_of(it, site)?;
            let version = version_of(it);
            let bytes = integer(it, "bytes").unwrap_or(i64::MAX);
            let sealed = it.get_binary_generic("sealed").cloned().unwrap_or_default();
            Some(StoredRecord { subject_id, version, bytes, sealed })
        };
        Ok(found.iter().filter_map(read).collect())
    }

    /// Replaces documents that do not open, each only while it is the one that was read. What
    /// another device wrote in between stays; the next read shows the result.
    pub async fn replace_unsealed(
        &self,
        site: &str,
        records: &[(SealedRecord, StoredRecord)],
    ) -> Result<(), String> {
        let statements: Vec<Document> =
            records.iter().map(|it| replace_statement(site, &it.0, &it.1)).collect();
        let faults = self.update(COLLECTION, &statements).await.map_err(|fault| fault.why)?;
        let first = faults.into_iter().next();
        self.increment_change_counter(site).await;
        first.map_or(Ok(()), |(_, fault)| Err(fault.why))
    }

    /// Writes each record unless one as new is there. Returns a delivery for each, in order.
    /// `attempts` are those of the outbox rows.
    pub async fn put_records(
        &self,
        site: &str,
        records: &[SealedRecord],
        attempts: &[u32],
    ) -> Vec<Delivery> {
        let mut deliveries = vec![Delivery::Acknowledged; records.len()];
        let mut waiting: Vec<usize> = (0..records.len()).collect();
        // The first round also inserts. A duplicate key then means that a newer one is there, or
        // that another device inserted the first one at that moment; the second round decides.
        for upsert in [true, false] {
            let statements: Vec<Document> =
                waiting.iter().map(|at| put_statement(site, &records[*at], upsert)).collect();
            let faults = match self.update(COLLECTION, &statements).await {
                Ok(faults) => faults,
                Err(fault) => {
                    let verdict = if fault.verdict == WriteVerdict::Refused {
                        WriteVerdict::Refused
                    } else {
                        WriteVerdict::Retry
                    };
                    let fault = MongoFault { verdict, ..fault };
                    for at in waiting {
                        deliveries[at] = to_delivery(&fault, 0);
                    }
                    return deliveries;
                }
            };
            let mut duplicates = Vec::new();
            for (at, fault) in faults {
                let Some(at) = waiting.get(at).copied() else { continue };
                if upsert && fault.code == Some(DUPLICATE_KEY) {
                    duplicates.push(at);
                } else {
                    deliveries[at] = to_delivery(&fault, attempts[at]);
                }
            }
            waiting = duplicates;
            if waiting.is_empty() {
                break;
            }
        }
        self.increment_change_counter(site).await;
        deliveries
    }

    /// Makes the other devices scan at once. If it fails they scan within a minute.
    async fn increment_change_counter(&self, site: &str) {
        let increment =
            doc! { "q": { "_id": site }, "u": { "$inc": { "rung": 1_i64 } }, "upsert": true };
        let fault = match self.update(COLLECTION, &[increment]).await {
            Ok(faults) => faults.into_iter().next().map(|it| it.1),
            Err(fault) => Some(fault),
        };
        if let Some(fault) = fault {
            tracing::debug!(reason = fault.why, "the gallery's change counter is not incremented");
        }
    }

    /// Reads from the primary, in one reply, which the server keeps below 16 MB.
    async fn find_in_gallery(
        &self,
        filter: Document,
        projection: Document,
        limit: i64,
    ) -> Result<Vec<Document>, String> {
        let command = doc! {
            "find": COLLECTION,
            "filter": filter,
            "projection": projection,
            "sort": { "_id": 1 },
            "limit": limit,
            "batchSize": limit,
            "singleBatch": true,
            "maxTimeMS": self.server_limit_ms(),
        };
        let mut reply = self
            .run_command("reading the site's gallery", command)
            .await
            .map_err(|fault| fault.why)?;
        let Some(Bson::Document(mut cursor)) = reply.remove("cursor") else {
            return Err("the server's reply has no cursor".into());
        };
        let Some(Bson::Array(batch)) = cursor.remove("firstBatch") else {
            return Err("the server's reply has no documents".into());
        };
        let document = |it| if let Bson::Document(it) = it { Some(it) } else { None };
        Ok(batch.into_iter().filter_map(document).collect())
    }
}

fn document_id(site: &str, id: &SubjectId) -> String {
    format!("{site}/{id}")
}

fn subject_of(document: &Document, site: &str) -> Option<SubjectId> {
    let id = document.get_str("_id").ok()?.strip_prefix(site)?.strip_prefix('/')?;
    SubjectId::new(id).ok().filter(|it| it.as_str() == id)
}

fn version_of(document: &Document) -> Option<VersionRecord> {
    let version = document.get_document("version").ok()?;
    let number = |name| u32::try_from(integer(version, name)?).ok();
    let device = version.get_str("device").ok().filter(|it| check_id(it).is_ok())?.to_owned();
    let version =
        Version { withdrawals: number("withdrawals")?, changes: number("changes")?, device };
    Some(VersionRecord { version, withdrawn: document.get_bool("withdrawn").ok()?, erased: false })
}

fn integer(document: &Document, name: &str) -> Option<i64> {
    match document.get(name)? {
        Bson::Int64(it) => Some(*it),
        Bson::Int32(it) => Some(i64::from(*it)),
        _ => None,
    }
}

/// `Version::is_newer` as a filter: it matches all that is not as new as this. A document without a
/// version is not.
fn put_statement(site: &str, record: &SealedRecord, upsert: bool) -> Document {
    let Version { withdrawals, changes, device } = &record.version.version;
    let withdrawals = i64::from(*withdrawals);
    let changes = i64::from(*changes);
    let withdrawn = record.version.withdrawn;
    let as_new = vec![
        doc! { "version.withdrawals": { "$gt": withdrawals } },
        doc! { "version.withdrawals": withdrawals, "version.changes": { "$gt": changes } },
        doc! { "version.withdrawals": withdrawals, "version.changes": changes, "withdrawn": { "$gt": withdrawn } },
        doc! { "version.withdrawals": withdrawals, "version.changes": changes, "withdrawn": withdrawn,
        "version.device": { "$gte": device } },
    ];
    let q = doc! { "_id": document_id(site, &record.subject_id), "$nor": as_new };
    doc! { "q": q, "u": { "$set": record_fields(site, record) }, "upsert": upsert }
}

fn record_fields(site: &str, record: &SealedRecord) -> Document {
    let Version { withdrawals, changes, device } = &record.version.version;
    let sealed = Binary { subtype: BinarySubtype::Generic, bytes: record.sealed.clone() };
    doc! {
        "site": site,
        "subject": record.subject_id.as_str(),
        "version": { "withdrawals": i64::from(*withdrawals), "changes": i64::from(*changes), "device": device },
        "withdrawn": record.version.withdrawn,
        "sealed": sealed,
    }
}

/// Replaces the whole document, so that nothing of it stays. Size and version identify it.
fn replace_statement(site: &str, record: &SealedRecord, stored: &StoredRecord) -> Document {
    let mut q = doc! {
        "_id": document_id(site, &record.subject_id),
        "$expr": { "$eq": [{ "$bsonSize": "$$ROOT" }, stored.bytes] },
    };
    if let Some(VersionRecord { version, withdrawn, .. }) = &stored.version {
        q.insert("version.withdrawals", i64::from(version.withdrawals));
        q.insert("version.changes", i64::from(version.changes));
        q.insert("version.device", version.device.as_str());
        q.insert("withdrawn", *withdrawn);
    }
    doc! { "q": q, "u": record_fields(site, record), "upsert": false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_without_version_is_none() {
        let version = doc! { "withdrawals": 1_i64, "changes": 2, "device": "door-1" };
        let good = doc! { "_id": "hq/jane", "version": version.clone(), "withdrawn": false };
        assert_eq!(version_of(&good).unwrap().version.changes, 2);
        assert_eq!(subject_of(&good, "hq"), SubjectId::new("jane").ok());
        for (name, value) in [
            ("withdrawals", Bson::Int64(-1)),
            ("withdrawals", Bson::Int64(1 << 32)),
            ("changes", Bson::Double(2.0)),
            ("device", Bson::String("a/b".into())),
        ] {
            let mut bad = version.clone();
            bad.insert(name, value);
            assert_eq!(
                version_of(&doc! { "version": bad.clone(), "withdrawn": false }),
                None,
                "{bad}"
            );
        }
        for id in ["hq", "hq/", "hq/a/b", "other/jane"] {
            assert_eq!(subject_of(&doc! { "_id": id }, "hq"), None, "{id}");
        }
    }
}
