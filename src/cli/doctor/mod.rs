//! `rollcall doctor`: checks everything the daemon needs, and reports what is wrong, what that
//! means and what to do. It changes nothing without `--repair`.

pub mod camera;
pub mod finding;
pub mod links;
pub mod machine;
pub mod program;
mod repair;
pub mod storage;
pub mod webhooks;

use std::path::Path;

use serde_json::Value;

use crate::cli::doctor::finding::{CheckResult, CheckState, Finding};
use crate::cli::watch;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Settings;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo rollcall doctor")]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// List the rows of the database that cannot be read and, when confirmed, accept their loss;
    /// only while the daemon is stopped
    #[arg(long, conflicts_with = "json")]
    repair: bool,
    /// With --repair: do not ask
    #[arg(long, requires = "repair")]
    yes: bool,
}

/// What is checked: the settings, and the daemon that runs here, if one does.
pub struct Installation {
    pub settings: Settings,
    pub is_running: bool,
    /// The health message of the daemon (docs/wire.md), as it is published.
    health: Value,
}

impl Installation {
    pub fn new(settings: Settings) -> Self {
        let health = watch::request_health(&settings);
        Self { settings, is_running: health.is_some(), health: health.unwrap_or(Value::Null) }
    }

    /// Returns a part of the health message, by JSON pointer.
    fn health_value(&self, pointer: &str) -> Option<&Value> {
        self.health.pointer(pointer)
    }
}

pub fn run(args: &Args, path: Option<&Path>) -> anyhow::Result<()> {
    if args.repair {
        return repair::run(&crate::cli::settings::load(path)?, args.yes);
    }
    let findings = match crate::cli::settings::load(path) {
        Ok(settings) => {
            let installation = Installation::new(settings);
            let configuration = program::check_configuration(path, &installation.settings);
            let configuration = Finding { part: "configuration", result: configuration };
            let card = program::check_card().map(|result| Finding { part: "card", result });
            std::iter::once(configuration).chain(card).chain(run_checks(&installation)).collect()
        }
        Err(error) => {
            vec![Finding { part: "configuration", result: program::explain_config_error(&error) }]
        }
    };
    let faults =
        findings.iter().filter(|finding| finding.result.state == CheckState::Fault).count();
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

fn run_checks(installation: &Installation) -> Vec<Finding> {
    let settings = &installation.settings;
    let checks: [(&'static str, &dyn Fn() -> CheckResult); 16] = [
        ("service", &|| program::check_service(installation)),
        ("networks", &|| program::check_models(&settings.vision)),
        ("library", &|| program::check_library(&settings.vision)),
        ("camera", &|| camera::check_camera(installation)),
        ("storage", &|| storage::check_storage(&settings.state_dir)),
        ("people", &|| storage::check_people(settings)),
        ("consents", &|| check_consents(settings)),
        ("disk", &|| storage::check_disk(&settings.state_dir)),
        ("broker", &|| links::check_link(installation)),
        ("mongodb", &|| links::check_mongodb(settings)),
        ("webhooks", &|| webhooks::check_webhooks(installation)),
        ("fleet", &|| links::check_fleet(installation)),
        ("http", &|| links::check_http(settings, installation.is_running)),
        ("clock", &|| machine::check_clock(settings)),
        ("processor", &|| machine::check_processor(installation)),
        ("power", &machine::check_power),
    ];
    checks.into_iter().map(|(part, check)| Finding { part, result: check() }).collect()
}

fn check_consents(settings: &Settings) -> CheckResult {
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    storage::check_consents(settings, now_ms)
}
