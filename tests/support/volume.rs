//! A small file system for one test, which goes with it. Mounting needs root, or a user namespace
//! of one's own; everything is mounted where no other process sees it, so that nothing stays behind
//! however the test ends. Tests that use this stand in a module `needs_mounts` (`needs_root` if a
//! user namespace is not enough), which `tests/run.sh` leaves out where that is not granted.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says to a test that it is inside, and with which kind of file system.
const INSIDE: &str = "ROLLCALL_TEST_INSIDE";
/// Names the file that the test makes at its end, inside.
const COMPLETED: &str = "ROLLCALL_TEST_COMPLETED";
const HINT: &str = "this test mounts a small file system: it needs root, or a kernel that grants user namespaces \
                    (sysctl kernel.unprivileged_userns_clone, or kernel.apparmor_restrict_unprivileged_userns), and util-linux; \
                    as root also e2fsprogs. `make test` skips it where that is missing";

/// Runs `body` in mounts of its own: the test binary runs again in a new namespace, this test
/// alone.
pub fn in_own_mounts(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        body();
        File::create(std::env::var_os(COMPLETED).unwrap()).unwrap();
        return;
    }
    let root = rustix::process::getuid().is_root();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(std::env::current_exe().unwrap()).args([test, "--nocapture", "--test-threads=1"]);
    // All that the test writes is in one folder, which goes even if the test ends without tidying
    // up.
    let folder = tempfile::tempdir().unwrap();
    let completed = folder.path().join("completed");
    command.env(INSIDE, if root { "ext4" } else { "tmpfs" });
    command.env("TMPDIR", folder.path()).env(COMPLETED, &completed);
    let status = command.status().expect(HINT);
    assert!(status.success(), "{test}: {status}; if it could not even begin: {HINT}");
    assert!(completed.is_file(), "no test of the name {test} ran inside");
}

/// A journal and a block device below it is what devices have; without root there is only memory.
pub fn is_ext4() -> bool {
    std::env::var_os(INSIDE).is_some_and(|it| it == "ext4")
}

fn bind(path: &Path) {
    run(Command::new("mount").arg("--bind").arg(path).arg(path));
}

/// From here on a file or a folder cannot be written to.
pub fn freeze(path: &Path) {
    bind(path);
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(path));
}

/// From here on nothing can be written but the folder for temporary files.
pub fn freeze_root() {
    bind(&std::env::temp_dir());
    run(Command::new("mount").args(["-o", "remount,bind,ro", "/"]));
    let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join("probe");
    assert!(File::create(&probe).is_err(), "the root is read-only");
}

pub struct Volume {
    path: PathBuf,
    image: Option<PathBuf>,
}

impl Volume {
    /// Mounts one of so many mebibytes at `path`, which is made.
    pub fn mount(path: &Path, mebibytes: u64) -> Self {
        fs::create_dir_all(path).unwrap();
        let image = is_ext4().then(|| path.with_extension("image"));
        if let Some(image) = &image {
            File::create(image).unwrap().set_len(mebibytes << 20).unwrap();
            // Without a part that only root may fill: the daemon of a test may be root.
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-N", "256"]).arg(image));
            run(Command::new("mount").args(["-o", "loop,noatime"]).arg(image).arg(path));
            // Otherwise the folder is not empty, and the store takes it for somebody else's.
            fs::remove_dir(path.join("lost+found")).unwrap();
        } else {
            let options = format!("size={mebibytes}m,nr_inodes=256");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path));
        }
        Self { path: path.to_owned(), image }
    }

    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes all the room there is, as somebody else's log file does.
    pub fn fill(&self) {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![0xAA; size]).is_ok() {}
        }
        // Delayed allocation decides only now.
        filler.sync_all().ok();
    }

    /// Gives the room back.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Takes all the room for names.
    pub fn fill_inodes(&self) {
        fs::create_dir(self.path.join("many")).unwrap();
        for number in 0.. {
            if File::create(self.path.join(format!("many/{number}"))).is_err() {
                return;
            }
        }
    }

    pub fn clear_inodes(&self) {
        fs::remove_dir_all(self.path.join("many")).unwrap();
    }

    /// Does what the kernel does when a card fails: the file system takes no more writes.
    pub fn fail(&self) {
        let image = self.image.as_ref().expect(
            "only ext4 on a block device fails like that, and mounting that needs root: `make test` skips this test \
             without root",
        );
        run(Command::new("mount").args(["-o", "remount,errors=remount-ro"]).arg(&self.path));
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", loop_of(image)), "a test").unwrap();
    }

    /// The counter of the block device, where there is one: bytes written, the file system's own
    /// among them.
    pub fn device_bytes(&self) -> Option<u64> {
        let image = self.image.as_ref()?;
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", loop_of(image))).unwrap();
        Some(stat.split_whitespace().nth(6)?.parse::<u64>().unwrap() * 512)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever still has a file open there goes with the test; the mount goes with the last of
        // them.
        Command::new("umount").arg("--lazy").arg(&self.path).status().ok();
    }
}

/// The block device of an image: `loop0`.
fn loop_of(image: &Path) -> String {
    let listed = Command::new("losetup")
        .args(["--noheadings", "--output", "NAME", "-j"])
        .arg(image)
        .output()
        .unwrap();
    let name = String::from_utf8(listed.stdout).unwrap();
    name.trim().trim_start_matches("/dev/").to_owned()
}

fn run(command: &mut Command) {
    let output = command.output().expect(HINT);
    assert!(
        output.status.success(),
        "{command:?}: {}; {HINT}",
        String::from_utf8_lossy(&output.stderr)
    );
}
