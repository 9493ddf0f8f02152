//! `rollcall bench`: what recognition costs on this device, stage by stage, in CPU time.
//!
//! It measures the CPU time of the process, not wall time, so that a busy machine changes little, and
//! reports the median and the 95th percentile, because a mean hides both. Nothing is written. The
//! budget of each stage is in its own module.
//!
//! Elsewhere: accuracy (`evaluate`). The store is known to `durable` alone: to `run`, the caller
//! passes one durable commit (`Commit`).

pub mod camera;
pub mod durable;
pub mod looks;
mod scene;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::measure::evaluate::{precision, protocol};
use crate::clock::{Stopwatch, process_cpu_time};
use crate::ids::{Name, SubjectId};
use crate::recognise::align::{self, REFERENCE_POINTS, Sample};
use crate::recognise::engine::{DetectorInput, FaceEngine as _};
use crate::recognise::face::{BoundingBox, Detection, Landmarks, Point, Template};
use crate::recognise::gallery::{Gallery, Subject};
use crate::recognise::picture::{Picture, PictureLimits};
use crate::vision::manifest::{Manifest, Model, Precision, Role};
use crate::vision::{Vision, VisionSettings};

/// Measures what recognition costs on this device: CPU milliseconds of each stage, memory, and int8
/// beside fp32
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall bench --seconds 30 --json")]
pub struct Args {
    /// Measure from the camera to the decision instead, on scenes with one person, five people and
    /// nobody
    #[arg(long)]
    pub camera: bool,
    /// Measure how fast events become durable instead, beside what the disk itself can do
    #[arg(long, conflicts_with = "camera")]
    pub store: bool,
    /// Measure one look at people who are enrolled and at strangers instead, from the picture to the
    /// decision, beside the first part of the embedder alone. A CSV as for `evaluate identify`; its
    /// photographs are in --photos
    #[arg(long, value_name = "CSV", requires = "photos", conflicts_with_all = ["camera", "store"])]
    pub looks: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Folder of photographs (with its subfolders) to measure with [default: those of the demo,
    /// else a drawn picture]
    #[arg(long, value_name = "DIR")]
    pub photos: Option<PathBuf>,
    /// Use at most this many photographs
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub photos_max: usize,
    /// How long the stages are measured; each photograph is seen at least once
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seconds: u64,
    /// The precision of the models to measure, instead of the configured one
    #[arg(long, value_name = "int8|fp32", value_parser = precision)]
    pub precision: Option<Precision>,
}

/// One durable commit of an event as the daemon makes it, on a store that the caller set up for
/// this.
pub type Commit<'a> = &'a mut dyn FnMut() -> anyhow::Result<()>;

/// Galleries that the search is measured with.
const GALLERIES: [usize; 3] = [1_000, 10_000, 100_000];
/// The gallery that is in memory when the resident memory is measured: a large building.
const RESIDENT_REFERENCES: usize = 10_000;
const COMMITS: usize = 200;

/// Median and 95th percentile, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    pub median: f64,
    pub p95: f64,
    pub samples: usize,
}

#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// What was measured with: `photographs`, or `drawn` when there were none.
    pub pictures: &'static str,
    pub photographs: usize,
    /// Photographs in which a face was found.
    pub faces: usize,
    pub threads: usize,
    pub precision_measured: Precision,
    pub stages_ms: Stages,
    /// By the first part of a composite embedder, which every look needs.
    pub search_ms: Searches,
    /// By both parts, which a look needs besides where the first does not decide; `null` for an
    /// embedder of one network.
    pub search_complete_ms: Option<Searches>,
    /// The same for a change of one subject: a new gallery, beside which the old one lives on.
    pub add_ms: Searches,
    pub withdraw_ms: Searches,
    /// Resident memory with all networks loaded and 10,000 references.
    pub rss_bytes: u64,
    pub references_resident: usize,
    pub networks_ms: BTreeMap<String, Both>,
    pub precision: Choice,
}

