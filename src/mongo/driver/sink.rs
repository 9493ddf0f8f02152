//! The MongoDB sink: a batch of rows becomes a few commands, whatever its size.
//!
//! In this order: attendances; corrections; the look for other doors' attendances; names of venues; subjects. A row is
//! acknowledged after the last of what it needs. An erasure divides a batch: what stands before it is written before
//! it, and what stands after it after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::FindOptions;

use super::documents::{self, Concern, Origin, VenueNote, date};
use super::doors::{self, Rule, Seen};
use super::fault::{DUPLICATE_KEY, Fault, Verdict};
use super::link::{MongoLink, bounded};
use crate::attend::venue::DirectionMode;
use crate::record::outbox::{Delivery, Sink};
use crate::record::store::{Erasure, OutboxRow, SinkName};

/// The most rows that one batch may have.
pub const WINDOW_MAX: usize = 2_000;

/// A document that fails for a reason we do not know is tried so often: about ten minutes where nothing else gets
/// through either.
const ATTEMPTS_MAX: u32 = 16;

pub struct MongoSink {
    link: MongoLink,
    origin: Origin,
    venues: Venues,
    /// As they were at the last delivery.
    current: Vec<VenueNote>,
    /// As MongoDB knows them.
    told: Option<Vec<VenueNote>>,
}

/// Gives the venues as they are now.
pub type Venues = Arc<dyn Fn() -> Vec<VenueNote> + Send + Sync>;

/// What became of each row of a batch; acknowledged unless something is known against it.
struct Outcomes(Vec<Delivery>);

impl Outcomes {
    fn fail(&mut self, row: usize, attempts: u32, fault: &Fault) {
        self.0[row] = delivery(fault, attempts);
    }

    fn is_well(&self, row: usize) -> bool {
        self.0[row] == Delivery::Acknowledged
    }
}

/// What a row's fault means for the relay.
pub(super) fn delivery(fault: &Fault, attempts: u32) -> Delivery {
    let why = fault.why.clone();
    match fault.verdict {
        Verdict::Poison => Delivery::Poison(why),
        Verdict::Unknown if attempts >= ATTEMPTS_MAX => {
            Delivery::Poison(format!("{why} ({attempts} times)"))
        }
        Verdict::Refused => Delivery::Refused(why),
        Verdict::Unknown => Delivery::Doubtful(why),
        Verdict::Retry => Delivery::Retry(why),
    }
}

/// Names that a venue is to hold, and the rows they come from with their attempts so far.
type Named<'a> = (BTreeSet<&'a str>, Vec<(usize, u32)>);

/// Rows as they stand in the batch, with their places in it.
type Rows<'a> = [(usize, &'a OutboxRow)];

impl MongoSink {
    pub fn new(link: MongoLink, site: &str, device: &str, venues: Venues) -> Self {
        let origin = Origin { site: site.to_owned(), device: device.to_owned() };
        Self { link, origin, venues, current: Vec::new(), told: None }
    }

    fn rule(&self, venue: &str) -> Rule {
        let rule_of = |it: &VenueNote| Rule {
            gap: it.re_entry_gap,
            alternates: it.direction == DirectionMode::Alternate,
        };
        self.current.iter().find(|it| it.id == venue).map_or(Rule::USUAL, rule_of)
    }

