//! Rebuilds a database whose pages are damaged: what can be read and fits its checksum is copied into a new one, and the
//! damaged file is moved aside whole.
//!
//! Works on a copy, in which the constant parts of the header and the schema are put right first. A row whose page is
//! lost is known by its checksum and listed. Killed at any instant, either the damaged database is still in its place
//! and this begins anew, or the rebuilt one is complete ([`finish`]).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, params};

use crate::store::check;
use crate::store::check::{Findings, RowVerdict, judge, note, put_row};
use crate::store::checksum::{Cell, META, TABLES, TableLayout};
use crate::store::error::StoreError;
use crate::store::rows::NEWEST_SEQ;
use crate::store::{files, schema};

const COPY: &str = "salvage";
const REBUILT: &str = "rebuilt";

/// Rows with integer keys are also searched one by one in a gap of this length.
const GAP_MAX: i64 = 1_000_000;

fn beside(dir: &Path, what: &str) -> PathBuf {
    dir.join(format!("{}.{what}", files::DATABASE))
}

fn remove(path: &Path) {
    for end in ["", "-wal", "-shm", "-journal"] {
        fs::remove_file(format!("{}{end}", path.display())).ok();
    }
}

/// Gives a rebuilt database its place, if the process was killed just before.
pub(super) fn finish(dir: &Path) -> Result<(), StoreError> {
    let (path, rebuilt) = (dir.join(files::DATABASE), beside(dir, REBUILT));
    if !path.exists() && rebuilt.exists() {
        fs::rename(&rebuilt, &path).map_err(files::io_error(&path))?;
    }
    Ok(())
}

/// Sets the damaged database aside. In its place stands what could be read of it, or nothing.
pub(super) fn rebuild(dir: &Path, now_ms: i64) -> Result<(PathBuf, Findings), StoreError> {
    let (copy, rebuilt) = (beside(dir, COPY), beside(dir, REBUILT));
    remove(&copy);
    remove(&rebuilt);
    let salvaged = copy_files(dir, &copy)
        .and_then(|()| open_damaged(&copy))
        .and_then(|from| into_new(&from, &rebuilt, now_ms));
    remove(&copy);
    let findings = match salvaged {
        Ok(findings) => Some(findings),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::error!(error, "nothing could be read of the damaged database");
            remove(&rebuilt);
            None
        }
    };
    let aside = files::move_aside(dir, now_ms)?;
    finish(dir)?;
    File::open(dir).and_then(|it| it.sync_all()).map_err(files::io_error(dir))?;
    Ok((aside, findings.unwrap_or_default()))
}

fn copy_files(dir: &Path, copy: &Path) -> Result<(), StoreError> {
    for end in ["", "-wal"] {
        let from = dir.join(format!("{}{end}", files::DATABASE));
        let to = PathBuf::from(format!("{}{end}", copy.display()));
        let mut source = match File::open(&from) {
            Ok(source) => source,
            Err(error) if end == "-wal" && error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(files::io_error(&from)(error)),
        };
        let mut options = OpenOptions::new();
        let mut target = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&to)
            .map_err(files::io_error(&to))?;
        std::io::copy(&mut source, &mut target).map_err(files::io_error(&to))?;
    }
    mend_header(copy).map_err(files::io_error(copy))
}

/// The parts of the header that are the same in every database of this program, by SQLite's file format.
fn mend_header(path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut header = [0; 100];
    file.read_exact(&mut header)?;
    header[..16].copy_from_slice(b"SQLite format 3\0");
    // Pages of 4096 bytes; a write-ahead log; nothing reserved; the fractions of a page that are fixed.
    header[16..24].copy_from_slice(&[0x10, 0, 2, 2, 0, 64, 32, 32]);
    let pages = u32::try_from(file.metadata()?.len() / 4096).unwrap_or(u32::MAX);
    header[28..32].copy_from_slice(&pages.to_be_bytes());
    // The free list is not needed for reading.
    header[32..40].fill(0);
    // Schema format 4, no vacuum by itself, UTF-8.
    header[44..48].copy_from_slice(&4_u32.to_be_bytes());
    header[52..60].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
    header[64..68].fill(0);
    let counter: [u8; 4] = [header[24], header[25], header[26], header[27]];
    header[92..96].copy_from_slice(&counter);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)
}

fn open_damaged(path: &Path) -> Result<Connection, StoreError> {
    let conn = Connection::open(path)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
    // A schema that cannot be read is no error then.
    conn.pragma_update(None, "writable_schema", true)?;
    schema::mend(&conn)?;
    // It is read anew.
    drop(conn);
    let conn = Connection::open(path)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "writable_schema", true)?;
    Ok(conn)
}

