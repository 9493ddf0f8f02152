//! `rollcall evaluate pad`: does the device distinguish live faces from pictures of faces? In the words of
//! ISO/IEC 30107-3: APCER for each species of attack, BPCER for live faces, with 95 % intervals.
//!
//! A presentation is a photograph or a clip. It is measured by its frames, and as a track, as the
//! daemon judges it. The frames of a photograph's track are made up: the same photograph, each time
//! a little shifted, scaled, brightened and grained, as the frames of a camera differ. They say what
//! fusion does, not what a real video does. A clip has frames of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::camera::{CameraError, Next};
use crate::cli::measure::calibrate::figures::Share;
use crate::cli::measure::evaluate::clips::open_clip;
use crate::cli::measure::evaluate::measure;
use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::{PadArgs, percent, protocol, rows};
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, page};
use crate::cli::table;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Detection;
use crate::recognise::pad::{Liveness, PadSettings, Presentation};
use crate::recognise::picture::Picture;
use crate::recognise::still;
use crate::vision::{Vision, VisionSettings};

#[derive(Debug, Serialize)]
pub struct PadReport {
    pub threshold: f32,
    /// Frames that must agree, and the pixels between the eyes below which a face is not judged.
    pub samples: usize,
    pub eye_distance_px_min: f32,
    /// Frames, each alone.
    pub frames: Rates,
    /// Presentations, each as a track.
    pub tracks: Rates,
    /// At other thresholds, frames.
    pub at: Vec<At>,
    pub species: Vec<Species>,
    /// By folder: where the errors come from.
    pub folders: BTreeMap<String, Folder>,
    /// Figures of each presentation, for other evaluations.
    pub presentations: Vec<PadPresentation>,
}

/// Error rates (ISO/IEC 30107-3) with the numbers behind them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rates {
    pub attacks: usize,
    /// Attacks taken for live, of those judged.
    pub attacks_passed: usize,
    pub attacks_unjudged: usize,
    pub live: usize,
    /// Live faces taken for attacks, of those judged.
    pub live_refused: usize,
    pub live_unjudged: usize,
    pub apcer: f64,
    pub bpcer: f64,
    /// Attacks, and live faces, that were not judged: no face found, too small, or no verdict.
    pub apnrr: f64,
    pub bpnrr: f64,
    /// Live faces that `enforce` lets pass, of all; attacks that it does not, of all.
    pub live_passing: f64,
    pub attacks_withheld: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct At {
    pub threshold: f32,
    pub apcer: f64,
    pub bpcer: f64,
}

/// The errors of one species of attack (APCER), or of live faces in photographs or in clips (BPCER).
/// An interval counts presentations, not frames: those of one presentation depend on each other.
#[derive(Debug, Serialize)]
pub struct Species {
    pub name: String,
    pub live: bool,
    pub presentations: usize,
    /// Presentations without a verdict.
    pub unjudged: usize,
    pub frame: Share,
    pub track: Share,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Folder {
    pub presentations: usize,
    /// Tracks with the wrong verdict, and with none.
    pub wrong: usize,
    pub unjudged: usize,
}

#[derive(Debug, Serialize)]
pub struct PadPresentation {
    pub file: String,
    pub folder: String,
    pub live: bool,
    pub species: String,
    /// Of its first face.
    pub eye_distance_px: Option<f32>,
    /// Of a photograph one.
    pub frames: usize,
    /// Of each frame that was judged: a face was found in it, large enough.
    pub scores: Vec<f32>,
    pub track: &'static str,
    /// The figures that the track's verdict rests on.
    pub track_scores: Vec<f32>,
}

/// Folders in folders: more is a link that leads back.
const DEPTH_MAX: usize = 4;
/// Frames per second at which a clip is played, and the most of one: half a minute.
const CLIP_FPS: f32 = 10.0;
const CLIP_FRAMES_MAX: usize = 300;

/// A presentation to measure.
struct Presented {
    path: PathBuf,
    folder: String,
    species: String,
    live: bool,
}

impl Presented {
    /// The kind of an attack is its species; live faces are counted by what shows them.
    fn new(path: PathBuf, kind: &str, live: bool) -> Self {
        let species = match (live, protocol::is_clip(&path)) {
            (false, _) => kind,
            (true, false) => "photographs",
            (true, true) => "clips",
        };
        Self { species: species.to_owned(), path, folder: kind.to_owned(), live }
    }
}

pub fn evaluate(
    args: &PadArgs,
    vision: &VisionSettings,
    pad: PadSettings,
) -> anyhow::Result<PadReport> {
    let pad = PadSettings { threshold: args.threshold.unwrap_or(pad.threshold), ..pad };
    let mut all = Vec::new();
    for (dirs, live) in [(&args.live, true), (&args.attack, false)] {
        for dir in dirs {
            gather(dir, live, &args.skip, DEPTH_MAX, &mut all)?;
        }
    }
    ensure!(all.iter().any(|it| it.live), "there are no pictures of live faces");
    ensure!(all.iter().any(|it| !it.live), "there are no pictures of attacks");
    let vision = VisionSettings { pad: true, ..vision.clone() };
    let mut workers = Workers::load(&vision, args.workers())?;
    let presentations = judge_all(&mut workers, &all, &pad)?;
    Ok(PadReport::new(presentations, &pad))
}

/// A folder's photographs and clips and its subfolders', or those that a list names: a CSV with the
/// columns file and kind, of which `live` is live and anything else a species of attack.
fn gather(
    dir: &Path,
    live: bool,
    skip: &[String],
    depth: usize,
    all: &mut Vec<Presented>,
) -> anyhow::Result<()> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let list = dir.join("spoof.csv");
    if list.is_file() {
        let kinds: Vec<protocol::Spoof> = protocol::read(&list)?;
        let wanted = kinds.iter().filter(|row| (row.kind == "live") == live);
        all.extend(wanted.map(|row| Presented::new(dir.join(&row.file), &row.kind, live)));
        return Ok(());
    }
    let files = protocol::photographs(dir)?.into_iter().chain(protocol::clips(dir)?);
    let wanted = files.filter(|path| !skip.contains(&name(path)));
    all.extend(wanted.map(|path| Presented::new(path, &name(dir), live)));
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        folders
            .extend((depth > 0 && path.is_dir() && !skip.contains(&name(&path))).then_some(path));
    }
    folders.sort();
    folders.iter().try_for_each(|folder| gather(folder, live, skip, depth - 1, all))
}

