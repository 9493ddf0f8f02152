//! Files of secrets, to which only their owner has access, and where systemd passes them.

use std::fs;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode bits by which others have access to a file.
pub const OTHERS: u32 = 0o077;

/// The same of a credential: systemd grants it to the service's user by an ACL, whose mask shows as
/// group bits (0440).
pub const OTHERS_OF_CREDENTIAL: u32 = 0o007;

/// Returns the directory in which systemd passes credentials, if it does.
pub fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Returns the mode of a file if it gives `others` access.
pub fn exposed_mode(metadata: &Metadata, others: u32) -> Option<u32> {
    let mode = metadata.mode() & 0o777;
    (mode & others != 0).then_some(mode)
}

/// Whether others have access to a file that exists.
pub fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| exposed_mode(&it, OTHERS).is_some())
}

/// Makes a file that only its owner may read. Whole or not at all: written beside, made durable,
/// then given its name; an existing one stays, and is an error.
pub fn create_secret(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside =
        dir.join(format!("{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    match fs::remove_file(&beside) {
        // Left by a start that was cut short, and never used for anything.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(secret)?;
    file.sync_all()?;
    // `hard_link` fails where the name is taken; `rename` would replace the key.
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside)?;
    linked?;
    File::open(dir)?.sync_all()
}
