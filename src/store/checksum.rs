//! Checksums of rows: where they are, how they are computed, and that each statement writes and checks them.
//!
//! The checksum of a row is 62 bits of the SHA-256 of its table's number and of all its values, the key among them, each
//! with its type and length. It is kept in `checksum`, apart from the row, so that a damaged row header cannot hide it.
//!
//! Invariants: on every connection that [`install`] prepared, a trigger writes the checksum with the row, and a view
//! with the name of the table shows only rows that fit their checksum. Statements that change a table name it
//! `main.TABLE`; those that read name the view. A damaged row cannot be changed, since that would make it valid, only
//! removed. Counts that need no value of a row may read `main.TABLE`, whose indices are faster.
//!
//! Covered are all tables but two. `photograph` holds nothing but its key: a damaged row makes an import examine one
//! photograph again. `unreadable` is the list of what was damaged. A row without a checksum was written by another tool
//! and is checked and adopted at the next start (`check`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use crate::store::error::StoreError;

/// A table whose rows have checksums.
pub(super) struct TableLayout {
    /// Its number in `checksum`. It is never given to another table.
    pub(super) code: i64,
    pub(super) name: &'static str,
    pub(super) key: &'static str,
    /// All columns in their order, with the type that each must have.
    pub(super) columns: &'static [(&'static str, ColumnKind)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Int,
    Real,
    Text,
    Blob,
    IntOrNull,
    TextOrNull,
    BlobOrNull,
}

use ColumnKind::{Blob, BlobOrNull, Int, IntOrNull, Real, Text, TextOrNull};

pub(super) const EVENT: &TableLayout = &TableLayout {
    code: 1,
    name: "event",
    key: "seq",
    columns: &[
        ("seq", Int),
        ("event_id", Blob),
        ("kind", Text),
        ("occurred_ms", Int),
        ("boot_id", Text),
        ("boottime_ms", Int),
        ("clock", Text),
        ("venue", TextOrNull),
        ("subject_id", TextOrNull),
        ("direction", TextOrNull),
        ("body", Text),
        ("session", TextOrNull),
        ("superseded_by", BlobOrNull),
    ],
};

pub(super) const OUTBOX: &TableLayout = &TableLayout {
    code: 2,
    name: "outbox",
    key: "id",
    columns: &[
        ("id", Int),
        ("sink", Text),
        ("event_seq", IntOrNull),
        ("topic", TextOrNull),
        ("payload", TextOrNull),
        ("created_ms", Int),
        ("attempts", Int),
        ("buried_reason", TextOrNull),
    ],
};

pub(super) const SUBJECT: &TableLayout = &TableLayout {
    code: 3,
    name: "subject",
    key: "id",
    columns: &[
        ("id", Text),
        ("name", Text),
        ("enrolled_ms", Int),
        ("withdrawals", Int),
        ("changes", Int),
        ("changed_by", Text),
    ],
};

pub(super) const META: &TableLayout =
    &TableLayout { code: 11, name: "meta", key: "key", columns: &[("key", Text), ("value", Blob)] };

pub(super) const VENUE: &TableLayout = &TableLayout {
    code: 6,
    name: "venue",
    key: "id",
    columns: &[("id", Text), ("body", Text), ("changed_ms", Int)],
};

pub(super) const REFERENCE: &TableLayout = &TableLayout {
    code: 4,
    name: "reference",
    key: "row",
    columns: &[
        ("row", Int),
        ("id", Blob),
        ("subject_id", Text),
        ("embedder", Blob),
        ("sealed", Blob),
        ("quality", Real),
        ("created_ms", Int),
    ],
};

