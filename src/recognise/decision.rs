//! From the evidence of a track to a decision: who is it, if anybody.

use std::sync::Arc;

use crate::ids::SubjectId;
use crate::recognise::face::{Template, Threshold};
use crate::recognise::gallery::{Candidate, Candidates, Gallery, Subject};

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
    /// The false positive identification rate that is aimed at, 0.0..1.0 (configuration): of a visit,
    /// and of a still picture.
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

/// When the first part of a composite embedder decides alone, so that the second, which costs
/// several times as much, need not be made.
///
/// The first part identifies at or above the threshold that its rule gives for an FPIR
/// `above_decades` decades below the one aimed at: what it lets pass wrongly is then a small share
/// of what is aimed at. It finds nobody where its best score lies more than `below` under its
/// threshold: so rarely does the second part raise such a score to a match that FNIR does not show
/// it. Both are measured (manifest; docs/accuracy.md).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyExit {
    /// The threshold of the first part by itself; also that of subjects who have no second part.
    pub rule: ThresholdRule,
    /// Decades of FPIR, 0.0 or more.
    pub above_decades: f32,
    /// A distance of cosines, 0.0..=2.0.
    pub below: f32,
}

impl EarlyExit {
    /// From this score of the first part on, it identifies alone in a gallery of so many subjects.
    pub fn upper(&self, subjects: usize) -> f32 {
        self.rule.at(subjects).value() + self.rule.per_decade * self.above_decades
    }

    /// Below this score of the first part, a face is nobody's.
    pub fn lower(&self, subjects: usize) -> f32 {
        self.rule.at(subjects).value() - self.below
    }
}

/// How much evidence a decision needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecisionSettings {
    pub threshold: ThresholdRule,
    /// `None` where the embedder is a single network.
    pub early_exit: Option<EarlyExit>,
    /// Good samples that a decision needs.
    pub samples_min: usize,
    /// With a score this far above the threshold one sample less is enough.
    pub early_margin: f32,
    /// Least distance to the second-best subject, so that noise does not decide between look-alikes.
    pub margin_min: f32,
    /// Good samples without a match after which a face is a stranger's.
    pub unknown_samples: usize,
    /// A sample whose first part is shorter than this before it is normalised shows too little of
    /// the face to make it a stranger's; 0.0 for none (manifest).
    pub length_min: f32,
}

impl DecisionSettings {
    /// The same for another target, of both parts.
    #[must_use]
    pub fn with_fpir(self, fpir: f32) -> Self {
        let rule = |rule: ThresholdRule| ThresholdRule { fpir, ..rule };
        let early_exit = self.early_exit.map(|it| EarlyExit { rule: rule(it.rule), ..it });
        Self { threshold: rule(self.threshold), early_exit, ..self }
    }

    /// The threshold of the first part alone in a gallery of so many subjects.
    fn first_threshold(&self, subjects: usize) -> Threshold {
        self.early_exit.map_or(self.threshold, |it| it.rule).at(subjects)
    }

    /// What brings the score of a partial reference to the scale of complete ones: the distance of
    /// their thresholds.
    pub fn partial_offset(&self, subjects: usize) -> f32 {
        self.threshold.at(subjects).value() - self.first_threshold(subjects).value()
    }
}

/// What the first part of a probe found in the gallery.
#[derive(Clone, Debug)]
pub struct FirstLook {
    found: Candidates,
    /// Whether it decides alone: the second part need not be made.
    pub is_clear: bool,
}

impl FirstLook {
    /// Whether it identifies this subject as surely as the first part does alone, far above the
    /// threshold of a visit; never for an embedder of a single network.
    pub fn surely_finds(
        &self,
        id: &SubjectId,
        gallery: &Gallery,
        settings: &DecisionSettings,
    ) -> bool {
        let (Some(early), Some(best)) = (&settings.early_exit, &self.found.best) else {
            return false;
        };
        let margin = self.found.second_score.map_or(f32::INFINITY, |second| best.score - second);
        best.subject.id == *id
            && best.score >= early.upper(gallery.subjects())
            && margin >= settings.margin_min
    }

