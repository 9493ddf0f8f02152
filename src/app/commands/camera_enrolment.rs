//! State of `enrol_from_camera`, the one command that waits for a person before the camera.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::app::commands::reply_to::ReplyTo;
use crate::app::pipeline::inference::CameraJudgement;
use crate::enrol::camera::{FaceView, Progress};
use crate::ids::{Name, SubjectId};
use crate::recognise::engine::EngineError;
use crate::store::{PhotographDigest, Standing};
use crate::wire::consent::Consent;

/// At most one command waits for a person.
#[derive(Default)]
pub(super) struct CameraEnrolment {
    /// Just begun, to be taken by the loop.
    pub(super) begun: Mutex<Option<Waiting>>,
    /// The request id, until the reply is given.
    pub(super) request: Mutex<Option<String>>,
}

/// The subject to be enrolled, and how.
pub(super) struct EnrolmentRequest {
    pub id: SubjectId,
    pub name: Name,
    pub replace: bool,
    pub allow_duplicate: bool,
    pub consent: Option<Consent>,
    /// Where the subject stood when the command came.
    pub standing: Standing,
}

/// What an enrolment was made of.
pub(super) enum EnrolmentSource {
    Photographs(Vec<PhotographDigest>),
    /// The camera; `missing` are the views that the person did not show.
    Camera {
        missing: Vec<FaceView>,
    },
}

/// How long the inference thread may take to end an enrolment: it checks between two frames.
const CLOSING_MAX: Duration = Duration::from_secs(2);

/// A command that waits for a person.
pub(super) struct Waiting {
    pub(super) to: ReplyTo,
    pub(super) wanted: EnrolmentRequest,
    pub(super) until: Instant,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) judged: oneshot::Receiver<Result<CameraJudgement, EngineError>>,
}

/// How the wait ended.
pub(super) enum Ended {
    Judged(Result<CameraJudgement, EngineError>),
    TimeIsUp,
    /// The inference thread is gone.
    Stopping,
}

impl Waiting {
    /// May be dropped and awaited again. When the time is up, the inference thread is asked for what
    /// it has.
    pub(super) async fn ended(&mut self) -> Ended {
        match timeout_at(self.until, &mut self.judged).await {
            Ok(Ok(judged)) => return Ended::Judged(judged),
            Ok(Err(_)) => return Ended::Stopping,
            Err(_) => {}
        }
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).is_closing = true;
        match timeout(CLOSING_MAX, &mut self.judged).await {
            Ok(Ok(judged)) => Ended::Judged(judged),
            _ => Ended::TimeIsUp,
        }
    }
}
