//! The site's gallery in MongoDB: one sealed document for each subject and site, in a collection of its own.
//!
//! Not in `subjects`: an erasure deletes the document there, and a tombstone has to outlive it; and who may read names
//! there need not be able to read templates, sealed or not.
//!
//! Invariants: a document gives way to a newer account only, which the server decides in the statement that writes. A
//! page of what is read is bounded, whatever is in the collection.

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};

use super::fault::{DUPLICATE_KEY, Fault, Verdict};
use super::link::MongoLink;
use super::sink::delivery;
use crate::recognise::face::{SubjectId, check_id};
use crate::record::outbox::Delivery;
use crate::record::portable::Version;
use crate::record::store::Account;

const COLLECTION: &str = "gallery";
/// Accounts that are read at a time, without what is sealed.
const PAGE: i64 = 1_000;

/// A document as far as it can be judged without being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// None: the document is of nobody.
    pub subject_id: Option<SubjectId>,
    /// None: it does not say which account it is.
    pub account: Option<Account>,
    /// Of the whole document.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedPage {
    pub listed: Vec<Listed>,
    /// Where the next page begins; none after an empty one.
    pub last: Option<String>,
}

/// A document, with what only the site's doors can open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedAccount {
    pub subject_id: SubjectId,
    pub account: Account,
    pub sealed: Vec<u8>,
}

impl MongoLink {
    /// Counts up with each delivery to the gallery. The error, here and below, is for people.
    pub async fn gallery_bell(&self, site: &str) -> Result<Option<i64>, String> {
        let found = self.find_in_gallery(doc! { "_id": site }, doc! { "rung": 1 }, 1).await?;
        Ok(found.first().and_then(|it| whole(it, "rung")))
    }

    /// Which accounts the site has, by subject, after this document.
    pub async fn gallery_page(
        &self,
        site: &str,
        after: Option<&str>,
    ) -> Result<ListedPage, String> {
        let from = after.map_or_else(|| first(site), str::to_owned);
        // Ids hold no slash, and the character that follows it is the zero.
        let filter = doc! { "_id": { "$gt": from, "$lt": format!("{site}0") } };
        let projection = doc! {
            "version.withdrawals": 1, "version.changes": 1, "version.device": 1, "withdrawn": 1,
            "bytes": { "$bsonSize": "$$ROOT" },
        };
        let found = self.find_in_gallery(filter, projection, PAGE).await?;
        let last = found.last().and_then(|it| it.get_str("_id").ok()).map(str::to_owned);
        let listed = |it: &Document| Listed {
            subject_id: subject_of(it, site),
            account: account_of(it),
            bytes: whole(it, "bytes").map_or(u64::MAX, i64::unsigned_abs),
        };
        Ok(ListedPage { listed: found.iter().map(listed).collect(), last })
    }

    /// The documents of these subjects; those that are gone, or of no use, are left out.
    pub async fn gallery_records(
        &self,
        site: &str,
        ids: &[SubjectId],
    ) -> Result<Vec<SealedAccount>, String> {
        let wanted: Vec<String> = ids.iter().map(|id| key(site, id)).collect();
        let projection = doc! { "version": 1, "withdrawn": 1, "sealed": 1 };
        let found = self
            .find_in_gallery(doc! { "_id": { "$in": wanted } }, projection, ids.len() as i64)
            .await?;
        let read = |it: &Document| {
            let (subject_id, account) = (subject_of(it, site)?, account_of(it)?);
            let sealed = it.get_binary_generic("sealed").cloned().unwrap_or_default();
            Some(SealedAccount { subject_id, account, sealed })
        };
        Ok(found.iter().filter_map(read).collect())
    }

    /// Writes each unless one is there that is as new; with what became of it, by its place. `attempts` as in the rows.
    pub async fn put_gallery(&self, site: &str, records: &[(SealedAccount, u32)]) -> Vec<Delivery> {
        let mut deliveries = vec![Delivery::Acknowledged; records.len()];
        let mut waiting: Vec<usize> = (0..records.len()).collect();
        // First also where nothing is there. A duplicate key then means that a newer one is, or that another door put
        // the first one there at that moment: the second round, which finds it, takes the same decision for it.
        for upsert in [true, false] {
            let statements: Vec<Document> =
                waiting.iter().map(|at| put(site, &records[*at].0, upsert)).collect();
            let faults = match self.update(COLLECTION, &statements).await {
                Ok(faults) => faults,
                Err(fault) => {
                    let verdict = if fault.verdict == Verdict::Refused {
                        Verdict::Refused
                    } else {
                        Verdict::Retry
                    };
                    let fault = Fault { verdict, ..fault };
                    for at in waiting {
                        deliveries[at] = delivery(&fault, 0);
                    }
                    return deliveries;
                }
            };
            let mut met = Vec::new();
            for (at, fault) in faults {
                let Some(at) = waiting.get(at).copied() else { continue };
                if upsert && fault.code == Some(DUPLICATE_KEY) {
                    met.push(at);
                } else {
                    deliveries[at] = delivery(&fault, records[at].1);
                }
            }
            waiting = met;
            if waiting.is_empty() {
                break;
            }
        }
        self.ring(site).await;
        deliveries
    }

