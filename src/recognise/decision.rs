//! From the evidence of a track to a decision: who is it, if anybody.

use std::sync::Arc;

use crate::recognise::face::{Template, Threshold};
use crate::recognise::gallery::{Gallery, Subject};

/// How the threshold follows the gallery's size.
///
/// Per comparison a stranger's score passes the threshold with probability FMR; against N subjects
/// with about `1 − (1 − FMR)^N` (FPIR). The tail of the impostor scores falls off exponentially, so
/// for the same FPIR the threshold rises by a constant for each tenfold gallery, and by the same
/// constant for each tenth of the target FPIR.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdRule {
    /// The threshold at FPIR 1 % with `subjects` enrolled, as measured (manifest).
    pub threshold: f32,
    pub subjects: f32,
    /// Rise for each tenfold gallery or tenth of FPIR (manifest).
    pub per_decade: f32,
    /// The false positive identification rate that is aimed at, 0.0..1.0 (configuration).
    pub fpir: f32,
    /// Set by hand: replaces the rule.
    pub fixed: Option<Threshold>,
}

impl ThresholdRule {
    /// The threshold for a gallery of so many subjects.
    pub fn at(&self, subjects: usize) -> Threshold {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let decades = (subjects.max(1) as f32 / self.subjects).log10() - (self.fpir / 0.01).log10();
        let value = self.threshold + self.per_decade * decades;
        Threshold::new(value.clamp(0.0, 0.95)).expect("clamped into the range of a cosine")
    }
}

/// How much evidence a decision needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecisionSettings {
    pub threshold: ThresholdRule,
    /// Good samples that a decision needs.
    pub samples_min: usize,
    /// With a score this far above the threshold one sample less is enough.
    pub early_margin: f32,
    /// Least distance to the second-best subject, so that noise does not decide between look-alikes.
    pub margin_min: f32,
    /// Good samples without a match after which a face is a stranger's.
    pub unknown_samples: usize,
}

/// What a track has come to.
#[derive(Clone, Debug)]
pub enum Decision {
    Identified(Identification),
    /// Matched nobody, after enough good samples.
    Unknown {
        best_score: Option<f32>,
        threshold: f32,
        samples: usize,
    },
    Undecided,
}

#[derive(Clone, Debug)]
pub struct Identification {
    pub subject: Arc<Subject>,
    pub score: f32,
    pub second_score: Option<f32>,
    pub threshold: f32,
    /// Samples the decision rests on.
    pub samples: usize,
}

/// The good samples of one track, as templates.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    templates: Vec<Template>,
}

/// Samples kept for a track: more change the mean by less than a comparison's noise.
const TEMPLATES_MAX: usize = 8;

impl Evidence {
    pub fn add(&mut self, template: Template) {
        if self.templates.len() == TEMPLATES_MAX {
            self.templates.remove(0);
        }
        self.templates.push(template);
    }

    pub fn samples(&self) -> usize {
        self.templates.len()
    }

    /// How alike a new template is to what the track has seen; `None` before the first.
    pub fn agreement(&self, template: &Template) -> Option<f32> {
        Template::mean(&self.templates).map(|mean| mean.compare(template))
    }

    /// Searches with the mean template, and asks that the single samples agree with what it finds.
    pub fn decide(&self, gallery: &Gallery, settings: &DecisionSettings) -> Decision {
        let Some(mean) = Template::mean(&self.templates) else {
            return Decision::Undecided;
        };
        let samples = self.samples();
        let threshold = settings.threshold.at(gallery.subjects());
        let found = gallery.search(&mean);
        let best_score = found.best.as_ref().map(|best| best.score);
        if let Some(best) = found.best.filter(|best| threshold.matches(best.score)) {
            let margin = found.second_score.map_or(f32::INFINITY, |second| best.score - second);
            let early = usize::from(best.score >= threshold.value() + settings.early_margin);
            let enough = samples + early >= settings.samples_min;
            if enough
                && margin >= settings.margin_min
                && self.agree(gallery, &best.subject, threshold)
            {
                return Decision::Identified(Identification {
                    subject: best.subject,
                    score: best.score,
                    second_score: found.second_score,
                    threshold: threshold.value(),
                    samples,
                });
            }
            return Decision::Undecided;
        }
        if samples >= settings.unknown_samples {
            return Decision::Unknown { best_score, threshold: threshold.value(), samples };
        }
        Decision::Undecided
    }

