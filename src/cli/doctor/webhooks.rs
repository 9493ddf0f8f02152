//! The receivers of webhooks: whether they can be connected to, and what the daemon found out.

use serde_json::Value;
use tokio::runtime::Builder;

use crate::app::links::webhook_tls;
use crate::cli::doctor::Installation;
use crate::cli::doctor::finding::{CheckResult, CheckState};
use crate::error_chain::error_chain;
use crate::webhook::{self, ProbeFault, WebhookSettings};

const UNDELIVERED: &str = "attendance is recorded here; what is pending for the receiver waits on this device's disk and is \
                           delivered later";

/// Checks each webhook; the worst result is that of all.
pub fn check_webhooks(installation: &Installation) -> CheckResult {
    let settings = &installation.settings;
    if settings.webhooks.is_empty() {
        return CheckResult::good("none configured ([[webhook]])");
    }
    let results: Vec<CheckResult> =
        settings.webhooks.iter().map(|it| check_webhook(installation, it)).collect();
    if let Some(worst) = [CheckState::Fault, CheckState::Warning]
        .iter()
        .find_map(|state| results.iter().find(|it| it.state == *state))
    {
        return worst.clone();
    }
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[[webhook]]")) {
        return CheckResult::warning(
            warning.clone(),
            "the receiver cannot know that an event is of this door",
            "set secret_file, and check the signature there (docs/webhook.md)",
        );
    }
    CheckResult::good(results.into_iter().map(|it| it.words).collect::<Vec<_>>().join("; "))
}

fn check_webhook(
    installation: &Installation,
    webhook: &std::sync::Arc<WebhookSettings>,
) -> CheckResult {
    let name = &webhook.name;
    // A probe sends nothing, so that only the daemon knows what becomes of what is sent.
    if let Some(reason) = refused(installation, name) {
        return CheckResult::fault(
            format!("{name}: {reason}"),
            UNDELIVERED,
            "correct what the receiver names, on its side or in [[webhook]] (docs/webhook.md)",
        );
    }
    let tls = match webhook_tls(webhook) {
        Ok(tls) => tls,
        Err(error) => {
            return CheckResult::fault(
                format!("{name}: {}", error_chain(&error)),
                "the daemon does not start",
                "correct [[webhook]] ca_file, or install ca-certificates",
            );
        }
    };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return CheckResult::fault(
                format!("cannot start the runtime: {error}"),
                UNDELIVERED,
                "restart the device",
            );
        }
    };
    let outcome = runtime.block_on(webhook::probe(webhook.clone(), tls));
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => CheckResult::good(format!("{name}: {} can be reached", webhook.url.host())),
        Err(fault) => explain_fault(name, &fault),
    }
}

/// Returns why the receiver refuses what the daemon sends, if it does.
fn refused(installation: &Installation, name: &str) -> Option<String> {
    let webhooks = installation.health_value("/webhooks").and_then(Value::as_array)?;
    let webhook = webhooks.iter().find(|it| it["name"] == name && it["state"] == "refused")?;
    webhook["reason"].as_str().map(str::to_owned)
}

fn explain_fault(name: &str, fault: &ProbeFault) -> CheckResult {
    let is_broken =
        |remedy: &str| CheckResult::fault(format!("{name}: {fault}"), UNDELIVERED, remedy);
    let is_away =
        |remedy: &str| CheckResult::warning(format!("{name}: {fault}"), UNDELIVERED, remedy);
    match fault {
        ProbeFault::Dns { .. } => is_broken(
            "check the host in [[webhook]] url for a typing mistake, the network cable, and the name server (`getent hosts`)",
        ),
        ProbeFault::Forbidden { .. } => is_broken(
            "if the receiver is in your own network, set allow_private = true; otherwise whoever runs its name server must \
             correct the address",
        ),
        ProbeFault::Certificate(_) => is_broken(
            "the host in [[webhook]] url must be the name in the receiver's certificate, and ca_file the authority that signed \
             it; an expired one must be renewed there; if the time is wrong here, see \"clock\"",
        ),
        ProbeFault::Tls(_) => {
            is_broken("check scheme and port of [[webhook]] url: is it a server with https?")
        }
        ProbeFault::Unreachable { .. }
        | ProbeFault::Timeout { .. }
        | ProbeFault::Cut(_)
        | ProbeFault::NotHttp(_) => {
            is_away("is the receiver running, is the network up, is a firewall in between?")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_faults_have_their_remedies() {
        let host = || "h".to_owned();
        let address = "192.0.2.1:443".parse::<std::net::SocketAddr>().unwrap();
        for (fault, state, part) in [
            (ProbeFault::Dns { host: host(), detail: host() }, CheckState::Fault, "typing"),
            (
                ProbeFault::Forbidden { host: host(), address: address.ip() },
                CheckState::Fault,
                "allow_private",
            ),
            (ProbeFault::Certificate(host()), CheckState::Fault, "ca_file"),
            (ProbeFault::Tls(host()), CheckState::Fault, "https"),
            (ProbeFault::Unreachable { address, detail: host() }, CheckState::Warning, "firewall"),
            (ProbeFault::Cut(host()), CheckState::Warning, "firewall"),
        ] {
            let result = explain_fault("hr", &fault);
            assert!(result.state == state && result.remedy.contains(part), "{fault:?}: {result:?}");
        }
    }
}
