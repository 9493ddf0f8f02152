//! What each command leads to, and the handlers that use the models or list who is enrolled. Each
//! ends with one transaction that holds its effect, its event and its reply.
//!
//! The others: `enrolment`, `consent`, `enrol_from_camera`, `attendance` (the record and venues), `sync`.

use std::collections::HashSet;
use std::sync::mpsc::TrySendError;

use tokio::sync::oneshot;

use crate::app::commands::commander::{Commander, JOB_PATIENCE};
use crate::app::commands::failure::{CommandError, reject, reject_for_now};
use crate::app::commands::page::Page;
use crate::app::commands::reply_to::{ReplyTo, WrittenReply};
use crate::app::pipeline::inference::{IdentifiedFace, Job};
use crate::app::pipeline::recorder::{Visit, VisitOutcome, record_visit, recorded_at};
use crate::app::supervise::run_on_thread;
use crate::attend::Direction;
use crate::attend::venue::Venue;
use crate::clock::{Stopwatch, rfc3339};
use crate::ids::Name;
use crate::recognise::decision::Decision;
use crate::recognise::gallery;
use crate::recognise::picture::Picture;
use crate::store::{Recognisable, Tx};
use crate::wire::command::{Attend, EncodedImage, ErrorCode, Subjects, Verb};
use crate::wire::event::SubjectRef;
use crate::wire::reply::{
    AlreadyRecorded, Attended, FaceEntry, Recognised, Reply, SubjectEntry, SubjectList,
};

impl Commander {
    /// Executes a command. `None`: the reply follows later.
    pub(super) async fn execute(
        &self,
        to: ReplyTo,
        verb: Verb,
    ) -> Result<Option<WrittenReply>, CommandError> {
        let reply = match verb {
            Verb::Enrol(enrol) => self.enrol(to, enrol).await,
            Verb::EnrolFromCamera(command) => {
                return self.enrol_from_camera(to, command).await.map(|()| None);
            }
            Verb::Withdraw(withdraw) => self.withdraw(to, withdraw).await,
            Verb::Consent(change) => self.change_consent(to, change).await,
            Verb::Rename(rename) => self.rename(to, rename).await,
            Verb::Subjects(subjects) => self.subjects(to, subjects).await,
            Verb::Recognise(recognise) => self.recognise(to, recognise.image).await,
            Verb::Attend(attend) => self.attend(to, attend).await,
            Verb::Attendance(attendance) => self.attendance(to, attendance).await,
            Verb::VenuePut(venue) => self.venue_put(to, venue).await,
            Verb::VenueDelete(delete) => self.venue_delete(to, delete.venue).await,
            Verb::Venues(page) => self.venue_list(to, page).await,
            Verb::Sync(sync) => self.sync(to, sync.retry_dead_letters).await,
        };
        reply.map(Some)
    }

