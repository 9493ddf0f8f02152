//! What a door learns from its own camera: a reference with both parts of a composite embedder, for
//! a subject who has none (`[enrolment] learn`).
//!
//! A wrong reference would be worse than a missing one. So a sample is taken only of a person who is
//! alone before the camera, was found live, and is identified by the first part at a threshold that
//! is stricter than the one of a visit; and once per track and second at most. The sample itself is
//! searched again before it is offered.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Stamp;
use crate::ids::SubjectId;
use crate::recognise::decision::{Decision, DecisionSettings, FirstLook};
use crate::recognise::face::Template;
use crate::recognise::gallery::Gallery;
use crate::recognise::live::FaceObservation;
use crate::recognise::pad::Presentation;

/// Samples that wait to be stored; the next one is dropped.
pub const LEARNED_MAX: usize = 4;
/// The least time between two attempts.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// A complete template of a subject who had none.
#[derive(Debug)]
pub struct LearnedSample {
    pub id: SubjectId,
    pub template: Template,
    /// Of the sample, 0.0..=1.0.
    pub quality: f32,
}

/// Chooses the samples to learn from.
pub struct Learner {
    queue: mpsc::Sender<LearnedSample>,
    attempted: Option<Stamp>,
}

impl Learner {
    pub fn new(queue: mpsc::Sender<LearnedSample>) -> Self {
        Self { queue, attempted: None }
    }

    /// Returns the subject of whom this frame may teach something: the only face of the frame,
    /// identified and live, of somebody who has no complete reference.
    pub fn wanted_subject(
        &mut self,
        faces: usize,
        observations: &[FaceObservation],
        gallery: &Gallery,
        now: &Stamp,
    ) -> Option<SubjectId> {
        let (1, [observation]) = (faces, observations) else { return None };
        let Decision::Identified(found) = &observation.decision else { return None };
        let subject = gallery.subject(&found.subject.id)?;
        let is_live = observation.presentation == Presentation::Live;
        if !is_live || gallery.is_complete(&subject.id) {
            return None;
        }
        if self.attempted.is_some_and(|last| now.since(&last) < ATTEMPT_INTERVAL) {
            return None;
        }
        self.attempted = Some(*now);
        Some(subject.id.clone())
    }

    /// Offers a sample whose first part surely finds its subject.
    pub fn offer(
        &self,
        sample: LearnedSample,
        look: &FirstLook,
        gallery: &Gallery,
        settings: &DecisionSettings,
    ) {
        if look.surely_finds(&sample.id, gallery, settings) && sample.template.is_complete() {
            // When the store is slow, the next sample serves as well.
            self.queue.try_send(sample).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;
    use crate::recognise::decision::{EarlyExit, Identification, ThresholdRule, look_first};
    use crate::recognise::face::{BoundingBox, Embedder, Landmarks, ModelDigest, Part};
    use crate::recognise::gallery::Subject;
    use std::sync::Arc;

    fn template(x: f32) -> Template {
        Template::normalised(vec![x, (1.0 - x * x).sqrt()]).unwrap()
    }

    fn subject() -> Subject {
        Subject { id: SubjectId::new("ann").unwrap(), name: Name::new("Ann").unwrap() }
    }

    fn gallery(reference: Template) -> Gallery {
        let part = |of, weight| Part { digest: ModelDigest([of; 32]), dimension: 2, weight };
        let embedder = Embedder::composite(part(1, 0.33), part(2, 0.67));
        Gallery::of(&embedder).with(subject(), &[reference])
    }

    fn observation(presentation: Presentation) -> FaceObservation {
        let found = Identification {
            subject: Arc::new(subject()),
            score: 0.9,
            second_score: None,
            threshold: 0.4,
            samples: 3,
        };
        FaceObservation {
            track_id: 1,
            bounding_box: BoundingBox::default(),
            landmarks: Landmarks::default(),
            detected: Landmarks::default(),
            confidence: 0.9,
            decision: Decision::Identified(found),
            samples: 3,
            flaw: None,
            liveness: None,
            presentation,
        }
    }

    fn at(ms: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: ms, trusted: true }
    }

    #[test]
    fn only_live_lone_partial_subjects_are_learned() {
        let (queue, _samples) = mpsc::channel(LEARNED_MAX);
        let mut learner = Learner::new(queue);
        let partial = gallery(template(1.0));
        let complete = gallery(template(1.0).with_second(&template(0.5), 0.67));
        let [live, attack, unjudged] =
            [Presentation::Live, Presentation::Attack, Presentation::Unjudged].map(observation);
        let mut wants = |faces, it: &[FaceObservation], gallery, ms| {
            learner.wanted_subject(faces, it, gallery, &at(ms)).is_some()
        };
        let one = |it: &FaceObservation| vec![it.clone()];
        assert!(!wants(1, &one(&attack), &partial, 0) && !wants(1, &one(&unjudged), &partial, 0));
        assert!(!wants(2, &[live.clone(), live.clone()], &partial, 0), "somebody else is there");
        assert!(!wants(1, &one(&live), &complete, 0), "nothing is missing");
        assert!(wants(1, &one(&live), &partial, 0));
        assert!(!wants(1, &one(&live), &partial, 900), "too soon");
        assert!(wants(1, &one(&live), &partial, 1000));
    }

    #[test]
    fn only_sure_samples_are_learned() {
        let (queue, mut samples) = mpsc::channel(LEARNED_MAX);
        let learner = Learner::new(queue);
        let rule = ThresholdRule {
            threshold: 0.4,
            subjects: 1.0,
            per_decade: 0.1,
            fpir: 0.01,
            fixed: None,
        };
        let settings = DecisionSettings {
            threshold: rule,
            early_exit: Some(EarlyExit { rule, above_decades: 2.0, below: 0.2 }),
            samples_min: 3,
            early_margin: 0.1,
            margin_min: 0.03,
            unknown_samples: 5,
            length_min: 0.0,
        };
        let gallery = gallery(template(1.0));
        for (score, learned) in [(0.55, false), (0.65, true)] {
            let template = template(score).with_second(&template(0.5), 0.67);
            let look = look_first(&template, &gallery, &settings);
            let sample = LearnedSample { id: subject().id, template, quality: 1.0 };
            learner.offer(sample, &look, &gallery, &settings);
            assert_eq!(samples.try_recv().is_ok(), learned, "{score}");
        }
    }
}
