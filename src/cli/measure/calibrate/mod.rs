//! `rollcall calibrate`: how far the people of this gallery are apart, which threshold that asks
//! for, who looks alike.
//!
//! The enrolled stand in for strangers: each of their references is searched among all the others,
//! as if its own subject were not enrolled. That is the false positive identification rate at this
//! very size, of people like those who come here. What it cannot measure: how the door's light and
//! distance change a genuine score (`rollcall watch` shows those).
//!
//! Not in it: arithmetic (`figures`), the comparing (`compare`), drawing (`html`).

mod compare;
pub(crate) mod figures;
mod html;

use std::fs::{OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::app::open;
use crate::cli::measure::calibrate::compare::{Marks, Matrix, Tally, compare};
use crate::cli::measure::calibrate::figures::{
    Histogram, Method, SUBJECTS_MIN, Share, Suggested, fpir_for, suggest,
};
use crate::cli::measure::evaluate::{percent, rows};
use crate::cli::progress;
use crate::cli::table;
use crate::clock::{Clock as _, SystemClock, rfc3339};
use crate::config::Settings;
use crate::ids::SubjectId;
use crate::recognise::decision::ThresholdRule;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Template;
use crate::store::Reader;
use crate::vision::Vision;

/// Shows how far the people of this gallery are apart, which threshold fits, and who looks alike;
/// works beside a running daemon and changes nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo -u rollcall rollcall calibrate --html report.html")]
pub struct Args {
    /// Write the report with charts into this HTML file: no photographs, nothing from elsewhere
    #[arg(long, value_name = "HTML")]
    html: Option<PathBuf>,
    /// False positive identification rate to aim at [default: [recognition] fpir]
    #[arg(long, value_name = "0..0.5")]
    fpir: Option<f32>,
    /// Compare at most this many pairs; a larger gallery is sampled, always in the same way
    #[arg(long, value_name = "N", default_value_t = 400_000_000)]
    comparisons: u64,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A pair is reported from this much below the threshold on: it is a bad photograph away from it.
const NEAR: f32 = 0.05;
/// Where more than one subject in so many seems to be there twice, no threshold is suggested.
const DOUBLES_SHARE: usize = 50;
const LISTED: usize = 20;
const LISTED_MAX: usize = 500;
/// Lines of the terminal's histogram.
const LINES: usize = 24;

#[derive(Debug, Serialize)]
pub struct CalibrationReport {
    pub site: String,
    pub device: String,
    pub at: String,
    pub embedder: String,
    pub subjects: usize,
    pub references: usize,
    /// Subjects with one reference, which show nothing of how a person varies.
    pub single_reference: usize,
    pub references_of_other_embedders: u64,
    /// What the suggested threshold is for.
    pub fpir_target: f32,
    /// What the rule aims at; of no effect where the threshold is set by hand.
    pub fpir_in_force: f32,
    /// In force for this gallery, by the rule or set by hand.
    pub threshold: f32,
    pub threshold_fixed: bool,
    pub genuine: Genuine,
    pub impostor: Impostor,
    pub search: Searches,
    pub suggested: Option<Suggested>,
    /// A target that makes the rule give the suggested threshold; none where the threshold is set
    /// by hand.
    pub suggested_fpir: Option<f64>,
    pub doubles: usize,
    pub look_alikes: Vec<LookAlike>,
    #[serde(skip)]
    best: Vec<f32>,
}

#[derive(Debug, Serialize)]
pub struct Genuine {
    pub pairs: usize,
    /// Of one photograph enrolled twice; not among the pairs.
    pub identical: u64,
    /// Pairs below the threshold.
    pub fnmr: Share,
    pub lowest: Option<f32>,
    pub median: Option<f32>,
    #[serde(skip)]
    pub histogram: Histogram,
}

#[derive(Debug, Serialize)]
pub struct Impostor {
    pub comparisons: u64,
    pub sampled: bool,
    pub highest: Option<f32>,
    #[serde(skip)]
    pub histogram: Histogram,
}

#[derive(Debug, Serialize)]
pub struct Searches {
    /// That found somebody else at the threshold in force.
    pub fpir: Share,
}

#[derive(Debug, Serialize)]
pub struct LookAlike {
    pub subjects: [String; 2],
    pub score: f32,
    pub what: What,
}

/// What a pair's score calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Double,
    Match,
    Near,
}

impl What {
    pub fn words(self) -> &'static str {
        match self {
            Self::Double => "probably one person under two ids: look, and withdraw one",
            Self::Match => {
                "each is taken for the other: more and better photographs of both, or a second factor"
            }
            Self::Near => "near: a second photograph of both helps",
        }
    }
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    if let Some(fpir) = args.fpir {
        ensure!((1e-6..=0.5).contains(&fpir), "--fpir {fpir} is not within 0.000001 and 0.5");
    }
    let reader = open::open_reader(settings)?;
    let vision = open::load_vision(settings)?;
    let spec = vision.template_spec();
    let rule = settings.recognition.threshold(&spec);
    let target = args.fpir.unwrap_or(rule.fpir);
    let decision = settings.recognition.decision(&spec);
    let subjects = usize::try_from(reader.subject_count()?).unwrap_or(usize::MAX);
    let (matrix, others) = load(&reader, &vision, decision.partial_offset(subjects))?;
    ensure!(
        matrix.subjects.len() > 1,
        "{} subjects have references of the embedder in use: there is nobody to compare",
        matrix.subjects.len()
    );
    let threshold = rule.at(matrix.subjects.len()).value();
    let double = threshold + settings.recognition.enrol(&spec).duplicate_margin;
    let marks = Marks { near: threshold - NEAR, double };
    let workers = args
        .workers
        .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let bar = progress::bar(matrix.references as u64, "searches");
    let tally = compare(&matrix, marks, args.comparisons, workers, &|more| bar.inc(more));
    bar.finish_and_clear();
    let mut report = CalibrationReport::new(&matrix, &tally, &rule, target, marks);
    report.site.clone_from(&settings.site);
    report.device.clone_from(&settings.device);
    report.at = rfc3339(SystemClock::new(settings.trust).now().wall_ms);
    report.embedder = vision.embedder().digest.to_string();
    report.references_of_other_embedders = others;
    if let Some(path) = &args.html {
        write(path, &html::document(&report))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print(args.html.as_deref());
    }
    Ok(())
}

