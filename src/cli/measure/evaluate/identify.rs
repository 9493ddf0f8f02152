//! `rollcall evaluate identify`: identification in an open set.

use std::collections::HashSet;

use anyhow::ensure;
use serde::Serialize;

use crate::cli::measure::evaluate::measure::{Templates, Workers};
use crate::cli::measure::evaluate::metrics::{OpenSet, Search};
use crate::cli::measure::evaluate::protocol;
use crate::cli::measure::evaluate::protocol::{ProtocolRow, of_role};
use crate::cli::measure::evaluate::{IdentifyArgs, percent, rows};
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, page};
use crate::ids::{Name, SubjectId};
use crate::recognise::decision::ThresholdRule;
use crate::recognise::gallery::{Gallery, Subject};
use crate::vision::VisionSettings;
use crate::vision::manifest::TemplateSpec;

#[derive(Debug, Serialize)]
pub struct IdentificationReport {
    pub gallery_subjects: usize,
    pub references: usize,
    /// Photographs to enrol in which no face was found, as a share.
    pub failure_to_enrol: f64,
    pub probes: usize,
    pub impostors: usize,
    /// Probes and impostors in whose photograph no face was found, as a share of both.
    pub failure_to_acquire: f64,
    pub rank1: f64,
    #[serde(rename = "fnir_at_fpir_1e-2")]
    pub fnir_at_fpir_2: f64,
    #[serde(rename = "fnir_at_fpir_1e-3")]
    pub fnir_at_fpir_3: f64,
    pub fnir_shipped: f64,
    pub fpir_shipped: f64,
    pub thresholds: Thresholds,
    #[serde(skip)]
    searches: OpenSet,
}

#[derive(Debug, Serialize)]
pub struct Thresholds {
    #[serde(rename = "fpir_1e-2")]
    pub fpir_2: f32,
    #[serde(rename = "fpir_1e-3")]
    pub fpir_3: f32,
    /// What the daemon takes for a gallery of this size.
    pub shipped: f32,
    /// The FPIR that the shipped threshold aims at.
    pub shipped_aims_at_fpir: f32,
}

pub fn evaluate(
    args: &IdentifyArgs,
    vision: &VisionSettings,
    rule: impl Fn(&TemplateSpec) -> ThresholdRule,
) -> anyhow::Result<IdentificationReport> {
    let entries: Vec<ProtocolRow> = protocol::read(&args.protocol)?;
    let enrolled: HashSet<&str> =
        of_role(&entries, "enrol").map(|entry| entry.identity.as_str()).collect();
    for role in ["enrol", "probe", "impostor"] {
        ensure!(
            of_role(&entries, role).next().is_some(),
            "the protocol has nobody in the role {role}"
        );
    }
    if let Some(wrong) =
        of_role(&entries, "impostor").find(|entry| enrolled.contains(entry.identity.as_str()))
    {
        anyhow::bail!("{} is enrolled and an impostor as well", wrong.identity);
    }
    if let Some(wrong) =
        of_role(&entries, "probe").find(|entry| !enrolled.contains(entry.identity.as_str()))
    {
        anyhow::bail!(
            "{} is a probe and never enrolled: strangers have the role impostor",
            wrong.identity
        );
    }
    let mut workers = Workers::load(vision, args.common.workers())?;
    let counted = entries
        .iter()
        .filter(|entry| ["enrol", "probe", "impostor"].contains(&entry.role.as_str()));
    let templates =
        workers.templates(&args.common.images, counted.map(|entry| entry.file.as_str()))?;
    let spec = workers.template_spec();
    let gallery = enrol(Gallery::new(spec.dimension), of_role(&entries, "enrol"), &templates)?;
    Ok(report(&entries, &gallery, &templates, &rule(&spec)))
}

/// The gallery with a reference for each of the photographs in which a face was found.
pub(crate) fn enrol<'a>(
    mut gallery: Gallery,
    entries: impl Iterator<Item = &'a ProtocolRow>,
    templates: &Templates,
) -> anyhow::Result<Gallery> {
    for entry in entries {
        if let Some(template) = &templates[&entry.file] {
            let subject =
                Subject { id: SubjectId::new(&entry.identity)?, name: Name::new(&entry.identity)? };
            gallery = gallery.with(subject, std::slice::from_ref(template));
        }
    }
    Ok(gallery)
}

