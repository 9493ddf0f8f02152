//! Catches the panic of a picture's decoder, so that it rejects one picture and does not end the
//! daemon.
//!
//! Everywhere else a panic is a bug, and the panic hook (`cli::panic_hook`) aborts a release build.
//! Pictures are decoded from untrusted bytes, most by libraries; panics there are caught here, logged
//! without the picture, and returned like any other damage. Whatever a panic leaves behind is dropped
//! with it: only the decoder and its own buffers may be changed inside.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Panics caught since the start.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// A decoder panicked and its picture is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the decoder failed on it")]
pub struct DecoderPanicked;

/// Runs `decode` and catches its panic.
pub fn guarded<T>(decode: impl FnOnce() -> T) -> Result<T, DecoderPanicked> {
    let before = IS_GUARDED.replace(true);
    // Whatever `decode` borrows is only read, and what it builds is dropped.
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    IS_GUARDED.set(before);
    outcome.map_err(|_payload| DecoderPanicked)
}

/// Returns whether `guarded` will catch the panic, and logs it if so. Called by the panic hook.
pub fn is_caught(panic: &PanicHookInfo<'_>) -> bool {
    if !IS_GUARDED.get() {
        return false;
    }
    let times = CAUGHT.fetch_add(1, Ordering::Relaxed) + 1;
    // A camera can do it with every frame: logged the first time, the second, the fourth and so on.
    if times.is_power_of_two() {
        // The payload is not logged: it may quote data.
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        tracing::warn!(place, times, "picture rejected: its decoder panicked");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoder_panic_becomes_error() {
        assert_eq!(guarded(|| 7), Ok(7));
        assert_eq!(guarded(|| -> u8 { panic!("inside") }), Err(DecoderPanicked));
        assert!(!IS_GUARDED.get(), "the guard ends with what it guarded");
    }

    #[test]
    fn nested_guard_keeps_outer_guard() {
        let seen = guarded(|| {
            assert_eq!(guarded(|| -> u8 { panic!("inside") }), Err(DecoderPanicked));
            IS_GUARDED.get()
        });
        assert_eq!(seen, Ok(true));
    }
}
