//! `rollcall evaluate`: how well this build recognises, on labelled photographs that the operator
//! names.
//!
//! Runs the pipeline of the daemon (`recognise::still`, `vision`, `Gallery::search`), not one of
//! its own, and reports in the words of ISO/IEC 19795-1. Shares are given as 0..1 in JSON, in
//! percent to people.
//!
//! Invariants: the figures do not depend on the number of workers; photographs are read and never
//! written; a photograph in which no face is found is an error of the system, never left out of the
//! count. Not in it: arithmetic (`metrics`), drawing (`plot`).

pub mod clips;
pub mod groups;
pub mod identify;
pub mod measure;
pub mod metrics;
pub mod pad;
pub mod pairs;
pub mod passage;
pub mod protocol;
pub mod visits;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::recognise::decision::DecisionSettings;
use crate::recognise::live::LiveSettings;
use crate::recognise::pad::PadSettings;
use crate::vision::VisionSettings;
use crate::vision::manifest::{Precision, TemplateSpec};

/// Measures the accuracy of recognition on labelled photographs
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub test: Test,
}

#[derive(Debug, clap::Subcommand)]
pub enum Test {
    /// Verification: are two photographs of the same person? Error rates over all thresholds
    #[command(
        after_help = "Example:\n  rollcall evaluate pairs --pairs pairs.csv --images photos/"
    )]
    Pairs(PairsArgs),
    /// Identification in an open set: enrolled people must be found, strangers must not
    #[command(
        after_help = "Example:\n  rollcall evaluate identify --protocol identify.csv --images photos/ --plot det.svg"
    )]
    Identify(IdentifyArgs),
    /// Group photographs: is everybody found who is enrolled, and nobody else?
    #[command(
        after_help = "Example:\n  rollcall evaluate groups --groups groups.csv --protocol identify.csv --images photos/"
    )]
    Groups(GroupsArgs),
    /// Presentation attack detection: live faces against photographs and screens
    #[command(after_help = "Example:\n  rollcall evaluate pad --live faces/ --attack prints/")]
    Pad(PadArgs),
    /// Clips of people before a camera: enrolled people must be recorded, strangers must not be taken
    /// for somebody
    #[command(after_help = "Example:\n  rollcall evaluate clips --clips index.csv --images clips/")]
    Clips(ClipsArgs),
    /// Visits made of photographs: errors of whole visits, which are several looks, beside those of one
    /// look
    #[command(
        after_help = "Example:\n  rollcall evaluate visits --protocol identify.csv --images photos/"
    )]
    Visits(VisitsArgs),
}