    /// Whether most single samples point to the same subject, and none clearly to another.
    fn agree(&self, gallery: &Gallery, subject: &Subject, threshold: Threshold) -> bool {
        let mut with = 0;
        for template in &self.templates {
            match gallery.search(template).best {
                Some(best) if best.subject.id == subject.id => with += 1,
                Some(best) if threshold.matches(best.score) => return false,
                _ => {}
            }
        }
        with * 2 > self.templates.len()
    }
}

/// One picture is all there is (a command's image): the same threshold and margin, but a single
/// sample decides.
pub fn decide_still(probe: &Template, gallery: &Gallery, settings: &DecisionSettings) -> Decision {
    let threshold = settings.threshold.at(gallery.subjects());
    let found = gallery.search(probe);
    let best_score = found.best.as_ref().map(|best| best.score);
    match found.best {
        Some(best)
            if threshold.matches(best.score)
                && found
                    .second_score
                    .is_none_or(|second| best.score - second >= settings.margin_min) =>
        {
            Decision::Identified(Identification {
                subject: best.subject,
                score: best.score,
                second_score: found.second_score,
                threshold: threshold.value(),
                samples: 1,
            })
        }
        _ => Decision::Unknown { best_score, threshold: threshold.value(), samples: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, SubjectId};

    fn rule(fixed: Option<f32>) -> ThresholdRule {
        let fixed = fixed.and_then(Threshold::new);
        ThresholdRule { threshold: 0.43, subjects: 144.0, per_decade: 0.055, fpir: 0.01, fixed }
    }

    fn settings() -> DecisionSettings {
        DecisionSettings {
            threshold: rule(Some(0.40)),
            samples_min: 3,
            early_margin: 0.10,
            margin_min: 0.02,
            unknown_samples: 5,
        }
    }

    /// Two subjects on the first two axes of a plane: a probe's score with each is simply its
    /// coordinate.
    fn gallery() -> Gallery {
        let axis = |x, y| Template::normalised(vec![x, y, 0.0]).unwrap();
        let subject =
            |id: &str| Subject { id: SubjectId::new(id).unwrap(), name: Name::new(id).unwrap() };
        Gallery::new(3).with(subject("a"), &[axis(1.0, 0.0)]).with(subject("b"), &[axis(0.0, 1.0)])
    }

    fn probe(a: f32, b: f32) -> Template {
        let rest = (1.0 - a * a - b * b).max(0.0).sqrt();
        Template::normalised(vec![a, b, rest]).unwrap()
    }

    fn check(samples: &[(f32, f32)], expected: &str) {
        let mut evidence = Evidence::default();
        for (a, b) in samples {
            evidence.add(probe(*a, *b));
        }
        let message = match evidence.decide(&gallery(), &settings()) {
            Decision::Identified(it) => it.subject.id.to_string(),
            Decision::Unknown { .. } => "unknown".into(),
            Decision::Undecided => "undecided".into(),
        };
        assert_eq!(message, expected, "{samples:?}");
    }

    #[test]
    fn the_decision_follows_the_evidence() {
        check(&[], "undecided");
        check(&[(0.6, 0.1)], "undecided"); // one sample is never enough
        check(&[(0.45, 0.1); 2], "undecided"); // a match, but not clear enough for two
        check(&[(0.6, 0.1); 2], "a"); // clear: early
        check(&[(0.4001, 0.1); 3], "a"); // equality counts
        check(&[(0.39, 0.1); 4], "undecided");
        check(&[(0.39, 0.1); 5], "unknown");
        check(&[(0.50, 0.49); 5], "undecided"); // look-alikes stay undecided
        // a sample that clearly matches another
        check(&[(0.1, 0.7), (0.7, 0.1), (0.7, 0.1)], "undecided");
    }

    #[test]
    fn threshold_depends_on_gallery_and_fpir() {
        let at = |subjects, fpir| ThresholdRule { fpir, ..rule(None) }.at(subjects).value();
        assert!((at(144, 0.01) - 0.43).abs() < 1e-6);
        assert!((at(1440, 0.01) - 0.485).abs() < 1e-6);
        assert!((at(144, 0.001) - 0.485).abs() < 1e-6);
        assert!((rule(Some(0.5)).at(1_000_000).value() - 0.5).abs() < 1e-6);
    }
}
