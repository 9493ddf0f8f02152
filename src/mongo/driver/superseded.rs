//! Two devices at one venue: the event of each stays as evidence, and the record counts one. Only
//! computes.
//!
//! The rule: an attendance is *superseded* when another device has an earlier one (by
//! `occurred_at`, then `_id`) of the same subject, venue and direction; with a session anywhere in
//! the same session, without one within the venue's re-entry gap before it. Where directions
//! alternate every passage counts, so that the gap decides in a session too. It gets
//! `superseded_by`: the earliest such one. Marks are only ever added, each by a device that searches
//! after both were written, so that the order of arrival does not matter. An attendance with an
//! `unsynced` time is judged when it is corrected.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mongodb::bson::{Document, doc};

use super::documents::date;

/// The part of an attendance that the rule uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Passage {
    pub(super) occurred_ms: i64,
    pub(super) id: String,
    pub(super) device: String,
    pub(super) venue: String,
    pub(super) subject: String,
    pub(super) direction: String,
    pub(super) session: Option<String>,
    pub(super) marked: bool,
}

/// What the rule needs of a venue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VenueRule {
    pub(super) gap: Duration,
    /// Directions alternate: sessions do not matter.
    pub(super) alternates: bool,
}

impl VenueRule {
    /// For a venue that is no longer known here.
    pub(super) const USUAL: Self = Self { gap: Duration::from_mins(5), alternates: false };
}

/// No session is longer than a day, of 25 hours at most, and it opens half a day earlier at most.
const SESSION_SPAN_MS: i64 = 38 * 3_600_000;
/// Times further apart than this are queried one by one, so that a batch that spans years does not
/// read all of them.
const STRETCH_MS: i64 = 2 * 86_400_000;

impl Passage {
    /// Reads a document of `attendance`; `None` without a known time or subject.
    pub(super) fn from_document(found: &Document) -> Option<Self> {
        if found.get_str("clock").ok()? == "unsynced" {
            return None;
        }
        let text = |key: &str| found.get_str(key).map(str::to_owned).ok();
        Some(Self {
            occurred_ms: found.get_datetime("occurred_at").ok()?.timestamp_millis(),
            id: text("_id")?,
            device: text("device")?,
            venue: text("venue")?,
            subject: found.get_document("subject").ok()?.get_str("id").ok()?.to_owned(),
            direction: text("direction")?,
            session: text("session"),
            marked: found.get_str("superseded_by").is_ok(),
        })
    }

    /// Returns how far apart attendances may be that supersede one another.
    fn span_ms(&self, rule: impl Fn(&str) -> VenueRule) -> i64 {
        let rule = rule(&self.venue);
        if self.session.is_some() && !rule.alternates {
            SESSION_SPAN_MS
        } else {
            rule.gap.as_millis() as i64
        }
    }
}

pub(super) fn field_projection() -> Document {
    let fields = [
        "device",
        "venue",
        "subject.id",
        "direction",
        "session",
        "occurred_at",
        "clock",
        "superseded_by",
    ];
    fields.iter().map(|field| ((*field).to_owned(), 1.into())).collect()
}

/// Returns one query for everything that may supersede or be superseded by `new`, which the index on
/// subject and time serves: stretches of time with the subjects of each.
pub(super) fn build_query(new: &[Passage], rule: impl Fn(&str) -> VenueRule) -> Option<Document> {
    let mut sorted: Vec<&Passage> = new.iter().collect();
    sorted.sort();
    let mut stretches: Vec<(i64, i64, BTreeSet<&str>)> = Vec::new();
    for seen in sorted {
        let span = seen.span_ms(&rule);
        let from = seen.occurred_ms.saturating_sub(span);
        let to = seen.occurred_ms.saturating_add(span);
        match stretches.last_mut() {
            Some(last) if seen.occurred_ms.saturating_sub(last.1) < STRETCH_MS => {
                last.0 = last.0.min(from);
                last.1 = last.1.max(to);
                last.2.insert(&seen.subject);
            }
            _ => stretches.push((from, to, BTreeSet::from([seen.subject.as_str()]))),
        }
    }
    let clauses: Vec<Document> = stretches
        .into_iter()
        .map(|(from, to, subjects)| {
            let subjects: Vec<&str> = subjects.into_iter().collect();
            doc! { "subject.id": { "$in": subjects }, "occurred_at": { "$gte": date(from), "$lte": date(to) } }
        })
        .collect();
    (!clauses.is_empty()).then(|| doc! { "$or": clauses })
}