fn judge_all(
    workers: &mut Workers,
    all: &[Presented],
    pad: &PadSettings,
) -> anyhow::Result<Vec<PadPresentation>> {
    let next = AtomicUsize::new(0);
    let bar = measure::progress(all.len());
    let work = |vision: &mut Vision| -> anyhow::Result<Vec<(usize, PadPresentation)>> {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(presented) = all.get(index) else { return Ok(done) };
            done.push((index, judge(vision, presented, pad)?));
            bar.inc(1);
        }
    };
    let mut done = Vec::with_capacity(all.len());
    std::thread::scope(|scope| {
        let running: Vec<_> = workers.each().map(|vision| scope.spawn(|| work(vision))).collect();
        for worker in running {
            done.extend(worker.join().expect("a worker does not panic")?);
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, presentation)| presentation).collect())
}

fn judge(
    vision: &mut Vision,
    presented: &Presented,
    pad: &PadSettings,
) -> anyhow::Result<PadPresentation> {
    let mut presentation = PadPresentation {
        file: presented.path.display().to_string(),
        folder: presented.folder.clone(),
        live: presented.live,
        species: presented.species.clone(),
        eye_distance_px: None,
        frames: 0,
        scores: Vec::new(),
        track: Presentation::Unjudged.as_str(),
        track_scores: Vec::new(),
    };
    let track = if protocol::is_clip(&presented.path) {
        judge_clip(vision, &presented.path, pad, &mut presentation)
    } else {
        judge_photograph(vision, &presented.path, pad, &mut presentation)
    };
    let track = track.with_context(|| format!("cannot judge {}", presentation.file))?;
    presentation.track = track.verdict().as_str();
    presentation.track_scores = track.scores().to_vec();
    Ok(presentation)
}

/// The photograph is one frame; its track goes on with variants of it until there is a verdict.
fn judge_photograph(
    vision: &mut Vision,
    path: &Path,
    pad: &PadSettings,
    presentation: &mut PadPresentation,
) -> anyhow::Result<Liveness> {
    let mut track = Liveness::default();
    presentation.frames = 1;
    let Some(picture) = measure::picture(path)? else { return Ok(track) };
    let Some(detection) = judge_frame(vision, &picture, pad, presentation)? else {
        return Ok(track);
    };
    for variant in 0.. {
        if track.verdict() != Presentation::Unjudged {
            break;
        }
        let (seen, detection) = varied(&picture, &detection, variant);
        track.add(vision.liveness(&seen, &detection)?.unwrap_or(0.0), pad);
    }
    Ok(track)
}