    async fn subjects(&self, to: ReplyTo, page: Subjects) -> Result<WrittenReply, CommandError> {
        let embedder = self.embedder;
        let read = move |tx: &Tx<'_>| {
            let erasures = tx.newest_erasure()?;
            // One more than requested shows whether there is another page.
            let found = tx.subjects(page.after.as_ref(), page.limit + 1)?;
            let mut subjects = Vec::with_capacity(found.len());
            for subject in found {
                let recognition = tx.recognition_of(&subject.id, &embedder)?;
                subjects.push(SubjectEntry {
                    recognisable: recognition != Recognisable::No,
                    partial: recognition == Recognisable::ByFirstPart,
                    single_reference: subject.references == 1,
                    consent: subject.consent,
                    id: subject.id,
                    name: subject.name,
                    references: subject.references,
                    enrolled_at: rfc3339(subject.enrolled_ms),
                    model_digest: subject.embedder.map(|digest| digest.to_string()),
                });
            }
            let Page { entries: subjects, more } = Page::of(subjects, page.limit as usize);
            let next_after = subjects.last().filter(|_| more).map(|last| last.id.clone());
            Ok((SubjectList { subjects, next_after }, erasures))
        };
        let (list, erasures) = self.store.read(read).await?;
        self.reply_with_report(to, Reply::Subjects(list), Some(erasures)).await
    }

    async fn recognise(
        &self,
        to: ReplyTo,
        image: EncodedImage,
    ) -> Result<WrittenReply, CommandError> {
        let faces = self.identify(image).await?;
        let entry = |seen: &IdentifiedFace| {
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
        // Nothing is recorded, not even the reply: the same request is simply executed again.
        if !to.is_mqtt() {
            return Ok(to.write(recognised(entries)));
        }
        let write = move |tx: &mut Tx<'_>| {
            // With no reply stored, nothing else shows that this request came to its end.
            tx.end_signed(&to.request_id)?;
            let mut faces = entries.clone();
            for face in &mut faces {
                if let Some(seen) = face.subject.take() {
                    face.subject = tx.enrolled_now(&seen.id)?;
                }
            }
            let reply = to.write(recognised(faces));
            to.queue(tx, &reply.json)?;
            Ok(reply)
        };
        Ok(self.store.write_async(write).await?)
    }

    async fn attend(&self, to: ReplyTo, attend: Attend) -> Result<WrittenReply, CommandError> {
        let venue = self.venue(&attend.venue)?;
        let watch = Stopwatch::start();
        let at = self.clock.now();
        let faces = self.identify(attend.image).await?;
        let latency_ms = watch.elapsed().as_millis() as u64;
        let visits = visits_of(&faces, attend.direction, latency_ms);
        let is_unknown = |seen: &&IdentifiedFace| !matches!(seen.decision, Decision::Identified(_));
        let unknown = faces.iter().filter(is_unknown).count() as u32;
        let clock = std::sync::Arc::clone(&self.clock);
        let write = move |tx: &mut Tx<'_>| {
            let venue_id = venue.id.clone();
            let mut attended = Attended { venue: venue_id, unknown, ..Attended::default() };
            for visit in &visits {
                match record_visit(tx, &venue, visit, at, clock.as_ref())? {
                    VisitOutcome::Recorded { subject, event } => {
                        attended.event_ids.push(event.event_id);
                        attended.recorded.push(subject.name.clone());
                        attended.add_recognised(subject);
                    }
                    VisitOutcome::Repeated { subject, recorded } => {
                        attended.already_recorded.push(AlreadyRecorded {
                            subject_id: subject.id.clone(),
                            direction: recorded.direction,
                            recorded_at: recorded_at(&recorded),
                            session: recorded.session,
                        });
                        attended.add_recognised(subject);
                    }
                    // The gallery that was searched is older than the withdrawal.
                    VisitOutcome::NotEnrolled => attended.unknown += 1,
                }
            }
            let count = attended.event_ids.len() as u64;
            Ok((to.accept(tx, Reply::Attended(attended))?, count))
        };
        let (reply, count) = self.store.write_async(write).await?;
        self.health.recorded.add(count);
        Ok(reply)
    }

    pub(super) fn venue(&self, id: &str) -> Result<Venue, CommandError> {
        self.venues.find(id).ok_or_else(|| {
            let message = "this device does not know the venue: `venue_put` it, or add a [[venue]] to its config.toml";
            reject(ErrorCode::UnknownVenue, message)
        })
    }

    async fn identify(&self, image: EncodedImage) -> Result<Vec<IdentifiedFace>, CommandError> {
        let limits = self.picture;
        let decoded =
            run_on_thread("picture", move || Picture::decode(image.bytes(), limits)).await;
        let decoded = decoded.ok_or_else(|| {
            reject_for_now(ErrorCode::Busy, "no thread could be started; try again")
        })?;
        let picture = decoded.map_err(|error| reject(ErrorCode::BadImage, error.to_string()))?;
        let (reply, replied) = oneshot::channel();
        self.submit(Job::Identify { picture, reply })?;
        Ok(self.wait(replied).await??)
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), CommandError> {
        self.jobs.try_send(job).map_err(|rejected| match rejected {
            TrySendError::Full(_) => {
                reject_for_now(ErrorCode::Busy, "the models are busy; send the command again")
            }
            TrySendError::Disconnected(_) => CommandError::Stopping,
        })
    }

    pub(super) async fn wait<T>(&self, replied: oneshot::Receiver<T>) -> Result<T, CommandError> {
        match tokio::time::timeout(JOB_PATIENCE, replied).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(CommandError::Stopping),
            Err(_) => Err(reject_for_now(
                ErrorCode::TimedOut,
                format!("no answer from the models in {JOB_PATIENCE:?}"),
            )),
        }
    }
}

fn subject_of(subject: &gallery::Subject) -> SubjectRef {
    SubjectRef { id: subject.id.clone(), name: subject.name.clone() }
}

/// One visit for each person identified; a person seen twice (a mirror) counts once.
fn visits_of(
    faces: &[IdentifiedFace],
    direction: Option<Direction>,
    latency_ms: u64,
) -> Vec<Visit> {
    let mut seen = HashSet::new();
    let mut visits = Vec::new();
    for face in faces {
        let Decision::Identified(found) = &face.decision else { continue };
        if seen.insert(&found.subject.id) {
            visits.push(Visit {
                subject: subject_of(&found.subject),
                direction,
                score: found.score,
                threshold: found.threshold,
                frames: 1,
                track_ms: 0,
                latency_ms,
            });
        }
    }
    visits
}

fn recognised(faces: Vec<FaceEntry>) -> Reply {
    let names = once_each(faces.iter().filter_map(|face| face.subject.as_ref()));
    Reply::Recognised(Recognised { faces, names })
}

fn once_each<'a>(subjects: impl Iterator<Item = &'a SubjectRef>) -> Vec<Name> {
    let mut seen = HashSet::new();
    subjects
        .filter(|subject| seen.insert(subject.id.clone()))
        .map(|subject| subject.name.clone())
        .collect()
}
