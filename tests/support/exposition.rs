//! Reads what `/metrics` says with a parser that we did not write, and holds it against the format
//! and the rules that `promtool check metrics` knows.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use prometheus_parse::{HistogramCount, Labels, LineInfo, SampleType, Scrape, Value};

/// More than a door ever says: a label with values of somebody else's making would pass it.
const SAMPLES_MAX: usize = 600;

/// What was said, found to be in order.
pub struct Exposed {
    scrape: Scrape,
    /// Each name that has a head.
    pub kinds: BTreeMap<String, SampleType>,
}

impl Exposed {
    pub fn read(text: &str) -> Self {
        let kinds = check_lines(text);
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let exposed = Self { scrape, kinds };
        exposed.check_values();
        exposed.check_histograms();
        // A run by hand may ask the original too.
        if let Ok(promtool) = std::env::var("PROMTOOL") {
            check_by_promtool(&promtool, text);
        }
        exposed
    }

    /// The one sample of that name with these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("there is no {name}{labels:?}"))
    }

    /// None where there is none.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found =
            self.scrape.samples.iter().filter(|it| it.metric == name && has(&it.labels, labels));
        let sample = found.next()?;
        assert!(found.next().is_none(), "{name}{labels:?} stands there twice");
        match sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Some(value),
            _ => panic!("{name} is no number"),
        }
    }

    /// How many observations a histogram has.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.value(&format!("{name}_count"), labels)
    }

    /// Whether a query may use this name.
    pub fn has_name(&self, name: &str) -> bool {
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
        self.kinds.get(name).is_some_and(|kind| *kind != SampleType::Histogram)
            || of_histogram
                .into_iter()
                .any(|name| self.kinds.get(name) == Some(&SampleType::Histogram))
    }

    /// Every value of every label.
    pub fn label_values(&self) -> HashSet<&str> {
        self.scrape.samples.iter().flat_map(|it| it.labels.values()).map(String::as_str).collect()
    }

    fn check_values(&self) {
        assert!(self.scrape.samples.len() < SAMPLES_MAX, "{} samples", self.scrape.samples.len());
        let mut seen = HashSet::new();
        for sample in &self.scrape.samples {
            let name = &sample.metric;
            assert!(
                seen.insert((name.clone(), sample.labels.to_string())),
                "{name}{{{}}} twice",
                sample.labels
            );
            if let Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) =
                sample.value
            {
                assert!(value.is_finite() && value >= 0.0, "{name} is {value}");
            }
            for (label, value) in sample.labels.iter() {
                assert!(is_plain(label) && !value.is_empty(), "{name}: {label}={value:?}");
                assert!(
                    label != "quantile" && label != "le",
                    "{name}: {label} is for histograms and summaries"
                );
            }
        }
    }

    fn check_histograms(&self) {
        for sample in &self.scrape.samples {
            let Value::Histogram(buckets) = &sample.value else { continue };
            let labels: Vec<(&str, &str)> =
                sample.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let name = &sample.metric;
            let count = self.count(&sample.metric, &labels);
            let rises =
                |by: fn(&HistogramCount) -> f64| buckets.is_sorted_by(|a, b| by(a) <= by(b));
            assert!(
                rises(|it| it.less_than) && rises(|it| it.count),
                "{name}{labels:?}: {buckets:?}"
            );
            let last = buckets.last().unwrap();
            assert!(
                last.less_than == f64::INFINITY && last.count.total_cmp(&count).is_eq(),
                "{name}{labels:?}"
            );
            let sum = self.value(&format!("{name}_sum"), &labels);
            let mut floor = 0.0;
            let mut counted = 0.0;
            let mut bound = 0.0;
            for bucket in buckets {
                floor += (bucket.count - counted) * bound;
                (counted, bound) = (bucket.count, bucket.less_than);
            }
            assert!(
                sum >= floor,
                "{name}{labels:?}: the sum is {sum}, by the buckets at least {floor}"
            );
        }
    }
}

fn has(labels: &Labels, wanted: &[(&str, &str)]) -> bool {
    let all: &HashMap<String, String> = labels;
    all.len() == wanted.len() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Each line is one that the parser knows; each name has its help and type, once, and its samples
/// directly below.
fn check_lines(text: &str) -> BTreeMap<String, SampleType> {
    assert!(
        text.ends_with('\n') && !text.contains('\r'),
        "lines end with a line feed, the last one too"
    );
    let mut kinds = BTreeMap::new();
    let mut helped = None::<String>;
    let mut current: Option<(String, SampleType)> = None;
    for line in text.lines() {
        match LineInfo::parse(line) {
            LineInfo::Doc { metric_name, doc } => {
                assert!(!doc.trim().is_empty(), "{line}");
                helped = Some(metric_name.to_owned());
            }
            LineInfo::Type { metric_name, metric_alias, sample_type } => {
                let name = metric_alias.unwrap_or(metric_name);
                assert_eq!(
                    helped.take().as_deref(),
                    Some(name.as_str()),
                    "no help directly above: {line}"
                );
                check_name(&name, sample_type);
                assert!(kinds.insert(name.clone(), sample_type).is_none(), "a second head: {line}");
                current = Some((name, sample_type));
            }
            LineInfo::Sample { metric_name, timestamp, .. } => {
                let (name, kind) =
                    current.as_ref().unwrap_or_else(|| panic!("no head above: {line}"));
                let rest = metric_name.strip_prefix(name.as_str());
                let of_histogram = matches!(rest, Some("_bucket" | "_sum" | "_count"))
                    && *kind == SampleType::Histogram;
                assert!(
                    of_histogram || rest == Some("") && *kind != SampleType::Histogram,
                    "below {name}: {line}"
                );
                assert_eq!(timestamp, None, "the time is the scrape's: {line}");
                let (_, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
            LineInfo::Empty | LineInfo::Ignored => panic!("not understood: {line:?}"),
        }
    }
    kinds
}

fn check_name(name: &str, kind: SampleType) {
    assert!(kind != SampleType::Untyped && kind != SampleType::Summary, "{name}");
    assert!(is_plain(name), "{name} has other characters than a-z, 0-9 and _");
    assert_eq!(
        name.ends_with("_total"),
        kind == SampleType::Counter,
        "_total is for counters, and they need it: {name}"
    );
    for suffix in ["_bucket", "_sum", "_count", "_info_total"] {
        assert!(!name.ends_with(suffix), "{name}: the suffix is reserved");
    }
    for part in name.split('_') {
        assert!(
            !["counter", "gauge", "histogram", "summary"].contains(&part),
            "{name}: its type is in the name"
        );
        assert!(!SMALL_UNITS.contains(&part), "{name}: base units are seconds, bytes, celsius");
    }
    if kind == SampleType::Histogram {
        assert!(name.ends_with("_seconds"), "{name}");
    }
}

/// Abbreviations, and what has a base unit.
const SMALL_UNITS: [&str; 27] = [
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "secs",
    "min",
    "mins",
    "minutes",
    "hours",
    "days",
    "weeks",
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "b",
    "kb",
    "mb",
    "gb",
    "kib",
    "mib",
    "kilobytes",
    "megabytes",
    "bits",
    "percent",
    "degrees",
    "fahrenheit",
];

fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn check_by_promtool(promtool: &str, text: &str) {
    let piped = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = piped.unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "promtool check metrics: {}: {said}",
        output.status
    );
}
