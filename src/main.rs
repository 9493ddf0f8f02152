//! Runs the command line and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall::vision::runtime::forbid_telemetry();
    rollcall::cli::main()
}
