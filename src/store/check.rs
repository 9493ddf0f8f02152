//! Finds damaged rows and takes them out of their tables, so that everything else goes on.
//!
//! At each start every row is held against its checksum (`checksum`). A row of which one bit is wrong is corrected: the
//! checksum shows which. Any other damaged row is moved to `unreadable`, as it was found. An event that is lost that way
//! is dead-lettered for each sink that does not have it; of a lost outbox row the events that it may have stood for are
//! pending again, since delivery twice is harmless. Rows without a checksum were written by another tool, or before there
//! were checksums: they are adopted if their values are of the right types.
//!
//! Invariant: a row is only ever changed to what its checksum confirms.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::ids::{Name, SubjectId};
use crate::store::checksum::{
    self, Cell, Damage, EVENT, Fit, META, OUTBOX, SUBJECT, TABLES, TableLayout, VENUE, fit, framed,
    type_fault,
};
use crate::store::error::StoreError;
use crate::store::rows::{NEWEST_SEQ, UNREADABLE, UnreadableRow};

/// Events become pending again for a lost outbox row only if that many may be meant, or the row names one.
const REQUEUED_MAX: i64 = 64;

/// The end of the year 9999: later times cannot be written as text.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// What was found wrong, and put right.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) unreadable: Vec<UnreadableRow>,
    /// Rows in which one bit was wrong, and is right again.
    pub(super) corrected: u64,
    /// Rows that had no checksum.
    pub(super) adopted: u64,
    /// Whether events are pending that were not before.
    pub(super) requeued: bool,
    /// Outbox rows that are gone, as far as they can be read.
    lost_rows: Vec<(i64, Option<i64>)>,
}

impl Findings {
    /// Makes the events pending again that lost outbox rows may have stood for.
    pub(super) fn requeue_lost(
        &mut self,
        conn: &Connection,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let lost = std::mem::take(&mut self.lost_rows);
        self.requeued |= requeue_missing(conn, &lost, now_ms)?;
        Ok(())
    }

    pub(super) fn join(&mut self, other: Self) {
        self.unreadable.extend(other.unreadable);
        self.corrected += other.corrected;
        self.adopted += other.adopted;
        self.requeued |= other.requeued;
    }

    /// Logs what was found; of rows that cannot be read the first few.
    pub(super) fn log(&self) {
        const LOGGED_MAX: usize = 20;
        for it in self.unreadable.iter().take(LOGGED_MAX) {
            tracing::error!(
                table = it.table,
                row = it.row,
                reason = it.reason,
                "a row of the database cannot be read and was set apart: `rollcall doctor --repair`"
            );
        }
        if self.unreadable.len() > LOGGED_MAX {
            tracing::error!(
                rows = self.unreadable.len(),
                "rows of the database cannot be read, the first are listed"
            );
        }
        if self.corrected > 0 {
            tracing::warn!(
                rows = self.corrected,
                "rows of the database had a wrong bit and were corrected: is the card failing?"
            );
        }
        if self.adopted > 0 {
            tracing::info!(rows = self.adopted, "rows of the database had no checksum yet");
        }
    }
}

/// How the pages of a database stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integrity {
    Whole,
    /// Rows and indices contradict one another, which `reindex` puts right.
    Indices,
    /// The trees of tables are damaged: the database must be rebuilt.
    Pages,
}

/// What `integrity_check` reports of values of a row, and not of the pages that hold them.
const OF_ROWS: [&str; 3] = ["CHECK constraint failed in ", "NULL value in ", "value in "];
const OF_INDICES: [&str; 5] = [
    " missing from index ",
    "wrong # of entries in index ",
    "non-unique entry in index ",
    " values differ from index ",
    "rowid not at end-of-record for row ",
];

pub(super) fn integrity(conn: &Connection) -> Result<Integrity, StoreError> {
    // Where there is more wrong than that it is rebuilt.
    const MESSAGES_MAX: usize = 100;
    let mut query = conn.prepare(&format!("pragma integrity_check({MESSAGES_MAX})"))?;
    let mut rows = query.query([])?;
    let (mut found, mut messages) = (Integrity::Whole, 0);
    while let Some(row) = rows.next()? {
        // A message may quote what is no text.
        let message =
            String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned();
        messages += 1;
        if message == "ok" || OF_ROWS.iter().any(|it| message.contains(it)) {
            continue;
        }
        if !OF_INDICES.iter().any(|it| message.contains(it)) || messages == MESSAGES_MAX {
            return Ok(Integrity::Pages);
        }
        found = Integrity::Indices;
    }
    Ok(found)
}

