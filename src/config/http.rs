//! The section `[http]`.

use std::path::Path;

use crate::config::checks::{
    ConfigError, find_credential, invalid, read_credential, read_secret, resolve_path, within,
};
use crate::config::raw::RawConfig;
use crate::http::HttpSettings;
use crate::http::token::Token;

/// systemd's name for the token.
const TOKEN_CREDENTIAL: &str = "rollcall-http.token";
/// Bytes around an image in a request.
const AROUND_BYTES: usize = 64 << 10;

pub(super) fn check_http(
    raw: &RawConfig,
    folder: &Path,
) -> Result<Option<HttpSettings>, ConfigError> {
    let it = &raw.http;
    if it.listen.is_empty() {
        let has_token =
            !it.token_file.as_os_str().is_empty() || !it.reader_token_file.as_os_str().is_empty();
        if has_token || !it.cors_origins.is_empty() {
            return Err(invalid(
                "[http] listen",
                "is empty, so that the section\'s other keys would not be used",
            ));
        }
        return Ok(None);
    }
    let wrong = |_| {
        invalid("[http] listen", format!("= {:?} is no address like \"127.0.0.1:8080\"", it.listen))
    };
    let listen: std::net::SocketAddr = it.listen.parse().map_err(wrong)?;
    let token = read_token(raw, folder)?;
    let reader_token = read_reader_token(raw, folder, token.as_ref())?;
    if token.is_none() && !listen.ip().is_loopback() {
        let why =
            format!("= {:?} is reached from other machines: that takes a token_file", it.listen);
        return Err(invalid("[http] listen", why));
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
            return Err(invalid("[http] cors_origins", why));
        }
    }
    Ok(Some(HttpSettings {
        listen,
        token,
        reader_token,
        origins: it.cors_origins.clone(),
        connections_max: within("[http] connections_max", it.connections_max, 10, 10_000)?,
        requests_max: within("[http] requests_max", it.requests_max, 1, 64)?,
        per_minute_max: within("[http] per_minute_max", it.per_minute_max as usize, 1, 1_000_000)?
            as u32,
        // An image in base64, or a whole command.
        body_bytes_max: raw
            .mqtt
            .packet_bytes_max
            .max(raw.commands.image_bytes_max.div_ceil(3) * 4 + AROUND_BYTES),
    }))
}

/// The second token, which opens less; it takes the first.
fn read_reader_token(
    raw: &RawConfig,
    folder: &Path,
    token: Option<&Token>,
) -> Result<Option<Token>, ConfigError> {
    const KEY: &str = "[http] reader_token_file";
    let Some(file) = resolve_path(folder, &raw.http.reader_token_file) else {
        return Ok(None);
    };
    let text = read_secret(KEY, &file)?;
    let why = |weak| invalid(KEY, format!("{} {weak}", file.display()));
    let reader = Token::new(text.trim()).map_err(why)?;
    match token {
        None => Err(invalid(
            KEY,
            "takes a token_file beside it: without one everybody here may do everything",
        )),
        Some(token) if token.matches(text.trim().as_bytes()) => {
            Err(invalid(KEY, "has the token of token_file, which opens everything"))
        }
        Some(_) => Ok(Some(reader)),
    }
}

fn read_token(raw: &RawConfig, folder: &Path) -> Result<Option<Token>, ConfigError> {
    let (file, text) = match resolve_path(folder, &raw.http.token_file) {
        Some(file) => {
            let text = read_secret("[http] token_file", &file)?;
            (file, text)
        }
        None => match find_credential(TOKEN_CREDENTIAL) {
            Some(file) => {
                let text = read_credential("[http] token_file", &file)?;
                (file, text)
            }
            None => return Ok(None),
        },
    };
    let why = |weak| invalid("[http] token_file", format!("{} {weak}", file.display()));
    Token::new(text.trim()).map(Some).map_err(why)
}
