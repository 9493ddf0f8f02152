//! Logs a panic and, in a release build, ends the process.
//!
//! A panic is a bug, so the process aborts and systemd starts the daemon again as a whole. The
//! exception is the panic of a picture's decoder, which `recognise::guarded` catches. Debug builds
//! do not abort: a failed assertion ends its test only.

use crate::recognise::guarded;

/// Returns whether `println!` failed because whoever read the output has ended, as `head` does. A
/// listing is then complete.
fn is_reader_gone(payload: &dyn std::any::Any) -> bool {
    let text = payload.downcast_ref::<String>().map(String::as_str).unwrap_or_default();
    text.starts_with("failed printing to stdout") && text.contains("os error 32")
}

/// Installs the hook for the whole process.
pub(super) fn install(aborts: bool) {
    std::panic::set_hook(Box::new(move |panic| {
        if guarded::is_caught(panic) {
            return;
        }
        if is_reader_gone(panic.payload()) {
            std::process::exit(0);
        }
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        // The payload is not logged: it may quote data.
        tracing::error!(place, thread, "panic");
        eprintln!("rollcall: panic at {place} in thread {thread}");
        if aborts {
            std::process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "ROLLCALL_TEST_PANIC_HOOK_CHILD";
    const SURVIVED: &str = "the guarded panic was survived";

    /// The test runs itself again as a child process, because the child aborts.
    #[test]
    fn only_an_unguarded_panic_aborts() {
        if std::env::var_os(CHILD).is_some() {
            install(true);
            assert!(guarded::guarded(|| -> u8 { panic!("inside the guard") }).is_err());
            println!("{SURVIVED}");
            let panicking = std::thread::spawn(|| panic!("outside the guard"));
            panicking.join().ok();
            println!("not reached");
            return;
        }
        let name = "cli::panic_hook::tests::only_an_unguarded_panic_aborts";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{output}");
        assert!(output.contains(SURVIVED) && !output.contains("not reached"), "{output}");
    }
}
