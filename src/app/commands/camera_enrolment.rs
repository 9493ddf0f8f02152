//! State of `enrol_from_camera`, the one command that waits for a person before the camera.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::app::commands::reply_to::ReplyTo;
use crate::enrol::Judgement;
use crate::enrol::camera::Tally;
use crate::ids::{Name, SubjectId};
use crate::recognise::engine::EngineError;
use crate::store::Standing;
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

/// A command that waits for a person.
pub(super) struct Waiting {
    pub(super) to: ReplyTo,
    pub(super) wanted: EnrolmentRequest,
    pub(super) until: Instant,
    pub(super) tally: Arc<Mutex<Tally>>,
    pub(super) judged: oneshot::Receiver<Result<Judgement, EngineError>>,
}

/// How the wait ended.
pub(super) enum Ended {
    Judged(Result<Judgement, EngineError>),
    TimeIsUp,
    /// The inference thread is gone.
    Stopping,
}

impl Waiting {
    /// May be dropped and awaited again.
    pub(super) async fn ended(&mut self) -> Ended {
        match tokio::time::timeout_at(self.until, &mut self.judged).await {
            Ok(Ok(judgement)) => Ended::Judged(judgement),
            Ok(Err(_)) => Ended::Stopping,
            Err(_) => Ended::TimeIsUp,
        }
    }
}
