//! A command whose standard output is the camera: motion JPEG, or raw pictures of a stated size.
//!
//! What must hold, whatever the command does: `next` returns within a second, and usually within
//! `SLICE`; a command that ends, stalls, or writes anything but pictures for `stall_after` is
//! `Lost`, with the last line of its standard error as the reason; its whole process group is ended
//! and waited for before the next is started; that is tried for ever, with a back-off that starts
//! anew only after [`STEADY`]. At most one command runs, and memory is bounded by one picture
//! (`camera::stream`).
//!
//! The command is an argument vector of `config.toml`, without a shell, and there is no other way
//! to set one. Ready commands are in `presets`.

pub mod child;
pub mod last_line;
pub mod presets;

use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use crate::camera::encoded::Buffers;
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::pipe::child::{ChildProcess, ReadOutcome};
use crate::camera::pipe::presets::Preset;
use crate::camera::retry::Retry;
use crate::camera::secret::Secret;
use crate::camera::stream::{PictureStream, READ_BYTES, StreamSettings, Timing};
use crate::camera::{CameraError, FrameSource, Next, unreadable_fault};

#[derive(Clone, Debug, PartialEq)]
pub struct PipeSettings {
    /// Program and arguments.
    pub command: Vec<String>,
    /// What the command reads from its standard input.
    pub input: Option<Secret>,
    /// What made the command, for advice.
    pub preset: Option<Preset>,
    pub stream: StreamSettings,
}

/// Longest single wait, so that a stop takes effect soon.
const SLICE: Duration = Duration::from_millis(100);
/// A command that delivered for this long is no failed attempt: the next loss begins with a short
/// pause again. Otherwise one that dies after each first picture would be started four times a
/// second.
const STEADY: Duration = Duration::from_secs(10);

pub struct PipeCamera {
    settings: PipeSettings,
    buffers: Arc<Buffers>,
    retry: Retry,
    running: Option<Running>,
    /// A process that did not end even when it was killed.
    stuck: Option<Child>,
    space: Vec<u8>,
}

struct Running {
    process: ChildProcess,
    stream: PictureStream,
}

impl PipeCamera {
    /// Starts nothing yet.
    pub fn new(settings: PipeSettings) -> Self {
        Self::retrying(settings, Retry::new())
    }

    pub fn retrying(settings: PipeSettings, retry: Retry) -> Self {
        let buffers = Arc::default();
        let space = vec![0; READ_BYTES];
        Self { settings, buffers, retry, running: None, stuck: None, space }
    }

    fn start(&mut self) -> Result<Running, CameraFault> {
        if let Some(stuck) = &mut self.stuck {
            if stuck.try_wait().is_ok_and(|status| status.is_none()) {
                let reason = "the command before does not end, even when it is killed";
                return Err(CameraFault::new(FaultKind::CommandStuck, reason));
            }
            self.stuck = None;
        }
        let PipeSettings { command, input, stream, .. } = &self.settings;
        let process = ChildProcess::start(command, input.as_ref())?;
        Ok(Running { process, stream: PictureStream::new(stream, &self.buffers) })
    }

    /// Ends the command. `fault`: why; without one, its output has ended.
    fn end(&mut self, fault: Option<&CameraFault>) -> CommandEnd {
        let Some(Running { mut process, stream }) = self.running.take() else {
            let fault = CameraFault::new(FaultKind::CommandEnded, "no command runs");
            return CommandEnd { fault, is_success: false };
        };
        if fault.is_none() {
            process.await_end();
        }
        let ended = process.stop();
        self.stuck = ended.stuck;
        let is_success = stream.frames() > 0 && ended.status.is_some_and(|status| status.success());
        let (kind, words) = match (fault, ended.status) {
            (Some(fault), _) => (fault.kind, fault.reason().to_owned()),
            (None, None) => (FaultKind::CommandStuck, "the command does not end".to_owned()),
            (None, Some(status)) => {
                let part = if stream.is_within_picture() { " within a picture" } else { "" };
                (FaultKind::CommandEnded, format!("the command ended{part} ({status})"))
            }
        };
        let reason = match ended.last_line.as_str() {
            "" => words,
            line => format!("{words}: {line}"),
        };
        if stream.frames() > 0 && stream.age() >= STEADY {
            self.retry.succeeded();
        }
        self.retry.failed();
        CommandEnd { fault: CameraFault::new(kind, reason), is_success }
    }
}

struct CommandEnd {
    /// The fault, with the last line that the command wrote to standard error.
    fault: CameraFault,
    /// It delivered pictures and ended without an error.
    is_success: bool,
}

impl Running {
    /// Reads until there is a frame, the output ends, or `SLICE` is over.
    fn next(&mut self, space: &mut [u8]) -> Result<Step, CameraError> {
        if let Some(frame) = self.stream.next_frame() {
            return frame.map(|frame| Step::Next(Next::Frame(frame)));
        }
        if let Some(fault) = self.stream.silence_fault() {
            return Ok(Step::Fault(fault));
        }
        if let Some(pause) = self.stream.pause() {
            std::thread::sleep(pause.min(SLICE));
            return Ok(Step::Next(Next::Nothing));
        }
        match self.process.read(space, SLICE) {
            Ok(ReadOutcome::Bytes(length)) => {
                self.stream.push(&space[..length]);
                Ok(Step::Next(Next::Nothing))
            }
            Ok(ReadOutcome::Nothing) => Ok(Step::Next(Next::Nothing)),
            Ok(ReadOutcome::End) => Ok(Step::End),
            Err(error) => {
                let reason = format!("the output of the command cannot be read ({error})");
                Ok(Step::Fault(CameraFault::new(FaultKind::Failing, reason)))
            }
        }
    }
}

enum Step {
    Next(Next),
    End,
    Fault(CameraFault),
}

impl FrameSource for PipeCamera {
    fn next(&mut self) -> Result<Next, CameraError> {
        let Some(running) = &mut self.running else {
            if !self.retry.wait(SLICE) {
                return Ok(Next::Nothing);
            }
            return match self.start() {
                Ok(running) => {
                    tracing::info!(
                        program = self.settings.command.first(),
                        "camera command started"
                    );
                    self.running = Some(running);
                    Ok(Next::Nothing)
                }
                Err(fault) => {
                    self.retry.failed();
                    Err(CameraError::Lost(fault))
                }
            };
        };
        match running.next(&mut self.space)? {
            Step::Next(next) => Ok(next),
            Step::End => {
                let outcome = self.end(None);
                let is_recording = self.settings.stream.timing == Timing::Recording;
                if is_recording && outcome.is_success {
                    return Ok(Next::End);
                }
                Err(CameraError::Lost(outcome.fault))
            }
            Step::Fault(fault) => Err(CameraError::Lost(self.end(Some(&fault)).fault)),
        }
    }

    fn unreadable_for(&mut self, long: Duration, why: &str) -> Result<(), CameraError> {
        if self.running.is_none() || long < self.settings.stream.stall_after {
            return Ok(());
        }
        Err(CameraError::Lost(self.end(Some(&unreadable_fault(long, why))).fault))
    }

    fn describe(&self) -> String {
        let program = self.settings.command.first().map_or("nothing", String::as_str);
        format!("output of the command {program}")
    }
}

impl Drop for PipeCamera {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.process.stop();
        }
    }
}

#[cfg(test)]
mod tests;
