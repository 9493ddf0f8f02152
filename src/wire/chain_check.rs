//! Checks a record against its chain, and names what was altered, removed, inserted, exchanged or cut
//! off.
//!
//! Rows come from a database, from MongoDB or from a file; here they are events as JSON, of one
//! device. Of each row only its hashes are kept: some 200 bytes.
//!
//! Not here: the form of the hashes (`chain`), signatures (`keys::checkpoint`).

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value};

use crate::clock;
use crate::wire::chain::{self, Hash, Link, Place, Start};
use crate::wire::event::EXPIRES_AFTER_MS;

/// What was done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FaultKind {
    Altered,
    Removed,
    Inserted,
    Swapped,
    Truncated,
}

impl FaultKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub kind: FaultKind,
    /// None for what has no number, such as a line that is no event.
    pub seq: Option<i64>,
    pub event_id: Option<String>,
    /// For people.
    pub what: String,
}

/// Which events a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Attendances and corrections only, as in MongoDB.
    Record,
}

/// The number of a correction, and the fields that it sets right.
type Corrected = (i64, Map<String, Value>);

/// The state of a correctable event that corrections state, by the id of the event, in their order.
#[derive(Default)]
pub struct Corrections {
    states: HashMap<String, Vec<Corrected>>,
    is_last_required: bool,
    ignored: &'static [&'static str],
}

/// What the check is held against.
#[derive(Clone, Debug)]
pub struct Expected {
    pub scope: Scope,
    /// Whether the order of the rows counts.
    pub in_order: bool,
    /// The first event that must be there, where that is not the beginning of the chain.
    pub from: Option<i64>,
    /// The newest checkpoint.
    pub signed: Option<Signed>,
    /// Older ones.
    pub signed_before: Vec<Signed>,
    /// Events that the device itself set apart as damaged.
    pub set_apart: BTreeSet<i64>,
}

impl Default for Expected {
    fn default() -> Self {
        Self {
            scope: Scope::All,
            in_order: true,
            from: None,
            signed: None,
            signed_before: Vec::new(),
            set_apart: BTreeSet::new(),
        }
    }
}

/// What a checkpoint states.
#[derive(Clone, Debug)]
pub struct Signed {
    pub newest: Place,
    /// The newest attendance or correction.
    pub record: Option<Place>,
    /// The first event of the chain.
    pub began: i64,
    pub deleted_through: i64,
}

impl Signed {
    /// The newest event that a record of this scope has.
    fn newest_of(&self, scope: Scope) -> Option<Place> {
        match scope {
            Scope::All => Some(self.newest),
            Scope::Record => self.record,
        }
    }
}

/// An event, as far as the check needs it.
#[derive(Clone, Debug)]
pub struct Row {
    seq: i64,
    event_id: String,
    link: Option<RowLink>,
    /// What is wrong with it that its hash does not cover.
    flaw: Option<&'static str>,
    /// Whether no correction states the values that it has.
    is_unexplained: bool,
    is_erased: bool,
    is_seen: bool,
}

#[derive(Clone, Debug)]
struct RowLink {
    hash: Hash,
    content: Hash,
    prev: Option<Hash>,
    record: Option<Place>,
    start: Option<Start>,
    /// Whether the hash is that of this content in this place.
    fits: bool,
}

impl RowLink {
    fn fits_at(&self, seq: i64) -> bool {
        let Self { content, prev, record, start, .. } = self;
        chain::hash(seq, content, prev.as_ref(), record.as_ref(), *start) == self.hash
    }
}

/// The result for one device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Events of the chain that were checked.
    pub checked: u64,
    pub from: Option<i64>,
    pub to: Option<i64>,
    /// Events before the beginning of the chain: nothing is known of them.
    pub not_covered: u64,
    /// Events of which the person was erased.
    pub erased: u64,
    /// Events of which only the link is there.
    pub links_only: u64,
    /// Events after the newest checkpoint: they could be cut off unseen.
    pub unsigned: u64,
    /// Where the device began the chain again.
    pub breaks: Vec<i64>,
    pub faults: u64,
    pub first_fault: Option<Fault>,
}

impl Report {
    pub fn is_intact(&self) -> bool {
        self.faults == 0
    }

