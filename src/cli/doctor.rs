//! `rollcall doctor`: looks at everything the daemon needs, and says what is wrong, what that means and what to do. Changes
//! nothing.

pub mod camera;
pub mod finding;
pub mod links;
pub mod machine;
pub mod program;
pub mod storage;

use std::io::BufRead as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::app::watch::Question;
use crate::cli::doctor::finding::{Finding, State, Verdict};
use crate::cli::watch;
use crate::config::Settings;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What is looked at, and what the daemon that runs here says of itself.
pub struct Place {
    pub settings: Settings,
    /// Whether a daemon answers here.
    pub answers: bool,
    /// Its health message (docs/wire.md), as it goes to the broker.
    health: Value,
}

impl Place {
    /// Where no daemon is asked.
    pub fn quiet(settings: Settings) -> Self {
        Self { settings, answers: false, health: Value::Null }
    }

    pub fn new(settings: Settings) -> Self {
        let health = ask_health(&settings);
        Self { settings, answers: health.is_some(), health: health.unwrap_or(Value::Null) }
    }

    /// A part of the health message, by JSON pointer.
    fn told(&self, pointer: &str) -> Option<&Value> {
        self.health.pointer(pointer)
    }
}

/// A daemon that hangs is no reason to hang too.
const PATIENCE: Duration = Duration::from_secs(5);

fn ask_health(settings: &Settings) -> Option<Value> {
    let mut answer = watch::ask(settings, Question::Health).ok()?;
    answer.get_ref().set_read_timeout(Some(PATIENCE)).ok()?;
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    // Of a daemon that does not know the question it is known at least that it runs.
    Some(serde_json::from_str(&line).unwrap_or(Value::Null))
}

pub fn run(args: &Args, path: Option<&Path>) -> anyhow::Result<()> {
    let findings = match super::load(path) {
        Ok(settings) => {
            let place = Place::new(settings);
            let configuration =
                Finding { part: "configuration", verdict: program::configuration(path, &place) };
            let card = program::card(&place).map(|verdict| Finding { part: "card", verdict });
            std::iter::once(configuration).chain(card).chain(look(&place)).collect()
        }
        Err(error) => vec![Finding { part: "configuration", verdict: program::unusable(&error) }],
    };
    let faults = findings.iter().filter(|finding| finding.verdict.state == State::Fault).count();
    if args.json {
        println!("{}", serde_json::json!({"good": faults == 0, "findings": findings}));
    } else {
        for finding in &findings {
            print!("{}", finding.text());
        }
    }
    anyhow::ensure!(faults == 0, "{faults} of {} checks found a fault", findings.len());
    Ok(())
}

fn look(place: &Place) -> Vec<Finding> {
    type Check = fn(&Place) -> Verdict;
    let checks: [(&'static str, Check); 14] = [
        ("service", program::service),
        ("networks", program::networks),
        ("library", program::library),
        ("camera", camera::check),
        ("storage", storage::storage),
        ("people", storage::people),
        ("disk", storage::disk),
        ("broker", links::broker),
        ("mongodb", links::mongodb),
        ("fleet", links::fleet),
        ("http", links::http),
        ("clock", machine::clock),
        ("processor", machine::processor),
        ("power", machine::power),
    ];
    checks.into_iter().map(|(part, check)| Finding { part, verdict: check(place) }).collect()
}
