//! `rollcall setup`: from an installed package to a door that records. Asks, or takes from flags and a provisioning file;
//! checks each part as it goes; writes the configuration in one step; starts the service.

mod ask;
mod draft;
mod files;
mod groups;
mod provision;
mod service;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::app::{Failure, exit};
use crate::cli::doctor::finding::Verdict;
use crate::cli::doctor::program::CARDS;
use crate::cli::setup::ask::{Asker, Question};
use crate::cli::setup::draft::{Committed, Draft};
use crate::cli::setup::files::Owner;
use crate::cli::setup::service::Started;

/// Set this device up: site, camera, broker, MongoDB, venue; checks each, writes config.toml, starts the service.
///
/// Every question has a flag. With a terminal the rest is asked, with what is set now as the answer to Enter; without one an
/// answer that is missing is an error, unless --yes takes what is usual. Nothing is written before the end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take keys from a provisioning file first: a part of config.toml, on the card's boot partition for example. Secrets
    /// in it, and files that it names beside itself, are moved into files that only the daemon reads
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Ask nothing: take what is usual for what is not said, and write although a check was not good
    #[arg(long, short)]
    yes: bool,
    /// Do not start the service
    #[arg(long)]
    no_start: bool,
    /// To whom the files with secrets belong
    #[arg(long, value_name = "NAME", default_value = "rollcall")]
    user: String,
    #[command(flatten)]
    answers: Answers,
}

#[derive(Debug, clap::Args)]
struct Answers {
    /// Where the device belongs: first part of its topics
    #[arg(long)]
    site: Option<String>,
    /// The device's name
    #[arg(long)]
    device: Option<String>,
    /// "auto", a stable name or path (`rollcall cameras`), or "none"
    #[arg(long)]
    camera: Option<String>,
    /// The broker's name or address, "embedded" for one inside the daemon, or "none"
    #[arg(long, value_name = "HOST")]
    mqtt_host: Option<String>,
    #[arg(long, value_name = "PORT")]
    mqtt_port: Option<String>,
    /// "yes" or "no"
    #[arg(long, value_name = "YES|NO")]
    mqtt_tls: Option<String>,
    /// The authority that signed the broker's certificate (PEM), or "system"
    #[arg(long, value_name = "FILE")]
    mqtt_ca_file: Option<String>,
    /// The user, or "none"
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
    /// Where page, metrics and HTTP routes are served: "127.0.0.1:8080", "0.0.0.0:8080" (with a token), or "none"
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<String>,
    /// A file with the token that HTTP clients show, which is copied; without one a token is made where one is needed
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,
    /// The venue at which the camera records
    #[arg(long)]
    venue: Option<String>,
    /// The venue's time zone: Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The site's key, by which doors share who is enrolled (`rollcall keys site` makes one); it is copied
    #[arg(long, value_name = "FILE")]
    site_key_file: Option<PathBuf>,
}

pub fn run(args: &Args, path: Option<&Path>) -> anyhow::Result<()> {
    let path = path.unwrap_or(Path::new(service::CONFIG));
    let asker = Asker::new(args.yes);
    let unusable = |source| Failure {
        code: exit::CONFIG,
        what: "the configuration that is there cannot be used",
        source,
    };
    let mut draft = Draft::load(path).map_err(unusable)?;
    draft.may_be_written().map_err(|error| {
        with_remedy(anyhow::Error::new(error).context(format!("cannot write {}", path.display())))
    })?;
    draft.settings().map_err(unusable)?;
    for note in draft.notes() {
        println!("{note}");
    }
    println!("{} {}", if draft.is_new() { "A new" } else { "Changing" }, draft.path().display());
    let secrets = match card(args, &asker)? {
        Some(card) => provision::apply(&mut draft, &card)?,
        None => Vec::new(),
    };
    groups::ask_all(&asker, &args.answers, &mut draft)?;
    let owner = Owner::of_user(&args.user);
    let (path, has_owner) = (draft.path().to_owned(), owner.is_some());
    let committed = draft.commit(owner).map_err(with_remedy)?;
    tell_written(&path, &committed, has_owner, &args.user);
    let started =
        if args.no_start { Started::Not("--no-start was given") } else { service::start(&path)? };
    tell_next(&path, &started, &secrets);
    Ok(())
}

/// The provisioning file, if one is to be used.
fn card(args: &Args, asker: &Asker) -> anyhow::Result<Option<PathBuf>> {
    if let Some(from) = &args.from {
        return Ok(Some(from.clone()));
    }
    let Some(found) = CARDS.iter().map(Path::new).find(|path| path.is_file()) else {
        return Ok(None);
    };
    if !asker.is_interactive() {
        println!("{} is there, and is used only with --from", found.display());
        return Ok(None);
    }
    let words = format!("There is {}. Use it (yes, no)", found.display());
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

fn tell_written(path: &Path, committed: &Committed, has_owner: bool, user: &str) {
    if !committed.changed {
        println!("\n{} is as it should be: nothing was changed", path.display());
        return;
    }
    println!("\nWritten: {}", path.display());
    for file in &committed.files {
        println!("  {} (only its owner may read it)", file.display());
    }
    if !committed.files.is_empty() && !has_owner && rustix::process::geteuid().is_root() {
        println!(
            "  There is no user {user:?} here, so they are root's: the daemon must run as root, or chown them"
        );
    }
}

fn tell_next(path: &Path, started: &Started, secrets: &[PathBuf]) {
    match started {
        Started::Runs => {
            println!("The service is enabled and runs.");
            println!("\nNext:");
            println!("  sudo rollcall watch            what it sees and decides, live");
            println!("  sudo rollcall doctor           is everything well?");
            println!("  journalctl -u rollcall -f      its log");
        }
        Started::Not(why) => {
            println!("The service was not started: {why}.");
            println!("\nNext:");
            println!("  rollcall --config {0} doctor   is everything well?", path.display());
            println!("  rollcall --config {0} run      the daemon", path.display());
        }
    }
    println!("  rollcall enrol --id ID --name NAME PHOTO…   the first person");
    for file in secrets {
        println!(
            "\n{} holds a secret in the clear. It was moved: delete it now (sudo rm {0}).",
            file.display()
        );
    }
}

/// As `doctor` would say it.
fn show(part: &str, verdict: &Verdict) {
    println!("  {part}: {}", verdict.lines(4));
}

/// The first line of a file that the operator named.
fn first_line(path: &Path) -> anyhow::Result<String> {
    use std::io::{BufRead as _, Read as _};
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut line = String::new();
    std::io::BufReader::new(file.take(4096))
        .read_line(&mut line)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let line = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!line.is_empty(), "{} is empty", path.display());
    Ok(line.to_owned())
}
