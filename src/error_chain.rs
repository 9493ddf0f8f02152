//! An error with its causes in one line, for logs and replies.

use std::error::Error;

/// Returns the error and its causes, separated by colons. A cause whose text is already there is
/// left out: rumqttc repeats its sources.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn each_cause_appears_once() {
        let layers = ["no", "TLS: no", "cannot connect"];
        let layer = |source, text| Some(Box::new(Layer { text, source }));
        let error = layers.into_iter().fold(None, layer).unwrap();
        assert_eq!(error_chain(&*error), "cannot connect: TLS: no");
    }
}
