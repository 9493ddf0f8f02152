//! Opening the database: its settings, its check, its migration, and what a start puts right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::keys::seal::SealKey;
use crate::store::check::{self, Findings, Integrity};
use crate::store::checksum::{self, Damage};
use crate::store::error::StoreError;
use crate::store::rows::StoreOptions;
use crate::store::schema::PAGE_BYTES;
use crate::store::template_key::fitting_key;
use crate::store::{files, log_bits, migration_backup, salvage, schema, scrub, versions};

/// How long the connection waits for readers before a log can be cut off.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The database and its key, with everything in it that a start puts right.
pub(super) fn open_settled(
    dir: &Path,
    options: &StoreOptions,
    moved_aside: &mut Option<PathBuf>,
) -> Result<(Database, SealKey, bool), StoreError> {
    let now_ms = options.clock.now().wall_ms;
    correct_log(dir);
    let mut database = match open_database(dir, now_ms) {
        Err(error) if is_damage(&error) => {
            let (aside, mut findings) = salvage::rebuild(dir, now_ms)?;
            findings.log();
            *moved_aside = Some(aside);
            let mut database = open_database(dir, now_ms)?;
            findings.join(database.findings);
            database.findings = findings;
            database
        }
        other => other?,
    };
    let conn = &mut database.conn;
    let (key, key_created) = fitting_key(conn, dir, options.credentials_dir.as_deref())?;
    settle_sinks(conn, options)?;
    versions::settle_versions(conn, options)?;
    Ok((database, key, key_created))
}

/// Before SQLite reads the log. One that cannot be read or written is SQLite's to report.
fn correct_log(dir: &Path) {
    match log_bits::correct_file(&files::log_path(dir)) {
        Ok(0) => {}
        Ok(parts) => tracing::error!(
            parts,
            "bits of the database's log were wrong and are corrected: is the card failing?"
        ),
        Err(error) => tracing::warn!(%error, "the database's log was not checked for wrong bits"),
    }
}

/// Whether the database itself must be at fault: by SQLite's error, or since a fixed statement failed.
fn is_damage(error: &StoreError) -> bool {
    let StoreError::Sqlite { source } = error else {
        return matches!(error, StoreError::Damaged { .. });
    };
    let code = source.sqlite_error_code();
    code.is_none_or(|it| {
        matches!(it, ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    })
}

/// A database that was opened, checked and migrated.
pub(super) struct Database {
    pub(super) conn: Connection,
    pub(super) damage: Damage,
    pub(super) findings: Findings,
}

pub(super) fn open_database(dir: &Path, now_ms: i64) -> Result<Database, StoreError> {
    let path = files::create_database(dir)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    let opened = set_up(&mut conn, dir).and_then(|()| settle_rows(&mut conn, now_ms));
    match opened {
        Ok((damage, findings)) => Ok(Database { conn, damage, findings }),
        Err(error) => {
            if is_damage(&error) {
                // It is moved aside as it is: closing must not change it any more.
                conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            }
            Err(error)
        }
    }
}

fn set_up(conn: &mut Connection, dir: &Path) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // Before anything is changed.
    if !scrub::has_page_table(conn)? {
        return Err(StoreError::NoPageTable);
    }
    schema::check_damage(conn)?;
    schema::check_version(conn)?;
    conn.pragma_update(None, "page_size", PAGE_BYTES)?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is overwritten, and nothing spills into files elsewhere.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    conn.pragma_update(None, "trusted_schema", false)?;
    match check::integrity(conn)? {
        Integrity::Whole => {}
        Integrity::Indices => {
            tracing::error!(
                "indices of the database were damaged and are made anew: is the card failing?"
            );
            conn.execute_batch("reindex")?;
        }
        Integrity::Pages => return Err(StoreError::Damaged { source: None }),
    }
    if let Some(found) = schema::older(conn)? {
        migration_backup::keep(conn, dir, found);
    }
    schema::migrate(conn)
}

/// Every row is held against its checksum; from then on each statement does it.
fn settle_rows(conn: &mut Connection, now_ms: i64) -> Result<(Damage, Findings), StoreError> {
    let findings = check::all(conn, now_ms)?;
    findings.log();
    let damage = Damage::default();
    checksum::install(conn, &damage, true)?;
    Ok((damage, findings))
}

/// In `meta`, for each sink there ever was: `sink.mqtt` → the `seq` up to which it was sent every
/// event, or this while it still is.
const STILL_OWED: i64 = -1;

/// For a sink that is new, or back after a time without it, all events become pending that were not so
/// far. A webhook that is new receives only what comes from now on: what is long past would be taken
/// for today's by many a receiver. For one that is not configured any more see `removed_webhooks`.
fn settle_sinks(conn: &mut Connection, options: &StoreOptions) -> Result<(), StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let newest: i64 =
        tx.query_row("select coalesce(max(seq), 0) from event", [], |row| row.get(0))?;
    let known: Vec<(String, String)> = tx
        .prepare("select key, cast(value as text) from meta where key like 'sink.%'")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let keys: Vec<String> =
        options.sinks.iter().map(|it| format!("sink.{}", it.as_str())).collect();
    let put = "insert into main.meta (key, value) values (?1, cast(?2 as blob)) on conflict (key) do update set value = cast(?2 as blob)";
    for (key, _) in known
        .iter()
        .filter(|(key, through)| !keys.contains(key) && *through == STILL_OWED.to_string())
    {
        tx.execute(put, [key.clone(), newest.to_string()])?;
    }
    for (key, sink) in keys.iter().zip(&options.sinks) {
        let before_the_first = if sink.is_webhook() { newest } else { 0 };
        let through = known
            .iter()
            .find(|it| it.0 == *key)
            .map_or(before_the_first, |it| it.1.parse().unwrap_or(before_the_first));
        if through != STILL_OWED {
            tx.execute(
                "insert into main.outbox (sink, event_seq, created_ms) select ?1, seq, ?2 from event where seq > ?3 \
                 and not exists (select 1 from main.outbox where event_seq = seq and sink = ?1) order by seq",
                rusqlite::params![sink.as_str(), options.clock.now().wall_ms, through],
            )?;
            tx.execute(put, [key.clone(), STILL_OWED.to_string()])?;
        }
    }
    tx.commit()?;
    Ok(())
}
