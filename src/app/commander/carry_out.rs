//! What each command does. Each ends with one transaction that holds its effect, its event and its answer.

use std::collections::HashSet;
use std::sync::mpsc::TrySendError;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::asked::Asked;
use super::{Commander, FUSE, Fault, JOB_PATIENCE, not_now, refuse};
use crate::app::inference::{Job, Seen};
use crate::app::recorder::{Visit, record_visit};
use crate::app::supervise::aside;
use crate::attend::venue::Venue;
use crate::clock::{Stamp, Stopwatch, rfc3339};
use crate::enrol::choose::choose;
use crate::enrol::{Judged, Judgement, Reason};
use crate::recognise::decision::Decision;
use crate::recognise::engine::EngineError;
use crate::recognise::face::{ModelDigest, Name, SubjectId, Template};
use crate::recognise::gallery;
use crate::recognise::picture::Picture;
use crate::recognise::quality::Flaw;
use crate::record::command::answer::{
    self, Attended, Buried, Enrolled, FaceEntry, ImageOutcome, ImageReason, LookAlike, NotEnrolled,
    Owed, Recognised, Renamed, SubjectEntry, SubjectList, Synced, Withdrawn,
};
use crate::record::command::{
    Attend, EncodedImage, Enrol, ErrorCode, Refusal, Rename, Subjects, Verb, Withdraw,
};
use crate::record::event::{Body, Enrolment, EnrolmentAction, NewEvent, SubjectRef};
use crate::record::portable::{Portable, State};
use crate::record::store::{
    BuriedRow, Debt, NewReference, Outcome, PhotographDigest, SinkStanding, Standing, StoreError,
    Tx,
};

/// How many of those that were set aside are told one by one.
pub const BURIED_TOLD: u32 = 20;

/// What `sync` answers, here and on the command line.
pub fn synced(standing: &Standing, buried: &[BuriedRow], retried: u64) -> Synced {
    let owed = |it: &SinkStanding| Owed {
        sink: it.sink.as_str().into(),
        rows: it.depth.rows,
        oldest_at: it.depth.oldest_created_ms.map(rfc3339),
        buried: it.depth.buried,
    };
    let entry = |row: &BuriedRow| Buried {
        sink: row.sink.clone(),
        seq: row.event_seq,
        reason: row.reason.clone(),
    };
    Synced {
        owed: standing.sinks.iter().map(owed).collect(),
        buried: buried.iter().map(entry).collect(),
        complete_through: standing.complete_through(None),
        retried,
    }
}

impl Commander {
    pub(super) async fn carry_out(&self, asked: Asked, verb: Verb) -> Result<(), Fault> {
        match verb {
            Verb::Enrol(enrol) => self.enrol(asked, enrol).await,
            Verb::EnrolFromCamera(command) => self.enrol_from_camera(asked, command).await,
            Verb::Withdraw(withdraw) => self.withdraw(asked, withdraw).await,
            Verb::Rename(rename) => self.rename(asked, rename).await,
            Verb::Subjects(subjects) => self.subjects(asked, subjects).await,
            Verb::Recognise(recognise) => self.recognise(asked, recognise.image).await,
            Verb::Attend(attend) => self.attend(asked, attend).await,
            Verb::Attendance(attendance) => self.attendance(asked, attendance).await,
            Verb::VenuePut(venue) => self.venue_put(asked, venue).await,
            Verb::VenueDelete(delete) => self.venue_delete(asked, delete.venue).await,
            Verb::Venues(page) => self.venue_list(asked, page).await,
            Verb::Sync(sync) => self.sync(asked, sync.retry_buried).await,
        }
    }

    async fn enrol(&self, asked: Asked, enrol: Enrol) -> Result<(), Fault> {
        let judgement = self.judge(&enrol).await?;
        let photographs =
            enrol.images.iter().map(|image| Sha256::digest(image.bytes()).into()).collect();
        let Enrol { subject_id: id, name, replace, allow_duplicate, .. } = enrol;
        self.store_judged(
            asked,
            "enrol",
            Wanted { id, name, replace, allow_duplicate },
            judgement,
            photographs,
        )
        .await
    }