/// In the order in which they may be filled: rows before those that refer to them.
pub(super) const TABLES: [&TableLayout; 13] = [
    META,
    EVENT,
    OUTBOX,
    SUBJECT,
    REFERENCE,
    &TableLayout {
        code: 5,
        name: "command",
        key: "row",
        columns: &[
            ("row", Int),
            ("request_id", Text),
            ("verb", Text),
            ("topic", Text),
            ("reply", Text),
            ("answered_ms", Int),
        ],
    },
    VENUE,
    &TableLayout {
        code: 7,
        name: "observation",
        key: "row",
        columns: &[
            ("row", Int),
            ("boot_id", Text),
            ("from_ms", Int),
            ("from_boottime_ms", Int),
            ("to_ms", Int),
            ("to_boottime_ms", Int),
            ("clock", Text),
        ],
    },
    &TableLayout {
        code: 8,
        name: "withdrawn",
        key: "subject_id",
        columns: &[
            ("subject_id", Text),
            ("withdrawals", Int),
            ("changes", Int),
            ("changed_by", Text),
            ("erased", Int),
            ("at_ms", Int),
        ],
    },
    &TableLayout {
        code: 9,
        name: "signed",
        key: "jti",
        columns: &[
            ("jti", Text),
            ("request_id", Text),
            ("expires_ms", Int),
            ("packet_id", Int),
            ("done", Int),
        ],
    },
    &TableLayout {
        code: 10,
        name: "erasure",
        key: "row",
        columns: &[
            ("row", Int),
            ("subject_id", Text),
            ("request_id", TextOrNull),
            ("asked_ms", Int),
            ("clock", Text),
            ("reference_count", Int),
            ("event_count", Int),
            ("mongo_row", IntOrNull),
            ("receipt", TextOrNull),
        ],
    },
    &TableLayout {
        code: 12,
        name: "consent",
        key: "subject_id",
        columns: &[
            ("subject_id", Text),
            ("given_ms", Int),
            ("text_version", Text),
            ("valid_until_ms", IntOrNull),
            ("recorded_by", Text),
        ],
    },
    &TableLayout {
        code: 13,
        name: "consent_end",
        key: "erasure_row",
        columns: &[("erasure_row", Int), ("reason", Text), ("events_kept", Int)],
    },
];

/// A value as it is in a row, whether or not it is valid.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(it) => Self::Int(it),
            ValueRef::Real(it) => Self::Real(it),
            ValueRef::Text(it) => Self::Text(it.to_vec()),
            ValueRef::Blob(it) => Self::Blob(it.to_vec()),
        }
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.as_value()))
    }
}

impl Cell {
    pub(super) fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Int(it) => ValueRef::Integer(*it),
            Self::Real(it) => ValueRef::Real(*it),
            Self::Text(it) => ValueRef::Text(it),
            Self::Blob(it) => ValueRef::Blob(it),
        }
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(it) => std::str::from_utf8(it).ok(),
            _ => None,
        }
    }

    /// For people: of text only what is printable.
    pub(super) fn for_people(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Int(it) => it.to_string(),
            Self::Real(it) => it.to_string(),
            Self::Text(it) => {
                let text = String::from_utf8_lossy(it);
                text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(64).collect()
            }
            Self::Blob(_) => "(bytes)".to_owned(),
        }
    }
}

/// Adds one value with its type and length.
fn frame(bytes: &mut Vec<u8>, value: ValueRef<'_>) {
    let (tag, content) = match value {
        ValueRef::Null => (0, &[][..]),
        ValueRef::Integer(it) => (1, &it.to_le_bytes()[..]),
        ValueRef::Real(it) => (2, &it.to_bits().to_le_bytes()[..]),
        ValueRef::Text(it) => (3, it),
        ValueRef::Blob(it) => (4, it),
    };
    bytes.push(tag);
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
}

/// All values with types and lengths: what the checksum is of, and how `unreadable` keeps a row.
pub(super) fn framed<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    values.for_each(|it| frame(&mut bytes, it));
    bytes
}

/// The opposite of [`framed`]; none for anything else.
pub(super) fn unframed(mut bytes: &[u8]) -> Option<Vec<Cell>> {
    let mut cells = Vec::new();
    while let Some((tag, rest)) = bytes.split_first() {
        let (length, rest) = rest.split_at_checked(8)?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (content, rest) = rest.split_at_checked(length)?;
        cells.push(match tag {
            0 if content.is_empty() => Cell::Null,
            1 => Cell::Int(i64::from_le_bytes(content.try_into().ok()?)),
            2 => Cell::Real(f64::from_bits(u64::from_le_bytes(content.try_into().ok()?))),
            3 => Cell::Text(content.to_vec()),
            4 => Cell::Blob(content.to_vec()),
            _ => return None,
        });
        bytes = rest;
    }
    Some(cells)
}

/// The highest bit that is used is always set, so that SQLite keeps each checksum in eight bytes, and one that is
/// damaged beyond a bit is known for it.
const MARK: i64 = 1 << 62;

pub(super) fn sum(code: i64, framed: &[u8]) -> i64 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&code.to_le_bytes());
    context.update(framed);
    let digest = context.finish();
    let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
    (i64::from_le_bytes(first) & (MARK - 1)) | MARK
}

/// What became of a checksum as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    /// The row is as it was written: of the checksum one bit is wrong.
    SumDamaged,
    /// There is none, or nothing that ever was one.
    Missing,
    Differs,
}

