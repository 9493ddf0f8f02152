-- Sessions, venues put by command, and when the device was watching.

alter table event add column session text;
alter table event add column superseded_by blob check (length(superseded_by) = 16);
create index event_by_session on event (subject_id, venue, session, direction) where kind = 'attendance' and session is not null;
create index event_superseding on event (superseded_by) where superseded_by is not null;
create index event_of_camera on event (occurred_ms) where kind = 'camera';

create table venue (
  id text primary key not null,
  body text not null,
  changed_ms integer not null
) strict, without rowid;

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
