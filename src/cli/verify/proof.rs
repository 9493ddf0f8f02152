//! The proof of an export: the events that it shows, the hashes of all others up to the newest
//! checkpoint, and the checkpoint. With it somebody can check an export who has nothing else.

use std::collections::{BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::ids::Origin;
use crate::store::Reader;
use crate::wire::chain;
use crate::wire::event::{Body, StoredEvent, recorded};

/// Events read at a time.
const PAGE: u32 = 500;

/// Writes the proof of these attendances. Returns how many of them it cannot prove, because they were
/// recorded by a version without a chain. The file has names, so only its owner can read it.
pub fn write(
    path: &Path,
    reader: &Reader,
    origin: &Origin,
    shown: &BTreeSet<i64>,
) -> anyhow::Result<u64> {
    let failed = || format!("cannot write {}", path.display());
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    let mut out = BufWriter::new(opened.with_context(failed)?);
    let mut ids = HashSet::new();
    let mut unproven = 0;
    let mut after = shown.first().map_or(i64::MAX, |it| it - 1);
    loop {
        let page = reader.events_after(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for event in &page {
            let is_shown = match &event.body {
                Body::Correction(it) => ids.contains(&it.corrects),
                _ => shown.contains(&event.seq),
            };
            if is_shown {
                ids.insert(event.event_id);
            }
            match line(event, is_shown) {
                Some(line) => write_line(&mut out, line, origin).with_context(failed)?,
                None => unproven += u64::from(is_shown),
            }
        }
    }
    if let Some(token) = reader.checkpoint()? {
        let message = Map::from_iter([("checkpoint".to_owned(), json!(token))]);
        write_line(&mut out, message, origin).with_context(failed)?;
    }
    out.flush().with_context(failed)?;
    out.get_ref().sync_all().with_context(failed)?;
    Ok(unproven)
}

/// Returns an event with all that it states, or by its hashes only. `None`: it has no link.
fn line(event: &StoredEvent, is_shown: bool) -> Option<Map<String, Value>> {
    let link = event.chain.as_deref()?;
    let fields = recorded(event);
    if is_shown {
        return Some(fields);
    }
    let content = chain::content(&fields, link.was.as_ref(), &link.commit);
    let chain = json!({
        "prev": link.prev, "hash": link.hash, "record": link.record, "start": link.start,
        "content": content,
    });
    let kept = [("seq", json!(event.seq)), ("event_id", json!(event.event_id)), ("chain", chain)];
    Some(kept.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn write_line(
    out: &mut impl std::io::Write,
    mut line: Map<String, Value>,
    origin: &Origin,
) -> std::io::Result<()> {
    line.insert("site".into(), origin.site.as_str().into());
    line.insert("device".into(), origin.device.as_str().into());
    writeln!(out, "{}", Value::Object(line))
}
