//! `rollcall bench --camera`: from a frame of the camera to a decision, with people before it and
//! with nobody.
//!
//! Scenes are made of real photographs: faces pasted onto a wall, moved a little from frame to
//! frame, with a sensor's grain, encoded as motion JPEG and played by the replay camera, so that
//! decoding counts as it does with a camera. Two passes: one as fast as it goes, for frames per
//! second and what each stage costs in CPU time; one at thirty frames a second through the
//! one-place slot, for the time that passes between a frame and the decision it brings.
//!
//! Not in it: the daemon's other threads, of which only the commit is measured.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::camera::replay::{Replay, ReplaySettings};
use crate::camera::view::View;
use crate::camera::{FrameSource as _, FrameTime, Next};
use crate::cli::measure::bench::scene::{People, Scenery};
use crate::cli::measure::bench::{Args, Commit, Cost, cost, cpu_ms_since, timed, warm_up};
use crate::cli::measure::evaluate::measure::progress;
use crate::cli::scratch::Scratch;
use crate::cli::table;
use crate::clock::{Stamp, Stopwatch, process_cpu_time};
use crate::recognise::align::{self, Sample};
use crate::recognise::attention::FrameAction;
use crate::recognise::change::ChangeDetector;
use crate::recognise::engine::{DetectorInput, EngineError, FaceEngine};
use crate::recognise::face::{Detection, Embedder, Template};
use crate::recognise::frame::{Frame, Latest, Luma, Pixels};
use crate::recognise::gallery::Gallery;
use crate::recognise::live::{FrameReport, Live, LiveSettings};
use crate::recognise::picture::{DecodeError, Picture};
use crate::recognise::quality;
use crate::vision::manifest::TemplateSpec;
use crate::vision::{Vision, VisionSettings};

const SIZES: [(usize, usize); 2] = [(640, 480), (1280, 720)];
/// Faces in a scene, and how many scenes: enough decisions for a 95th percentile.
const CROWDS: [(usize, usize); 2] = [(1, 20), (5, 8)];
/// The pace of the second pass, and of the still scene.
const LIVE_FPS: f32 = 30.0;
const STILL_FPS: f32 = 10.0;
/// Frames of a scene with people, and of the empty wall after it, long enough for their tracks to
/// end.
const SHOWN: usize = 15;
const EMPTY: usize = 24;
/// Different frames of the still scene, played in turn.
const STILL_FRAMES: usize = 50;

#[derive(Debug, Serialize)]
pub struct CameraReport {
    pub threads: usize,
    pub people: usize,
    pub cases: Vec<Case>,
    pub still: Still,
}

/// One size of picture with so many faces.
#[derive(Debug, Serialize)]
pub struct Case {
    pub width: usize,
    pub height: usize,
    pub faces: usize,
    /// People shown, and how many tracks were decided: more where somebody was followed in two
    /// pieces.
    pub visits: usize,
    pub decided: usize,
    /// With people before the camera, all stages one after the other.
    pub frames_per_second: f64,
    /// CPU milliseconds of such a frame, by stage, in the order of the flow.
    pub stages_ms: Vec<(&'static str, f64)>,
    pub frame_ms: f64,
    /// Milliseconds from the capture of the frame that decided to the decision, at thirty frames a
    /// second.
    pub latency_ms: Cost,
    /// The same from the first frame that showed the person.
    pub from_first_frame_ms: Cost,
    /// Share of the frames that were replaced before the networks were free for them.
    pub replaced_share: f64,
}

/// Nobody there, nothing changing.
#[derive(Debug, Serialize)]
pub struct Still {
    pub width: usize,
    pub height: usize,
    pub fps: f32,
    pub seconds: f64,
    /// Of one core.
    pub cpu_share: f64,
    pub frames: usize,
    pub frames_with_detector: usize,
}

pub fn run(
    args: &Args,
    files: &[PathBuf],
    vision: &VisionSettings,
    live: impl Fn(&TemplateSpec) -> LiveSettings,
    commit: Commit<'_>,
) -> anyhow::Result<CameraReport> {
    let mut engine = Vision::load(vision).context("cannot start recognition")?;
    warm_up(&mut engine)?;
    let live = live(&engine.template_spec());
    let bar = progress(SIZES.len() * CROWDS.len() + 1);
    let people = People::find(&mut engine, files, CROWDS[0].1)?;
    let mut cases = Vec::new();
    for (width, height) in SIZES {
        for (faces, scenes) in CROWDS {
            cases.push(case(
                &mut engine,
                &people,
                live,
                Setting { width, height, faces, scenes },
                &mut *commit,
            )?);
            bar.inc(1);
        }
    }
    let still = still(&mut engine, &people.gallery, live, args.seconds.max(5))?;
    bar.finish_and_clear();
    Ok(CameraReport { threads: vision.threads, people: people.len(), cases, still })
}

#[derive(Clone, Copy)]
struct Setting {
    width: usize,
    height: usize,
    faces: usize,
    scenes: usize,
}

/// A clip in a folder of its own, and which of its frames show people.
struct Clip {
    _folder: Scratch,
    path: PathBuf,
    shown: Vec<bool>,
}

impl Clip {
    fn new(frames: Vec<(Vec<u8>, bool)>) -> anyhow::Result<Self> {
        let folder = Scratch::new("bench-camera")?;
        let path = folder.path().join("clip.mjpeg");
        let shown = frames.iter().map(|(_, shown)| *shown).collect();
        std::fs::write(&path, frames.into_iter().flat_map(|(jpeg, _)| jpeg).collect::<Vec<u8>>())?;
        Ok(Self { _folder: folder, path, shown })
    }

