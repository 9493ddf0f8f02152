//! `rollcall evaluate identify`: identification in an open set.

use std::collections::{BTreeSet, HashSet};

use anyhow::ensure;
use serde::Serialize;

use crate::cli::measure::calibrate::figures::Share;
use crate::cli::measure::evaluate::measure::{Templates, Workers};
use crate::cli::measure::evaluate::metrics::{OpenSet, Search};
use crate::cli::measure::evaluate::protocol;
use crate::cli::measure::evaluate::protocol::{ProtocolRow, of_role};
use crate::cli::measure::evaluate::{IdentifyArgs, percent, rows};
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, page};
use crate::cli::table;
use crate::ids::{Name, SubjectId};
use crate::recognise::decision::{self, DecisionSettings};
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
    /// With a composite embedder, how many of the searches needed its second part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_part: Option<SecondPartShares>,
    /// With --group: each group by itself, at the thresholds of all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRates>,
    #[serde(skip)]
    searches: OpenSet,
}

/// Shares of the searches.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SecondPartShares {
    pub enrolled: f64,
    pub strangers: f64,
}

/// The errors of one group of people. An interval counts people, not looks: those of one person
/// depend on each other.
#[derive(Debug, Serialize)]
pub struct GroupRates {
    pub group: String,
    /// People who are enrolled, and those who are strangers.
    pub enrolled_people: usize,
    pub stranger_people: usize,
    #[serde(rename = "fnir_at_fpir_1e-2")]
    pub fnir_at_fpir_2: Share,
    #[serde(rename = "fpir_at_fpir_1e-2")]
    pub fpir_at_fpir_2: Share,
    pub fnir_shipped: Share,
    pub fpir_shipped: Share,
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
    decision: impl Fn(&TemplateSpec) -> DecisionSettings,
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
    let gallery = enrol(Gallery::of(&workers.embedder()), of_role(&entries, "enrol"), &templates)?;
    let groups = match &args.group {
        Some(column) => protocol::column(&args.protocol, column)?,
        None => Vec::new(),
    };
    let settings = decision(&spec);
    let found = search_all(&entries, &gallery, &templates, &settings);
    let mut report = report(&entries, &gallery, &templates, &found, &settings);
    report.groups = by_group(&entries, &groups, &found, &report.thresholds);
    Ok(report)
}

/// What the search with each entry's photograph came to: the best candidate, if there is one, and
/// whether the second part was needed.
type Searched = Vec<Option<(Search, bool)>>;

fn search_all(
    entries: &[ProtocolRow],
    gallery: &Gallery,
    templates: &Templates,
    settings: &DecisionSettings,
) -> Searched {
    let search = |entry: &ProtocolRow| {
        if entry.role != "probe" && entry.role != "impostor" {
            return None;
        }
        let probe = templates[&entry.file].as_ref()?;
        let (best, is_second_used) = decision::best_candidate(probe, gallery, settings);
        let best = best?;
        let own = best.subject.id.as_str() == entry.identity;
        Some((Search { score: best.score, own }, is_second_used))
    };
    entries.iter().map(search).collect()
}

/// The errors of each group, by its name; `groups` has the group of each entry.
fn by_group(
    entries: &[ProtocolRow],
    groups: &[String],
    searched: &Searched,
    thresholds: &Thresholds,
) -> Vec<GroupRates> {
    let names: BTreeSet<&String> = groups.iter().filter(|it| !it.is_empty()).collect();
    let rates = |group: &String| {
        let of = |role: &'static str| {
            let rows = entries.iter().zip(groups).zip(searched);
            rows.filter(move |((entry, of), _)| *of == group && entry.role == role)
                .map(|((entry, _), searched)| (entry, searched.map(|it| it.0)))
        };
        let people = |role| of(role).map(|(it, _)| &it.identity).collect::<BTreeSet<_>>().len();
        let enrolled_people = people("probe");
        let stranger_people = people("impostor");
        let missed = |threshold: f32| {
            let is_missed = |it: Option<Search>| {
                !it.is_some_and(|search| search.own && search.score >= threshold)
            };
            let count = of("probe").filter(|(_, it)| is_missed(*it)).count();
            Share::new(count as u64, of("probe").count() as u64, enrolled_people as u64)
        };
        let let_in = |threshold: f32| {
            let is_found = |it: Option<Search>| it.is_some_and(|it| it.score >= threshold);
            let found = of("impostor").filter(|(_, it)| is_found(*it)).count();
            Share::new(found as u64, of("impostor").count() as u64, stranger_people as u64)
        };
        GroupRates {
            group: group.clone(),
            enrolled_people,
            stranger_people,
            fnir_at_fpir_2: missed(thresholds.fpir_2),
            fpir_at_fpir_2: let_in(thresholds.fpir_2),
            fnir_shipped: missed(thresholds.shipped),
            fpir_shipped: let_in(thresholds.shipped),
        }
    };
    names.into_iter().map(rates).collect()
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
    found: &Searched,
    settings: &DecisionSettings,
) -> IdentificationReport {
    let rule = &settings.threshold;
    let of = |role: &'static str| {
        entries.iter().zip(found).filter(move |(entry, _)| entry.role == role).map(|(_, it)| *it)
    };
    let mated: Vec<_> = of("probe").map(|it| it.map(|it| it.0)).collect();
    let non_mated: Vec<_> = of("impostor").map(|it| it.map(|it| it.0.score)).collect();
    let share = |role| {
        of(role).filter(|it| it.is_some_and(|it| it.1)).count() as f64 / of(role).count() as f64
    };
    let shares = || SecondPartShares { enrolled: share("probe"), strangers: share("impostor") };
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
        second_part: settings.early_exit.map(|_| shares()),
        groups: Vec::new(),
        searches,
    }
}

impl IdentificationReport {
    pub(crate) fn table(&self) -> String {
        let at =
            |share: f64, threshold: f32| format!("{} at threshold {threshold:.3}", percent(share));
        let limits = &self.thresholds;
        let table = rows(
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
        );
        let second_part = self.second_part.map(|it| {
            format!(
                "  the second part of the embedder was needed by {} of the enrolled, {} of strangers\n",
                percent(it.enrolled),
                percent(it.strangers)
            )
        });
        table + &second_part.unwrap_or_default() + &self.group_table()
    }

    /// Empty without groups.
    fn group_table(&self) -> String {
        if self.groups.is_empty() {
            return String::new();
        }
        let share = |it: &Share| {
            let (low, high) = (100.0 * it.low, 100.0 * it.high);
            let of = format!("{} of {}", it.counted, it.of);
            format!("{} ({of}; {low:.1} to {high:.1} %)", percent(it.value()))
        };
        let line = |it: &GroupRates| {
            vec![
                it.group.clone(),
                format!("{} + {}", it.enrolled_people, it.stranger_people),
                share(&it.fnir_at_fpir_2),
                share(&it.fpir_at_fpir_2),
                share(&it.fnir_shipped),
                share(&it.fpir_shipped),
            ]
        };
        let heading = [
            "group",
            "people (enrolled + strangers)",
            "FNIR at FPIR 1 % of all",
            "FPIR there",
            "FNIR, shipped threshold",
            "FPIR, shipped threshold",
        ];
        let lines: Vec<Vec<String>> = self.groups.iter().map(line).collect();
        format!("\nBy group, with 95 % intervals\n{}", table::render(&heading, &lines))
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