/// Holds every row against its checksum. Nothing else may use the connection's database meanwhile.
pub(super) fn all(conn: &mut Connection, now_ms: i64) -> Result<Findings, StoreError> {
    without_foreign_keys(
        conn,
        |conn, findings| {
            for table in TABLES {
                table_rows(conn, table, now_ms, findings)?;
            }
            sequence(conn)
        },
        now_ms,
    )
}

/// Deals with the damaged rows that statements came upon.
pub(super) fn noted(
    conn: &mut Connection,
    damage: &Damage,
    now_ms: i64,
    keep_content: bool,
) -> Result<Findings, StoreError> {
    let rows = damage.take();
    without_foreign_keys(
        conn,
        |conn, findings| {
            for (table, key) in rows {
                let sql = format!(
                    "select {} from main.{} where {} = ?1",
                    table.list(""),
                    table.name,
                    table.key
                );
                let cells =
                    conn.prepare(&sql)?.query_row([&key], |row| table.cells(row)).optional()?;
                // Gone meanwhile, or corrected by a reader's notice.
                let Some(cells) = cells else { continue };
                let stored = stored_sum(conn, table, &key)?;
                settle(conn, table, &cells, &stored, &HashMap::new(), now_ms, findings)?;
            }
            if !keep_content {
                conn.execute("update unreadable set content = null", [])?;
            }
            Ok(())
        },
        now_ms,
    )
}

/// A damaged event may be pending, and a damaged subject have references: their rows stay.
fn without_foreign_keys(
    conn: &mut Connection,
    work: impl FnOnce(&Connection, &mut Findings) -> Result<(), StoreError>,
    now_ms: i64,
) -> Result<Findings, StoreError> {
    conn.pragma_update(None, "foreign_keys", false)?;
    let done = (|| {
        let mut findings = Findings::default();
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        work(&tx, &mut findings)?;
        findings.requeue_lost(&tx, now_ms)?;
        tx.commit()?;
        Ok(findings)
    })();
    conn.pragma_update(None, "foreign_keys", true)?;
    done
}

fn table_rows(
    conn: &Connection,
    table: &'static TableLayout,
    now_ms: i64,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let orphans = orphans(conn, table)?;
    let sql = format!(
        "select {}, (select sum from main.checksum where tbl = {} and key = +t.{}) from main.{} t",
        table.list("t."),
        table.code,
        table.key,
        table.name
    );
    let mut wrong = Vec::new();
    {
        let mut query = conn.prepare(&sql)?;
        let mut rows = query.query([])?;
        let count = table.columns.len();
        while let Some(row) = rows.next()? {
            let framed = framed((0..count).map(|at| row.get_ref_unwrap(at)));
            let stored = row.get_ref(count)?;
            if fit(stored, checksum::sum(table.code, &framed)) != Fit::Fits {
                wrong.push((table.cells(row)?, Cell::from(stored)));
            }
        }
    }
    for (cells, stored) in &wrong {
        settle(conn, table, cells, stored, &orphans, now_ms, findings)?;
    }
    let mut left = self::orphans(conn, table)?;
    for (sum, key) in left.drain() {
        // Of what another tool deleted nothing is missed, but for the record and the people.
        if (table.name == EVENT.name || table.name == SUBJECT.name)
            && !orphan_was_used(&orphans, sum, findings, table)
        {
            let reason = "the row is gone, its checksum is left";
            note(conn, table, &key, reason, None, now_ms, findings)?;
        }
        let sql = "delete from main.checksum where tbl = ?1 and key = ?2";
        conn.prepare(sql)?.execute(params![table.code, key])?;
    }
    Ok(())
}

/// A row under an altered key was set apart: its checksum under the right key is no second loss.
fn orphan_was_used(
    orphans: &HashMap<i64, Cell>,
    sum: i64,
    findings: &Findings,
    table: &TableLayout,
) -> bool {
    orphans.contains_key(&sum)
        && findings.unreadable.iter().any(|it| it.table == table.name && it.reason == ALTERED_KEY)
}

const ALTERED_KEY: &str = "its key was altered";