#[derive(Debug, Default, Serialize)]
pub struct Stages {
    pub decode: Cost,
    pub detect: Cost,
    pub refine: Cost,
    pub align: Cost,
    pub embed: Cost,
    /// All of the above for one photograph: from the file's bytes to the template.
    pub decode_to_template: Cost,
    /// PAD, where a network for it is configured.
    pub pad: Option<Cost>,
    /// One event made durable; `null` when the caller has no store.
    pub commit: Option<Cost>,
}

/// By the number of references.
#[derive(Debug, Default, Serialize)]
pub struct Searches {
    #[serde(rename = "1000")]
    pub thousand: Cost,
    #[serde(rename = "10000")]
    pub ten_thousand: Cost,
    #[serde(rename = "100000")]
    pub hundred_thousand: Cost,
}

impl Searches {
    fn of(&mut self, size: usize) -> &mut Cost {
        [&mut self.thousand, &mut self.ten_thousand, &mut self.hundred_thousand][size]
    }
}

/// The inference alone, median, at both precisions; `null` where the file is not there.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Both {
    pub int8: Option<f64>,
    pub fp32: Option<f64>,
}

/// Detect, refine and embed together: the way from frame to template.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Choice {
    pub int8_ms: Option<f64>,
    pub fp32_ms: Option<f64>,
    /// The faster on this processor. Templates of one are not comparable with those of the other: a
    /// fleet that shares its gallery runs one, and int8 is the one that is shipped.
    pub choice: Precision,
}

pub fn run(args: &Args, vision: &VisionSettings, commit: Option<Commit<'_>>) -> anyhow::Result<()> {
    let report = measure(args, vision, commit)?;
    show(args, &report, || report.table())
}

