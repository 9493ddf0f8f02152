//! Overwrites what the database file does not use, so that nothing of an erased person is left in it.
//!
//! `secure_delete` overwrites rows that are deleted and pages that become free. When SQLite balances
//! its tree, it leaves copies of rows in the unused middle of pages all the same (found by searching
//! the file). A `VACUUM` removes them too, but no other write gets through until it has copied the
//! whole database. Here a transaction takes [`PAGES`] pages, and others write between two of them.
//!
//! Those others may move a page that was not cleaned yet to the number of one that was: a balance
//! gives its siblings' buffers, unused middles included, new numbers. Whatever moves is written to the
//! log. So each transaction also cleans every page that stands in the log, and the log is written back
//! by nobody else meanwhile.
//!
//! Pages are read and written by SQLite's own table `sqlite_dbpage`, hence through its cache, log and
//! locks. Their form: <https://www.sqlite.org/fileformat2.html>, sections 1.5 (free pages), 1.6
//! (trees) and 4 (the log). Overflow pages have no unused part that was used before.
//!
//! Not here: when it is done, and the end of the log (`writer`).

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::store::error::StoreError;
use crate::store::{files, log_bits};

/// Pages of one transaction, 1 MiB: what a slow card reads and writes in a tenth of a second.
const PAGES: u32 = 256;

/// Pages in the log, 16 MiB, with which a pass ends that a reader keeps from being written back.
const LOG_PAGES_MAX: u32 = 4096;

/// Bytes of the file header, which stand before the header of page 1.
const FILE_HEADER_BYTES: usize = 100;
/// In the file header: the first trunk page of the list of free pages, and their number.
const FREE_LIST_AT: usize = 32;

/// How far a pass over all pages is. It may begin at any page, and goes round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    next: u32,
    /// Pages that are still to come; `None`: all.
    left: Option<u32>,
    /// Whether a page contradicted itself and was left as it is.
    is_flawed: bool,
}

/// What follows a transaction of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassState {
    Next(Pass),
    Done,
    /// A reader needs the log, which must not grow any more.
    LogHeld,
}

impl Pass {
    pub(super) fn over_all() -> Self {
        Self { next: 1, left: None, is_flawed: false }
    }

    /// After another erasure: once round from here.
    #[must_use]
    pub(super) fn once_more(self) -> Self {
        Self { left: None, ..self }
    }
}

