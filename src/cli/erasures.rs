//! `rollcall erasures` and `rollcall verify-receipt`: lists the erasures of this device, and checks
//! a receipt.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::app::open;
use crate::cli::table::{self, JsonArray};
use crate::clock::rfc3339;
use crate::config::Settings;
use crate::keys::jws::PublicKey;
use crate::keys::receipt::Receipt;
use crate::keys::signer::SigningKey;
use crate::store::{Left, Reader, StoredErasure};

/// Erasures read at a time.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall erasures --json")]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let reader = open::open_reader(settings)?;
    let has_mongo = settings.mongo.is_some();
    if args.json {
        let mut array = JsonArray::default();
        each_erasure(&reader, &mut |it| {
            array.print(&serde_json::json!({
                "subject_id": it.subject_id, "request_id": it.request_id, "asked_at": rfc3339(it.asked_ms),
                "references": it.references, "events": it.events, "receipt": it.receipt,
                "waits_for": waits_for(it, has_mongo),
                "reason": it.reason, "events_kept": it.events_kept,
            }));
        })?;
        array.end();
        return Ok(());
    }
    let row = |it: &StoredErasure| {
        let state =
            waits_for(it, has_mongo).map_or("complete".into(), |what| format!("waits for {what}"));
        let request_id = match (&it.request_id, it.reason) {
            (Some(request_id), _) => request_id.clone(),
            (None, Some(reason)) => reason.as_str().into(),
            (None, None) => "another door".into(),
        };
        let counts = [it.references.to_string(), it.events.to_string()];
        [
            vec![it.subject_id.to_string(), rfc3339(it.asked_ms), request_id],
            counts.to_vec(),
            vec![state],
        ]
        .concat()
    };
    let heading = ["subject", "asked at", "request", "templates", "events", "state"];
    let rows = |visit: &mut dyn FnMut(Vec<String>)| each_erasure(&reader, &mut |it| visit(row(it)));
    if table::print(&heading, &rows)? == 0 {
        print!("{}", table::render(&heading, &[]));
    }
    Ok(())
}

/// Shows all erasures, newest first.
fn each_erasure(reader: &Reader, visit: &mut dyn FnMut(&StoredErasure)) -> anyhow::Result<()> {
    let mut before = i64::MAX;
    loop {
        let page = reader.erasures(before, PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        before = last.row;
        page.iter().for_each(&mut *visit);
    }
}

/// Returns what the receipt is waiting for.
fn waits_for(it: &StoredErasure, has_mongo: bool) -> Option<&'static str> {
    if it.receipt.is_some() {
        return None;
    }
    Some(match it.left {
        Some(Left::Mongo) if !has_mongo => "MongoDB, which [mongo] no longer names",
        Some(Left::Mongo) => "MongoDB",
        Some(Left::Scrub) => "the database to be cleaned",
        None => "the daemon",
    })
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rollcall verify-receipt receipt.jws --key \"$(rollcall keys device)\""
)]
pub struct VerifyArgs {
    /// The public key of the device, `device_key` in its health [default: that of this device]
    #[arg(long, value_parser = |text: &str| PublicKey::parse(text).map_err(|e| e.to_string()))]
    key: Option<PublicKey>,
    /// The receipt as it was published: a file, or - for standard input
    #[arg(default_value = "-")]
    receipt: PathBuf,
}

pub fn verify(
    args: &VerifyArgs,
    settings: impl FnOnce() -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    let key = match &args.key {
        Some(key) => key.clone(),
        None => SigningKey::device_public(&settings()?.state_dir)?,
    };
    let mut token = Vec::new();
    if args.receipt == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut token)?;
    } else {
        token = std::fs::read(&args.receipt)
            .with_context(|| format!("cannot read {}", args.receipt.display()))?;
    }
    let receipt = Receipt::verify(&token, &key)?;
    println!("{}", serde_json::to_string_pretty(&receipt)?);
    eprintln!("valid: signed by {key}");
    Ok(())
}