/// Returns which of `found` are superseded and not marked yet, and by which.
pub(super) fn find_superseded(
    found: Vec<Passage>,
    rule: impl Fn(&str) -> VenueRule,
) -> Vec<(String, String)> {
    type Key = (String, String, String, Option<String>);
    let mut groups: BTreeMap<Key, Vec<Passage>> = BTreeMap::new();
    for seen in found {
        let session = seen.session.clone().filter(|_| !rule(&seen.venue).alternates);
        let key = (seen.venue.clone(), seen.subject.clone(), seen.direction.clone(), session);
        groups.entry(key).or_default().push(seen);
    }
    let mut marks = Vec::new();
    for ((venue, _, _, session), mut group) in groups {
        group.sort();
        let gap_ms = rule(&venue).gap.as_millis() as i64;
        // The first that is still within the gap.
        let mut first = 0;
        for at in 0..group.len() {
            let seen = &group[at];
            while session.is_none()
                && seen.occurred_ms.saturating_sub(group[first].occurred_ms) >= gap_ms
                && first < at
            {
                first += 1;
            }
            let earlier = group[first..at].iter().find(|other| other.device != seen.device);
            if let Some(earlier) = earlier.filter(|_| !seen.marked) {
                marks.push((seen.id.clone(), earlier.id.clone()));
            }
        }
    }
    marks
}