    pub fn add(&mut self, fault: Fault) {
        self.faults += 1;
        let rank = |it: &Fault| it.seq.unwrap_or(i64::MAX);
        if self.first_fault.as_ref().is_none_or(|first| rank(&fault) < rank(first)) {
            self.first_fault = Some(fault);
        }
    }
}

fn text<'a>(event: &'a Map<String, Value>, key: &str) -> &'a str {
    event.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Corrections {
    /// For a copy of the record as it is now: the last correction of an event counts.
    pub fn of_present() -> Self {
        Self { is_last_required: true, ..Self::default() }
    }

    /// For MongoDB: as `of_present`, without what other devices set there.
    pub fn of_mongo() -> Self {
        Self { ignored: &["superseded_by"], ..Self::of_present() }
    }

    /// Takes note of an event if it is a correction.
    pub fn add(&mut self, event: &Map<String, Value>) {
        if text(event, "kind") == "correction" {
            let states = self.states.entry(text(event, "corrects").to_owned()).or_default();
            let seq = event.get("seq").and_then(Value::as_i64).unwrap_or_default();
            states.push((seq, chain::correctable(event)));
            states.sort_by_key(|it| it.0);
        }
    }

    /// Returns whether an event is as its corrections state.
    fn explain(&self, event: &Map<String, Value>, was: Option<&Map<String, Value>>) -> bool {
        let stripped = |state: &Map<String, Value>| {
            let mut state = state.clone();
            self.ignored.iter().for_each(|key| drop(state.remove(*key)));
            state
        };
        let present = stripped(&chain::correctable(event));
        let states = self.states.get(text(event, "event_id")).map_or(&[][..], Vec::as_slice);
        match (states.last(), was) {
            (Some((_, last)), _) if self.is_last_required => present == stripped(last),
            (_, None) => true,
            (None, Some(was)) => present == stripped(was),
            (Some(_), Some(_)) => states.iter().any(|it| present == stripped(&it.1)),
        }
    }
}

/// Returns what is wrong with the person of an event.
fn personal_flaw(event: &Map<String, Value>, link: &Link) -> Option<&'static str> {
    if !chain::personal(event).is_empty() {
        let Some(salt) = &link.salt else { return Some("it names a person without a salt") };
        let is_same = chain::commitments(event, salt) == link.commit;
        return (!is_same).then_some("its person is not who was recorded");
    }
    let is_taken_out = link.salt.is_some() && !link.commit.is_empty();
    is_taken_out.then_some("its person was taken out, and not by an erasure")
}

/// `expires_at` follows from `occurred_at`, so it is not hashed.
fn has_other_expiry(event: &Map<String, Value>) -> bool {
    let at = |key| text(event, key).parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
    event.contains_key("expires_at")
        && at("occurred_at").ok().map(|it| clock::rfc3339(it.saturating_add(EXPIRES_AFTER_MS)))
            != at("expires_at").ok().map(clock::rfc3339)
}

impl Row {
    /// Reads an event as on the wire. `None`: it is no event.
    pub fn read(event: &Map<String, Value>, corrections: &Corrections) -> Option<Self> {
        let seq = event.get("seq")?.as_i64()?;
        let event_id = event.get("event_id")?.as_str()?.to_owned();
        let mut row = Self { event_id, flaw: None, ..Self::unreadable(seq) };
        let Some(stated) = event.get("chain") else { return Some(row) };
        let Ok(link) = Link::deserialize(stated) else {
            row.flaw = Some("its link cannot be read");
            return Some(row);
        };
        row.is_seen = event.contains_key("kind");
        let content = if row.is_seen {
            row.flaw = personal_flaw(event, &link);
            row.is_unexplained = !corrections.explain(event, link.was.as_ref());
            if has_other_expiry(event) {
                row.flaw.get_or_insert("expires_at does not follow from occurred_at");
            }
            row.is_erased = !link.commit.is_empty() && chain::personal(event).is_empty();
            chain::content(event, link.was.as_ref(), &link.commit)
        } else {
            // Of an event that a proof does not show.
            serde_json::from_value(stated.get("content")?.clone()).ok()?
        };
        let Link { hash, prev, record, start, .. } = link;
        let mut link = RowLink { hash, content, prev, record, start, fits: false };
        link.fits = link.fits_at(seq);
        row.link = Some(link);
        Some(row)
    }

