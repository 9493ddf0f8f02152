//! `rollcall import`: people from photographs, or a sealed gallery that `rollcall export` made.

mod people;
mod photographs;
mod remote;
mod report;
mod sealed;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};

use crate::app;
use crate::cli::import::photographs::{Allowed, Here};
use crate::cli::import::remote::Remote;
use crate::cli::import::report::Report;
use crate::cli::progress;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::record::store::{Store, StoreError};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A gallery that `rollcall export` made
    #[arg(value_name = "FILE", requires = "key_file", required_unless_present = "photographs")]
    file: Option<PathBuf>,
    /// The key it was sealed with
    #[arg(long, value_name = "FILE", conflicts_with = "photographs")]
    key_file: Option<PathBuf>,
    /// A folder of photographs: one file (NAME.jpg) or one folder (NAME/…jpg) a person
    #[arg(long = "photos", value_name = "DIR", conflicts_with = "file")]
    photographs: Option<PathBuf>,
    /// Ids and names by a CSV file with the columns file, id, name, instead of by the names of files; files are relative
    /// to DIR
    #[arg(long, requires = "photographs", value_name = "CSV")]
    map: Option<PathBuf>,
    /// Write what became of every photograph into this CSV file
    #[arg(long, requires = "photographs", value_name = "CSV")]
    report: Option<PathBuf>,
    /// Enrol people even if their face is already another subject's
    #[arg(long, requires = "photographs")]
    allow_duplicate: bool,
    /// Enrol people too who were withdrawn from this device
    #[arg(long, requires = "photographs")]
    also_withdrawn: bool,
    /// Photographs worked on at a time, each with networks of its own, when no daemon runs [default: one for each
    /// processor]
    #[arg(long, requires = "photographs", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    match (&args.photographs, &args.file, &args.key_file) {
        (Some(dir), ..) => photographs(args, dir, settings),
        (None, Some(file), Some(key_file)) => sealed::run(file, key_file, args.json, settings),
        _ => bail!(
            "name a folder of photographs (--photos DIR), or a gallery and its key (FILE --key-file K)"
        ),
    }
}

fn photographs(args: &Args, dir: &Path, settings: &Settings) -> anyhow::Result<()> {
    let most = settings.commands.images_max;
    let found = match &args.map {
        Some(map) => people::of_map(map, dir, most)?,
        None => people::of_folder(dir, most)?,
    };
    ensure!(
        !found.people.is_empty() || !found.faults.is_empty(),
        "{} has no photographs: one file (NAME.jpg) or one folder (NAME/…jpg) a person is expected",
        dir.display()
    );
    let mut report = Report::new(args.report.as_deref())?;
    found.faults.iter().try_for_each(|fault| report.fault(fault))?;
    let allowed = Allowed { duplicate: args.allow_duplicate, withdrawn: args.also_withdrawn };
    let bar = progress::bar(found.people.len() as u64, "people");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    match Store::open(&settings.state_dir, app::store_options(settings, &clock)) {
        Ok(opened) => {
            app::tell_opened(&opened);
            let workers = args.workers.map_or_else(all_processors, usize::from);
            let store = opened.store.clone();
            let here = Here { settings, store, clock, allowed, workers };
            here.run(&found.people, &mut report, &bar)?;
            opened.store.close().map_err(app::storage)?;
        }
        Err(StoreError::Locked { .. }) => {
            Remote { settings, allowed }.run(&found.people, &mut report, &bar)?
        }
        Err(error) => return Err(app::storage(error)),
    }
    bar.finish_and_clear();
    if found.passed_over > 0 && !args.json {
        println!("{} files are no photographs and were passed over", found.passed_over);
    }
    let refused = report.finish(args.json).context("the import is done, its report is not")?;
    if refused > 0 {
        bail!("{refused} of {} people were not enrolled", found.people.len() + found.faults.len());
    }
    Ok(())
}

fn all_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
