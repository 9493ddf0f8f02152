-- Consents, and why an erasure was made where nobody asked for one.

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
