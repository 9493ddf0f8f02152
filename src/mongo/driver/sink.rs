//! The MongoDB sink: a batch of rows becomes a few commands, whatever its size.
//!
//! In this order: attendances; corrections; marks for attendances that another device superseded;
//! names of venues; subjects. A row is acknowledged after the last write that it needs. An erasure
//! divides a batch: rows before it are written before it, and rows after it after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::FindOptions;

use super::documents::{self, StoredBody, date};
use super::fault::{DUPLICATE_KEY, MongoFault, WriteVerdict};
use super::link::{MongoLink, bounded};
use super::superseded::{self, Passage, VenueRule};
use crate::attend::venue::DirectionMode;
use crate::ids::Origin;
use crate::mongo::types::{VenueRecord, Venues};
use crate::store::relay::{Delivery, Sink};
use crate::store::{Erasure, OutboxPayload, OutboxRow, SinkName};

/// How often a document that fails for an unknown reason is tried: about ten minutes if nothing else
/// is delivered either.
const ATTEMPTS_MAX: u32 = 16;

pub struct MongoSink {
    link: MongoLink,
    origin: Origin,
    venues: Venues,
    /// As they were at the last delivery.
    current: Vec<VenueRecord>,
    /// As they were last published.
    published: Option<Vec<VenueRecord>>,
}

/// The delivery of each row of a batch: acknowledged unless a fault is recorded.
struct RowDeliveries(Vec<Delivery>);

impl RowDeliveries {
    fn fail(&mut self, row: usize, attempts: u32, fault: &MongoFault) {
        self.0[row] = to_delivery(fault, attempts);
    }

    fn is_delivered(&self, row: usize) -> bool {
        self.0[row] == Delivery::Acknowledged
    }
}

/// Converts a row's fault for the relay.
pub(super) fn to_delivery(fault: &MongoFault, attempts: u32) -> Delivery {
    let why = fault.why.clone();
    match fault.verdict {
        WriteVerdict::Poison => Delivery::Poison(why),
        WriteVerdict::Unknown if attempts >= ATTEMPTS_MAX => {
            Delivery::Poison(format!("{why} ({attempts} times)"))
        }
        WriteVerdict::Refused => Delivery::Rejected(why),
        WriteVerdict::Unknown => Delivery::Doubtful(why),
        WriteVerdict::Retry => Delivery::Retry(why),
    }
}

/// Names to add to a venue, and the rows they come from with their attempts so far.
type VenueNames<'a> = (BTreeSet<&'a str>, Vec<(usize, u32)>);

/// Rows with their index in the batch.
type IndexedRows<'a> = [(usize, &'a OutboxRow)];

impl MongoSink {
    pub fn new(link: MongoLink, origin: Origin, venues: Venues) -> Self {
        Self { link, origin, venues, current: Vec::new(), published: None }
    }

    fn rule(&self, venue: &str) -> VenueRule {
        let rule_of = |it: &VenueRecord| VenueRule {
            gap: it.re_entry_gap,
            alternates: it.direction == DirectionMode::Alternate,
        };
        self.current.iter().find(|it| it.id == venue).map_or(VenueRule::USUAL, rule_of)
    }

