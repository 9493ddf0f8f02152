//! The URL of a camera that sends motion JPEG over HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;

use crate::camera::secret::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraUrl {
    pub host: String,
    pub port: u16,
    /// Path and query; cameras take passwords there too.
    target: Secret,
    /// User and password in the form of basic authentication.
    credentials: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("is no URL like http://USER:PASSWORD@HOST/PATH")]
    Invalid,
    #[error("begins with https, which only preset = \"rtsp\" (ffmpeg) reads")]
    Https,
}

impl CameraUrl {
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Invalid)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(UrlError::Https),
            _ => return Err(UrlError::Invalid),
        }
        let authority = uri.authority().ok_or(UrlError::Invalid)?;
        let host = authority.host();
        let has_port =
            authority.as_str().rsplit('@').next().is_some_and(|it| it.len() > host.len());
        let port = match (authority.port_u16(), has_port) {
            (Some(port), _) if port > 0 => port,
            (None, false) => 80,
            _ => return Err(UrlError::Invalid),
        };
        if host.is_empty() {
            return Err(UrlError::Invalid);
        }
        let credentials = authority.as_str().rsplit_once('@').map(|(user, _)| {
            let user = match user.split_once(':') {
                Some((user, password)) => [decode(user), b":".to_vec(), decode(password)].concat(),
                None => [decode(user), b":".to_vec()].concat(),
            };
            Secret::new(STANDARD.encode(user))
        });
        let target = uri.path_and_query().map_or("/", |it| it.as_str());
        let target = if target.is_empty() { "/" } else { target };
        Ok(Self {
            host: host.to_owned(),
            port,
            target: Secret::new(target.to_owned()),
            credentials,
        })
    }

    /// Host and port, as a resolver takes them: without the brackets of an IPv6 address.
    pub fn address(&self) -> (String, u16) {
        (self.host.trim_matches(['[', ']']).to_owned(), self.port)
    }

    pub fn request(&self) -> Secret {
        let Self { host, port, .. } = self;
        let target = self.target.expose();
        let port = if *port == 80 { String::new() } else { format!(":{port}") };
        let authorization = self
            .credentials
            .as_ref()
            .map_or_else(String::new, |it| format!("Authorization: Basic {}\r\n", it.expose()));
        Secret::new(format!(
            "GET {target} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: rollcall/{}\r\n\
             Accept: multipart/x-mixed-replace, */*\r\nConnection: close\r\n{authorization}\r\n",
            env!("CARGO_PKG_VERSION")
        ))
    }
}

/// Resolves `%41`; what is no such sequence stays.
fn decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.first_chunk::<2>().filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            // `from_str_radix` takes a sign too.
            let is_hex = digits.bytes().all(|it| it.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
        });
        decoded.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_becomes_address_and_request() {
        let url = CameraUrl::parse("http://admin:p%40ss%2@192.0.2.4:8081/video?x=1").unwrap();
        assert_eq!(url.address(), ("192.0.2.4".into(), 8081));
        let request = url.request();
        let request = request.expose();
        assert!(request.starts_with("GET /video?x=1 HTTP/1.1\r\nHost: 192.0.2.4:8081\r\n"));
        let credentials = STANDARD.encode("admin:p@ss%2");
        assert!(request.contains(&format!("\r\nAuthorization: Basic {credentials}\r\n\r\n")));
        assert!(!format!("{url:?}").contains(&credentials));
        let url = CameraUrl::parse("http://[fd00::1]").unwrap();
        assert_eq!(url.address(), ("fd00::1".into(), 80));
        assert!(url.request().expose().starts_with("GET / HTTP/1.1\r\nHost: [fd00::1]\r\n"));
    }

    #[test]
    fn url_without_host_or_scheme_is_rejected() {
        for wrong in [
            "",
            "192.0.2.4",
            "/video",
            "ftp://h/",
            "http://",
            "http://h:0/",
            "http://h:99999/",
            "http://h/a b",
            "http://h/\r\nX: y",
        ] {
            assert_eq!(CameraUrl::parse(wrong), Err(UrlError::Invalid), "{wrong:?}");
        }
        assert_eq!(CameraUrl::parse("https://h/"), Err(UrlError::Https));
    }
}
