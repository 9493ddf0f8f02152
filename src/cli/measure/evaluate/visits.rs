//! `rollcall evaluate visits`: how often a whole visit ends with a wrong decision, or with none.
//!
//! `identify` measures one look. A visit is several looks that resemble each other, and after each of
//! them the door may decide. Each photograph of a protocol becomes a visit before a camera
//! (`passage`), which goes through the daemon's own tracker, evidence and decision (`Live`). Who is
//! enrolled comes as themselves, and once more as a stranger, to a gallery without them.
//!
//! The rule is tried at several targets, because a low rate cannot be seen with few strangers.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::ensure;
use serde::Serialize;

use crate::cli::measure::calibrate::figures::Share;
use crate::cli::measure::evaluate::measure::{self, Workers};
use crate::cli::measure::evaluate::passage::Passage;
use crate::cli::measure::evaluate::protocol::{self, ProtocolRow, of_role};
use crate::cli::measure::evaluate::{VisitsArgs, clips, identify, percent, rows};
use crate::cli::table;
use crate::clock::Stamp;
use crate::ids::SubjectId;
use crate::recognise::decision::{self, Decision};
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Template;
use crate::recognise::frame::Frame;
use crate::recognise::gallery::Gallery;
use crate::recognise::live::LiveSettings;
use crate::recognise::picture::Picture;
use crate::recognise::still;
use crate::vision::manifest::TemplateSpec;
use crate::vision::{Vision, VisionSettings};

/// Targets at which strangers can be counted, beside the configured one.
const TARGETS: [f32; 2] = [0.01, 0.1];

#[derive(Debug, Serialize)]
pub struct VisitsReport {
    pub gallery_subjects: usize,
    /// Length of a visit, and its frames per second.
    pub seconds: f32,
    pub fps: f32,
    /// Visits of people who are enrolled, and of strangers.
    pub enrolled_visits: usize,
    pub stranger_visits: usize,
    /// The configured target first.
    pub targets: Vec<TargetRates>,
}

/// The errors of the rule for one target. Intervals count people, not visits: those of one person
/// depend on each other.
#[derive(Debug, Serialize)]
pub struct TargetRates {
    /// `[recognition] fpir`.
    pub fpir: f32,
    /// Of one look.
    pub threshold: f32,
    /// Of one look that must decide alone, as a still picture does.
    pub look_fpir: Share,
    pub look_fnir: Share,
    /// Of visits.
    pub visit_fpir: Share,
    pub visit_fnir: Share,
    /// Visits of the enrolled in which they were taken for somebody else.
    pub mistaken: usize,
    /// Mean number of frames with a face up to the identification, and mean time from the first.
    pub looks: f64,
    pub decision_ms: f64,
}

/// How the visit of a photograph's person to a gallery ended.
struct Ending {
    /// Who was identified by one look alone.
    look: Option<String>,
    /// Who was identified in the visit.
    visit: Vec<String>,
    looks: usize,
    decision_ms: Option<u64>,
}

/// The endings of one visit, target by target.
struct Visit {
    person: String,
    is_stranger: bool,
    endings: Vec<Ending>,
}

impl Visit {
    /// Whether somebody else was identified, and whether the person was not.
    fn errors(&self, decided: &[String]) -> (bool, bool) {
        let is_own = |id: &String| !self.is_stranger && *id == self.person;
        (decided.iter().any(|id| !is_own(id)), !decided.iter().any(is_own))
    }
}

