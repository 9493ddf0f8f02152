//! Stores what the door learns from its own camera (`[enrolment] learn`).
//!
//! A sample becomes a reference as an enrolment's does, with an event, and goes to the site's
//! gallery. Whoever was withdrawn or completed meanwhile is left alone.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};

use crate::app::commands::enrolment::NewEnrolment;
use crate::app::context::Context;
use crate::app::exit::storage;
use crate::app::pipeline::learning::LearnedSample;
use crate::app::state::gallery::GalleryCell;
use crate::app::supervise::StageResult;
use crate::clock::Clock;
use crate::enrol::{Judged, Judgement};
use crate::recognise::face::Embedder;
use crate::recognise::gallery::Subject;
use crate::store::{Recognisable, Store, StoreError, Tx};
use crate::wire::event::SubjectRef;

pub struct Learning {
    store: Store,
    gallery: Arc<GalleryCell>,
    embedder: Embedder,
    references_max: usize,
    clock: Arc<dyn Clock>,
    changed: Arc<Notify>,
    samples: mpsc::Receiver<LearnedSample>,
}

impl Learning {
    pub fn new(
        ctx: Context,
        references_max: usize,
        samples: mpsc::Receiver<LearnedSample>,
    ) -> Self {
        let Context { store, gallery, embedder, clock, changed, .. } = ctx;
        Self { store, gallery, embedder, references_max, clock, changed, samples }
    }

    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> StageResult {
        loop {
            let sample = tokio::select! {
                sample = self.samples.recv() => sample,
                _ = stop.wait_for(|it| *it) => None,
            };
            let Some(sample) = sample else {
                // The inference thread may end first; the end of a stage is a failure.
                stop.wait_for(|it| *it).await.ok();
                return Ok(());
            };
            match self.learn(sample).await {
                Err(error) if error.is_fatal() => return Err(storage(error)),
                Err(error) => tracing::warn!(%error, "a learned sample cannot be stored"),
                Ok(()) => {}
            }
        }
    }

    async fn learn(&self, sample: LearnedSample) -> Result<(), StoreError> {
        let LearnedSample { id, template, quality } = sample;
        let judgement = Judgement {
            photographs: vec![Judged::Accepted { template, quality }],
            duplicate_of: None,
            look_alikes: Vec::new(),
            references_max: self.references_max,
            is_weak: false,
        };
        let at = self.clock.now();
        let embedder = self.embedder;
        let write = move |tx: &mut Tx<'_>| {
            // As the person is called now: the sample is older than a new name.
            let Some(subject) = tx.enrolled_now(&id)? else { return Ok(None) };
            if tx.recognition_of(&id, &embedder)? != Recognisable::ByFirstPart {
                return Ok(None);
            }
            let enrolment = NewEnrolment::new(subject.clone(), false, &judgement, embedder, at);
            Ok(Some((subject, enrolment.store(tx, None)?)))
        };
        let _turn = self.gallery.lock_for_change().await;
        if let Some((SubjectRef { id, name }, stored)) = self.store.write_async(write).await? {
            tracing::info!("a reference with both parts was learned from the camera");
            self.gallery
                .update(|gallery| gallery.replaced(Subject { id, name }, &stored.templates));
            self.changed.notify_one();
        }
        Ok(())
    }
}
