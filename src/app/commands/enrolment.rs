//! The handlers that change who is enrolled: `enrol`, `withdraw`, `rename`; and the second half of
//! every enrolment, by photographs, from the camera and by import.

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::app::commands::camera_enrolment::{EnrolmentRequest, EnrolmentSource};
use crate::app::commands::commander::Commander;
use crate::app::commands::failure::{CommandError, reject};
use crate::app::commands::reply_to::{ReplyTo, WrittenReply};
use crate::app::pipeline::inference::Job;
use crate::clock::Stamp;
use crate::enrol::choose::choose;
use crate::enrol::{Judged, Judgement, Reason};
use crate::ids::SubjectId;
use crate::recognise::face::{Embedder, Template};
use crate::recognise::gallery;
use crate::recognise::quality::Flaw;
use crate::store::{
    AcceptOutcome, NewReference, PhotographDigest, PublishReason, Reference, Standing, StoreError,
    Tx, count_references,
};
use crate::wire::command::{
    Enrol, ErrorCode, ImageOutcome, ImageReason, LookAlike, NotEnrolled, Rejection, Rename,
    Withdraw,
};
use crate::wire::consent::Consent;
use crate::wire::event::{Body, Enrolment, EnrolmentAction, NewEvent, SubjectRef};
use crate::wire::reply::{Enrolled, Renamed, Reply, Withdrawn};
use crate::wire::subject::{Portable, State};

impl Commander {
    pub(super) async fn enrol(
        &self,
        to: ReplyTo,
        enrol: Enrol,
    ) -> Result<WrittenReply, CommandError> {
        self.check_consent(&enrol.subject_id, enrol.consent.as_ref()).await?;
        let standing = self.standing(&enrol.subject_id).await?;
        let judgement = self.judge(&enrol).await?;
        let photographs =
            enrol.images.iter().map(|image| Sha256::digest(image.bytes()).into()).collect();
        let Enrol { subject_id: id, name, replace, allow_duplicate, consent, .. } = enrol;
        self.store_judged(
            to,
            EnrolmentRequest { id, name, replace, allow_duplicate, consent, standing },
            judgement,
            EnrolmentSource::Photographs(photographs),
        )
        .await
    }

