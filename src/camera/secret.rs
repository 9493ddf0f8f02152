//! A text that is never shown: the URL of a camera with its user and password.

use std::fmt;

use zeroize::Zeroizing;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What of it must not be shown even by itself: user and password of the URLs in it, together
    /// and each alone, and whole lines.
    pub fn parts(&self) -> Vec<String> {
        let mut parts = Vec::new();
        for line in self.0.lines() {
            parts.push(line.trim().to_owned());
            for word in line.split_whitespace() {
                let Some((_, rest)) = word.split_once("://") else { continue };
                let Some((credentials, _)) = rest.rsplit_once('@') else { continue };
                parts.push(credentials.to_owned());
                parts.extend(credentials.split_once(':').map(|(_, password)| password.to_owned()));
            }
        }
        parts
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_not_printed() {
        let secret = Secret::new("file 'rtsp://admin:p@ss@h/x'\n".into());
        assert!(!format!("{secret:?}").contains("ss"));
        let parts = secret.parts();
        for part in ["admin:p@ss", "p@ss"] {
            assert!(parts.iter().any(|it| it == part), "{parts:?}");
        }
    }
}
