//! One page of a list.

use serde::Serialize;

/// So much of a list goes into one reply, which leaves room for the reply itself.
const PAGE_BYTES_MAX: usize = 512 << 10;

/// What goes into one reply.
pub(super) struct Page<T> {
    pub entries: Vec<T>,
    /// Whether there are entries behind these.
    pub more: bool,
}

impl<T: Serialize> Page<T> {
    /// The first entries: at most `limit`, and not much more than [`PAGE_BYTES_MAX`] of JSON, but at
    /// least one.
    pub(super) fn of(entries: impl IntoIterator<Item = T>, limit: usize) -> Self {
        let mut rest = entries.into_iter();
        let mut page = Self { entries: Vec::new(), more: false };
        let mut bytes = 0;
        for entry in rest.by_ref() {
            if page.entries.len() >= limit || bytes >= PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            bytes += serde_json::to_string(&entry).map_or(0, |it| it.len());
            page.entries.push(entry);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_ends_by_count_or_bytes() {
        let large = "a".repeat(PAGE_BYTES_MAX / 4);
        for (entries, limit, expected, more) in [
            (vec![""; 3], 3, 3, false),
            (vec![""; 4], 3, 3, true),
            (vec![large.as_str(); 4], 10, 4, false),
            (vec![large.as_str(); 5], 10, 4, true),
            (vec![""; 0], 3, 0, false),
        ] {
            let page = Page::of(entries, limit);
            assert_eq!((page.entries.len(), page.more), (expected, more));
        }
        let page = Page::of([large.repeat(9), large], 10);
        assert_eq!((page.entries.len(), page.more), (1, true));
    }
}
