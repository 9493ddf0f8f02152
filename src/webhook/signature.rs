//! The signature of a request: HMAC-SHA256 over the time and the body, so that a receiver can check
//! who sent it, that nobody changed it, and that it is not an old one sent again.

use ring::hmac;

use crate::wire::export::hex;

/// The header that has it.
pub(super) const HEADER: &str = "x-rollcall-signature";

/// Returns the header's value: `t=<unix time in s>,v1=<hex of the HMAC over "t.body">`.
pub(super) fn sign(key: &hmac::Key, unix_s: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{unix_s}.").as_bytes());
    context.update(body);
    format!("t={unix_s},v1={}", hex(context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_hmac_over_time_and_body() {
        // python3 -c 'import hmac; print(hmac.new(b"a key of sixteen", b"1795420683.{}", "sha256").hexdigest())'
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a key of sixteen");
        assert_eq!(
            sign(&key, 1_795_420_683, b"{}"),
            "t=1795420683,v1=59c8c11416588b559edf830f3ba6312545ad2dc227816e8729b4ffd54f4dec5e"
        );
    }
}