    /// Gives whether the server was asked anything.
    async fn deliver_all(
        &mut self,
        batch: &[OutboxRow],
        outcomes: &mut Outcomes,
    ) -> Result<bool, (usize, Fault)> {
        let mut asked = self.link.ensure_indexes().await.map_err(|fault| (0, fault))?;
        asked |= self.tell_venues().await.map_err(|fault| (0, fault))?;
        asked |= batch.iter().any(concerns_us);
        let rows: Vec<(usize, &OutboxRow)> = batch.iter().enumerate().collect();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let until = rest.iter().position(|(_, row)| row.reply.is_some()).unwrap_or(rest.len());
            let (events, after) = rest.split_at(until);
            let first = rest[0].0;
            self.events(events, outcomes).await.map_err(|fault| (first, fault))?;
            rest = after;
            if let Some(((at, row), after)) = rest.split_first() {
                self.message(*at, row, outcomes).await.map_err(|fault| (*at, fault))?;
                rest = after;
            }
        }
        Ok(asked)
    }

    /// What is no event. `Err`: nothing is known of it and all behind it. An erasure that will never be taken is set
    /// aside as any row is: to be tried again by whoever puts right what is in its way.
    async fn message(
        &self,
        at: usize,
        row: &OutboxRow,
        outcomes: &mut Outcomes,
    ) -> Result<(), Fault> {
        let read = row
            .reply
            .as_ref()
            .and_then(|(_, payload)| serde_json::from_slice::<Erasure>(payload).ok());
        let Some(erasure) = read else {
            outcomes.0[at] = Delivery::Poison("this version does not know what it asks for".into());
            return Ok(());
        };
        match self.erase(&erasure).await {
            Err(fault) if fault.is_of_document() => outcomes.fail(at, row.attempts, &fault),
            Err(fault) if self.link.lacks_index_for(&fault).await => {
                outcomes.fail(at, row.attempts, &Fault { verdict: Verdict::Unknown, ..fault });
            }
            other => other?,
        }
        Ok(())
    }

    async fn events(&self, rows: &Rows<'_>, outcomes: &mut Outcomes) -> Result<(), Fault> {
        let (mut attendances, mut corrections, mut subjects) = (Vec::new(), Vec::new(), Vec::new());
        for (at, row) in rows {
            let Some(event) = &row.event else { continue };
            match Concern::of(&event.body) {
                Concern::Attendance(body) => {
                    attendances.push((*at, *row, documents::attendance(event, body, &self.origin)));
                }
                Concern::Correction(body) => {
                    let corrected = row.corrected.as_deref();
                    corrections.push((*at, *row, documents::correction(event, body, corrected)));
                }
                Concern::Enrolment(body) => {
                    if let Some(change) =
                        documents::subject_change(event, body, &self.origin.device)
                    {
                        subjects.push((*at, *row, change));
                    }
                }
                Concern::None => {}
            }
        }
        self.insert(&attendances, outcomes).await?;
        self.write("attendance", &corrections, outcomes).await?;
        self.look(&attendances, &corrections).await?;
        self.names(&attendances, outcomes).await?;
        self.subjects(subjects, outcomes).await
    }

    /// Each person's in their order, a round for each further one; who fails does not keep the others waiting.
    async fn subjects(
        &self,
        mut rows: Vec<(usize, &OutboxRow, Document)>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Fault> {
        let whose = |row: &OutboxRow| row.event.as_ref()?.body.subject().map(|it| it.id.clone());
        while !rows.is_empty() {
            let mut met = HashSet::new();
            let (round, rest): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|it| met.insert(whose(it.1)));
            self.write("subjects", &round, outcomes).await?;
            let failed: HashSet<_> =
                round.iter().filter(|it| !outcomes.is_well(it.0)).map(|it| whose(it.1)).collect();
            let (held_up, rest): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|it| failed.contains(&whose(it.1)));
            for (at, ..) in held_up {
                outcomes.0[at] =
                    Delivery::Retry("what was before it of the same person is not there".into());
            }
            rows = rest;
        }
        Ok(())
    }

    async fn insert(
        &self,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut Outcomes,
    ) -> Result<(), Fault> {
        let statements: Vec<Document> = rows.iter().map(|it| it.2.clone()).collect();
        let faults = self.link.update("attendance", &statements).await?;
        let doubled: Vec<Bson> = faults
            .iter()
            .filter(|(_, fault)| fault.code == Some(DUPLICATE_KEY))
            .filter_map(|(at, _)| rows.get(*at)?.1.event.as_ref())
            .map(|event| event.event_id.to_string().into())
            .collect();
        // It is there already, or an index of somebody else's does not let it in.
        let there: HashSet<String> = if doubled.is_empty() {
            HashSet::new()
        } else {
            let wanted = doc! { "_id": { "$in": doubled } };
            let found = self.find("attendance", wanted, doc! { "_id": 1 }).await?;
            found.iter().filter_map(|it| it.get_str("_id").ok().map(str::to_owned)).collect()
        };
        for (at, fault) in faults {
            let Some((row, owed, _)) = rows.get(at) else { continue };
            if fault.code == Some(DUPLICATE_KEY) {
                let id = owed.event.as_ref().map(|it| it.event_id.to_string()).unwrap_or_default();
                if !there.contains(&id) {
                    outcomes.fail(
                        *row,
                        owed.attempts,
                        &Fault { verdict: Verdict::Poison, ..fault },
                    );
                }
            } else {
                outcomes.fail(*row, owed.attempts, &fault);
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        collection: &str,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut Outcomes,
    ) -> Result<(), Fault> {
        let statements: Vec<Document> = rows.iter().map(|it| it.2.clone()).collect();
        for (at, fault) in self.link.update(collection, &statements).await? {
            if let Some((row, owed, _)) = rows.get(at) {
                outcomes.fail(*row, owed.attempts, &fault);
            }
        }
        Ok(())
    }

    /// Two doors, one venue: after the inserts, so that of two doors at least one sees both.
    async fn look(
        &self,
        attendances: &[(usize, &OutboxRow, Document)],
        corrections: &[(usize, &OutboxRow, Document)],
    ) -> Result<(), Fault> {
        let mut new = Vec::new();
        for (_, row, _) in attendances {
            new.extend(row.event.as_ref().and_then(|event| self.seen(event)));
        }
        if !corrections.is_empty() {
            let ids: Vec<Bson> = corrections
                .iter()
                .filter_map(|it| it.2.get_document("q").ok()?.get("_id").cloned())
                .collect();
            let found = self
                .find("attendance", doc! { "_id": { "$in": ids } }, doors::projection())
                .await?;
            new.extend(found.iter().filter_map(Seen::read));
        }
        let rule = |venue: &str| self.rule(venue);
        let Some(query) = doors::query(&new, rule) else {
            return Ok(());
        };
        let found = match self.find("attendance", query, doors::projection()).await {
            Err(fault) if self.link.lacks_index_for(&fault).await => {
                self.link.note_slow_look(&fault);
                return Ok(());
            }
            other => other?,
        };
        let marks = doors::marks(found.iter().filter_map(Seen::read).collect(), rule);
        let statements: Vec<Document> = marks.iter().map(doors::mark).collect();
        let faults = self.link.update("attendance", &statements).await?;
        // A mark that a rule of the collection does not let through is not worth holding up the record.
        match faults.into_iter().find(|(_, fault)| !fault.is_of_document()) {
            Some((_, fault)) => Err(fault),
            None => Ok(()),
        }
    }

    fn seen(&self, event: &crate::record::event::StoredEvent) -> Option<Seen> {
        use crate::record::event::{Body, ClockState};
        let Body::Attendance(body) = &event.body else { return None };
        if event.clock == ClockState::Unsynced {
            return None;
        }
        Some(Seen {
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

    /// One statement for each venue of the batch.
    async fn names(
        &self,
        rows: &[(usize, &OutboxRow, Document)],
        outcomes: &mut Outcomes,
    ) -> Result<(), Fault> {
        let mut venues: BTreeMap<&str, Named<'_>> = BTreeMap::new();
        for (at, row, _) in rows {
            let Some(event) = row.event.as_ref().filter(|_| outcomes.is_well(*at)) else {
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
            .map(|(id, (names, _))| documents::venue_names(id, names.iter().copied()))
            .collect();
        let faults = self.link.update("venues", &statements).await?;
        let of: Vec<_> = venues.into_iter().collect();
        for (at, fault) in faults {
            let Some((id, (_, rows))) = of.get(at) else { continue };
            let why = format!("the venue {id} does not take the name: {}", fault.why);
            // A duplicate key among them: two devices that make the same venue at the same moment, which the next
            // round finds; or an index of somebody else's that will never let it in.
            let fault = Fault { why, ..fault };
            for (row, attempts) in rows {
                outcomes.fail(*row, *attempts, &fault);
            }
        }
        Ok(())
    }

    /// Venues as they are now, once for each change; with the next event. Gives whether there was anything to tell.
    async fn tell_venues(&mut self) -> Result<bool, Fault> {
        self.current = (self.venues)();
        if self.told.as_ref() == Some(&self.current) {
            return Ok(false);
        }
        let statements: Vec<Document> = self.current.iter().map(documents::venue).collect();
        let faults = self.link.update("venues", &statements).await?;
        for (_, fault) in &faults {
            if !fault.is_of_document() {
                return Err(fault.clone());
            }
            tracing::error!(reason = fault.why, "MongoDB does not take the description of a venue");
        }
        self.told = Some(self.current.clone());
        Ok(!statements.is_empty())
    }

    /// Takes a person out of the shared record: what this device wrote up to then, and what others wrote before that
    /// moment. The attendance is redacted last, since it tells which names to look for.
    async fn erase(&self, erasure: &Erasure) -> Result<(), Fault> {
        let id = erasure.subject_id.as_str();
        let mut others = doc! { "device": { "$ne": &self.origin.device } };
        if erasure.trusted {
            others.insert("occurred_at", doc! { "$lte": date(erasure.at_ms) });
        }
        let ours = doc! { "device": &self.origin.device, "seq": { "$lte": erasure.seq } };
        let theirs = doc! { "subject.id": id, "$or": [ours, others] };
        let distinct = doc! { "distinct": "attendance", "key": "subject.name", "query": theirs.clone(),
        "maxTimeMS": self.link.server_limit_ms() };
        let reply = self.link.command("reading an erased person's names", distinct).await?;
        let mut names: BTreeSet<String> = reply
            .get_array("values")
            .into_iter()
            .flatten()
            .filter_map(Bson::as_str)
            .map(str::to_owned)
            .collect();
        let subjects = self.find("subjects", doc! { "_id": id }, doc! { "name": 1 }).await?;
        names.extend(subjects.iter().filter_map(|it| it.get_str("name").ok()).map(str::to_owned));
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let namesakes = doc! { "name": { "$in": wanted }, "_id": { "$ne": id } };
        for namesake in self.find("subjects", namesakes, doc! { "name": 1 }).await? {
            names.remove(namesake.get_str("name").unwrap_or_default());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pull = doc! { "q": { "attendance": { "$in": &names } }, "u": { "$pull": { "attendance": { "$in": &names } } },
        "multi": true };
        self.all_or_nothing("venues", &pull).await?;
        let mut gone = doc! { "_id": id };
        if erasure.trusted {
            gone.insert("$nor", vec![doc! { "named_at": { "$gt": date(erasure.at_ms) } }]);
        }
        let delete = doc! {
            "delete": "subjects",
            "deletes": [{ "q": gone, "limit": 1 }],
            "writeConcern": self.link.concern(),
            "maxTimeMS": self.link.server_limit_ms(),
        };
        self.link.command("erasing a subject", delete).await?;
        let redact = doc! { "q": theirs, "u": { "$set": { "subject": null } }, "multi": true };
        self.all_or_nothing("attendance", &redact).await
    }

    async fn all_or_nothing(&self, collection: &str, statement: &Document) -> Result<(), Fault> {
        let faults = self.link.update(collection, std::slice::from_ref(statement)).await?;
        faults.into_iter().next().map_or(Ok(()), |(_, fault)| Err(fault))
    }

    /// Reads from the primary, where what was acknowledged a moment ago is seen.
    async fn find(
        &self,
        collection: &str,
        filter: Document,
        projection: Document,
    ) -> Result<Vec<Document>, Fault> {
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
        let mut outcomes = Outcomes(vec![Delivery::Acknowledged; batch.len()]);
        let outcome = self.deliver_all(batch, &mut outcomes).await;
        match &outcome {
            // The server may be anywhere: nothing was said to it.
            Ok(false) => {}
            Ok(true) => self.link.note_record(Ok(())),
            Err((_, fault)) => self.link.note_record(Err(fault)),
        }
        if let Err((from, fault)) = outcome {
            // Nothing is known of these, or not everything they need was done: all of it may be done again.
            for (row, owed) in batch.iter().enumerate().skip(from) {
                let verdict = if fault.verdict == Verdict::Refused {
                    Verdict::Refused
                } else {
                    Verdict::Retry
                };
                if outcomes.is_well(row) && concerns_us(owed) {
                    outcomes.fail(row, 0, &Fault { verdict, ..fault.clone() });
                }
            }
        }
        outcomes.0
    }
}

/// Other rows are acknowledged without a word to the server.
fn concerns_us(row: &OutboxRow) -> bool {
    row.event.as_ref().is_none_or(|event| !matches!(Concern::of(&event.body), Concern::None))
}
