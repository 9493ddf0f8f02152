//! Names of topics, and the filters of subscriptions (section 4.7 of both standards).

/// Longer names are refused. The standards allow 64 KiB; the daemon's have some sixty bytes. A
/// guess.
pub const TOPIC_BYTES_MAX: usize = 1024;

/// Names with more levels are refused: a filter is compared with every retained name, level by level.
/// The daemon's have six, Home Assistant's four.
pub const LEVELS_MAX: usize = 32;

/// Whether a message may be published there.
pub fn is_name(topic: &str) -> bool {
    is_bounded(topic) && !topic.contains(['+', '#', '\0'])
}

fn is_bounded(topic: &str) -> bool {
    let separators = topic.bytes().filter(|it| *it == b'/').count();
    !topic.is_empty() && topic.len() <= TOPIC_BYTES_MAX && separators < LEVELS_MAX
}

/// Whether it can be subscribed to: `+` fills a level, `#` the last one.
pub fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    let mut valid = is_bounded(filter);
    while let Some(level) = levels.next() {
        valid &= match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            _ => !level.contains(['+', '#', '\0']),
        };
    }
    valid
}

/// Whether it asks for a shared subscription, which this broker does not have.
pub fn is_shared(filter: &str) -> bool {
    filter.starts_with("$share/")
}

/// Whether a filter matches a name. Names that begin with `$` are hidden from a leading wildcard.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut filter = filter.split('/');
    let mut topic = topic.split('/');
    loop {
        match (filter.next(), topic.next()) {
            // Also the parent level: `a/#` matches `a`.
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+/b", "a/b", true),
            ("+/+", "/b", true),
            ("/+", "/b", true),
            ("+", "/b", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("a/$b", "a/$b", true),
            ("a/+", "a/$b", true),
            ("a", "A", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn names_and_filters_are_checked() {
        for filter in ["a", "/", "a//b", "+", "#", "a/+/b/#", "+/+", "$SYS/#", "a b"] {
            assert!(is_filter(filter), "{filter}");
        }
        for filter in ["", "a+", "a#", "#/a", "a/#/b", "+a", "a/b#", "##", "a\0"] {
            assert!(!is_filter(filter), "{filter}");
        }
        assert!(is_name("a/b") && is_name("/") && is_name("$x"));
        assert!(!is_name("") && !is_name("a/+") && !is_name("#") && !is_name("a\0"));
        assert!(is_name(&"a".repeat(TOPIC_BYTES_MAX)));
        assert!(!is_name(&"a".repeat(TOPIC_BYTES_MAX + 1)));
        assert!(!is_filter(&"a".repeat(TOPIC_BYTES_MAX + 1)));
        let levels = |count: usize| vec!["a"; count].join("/");
        assert!(is_name(&levels(LEVELS_MAX)) && is_filter(&levels(LEVELS_MAX)));
        assert!(!is_name(&levels(LEVELS_MAX + 1)) && !is_filter(&levels(LEVELS_MAX + 1)));
    }
}
