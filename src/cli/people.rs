//! `rollcall enrol`, `withdraw`, `rename` and `subjects`: changes and lists who is enrolled.

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::ensure;
use base64::Engine as _;

use crate::app::open;
use crate::cli::command;
use crate::cli::consent::ConsentArgs;
use crate::cli::photograph;
use crate::cli::table::{self, JsonArray};
use crate::clock::{Clock as _, SystemClock, rfc3339};
use crate::config::Settings;
use crate::ids::{Name, SubjectId};
use crate::store::{Reader, Recognisable, Subject};
use crate::vision;
use crate::wire::consent::Consent;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rollcall enrol --id jdoe --name 'Jane Doe' jane1.jpg jane2.jpg"
)]
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
    /// Replace the person's references (face samples made from photos) by the new ones
    #[arg(long)]
    replace: bool,
    /// Enrol even if the face belongs to another subject already
    #[arg(long)]
    allow_duplicate: bool,
    #[command(flatten)]
    consent: ConsentArgs,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

pub fn enrol(args: &EnrolArgs, settings: &Settings) -> anyhow::Result<()> {
    let most = settings.commands.images_max;
    ensure!(args.images.len() <= most, "{} images; at most {most} at a time", args.images.len());
    let images: Vec<String> = read_photographs(&args.images, settings)?
        .iter()
        .map(|it| base64::engine::general_purpose::STANDARD.encode(it))
        .collect();
    let name = args.name.as_ref().map_or(args.id.as_str(), Name::as_str);
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    let body = serde_json::json!({
        "subject": {"id": args.id, "name": name},
        "images": images,
        "replace": args.replace, "allow_duplicate": args.allow_duplicate,
        "consent": args.consent.consent(now_ms)?,
    });
    let reply = command::reply_to(settings, "enrol", body)?;
    let outcomes = reply["images"].as_array().cloned().unwrap_or_default();
    if args.json {
        println!("{reply}");
    } else {
        for (path, outcome) in args.images.iter().zip(outcomes) {
            println!("{}: {}", path.display(), outcome["reason"].as_str().unwrap_or("accepted"));
        }
    }
    ensure!(
        reply["ok"] == true,
        "{}",
        reply["error"]["message"].as_str().unwrap_or("rejected without a reason")
    );
    if !args.json {
        println!("{} has {} references (face samples) now", args.id, reply["references"]);
        if reply["weak"] == true {
            println!("even the best photo shows little of the face: add a clearer one");
        } else if reply["references"] == 1 {
            println!("one photo: recognised less surely; a different one helps most");
        }
    }
    Ok(())
}

/// Reads photographs and makes them small enough for one command, whether or not one is sent.
fn read_photographs(paths: &[PathBuf], settings: &Settings) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut photographs = Vec::with_capacity(paths.len());
    for path in paths {
        let unusable = |why| anyhow::anyhow!("{} cannot be used: {why}", path.display());
        photographs.push(photograph::read_file(path).map_err(unusable)?);
    }
    let mut limits = photograph::command_limits(settings);
    let room = photograph::room(settings);
    if photographs.iter().map(Vec::len).sum::<usize>() > room {
        limits.bytes = limits.bytes.min(room / paths.len().max(1));
    }
    for (path, photograph) in paths.iter().zip(&mut photographs) {
        match photograph::prepare(photograph, limits) {
            Ok(Cow::Borrowed(_)) => {}
            Ok(Cow::Owned(smaller)) => *photograph = smaller,
            // Judged as it is: the judgement has the reason, and the others are used.
            Err(_) if photograph.len() <= limits.bytes => {}
            Err(error) => anyhow::bail!("{} cannot be used: {error}", path.display()),
        }
    }
    Ok(photographs)
}