    /// The second half of every enrolment: rejects it, or stores references and reply and updates the
    /// gallery.
    pub(super) async fn store_judged(
        &self,
        to: ReplyTo,
        wanted: EnrolmentRequest,
        judgement: Judgement,
        source: EnrolmentSource,
    ) -> Result<WrittenReply, CommandError> {
        let look_alike =
            |(id, score): &(SubjectId, f32)| LookAlike { subject_id: id.clone(), score: *score };
        let look_alikes: Vec<LookAlike> = judgement.look_alikes.iter().map(look_alike).collect();
        let duplicate_of = judgement.duplicate_of.clone();
        if let Some((code, message)) = unfit(&judgement, wanted.allow_duplicate) {
            let images = outcomes(&judgement, &[]);
            let details = Some(Box::new(NotEnrolled { images, duplicate_of, look_alikes }));
            let rejection = Rejection { details, ..Rejection::new(None, code, message) };
            return Err(CommandError::Rejected { rejection, lasting: true });
        }
        let (photographs, missing_views) = match source {
            EnrolmentSource::Photographs(photographs) => (photographs, Vec::new()),
            EnrolmentSource::Camera { missing } => (Vec::new(), missing),
        };
        let EnrolmentRequest { id, name, replace, consent, standing, .. } = wanted;
        let at = self.clock.now();
        let embedder = self.embedder;
        let subject = SubjectRef { id: id.clone(), name: name.clone() };
        let enrolment = NewEnrolment::new(subject, replace, &judgement, embedder, at)
            .with_photographs(photographs)
            .with_consent(consent);
        let write = move |tx: &mut Tx<'_>| {
            // Whoever withdrew while photographs were judged or somebody was waited for stays away.
            if standing.was_withdrawn_until(tx.standing(&enrolment.subject.id)?) {
                return Ok(None);
            }
            let stored = enrolment.store(tx, Some(&to.request_id))?;
            let body = Enrolled {
                subject_id: enrolment.subject.id.clone(),
                references: stored.references,
                images: outcomes(&judgement, &stored.kept),
                duplicate_of: duplicate_of.clone(),
                look_alikes: look_alikes.clone(),
                weak: judgement.is_weak,
                single_reference: stored.references == 1,
                missing_views: missing_views.clone(),
            };
            Ok(Some((to.accept(tx, Reply::Enrolled(body))?, stored.templates)))
        };
        let _turn = self.gallery.lock_for_change().await;
        let Some((reply, templates)) = self.store.write_async(write).await? else {
            return Err(reject(
                ErrorCode::UnknownSubject,
                "the person was withdrawn while they were being enrolled; send another command to \
                 enrol them again",
            ));
        };
        self.gallery.update(|gallery| gallery.replaced(gallery::Subject { id, name }, &templates));
        self.changed.notify_one();
        Ok(reply)
    }

    pub(super) async fn withdraw(
        &self,
        to: ReplyTo,
        withdraw: Withdraw,
    ) -> Result<WrittenReply, CommandError> {
        let id = withdraw.subject_id.clone();
        let erase = withdraw.erase;
        let at = self.clock.now();
        let write = move |tx: &mut Tx<'_>| {
            let request_id = Some(to.request_id.clone());
            let mut events = 0;
            let removed = if erase {
                let erased = tx.erase_as_asked(&id, request_id.as_deref())?;
                if !erased.enrolled && erased.events == 0 {
                    return Err(StoreError::UnknownSubject { id: id.clone() });
                }
                events = erased.events;
                let references = erased.references;
                // The event of an erasure names nobody.
                Enrolment::new(EnrolmentAction::Erased, None, references, request_id)
            } else {
                let subject = tx.enrolled_now(&id)?;
                let references = tx.delete_subject(&id)?;
                Enrolment::new(EnrolmentAction::Withdrawn, subject, references, request_id)
            };
            let references = removed.references;
            append_enrolment(tx, at, removed)?;
            to.accept(tx, Reply::Withdrawn(Withdrawn { references, erased: erase, events }))
        };
        let _turn = self.gallery.lock_for_change().await;
        let reply = self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.without(&withdraw.subject_id));
        self.changed.notify_one();
        Ok(reply)
    }

    pub(super) async fn rename(
        &self,
        to: ReplyTo,
        rename: Rename,
    ) -> Result<WrittenReply, CommandError> {
        let id = rename.subject_id.clone();
        let name = rename.name.clone();
        let at = self.clock.now();
        let write = move |tx: &mut Tx<'_>| {
            tx.rename_subject(&id, &name)?;
            let references = tx.subject(&id)?.map_or(0, |subject| subject.references);
            let subject = Some(SubjectRef { id: id.clone(), name: name.clone() });
            let request_id = Some(to.request_id.clone());
            let action = EnrolmentAction::Renamed;
            append_enrolment(tx, at, Enrolment::new(action, subject, references, request_id))?;
            let renamed = Renamed { subject_id: id.clone(), name: name.clone() };
            to.accept(tx, Reply::Renamed(renamed))
        };
        let _turn = self.gallery.lock_for_change().await;
        let reply = self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.renamed(&rename.subject_id, rename.name));
        Ok(reply)
    }

    pub(super) async fn standing(&self, id: &SubjectId) -> Result<Standing, CommandError> {
        let id = id.clone();
        Ok(self.store.read(move |tx| tx.standing(&id)).await?)
    }

    async fn judge(&self, enrol: &Enrol) -> Result<Judgement, CommandError> {
        let (reply, replied) = oneshot::channel();
        let photographs = enrol.images.iter().map(|image| image.bytes().to_vec()).collect();
        self.submit(Job::Enrol {
            subject: enrol.subject_id.clone(),
            replace: enrol.replace,
            photographs,
            reply,
        })?;
        let judged = self.wait(replied).await?;
        Ok(judged?)
    }
}

/// Why nothing of an enrolment can be stored, if so.
pub fn unfit(judgement: &Judgement, allow_duplicate: bool) -> Option<(ErrorCode, String)> {
    if judgement.accepted().next().is_none() {
        let reasons: Vec<_> = judgement.photographs.iter().map(reason_text).collect();
        return Some((
            ErrorCode::NoUsableImage,
            format!("no image can be used: {}", reasons.join(", ")),
        ));
    }
    let other = judgement.duplicate_of.as_ref().filter(|_| !allow_duplicate)?;
    let message =
        format!("the face is already enrolled as {other}; allow_duplicate enrols it all the same");
    Some((ErrorCode::DuplicateSubject, message))
}

/// An enrolment about to be stored.
pub struct NewEnrolment {
    subject: SubjectRef,
    embedder: Embedder,
    references: Vec<NewReference>,
    references_max: usize,
    photographs: Vec<PhotographDigest>,
    replace: bool,
    consent: Option<Consent>,
    at: Stamp,
}