pub fn evaluate(
    args: &VisitsArgs,
    vision: &VisionSettings,
    live: impl Fn(&TemplateSpec) -> LiveSettings,
) -> anyhow::Result<VisitsReport> {
    ensure!((0.5..=60.0).contains(&args.seconds), "--seconds is not within 0.5 to 60");
    ensure!((1.0..=60.0).contains(&args.fps), "--fps is not within 1 to 60");
    let entries: Vec<ProtocolRow> = protocol::read(&args.protocol)?;
    let mut workers = Workers::load(vision, args.common.workers())?;
    let references = of_role(&entries, "enrol").map(|entry| entry.file.as_str());
    let templates = workers.templates(&args.common.images, references)?;
    let gallery =
        identify::enrol(Gallery::of(&workers.embedder()), of_role(&entries, "enrol"), &templates)?;
    let settings = live(&workers.template_spec());
    let targets = targets(&settings);
    let visitors: Vec<(u64, &ProtocolRow)> =
        (0..).zip(of_role(&entries, "probe").chain(of_role(&entries, "impostor"))).collect();
    ensure!(!visitors.is_empty(), "the protocol has nobody in the roles probe and impostor");
    let all = workers.map(&visitors, |vision, (seed, visitor)| {
        visits_of(vision, args, visitor, *seed, &gallery, &targets)
    })?;
    let all: Vec<Visit> = all.into_iter().flatten().collect();
    let rates = |(n, target)| target_rates(&all, n, target, gallery.subjects());
    Ok(VisitsReport {
        gallery_subjects: gallery.subjects(),
        seconds: args.seconds,
        fps: args.fps,
        enrolled_visits: all.iter().filter(|it| !it.is_stranger).count(),
        stranger_visits: all.iter().filter(|it| it.is_stranger).count(),
        targets: targets.iter().enumerate().map(rates).collect(),
    })
}

/// The settings for each target; as configured alone, where the threshold is set by hand.
fn targets(settings: &LiveSettings) -> Vec<LiveSettings> {
    let mut all = vec![*settings];
    if settings.decision.threshold.fixed.is_none() {
        all.extend(TARGETS.map(|fpir| {
            let decision = settings.decision.with_fpir(fpir);
            LiveSettings { decision, ..*settings }
        }));
    }
    all
}

/// The visits of one photograph: of somebody enrolled also as a stranger.
fn visits_of(
    vision: &mut Vision,
    args: &VisitsArgs,
    visitor: &ProtocolRow,
    seed: u64,
    gallery: &Gallery,
    targets: &[LiveSettings],
) -> anyhow::Result<Vec<Visit>> {
    let without = gallery.clone().without(&SubjectId::new(&visitor.identity)?);
    let mut galleries = vec![(true, &without)];
    if visitor.role == "probe" {
        galleries.push((false, gallery));
    }
    let mut all = Vec::new();
    for visit in 0..args.visits {
        let frames = frames(vision, args, visitor, (seed << 16) | u64::from(visit))?;
        // The face is nearer than at first, and not as near as at last.
        let look = match frames.get(frames.len() / 2) {
            Some(frame) => template(vision, frame.pixels.full()?)?,
            None => None,
        };
        for (is_stranger, gallery) in &galleries {
            let ending =
                |settings: &LiveSettings| ending(vision, gallery, settings, look.as_ref(), &frames);
            let endings = targets.iter().map(ending).collect();
            all.push(Visit {
                person: visitor.identity.clone(),
                is_stranger: *is_stranger,
                endings,
            });
        }
    }
    Ok(all)
}

/// The complete template of a frame's main face, of one sample as in a visit.
fn template(vision: &mut Vision, picture: &Picture) -> anyhow::Result<Option<Template>> {
    let Some(face) = still::main_face(vision, picture)? else { return Ok(None) };
    let Some(first) = vision.template(&face.sample)? else { return Ok(None) };
    Ok(Some(vision.complete(&face.sample, first)?))
}

/// The frames of a visit; none where no face is found in the photograph.
fn frames(
    vision: &mut Vision,
    args: &VisitsArgs,
    visitor: &ProtocolRow,
    seed: u64,
) -> anyhow::Result<Vec<Frame>> {
    let photograph = measure::picture(&args.common.images.join(&visitor.file))?;
    let Some(photograph) = photograph else { return Ok(Vec::new()) };
    let Some(face) = still::main_face(vision, &photograph)? else { return Ok(Vec::new()) };
    let mut passage = Passage::new(&photograph, &face.detection, args.seconds, seed);
    let frame = |n: u64| {
        let at_s = n as f32 / args.fps;
        let media_ms = (1000.0 * at_s) as u64;
        let taken = Stamp { wall_ms: 0, boottime_ms: media_ms, trusted: true };
        let pixels = Arc::new(passage.frame(at_s)?);
        anyhow::Ok(Frame { seq: n, taken, media_ms, pixels })
    };
    (0..(args.seconds * args.fps) as u64).map(frame).collect()
}