    /// Returns whether the server was contacted.
    async fn deliver_all(
        &mut self,
        batch: &[OutboxRow],
        outcomes: &mut RowDeliveries,
    ) -> Result<bool, (usize, MongoFault)> {
        let mut is_contacted = self.link.ensure_indexes().await.map_err(|fault| (0, fault))?;
        is_contacted |= self.publish_venues().await.map_err(|fault| (0, fault))?;
        is_contacted |= batch.iter().any(is_for_mongo);
        let rows: Vec<(usize, &OutboxRow)> = batch.iter().enumerate().collect();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let until =
                rest.iter().position(|(_, row)| row.message().is_some()).unwrap_or(rest.len());
            let (events, after) = rest.split_at(until);
            let first = rest[0].0;
            self.deliver_events(events, outcomes).await.map_err(|fault| (first, fault))?;
            rest = after;
            if let Some(((at, row), after)) = rest.split_first() {
                self.deliver_message(*at, row, outcomes).await.map_err(|fault| (*at, fault))?;
                rest = after;
            }
        }
        Ok(is_contacted)
    }

    /// Delivers a row that is no event: an erasure. `Err`: the outcome of it and of all rows behind
    /// it is unknown. An erasure that is never accepted is dead-lettered as any row: it can be
    /// retried when the cause is corrected.
    async fn deliver_message(
        &self,
        at: usize,
        row: &OutboxRow,
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let read = row.message().and_then(|(_, it)| serde_json::from_slice::<Erasure>(it).ok());
        let Some(erasure) = read else {
            outcomes.0[at] =
                Delivery::Poison("this version does not know this kind of message".into());
            return Ok(());
        };
        match self.erase_subject(&erasure).await {
            Err(fault) if fault.is_of_document() => outcomes.fail(at, row.attempts, &fault),
            Err(fault) if self.link.lacks_index_for(&fault).await => {
                outcomes.fail(
                    at,
                    row.attempts,
                    &MongoFault { verdict: WriteVerdict::Unknown, ..fault },
                );
            }
            other => other?,
        }
        Ok(())
    }

    async fn deliver_events(
        &self,
        rows: &IndexedRows<'_>,
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let mut attendances = Vec::new();
        let mut corrections = Vec::new();
        let mut subjects = Vec::new();
        for (at, row) in rows {
            let OutboxPayload::Event { event, corrected } = &row.payload else { continue };
            match StoredBody::of(&event.body) {
                StoredBody::Attendance(body) => {
                    attendances.push((
                        *at,
                        *row,
                        documents::insert_attendance(event, body, &self.origin),
                    ));
                }
                StoredBody::Correction(body) => {
                    let corrected = corrected.as_deref();
                    corrections.push((
                        *at,
                        *row,
                        documents::correct_attendance(event, body, corrected),
                    ));
                }
                StoredBody::Enrolment(body) => {
                    if let Some(change) =
                        documents::subject_change(event, body, &self.origin.device)
                    {
                        subjects.push((*at, *row, change));
                    }
                }
                StoredBody::None => {}
            }
        }
        self.insert_attendances(&attendances, outcomes).await?;
        self.write_rows("attendance", &corrections, outcomes).await?;
        self.mark_superseded(&attendances, &corrections).await?;
        self.add_venue_names(&attendances, outcomes).await?;
        self.write_subjects(subjects, outcomes).await
    }

    /// Writes the changes of each subject in their order, a round for each further one. A failure
    /// delays only the same subject.
    async fn write_subjects(
        &self,
        mut rows: Vec<(usize, &OutboxRow, Document)>,
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let subject_id = |row: &OutboxRow| row.event()?.body.subject().map(|it| it.id.clone());
        while !rows.is_empty() {
            let mut seen = HashSet::new();
            let (round, rest): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|it| seen.insert(subject_id(it.1)));
            self.write_rows("subjects", &round, outcomes).await?;
            let failed: HashSet<_> = round
                .iter()
                .filter(|it| !outcomes.is_delivered(it.0))
                .map(|it| subject_id(it.1))
                .collect();
            let (delayed, rest): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|it| failed.contains(&subject_id(it.1)));
            for (at, ..) in delayed {
                outcomes.0[at] = Delivery::Retry(
                    "an earlier change of the same subject is not delivered yet".into(),
                );
            }
            rows = rest;
        }
        Ok(())
    }

    async fn insert_attendances(
        &self,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let statements: Vec<Document> = rows.iter().map(|it| it.2.clone()).collect();
        let faults = self.link.update("attendance", &statements).await?;
        let duplicates: Vec<Bson> = faults
            .iter()
            .filter(|(_, fault)| fault.code == Some(DUPLICATE_KEY))
            .filter_map(|(at, _)| rows.get(*at)?.1.event())
            .map(|event| event.event_id.to_string().into())
            .collect();
        // It is there already, or a foreign unique index rejects it.
        let present: HashSet<String> = if duplicates.is_empty() {
            HashSet::new()
        } else {
            let wanted = doc! { "_id": { "$in": duplicates } };
            let found = self.find_documents("attendance", wanted, doc! { "_id": 1 }).await?;
            found.iter().filter_map(|it| it.get_str("_id").ok().map(str::to_owned)).collect()
        };
        for (at, fault) in faults {
            let Some((row, pending, _)) = rows.get(at) else { continue };
            if fault.code == Some(DUPLICATE_KEY) {
                let id = pending.event().map(|it| it.event_id.to_string()).unwrap_or_default();
                if !present.contains(&id) {
                    outcomes.fail(
                        *row,
                        pending.attempts,
                        &MongoFault { verdict: WriteVerdict::Poison, ..fault },
                    );
                }
            } else {
                outcomes.fail(*row, pending.attempts, &fault);
            }
        }
        Ok(())
    }

    async fn write_rows(
        &self,
        collection: &str,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let statements: Vec<Document> = rows.iter().map(|it| it.2.clone()).collect();
        for (at, fault) in self.link.update(collection, &statements).await? {
            if let Some((row, pending, _)) = rows.get(at) {
                outcomes.fail(*row, pending.attempts, &fault);
            }
        }
        Ok(())
    }

    /// Marks attendances of one venue that two devices recorded. This comes after the inserts, so that
    /// at least one of the devices sees both.
    async fn mark_superseded(
        &self,
        attendances: &[(usize, &OutboxRow, Document)],
        corrections: &[(usize, &OutboxRow, Document)],
    ) -> Result<(), MongoFault> {
        let mut new = Vec::new();
        for (_, row, _) in attendances {
            new.extend(row.event().and_then(|event| self.passage(event)));
        }
        if !corrections.is_empty() {
            let ids: Vec<Bson> = corrections
                .iter()
                .filter_map(|it| it.2.get_document("q").ok()?.get("_id").cloned())
                .collect();
            let found = self
                .find_documents(
                    "attendance",
                    doc! { "_id": { "$in": ids } },
                    superseded::field_projection(),
                )
                .await?;
            new.extend(found.iter().filter_map(Passage::from_document));
        }
        let rule = |venue: &str| self.rule(venue);
        let Some(query) = superseded::build_query(&new, rule) else {
            return Ok(());
        };
        let found =
            match self.find_documents("attendance", query, superseded::field_projection()).await {
                Err(fault) if self.link.lacks_index_for(&fault).await => {
                    self.link.log_missing_index(&fault);
                    return Ok(());
                }
                other => other?,
            };
        let marks = superseded::find_superseded(
            found.iter().filter_map(Passage::from_document).collect(),
            rule,
        );
        let statements: Vec<Document> = marks.iter().map(superseded::mark_statement).collect();
        let faults = self.link.update("attendance", &statements).await?;
        // A mark that a rule of the collection rejects must not delay the record.
        match faults.into_iter().find(|(_, fault)| !fault.is_of_document()) {
            Some((_, fault)) => Err(fault),
            None => Ok(()),
        }
    }

    fn passage(&self, event: &crate::wire::event::StoredEvent) -> Option<Passage> {
        use crate::wire::event::{Body, ClockState};
        let Body::Attendance(body) = &event.body else { return None };
        if event.clock == ClockState::Unsynced {
            return None;
        }
        Some(Passage {
            occurred_ms: event.occurred_ms,
            id: event.event_id.to_string(),
            device: self.origin.device.clone(),
            venue: body.venue.clone(),
            subject: body.subject.as_ref()?.id.as_str().to_owned(),
            direction: body.direction.as_str().to_owned(),
            session: body.session.clone(),
            marked: event.superseded_by.is_some(),
        })
    }

    /// Adds names to venues, one statement for each venue of the batch.
    async fn add_venue_names(
        &self,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut RowDeliveries,
    ) -> Result<(), MongoFault> {
        let mut venues: BTreeMap<&str, VenueNames<'_>> = BTreeMap::new();
        for (at, row, _) in rows {
            let Some(event) = row.event().filter(|_| outcomes.is_delivered(*at)) else {
                continue;
            };
            if let (Some(venue), Some(subject)) = (event.body.venue(), event.body.subject()) {
                let (names, of) = venues.entry(venue).or_default();
                names.insert(subject.name.as_str());
                of.push((*at, row.attempts));
            }
        }
        let statements: Vec<Document> = venues
            .iter()
            .map(|(id, (names, _))| documents::add_venue_names(id, names.iter().copied()))
            .collect();
        let faults = self.link.update(self.link.venues(), &statements).await?;
        let of: Vec<_> = venues.into_iter().collect();
        for (at, fault) in faults {
            let Some((id, (_, rows))) = of.get(at) else { continue };
            let why = format!("the venue {id} rejects the name: {}", fault.why);
            // A duplicate key means that two devices created the venue at the same moment, which the
            // next attempt finds, or that a foreign unique index rejects it for ever.
            let fault = MongoFault { why, ..fault };
            for (row, attempts) in rows {
                outcomes.fail(*row, *attempts, &fault);
            }
        }
        Ok(())
    }

    /// Publishes the venues with the next event after each change. Returns whether anything changed.
    async fn publish_venues(&mut self) -> Result<bool, MongoFault> {
        self.current = (self.venues)();
        if self.published.as_ref() == Some(&self.current) {
            return Ok(false);
        }
        let published = self.published.as_deref().unwrap_or_default();
        let changed = self.current.iter().filter(|it| !published.contains(it));
        let statements: Vec<Document> = changed.map(documents::put_venue).collect();
        let faults = self.link.update(self.link.venues(), &statements).await?;
        for (_, fault) in &faults {
            if !fault.is_of_document() {
                return Err(fault.clone());
            }
            tracing::error!(reason = fault.why, "MongoDB rejects the description of a venue");
        }
        self.published = Some(self.current.clone());
        Ok(!statements.is_empty())
    }

    /// Erases a subject from the shared record: what this device wrote up to then, and what others
    /// wrote before that moment. The attendance is redacted last, because it has the names to search
    /// for.
    async fn erase_subject(&self, erasure: &Erasure) -> Result<(), MongoFault> {
        let id = erasure.subject_id.as_str();
        let mut others = doc! { "device": { "$ne": &self.origin.device } };
        if erasure.trusted {
            others.insert("occurred_at", doc! { "$lte": date(erasure.at_ms) });
        }
        let ours = doc! { "device": &self.origin.device, "seq": { "$lte": erasure.seq } };
        let theirs = doc! { "subject.id": id, "$or": [ours, others] };
        let distinct = doc! { "distinct": "attendance", "key": "subject.name", "query": theirs.clone(),
        "maxTimeMS": self.link.server_limit_ms() };
        let reply = self.link.run_command("reading an erased person's names", distinct).await?;
        let mut names: BTreeSet<String> = reply
            .get_array("values")
            .into_iter()
            .flatten()
            .filter_map(Bson::as_str)
            .map(str::to_owned)
            .collect();
        let subjects =
            self.find_documents("subjects", doc! { "_id": id }, doc! { "name": 1 }).await?;
        names.extend(subjects.iter().filter_map(|it| it.get_str("name").ok()).map(str::to_owned));
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let namesakes = doc! { "name": { "$in": wanted }, "_id": { "$ne": id } };
        for namesake in self.find_documents("subjects", namesakes, doc! { "name": 1 }).await? {
            names.remove(namesake.get_str("name").unwrap_or_default());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pull = doc! { "q": { "attendance": { "$in": &names } }, "u": { "$pull": { "attendance": { "$in": &names } } },
        "multi": true };
        self.update_one(self.link.venues(), &pull).await?;
        let mut gone = doc! { "_id": id };
        if erasure.trusted {
            gone.insert("$nor", vec![doc! { "named_at": { "$gt": date(erasure.at_ms) } }]);
        }
        let delete = doc! {
            "delete": "subjects",
            "deletes": [{ "q": gone, "limit": 1 }],
            "writeConcern": self.link.write_concern(),
            "maxTimeMS": self.link.server_limit_ms(),
        };
        self.link.run_command("erasing a subject", delete).await?;
        // Without the salt the commitments of the chain say nothing of the person.
        let erased = doc! { "$set": { "subject": null }, "$unset": { "chain.salt": "" } };
        let redact = doc! { "q": theirs, "u": erased, "multi": true };
        self.update_one("attendance", &redact).await
    }

    async fn update_one(&self, collection: &str, statement: &Document) -> Result<(), MongoFault> {
        let faults = self.link.update(collection, std::slice::from_ref(statement)).await?;
        faults.into_iter().next().map_or(Ok(()), |(_, fault)| Err(fault))
    }

    /// Reads from the primary, which has what was acknowledged a moment ago.
    async fn find_documents(
        &self,
        collection: &str,
        filter: Document,
        projection: Document,
    ) -> Result<Vec<Document>, MongoFault> {
        let database = self.link.database().await?;
        let options = FindOptions::builder()
            .projection(projection)
            .max_time(Duration::from_millis(self.link.server_limit_ms() as u64))
            .build();
        bounded(&format!("reading {collection}"), self.link.timeout(), async {
            let mut cursor = database
                .collection::<Document>(collection)
                .find(filter)
                .with_options(options)
                .await?;
            let mut found = Vec::new();
            while cursor.advance().await? {
                found.push(cursor.deserialize_current()?);
            }
            Ok(found)
        })
        .await
    }
}

