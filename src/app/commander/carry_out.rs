//! What each command does. Each ends with one transaction that holds its effect, its event and its answer.

use std::collections::HashSet;
use std::sync::mpsc::TrySendError;

use serde::Serialize;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Commander, Fault, JOB_PATIENCE, not_now, refuse};
use crate::app::inference::{Job, LookError, Seen};
use crate::app::recorder::{record_visit, visits_in};
use crate::attend::venue::Venue;
use crate::clock::{Stamp, Stopwatch, rfc3339};
use crate::enrol::{Judged, Judgement, Reason};
use crate::recognise::decision::Decision;
use crate::recognise::engine::EngineError;
use crate::recognise::face::{ModelDigest, Name, SubjectId, Template};
use crate::recognise::gallery;
use crate::recognise::quality::Flaw;
use crate::record::command::answer::{
    self, Attended, Buried, Enrolled, FaceEntry, ImageOutcome, ImageReason, NotEnrolled, Owed, Recognised, Renamed,
    SubjectEntry, SubjectList, Synced, Withdrawn,
};
use crate::record::command::{
    Attend, Command, EncodedImage, Enrol, ErrorCode, Refusal, Rename, Subjects, Verb, Withdraw,
};
use crate::record::event::{Body, Enrolment, EnrolmentAction, NewEvent, SubjectRef};
use crate::record::store::{BuriedRow, NewReference, SinkStanding, Standing, StoreError, Tx};

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
    let entry = |row: &BuriedRow| Buried { sink: row.sink.clone(), seq: row.event_seq, reason: row.reason.clone() };
    Synced {
        owed: standing.sinks.iter().map(owed).collect(),
        buried: buried.iter().map(entry).collect(),
        complete_through: standing.complete_through(None),
        retried,
    }
}

impl Commander {
    pub(super) async fn carry_out(&self, command: Command) -> Result<(), Fault> {
        let request_id = command.request_id;
        match command.verb {
            Verb::Enrol(enrol) => self.enrol(request_id, enrol).await,
            Verb::Withdraw(withdraw) => self.withdraw(request_id, withdraw).await,
            Verb::Rename(rename) => self.rename(request_id, rename).await,
            Verb::Subjects(subjects) => self.subjects(request_id, subjects).await,
            Verb::Recognise(recognise) => self.recognise(request_id, &recognise.image).await,
            Verb::Attend(attend) => self.attend(request_id, attend).await,
            Verb::Attendance(attendance) => self.attendance(request_id, attendance).await,
            Verb::VenuePut(venue) => self.venue_put(request_id, venue).await,
            Verb::VenueDelete(delete) => self.venue_delete(request_id, delete.venue).await,
            Verb::Venues(page) => self.venue_list(request_id, page).await,
            Verb::Sync(sync) => self.sync(request_id, sync.retry_buried).await,
        }
    }