    fn play(&self, fps: f32, repeat: bool) -> anyhow::Result<Replay> {
        let path = self.path.clone();
        let show = Duration::ZERO;
        let gap = Duration::ZERO;
        Ok(Replay::open(ReplaySettings { path, fps, show, gap, repeat, view: View::default() })?)
    }
}

fn visits(people: &People, setting: Setting) -> anyhow::Result<Clip> {
    let mut scenery = Scenery::new(setting.width, setting.height);
    let mut frames = Vec::new();
    for _ in 0..EMPTY {
        frames.push((scenery.empty()?, false));
    }
    for scene in 0..setting.scenes {
        let who: Vec<_> =
            (0..setting.faces).map(|n| people.portrait(scene * setting.faces + n)).collect();
        for step in 0..SHOWN {
            frames.push((scenery.with(&who, step)?, true));
        }
        frames.extend((0..EMPTY).map(|n| (scenery.seen(n), false)));
    }
    Clip::new(frames)
}

fn case(
    engine: &mut Vision,
    people: &People,
    live: LiveSettings,
    setting: Setting,
    commit: Commit<'_>,
) -> anyhow::Result<Case> {
    let clip = visits(people, setting)?;
    let (stages_ms, frame_ms, frames_per_second) =
        fast_pass(engine, &people.gallery, live, &clip, commit)?;
    let timing = live_pass(engine, &people.gallery, live, &clip)?;
    Ok(Case {
        width: setting.width,
        height: setting.height,
        faces: setting.faces,
        visits: setting.faces * setting.scenes,
        decided: timing.latencies.len(),
        frames_per_second,
        stages_ms,
        frame_ms,
        latency_ms: cost(timing.latencies),
        from_first_frame_ms: cost(timing.from_first),
        replaced_share: timing.replaced as f64 / clip.shown.len() as f64,
    })
}

// ── As fast as it goes
// ──────────────────────────────────────────────────────────────────────────────────────────────

/// CPU milliseconds by stage, all runs of it.
#[derive(Debug, Default)]
struct Spent {
    decode: Vec<f64>,
    detect: Vec<f64>,
    refine: Vec<f64>,
    embed: Vec<f64>,
    pad: Vec<f64>,
}

/// The networks with a stopwatch at each door, and the last face that went through, to time the
/// rest alone.
struct TimedEngine<'a> {
    engine: &'a mut Vision,
    spent: &'a Mutex<Spent>,
    sample: Option<Sample>,
}

fn spend<T>(
    spent: &Mutex<Spent>,
    stage: impl Fn(&mut Spent) -> &mut Vec<f64>,
    work: impl FnOnce() -> T,
) -> T {
    let before = process_cpu_time();
    let done = work();
    stage(&mut spent.lock().unwrap_or_else(PoisonError::into_inner)).push(cpu_ms_since(before));
    done
}

