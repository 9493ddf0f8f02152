//! Progress on a terminal, for commands that take a while.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Returns a progress bar on standard error, hidden where that is no terminal.
pub fn bar(length: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} left");
    ProgressBar::new(length)
        .with_style(style.expect("the template is a constant and valid"))
        .with_message(what.to_owned())
}
