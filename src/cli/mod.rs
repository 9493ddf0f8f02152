//! The command line: one file a subcommand. Errors end here, in words that say what to do next.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is where the program talks to people"
)]

pub mod attendance;
pub mod backup;
pub mod bench;
pub mod calibrate;
pub mod cameras;
mod canvas;
pub mod completions;
pub mod console;
pub mod demo;
pub mod doctor;
pub mod erasures;
pub mod evaluate;
pub mod export;
pub mod import;
pub mod keys;
pub mod people;
pub mod plot;
mod progress;
pub mod prune;
pub mod recognise;
pub mod restore;
mod scratch;
pub mod setup;
pub mod sign;
pub mod snapshot;
pub mod sync;
pub mod table;
pub mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};

use crate::app::{self, Failure, RunOptions, exit};
use crate::clock::{Clock, SystemClock};
use crate::config::raw::RawLevel;
use crate::config::{self, Settings};
use crate::record::event::{Body, Camera, CameraState, NewEvent};
use crate::record::store::{SinkName, Store, StoreError, StoreOptions};
use crate::vision;

/// An attendance terminal in a box: recognises the faces that pass its camera, on the device, and records who was there,
/// once, with the right time, never lost.
///
/// First steps: `make demo` in a source tree shows it at work. `rollcall doctor` says what a device still lacks.
/// `rollcall run` is the daemon. People are enrolled by MQTT, or with `rollcall enrol`.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, max_term_width = 100)]
struct Cli {
    /// The configuration [default: $ROLLCALL_CONFIG, ./config.toml, /etc/rollcall/config.toml, else built-in defaults]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: watch, recognise, record, publish
    Run {
        /// Stop when a replay has ended and everything is delivered
        #[arg(long)]
        until_replay_ends: bool,
    },
    /// See the main job at work: daemon, broker, enrolment by MQTT, visitors before a replay camera
    Demo(demo::Args),
    /// Check the configuration without starting anything
    CheckConfig {
        /// Print the settings that result
        #[arg(long)]
        show: bool,
    },
    /// The networks
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Say who is in photographs; records nothing
    Recognise(recognise::Args),
    /// Enrol a person from photographs (through the daemon when it is running)
    Enrol(people::EnrolArgs),
    /// Enrol many people from a folder of photographs, or take in a gallery from a sealed file
    Import(import::Args),
    /// Write who is enrolled into one sealed file
    Export(export::Args),
    /// List who is enrolled
    Subjects(people::SubjectsArgs),
    /// Show the attendance recorded here, or sum it up per person and session
    Attendance(attendance::Args),
    /// List the venues that this device records for, with their sessions
    Venues(attendance::VenuesArgs),
    /// Delete old events that owe nothing; the daemon does it by itself with [storage] keep_days
    Prune(prune::Args),
    /// Copy everything this device knows into a folder, while the daemon goes on
    Backup(backup::Args),
    /// Make a state directory from a backup
    Restore(restore::Args),
    /// Deliver now what is owed to broker and MongoDB, or tell what is owed
    Sync(sync::Args),
    /// Make, show and change keys: the site's, a signer's, the device's, that of the templates
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Make a signed command, to be published by any MQTT client
    Sign(sign::Args),
    /// List who was erased here, with the receipts
    Erasures(erasures::Args),
    /// Check the receipt of an erasure
    VerifyReceipt(erasures::VerifyArgs),
    /// Live in the terminal: what the running daemon sees and decides
    Watch(watch::Args),
    /// One annotated picture from the running daemon, for setting up the camera
    Snapshot(snapshot::Args),
    /// Measure accuracy on labelled photographs
    Evaluate(evaluate::Args),
    /// Compare the people enrolled here with each other: which threshold, who looks alike
    Calibrate(calibrate::Args),
    /// Measure speed and memory on this device
    Bench(bench::Args),
    /// List the cameras that are connected, with their formats, sizes, rates and controls
    Cameras(cameras::Args),
    /// Set this device up: asks, checks each part as it goes, writes the configuration, starts the service
    Setup(Box<setup::Args>),
    /// Look at everything the daemon needs, and say what is wrong and what to do
    Doctor(doctor::Args),
    /// What a shell needs to complete commands and flags, on standard output
    Completions(completions::Args),
    /// Photographs of many people, for measuring; see docs/performance.md
    #[command(hide = true)]
    BenchPeople(bench::people::Args),
    /// The embedded broker's own process; started by `run`
    #[command(hide = true)]
    BrokerChild,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Check that every network file is there and is the one the manifest describes
    Verify {
        #[arg(long)]
        json: bool,
    },
}

