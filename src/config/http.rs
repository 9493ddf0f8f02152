//! The section `[http]`.

use std::fs;
use std::path::Path;

use super::raw::RawConfig;
use super::{ConfigError, count, is_open_to_others, path, value};
use crate::http::{HttpSettings, Token};

/// systemd's name for the token.
const CREDENTIAL: &str = "rollcall-http.token";
/// What stands around an image in a request.
const AROUND_BYTES: usize = 64 << 10;

pub(super) fn http(raw: &RawConfig, folder: &Path) -> Result<Option<HttpSettings>, ConfigError> {
    let it = &raw.http;
    if it.listen.is_empty() {
        if !it.token_file.as_os_str().is_empty() || !it.cors_origins.is_empty() {
            return Err(value(
                "[http] listen",
                "is empty, so that the section\'s other keys would not be used",
            ));
        }
        return Ok(None);
    }
    let wrong = |_| {
        value("[http] listen", format!("= {:?} is no address like \"127.0.0.1:8080\"", it.listen))
    };
    let listen: std::net::SocketAddr = it.listen.parse().map_err(wrong)?;
    let token = token(raw, folder)?;
    if token.is_none() && !listen.ip().is_loopback() {
        let why =
            format!("= {:?} is reached from other machines: that takes a token_file", it.listen);
        return Err(value("[http] listen", why));
    }
    for origin in &it.cors_origins {
        let host = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .unwrap_or_default();
        let plain = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | ':' | '[' | ']')
        };
        if host.is_empty() || !host.chars().all(plain) {
            let why =
                format!("has {origin:?}, which is no origin like \"https://office.example.net\"");
            return Err(value("[http] cors_origins", why));
        }
    }
    Ok(Some(HttpSettings {
        listen,
        token,
        origins: it.cors_origins.clone(),
        connections_max: count("[http] connections_max", it.connections_max, 10, 10_000)?,
        requests_max: count("[http] requests_max", it.requests_max, 1, 64)?,
        per_minute_max: count("[http] per_minute_max", it.per_minute_max as usize, 1, 1_000_000)?
            as u32,
        // An image in base64, or a whole command.
        body_bytes_max: raw
            .mqtt
            .packet_bytes_max
            .max(raw.commands.image_bytes_max.div_ceil(3) * 4 + AROUND_BYTES),
    }))
}

fn token(raw: &RawConfig, folder: &Path) -> Result<Option<Token>, ConfigError> {
    let credential =
        std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join(CREDENTIAL));
    let file = match path(folder, &raw.http.token_file) {
        Some(file) if is_open_to_others(&file) => {
            let why = format!("{} may be read by others: chmod 600 it", file.display());
            return Err(value("[http] token_file", why));
        }
        Some(file) => file,
        None => match credential.filter(|path| path.is_file()) {
            Some(file) => file,
            None => return Ok(None),
        },
    };
    let text = fs::read_to_string(&file)
        .map_err(|source| ConfigError::Read { path: file.clone(), source })?;
    let why = || {
        value(
            "[http] token_file",
            format!("{} needs 16 visible characters or more", file.display()),
        )
    };
    Token::new(text.trim()).ok_or_else(why).map(Some)
}
