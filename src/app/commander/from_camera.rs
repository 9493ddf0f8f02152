//! `enrol_from_camera`: the one command that waits for somebody to come. It is answered when they were there, or when its
//! time is up; other commands go on meanwhile.
//!
//! It is acknowledged to the broker at once: unacknowledged, it would hold back the acknowledgements of all behind it. So
//! that it is never forgotten, the database says whom it waits for, and a start that finds that answers in its stead.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::asked::Asked;
use super::carry_out::Wanted;
use super::{Commander, Fault, not_now, refuse};
use crate::app::inference::Job;
use crate::enrol::Judgement;
use crate::enrol::camera::{Tally, told};
use crate::health::CameraHealth;
use crate::recognise::engine::EngineError;
use crate::record::command::{EnrolFromCamera, ErrorCode, Refusal, answer};
use crate::record::store::{StoreError, Tx};

pub(super) const VERB: &str = "enrol_from_camera";

/// In `meta`: the request that waits for somebody before the camera.
const WAITING: &str = "enrolling_from_camera";

/// What waits for somebody to come.
pub(super) struct Waiting {
    asked: Asked,
    wanted: Wanted,
    until: Instant,
    tally: Arc<Mutex<Tally>>,
    answered: oneshot::Receiver<Result<Judgement, EngineError>>,
}

/// How it ended.
pub(super) enum Ended {
    Judged(Result<Judgement, EngineError>),
    TimeIsUp,
    /// The inference thread is gone.
    Stopping,
}

impl Waiting {
    /// May be dropped and awaited again.
    pub(super) async fn ended(&mut self) -> Ended {
        match tokio::time::timeout_at(self.until, &mut self.answered).await {
            Ok(Ok(judged)) => Ended::Judged(judged),
            Ok(Err(_)) => Ended::Stopping,
            Err(_) => Ended::TimeIsUp,
        }
    }
}

impl Commander {
    pub(super) async fn enrol_from_camera(
        &self,
        asked: Asked,
        command: EnrolFromCamera,
    ) -> Result<(), Fault> {
        if let Some(other) =
            self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            if *other == asked.request_id && asked.is_by_mqtt() {
                // Sent again: it will be answered.
                return Ok(());
            }
            return Err(not_now(
                ErrorCode::Busy,
                "somebody else is being enrolled by the camera; send it again later",
            ));
        }
        match self.health.camera() {
            CameraHealth::Streaming => {}
            CameraHealth::Absent => {
                return Err(not_now(ErrorCode::NotReady, "this device has no camera"));
            }
            CameraHealth::Lost => {
                return Err(not_now(ErrorCode::NotReady, "the camera is lost; see its cable"));
            }
        }
        let note = asked.request_id.clone();
        self.store.write_async(move |tx| tx.put_meta(WAITING, note.as_bytes())).await?;
        let (answer, answered) = oneshot::channel();
        let tally = Arc::new(Mutex::new(Tally::new()));
        let EnrolFromCamera { subject_id, name, samples, timeout, replace, allow_duplicate } =
            command;
        let job = Job::EnrolFromCamera {
            subject: subject_id.clone(),
            replace,
            samples,
            tally: Arc::clone(&tally),
            answer,
        };
        if let Err(fault) = self.submit(job) {
            self.forget_waiting().await?;
            return Err(fault);
        }
        let until = Instant::now() + timeout;
        let wanted = Wanted { id: subject_id, name, replace, allow_duplicate };
        *self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(asked.request_id.clone());
        let waiting = Waiting { asked, wanted, until, tally, answered };
        *self.camera_enrolment.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
        Ok(())
    }

    pub(super) fn newly_waiting(&self) -> Option<Waiting> {
        self.camera_enrolment.begun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stores and answers, or says why not.
    pub(super) async fn end_waiting(
        &self,
        waiting: Waiting,
        ended: Ended,
    ) -> Result<(), StoreError> {
        let Waiting { asked, wanted, tally, .. } = waiting;
        let outcome = match ended {
            // The next start tells.
            Ended::Stopping => return Ok(()),
            Ended::Judged(Ok(judgement)) => {
                self.store_judged(asked.clone(), VERB, wanted, judgement, Vec::new()).await
            }
            Ended::Judged(Err(error)) => Err(super::carry_out::failed(error)),
            Ended::TimeIsUp => {
                let seen = told(&tally.lock().unwrap_or_else(PoisonError::into_inner));
                let seen = if seen.is_empty() { "no frame came".to_owned() } else { seen };
                Err(refuse(
                    ErrorCode::TimedOut,
                    format!("nobody could be enrolled in time: {seen}"),
                ))
            }
        };
        if let Err(fault) = outcome
            && !self.tell_fault(asked, VERB, fault).await?
        {
            return Ok(());
        }
        *self.camera_enrolment.request.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let forgotten = self.store.write_async(|tx| tx.put_meta(WAITING, b"")).await;
        self.survive(forgotten)
    }

    async fn forget_waiting(&self) -> Result<(), Fault> {
        Ok(self.store.write_async(|tx| tx.put_meta(WAITING, b"")).await?)
    }

    /// At a start: whoever waited when the device was stopped is told to ask again.
    pub(super) async fn tell_interrupted(&self) -> Result<(), StoreError> {
        let waited = self.store.write_async(|tx: &mut Tx<'_>| {
            let request_id = tx
                .meta(WAITING)?
                .and_then(|it| String::from_utf8(it).ok())
                .filter(|it| !it.is_empty());
            tx.put_meta(WAITING, b"")?;
            let Some(request_id) = request_id else {
                return Ok(());
            };
            // Kept, so that a command that had not been acknowledged does not begin anew, and take whoever stands there.
            let message =
                "the device was stopped while it waited for somebody; send another command";
            let refusal = Refusal::new(Some(&request_id), ErrorCode::TimedOut, message);
            let reply = answer::refused(VERB, &refusal);
            tx.put_answer(&request_id, VERB, &answer::topic_part(Some(&request_id)), &reply)
                .map(drop)
        });
        let told = waited.await;
        self.survive(told)
    }
}
