//! Frames from a camera, or from a recording played as one.
//!
//! A source delivers frames into the one-place slot (`recognise::frame::Latest`); the capture thread of `app` drives it. A
//! frame bears its bytes as delivered and is decoded by whoever looks at it (`encoded`), turned, cut and masked as the
//! camera hangs (`view`).

pub mod encoded;
pub mod replay;
pub mod v4l2;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use crate::recognise::frame::Pixels;

/// What a source has next.
#[derive(Debug)]
pub enum Next {
    Frame(SourceFrame),
    /// Nothing yet, after a moment of waiting: to be asked again at once.
    Nothing,
    /// Nothing more will come.
    End,
}

#[derive(Debug)]
pub struct SourceFrame {
    pub pixels: Arc<dyn Pixels>,
    pub when: When,
    /// Frames that were lost between the one before and this one.
    pub missed: u32,
}

/// When a frame was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time of the recording, from its start.
    At(Duration),
    /// This long ago: what the driver and the way here took.
    Ago(Duration),
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
    /// The camera gives nothing more. The source tries to get it back whenever it is asked for the next frame.
    #[error("the camera is lost: {reason}")]
    Lost { reason: String },
}

/// A camera, or something played as one.
pub trait FrameSource: Send {
    /// The next frame, or that there is none yet; returns within a fraction of a second. A replay does not wait for a
    /// frame's time to come: the capture thread paces by [`When::At`].
    fn next(&mut self) -> Result<Next, CameraError>;

    /// Told when whoever looks at the frames could read none of them for so long, though each was delivered as whole.
    /// An error is that the camera is lost.
    fn unreadable_for(&mut self, _long: Duration) -> Result<(), CameraError> {
        Ok(())
    }

    /// What it is, for logs: no path of a photograph, which may bear a name.
    fn describe(&self) -> String;

    /// What to tell whoever reads that the camera is lost, if there is something to be done.
    fn hint(&self) -> Option<&'static str> {
        None
    }
}