/// Returns whether SQLite was built with the table of pages (`.cargo/config.toml`). Without it no
/// erasure could be completed.
pub(super) fn has_page_table(conn: &Connection) -> Result<bool, StoreError> {
    let sql = "select sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// Returns whether what was erased may still stand in file or log.
pub(super) fn is_pending(conn: &Connection) -> Result<bool, StoreError> {
    let sql = "select exists (select 1 from main.meta where key = 'scrub_owed')";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// Overwrites the unused parts of the next pages, and of those in the log, in a transaction of its
/// own, and has the log written back. Nobody else may do so during a pass. `log`: the file.
pub(super) fn take_step(
    conn: &Connection,
    log: &Path,
    pass: Pass,
) -> Result<PassState, StoreError> {
    take_step_of(conn, log, pass, PAGES)
}

fn take_step_of(
    conn: &Connection,
    log: &Path,
    mut pass: Pass,
    pages: u32,
) -> Result<PassState, StoreError> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let count: u32 = tx.query_row("pragma main.page_count", [], |row| row.get(0))?;
    if pass.next > count {
        pass.next = 1;
    }
    let left = pass.left.unwrap_or(count);
    let taken = pages.min(left).min(count + 1 - pass.next);
    let mut numbers: BTreeSet<u32> = (pass.next..pass.next + taken).collect();
    let logged = log_bits::pages(log).map_err(files::io_error(log))?;
    numbers.extend(logged.into_iter().filter(|it| (1..=count).contains(it)));
    pass.is_flawed |= !clean(&tx, &numbers)?;
    tx.commit()?;
    if taken == left {
        return if pass.is_flawed {
            Err(StoreError::Damaged { source: None })
        } else {
            Ok(PassState::Done)
        };
    }
    let state = conn.query_row("pragma wal_checkpoint(passive)", [], |row| {
        Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    let (in_log, written_back) = state?;
    if written_back < in_log && in_log > i64::from(LOG_PAGES_MAX) {
        return Ok(PassState::LogHeld);
    }
    Ok(PassState::Next(Pass { next: pass.next + taken, left: Some(left - taken), ..pass }))
}

/// Overwrites the unused parts of all pages of a database that nobody else uses.
pub(super) fn clean_all(conn: &Connection) -> Result<(), StoreError> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let count: u32 = tx.query_row("pragma main.page_count", [], |row| row.get(0))?;
    let is_clean = clean(&tx, &(1..=count).collect())?;
    tx.commit()?;
    if is_clean { Ok(()) } else { Err(StoreError::Damaged { source: None }) }
}

/// Returns whether no page contradicts itself.
fn clean(tx: &Transaction<'_>, numbers: &BTreeSet<u32>) -> Result<bool, StoreError> {
    let mut is_sound = true;
    let free = free_pages(tx, numbers)?;
    for number in numbers {
        let mut page = read_page(tx, *number)?;
        let is_changed = match free.get(number) {
            Some(used) => page.get_mut(*used..).map(overwrite),
            None => clear_tree_page(&mut page, if *number == 1 { FILE_HEADER_BYTES } else { 0 }),
        };
        is_sound &= is_changed.is_some();
        if is_changed == Some(true) {
            let mut write =
                tx.prepare_cached("update sqlite_dbpage set data = ?2 where pgno = ?1")?;
            write.execute(params![number, page])?;
        }
    }
    Ok(is_sound)
}

fn read_page(conn: &Connection, number: u32) -> Result<Vec<u8>, StoreError> {
    let mut read = conn.prepare_cached("select data from sqlite_dbpage where pgno = ?1")?;
    Ok(read.query_row([number], |row| row.get(0))?)
}

/// Returns which of `numbers` are free, each with the bytes at its beginning that the list of free
/// pages needs.
fn free_pages(
    conn: &Connection,
    numbers: &BTreeSet<u32>,
) -> Result<HashMap<u32, usize>, StoreError> {
    let damaged = || StoreError::Damaged { source: None };
    let first = read_page(conn, 1)?;
    let mut trunk = u32_at(&first, FREE_LIST_AT).ok_or_else(damaged)?;
    let mut left = u32_at(&first, FREE_LIST_AT + 4).ok_or_else(damaged)?;
    let mut found = HashMap::new();
    while trunk != 0 {
        let page = read_page(conn, trunk)?;
        let leaves = u32_at(&page, 4).ok_or_else(damaged)?;
        // A list that runs in a circle counts more pages than there are.
        left = left.checked_sub(1).and_then(|it| it.checked_sub(leaves)).ok_or_else(damaged)?;
        let used = 8 + leaves as usize * 4;
        for at in (8..used).step_by(4) {
            let leaf = u32_at(&page, at).ok_or_else(damaged)?;
            if numbers.contains(&leaf) {
                found.insert(leaf, 0);
            }
        }
        if numbers.contains(&trunk) {
            found.insert(trunk, used);
        }
        trunk = u32_at(&page, 0).ok_or_else(damaged)?;
    }
    Ok(found)
}

/// Overwrites what lies between and behind the cells of a page of a tree, whose header begins at
/// `at`. Returns whether there was anything; `None` if the page contradicts itself. Other kinds of
/// pages stay as they are: the first byte of an overflow page is part of a page number below 2^24.
fn clear_tree_page(page: &mut [u8], at: usize) -> Option<bool> {
    let header_bytes = match page.get(at)? {
        // Inner pages of an index and of a table; leaves of them.
        0x02 | 0x05 => 12,
        0x0a | 0x0d => 8,
        _ => return Some(false),
    };
    let cells = u16_at(page, at + 3)?;
    let cells_end = at + header_bytes + 2 * cells;
    // 0 stands for 65,536.
    let content = match u16_at(page, at + 5)? {
        0 => 1 << 16,
        start => start,
    };
    let mut is_changed = overwrite(page.get_mut(cells_end..content)?);
    // Freed cells are a list: the place of the next one, own size, unused bytes.
    let mut block = u16_at(page, at + 1)?;
    let mut previous_end = content;
    while block != 0 {
        let end = block + u16_at(page, block + 2)?;
        if block < previous_end {
            return None;
        }
        is_changed |= overwrite(page.get_mut(block + 4..end)?);
        previous_end = end;
        block = u16_at(page, block)?;
    }
    Some(is_changed)
}

/// Returns whether there was anything but zeros.
fn overwrite(bytes: &mut [u8]) -> bool {
    let is_used = bytes.iter().any(|it| *it != 0);
    if is_used {
        bytes.fill(0);
    }
    is_used
}

fn u16_at(page: &[u8], at: usize) -> Option<usize> {
    let bytes = page.get(at..at + 2)?.try_into().ok()?;
    Some(usize::from(u16::from_be_bytes(bytes)))
}

fn u32_at(page: &[u8], at: usize) -> Option<u32> {
    let bytes = page.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(content: u16, first_block: u16) -> Vec<u8> {
        let mut page = vec![7; 64];
        page[0] = 0x0d;
        page[1..3].copy_from_slice(&first_block.to_be_bytes());
        page[3..5].copy_from_slice(&1_u16.to_be_bytes());
        page[5..7].copy_from_slice(&content.to_be_bytes());
        page
    }

    #[test]
    fn unused_parts_of_tree_page_are_overwritten() {
        let mut page = leaf(40, 48);
        page[48..52].copy_from_slice(&[0, 0, 0, 8]);
        assert_eq!(clear_tree_page(&mut page, 0), Some(true));
        // Header and one cell's place; the gap; cells; a freed one; a cell.
        let mut expected =
            [vec![7; 10], vec![0; 30], vec![7; 8], vec![0, 0, 0, 8, 0, 0, 0, 0], vec![7; 8]]
                .concat();
        expected[..8].copy_from_slice(&page[..8]);
        assert_eq!(page, expected);
        assert_eq!(clear_tree_page(&mut page, 0), Some(false), "nothing is left to overwrite");
    }

    #[test]
    fn contradictory_page_is_left_and_reported() {
        // Content before the cells' places; content and freed cells behind the end; a circle.
        for (content, block, cell) in
            [(9, 0, [0; 4]), (65, 0, [0; 4]), (40, 62, [0; 4]), (40, 48, [0, 48, 0, 8])]
        {
            let mut page = leaf(content, block);
            if block < 60 && block != 0 {
                page[48..52].copy_from_slice(&cell);
            }
            assert_eq!(clear_tree_page(&mut page, 0), None, "{content} {block}");
        }
    }

    struct Bench {
        folder: tempfile::TempDir,
        conn: Connection,
    }

    impl Bench {
        fn new(secure_delete: bool, schema: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let conn = Connection::open(folder.path().join("pages.db")).unwrap();
            conn.pragma_update(None, "journal_mode", "wal").unwrap();
            conn.pragma_update(None, "secure_delete", secure_delete).unwrap();
            conn.pragma_update(None, "synchronous", "off").unwrap();
            conn.execute_batch(schema).unwrap();
            Self { folder, conn }
        }

        fn holds(&self, text: &[u8]) -> bool {
            self.conn.execute_batch("pragma wal_checkpoint(truncate)").unwrap();
            let bytes = std::fs::read(self.folder.path().join("pages.db")).unwrap();
            bytes.windows(text.len()).any(|it| it == text)
        }

        /// Returns the number of transactions.
        fn clean(&self, pages: u32, mut between: impl FnMut(&Connection)) -> usize {
            self.conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
            let log = self.folder.path().join("pages.db-wal");
            let mut pass = Pass::over_all();
            for count in 1.. {
                match take_step_of(&self.conn, &log, pass, pages).unwrap() {
                    PassState::Next(next) => pass = next,
                    PassState::Done => return count,
                    PassState::LogHeld => panic!("nobody reads"),
                }
                between(&self.conn);
            }
            unreachable!("every pass ends")
        }

        fn check(&self) {
            let check: String =
                self.conn.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
        }
    }

    /// Rows of all lengths, with overflow pages and an index, deleted without `secure_delete`.
    #[test]
    fn only_deleted_text_is_gone() {
        let bench = Bench::new(
            false,
            "create table t (id integer primary key, x text); create index of_x on t (x);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
             insert into t select i, iif(i % 7, 'kept', 'erased') || i || printf('%.*c', i * 37 % 9000, 'z') from n;
             delete from t where x like 'erased%'",
        );
        assert!(bench.holds(b"erased"), "or this would show nothing");
        let sum = "select count(*) || ' ' || sum(length(x)) from t where x like 'kept%'";
        let before: String = bench.conn.query_row(sum, [], |row| row.get(0)).unwrap();
        assert!(bench.clean(PAGES, |_| {}) > 10, "more than some pages");
        assert!(!bench.holds(b"erased") && bench.holds(b"kept2999"));
        assert_eq!(bench.conn.query_row(sum, [], |row| row.get::<_, String>(0)).unwrap(), before);
        bench.check();
    }

    /// With rows in no order a balance moves pages, some of them behind the pass: without the pages
    /// of the log, one in seven of these runs leaves something.
    #[test]
    fn moved_pages_are_cleaned_too() {
        const INSERT: &str =
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?1)
             insert into t select randomblob(16), iif(?2 and random() % 20 = 0, 'erased', 'kept')
                 || printf('%.*c', abs(random() % 700), 'y') from n";
        for _ in 0..30 {
            let bench =
                Bench::new(true, "create table t (id blob primary key, x text) without rowid");
            for _ in 0..20 {
                bench.conn.execute(INSERT, params![300, true]).unwrap();
            }
            bench.conn.execute("delete from t where x like 'erased%'", []).unwrap();
            bench.clean(32, |conn| {
                conn.execute(INSERT, params![40, false]).unwrap();
            });
            assert!(!bench.holds(b"erased"));
            bench.check();
        }
    }

    #[test]
    fn pass_goes_round_after_another_erasure() {
        let bench = Bench::new(true, "create table t (x)");
        bench
            .conn
            .execute_batch(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100)
                 insert into t select zeroblob(3000) from n",
            )
            .unwrap();
        let count: u32 = bench.conn.query_row("pragma page_count", [], |row| row.get(0)).unwrap();
        let log = bench.folder.path().join("pages.db-wal");
        let pass = Pass { next: count - 1, left: Some(5), is_flawed: false }.once_more();
        let step = take_step_of(&bench.conn, &log, pass, 64).unwrap();
        let PassState::Next(pass) = step else { panic!("{step:?}") };
        assert_eq!((pass.next, pass.left), (count + 1, Some(count - 2)));
        let step = take_step_of(&bench.conn, &log, pass, count).unwrap();
        assert_eq!(step, PassState::Done);
    }

    #[test]
    fn other_pages_stay_untouched() {
        for first in [0, 1, 3, 0x0b, 0xff] {
            let mut page = vec![7; 64];
            page[0] = first;
            assert_eq!(clear_tree_page(&mut page, 0), Some(false));
            assert_eq!(page[1..], [7; 63]);
        }
    }
}
