//! What the shared record is told of a device: up to when it is complete, and when the device was not watching.

use mongodb::bson::{Document, doc};

use super::documents::date;
use super::link::MongoLink;

/// A time in which the device saw nobody, because it was not watching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from_ms: i64,
    pub to_ms: i64,
    pub reason: &'static str,
}

/// The device's document in `devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNote {
    pub site: String,
    pub device: String,
    /// Everything the device saw up to then is in MongoDB. None: nothing can be said (what was said before stays).
    pub complete_through_ms: Option<i64>,
    pub last_seen_ms: i64,
    pub seq: i64,
    /// Those of the last days.
    pub gaps: Vec<Gap>,
}

impl MongoLink {
    /// Also serves to learn whether MongoDB is there while nothing is owed. The error is for people.
    pub async fn put_device(&self, note: &DeviceNote) -> Result<(), String> {
        let statement = statement(note);
        let outcome = match self.update("devices", &[statement]).await {
            Ok(faults) => faults.into_iter().next().map_or(Ok(()), |(_, fault)| Err(fault)),
            Err(fault) => Err(fault),
        };
        self.note_aside(outcome.as_ref().copied());
        outcome.map_err(|fault| fault.why)
    }
}

fn statement(note: &DeviceNote) -> Document {
    let gap =
        |gap: &Gap| doc! { "from": date(gap.from_ms), "to": date(gap.to_ms), "reason": gap.reason };
    let gaps: Vec<Document> = note.gaps.iter().map(gap).collect();
    let mut set = doc! { "site": &note.site, "last_seen": date(note.last_seen_ms), "seq": note.seq, "gaps": gaps };
    if let Some(ms) = note.complete_through_ms {
        set.insert("complete_through", date(ms));
    }
    doc! { "q": { "_id": &note.device }, "u": { "$set": set }, "upsert": true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said_leaves_what_was_said() {
        let mut note = DeviceNote {
            site: "hq".into(),
            device: "door-1".into(),
            complete_through_ms: None,
            last_seen_ms: 2,
            seq: 3,
            gaps: vec![Gap { from_ms: 0, to_ms: 1, reason: "off" }],
        };
        let set = |note: &DeviceNote| {
            statement(note).get_document("u").unwrap().get_document("$set").unwrap().clone()
        };
        assert_eq!(
            set(&note),
            doc! { "site": "hq", "last_seen": date(2), "seq": 3_i64,
            "gaps": [{ "from": date(0), "to": date(1), "reason": "off" }] }
        );
        note.complete_through_ms = Some(1);
        assert_eq!(set(&note).get("complete_through"), Some(&date(1)));
    }
}