/// Checksums of rows that are not there, with their keys.
fn orphans(conn: &Connection, table: &TableLayout) -> Result<HashMap<i64, Cell>, StoreError> {
    let sql = format!(
        "select key, sum from main.checksum c where tbl = {} and not exists (select 1 from main.{} where {} = c.key)",
        table.code, table.name, table.key
    );
    let mut query = conn.prepare(&sql)?;
    let pair = |row: &rusqlite::Row<'_>| Ok((row.get_ref(0)?.into(), row.get_ref(1)?.into()));
    let found: Vec<(Cell, Cell)> = query.query_map([], pair)?.collect::<Result<_, _>>()?;
    Ok(found
        .into_iter()
        .filter_map(|(key, sum)| if let Cell::Int(sum) = sum { Some((sum, key)) } else { None })
        .collect())
}

fn stored_sum(conn: &Connection, table: &TableLayout, key: &Cell) -> Result<Cell, StoreError> {
    let sql = "select sum from main.checksum where tbl = ?1 and key = ?2";
    let found = conn
        .prepare(sql)?
        .query_row(params![table.code, key], |row| row.get_ref(0).map(Cell::from));
    Ok(found.optional()?.unwrap_or(Cell::Null))
}

/// Decides what becomes of a row that does not fit its checksum.
fn settle(
    conn: &Connection,
    table: &'static TableLayout,
    cells: &[Cell],
    stored: &Cell,
    orphans: &HashMap<i64, Cell>,
    now_ms: i64,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    match judge(table, cells, stored.as_value(), orphans) {
        RowVerdict::Whole => return Ok(()),
        RowVerdict::Adopted => {
            findings.adopted += 1;
            put_sum(conn, table, cells)?;
        }
        RowVerdict::SumDamaged => {
            findings.corrected += 1;
            put_sum(conn, table, cells)?;
        }
        RowVerdict::Corrected(right) => {
            remove(conn, table, &cells[table.key_at()])?;
            put_row(conn, table, &right)?;
            findings.corrected += 1;
        }
        RowVerdict::Unreadable(reason) => {
            let key = &cells[table.key_at()];
            remove(conn, table, key)?;
            note(conn, table, key, &reason, Some(cells), now_ms, findings)?;
        }
    }
    Ok(())
}

/// What is to become of a row.
pub(super) enum RowVerdict {
    Whole,
    Adopted,
    SumDamaged,
    Corrected(Vec<Cell>),
    Unreadable(String),
}

/// `orphans` are the checksums of the table whose rows are not there.
pub(super) fn judge(
    table: &TableLayout,
    cells: &[Cell],
    stored: rusqlite::types::ValueRef<'_>,
    orphans: &HashMap<i64, Cell>,
) -> RowVerdict {
    let computed = table.sum_of(cells);
    match fit(stored, computed) {
        Fit::Fits => RowVerdict::Whole,
        Fit::SumDamaged => RowVerdict::SumDamaged,
        Fit::Differs => {
            let stored = stored.as_i64().unwrap_or_default();
            let right = checksum::corrected(table.code, cells, stored);
            right.map_or_else(
                || RowVerdict::Unreadable("it does not fit its checksum".to_owned()),
                RowVerdict::Corrected,
            )
        }
        // The key of the checksum was altered.
        Fit::Missing if orphans.contains_key(&computed) => RowVerdict::SumDamaged,
        Fit::Missing => {
            let right = orphans
                .keys()
                .take(ORPHANS_TRIED)
                .find_map(|it| checksum::corrected(table.code, cells, *it));
            match (right, content_fault(table, cells)) {
                (Some(right), _) => RowVerdict::Corrected(right),
                (None, Some(fault)) => RowVerdict::Unreadable(fault),
                (None, None)
                    if !orphans.is_empty() && stored == rusqlite::types::ValueRef::Null =>
                {
                    RowVerdict::Unreadable(ALTERED_KEY.to_owned())
                }
                (None, None) => RowVerdict::Adopted,
            }
        }
    }
}

/// A row under an altered key is compared with so many checksums without a row; one bit leaves one.
const ORPHANS_TRIED: usize = 4;