pub fn show(
    args: &Args,
    report: &impl Serialize,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = if args.json { serde_json::to_string_pretty(report)? + "\n" } else { table() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the report")
}

pub fn measure(
    args: &Args,
    vision: &VisionSettings,
    commit: Option<Commit<'_>>,
) -> anyhow::Result<BenchReport> {
    let settings =
        VisionSettings { precision: args.precision.unwrap_or(vision.precision), ..vision.clone() };
    let mut engine = Vision::load(&settings).context("cannot start recognition")?;
    warm_up(&mut engine)?;
    // First of all, before photographs and larger galleries are in memory: what the daemon itself
    // needs.
    let mut gallery = grown(Gallery::of(&engine.embedder()), RESIDENT_REFERENCES)?;
    let rss_bytes = resident_bytes()?;
    gallery = gallery.emptied();
    let is_composite = gallery.second_dimension() > 0;
    let mut search_ms = Searches::default();
    let mut complete_ms = Searches::default();
    let mut add_ms = Searches::default();
    let mut withdraw_ms = Searches::default();
    for (at, size) in GALLERIES.into_iter().enumerate() {
        gallery = grown(gallery, size)?;
        (*search_ms.of(at), *complete_ms.of(at)) = search(&gallery);
        (*add_ms.of(at), *withdraw_ms.of(at)) = changes(&gallery)?;
    }
    drop(gallery);

    let files = photographs(args, &settings.models)?;
    let mut stages = Samples::default();
    let faces = if files.is_empty() {
        drawn(&mut engine, args.seconds, &mut stages)?
    } else {
        photographed(&mut engine, &files, args.seconds, &mut stages)?
    };
    drop(engine);
    let mut stages_ms = stages.costs();
    stages_ms.commit = commit.map(timed_commits).transpose()?;
    let networks_ms = networks(&settings)?;
    Ok(BenchReport {
        pictures: if files.is_empty() { "drawn" } else { "photographs" },
        photographs: files.len(),
        faces,
        threads: settings.threads,
        precision_measured: settings.precision,
        stages_ms,
        search_ms,
        search_complete_ms: is_composite.then_some(complete_ms),
        add_ms,
        withdraw_ms,
        rss_bytes,
        references_resident: RESIDENT_REFERENCES,
        precision: choice(&settings, &networks_ms)?,
        networks_ms,
    })
}

// ── Stages
// ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// CPU milliseconds of each run of each stage.
#[derive(Default)]
struct Samples {
    decode: Vec<f64>,
    detect: Vec<f64>,
    refine: Vec<f64>,
    align: Vec<f64>,
    embed: Vec<f64>,
    whole: Vec<f64>,
    pad: Vec<f64>,
}

impl Samples {
    fn costs(self) -> Stages {
        Stages {
            decode: cost(self.decode),
            detect: cost(self.detect),
            refine: cost(self.refine),
            align: cost(self.align),
            embed: cost(self.embed),
            decode_to_template: cost(self.whole),
            pad: (!self.pad.is_empty()).then(|| cost(self.pad)),
            commit: None,
        }
    }
}

/// CPU milliseconds of the process that `work` took, kept in `samples`.
fn timed<T>(samples: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let before = process_cpu_time();
    let done = work();
    samples.push(cpu_ms_since(before));
    done
}

fn cpu_ms_since(before: Duration) -> f64 {
    process_cpu_time().saturating_sub(before).as_secs_f64() * 1e3
}

fn cost(mut samples: Vec<f64>) -> Cost {
    if samples.is_empty() {
        return Cost::default();
    }
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    Cost { median: at(0.5), p95: at(0.95), samples: samples.len() }
}

/// Goes through the photographs, again and again while there is time; returns in how many a face
/// was found.
fn photographed(
    engine: &mut Vision,
    files: &[PathBuf],
    seconds: u64,
    samples: &mut Samples,
) -> anyhow::Result<usize> {
    let watch = Stopwatch::start();
    let mut faces = 0;
    for round in 0.. {
        for file in files {
            if round > 0 && watch.elapsed() >= Duration::from_secs(seconds) {
                return Ok(faces);
            }
            let bytes = std::fs::read(file)
                .with_context(|| format!("cannot read the photograph {}", file.display()))?;
            let found = one_photograph(engine, &bytes, samples)?;
            faces += usize::from(found && round == 0);
        }
    }
    Ok(faces)
}

/// Decode to template of the most prominent face at the near reach, as a frame of the camera goes.
fn one_photograph(
    engine: &mut Vision,
    bytes: &[u8],
    samples: &mut Samples,
) -> anyhow::Result<bool> {
    let before = process_cpu_time();
    let limits = PictureLimits { bytes: 64 << 20, ..PictureLimits::default() };
    let Ok(picture) = timed(&mut samples.decode, || Picture::decode(bytes, limits)) else {
        samples.decode.pop();
        return Ok(false);
    };
    let detections = timed(&mut samples.detect, || engine.detect(&picture, DetectorInput::Small))?;
    let Some(detection) = detections.first() else {
        return Ok(false);
    };
    let refined = timed(&mut samples.refine, || engine.refine(&picture, detection))?;
    let Some(sample) = timed(&mut samples.align, || align::align(&picture, &refined.landmarks))
    else {
        return Ok(false);
    };
    timed(&mut samples.embed, || engine.template(&sample))?;
    samples.whole.push(cpu_ms_since(before));
    let before_pad = samples.pad.len();
    if timed(&mut samples.pad, || engine.liveness(&picture, &refined))?.is_none() {
        samples.pad.truncate(before_pad);
    }
    Ok(true)
}

/// Without photographs: a drawn picture of a camera's size, in which nobody is; what follows the
/// detector runs on landmarks that are made up. Costs the same, for the networks' cost does not
/// depend on what they see.
fn drawn(engine: &mut Vision, seconds: u64, samples: &mut Samples) -> anyhow::Result<usize> {
    let picture = drawn_picture(640, 480);
    let bytes = encoded(&picture)?;
    let detection = made_up_face();
    let watch = Stopwatch::start();
    while samples.whole.len() < 20 || watch.elapsed() < Duration::from_secs(seconds) {
        let before = process_cpu_time();
        timed(&mut samples.decode, || Picture::decode(&bytes, PictureLimits::default()))?;
        timed(&mut samples.detect, || engine.detect(&picture, DetectorInput::Small))?;
        timed(&mut samples.refine, || engine.refine(&picture, &detection))?;
        let sample = timed(&mut samples.align, || align::align(&picture, &detection.landmarks));
        let sample = sample.context("the made-up landmarks span a face")?;
        timed(&mut samples.embed, || engine.template(&sample))?;
        samples.whole.push(cpu_ms_since(before));
    }
    Ok(0)
}

fn drawn_picture(width: usize, height: usize) -> Picture {
    let mut noise = Noise(1);
    let rgb = (0..width * height).flat_map(|n| {
        let shade = (n % width * 160 / width + n / width * 60 / height) as u8;
        let grain = (noise.next() * 16.0) as u8;
        [shade + grain, shade / 2 + grain, 90 + grain]
    });
    Picture::from_rgb(width, height, rgb.collect()).expect("one pixel was drawn for each place")
}

fn encoded(picture: &Picture) -> anyhow::Result<Vec<u8>> {
    let mut out = std::io::Cursor::new(Vec::new());
    let width = picture.width() as u32;
    let height = picture.height() as u32;
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 85);
    image::ImageEncoder::write_image(
        encoder,
        picture.rgb(),
        width,
        height,
        image::ExtendedColorType::Rgb8,
    )?;
    Ok(out.into_inner())
}