fn judge_clip(
    vision: &mut Vision,
    path: &Path,
    pad: &PadSettings,
    presentation: &mut PadPresentation,
) -> anyhow::Result<Liveness> {
    let mut track = Liveness::default();
    let mut source = open_clip(path, CLIP_FPS)?;
    while presentation.frames < CLIP_FRAMES_MAX {
        let frame = match source.next() {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::Nothing) | Err(CameraError::Damaged { .. }) => continue,
            Ok(Next::End) => break,
            Err(error) => return Err(error.into()),
        };
        presentation.frames += 1;
        if judge_frame(vision, frame.pixels.full()?, pad, presentation)?.is_some() {
            presentation.scores.last().iter().for_each(|score| track.add(**score, pad));
        }
    }
    Ok(track)
}

/// Scores the main face of a frame, and returns where it is, if there is one and it is large enough.
fn judge_frame(
    vision: &mut Vision,
    picture: &Picture,
    pad: &PadSettings,
    presentation: &mut PadPresentation,
) -> anyhow::Result<Option<Detection>> {
    let Some(face) = still::main_face(vision, picture)? else { return Ok(None) };
    presentation.eye_distance_px.get_or_insert(face.sample.eye_distance_px);
    if face.sample.eye_distance_px < pad.eye_distance_px_min {
        return Ok(None);
    }
    let score = vision.liveness(picture, &face.detection)?;
    presentation.scores.extend(score);
    Ok(score.map(|_| face.detection))
}

/// The picture and the face as another frame would have them: brightness, grain and the detector's
/// box differ a little.
fn varied(picture: &Picture, detection: &Detection, variant: u64) -> (Picture, Detection) {
    let mut state = (variant + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    };
    let gain = 1.0 + 0.05 * random();
    let shift_x = 0.04 * random();
    let shift_y = 0.04 * random();
    let zoom = 1.0 + 0.05 * random();
    let grained = picture
        .rgb()
        .iter()
        .map(|value| (f32::from(*value) * gain + 2.0 * random()).clamp(0.0, 255.0) as u8);
    let seen = Picture::from_rgb(picture.width(), picture.height(), grained.collect())
        .expect("as many pixels as before");
    let outline = detection.bounding_box;
    let centre = outline.centre();
    let width = outline.width();
    let height = outline.height();
    let x = centre.x + shift_x * width;
    let y = centre.y + shift_y * height;
    let half_width = width * zoom / 2.0;
    let half_height = height * zoom / 2.0;
    let mut moved = *detection;
    moved.bounding_box.left = x - half_width;
    moved.bounding_box.right = x + half_width;
    moved.bounding_box.top = y - half_height;
    moved.bounding_box.bottom = y + half_height;
    (seen, moved)
}

const THRESHOLDS: [f32; 9] = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9];

impl PadReport {
    fn new(presentations: Vec<PadPresentation>, pad: &PadSettings) -> Self {
        let frames = |it: &PadPresentation| it.frame_tally(pad.threshold);
        let at = THRESHOLDS.map(|threshold| {
            let (apcer, bpcer) = errors_at(&presentations, threshold);
            At { threshold, apcer, bpcer }
        });
        Self {
            threshold: pad.threshold,
            samples: pad.samples,
            eye_distance_px_min: pad.eye_distance_px_min,
            frames: Rates::of(&presentations, frames),
            tracks: Rates::of(&presentations, PadPresentation::track_tally),
            at: at.to_vec(),
            species: species(&presentations, pad.threshold),
            folders: folders(&presentations),
            presentations,
        }
    }
}

/// Frames or tracks: how many were shown, were judged, and were judged live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    shown: usize,
    judged: usize,
    live: usize,
}

impl Tally {
    fn sum(tallies: impl Iterator<Item = Self>) -> Self {
        tallies.fold(Self::default(), |sum, it| Self {
            shown: sum.shown + it.shown,
            judged: sum.judged + it.judged,
            live: sum.live + it.live,
        })
    }

    /// Those taken for what they are not.
    fn wrong(self, is_live: bool) -> usize {
        if is_live { self.judged - self.live } else { self.live }
    }
}

impl PadPresentation {
    fn frame_tally(&self, threshold: f32) -> Tally {
        let live = self.scores.iter().filter(|score| **score >= threshold).count();
        Tally { shown: self.frames, judged: self.scores.len(), live }
    }

    fn track_tally(&self) -> Tally {
        let judged = usize::from(self.track != Presentation::Unjudged.as_str());
        let live = usize::from(self.track == Presentation::Live.as_str());
        Tally { shown: 1, judged, live }
    }
}

