//! `rollcall import`: enrols people from photographs, or imports a sealed gallery that `rollcall
//! export` wrote.

mod archive;
pub mod people;
mod photographs;
mod remote;
mod report;
mod sealed;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};

use crate::app::exit;
use crate::app::open;
use crate::cli::consent::ConsentArgs;
use crate::cli::import::photographs::{LocalImport, Permissions};
use crate::cli::import::remote::RemoteImport;
use crate::cli::import::report::ImportReport;
use crate::cli::progress;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::store::{Store, StoreError};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rollcall import --photos staff/ --report result.csv\n  \
                  rollcall import gallery.rollcall --key-file transfer.key")]
pub struct Args {
    /// A gallery that `rollcall export` wrote
    #[arg(value_name = "FILE", requires = "key_file", required_unless_present = "photographs")]
    file: Option<PathBuf>,
    /// The key with which it was sealed
    #[arg(long, value_name = "FILE", conflicts_with = "photographs")]
    key_file: Option<PathBuf>,
    /// A folder of photographs, or a zip archive of one: one file (NAME.jpg) or one folder (NAME/…jpg)
    /// for each person
    #[arg(long = "photos", value_name = "DIR", conflicts_with = "file")]
    photographs: Option<PathBuf>,
    /// A CSV file with the columns file, id, name (separated by comma, semicolon or tab), which gives
    /// ids and names instead of the file names; files are relative to DIR. Consents are in the columns
    /// consent_version, consent_given, consent_until, recorded_by
    #[arg(long, requires = "photographs", value_name = "CSV")]
    map: Option<PathBuf>,
    /// Write the outcome of every photograph into this CSV file
    #[arg(long, requires = "photographs", value_name = "CSV")]
    report: Option<PathBuf>,
    /// Enrol people even if their face belongs to another subject already
    #[arg(long, requires = "photographs")]
    allow_duplicate: bool,
    /// Also enrol people who were removed (withdrawn) from this device
    #[arg(long, requires = "photographs")]
    also_withdrawn: bool,
    /// Of everybody of the folder who has none in the table
    #[command(flatten)]
    consent: ConsentArgs,
    /// Photographs processed at a time, each with models of its own, when no daemon runs [default:
    /// one for each processor]
    #[arg(long, requires = "photographs", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    match (&args.photographs, &args.file, &args.key_file) {
        (Some(dir), ..) => import_photographs(args, dir, settings),
        (None, Some(file), Some(key_file)) => sealed::run(file, key_file, args.json, settings),
        _ => bail!(
            "name a folder of photographs (--photos DIR), or a gallery and its key (FILE --key-file KEY)"
        ),
    }
}

fn import_photographs(args: &Args, dir: &Path, settings: &Settings) -> anyhow::Result<()> {
    let most = settings.commands.images_max;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let mut found = match &args.map {
        Some(map) => people::from_map(map, dir, most)?,
        None => people::from_folder(dir, most)?,
    };
    ensure!(
        !found.people.is_empty() || !found.skipped.is_empty(),
        "{} has no photographs: it should have one file (NAME.jpg) or one folder (NAME/…jpg) for each \
         person",
        dir.display()
    );
    if let Some(consent) = args.consent.dated_consent()? {
        for person in &mut found.people {
            person.consent.get_or_insert_with(|| consent.clone());
        }
    }
    let mut report = ImportReport::new(args.report.as_deref())?;
    found.skipped.iter().try_for_each(|it| report.add_skipped(it))?;
    let allowed = Permissions {
        duplicate: args.allow_duplicate,
        withdrawn: args.also_withdrawn,
        without_consent: !settings.is_consent_required,
        ended_ms: Some(clock.now()).filter(|it| it.trusted).map(|it| it.wall_ms),
    };
    let bar = progress::bar(found.people.len() as u64, "people");
    match Store::open(&settings.state_dir, open::store_options(settings, &clock)) {
        Ok(opened) => {
            open::log_opened(&opened);
            let workers = args.workers.map_or_else(all_processors, usize::from);
            let store = opened.store.clone();
            let here = LocalImport { settings, store, clock, allowed, workers };
            here.run(&found.people, &mut report, &bar)?;
            opened.store.close().map_err(exit::storage)?;
        }
        Err(StoreError::Locked { .. }) => {
            RemoteImport { settings, allowed }.run(&found.people, &mut report, &bar)?;
        }
        Err(error) => return Err(exit::storage(error)),
    }
    bar.finish_and_clear();
    if found.ignored > 0 && !args.json {
        println!("{} files are not photographs and were ignored", found.ignored);
    }
    let rejected =
        report.finish(args.json).context("the import is complete, but its report is not")?;
    if rejected > 0 {
        bail!(
            "{rejected} of {} people were not enrolled",
            found.people.len() + found.skipped.len()
        );
    }
    Ok(())
}

fn all_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
