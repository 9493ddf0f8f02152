//! `rollcall doctor --repair`: lists the rows that cannot be read, what can be done about each, and accepts their loss.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;

use crate::app::open;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::store::{Store, StoreError, UnreadableRow};

/// More are counted, not listed: a terminal is no place for them.
const LISTED_MAX: u32 = 1_000;

pub fn run(settings: &Settings, yes: bool) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    // Opening checks every row, and corrects what has one wrong bit.
    let opened = Store::open(&settings.state_dir, open::store_options(settings, &clock)).map_err(
        |error| {
            let running = matches!(error, StoreError::Locked { .. });
            let error = anyhow::Error::new(error);
            if running {
                error.context("stop the daemon first: sudo systemctl stop rollcall")
            } else {
                error
            }
        },
    )?;
    open::log_opened(&opened);
    let store = opened.store;
    let (rows, count) =
        store.write(|tx| Ok((tx.unreadable_rows(LISTED_MAX)?, tx.unreadable()?.rows)))?;
    if count == 0 {
        println!("every row of the database can be read");
        return Ok(store.close()?);
    }
    for row in &rows {
        println!("{} {}: {} (found {})", row.table, row.row, row.reason, rfc3339(row.found_ms));
        println!("    {}", remedy(row));
    }
    println!(
        "{count} rows cannot be read. `rollcall restore` of a backup brings back what it contains."
    );
    if yes || is_confirmed()? {
        let forgotten = store.write(|tx| {
            let forgotten = tx.forget_unreadable()?;
            tracing::warn!(rows = forgotten, "the loss of damaged rows was accepted");
            Ok(forgotten)
        })?;
        println!(
            "{forgotten} rows were removed from the list; lost events hold the watermark back no longer"
        );
    } else {
        println!("nothing was changed");
    }
    Ok(store.close()?)
}

fn is_confirmed() -> anyhow::Result<bool> {
    print!("Accept the loss of these rows, and remove what is left of them? [y/N] ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "yes"))
}

fn remedy(row: &UnreadableRow) -> &'static str {
    match row.table.as_str() {
        "event" => "the event is missing from the record; a sink that has it keeps it",
        "outbox" => {
            "the events it may have stood for are delivered again; a reply is in `command` and is repeated on request"
        }
        "subject" => "enrol the person again under the same id: the references are kept",
        "reference" => "the person has one reference fewer: enrol another photograph",
        "venue" => "put the venue again (`venue_put`)",
        "command" => "the request is executed again if it is repeated",
        "signed" => "the signed command could be accepted once more until it expires",
        "withdrawn" => "withdraw the person again if another door brings them back",
        "erasure" => "erase the person again for a new receipt",
        "observation" => "absence is not claimed for that time",
        _ => "the value is set again by itself",
    }
}