impl FaceEngine for TimedEngine<'_> {
    fn detect(
        &mut self,
        picture: &Picture,
        input: DetectorInput,
    ) -> Result<Vec<Detection>, EngineError> {
        spend(self.spent, |it| &mut it.detect, || self.engine.detect(picture, input))
    }
    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        spend(self.spent, |it| &mut it.refine, || self.engine.refine(picture, detection))
    }
    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        self.sample = Some(sample.clone());
        spend(self.spent, |it| &mut it.embed, || self.engine.template(sample))
    }
    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        spend(self.spent, |it| &mut it.pad, || self.engine.liveness(picture, detection))
    }
    fn complete(&mut self, sample: &Sample, template: Template) -> Result<Template, EngineError> {
        spend(self.spent, |it| &mut it.embed, || self.engine.complete(sample, template))
    }
    fn embedder(&self) -> Embedder {
        self.engine.embedder()
    }
}

/// A frame's pixels with a stopwatch: a source that decodes when asked is timed where it decodes.
#[derive(Debug)]
struct TimedPixels {
    pixels: Arc<dyn Pixels>,
    spent: Arc<Mutex<Spent>>,
}

impl Pixels for TimedPixels {
    fn size(&self) -> (usize, usize) {
        self.pixels.size()
    }
    fn luma(&self) -> Result<Luma, DecodeError> {
        spend(&self.spent, |it| &mut it.decode, || self.pixels.luma())
    }
    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        spend(&self.spent, |it| &mut it.decode, || self.pixels.reduced(side_px))
    }
    fn full(&self) -> Result<&Picture, DecodeError> {
        spend(&self.spent, |it| &mut it.decode, || self.pixels.full())
    }
}