    /// 1.0 where nobody was found.
    fn best_score(&self) -> f32 {
        self.found.best.as_ref().map_or(1.0, |it| it.score)
    }
}

/// Searches with the first part of a probe, and says whether that decides.
pub fn look_first(probe: &Template, gallery: &Gallery, settings: &DecisionSettings) -> FirstLook {
    let found = gallery.search(probe);
    let is_clear = match (&settings.early_exit, &found.best) {
        (Some(early), Some(best)) if gallery.complete_references() > 0 => {
            let subjects = gallery.subjects();
            let margin = found.second_score.map_or(f32::INFINITY, |second| best.score - second);
            best.score < early.lower(subjects)
                || (best.score >= early.upper(subjects) && margin >= settings.margin_min)
        }
        _ => true,
    };
    FirstLook { found, is_clear }
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

/// What a decision compares with: first parts only, or both, on the scale of complete references.
#[derive(Clone, Copy)]
enum Basis {
    First { threshold: Threshold },
    Both { threshold: Threshold, partial_offset: f32 },
}

impl Basis {
    fn first(gallery: &Gallery, settings: &DecisionSettings) -> Self {
        Self::First { threshold: settings.first_threshold(gallery.subjects()) }
    }

    fn both(gallery: &Gallery, settings: &DecisionSettings) -> Self {
        let subjects = gallery.subjects();
        Self::Both {
            threshold: settings.threshold.at(subjects),
            partial_offset: settings.partial_offset(subjects),
        }
    }

    fn threshold(self) -> Threshold {
        match self {
            Self::First { threshold } | Self::Both { threshold, .. } => threshold,
        }
    }

    /// `first_max` is the best score of the probe's first part, where that is known, else 1.0.
    fn search(self, gallery: &Gallery, probe: &Template, first_max: f32) -> Candidates {
        match self {
            Self::First { .. } => gallery.search(probe),
            Self::Both { partial_offset, .. } => {
                gallery.search_complete(probe, partial_offset, first_max)
            }
        }
    }

    /// The identification, with score and threshold of what was compared: those of the first part
    /// where the reference that was found has no other.
    fn identification(self, found: Candidates, samples: usize) -> Option<Identification> {
        let best = found.best?;
        let offset = match self {
            Self::Both { partial_offset, .. } if !best.complete => partial_offset,
            _ => 0.0,
        };
        Some(Identification {
            subject: best.subject,
            score: best.score - offset,
            second_score: found.second_score.map(|score| score - offset),
            threshold: self.threshold().value() - offset,
            samples,
        })
    }
}

/// The good samples of one track, as templates.
///
/// The target FPIR is that of the whole track, a visit. Each sample gives a stranger another chance
/// to be taken for somebody, so the threshold of a decision is that of a stricter target
/// ([`Evidence::stricter`]).
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    templates: Vec<Template>,
    /// Samples that were added, more than are kept.
    added: usize,
}

/// Samples kept for a track: more change the mean by less than a comparison's noise.
const TEMPLATES_MAX: usize = 8;

/// How many times as often as one look the first samples of a track would take a stranger for
/// somebody, at the same threshold: 1.3 to 1.6 times where the samples of a second agree by .85
/// (tests/recognition/visit_rates.rs; docs/accuracy.md), rounded up.
const CHANCES: f32 = 2.0;

impl Evidence {
    pub fn add(&mut self, template: Template) {
        if self.templates.len() == TEMPLATES_MAX {
            self.templates.remove(0);
        }
        self.templates.push(template);
        self.added += 1;
    }

    /// The settings for a decision now: as the samples that are kept are replaced by others, the
    /// chances add up, and the target of each is smaller.
    fn stricter(&self, settings: &DecisionSettings) -> DecisionSettings {
        let renewed = (self.added as f32 / TEMPLATES_MAX as f32).max(1.0);
        settings.with_fpir(settings.threshold.fpir / (CHANCES * renewed))
    }

    /// Puts the complete template of the newest sample in the place of the partial one.
    pub fn complete_newest(&mut self, template: Template) {
        self.templates.pop();
        self.templates.push(template);
    }

