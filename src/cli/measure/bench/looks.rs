//! `rollcall bench --looks`: the CPU time of one look at a person, from the picture's bytes to the
//! decision, as a frame of the camera goes. For a composite embedder, beside its first part alone.
//!
//! Both ways look at each photograph in turn, so that a busy spell of the machine falls on both.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::cpu_ms_since;
use crate::cli::measure::bench::Args;
use crate::cli::measure::evaluate::identify;
use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::protocol::{self, ProtocolRow, of_role};
use crate::clock::process_cpu_time;
use crate::recognise::align;
use crate::recognise::decision::{self, DecisionSettings};
use crate::recognise::engine::{DetectorInput, FaceEngine as _};
use crate::recognise::gallery::Gallery;
use crate::recognise::picture::{Picture, PictureLimits};
use crate::vision::manifest::{Manifest, TemplateSpec};
use crate::vision::{Vision, VisionSettings};

/// Looks at one kind of people.
#[derive(Debug, Default, Serialize)]
pub struct Looks {
    /// Photographs in which a face was found.
    pub looks: usize,
    /// Mean CPU milliseconds with the first part alone, and with the whole embedder.
    pub first_part_ms: f64,
    pub whole_ms: f64,
    /// The second by the first.
    pub ratio: f64,
    /// Looks for which the second part was made, as a share.
    pub second_part: f64,
}

#[derive(Debug, Serialize)]
pub struct LooksReport {
    pub gallery_subjects: usize,
    pub enrolled: Looks,
    pub strangers: Looks,
}

/// An embedder with a gallery of its own, and how it decides.
struct Way {
    engine: Vision,
    gallery: Gallery,
    settings: DecisionSettings,
}

pub fn measure(
    args: &Args,
    list: &Path,
    vision: &VisionSettings,
    decision: impl Fn(&TemplateSpec) -> DecisionSettings,
) -> anyhow::Result<LooksReport> {
    let entries: Vec<ProtocolRow> = protocol::read(list)?;
    let images = args.photos.as_deref().context("--looks needs --photos")?;
    let whole = VisionSettings { threads: 1, pad: false, ..vision.clone() };
    let manifest = Manifest::read(&vision.models)?;
    let first = manifest.embedder(&vision.embedder)?.first.name.clone();
    let first = VisionSettings { embedder: first, ..whole.clone() };
    let way = |settings: &VisionSettings| -> anyhow::Result<Way> {
        let mut workers = Workers::load(settings, 1)?;
        let files = of_role(&entries, "enrol").map(|entry| entry.file.as_str());
        let templates = workers.templates(images, files)?;
        let empty = Gallery::of(&workers.embedder());
        let gallery = identify::enrol(empty, of_role(&entries, "enrol"), &templates)?;
        let settings = decision(&workers.template_spec());
        let engine = workers.into_first().context("there is one worker")?;
        Ok(Way { engine, gallery, settings })
    };
    let mut ways = [way(&first)?, way(&whole)?];
    let gallery_subjects = ways[0].gallery.subjects();
    let enrolled = looks(&mut ways, images, of_role(&entries, "probe"))?;
    let strangers = looks(&mut ways, images, of_role(&entries, "impostor"))?;
    Ok(LooksReport { gallery_subjects, enrolled, strangers })
}

fn looks<'a>(
    ways: &mut [Way; 2],
    images: &Path,
    entries: impl Iterator<Item = &'a ProtocolRow>,
) -> anyhow::Result<Looks> {
    let mut spent = [0.0; 2];
    let mut count = 0;
    let mut completed = 0;
    for (at, entry) in entries.enumerate() {
        let path = images.join(&entry.file);
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut taken = [0.0; 2];
        let mut found = true;
        // Whichever goes first finds cold caches: they take turns.
        for which in [at % 2, 1 - at % 2] {
            let before = process_cpu_time();
            let look = look(&mut ways[which], &bytes)?;
            taken[which] = cpu_ms_since(before);
            found &= look.is_some();
            completed += usize::from(look == Some(true));
        }
        if found {
            count += 1;
            spent.iter_mut().zip(taken).for_each(|(sum, ms)| *sum += ms);
        }
    }
    let mean = |sum: f64| sum / count.max(1) as f64;
    let [first_part_ms, whole_ms] = spent.map(mean);
    let ratio = whole_ms / first_part_ms;
    Ok(Looks { looks: count, first_part_ms, whole_ms, ratio, second_part: mean(completed as f64) })
}

/// Whether the second part was made; `None` where no face was found.
fn look(way: &mut Way, bytes: &[u8]) -> anyhow::Result<Option<bool>> {
    let Way { engine, gallery, settings } = way;
    let limits = PictureLimits { bytes: 64 << 20, ..PictureLimits::default() };
    let Ok(picture) = Picture::decode(bytes, limits) else { return Ok(None) };
    let detections = engine.detect(&picture, DetectorInput::Small)?;
    let Some(detection) = detections.first() else { return Ok(None) };
    let refined = engine.refine(&picture, detection)?;
    let Some(sample) = align::align(&picture, &refined.landmarks) else { return Ok(None) };
    let Some(first) = engine.template(&sample)? else { return Ok(None) };
    let look = decision::look_first(&first, gallery, settings);
    let is_clear = look.is_clear;
    let probe = if is_clear { first } else { engine.complete(&sample, first)? };
    let _decision = decision::decide_still(&probe, look, gallery, settings);
    Ok(Some(!is_clear))
}

impl LooksReport {
    pub fn table(&self) -> String {
        let heading = format!(
            "One look, decode to decision, {} subjects: mean CPU milliseconds\n  {:<12}{:>8}{:>12}{:>10}{:>8}{:>14}\n",
            self.gallery_subjects, "", "looks", "first part", "whole", "ratio", "second part"
        );
        let line = |(name, it): (&str, &Looks)| {
            format!(
                "  {name:<12}{:>8}{:>12.2}{:>10.2}{:>8.2}{:>12.1} %\n",
                it.looks,
                it.first_part_ms,
                it.whole_ms,
                it.ratio,
                100.0 * it.second_part
            )
        };
        let kinds = [("enrolled", &self.enrolled), ("strangers", &self.strangers)];
        heading + &kinds.map(line).concat()
    }
}
