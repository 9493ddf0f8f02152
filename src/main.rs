//! Arguments → exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall::vision::runtime::forbid_telemetry();
    rollcall::cli::main()
}
