//! `rollcall setup`: makes a recording door of an installed package. Takes answers from flags, a
//! provisioning file or the terminal, checks each part, writes the configuration in one step, and
//! starts the service.

mod ask;
pub mod draft;
mod files;
mod groups;
pub mod provision;
mod service;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::app::exit;
use crate::app::exit::Failure;
use crate::bounded_file;
use crate::cli::doctor::finding::CheckResult;
use crate::cli::doctor::program::CARDS;
use crate::cli::setup::ask::{Asker, Question};
use crate::cli::setup::draft::{Committed, Draft};
use crate::cli::setup::files::Owner;
use crate::cli::setup::service::ServiceStart;
use crate::config::camera::CameraSettings;

/// Sets this device up: site, camera, broker, MongoDB, venue; checks each, writes config.toml and
/// starts the service.
///
/// Every question has a flag. On a terminal the rest is asked, and Enter keeps the present value.
/// Without a terminal a missing answer is an error, unless --yes takes the default. Nothing is written
/// before the end.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sudo rollcall setup --site hq --device door-1 --mqtt-host broker.local"
)]
pub struct Args {
    /// Read a provisioning file first: a part of config.toml, for example on the boot partition.
    /// Its secrets, and the files beside it that it names, are copied into files that only the
    /// daemon can read
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Ask nothing: use defaults for missing answers, and write the configuration even if a check
    /// failed
    #[arg(long, short)]
    yes: bool,
    /// Do not start the service
    #[arg(long)]
    no_start: bool,
    /// The owner of the files with secrets
    #[arg(long, value_name = "NAME", default_value = "rollcall")]
    user: String,
    #[command(flatten)]
    answers: Answers,
}

#[derive(Debug, clap::Args)]
struct Answers {
    /// The site of the device, which is the first part of its topics
    #[arg(long)]
    site: Option<String>,
    /// The name of the device
    #[arg(long)]
    device: Option<String>,
    /// The camera: "auto", a stable name or path (`rollcall cameras`), "rpicam" (Raspberry Pi camera
    /// module), "gstreamer" (libcamera), "rtsp" or "http" (in the network), or "none"
    #[arg(long)]
    camera: Option<String>,
    /// A file with the URL of a camera in the network in its first line; it is copied
    #[arg(long, value_name = "FILE")]
    camera_url_file: Option<PathBuf>,
    /// The broker's name or address, "embedded" for one inside the daemon, or "none"
    #[arg(long, value_name = "HOST")]
    mqtt_host: Option<String>,
    /// The broker's port
    #[arg(long, value_name = "PORT")]
    mqtt_port: Option<String>,
    /// Whether the broker is reached by TLS
    #[arg(long, value_name = "YES|NO")]
    mqtt_tls: Option<String>,
    /// The authority that signed the broker's certificate (PEM), or "system"
    #[arg(long, value_name = "FILE")]
    mqtt_ca_file: Option<String>,
    /// The broker's user for this device, or "none"
    #[arg(long, value_name = "USER")]
    mqtt_user: Option<String>,
    /// A file with the password in its first line; it is copied
    #[arg(long, value_name = "FILE")]
    mqtt_password_file: Option<PathBuf>,
    /// A file with MongoDB's URI in its first line, which is copied; or "none"
    #[arg(long, value_name = "FILE")]
    mongo_uri_file: Option<PathBuf>,
    /// The authority that signed MongoDB's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    mongo_ca_file: Option<PathBuf>,
    /// Where page, metrics and HTTP routes are served: "127.0.0.1:8080", "0.0.0.0:8080" (with a
    /// token), or "none"
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<String>,
    /// A file with the token of the HTTP clients, which is copied; without one a token is made where
    /// it is needed
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,
    /// The venue at which the camera records
    #[arg(long)]
    venue: Option<String>,
    /// The venue's time zone: Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The site key, with which doors share the enrolled people (`rollcall keys site` makes one); it
    /// is copied
    #[arg(long, value_name = "FILE")]
    site_key_file: Option<PathBuf>,
}

