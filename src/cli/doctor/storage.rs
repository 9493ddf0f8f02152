//! What is kept on the device: database, key, people, room.

use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags};

use crate::app;
use crate::cli::doctor::Place;
use crate::cli::doctor::finding::Verdict;
use crate::record::seal::SealError;
use crate::record::store::{DATABASE, Store, StoreError};
use crate::vision;

/// Less than this is a warning: a year of visits is about 100 MB, a database written anew after an erasure needs twice its size.
const FREE_BYTES_MIN: u64 = 500 << 20;
/// Less than this is a fault: the reserve is soon given up.
const FREE_BYTES_FAULT: u64 = 20 << 20;

pub fn storage(place: &Place) -> Verdict {
    let dir = &place.settings.state_dir;
    match dir.join(DATABASE).try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Verdict::good(format!(
                "{} has no database yet; the first start makes one",
                dir.display()
            ));
        }
        // What is in a folder of mode 0700 only its owner sees.
        Err(error) => return unusable(StoreError::Io { path: dir.clone(), source: error.into() }),
    }
    let read = || -> Result<(usize, u64), StoreError> {
        let reader = Store::open_read_only(dir, app::credentials_dir().as_deref())?;
        reader.check_key(dir)?;
        let subjects = reader.subjects(None, 500)?.len();
        Ok((subjects, reader.buried(500)?.len() as u64))
    };
    match read() {
        Ok((subjects, 0)) => Verdict::good(format!(
            "{subjects}{} subjects enrolled",
            if subjects == 500 { " or more" } else { "" }
        )),
        Ok((_, buried)) => Verdict::warning(
            format!("{buried} messages could not be delivered and were set aside"),
            "they are kept here, but broker or MongoDB do not have them, and what comes after is not called complete",
            "`rollcall sync --status` says why; when that is put right, `rollcall sync --retry-buried`",
        ),
        Err(error) => unusable(error),
    }
}

fn unusable(error: StoreError) -> Verdict {
    const STOPPED: &str = "the daemon does not start: nobody is recorded";
    let (means, remedy) = match &error {
        StoreError::Sealed { source } if source.is_lost() => (
            "nobody who is enrolled can be recognised, and the daemon does not start; the attendance recorded is whole",
            "put rollcall.key back from its backup into the state directory (owner: the daemon's user, mode 0600). Only if it is \
             lost for good: `rollcall keys forget`, and enrol everybody again",
        ),
        StoreError::Sealed { source } if matches!(**source, SealError::KeyExposed { .. }) => (
            "the daemon does not start; whoever has read the key can read the templates in the database",
            "chmod 600 the key, then `rollcall keys rotate` while the daemon is stopped makes a new one",
        ),
        StoreError::Sealed { .. } => {
            (STOPPED, "put rollcall.key back from its backup; reading it takes root (sudo)")
        }
        StoreError::Exposed { .. } => {
            (STOPPED, "chmod 700 the state directory, if everything in it is rollcall's")
        }
        StoreError::SchemaTooNew { .. } => (
            STOPPED,
            "install the newer version again, or put the backup from before the upgrade back (`rollcall restore`)",
        ),
        StoreError::SchemaTooOld { .. } => (
            "nothing: it is brought up to date at the next start",
            "sudo systemctl restart rollcall, or `rollcall run`",
        ),
        StoreError::Damaged { .. } => (
            "at its next start the daemon sets the damaged database aside whole and begins anew, with nobody enrolled",
            "restore a backup (`rollcall restore`); a database is damaged by a failing card: replace it",
        ),
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => (
            "what is in it could not be looked at",
            "run doctor with sudo; if the daemon itself says so, chown -R rollcall: the state directory",
        ),
        StoreError::Full => ("new visits may not be recorded", "make room on the disk"),
        _ => (
            STOPPED,
            "is the card failing (dmesg)? `rollcall backup` what can be read, then a new card",
        ),
    };
    let too_old = matches!(error, StoreError::SchemaTooOld { .. });
    let words = format!("{:#}", anyhow::Error::new(error));
    if too_old {
        Verdict::warning(words, means, remedy)
    } else {
        Verdict::fault(words, means, remedy)
    }
}

