//! Corrects single wrong bits in the write-ahead log before SQLite reads it, and lists its pages.
//!
//! SQLite takes a frame of the log whose checksum does not fit for the end of the log: everything
//! committed after it would be lost without a word, and its numbers given again. The checksum of 64
//! bits also tells which bit of a frame is wrong, if one is. A frame that was half written when the
//! power went differs in more than one bit, and is left to SQLite. So is a frame with several wrong
//! bits.
//!
//! The checksum cannot tell some of the bits apart (one in twenty, in high places of their words).
//! Then the frame stays as it is, and the checksums are made to fit it: the checksums of the rows
//! (`check.rs`) find the bit.
//!
//! The format: <https://www.sqlite.org/fileformat2.html#walformat>. Each checksum continues that of
//! the frame before. SQLite writes the log with the byte order of this machine's words.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::bounded_file;
use crate::store::schema::PAGE_BYTES;

/// A log is written back at a thousand pages; a large transaction may make it longer.
const LOG_BYTES_MAX: u64 = 64 << 20;
const HEADER_BYTES: usize = 32;
const HEADER_SUM: usize = 24;
const HEADER_SALTS: usize = 16;
/// What every log of ours begins with: the kind of checksum, the version, the size of a page.
const CONSTANTS: [u32; 3] =
    [if cfg!(target_endian = "big") { 0x377f_0683 } else { 0x377f_0682 }, 3_007_000, PAGE_BYTES];
const FRAME_HEAD_BYTES: usize = 24;
const FRAME_BYTES: usize = FRAME_HEAD_BYTES + PAGE_BYTES as usize;
const FRAME_SALTS: usize = 8;
const FRAME_SUM: usize = 16;

/// Corrects the file in place; returns how many parts of it had a wrong bit. Without a file there
/// are none.
pub(super) fn correct_file(path: &Path) -> io::Result<usize> {
    let before = match bounded_file::read(path, LOG_BYTES_MAX) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut log = before.clone();
    let corrected = correct(&mut log);
    if corrected > 0 {
        let file = OpenOptions::new().write(true).open(path)?;
        let altered = log.iter().zip(&before).enumerate().filter(|(_, (new, old))| new != old);
        for (at, (new, _)) in altered {
            file.write_all_at(&[*new], at as u64)?;
        }
        file.sync_data()?;
    }
    Ok(corrected)
}

/// The numbers of the pages in the log since it was begun anew. Without a file there are none.
pub(super) fn pages(path: &Path) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    let log = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        opened => opened?,
    };
    let bytes = log.metadata()?.len();
    let mut header = [0; HEADER_BYTES];
    if bytes < header.len() as u64 {
        return Ok(numbers);
    }
    log.read_exact_at(&mut header, 0)?;
    let mut head = [0; FRAME_HEAD_BYTES];
    let mut frame = HEADER_BYTES as u64;
    while frame + FRAME_BYTES as u64 <= bytes {
        log.read_exact_at(&mut head, frame)?;
        // Frames of an earlier use of the file.
        if read_pair(&head, FRAME_SALTS) != read_pair(&header, HEADER_SALTS) {
            break;
        }
        numbers.insert(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        frame += FRAME_BYTES as u64;
    }
    Ok(numbers)
}

/// The checksum up to a place in the log: as it was when the log was written, and as it is now.
#[derive(Clone, Copy)]
struct Chain {
    was: Sum,
    is: Sum,
}

/// Corrects one wrong bit of the header and of each frame, as long as the frames belong to the log.
/// Returns how many of them had one.
fn correct(log: &mut [u8]) -> usize {
    let mut corrected = 0;
    if log.len() < HEADER_BYTES + FRAME_BYTES {
        return 0;
    }
    let Some((mut chain, is_altered)) = settle_header(log) else { return 0 };
    corrected += usize::from(is_altered);
    let salts = read_pair(log, HEADER_SALTS);
    let mut frame = HEADER_BYTES;
    while has_frame(log, frame, salts) {
        let Some((was, mut is_altered)) = settle_frame(log, frame, chain.was, salts) else { break };
        let is = chain.is.over(&frame_words(log, frame));
        chain = Chain { was, is };
        is_altered |= read_pair(log, frame + FRAME_SALTS) != salts;
        write_pair(log, frame + FRAME_SALTS, salts);
        write_pair(log, frame + FRAME_SUM, chain.is.pair());
        corrected += usize::from(is_altered);
        frame += FRAME_BYTES;
    }
    corrected
}

