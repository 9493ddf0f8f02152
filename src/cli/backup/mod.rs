//! `rollcall backup`: everything that a device knows, in a folder, while the daemon goes on.

pub mod manifest;
pub mod partial;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::app;
use crate::cli::backup::manifest::{Held, MANIFEST, Manifest, is_key};
use crate::cli::backup::partial::Partial;
use crate::cli::progress;
use crate::clock::{Clock as _, SystemClock, rfc3339};
use crate::config::Settings;
use crate::record::seal::{KEY_FILE, SealKey};
use crate::record::store::DATABASE;
use crate::record::store::backup::{Snapshot, contents, free_bytes};

/// Everything that this device knows, into a new folder, while the daemon goes on: events, what is owed, who is
/// enrolled, and the keys
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to make
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// Leave the keys out: then the backup is of no use to who finds it, nor to you without them
    #[arg(long)]
    without_keys: bool,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

/// Room that is left on the disk besides.
pub const MARGIN_BYTES: u64 = 1 << 20;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let state = &settings.state_dir;
    let dest = &args.dest;
    ensure!(
        partial::is_free(dest)?,
        "{} is there already: name a folder that is not",
        dest.display()
    );
    let snapshot = Snapshot::open(state).map_err(app::storage)?;
    let partial = Partial::new(dest)?;
    let bytes = snapshot.bytes().map_err(app::storage)?;
    let free = free_bytes(partial.parent());
    if let Some(free) = free.filter(|free| *free < bytes + MARGIN_BYTES) {
        bail!(
            "{} has {} free, the backup needs {}",
            partial.parent().display(),
            mib(free),
            mib(bytes + MARGIN_BYTES)
        );
    }
    let created_at = rfc3339(SystemClock::new(settings.trust).now().wall_ms);
    let bar = progress::bar(bytes >> 20, "MiB");
    snapshot
        .copy_to(partial.path(), |done, all| bar.set_position((bytes >> 20) * done / all.max(1)))
        .map_err(app::storage)
        .context("nothing was left behind")?;
    bar.finish_and_clear();
    drop(snapshot);

    let key = SealKey::load(state, app::credentials_dir().as_deref())?;
    let keys =
        if args.without_keys { Vec::new() } else { copy_keys(state, key.as_ref(), &partial)? };
    let held = contents(partial.path(), key.as_ref()).map_err(app::storage)?;
    let held = Held::of(&held, key.is_some());
    let has_key = keys.iter().any(|name| name == KEY_FILE);
    let mut manifest = Manifest::new(&settings.site, &settings.device, created_at, has_key, held);
    manifest.list(partial.path(), DATABASE)?;
    keys.iter().try_for_each(|name| manifest.list(partial.path(), name))?;
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    partial.write(MANIFEST, &mut text.as_bytes())?;
    partial.finish()?;
    if args.json {
        print!("{text}");
    } else {
        tell(args, &manifest);
    }
    Ok(())
}

/// All keys of the state directory, and the one in use where systemd passes it.
fn copy_keys(
    state: &Path,
    in_use: Option<&SealKey>,
    partial: &Partial,
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
        // A credential comes before the file of the same name.
        paths.retain(|path| path.file_name() != key.path().file_name());
        paths.push(key.path().to_owned());
    }
    paths.sort();
    let mut names = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut file =
            File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        partial.write(&name, &mut file)?;
        names.push(name);
    }
    Ok(names)
}

fn tell(args: &Args, manifest: &Manifest) {
    let held = &manifest.contents;
    println!(
        "{}: {} subjects with {} references, {} events up to seq {}, {} rows owed; verified",
        args.dest.display(),
        held.subjects,
        held.references,
        held.events,
        held.newest_seq,
        held.owed_rows()
    );
    for gallery in held.galleries.iter().flatten() {
        println!(
            "gallery {} ({} references of embedder {:.12}…)",
            gallery.digest, gallery.references, gallery.embedder
        );
    }
    if held.unreadable > 0 {
        println!(
            "{} references do not open: they were altered, and are copied as they are",
            held.unreadable
        );
    }
    if manifest.keys {
        println!(
            "IT HOLDS THE KEYS: whoever has this folder has the faces and names in it. Keep it as you keep the device."
        );
    } else if held.references > 0 {
        println!(
            "IT DOES NOT HOLD THE KEY: without {KEY_FILE} nobody in it can be recognised again. Keep that apart, and safe."
        );
    }
}

pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