type Stages = Vec<(&'static str, f64)>;

/// CPU milliseconds of a frame with people by stage and in all, and such frames per second.
fn fast_pass(
    engine: &mut Vision,
    gallery: &Gallery,
    settings: LiveSettings,
    clip: &Clip,
    commit: Commit<'_>,
) -> anyhow::Result<(Stages, f64, f64)> {
    let mut live = Live::new(settings);
    let mut source = clip.play(STILL_FPS, false)?;
    let spent = Arc::new(Mutex::new(Spent::default()));
    let mut engine = TimedEngine { engine, spent: &spent, sample: None };
    let mut frames = 0usize;
    let mut wall_ms = 0.0;
    let mut cpu_ms = 0.0;
    let mut commits = Vec::new();
    for shown in &clip.shown {
        if !shown {
            // What the empty wall costs is not a frame with people.
            let kept = std::mem::take(&mut *spent.lock().unwrap_or_else(PoisonError::into_inner));
            let frame =
                next(&mut source, None)?.context("the clip is as long as it was written")?;
            live.process(&mut engine, gallery, &frame, Duration::ZERO)?;
            *spent.lock().unwrap_or_else(PoisonError::into_inner) = kept;
            continue;
        }
        let watch = Stopwatch::start();
        let before = process_cpu_time();
        let frame =
            next(&mut source, Some(&spent))?.context("the clip is as long as it was written")?;
        let report = live.process(&mut engine, gallery, &frame, Duration::ZERO)?;
        for _ in &report.outcomes {
            timed(&mut commits, &mut *commit)?;
        }
        frames += 1;
        wall_ms += watch.elapsed_ms();
        cpu_ms += cpu_ms_since(before);
    }
    let sample =
        engine.sample.context("nobody was recognised: are there faces in the photographs?")?;
    let each = |all: &[f64]| all.iter().sum::<f64>() / frames as f64;
    let spent = std::mem::take(&mut *spent.lock().unwrap_or_else(PoisonError::into_inner));
    let per_frame = |count: usize, ms: f64| ms * count as f64 / frames as f64;
    let alone = Alone::measure(engine.engine, gallery, &sample, clip)?;
    let mut stages: Stages = vec![
        ("decode", each(&spent.decode)),
        ("change", alone.change),
        ("detect", each(&spent.detect)),
        ("refine", each(&spent.refine)),
        ("align", per_frame(spent.refine.len(), alone.align)),
        ("quality", per_frame(spent.refine.len(), alone.quality)),
        ("embed", each(&spent.embed)),
        ("search", per_frame(spent.embed.len(), alone.search)),
        ("pad", each(&spent.pad)),
        ("record", each(&commits)),
    ];
    let frame_ms = cpu_ms / frames as f64;
    let known: f64 = stages.iter().map(|(_, ms)| ms).sum();
    stages.push(("other", (frame_ms - known).max(0.0)));
    Ok((stages, frame_ms, frames as f64 * 1e3 / wall_ms))
}

/// The next frame, decoding timed where `spent` is given; nothing at the clip's end.
fn next(source: &mut Replay, spent: Option<&Arc<Mutex<Spent>>>) -> anyhow::Result<Option<Frame>> {
    let read = |source: &mut Replay| match spent {
        Some(spent) => spend(spent, |it| &mut it.decode, || source.next()),
        None => source.next(),
    };
    let Next::Frame(frame) = read(source)? else { return Ok(None) };
    let FrameTime::Media(at) = frame.when else { anyhow::bail!("a replay has a time of its own") };
    let media_ms = at.as_millis() as u64;
    let taken = Stamp { wall_ms: 0, boottime_ms: media_ms, trusted: true };
    let pixels = frame.pixels;
    let pixels = match spent {
        Some(spent) => Arc::new(TimedPixels { pixels, spent: Arc::clone(spent) }),
        None => pixels,
    };
    Ok(Some(Frame { seq: 0, taken, media_ms, pixels }))
}

/// What is too quick, or too deep inside, for a stopwatch on the way: measured alone, mean of many
/// runs.
struct Alone {
    change: f64,
    align: f64,
    quality: f64,
    search: f64,
}

impl Alone {
    fn measure(
        engine: &mut Vision,
        gallery: &Gallery,
        sample: &Sample,
        clip: &Clip,
    ) -> anyhow::Result<Self> {
        let mut source = clip.play(STILL_FPS, false)?;
        let frame = next(&mut source, None)?.context("the clip has a frame")?;
        let luma = frame.pixels.luma()?;
        let full = frame.pixels.full()?;
        let mut change = ChangeDetector::default();
        change.has_changed(&luma, &frame.media());
        let landmarks = crate::cli::measure::bench::made_up_face().landmarks;
        let template = engine.template(sample)?.context("a sample that had a template")?;
        Ok(Self {
            change: mean_of(|| change.has_changed(&luma, &frame.media())),
            align: mean_of(|| align::align(full, &landmarks)),
            quality: mean_of(|| quality::measure(sample)),
            // The mean template and each sample are searched for.
            search: 2.0 * mean_of(|| gallery.search(&template)),
        })
    }
}

fn mean_of<T>(mut work: impl FnMut() -> T) -> f64 {
    const RUNS: u32 = 50;
    let before = process_cpu_time();
    for _ in 0..RUNS {
        std::hint::black_box(work());
    }
    cpu_ms_since(before) / f64::from(RUNS)
}

// ── At the camera's pace
// ────────────────────────────────────────────────────────────────────────────────────────────

#[derive(Debug, Default)]
struct Timing {
    latencies: Vec<f64>,
    from_first: Vec<f64>,
    replaced: u64,
    frames: usize,
    with_detector: usize,
}

/// A source thread that keeps the time, the one-place slot, and this thread as the networks'. Ends
/// with the clip, or after `most`.
fn paced(
    mut source: Replay,
    fps: f32,
    most: Option<Duration>,
    mut process: impl FnMut(&Frame) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let slot: Latest<Frame> = Latest::default();
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        let camera = scope.spawn(|| {
            let mut replaced = 0;
            let mut seq = 0u64;
            let outcome = loop {
                let due = Duration::from_secs_f64(seq as f64 / f64::from(fps));
                if most.is_some_and(|most| due >= most) {
                    break Ok(replaced);
                }
                std::thread::sleep(due.saturating_sub(watch.elapsed()));
                match next(&mut source, None) {
                    Ok(Some(frame)) => replaced = slot.put(Frame { seq, ..frame }),
                    Ok(None) => break Ok(replaced),
                    Err(error) => break Err(error),
                }
                seq += 1;
            };
            while !slot.is_closed() && !slot.wait_free(Duration::from_millis(20)) {}
            slot.close();
            outcome
        });
        let mut processed = Ok(());
        while processed.is_ok() {
            match slot.take(Duration::from_millis(20)) {
                Some(frame) => processed = process(&frame),
                None if slot.is_closed() => break,
                None => {}
            }
        }
        slot.close();
        let replaced = camera.join().expect("the source thread does not panic");
        processed.and(replaced)
    })
}

