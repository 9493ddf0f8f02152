//! Commands of the command line: through the running daemon by its socket in the state directory, or
//! in this process where no daemon runs. Either way the same handlers execute them, and a broker is
//! needed by neither.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use uuid::Uuid;

use crate::app;
use crate::app::exit;
use crate::app::open;
use crate::app::preview_socket::{PreviewRejection, PreviewRequest};
use crate::cli::watch;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::store::{Store, StoreError};
use crate::wire::command::{self, Limits, Received};

/// The daemon replies within this time, or something is wrong with it.
const PATIENCE: Duration = Duration::from_mins(3);

/// Executes a command and returns its reply; a rejection is an error with its message.
pub fn execute(settings: &Settings, verb: &str, body: Value) -> anyhow::Result<Value> {
    let reply = reply_to(settings, verb, body)?;
    if reply["ok"] == true {
        return Ok(reply);
    }
    bail!("{}", reply["error"]["message"].as_str().unwrap_or("rejected without a reason"))
}

/// Executes a command and returns its reply, also that of a rejected one.
pub fn reply_to(settings: &Settings, verb: &str, mut body: Value) -> anyhow::Result<Value> {
    body["schema"] = 1.into();
    body["request_id"] = format!("cli-{}", Uuid::now_v7().simple()).into();
    let payload = serde_json::to_vec(&body)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    match Store::open(&settings.state_dir, open::store_options(settings, &clock)) {
        Ok(opened) => {
            open::log_opened(&opened);
            let limits = Limits {
                payload_bytes: settings.commands.payload_bytes_max,
                images: settings.commands.images_max,
                image_bytes: settings.commands.image_bytes_max,
                ..Limits::default()
            };
            let received = Received::by_mqtt(verb, &payload, false);
            let command = command::parse(received, &limits, clock.now().wall_ms)
                .map_err(|rejection| anyhow::anyhow!("{}", rejection.message))?;
            let reply = app::execute_here(settings.clone(), clock, &opened.store, command);
            opened.store.close().map_err(exit::storage)?;
            Ok(serde_json::from_str(&reply?)?)
        }
        Err(StoreError::Locked { .. }) => ask_daemon(settings, verb, &payload),
        Err(error) => Err(exit::storage(error)),
    }
}

/// Sends a command to the running daemon and waits for the reply.
pub fn ask_daemon(settings: &Settings, verb: &str, payload: &[u8]) -> anyhow::Result<Value> {
    let request = PreviewRequest::Command { verb: verb.to_owned(), bytes: payload.len() };
    let mut connection: BufReader<UnixStream> = watch::ask_daemon(settings, &request)
        .context("another rollcall has the state directory open")?;
    connection.get_ref().set_read_timeout(Some(PATIENCE))?;
    // A daemon that rejects the size replies before it has read everything.
    let sent = connection.get_mut().write_all(payload);
    let mut line = String::new();
    let read = connection.read_line(&mut line).context("no reply from the daemon")?;
    if read == 0 {
        sent.context("the daemon does not accept the command")?;
        bail!("the daemon has disconnected: it is stopping; try again");
    }
    if let Ok(rejection) = serde_json::from_str::<PreviewRejection>(&line)
        && !line.contains("\"ok\"")
    {
        bail!("{}", rejection.error);
    }
    serde_json::from_str(&line).context("the reply of the daemon is not JSON")
}