    pub fn samples(&self) -> usize {
        self.templates.len()
    }

    /// How alike a new template is to what the track has seen; `None` before the first.
    pub fn agreement(&self, template: &Template) -> Option<f32> {
        Template::mean_by_length(&self.templates).map(|mean| mean.compare(template))
    }

    /// Searches with the mean of the first parts, weighted by their lengths; `None` before the first
    /// sample.
    pub fn look_first(&self, gallery: &Gallery, settings: &DecisionSettings) -> Option<FirstLook> {
        let mean = Template::mean_by_length(&self.templates);
        mean.map(|mean| look_first(&mean, gallery, &self.stricter(settings)))
    }

    /// Searches with the mean template, and asks that the single samples agree with what it finds.
    /// Unless the first look is clear, only samples with both parts count.
    pub fn decide(
        &self,
        look: FirstLook,
        gallery: &Gallery,
        settings: &DecisionSettings,
    ) -> Decision {
        let settings = &self.stricter(settings);
        let complete: Vec<&Template> =
            self.templates.iter().filter(|it| it.is_complete()).collect();
        let mean = Template::mean_by_length(complete.iter().copied());
        let mean = mean.filter(|_| !look.is_clear);
        let Some(mean) = mean else {
            let all: Vec<&Template> = self.templates.iter().collect();
            return conclude(&all, look.found, Basis::first(gallery, settings), gallery, settings);
        };
        let basis = Basis::both(gallery, settings);
        // The look was by the mean of all samples.
        let first_max = if complete.len() == self.samples() { look.best_score() } else { 1.0 };
        let found = basis.search(gallery, &mean, first_max);
        conclude(&complete, found, basis, gallery, settings)
    }
}

/// The decision on what the mean of these samples found.
fn conclude(
    samples: &[&Template],
    found: Candidates,
    basis: Basis,
    gallery: &Gallery,
    settings: &DecisionSettings,
) -> Decision {
    let threshold = basis.threshold();
    let best_score = found.best.as_ref().map(|best| best.score);
    if let Some(best) = found.best.as_ref().filter(|best| threshold.matches(best.score)) {
        let margin = found.second_score.map_or(f32::INFINITY, |second| best.score - second);
        let early = usize::from(best.score >= threshold.value() + settings.early_margin);
        let enough = samples.len() + early >= settings.samples_min;
        let is_sure = enough
            && margin >= settings.margin_min
            && agree(samples, &best.subject, basis, gallery);
        let identification = basis.identification(found, samples.len()).filter(|_| is_sure);
        return identification.map_or(Decision::Undecided, Decision::Identified);
    }
    // Samples that are too short to tell are no evidence of a stranger: look again.
    let telling = samples.iter().filter(|it| it.length() >= settings.length_min).count();
    if telling >= settings.unknown_samples {
        let threshold = threshold.value();
        return Decision::Unknown { best_score, threshold, samples: samples.len() };
    }
    Decision::Undecided
}

/// Whether most single samples point to the same subject, and none clearly to another.
fn agree(samples: &[&Template], subject: &Subject, basis: Basis, gallery: &Gallery) -> bool {
    let mut with = 0;
    for template in samples {
        match basis.search(gallery, template, 1.0).best {
            Some(best) if best.subject.id == subject.id => with += 1,
            Some(best) if basis.threshold().matches(best.score) => return false,
            _ => {}
        }
    }
    with * 2 > samples.len()
}

/// The best candidate for a probe with all parts, as `decide_still` finds it, with its score on the
/// scale of complete references; and whether the second part was needed. For measurements over all
/// thresholds.
pub fn best_candidate(
    probe: &Template,
    gallery: &Gallery,
    settings: &DecisionSettings,
) -> (Option<Candidate>, bool) {
    let look = look_first(probe, gallery, settings);
    let partial_offset = settings.partial_offset(gallery.subjects());
    if look.is_clear || !probe.is_complete() {
        let on_scale = |it: Candidate| Candidate { score: it.score + partial_offset, ..it };
        return (look.found.best.map(on_scale), false);
    }
    (gallery.search_complete(probe, partial_offset, look.best_score()).best, true)
}

