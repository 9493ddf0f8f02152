//! `rollcall enrol` and `rollcall subjects`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;

use crate::app;
use crate::app::commander::carry_out::{NewEnrolment, reason_text, unfit};
use crate::cli::console::with_console;
use crate::cli::table;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::enrol::{self, Judged, Judgement};
use crate::recognise::engine::FaceEngine;
use crate::recognise::face::{Name, SubjectId};
use crate::recognise::gallery::Gallery;
use crate::record::store::{Store, StoreError, Subject};
use crate::vision;

#[derive(Debug, clap::Args)]
pub struct EnrolArgs {
    /// The subject's id: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, value_parser = |id: &str| SubjectId::new(id).map_err(|e| e.to_string()))]
    id: SubjectId,
    /// The person's name [default: the id]
    #[arg(long, value_parser = |name: &str| Name::new(name).map_err(|e| e.to_string()))]
    name: Option<Name>,
    /// Photographs of this person alone: JPEG, PNG or WebP
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The new references take the place of the old ones
    #[arg(long)]
    replace: bool,
    /// Enrol even if the face is already another subject's
    #[arg(long)]
    allow_duplicate: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// The daemon answers within this time, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn enrol(args: &EnrolArgs, settings: &Settings) -> anyhow::Result<()> {
    let most = settings.commands.images_max;
    ensure!(args.images.len() <= most, "{} images; at most {most} at a time", args.images.len());
    let mut photographs = Vec::new();
    for path in &args.images {
        photographs
            .push(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    match Store::open(&settings.state_dir, app::store_options(settings, &clock)) {
        Ok(opened) => enrol_here(args, settings, &opened.store, clock.as_ref(), &photographs),
        Err(StoreError::Locked { .. }) => enrol_by_mqtt(args, settings, &photographs),
        Err(error) => Err(app::storage(error)),
    }
}

/// The daemon runs: it is asked.
fn enrol_by_mqtt(
    args: &EnrolArgs,
    settings: &Settings,
    photographs: &[Vec<u8>],
) -> anyhow::Result<()> {
    let encode =
        |photograph: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(photograph);
    let name = args.name.as_ref().map_or(args.id.as_str(), Name::as_str);
    let body = serde_json::json!({
        "subject": {"id": args.id, "name": name},
        "images": photographs.iter().map(encode).collect::<Vec<_>>(),
        "replace": args.replace, "allow_duplicate": args.allow_duplicate,
    });
    let answer = with_console(settings, &["reply/+"], async |console| {
        console.request("enrol", body, PATIENCE).await
    })
    .context("the daemon is running, so the enrolment goes to it by MQTT")?;
    if args.json {
        println!("{answer}");
    }
    if answer["ok"] != true {
        bail!("{}", answer["error"]["message"].as_str().unwrap_or("refused without a reason"));
    }
    if !args.json {
        let verdicts = answer["images"].as_array().cloned().unwrap_or_default();
        for (path, verdict) in args.images.iter().zip(verdicts) {
            println!("{}: {}", path.display(), verdict["reason"].as_str().unwrap_or("accepted"));
        }
        println!("{} has {} references now", args.id, answer["references"]);
    }
    Ok(())
}

/// No daemon: the work is done here, with the same judgement and the same record.
fn enrol_here(
    args: &EnrolArgs,
    settings: &Settings,
    store: &Store,
    clock: &dyn Clock,
    photographs: &[Vec<u8>],
) -> anyhow::Result<()> {
    let mut vision = app::load_vision(settings)?;
    let gallery: Gallery = app::load_gallery(store, &vision)?;
    let rules = settings.recognition.enrol(&vision.template_spec());
    let photographs = photographs.iter().map(Vec::as_slice);
    let judgement =
        enrol::judge(&mut vision, &gallery, &args.id, args.replace, photographs, &rules)?;
    show_verdicts(args, &judgement);
    if let Some((_, why)) = unfit(&judgement, args.allow_duplicate) {
        bail!("{why}");
    }
    let name = args.name.clone().map_or_else(|| Name::new(args.id.as_str()), Ok)?;
    let enrolment = NewEnrolment::new(
        args.id.clone(),
        name,
        args.replace,
        &judgement,
        vision.embedder(),
        clock.now(),
    );
    let references = store.write(move |tx| enrolment.store(tx, None))?.references;
    store.close()?;
    if args.json {
        let accepted = judgement.accepted().count();
        println!(
            "{}",
            serde_json::json!({"ok": true, "subject_id": args.id, "references": references, "accepted": accepted})
        );
    } else {
        println!("{} has {references} references now", args.id);
    }
    Ok(())
}

fn show_verdicts(args: &EnrolArgs, judgement: &Judgement) {
    if args.json {
        return;
    }
    for (path, judged) in args.images.iter().zip(&judgement.photographs) {
        let warning = if matches!(judged, Judged::Accepted { .. }) { "" } else { " (not used)" };
        println!("{}: {}{warning}", path.display(), reason_text(judged));
    }
}

#[derive(Debug, clap::Args)]
pub struct SubjectsArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
    /// Only those whom the network in use does not recognise: photograph them again
    #[arg(long)]
    outdated: bool,
}

pub fn subjects(args: &SubjectsArgs, settings: &Settings) -> anyhow::Result<()> {
    let reader = app::open_reader(settings)?;
    let mut subjects: Vec<Subject> = Vec::new();
    loop {
        let page = reader.subjects(subjects.last().map(|subject| &subject.id), 500)?;
        if page.is_empty() {
            break;
        }
        subjects.extend(page);
    }
    let embedder = vision::embedder_digest(&settings.vision)?;
    let mut recognisable = HashSet::new();
    for subject in &subjects {
        if reader.is_recognisable(&subject.id, &embedder)? {
            recognisable.insert(subject.id.clone());
        }
    }
    if args.outdated {
        subjects.retain(|it| !recognisable.contains(&it.id));
    }
    if args.json {
        let entry = |subject: &Subject| {
            serde_json::json!({
                "id": subject.id, "name": subject.name, "references": subject.references,
                "enrolled_at": rfc3339(subject.enrolled_ms),
                "model_digest": subject.embedder.map(|digest| digest.to_string()),
                "recognisable": recognisable.contains(&subject.id),
            })
        };
        println!("{}", subjects.iter().map(entry).collect::<serde_json::Value>());
    } else if subjects.is_empty() && args.outdated {
        println!("everybody who is enrolled is recognised by the network in use");
    } else if subjects.is_empty() {
        println!(
            "nobody is enrolled yet: `rollcall enrol --id ID --name NAME PHOTO…`, or the MQTT command `enrol`"
        );
    } else {
        let row = |subject: &Subject| {
            let (id, name) = (subject.id.to_string(), subject.name.as_str().to_owned());
            let recognised = if recognisable.contains(&subject.id) { "yes" } else { "no" };
            vec![
                id,
                name,
                subject.references.to_string(),
                recognised.into(),
                rfc3339(subject.enrolled_ms),
            ]
        };
        let rows: Vec<_> = subjects.iter().map(row).collect();
        print!(
            "{}",
            table::render(&["id", "name", "references", "recognised", "enrolled_at"], &rows)
        );
    }
    Ok(())
}
