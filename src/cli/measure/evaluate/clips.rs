//! `rollcall evaluate clips`: people who are enrolled pass before a camera in clips, as strangers do.
//!
//! Each person with several clips is enrolled from three frames of the first, and must be recorded
//! in the others. Everybody else is a stranger, and must not be taken for somebody. The frames go
//! through the daemon's own sources, tracker and decision; only their times are those of the clip.
//! A clip that is not motion JPEG is read through ffmpeg, as a camera that is a command.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use crate::camera::encoded::Coding;
use crate::camera::pipe::{PipeCamera, PipeSettings};
use crate::camera::replay::{Replay, ReplaySettings};
use crate::camera::stream::{StreamSettings, Timing};
use crate::camera::view::View;
use crate::camera::{CameraError, FrameSource, FrameTime, Next};
use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::protocol::{self, ClipEntry, ProtocolRow, of_role};
use crate::cli::measure::evaluate::{ClipsArgs, identify, rows};
use crate::cli::table;
use crate::clock::Stamp;
use crate::ids::{Name, SubjectId};
use crate::recognise::attention::FrameAction;
use crate::recognise::decision::Decision;
use crate::recognise::frame::Frame;
use crate::recognise::gallery::{Gallery, Subject};
use crate::recognise::live::{Live, LiveSettings};
use crate::recognise::still;
use crate::vision::manifest::TemplateSpec;
use crate::vision::{Vision, VisionSettings};

#[derive(Debug, Serialize)]
pub struct ClipsReport {
    pub gallery_subjects: usize,
    pub clips: Vec<ClipReport>,
    /// Clips of enrolled people, and those in which they were recorded.
    pub known: usize,
    pub recorded: usize,
    /// Clips of strangers.
    pub strangers: usize,
    /// Clips in which somebody was taken for somebody else.
    pub mistaken: usize,
}

#[derive(Debug, Serialize)]
pub struct ClipReport {
    pub file: String,
    /// `None`: a stranger.
    pub expected: Option<String>,
    /// Everybody who was identified, in their order.
    pub decided: Vec<String>,
    /// Frames with a face, up to the decision; of a clip without one, all of them.
    pub looks: usize,
    /// From the first frame with a face to the decision.
    pub decision_ms: Option<u64>,
    pub frames: usize,
    /// Frames that could not be read.
    pub unreadable: usize,
}

/// Where in the first clip the references are taken.
const ENROL_AT: [f64; 3] = [0.2, 0.5, 0.8];
/// Ten minutes at ten frames a second.
const FRAMES_MAX: usize = 6_000;
/// As wide as the clips are read.
const WIDTH_MAX: usize = 640;
/// Without a picture for this long, ffmpeg hangs.
const STALL: Duration = Duration::from_mins(1);

pub fn evaluate(
    args: &ClipsArgs,
    vision: &VisionSettings,
    live: impl Fn(&TemplateSpec) -> LiveSettings,
) -> anyhow::Result<ClipsReport> {
    ensure!((0.1..=60.0).contains(&args.fps), "--fps is not within 0.1 to 60");
    let entries: Vec<ClipEntry> = protocol::read(&args.clips)?;
    let mut workers = Workers::load(vision, args.common.workers())?;
    let spec = workers.template_spec();
    let mut gallery = Gallery::of(&workers.embedder());
    if let Some(background) = &args.background {
        let people: Vec<ProtocolRow> = protocol::read(background)?;
        let images = args.background_images.as_deref().or(background.parent());
        let files = of_role(&people, "enrol").map(|entry| entry.file.as_str());
        let templates = workers.templates(images.unwrap_or(Path::new("")), files)?;
        gallery = identify::enrol(gallery, of_role(&people, "enrol"), &templates)?;
    }
    let engine = workers.first();
    let is_first = |entry: &ClipEntry| {
        let mut own = entries.iter().filter(|it| it.person == entry.person);
        own.next().is_some_and(|first| first.file == entry.file) && own.next().is_some()
    };
    for entry in entries.iter().filter(|it| is_first(it)) {
        let path = args.common.images.join(&entry.file);
        gallery = enrol(engine, gallery, &entry.person, open_clip(&path, args.fps)?)
            .with_context(|| format!("cannot enrol {} from {}", entry.person, entry.file))?;
    }
    let settings = live(&spec);
    let mut clips = Vec::new();
    for entry in entries.iter().filter(|it| !is_first(it)) {
        let is_known = entries.iter().filter(|it| it.person == entry.person).count() > 1;
        let source = open_clip(&args.common.images.join(&entry.file), args.fps)?;
        let mut report = watch(engine, &gallery, settings, source)
            .with_context(|| format!("cannot play {}", entry.file))?;
        report.file.clone_from(&entry.file);
        report.expected = is_known.then(|| entry.person.clone());
        clips.push(report);
    }
    Ok(ClipsReport::new(gallery.subjects(), clips))
}