    /// A row that cannot be read, or that something else than its hash contradicts.
    #[must_use]
    pub fn with_flaw(mut self, flaw: &'static str) -> Self {
        self.flaw = Some(flaw);
        self
    }

    /// A row of which nothing but its number can be read.
    pub fn unreadable(seq: i64) -> Self {
        Self {
            seq,
            event_id: String::new(),
            link: None,
            flaw: Some("it cannot be read"),
            is_unexplained: false,
            is_erased: false,
            is_seen: true,
        }
    }

    pub fn seq(&self) -> i64 {
        self.seq
    }

    pub fn is_erased(&self) -> bool {
        self.is_erased
    }

    /// Returns whether its content is there, and not its link only.
    pub fn is_seen(&self) -> bool {
        self.is_seen
    }

    fn fault(&self, kind: FaultKind, what: impl Into<String>) -> Fault {
        let event_id = Some(self.event_id.clone()).filter(|it| !it.is_empty());
        Fault { kind, seq: Some(self.seq), event_id, what: what.into() }
    }

    /// Whether its hash is that of its content in its place.
    fn fits(&self) -> bool {
        self.link.as_ref().is_some_and(|it| it.fits)
    }

    /// Whether it would be in its place there.
    fn fits_at(&self, seq: i64) -> bool {
        self.link.as_ref().is_some_and(|it| it.fits_at(seq))
    }
}

/// Checks the rows of one device, in the order in which they were found.
pub fn check(mut rows: Vec<Row>, expected: &Expected) -> Report {
    let mut report = Report::default();
    remove_repeated(&mut rows);
    if expected.in_order {
        report_disorder(&rows, &named_by(&rows, expected), &mut report);
    }
    rows.sort_by_key(|row| row.seq);
    let mut walk = Walk::new(&rows, expected, &mut report);
    let mut at = 0;
    while at < rows.len() {
        let same = rows[at..].iter().take_while(|it| it.seq == rows[at].seq).count();
        walk.step(&rows[at..at + same]);
        at += same;
    }
    walk.finish();
    report
}

/// The broker may deliver an event twice.
fn remove_repeated(rows: &mut Vec<Row>) {
    let mut seen = HashSet::new();
    rows.retain(|row| {
        let is_whole = row.flaw.is_none() && row.fits();
        let key = row.link.as_ref().map(|it| (row.seq, it.hash));
        !is_whole || key.is_none_or(|key| seen.insert(key))
    });
}

/// Reports the first event that is not in its place, of those that are whole.
fn report_disorder(rows: &[Row], named: &HashSet<(i64, Hash)>, report: &mut Report) {
    let mut counts: HashMap<i64, u32> = HashMap::with_capacity(rows.len());
    for row in rows {
        *counts.entry(row.seq).or_default() += 1;
    }
    let is_whole = |row: &&Row| {
        let is_only = counts.get(&row.seq) == Some(&1);
        let is_named = || row.link.as_ref().is_some_and(|it| named.contains(&(row.seq, it.hash)));
        row.fits() && (is_only || is_named())
    };
    let found: Vec<&Row> = rows.iter().filter(is_whole).collect();
    let mut sorted = found.clone();
    sorted.sort_by_key(|row| row.seq);
    if let Some((row, first)) = found.iter().zip(&sorted).find(|(row, it)| row.seq != it.seq) {
        let what = format!("event {} stands in its place", row.seq);
        report.add(first.fault(FaultKind::Swapped, what));
    }
}

/// What the rows and the checkpoint name as an event of the chain.
fn named_by(rows: &[Row], expected: &Expected) -> HashSet<(i64, Hash)> {
    let mut named = HashSet::with_capacity(rows.len());
    for row in rows {
        named.extend(before(row, expected.scope).map(|it| (it.seq, it.hash)));
    }
    for signed in expected.signed.iter().chain(&expected.signed_before) {
        named.insert((signed.newest.seq, signed.newest.hash));
        named.extend(signed.record.map(|it| (it.seq, it.hash)));
    }
    named
}

