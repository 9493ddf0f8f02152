//! What is stored on the device: database, key, people, free space.

use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags};

use crate::cli::doctor::finding::CheckResult;
use crate::config::Settings;
use crate::error_chain::error_chain;
use crate::keys::seal::SealError;
use crate::keys::secret_file::credentials_dir;
use crate::store::{ConsentCounts, DATABASE, Store, StoreError};
use crate::vision;

/// Less than this is a warning: a year of visits is about 200 MB, and a migration keeps a copy.
const FREE_BYTES_MIN: u64 = 500 << 20;
/// Less than this is a fault: the reserve is soon given up.
const FREE_BYTES_FAULT: u64 = 20 << 20;

pub fn check_storage(dir: &Path) -> CheckResult {
    match dir.join(DATABASE).try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return CheckResult::good(format!(
                "{} has no database yet; the first start creates one",
                dir.display()
            ));
        }
        // Only the owner can read a directory of mode 0700.
        Err(error) => {
            return explain_store_error(&StoreError::Io {
                path: dir.to_owned(),
                source: error.into(),
            });
        }
    }
    let read = || -> Result<(usize, u64, u64, Option<i64>), StoreError> {
        let reader = Store::open_read_only(dir, credentials_dir().as_deref())?;
        reader.check_key(dir)?;
        let subjects = reader.subjects(None, 500)?.len();
        let failed = reader.dead_letters(500)?.len() as u64;
        Ok((subjects, failed, reader.unreadable()?.rows, reader.chain_broken_at()?))
    };
    match read() {
        Ok((_, _, unreadable @ 1.., _)) => CheckResult::warning(
            format!("{unreadable} rows of the database are damaged and were set apart"),
            "events among them are missing from the record; everything else goes on working",
            "stop the daemon, then `rollcall doctor --repair` lists them; a damaged row is the sign of a failing card",
        ),
        Ok((_, 0, 0, Some(seq))) => CheckResult::warning(
            format!(
                "the chain of events began again at event {seq}, because the one before could not be read"
            ),
            "recording goes on; for what is before it, a checkpoint from that time is needed to prove that nobody altered it",
            "`rollcall verify` names what is wrong; a damaged row is the sign of a failing card",
        ),
        Ok((subjects, 0, 0, None)) => CheckResult::good(format!(
            "{subjects}{} people enrolled",
            if subjects == 500 { " or more" } else { "" }
        )),
        Ok((_, failed, 0, _)) => CheckResult::warning(
            format!("{failed} messages failed and are not retried (dead-lettered)"),
            "they are kept here, but the broker or MongoDB does not have them, and what follows is not reported as complete",
            "`rollcall sync --status` shows why; when that is corrected, `rollcall sync --retry-buried`",
        ),
        Err(error) => explain_store_error(&error),
    }
}

fn explain_store_error(error: &StoreError) -> CheckResult {
    const STOPPED: &str = "the daemon does not start: nobody is recorded";
    let (means, remedy) = match error {
        StoreError::Sealed { source } if source.is_lost() => (
            "nobody who is enrolled can be recognised, and the daemon does not start; the recorded attendance is intact",
            "put rollcall.key back from its backup into the state directory (owner: the daemon's user, mode 0600). Only if it is \
             lost for good: `rollcall keys forget`, and enrol everybody again",
        ),
        StoreError::Sealed { source } if matches!(**source, SealError::KeyExposed { .. }) => (
            "the daemon does not start; everybody who has read the key can read the templates in the database",
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
            "at its next start the daemon moves the damaged database aside and begins a new one, with nobody enrolled",
            "restore a backup (`rollcall restore`); a database is damaged by a failing card: replace it",
        ),
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => (
            "its content could not be checked",
            "run doctor with sudo; if the daemon itself logs this, chown -R rollcall: the state directory",
        ),
        StoreError::Full => ("new visits may not be recorded", "free space on the disk"),
        _ => (
            STOPPED,
            "is the card failing (dmesg)? Save what can be read with `rollcall backup`, then use a new card",
        ),
    };
    let too_old = matches!(error, StoreError::SchemaTooOld { .. });
    let words = error_chain(error);
    if too_old {
        CheckResult::warning(words, means, remedy)
    } else {
        CheckResult::fault(words, means, remedy)
    }
}

/// After a change of the embedder everybody is enrolled again, one by one: reports how far that is.
pub fn check_people(settings: &Settings) -> CheckResult {
    let dir = &settings.state_dir;
    if !dir.join(DATABASE).is_file() {
        return CheckResult::good("nobody is enrolled yet");
    }
    let Ok(embedder) = vision::embedder(&settings.vision) else {
        return CheckResult::warning(
            "cannot be checked without the models",
            "see \"networks\"",
            "see \"networks\"",
        );
    };
    let migration = Store::open_read_only(dir, credentials_dir().as_deref())
        .and_then(|it| it.migration(&embedder));
    match migration {
        Ok(it) if it.subjects == 0 => CheckResult::warning(
            "nobody is enrolled yet",
            "nobody who passes is recognised",
            "enrol people: `rollcall enrol --id ID --name NAME PHOTO…`, `rollcall import`, or by MQTT",
        ),
        Ok(it) if it.outdated == 0 && it.partial == 0 => {
            CheckResult::good(format!("all {} who are enrolled can be recognised", it.subjects))
        }
        Ok(it) if it.outdated == 0 => CheckResult::good(format!(
            "all {} who are enrolled can be recognised; {} of them less surely, from photos of an \
             earlier model, until their photos are sent again (`rollcall subjects --partial`)",
            it.subjects, it.partial
        )),
        Ok(it) => CheckResult::warning(
            format!(
                "{} of {} who are enrolled have no photos for the model in use ({})",
                it.outdated, it.subjects, settings.vision.embedder
            ),
            "they are not recognised",
            "enrol their photos again (`rollcall subjects --outdated` lists them)",
        ),
        Err(error) => explain_store_error(&error),
    }
}