/// Removes a person from the gallery, or erases all that is stored of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rollcall withdraw jdoe\n  rollcall withdraw jdoe --erase")]
pub struct WithdrawArgs {
    /// The subject's id, as `rollcall subjects` lists it
    #[arg(value_parser = |id: &str| SubjectId::new(id).map_err(|e| e.to_string()))]
    id: SubjectId,
    /// Erase the person from attendance, replies and MongoDB too; a receipt follows
    /// (`rollcall erasures`)
    #[arg(long)]
    erase: bool,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

pub fn withdraw(args: &WithdrawArgs, settings: &Settings) -> anyhow::Result<()> {
    let body = serde_json::json!({"subject_id": args.id, "erase": args.erase});
    let reply = command::execute(settings, "withdraw", body)?;
    if args.json {
        println!("{reply}");
    } else if args.erase {
        println!("{} is erased, from {} events too", args.id, reply["events"]);
    } else {
        println!("{} is removed, with {} face samples", args.id, reply["references"]);
    }
    Ok(())
}

/// Gives a person another name.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall rename jdoe 'Jane Smith'")]
pub struct RenameArgs {
    /// The subject's id, as `rollcall subjects` lists it
    #[arg(value_parser = |id: &str| SubjectId::new(id).map_err(|e| e.to_string()))]
    id: SubjectId,
    #[arg(value_parser = |name: &str| Name::new(name).map_err(|e| e.to_string()))]
    name: Name,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

pub fn rename(args: &RenameArgs, settings: &Settings) -> anyhow::Result<()> {
    let body = serde_json::json!({"subject_id": args.id, "name": args.name});
    let reply = command::execute(settings, "rename", body)?;
    if args.json {
        println!("{reply}");
    } else {
        println!("{} is called {} now", args.id, args.name.as_str());
    }
    Ok(())
}

/// People read at a time.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall subjects --outdated")]
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of a command line")]
pub struct SubjectsArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Only people whom the model in use does not recognise: enrol them again from new photos
    #[arg(long)]
    outdated: bool,
    /// Only people who have no photo for the second part of the model in use, and so are recognised
    /// less surely: send their photos again
    #[arg(long, conflicts_with = "outdated")]
    partial: bool,
    /// Only people whose consent ends within 30 days, or has ended
    #[arg(long)]
    consent_ending: bool,
    /// Only people without a recorded consent
    #[arg(long, conflicts_with = "consent_ending")]
    without_consent: bool,
}

pub fn subjects(args: &SubjectsArgs, settings: &Settings) -> anyhow::Result<()> {
    let reader = open::open_reader(settings)?;
    let embedder = vision::embedder(&settings.vision)?;
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    let each = |visit: &mut dyn FnMut(&Subject, Recognisable)| {
        each_subject(&reader, &mut |subject| {
            let recognition = reader.recognition_of(&subject.id, &embedder)?;
            let is_recognisable = recognition != Recognisable::No;
            let consent = subject.consent.as_ref();
            let is_ending = consent.is_some_and(|it| it.is_ending(now_ms));
            let is_unwanted = (args.outdated && is_recognisable)
                || (args.partial && recognition != Recognisable::ByFirstPart)
                || (args.without_consent && consent.is_some())
                || (args.consent_ending && !is_ending);
            if !is_unwanted {
                visit(subject, recognition);
            }
            Ok(())
        })
    };
    if args.json {
        let mut array = JsonArray::default();
        each(&mut |subject, recognition| {
            array.print(&serde_json::json!({
                "id": subject.id, "name": subject.name, "references": subject.references,
                "enrolled_at": rfc3339(subject.enrolled_ms),
                "model_digest": subject.embedder.map(|digest| digest.to_string()),
                "recognisable": recognition != Recognisable::No,
                "partial": recognition == Recognisable::ByFirstPart,
                "consent": subject.consent,
            }));
        })?;
        array.end();
        return Ok(());
    }
    let rows = |visit: &mut dyn FnMut(Vec<String>)| {
        each(&mut |subject, recognition| {
            let recognised = match recognition {
                Recognisable::No => "no",
                Recognisable::ByFirstPart => "in part",
                Recognisable::Wholly => "yes",
            };
            visit(vec![
                subject.id.to_string(),
                subject.name.as_str().to_owned(),
                match subject.references {
                    1 => "1 (one photo: less sure)".into(),
                    more => more.to_string(),
                },
                recognised.into(),
                rfc3339(subject.enrolled_ms),
                consent_text(subject.consent.as_ref(), now_ms),
            ]);
        })
    };
    let heading = ["id", "name", "references", "recognised", "enrolled_at", "consent"];
    let count = table::print(&heading, &rows)?;
    if count == 0 && args.consent_ending {
        println!("no consent ends within 30 days");
    } else if count == 0 && args.without_consent {
        println!("everybody who is enrolled has a recorded consent");
    } else if count == 0 && args.partial {
        println!("nobody is recognised by a part of the model in use alone");
    } else if count == 0 && args.outdated {
        println!("the model in use recognises everybody who is enrolled");
    } else if count == 0 {
        println!(
            "nobody is enrolled yet: `rollcall enrol --id ID --name NAME PHOTO…`, or the MQTT command `enrol`"
        );
    }
    Ok(())
}

/// Which text, until when, and whether that is soon.
fn consent_text(consent: Option<&Consent>, now_ms: i64) -> String {
    let Some(consent) = consent else { return "-".into() };
    let version = consent.text_version();
    match consent.valid_until_ms() {
        None => version.to_owned(),
        Some(until_ms) if consent.has_ended(now_ms) => {
            format!("{version}, ended {}", rfc3339(until_ms))
        }
        Some(until_ms) if consent.is_ending(now_ms) => {
            format!("{version}, ends {}", rfc3339(until_ms))
        }
        Some(until_ms) => format!("{version}, until {}", rfc3339(until_ms)),
    }
}

/// Shows everybody who is enrolled, by id.
fn each_subject(
    reader: &Reader,
    visit: &mut dyn FnMut(&Subject) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after: Option<SubjectId> = None;
    loop {
        let page = reader.subjects(after.as_ref(), PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id.clone());
        page.iter().try_for_each(&mut *visit)?;
    }
}