/// The event that the next one has to follow.
#[derive(Clone)]
struct Last {
    seq: i64,
    event_id: String,
    /// None where nothing is known of it.
    hash: Option<Hash>,
    is_faulty: bool,
}

struct Walk<'a> {
    rows: &'a [Row],
    expected: &'a Expected,
    report: &'a mut Report,
    /// What the events name as the one before them.
    named: HashSet<(i64, Hash)>,
    named_seqs: HashSet<i64>,
    last: Option<Last>,
    /// Faults that may follow from others.
    unexplained: Vec<Fault>,
    /// Counted once the first fault makes it necessary: how many rows have hash and content.
    claims: Option<HashMap<(Hash, Hash), u32>>,
    /// The same: the number that others give the event of a hash.
    homes: Option<HashMap<Hash, i64>>,
}

impl<'a> Walk<'a> {
    fn new(rows: &'a [Row], expected: &'a Expected, report: &'a mut Report) -> Self {
        let named = named_by(rows, expected);
        let named_seqs = named.iter().map(|it| it.0).collect();
        Self {
            rows,
            expected,
            report,
            named,
            named_seqs,
            last: None,
            unexplained: Vec::new(),
            claims: None,
            homes: None,
        }
    }

    /// Goes on to the rows of one number. Only one of them can be the event.
    fn step(&mut self, same: &[Row]) {
        let rank = |row: &Row| {
            let hash = row.link.as_ref().map(|it| it.hash);
            let is_named = hash.is_some_and(|it| self.named.contains(&(row.seq, it)));
            (row.fits() && row.flaw.is_none(), is_named)
        };
        let mut best = 0;
        for (at, row) in same.iter().enumerate().skip(1) {
            if rank(row) > rank(&same[best]) {
                best = at;
            }
        }
        for (at, row) in same.iter().enumerate() {
            if at != best {
                self.report.add(row.fault(FaultKind::Inserted, "another event has this number"));
            }
        }
        self.visit(&same[best]);
    }

    fn visit(&mut self, row: &Row) {
        let Some(link) = &row.link else { return self.visit_unlinked(row) };
        self.report.checked += 1;
        self.report.from.get_or_insert(row.seq);
        self.report.to = Some(row.seq);
        self.report.erased += u64::from(row.is_erased);
        self.report.links_only += u64::from(!row.is_seen);
        let fault = self.fault_of(row);
        if let Some(fault) = &fault {
            self.report.add(fault.clone());
        } else if row.is_unexplained && row.seq > self.deleted_through() {
            let what = "no correction of the record gives it these values";
            self.unexplained.push(row.fault(FaultKind::Altered, what));
        }
        if fault.as_ref().is_some_and(|it| it.kind == FaultKind::Inserted) {
            return;
        }
        let is_named = self.named.contains(&(row.seq, link.hash));
        let is_known = fault.is_none() || is_named;
        if fault.as_ref().is_some_and(|it| it.kind == FaultKind::Swapped) {
            self.report_gap(row.seq);
        } else {
            self.follow(row, link, fault.is_some(), is_named);
        }
        self.last = Some(Last {
            seq: row.seq,
            event_id: row.event_id.clone(),
            hash: is_known.then_some(link.hash),
            is_faulty: fault.is_some(),
        });
    }

    /// A row without a link is no fault before the chain begins.
    fn visit_unlinked(&mut self, row: &Row) {
        let began = self.expected.signed.as_ref().map(|it| it.began);
        let is_before = self.last.is_none()
            && row.flaw.is_none()
            && began.map_or_else(|| !self.named_seqs.contains(&row.seq), |it| row.seq < it);
        if is_before {
            self.report.not_covered += 1;
            return;
        }
        let is_known = self.named_seqs.contains(&row.seq) || row.flaw.is_some();
        let kind = if is_known { FaultKind::Altered } else { FaultKind::Inserted };
        self.report.add(row.fault(kind, row.flaw.unwrap_or("it has no link")));
        if is_known {
            self.report_gap(row.seq);
            let event_id = row.event_id.clone();
            self.last = Some(Last { seq: row.seq, event_id, hash: None, is_faulty: true });
        }
    }