/// Returns the mark as an update statement. An existing mark stays.
pub(super) fn mark_statement((id, by): &(String, String)) -> Document {
    doc! { "q": { "_id": id, "superseded_by": null }, "u": { "$set": { "superseded_by": by } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: i64 = 60_000;

    fn rule(venue: &str) -> VenueRule {
        VenueRule { alternates: venue == "gate", ..VenueRule::USUAL }
    }

    /// `A0` is device A at minute 0; `A0:in:s1` adds direction and session.
    fn seen(text: &str) -> Passage {
        let mut parts = text.split(':');
        let what = parts.next().unwrap();
        Passage {
            occurred_ms: what[1..].parse::<i64>().unwrap() * MIN,
            id: what.into(),
            device: what[..1].into(),
            venue: "room".into(),
            subject: "ada".into(),
            direction: parts.next().unwrap_or("in").into(),
            session: parts.next().map(Into::into),
            marked: false,
        }
    }

    fn check(found: &[&str], expected: &[&str]) {
        let mut of: Vec<String> = find_superseded(found.iter().map(|it| seen(it)).collect(), rule)
            .into_iter()
            .map(|(id, by)| format!("{id}<{by}"))
            .collect();
        of.sort();
        assert_eq!(of, expected, "{found:?}");
    }

    #[test]
    fn earliest_attendance_counts() {
        check(&["A0", "B0"], &["B0<A0"]); // the same moment: by id
        check(&["A0", "B4"], &["B4<A0"]);
        check(&["B4", "A0"], &["B4<A0"]); // whatever the order
        check(&["A0", "B5"], &[]); // the gap is over
        check(&["A0", "A1"], &[]); // a device judges its own itself
        check(&["A0", "B1", "C2"], &["B1<A0", "C2<A0"]);
        check(&["A0", "B4", "C8"], &["B4<A0", "C8<B4"]); // each within the gap before it
        check(&["A0:in", "B1:out"], &[]); // in and out are two
    }

    #[test]
    fn session_counts_as_a_whole() {
        check(&["A0:in:s1", "B90:in:s1"], &["B90<A0"]);
        check(&["A0:in:s1", "B1:in:s2"], &[]);
        check(&["A0:in:s1", "B1"], &[]);
    }

    #[test]
    fn alternating_directions_count_every_passage() {
        let at_gate = |it: &&str| Passage { venue: "gate".into(), ..seen(it) };
        let check = |found: &[&str], expected: &[(&str, &str)]| {
            let expected: Vec<_> =
                expected.iter().map(|(id, by)| ((*id).to_owned(), (*by).to_owned())).collect();
            assert_eq!(
                find_superseded(found.iter().map(at_gate).collect(), rule),
                expected,
                "{found:?}"
            );
        };
        // left past one device, came back past the other
        check(&["A0:in:s1", "A60:out:s1", "B90:in:s1"], &[]);
        check(&["A0:in:s1", "B1:in:s1"], &[("B1", "A0")]); // one passage, seen by both
        check(&["A0:in", "B1:in:s1"], &[("B1", "A0")]); // on the edge of a session
        let query = build_query(&[at_gate(&"A0:in:s1")], rule).unwrap();
        let range = query.get_array("$or").unwrap()[0]
            .as_document()
            .unwrap()
            .get_document("occurred_at")
            .unwrap();
        assert_eq!(range.get_datetime("$lte").unwrap().timestamp_millis(), 5 * MIN);
    }

    #[test]
    fn marks_do_not_depend_on_order() {
        let devices = ["A0", "B3", "A6", "C7", "B20", "A21", "C23"];
        let of = |found: Vec<Passage>| -> BTreeSet<String> {
            find_superseded(found, rule).into_iter().map(|it| it.0).collect()
        };
        let all = of(devices.iter().map(|it| seen(it)).collect());
        // Every subset's marks are among the marks of all: an early search is never wrong.
        for subset in 0..1_u32 << devices.len() {
            let some = (0..devices.len())
                .filter(|at| subset & (1 << at) != 0)
                .map(|at| seen(devices[at]))
                .collect();
            assert!(of(some).is_subset(&all), "{subset:b}");
        }
        // Every mark is found by a search after the later of its two was written.
        let mut arrived: Vec<Passage> = Vec::new();
        let mut by_steps = BTreeSet::new();
        for at in [3, 6, 0, 5, 2, 1, 4] {
            arrived.push(seen(devices[at]));
            by_steps.extend(of(arrived.clone()));
        }
        assert_eq!(by_steps, all);
    }

    #[test]
    fn unsynced_attendance_is_ignored() {
        let mut found = doc! {
            "_id": "1", "device": "a", "venue": "room", "subject": { "id": "ada" }, "direction": "in", "session": null,
            "occurred_at": date(0), "clock": "unsynced",
        };
        assert_eq!(Passage::from_document(&found), None);
        found.insert("clock", "corrected");
        assert!(Passage::from_document(&found).is_some());
        found.insert("subject", mongodb::bson::Bson::Null);
        assert_eq!(Passage::from_document(&found), None);
    }

    #[test]
    fn one_query_covers_a_batch() {
        let batch: Vec<Passage> = (0..500).map(|at| seen(&format!("A{at}"))).collect();
        let query = build_query(&batch, rule).unwrap();
        let clauses = query.get_array("$or").unwrap();
        assert_eq!(clauses.len(), 1);
        let range = clauses[0].as_document().unwrap().get_document("occurred_at").unwrap();
        assert_eq!(range.get_datetime("$gte").unwrap().timestamp_millis(), -5 * MIN);
        assert_eq!(range.get_datetime("$lte").unwrap().timestamp_millis(), 504 * MIN);
        let apart = build_query(&[seen("A0"), seen("A1000000")], rule).unwrap();
        assert_eq!(apart.get_array("$or").unwrap().len(), 2);
        assert_eq!(build_query(&[], rule), None);
    }
}