/// Why a row without a checksum cannot be adopted.
fn content_fault(table: &TableLayout, cells: &[Cell]) -> Option<String> {
    if let Some(fault) = type_fault(table, cells) {
        return Some(fault);
    }
    let column = |name: &str| {
        let at = table.columns.iter().position(|it| it.0 == name)?;
        cells.get(at)
    };
    let text = |name: &str| column(name).and_then(Cell::as_text);
    let length = |name: &str| match column(name) {
        Some(Cell::Blob(it)) => Some(it.len()),
        _ => None,
    };
    let fault = match table.name {
        "event" => {
            let time = column("occurred_ms");
            let is_date = matches!(time, Some(Cell::Int(it)) if (0..=TIME_MAX_MS).contains(it));
            let ids =
                length("event_id") == Some(16) && length("superseded_by").is_none_or(|it| it == 16);
            (!is_date || !ids).then_some("its time or its id is none")
        }
        "subject" => {
            let valid = text("id").is_some_and(|it| SubjectId::new(it).is_ok())
                && text("name").is_some_and(|it| Name::new(it).is_ok());
            (!valid).then_some("its id or its name is none")
        }
        "reference" => {
            let valid = length("id") == Some(16) && length("embedder") == Some(32);
            (!valid).then_some("its id or that of its network is none")
        }
        "withdrawn" | "erasure" => {
            let valid = text("subject_id").is_some_and(|it| SubjectId::new(it).is_ok());
            (!valid).then_some("it is about no subject")
        }
        name if name == VENUE.name => {
            let valid = text("body")
                .is_some_and(|it| serde_json::from_str::<serde_json::Value>(it).is_ok());
            (!valid).then_some("it is no JSON")
        }
        _ => None,
    };
    fault.map(str::to_owned)
}

pub(super) fn put_sum(
    conn: &Connection,
    table: &TableLayout,
    cells: &[Cell],
) -> Result<(), StoreError> {
    let sql = "insert into main.checksum (tbl, key, sum) values (?1, ?2, ?3) \
               on conflict (tbl, key) do update set sum = excluded.sum";
    let row = params![table.code, cells[table.key_at()], table.sum_of(cells)];
    conn.prepare_cached(sql)?.execute(row)?;
    Ok(())
}

pub(super) fn put_row(
    conn: &Connection,
    table: &TableLayout,
    cells: &[Cell],
) -> Result<(), StoreError> {
    let places: Vec<String> = (1..=cells.len()).map(|at| format!("?{at}")).collect();
    let sql = format!(
        "insert into main.{} ({}) values ({})",
        table.name,
        table.list(""),
        places.join(", ")
    );
    conn.prepare_cached(&sql)?.execute(rusqlite::params_from_iter(cells))?;
    put_sum(conn, table, cells)
}

fn remove(conn: &Connection, table: &TableLayout, key: &Cell) -> Result<(), StoreError> {
    let sql = format!("delete from main.{} where {} = ?1", table.name, table.key);
    conn.prepare(&sql)?.execute([key])?;
    conn.prepare("delete from main.checksum where tbl = ?1 and key = ?2")?
        .execute(params![table.code, key])?;
    Ok(())
}

/// Lists a row as unreadable. A pending event is dead-lettered; an outbox row is remembered.
pub(super) fn note(
    conn: &Connection,
    table: &'static TableLayout,
    key: &Cell,
    reason: &str,
    cells: Option<&[Cell]>,
    now_ms: i64,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let content = cells.map(|it| framed(it.iter().map(Cell::as_value)));
    let sql =
        "insert into unreadable (tbl, key, reason, found_ms, content) values (?1, ?2, ?3, ?4, ?5)";
    conn.prepare_cached(sql)?.execute(params![table.name, key, reason, now_ms, content])?;
    match (table.name, key) {
        ("event", Cell::Int(seq)) => dead_letter_rows_of(conn, *seq)?,
        ("outbox", Cell::Int(id)) => {
            let event_seq = cells.and_then(|it| match it.get(2) {
                Some(Cell::Int(seq)) => Some(*seq),
                _ => None,
            });
            findings.lost_rows.push((*id, event_seq));
        }
        _ => {}
    }
    let row = key.for_people();
    findings.unreadable.push(UnreadableRow {
        table: table.name.to_owned(),
        row,
        reason: reason.to_owned(),
        found_ms: now_ms,
    });
    Ok(())
}

fn dead_letter_rows_of(conn: &Connection, seq: i64) -> Result<(), StoreError> {
    let sql = format!(
        "select {} from main.outbox where event_seq = ?1 and buried_reason is null",
        OUTBOX.list("")
    );
    let rows: Vec<Vec<Cell>> =
        conn.prepare(&sql)?.query_map([seq], |row| OUTBOX.cells(row))?.collect::<Result<_, _>>()?;
    for mut cells in rows {
        // One that is damaged itself is dealt with as such.
        let stored = stored_sum(conn, OUTBOX, &cells[0])?;
        if fit(stored.as_value(), OUTBOX.sum_of(&cells)) == Fit::Differs {
            continue;
        }
        let sql = "update main.outbox set buried_reason = ?2 where id = ?1";
        conn.prepare(sql)?.execute(params![cells[0], UNREADABLE])?;
        if let Some(reason) = cells.last_mut() {
            *reason = Cell::Text(UNREADABLE.into());
        }
        put_sum(conn, OUTBOX, &cells)?;
    }
    Ok(())
}

