//! The command line: one file for each subcommand. Errors are printed here, with what to do next.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line prints to the terminal"
)]

pub mod attendance;
pub mod backup;
pub mod cameras;
pub mod command;
pub mod completions;
mod consent;
pub mod console;
pub mod demo;
pub mod doctor;
pub mod erasures;
pub mod export;
pub mod import;
pub mod keys;
pub mod measure;
mod panic_hook;
pub mod people;
mod photograph;
mod progress;
pub mod prune;
pub mod recognise;
pub mod restore;
mod scratch;
pub mod settings;
pub mod setup;
pub mod sign;
pub mod snapshot;
pub mod status;
pub mod sync;
pub mod table;
pub mod venue;
pub mod verify;
pub mod watch;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::Signal;

use crate::app;
use crate::app::daemon::RunOptions;
use crate::app::exit;
use crate::app::exit::Failure;
use crate::app::pipeline::capture::open_camera;
use crate::cli::measure::{bench, calibrate, evaluate};
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::config::raw::RawLevel;
use crate::error_chain::error_chain;
use crate::store::{SinkName, Store, StoreError, StoreOptions};
use crate::vision;
use crate::wire::event::{Body, Camera, CameraState, NewEvent};

/// An attendance terminal: recognises the faces that pass its camera, on the device, and records who
/// was there, once, with the right time, and without loss.
///
/// First steps: `rollcall setup` configures a device, `rollcall doctor` checks what it still lacks,
/// `rollcall run` is the daemon. People are enrolled with `rollcall enrol`, on the page or by MQTT. In
/// a source tree, `make demo` shows an end-to-end demo.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, max_term_width = 100)]
struct Cli {
    /// The configuration file [default: $ROLLCALL_CONFIG, ./config.toml, /etc/rollcall/config.toml, else
    /// built-in defaults]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the daemon: watch, recognise, record, publish
    #[command(after_help = "Example:\n  rollcall run --config /etc/rollcall/config.toml")]
    Run {
        /// Stop when a replay has ended and everything is delivered
        #[arg(long)]
        until_replay_ends: bool,
        /// Stop when the process that started this one has ended
        #[arg(long, hide = true)]
        end_with_parent: bool,
    },
    /// Run an end-to-end demo: daemon, broker, enrolment by MQTT, visitors before a replay camera
    Demo(demo::Args),
    /// Check the configuration without starting anything
    #[command(after_help = "Example:\n  rollcall check-config --show")]
    CheckConfig {
        /// Print the settings that result
        #[arg(long)]
        show: bool,
    },
    /// Check the model files
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Identify the people in photographs; records nothing
    Recognise(recognise::Args),
    /// Enrol a person from photographs (through the daemon when it is running)
    Enrol(people::EnrolArgs),
    /// Remove a person, or erase all that is stored of them
    Withdraw(people::WithdrawArgs),
    /// Record, renew or withdraw the consent of an enrolled person
    Consent(consent::Args),
    /// Give a person another name
    Rename(people::RenameArgs),
    /// Enrol many people from a folder of photographs, or import a gallery from a sealed file
    Import(import::Args),
    /// Write the enrolled people into one sealed file
    Export(export::Args),
    /// List who is enrolled
    Subjects(people::SubjectsArgs),
    /// Show the attendance recorded here, or sum it up per person and session
    Attendance(attendance::Args),
    /// List the venues that this device records for, with their sessions
    Venues(attendance::VenuesArgs),
    /// Put and delete venues
    Venue {
        #[command(subcommand)]
        command: venue::VenueCommand,
    },
    /// Show how the device is and what is pending
    Status(status::Args),
    /// Delete old, delivered events; the daemon does it by itself with [storage] keep_days
    Prune(prune::Args),
    /// Copy everything this device knows into a folder, while the daemon runs
    Backup(backup::Args),
    /// Make a state directory from a backup
    Restore(restore::Args),
    /// Deliver what is pending for broker and MongoDB now, or show what is pending
    Sync(sync::Args),
    /// Make, show and change keys: of the site, of signers, of the device, of the templates
    Keys {
        #[command(subcommand)]
        command: keys::KeysCommand,
    },
    /// Print a signed command, which any MQTT client can publish
    Sign(sign::Args),
    /// List the erasures of this device, with their receipts
    Erasures(erasures::Args),
    /// Check the receipt of an erasure
    VerifyReceipt(erasures::VerifyArgs),
    Verify(verify::Args),
    /// Show live in the terminal what the running daemon detects and decides
    Watch(watch::Args),
    /// Write one picture from the running daemon, to set up the camera
    Snapshot(snapshot::Args),
    /// Measure accuracy on labelled photographs
    Evaluate(evaluate::Args),
    /// Compare the enrolled people with each other: which threshold fits, who looks alike
    Calibrate(calibrate::Args),
    /// Measure speed and memory on this device
    Bench(bench::Args),
    /// List the cameras that are connected, with their formats, sizes, rates and controls
    Cameras(cameras::Args),
    /// Set this device up: ask, check each part, write the configuration, start the service
    Setup(Box<setup::Args>),
    /// Check everything the daemon needs, and report what is wrong and what to do
    Doctor(doctor::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// The embedded broker's own process; started by `run`
    #[command(hide = true)]
    BrokerChild,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Check that every model file is there and is the one the manifest describes
    #[command(after_help = "Example:\n  rollcall models verify")]
    Verify {
        #[arg(long)]
        json: bool,
    },
}

/// Parses the arguments, runs the subcommand, and returns its exit code.
pub fn main() -> ExitCode {
    panic_hook::install(!cfg!(debug_assertions));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let is_error = error.use_stderr();
            error.print().ok();
            return if is_error { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let CliCommand::BrokerChild = cli.command {
        log_to_stderr(RawLevel::Warn);
        eprintln!("rollcall: {}", error_chain(&crate::broker::process::serve_as_child()));
        return ExitCode::FAILURE;
    }
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rollcall: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let of_storage = || error.chain().any(<dyn std::error::Error>::is::<StoreError>);
    failure.map_or_else(|| if of_storage() { exit::STORAGE } else { 1 }, |failure| failure.code)
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let named = cli.config.or_else(|| std::env::var_os("ROLLCALL_CONFIG").map(PathBuf::from));
    let path = named.clone().or_else(default_config);
    let settings = || settings::load(path.as_deref());
    match cli.command {
        // Not the file in the working directory, which may be a source tree.
        CliCommand::Setup(args) => setup::run(&args, named.as_deref()),
        CliCommand::Run { until_replay_ends, end_with_parent } => {
            if end_with_parent {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            }
            let settings = settings()?;
            log_to_stderr(settings.level);
            app::run(settings, RunOptions { until_replay_ends })
        }
        CliCommand::Demo(args) => demo::run(&args),
        CliCommand::CheckConfig { show } => check_config(path.as_deref(), show),
        CliCommand::Models { command: ModelsCommand::Verify { json } } => {
            verify_models(&settings()?, json)
        }
        CliCommand::Recognise(args) => recognise::run(&args, &settings()?),
        CliCommand::Enrol(args) => people::enrol(&args, &settings()?),
        CliCommand::Withdraw(args) => people::withdraw(&args, &settings()?),
        CliCommand::Consent(args) => {
            let settings = settings()?;
            let now_ms = SystemClock::new(settings.trust).now().wall_ms;
            consent::run(&args, &settings, now_ms)
        }
        CliCommand::Rename(args) => people::rename(&args, &settings()?),
        CliCommand::Import(args) => {
            log_to_stderr(RawLevel::Warn);
            import::run(&args, &settings()?)
        }
        CliCommand::Export(args) => export::run(&args, &settings()?),
        CliCommand::Subjects(args) => people::subjects(&args, &settings()?),
        CliCommand::Attendance(args) => attendance::run(&args, &settings()?),
        CliCommand::Venues(args) => attendance::venues(&args, &settings()?),
        CliCommand::Venue { command } => venue::run(&command, &settings()?),
        CliCommand::Status(args) => status::run(&args, &settings()?),
        CliCommand::Prune(args) => prune::run(&args, &settings()?),
        CliCommand::Backup(args) => backup::run(&args, &settings()?),
        CliCommand::Restore(args) => restore::run(&args, &settings()?),
        CliCommand::Sync(args) => sync::run(&args, &settings()?),
        CliCommand::Keys { command } => keys::run(&command, settings),
        CliCommand::Sign(args) => sign::run(&args),
        CliCommand::Erasures(args) => erasures::run(&args, &settings()?),
        CliCommand::VerifyReceipt(args) => erasures::verify(&args, settings),
        CliCommand::Verify(args) => verify::run(&args, settings),
        CliCommand::Watch(args) => watch::run(&args, &settings()?),
        CliCommand::Snapshot(args) => snapshot::run(&args, &settings()?),
        CliCommand::Evaluate(args) => {
            let settings = settings()?;
            let pad = settings.recognition.pad();
            let recognition = &settings.recognition;
            let decision = |spec: &vision::manifest::TemplateSpec| recognition.decision(spec);
            evaluate::run(&args, &settings.vision, pad, decision, |spec| recognition.live(spec))
        }
        CliCommand::Calibrate(args) => calibrate::run(&args, &settings()?),
        CliCommand::Bench(args) => run_bench(&args, &settings()?),
        CliCommand::Cameras(args) => cameras::run(&args, &settings()?),
        CliCommand::Completions(args) => completions::run(&args, command()),
        CliCommand::Doctor(args) => doctor::run(&args, path.as_deref()),
        CliCommand::BrokerChild => unreachable!("handled before"),
    }
}

/// Runs the bench with one commit to repeat, because it does not know the store.
fn run_bench(args: &bench::Args, settings: &Settings) -> anyhow::Result<()> {
    // Beside the state directory, to measure the same disk.
    let parent = settings.state_dir.parent().filter(|path| path.is_dir()).unwrap_or(Path::new("."));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    if let Some(protocol) = &args.looks {
        let decision = |spec: &vision::manifest::TemplateSpec| settings.recognition.decision(spec);
        let report = bench::looks::measure(args, protocol, &settings.vision, decision)?;
        return bench::show(args, &report, || report.table());
    }
    if args.store {
        return bench::durable::run(args, parent, &clock);
    }
    let folder = scratch::Scratch::new_in(parent, "bench")?;
    let opened =
        Store::open(folder.path(), StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&clock)))?;
    let mut commit = || {
        let body = Body::Camera(Camera { state: CameraState::Back, reason: None, lost_ms: None });
        let event = NewEvent::new(clock.now(), body);
        Ok(opened.store.write(move |tx| tx.append_event(&event)).map(drop)?)
    };
    if args.camera {
        let files = bench::photographs(args, &settings.vision.models)?;
        let live = |spec: &vision::manifest::TemplateSpec| settings.recognition.live(spec);
        let report = bench::camera::run(args, &files, &settings.vision, live, &mut commit)?;
        return bench::show(args, &report, || report.table());
    }
    bench::run(args, &settings.vision, Some(&mut commit))
}

