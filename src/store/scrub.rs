//! Overwrites what the database file does not use, so that nothing of an erased person is left in it.
//!
//! `secure_delete` overwrites rows that are deleted and pages that become free. When SQLite balances
//! its tree, it leaves copies of rows in the unused middle of pages all the same (found by searching
//! the file). A `VACUUM` removes them too, but no other write gets through until it has copied the
//! whole database. Here a transaction takes [`PAGES`] pages, and others write between two of them.
//!
//! Pages are read and written by SQLite's own table `sqlite_dbpage`, hence through its cache, log and
//! locks. Their form: <https://www.sqlite.org/fileformat2.html>, sections 1.5 (free pages) and 1.6
//! (trees). Overflow pages have no unused part that was used before.
//!
//! Not here: when it is done, and the log (`writer`).

use std::collections::HashMap;
use std::ops::Range;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::store::error::StoreError;

/// Pages of one transaction, 1 MiB: what a slow card reads and writes in a tenth of a second.
const PAGES: u32 = 256;

/// Bytes of the file header, which stand before the header of page 1.
const FILE_HEADER_BYTES: usize = 100;
/// In the file header: the first trunk page of the list of free pages, and their number.
const FREE_LIST_AT: usize = 32;

/// Returns whether SQLite was built with the table of pages (`.cargo/config.toml`). Without it no
/// erasure could be completed.
pub(super) fn has_page_table(conn: &Connection) -> Result<bool, StoreError> {
    let sql = "select sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')";
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// Overwrites the unused parts of the next pages, from `first` on (1 is the first of all), in a
/// transaction of their own. Returns the page to go on with; `None` after the last.
pub(super) fn clear_pages(conn: &Connection, first: u32) -> Result<Option<u32>, StoreError> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let count: u32 = tx.query_row("pragma main.page_count", [], |row| row.get(0))?;
    let end = first.saturating_add(PAGES).min(count.saturating_add(1));
    let free = free_pages(&tx, first..end)?;
    for number in first..end {
        let mut page = read_page(&tx, number)?;
        let is_changed = match free.get(&number) {
            Some(used) => page.get_mut(*used..).map(overwrite),
            None => clear_tree_page(&mut page, if number == 1 { FILE_HEADER_BYTES } else { 0 }),
        };
        if is_changed.ok_or(StoreError::Damaged { source: None })? {
            let mut write =
                tx.prepare_cached("update sqlite_dbpage set data = ?2 where pgno = ?1")?;
            write.execute(params![number, page])?;
        }
    }
    tx.commit()?;
    Ok((end <= count).then_some(end))
}

fn read_page(conn: &Connection, number: u32) -> Result<Vec<u8>, StoreError> {
    let mut read = conn.prepare_cached("select data from sqlite_dbpage where pgno = ?1")?;
    Ok(read.query_row([number], |row| row.get(0))?)
}

/// Returns the free pages in `range`, each with the bytes at its beginning that the list of free
/// pages needs.
fn free_pages(conn: &Connection, range: Range<u32>) -> Result<HashMap<u32, usize>, StoreError> {
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
            if range.contains(&leaf) {
                found.insert(leaf, 0);
            }
        }
        if range.contains(&trunk) {
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

    /// Rows of all lengths, with overflow pages and an index, deleted without `secure_delete`.
    #[test]
    fn only_deleted_text_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pages.db");
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.pragma_update(None, "secure_delete", false).unwrap();
        conn.execute_batch(
            "create table t (id integer primary key, x text); create index of_x on t (x);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
             insert into t select i, iif(i % 7, 'kept', 'erased') || i || printf('%.*c', i * 37 % 9000, 'z') from n;
             delete from t where x like 'erased%'; pragma wal_checkpoint(truncate)",
        )
        .unwrap();
        let holds = |text: &[u8]| {
            let bytes = std::fs::read(&path).unwrap();
            bytes.windows(text.len()).any(|it| it == text)
        };
        assert!(holds(b"erased"), "or this would show nothing");
        let sum = "select count(*) || ' ' || sum(length(x)) from t where x like 'kept%'";
        let before: String = conn.query_row(sum, [], |row| row.get(0)).unwrap();
        let mut rounds = 0;
        let mut next = Some(1);
        while let Some(page) = next {
            next = clear_pages(&conn, page).unwrap();
            rounds += 1;
        }
        assert!(rounds > 10, "more than some pages");
        conn.execute_batch("pragma wal_checkpoint(truncate)").unwrap();
        assert!(!holds(b"erased") && holds(b"kept2999"));
        assert_eq!(conn.query_row(sum, [], |row| row.get::<_, String>(0)).unwrap(), before);
        let check: String = conn.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
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
