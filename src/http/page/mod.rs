//! The local page, as it is built in: markup, style, script and texts below `page/`, and what a
//! browser may do with them (`docs/page.md`).
//!
//! Invariants: these files are the same for everybody and hold no personal data, so they are served
//! without a token. The page requests all data with the token of its user. Nothing is loaded from
//! elsewhere, the markup has no script or style, and no other page may frame it.

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::http::error_response;

/// The path of the page's files; the page itself is at `/`.
pub const FOLDER: &str = "/page/";

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const INDEX: &str = include_str!("index.html");
/// The place in the markup that is replaced by whether a token is needed.
const TOKEN: &str = "{{token}}";

const FILES: [(&str, &str, &str); 11] = [
    ("dom.js", SCRIPT, include_str!("dom.js")),
    ("door.js", SCRIPT, include_str!("door.js")),
    ("health.js", SCRIPT, include_str!("health.js")),
    ("icon.svg", SVG, include_str!("icon.svg")),
    ("page.css", CSS, include_str!("page.css")),
    ("page.js", SCRIPT, include_str!("page.js")),
    ("people.js", SCRIPT, include_str!("people.js")),
    ("texts.js", SCRIPT, include_str!("texts.js")),
    ("today.js", SCRIPT, include_str!("today.js")),
    ("venues.js", SCRIPT, include_str!("venues.js")),
    ("wire.js", SCRIPT, include_str!("wire.js")),
];

pub fn routes<S: Clone + Send + Sync + 'static>(needs_token: bool) -> Router<S> {
    let index = INDEX.replace(TOKEN, if needs_token { "needed" } else { "none" });
    Router::new()
        .route("/", get(move || async move { served(HTML, index) }))
        .route("/page/{file}", get(|Path(name): Path<String>| async move { file(&name) }))
}

fn file(name: &str) -> Response {
    match FILES.iter().find(|it| it.0 == name) {
        Some((_, kind, text)) => served(kind, *text),
        None => error_response(StatusCode::NOT_FOUND, "there is no such file"),
    }
}

/// Asked for anew at each visit: after an update of the device no old script meets the new
/// interface.
fn served(kind: &'static str, text: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_files_exist_without_inline_code() {
        let named = |text: &str, before: &str| -> Vec<String> {
            text.split(before)
                .skip(1)
                .filter_map(|it| it.split('"').next())
                .map(str::to_owned)
                .collect()
        };
        let mut found = named(INDEX, "\"page/");
        for (_, _, text) in FILES.iter().filter(|it| it.1 == SCRIPT) {
            found.extend(named(text, "from \"./"));
        }
        assert!(found.len() > 10, "{found:?}");
        for name in found {
            assert!(FILES.iter().any(|it| it.0 == name), "{name} is not there");
        }
        assert_eq!(INDEX.matches(TOKEN).count(), 1);
        for inline in ["<style", " style=", "<script>", " onclick=", "http:", "https:"] {
            assert!(!INDEX.contains(inline), "{inline}");
        }
    }

    /// It goes over a slow network to a phone, and into every device.
    #[test]
    fn page_stays_below_size_limit() {
        let bytes = INDEX.len() + FILES.iter().map(|it| it.2.len()).sum::<usize>();
        assert!(bytes <= 104_000, "{bytes} bytes");
    }
}