fn made_up_face() -> Detection {
    let landmarks = Landmarks::from_points(
        REFERENCE_POINTS.map(|p| Point { x: 240.0 + p.x * 1.4, y: 140.0 + p.y * 1.4 }),
    );
    let bounding_box = BoundingBox { left: 250.0, top: 150.0, right: 390.0, bottom: 330.0 };
    Detection { bounding_box, confidence: 0.9, landmarks }
}

/// The given folder's photographs with those of its subfolders, else the demo's, in the order of
/// their names.
pub fn photographs(args: &Args, models: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if let Some(dir) = &args.photos {
        gather(dir, 3, &mut files)?;
        anyhow::ensure!(!files.is_empty(), "there are no photographs in {}", dir.display());
    } else {
        let demo = models.join("../.cache/photos");
        if demo.is_dir() {
            gather(&demo, 0, &mut files)?;
        }
    }
    files.sort();
    files.truncate(args.photos_max.max(1));
    Ok(files)
}

fn gather(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    files.extend(protocol::photographs(dir)?);
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if depth > 0 && path.is_dir() {
            gather(&path, depth - 1, files)?;
        }
    }
    Ok(())
}

fn timed_commits(commit: Commit<'_>) -> anyhow::Result<Cost> {
    let mut samples = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        timed(&mut samples, &mut *commit).context("cannot commit to the store of the bench")?;
    }
    Ok(cost(samples))
}

// ── Networks
// ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Loads lazily what the first inference loads, so that neither time nor memory surprise later.
fn warm_up(engine: &mut Vision) -> anyhow::Result<()> {
    let picture = drawn_picture(640, 480);
    engine.detect(&picture, DetectorInput::Small)?;
    let refined = engine.refine(&picture, &made_up_face())?;
    let sample: Sample =
        align::align(&picture, &made_up_face().landmarks).context("landmarks that span a face")?;
    engine.template(&sample)?;
    engine.liveness(&picture, &refined)?;
    Ok(())
}

