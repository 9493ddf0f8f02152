//! Reading: what the writer and a reader beside the daemon have in common.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::{
    BuriedRow, OutboxDepth, Reference, ReferenceCount, SinkName, StoreError, Subject, files,
    observation, schema,
};
use crate::attend::watched::Watched;
use crate::clock::BootId;
use crate::recognise::face::{ModelDigest, Name, SubjectId};
use crate::record::event::{Body, ClockState, StoredEvent};
use crate::record::seal::{Belongs, SealError, SealKey};

pub(super) const EVENT_COLUMNS: &str = "e.seq, e.event_id, e.kind, e.occurred_ms, e.boot_id, e.boottime_ms, e.clock, e.superseded_by, e.body";

pub(super) fn event_sql(rest: &str) -> String {
    format!("select {EVENT_COLUMNS} from event e {rest}")
}

/// Which attendances are asked for; in the order of their `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttendanceQuery {
    /// None: of all venues.
    pub venue: Option<String>,
    pub from_ms: i64,
    /// No longer included.
    pub to_ms: i64,
    pub after_seq: i64,
    pub limit: u32,
    /// Those too in whose stead another counts.
    pub all: bool,
}

impl AttendanceQuery {
    pub(super) fn counting(&self) -> &'static str {
        if self.all { "" } else { "and superseded_by is null" }
    }
}

/// A connection that only reads, beside the daemon. Takes no lock and never waits for the writer.
pub struct Reader {
    conn: Connection,
    key: Option<SealKey>,
}

