//! Reads records where they are: a database, MongoDB, a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value};

use super::Found;
use crate::app::exit;
use crate::config::Settings;
use crate::ids::Origin;
use crate::keys::secret_file::credentials_dir;
use crate::mongo;
use crate::store::{Reader, Store};
use crate::wire::chain_check::{Corrections, Fault, FaultKind, Row};
use crate::wire::event::{EventKind, recorded};

/// Rows read at a time.
const PAGE: u32 = 500;

/// Reads a database as it is, whatever its checksums say. The reader shows it as of the same moment.
pub fn database(dir: &Path) -> anyhow::Result<(Found, Reader)> {
    let reader = Store::open_record(dir, credentials_dir().as_deref()).map_err(exit::storage)?;
    let mut corrections = Corrections::of_present();
    each_row(&reader, Some(EventKind::Correction), &mut |row| {
        if let Some(event) = &row.event {
            corrections.add(&recorded(event));
        }
    })?;
    let mut found = Found::default();
    each_row(&reader, None, &mut |row| {
        let event = row.event.as_ref().and_then(|it| Row::read(&recorded(it), &corrections));
        found.rows.push(match event {
            None => Row::unreadable(row.seq),
            Some(it) if !row.columns_fit => it.with_flaw("columns of its row contradict it"),
            Some(it) => it,
        });
    })?;
    found.tokens.extend(reader.checkpoint()?);
    found.set_apart.extend(reader.events_set_apart()?);
    let erased = found.rows.iter().filter(|it| it.is_erased()).count() as u64;
    let erasures = reader.events_erased()?;
    if erased > erasures {
        found.faults.push(Fault {
            kind: FaultKind::Altered,
            seq: found.rows.iter().find(|it| it.is_erased()).map(Row::seq),
            event_id: None,
            what: format!(
                "{erased} events have lost their person, but {erasures} were erased here"
            ),
        });
    }
    Ok((found, reader))
}

fn each_row(
    reader: &Reader,
    kind: Option<EventKind>,
    visit: &mut dyn FnMut(&crate::store::RecordRow),
) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let page = reader.record_rows(after, PAGE, kind)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.seq;
        page.iter().for_each(&mut *visit);
    }
}

/// Reads the attendance of one device in MongoDB, with the checkpoint there.
pub(super) fn mongo(settings: &Settings, origin: &Origin) -> anyhow::Result<Found> {
    let mongo = settings.mongo.as_ref().context("no MongoDB is configured ([mongo] uri)")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut found = Found::default();
    let mut visit = |document: Value| {
        let Value::Object(mut event) = document else { return };
        let corrections: Vec<Value> = event
            .get_mut("chain")
            .and_then(|it| it.as_object_mut()?.remove("corrections"))
            .and_then(|it| match it {
                Value::Array(list) => Some(list),
                _ => None,
            })
            .unwrap_or_default();
        let mut states = Corrections::of_mongo();
        corrections.iter().filter_map(Value::as_object).for_each(|it| states.add(it));
        found.rows.extend(Row::read(&event, &states));
        let of_corrections = corrections.iter().filter_map(Value::as_object);
        found.rows.extend(of_corrections.filter_map(|it| Row::read(it, &states)));
    };
    let read = mongo::read_record(mongo, origin, &mut visit);
    let token = runtime.block_on(read).map_err(|why| anyhow!("MongoDB cannot be read: {why}"))?;
    runtime.shutdown_background();
    found.tokens.extend(token);
    // The server gives them in no order.
    found.rows.sort_by_key(Row::seq);
    Ok(found)
}

/// A longer line is read as several, none of which is an event: an event has a thousand bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What a line of a file is.
pub(super) enum Line {
    Event(Map<String, Value>),
    /// Another message, such as the watermark.
    Message(Map<String, Value>),
    Unreadable,
}

/// Reads a file line by line; `mosquitto_sub -v` writes the topic before each message.
pub(super) fn each_line(path: &Path, visit: &mut dyn FnMut(usize, Line)) -> anyhow::Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = BufReader::new(File::open(path).with_context(failed)?);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let mut line = (&mut file).take(LINE_BYTES_MAX);
        if line.read_until(b'\n', &mut bytes).with_context(failed)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim().trim_start_matches('\u{feff}');
        let json = text.find('{').map(|at| &text[at..]);
        match json.map(serde_json::from_str::<Map<String, Value>>) {
            Some(Ok(it)) if it.contains_key("event_id") => visit(number, Line::Event(it)),
            Some(Ok(it)) => visit(number, Line::Message(it)),
            Some(Err(_)) => visit(number, Line::Unreadable),
            // A bare word, such as `online`.
            None => {}
        }
    }
    Ok(())
}

fn origin_of(message: &Map<String, Value>) -> Origin {
    let text = |key| message.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Origin { site: text("site"), device: text("device") }
}

/// Reads the events of a file, by device. `is_proof`: events may be there by their link only.
pub(super) fn lines(path: &Path, is_proof: bool) -> anyhow::Result<Vec<(Origin, Found)>> {
    let mut corrections: BTreeMap<Origin, Corrections> = BTreeMap::new();
    each_line(path, &mut |_, line| {
        if let Line::Event(event) = line {
            corrections.entry(origin_of(&event)).or_default().add(&event);
        }
    })?;
    let mut found: BTreeMap<Origin, Found> = BTreeMap::new();
    let mut unreadable = Vec::new();
    each_line(path, &mut |number, line| match line {
        Line::Event(event) => {
            let origin = origin_of(&event);
            let states = corrections.entry(origin.clone()).or_default();
            match Row::read(&event, states) {
                Some(row) if !row.is_seen() && !is_proof => {
                    let row = row.with_flaw("its content is missing");
                    found.entry(origin).or_default().rows.push(row);
                }
                Some(row) => found.entry(origin).or_default().rows.push(row),
                None => unreadable.push(number),
            }
        }
        Line::Message(message) => {
            if let Some(token) = message.get("checkpoint").and_then(Value::as_str) {
                found.entry(origin_of(&message)).or_default().tokens.push(token.to_owned());
            }
        }
        Line::Unreadable => unreadable.push(number),
    })?;
    if let Some(entry) = found.values_mut().next() {
        entry.faults.extend(unreadable.iter().map(|number| Fault {
            kind: FaultKind::Altered,
            seq: None,
            event_id: None,
            what: format!("line {number} is no event"),
        }));
    }
    Ok(found.into_iter().collect())
}