pub(super) fn fit(stored: ValueRef<'_>, computed: i64) -> Fit {
    match stored {
        ValueRef::Integer(it) if it == computed => Fit::Fits,
        // Two checksums that are not of the same row have half of their bits in common.
        ValueRef::Integer(it) if (it ^ computed).count_ones() == 1 => Fit::SumDamaged,
        ValueRef::Integer(it) if it & MARK != 0 => Fit::Differs,
        _ => Fit::Missing,
    }
}

/// Rows longer than this are not searched for a wrong bit: the time grows with the square, 0.3 s at this length.
const SEARCHED_BYTES_MAX: usize = 4096;

/// The row as it was written, if one bit of one value is wrong: each is tried. That another row has the same checksum
/// by chance is one case in 10^14.
pub(super) fn corrected(code: i64, cells: &[Cell], stored: i64) -> Option<Vec<Cell>> {
    let length = framed(cells.iter().map(Cell::as_value)).len();
    if length > SEARCHED_BYTES_MAX {
        return None;
    }
    let mut cells = cells.to_vec();
    let fits = |cells: &[Cell]| sum(code, &framed(cells.iter().map(Cell::as_value))) == stored;
    for at in 0..cells.len() {
        match cells[at].clone() {
            Cell::Null => {}
            Cell::Int(it) => {
                for candidate in neighbours(it) {
                    cells[at] = Cell::Int(candidate);
                    if fits(&cells) {
                        return Some(cells);
                    }
                }
                cells[at] = Cell::Int(it);
            }
            Cell::Real(it) => {
                for bit in 0..64 {
                    cells[at] = Cell::Real(f64::from_bits(it.to_bits() ^ (1 << bit)));
                    if fits(&cells) {
                        return Some(cells);
                    }
                }
                cells[at] = Cell::Real(it);
            }
            Cell::Text(bytes) | Cell::Blob(bytes) => {
                for bit in 0..bytes.len() * 8 {
                    flip(&mut cells[at], bit);
                    if fits(&cells) {
                        return Some(cells);
                    }
                    flip(&mut cells[at], bit);
                }
            }
        }
    }
    None
}

