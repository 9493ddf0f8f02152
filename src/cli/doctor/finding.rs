//! What `doctor` says of one part: what was found, and where it is not good, what that means for attendance and what to
//! do. The three belong together: nothing but good news can be said without them.

use std::fmt::Write as _;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// The daemon runs, but not as well as it could.
    Warning,
    /// The daemon does not start, or does not do its job.
    Fault,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    pub state: State,
    pub words: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub means: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Verdict {
    pub fn good(words: impl Into<String>) -> Self {
        Self {
            state: State::Good,
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
            state: State::Warning,
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
        Self { state: State::Fault, ..Self::warning(words, means, remedy) }
    }

    pub fn is_good(&self) -> bool {
        self.state == State::Good
    }

    /// In lines for a terminal; all but the first are indented by `indent`.
    pub fn lines(&self, indent: usize) -> String {
        let mut text = self.words.clone();
        for (what, said) in [("it means", &self.means), ("to do", &self.remedy)] {
            if !said.is_empty() {
                // Writing to a string cannot fail.
                write!(text, "\n{:indent$}{what}: {said}", "").ok();
            }
        }
        text
    }
}

/// A part with its verdict.
#[derive(Debug, serde::Serialize)]
pub struct Finding {
    pub part: &'static str,
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Finding {
    pub fn text(&self) -> String {
        let mark = match self.verdict.state {
            State::Good => "good   ",
            State::Warning => "warning",
            State::Fault => "FAULT  ",
        };
        format!("{mark}  {:14}  {}\n", self.part, self.verdict.lines(25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_news_come_with_their_meaning_and_a_remedy() {
        let verdict = Verdict::fault("no camera", "nobody is recorded", "plug it in");
        assert_eq!(
            Finding { part: "camera", verdict }.text(),
            "FAULT    camera          no camera\n                         it means: nobody is recorded\n                         \
             to do: plug it in\n"
        );
        let good = Finding { part: "clock", verdict: Verdict::good("kept right") };
        assert_eq!(
            serde_json::to_value(&good).unwrap(),
            serde_json::json!({"part": "clock", "state": "good", "words": "kept right"})
        );
    }
}