/// One picture is all there is (a command's image): the same threshold and margin, but a single
/// sample decides. `look` is what the first part of the probe found; the second part counts where
/// that is not clear and the probe has one.
pub fn decide_still(
    probe: &Template,
    look: FirstLook,
    gallery: &Gallery,
    settings: &DecisionSettings,
) -> Decision {
    let (basis, found) = if look.is_clear || !probe.is_complete() {
        (Basis::first(gallery, settings), look.found)
    } else {
        let basis = Basis::both(gallery, settings);
        (basis, basis.search(gallery, probe, look.best_score()))
    };
    let threshold = basis.threshold();
    let best_score = found.best.as_ref().map(|best| best.score);
    let is_sure = found.best.as_ref().is_some_and(|best| {
        let apart =
            found.second_score.is_none_or(|second| best.score - second >= settings.margin_min);
        threshold.matches(best.score) && apart
    });
    match basis.identification(found, 1).filter(|_| is_sure) {
        Some(identification) => Decision::Identified(identification),
        None => Decision::Unknown { best_score, threshold: threshold.value(), samples: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;

    fn rule(fixed: Option<f32>) -> ThresholdRule {
        let fixed = fixed.and_then(Threshold::new);
        ThresholdRule { threshold: 0.43, subjects: 144.0, per_decade: 0.055, fpir: 0.01, fixed }
    }

    fn settings() -> DecisionSettings {
        DecisionSettings {
            threshold: rule(Some(0.40)),
            early_exit: None,
            samples_min: 3,
            early_margin: 0.10,
            margin_min: 0.02,
            unknown_samples: 5,
            length_min: 0.0,
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

    fn in_words(evidence: &Evidence, gallery: &Gallery, settings: &DecisionSettings) -> String {
        let look = evidence.look_first(gallery, settings);
        match look.map(|look| evidence.decide(look, gallery, settings)) {
            Some(Decision::Identified(it)) => it.subject.id.to_string(),
            Some(Decision::Unknown { .. }) => "unknown".into(),
            Some(Decision::Undecided) | None => "undecided".into(),
        }
    }

    fn check(samples: &[(f32, f32)], expected: &str) {
        let mut evidence = Evidence::default();
        for (a, b) in samples {
            evidence.add(probe(*a, *b));
        }
        assert_eq!(in_words(&evidence, &gallery(), &settings()), expected, "{samples:?}");
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
    fn short_samples_make_nobody_a_stranger() {
        let settings = DecisionSettings { length_min: 3.0, ..settings() };
        let sample = |a: f32, length: f32| {
            let raw = probe(a, 0.0).as_slice().iter().map(|x| length * x).collect();
            Template::normalised(raw).unwrap()
        };
        let mut evidence = Evidence::default();
        for _ in 0..5 {
            evidence.add(sample(0.2, 2.9));
        }
        assert_eq!(in_words(&evidence, &gallery(), &settings), "undecided");
        // They identify all the same.
        let mut found = Evidence::default();
        for _ in 0..3 {
            found.add(sample(0.6, 2.9));
        }
        assert_eq!(in_words(&found, &gallery(), &settings), "a");
        for _ in 0..5 {
            evidence.add(sample(0.2, 3.1));
        }
        assert_eq!(in_words(&evidence, &gallery(), &settings), "unknown");
    }

    #[test]
    fn threshold_depends_on_gallery_and_fpir() {
        let at = |subjects, fpir| ThresholdRule { fpir, ..rule(None) }.at(subjects).value();
        assert!((at(144, 0.01) - 0.43).abs() < 1e-6);
        assert!((at(1440, 0.01) - 0.485).abs() < 1e-6);
        assert!((at(144, 0.001) - 0.485).abs() < 1e-6);
        assert!((rule(Some(0.5)).at(1_000_000).value() - 0.5).abs() < 1e-6);
    }

    /// Thresholds: both parts 0.42, the first alone 0.43; it decides alone from 0.55 on and below
    /// 0.23.
    fn composite_settings() -> DecisionSettings {
        let both = ThresholdRule { threshold: 0.42, per_decade: 0.05, subjects: 2.0, ..rule(None) };
        let first = ThresholdRule { threshold: 0.43, per_decade: 0.06, ..both };
        let early_exit = Some(EarlyExit { rule: first, above_decades: 2.0, below: 0.2 });
        DecisionSettings { threshold: both, early_exit, ..settings() }
    }

    /// As `probe`, with a second part that scores `second` with subject a and nothing with b.
    fn complete(a: f32, b: f32, second: f32) -> Template {
        probe(a, b).with_second(&probe(second, 0.0), 0.7)
    }

    /// Subject a has both parts, subject b only the first.
    fn composite_gallery() -> Gallery {
        use crate::recognise::face::{Embedder, ModelDigest, Part};
        let part = |of, weight| Part { digest: ModelDigest([of; 32]), dimension: 3, weight };
        let subject =
            |id: &str| Subject { id: SubjectId::new(id).unwrap(), name: Name::new(id).unwrap() };
        Gallery::of(&Embedder::composite(part(1, 0.3), part(2, 0.7)))
            .with(subject("a"), &[complete(1.0, 0.0, 1.0)])
            .with(subject("b"), &[probe(0.0, 1.0)])
    }

    #[test]
    fn clear_first_part_decides_alone() {
        let look = |a, b| look_first(&probe(a, b), &composite_gallery(), &composite_settings());
        for (a, b, clear) in [
            (0.56, 0.0, true),
            (0.54, 0.0, false),
            (0.24, 0.0, false),
            (0.22, 0.0, true),
            (0.56, 0.55, false), // look-alikes
        ] {
            assert_eq!(look(a, b).is_clear, clear, "{a} {b}");
        }
        let alone = composite_gallery().without(&SubjectId::new("a").unwrap());
        let partial = look_first(&probe(0.0, 0.5), &alone, &composite_settings());
        assert!(partial.is_clear, "nobody has a second part to compare with");
    }

    #[test]
    fn second_part_decides_unclear_cases() {
        let decide = |it: &Template| {
            let (gallery, settings) = (composite_gallery(), composite_settings());
            match decide_still(it, look_first(it, &gallery, &settings), &gallery, &settings) {
                Decision::Identified(it) => (it.subject.id.to_string(), it.score, it.threshold),
                Decision::Unknown { best_score, threshold, .. } => {
                    ("unknown".into(), best_score.unwrap(), threshold)
                }
                Decision::Undecided => unreachable!("a still is decided"),
            }
        };
        let check = |probe: &Template, who: &str, score: f32, threshold: f32| {
            let (found, of_found, limit) = decide(probe);
            assert_eq!(found, who);
            assert!((of_found - score).abs() < 1e-5 && (limit - threshold).abs() < 1e-5, "{who}");
        };
        check(&complete(0.40, 0.0, 0.45), "a", 0.3 * 0.40 + 0.7 * 0.45, 0.42);
        check(&complete(0.50, 0.0, 0.30), "unknown", 0.3 * 0.50 + 0.7 * 0.30, 0.42);
        // The first part is clear: the second does not count.
        check(&complete(0.60, 0.0, 0.0), "a", 0.60, 0.43);
        // A reference without the second part is judged by the threshold of the first.
        check(&complete(0.0, 0.44, 0.0), "b", 0.44, 0.43);
    }

    #[test]
    fn unclear_samples_count_only_when_complete() {
        let (gallery, settings) = (composite_gallery(), composite_settings());
        let mut evidence = Evidence::default();
        for _ in 0..3 {
            evidence.add(probe(0.45, 0.0));
        }
        evidence.complete_newest(complete(0.45, 0.0, 0.5));
        assert_eq!(in_words(&evidence, &gallery, &settings), "undecided");
        for _ in 0..2 {
            evidence.add(complete(0.45, 0.0, 0.5));
        }
        assert_eq!(in_words(&evidence, &gallery, &settings), "a");
    }
}
