//! Frames from a camera, or from a recording played as one.
//!
//! A source is a camera of the kernel (`v4l2`), a command (`pipe`), a camera in the network
//! (`http_stream`) or a recording (`replay`).
//!
//! A source delivers frames into the one-place slot (`recognise::frame::Latest`); the capture
//! thread of `app` drives it. A frame holds its bytes as delivered and is decoded when it is used
//! (`encoded`), then turned, cut and masked according to the mounting of the camera (`view`).

pub mod encoded;
pub mod fault;
pub mod http_stream;
pub mod pipe;
pub mod replay;
pub mod retry;
pub mod secret;
pub mod stream;
pub mod v4l2;
pub mod view;

#[cfg(test)]
#[path = "../../tests/support/jpegs.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod jpegs;

use std::sync::Arc;
use std::time::Duration;

use crate::camera::fault::{CameraFault, FaultKind};
use crate::recognise::frame::Pixels;

/// What a source has next.
#[derive(Debug)]
pub enum Next {
    Frame(SourceFrame),
    /// Nothing yet, after a moment of waiting: call again at once.
    Nothing,
    /// Nothing more will come.
    End,
}

#[derive(Debug)]
pub struct SourceFrame {
    pub pixels: Arc<dyn Pixels>,
    pub when: FrameTime,
    /// Frames that were lost between the one before and this one.
    pub missed: u32,
}

/// When a frame was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameTime {
    /// The time since the start of the recording.
    Media(Duration),
    /// How long ago: the time in the driver and on the way here.
    Age(Duration),
}

/// A source that gives no frame now.
#[derive(Debug, thiserror::Error)]
pub enum CameraError {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} cannot be used: {why}")]
    Unusable { what: String, why: String },
    /// One frame is left out; the next may be whole.
    #[error("a damaged frame: {why}")]
    Damaged { why: String },
    /// The camera delivers nothing more. The source tries to reopen it with each call of `next`.
    #[error("the camera is lost")]
    Lost(#[source] CameraFault),
}

/// How long a source without a limit of its own may deliver nothing but unreadable pictures: as
/// long as a camera by default.
const UNREADABLE_MAX: Duration = Duration::from_secs(4);

/// The loss of a camera of which no picture could be read for so long.
pub fn unreadable_fault(long: Duration, why: &str) -> CameraFault {
    let ms = long.as_millis();
    let reason = format!("nothing but damaged pictures for {ms} ms, the last: {why}");
    CameraFault::new(FaultKind::Damaged, reason)
}

/// A camera, or something played as one.
pub trait FrameSource: Send {
    /// The next frame, or that there is none yet; returns within a fraction of a second. A replay
    /// does not wait for a frame's time to come: the capture thread paces by [`FrameTime::Media`].
    fn next(&mut self) -> Result<Next, CameraError>;

    /// Called when pictures came and none could be read for so long; `why` concerns the last one.
    /// An error means that the camera is lost.
    fn unreadable_for(&mut self, long: Duration, why: &str) -> Result<(), CameraError> {
        if long < UNREADABLE_MAX {
            return Ok(());
        }
        Err(CameraError::Lost(unreadable_fault(long, why)))
    }

    /// What it is, for logs: no path of a photograph, which may bear a name.
    fn describe(&self) -> String;

    /// Advice for the operator when the camera is lost, if there is any.
    fn hint(&self) -> Option<&'static str> {
        None
    }
}