fn load(reader: &Reader, vision: &Vision, partial_offset: f32) -> anyhow::Result<(Matrix, u64)> {
    let mut matrix = Matrix::new(&vision.embedder(), partial_offset);
    let mut current: Option<(SubjectId, Vec<Template>)> = None;
    let count = reader.all_references(&vision.embedder(), |reference| match &mut current {
        Some((id, templates)) if *id == reference.subject_id => templates.push(reference.template),
        _ => {
            let before = current.replace((reference.subject_id, vec![reference.template]));
            if let Some((id, templates)) = before {
                matrix.add(id, &templates);
            }
        }
    })?;
    if let Some((id, templates)) = current {
        matrix.add(id, &templates);
    }
    Ok((matrix, count.of_other_embedders))
}

/// For the owner only: it shows who looks like whom.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write the report {}", path.display()))
}

impl CalibrationReport {
    fn new(
        matrix: &Matrix,
        tally: &Tally,
        rule: &ThresholdRule,
        target: f32,
        marks: Marks,
    ) -> Self {
        let subjects = matrix.subjects.len();
        let threshold = rule.at(subjects).value();
        let (mut genuine, identical) = matrix.genuine();
        genuine.sort_by(f32::total_cmp);
        let mut histogram = Histogram::default();
        for score in &genuine {
            histogram.add(*score);
        }
        let below = genuine.partition_point(|score| *score < threshold) as u64;

        let mut by_subject: Vec<Vec<f32>> = Vec::new();
        let mut last = None;
        for (subject, score) in &tally.best {
            if last.replace(*subject) != Some(*subject) {
                by_subject.push(Vec::new());
            }
            by_subject.last_mut().expect("one was put there").push(*score);
        }
        let mut best: Vec<f32> = tally.best.iter().map(|(_, score)| *score).collect();
        best.sort_by(f32::total_cmp);
        let over = (best.len() - best.partition_point(|score| *score < threshold)) as u64;
        let doubles = tally.pairs.iter().filter(|(.., score)| *score >= marks.double).count();
        // Left out of the searches, so many would bend what is left.
        let settled = doubles * DOUBLES_SHARE <= subjects;
        let suggested = settled.then(|| suggest(&by_subject, f64::from(target))).flatten();
        let at_one_percent =
            ThresholdRule { fpir: 0.01, fixed: None, ..*rule }.at(subjects).value();
        let id = |at: u32| matrix.subjects[at as usize].to_string();
        let look_alike = |(one, other, score): &(u32, u32, f32)| LookAlike {
            subjects: [id(*one), id(*other)],
            score: *score,
            what: match *score {
                score if score >= marks.double => What::Double,
                score if score >= threshold => What::Match,
                _ => What::Near,
            },
        };
        Self {
            site: String::new(),
            device: String::new(),
            at: String::new(),
            embedder: String::new(),
            subjects,
            references: matrix.references,
            single_reference: matrix.single,
            references_of_other_embedders: 0,
            fpir_target: target,
            fpir_in_force: rule.fpir,
            threshold,
            threshold_fixed: rule.fixed.is_some(),
            genuine: Genuine {
                pairs: genuine.len(),
                identical,
                fnmr: Share::new(below, genuine.len() as u64, (subjects - matrix.single) as u64),
                lowest: genuine.first().copied(),
                median: genuine.get(genuine.len() / 2).copied(),
                histogram,
            },
            impostor: Impostor {
                comparisons: tally.comparisons,
                sampled: tally.sampled,
                highest: (tally.comparisons > 0).then_some(tally.highest),
                histogram: tally.histogram.clone(),
            },
            search: Searches { fpir: Share::new(over, best.len() as u64, by_subject.len() as u64) },
            suggested,
            suggested_fpir: suggested
                .filter(|_| rule.fixed.is_none())
                .and_then(|it| fpir_for(it.threshold, at_one_percent, rule.per_decade)),
            doubles,
            look_alikes: tally.pairs.iter().take(LISTED_MAX).map(look_alike).collect(),
            best,
        }
    }

