//! `rollcall evaluate pad`: does the device distinguish live faces from pictures of faces? In the words of
//! ISO/IEC 30107-3.
//!
//! Each photograph is measured twice: as one frame, and as a track, as the daemon judges it:
//! several looks at the same presentation, each a little shifted, scaled, brightened and grained,
//! as the frames of a camera differ. The looks are made up, so the figures of a track say what
//! fusion does, not what a real video does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::cli::measure::evaluate::measure;
use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::{PadArgs, percent, protocol, rows};
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, page};
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
    /// Each photograph as a single frame.
    pub frames: Rates,
    /// Each photograph as a track.
    pub tracks: Rates,
    /// At other thresholds, single frames.
    pub at: Vec<At>,
    /// By folder: where the errors come from.
    pub folders: BTreeMap<String, Folder>,
    /// Figures of each photograph, for other evaluations.
    pub photographs: Vec<PadPhotograph>,
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
    /// Attacks, and live faces, that were not judged: no face found, or too small.
    pub apnrr: f64,
    pub bpnrr: f64,
    /// Live photographs that `enforce` lets pass, of all; attacks that it does not, of all.
    pub live_passing: f64,
    pub attacks_withheld: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct At {
    pub threshold: f32,
    pub apcer: f64,
    pub bpcer: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Folder {
    pub photographs: usize,
    pub wrong: usize,
    pub unjudged: usize,
}

#[derive(Debug, Serialize)]
pub struct PadPhotograph {
    pub file: String,
    pub live: bool,
    pub eye_distance_px: Option<f32>,
    /// Of the photograph as it is; none when no face was found.
    pub score: Option<f32>,
    pub frame: &'static str,
    pub track: &'static str,
    /// The figures that the track's verdict rests on.
    pub track_scores: Vec<f32>,
}

/// Folders in folders: more is a link that leads back.
const DEPTH_MAX: usize = 4;

/// A photograph and whether it shows a live face.
struct Presented {
    path: PathBuf,
    folder: String,
    live: bool,
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
    ensure!(all.iter().any(|it| it.live), "there are no photographs of live faces");
    ensure!(all.iter().any(|it| !it.live), "there are no photographs of attacks");
    let vision = VisionSettings { pad: true, ..vision.clone() };
    let mut workers = Workers::load(&vision, args.workers())?;
    let photographs = analyse_all(&mut workers, &all, &pad)?;
    Ok(report(photographs, &all, &pad))
}

/// A folder's photographs and its subfolders', or those that a list names: a CSV with the columns
/// file and kind, of which `live` is live and anything else an attack.
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
        all.extend(wanted.map(|row| Presented {
            path: dir.join(&row.file),
            folder: row.kind.clone(),
            live,
        }));
        return Ok(());
    }
    let photographs = protocol::photographs(dir)?;
    all.extend(photographs.into_iter().map(|path| Presented { path, folder: name(dir), live }));
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        folders
            .extend((depth > 0 && path.is_dir() && !skip.contains(&name(&path))).then_some(path));
    }
    folders.sort();
    folders.iter().try_for_each(|folder| gather(folder, live, skip, depth - 1, all))
}