    /// Returns what is wrong with a row by itself.
    fn fault_of(&mut self, row: &Row) -> Option<Fault> {
        if row.fits() {
            return row.flaw.map(|flaw| row.fault(FaultKind::Altered, flaw));
        }
        let link = row.link.as_ref()?;
        let rows = self.rows;
        let claims = self.claims.get_or_insert_with(|| {
            let mut claims = HashMap::with_capacity(rows.len());
            for link in rows.iter().filter_map(|row| row.link.as_ref()) {
                *claims.entry((link.hash, link.content)).or_default() += 1;
            }
            claims
        });
        let is_named = self.named.contains(&(row.seq, link.hash));
        if claims.get(&(link.hash, link.content)).is_some_and(|it| *it > 1) && !is_named {
            return Some(row.fault(FaultKind::Inserted, "it is a copy of another event"));
        }
        let named = &self.named;
        let homes = self
            .homes
            .get_or_insert_with(|| named.iter().map(|(seq, hash)| (*hash, *seq)).collect());
        if let Some(home) = homes.get(&link.hash).filter(|home| row.fits_at(**home)) {
            let what = format!("its content is that of event {home}");
            return Some(row.fault(FaultKind::Swapped, what));
        }
        if self.is_surplus(row) {
            return Some(row.fault(FaultKind::Inserted, "it is no event of the chain"));
        }
        if row.fits_at(row.seq + 1) {
            let what = "it is missing, and those after it have other numbers";
            return Some(Fault { event_id: None, ..row.fault(FaultKind::Removed, what) });
        }
        let what = row.flaw.unwrap_or("its content is not what was recorded");
        Some(row.fault(FaultKind::Altered, what))
    }

    /// Returns whether a row that does not fit is one too many: the next one fits in its place, or it
    /// stands after the end and does not follow it.
    fn is_surplus(&self, row: &Row) -> bool {
        let next = self.rows.partition_point(|it| it.seq <= row.seq);
        if self.rows.get(next).is_some_and(|it| it.fits_at(row.seq)) {
            return true;
        }
        let last = self.last.as_ref().and_then(|it| Some((it.seq, it.hash?)));
        let stated = before(row, self.expected.scope).map(|it| (it.seq, it.hash));
        !self.named_seqs.contains(&row.seq) && last.is_some() && stated != last
    }

    /// Checks what a row states of the one before it.
    fn follow(&mut self, row: &Row, link: &RowLink, is_faulty: bool, is_named: bool) {
        let Some(before) = before(row, self.expected.scope) else {
            return self.begin_again(row, link);
        };
        let Some(last) = self.last.clone() else { return self.begin(row, &before) };
        if before.seq > last.seq {
            self.report_missing(before.seq);
        } else if before.seq < last.seq {
            if !last.is_faulty && !is_faulty {
                self.report.add(fault_of_last(&last, FaultKind::Inserted, "no event follows it"));
            }
        } else if last.hash.is_some_and(|it| it != before.hash) && !last.is_faulty && !is_faulty {
            let is_newest = self.rows.last().is_some_and(|it| it.seq == row.seq);
            if is_named || is_newest {
                let what = "it is another event than the one that the next event follows";
                self.report.add(fault_of_last(&last, FaultKind::Altered, what));
            } else {
                let what = format!("it does not follow event {}", last.seq);
                self.report.add(row.fault(FaultKind::Altered, what));
            }
        }
    }

    fn deleted_through(&self) -> i64 {
        self.expected.signed.as_ref().map_or(0, |it| it.deleted_through)
    }

    /// The first row names another before it.
    fn begin(&mut self, row: &Row, before: &Place) {
        let deleted = self.deleted_through();
        if self.expected.from == Some(row.seq) || before.seq <= deleted {
            return;
        }
        let began = self.expected.signed.as_ref().map(|it| it.began);
        let first = match self.expected.scope {
            Scope::All => self.expected.from.or(began.map(|it| it.max(deleted + 1))),
            Scope::Record => None,
        };
        self.report_missing_from(first.unwrap_or(before.seq).min(before.seq), before.seq);
    }

