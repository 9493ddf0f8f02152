//! Frames from a camera, or from a recording played as one.
//!
//! A source delivers decoded frames at its own pace into the one-place slot (`recognise::frame::Latest`); the capture
//! thread of `app` drives it. Not here yet: V4L2, which implements the same trait.

pub mod replay;

use std::sync::Arc;
use std::time::Duration;

use crate::recognise::picture::Picture;

/// What a source has next.
#[derive(Debug)]
pub enum Next {
    Frame(SourceFrame),
    /// Nothing more will come.
    End,
}

#[derive(Debug)]
pub struct SourceFrame {
    pub picture: Arc<Picture>,
    /// The frame's place in the source's own time, from its start.
    pub at: Duration,
}

/// A source that gives no frame now: the capture thread reports it and tries again.
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
}

/// A camera, or something played as one.
pub trait FrameSource: Send {
    /// The next frame. Does not wait for its time to come: the capture thread paces by [`SourceFrame::at`].
    fn next(&mut self) -> Result<Next, CameraError>;

    /// What it is, for logs: no path of a photograph, which may bear a name.
    fn describe(&self) -> String;
}
