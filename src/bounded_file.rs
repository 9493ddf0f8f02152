//! Reading files that may be anything: a pipe, a device, a directory, or far too large.
//!
//! Invariants: only regular files are opened, so that nothing waits for somebody who writes and no
//! device is touched; not more than a given size is read, and not more memory is taken.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A configuration, a list, a manifest: none is as large.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;
/// A certificate or key in PEM; the authorities of a whole system have some 250 KB.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// Flags for files that this program makes and opens again: an open does not wait.
pub const OPEN_FLAGS: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// Opens a regular file for reading. Links are followed.
pub fn open(path: &Path) -> Result<File> {
    open_with(path, OpenOptions::new().read(true), 0)
}

/// Opens a regular file for reading, unless it is a link.
pub fn open_no_link(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    open_with(path, OpenOptions::new().read(true), flags)
}

fn open_with(path: &Path, options: &mut OpenOptions, flags: i32) -> Result<File> {
    // Opening a device may have effects already.
    check_regular(&fs::metadata(path)?)?;
    let file = options.custom_flags(OPEN_FLAGS | flags).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Rejects what is no regular file.
pub fn check_regular(metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"))
}

/// Rejects what exists and is no regular file.
pub fn check_regular_if_exists(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) => check_regular(&metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads a whole file of at most `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    read_all(open(path)?, bytes_max)
}

/// Reads a whole text of at most `bytes_max` in UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    let not_text = |_| Error::new(ErrorKind::InvalidData, "it is not text in UTF-8");
    String::from_utf8(read(path, bytes_max)?).map_err(not_text)
}

/// Reads the rest of an open file of at most `bytes_max`. The buffer has its size from the
/// beginning, so that no copies of a secret stay behind in memory.
pub fn read_all(mut file: File, bytes_max: u64) -> Result<Vec<u8>> {
    let too_large =
        || Error::new(ErrorKind::InvalidData, format!("it has more than {bytes_max} bytes"));
    let claimed = file.metadata()?.len();
    if claimed > bytes_max {
        return Err(too_large());
    }
    // One byte more shows that it has grown, or is of a kind that claims no size.
    let mut bytes = Vec::with_capacity(claimed as usize + 1);
    (&mut file).take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkfifoat};

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifoat(CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [dir.path(), &pipe, &socket, &link, Path::new("/dev/zero")] {
            let error = read(path, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", path.display());
            assert!(check_regular_if_exists(path).is_err(), "{}", path.display());
        }
        let missing = dir.path().join("missing");
        assert_eq!(read(&missing, 100).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(check_regular_if_exists(&missing).is_ok());
    }

    #[test]
    fn size_is_limited_without_allocation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(read(&path, 4).unwrap_err().to_string().contains("more than 4 bytes"));
        // Sparse: as large as a disk, and read in no time.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path, TEXT_BYTES_MAX).is_err());
        // Of no claimed size.
        assert!(read(Path::new("/proc/self/maps"), 10).is_err());
        assert!(read_text(Path::new("/proc/self/stat"), 10_000).is_ok());
    }

    #[test]
    fn links_are_followed_only_where_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open(&link).is_ok() && open_no_link(&file).is_ok());
        assert!(open_no_link(&link).is_err());
    }
}
