//! Migrations: each step of the schema in a transaction of its own, together with its number.
//!
//! Invariant: `schema.sql` is what the steps lead to. A step that has been released is never
//! changed.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use crate::store::error::StoreError;

/// Step `n` leads from `user_version` n to n + 1.
const STEPS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
];

pub(super) const NEWEST: u32 = STEPS.len() as u32;

/// What a card writes at once, at the least.
pub(super) const PAGE_BYTES: u32 = 4096;

pub(super) fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    loop {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = version(&tx)?;
        let Some(step) = STEPS.get(found as usize) else {
            break;
        };
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", found + 1)?;
        tx.commit()?;
    }
    Ok(())
}

/// Refuses a database that a newer version has written: it may hold what this one would lose.
pub(super) fn check_version(conn: &Connection) -> Result<(), StoreError> {
    let found = version(conn)?;
    if found > NEWEST {
        return Err(StoreError::SchemaTooNew { found, newest: NEWEST });
    }
    Ok(())
}

/// What is found of a database that is to be migrated; none when it is new, or up to date.
pub(super) fn older(conn: &Connection) -> Result<Option<u32>, StoreError> {
    Ok(Some(version(conn)?).filter(|found| (1..NEWEST).contains(found)))
}

/// Rejects a database that is still to be migrated, for connections that may not.
pub(super) fn check_migrated(conn: &Connection) -> Result<(), StoreError> {
    let found = version(conn)?;
    if found < NEWEST {
        return Err(StoreError::SchemaTooOld { found, newest: NEWEST });
    }
    Ok(())
}

fn version(conn: &Connection) -> Result<u32, StoreError> {
    Ok(conn.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// A part of the schema as this version makes it.
struct Part {
    kind: String,
    name: String,
    table: String,
    sql: String,
}

fn parts() -> Result<Vec<Part>, StoreError> {
    let mut fresh = Connection::open_in_memory()?;
    migrate(&mut fresh)?;
    let sql = "select type, name, tbl_name, sql from sqlite_schema where sql is not null";
    let part = |row: &rusqlite::Row<'_>| {
        Ok(Part { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? })
    };
    let found = fresh.prepare(sql)?.query_map([], part)?.collect::<Result<_, _>>()?;
    Ok(found)
}

/// Of two texts of the same length one byte differs. A text that another version of SQLite wrote differs in more.
fn is_damaged(found: &[u8], expected: &str) -> bool {
    let differing = found.iter().zip(expected.as_bytes()).filter(|(a, b)| a != b).count();
    found.len() == expected.len() && differing == 1
}

/// Finds damage of what no checksum covers: the number of the schema, which is put right, and its text.
pub(super) fn check_damage(conn: &Connection) -> Result<(), StoreError> {
    let found = version(conn)?;
    let of_one_bit = (found ^ NEWEST).is_power_of_two();
    if found != NEWEST && !of_one_bit {
        return Ok(());
    }
    let parts = parts()?;
    let mut same = 0;
    for part in &parts {
        let sql = "select cast(sql as blob) from sqlite_schema where name = ?1 and sql is not null";
        let text: Option<Vec<u8>> =
            conn.query_row(sql, [&part.name], |row| row.get(0)).optional()?;
        match text {
            Some(text) if text == part.sql.as_bytes() => same += 1,
            Some(text) if is_damaged(&text, &part.sql) => {
                return Err(StoreError::Damaged { source: None });
            }
            // The name, or the name of its table.
            None if found == NEWEST => return Err(StoreError::Damaged { source: None }),
            _ => {}
        }
    }
    // A newer version has objects that this one does not know.
    let sql = "select count(*) from sqlite_schema where name not like 'sqlite\\_%' escape '\\'";
    let objects: usize = conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as usize;
    let own = parts.iter().filter(|it| !it.name.starts_with("sqlite_")).count();
    if found != NEWEST && same == parts.len() && objects == own {
        tracing::error!(found, "the number of the database's schema was damaged and is put right");
        conn.pragma_update(None, "user_version", NEWEST)?;
    }
    Ok(())
}

/// Puts the text of a damaged schema right, on a connection that may write to it.
pub(super) fn mend(conn: &Connection) -> Result<(), StoreError> {
    for part in parts()? {
        let mut query = conn.prepare("select rowid, cast(sql as blob) from sqlite_schema")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (rowid, text): (i64, Option<Vec<u8>>) = (row.get(0)?, row.get(1)?);
            let Some(text) = text else { continue };
            if text == part.sql.as_bytes() || is_damaged(&text, &part.sql) {
                let sql = "update sqlite_schema set type = ?2, name = ?3, tbl_name = ?4, sql = ?5 where rowid = ?1";
                conn.execute(
                    sql,
                    rusqlite::params![rowid, part.kind, part.name, part.table, part.sql],
                )?;
                break;
            }
        }
    }
    conn.pragma_update(None, "user_version", NEWEST)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without comments and spacing, which added columns do not have.
    fn dump(conn: &Connection) -> Vec<(String, String)> {
        let mut query = conn
            .prepare("select name, sql from sqlite_schema where sql is not null order by name")
            .unwrap();
        let bare = |sql: String| {
            let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
            code.flat_map(str::split_whitespace).collect::<String>()
        };
        query
            .query_map([], |row| Ok((row.get(0)?, bare(row.get(1)?))))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn migrated_schema_equals_schema_sql() {
        let mut migrated = Connection::open_in_memory().unwrap();
        migrate(&mut migrated).unwrap();
        let written = Connection::open_in_memory().unwrap();
        written.execute_batch(include_str!("schema.sql")).unwrap();
        assert_eq!(dump(&migrated), dump(&written));
        assert_eq!(version(&migrated).unwrap(), NEWEST);
    }

    #[test]
    fn migration_from_first_version_keeps_events() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(STEPS[0]).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        let event = "insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, body) \
                     values (zeroblob(16), 'attendance', 1, 'b', 2, 'synced', '{}')";
        conn.execute(event, []).unwrap();
        conn.execute("insert into outbox (sink, event_seq, created_ms) values ('mqtt', 1, 1)", [])
            .unwrap();
        migrate(&mut conn).unwrap();
        let kept =
            "select count(*) from event join outbox on event_seq = seq where superseded_by is null";
        assert_eq!(conn.query_row(kept, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn).unwrap();
        let before = dump(&conn);
        migrate(&mut conn).unwrap();
        assert_eq!(dump(&conn), before);
    }

    #[test]
    fn a_newer_schema_is_rejected() {
        let conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "user_version", NEWEST + 1).unwrap();
        let error = check_version(&conn).unwrap_err();
        assert!(matches!(error, StoreError::SchemaTooNew { found, newest } if found == newest + 1));
    }
}
