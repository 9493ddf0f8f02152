//! Migrations: each step of the schema in a transaction of its own, together with its number.
//!
//! Invariant: `schema.sql` is what the steps lead to. A step that has been released is never changed.

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Step `n` leads from `user_version` n to n + 1.
const STEPS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
];

pub(super) const NEWEST: u32 = STEPS.len() as u32;

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

/// Refuses a database that is still to be migrated, for those who may not.
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
    fn the_migrated_schema_is_schema_sql() {
        let mut migrated = Connection::open_in_memory().unwrap();
        migrate(&mut migrated).unwrap();
        let written = Connection::open_in_memory().unwrap();
        written.execute_batch(include_str!("schema.sql")).unwrap();
        assert_eq!(dump(&migrated), dump(&written));
        assert_eq!(version(&migrated).unwrap(), NEWEST);
    }

    #[test]
    fn a_database_of_the_first_version_keeps_its_events() {
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
    fn a_newer_schema_is_refused() {
        let conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "user_version", NEWEST + 1).unwrap();
        let error = check_version(&conn).unwrap_err();
        assert!(matches!(error, StoreError::SchemaTooNew { found, newest } if found == newest + 1));
    }
}
