//! `rollcall restore`: a backup becomes a state directory again, whole or not at all.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::app;
use crate::cli::backup::manifest::{Held, Manifest};
use crate::cli::backup::partial::{self, Partial};
use crate::cli::backup::{MARGIN_BYTES, mib};
use crate::cli::progress;
use crate::config::Settings;
use crate::record::seal::{KEY_FILE, SealKey};
use crate::record::store::backup::{contents, free_bytes};

/// A state directory from a backup: checked before and after, and there whole or not at all
#[derive(Debug, clap::Args)]
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
    /// Go on without the key: the daemon gets it as a credential of systemd's
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
            "{to} is there already, and is never written over: stop the daemon and `mv {to} {to}.before`, or name another with --to"
        );
    }
    let manifest = Manifest::read(&args.src)?;
    if !manifest.keys
        && args.key.is_none()
        && !args.without_keys
        && manifest.contents.references > 0
    {
        bail!(
            "the backup has no key: bring it with --key FILE (the {KEY_FILE} of the device), or say --without-keys if systemd passes it"
        );
    }
    manifest.check_files(&args.src)?;
    let partial = Partial::new(to)?;
    let bytes = manifest.files.iter().map(|it| it.bytes).sum::<u64>() + MARGIN_BYTES;
    if let Some(free) = free_bytes(partial.parent()).filter(|free| *free < bytes) {
        bail!(
            "{} has {} free, the restored state needs {}",
            partial.parent().display(),
            mib(free),
            mib(bytes)
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
    check(&manifest, &partial, args.key.is_some())?;
    give_away(to, partial.path())?;
    partial.finish()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&manifest)?);
    } else {
        tell(to, &manifest, settings);
    }
    Ok(())
}

fn copy(from: &Path, partial: &Partial, name: &str) -> anyhow::Result<()> {
    let mut file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    partial.write(name, &mut file).map(drop)
}

/// That what was written is what was backed up: bytes, and what they mean.
fn check(manifest: &Manifest, partial: &Partial, own_key: bool) -> anyhow::Result<()> {
    if !own_key {
        manifest.check_files(partial.path())?;
    }
    let key = SealKey::load(partial.path(), None)?;
    let found = contents(partial.path(), key.as_ref()).map_err(app::storage)?;
    let found = Held::of(&found, key.is_some());
    ensure!(
        manifest.contents.is_in(&found),
        "what the backup holds is not what it says: {found:?}"
    );
    Ok(())
}

/// Root restores for the daemon's user: whose the (empty) state directory is.
fn give_away(to: &Path, made: &Path) -> anyhow::Result<()> {
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

fn tell(to: &Path, manifest: &Manifest, settings: &Settings) {
    let held = &manifest.contents;
    println!(
        "{}: as it was on {}: {} subjects, {} events up to seq {}, {} rows owed; verified",
        to.display(),
        manifest.created_at,
        held.subjects,
        held.events,
        held.newest_seq,
        held.owed_rows()
    );
    println!(
        "- Never let two devices run from one backup: both would give out the same seq, and push each other off the broker."
    );
    println!("- Whoever was withdrawn since then is enrolled again: withdraw them again.");
    if (&manifest.site, &manifest.device) != (&settings.site, &settings.device) {
        println!(
            "- It was of {}/{}, and the configuration here says {}/{}: events that are still owed go out under the new name.",
            manifest.site, manifest.device, settings.site, settings.device
        );
    }
}