#[derive(Debug, clap::Args)]
pub struct PairsArgs {
    /// CSV with the columns file1, file2, same (1 or 0)
    #[arg(long, value_name = "CSV")]
    pub pairs: PathBuf,
    #[command(flatten)]
    pub common: Common,
    /// Draw FMR and FNMR over the threshold, and the ROC, into this SVG file
    #[arg(long, value_name = "SVG")]
    pub plot: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct IdentifyArgs {
    /// CSV with the columns file, identity, role; the roles enrol, probe and impostor are used, others
    /// are ignored
    #[arg(long, value_name = "CSV")]
    pub protocol: PathBuf,
    /// Column of the CSV that names the group of each person: FNIR and FPIR are reported for each
    /// group, with 95 % intervals
    #[arg(long, value_name = "COLUMN")]
    pub group: Option<String>,
    #[command(flatten)]
    pub common: Common,
    /// Draw the DET curve (FNIR over FPIR) into this SVG file
    #[arg(long, value_name = "SVG")]
    pub plot: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct GroupsArgs {
    /// CSV with the columns file, expected (identities, separated by ;) and optionally `n_faces`
    #[arg(long, value_name = "CSV")]
    pub groups: PathBuf,
    /// The people to enrol: a CSV as for `identify`, of which only the role enrol is used
    #[arg(long, value_name = "CSV")]
    pub protocol: PathBuf,
    /// Folder of the photographs to enrol; by default the one in which the protocol lies. Someone
    /// expected whom the protocol does not enrol is enrolled from the folder of that name in it,
    /// its last photograph kept out
    #[arg(long, value_name = "DIR")]
    pub enrol_images: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct ClipsArgs {
    /// CSV with the columns file and person. Who has several clips is enrolled from the first;
    /// everybody else is a stranger. Clips other than motion JPEG need ffmpeg
    #[arg(long, value_name = "CSV")]
    pub clips: PathBuf,
    /// Frames per second at which the clips are played
    #[arg(long, value_name = "FPS", default_value_t = 10.0)]
    pub fps: f32,
    /// More people to enrol: a CSV as for `identify`, of which only the role enrol is used
    #[arg(long, value_name = "CSV")]
    pub background: Option<PathBuf>,
    /// Folder of their photographs; by default the one in which the CSV lies
    #[arg(long, value_name = "DIR")]
    pub background_images: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct VisitsArgs {
    /// CSV as for `identify`
    #[arg(long, value_name = "CSV")]
    pub protocol: PathBuf,
    /// Visits made of each photograph
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub visits: u16,
    /// Length of a visit
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub seconds: f32,
    /// Frames per second of the camera
    #[arg(long, value_name = "FPS", default_value_t = 10.0)]
    pub fps: f32,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct PadArgs {
    /// Folder of photographs and clips of live faces, with its subfolders; may be given again. Of a
    /// folder with a spoof.csv (columns file and kind) only those of the kind live count. Clips other
    /// than motion JPEG need ffmpeg
    #[arg(long, value_name = "DIR", required = true)]
    pub live: Vec<PathBuf>,
    /// Folder of photographs and clips of attacks, by whose name their species is called; of a folder
    /// with a spoof.csv those of any other kind, which is their species
    #[arg(long, value_name = "DIR", required = true)]
    pub attack: Vec<PathBuf>,
    /// Names of files and folders to pass over; may be given again
    #[arg(long, value_name = "NAME")]
    pub skip: Vec<String>,
    /// The least score of a live face, instead of the configured one
    #[arg(long, value_name = "0..1")]
    pub threshold: Option<f32>,
    /// Draw the errors over the threshold into this SVG file
    #[arg(long, value_name = "SVG")]
    pub plot: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// The precision of the models, instead of the configured one
    #[arg(long, value_name = "int8|fp32", value_parser = precision)]
    pub precision: Option<Precision>,
    /// Photographs processed at a time, each with models of its own [default: one for each
    /// processor]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

impl PadArgs {
    pub fn workers(&self) -> usize {
        workers(self.workers)
    }
}

#[derive(Debug, clap::Args)]
pub struct Common {
    /// Folder to which the file names in the CSV are relative
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// The precision of the models, instead of the configured one (`make fp32` makes the fp32 twins)
    #[arg(long, value_name = "int8|fp32", value_parser = precision)]
    pub precision: Option<Precision>,
    /// Which embedder of the manifest to run, instead of the configured one
    #[arg(long, value_name = "NAME")]
    pub embedder: Option<String>,
    /// Photographs processed at a time, each with models of its own [default: one for each
    /// processor]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

/// Reads a precision as the command line writes it.
pub fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "int8" => Ok(Precision::Int8),
        "fp32" => Ok(Precision::Fp32),
        _ => Err("it must be int8 or fp32".into()),
    }
}

impl Common {
    fn vision(&self, configured: &VisionSettings) -> VisionSettings {
        VisionSettings {
            embedder: self.embedder.clone().unwrap_or_else(|| configured.embedder.clone()),
            precision: self.precision.unwrap_or(configured.precision),
            pad: false,
            ..configured.clone()
        }
    }

    /// As many as asked for, else one for each processor.
    pub fn workers(&self) -> usize {
        workers(self.workers)
    }
}

fn workers(wanted: Option<usize>) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    wanted.unwrap_or_else(all).max(1)
}

/// `decision` is how the daemon decides with an embedder as configured, `live` what it does with
/// frames.
pub fn run(
    args: &Args,
    vision: &VisionSettings,
    pad: PadSettings,
    decision: impl Fn(&TemplateSpec) -> DecisionSettings,
    live: impl Fn(&TemplateSpec) -> LiveSettings,
) -> anyhow::Result<()> {
    match &args.test {
        Test::Pairs(args) => {
            let report = pairs::evaluate(args, &args.common.vision(vision))?;
            write_plot(args.plot.as_deref(), || report.plot())?;
            show(&report, args.common.json, report.table())
        }
        Test::Identify(args) => {
            let report = identify::evaluate(args, &args.common.vision(vision), decision)?;
            write_plot(args.plot.as_deref(), || report.plot())?;
            show(&report, args.common.json, report.table())
        }
        Test::Pad(args) => {
            let vision = VisionSettings {
                precision: args.precision.unwrap_or(vision.precision),
                ..vision.clone()
            };
            let report = pad::evaluate(args, &vision, pad)?;
            write_plot(args.plot.as_deref(), || report.plot())?;
            show(&report, args.json, report.table())
        }
        Test::Clips(args) => {
            let report = clips::evaluate(args, &args.common.vision(vision), live)?;
            show(&report, args.common.json, report.table())
        }
        Test::Visits(args) => {
            let report = visits::evaluate(args, &args.common.vision(vision), live)?;
            show(&report, args.common.json, report.table())
        }
        Test::Groups(args) => {
            let report = groups::evaluate(args, &args.common.vision(vision), decision)?;
            show(&report, args.common.json, report.table())
        }
    }
}

fn write_plot(to: Option<&Path>, draw: impl FnOnce() -> String) -> anyhow::Result<()> {
    let Some(path) = to else {
        return Ok(());
    };
    std::fs::write(path, draw())
        .with_context(|| format!("cannot write the plot {}", path.display()))
}

fn show(report: &impl Serialize, json: bool, table: String) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(report)? + "\n" } else { table };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the report")
}

/// Rows of a name and a figure, aligned.
pub(crate) fn rows(title: &str, rows: &[(&str, String)]) -> String {
    let wide = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("  {name:<wide$}  {value}\n");
    std::iter::once(format!("{title}\n")).chain(rows.iter().map(line)).collect()
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
