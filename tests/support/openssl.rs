//! The `openssl` program, by which tests make keys and certificates.

use std::path::Path;
use std::process::Command;

/// Runs it in a folder, with these arguments, between which there are blanks.
pub fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let output = command
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("apt-get install -y openssl");
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}
