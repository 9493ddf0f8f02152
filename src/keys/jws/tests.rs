use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;

const NOW_S: i64 = 1_795_420_683;

fn pair(seed: u8) -> (Ed25519KeyPair, PublicKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = PublicKey::new(pair.public_key().as_ref().try_into().unwrap());
    (pair, public)
}

fn raw(pair: &Ed25519KeyPair, header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = pair.sign(text.as_bytes());
    joined(text, signature.as_ref())
}

fn claims(iat: i64, exp: i64, aud: &str) -> String {
    format!(
        r#"{{"iat":{iat},"exp":{exp},"jti":"j-1","aud":"{aud}","cmd":{{"verb":"sync","request_id":"r-1"}}}}"#
    )
}

fn good() -> (String, PublicKey) {
    let (pair, public) = pair(7);
    (raw(&pair, r#"{"alg":"EdDSA"}"#, &claims(NOW_S, NOW_S + 300, "hq/door-1")), public)
}

fn verified(token: &str, keys: &[PublicKey]) -> Result<(), Untrusted> {
    verify(token.as_bytes(), COMMAND, keys).map(drop)
}

#[test]
fn keys_and_signatures_match_rfc_8037() {
    // RFC 8037, appendix A.
    let key =
        PublicKey::parse("ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo of the RFC").unwrap();
    assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert_eq!(PublicKey::parse(&key.to_string()).as_ref(), Ok(&key));
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
                 hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let signed = verify(token.as_bytes(), COMMAND, std::slice::from_ref(&key)).unwrap();
    assert!(
        verify(token.as_bytes(), COMMAND, &[pair(1).1, key]).is_err(),
        "of several keys it must name one"
    );
    assert_eq!(signed.bytes(), b"Example of Ed25519 signing");
    for bad in [
        "",
        "ed25519:",
        "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "ed25519:11qY",
        "ed25519:+++",
    ] {
        assert_eq!(PublicKey::parse(bad), Err(NoKey), "{bad}");
    }
}

#[test]
fn only_trusted_ed25519_signatures_are_accepted() {
    let (pair, public) = pair(7);
    let (_, other) = crate::keys::jws::tests::pair(8);
    let body = claims(NOW_S, NOW_S + 300, "hq/door-1");
    let kid = public.kid();
    for header in [
        r#"{"alg":"EdDSA"}"#.to_owned(),
        r#"{"typ":"JWT","alg":"EdDSA"}"#.to_owned(),
        format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#),
    ] {
        let token = raw(&pair, &header, &body);
        assert_eq!(verified(&token, std::slice::from_ref(&public)), Ok(()), "{header}");
        // Of several keys the header names one: none is tried that need not be.
        let of_several = verified(&token, &[other.clone(), public.clone()]);
        assert_eq!(of_several.is_ok(), header.contains("kid"), "{header}");
        assert!(verified(&token, std::slice::from_ref(&other)).is_err(), "{header}");
        assert!(verified(&token, &[]).is_err(), "{header}");
    }
    for header in [
        r#"{"alg":"none"}"#.to_owned(),
        r#"{"alg":"HS256"}"#.to_owned(),
        r#"{"alg":"eddsa"}"#.to_owned(),
        r#"{"alg":"Ed448"}"#.to_owned(),
        "{}".to_owned(),
        "[]".to_owned(),
        r#"{"alg":"EdDSA","alg":"EdDSA"}"#.to_owned(),
        r#"{"alg":"EdDSA","crit":["exp"]}"#.to_owned(),
        r#"{"alg":"EdDSA","crit":["b64"],"b64":false}"#.to_owned(),
        r#"{"alg":"EdDSA","typ":"rollcall-receipt"}"#.to_owned(),
        r#"{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}}"#.to_owned(),
        r#"{"alg":"EdDSA","kid":"another"}"#.to_owned(),
        format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, other.kid()),
    ] {
        for trusted in [&[public.clone()][..], &[other.clone(), public.clone()]] {
            let found = verified(&raw(&pair, &header, &body), trusted);
            assert!(matches!(found, Err(Untrusted::BadSignature(_))), "{header}: {found:?}");
        }
    }
    // The classic: the public key as the secret of an HMAC; and no signature at all.
    let (token, public) = good();
    let (text, _) = token.rsplit_once('.').unwrap();
    let unsigned = format!(
        "{}.",
        text.replace(&URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#), "eyJhbGciOiJub25lIn0")
    );
    assert!(matches!(
        verified(&unsigned, std::slice::from_ref(&public)),
        Err(Untrusted::BadSignature(_))
    ));
}

#[test]
fn malformed_token_counts_as_unsigned() {
    let (_, public) = good();
    for text in [
        "",
        ".",
        "..",
        "a.b",
        r#"{"request_id":"r-1"}"#,
        r#"{"a":"b.c.d"}"#,
        "a.b.c.d\u{e9}",
        "a .b.c",
    ] {
        assert_eq!(
            verified(text, std::slice::from_ref(&public)),
            Err(Untrusted::Unsigned),
            "{text}"
        );
    }
    let long = format!("{}.b.c", "a".repeat(5_000));
    assert_eq!(verified(&long, std::slice::from_ref(&public)), Err(Untrusted::Unsigned));
}

#[test]
fn altered_character_breaks_signature() {
    let (token, public) = good();
    assert_eq!(verified(&token, std::slice::from_ref(&public)), Ok(()));
    for at in 0..token.len() {
        for by in [b'A', b'B', b'_', b'.', b'='] {
            let mut altered = token.clone().into_bytes();
            if altered[at] != by {
                altered[at] = by;
                assert!(
                    verify(&altered, COMMAND, std::slice::from_ref(&public)).is_err(),
                    "{at} {by}"
                );
            }
        }
        assert!(
            verify(&token.as_bytes()[..at], COMMAND, std::slice::from_ref(&public)).is_err(),
            "cut at {at}"
        );
    }
}

#[test]
fn claims_check_audience_and_lifetime() {
    let audiences = ["hq/door-1".to_owned(), "hq/all".to_owned()];
    let check = |iat: i64, exp: i64, aud: &str, now_ms: i64, expected: Result<(), Unfit>| {
        let text = claims(iat, exp, aud);
        let now = Stamp { wall_ms: now_ms, boottime_ms: 1, trusted: true };
        assert_eq!(
            Claims::read(text.as_bytes()).unwrap().check(&audiences, &now),
            expected,
            "{text} {now_ms}"
        );
    };
    let end = NOW_S + 300;
    let now = NOW_S * 1000;
    check(NOW_S, end, "hq/door-1", now, Ok(()));
    check(NOW_S, end, "hq/all", now, Ok(()));
    for other in ["hq/door-2", "hq2/door-1", "hq", "all", "", "hq/door-1/"] {
        check(NOW_S, end, other, now, Err(Unfit::Audience));
    }
    check(NOW_S, end, "hq/all", (end + SKEW_S) * 1000 - 1, Ok(()));
    check(NOW_S, end, "hq/all", (end + SKEW_S) * 1000, Err(Unfit::Late));
    check(NOW_S, end, "hq/all", (NOW_S - SKEW_S) * 1000, Ok(()));
    check(NOW_S, end, "hq/all", (NOW_S - SKEW_S) * 1000 - 1, Err(Unfit::Early));
    check(NOW_S, NOW_S + LIFETIME_MAX_S, "hq/all", now, Ok(()));
    check(NOW_S, NOW_S + LIFETIME_MAX_S + 1, "hq/all", now, Err(Unfit::Lifetime));
    check(NOW_S, NOW_S, "hq/all", now, Err(Unfit::Lifetime));
    check(i64::MIN, i64::MAX, "hq/all", now, Err(Unfit::Lifetime));
    check(i64::MAX - 1, i64::MAX, "hq/all", now, Err(Unfit::Early));
    let text = claims(NOW_S, end, "hq/all");
    let untrusted = Stamp { wall_ms: now, boottime_ms: 1, trusted: false };
    assert_eq!(
        Claims::read(text.as_bytes()).unwrap().check(&audiences, &untrusted),
        Err(Unfit::NoTime)
    );
}

#[test]
fn unknown_or_missing_claims_are_rejected() {
    let good = claims(NOW_S, NOW_S + 1, "hq/all");
    assert!(Claims::read(good.as_bytes()).is_ok());
    for bad in [
        good.replace(r#""jti":"j-1","#, ""),
        good.replace(r#""jti":"#, r#""nbf":1,"jti":"#),
        good.replace(r#""jti":"#, r#""jti":"j-0","jti":"#),
        good.replace(&NOW_S.to_string(), r#""soon""#),
        good.replace(&NOW_S.to_string(), "1.5"),
        good.replace(r#""hq/all""#, r#"["hq/all"]"#),
        "[]".into(),
        format!("{good}x"),
        format!(r#"{{"cmd":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000)),
    ] {
        assert!(Claims::read(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(200)]);
    }
}

proptest! {
    #[test]
    fn garbage_token_is_rejected_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (_, public) = good();
        prop_assert!(verify(&bytes, COMMAND, std::slice::from_ref(&public)).is_err());
        unchecked(&bytes);
        Claims::read(&bytes).ok();
    }

    #[test]
    fn any_altered_token_is_rejected(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (token, public) = good();
        let mut altered = token.clone().into_bytes();
        for (at, byte) in changes {
            let at = at.index(altered.len());
            altered[at] = byte;
        }
        // White space around it is none of the message.
        if altered.trim_ascii() != token.as_bytes() {
            prop_assert!(verify(&altered, COMMAND, std::slice::from_ref(&public)).is_err());
        }
    }
}
