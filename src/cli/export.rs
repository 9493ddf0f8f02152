//! `rollcall export`: writes the gallery into one sealed file, for another device or as a copy.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::app::exit;
use crate::cli::progress;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::ids::SubjectId;
use crate::keys::seal::SharedKey;
use crate::keys::secret_file::credentials_dir;
use crate::store::{Reader, Store, StoreError};
use crate::wire::export::{ExportHeader, ExportWriter};

/// Writes the enrolled people into one sealed file; works beside a running daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall export gallery.rollcall --key-file transfer.key")]
pub struct Args {
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The key to seal it with: 32 random bytes that only you can read (`rollcall keys site FILE`
    /// makes such a file)
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Only these subjects; may be given again
    #[arg(long, value_name = "ID", value_parser = |id: &str| SubjectId::new(id).map_err(|e| e.to_string()))]
    subject: Vec<SubjectId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Subjects fetched at a time.
const PAGE: u32 = 500;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let key = SharedKey::load(&args.key_file, false)?;
    let clock = SystemClock::new(settings.trust);
    let enrolled = Store::open_moment(&settings.state_dir, credentials_dir().as_deref());
    let enrolled = enrolled.map_err(exit::storage)?;
    let count =
        if args.subject.is_empty() { enrolled.subject_count()? } else { args.subject.len() as u64 };
    let created_at = rfc3339(clock.now().wall_ms);
    let header = ExportHeader::new(
        created_at,
        &settings.site,
        &settings.device,
        count,
        &enrolled.embedders()?,
    );
    let partial = PartialFile::new(&args.file)?;
    let mut writing = ExportWriter::begin(BufWriter::new(partial.open()?), &key, &header)?;
    let bar = progress::bar(count, "subjects");
    let mut unreadable = 0;
    visit_subjects(&enrolled, &args.subject, |id| {
        match enrolled.portable(id)? {
            Some(portable) => {
                writing.subject(&portable).with_context(|| format!("cannot export {id}"))?;
            }
            // Altered on disk, or enrolled a moment ago: reported below.
            None => unreadable += 1,
        }
        bar.inc(1);
        Ok(())
    })?;
    let (written, subjects) = writing.finish()?;
    let file = written
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .context("cannot write the export")?;
    partial.finish(&file)?;
    bar.finish_and_clear();
    if args.json {
        println!(
            "{}",
            serde_json::json!({"subjects": subjects, "unreadable": unreadable, "embedders": header.embedders})
        );
    } else {
        println!(
            "{}: {subjects} subjects, sealed with {}",
            args.file.display(),
            args.key_file.display()
        );
    }
    if unreadable > 0 {
        bail!(
            "{unreadable} subjects were not exported, because their references (face samples) cannot be \
             decrypted: enrol these people again"
        );
    }
    Ok(())
}

fn visit_subjects(
    enrolled: &Reader,
    wanted: &[SubjectId],
    mut visit: impl FnMut(&SubjectId) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for id in wanted {
        // A tombstone is no subject to export.
        if enrolled.portable(id)?.is_none_or(|it| it.is_withdrawn()) {
            return Err(exit::storage(StoreError::UnknownSubject { id: id.clone() }));
        }
        visit(id)?;
    }
    if !wanted.is_empty() {
        return Ok(());
    }
    let mut after = None;
    loop {
        let page = enrolled.subjects(after.as_ref(), PAGE)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.id.clone());
        page.iter().try_for_each(|subject| visit(&subject.id))?;
    }
}

/// A file that is written completely or not at all, and that only its owner can read.
struct PartialFile<'a> {
    path: PathBuf,
    place: &'a Path,
}

impl<'a> PartialFile<'a> {
    fn new(place: &'a Path) -> anyhow::Result<Self> {
        let Some(name) = place.file_name() else { bail!("{} is not a file name", place.display()) };
        if place.exists() {
            bail!("{} exists already and is never overwritten", place.display());
        }
        Ok(Self {
            path: place.with_file_name(format!(".{}.partial", name.to_string_lossy())),
            place,
        })
    }

    fn open(&self) -> anyhow::Result<File> {
        // An interrupted export may have left one.
        fs::remove_file(&self.path).ok();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        file.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(&self, mut file: &File) -> anyhow::Result<()> {
        let mut link = || {
            file.flush()?;
            file.sync_all()?;
            // `rename` would replace a file made meanwhile.
            fs::hard_link(&self.path, self.place)?;
            File::open(
                self.place
                    .parent()
                    .filter(|it| !it.as_os_str().is_empty())
                    .unwrap_or(Path::new(".")),
            )?
            .sync_all()
        };
        link().with_context(|| format!("cannot write {}", self.place.display()))
    }
}

impl Drop for PartialFile<'_> {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}