impl Sink for MongoSink {
    fn name(&self) -> SinkName {
        SinkName::MONGO
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let mut outcomes = RowDeliveries(vec![Delivery::Acknowledged; batch.len()]);
        let outcome = self.deliver_all(batch, &mut outcomes).await;
        match &outcome {
            // The server was not contacted, so nothing is known of its state.
            Ok(false) => {}
            Ok(true) => self.link.record_events_outcome(Ok(())),
            Err((_, fault)) => self.link.record_events_outcome(Err(fault)),
        }
        if let Err((from, fault)) = outcome {
            // Their outcome is unknown or incomplete: everything may be repeated.
            for (row, pending) in batch.iter().enumerate().skip(from) {
                let verdict = if fault.verdict == WriteVerdict::Refused {
                    WriteVerdict::Refused
                } else {
                    WriteVerdict::Retry
                };
                if outcomes.is_delivered(row) && is_for_mongo(pending) {
                    outcomes.fail(row, 0, &MongoFault { verdict, ..fault.clone() });
                }
            }
        }
        outcomes.0
    }
}

/// Other rows are acknowledged without contacting the server.
fn is_for_mongo(row: &OutboxRow) -> bool {
    row.event().is_none_or(|event| !matches!(StoredBody::of(&event.body), StoredBody::None))
}