fn default_config() -> Option<PathBuf> {
    ["config.toml", "/etc/rollcall/config.toml"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file() || is_denied(path))
}

/// Returns whether the path lies where this user may not look. Then it must be named in an error, because the
/// built-in defaults would be those of another device.
fn is_denied(path: &Path) -> bool {
    path.metadata().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn check_config(path: Option<&Path>, show: bool) -> anyhow::Result<()> {
    let settings = settings::load(path)?;
    // What the daemon opens at its start besides.
    verify_model_files(&settings)?;
    open_camera(&settings.camera).map_err(|error| Failure {
        code: exit::CONFIG,
        what: "the configuration cannot be used",
        source: error.into(),
    })?;
    let which = path.map_or("the built-in defaults".into(), |path| path.display().to_string());
    println!("{which}: valid");
    for warning in &settings.warnings {
        println!("warning: {warning}");
    }
    if show {
        println!("{settings:#?}");
    }
    Ok(())
}

fn verify_model_files(settings: &Settings) -> Result<Vec<(String, u64)>, Failure> {
    vision::verify(&settings.vision.models).map_err(|error| Failure {
        code: exit::MODEL,
        what: "the model files are not as they should be",
        source: error.into(),
    })
}

fn verify_models(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let files = verify_model_files(settings)?;
    if json {
        let list: Vec<_> = files
            .iter()
            .map(|(file, bytes)| serde_json::json!({"file": file, "bytes": bytes}))
            .collect();
        println!("{}", serde_json::json!({"models": list, "good": true}));
    } else {
        for (file, bytes) in files {
            println!("{file:32} {bytes:8} bytes  good");
        }
    }
    Ok(())
}

/// Sends logs to standard error, which systemd's journal records. Libraries log `warn` and above.
fn log_to_stderr(level: RawLevel) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let own = match level {
        RawLevel::Error => LevelFilter::ERROR,
        RawLevel::Warn => LevelFilter::WARN,
        RawLevel::Info => LevelFilter::INFO,
        RawLevel::Debug => LevelFilter::DEBUG,
    };
    // rumqttc and ort log at `info` what is logged here.
    let targets =
        Targets::new().with_target("rollcall", own).with_default(LevelFilter::WARN.min(own));
    let to_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(to_terminal)
        .with_target(false);
    // In a test a second call finds a subscriber installed.
    tracing_subscriber::registry().with(layer).with(targets).try_init().ok();
}

/// Returns the commands as clap has them, for completions and tests.
pub fn command() -> clap::Command {
    Cli::command()
}
