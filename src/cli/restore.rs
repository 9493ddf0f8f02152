//! `rollcall restore`: makes a state directory from a backup, completely or not at all.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::app::exit;
use crate::bounded_file;
use crate::cli::backup::manifest::{BackupContents, Manifest};
use crate::cli::backup::partial::{self, PartialFolder};
use crate::cli::backup::{MARGIN_BYTES, format_mib};
use crate::cli::progress;
use crate::config::Settings;
use crate::keys::seal::{KEY_FILE, SealKey};
use crate::store::backup::{contents, free_bytes};

/// Makes a state directory from a backup, verified before and after, completely or not at all
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall restore /media/usb/door-1 --to /var/lib/rollcall")]
pub struct Args {
    /// The folder that `rollcall backup` made
    #[arg(value_name = "SRC")]
    src: PathBuf,
    /// The state directory to make [default: [storage] directory]
    #[arg(long, value_name = "STATE_DIR")]
    to: Option<PathBuf>,
    /// The key, where the backup has none: the file rollcall.key of the device
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Restore without the key: the daemon gets it as a systemd credential
    #[arg(long, conflicts_with = "key")]
    without_keys: bool,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let to = args.to.as_ref().unwrap_or(&settings.state_dir);
    if !partial::is_free(to)? {
        let to = to.display();
        bail!(
            "{to} exists already and is never overwritten: stop the daemon and `mv {to} {to}.before`, or \
             name another directory with --to"
        );
    }
    let manifest = Manifest::read(&args.src)?;
    if !manifest.keys
        && args.key.is_none()
        && !args.without_keys
        && manifest.contents.references > 0
    {
        bail!(
            "the backup has no key: add --key FILE (the {KEY_FILE} of the device), or --without-keys if \
             systemd passes it"
        );
    }
    manifest.check_files(&args.src)?;
    let partial = PartialFolder::new(to)?;
    let bytes = manifest.files.iter().map(|it| it.bytes).sum::<u64>() + MARGIN_BYTES;
    if let Some(free) = free_bytes(partial.parent()).filter(|free| *free < bytes) {
        bail!(
            "{} has {} free, but the restored state needs {}",
            partial.parent().display(),
            format_mib(free),
            format_mib(bytes)
        );
    }
    let bar = progress::bar(manifest.files.len() as u64, "files");
    for file in manifest.files.iter().filter(|it| args.key.is_none() || it.name != KEY_FILE) {
        copy(&args.src.join(&file.name), &partial, &file.name)?;
        bar.inc(1);
    }
    if let Some(key) = &args.key {
        copy(key, &partial, KEY_FILE)?;
    }
    bar.finish_and_clear();
    check_restored(&manifest, &partial, args.key.is_some())?;
    change_owner(to, partial.path())?;
    partial.finish()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&manifest)?);
    } else {
        print_result(to, &manifest, settings);
    }
    Ok(())
}

fn copy(from: &Path, partial: &PartialFolder, name: &str) -> anyhow::Result<()> {
    let mut file =
        bounded_file::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    partial.write(name, &mut file).map(drop)
}

/// Checks that what was written is what was backed up: the bytes, and the content of the database.
fn check_restored(
    manifest: &Manifest,
    partial: &PartialFolder,
    own_key: bool,
) -> anyhow::Result<()> {
    if !own_key {
        manifest.check_files(partial.path())?;
    }
    let key = SealKey::load(partial.path(), None)?;
    let found = contents(partial.path(), key.as_ref()).map_err(exit::storage)?;
    let found = BackupContents::of(&found, key.is_some());
    ensure!(
        manifest.contents.matches(&found),
        "the backup does not hold what its manifest states: {found:?}"
    );
    Ok(())
}

/// Gives the files to the owner of the (empty) state directory when root restores.
fn change_owner(to: &Path, made: &Path) -> anyhow::Result<()> {
    let Ok(place) = fs::metadata(to) else { return Ok(()) };
    if !rustix::process::geteuid().is_root() || place.uid() == 0 {
        return Ok(());
    }
    let failed = || format!("cannot give the files to the owner of {}", to.display());
    for entry in fs::read_dir(made).with_context(failed)? {
        chown(entry.with_context(failed)?.path(), Some(place.uid()), Some(place.gid()))
            .with_context(failed)?;
    }
    chown(made, Some(place.uid()), Some(place.gid())).with_context(failed)
}

fn print_result(to: &Path, manifest: &Manifest, settings: &Settings) {
    let held = &manifest.contents;
    println!(
        "{}: as of {}: {} people, {} events up to seq {}, {} messages pending; verified",
        to.display(),
        manifest.created_at,
        held.subjects,
        held.events,
        held.newest_seq,
        held.pending_rows()
    );
    println!(
        "- Never run two devices from one backup: both would use the same seq, and the broker would disconnect one \
         for the other."
    );
    println!(
        "- People removed (withdrawn) after the backup are enrolled again: remove them again."
    );
    if (&manifest.site, &manifest.device) != (&settings.site, &settings.device) {
        println!(
            "- It is a backup of {}/{}, and the configuration here names {}/{}: pending events are delivered under the \
             new name.",
            manifest.site, manifest.device, settings.site, settings.device
        );
    }
}
