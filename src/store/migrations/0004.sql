-- A checksum of each row, and the rows that could not be read.

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
