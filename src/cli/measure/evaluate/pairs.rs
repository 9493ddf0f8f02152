//! `rollcall evaluate pairs`: verification.

use anyhow::ensure;
use serde::Serialize;

use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::metrics::{NO_SCORE, Verification};
use crate::cli::measure::evaluate::protocol;
use crate::cli::measure::evaluate::protocol::Pair;
use crate::cli::measure::evaluate::{PairsArgs, percent, rows};
use crate::cli::measure::plot::{Axis, Chart, Mark, Scale, Series, page};
use crate::recognise::decision::ThresholdRule;
use crate::vision::VisionSettings;
use crate::vision::manifest::TemplateSpec;

#[derive(Debug, Serialize)]
pub struct PairsReport {
    pub pairs: usize,
    pub photographs: usize,
    /// Share of the photographs in which no face was found.
    pub failure_to_acquire: f64,
    pub eer: f64,
    pub accuracy_best: f64,
    pub threshold_best: f32,
    pub accuracy_shipped: f64,
    #[serde(rename = "tmr_at_fmr_1e-2")]
    pub tmr_at_fmr_2: f64,
    #[serde(rename = "tmr_at_fmr_1e-3")]
    pub tmr_at_fmr_3: f64,
    pub threshold_shipped: f32,
    pub fmr_shipped: f64,
    pub fnmr_shipped: f64,
    #[serde(skip)]
    scores: Verification,
}

/// The threshold for one comparison that the manifest implies: a verification is a search in a
/// gallery of one, so the rule at one subject, aimed at FMR 1 %. Not the configured FPIR, which is
/// the risk taken for a whole gallery.
pub fn verification_threshold(spec: &TemplateSpec) -> f32 {
    let rule = ThresholdRule {
        threshold: spec.threshold,
        subjects: spec.threshold_subjects,
        per_decade: spec.threshold_per_decade,
        fpir: 0.01,
        fixed: None,
    };
    rule.at(1).value()
}

pub fn evaluate(args: &PairsArgs, vision: &VisionSettings) -> anyhow::Result<PairsReport> {
    let pairs: Vec<Pair> = protocol::read(&args.pairs)?;
    let same = pairs.iter().filter(|pair| pair.same).count();
    ensure!(
        same > 0 && same < pairs.len(),
        "the list must hold pairs of the same person and of different people"
    );
    let mut workers = Workers::load(vision, args.common.workers())?;
    let files = pairs.iter().flat_map(|pair| [pair.file1.as_str(), pair.file2.as_str()]);
    let templates = workers.templates(&args.common.images, files)?;
    let mut mated = Vec::new();
    let mut non_mated = Vec::new();
    for pair in &pairs {
        let score = match (&templates[&pair.file1], &templates[&pair.file2]) {
            (Some(one), Some(other)) => one.compare(other),
            _ => NO_SCORE,
        };
        if pair.same { mated.push(score) } else { non_mated.push(score) }
    }
    let failed = templates.values().filter(|template| template.is_none()).count();
    let scores = Verification::new(mated, non_mated);
    let (threshold_best, accuracy_best) = scores.best_accuracy();
    let threshold_shipped = verification_threshold(&workers.template_spec());
    Ok(PairsReport {
        pairs: pairs.len(),
        photographs: templates.len(),
        failure_to_acquire: failed as f64 / templates.len() as f64,
        eer: scores.eer(),
        accuracy_best,
        threshold_best,
        accuracy_shipped: scores.accuracy(threshold_shipped),
        tmr_at_fmr_2: scores.tmr_at_fmr(1e-2),
        tmr_at_fmr_3: scores.tmr_at_fmr(1e-3),
        threshold_shipped,
        fmr_shipped: scores.fmr(threshold_shipped),
        fnmr_shipped: scores.fnmr(threshold_shipped),
        scores,
    })
}

impl PairsReport {
    pub(crate) fn table(&self) -> String {
        let at =
            |share: f64, threshold: f32| format!("{} at threshold {threshold:.3}", percent(share));
        rows(
            "Verification (one comparison a pair)",
            &[
                ("pairs", self.pairs.to_string()),
                (
                    "failure to acquire",
                    format!(
                        "{} of {} photographs",
                        percent(self.failure_to_acquire),
                        self.photographs
                    ),
                ),
                ("equal error rate", percent(self.eer)),
                ("accuracy, best", at(self.accuracy_best, self.threshold_best)),
                ("accuracy, shipped", at(self.accuracy_shipped, self.threshold_shipped)),
                ("TMR at FMR 1 %", at(self.tmr_at_fmr_2, self.scores.threshold_at_fmr(1e-2))),
                ("TMR at FMR 0.1 %", at(self.tmr_at_fmr_3, self.scores.threshold_at_fmr(1e-3))),
                ("FMR, shipped threshold", percent(self.fmr_shipped)),
                ("FNMR, shipped threshold", percent(self.fnmr_shipped)),
            ],
        )
    }

    pub(crate) fn plot(&self) -> String {
        let thresholds = self.scores.thresholds();
        let over = |rate: &dyn Fn(f32) -> f64| {
            thresholds.iter().map(|t| (f64::from(*t), rate(*t))).collect()
        };
        let shipped = f64::from(self.threshold_shipped);
        let rates = Chart {
            title: format!("Error rates of {} pairs (EER {})", self.pairs, percent(self.eer)),
            x: Axis::new("threshold (cosine)", Scale::Linear, -0.2, 1.0),
            y: Axis::new("error rate", Scale::LogPercent, 1e-3, 1.0),
            series: vec![
                Series::new(
                    Mark::Line,
                    "FMR: different people match",
                    over(&|t| self.scores.fmr(t)),
                ),
                Series::new(
                    Mark::Line,
                    "FNMR: the same person does not",
                    over(&|t| self.scores.fnmr(t)),
                ),
                Series::new(
                    Mark::Dashes,
                    format!("shipped threshold {shipped:.2}"),
                    vec![(shipped, 1e-3), (shipped, 1.0)],
                ),
            ],
        };
        let roc =
            thresholds.iter().map(|t| (self.scores.fmr(*t), 1.0 - self.scores.fnmr(*t))).collect();
        let at_shipped = (self.fmr_shipped, 1.0 - self.fnmr_shipped);
        let roc = Chart {
            title: "ROC".into(),
            x: Axis::new("false match rate", Scale::LogPercent, 1e-3, 1.0),
            y: Axis::new("true match rate", Scale::Percent, 0.9, 1.0),
            series: vec![
                Series::new(Mark::Line, "TMR over FMR", roc),
                Series::new(Mark::Dot, "shipped threshold", vec![at_shipped]),
            ],
        };
        page(&[rates, roc])
    }
}