/// A row that is not copied.
struct Lost {
    table: &'static TableLayout,
    key: Cell,
    reason: String,
    cells: Option<Vec<Cell>>,
}

fn into_new(from: &Connection, path: &Path, now_ms: i64) -> Result<Findings, StoreError> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(files::io_error(path))?;
    let mut new = Connection::open(path)?;
    new.pragma_update(None, "page_size", 4096)?;
    new.pragma_update(None, "synchronous", "off")?;
    new.pragma_update(None, "journal_mode", "memory")?;
    new.pragma_update(None, "foreign_keys", false)?;
    schema::migrate(&mut new)?;
    let tx = new.transaction()?;
    let (mut findings, mut lost) = (Findings::default(), Vec::new());
    let mut read = 0;
    for table in TABLES {
        read += copy_table(from, &tx, table, &mut findings, &mut lost)?;
    }
    // Without a row there was nothing, or nothing of it is left: either way the empty database is as good.
    tracing::warn!(
        rows = read,
        lost = lost.len(),
        "the database was damaged and is rebuilt from what can be read"
    );
    copy_plain(from, &tx, "photograph", "subject_id, embedder, digest");
    copy_plain(from, &tx, "unreadable", "row, tbl, key, reason, found_ms, content");
    for it in &lost {
        note(&tx, it.table, &it.key, &it.reason, it.cells.as_deref(), now_ms, &mut findings)?;
    }
    findings.requeue_lost(&tx, now_ms)?;
    tx.commit()?;
    new.close().map_err(|(_, error)| StoreError::from(error))?;
    file.sync_all().map_err(files::io_error(path))?;
    Ok(findings)
}

/// Copies the rows that can be read; gives how many.
fn copy_table(
    from: &Connection,
    to: &Connection,
    table: &'static TableLayout,
    findings: &mut Findings,
    lost: &mut Vec<Lost>,
) -> Result<u64, StoreError> {
    let (sums, sums_whole) = sums(from, table);
    let rows = rows(from, table, &sums, sums_whole);
    let keys: HashSet<Vec<u8>> = rows.iter().map(|it| framed_key(&it[table.key_at()])).collect();
    // Where checksums are lost, too, a row without one is no sign of anything.
    let orphans: HashMap<i64, Cell> = if sums_whole {
        let missing = sums.iter().filter(|(key, _)| !keys.contains(*key));
        missing.map(|(_, (key, sum))| (*sum, key.clone())).collect()
    } else {
        HashMap::new()
    };
    let (mut copied, mut settled) = (0, HashSet::new());
    let mut newest = 0;
    for cells in rows {
        let key = cells[table.key_at()].clone();
        let stored = sums.get(&framed_key(&key)).map_or(Cell::Null, |(_, sum)| Cell::Int(*sum));
        let (row, reason) = match judge(table, &cells, stored.as_value(), &orphans) {
            RowVerdict::Whole => (Some(cells.clone()), String::new()),
            RowVerdict::Adopted => {
                findings.adopted += 1;
                (Some(cells.clone()), String::new())
            }
            RowVerdict::SumDamaged => {
                settled.insert(table.sum_of(&cells));
                (Some(cells.clone()), String::new())
            }
            RowVerdict::Corrected(right) => {
                findings.corrected += 1;
                settled.insert(table.sum_of(&right));
                (Some(right), String::new())
            }
            RowVerdict::Unreadable(reason) => (None, reason),
        };
        match row {
            Some(row) if put_row(to, table, &row).is_ok() => {
                copied += 1;
                if let Cell::Int(it) = row[table.key_at()] {
                    newest = newest.max(it);
                }
            }
            Some(_) => {
                lost.push(Lost {
                    table,
                    key,
                    reason: "it contradicts another row".into(),
                    cells: Some(cells),
                });
            }
            None => lost.push(Lost { table, key, reason, cells: Some(cells) }),
        }
    }
    for (_, key) in orphans.into_iter().filter(|(sum, _)| !settled.contains(sum)) {
        if let Cell::Int(it) = key {
            newest = newest.max(it);
        }
        lost.push(Lost {
            table,
            key,
            reason: "it was lost with a damaged page".into(),
            cells: None,
        });
    }
    if table.name == "event" {
        newest = newest.max(noted_seq(to));
    }
    if newest > 0
        && matches!(table.name, "event" | "outbox" | "command" | "observation" | "erasure")
    {
        check::put_sequence(to, table.name, newest)?;
    }
    Ok(copied)
}

