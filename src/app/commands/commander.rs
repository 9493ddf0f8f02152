//! What the handlers of commands share: the store, the gallery, the queue of the inference thread and the limits.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::app::commands::attempts::Attempts;
use crate::app::commands::camera_enrolment::CameraEnrolment;
use crate::app::commands::reply_to::Request;
use crate::app::context::Context;
use crate::app::pipeline::inference::Job;
use crate::app::state::gallery::GalleryCell;
use crate::app::state::venues::VenueRegistry;
use crate::clock::Clock;
use crate::health::Health;
use crate::keys::jws::PublicKey;
use crate::mqtt::discovery::Birth;
use crate::mqtt::link::Link;
use crate::mqtt::topics::Topics;
use crate::recognise::face::Embedder;
use crate::recognise::picture::PictureLimits;
use crate::store::Store;
use crate::wire::command::Limits;

/// A command waits this long for the models.
pub(super) const JOB_PATIENCE: Duration = Duration::from_secs(20);

/// How much of a payload is searched for its request id when it is not read as a whole.
pub(super) const HEAD_BYTES: usize = 64 << 10;

pub struct Commander {
    pub(super) topics: Topics,
    pub(super) limits: Limits,
    pub(super) picture: PictureLimits,
    pub(super) per_minute_max: u32,
    /// Keys whose signed commands are executed. None: every command that the broker delivers.
    pub(super) trusted_keys: Vec<PublicKey>,
    pub(super) venues: Arc<VenueRegistry>,
    pub(super) store: Store,
    pub(super) gallery: Arc<GalleryCell>,
    pub(super) embedder: Embedder,
    pub(super) is_consent_required: bool,
    pub(super) jobs: SyncSender<Job>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) health: Arc<Health>,
    /// None: commands come by HTTP only.
    pub(super) link: Option<Link>,
    /// From HTTP.
    pub(super) requests: mpsc::Receiver<Request>,
    /// Detects that Home Assistant has started, on the same link.
    pub(super) birth: Option<Birth>,
    /// Notified when the health message is to be published at once.
    pub(super) changed: Arc<tokio::sync::Notify>,
    pub(super) camera_enrolment: CameraEnrolment,
    pub(super) attempts: Attempts,
}

impl Commander {
    pub fn new(
        ctx: Context,
        jobs: SyncSender<Job>,
        requests: mpsc::Receiver<Request>,
        link: Option<Link>,
        birth: Option<Birth>,
    ) -> Self {
        let limits = ctx.command_limits();
        let Context {
            settings,
            topics,
            venues,
            store,
            gallery,
            embedder,
            clock,
            health,
            changed,
            ..
        } = ctx;
        Self {
            topics,
            limits,
            picture: settings.recognition.picture(),
            per_minute_max: settings.commands.per_minute_max,
            trusted_keys: settings.commands.trusted_keys.clone(),
            venues,
            store,
            gallery,
            embedder,
            is_consent_required: settings.is_consent_required,
            jobs,
            clock,
            health,
            link,
            requests,
            birth,
            changed,
            camera_enrolment: CameraEnrolment::default(),
            attempts: Attempts::open(&settings.state_dir),
        }
    }
}

/// Returns the request id in the beginning of a payload that was dropped: the first
/// `"request_id":"…"` with a valid id.
pub(super) fn request_id_in(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let (_, rest) = text.split_once("\"request_id\"")?;
    let id =
        rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.split('"').next()?;
    crate::ids::check_id(id).ok().map(|()| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_is_read_from_payload_head() {
        for (head, expected) in [
            (&br#"{"schema":1,"request_id":"r-1","images":["AAAA"#[..], Some("r-1")),
            (br#"{ "request_id" : "r-2" ,"#, Some("r-2")),
            (br#"{"request_id":"a/b","#, None),
            (br#"{"request_id":"cut"#, Some("cut")),
            (br#"{"request_id":7}"#, None),
            (b"\xff\xfe", None),
        ] {
            assert_eq!(request_id_in(head).as_deref(), expected);
        }
    }
}