/// The clip as a camera; its pictures have the times of a recording.
pub fn open_clip(path: &Path, fps: f32) -> anyhow::Result<Box<dyn FrameSource>> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if extension == "mjpeg" || extension == "mjpg" {
        let (show, gap) = (Duration::ZERO, Duration::ZERO);
        let path = path.to_owned();
        let settings =
            ReplaySettings { path, fps, show, gap, repeat: false, view: View::default() };
        return Ok(Box::new(Replay::open(settings)?));
    }
    ensure!(path.is_file(), "there is no clip {}", path.display());
    let scale = format!("scale='min({WIDTH_MAX},iw)':-2");
    let mut command: Vec<String> =
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-i"].map(str::to_owned).to_vec();
    // A name that begins with a dash is no option, and one with a colon no protocol.
    command.push(format!("file:{}", path.display()));
    command.extend(["-r".to_owned(), fps.to_string(), "-vf".to_owned(), scale]);
    let output = ["-pix_fmt", "yuvj420p", "-q:v", "4", "-f", "mjpeg", "-"];
    command.extend(output.map(str::to_owned));
    let stream = StreamSettings {
        coding: Coding::Jpeg,
        fps,
        stall_after: STALL,
        view: View::default(),
        timing: Timing::Recording,
    };
    Ok(Box::new(PipeCamera::new(PipeSettings { command, input: None, preset: None, stream })))
}