/// Makes the header fit its checksum. Returns the chain that begins with it, and whether it was
/// altered; none if it cannot be the header of this log with one wrong bit.
fn settle_header(log: &mut [u8]) -> Option<(Chain, bool)> {
    let stored = Sum::of_pair(read_pair(log, HEADER_SUM));
    let sum_of = |head: &[u8]| Sum::default().over(&words(head));
    let computed = sum_of(&log[..HEADER_SUM]);
    if computed == stored {
        return Some((Chain { was: stored, is: stored }, false));
    }
    // What the header must have, and what the first frame repeats of it.
    let constants = CONSTANTS.map(u32::to_be_bytes).concat();
    let first_salts = &log[HEADER_BYTES + FRAME_SALTS..HEADER_BYTES + FRAME_SUM];
    let with_constants = [&constants[..], &log[constants.len()..HEADER_SUM]].concat();
    let with_salts = [&log[..HEADER_SALTS], first_salts].concat();
    if let Some(right) = [with_constants, with_salts].iter().find(|it| sum_of(it) == stored) {
        log[..HEADER_SUM].copy_from_slice(right);
        return Some((Chain { was: stored, is: stored }, true));
    }
    // Else it is the counter, whose value does not matter, or the checksum itself.
    let salts = read_pair(log, HEADER_SALTS);
    let was = [stored, computed].into_iter().find(|it| fits(log, HEADER_BYTES, *it, salts))?;
    write_pair(log, HEADER_SUM, computed.pair());
    Some((Chain { was, is: computed }, true))
}

/// Corrects the words of a frame, if one bit of them is wrong and it is clear which. Returns the
/// checksum that the next frame continues, and whether something was wrong; none if the log ends
/// before this frame.
fn settle_frame(log: &mut [u8], frame: usize, before: Sum, salts: u64) -> Option<(Sum, bool)> {
    let words = frame_words(log, frame);
    let computed = before.over(&words);
    let stored = Sum::of_pair(read_pair(log, frame + FRAME_SUM));
    if computed == stored {
        return Some((stored, false));
    }
    let next = frame + FRAME_BYTES;
    // The checksum is what is wrong: the next frame shows it, or else it is taken for that.
    let is_last = !has_frame(log, next, salts);
    let differs_by_one = (computed.pair() ^ stored.pair()).is_power_of_two();
    if fits(log, next, computed, salts) || is_last && differs_by_one {
        return Some((computed, true));
    }
    let wrong = wrong_bits(&words, stored.minus(computed));
    if let [(word, mask)] = wrong[..] {
        let at = frame + if word < 2 { word * 4 } else { FRAME_HEAD_BYTES + (word - 2) * 4 };
        log[at..at + 4].copy_from_slice(&(words[word] ^ mask).to_ne_bytes());
    }
    (!wrong.is_empty()).then_some((stored, true))
}

/// Whether there is a whole frame of this log; those of an earlier use of the file have other salts.
fn has_frame(log: &[u8], frame: usize, salts: u64) -> bool {
    frame + FRAME_BYTES <= log.len()
        && (read_pair(log, frame + FRAME_SALTS) ^ salts).count_ones() <= 1
}

/// Whether there is a frame that continues this checksum.
fn fits(log: &[u8], frame: usize, before: Sum, salts: u64) -> bool {
    has_frame(log, frame, salts)
        && before.over(&frame_words(log, frame)).pair() == read_pair(log, frame + FRAME_SUM)
}

/// Finds the bits of which each would make this difference to the checksum: words and masks.
fn wrong_bits(words: &[u32], difference: Sum) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    // What a change of 1 after a pair makes of the final checksum: the matrix (1 1; 1 2), which one
    // pair applies, to the power of the pairs that follow. It is symmetric.
    let (mut a, mut b, mut d) = (1_u32, 0_u32, 1_u32);
    for pair in (0..words.len() / 2).rev() {
        let of_second = (b, d);
        let of_first = (a.wrapping_add(b), b.wrapping_add(d));
        for (word, effect) in [(2 * pair + 1, of_second), (2 * pair, of_first)] {
            for mask in (0..u32::BITS).map(|bit| 1_u32 << bit) {
                let change = if words[word] & mask == 0 { mask } else { mask.wrapping_neg() };
                let made = Sum(effect.0.wrapping_mul(change), effect.1.wrapping_mul(change));
                if made == difference {
                    found.push((word, mask));
                }
            }
        }
        (a, b, d) = (a.wrapping_add(b), b.wrapping_add(d), b.wrapping_add(d).wrapping_add(d));
    }
    found
}

/// The checksum of SQLite's log: two sums, each of which takes up the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum(u32, u32);

impl Sum {
    fn over(self, words: &[u32]) -> Self {
        words.as_chunks::<2>().0.iter().fold(self, |Self(first, second), [a, b]| {
            let first = first.wrapping_add(*a).wrapping_add(second);
            Self(first, second.wrapping_add(*b).wrapping_add(first))
        })
    }

    fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0), self.1.wrapping_sub(other.1))
    }

    fn of_pair(pair: u64) -> Self {
        Self((pair >> 32) as u32, pair as u32)
    }

    fn pair(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.1)
    }
}

