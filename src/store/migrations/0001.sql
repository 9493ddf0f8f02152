-- Version 1. Frozen: databases in the field were made by it.

create table meta (
  key text primary key not null,
  value blob not null
) strict, without rowid;

-- What happened. seq counts without gaps: it is given inside the transaction that writes the row.
create table event (
  seq integer primary key autoincrement,
  event_id blob not null unique check (length(event_id) = 16),
  kind text not null check (kind in ('attendance', 'unknown', 'attack', 'camera', 'enrolment', 'correction', 'security')),
  occurred_ms integer not null,
  boot_id text not null,
  boottime_ms integer not null check (boottime_ms >= 0),
  clock text not null check (clock in ('synced', 'unsynced', 'corrected')),
  venue text,
  subject_id text,
  direction text check (direction in ('in', 'out')),
  body text not null
) strict;
create index event_by_venue on event (venue, occurred_ms) where kind = 'attendance';
create index event_by_subject on event (subject_id, seq) where subject_id is not null;
create index event_unsynced on event (seq) where clock = 'unsynced';

-- What is still owed to whom: an event, or a reply with its topic. Rows leave only when acknowledged.
create table outbox (
  id integer primary key autoincrement,
  sink text not null,
  event_seq integer references event (seq),
  topic text,
  payload text,
  created_ms integer not null,
  attempts integer not null default 0 check (attempts >= 0),
  buried_reason text,
  check ((event_seq is null) = (topic is not null)),
  check ((topic is null) = (payload is null))
) strict;
create index outbox_waiting on outbox (sink, id) where buried_reason is null;
create index outbox_buried on outbox (sink, id) where buried_reason is not null;
create index outbox_by_event on outbox (event_seq) where event_seq is not null;

-- Who is enrolled, and the sealed templates. No foreign key leads to event: what happened stays.
create table subject (
  id text primary key not null,
  name text not null,
  enrolled_ms integer not null
) strict, without rowid;
create table reference (
  row integer primary key,
  id blob not null unique check (length(id) = 16),
  subject_id text not null references subject (id),
  embedder blob not null check (length(embedder) = 32),
  sealed blob not null,
  quality real not null,
  created_ms integer not null
) strict;
create index reference_by_subject on reference (subject_id);

-- Answers given, so that a repeated command is answered again and changes nothing.
create table command (
  row integer primary key autoincrement,
  request_id text not null unique,
  verb text not null,
  topic text not null,
  reply text not null,
  answered_ms integer not null
) strict;
create index command_by_age on command (answered_ms);
