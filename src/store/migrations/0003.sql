-- Subjects that several doors share, signed commands, erasures to be proved, and photographs that need no second look.

alter table subject add column withdrawals integer not null default 0 check (withdrawals >= 0);
alter table subject add column changes integer not null default 1 check (changes >= 1);
alter table subject add column changed_by text not null default '';

create table withdrawn (
  subject_id text primary key not null,
  withdrawals integer not null check (withdrawals >= 1),
  changes integer not null check (changes >= 0),
  changed_by text not null,
  erased integer not null check (erased in (0, 1)),
  at_ms integer not null
) strict, without rowid;

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

create table photograph (
  subject_id text not null references subject (id) on delete cascade,
  embedder blob not null check (length(embedder) = 32),
  digest blob not null check (length(digest) = 32),
  primary key (subject_id, embedder, digest)
) strict, without rowid;
-- one row for each subject that the site is still to be told of
create unique index outbox_of_gallery on outbox (topic) where sink = 'gallery';

-- how many are known to which embedder, without reading the templates
create index reference_by_embedder on reference (embedder, subject_id);

-- answers go before events
create index outbox_answers on outbox (sink, id) where topic is not null and buried_reason is null;