    async fn enrol(&self, request_id: String, enrol: Enrol) -> Result<(), Fault> {
        let judgement = self.judge(&enrol).await?;
        if let Some((code, message)) = unfit(&judgement, enrol.allow_duplicate) {
            let images = judgement.photographs.iter().map(outcome).collect();
            let details = Some(NotEnrolled { images, duplicate_of: judgement.duplicate_of });
            return Err(Fault::Refused { refusal: Refusal::new(None, code, message), lasting: true, details });
        }
        let (id, name, replace) = (enrol.subject_id.clone(), enrol.name.clone(), enrol.replace);
        let enrolment = NewEnrolment::new(id, name, replace, &judgement, self.embedder, self.clock.now());
        let images = judgement.photographs.iter().map(outcome).collect::<Vec<_>>();
        let duplicate_of = judgement.duplicate_of.clone();
        let write = move |tx: &mut Tx<'_>| {
            let references = enrolment.store(tx, Some(&request_id))?;
            let subject_id = enrolment.subject.id.clone();
            let (images, duplicate_of) = (images.clone(), duplicate_of.clone());
            answer(tx, &request_id, "enrol", &Enrolled { subject_id, references, images, duplicate_of })
        };
        let _alone = self.gallery.alone().await;
        self.store.write_async(write).await?;
        let templates: Vec<Template> = judgement.accepted().map(|(template, _)| template.clone()).collect();
        let subject = gallery::Subject { id: enrol.subject_id, name: enrol.name };
        self.gallery.update(|gallery| {
            let gallery = if replace { gallery.without(&subject.id) } else { gallery };
            gallery.with(subject, &templates)
        });
        self.changed.notify_one();
        Ok(())
    }

    async fn withdraw(&self, request_id: String, withdraw: Withdraw) -> Result<(), Fault> {
        let (id, erase, at) = (withdraw.subject_id.clone(), withdraw.erase, self.clock.now());
        let write = move |tx: &mut Tx<'_>| {
            let known = tx.subject(&id)?;
            let (references, events, subject, action) = if erase {
                let erased = tx.erase_subject(&id)?;
                if !erased.enrolled && erased.events == 0 {
                    return Err(StoreError::UnknownSubject { id: id.clone() });
                }
                (erased.references, erased.events, None, EnrolmentAction::Erased)
            } else {
                let references = tx.delete_subject(&id)?;
                let subject = known.map(|known| SubjectRef { id: known.id, name: known.name });
                (references, 0, subject, EnrolmentAction::Withdrawn)
            };
            append_enrolment(tx, at, action, subject, references, Some(&request_id))?;
            answer(tx, &request_id, "withdraw", &Withdrawn { references, erased: erase, events })
        };
        let _alone = self.gallery.alone().await;
        self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.without(&withdraw.subject_id));
        self.changed.notify_one();
        Ok(())
    }

    async fn rename(&self, request_id: String, rename: Rename) -> Result<(), Fault> {
        let (id, name, at) = (rename.subject_id.clone(), rename.name.clone(), self.clock.now());
        let write = move |tx: &mut Tx<'_>| {
            tx.rename_subject(&id, &name)?;
            let count = tx.subject(&id)?.map_or(0, |subject| subject.references);
            let subject = Some(SubjectRef { id: id.clone(), name: name.clone() });
            append_enrolment(tx, at, EnrolmentAction::Renamed, subject, count, Some(&request_id))?;
            answer(tx, &request_id, "rename", &Renamed { subject_id: id.clone(), name: name.clone() })
        };
        let _alone = self.gallery.alone().await;
        self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.renamed(&rename.subject_id, rename.name));
        Ok(())
    }

    async fn subjects(&self, request_id: String, page: Subjects) -> Result<(), Fault> {
        let write = move |tx: &mut Tx<'_>| {
            // One more than asked for tells whether there is another page.
            let mut found = tx.subjects(page.after.as_ref(), page.limit + 1)?;
            let more = found.len() > page.limit as usize;
            found.truncate(page.limit as usize);
            let next_after = found.last().filter(|_| more).map(|last| last.id.clone());
            let entry = |subject: crate::record::store::Subject| SubjectEntry {
                id: subject.id,
                name: subject.name,
                references: subject.references,
                enrolled_at: rfc3339(subject.enrolled_ms),
                model_digest: subject.embedder.map(|digest| digest.to_string()),
            };
            let subjects = found.into_iter().map(entry).collect();
            answer(tx, &request_id, "subjects", &SubjectList { subjects, next_after })
        };
        Ok(self.store.write_async(write).await?)
    }

    async fn recognise(&self, request_id: String, image: &EncodedImage) -> Result<(), Fault> {
        let faces = self.look(image).await?;
        let entry = |seen: &Seen| {
            let outline = &seen.bounding_box;
            let (subject, score) = match &seen.decision {
                Decision::Identified(found) => (Some(subject_of(&found.subject)), Some(found.score)),
                Decision::Unknown { best_score, .. } => (None, *best_score),
                Decision::Undecided => (None, None),
            };
            FaceEntry { bounding_box: [outline.left, outline.top, outline.right, outline.bottom], subject, score }
        };
        let entries: Vec<FaceEntry> = faces.iter().map(entry).collect();
        let names = once_each(entries.iter().filter_map(|face| face.subject.as_ref()));
        let body = Recognised { faces: entries, names };
        // Nothing is recorded, not even the answer: the same request is simply looked at again.
        let topic = answer::topic_part(Some(&request_id));
        let reply = answer::accepted(&request_id, "recognise", &body);
        Ok(self.store.write_async(move |tx| tx.owe_reply(&topic, &reply)).await?)
    }

    async fn attend(&self, request_id: String, attend: Attend) -> Result<(), Fault> {
        let venue = self.venue(&attend.venue)?;
        let (watch, at) = (Stopwatch::start(), self.clock.now());
        let faces = self.look(&attend.image).await?;
        let latency_ms = watch.elapsed().as_millis() as u64;
        let visits = visits_in(&faces, attend.direction, latency_ms);
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
            answer(tx, &request_id, "attend", &Attended { venue: venue.id.clone(), recorded, recognised, event_ids })?;
            Ok(count)
        };
        let recorded = self.store.write_async(write).await?;
        self.health.recorded.add(recorded);
        Ok(())
    }

    async fn sync(&self, request_id: String, retry_buried: bool) -> Result<(), Fault> {
        let write = move |tx: &mut Tx<'_>| {
            let retried = if retry_buried { tx.retry_buried()? as u64 } else { 0 };
            let synced = synced(&tx.standing()?, &tx.buried(BURIED_TOLD)?, retried);
            answer(tx, &request_id, "sync", &synced)
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
        self.submit(Job::Enrol { subject: enrol.subject_id.clone(), photographs, answer })?;
        let judged = self.wait(answered).await?;
        judged.map_err(failed)
    }

    async fn look(&self, image: &EncodedImage) -> Result<Vec<Seen>, Fault> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Look { photograph: image.bytes().to_vec(), answer })?;
        match self.wait(answered).await? {
            Ok(seen) => Ok(seen),
            Err(LookError::Picture(error)) => Err(refuse(ErrorCode::BadImage, error.to_string())),
            Err(LookError::Engine(error)) => Err(failed(error)),
        }
    }

    fn submit(&self, job: Job) -> Result<(), Fault> {
        self.jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => not_now(ErrorCode::Busy, "the networks are busy; send the command again"),
            TrySendError::Disconnected(_) => Fault::Stopping,
        })
    }

    async fn wait<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, Fault> {
        match tokio::time::timeout(JOB_PATIENCE, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Fault::Stopping),
            Err(_) => Err(not_now(ErrorCode::TimedOut, format!("no answer from the networks in {JOB_PATIENCE:?}"))),
        }
    }
}

