//! Compares a CSV file of attendances with the record, or with the proof that was written with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use super::Checked;
use super::sources::{Line, each_line};
use crate::store::Reader;
use crate::wire::chain_check::{Fault, FaultKind, Report};
use crate::wire::csv;
use crate::wire::event::recorded;

/// The events that the file may have, by their number.
type Events = BTreeMap<i64, Map<String, Value>>;

/// Compares with a proof: what it shows must be in the file, and nothing else.
pub(super) fn with_proof(
    path: &Path,
    proof: &Path,
    mut checked: Vec<Checked>,
) -> anyhow::Result<Vec<Checked>> {
    let mut events = Events::new();
    each_line(proof, &mut |_, line| {
        if let Line::Event(event) = line
            && event.get("kind").and_then(Value::as_str) == Some("attendance")
            && let Some(seq) = event.get("seq").and_then(Value::as_i64)
        {
            events.insert(seq, event);
        }
    })?;
    let Some(first) = checked.first_mut() else { bail!("{} is empty", proof.display()) };
    let report = &mut first.report;
    let mut shown = BTreeSet::new();
    each_record(path, report, &mut |seq, cells, report| {
        shown.insert(seq);
        match events.get(&seq) {
            Some(event) => compare(seq, event, cells, report),
            None => report.add(fault(FaultKind::Inserted, seq, "the proof does not have it")),
        }
    })?;
    let last = shown.last().copied().unwrap_or(0);
    for seq in events.keys().filter(|seq| !shown.contains(seq)) {
        let is_end = *seq > last;
        let kind = if is_end { FaultKind::Truncated } else { FaultKind::Removed };
        report.add(fault(kind, *seq, "the file does not have it"));
    }
    Ok(checked)
}

/// Compares with the database. What the file lacks is not known: it may be of one venue or period.
pub(super) fn with_database(
    path: &Path,
    reader: &Reader,
    report: &mut Report,
) -> anyhow::Result<()> {
    each_record(path, report, &mut |seq, cells, report| {
        let event = reader.event(seq).ok().flatten().map(|it| recorded(&it));
        match event.filter(|it| it["kind"] == "attendance") {
            Some(event) => compare(seq, &event, cells, report),
            None => report.add(fault(FaultKind::Inserted, seq, "the record does not have it")),
        }
    })
}

fn fault(kind: FaultKind, seq: i64, what: impl Into<String>) -> Fault {
    Fault { kind, seq: Some(seq), event_id: None, what: what.into() }
}

type Cells = BTreeMap<String, String>;

/// Visits each line with its number. Lines that are not in the order of their numbers are a fault.
fn each_record(
    path: &Path,
    report: &mut Report,
    visit: &mut dyn FnMut(i64, &Cells, &mut Report),
) -> anyhow::Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let bytes = std::fs::read(path).with_context(failed)?;
    let bytes = bytes.strip_prefix(csv::UTF8_MARK.as_bytes()).unwrap_or(&bytes);
    let heading = bytes.split(|it| *it == b'\n').next().unwrap_or_default();
    let separators = csv::SEPARATORS.iter().map(|it| it.1);
    let separator = separators.max_by_key(|it| heading.split(|byte| byte == it).count());
    let mut lines =
        ::csv::ReaderBuilder::new().delimiter(separator.unwrap_or(b',')).from_reader(bytes);
    let heading = lines.headers().with_context(failed)?.clone();
    if !heading.iter().any(|it| it == "seq") {
        bail!("{} is no list of attendances: it has no column seq", path.display());
    }
    let mut last = None;
    for (at, line) in lines.records().enumerate() {
        let number = at + 2;
        let line = line.with_context(failed)?;
        let cells: Cells =
            heading.iter().zip(&line).map(|(key, it)| (key.to_owned(), it.to_owned())).collect();
        let Ok(seq) = cells["seq"].parse::<i64>() else {
            let what = format!("line {number} has no number");
            report.add(Fault { kind: FaultKind::Altered, seq: None, event_id: None, what });
            continue;
        };
        match last {
            Some(last) if seq == last => {
                report.add(fault(FaultKind::Inserted, seq, "it is in the file twice"));
            }
            Some(last) if seq < last => {
                report.add(fault(FaultKind::Swapped, seq, format!("it stands after event {last}")));
            }
            _ => {}
        }
        last = Some(seq);
        visit(seq, &cells, report);
    }
    Ok(())
}

/// Compares the cells whose columns are known; others may have been added.
fn compare(seq: i64, event: &Map<String, Value>, cells: &Cells, report: &mut Report) {
    let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let subject = event.get("subject").filter(|it| !it.is_null());
    let of_subject = |key: &str| subject.and_then(|it| it[key].as_str()).map(str::to_owned);
    let expected = [
        ("occurred_at", text("occurred_at")),
        ("clock", text("clock")),
        ("venue", text("venue")),
        ("direction", text("direction")),
        ("status", text("status")),
        ("subject", of_subject("id").unwrap_or_else(|| csv::ERASED.to_owned())),
        ("name", of_subject("name").unwrap_or_default()),
        ("session", text("session")),
        ("superseded_by", text("superseded_by")),
    ];
    for (column, expected) in expected {
        if cells.get(column).is_some_and(|it| *it != csv::defused(&expected)) {
            report.add(fault(
                FaultKind::Altered,
                seq,
                format!("{column} is not what was recorded"),
            ));
            return;
        }
    }
    if !has_same_time(&text("occurred_at"), cells) {
        report.add(fault(FaultKind::Altered, seq, "its local time is not that of the record"));
    }
}

/// `local_time` is the same moment with an offset and without fractions; `date` and `time` are parts
/// of it.
fn has_same_time(occurred_at: &str, cells: &Cells) -> bool {
    let Some(local) = cells.get("local_time") else { return true };
    let second = |text: &str| text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second).ok();
    let is_part = |column: &str, range: std::ops::Range<usize>| {
        cells.get(column).is_none_or(|it| local.get(range) == Some(it.as_str()))
    };
    second(local) == second(occurred_at) && is_part("date", 0..10) && is_part("time", 11..19)
}