fn framed_key(key: &Cell) -> Vec<u8> {
    crate::store::checksum::framed(std::iter::once(key.as_value()))
}

/// The number of the newest event when events were deleted last; `meta` is copied first.
fn noted_seq(to: &Connection) -> i64 {
    let sql = format!("select cast(value as text) from main.{} where key = ?1", META.name);
    let noted = to.query_row(&sql, [NEWEST_SEQ], |row| row.get::<_, String>(0));
    noted.ok().and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// The checksums of a table by key framed, and whether all could be read.
fn sums(from: &Connection, table: &TableLayout) -> (HashMap<Vec<u8>, (Cell, i64)>, bool) {
    let mut found = HashMap::new();
    let mut whole = true;
    for order in ["asc", "desc"] {
        let sql = format!("select key, sum from main.checksum where tbl = ?1 order by key {order}");
        let read = |found: &mut HashMap<Vec<u8>, (Cell, i64)>| -> rusqlite::Result<()> {
            let mut query = from.prepare(&sql)?;
            let mut rows = query.query([table.code])?;
            while let Some(row) = rows.next()? {
                if let (key, Cell::Int(sum)) =
                    (Cell::from(row.get_ref(0)?), Cell::from(row.get_ref(1)?))
                {
                    found.insert(framed_key(&key), (key, sum));
                }
            }
            Ok(())
        };
        if read(&mut found).is_ok() {
            return (found, whole);
        }
        whole = false;
    }
    (found, whole)
}

/// All rows that can be reached: from both ends, and then one by one.
fn rows(
    from: &Connection,
    table: &TableLayout,
    sums: &HashMap<Vec<u8>, (Cell, i64)>,
    sums_whole: bool,
) -> Vec<Vec<Cell>> {
    let (columns, name, key) = (table.list(""), table.name, table.key);
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut take = |cells: Vec<Cell>, found: &mut Vec<Vec<Cell>>| {
        if seen.insert(framed_key(&cells[table.key_at()])) {
            found.push(cells);
        }
        seen.len()
    };
    let mut ends = Vec::new();
    for order in ["asc", "desc"] {
        let sql = format!("select {columns} from main.{name} not indexed order by {key} {order}");
        let mut read = || -> rusqlite::Result<()> {
            let mut query = from.prepare(&sql)?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                take(table.cells(row)?, &mut found);
            }
            Ok(())
        };
        if read().is_ok() {
            break;
        }
        ends.push(found.last().map(|it| it[table.key_at()].clone()));
    }
    let read: HashSet<Vec<u8>> = found.iter().map(|it| framed_key(&it[table.key_at()])).collect();
    let mut wanted: Vec<Cell> = Vec::new();
    wanted.extend(
        sums.iter().filter(|(key, _)| !read.contains(*key)).map(|(_, (key, _))| key.clone()),
    );
    if let ([Some(Cell::Int(low)), Some(Cell::Int(high))], false) = (ends.as_slice(), sums_whole)
        && high.saturating_sub(*low) <= GAP_MAX
    {
        wanted.extend((low + 1..*high).map(Cell::Int));
    }
    let sql = format!("select {columns} from main.{name} not indexed where {key} = ?1");
    if let Ok(mut query) = from.prepare(&sql) {
        for key in wanted {
            if let Ok(cells) = query.query_row([&key], |row| table.cells(row)) {
                take(cells, &mut found);
            }
        }
    }
    found
}

/// A table without checksums, as far as it goes.
fn copy_plain(from: &Connection, to: &Connection, table: &str, columns: &str) {
    let count = columns.split(',').count();
    let places: Vec<String> = (1..=count).map(|at| format!("?{at}")).collect();
    let copy = || -> rusqlite::Result<()> {
        let mut put = to.prepare(&format!(
            "insert or ignore into {table} ({columns}) values ({})",
            places.join(", ")
        ))?;
        let mut query = from.prepare(&format!("select {columns} from {table} not indexed"))?;
        let mut rows = query.query(params![])?;
        while let Some(row) = rows.next()? {
            let cells: Vec<Cell> =
                (0..count).map(|at| row.get_ref(at).map(Cell::from)).collect::<Result<_, _>>()?;
            put.execute(rusqlite::params_from_iter(cells)).ok();
        }
        Ok(())
    };
    // What is lost of these two makes an import examine a photograph again, or shortens a list of losses.
    copy().ok();
}