/// Parses the arguments, runs the subcommand, and turns its outcome into the exit code of the contract.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes.
            let mistake = error.use_stderr();
            error.print().ok();
            return if mistake { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Command::BrokerChild = cli.command {
        log_to_stderr(RawLevel::Error);
        eprintln!("rollcall: {:#}", anyhow::Error::new(crate::mqtt::broker::serve_as_child()));
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
    let path = named.clone().or_else(usual_config);
    let settings = || load(path.as_deref());
    match cli.command {
        // Not the one in the working directory, which may be a source tree's.
        Command::Setup(args) => setup::run(&args, named.as_deref()),
        Command::Run { until_replay_ends } => {
            let settings = settings()?;
            log_to_stderr(settings.level);
            report_panics();
            app::run(settings, RunOptions { until_replay_ends })
        }
        Command::Demo(args) => demo::run(&args),
        Command::CheckConfig { show } => check_config(path.as_deref(), show),
        Command::Models { command: ModelsCommand::Verify { json } } => {
            verify_models(&settings()?, json)
        }
        Command::Recognise(args) => recognise::run(&args, &settings()?),
        Command::Enrol(args) => people::enrol(&args, &settings()?),
        Command::Import(args) => {
            log_to_stderr(RawLevel::Warn);
            import::run(&args, &settings()?)
        }
        Command::Export(args) => export::run(&args, &settings()?),
        Command::Subjects(args) => people::subjects(&args, &settings()?),
        Command::Attendance(args) => attendance::run(&args, &settings()?),
        Command::Venues(args) => attendance::venues(&args, &settings()?),
        Command::Prune(args) => prune::run(&args, &settings()?),
        Command::Backup(args) => backup::run(&args, &settings()?),
        Command::Restore(args) => restore::run(&args, &settings()?),
        Command::Sync(args) => sync::run(&args, &settings()?),
        Command::Keys { command } => keys::run(&command, settings),
        Command::Sign(args) => sign::run(&args),
        Command::Erasures(args) => erasures::run(&args, &settings()?),
        Command::VerifyReceipt(args) => erasures::verify(&args, settings),
        Command::Watch(args) => watch::run(&args, &settings()?),
        Command::Snapshot(args) => snapshot::run(&args, &settings()?),
        Command::Evaluate(args) => {
            let settings = settings()?;
            let pad = settings.recognition.pad();
            evaluate::run(&args, &settings.vision, pad, |spec| settings.recognition.threshold(spec))
        }
        Command::Calibrate(args) => calibrate::run(&args, &settings()?),
        Command::Bench(args) => bench(&args, &settings()?),
        Command::BenchPeople(args) => bench::people::run(&args),
        Command::Cameras(args) => cameras::run(&args, &settings()?),
        Command::Completions(args) => completions::run(&args, command()),
        Command::Doctor(args) => doctor::run(&args, path.as_deref()),
        Command::BrokerChild => unreachable!("handled before"),
    }
}

/// The bench itself knows no store: it is given one commit to repeat, here that of an attendance.
fn bench(args: &bench::Args, settings: &Settings) -> anyhow::Result<()> {
    // Beside the state directory, so that the same disk is measured.
    let parent = settings.state_dir.parent().filter(|path| path.is_dir()).unwrap_or(Path::new("."));
    let folder = scratch::Scratch::new_in(parent, "bench")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
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

fn usual_config() -> Option<PathBuf> {
    ["config.toml", "/etc/rollcall/config.toml"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
}

/// The settings, or the exit code 78 with key and reason.
pub fn load(path: Option<&Path>) -> anyhow::Result<Settings> {
    let failed = |error: config::ConfigError| Failure {
        code: exit::CONFIG,
        what: "the configuration cannot be used",
        source: error.into(),
    };
    Ok(config::load(path, &config::environment()).map_err(failed)?)
}

fn check_config(path: Option<&Path>, show: bool) -> anyhow::Result<()> {
    let settings = load(path)?;
    let which = path.map_or("the built-in defaults".into(), |path| path.display().to_string());
    println!("{which}: good");
    for warning in &settings.warnings {
        println!("warning: {warning}");
    }
    if show {
        println!("{settings:#?}");
    }
    Ok(())
}

fn verify_models(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let failed = |error: vision::manifest::ModelError| Failure {
        code: exit::MODEL,
        what: "the networks are not as they should be",
        source: error.into(),
    };
    let files = vision::verify(&settings.vision.models).map_err(failed)?;
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

/// Logs go to standard error, where systemd's journal takes them. Nothing below `warn` from the libraries.
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
    // rumqttd calls each connection an error; rumqttc and ort tell at `info` what we tell ourselves.
    let targets = Targets::new()
        .with_target("rollcall", own)
        .with_target(crate::mqtt::broker::LOG_TARGET, LevelFilter::OFF)
        .with_default(LevelFilter::WARN.min(own));
    let to_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(to_terminal)
        .with_target(false);
    // A second call, in a test, finds one installed already.
    tracing_subscriber::registry().with(layer).with(targets).try_init().ok();
}

/// A panic is a mistake of ours: it is logged, and the release build aborts, so that systemd starts a whole daemon.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        // The payload is not logged: it may quote data.
        tracing::error!(place, thread, "panic");
        eprintln!("rollcall: panic at {place} in thread {thread}");
    }));
}

/// The commands as clap knows them, for the test that compares README with them.
pub fn command() -> clap::Command {
    Cli::command()
}
