//! `rollcall erasures` and `rollcall verify-receipt`: who was erased here, and is it true?

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::app;
use crate::cli::table;
use crate::clock::rfc3339;
use crate::config::Settings;
use crate::record::authority::PublicKey;
use crate::record::receipt::Receipt;
use crate::record::signer::SigningKey;
use crate::record::store::{Left, StoredErasure};

/// More than anybody asks to be erased at one door.
const LISTED_MAX: u32 = 100_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let erasures = app::open_reader(settings)?.erasures(LISTED_MAX)?;
    let has_mongo = settings.mongo.is_some();
    if args.json {
        let entry = |it: &StoredErasure| {
            serde_json::json!({
                "subject_id": it.subject_id, "request_id": it.request_id, "asked_at": rfc3339(it.asked_ms),
                "references": it.references, "events": it.events, "receipt": it.receipt,
                "waits_for": waits_for(it, has_mongo),
            })
        };
        println!("{}", erasures.iter().map(entry).collect::<serde_json::Value>());
        return Ok(());
    }
    let row = |it: &StoredErasure| {
        let state =
            waits_for(it, has_mongo).map_or("complete".into(), |what| format!("waits for {what}"));
        let request_id = it.request_id.clone().unwrap_or_else(|| "another door".into());
        let counts = [it.references.to_string(), it.events.to_string()];
        [
            vec![it.subject_id.to_string(), rfc3339(it.asked_ms), request_id],
            counts.to_vec(),
            vec![state],
        ]
        .concat()
    };
    let rows: Vec<_> = erasures.iter().map(row).collect();
    print!(
        "{}",
        table::render(&["subject", "asked at", "request", "templates", "events", "state"], &rows)
    );
    Ok(())
}

/// What keeps the receipt from being made.
fn waits_for(it: &StoredErasure, has_mongo: bool) -> Option<&'static str> {
    if it.receipt.is_some() {
        return None;
    }
    Some(match it.left {
        Some(Left::Mongo) if !has_mongo => "MongoDB, which [mongo] does not name any more",
        Some(Left::Mongo) => "MongoDB",
        Some(Left::Scrub) => "the database, which is to be written anew",
        None => "the daemon",
    })
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The device's public key, `device_key` in its health [default: that of this device]
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
    eprintln!("good: signed by {key}");
    Ok(())
}