/// All frames of a clip, and how many could not be read.
fn frames(mut source: Box<dyn FrameSource>) -> anyhow::Result<(Vec<Frame>, usize)> {
    let mut frames = Vec::new();
    let mut unreadable = 0;
    loop {
        match source.next() {
            Ok(Next::Frame(frame)) => {
                let FrameTime::Media(at) = frame.when else { bail!("a clip has times of its own") };
                let media_ms = at.as_millis() as u64;
                let taken = Stamp { wall_ms: 0, boottime_ms: media_ms, trusted: true };
                let seq = frames.len() as u64;
                frames.push(Frame { seq, taken, media_ms, pixels: frame.pixels });
                ensure!(frames.len() <= FRAMES_MAX, "it has more than {FRAMES_MAX} frames");
            }
            Ok(Next::Nothing) => {}
            Ok(Next::End) => return Ok((frames, unreadable)),
            Err(CameraError::Damaged { .. } | CameraError::Unusable { .. }) => unreadable += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn enrol(
    engine: &mut Vision,
    gallery: Gallery,
    person: &str,
    source: Box<dyn FrameSource>,
) -> anyhow::Result<Gallery> {
    let (frames, _) = frames(source)?;
    let mut templates = Vec::new();
    for share in ENROL_AT {
        let frame = frames.get((frames.len() as f64 * share) as usize);
        let Some(frame) = frame else { continue };
        let Some(face) = still::main_face(engine, frame.pixels.full()?)? else { continue };
        templates.extend(still::template(engine, &face.sample)?);
    }
    ensure!(!templates.is_empty(), "no face was found in three of its frames");
    let subject = Subject { id: SubjectId::new(person)?, name: Name::new(person)? };
    Ok(gallery.with(subject, &templates))
}

/// Plays a clip before the daemon's recognition.
pub fn watch(
    engine: &mut Vision,
    gallery: &Gallery,
    settings: LiveSettings,
    source: Box<dyn FrameSource>,
) -> anyhow::Result<ClipReport> {
    let (frames, unreadable) = frames(source)?;
    let mut report = play(engine, gallery, settings, &frames);
    report.unreadable += unreadable;
    Ok(report)
}

/// Puts frames before the daemon's recognition.
pub fn play(
    engine: &mut Vision,
    gallery: &Gallery,
    settings: LiveSettings,
    frames: &[Frame],
) -> ClipReport {
    let mut live = Live::new(settings);
    let mut report = ClipReport {
        file: String::new(),
        expected: None,
        decided: Vec::new(),
        looks: 0,
        decision_ms: None,
        frames: frames.len(),
        unreadable: 0,
    };
    let mut first_ms = None;
    for frame in frames {
        // A damaged frame is dropped, as the daemon does.
        let Ok(seen) = live.process(engine, gallery, frame, Duration::ZERO) else {
            report.unreadable += 1;
            continue;
        };
        let has_decided = report.decision_ms.is_some();
        if seen.action == FrameAction::Detect && seen.faces > 0 && !has_decided {
            report.looks += 1;
            first_ms = first_ms.or(Some(frame.media_ms));
        }
        for outcome in &seen.outcomes {
            let Decision::Identified(identification) = &outcome.decision else { continue };
            report.decided.push(identification.subject.id.as_str().to_owned());
            let first_ms = first_ms.unwrap_or(frame.media_ms);
            report.decision_ms.get_or_insert(frame.media_ms - first_ms);
        }
    }
    report
}

impl ClipsReport {
    fn new(gallery_subjects: usize, clips: Vec<ClipReport>) -> Self {
        let known = clips.iter().filter(|it| it.expected.is_some()).count();
        let recorded = clips.iter().filter(|it| it.is_recorded()).count();
        let mistaken = clips.iter().filter(|it| it.is_mistaken()).count();
        let strangers = clips.len() - known;
        Self { gallery_subjects, clips, known, recorded, strangers, mistaken }
    }

    pub fn table(&self) -> String {
        let row = |clip: &ClipReport| {
            vec![
                clip.file.clone(),
                clip.expected.clone().unwrap_or_else(|| "(stranger)".into()),
                if clip.decided.is_empty() { "-".into() } else { clip.decided.join(" ") },
                clip.looks.to_string(),
                clip.decision_ms.map_or_else(String::new, |ms| format!("{ms} ms")),
                clip.verdict().into(),
            ]
        };
        let clips: Vec<_> = self.clips.iter().map(row).collect();
        let heads = ["clip", "expected", "decided", "looks", "after", ""];
        let summary = rows(
            "Clips",
            &[
                ("people in the gallery", self.gallery_subjects.to_string()),
                ("enrolled people recorded", format!("{} of {}", self.recorded, self.known)),
                ("strangers", self.strangers.to_string()),
                ("taken for somebody else", self.mistaken.to_string()),
            ],
        );
        format!("{}\n{summary}", table::render(&heads, &clips))
    }
}

impl ClipReport {
    fn is_recorded(&self) -> bool {
        self.expected.as_ref().is_some_and(|expected| self.decided.contains(expected))
    }

    fn is_mistaken(&self) -> bool {
        self.decided.iter().any(|decided| Some(decided) != self.expected.as_ref())
    }

    fn verdict(&self) -> &'static str {
        match (&self.expected, self.is_mistaken()) {
            (_, true) => "taken for somebody else",
            (Some(_), false) if !self.is_recorded() => "not recorded",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_are_counted_by_their_outcome() {
        let clip = |expected: Option<&str>, decided: &[&str]| ClipReport {
            file: "clip".into(),
            expected: expected.map(str::to_owned),
            decided: decided.iter().map(|it| (*it).to_owned()).collect(),
            looks: 2,
            decision_ms: decided.first().map(|_| 200),
            frames: 20,
            unreadable: 0,
        };
        let report = ClipsReport::new(
            3,
            vec![
                clip(Some("a"), &["a", "a"]),
                clip(Some("a"), &[]),
                clip(Some("b"), &["b", "a"]),
                clip(None, &[]),
                clip(None, &["a"]),
            ],
        );
        let counts = (report.known, report.recorded, report.strangers, report.mistaken);
        assert_eq!(counts, (3, 2, 2, 2));
        let table = report.table();
        for part in ["2 of 3", "not recorded", "(stranger)", "200 ms"] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }
}