    /// The second half of every enrolment: refused, or stored, answered and in the gallery.
    pub(super) async fn store_judged(
        &self,
        asked: Asked,
        verb: &'static str,
        wanted: Wanted,
        judgement: Judgement,
        photographs: Vec<PhotographDigest>,
    ) -> Result<(), Fault> {
        let look_alike =
            |(id, score): &(SubjectId, f32)| LookAlike { subject_id: id.clone(), score: *score };
        let look_alikes: Vec<LookAlike> = judgement.look_alikes.iter().map(look_alike).collect();
        let duplicate_of = judgement.duplicate_of.clone();
        if let Some((code, message)) = unfit(&judgement, wanted.allow_duplicate) {
            let images = outcomes(&judgement, &[]);
            let details = Some(Box::new(NotEnrolled { images, duplicate_of, look_alikes }));
            return Err(Fault::Refused {
                refusal: Refusal::new(None, code, message),
                lasting: true,
                details,
            });
        }
        let Wanted { id, name, replace, .. } = wanted;
        let (at, embedder) = (self.clock.now(), self.embedder);
        let enrolment =
            NewEnrolment::new(id.clone(), name.clone(), replace, &judgement, embedder, at)
                .with_photographs(photographs);
        let write = move |tx: &mut Tx<'_>| {
            let stored = enrolment.store(tx, Some(&asked.request_id))?;
            let body = Enrolled {
                subject_id: enrolment.subject.id.clone(),
                references: stored.references,
                images: outcomes(&judgement, &stored.kept),
                duplicate_of: duplicate_of.clone(),
                look_alikes: look_alikes.clone(),
            };
            answer(tx, &asked, verb, &body)?;
            Ok(stored.templates)
        };
        let _turn = self.gallery.turn().await;
        let templates = self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.replaced(gallery::Subject { id, name }, &templates));
        self.changed.notify_one();
        Ok(())
    }

    async fn withdraw(&self, asked: Asked, withdraw: Withdraw) -> Result<(), Fault> {
        let (id, erase, at) = (withdraw.subject_id.clone(), withdraw.erase, self.clock.now());
        let write = move |tx: &mut Tx<'_>| {
            let known = tx.subject(&id)?;
            let (references, events, subject, action) = if erase {
                let erased = tx.erase_as_asked(&id, Some(&asked.request_id))?;
                if !erased.enrolled && erased.events == 0 {
                    return Err(StoreError::UnknownSubject { id: id.clone() });
                }
                (erased.references, erased.events, None, EnrolmentAction::Erased)
            } else {
                let references = tx.delete_subject(&id)?;
                let subject = known.map(|known| SubjectRef { id: known.id, name: known.name });
                (references, 0, subject, EnrolmentAction::Withdrawn)
            };
            append_enrolment(tx, at, action, subject, references, Some(&asked.request_id))?;
            answer(tx, &asked, "withdraw", &Withdrawn { references, erased: erase, events })
        };
        let _turn = self.gallery.turn().await;
        self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.without(&withdraw.subject_id));
        self.changed.notify_one();
        Ok(())
    }

    async fn rename(&self, asked: Asked, rename: Rename) -> Result<(), Fault> {
        let (id, name, at) = (rename.subject_id.clone(), rename.name.clone(), self.clock.now());
        let write = move |tx: &mut Tx<'_>| {
            tx.rename_subject(&id, &name)?;
            let count = tx.subject(&id)?.map_or(0, |subject| subject.references);
            let subject = Some(SubjectRef { id: id.clone(), name: name.clone() });
            append_enrolment(
                tx,
                at,
                EnrolmentAction::Renamed,
                subject,
                count,
                Some(&asked.request_id),
            )?;
            answer(tx, &asked, "rename", &Renamed { subject_id: id.clone(), name: name.clone() })
        };
        let _turn = self.gallery.turn().await;
        self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.renamed(&rename.subject_id, rename.name));
        Ok(())
    }

    async fn subjects(&self, asked: Asked, page: Subjects) -> Result<(), Fault> {
        let embedder = self.embedder;
        let write = move |tx: &mut Tx<'_>| {
            // One more than asked for tells whether there is another page.
            let mut found = tx.subjects(page.after.as_ref(), page.limit + 1)?;
            let more = found.len() > page.limit as usize;
            found.truncate(page.limit as usize);
            let next_after = found.last().filter(|_| more).map(|last| last.id.clone());
            let mut subjects = Vec::with_capacity(found.len());
            for subject in found {
                subjects.push(SubjectEntry {
                    recognisable: tx.is_recognisable(&subject.id, &embedder)?,
                    id: subject.id,
                    name: subject.name,
                    references: subject.references,
                    enrolled_at: rfc3339(subject.enrolled_ms),
                    model_digest: subject.embedder.map(|digest| digest.to_string()),
                });
            }
            answer(tx, &asked, "subjects", &SubjectList { subjects, next_after })
        };
        Ok(self.store.write_async(write).await?)
    }

    async fn recognise(&self, asked: Asked, image: EncodedImage) -> Result<(), Fault> {
        let faces = self.look(image).await?;
        let entry = |seen: &Seen| {
            let outline = &seen.bounding_box;
            let (subject, score) = match &seen.decision {
                Decision::Identified(found) => {
                    (Some(subject_of(&found.subject)), Some(found.score))
                }
                Decision::Unknown { best_score, .. } => (None, *best_score),
                Decision::Undecided => (None, None),
            };
            FaceEntry {
                bounding_box: [outline.left, outline.top, outline.right, outline.bottom],
                subject,
                score,
            }
        };
        let entries: Vec<FaceEntry> = faces.iter().map(entry).collect();
        let names = once_each(entries.iter().filter_map(|face| face.subject.as_ref()));
        let body = Recognised { faces: entries, names };
        // Nothing is recorded, not even the answer: the same request is simply looked at again.
        let reply = answer::accepted(&asked.request_id, "recognise", &body);
        if !asked.is_by_mqtt() {
            asked.say(Some(reply));
            return Ok(());
        }
        let write = move |tx: &mut Tx<'_>| {
            // With no answer kept, nothing else tells that this attempt came to its end.
            tx.put_meta(FUSE, b"")?;
            tx.end_signed(&asked.request_id)?;
            asked.owe_reply(tx, &reply)
        };
        Ok(self.store.write_async(write).await?)
    }

    async fn attend(&self, asked: Asked, attend: Attend) -> Result<(), Fault> {
        let venue = self.venue(&attend.venue)?;
        let (watch, at) = (Stopwatch::start(), self.clock.now());
        let faces = self.look(attend.image).await?;
        let latency_ms = watch.elapsed().as_millis() as u64;
        let direction = attend.direction;
        let mut visits: Vec<Visit> = Vec::new();
        for seen in &faces {
            if let Decision::Identified(found) = &seen.decision {
                let subject = subject_of(&found.subject);
                // One person, shown twice (a mirror), is there once.
                if visits.iter().all(|visit| visit.subject.id != subject.id) {
                    let (score, threshold) = (found.score, found.threshold);
                    visits.push(Visit {
                        subject,
                        direction,
                        score,
                        threshold,
                        frames: 1,
                        track_ms: 0,
                        latency_ms,
                    });
                }
            }
        }
        let clock = std::sync::Arc::clone(&self.clock);
        let write = move |tx: &mut Tx<'_>| {
            let (mut recorded, mut event_ids) = (Vec::new(), Vec::<Uuid>::new());
            for visit in &visits {
                if let Some(event) = record_visit(tx, &venue, visit, at, clock.as_ref())? {
                    recorded.push(visit.subject.name.clone());
                    event_ids.push(event.event_id);
                }
            }
            let recognised = visits.iter().map(|visit| visit.subject.name.clone()).collect();
            let count = event_ids.len() as u64;
            answer(
                tx,
                &asked,
                "attend",
                &Attended { venue: venue.id.clone(), recorded, recognised, event_ids },
            )?;
            Ok(count)
        };
        let recorded = self.store.write_async(write).await?;
        self.health.recorded.add(recorded);
        Ok(())
    }

    async fn sync(&self, asked: Asked, retry_buried: bool) -> Result<(), Fault> {
        let write = move |tx: &mut Tx<'_>| {
            let retried = if retry_buried { tx.retry_buried()? as u64 } else { 0 };
            let synced = synced(&tx.standing()?, &tx.buried(BURIED_TOLD)?, retried);
            answer(tx, &asked, "sync", &synced)
        };
        self.store.write_async(write).await?;
        self.store.deliver_now();
        Ok(())
    }

    pub(super) fn venue(&self, id: &str) -> Result<Venue, Fault> {
        self.venues.find(id).ok_or_else(|| {
            let message = "this device does not know the venue: `venue_put` it, or add a [[venue]] to its config.toml";
            refuse(ErrorCode::UnknownVenue, message)
        })
    }

    async fn judge(&self, enrol: &Enrol) -> Result<Judgement, Fault> {
        let (answer, answered) = oneshot::channel();
        let photographs = enrol.images.iter().map(|image| image.bytes().to_vec()).collect();
        self.submit(Job::Enrol {
            subject: enrol.subject_id.clone(),
            replace: enrol.replace,
            photographs,
            answer,
        })?;
        let judged = self.wait(answered).await?;
        judged.map_err(failed)
    }

    async fn look(&self, image: EncodedImage) -> Result<Vec<Seen>, Fault> {
        let limits = self.picture;
        let decoded = aside("picture", move || Picture::decode(image.bytes(), limits)).await;
        let decoded = decoded
            .ok_or_else(|| not_now(ErrorCode::Busy, "no thread could be started; try again"))?;
        let picture = decoded.map_err(|error| refuse(ErrorCode::BadImage, error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Look { picture, answer })?;
        self.wait(answered).await?.map_err(failed)
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), Fault> {
        self.jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                not_now(ErrorCode::Busy, "the networks are busy; send the command again")
            }
            TrySendError::Disconnected(_) => Fault::Stopping,
        })
    }

    async fn wait<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, Fault> {
        match tokio::time::timeout(JOB_PATIENCE, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Fault::Stopping),
            Err(_) => Err(not_now(
                ErrorCode::TimedOut,
                format!("no answer from the networks in {JOB_PATIENCE:?}"),
            )),
        }
    }
}