/// A connection that only reads the database of `dir`, whose schema is this version's.
pub(super) fn connect(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(files::DATABASE);
    // SQLite would only say that it cannot open it.
    std::fs::metadata(&path).map_err(files::io_error(&path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&path, flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    schema::check_version(&conn)?;
    schema::check_migrated(&conn)?;
    Ok(conn)
}

impl Reader {
    pub(super) fn open(dir: &Path, credentials_dir: Option<&Path>) -> Result<Self, StoreError> {
        let conn = connect(dir)?;
        let key = SealKey::load(dir, credentials_dir)?;
        Ok(Self { conn, key })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }

    pub fn subjects(
        &self,
        after: Option<&SubjectId>,
        limit: u32,
    ) -> Result<Vec<Subject>, StoreError> {
        subjects(&self.conn, after, limit)
    }

    pub fn attendance(&self, query: &AttendanceQuery) -> Result<Vec<StoredEvent>, StoreError> {
        attendance(&self.conn, query)
    }

    /// Shows the attendances of a period in the order of time, whatever their number. Of the query, `after_seq` and
    /// `limit` are not looked at.
    pub fn attendance_by_time(
        &self,
        query: &AttendanceQuery,
        visit: impl FnMut(StoredEvent),
    ) -> Result<(), StoreError> {
        super::attendance::by_time(&self.conn, query, visit)
    }

    /// What `Tx::retention` would find old at `now_ms`, and what of it must stay.
    pub fn prunable(&self, now_ms: i64, days: u32) -> Result<super::Prunable, StoreError> {
        super::retention::prunable(&self.conn, now_ms, days)
    }

    pub fn venues(&self) -> Result<Vec<super::StoredVenue>, StoreError> {
        super::attendance::venues(&self.conn)
    }

    /// When this device was watching, as far as the time is known: all stretches that touch the period.
    pub fn watched(&self, from_ms: i64, to_ms: i64) -> Result<Watched, StoreError> {
        observation::watched(&self.conn, from_ms, to_ms)
    }

    pub fn all_references(
        &self,
        embedder: &ModelDigest,
        visit: impl FnMut(Reference),
    ) -> Result<ReferenceCount, StoreError> {
        let Some(key) = &self.key else {
            return Err(SealError::NoKey.into());
        };
        all_references(&self.conn, key, embedder, visit)
    }

    /// Whether the key fits the templates that are stored, as the daemon asks at its start.
    pub fn check_key(&self, dir: &Path) -> Result<(), StoreError> {
        let sealed: bool =
            self.conn.query_row("select exists (select 1 from reference)", [], |row| row.get(0))?;
        let proof = "select value from meta where key = 'key_proof'";
        let proof: Option<Vec<u8>> = self.conn.query_row(proof, [], |row| row.get(0)).optional()?;
        match &self.key {
            _ if !sealed => Ok(()),
            Some(key) if proof.is_some_and(|it| key.recognises(&it)) => Ok(()),
            Some(key) => Err(SealError::WrongKey { path: key.path().to_owned() }.into()),
            None => {
                Err(SealError::KeyLost { path: dir.join(crate::record::seal::KEY_FILE) }.into())
            }
        }
    }

    pub fn outbox_depth(&self, sink: SinkName) -> Result<OutboxDepth, StoreError> {
        outbox_depth(&self.conn, sink)
    }

    pub fn buried(&self, limit: u32) -> Result<Vec<BuriedRow>, StoreError> {
        buried(&self.conn, limit)
    }
}

/// The number of the event that was stored last, be it still here or not.
pub(super) fn last_seq(conn: &Connection) -> Result<i64, StoreError> {
    let sql = "select coalesce((select seq from sqlite_sequence where name = 'event'), 0)";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// From a row that begins with `EVENT_COLUMNS`.
pub(super) fn event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let seq = row.get("seq")?;
    let (kind, body): (String, String) = (row.get("kind")?, row.get("body")?);
    let body = Body::from_stored(&kind, &body)
        .map_err(|error| StoreError::Unreadable { seq, source: Arc::new(error) })?;
    let clock: String = row.get("clock")?;
    Ok(StoredEvent {
        seq,
        event_id: Uuid::from_bytes(row.get("event_id")?),
        occurred_ms: row.get("occurred_ms")?,
        boot_id: BootId::new(&row.get::<_, String>("boot_id")?),
        boottime_ms: row.get::<_, i64>("boottime_ms")? as u64,
        // The column's check knows the same three; a state that we do not know is not to be trusted.
        clock: ClockState::parse(&clock).unwrap_or(ClockState::Unsynced),
        superseded_by: row.get::<_, Option<[u8; 16]>>("superseded_by")?.map(Uuid::from_bytes),
        body,
    })
}

pub(super) fn attendance(
    conn: &Connection,
    wanted: &AttendanceQuery,
) -> Result<Vec<StoredEvent>, StoreError> {
    // Two statements, as `?1 is null or venue = ?1` would not use the index.
    let venue = if wanted.venue.is_some() { "venue = ?1" } else { "?1 is null" };
    let counting = wanted.counting();
    let sql = event_sql(&format!(
        "where kind = 'attendance' and {venue} and occurred_ms >= ?2 and occurred_ms < ?3 and seq > ?4 {counting} \
         order by seq limit ?5"
    ));
    let mut query = conn.prepare(&sql)?;
    let mut rows = query.query(params![
        wanted.venue,
        wanted.from_ms,
        wanted.to_ms,
        wanted.after_seq,
        wanted.limit
    ])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(event(row)?);
    }
    Ok(found)
}

pub(super) fn subjects(
    conn: &Connection,
    after: Option<&SubjectId>,
    limit: u32,
) -> Result<Vec<Subject>, StoreError> {
    let sql = "select id, name, enrolled_ms, (select count(*) from reference where subject_id = subject.id), \
               (select embedder from reference where subject_id = subject.id order by row desc limit 1) \
               from subject where id > ?1 order by id limit ?2";
    let mut query = conn.prepare(sql)?;
    let mut rows = query.query(params![after.map_or("", SubjectId::as_str), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Subject {
            id: subject_id(row, 0)?,
            name: Name::new(&row.get::<_, String>(1)?).map_err(|_| damaged())?,
            enrolled_ms: row.get(2)?,
            references: row.get(3)?,
            embedder: row.get::<_, Option<[u8; 32]>>(4)?.map(ModelDigest),
        });
    }
    Ok(found)
}

pub(super) fn subject(conn: &Connection, id: &SubjectId) -> Result<Option<Subject>, StoreError> {
    let before: Option<String> =
        conn.query_row("select max(id) from subject where id < ?1", [id.as_str()], |row| {
            row.get(0)
        })?;
    let before = before.and_then(|it| SubjectId::new(&it).ok());
    let found = subjects(conn, before.as_ref(), 1)?;
    Ok(found.into_iter().find(|it| it.id == *id))
}

/// Only what this program checked gets into these columns.
fn subject_id(row: &Row<'_>, column: usize) -> Result<SubjectId, StoreError> {
    SubjectId::new(&row.get::<_, String>(column)?).map_err(|_| damaged())
}

fn damaged() -> StoreError {
    StoreError::Damaged { source: None }
}

/// Shows each reference of one embedder, opened. One that does not open is counted, not passed over in silence, and
/// does not keep the others from being used.
pub(super) fn all_references(
    conn: &Connection,
    key: &SealKey,
    embedder: &ModelDigest,
    mut visit: impl FnMut(Reference),
) -> Result<ReferenceCount, StoreError> {
    let mut count = ReferenceCount::default();
    let sql = "select id, subject_id, sealed, quality from reference where embedder = ?1 order by subject_id, row";
    let mut query = conn.prepare(sql)?;
    let mut rows = query.query([embedder.0])?;
    while let Some(row) = rows.next()? {
        let (id, subject_id) = (Uuid::from_bytes(row.get(0)?), subject_id(row, 1)?);
        let belongs = Belongs { subject_id: &subject_id, reference_id: &id, embedder };
        let sealed = row.get_ref(2)?.as_blob().map_err(|_| damaged())?;
        let opened = key.open(sealed, belongs);
        match opened {
            Ok(template) => {
                count.opened += 1;
                visit(Reference { id, subject_id, template, quality: row.get(3)? });
            }
            Err(_) => count.unreadable.push(id),
        }
    }
    let sql = "select count(*) from reference where embedder <> ?1";
    let others: i64 = conn.query_row(sql, [embedder.0], |row| row.get(0))?;
    count.of_other_embedders = others as u64;
    Ok(count)
}

pub(super) fn outbox_depth(conn: &Connection, sink: SinkName) -> Result<OutboxDepth, StoreError> {
    let sql = "select count(*), \
               (select created_ms from outbox where sink = ?1 and buried_reason is null order by id limit 1), \
               (select count(*) from outbox where sink = ?1 and buried_reason is not null) \
               from outbox where sink = ?1 and buried_reason is null";
    let depth = conn.prepare(sql)?.query_row([sink.as_str()], |row| {
        Ok(OutboxDepth {
            rows: row.get::<_, i64>(0)? as u64,
            oldest_created_ms: row.get(1)?,
            buried: row.get::<_, i64>(2)? as u64,
        })
    })?;
    Ok(depth)
}

pub(super) fn buried(conn: &Connection, limit: u32) -> Result<Vec<BuriedRow>, StoreError> {
    let sql = "select id, sink, event_seq, buried_reason from outbox where buried_reason is not null \
               order by id limit ?1";
    let read = |row: &Row<'_>| {
        Ok(BuriedRow {
            id: row.get(0)?,
            sink: row.get(1)?,
            event_seq: row.get(2)?,
            reason: row.get(3)?,
        })
    };
    let found = conn.prepare(sql)?.query_map([limit], read)?.collect::<Result<_, _>>()?;
    Ok(found)
}