fn analyse_all(
    workers: &mut Workers,
    all: &[Presented],
    pad: &PadSettings,
) -> anyhow::Result<Vec<PadPhotograph>> {
    let next = AtomicUsize::new(0);
    let bar = measure::progress(all.len());
    let work = |vision: &mut Vision| -> anyhow::Result<Vec<(usize, PadPhotograph)>> {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(presented) = all.get(index) else { return Ok(done) };
            done.push((index, analyse(vision, presented, pad)?));
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
    Ok(done.into_iter().map(|(_, photograph)| photograph).collect())
}

fn analyse(
    vision: &mut Vision,
    presented: &Presented,
    pad: &PadSettings,
) -> anyhow::Result<PadPhotograph> {
    let mut photograph = PadPhotograph {
        file: presented.path.display().to_string(),
        live: presented.live,
        eye_distance_px: None,
        score: None,
        frame: Presentation::Unjudged.as_str(),
        track: Presentation::Unjudged.as_str(),
        track_scores: Vec::new(),
    };
    let Some(picture) = measure::picture(&presented.path)? else { return Ok(photograph) };
    let Some(face) = still::main_face(vision, &picture)? else { return Ok(photograph) };
    photograph.eye_distance_px = Some(face.sample.eye_distance_px);
    photograph.score = vision.liveness(&picture, &face.detection)?;
    let (Some(score), true) =
        (photograph.score, face.sample.eye_distance_px >= pad.eye_distance_px_min)
    else {
        return Ok(photograph);
    };
    let live = score >= pad.threshold;
    photograph.frame = (if live { Presentation::Live } else { Presentation::Attack }).as_str();
    let mut track = Liveness::default();
    for variant in 0.. {
        if track.verdict() != Presentation::Unjudged {
            break;
        }
        let (seen, detection) = varied(&picture, &face.detection, variant);
        track.add(vision.liveness(&seen, &detection)?.unwrap_or(0.0), pad);
    }
    photograph.track = track.verdict().as_str();
    photograph.track_scores = track.scores().to_vec();
    Ok(photograph)
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

fn report(photographs: Vec<PadPhotograph>, all: &[Presented], pad: &PadSettings) -> PadReport {
    let mut folders: BTreeMap<String, Folder> = BTreeMap::new();
    for (presented, photograph) in all.iter().zip(&photographs) {
        let folder = folders.entry(presented.folder.clone()).or_default();
        folder.photographs += 1;
        folder.unjudged += usize::from(photograph.frame == "unjudged");
        let right = if photograph.live { "live" } else { "attack" };
        folder.wrong += usize::from(photograph.frame != "unjudged" && photograph.frame != right);
    }
    let at = THRESHOLDS.map(|threshold| {
        let (apcer, bpcer) = errors_at(&photographs, threshold);
        At { threshold, apcer, bpcer }
    });
    PadReport {
        threshold: pad.threshold,
        samples: pad.samples,
        eye_distance_px_min: pad.eye_distance_px_min,
        frames: rates(&photographs, |it| it.frame),
        tracks: rates(&photographs, |it| it.track),
        at: at.to_vec(),
        folders,
        photographs,
    }
}

fn rates(photographs: &[PadPhotograph], verdict: impl Fn(&PadPhotograph) -> &'static str) -> Rates {
    let count = |live, wanted: &str| {
        photographs.iter().filter(|it| it.live == live && verdict(it) == wanted).count()
    };
    let attacks = total(photographs, false);
    let live = total(photographs, true);
    let attacks_passed = count(false, "live");
    let attacks_unjudged = count(false, "unjudged");
    let live_refused = count(true, "attack");
    let live_unjudged = count(true, "unjudged");
    Rates {
        attacks,
        attacks_passed,
        attacks_unjudged,
        live,
        live_refused,
        live_unjudged,
        apcer: share(attacks_passed, attacks - attacks_unjudged),
        bpcer: share(live_refused, live - live_unjudged),
        apnrr: share(attacks_unjudged, attacks),
        bpnrr: share(live_unjudged, live),
        live_passing: share(live - live_refused - live_unjudged, live),
        attacks_withheld: share(attacks - attacks_passed, attacks),
    }
}

fn total(photographs: &[PadPhotograph], live: bool) -> usize {
    photographs.iter().filter(|it| it.live == live).count()
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// APCER and BPCER of single frames at a threshold, among those judged.
fn errors_at(photographs: &[PadPhotograph], threshold: f32) -> (f64, f64) {
    let judged =
        |live| photographs.iter().filter(move |it| it.live == live && it.frame != "unjudged");
    let scores = |live| judged(live).filter_map(|it| it.score);
    let passed = scores(false).filter(|score| *score >= threshold).count();
    let refused = scores(true).filter(|score| *score < threshold).count();
    (share(passed, judged(false).count()), share(refused, judged(true).count()))
}

impl PadReport {
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (title, it) in [("Single frames", &self.frames), ("Tracks", &self.tracks)] {
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
        text += &rows("Single frames by threshold", &lines);
        text
    }

    /// APCER and BPCER over the threshold, and the detection error trade-off.
    pub(crate) fn plot(&self) -> String {
        let steps: Vec<f32> = (0..=500).map(|step| step as f32 / 500.0).collect();
        let curve = |of: fn((f64, f64)) -> f64| {
            steps
                .iter()
                .map(|threshold| {
                    (f64::from(*threshold), of(errors_at(&self.photographs, *threshold)))
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
            steps.iter().map(|threshold| errors_at(&self.photographs, *threshold)).collect();
        let trade = Chart {
            title: "Attacks passed against live refused".into(),
            x: Axis::new("APCER", Scale::Percent, 0.0, 0.25),
            y: Axis::new("BPCER", Scale::Percent, 0.0, 0.25),
            series: vec![
                Series::new(Mark::Line, "single frames", trade),
                Series::new(Mark::Dot, "configured", vec![here]),
            ],
        };
        page(&[rates, trade])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photograph(live: bool, score: f32, frame: &'static str) -> PadPhotograph {
        let file = String::new();
        let track_scores = Vec::new();
        PadPhotograph {
            file,
            live,
            eye_distance_px: Some(40.0),
            score: Some(score),
            frame,
            track: frame,
            track_scores,
        }
    }

    #[test]
    fn pad_rates_follow_the_standard() {
        let all = [
            photograph(true, 0.9, "live"),
            photograph(true, 0.8, "live"),
            photograph(true, 0.1, "attack"),
            photograph(true, 0.9, "unjudged"),
            photograph(false, 0.6, "live"),
            photograph(false, 0.1, "attack"),
        ];
        let rates = rates(&all, |it| it.frame);
        assert_eq!((rates.apcer, rates.apnrr, rates.bpnrr), (0.5, 0.0, 0.25));
        assert!((rates.bpcer - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((rates.live_passing, rates.attacks_withheld), (0.5, 0.5));
        assert_eq!(errors_at(&all, 0.7), (0.0, 1.0 / 3.0));
        assert_eq!(errors_at(&all, 0.05), (1.0, 0.0));
    }
}
