//! Taking over what other doors enrolled or withdrew, by whichever way it came.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::app::gallery::GalleryCell;
use crate::recognise::face::{ModelDigest, SubjectId, Template};
use crate::recognise::gallery::{Gallery, Subject};
use crate::record::portable::{Portable, State};
use crate::record::store::{Account, Outcome, Store, StoreError, Tx};

/// What those accounts touch here.
pub struct Takeover<'a> {
    pub store: &'a Store,
    pub gallery: &'a GalleryCell,
    pub embedder: &'a ModelDigest,
    pub changed: &'a Notify,
}

/// Whom they were about, and what is known of each now.
pub type Now = Vec<(SubjectId, Option<Account>)>;

impl Takeover<'_> {
    /// Stores what is newer, and puts it into the gallery. The inner error is one that another attempt may not meet.
    pub async fn apply(
        &self,
        accepted: Vec<Portable>,
    ) -> Result<Result<Now, StoreError>, StoreError> {
        if accepted.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let turn = self.gallery.turn().await;
        let portables = Arc::new(accepted);
        let stored = Arc::clone(&portables);
        let write = move |tx: &mut Tx<'_>| {
            let accept = |it: &Portable| {
                let outcome = tx.accept(it)?;
                // What is not taken met a newer one, which may be changed here and not told yet.
                Ok((outcome, tx.account(&it.subject_id)?))
            };
            stored.iter().map(accept).collect::<Result<Vec<_>, StoreError>>()
        };
        let outcomes = match self.store.write_async(write).await {
            Ok(outcomes) => outcomes,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => return Ok(Err(error)),
        };
        let taken =
            portables.iter().zip(&outcomes).filter(|it| it.1.0 == Outcome::Taken).map(|it| it.0);
        let taken: Vec<&Portable> = taken.collect();
        self.gallery.update(|gallery| {
            taken.iter().fold(gallery, |gallery, it| enter(gallery, it, self.embedder))
        });
        drop(turn);
        if !taken.is_empty() {
            let withdrawn = taken.iter().filter(|it| it.is_withdrawn()).count();
            tracing::info!(
                subjects = taken.len() - withdrawn,
                withdrawn,
                "taken over from other doors"
            );
            self.changed.notify_one();
        }
        Ok(Ok(portables
            .iter()
            .zip(outcomes)
            .map(|(it, (_, account))| (it.subject_id.clone(), account))
            .collect()))
    }
}

fn enter(gallery: Gallery, portable: &Portable, embedder: &ModelDigest) -> Gallery {
    let State::Enrolled { name, references, .. } = &portable.state else {
        return gallery.without(&portable.subject_id);
    };
    let ours = references.iter().filter(|it| it.embedder == *embedder);
    let templates: Vec<Template> = ours.map(|it| it.template.clone()).collect();
    gallery.replaced(Subject { id: portable.subject_id.clone(), name: name.clone() }, &templates)
}
