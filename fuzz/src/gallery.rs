//! What carries people from one device to another: export files, and the records and pages of the
//! gallery that the doors of a site share.
//!
//! A fuzzer cannot forge a seal. So each way has two halves: the bytes as they come, and the same
//! bytes inside a seal that opens (docs/wire.md has the form of both).

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rollcall::app::fleet::wire;
use rollcall::ids::SubjectId;
use rollcall::keys::seal::SharedKey;
use rollcall::wire::export::{ExportError, ExportHeader, ExportReader};
use rollcall::wire::subject::Portable;
use sha2::{Digest as _, Sha256};

use crate::{choice, folder};

fn key() -> &'static SharedKey {
    static KEY: OnceLock<SharedKey> = OnceLock::new();
    KEY.get_or_init(|| SharedKey::create(&folder().join("shared")).expect("a key can be made"))
}

fn seal(plain: &[u8], belongs: &[u8]) -> Vec<u8> {
    key().seal(plain, belongs).expect("there are random numbers")
}

/// An export file, and one subject of a file whose frame is as it should be.
pub fn export(bytes: &[u8]) {
    let (first, rest) = choice(bytes);
    let file = if first % 2 == 0 { [b"ROLLCALL-GALLERY-1\n", rest].concat() } else { framed(rest) };
    let read = || -> Result<u64, ExportError> {
        let mut reader = ExportReader::begin(&file[..], key())?;
        let mut count = 0;
        while reader.subject()?.is_some() {
            count += 1;
        }
        Ok(count)
    };
    let found = read();
    let verified = ExportReader::begin(&file[..], key()).and_then(|it| it.verify(|_| ()));
    assert!(found.is_err() || verified.is_ok(), "what can be read can be verified");
}

/// A whole export file with one subject, of which only what is inside its seals is the fuzzer's.
fn framed(content: &[u8]) -> Vec<u8> {
    let header = ExportHeader::new("2026-11-23T07:58:03.412Z".into(), "hq", "door-1", 1, &[]);
    let belongs = |what: &[u8]| {
        let id = header.id.as_bytes();
        [b"rollcall export 1\0", what, b"\0", id, &0_u64.to_le_bytes()].concat()
    };
    let mut file = b"ROLLCALL-GALLERY-1\n".to_vec();
    let mut part = |kind: u8, bytes: &[u8]| {
        file.push(kind);
        file.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        file.extend_from_slice(bytes);
        hex(&Sha256::digest(&file))
    };
    let text = serde_json::to_vec(&header).expect("it is made of strings and numbers");
    part(b'H', &text);
    part(b'K', &seal(&Sha256::digest(&text), &belongs(b"key")));
    let inner = seal(content, b"rollcall subject 1\0export\0jane");
    let digest = part(b'S', &seal(&[b"\x04jane", &inner[..]].concat(), &belongs(b"subject")));
    let end = format!("{{\"subjects\":1,\"sha256\":\"{digest}\"}}");
    part(b'E', &seal(end.as_bytes(), &belongs(b"end")));
    file
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record or a page of the shared gallery.
pub fn gallery_record(bytes: &[u8]) {
    let (first, rest) = choice(bytes);
    let jane = SubjectId::new("jane").expect("it is an id");
    let page = wire::page_of(&jane);
    match first % 4 {
        0 => drop(wire::open_record(rest, key(), "hq", &jane)),
        1 => drop(wire::open_page(rest, page, key(), "hq")),
        2 => {
            let sealed = seal(rest, b"rollcall subject 1\0hq\0jane");
            if let Ok(portable) = Portable::open(&sealed, key(), "hq", &jane) {
                let again = portable.seal(key(), "hq").expect("there are random numbers");
                let again = Portable::open(&again, key(), "hq", &jane).expect("it was just sealed");
                assert_eq!(again, portable);
            }
        }
        _ => {
            let sealed = seal(rest, &[b"rollcall gallery page 1\0hq\0", &[page][..]].concat());
            let sealed = STANDARD.encode(sealed);
            let message = format!("{{\"schema\":1,\"sealed\":\"{sealed}\"}}");
            if let Ok(entries) = wire::open_page(message.as_bytes(), page, key(), "hq") {
                assert!(entries.keys().all(|id| wire::page_of(id) == page));
            }
        }
    }
}