/// The networks failed: told in the log with the cause, to the sender without.
fn failed(error: EngineError) -> Fault {
    let said = error.to_string();
    tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "a command failed");
    not_now(ErrorCode::Internal, said)
}

/// Why nothing of an enrolment can be stored, if so.
pub fn unfit(judgement: &Judgement, allow_duplicate: bool) -> Option<(ErrorCode, String)> {
    if judgement.accepted().next().is_none() {
        let reasons: Vec<_> = judgement.photographs.iter().map(reason_text).collect();
        return Some((ErrorCode::NoUsableImage, format!("no image can be used: {}", reasons.join(", "))));
    }
    let other = judgement.duplicate_of.as_ref().filter(|_| !allow_duplicate)?;
    let message = format!("the face is already enrolled as {other}; allow_duplicate enrols it all the same");
    Some((ErrorCode::DuplicateSubject, message))
}

/// An enrolment about to be stored.
pub struct NewEnrolment {
    subject: SubjectRef,
    references: Vec<NewReference>,
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
        Self { subject, references, replace, at }
    }

    /// Stores subject, references and event; gives how many references the subject has now.
    pub fn store(&self, tx: &mut Tx<'_>, request_id: Option<&str>) -> Result<u32, StoreError> {
        let id = &self.subject.id;
        let action = if tx.subject(id)?.is_some() { EnrolmentAction::Updated } else { EnrolmentAction::Enrolled };
        tx.put_subject(id, &self.subject.name)?;
        if self.replace {
            tx.replace_references(id, &self.references)?;
        } else {
            tx.add_references(&self.references)?;
        }
        let references = tx.subject(id)?.map_or(0, |subject| subject.references);
        append_enrolment(tx, self.at, action, Some(self.subject.clone()), references, request_id)?;
        Ok(references)
    }
}

pub(super) fn answer(tx: &mut Tx<'_>, request_id: &str, verb: &str, body: &impl Serialize) -> Result<(), StoreError> {
    let reply = answer::accepted(request_id, verb, body);
    tx.put_answer(request_id, verb, &answer::topic_part(Some(request_id)), &reply)?;
    Ok(())
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
    tx.append_event(&NewEvent::new(at, Body::Enrolment(Enrolment { action, subject, references, request_id })))?;
    Ok(())
}

fn subject_of(subject: &gallery::Subject) -> SubjectRef {
    SubjectRef { id: subject.id.clone(), name: subject.name.clone() }
}

fn once_each<'a>(subjects: impl Iterator<Item = &'a SubjectRef>) -> Vec<Name> {
    let mut seen = HashSet::new();
    subjects.filter(|subject| seen.insert(subject.id.clone())).map(|subject| subject.name.clone()).collect()
}

fn outcome(judged: &Judged) -> ImageOutcome {
    match judged {
        Judged::Accepted { .. } => ImageOutcome { accepted: true, reason: None },
        Judged::Refused(reason) => ImageOutcome { accepted: false, reason: Some(image_reason(reason)) },
    }
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
