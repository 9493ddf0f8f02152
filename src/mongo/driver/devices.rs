//! The device's document in `devices`: up to when the shared record is complete, and when the device
//! was not watching.

use mongodb::bson::{Document, doc};

use super::documents::date;
use super::link::MongoLink;
use crate::mongo::types::{CoverageGap, DeviceRecord};

impl MongoLink {
    /// Writes the device's document. This also shows whether MongoDB is reachable while nothing is
    /// pending. The error is for operators.
    pub async fn put_device(&self, record: &DeviceRecord) -> Result<(), String> {
        let statement = device_statement(record);
        let outcome = match self.update("devices", &[statement]).await {
            Ok(faults) => faults.into_iter().next().map_or(Ok(()), |(_, fault)| Err(fault)),
            Err(fault) => Err(fault),
        };
        self.record_status_outcome(outcome.as_ref().copied());
        outcome.map_err(|fault| fault.why)
    }
}

fn device_statement(record: &DeviceRecord) -> Document {
    let gap = |gap: &CoverageGap| doc! { "from": date(gap.from_ms), "to": date(gap.to_ms), "reason": gap.reason };
    let gaps: Vec<Document> = record.gaps.iter().map(gap).collect();
    let mut set = doc! { "site": &record.site, "last_seen": date(record.last_seen_ms), "seq": record.seq, "gaps": gaps };
    if let Some(ms) = record.complete_through_ms {
        set.insert("complete_through", date(ms));
    }
    if let Some(token) = &record.checkpoint {
        set.insert("checkpoint", token);
    }
    doc! { "q": { "_id": &record.device }, "u": { "$set": set }, "upsert": true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_watermark_leaves_the_stored_one() {
        let mut record = DeviceRecord {
            site: "hq".into(),
            device: "door-1".into(),
            complete_through_ms: None,
            last_seen_ms: 2,
            seq: 3,
            gaps: vec![CoverageGap { from_ms: 0, to_ms: 1, reason: "off" }],
            checkpoint: None,
        };
        let set = |record: &DeviceRecord| {
            device_statement(record)
                .get_document("u")
                .unwrap()
                .get_document("$set")
                .unwrap()
                .clone()
        };
        assert_eq!(
            set(&record),
            doc! { "site": "hq", "last_seen": date(2), "seq": 3_i64,
            "gaps": [{ "from": date(0), "to": date(1), "reason": "off" }] }
        );
        record.complete_through_ms = Some(1);
        assert_eq!(set(&record).get("complete_through"), Some(&date(1)));
        assert_eq!(set(&record).get("checkpoint"), None);
        record.checkpoint = Some("a.b.c".into());
        assert_eq!(set(&record).get_str("checkpoint").unwrap(), "a.b.c");
    }
}