fn ending(
    vision: &mut Vision,
    gallery: &Gallery,
    settings: &LiveSettings,
    look: Option<&Template>,
    frames: &[Frame],
) -> Ending {
    let rule = &settings.decision;
    let decided = look.map(|probe| {
        decision::decide_still(probe, decision::look_first(probe, gallery, rule), gallery, rule)
    });
    let look = match decided {
        Some(Decision::Identified(found)) => Some(found.subject.id.to_string()),
        _ => None,
    };
    let visit = clips::play(vision, gallery, *settings, frames);
    Ending { look, visit: visit.decided, looks: visit.looks, decision_ms: visit.decision_ms }
}

fn target_rates(
    all: &[Visit],
    target: usize,
    settings: &LiveSettings,
    subjects: usize,
) -> TargetRates {
    let share = |is_stranger: bool, is_error: &dyn Fn(&Visit, &Ending) -> bool| {
        let of: Vec<&Visit> = all.iter().filter(|it| it.is_stranger == is_stranger).collect();
        let people: BTreeSet<&str> = of.iter().map(|it| it.person.as_str()).collect();
        let errors = of.iter().filter(|it| is_error(it, &it.endings[target])).count();
        Share::new(errors as u64, of.len() as u64, people.len() as u64)
    };
    let own = all.iter().filter(|it| !it.is_stranger);
    let mistaken = own.clone().filter(|it| it.errors(&it.endings[target].visit).0).count();
    let decided: Vec<(usize, u64)> = own
        .map(|it| &it.endings[target])
        .filter_map(|it| Some((it.looks, it.decision_ms?)))
        .collect();
    let count = decided.len().max(1) as f64;
    let look = |it: &Ending| it.look.iter().cloned().collect::<Vec<_>>();
    TargetRates {
        fpir: settings.decision.threshold.fpir,
        threshold: settings.decision.threshold.at(subjects).value(),
        look_fpir: share(true, &|visit, it| visit.errors(&look(it)).0),
        look_fnir: share(false, &|visit, it| visit.errors(&look(it)).1),
        visit_fpir: share(true, &|visit, it| visit.errors(&it.visit).0),
        visit_fnir: share(false, &|visit, it| visit.errors(&it.visit).1),
        mistaken,
        looks: decided.iter().map(|it| it.0 as f64).sum::<f64>() / count,
        decision_ms: decided.iter().map(|it| it.1 as f64).sum::<f64>() / count,
    }
}

impl VisitsReport {
    pub fn table(&self) -> String {
        let share = |it: &Share| {
            let (low, high) = (100.0 * it.low, 100.0 * it.high);
            format!("{} ({low:.1} to {high:.1} %)", percent(it.value()))
        };
        let line = |it: &TargetRates| {
            vec![
                percent(f64::from(it.fpir)),
                format!("{:.3}", it.threshold),
                share(&it.look_fpir),
                share(&it.visit_fpir),
                share(&it.look_fnir),
                share(&it.visit_fnir),
                it.mistaken.to_string(),
                format!("{:.1}", it.looks),
                format!("{:.0} ms", it.decision_ms),
            ]
        };
        let heading = [
            "fpir",
            "threshold",
            "FPIR of one look",
            "FPIR of a visit",
            "FNIR of one look",
            "FNIR of a visit",
            "mistaken",
            "looks",
            "after",
        ];
        let summary = rows(
            "Visits made of photographs",
            &[
                ("people in the gallery", self.gallery_subjects.to_string()),
                ("a visit", format!("{} s, {} frames per second", self.seconds, self.fps)),
                ("visits of enrolled people", self.enrolled_visits.to_string()),
                ("visits of strangers", self.stranger_visits.to_string()),
            ],
        );
        let lines: Vec<Vec<String>> = self.targets.iter().map(line).collect();
        format!(
            "{summary}\nErrors at each target of the rule, with 95 % intervals\n{}",
            table::render(&heading, &lines)
        )
    }
}