/// Everything of a frame that its checksum covers.
fn frame_words(log: &[u8], frame: usize) -> Vec<u32> {
    let page = &log[frame + FRAME_HEAD_BYTES..frame + FRAME_BYTES];
    [words(&log[frame..frame + FRAME_SALTS]), words(page)].concat()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|it| u32::from_ne_bytes(*it)).collect()
}

fn read_pair(log: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&log[at..at + 8]);
    u64::from_be_bytes(bytes)
}

fn write_pair(log: &mut [u8], at: usize, pair: u64) {
    log[at..at + 8].copy_from_slice(&pair.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of a database with some transactions, written by SQLite itself.
    fn log() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let base = rusqlite::Connection::open(&path).unwrap();
        base.pragma_update(None, "page_size", PAGE_BYTES).unwrap();
        base.pragma_update(None, "journal_mode", "wal").unwrap();
        base.execute_batch("create table t (x)").unwrap();
        for number in 0..4 {
            base.execute("insert into t values (?1)", [format!("row {number}")]).unwrap();
        }
        std::fs::read(dir.path().join("x.db-wal")).unwrap()
    }

    fn flip(log: &mut [u8], bit: usize) {
        log[bit / 8] ^= 1 << (bit % 8);
    }

    /// Whether SQLite takes all of it.
    fn is_whole(log: &[u8]) -> bool {
        let mut sum = Sum::default().over(&words(&log[..HEADER_SUM]));
        let salts = read_pair(log, HEADER_SALTS);
        let mut frames = (HEADER_BYTES..log.len()).step_by(FRAME_BYTES);
        sum.pair() == read_pair(log, HEADER_SUM)
            && frames.all(|frame| {
                sum = sum.over(&frame_words(log, frame));
                sum.pair() == read_pair(log, frame + FRAME_SUM)
                    && salts == read_pair(log, frame + FRAME_SALTS)
            })
    }

    /// How many bits of pages and their numbers differ.
    fn difference(one: &[u8], other: &[u8]) -> u32 {
        let frames = (HEADER_BYTES..one.len()).step_by(FRAME_BYTES);
        let of = |frame| frame_words(one, frame).into_iter().zip(frame_words(other, frame));
        frames.flat_map(of).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    #[test]
    fn any_single_bit_leaves_log_whole() {
        let whole = log();
        assert!(is_whole(&whole) && whole.len() > HEADER_BYTES + 4 * FRAME_BYTES);
        assert_eq!(correct(&mut whole.clone()), 0);
        let frames = (HEADER_BYTES..whole.len()).step_by(FRAME_BYTES);
        let heads = frames.flat_map(|at| at * 8..(at + FRAME_HEAD_BYTES) * 8);
        let bits: Vec<usize> =
            (0..HEADER_BYTES * 8).chain(heads).chain((0..whole.len() * 8).step_by(211)).collect();
        let mut exact = 0;
        for bit in &bits {
            let mut log = whole.clone();
            flip(&mut log, *bit);
            assert_eq!(correct(&mut log), 1, "bit {bit}");
            assert!(is_whole(&log), "bit {bit}");
            assert!(difference(&log, &whole) <= 1, "bit {bit}");
            exact += usize::from(log == whole);
        }
        assert!(exact * 10 > bits.len() * 9, "{exact} of {} are as they were", bits.len());
    }

    #[test]
    fn one_bit_of_each_frame_is_corrected() {
        let whole = log();
        let mut log = whole.clone();
        flip(&mut log, 70);
        let frames = (HEADER_BYTES..whole.len()).step_by(FRAME_BYTES);
        for (number, frame) in frames.clone().enumerate() {
            flip(&mut log, (frame + 30 + number * 300) * 8 + number % 8);
        }
        assert_eq!(correct(&mut log), 1 + frames.count());
        assert!(is_whole(&log));
    }

    #[test]
    fn half_written_frame_is_left_alone() {
        let whole = log();
        let last = whole.len() - FRAME_BYTES;
        let mut torn = whole.clone();
        torn[last + 600..].fill(0);
        let mut older = whole.clone();
        older[last + 8..last + 16].copy_from_slice(&[9; 8]);
        for damaged in [torn, older, whole[..last + 700].to_vec(), whole[..20].to_vec()] {
            let mut log = damaged.clone();
            assert_eq!(correct(&mut log), 0);
            assert!(log == damaged);
        }
    }

    #[test]
    fn file_is_corrected_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(correct_file(&path).unwrap(), 0, "there is none");
        let whole = log();
        let mut damaged = whole.clone();
        flip(&mut damaged, (HEADER_BYTES + FRAME_BYTES + 100) * 8);
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(correct_file(&path).unwrap(), 1);
        assert!(is_whole(&std::fs::read(&path).unwrap()));
    }
}
