//! `rollcall verify`: checks a record against its chain and the signed checkpoint, wherever a copy of
//! it is.

mod export;
pub mod proof;
pub mod sources;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use crate::app::exit;
use crate::config::Settings;
use crate::ids::Origin;
use crate::keys::checkpoint::Checkpoint;
use crate::keys::jws::PublicKey;
use crate::keys::signer::SigningKey;
use crate::wire::chain::Place;
use crate::wire::chain_check::{self, Expected, Fault, FaultKind, Report, Row, Scope, Signed};

/// Checks that nobody altered the record: every event is linked to the one before by a hash, and the
/// device signs the newest
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rollcall verify\n  rollcall verify --mongo\n  \
                  mosquitto_sub -v -t 'rollcall/hq/door-1/#' >> door-1.jsonl\n  \
                  rollcall verify --jsonl door-1.jsonl --key ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\n  \
                  rollcall attendance --csv --proof november.proof > november.csv\n  \
                  rollcall verify --export november.csv --proof november.proof\n\n\
                  Exit codes: 0 intact, 65 not intact (the first fault is named)")]
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of a command line")]
pub struct Args {
    /// A state directory, or a copy of one [default: that of the configuration]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mongo", "jsonl"])]
    database: Option<PathBuf>,
    /// The attendance in MongoDB, of this device or of --device
    #[arg(long, conflicts_with = "jsonl")]
    mongo: bool,
    /// With --mongo: the device whose attendance is checked
    #[arg(long, value_name = "NAME", requires = "mongo")]
    device: Option<String>,
    /// Events as JSON, one in each line, as `mosquitto_sub` writes them (with or without -v)
    #[arg(long, value_name = "FILE")]
    jsonl: Option<PathBuf>,
    /// A CSV file of `rollcall attendance --csv` or of the page, compared with --proof or, without one,
    /// with the database; workbooks cannot be checked
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mongo", "jsonl"])]
    export: Option<PathBuf>,
    /// The proof that was written with the export
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mongo", "jsonl", "database"])]
    proof: Option<PathBuf>,
    /// A checkpoint that was kept elsewhere: the message `watermark`, or its field `checkpoint`
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The public key of the device, `device_key` in its health [default: that of this device]
    #[arg(long, value_parser = |text: &str| PublicKey::parse(text).map_err(|e| e.to_string()))]
    key: Option<PublicKey>,
    /// The event with which the copy begins, where it does not have all
    #[arg(long, value_name = "SEQ")]
    from: Option<i64>,
    /// With --jsonl: lines may be in any order, as after deliveries that were retried
    #[arg(long, requires = "jsonl")]
    any_order: bool,
    /// With --jsonl: the file has attendances and corrections only
    #[arg(long, requires = "jsonl")]
    only_attendance: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The record of one device, as it was found somewhere.
#[derive(Default)]
pub struct Found {
    pub rows: Vec<Row>,
    /// Checkpoints beside it, not yet verified.
    pub tokens: Vec<String>,
    pub set_apart: BTreeSet<i64>,
    /// What is wrong besides.
    pub faults: Vec<Fault>,
}

/// What a check is made with, besides the record.
struct Check<'a> {
    args: &'a Args,
    here: Origin,
    /// The public key of this device.
    own_key: Option<PublicKey>,
    given: Option<Checkpoint>,
    scope: Scope,
}

struct Checked {
    origin: Origin,
    report: Report,
    checkpoint: Option<Checkpoint>,
    /// Whether there are checkpoints that were not verified for want of a key.
    is_key_missing: bool,
}

