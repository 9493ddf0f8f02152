//! The process of a command: started in a group of its own, read without blocking, and ended with
//! all that it started.
//!
//! What must hold: it ends with the daemon, however the daemon ends (`PR_SET_PDEATHSIG`; what it
//! started itself ends at its next write into a closed pipe, and under systemd with the unit). It
//! inherits no descriptor, and of the environment only what programs need to run. No call waits
//! longer than it is told; a process that does not even end when it is killed is handed back, so
//! that no second one is started beside it.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};

use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::pipe::last_line::LastLine;
use crate::camera::retry::wait_for;
use crate::camera::secret::Secret;
use crate::clock::Stopwatch;

/// Between SIGTERM and SIGKILL: programs close the camera in it (a guess).
const GRACE: Duration = Duration::from_millis(500);
/// After SIGKILL, and between the end of the output and that of the process.
const END_WAIT: Duration = Duration::from_millis(500);
/// Standard error is read this often, and at most so many times in a row: 3 MB a second, so that a
/// program that writes errors without end waits, and costs little.
const STDERR_PAUSE: Duration = Duration::from_millis(20);
const STDERR_READS_MAX: usize = 16;

/// Variables that a command inherits: paths, language, and what the programs of cameras read. Not
/// the daemon's own, which may hold secrets or stand for the service manager.
const ENVIRONMENT: [&str; 11] = [
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "ORC_CODE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];
const ENVIRONMENT_PREFIXES: [&str; 4] = ["LC_", "LIBCAMERA_", "GST_", "LIBVA_"];

/// A running command.
pub struct ChildProcess {
    child: Child,
    output: ChildStdout,
    /// `None` once it is closed.
    errors: Option<ChildStderr>,
    last_line: LastLine,
    /// Since standard error was read.
    errors_read: Stopwatch,
    /// Becomes readable when the process has ended.
    end: Option<OwnedFd>,
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    Bytes(usize),
    Nothing,
    /// Standard output is closed.
    End,
}

/// How a command ended.
pub struct EndedProcess {
    /// `None`: it did not end.
    pub status: Option<ExitStatus>,
    /// The last line of its standard error; empty if there was none.
    pub last_line: String,
    /// A process that even SIGKILL did not end: it waits in a driver.
    pub stuck: Option<Child>,
}

impl ChildProcess {
    /// Starts `argv`; `input` becomes its standard input.
    pub fn start(argv: &[String], input: Option<&Secret>) -> Result<Self, CameraFault> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(CameraFault::new(FaultKind::ProgramMissing, "there is no command"));
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        end_with_parent(&mut command);
        let mut child = command.spawn().map_err(|error| start_fault(program, &error))?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // It fits into the pipe, and a command that does not read it is none of our business.
            stdin.write_all(input.expose().as_bytes()).ok();
        }
        let streams = child.stdout.take().zip(child.stderr.take());
        let (output, errors) = streams.expect("both were asked for as pipes");
        let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        let last_line = LastLine::hiding(input.map(Secret::parts).unwrap_or_default());
        let errors_read = Stopwatch::start();
        let process = Self { child, output, errors: Some(errors), last_line, errors_read, end };
        if let Err(error) = process.make_non_blocking() {
            process.stop();
            let reason = format!("the pipe of {program} cannot be used ({error})");
            return Err(CameraFault::new(FaultKind::CommandEnded, reason));
        }
        Ok(process)
    }

    fn make_non_blocking(&self) -> rustix::io::Result<()> {
        rustix::io::ioctl_fionbio(&self.output, true)?;
        self.errors.as_ref().map_or(Ok(()), |errors| rustix::io::ioctl_fionbio(errors, true))
    }

    /// Reads what it has written, or waits for that.
    pub fn read(&mut self, space: &mut [u8], patience: Duration) -> io::Result<ReadOutcome> {
        let is_due = self.errors_read.elapsed() >= STDERR_PAUSE;
        let mut fds = vec![PollFd::new(&self.output, PollFlags::IN)];
        if let (true, Some(errors)) = (is_due, &self.errors) {
            fds.push(PollFd::new(errors, PollFlags::IN));
        }
        wait_for(&mut fds, patience)?;
        if is_due {
            self.errors_read = Stopwatch::start();
            self.read_errors();
        }
        match self.output.read(space) {
            Ok(0) => Ok(ReadOutcome::End),
            Ok(length) => Ok(ReadOutcome::Bytes(length)),
            Err(error) if is_transient(&error) => Ok(ReadOutcome::Nothing),
            Err(error) => Err(error),
        }
    }

    fn read_errors(&mut self) {
        let mut space = [0; 4096];
        for _ in 0..STDERR_READS_MAX {
            let Some(errors) = &mut self.errors else {
                return;
            };
            match errors.read(&mut space) {
                Ok(0) => self.errors = None,
                Ok(length) => self.last_line.push(&space[..length]),
                Err(error) if is_transient(&error) => return,
                Err(_) => self.errors = None,
            }
        }
    }

    /// Waits for the end of a process whose output has ended.
    pub fn await_end(&mut self) {
        self.wait(END_WAIT);
    }

    /// Returns whether it has ended, at the latest when the patience has.
    fn wait(&mut self, patience: Duration) -> bool {
        if let Some(end) = &self.end {
            // The process stays a zombie, which keeps its number and that of its group.
            return wait_for(&mut [PollFd::new(end, PollFlags::IN)], patience).unwrap_or(false);
        }
        false
    }

    /// Ends the group: SIGTERM, and SIGKILL after a moment.
    pub fn stop(mut self) -> EndedProcess {
        let group = Pid::from_child(&self.child);
        if !self.wait(Duration::ZERO) {
            kill_process_group(group, Signal::TERM).ok();
            self.wait(GRACE);
        }
        // Also when it has ended: what it started may be left. The group's number is taken as long
        // as the process is not waited for.
        kill_process_group(group, Signal::KILL).ok();
        let has_ended = self.wait(END_WAIT) || self.end.is_none();
        self.read_errors();
        let Self { mut child, mut last_line, .. } = self;
        let status = if has_ended { child.wait().ok() } else { child.try_wait().ok().flatten() };
        let stuck = status.is_none().then_some(child);
        EndedProcess { status, last_line: last_line.text().to_owned(), stuck }
    }
}

fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        ENVIRONMENT.contains(&name.as_ref())
            || ENVIRONMENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

#[expect(
    unsafe_code,
    reason = "only the new process itself can ask to be ended with the thread that started it"
)]
fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made, without any allocation.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
    }
}

fn start_fault(program: &str, error: &io::Error) -> CameraFault {
    match error.kind() {
        io::ErrorKind::NotFound => CameraFault::new(
            FaultKind::ProgramMissing,
            format!("the program {program} is not installed"),
        ),
        io::ErrorKind::PermissionDenied => CameraFault::new(
            FaultKind::ProgramDenied,
            format!("the program {program} may not be run ({error})"),
        ),
        _ => CameraFault::new(
            FaultKind::CommandEnded,
            format!("the program {program} cannot be started ({error})"),
        ),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
