//! Imports a gallery that `rollcall export` wrote. The whole file is checked first, so that a truncated
//! or altered file changes nothing. People of whom this device has a newer version stay as they are,
//! so an import can be repeated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::app::commands::enrolment::accept_imported;
use crate::app::exit;
use crate::app::open;
use crate::cli::progress;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::keys::seal::SharedKey;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::ModelDigest;
use crate::store::{AcceptOutcome, Store, StoreError, Tx};
use crate::wire::export::ExportReader;
use crate::wire::subject::{Portable, State};

/// Subjects in one transaction: single ones would need an fsync each.
const BATCH: usize = 100;

#[derive(Debug, Default)]
struct ImportCounts {
    taken: u64,
    same: u64,
    older: u64,
    without_consent: u64,
    references: BTreeMap<String, u64>,
}

pub fn run(file: &Path, key_file: &Path, json: bool, settings: &Settings) -> anyhow::Result<()> {
    let key = SharedKey::load(key_file, false)?;
    let open_file = || -> anyhow::Result<_> {
        let reader = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        ExportReader::begin(BufReader::new(reader), &key)
            .with_context(|| format!("{} cannot be used", file.display()))
    };
    let checked = open_file()?;
    let header = checked.header.clone();
    let bar = progress::bar(header.subjects, "subjects checked");
    checked
        .verify(|_| bar.inc(1))
        .with_context(|| format!("{} cannot be used, and nothing was imported", file.display()))?;
    bar.finish_and_clear();

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let opened = match Store::open(&settings.state_dir, open::store_options(settings, &clock)) {
        Ok(opened) => opened,
        Err(error @ StoreError::Locked { .. }) => {
            return Err(exit::storage(error).context(
                "stop the daemon first: a gallery cannot be imported from a file while it runs",
            ));
        }
        Err(error) => return Err(exit::storage(error)),
    };
    open::log_opened(&opened);
    let bar = progress::bar(header.subjects, "subjects");
    let mut reading = open_file()?;
    let mut count = ImportCounts::default();
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH
            && let Some(portable) = reading.subject()?
        {
            batch.push(portable);
        }
        if batch.is_empty() {
            break;
        }
        let length = batch.len() as u64;
        if settings.is_consent_required {
            batch.retain(has_consent);
            count.without_consent += length - batch.len() as u64;
        }
        import_batch(&opened.store, clock.as_ref(), batch, &mut count)?;
        bar.inc(length);
    }
    bar.finish_and_clear();
    opened.store.close().map_err(exit::storage)?;
    print_result(&count, json, settings)
}

/// A withdrawal needs none.
fn has_consent(portable: &Portable) -> bool {
    !matches!(portable.state, State::Enrolled { consent: None, .. })
}

fn import_batch(
    store: &Store,
    clock: &dyn Clock,
    batch: Vec<Portable>,
    counts: &mut ImportCounts,
) -> anyhow::Result<()> {
    for portable in &batch {
        if let State::Enrolled { references, .. } = &portable.state {
            for reference in references {
                *counts.references.entry(reference.embedder.to_string()).or_default() += 1;
            }
        }
    }
    let at = clock.now();
    let write = move |tx: &mut Tx<'_>| {
        batch.iter().map(|it| accept_imported(tx, it, at)).collect::<Result<Vec<_>, _>>()
    };
    for outcome in
        store.write(write).context("the import stopped here: run it again, and it continues")?
    {
        match outcome {
            AcceptOutcome::Accepted => counts.taken += 1,
            AcceptOutcome::Same => counts.same += 1,
            AcceptOutcome::Older => counts.older += 1,
        }
    }
    Ok(())
}

fn print_result(count: &ImportCounts, json: bool, settings: &Settings) -> anyhow::Result<()> {
    let ImportCounts { taken, same, older, without_consent, references } = count;
    // For the report only: a machine without models can import a gallery.
    let own = open::load_vision(settings).ok().map(|vision| vision.embedder());
    let is_other = |it: &String| {
        let digest = ModelDigest::from_hex(it);
        own.is_some_and(|own| digest.is_none_or(|digest| !own.uses(&digest)))
    };
    let others: u64 =
        references.iter().filter(|(embedder, _)| is_other(embedder)).map(|(_, count)| count).sum();
    if json {
        let report = serde_json::json!({
            "taken": taken, "same": same, "older": older, "references": references,
            "references_of_other_embedders": others, "without_consent": without_consent,
        });
        println!("{report}");
    } else {
        println!(
            "{taken} imported, {same} were here already, {older} are kept as they are: this device has newer \
             versions"
        );
        if *without_consent > 0 {
            println!(
                "{without_consent} were not imported: they have no consent, and [enrolment] consent = \"required\""
            );
        }
        if others > 0 {
            println!(
                "{others} references (face samples) are of another model: they are kept but not compared. Enrol these \
                 people again, or configure that model."
            );
        }
    }
    if taken + same + older + without_consent == 0 {
        bail!("the gallery is empty");
    }
    Ok(())
}