pub fn run(args: &Args, settings: impl FnOnce() -> anyhow::Result<Settings>) -> anyhow::Result<()> {
    let settings = settings()?;
    let state_dir = args.database.as_deref().unwrap_or(&settings.state_dir);
    let own_key = SigningKey::device_public(state_dir).ok();
    let given = match &args.checkpoint {
        Some(path) => Some(read_checkpoint(path, args.key.as_ref().or(own_key.as_ref()))?),
        None => None,
    };
    let is_partial = args.mongo || args.only_attendance;
    let scope = if is_partial { Scope::Record } else { Scope::All };
    let here = Origin { site: settings.site.clone(), device: settings.device.clone() };
    let check = Check { args, here: here.clone(), own_key, given, scope };
    let (source, checked) = if let Some(path) = &args.jsonl {
        (path.display().to_string(), check.file(sources::lines(path, false)?))
    } else if let Some(path) = &args.proof {
        let export = args.export.as_deref().context("--proof belongs to an --export")?;
        let checked = check.file(sources::lines(path, true)?);
        (
            format!("{} with {}", export.display(), path.display()),
            export::with_proof(export, path, checked)?,
        )
    } else if args.mongo {
        let origin = args
            .device
            .clone()
            .map_or_else(|| here.clone(), |device| Origin { device, site: here.site.clone() });
        (
            format!("MongoDB, {}", origin.device),
            vec![check.of(sources::mongo(&settings, &origin)?, origin)],
        )
    } else {
        let (found, reader) = sources::database(state_dir)?;
        let mut checked = check.of(found, here);
        let mut source = state_dir.display().to_string();
        if let Some(export) = &args.export {
            export::with_database(export, &reader, &mut checked.report)?;
            source = format!("{} with {source}", export.display());
        }
        (source, vec![checked])
    };
    print(args, &source, &checked)?;
    conclude(&checked)
}

/// Reads a compact JWS, or the message that has it.
fn read_checkpoint(path: &Path, key: Option<&PublicKey>) -> anyhow::Result<Checkpoint> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut token = text.trim().to_owned();
    if let Some(at) = text.find('{') {
        let message: serde_json::Value = serde_json::from_str(text[at..].trim())
            .with_context(|| format!("{} is no checkpoint", path.display()))?;
        let found = message["checkpoint"].as_str();
        found
            .with_context(|| format!("{} has no checkpoint", path.display()))?
            .clone_into(&mut token);
    }
    let key =
        key.context("a checkpoint is checked with the device's public key: name it with --key")?;
    let checkpoint = Checkpoint::verify(token.as_bytes(), key);
    checkpoint.with_context(|| format!("{} cannot be used", path.display()))
}

impl Check<'_> {
    /// Checks each device of a file.
    fn file(&self, found: Vec<(Origin, Found)>) -> Vec<Checked> {
        let mut checked: Vec<Checked> =
            found.into_iter().map(|(origin, found)| self.of(found, origin)).collect();
        let signed = self.given.as_ref().map(origin_of);
        let missing = signed.filter(|it| checked.iter().all(|other| other.origin != *it));
        if let Some(origin) = missing.or_else(|| checked.is_empty().then(|| self.here.clone())) {
            // Nothing is left of the device that signed.
            checked.push(self.of(Found::default(), origin));
        }
        checked
    }

    fn of(&self, found: Found, origin: Origin) -> Checked {
        let own_key = self.own_key.as_ref().filter(|_| origin == self.here);
        let key = self.args.key.as_ref().or(own_key);
        let mut faults = found.faults;
        let given = self.given.iter().filter(|it| origin_of(it) == origin);
        let mut checkpoints: Vec<Checkpoint> = given.cloned().collect();
        for (token, key) in found.tokens.iter().filter_map(|it| Some((it, key?))) {
            match Checkpoint::verify(token.as_bytes(), key) {
                Ok(it) if origin_of(&it) == origin => checkpoints.push(it),
                _ => faults.push(Fault {
                    kind: FaultKind::Altered,
                    seq: None,
                    event_id: None,
                    what: "a checkpoint is not signed with the device's key".into(),
                }),
            }
        }
        checkpoints.sort_by_key(|it| (it.seq, it.deleted_through));
        let checkpoint = checkpoints.pop();
        let first_of_proof = found.rows.first().filter(|_| self.args.proof.is_some()).map(Row::seq);
        let expected = Expected {
            scope: self.scope,
            in_order: !self.args.any_order,
            from: self.args.from.or(first_of_proof),
            signed: checkpoint.as_ref().map(signed),
            signed_before: checkpoints.iter().map(signed).collect(),
            set_apart: found.set_apart,
        };
        let mut report = chain_check::check(found.rows, &expected);
        for fault in faults {
            report.add(fault);
        }
        let is_key_missing = key.is_none() && !found.tokens.is_empty();
        Checked { origin, report, checkpoint, is_key_missing }
    }
}