    /// The others look at once. Where it fails they look soon enough, so nothing depends on it.
    async fn ring(&self, site: &str) {
        let ring =
            doc! { "q": { "_id": site }, "u": { "$inc": { "rung": 1_i64 } }, "upsert": true };
        match self.update(COLLECTION, &[ring]).await {
            Ok(faults) if faults.is_empty() => {}
            Ok(faults) => {
                tracing::debug!(reason = faults[0].1.why, "the gallery's bell is not rung")
            }
            Err(fault) => tracing::debug!(reason = fault.why, "the gallery's bell is not rung"),
        }
    }

    /// On the primary, in one reply, which the server keeps below 16 MB.
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
        let mut reply =
            self.command("reading the site's gallery", command).await.map_err(|fault| fault.why)?;
        let Some(Bson::Document(mut cursor)) = reply.remove("cursor") else {
            return Err("the server's answer has no cursor".into());
        };
        let Some(Bson::Array(batch)) = cursor.remove("firstBatch") else {
            return Err("the server's answer has no documents".into());
        };
        let document = |it| if let Bson::Document(it) = it { Some(it) } else { None };
        Ok(batch.into_iter().filter_map(document).collect())
    }
}

/// Before every document of the site.
fn first(site: &str) -> String {
    format!("{site}/")
}

fn key(site: &str, id: &SubjectId) -> String {
    format!("{site}/{id}")
}

fn subject_of(document: &Document, site: &str) -> Option<SubjectId> {
    let id = document.get_str("_id").ok()?.strip_prefix(site)?.strip_prefix('/')?;
    SubjectId::new(id).ok().filter(|it| it.as_str() == id)
}

fn account_of(document: &Document) -> Option<Account> {
    let version = document.get_document("version").ok()?;
    let number = |name| u32::try_from(whole(version, name)?).ok();
    let device = version.get_str("device").ok().filter(|it| check_id(it).is_ok())?.to_owned();
    let version =
        Version { withdrawals: number("withdrawals")?, changes: number("changes")?, device };
    Some(Account { version, withdrawn: document.get_bool("withdrawn").ok()?, erased: false })
}

fn whole(document: &Document, name: &str) -> Option<i64> {
    match document.get(name)? {
        Bson::Int64(it) => Some(*it),
        Bson::Int32(it) => Some(i64::from(*it)),
        _ => None,
    }
}

/// `Version::is_newer` as a filter: not what is as new as this. A document that does not say what it is, is not.
fn put(site: &str, record: &SealedAccount, upsert: bool) -> Document {
    let Version { withdrawals, changes, device } = &record.account.version;
    let (withdrawals, changes) = (i64::from(*withdrawals), i64::from(*changes));
    let withdrawn = record.account.withdrawn;
    let as_new = vec![
        doc! { "version.withdrawals": { "$gt": withdrawals } },
        doc! { "version.withdrawals": withdrawals, "version.changes": { "$gt": changes } },
        doc! { "version.withdrawals": withdrawals, "version.changes": changes, "withdrawn": { "$gt": withdrawn } },
        doc! { "version.withdrawals": withdrawals, "version.changes": changes, "withdrawn": withdrawn,
        "version.device": { "$gte": device } },
    ];
    let sealed = Binary { subtype: BinarySubtype::Generic, bytes: record.sealed.clone() };
    let set = doc! {
        "site": site,
        "subject": record.subject_id.as_str(),
        "version": { "withdrawals": withdrawals, "changes": changes, "device": device },
        "withdrawn": withdrawn,
        "sealed": sealed,
    };
    let q = doc! { "_id": key(site, &record.subject_id), "$nor": as_new };
    doc! { "q": q, "u": { "$set": set }, "upsert": upsert }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_say_which_account_it_is_is_none() {
        let version = doc! { "withdrawals": 1_i64, "changes": 2, "device": "door-1" };
        let good = doc! { "_id": "hq/jane", "version": version.clone(), "withdrawn": false };
        assert_eq!(account_of(&good).unwrap().version.changes, 2);
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
                account_of(&doc! { "version": bad.clone(), "withdrawn": false }),
                None,
                "{bad}"
            );
        }
        for id in ["hq", "hq/", "hq/a/b", "other/jane"] {
            assert_eq!(subject_of(&doc! { "_id": id }, "hq"), None, "{id}");
        }
    }
}