fn report(
    entries: &[ProtocolRow],
    gallery: &Gallery,
    templates: &Templates,
    rule: &ThresholdRule,
) -> IdentificationReport {
    let search = |entry: &ProtocolRow| {
        let best = gallery.search(templates[&entry.file].as_ref()?).best?;
        Some(Search { score: best.score, own: best.subject.id.as_str() == entry.identity })
    };
    let mated: Vec<_> = of_role(entries, "probe").map(search).collect();
    let non_mated: Vec<_> =
        of_role(entries, "impostor").map(|entry| search(entry).map(|it| it.score)).collect();
    let missing =
        |role| of_role(entries, role).filter(|entry| templates[&entry.file].is_none()).count();
    let enrol_photographs = of_role(entries, "enrol").count();
    let failed = missing("probe") + missing("impostor");
    let searches = OpenSet::new(&mated, &non_mated);
    let thresholds = Thresholds {
        fpir_2: searches.threshold_at_fpir(1e-2),
        fpir_3: searches.threshold_at_fpir(1e-3),
        shipped: rule.at(gallery.subjects()).value(),
        shipped_aims_at_fpir: rule.fpir,
    };
    IdentificationReport {
        gallery_subjects: gallery.subjects(),
        references: gallery.references(),
        failure_to_enrol: missing("enrol") as f64 / enrol_photographs as f64,
        probes: mated.len(),
        impostors: non_mated.len(),
        failure_to_acquire: failed as f64 / (mated.len() + non_mated.len()) as f64,
        rank1: searches.rank1(),
        fnir_at_fpir_2: searches.fnir(thresholds.fpir_2),
        fnir_at_fpir_3: searches.fnir(thresholds.fpir_3),
        fnir_shipped: searches.fnir(thresholds.shipped),
        fpir_shipped: searches.fpir(thresholds.shipped),
        thresholds,
        searches,
    }
}

impl IdentificationReport {
    pub(crate) fn table(&self) -> String {
        let at =
            |share: f64, threshold: f32| format!("{} at threshold {threshold:.3}", percent(share));
        let limits = &self.thresholds;
        rows(
            "Identification in an open set (1:N)",
            &[
                (
                    "gallery",
                    format!("{} subjects, {} references", self.gallery_subjects, self.references),
                ),
                ("failure to enrol", percent(self.failure_to_enrol)),
                (
                    "searches",
                    format!("{} by enrolled people, {} by strangers", self.probes, self.impostors),
                ),
                ("failure to acquire", percent(self.failure_to_acquire)),
                ("right at rank 1", percent(self.rank1)),
                ("FNIR at FPIR 1 %", at(self.fnir_at_fpir_2, limits.fpir_2)),
                ("FNIR at FPIR 0.1 %", at(self.fnir_at_fpir_3, limits.fpir_3)),
                ("FNIR, shipped threshold", at(self.fnir_shipped, limits.shipped)),
                (
                    "FPIR, shipped threshold",
                    format!(
                        "{} (aimed at {})",
                        percent(self.fpir_shipped),
                        percent(f64::from(limits.shipped_aims_at_fpir))
                    ),
                ),
            ],
        )
    }

    pub(crate) fn plot(&self) -> String {
        let name = format!(
            "{} subjects, {} + {} searches",
            self.gallery_subjects, self.probes, self.impostors
        );
        let det = Chart {
            title: "Detection error trade-off".into(),
            x: Axis::new("FPIR: strangers identified as somebody", Scale::LogPercent, 1e-3, 1.0),
            y: Axis::new("FNIR: enrolled people not identified", Scale::LogPercent, 1e-3, 1.0),
            series: vec![
                Series::new(Mark::Line, name, self.searches.det()),
                Series::new(
                    Mark::Dot,
                    "shipped threshold",
                    vec![(self.fpir_shipped, self.fnir_shipped)],
                ),
            ],
        };
        page(&[det])
    }
}