fn live_pass(
    engine: &mut Vision,
    gallery: &Gallery,
    settings: LiveSettings,
    clip: &Clip,
) -> anyhow::Result<Timing> {
    let mut live = Live::new(settings);
    let mut timing = Timing::default();
    let mut decided = HashSet::new();
    let watch = Stopwatch::start();
    // The capture moment of a frame by the pace: when it was due.
    let due_ms = |seq: usize| seq as f64 / f64::from(LIVE_FPS) * 1e3;
    let first_of =
        |seq: usize| (0..=seq).rev().take_while(|n| clip.shown[*n]).last().unwrap_or(seq);
    let replaced = paced(clip.play(LIVE_FPS, false)?, LIVE_FPS, None, |frame| {
        let report: FrameReport = live.process(engine, gallery, frame, Duration::ZERO)?;
        let seq = frame.seq as usize;
        let now = watch.elapsed_ms();
        for outcome in &report.outcomes {
            // The first word on somebody; a stranger who comes closer may still become somebody.
            if !decided.insert(outcome.track_id) {
                continue;
            }
            timing.latencies.push(now - due_ms(seq));
            timing.from_first.push(now - due_ms(first_of(seq)));
        }
        Ok(())
    })?;
    timing.replaced = replaced;
    Ok(timing)
}

fn still(
    engine: &mut Vision,
    gallery: &Gallery,
    settings: LiveSettings,
    seconds: u64,
) -> anyhow::Result<Still> {
    let (width, height) = SIZES[0];
    let mut scenery = Scenery::new(width, height);
    let frames: Result<Vec<_>, _> =
        (0..STILL_FRAMES).map(|_| Ok::<_, anyhow::Error>((scenery.empty()?, false))).collect();
    let clip = Clip::new(frames?)?;
    let mut live = Live::new(settings);
    let mut timing = Timing::default();
    let source = clip.play(STILL_FPS, true)?;
    let watch = Stopwatch::start();
    let before = process_cpu_time();
    paced(source, STILL_FPS, Some(Duration::from_secs(seconds)), |frame| {
        let report = live.process(engine, gallery, frame, Duration::ZERO)?;
        timing.frames += 1;
        timing.with_detector += usize::from(report.action == FrameAction::Detect);
        Ok(())
    })?;
    let seconds = watch.elapsed().as_secs_f64();
    let cpu_ms = cpu_ms_since(before);
    ensure!(timing.frames > 0, "the replay gave no frames");
    Ok(Still {
        width,
        height,
        fps: STILL_FPS,
        seconds,
        cpu_share: cpu_ms / 1e3 / seconds,
        frames: timing.frames,
        frames_with_detector: timing.with_detector,
    })
}

impl CameraReport {
    pub(crate) fn table(&self) -> String {
        let heading = [
            "picture, faces",
            "tracks decided",
            "frames/s",
            "to decision",
            "p95",
            "since first frame",
            "p95",
            "replaced",
        ];
        let ms = |value: f64| format!("{value:.0} ms");
        let row = |case: &Case| {
            vec![
                format!("{} x {}, {}", case.width, case.height, case.faces),
                format!("{}, of {} people", case.decided, case.visits),
                format!("{:.0}", case.frames_per_second),
                ms(case.latency_ms.median),
                ms(case.latency_ms.p95),
                ms(case.from_first_frame_ms.median),
                ms(case.from_first_frame_ms.p95),
                format!("{:.0} %", case.replaced_share * 100.0),
            ]
        };
        let cases = table::render(&heading, &self.cases.iter().map(row).collect::<Vec<_>>());
        let mut heading = vec!["CPU ms a frame".to_owned()];
        heading.extend(
            self.cases
                .iter()
                .map(|case| format!("{} x {}, {}", case.width, case.height, case.faces)),
        );
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let stages = self.cases.first().map_or(0, |case| case.stages_ms.len());
        let cell = |ms: f64, whole: f64| format!("{ms:.2} ({:.0} %)", ms / whole * 100.0);
        let mut rows: Vec<Vec<String>> = (0..stages)
            .map(|stage| {
                let name = self.cases[0].stages_ms[stage].0.to_owned();
                let cells =
                    self.cases.iter().map(|case| cell(case.stages_ms[stage].1, case.frame_ms));
                std::iter::once(name).chain(cells).collect()
            })
            .collect();
        let all = self.cases.iter().map(|case| format!("{:.2}", case.frame_ms));
        rows.push(std::iter::once("all".to_owned()).chain(all).collect());
        let still = &self.still;
        format!(
            "From camera to decision: {} people, {} thread(s)\n\n{cases}\n{}\nStill scene, {} x {} at {} frames/s: {:.1} % of one core \
             over {:.0} s; the detector ran on {} of {} frames\n",
            self.people,
            self.threads,
            table::render(&heading, &rows),
            still.width,
            still.height,
            still.fps,
            still.cpu_share * 100.0,
            still.seconds,
            still.frames_with_detector,
            still.frames
        )
    }
}