/// After a change of the network everybody is photographed again, one by one: how far that is.
pub fn people(place: &Place) -> Verdict {
    let dir = &place.settings.state_dir;
    if !dir.join(DATABASE).is_file() {
        return Verdict::good("nobody is enrolled yet");
    }
    let Ok(embedder) = vision::embedder_digest(&place.settings.vision) else {
        return Verdict::warning(
            "cannot be told without the networks",
            "see \"networks\"",
            "see \"networks\"",
        );
    };
    let migration = Store::open_read_only(dir, app::credentials_dir().as_deref())
        .and_then(|it| it.migration(&embedder));
    match migration {
        Ok(it) if it.subjects == 0 => Verdict::warning(
            "nobody is enrolled yet",
            "everybody who passes is a stranger",
            "enrol people: `rollcall enrol --id ID --name NAME PHOTO…`, `rollcall import`, or by MQTT",
        ),
        Ok(it) if it.outdated == 0 => {
            Verdict::good(format!("all {} who are enrolled can be recognised", it.subjects))
        }
        Ok(it) => Verdict::warning(
            format!(
                "{} of {} who are enrolled have no reference of the network in use ({})",
                it.outdated, it.subjects, place.settings.vision.embedder
            ),
            "they are not recognised",
            "publish their photographs again (`rollcall subjects --outdated` lists them)",
        ),
        Err(error) => unusable(error),
    }
}

pub fn disk(place: &Place) -> Verdict {
    // The state directory may not be there yet: then the nearest folder above it tells.
    let above = place.settings.state_dir.ancestors().find(|path| path.is_dir());
    room(above.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn room(place: &Path) -> Verdict {
    let Ok(stat) = rustix::fs::statvfs(place) else {
        return Verdict::warning(
            format!("{} cannot be looked at", place.display()),
            "how much room there is is not known",
            "run doctor with sudo",
        );
    };
    let read_only = stat.f_flag.contains(StatVfsMountFlags::RDONLY)
        || rustix::fs::access(place, Access::WRITE_OK) == Err(rustix::io::Errno::ROFS);
    if read_only {
        return Verdict::fault(
            format!("the file system of {} is read-only", place.display()),
            "nothing can be recorded",
            "a card that fails is made read-only by the kernel (dmesg): save it with `rollcall backup`, replace it. If the root \
             is read-only by intent, the state directory needs a writable partition ([storage] directory)",
        );
    }
    fullness(stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_files, stat.f_favail)
}

fn fullness(free: u64, files: u64, files_free: u64) -> Verdict {
    const REMEDY: &str = "make room: old logs (sudo journalctl --vacuum-size=50M), packages (sudo apt clean); `rollcall prune` deletes \
                          what was delivered, [storage] keep_days does it every day";
    let free_mb = free >> 20;
    if files > 0 && files_free == 0 {
        return Verdict::fault(
            "no more files can be made on the disk",
            "nothing can be recorded soon",
            REMEDY,
        );
    }
    if free < FREE_BYTES_FAULT {
        let means =
            "recognition goes on, and visits are recorded only as long as the last room lasts";
        return Verdict::fault(format!("the disk is full: {free_mb} MB free"), means, REMEDY);
    }
    if free < FREE_BYTES_MIN {
        return Verdict::warning(
            format!("only {free_mb} MB free"),
            "when it is full, visits are recorded only as long as a small reserve lasts",
            REMEDY,
        );
    }
    Verdict::good(format!("{free_mb} MB free"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::State;

    #[test]
    fn room_runs_out_in_steps() {
        for (free, files_free, state) in [
            (1 << 30, 10, State::Good),
            (100 << 20, 10, State::Warning),
            (1 << 20, 10, State::Fault),
            (1 << 30, 0, State::Fault),
        ] {
            assert_eq!(fullness(free, 100, files_free).state, state, "{free} {files_free}");
        }
        // Some file systems have no such number.
        assert_eq!(fullness(1 << 30, 0, 0).state, State::Good);
    }

    #[test]
    fn a_place_without_room_is_a_fault() {
        // The kernel's own files have none.
        let verdict = room(Path::new("/proc"));
        assert_eq!(verdict.state, State::Fault, "{verdict:?}");
        assert!(room(Path::new("/nowhere")).words.contains("cannot be looked at"));
    }
}