impl Rates {
    fn of(all: &[PadPresentation], tally: impl Fn(&PadPresentation) -> Tally) -> Self {
        let sum = |live| Tally::sum(all.iter().filter(|it| it.live == live).map(&tally));
        let (attacks, live) = (sum(false), sum(true));
        let live_refused = live.wrong(true);
        Self {
            attacks: attacks.shown,
            attacks_passed: attacks.live,
            attacks_unjudged: attacks.shown - attacks.judged,
            live: live.shown,
            live_refused,
            live_unjudged: live.shown - live.judged,
            apcer: share(attacks.live, attacks.judged),
            bpcer: share(live_refused, live.judged),
            apnrr: share(attacks.shown - attacks.judged, attacks.shown),
            bpnrr: share(live.shown - live.judged, live.shown),
            live_passing: share(live.live, live.shown),
            attacks_withheld: share(attacks.shown - attacks.live, attacks.shown),
        }
    }
}

/// The attacks first.
fn species(all: &[PadPresentation], threshold: f32) -> Vec<Species> {
    let mut by_name: BTreeMap<(bool, &str), Vec<&PadPresentation>> = BTreeMap::new();
    for it in all {
        by_name.entry((it.live, &it.species)).or_default().push(it);
    }
    let of = |((live, name), of): ((bool, &str), Vec<&PadPresentation>)| {
        let frames = Tally::sum(of.iter().map(|it| it.frame_tally(threshold)));
        let tracks = Tally::sum(of.iter().map(|it| it.track_tally()));
        let independent = of.iter().filter(|it| !it.scores.is_empty()).count();
        let errors =
            |it: Tally| Share::new(it.wrong(live) as u64, it.judged as u64, independent as u64);
        Species {
            name: name.to_owned(),
            live,
            presentations: of.len(),
            unjudged: tracks.shown - tracks.judged,
            frame: errors(frames),
            track: errors(tracks),
        }
    };
    by_name.into_iter().map(of).collect()
}

