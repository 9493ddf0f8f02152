//! `rollcall backup`: copies everything that a device knows into a folder, while the daemon runs.

pub mod manifest;
pub mod partial;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::app::exit;
use crate::bounded_file;
use crate::cli::backup::manifest::{BackupContents, MANIFEST, Manifest, is_key};
use crate::cli::backup::partial::PartialFolder;
use crate::cli::progress;
use crate::clock::{Clock as _, SystemClock, rfc3339};
use crate::config::Settings;
use crate::keys::seal::{KEY_FILE, SealKey};
use crate::keys::secret_file::credentials_dir;
use crate::store::DATABASE;
use crate::store::backup::{Snapshot, contents, free_bytes};

/// Copies everything that this device knows into a new folder, while the daemon runs: events,
/// pending messages, enrolled people and the keys
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sudo -u rollcall rollcall backup /var/backups/rollcall/$(date +%F)"
)]
pub struct Args {
    /// The folder to make
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// Leave the keys out: without them nobody can use the faces in the backup, you included
    #[arg(long)]
    without_keys: bool,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

/// The space that must remain free on the disk.
pub const MARGIN_BYTES: u64 = 1 << 20;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let state = &settings.state_dir;
    let dest = &args.dest;
    ensure!(partial::is_free(dest)?, "{} exists already: name a new folder", dest.display());
    let snapshot = Snapshot::open(state).map_err(exit::storage)?;
    let partial = PartialFolder::new(dest)?;
    let bytes = snapshot.bytes().map_err(exit::storage)?;
    let free = free_bytes(partial.parent());
    if let Some(free) = free.filter(|free| *free < bytes + MARGIN_BYTES) {
        bail!(
            "{} has {} free, but the backup needs {}",
            partial.parent().display(),
            format_mib(free),
            format_mib(bytes + MARGIN_BYTES)
        );
    }
    let created_at = rfc3339(SystemClock::new(settings.trust).now().wall_ms);
    let bar = progress::bar(bytes >> 20, "MiB");
    snapshot
        .copy_to(partial.path(), |done, all| bar.set_position((bytes >> 20) * done / all.max(1)))
        .map_err(exit::storage)
        .context("the backup failed, and nothing is left of it")?;
    bar.finish_and_clear();
    drop(snapshot);

    let key = SealKey::load(state, credentials_dir().as_deref())?;
    let keys =
        if args.without_keys { Vec::new() } else { copy_keys(state, key.as_ref(), &partial)? };
    let held = contents(partial.path(), key.as_ref()).map_err(exit::storage)?;
    let held = BackupContents::of(&held, key.is_some());
    let has_key = keys.iter().any(|name| name == KEY_FILE);
    let mut manifest = Manifest::new(&settings.site, &settings.device, created_at, has_key, held);
    manifest.add_file(partial.path(), DATABASE)?;
    keys.iter().try_for_each(|name| manifest.add_file(partial.path(), name))?;
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    partial.write(MANIFEST, &mut text.as_bytes())?;
    partial.finish()?;
    if args.json {
        print!("{text}");
    } else {
        print_result(args, &manifest);
    }
    Ok(())
}

/// Copies all keys of the state directory, and the one in use where systemd passes it.
fn copy_keys(
    state: &Path,
    in_use: Option<&SealKey>,
    partial: &PartialFolder,
) -> anyhow::Result<Vec<String>> {
    let failed = || format!("cannot read {}", state.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(state).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let is_file = entry.file_type().with_context(failed)?.is_file();
        if is_file && is_key(Path::new(&entry.file_name())) {
            paths.push(entry.path());
        }
    }
    if let Some(key) = in_use.filter(|key| key.path().parent() != Some(state)) {
        // A credential takes precedence over the file of the same name.
        paths.retain(|path| path.file_name() != key.path().file_name());
        paths.push(key.path().to_owned());
    }
    paths.sort();
    let mut names = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut file =
            bounded_file::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        partial.write(&name, &mut file)?;
        names.push(name);
    }
    Ok(names)
}

fn print_result(args: &Args, manifest: &Manifest) {
    let held = &manifest.contents;
    println!(
        "{}: {} people with {} references (face samples), {} events up to seq {}, {} messages pending; \
         verified",
        args.dest.display(),
        held.subjects,
        held.references,
        held.events,
        held.newest_seq,
        held.pending_rows()
    );
    for gallery in held.galleries.iter().flatten() {
        println!(
            "gallery {} ({} references of embedder {:.12}…)",
            gallery.digest, gallery.references, gallery.embedder
        );
    }
    if held.unreadable > 0 {
        println!(
            "{} references cannot be decrypted: they were altered, and are copied as they are",
            held.unreadable
        );
    }
    if manifest.keys {
        println!(
            "IT HOLDS THE KEYS: anybody who has this folder has the faces and names in it. Protect it like the device."
        );
    } else if held.references > 0 {
        println!(
            "IT DOES NOT HOLD THE KEY: without {KEY_FILE} nobody in it can be recognised. Keep that file elsewhere, and \
             safe."
        );
    }
}

pub fn format_mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
