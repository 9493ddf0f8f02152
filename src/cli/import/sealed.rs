//! A gallery that `rollcall export` made, taken in. The whole file is checked first, so that one which was cut or altered
//! changes nothing; whom this device knows by a newer account stays as they are, so that it can be begun again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::app;
use crate::app::commander::carry_out::accept_imported;
use crate::cli::progress;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::ModelDigest;
use crate::record::export::Reading;
use crate::record::portable::{Portable, State};
use crate::record::seal::SharedKey;
use crate::record::store::{Outcome, Store, StoreError, Tx};

/// Subjects in one transaction: one after the other would be one fsync each.
const TOGETHER: usize = 100;

#[derive(Debug, Default)]
struct Count {
    taken: u64,
    same: u64,
    older: u64,
    references: BTreeMap<String, u64>,
}

pub fn run(file: &Path, key_file: &Path, json: bool, settings: &Settings) -> anyhow::Result<()> {
    let key = SharedKey::load(key_file, false)?;
    let open = || -> anyhow::Result<_> {
        let reader = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        Reading::begin(BufReader::new(reader), &key)
            .with_context(|| format!("{} cannot be used", file.display()))
    };
    let checked = open()?;
    let header = checked.header.clone();
    let bar = progress::bar(header.subjects, "subjects checked");
    checked
        .verify(|_| bar.inc(1))
        .with_context(|| format!("{} cannot be used, and nothing was taken", file.display()))?;
    bar.finish_and_clear();

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let opened = match Store::open(&settings.state_dir, app::store_options(settings, &clock)) {
        Ok(opened) => opened,
        Err(error @ StoreError::Locked { .. }) => {
            return Err(app::storage(error)
                .context("stop the daemon first: a gallery from a file is taken in without it"));
        }
        Err(error) => return Err(app::storage(error)),
    };
    app::tell_opened(&opened);
    let bar = progress::bar(header.subjects, "subjects");
    let (mut reading, mut count) = (open()?, Count::default());
    loop {
        let mut batch = Vec::with_capacity(TOGETHER);
        while batch.len() < TOGETHER
            && let Some(portable) = reading.subject()?
        {
            batch.push(portable);
        }
        if batch.is_empty() {
            break;
        }
        let length = batch.len() as u64;
        take(&opened.store, clock.as_ref(), batch, &mut count)?;
        bar.inc(length);
    }
    bar.finish_and_clear();
    opened.store.close().map_err(app::storage)?;
    tell(&count, json, settings)
}

fn take(
    store: &Store,
    clock: &dyn Clock,
    batch: Vec<Portable>,
    count: &mut Count,
) -> anyhow::Result<()> {
    for portable in &batch {
        if let State::Enrolled { references, .. } = &portable.state {
            for reference in references {
                *count.references.entry(reference.embedder.to_string()).or_default() += 1;
            }
        }
    }
    let at = clock.now();
    let write = move |tx: &mut Tx<'_>| {
        batch.iter().map(|it| accept_imported(tx, it, at)).collect::<Result<Vec<_>, _>>()
    };
    for outcome in store
        .write(write)
        .context("the import stopped here; begin it again, it goes on where it was")?
    {
        match outcome {
            Outcome::Taken => count.taken += 1,
            Outcome::Same => count.same += 1,
            Outcome::Older => count.older += 1,
        }
    }
    Ok(())
}

fn tell(count: &Count, json: bool, settings: &Settings) -> anyhow::Result<()> {
    let Count { taken, same, older, references } = count;
    // Only to be told: a machine without networks can take a gallery in.
    let own = app::load_vision(settings).ok().map(|vision| vision.embedder());
    let is_other = |it: &String| own.is_some_and(|own| ModelDigest::from_hex(it) != Some(own));
    let others: u64 =
        references.iter().filter(|(embedder, _)| is_other(embedder)).map(|(_, count)| count).sum();
    if json {
        let told = serde_json::json!({
            "taken": taken, "same": same, "older": older, "references": references,
            "references_of_other_embedders": others,
        });
        println!("{told}");
    } else {
        println!(
            "{taken} taken, {same} were in already, {older} are kept as they are: this device has a newer account"
        );
        if others > 0 {
            println!(
                "{others} references are of another embedder: kept, not compared. Enrol these people again, or configure it."
            );
        }
    }
    if taken + same + older == 0 {
        bail!("the gallery is empty");
    }
    Ok(())
}