/// Makes the events pending that lost outbox rows may have stood for. The rows of one sink are in the order of their events, so
/// it is one of those between its neighbours.
fn requeue_missing(
    conn: &Connection,
    lost: &[(i64, Option<i64>)],
    now_ms: i64,
) -> Result<bool, StoreError> {
    if lost.is_empty() {
        return Ok(false);
    }
    let sinks = "select substr(key, 6) from main.meta where key like 'sink.%' and cast(value as text) = '-1'";
    let sinks: Vec<String> =
        conn.prepare(sinks)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut requeued = false;
    for (id, event_seq) in lost {
        for sink in &sinks {
            requeued |= requeue_between(conn, sink, *id, *event_seq, now_ms)?;
        }
    }
    Ok(requeued)
}

fn requeue_between(
    conn: &Connection,
    sink: &str,
    id: i64,
    event_seq: Option<i64>,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let neighbour = |way: &str, order: &str| {
        let sql = format!(
            "select event_seq from main.outbox where sink = ?1 and id {way} ?2 and event_seq is not null \
             order by id {order} limit 1"
        );
        let found = conn.prepare(&sql)?.query_row(params![sink, id], |row| row.get::<_, i64>(0));
        found.optional().map_err(StoreError::from)
    };
    let before = neighbour("<", "desc")?.unwrap_or(0);
    let behind = match neighbour(">", "asc")? {
        Some(seq) => seq,
        None => crate::store::read::last_seq(conn)?.saturating_add(1),
    };
    let missing = "seq > ?1 and seq < ?2 \
                   and not exists (select 1 from main.outbox where sink = ?3 and event_seq = seq)";
    let few = format!(
        "select count(*) <= ?4 from (select 1 from main.event where {missing} limit ?4 + 1)"
    );
    let few: bool = conn
        .prepare(&few)?
        .query_row(params![before, behind, sink, REQUEUED_MAX], |row| row.get(0))?;
    let named = event_seq.filter(|it| !few && (before + 1..behind).contains(it));
    let (after, until) = named.map_or((before, behind), |it| (it - 1, it + 1));
    let rows = format!("select seq from main.event where {missing} order by seq");
    let rows: Vec<i64> = conn
        .prepare(&rows)?
        .query_map(params![after, until, sink], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for seq in &rows {
        let sql =
            "insert into main.outbox (sink, event_seq, created_ms) values (?1, ?2, ?3) returning ";
        let sql = format!("{sql}{}", OUTBOX.list(""));
        let cells = conn
            .prepare_cached(&sql)?
            .query_row(params![sink, seq, now_ms], |row| OUTBOX.cells(row))?;
        put_sum(conn, OUTBOX, &cells)?;
    }
    Ok(!rows.is_empty())
}

/// SQLite's own table of the numbers given has no checksums. The newest number is that of the newest event, or stands in
/// `meta` since that event was deleted: any other number is damaged.
fn sequence(conn: &Connection) -> Result<(), StoreError> {
    let given = crate::store::read::last_seq(conn).unwrap_or(0);
    let noted = conn
        .query_row(
            "select cast(value as text) from main.meta where key = ?1",
            [NEWEST_SEQ],
            |row| row.get::<_, String>(0),
        )
        .optional()?;
    let Some(noted) = noted.and_then(|it| it.parse::<i64>().ok()) else {
        // Before there were checksums.
        let row = [Cell::Text(NEWEST_SEQ.into()), Cell::Blob(given.to_string().into())];
        remove(conn, META, &row[0])?;
        return put_row(conn, META, &row);
    };
    let newest = "select max(coalesce((select max(seq) from main.event), 0), \
                  coalesce((select max(key) from unreadable where tbl = 'event' and typeof(key) = 'integer'), 0))";
    let newest = conn.query_row(newest, [], |row| row.get::<_, i64>(0))?.max(noted);
    if newest != given {
        put_sequence(conn, "event", newest)?;
    }
    Ok(())
}

pub(super) fn put_sequence(conn: &Connection, table: &str, newest: i64) -> Result<(), StoreError> {
    let known = conn
        .execute("update sqlite_sequence set seq = ?2 where name = ?1", params![table, newest])?;
    if known == 0 {
        conn.execute(
            "insert into sqlite_sequence (name, seq) values (?1, ?2)",
            params![table, newest],
        )?;
    }
    Ok(())
}