impl NewEnrolment {
    pub fn new(
        subject: SubjectRef,
        replace: bool,
        judgement: &Judgement,
        embedder: Embedder,
        at: Stamp,
    ) -> Self {
        let reference = |(template, quality): (&Template, f32)| NewReference {
            subject_id: subject.id.clone(),
            embedder,
            template: template.clone(),
            quality,
        };
        let references = judgement.accepted().map(reference).collect();
        let references_max = judgement.references_max;
        Self {
            subject,
            embedder,
            references,
            references_max,
            photographs: Vec::new(),
            replace,
            consent: None,
            at,
        }
    }

    /// Notes the photographs that were examined, used or not: a repeated import passes them
    /// over.
    #[must_use]
    pub fn with_photographs(self, photographs: Vec<PhotographDigest>) -> Self {
        Self { photographs, ..self }
    }

    /// The consent that was given with it; `None` leaves an earlier one as it is.
    #[must_use]
    pub fn with_consent(self, consent: Option<Consent>) -> Self {
        Self { consent, ..self }
    }

    /// Stores subject, references and event. Of old and new references together the best and most
    /// different stay.
    pub fn store(
        &self,
        tx: &mut Tx<'_>,
        request_id: Option<&str>,
    ) -> Result<StoredEnrolment, StoreError> {
        let id = &self.subject.id;
        let action = if tx.subject(id)?.is_some() {
            EnrolmentAction::Updated
        } else {
            EnrolmentAction::Enrolled
        };
        tx.put_subject(id, &self.subject.name)?;
        // Not in place of one that was given later: a table may be imported again.
        if let Some(consent) = &self.consent
            && tx.consent(id)?.is_none_or(|it| it.given_ms() <= consent.given_ms())
        {
            tx.put_consent(id, consent)?;
        }
        let MergedReferences { kept, templates } = self.merge_references(tx)?;
        tx.note_photographs(id, &self.embedder.digest, &self.photographs)?;
        let references = tx.subject(id)?.map_or(0, |subject| subject.references);
        let subject = Some(self.subject.clone());
        let request_id = request_id.map(str::to_owned);
        let body = Enrolment::new(action, subject, references, request_id);
        append_enrolment(tx, self.at, Enrolment { consent: self.consent.clone(), ..body })?;
        Ok(StoredEnrolment { references, kept, templates })
    }

    /// Stores the references that stay, and removes the others.
    fn merge_references(&self, tx: &mut Tx<'_>) -> Result<MergedReferences, StoreError> {
        let id = &self.subject.id;
        let mut old = if self.replace { Vec::new() } else { tx.references_of(id, &self.embedder)? };
        let completed = self.complete_old(tx, &mut old)?;
        let fresh: Vec<&NewReference> = self
            .references
            .iter()
            .zip(&completed)
            .filter(|(_, completed)| completed.is_none())
            .map(|(it, _)| it)
            .collect();
        let candidates: Vec<(&Template, f32)> = old
            .iter()
            .map(|it| (&it.template, it.quality))
            .chain(fresh.iter().map(|it| (&it.template, it.quality)))
            .collect();
        let chosen = choose(&candidates, self.references_max);
        let is_kept = |at: usize| chosen.binary_search(&at).is_ok();
        let kept_fresh: Vec<bool> = (old.len()..candidates.len()).map(is_kept).collect();
        let new = fresh.iter().zip(&kept_fresh).filter(|(_, kept)| **kept);
        let new: Vec<NewReference> = new.map(|(it, _)| (*it).clone()).collect();
        if self.replace {
            tx.forget_photographs(id)?;
            tx.replace_references(id, &new)?;
        } else {
            let dropped = old.iter().enumerate().filter(|(at, _)| !is_kept(*at));
            let dropped: Vec<Uuid> = dropped.map(|(_, it)| it.id).collect();
            tx.drop_references(&dropped)?;
            tx.drop_orphaned_parts(id)?;
            tx.add_references(&new)?;
        }
        let mut kept_fresh = kept_fresh.iter();
        let kept = completed.iter().map(|completed| match completed {
            Some(at) => is_kept(*at),
            None => kept_fresh.next().copied().unwrap_or(false),
        });
        let kept = kept.collect();
        let templates = chosen.iter().map(|at| candidates[*at].0.clone()).collect();
        Ok(MergedReferences { kept, templates })
    }