    /// A row that names none before it.
    fn begin_again(&mut self, row: &Row, link: &RowLink) {
        let is_first = self.last.is_none();
        match link.start {
            Some(Start::Break) => {}
            None if self.expected.scope == Scope::Record => {
                if is_first {
                    return;
                }
            }
            _ if is_first => return,
            _ => {
                let what = "it begins a chain, though there are events before it";
                self.report.add(row.fault(FaultKind::Altered, what));
                return;
            }
        }
        self.report.breaks.push(row.seq);
        if self.expected.scope == Scope::All {
            if is_first {
                let began = self.expected.signed.as_ref().map_or(row.seq, |it| it.began);
                let place = Place { seq: row.seq - 1, hash: link.hash };
                if began < row.seq {
                    self.begin(row, &place);
                }
            } else {
                self.report_gap(row.seq);
            }
        }
    }

    /// Reports what is missing before a row that does not say itself what it follows.
    fn report_gap(&mut self, seq: i64) {
        if self.expected.scope == Scope::All {
            self.report_missing(seq - 1);
        }
    }

    /// Reports the events after the last row up to `through`, unless retention deleted them.
    fn report_missing(&mut self, through: i64) {
        let Some(last) = &self.last else { return };
        let first = match self.expected.scope {
            Scope::All => last.seq + 1,
            Scope::Record => through,
        };
        self.report_missing_from(first, through);
    }

    fn report_missing_from(&mut self, first: i64, through: i64) {
        let is_all = self.expected.scope == Scope::All;
        let first = if is_all { first.max(self.deleted_through() + 1) } else { first };
        if first > through {
            return;
        }
        let is_damaged = self.expected.set_apart.contains(&first);
        let (kind, what) = if is_damaged {
            (FaultKind::Altered, "the device set it apart as damaged".to_owned())
        } else if first == through {
            (FaultKind::Removed, "it is missing".to_owned())
        } else {
            (FaultKind::Removed, format!("the events {first} to {through} are missing"))
        };
        self.report.add(Fault { kind, seq: Some(first), event_id: None, what });
    }

    fn finish(mut self) {
        self.compare_with_checkpoints();
        if self.report.is_intact() {
            self.unexplained.into_iter().for_each(|fault| self.report.add(fault));
        } else {
            self.report.faults += self.unexplained.len() as u64;
        }
    }

    fn compare_with_checkpoints(&mut self) {
        let Some(signed) = &self.expected.signed else { return };
        let is_later = |row: &&Row| row.link.is_some() && row.seq > signed.newest.seq;
        self.report.unsigned = self.rows.iter().filter(is_later).count() as u64;
        let scope = self.expected.scope;
        let last = self.last.as_ref().map_or(signed.began - 1, |it| it.seq);
        if let Some(newest) = signed.newest_of(scope).filter(|it| it.seq > last) {
            let first = match scope {
                Scope::All => (last + 1).max(signed.deleted_through + 1),
                Scope::Record => newest.seq,
            };
            if first <= newest.seq {
                let what =
                    format!("the events up to {}, which was signed, are missing", newest.seq);
                let kind = FaultKind::Truncated;
                self.report.add(Fault { kind, seq: Some(first), event_id: None, what });
            }
        }
        let all = std::iter::once(signed).chain(&self.expected.signed_before);
        for place in all.filter_map(|it| it.newest_of(scope)) {
            let mut of_place = self.rows.iter().filter(|row| row.seq == place.seq);
            let Some(row) = of_place.clone().next() else { continue };
            let is_signed = |row: &Row| row.link.as_ref().is_some_and(|it| it.hash == place.hash);
            if !of_place.any(is_signed) {
                let what = "it is not the event that the device signed";
                self.report.add(row.fault(FaultKind::Altered, what));
            }
        }
    }
}

fn fault_of_last(last: &Last, kind: FaultKind, what: &str) -> Fault {
    let event_id = Some(last.event_id.clone());
    Fault { kind, seq: Some(last.seq), event_id, what: what.to_owned() }
}

/// The event that a row names as the one before it.
fn before(row: &Row, scope: Scope) -> Option<Place> {
    let link = row.link.as_ref()?;
    match scope {
        Scope::All => link.prev.map(|hash| Place { seq: row.seq - 1, hash }),
        Scope::Record => link.record,
    }
}

#[cfg(test)]
mod tests;