/// The networks failed: told in the log with the cause, to the sender without.
pub(super) fn failed(error: EngineError) -> Fault {
    let said = error.to_string();
    tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "a command failed");
    not_now(ErrorCode::Internal, said)
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
    embedder: ModelDigest,
    references: Vec<NewReference>,
    references_max: usize,
    photographs: Vec<PhotographDigest>,
    replace: bool,
    at: Stamp,
}

impl NewEnrolment {
    pub fn new(
        id: SubjectId,
        name: Name,
        replace: bool,
        judgement: &Judgement,
        embedder: ModelDigest,
        at: Stamp,
    ) -> Self {
        let subject = SubjectRef { id, name };
        let reference = |(template, quality): (&Template, f32)| NewReference {
            subject_id: subject.id.clone(),
            embedder,
            template: template.clone(),
            quality,
        };
        let references = judgement.accepted().map(reference).collect();
        let references_max = judgement.references_max;
        Self { subject, embedder, references, references_max, photographs: Vec::new(), replace, at }
    }

    /// That these were looked at for it, used or not: an import that is begun again passes them over.
    #[must_use]
    pub fn with_photographs(self, photographs: Vec<PhotographDigest>) -> Self {
        Self { photographs, ..self }
    }

    /// Stores subject, references and event. Of old and new references together the best and most different stay.
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
        let old = if self.replace { Vec::new() } else { tx.references_of(id, &self.embedder)? };
        let candidates: Vec<(&Template, f32)> = old
            .iter()
            .map(|it| (&it.template, it.quality))
            .chain(self.references.iter().map(|it| (&it.template, it.quality)))
            .collect();
        let chosen = choose(&candidates, self.references_max);
        let is_kept = |at: usize| chosen.binary_search(&at).is_ok();
        let kept: Vec<bool> = (old.len()..candidates.len()).map(is_kept).collect();
        let new: Vec<NewReference> = self
            .references
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| **kept)
            .map(|(it, _)| it.clone())
            .collect();
        if self.replace {
            tx.forget_photographs(id)?;
            tx.replace_references(id, &new)?;
        } else {
            let dropped: Vec<Uuid> = old
                .iter()
                .enumerate()
                .filter(|(at, _)| !is_kept(*at))
                .map(|(_, it)| it.id)
                .collect();
            tx.drop_references(&dropped)?;
            tx.add_references(&new)?;
        }
        tx.note_photographs(id, &self.embedder, &self.photographs)?;
        let references = tx.subject(id)?.map_or(0, |subject| subject.references);
        append_enrolment(tx, self.at, action, Some(self.subject.clone()), references, request_id)?;
        let templates = chosen.iter().map(|at| candidates[*at].0.clone()).collect();
        Ok(StoredEnrolment { references, kept, templates })
    }
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

