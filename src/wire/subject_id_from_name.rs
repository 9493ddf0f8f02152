//! A subject's id from a person's name, by a rule that gives the same id for ever: it is how a
//! later import knows whom it has already.
//!
//! Letters and digits of ASCII stay, in lower case, and so do `.` and `_`. Of other Latin letters
//! the plain one is left (`ü` → `u`, `ß` → `ss`). Everything else becomes one `-`. Where a letter
//! of another script was lost, or the id would be too long, ten hexadecimal digits of the SHA-256
//! of the name (composed, trimmed) follow, so that two names never become one id by that. Not by
//! this rule alone: `José` and `Jose` are both `jose`; the import rejects the second.

use sha2::{Digest as _, Sha256};
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

use crate::ids::SubjectId;
use crate::wire::export::hex;

const LENGTH_MAX: usize = 64;
const HASH_DIGITS: usize = 10;

/// A name as it is compared: trimmed and composed.
pub fn composed(name: &str) -> String {
    name.trim().nfc().collect()
}

pub fn from_name(name: &str) -> SubjectId {
    let name = composed(name);
    let mut id = String::new();
    let mut lost = false;
    for c in name.nfkd().filter(|c| !is_combining_mark(*c)) {
        match plain(c) {
            Some(letters) => id.push_str(letters),
            None if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') => {
                id.push(c.to_ascii_lowercase());
            }
            None => {
                lost |= c.is_alphanumeric();
                if !id.is_empty() && !id.ends_with('-') {
                    id.push('-');
                }
            }
        }
    }
    let id = id.trim_end_matches('-');
    if !lost && !id.is_empty() && id.len() <= LENGTH_MAX {
        return SubjectId::new(id).expect("it is made of the characters of an id");
    }
    let hash = hex(&Sha256::digest(name.as_bytes()));
    let kept = &id[..id.len().min(LENGTH_MAX - HASH_DIGITS - 1)];
    let kept = if kept.is_empty() { "id" } else { kept.trim_end_matches('-') };
    SubjectId::new(&format!("{kept}-{}", &hash[..HASH_DIGITS]))
        .expect("it is made of the characters of an id")
}

/// Latin letters that are not a plain one with a mark.
fn plain(c: char) -> Option<&'static str> {
    Some(match c {
        'ß' | 'ẞ' => "ss",
        'æ' | 'Æ' => "ae",
        'œ' | 'Œ' => "oe",
        'ø' | 'Ø' => "o",
        'ł' | 'Ł' => "l",
        'đ' | 'Đ' | 'ð' | 'Ð' => "d",
        'þ' | 'Þ' => "th",
        'ı' => "i",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_becomes_subject_id() {
        for (name, id) in [
            ("Jane Doe", "jane-doe"),
            ("  Jane   Doe ", "jane-doe"),
            ("Bill_Clinton", "bill_clinton"),
            ("Jürgen Weiß", "jurgen-weiss"),
            ("Ju\u{308}rgen Weiß", "jurgen-weiss"),
            ("Łukasz Ørsted-Þór", "lukasz-orsted-thor"),
            ("O'Neil, J. (2)", "o-neil-j.-2"),
            ("小明", "id-df3ea25a43"),
            ("Anna 小明", "anna-091febac5e"),
            ("!!!", "id-e84c538e7f"),
        ] {
            assert_eq!(from_name(name).as_str(), id, "{name}");
        }
        let long = "x".repeat(65);
        let longer = "x".repeat(66);
        assert_ne!(from_name(&long), from_name(&longer));
        assert_eq!(from_name(&long).as_str().len(), 64);
    }

    proptest! {
        #[test]
        fn equivalent_names_give_same_subject_id(name in "\\PC{1,200}") {
            prop_assert_eq!(from_name(&name), from_name(&name.nfd().collect::<String>()));
        }
    }
}