/// Reports consents that end soon and, where one is required, people without one.
pub fn check_consents(settings: &Settings, now_ms: i64) -> CheckResult {
    let dir = &settings.state_dir;
    if !dir.join(DATABASE).is_file() {
        return CheckResult::good("nobody is enrolled yet");
    }
    let counts = Store::open_read_only(dir, credentials_dir().as_deref())
        .and_then(|it| Ok((it.subject_count()?, it.consent_counts(now_ms)?)));
    match counts {
        Ok((subjects, counts)) => explain_consents(subjects, counts, settings.is_consent_required),
        Err(error) => explain_store_error(&error),
    }
}

fn explain_consents(subjects: u64, counts: ConsentCounts, is_required: bool) -> CheckResult {
    let ConsentCounts { recorded, ending } = counts;
    let without = subjects.saturating_sub(recorded);
    if ending > 0 {
        return CheckResult::warning(
            format!("{ending} consents end within 30 days"),
            "then these people are withdrawn: face samples are deleted, nobody recognises them",
            "ask them again, and `rollcall consent ID …` records it (`rollcall subjects --consent-ending` lists them)",
        );
    }
    if is_required && without > 0 {
        return CheckResult::warning(
            format!("{without} people are enrolled without a recorded consent"),
            "they are recognised, though [enrolment] consent = \"required\"",
            "`rollcall consent ID …` records it (`rollcall subjects --without-consent` lists them)",
        );
    }
    CheckResult::good(format!("{recorded} recorded, none ends within 30 days"))
}

pub fn check_disk(state_dir: &Path) -> CheckResult {
    // Before the first start the nearest directory above counts.
    let above = state_dir.ancestors().find(|path| path.is_dir());
    check_space(above.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn check_space(dir: &Path) -> CheckResult {
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return CheckResult::warning(
            format!("{} cannot be checked", dir.display()),
            "the free space is not known",
            "run doctor with sudo",
        );
    };
    let read_only = stat.f_flag.contains(StatVfsMountFlags::RDONLY)
        || rustix::fs::access(dir, Access::WRITE_OK) == Err(rustix::io::Errno::ROFS);
    if read_only {
        return CheckResult::fault(
            format!("the file system of {} is read-only", dir.display()),
            "nothing can be recorded",
            "the kernel makes a failing card read-only (dmesg): save it with `rollcall backup`, replace it. If the root \
             is read-only by intent, the state directory needs a writable partition ([storage] directory)",
        );
    }
    explain_space(stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_files, stat.f_favail)
}

fn explain_space(free: u64, files: u64, files_free: u64) -> CheckResult {
    const REMEDY: &str = "free space: old logs (sudo journalctl --vacuum-size=50M), packages (sudo apt clean); [storage] keep_days deletes \
                          what was delivered and is older, and so does `rollcall prune` while the daemon is stopped";
    let free_mb = free >> 20;
    if files > 0 && files_free == 0 {
        return CheckResult::fault(
            "no more files can be created on the disk",
            "nothing can be recorded soon",
            REMEDY,
        );
    }
    if free < FREE_BYTES_FAULT {
        let means =
            "recognition continues, and visits are recorded only as long as the last space lasts";
        return CheckResult::fault(format!("the disk is full: {free_mb} MB free"), means, REMEDY);
    }
    if free < FREE_BYTES_MIN {
        return CheckResult::warning(
            format!("only {free_mb} MB free"),
            "when it is full, visits are recorded only as long as a small reserve lasts",
            REMEDY,
        );
    }
    CheckResult::good(format!("{free_mb} MB free"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::CheckState;

    #[test]
    fn low_disk_space_warns_then_faults() {
        for (free, files_free, state) in [
            (1 << 30, 10, CheckState::Good),
            (100 << 20, 10, CheckState::Warning),
            (1 << 20, 10, CheckState::Fault),
            (1 << 30, 0, CheckState::Fault),
        ] {
            assert_eq!(explain_space(free, 100, files_free).state, state, "{free} {files_free}");
        }
        // Some file systems have no such number.
        assert_eq!(explain_space(1 << 30, 0, 0).state, CheckState::Good);
    }

    #[test]
    fn ending_or_missing_consent_warns() {
        for (subjects, recorded, ending, is_required, state, words) in [
            (3, 0, 0, false, CheckState::Good, "0 recorded"),
            (3, 3, 0, true, CheckState::Good, "3 recorded"),
            (3, 2, 0, true, CheckState::Warning, "1 people"),
            (3, 2, 1, false, CheckState::Warning, "1 consents"),
        ] {
            let counts = ConsentCounts { recorded, ending };
            let result = explain_consents(subjects, counts, is_required);
            assert_eq!(result.state, state, "{result:?}");
            assert!(result.words.starts_with(words), "{result:?}");
        }
    }

    #[test]
    fn full_file_system_is_a_fault() {
        // The kernel's own files have none.
        let result = check_space(Path::new("/proc"));
        assert_eq!(result.state, CheckState::Fault, "{result:?}");
        assert!(check_space(Path::new("/nowhere")).words.contains("cannot be checked"));
    }
}