fn flip(cell: &mut Cell, bit: usize) {
    if let Cell::Text(bytes) | Cell::Blob(bytes) = cell {
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The numbers that differ by one bit as SQLite writes them: in the fewest of 1, 2, 3, 4, 6 or 8 bytes, with sign.
fn neighbours(number: i64) -> impl Iterator<Item = i64> {
    [8_u32, 16, 24, 32, 48, 64].into_iter().flat_map(move |width| {
        let unused = 64 - width;
        let fits = (number << unused) >> unused == number;
        let count = if fits { width } else { 0 };
        (0..count).map(move |bit| ((number ^ (1 << bit)) << unused) >> unused)
    })
}

/// Why a row that has no checksum cannot be adopted, by the types of its columns.
pub(super) fn type_fault(table: &TableLayout, cells: &[Cell]) -> Option<String> {
    table.columns.iter().zip(cells).find_map(|((name, kind), cell)| {
        let fits = match (kind, cell) {
            (Int | IntOrNull, Cell::Int(_))
            | (Real, Cell::Real(_))
            | (Blob | BlobOrNull, Cell::Blob(_))
            | (IntOrNull | TextOrNull | BlobOrNull, Cell::Null) => true,
            (Text | TextOrNull, Cell::Text(bytes)) => std::str::from_utf8(bytes).is_ok(),
            _ => false,
        };
        (!fits).then(|| {
            format!("column {name} has a value of another type, or text that is not UTF-8")
        })
    })
}

/// A damaged row that a statement came upon: the number of its table, and its key framed.
type Found = (i64, Vec<u8>);

/// More than this at a time are not noted: they are found when the first are dealt with.
const FOUND_MAX: usize = 1_000;

/// The damaged rows that statements of one connection passed over.
#[derive(Clone, Default)]
pub(super) struct Damage(Arc<Mutex<BTreeSet<Found>>>);

impl Damage {
    fn note(&self, code: i64, key: ValueRef<'_>) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < FOUND_MAX {
            found.insert((code, framed(std::iter::once(key))));
        }
    }

    /// How many rows, each counted once.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many of those are events, and all.
    pub(super) fn events_and_rows(&self) -> (u64, u64) {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let events = found.iter().filter(|it| it.0 == EVENT.code).count();
        (events as u64, found.len() as u64)
    }

    pub(super) fn take(&self) -> Vec<(&'static TableLayout, Cell)> {
        let found = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let table = |code: i64| TABLES.into_iter().find(|it| it.code == code);
        let row = |(code, key): Found| Some((table(code)?, unframed(&key)?.pop()?));
        found.into_iter().filter_map(row).collect()
    }
}

impl TableLayout {
    pub(super) fn list(&self, prefix: &str) -> String {
        let columns = self.columns.iter().map(|(name, _)| format!("{prefix}{name}"));
        columns.collect::<Vec<_>>().join(", ")
    }

    /// The values of a row that begins with all columns.
    pub(super) fn cells(&self, row: &Row<'_>) -> rusqlite::Result<Vec<Cell>> {
        (0..self.columns.len()).map(|at| row.get_ref(at).map(Cell::from)).collect()
    }

    pub(super) fn key_at(&self) -> usize {
        self.columns.iter().position(|(name, _)| *name == self.key).unwrap_or_default()
    }

    pub(super) fn sum_of(&self, cells: &[Cell]) -> i64 {
        sum(self.code, &framed(cells.iter().map(Cell::as_value)))
    }

    /// The unary plus takes the column's affinity away: the index of `checksum` is not used otherwise.
    fn stored_sum(&self, prefix: &str) -> String {
        format!(
            "(select sum from main.checksum where tbl = {} and key = +{prefix}{})",
            self.code, self.key
        )
    }

    fn view(&self) -> String {
        let Self { code, name, key, .. } = self;
        let (columns, stored) = (self.list(""), self.stored_sum("r."));
        let own = self.list("r.");
        format!(
            "create temp view {name} as select {columns} from main.{name} r \
             where row_fits({code}, r.{key}, {stored}, {own});\n"
        )
    }

    fn triggers(&self) -> String {
        let Self { code, name, key, .. } = self;
        let (new, old) = (self.list("new."), self.list("old."));
        let stored = self.stored_sum("old.").replace("main.", "");
        let put = format!(
            "insert into checksum (tbl, key, sum) values ({code}, new.{key}, row_sum({code}, {new})) \
             on conflict (tbl, key) do update set sum = excluded.sum;"
        );
        format!(
            "create temp trigger {name}_added after insert on main.{name} begin {put} end;\n\
             create temp trigger {name}_guarded before update on main.{name} \
             when not row_fits({code}, old.{key}, {stored}, {old}) begin select raise(ignore); end;\n\
             create temp trigger {name}_changed after update on main.{name} begin {put} end;\n\
             create temp trigger {name}_removed after delete on main.{name} begin \
             delete from checksum where tbl = {code} and key = +old.{key}; end;\n"
        )
    }
}

/// Makes the functions, views and, where it writes, triggers of a connection. What it passes over is noted in `damage`.
pub(super) fn install(conn: &Connection, damage: &Damage, writes: bool) -> Result<(), StoreError> {
    functions(conn, damage, writes)?;
    conn.execute_batch(&TABLES.iter().map(|it| it.view()).collect::<String>())?;
    if writes {
        conn.execute_batch(&TABLES.iter().map(|it| it.triggers()).collect::<String>())?;
    }
    Ok(())
}

fn functions(conn: &Connection, damage: &Damage, writes: bool) -> Result<(), StoreError> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let values = |context: &Context<'_>, from: usize| {
        framed((from..context.len()).map(|at| context.get_raw(at)))
    };
    let pure = flags | FunctionFlags::SQLITE_DETERMINISTIC;
    conn.create_scalar_function("row_sum", -1, pure, move |context| {
        Ok(sum(context.get(0)?, &values(context, 1)))
    })?;
    let damage = damage.clone();
    // Not deterministic: that it was called is noted.
    conn.create_scalar_function("row_fits", -1, flags, move |context| {
        let code = context.get(0)?;
        let fits = match fit(context.get_raw(2), sum(code, &values(context, 3))) {
            Fit::Fits | Fit::SumDamaged => true,
            Fit::Differs => false,
            // Under an altered key a row has no checksum either; only a start can distinguish the two.
            Fit::Missing if !writes => false,
            // Written by another tool: what is no text would fail the whole statement.
            Fit::Missing => (3..context.len()).all(|at| match context.get_raw(at) {
                ValueRef::Text(text) => std::str::from_utf8(text).is_ok(),
                _ => true,
            }),
        };
        if !fits {
            damage.note(code, context.get_raw(1));
        }
        Ok(fits)
    })?;
    Ok(())
}