fn origin_of(checkpoint: &Checkpoint) -> Origin {
    Origin { site: checkpoint.site.clone(), device: checkpoint.device.clone() }
}

fn signed(checkpoint: &Checkpoint) -> Signed {
    Signed {
        newest: Place { seq: checkpoint.seq, hash: checkpoint.hash },
        record: checkpoint.record,
        began: checkpoint.began(),
        deleted_through: checkpoint.deleted_through,
    }
}

fn print(args: &Args, source: &str, checked: &[Checked]) -> anyhow::Result<()> {
    if args.json {
        let mut records = Vec::new();
        for it in checked {
            let mut record = serde_json::to_value(&it.report)?;
            record["site"] = it.origin.site.as_str().into();
            record["device"] = it.origin.device.as_str().into();
            record["intact"] = it.report.is_intact().into();
            record["checkpoint"] = serde_json::to_value(&it.checkpoint)?;
            records.push(record);
        }
        let intact = checked.iter().all(|it| it.report.is_intact());
        println!("{}", serde_json::json!({"source": source, "intact": intact, "records": records}));
        return Ok(());
    }
    println!("{source}");
    checked.iter().for_each(print_record);
    Ok(())
}

fn print_record(checked: &Checked) {
    let Checked { origin, report, checkpoint, is_key_missing } = checked;
    let Origin { site, device } = origin;
    let range = report.from.zip(report.to);
    let range = range.map_or_else(String::new, |(from, to)| format!(", {from} to {to}"));
    println!("{site}/{device}: {} events checked{range}", report.checked);
    match checkpoint {
        Some(it) => println!("  signed up to event {} ({})", it.seq, it.at),
        None if *is_key_missing => {
            println!("  the checkpoint was not checked: name the device's public key with --key");
        }
        None => println!("  no checkpoint: what is cut off at the end is not found (--checkpoint)"),
    }
    let notes = [
        (report.unsigned, "later events are not signed yet"),
        (report.not_covered, "events are from before the chain, and are not checked"),
        (report.erased, "events are of people who were erased"),
        (report.links_only, "events are there by their hash only"),
        (report.breaks.len() as u64, "times the device began the chain again after damage"),
    ];
    for (count, what) in notes.into_iter().filter(|it| it.0 > 0) {
        println!("  {count} {what}");
    }
    match &report.first_fault {
        None => println!("  intact"),
        Some(fault) => {
            println!("  NOT INTACT: {} fault(s); the first: {}", report.faults, describe(fault));
        }
    }
}

fn describe(fault: &Fault) -> String {
    let seq = fault.seq.map_or_else(String::new, |it| format!(" event {it}"));
    let id = fault.event_id.as_deref().map_or_else(String::new, |it| format!(" ({it})"));
    format!("{}{seq}{id}: {}", fault.kind.as_str(), fault.what)
}

fn conclude(checked: &[Checked]) -> anyhow::Result<()> {
    if let Some(fault) = checked.iter().find_map(|it| it.report.first_fault.as_ref()) {
        return Err(exit::record(anyhow!(describe(fault))));
    }
    if checked.iter().all(|it| it.report.checked == 0 && it.checkpoint.is_none()) {
        bail!("there is no event with a link, so nothing could be checked");
    }
    Ok(())
}
