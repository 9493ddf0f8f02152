//! From photographs to references: each judged with a reason, and the face compared with everybody
//! already enrolled.
//!
//! Only computes; `record` stores what comes out. A photograph is decoded, judged and dropped here.

pub mod camera;
pub mod choose;

use crate::ids::SubjectId;
use crate::recognise::decision::DecisionSettings;
use crate::recognise::engine::{EngineError, FaceEngine};
use crate::recognise::face::Template;
use crate::recognise::gallery::Gallery;
use crate::recognise::picture::{Picture, PictureLimits};
use crate::recognise::quality::{self, Flaw, QualityBounds};
use crate::recognise::stance::Stance;
use crate::recognise::still::{self, FoundFace};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EnrolSettings {
    /// What a sample must have to become a reference.
    pub reference: QualityBounds,
    /// Score with the subject's other photographs below which one shows another person.
    pub same_person_min: f32,
    /// How far above the identification threshold another subject's score must lie to be called a
    /// duplicate.
    pub duplicate_margin: f32,
    /// How far below the identification threshold another subject's score may lie and still be reported as a
    /// look-alike's.
    pub look_alike_margin: f32,
    /// References a subject keeps at most, of this embedder.
    pub references_max: usize,
    /// A subject whose longest template is shorter than this before it is normalised is missed more
    /// often; 0.0 where that is not known (manifest).
    pub length_weak: f32,
    /// Thresholds with which duplicates and look-alikes are found.
    pub decision: DecisionSettings,
    pub picture: PictureLimits,
}

/// Why a photograph made no reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    NoFace,
    SeveralFaces,
    Flaw(Flaw),
    DecodeError(String),
    OtherPerson,
}

/// What became of one photograph.
#[derive(Clone, Debug)]
pub enum Judged {
    Accepted { template: Template, quality: f32 },
    Rejected(Reason),
}

/// What became of an enrolment.
#[derive(Debug)]
pub struct Judgement {
    /// One for each photograph, in their order.
    pub photographs: Vec<Judged>,
    /// Another subject who already has this face.
    pub duplicate_of: Option<SubjectId>,
    /// Other subjects near the threshold or above, the most alike first: they may be taken for one
    /// another.
    pub look_alikes: Vec<(SubjectId, f32)>,
    /// References the subject keeps at most.
    pub references_max: usize,
    /// Whether even the best of the accepted photographs shows little of the face: another one is
    /// wanted.
    pub is_weak: bool,
}

/// Look-alikes reported at most.
const LOOK_ALIKES_MAX: usize = 5;

impl Judgement {
    pub fn accepted(&self) -> impl Iterator<Item = (&Template, f32)> {
        self.photographs.iter().filter_map(|judged| match judged {
            Judged::Accepted { template, quality } => Some((template, *quality)),
            Judged::Rejected(_) => None,
        })
    }
}

/// Another face is a passer-by's when it has less than this share of the main one's prominence
/// (size, less the further from the centre). Two people side by side have about the same; of those
/// behind somebody in a press photograph (faces-open) the largest has 0.46.
const BYSTANDER_PROMINENCE: f32 = 0.5;

/// Judges the photographs of one subject.
pub fn judge<'a>(
    engine: &mut dyn FaceEngine,
    gallery: &Gallery,
    subject: &SubjectId,
    replace: bool,
    photographs: impl IntoIterator<Item = &'a [u8]>,
    settings: &EnrolSettings,
) -> Result<Judgement, EngineError> {
    let judged =
        photographs.into_iter().map(|photograph| judge_photograph(engine, photograph, settings));
    Ok(conclude(judged.collect::<Result<_, _>>()?, gallery, subject, replace, settings))
}

/// Combines photographs that were each judged alone. Added photographs must show the same person as
/// the subject's references; with `replace` the references are dropped and not compared.
pub fn conclude(
    mut judged: Vec<Judged>,
    gallery: &Gallery,
    subject: &SubjectId,
    replace: bool,
    settings: &EnrolSettings,
) -> Judgement {
    if !replace {
        refuse_strangers(&mut judged, gallery, subject, settings.same_person_min);
    }
    refuse_other_persons(&mut judged, settings.same_person_min);
    let threshold = settings.decision.threshold.at(gallery.subjects()).value();
    let partial_offset = settings.decision.partial_offset(gallery.subjects());
    let accepted = judged.iter().filter_map(|judged| match judged {
        Judged::Accepted { template, .. } => Some(template),
        Judged::Rejected(_) => None,
    });
    // Duplicates must be found even if their threshold is below that of look-alikes.
    let floor = threshold + settings.duplicate_margin.min(-settings.look_alike_margin);
    let mut look_alikes: Vec<(SubjectId, f32)> = Vec::new();
    for other in accepted.flat_map(|it| gallery.alike(it, floor, partial_offset, subject)) {
        match look_alikes.iter_mut().find(|(id, _)| *id == other.subject.id) {
            Some((_, score)) => *score = score.max(other.score),
            None => look_alikes.push((other.subject.id.clone(), other.score)),
        }
    }
    look_alikes.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    look_alikes.truncate(LOOK_ALIKES_MAX);
    let is_duplicate =
        |(_, score): &&(SubjectId, f32)| *score >= threshold + settings.duplicate_margin;
    let duplicate_of = look_alikes.first().filter(is_duplicate).map(|(id, _)| id.clone());
    let lengths = judged.iter().filter_map(|judged| match judged {
        Judged::Accepted { template, .. } => Some(template.length()),
        Judged::Rejected(_) => None,
    });
    let longest = lengths.max_by(f32::total_cmp);
    Judgement {
        is_weak: longest.is_some_and(|length| length < settings.length_weak),
        photographs: judged,
        duplicate_of,
        look_alikes,
        references_max: settings.references_max,
    }
}

