//! What `doctor` reports of one part: what was found and, where that is not good, what it means for
//! attendance and what to do. The constructors require all three for anything that is not good.

use std::fmt::Write as _;

/// How serious it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Good,
    /// The daemon runs, but not as well as it could.
    Warning,
    /// The daemon does not start, or does not do its job.
    Fault,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckResult {
    pub state: CheckState,
    pub words: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub means: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl CheckResult {
    pub fn good(words: impl Into<String>) -> Self {
        Self {
            state: CheckState::Good,
            words: words.into(),
            means: String::new(),
            remedy: String::new(),
        }
    }

    pub fn warning(
        words: impl Into<String>,
        means: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: CheckState::Warning,
            words: words.into(),
            means: means.into(),
            remedy: remedy.into(),
        }
    }

    pub fn fault(
        words: impl Into<String>,
        means: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { state: CheckState::Fault, ..Self::warning(words, means, remedy) }
    }

    pub fn is_good(&self) -> bool {
        self.state == CheckState::Good
    }

    /// Returns the lines for a terminal; all but the first are indented by `indent`.
    pub fn lines(&self, indent: usize) -> String {
        let mut text = self.words.clone();
        for (label, value) in [("it means", &self.means), ("to do", &self.remedy)] {
            if !value.is_empty() {
                // Writing to a string cannot fail.
                write!(text, "\n{:indent$}{label}: {value}", "").ok();
            }
        }
        text
    }
}

/// A part with the result of its check.
#[derive(Debug, serde::Serialize)]
pub struct Finding {
    pub part: &'static str,
    #[serde(flatten)]
    pub result: CheckResult,
}

impl Finding {
    pub fn text(&self) -> String {
        let mark = match self.result.state {
            CheckState::Good => "good   ",
            CheckState::Warning => "warning",
            CheckState::Fault => "FAULT  ",
        };
        format!("{mark}  {:14}  {}\n", self.part, self.result.lines(25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_finding_has_meaning_and_remedy() {
        let result = CheckResult::fault("no camera", "nobody is recorded", "plug it in");
        assert_eq!(
            Finding { part: "camera", result }.text(),
            "FAULT    camera          no camera\n                         it means: nobody is recorded\n                         \
             to do: plug it in\n"
        );
        let good = Finding { part: "clock", result: CheckResult::good("kept right") };
        assert_eq!(
            serde_json::to_value(&good).unwrap(),
            serde_json::json!({"part": "clock", "state": "good", "words": "kept right"})
        );
    }
}
