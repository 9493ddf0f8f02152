//! The Prometheus text format, version 0.0.4: heads, samples and histograms.
//!
//! A library would own the numbers, but `health` holds them already, for the health message too. Tests
//! check the text with another parser and with the rules of `promtool`.

use std::fmt::{Display, Write as _};

use strum::VariantArray;

use crate::histogram::{BOUNDS, Histogram};

/// The `Content-Type` that goes with it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of one sample: name and value.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The labels of a metric with a single sample.
const UNLABELLED: [(&str, &str); 0] = [];

/// The text so far. The samples of a metric follow its head.
#[derive(Default)]
pub struct Exposition(String);

impl Exposition {
    /// Adds a number that only rises until a restart. Its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.counters(name, help, [(UNLABELLED, value)]);
    }

    pub fn counters<'a, V: Display, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'a str, &'a str); N], V)>,
    ) {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.head(name, "counter", help);
        samples.into_iter().for_each(|(labels, value)| self.sample(name, &labels, value));
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.gauges(name, help, [(UNLABELLED, value)]);
    }

    /// Adds only the head if the value is unknown.
    pub fn gauge_if(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        self.gauges(name, help, value.map(|value| (UNLABELLED, value)));
    }

    pub fn gauges<'a, V: Display, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'a str, &'a str); N], V)>,
    ) {
        self.head(name, "gauge", help);
        samples.into_iter().for_each(|(labels, value)| self.sample(name, &labels, value));
    }

    /// Adds a sample for each state: 1 for the current one, 0 for the others. Adds only the head if
    /// there is none.
    pub fn state<S>(&mut self, name: &str, help: &str, now: Option<S>)
    where
        S: VariantArray + Copy + PartialEq + Into<&'static str>,
    {
        let sample = |now| move |it: &S| ([("state", (*it).into())], u8::from(*it == now));
        let samples = now.into_iter().flat_map(|now| S::VARIANTS.iter().map(sample(now)));
        self.gauges(name, help, samples);
    }

    /// Adds histograms in seconds.
    pub fn histograms<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'a str, &'a str); N], &'a Histogram)>,
    ) {
        self.head(name, "histogram", help);
        for (labels, histogram) in samples {
            let read = histogram.read();
            let mut so_far = 0;
            for (at, bucket) in read.buckets.iter().enumerate() {
                so_far += bucket;
                let bound = BOUNDS
                    .get(at)
                    .map_or_else(|| "+Inf".to_owned(), |it| it.as_secs_f64().to_string());
                let mut labels = labels.to_vec();
                labels.push(("le", &bound));
                self.sample(&format!("{name}_bucket"), &labels, so_far);
            }
            self.sample(&format!("{name}_sum"), &labels, read.sum.as_secs_f64());
            self.sample(&format!("{name}_count"), &labels, so_far);
        }
    }

    pub fn into_text(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {}", escaped(help, false)));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value, true)))
            .collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a String cannot fail");
    }
}

/// Escapes what would end a line or a label, such as in the name of a device.
fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::CameraHealth;
    use std::time::Duration;

    #[test]
    fn exposition_format_escapes_labels_and_help() {
        let mut page = Exposition::default();
        page.counter("doors_total", "Doors; one\nline.", 3);
        page.gauge("warmth_celsius", "How warm.", 41.5);
        page.gauge_if("nothing", "Not known.", None::<u64>);
        page.gauges("info", "Names.", [([("name", "a \"b\\\n")], 1)]);
        page.state("camera", "State.", Some(CameraHealth::Lost));
        let expected = "# HELP doors_total Doors; one\\nline.\n# TYPE doors_total counter\ndoors_total 3\n\
                        # HELP warmth_celsius How warm.\n# TYPE warmth_celsius gauge\nwarmth_celsius 41.5\n\
                        # HELP nothing Not known.\n# TYPE nothing gauge\n\
                        # HELP info Names.\n# TYPE info gauge\ninfo{name=\"a \\\"b\\\\\\n\"} 1\n\
                        # HELP camera State.\n# TYPE camera gauge\ncamera{state=\"absent\"} 0\ncamera{state=\"streaming\"} 0\ncamera{state=\"lost\"} 1\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn histogram_buckets_are_cumulative() {
        let histogram = Histogram::default();
        let mut page = Exposition::default();
        for ms in [2, 2, 30, 11_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        page.histograms("wait_seconds", "Waiting.", [([("stage", "wait")], &histogram)]);
        let text = page.into_text();
        for line in [
            "wait_seconds_bucket{stage=\"wait\",le=\"0.001\"} 0",
            "wait_seconds_bucket{stage=\"wait\",le=\"0.0025\"} 2",
            "wait_seconds_bucket{stage=\"wait\",le=\"0.05\"} 3",
            "wait_seconds_bucket{stage=\"wait\",le=\"10\"} 3",
            "wait_seconds_bucket{stage=\"wait\",le=\"+Inf\"} 4",
            "wait_seconds_sum{stage=\"wait\"} 11.034",
            "wait_seconds_count{stage=\"wait\"} 4",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