    /// Adds the second part of a composite embedder to references that were made of the same
    /// photographs before there was one. Gives for each new reference the place of the old one that
    /// it completed.
    fn complete_old(
        &self,
        tx: &mut Tx<'_>,
        old: &mut [Reference],
    ) -> Result<Vec<Option<usize>>, StoreError> {
        let mut completed = vec![None; self.references.len()];
        let Some(part) = self.embedder.second else { return Ok(completed) };
        for (new, completed) in self.references.iter().zip(&mut completed) {
            let Some(second) = new.template.second_part() else { continue };
            let is_same = |it: &Reference| {
                !it.template.is_complete() && it.template.compare(&new.template) >= SAME_PHOTOGRAPH
            };
            let Some(at) = old.iter().position(is_same) else { continue };
            let reference = &mut old[at];
            let id = &reference.subject_id;
            tx.add_second_part(id, &reference.id, &part.digest, &second, reference.quality)?;
            reference.template = reference.template.clone().with_second(&second, part.weight);
            *completed = Some(at);
        }
        Ok(completed)
    }
}

/// From this cosine of the first parts on, two references are of one photograph. Two frames of a
/// still person reach 0.99; one photograph on processors that round differently 0.9999.
const SAME_PHOTOGRAPH: f32 = 0.999;

/// The references of a subject after an enrolment.
struct MergedReferences {
    /// Of the new ones, in their order, which stayed.
    kept: Vec<bool>,
    /// All of this embedder.
    templates: Vec<Template>,
}

/// What became of an enrolment.
#[derive(Clone, Debug)]
pub struct StoredEnrolment {
    /// References of the subject now, those of other embedders too.
    pub references: u32,
    /// Of the photographs that were accepted, in their order, which became references.
    pub kept: Vec<bool>,
    /// Those of this embedder, for the gallery.
    pub templates: Vec<Template>,
}

/// Stores a subject from a file, with an event, and queues it for the site's gallery.
pub fn accept_imported(
    tx: &mut Tx<'_>,
    portable: &Portable,
    at: Stamp,
) -> Result<AcceptOutcome, StoreError> {
    let id = &portable.subject_id;
    let action = if tx.subject(id)?.is_some() {
        EnrolmentAction::Updated
    } else {
        EnrolmentAction::Enrolled
    };
    let outcome = tx.accept_portable(portable)?;
    if let (AcceptOutcome::Accepted, State::Enrolled { name, references, consent, .. }) =
        (outcome, &portable.state)
    {
        let subject = Some(SubjectRef { id: id.clone(), name: name.clone() });
        let references = count_references(references);
        let body = Enrolment::new(action, subject, references, None);
        append_enrolment(tx, at, Enrolment { consent: consent.clone(), ..body })?;
        tx.queue_for_gallery(id, PublishReason::Missing)?;
    }
    Ok(outcome)
}

fn append_enrolment(tx: &mut Tx<'_>, at: Stamp, enrolment: Enrolment) -> Result<(), StoreError> {
    tx.append_event(&NewEvent::new(at, Body::Enrolment(enrolment)))?;
    Ok(())
}

/// `kept` states of each accepted photograph whether it became a reference.
fn outcomes(judgement: &Judgement, kept: &[bool]) -> Vec<ImageOutcome> {
    let mut kept = kept.iter();
    let outcome = |judged: &Judged| match judged {
        Judged::Accepted { .. } => ImageOutcome {
            accepted: true,
            reason: None,
            kept: kept.next().copied().unwrap_or(false),
        },
        Judged::Rejected(reason) => {
            ImageOutcome { accepted: false, reason: Some(image_reason(reason)), kept: false }
        }
    };
    judgement.photographs.iter().map(outcome).collect()
}

fn image_reason(reason: &Reason) -> ImageReason {
    match reason {
        Reason::NoFace => ImageReason::NoFace,
        Reason::SeveralFaces => ImageReason::SeveralFaces,
        Reason::Flaw(Flaw::TooSmall) => ImageReason::TooSmall,
        Reason::Flaw(Flaw::Blurred) => ImageReason::Blurred,
        Reason::Flaw(Flaw::Dark) => ImageReason::Dark,
        Reason::Flaw(Flaw::Overexposed) => ImageReason::Overexposed,
        Reason::Flaw(Flaw::Turned) => ImageReason::Turned,
        Reason::DecodeError(_) => ImageReason::DecodeError,
        Reason::OtherPerson => ImageReason::OtherPerson,
    }
}

pub fn reason_text(judged: &Judged) -> String {
    match judged {
        Judged::Accepted { .. } => "accepted".into(),
        Judged::Rejected(Reason::DecodeError(why)) => format!("decode_error ({why})"),
        Judged::Rejected(reason) => <&str>::from(image_reason(reason)).into(),
    }
}
