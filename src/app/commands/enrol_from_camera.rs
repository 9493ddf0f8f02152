//! `enrol_from_camera`: the one command that waits for a person. Its reply follows when somebody was
//! enrolled, or when its time is up; other commands are executed meanwhile.
//!
//! It is acknowledged to the broker at once: unacknowledged, it would hold back the
//! acknowledgements of all behind it. So that it is never forgotten, the database has its request
//! id, and a start that finds one replies in its stead.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::app::commands::camera_enrolment::EnrolmentRequest;
use crate::app::commands::camera_enrolment::{Ended, EnrolmentSource, Waiting};
use crate::app::commands::commander::Commander;
use crate::app::commands::failure::{CommandError, reject, reject_for_now};
use crate::app::commands::reply_to::ReplyTo;
use crate::app::pipeline::inference::{CameraJudgement, Job};
use crate::enrol::camera::{Progress, format_tally};
use crate::health::CameraHealth;
use crate::store::{StoreError, Tx};
use crate::wire::command::{EnrolFromCamera, ErrorCode, Rejection};
use crate::wire::reply;

pub(super) const VERB: &str = "enrol_from_camera";

/// In `meta`: the request that waits for a person before the camera.
const WAITING: &str = "enrolling_from_camera";

impl Commander {
    pub(super) async fn enrol_from_camera(
        &self,
        to: ReplyTo,
        command: EnrolFromCamera,
    ) -> Result<(), CommandError> {
        if let Some(other) =
            self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            if *other == to.request_id && to.is_mqtt() {
                // Redelivered: its reply follows.
                return Ok(());
            }
            return Err(reject_for_now(
                ErrorCode::Busy,
                "somebody else is being enrolled by the camera; send it again later",
            ));
        }
        self.check_consent(&command.subject_id, command.consent.as_ref()).await?;
        let standing = self.standing(&command.subject_id).await?;
        match self.health.camera_state() {
            CameraHealth::Streaming => {}
            CameraHealth::Absent => {
                return Err(reject_for_now(ErrorCode::NotReady, "this device has no camera"));
            }
            CameraHealth::Lost => {
                return Err(reject_for_now(
                    ErrorCode::NotReady,
                    "the camera is lost; see its cable",
                ));
            }
        }
        let note = to.request_id.clone();
        self.store.write_async(move |tx| tx.put_meta(WAITING, note.as_bytes())).await?;
        let (reply, judged) = oneshot::channel();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let EnrolFromCamera {
            subject_id,
            name,
            samples,
            timeout,
            replace,
            allow_duplicate,
            consent,
        } = command;
        let job = Job::EnrolFromCamera {
            subject: subject_id.clone(),
            replace,
            samples,
            progress: Arc::clone(&progress),
            reply,
        };
        if let Err(fault) = self.submit(job) {
            self.clear_waiting().await?;
            return Err(fault);
        }
        let until = Instant::now() + timeout;
        let wanted =
            EnrolmentRequest { id: subject_id, name, replace, allow_duplicate, consent, standing };
        *self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(to.request_id.clone());
        let waiting = Waiting { to, wanted, until, progress, judged };
        *self.camera_enrolment.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
        Ok(())
    }

    pub(super) fn take_new_enrolment(&self) -> Option<Waiting> {
        self.camera_enrolment.begun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stores the enrolment and replies, or rejects it.
    pub(super) async fn end_enrolment(
        &self,
        waiting: Waiting,
        ended: Ended,
    ) -> Result<(), StoreError> {
        let Waiting { to, wanted, progress, .. } = waiting;
        let outcome = match ended {
            // The next start replies.
            Ended::Stopping => return Ok(()),
            Ended::Judged(Ok(CameraJudgement { judgement, missing })) => {
                let source = EnrolmentSource::Camera { missing };
                self.store_judged(to.clone(), wanted, judgement, source).await
            }
            Ended::Judged(Err(error)) => Err(error.into()),
            Ended::TimeIsUp => {
                let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                let seen = format_tally(&progress.tally);
                drop(progress);
                let seen = if seen.is_empty() { "no frame came".to_owned() } else { seen };
                Err(reject(
                    ErrorCode::TimedOut,
                    format!("nobody could be enrolled in time: {seen}"),
                ))
            }
        };
        if !self.reply_to(to, outcome.map(Some)).await? {
            return Ok(());
        }
        *self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let forgotten = self.store.write_async(|tx| tx.put_meta(WAITING, b"")).await;
        self.log_unless_fatal(forgotten)
    }

    async fn clear_waiting(&self) -> Result<(), CommandError> {
        Ok(self.store.write_async(|tx| tx.put_meta(WAITING, b"")).await?)
    }

    /// Rejects, at a start, the command that waited when the device was stopped.
    pub(super) async fn reject_interrupted(&self) -> Result<(), StoreError> {
        let waited = self.store.write_async(|tx: &mut Tx<'_>| {
            let request_id = tx
                .meta(WAITING)?
                .and_then(|it| String::from_utf8(it).ok())
                .filter(|it| !it.is_empty());
            tx.put_meta(WAITING, b"")?;
            let Some(request_id) = request_id else {
                return Ok(());
            };
            // Stored, so that a command that had not been acknowledged does not begin anew and enrol
            // another person.
            let message =
                "the device was stopped while it waited for somebody; send another command";
            let rejection = Rejection::new(Some(&request_id), ErrorCode::TimedOut, message);
            let reply = reply::rejected(VERB, &rejection);
            tx.store_and_queue_reply(
                &request_id,
                VERB,
                &reply::topic_part(Some(&request_id)),
                &reply,
            )
            .map(drop)
        });
        let stored = waited.await;
        self.log_unless_fatal(stored)
    }
}