    /// The share of searches that found somebody else, over the threshold.
    pub fn fpir_curve(&self) -> Vec<(f64, f64)> {
        let all = self.best.len().max(1) as f64;
        let points = self.best.iter().enumerate();
        points
            .map(|(below, score)| (f64::from(*score), (self.best.len() - below) as f64 / all))
            .collect()
    }

    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let between = |it: &Share| {
            format!("{} ({} to {})", percent(it.value()), percent(it.low), percent(it.high))
        };
        let mut rows = vec![
            ("gallery", format!("{} subjects, {} references", self.subjects, self.references)),
            ("with one reference only", format!("{} subjects", self.single_reference)),
        ];
        if self.references_of_other_embedders > 0 {
            rows.push((
                "of other embedders",
                format!("{} references, not compared", self.references_of_other_embedders),
            ));
        }
        let by = if self.threshold_fixed {
            "set by hand".to_owned()
        } else {
            format!("by the rule, FPIR aimed at {}", percent(f64::from(self.fpir_in_force)))
        };
        rows.push(("threshold in force", format!("{:.3} ({by})", self.threshold)));
        rows.push(("target (FPIR)", percent(f64::from(self.fpir_target))));
        rows.push((
            "pairs of one person",
            match (self.genuine.lowest, self.genuine.median) {
                (Some(lowest), Some(median)) => {
                    format!("{}: lowest {lowest:.3}, median {median:.3}", self.genuine.pairs)
                }
                _ => "none".into(),
            },
        ));
        if self.genuine.identical > 0 {
            rows.push((
                "one photograph twice",
                format!("{} pairs, left out", self.genuine.identical),
            ));
        }
        if self.genuine.pairs > 0 {
            rows.push(("of them below the threshold", between(&self.genuine.fnmr)));
        }
        let sample = if self.impostor.sampled { " (a sample)" } else { "" };
        let highest =
            self.impostor.highest.map_or(String::new(), |it| format!(", highest {it:.3}"));
        rows.push((
            "pairs of different people",
            format!("{}{sample}{highest}", self.impostor.comparisons),
        ));
        let fpir = &self.search.fpir;
        rows.push(("searches by somebody else", format!("{}{sample}", fpir.of)));
        rows.push(("found somebody (FPIR)", between(fpir)));
        rows.push((
            "threshold for the target",
            match &self.suggested {
                Some(it) => {
                    let how = if it.method == Method::Tail {
                        ", by the tail: too few searches to count"
                    } else {
                        ""
                    };
                    format!("{:.3} ({:.3} to {:.3}{how})", it.threshold, it.low, it.high)
                }
                None if self.subjects >= SUBJECTS_MIN => "not known: too many doubles".into(),
                None => format!("not known: {SUBJECTS_MIN} subjects are needed"),
            },
        ));
        rows
    }

    pub fn advice(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.doubles > 0 {
            lines.push(format!(
                "{} pairs look like one person enrolled twice. They are left out of the figures for searches; settle them first.",
                self.doubles
            ));
        }
        if self.single_reference * 2 > self.subjects {
            lines.push(
                "Most people have one reference: the figures for pairs of one person rest on few. A second photograph, from \
                 another day, is worth more than any threshold."
                    .into(),
            );
        }
        if self.genuine.pairs > 0 {
            lines.push(
                "A search takes the best of a person's references and the best samples of a track: it misses fewer than single pairs \
                 fall below the threshold."
                    .into(),
            );
        }
        lines.push(match &self.suggested {
            None if self.subjects >= SUBJECTS_MIN => "With so many doubles nothing is known of strangers: keep the shipped rule until they are settled.".into(),
            None => format!("There are fewer than {SUBJECTS_MIN} people: keep the shipped rule."),
            Some(it) if it.low <= self.threshold && self.threshold <= it.high => {
                "The threshold in force fits these people: nothing to set.".into()
            }
            Some(it) if it.low > self.threshold => format!(
                "These people are more alike than those the rule was measured on: at {:.3} strangers are taken for somebody more often \
                 than aimed at. Raise it to {:.3}.",
                self.threshold, it.threshold
            ),
            Some(it) => format!(
                "These people are less alike than those the rule was measured on: {:.3} would do, and fewer would have to look again. \
                 Strangers may differ from them: be careful.",
                it.threshold
            ),
        });
        lines
    }

    /// What to set, where that is asked for.
    pub fn config_lines(&self) -> Option<String> {
        let it = self.suggested.filter(|it| self.threshold < it.low || it.high < self.threshold)?;
        let follow = self.suggested_fpir.map(|fpir| {
            format!(
                "fpir = {}   # gives {:.3} at this size, and follows the gallery as it grows\n",
                significant(fpir),
                it.threshold
            )
        });
        let fixed =
            format!("threshold = {:.3}   # fixed, whatever the gallery's size", it.threshold);
        Some(format!(
            "[recognition]\n{}",
            follow.map_or(fixed.clone(), |follow| format!("{follow}# or: {fixed}"))
        ))
    }

    fn print(&self, html: Option<&Path>) {
        print!("{}", rows("Calibration on the people enrolled here", &self.rows()));
        println!("\n{}", self.bars());
        self.advice().iter().for_each(|line| println!("{line}"));
        if let Some(lines) = self.config_lines() {
            println!("\n{lines}");
        }
        if !self.look_alikes.is_empty() {
            println!("\nLook-alikes:");
            let row = |it: &LookAlike| {
                vec![
                    it.subjects[0].clone(),
                    it.subjects[1].clone(),
                    format!("{:.3}", it.score),
                    it.what.words().into(),
                ]
            };
            let rows: Vec<_> = self.look_alikes.iter().take(LISTED).map(row).collect();
            print!("{}", table::render(&["subject", "subject", "score", "what to do"], &rows));
            if self.look_alikes.len() > LISTED {
                println!("… and more: --html or --json has up to {LISTED_MAX}");
            }
        }
        if let Some(path) = html {
            println!("\nWith charts: {}", path.display());
        }
    }

    /// Both histograms side by side, each by its own highest share.
    fn bars(&self) -> String {
        let all = |histogram: &Histogram| -> Vec<(f32, f64)> {
            let shares: Vec<_> = histogram.shares().collect();
            shares.chunks(2).map(|it| (it[0].0, it.iter().map(|(_, share)| share).sum())).collect()
        };
        let different = all(&self.impostor.histogram);
        let same = all(&self.genuine.histogram);
        let highest =
            |shares: &[(f32, f64)]| shares.iter().map(|(_, share)| *share).fold(1e-9, f64::max);
        let most_different = highest(&different);
        let most_same = highest(&same);
        let bar = |share: f64, most: f64| "█".repeat((share / most * 28.0).ceil() as usize);
        let mut text =
            format!("{:>6}  {:<30} {:<30}\n", "score", "different people", "the same person");
        let from = different.iter().position(|(from, _)| *from >= -0.001).unwrap_or(0);
        let width = different.get(1).map_or(0.04, |it| it.0 - different[0].0);
        for (line, (low, share)) in different.iter().enumerate().skip(from).take(LINES + 1) {
            let mark =
                if (*low..*low + width).contains(&self.threshold) { "◀ threshold" } else { "" };
            let one = bar(*share, most_different);
            let other = bar(same[line].1, most_same);
            text.push_str(format!("{low:>6.2}  {one:<30} {other:<30}{mark}").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Two digits that count.
fn significant(value: f64) -> String {
    let digits = (-value.log10().floor()).max(0.0) as usize + 1;
    format!("{value:.digits$}")
}