/// Each network alone, on one input of its own size, at both precisions; turn by turn, so that a
/// busy spell of the machine falls on all alike.
fn networks(settings: &VisionSettings) -> anyhow::Result<BTreeMap<String, Both>> {
    let manifest = Manifest::read(&settings.models)?;
    let roles = [Role::Detector, Role::Refiner, Role::Embedder, Role::Pad];
    let mut engines = Vec::new();
    for precision in [Precision::Int8, Precision::Fp32] {
        let present = roles.iter().all(|role| {
            let models = models_of(&manifest, *role, settings);
            models.is_some_and(|models| models.iter().all(|it| manifest.has(it, precision)))
        });
        if present {
            let vision = VisionSettings { precision, pad: true, ..settings.clone() };
            engines.push((precision, Vision::load(&vision)?));
        }
    }
    let mut samples: BTreeMap<(String, bool), Vec<f64>> = BTreeMap::new();
    for round in 0..45 {
        for (precision, engine) in &mut engines {
            for role in roles {
                let mut taken = Vec::new();
                timed(&mut taken, || engine.exercise(role))?;
                let name = role_name(&manifest, role, settings).to_owned();
                if round >= 5 {
                    samples.entry((name, *precision == Precision::Int8)).or_default().extend(taken);
                }
            }
        }
    }
    let mut all: BTreeMap<String, Both> = BTreeMap::new();
    for ((name, int8), samples) in samples {
        let both = all.entry(name).or_default();
        *(if int8 { &mut both.int8 } else { &mut both.fp32 }) = Some(cost(samples).median);
    }
    Ok(all)
}

/// The models of a role: of a composite embedder both parts.
fn models_of<'a>(
    manifest: &'a Manifest,
    role: Role,
    settings: &VisionSettings,
) -> Option<Vec<&'a Model>> {
    if role == Role::Embedder {
        return Some(manifest.embedder(&settings.embedder).ok()?.models().collect());
    }
    Some(vec![manifest.model(role, None).ok()?])
}

fn role_name<'a>(manifest: &'a Manifest, role: Role, settings: &'a VisionSettings) -> &'a str {
    if role == Role::Embedder {
        return &settings.embedder;
    }
    manifest.model(role, None).map_or("", |model| model.name.as_str())
}

fn choice(settings: &VisionSettings, all: &BTreeMap<String, Both>) -> anyhow::Result<Choice> {
    let manifest = Manifest::read(&settings.models)?;
    let names = [Role::Detector, Role::Refiner, Role::Embedder]
        .map(|role| role_name(&manifest, role, settings));
    let total = |of: fn(&Both) -> Option<f64>| {
        names.iter().map(|name| all.get(*name).and_then(of)).sum::<Option<f64>>()
    };
    let int8_ms = total(|both| both.int8);
    let fp32_ms = total(|both| both.fp32);
    let fp32_wins = int8_ms.zip(fp32_ms).is_some_and(|(int8, fp32)| fp32 < int8);
    Ok(Choice {
        int8_ms,
        fp32_ms,
        choice: if fp32_wins { Precision::Fp32 } else { Precision::Int8 },
    })
}

// ── Search and memory
// ───────────────────────────────────────────────────────────────────────────────────────────────

/// Evenly distributed numbers in 0..1 (xorshift64*), the same in each run.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// A template of the gallery's embedder, with all its parts.
    fn template(&mut self, gallery: &Gallery) -> Template {
        let first = self.vector(gallery.dimension());
        match gallery.second_dimension() {
            0 => first,
            second => first.with_second(&self.vector(second), SECOND_WEIGHT),
        }
    }

    fn vector(&mut self, dimension: usize) -> Template {
        let raw = (0..dimension).map(|_| self.next() + self.next() + self.next() - 1.5).collect();
        Template::normalised(raw).expect("noise is not all zero")
    }
}

/// The share of the second part in made-up scores.
const SECOND_WEIGHT: f32 = 0.7;

/// With made-up subjects, two references each, up to so many references.
fn grown(mut gallery: Gallery, references: usize) -> anyhow::Result<Gallery> {
    let mut noise = Noise(gallery.references() as u64 + 1);
    while gallery.references() < references {
        let id = format!("bench-{}", gallery.references());
        let subject = Subject { id: SubjectId::new(&id)?, name: Name::new(&id)? };
        let templates = [noise.template(&gallery), noise.template(&gallery)];
        gallery = gallery.with(subject, &templates);
    }
    Ok(gallery)
}