/// Who is to be enrolled, and how.
pub(super) struct Wanted {
    pub id: SubjectId,
    pub name: Name,
    pub replace: bool,
    pub allow_duplicate: bool,
}

/// Takes in a subject from a file. Those who are told of enrolments hear of it, and so does the site.
pub fn accept_imported(
    tx: &mut Tx<'_>,
    portable: &Portable,
    at: Stamp,
) -> Result<Outcome, StoreError> {
    let id = &portable.subject_id;
    let action = if tx.subject(id)?.is_some() {
        EnrolmentAction::Updated
    } else {
        EnrolmentAction::Enrolled
    };
    let outcome = tx.accept(portable)?;
    if let (Outcome::Taken, State::Enrolled { name, references, .. }) = (outcome, &portable.state) {
        let subject = SubjectRef { id: id.clone(), name: name.clone() };
        append_enrolment(tx, at, action, Some(subject), references.len() as u32, None)?;
        tx.owe_gallery(id, Debt::Missing)?;
    }
    Ok(outcome)
}

pub(super) fn answer(
    tx: &mut Tx<'_>,
    asked: &Asked,
    verb: &str,
    body: &impl Serialize,
) -> Result<(), StoreError> {
    asked.put_answer(tx, verb, &answer::accepted(&asked.request_id, verb, body))
}