pub fn run(args: &Args, path: Option<&Path>) -> anyhow::Result<()> {
    let path = path.unwrap_or(Path::new(service::CONFIG));
    let asker = Asker::new(args.yes);
    let unusable = |source| Failure {
        code: exit::CONFIG,
        what: "the existing configuration cannot be used",
        source,
    };
    let mut draft = Draft::load(path).map_err(unusable)?;
    draft.may_be_written().map_err(|error| {
        with_remedy(anyhow::Error::new(error).context(format!("cannot write {}", path.display())))
    })?;
    draft.settings().map_err(unusable)?;
    draft.notes().iter().for_each(|note| println!("{note}"));
    let printed = draft.notes().len();
    println!("{} {}", if draft.is_new() { "A new" } else { "Changing" }, draft.path().display());
    let secrets = match provisioning_file(args, &asker)? {
        Some(file) => provision::apply(&mut draft, &file)?,
        None => Vec::new(),
    };
    draft.notes().iter().skip(printed).for_each(|note| println!("{note}"));
    groups::ask_all(&asker, &args.answers, &mut draft)?;
    let is_command = matches!(draft.settings()?.camera, CameraSettings::Pipe(_));
    let owner = Owner::of_user(&args.user);
    let path = draft.path().to_owned();
    let has_owner = owner.is_some();
    let committed = draft.commit(owner).map_err(with_remedy)?;
    print_written(&path, &committed, has_owner, &args.user);
    let started = if args.no_start {
        ServiceStart::Skipped("--no-start was given")
    } else {
        service::start_service(&path, is_command)?
    };
    print_next_steps(&path, &started, &secrets);
    Ok(())
}

/// Returns the provisioning file to use, if any.
fn provisioning_file(args: &Args, asker: &Asker) -> anyhow::Result<Option<PathBuf>> {
    if let Some(from) = &args.from {
        return Ok(Some(from.clone()));
    }
    let Some(found) = CARDS.iter().map(Path::new).find(|path| path.is_file()) else {
        return Ok(None);
    };
    if !asker.is_interactive() {
        println!("{} exists, but is used only with --from", found.display());
        return Ok(None);
    }
    let words = format!("Found {}. Use it (yes, no)", found.display());
    let question = Question {
        flag: "--from FILE",
        words: &words,
        given: None,
        usual: Some("yes".into()),
        settled: false,
    };
    let wanted = asker.ask(&question, groups::yes_or_no)?;
    Ok(wanted.then(|| found.to_owned()))
}

fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    let kinds = error
        .chain()
        .filter_map(|it| it.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    let hints = kinds.filter_map(|kind| match kind {
        std::io::ErrorKind::PermissionDenied => Some("nothing was changed; run it as root: sudo rollcall setup"),
        std::io::ErrorKind::ReadOnlyFilesystem => {
            Some("nothing was changed; the root is read-only: mount -o remount,rw / first, and ro again afterwards")
        }
        std::io::ErrorKind::StorageFull => Some("nothing was changed; the disk is full"),
        _ => None,
    });
    let hint = hints.into_iter().next();
    match hint {
        Some(hint) => error.context(hint),
        None => error,
    }
}

fn print_written(path: &Path, committed: &Committed, has_owner: bool, user: &str) {
    if !committed.changed {
        println!("\n{} is up to date: nothing was changed", path.display());
        return;
    }
    println!("\nWritten: {}", path.display());
    for file in &committed.files {
        println!("  {} (only its owner can read it)", file.display());
    }
    if !committed.files.is_empty() && !has_owner && rustix::process::geteuid().is_root() {
        println!(
            "  There is no user {user:?} here, so they belong to root: run the daemon as root, or chown them"
        );
    }
}

fn print_next_steps(path: &Path, started: &ServiceStart, secrets: &[PathBuf]) {
    match started {
        ServiceStart::Running => {
            println!("The service is enabled and running.");
            println!("\nNext:");
            println!("  sudo rollcall watch            shows live what it detects and decides");
            println!("  sudo rollcall doctor           checks everything");
            println!("  journalctl -u rollcall -f      shows its log");
        }
        ServiceStart::Skipped(why) => {
            println!("The service was not started: {why}.");
            println!("\nNext:");
            println!("  rollcall --config {0} doctor   checks everything", path.display());
            println!("  rollcall --config {0} run      runs the daemon", path.display());
        }
    }
    println!("  rollcall enrol --id ID --name NAME PHOTO…   enrols the first person");
    for file in secrets {
        println!(
            "\n{} holds a secret in clear text. It was copied: delete the file now (sudo rm {0}).",
            file.display()
        );
    }
}

/// Prints the result of a check as `doctor` does.
fn print_check(part: &str, result: &CheckResult) {
    println!("  {part}: {}", result.lines(4));
}

/// Returns the first line of a file that the operator named.
fn read_first_line(path: &Path) -> anyhow::Result<String> {
    use std::io::{BufRead as _, Read as _};
    let file =
        bounded_file::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut line = String::new();
    std::io::BufReader::new(file.take(4096))
        .read_line(&mut line)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let line = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!line.is_empty(), "{} is empty", path.display());
    Ok(line.to_owned())
}