/// One subject with two references added, and one of those who are there withdrawn.
fn changes(gallery: &Gallery) -> anyhow::Result<(Cost, Cost)> {
    let mut noise = Noise(0xADD);
    let mut added = Vec::new();
    let mut withdrawn = Vec::new();
    let subject = Subject { id: SubjectId::new("one-more")?, name: Name::new("one-more")? };
    for round in 0..40 {
        let templates = [noise.template(gallery), noise.template(gallery)];
        let somebody = SubjectId::new(&format!("bench-{}", round * 7 * 2))?;
        let more = timed(&mut added, || gallery.clone().with(subject.clone(), &templates));
        let less = timed(&mut withdrawn, || gallery.clone().without(&somebody));
        anyhow::ensure!(more.subjects() == less.subjects() + 2, "one more, one less");
    }
    Ok((cost(added), cost(withdrawn)))
}

/// By the first part, and by both where the embedder has two.
fn search(gallery: &Gallery) -> (Cost, Cost) {
    let mut noise = Noise(0xBE9C);
    let mut samples = Vec::new();
    let mut complete = Vec::new();
    for round in 0..60 {
        let probe = noise.template(gallery);
        let found = timed(&mut samples, || gallery.search(&probe));
        let first_max = found.best.expect("a gallery with references has a best candidate").score;
        timed(&mut complete, || gallery.search_complete(&probe, 0.0, first_max));
        if round < 5 {
            samples.clear();
            complete.clear();
        }
    }
    (cost(samples), cost(complete))
}

/// Resident memory of this process (`/proc/self/statm`, in pages).
fn resident_bytes() -> anyhow::Result<u64> {
    let statm =
        std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

// ── Table
// ───────────────────────────────────────────────────────────────────────────────────────────────────────────

impl BenchReport {
    fn table(&self) -> String {
        let mut lines = vec![format!(
            "CPU milliseconds, {} thread(s), {:?}, {} pictures ({})\n  {:<22}{:>10}{:>10}\n",
            self.threads,
            self.precision_measured,
            self.photographs.max(1),
            self.pictures,
            "",
            "median",
            "p95"
        )];
        let stages = &self.stages_ms;
        let measured = [
            ("decode", Some(stages.decode)),
            ("detect", Some(stages.detect)),
            ("refine", Some(stages.refine)),
            ("align", Some(stages.align)),
            ("embed", Some(stages.embed)),
            ("decode to template", Some(stages.decode_to_template)),
            ("PAD", stages.pad),
            ("search in 1,000", Some(self.search_ms.thousand)),
            ("search in 10,000", Some(self.search_ms.ten_thousand)),
            ("search in 100,000", Some(self.search_ms.hundred_thousand)),
            ("… by both parts", self.search_complete_ms.as_ref().map(|it| it.hundred_thousand)),
            ("add one to 1,000", Some(self.add_ms.thousand)),
            ("add one to 10,000", Some(self.add_ms.ten_thousand)),
            ("add one to 100,000", Some(self.add_ms.hundred_thousand)),
            ("withdraw of 100,000", Some(self.withdraw_ms.hundred_thousand)),
            ("commit", stages.commit),
        ];
        for (name, cost) in measured {
            lines.extend(
                cost.map(|cost| format!("  {name:<22}{:>10.3}{:>10.3}\n", cost.median, cost.p95)),
            );
        }
        lines.push(format!("Networks alone, median\n  {:<22}{:>10}{:>10}\n", "", "int8", "fp32"));
        let figure =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        for (name, both) in &self.networks_ms {
            lines.push(format!("  {name:<22}{:>10}{:>10}\n", figure(both.int8), figure(both.fp32)));
        }
        let Choice { int8_ms, fp32_ms, choice } = self.precision;
        let int8 = figure(int8_ms);
        let fp32 = figure(fp32_ms);
        lines.push(format!(
            "  {:<22}{int8:>10}{fp32:>10}  faster here: {choice:?}\n",
            "frame to template"
        ));
        let megabytes = self.rss_bytes as f64 / 1e6;
        lines.push(format!(
            "Resident memory with {} references: {megabytes:.0} MB\n",
            self.references_resident
        ));
        lines.concat()
    }
}
