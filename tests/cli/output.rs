//! What a shell does with the output of a command.

use std::io::Read as _;
use std::process::Stdio;

use crate::support::daemon::Home;

#[test]
fn closed_output_ends_listing_quietly() {
    let home = Home::new(1, "");
    for args in [
        &["subjects"] as &[&str],
        &["subjects", "--json"],
        &["venues"],
        &["attendance"],
        &["attendance", "--csv"],
        &["erasures"],
        &["cameras"],
        &["sync", "--status"],
        &["check-config", "--show"],
        &["completions", "bash"],
        &["doctor"],
        &["doctor", "--json"],
        &["models", "verify"],
    ] {
        let mut child = home
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // As `head -0`: whoever reads has ended before the first line.
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_some(), "{args:?}: {status} {said}");
        assert!(!said.contains("panic") && !said.contains("roken pipe"), "{args:?}: {said}");
    }
}