fn folders(all: &[PadPresentation]) -> BTreeMap<String, Folder> {
    let mut folders: BTreeMap<String, Folder> = BTreeMap::new();
    for it in all {
        let folder = folders.entry(it.folder.clone()).or_default();
        let track = it.track_tally();
        folder.presentations += 1;
        folder.unjudged += track.shown - track.judged;
        folder.wrong += track.wrong(it.live);
    }
    folders
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// APCER and BPCER of frames at a threshold, among those judged.
fn errors_at(all: &[PadPresentation], threshold: f32) -> (f64, f64) {
    let rates = Rates::of(all, |it| it.frame_tally(threshold));
    (rates.apcer, rates.bpcer)
}

impl PadReport {
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (title, it) in [("Frames", &self.frames), ("Tracks", &self.tracks)] {
            let of = |part, whole: usize| {
                format!("{}  ({part} of {whole})", percent(share(part, whole)))
            };
            text += &rows(
                &format!("{title}, threshold {}", self.threshold),
                &[
                    (
                        "APCER, attacks taken for live",
                        of(it.attacks_passed, it.attacks - it.attacks_unjudged),
                    ),
                    (
                        "BPCER, live taken for attacks",
                        of(it.live_refused, it.live - it.live_unjudged),
                    ),
                    ("APNRR, attacks not judged", of(it.attacks_unjudged, it.attacks)),
                    ("BPNRR, live not judged", of(it.live_unjudged, it.live)),
                    (
                        "enforce: live that pass",
                        of(it.live - it.live_refused - it.live_unjudged, it.live),
                    ),
                    (
                        "enforce: attacks that do not",
                        of(it.attacks - it.attacks_passed, it.attacks),
                    ),
                ],
            );
        }
        let at = self.at.iter().map(|at| (at.threshold.to_string(), at));
        let lines: Vec<(String, String)> = at
            .map(|(name, at)| {
                (name, format!("APCER {}  BPCER {}", percent(at.apcer), percent(at.bpcer)))
            })
            .collect();
        let lines: Vec<(&str, String)> =
            lines.iter().map(|(name, line)| (name.as_str(), line.clone())).collect();
        text += &rows("Frames by threshold", &lines);
        text + &self.species_table()
    }

    fn species_table(&self) -> String {
        let share = |it: &Share| {
            let (low, high) = (100.0 * it.low, 100.0 * it.high);
            let of = format!("{} of {}", it.counted, it.of);
            format!("{} ({of}; {low:.1} to {high:.1} %)", percent(it.value()))
        };
        let line = |it: &Species| {
            let rate = if it.live { "live, BPCER" } else { "attack, APCER" };
            vec![
                format!("{rate}: {}", it.name),
                it.presentations.to_string(),
                it.unjudged.to_string(),
                share(&it.frame),
                share(&it.track),
            ]
        };
        let heading = ["species", "presentations", "without verdict", "frames", "tracks"];
        let lines: Vec<_> = self.species.iter().map(line).collect();
        format!("By species, with 95 % intervals\n{}", table::render(&heading, &lines))
    }

    /// APCER and BPCER over the threshold, and the detection error trade-off.
    pub(crate) fn plot(&self) -> String {
        let steps: Vec<f32> = (0..=500).map(|step| step as f32 / 500.0).collect();
        let curve = |of: fn((f64, f64)) -> f64| {
            steps
                .iter()
                .map(|threshold| {
                    (f64::from(*threshold), of(errors_at(&self.presentations, *threshold)))
                })
                .collect()
        };
        let here = (self.frames.apcer, self.frames.bpcer);
        let rates = Chart {
            title: "Errors over the threshold".into(),
            x: Axis::new("threshold", Scale::Linear, 0.0, 1.0),
            y: Axis::new("rate", Scale::Percent, 0.0, 0.25),
            series: vec![
                Series::new(Mark::Line, "APCER", curve(|it| it.0)),
                Series::new(Mark::Line, "BPCER", curve(|it| it.1)),
                Series::new(Mark::Dot, "configured", vec![(f64::from(self.threshold), here.1)]),
            ],
        };
        let trade =
            steps.iter().map(|threshold| errors_at(&self.presentations, *threshold)).collect();
        let trade = Chart {
            title: "Attacks passed against live refused".into(),
            x: Axis::new("APCER", Scale::Percent, 0.0, 0.25),
            y: Axis::new("BPCER", Scale::Percent, 0.0, 0.25),
            series: vec![
                Series::new(Mark::Line, "frames", trade),
                Series::new(Mark::Dot, "configured", vec![here]),
            ],
        };
        page(&[rates, trade])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::pad::PadMode;

    fn presentation(live: bool, scores: &[f32], track: &'static str) -> PadPresentation {
        PadPresentation {
            file: String::new(),
            folder: "office".into(),
            live,
            species: if live { "photographs" } else { "print" }.into(),
            eye_distance_px: Some(40.0),
            frames: scores.len().max(1),
            scores: scores.to_vec(),
            track,
            track_scores: scores.to_vec(),
        }
    }

    fn report(presentations: Vec<PadPresentation>) -> PadReport {
        let pad = PadSettings {
            mode: PadMode::Flag,
            threshold: 0.4,
            samples: 2,
            eye_distance_px_min: 6.0,
        };
        PadReport::new(presentations, &pad)
    }

    #[test]
    fn pad_rates_follow_the_standard() {
        let report = report(vec![
            presentation(true, &[0.9], "live"),
            presentation(true, &[0.8], "live"),
            presentation(true, &[0.1], "attack"),
            presentation(true, &[], "unjudged"),
            presentation(false, &[0.6], "live"),
            presentation(false, &[0.1], "attack"),
        ]);
        for rates in [report.frames, report.tracks] {
            assert_eq!((rates.apcer, rates.apnrr, rates.bpnrr), (0.5, 0.0, 0.25));
            assert!((rates.bpcer - 1.0 / 3.0).abs() < 1e-9);
            assert_eq!((rates.live_passing, rates.attacks_withheld), (0.5, 0.5));
        }
        assert_eq!(errors_at(&report.presentations, 0.85), (0.0, 2.0 / 3.0));
        assert_eq!(errors_at(&report.presentations, 0.05), (1.0, 0.0));
    }

    #[test]
    fn species_interval_counts_presentations() {
        let screen = PadPresentation {
            species: "screen".into(),
            ..presentation(false, &[0.9, 0.9, 0.9, 0.1], "live")
        };
        let report = report(vec![
            presentation(true, &[0.9], "live"),
            screen,
            presentation(false, &[0.1], "attack"),
            presentation(false, &[], "unjudged"),
        ]);
        let names: Vec<_> = report.species.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["print", "screen", "photographs"]);
        let [print, screen, live] = &report.species[..] else { panic!("{:?}", report.species) };
        assert_eq!((print.presentations, print.unjudged, print.track.of), (2, 1, 1));
        assert_eq!((screen.frame.counted, screen.frame.of), (3, 4));
        assert_eq!(screen.frame, Share::new(3, 4, 1));
        assert_eq!((live.live, live.frame.counted), (true, 0));
        let table = report.table();
        for part in ["attack, APCER: screen", "3 of 4", "live, BPCER: photographs"] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }
}
