//! The URL of a webhook. Its path may be a secret (n8n, Apps Script), so only the host is ever shown.

use std::fmt;
use std::net::IpAddr;

use http::Uri;

use crate::webhook::address::AddressPolicy;

#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    pub is_https: bool,
    /// As in the URL; an IPv6 address has its brackets.
    host: String,
    port: u16,
    /// Path and query, without a slash at the end of the path.
    path: String,
    query: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("is no URL like https://hr.example.com/hook")]
    Invalid,
    #[error("has user or password in it: put them into authorization_file")]
    HasCredentials,
    #[error(
        "begins with http: everybody in between could read and change what is sent. Use https; \
         http is for this device itself (127.0.0.1), or with allow_private = true for a private network"
    )]
    Unprotected,
    #[error(
        "names an address of a private network, which takes allow_private = true: without it a webhook \
         is sent to the internet, or to this device where the URL names it"
    )]
    Private,
}

impl WebhookUrl {
    pub fn parse(text: &str, allow_private: bool) -> Result<Self, UrlError> {
        let uri: Uri = text.trim().parse().map_err(|_| UrlError::Invalid)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(UrlError::Invalid),
        };
        let authority = uri.authority().ok_or(UrlError::Invalid)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::HasCredentials);
        }
        let host = authority.host();
        let has_port = authority.as_str().len() > host.len();
        let port = match (authority.port_u16(), has_port) {
            (Some(port), _) if port > 0 => port,
            (None, false) => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            _ => return Err(UrlError::Invalid),
        };
        if host.is_empty() || text.contains('#') {
            return Err(UrlError::Invalid);
        }
        let url = Self {
            is_https,
            host: host.to_ascii_lowercase(),
            port,
            path: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map(str::to_owned),
        };
        let policy = url.policy(allow_private);
        if !is_https && policy == AddressPolicy::Public {
            return Err(UrlError::Unprotected);
        }
        match url.ip() {
            Some(ip) if !policy.allows(ip) => Err(UrlError::Private),
            _ => Ok(url),
        }
    }

    /// Returns the host as a resolver and a certificate have it: without the brackets of an IPv6
    /// address.
    pub fn host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the value of the header `Host`.
    pub(super) fn authority(&self) -> String {
        match (self.is_https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// Returns the request's target: the path with more behind it, and the query.
    pub(super) fn target(&self, more: &str) -> String {
        let path = format!("{}{more}", self.path);
        let path = if path.is_empty() { "/".to_owned() } else { path };
        match &self.query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }
    }

    pub(super) fn policy(&self, allow_private: bool) -> AddressPolicy {
        if allow_private {
            AddressPolicy::Private
        } else if self.host == "localhost" || self.ip().is_some_and(|it| it.is_loopback()) {
            AddressPolicy::Loopback
        } else {
            AddressPolicy::Public
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookUrl({})", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_becomes_host_and_target() {
        let url = WebhookUrl::parse("https://N8N.example.com/webhook/s3cret/?a=1", false).unwrap();
        assert_eq!((url.host(), url.port(), url.is_https), ("n8n.example.com", 443, true));
        assert_eq!(url.authority(), "n8n.example.com");
        assert_eq!(url.target(""), "/webhook/s3cret?a=1");
        assert!(!format!("{url:?}").contains("s3cret"));
        let url = WebhookUrl::parse("https://hr.example.com:8443", false).unwrap();
        assert_eq!((url.authority().as_str(), url.target("")), ("hr.example.com:8443", "/".into()));
        assert_eq!(url.target("/api/x"), "/api/x");
        let url = WebhookUrl::parse("http://[::1]:5000/hook", false).unwrap();
        assert_eq!((url.host(), url.authority().as_str()), ("::1", "[::1]:5000"));
    }

    #[test]
    fn unfit_urls_are_rejected() {
        for (text, allow_private, error) in [
            ("", false, UrlError::Invalid),
            ("hr.example.com", false, UrlError::Invalid),
            ("ftp://hr.example.com/", false, UrlError::Invalid),
            ("https://", false, UrlError::Invalid),
            ("https://h:0/", false, UrlError::Invalid),
            ("https://h:99999/", false, UrlError::Invalid),
            ("https://h/a b", false, UrlError::Invalid),
            ("https://h/#part", false, UrlError::Invalid),
            ("https://u:p@h/", false, UrlError::HasCredentials),
            ("http://hr.example.com/", false, UrlError::Unprotected),
            ("http://192.168.1.5/", false, UrlError::Unprotected),
            ("https://192.168.1.5/", false, UrlError::Private),
            ("https://[fe80::1]/", false, UrlError::Private),
            ("https://0.0.0.0/", true, UrlError::Private),
        ] {
            assert_eq!(WebhookUrl::parse(text, allow_private), Err(error), "{text:?}");
        }
        for (text, allow_private) in [
            ("http://127.0.0.1:8080/x", false),
            ("http://localhost/x", false),
            ("https://localhost/x", false),
            ("http://hr.local/", true),
            ("https://192.168.1.5/", true),
        ] {
            assert!(WebhookUrl::parse(text, allow_private).is_ok(), "{text:?}");
        }
    }
}