fn append_enrolment(
    tx: &mut Tx<'_>,
    at: Stamp,
    action: EnrolmentAction,
    subject: Option<SubjectRef>,
    references: u32,
    request_id: Option<&str>,
) -> Result<(), StoreError> {
    let request_id = request_id.map(str::to_owned);
    tx.append_event(&NewEvent::new(
        at,
        Body::Enrolment(Enrolment { action, subject, references, request_id }),
    ))?;
    Ok(())
}

fn subject_of(subject: &gallery::Subject) -> SubjectRef {
    SubjectRef { id: subject.id.clone(), name: subject.name.clone() }
}

fn once_each<'a>(subjects: impl Iterator<Item = &'a SubjectRef>) -> Vec<Name> {
    let mut seen = HashSet::new();
    subjects
        .filter(|subject| seen.insert(subject.id.clone()))
        .map(|subject| subject.name.clone())
        .collect()
}

/// `kept` tells of each accepted photograph whether it became a reference.
fn outcomes(judgement: &Judgement, kept: &[bool]) -> Vec<ImageOutcome> {
    let mut kept = kept.iter();
    let outcome = |judged: &Judged| match judged {
        Judged::Accepted { .. } => ImageOutcome {
            accepted: true,
            reason: None,
            kept: kept.next().copied().unwrap_or(false),
        },
        Judged::Refused(reason) => {
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
        Judged::Refused(Reason::DecodeError(why)) => format!("decode_error ({why})"),
        Judged::Refused(reason) => image_reason(reason).as_str().into(),
    }
}
