-- The schema as the migrations leave it (a test compares the two). Times end in _ms: milliseconds since 1970 by the
-- wall clock, except boottime_ms, which is since boot.

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
  body text not null,
  session text,
  -- the attendance that counts in this one's stead
  superseded_by blob check (length(superseded_by) = 16)
) strict;
create index event_by_venue on event (venue, occurred_ms) where kind = 'attendance';
create index event_by_session on event (subject_id, venue, session, direction) where kind = 'attendance' and session is not null;
create index event_of_camera on event (occurred_ms) where kind = 'camera';
create index event_by_subject on event (subject_id, seq) where subject_id is not null;
create index event_superseding on event (superseded_by) where superseded_by is not null;
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
create index outbox_answers on outbox (sink, id) where topic is not null and buried_reason is null;
create index outbox_buried on outbox (sink, id) where buried_reason is not null;
create index outbox_by_event on outbox (event_seq) where event_seq is not null;
-- one row for each subject that the site is still to be told of
create unique index outbox_of_gallery on outbox (topic) where sink = 'gallery';

-- Who is enrolled, and the sealed templates. No foreign key leads to event: what happened stays.
create table subject (
  id text primary key not null,
  name text not null,
  enrolled_ms integer not null,
  -- what makes one door's account of a subject newer than another's (record/portable.rs)
  withdrawals integer not null default 0 check (withdrawals >= 0),
  changes integer not null default 1 check (changes >= 1),
  changed_by text not null default ''
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
create index reference_by_embedder on reference (embedder, subject_id);

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

-- Venues put by command; those of config.toml are not here. body is the venue as JSON.
create table venue (
  id text primary key not null,
  body text not null,
  changed_ms integer not null
) strict, without rowid;

-- When this device was watching: absence is only claimed for times within these rows. The newest is extended as time
-- passes.
create table observation (
  row integer primary key autoincrement,
  boot_id text not null,
  from_ms integer not null,
  from_boottime_ms integer not null check (from_boottime_ms >= 0),
  to_ms integer not null,
  to_boottime_ms integer not null check (to_boottime_ms >= from_boottime_ms),
  clock text not null check (clock in ('synced', 'unsynced', 'corrected'))
) strict;
create index observation_by_time on observation (to_ms);
create index observation_unsynced on observation (row) where clock = 'unsynced';

-- Who is enrolled no longer, so that a door that was away does not bring them back.
create table withdrawn (
  subject_id text primary key not null,
  withdrawals integer not null check (withdrawals >= 1),
  changes integer not null check (changes >= 0),
  changed_by text not null,
  erased integer not null check (erased in (0, 1)),
  at_ms integer not null
) strict, without rowid;

-- Signed commands that were seen, until they would be too late anyway: none is carried out twice.
create table signed (
  jti text primary key not null,
  request_id text not null,
  expires_ms integer not null,
  packet_id integer not null,
  -- whether its request was answered
  done integer not null default 0 check (done in (0, 1))
) strict, without rowid;
create index signed_by_expiry on signed (expires_ms);
create index signed_undone on signed (request_id) where done = 0;

-- Persons erased; the receipt is written when nothing of them is left in any file of ours nor owed to anybody.
create table erasure (
  row integer primary key autoincrement,
  subject_id text not null,
  request_id text,
  asked_ms integer not null,
  clock text not null check (clock in ('synced', 'unsynced')),
  reference_count integer not null,
  event_count integer not null,
  mongo_row integer,
  receipt text
) strict;
create index erasure_unproved on erasure (row) where receipt is null;

-- Photographs (SHA-256 of the file) that a subject was enrolled with, so that an import that is begun again makes no
-- second reference of one. Goes with the subject.
create table photograph (
  subject_id text not null references subject (id) on delete cascade,
  embedder blob not null check (length(embedder) = 32),
  digest blob not null check (length(digest) = 32),
  primary key (subject_id, embedder, digest)
) strict, without rowid;

-- Who agreed to be recognised, when and to what. Goes with the subject.
create table consent (
  subject_id text primary key not null references subject (id) on delete cascade,
  given_ms integer not null check (given_ms >= 0),
  -- which text the person agreed to
  text_version text not null,
  -- none: until it is withdrawn
  valid_until_ms integer check (valid_until_ms > given_ms),
  recorded_by text not null
) strict, without rowid;
create index consent_by_end on consent (valid_until_ms) where valid_until_ms is not null;

-- Erasures that follow the end of a consent. Without the record (events stay) where that was not asked for.
create table consent_end (
  erasure_row integer primary key not null references erasure (row),
  reason text not null check (reason in ('consent_expired', 'consent_withdrawn')),
  events_kept integer not null check (events_kept in (0, 1))
) strict;

create table checksum (
  -- the number of the table (store/checksum.rs)
  tbl integer not null,
  key any not null,
  sum integer not null,
  primary key (tbl, key)
) strict, without rowid;

create table unreadable (
  row integer primary key autoincrement,
  tbl text not null,
  -- of the row in its table
  key any not null,
  reason text not null,
  found_ms integer not null,
  -- the values as they were found (store/checksum.rs), none where nothing of the row is left
  content blob
) strict;
create index unreadable_by_row on unreadable (tbl, key);