/// Judges one photograph by itself.
pub fn judge_photograph(
    engine: &mut dyn FaceEngine,
    photograph: &[u8],
    settings: &EnrolSettings,
) -> Result<Judged, EngineError> {
    let refused = |reason| Ok(Judged::Rejected(reason));
    let picture = match Picture::decode(photograph, settings.picture) {
        Ok(picture) => picture,
        Err(error) => return refused(Reason::DecodeError(error.to_string())),
    };
    let faces = still::faces(engine, &picture)?;
    let Some(main) = faces.first() else {
        return refused(Reason::NoFace);
    };
    let prominence = |found: &FoundFace| still::prominence(&found.detection, &picture);
    let rival = |other: &FoundFace| prominence(other) > BYSTANDER_PROMINENCE * prominence(main);
    if faces[1..].iter().any(rival) {
        return refused(Reason::SeveralFaces);
    }
    let quality = quality::measure(&main.sample);
    if let Some(flaw) = settings.reference.flaw_of(&quality, main.stance < Stance::REFERENCE_MIN) {
        return refused(Reason::Flaw(flaw));
    }
    match still::template(engine, &main.sample)? {
        Some(template) => Ok(Judged::Accepted { template, quality: quality::rank(&quality) }),
        None => refused(Reason::NoFace),
    }
}

/// Refuses what does not agree with any of the subject's own references, where it has some.
fn refuse_strangers(
    judged: &mut [Judged],
    gallery: &Gallery,
    subject: &SubjectId,
    same_person_min: f32,
) {
    for judged in judged {
        if let Judged::Accepted { template, .. } = judged
            && gallery.own_score(template, subject).is_some_and(|score| score < same_person_min)
        {
            *judged = Judged::Rejected(Reason::OtherPerson);
        }
    }
}

/// Keeps the largest group that agrees with one of its members, and rejects the others.
fn refuse_other_persons(judged: &mut [Judged], same_person_min: f32) {
    let templates: Vec<(usize, Template)> = judged
        .iter()
        .enumerate()
        .filter_map(|(index, judged)| match judged {
            Judged::Accepted { template, .. } => Some((index, template.clone())),
            Judged::Rejected(_) => None,
        })
        .collect();
    let agrees = |a: &Template, b: &Template| a.compare(b) >= same_person_min;
    let followers = |(_, middle): &&(usize, Template)| {
        templates.iter().filter(|(_, t)| agrees(middle, t)).count()
    };
    // The first of equals, so that the first photograph decides when two disagree.
    let Some((_, middle)) = templates.iter().rev().max_by_key(followers) else {
        return;
    };
    for (index, template) in &templates {
        if !agrees(middle, template) {
            judged[*index] = Judged::Rejected(Reason::OtherPerson);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(x: f32, y: f32) -> Judged {
        Judged::Accepted { template: Template::normalised(vec![x, y, 0.1]).unwrap(), quality: 1.0 }
    }

    fn check(judged: &mut [Judged], expected: &[bool]) {
        refuse_other_persons(judged, 0.5);
        let kept: Vec<_> = judged.iter().map(|it| matches!(it, Judged::Accepted { .. })).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn photograph_of_another_person_is_rejected() {
        check(
            &mut [accepted(1.0, 0.0), accepted(0.9, 0.1), accepted(0.0, 1.0)],
            &[true, true, false],
        );
        check(
            &mut [accepted(0.0, 1.0), accepted(0.9, 0.1), accepted(1.0, 0.0)],
            &[false, true, true],
        );
        check(&mut [accepted(1.0, 0.0), accepted(0.0, 1.0)], &[true, false]);
        check(&mut [Judged::Rejected(Reason::NoFace), accepted(0.0, 1.0)], &[false, true]);
        check(&mut [], &[]);
    }
}
