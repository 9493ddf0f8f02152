//! Imports people through a running daemon, with one `enrol` command for each person.
//!
//! The database is read beside the daemon, so that what is enrolled already is not sent. The same
//! person with the same photographs gives the same request id, so that a repeated import is executed
//! once.

use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use indicatif::ProgressBar;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::app::open;
use crate::cli::command;
use crate::cli::import::people::Person;
use crate::cli::import::photographs::{
    NewPhotograph, Permissions, PersonPlan, Prepared, plan_person, prepared,
};
use crate::cli::import::report::{ImportReport, PersonOutcome, PersonResult, PhotographOutcome};
use crate::cli::photograph::{self, ENVELOPE_BYTES};
use crate::config::Settings;
use crate::ids::Name;
use crate::recognise::engine::FaceEngine as _;
use crate::store::Reader;
use crate::wire::export::hex;

/// The most attempts while the daemon is busy with its camera.
const BUSY_MAX: u32 = 120;
const BUSY_PAUSE: Duration = Duration::from_millis(500);
const TOO_LARGE: &str = "too_large (for a command)";

pub struct RemoteImport<'a> {
    pub settings: &'a Settings,
    pub allowed: Permissions,
}

/// What is sent of a person.
struct NewPerson {
    name: Name,
    is_new: bool,
    photographs: Vec<NewPhotograph>,
    verdicts: Vec<PhotographOutcome>,
}

impl RemoteImport<'_> {
    pub fn run(
        &self,
        people: &[Person],
        report: &mut ImportReport,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let embedder = open::load_vision(self.settings)?.embedder();
        let reader = open::open_reader(self.settings)?;
        let limits = photograph::command_limits(self.settings);
        for person in people {
            let result = match plan_person(&reader, &embedder, person, self.allowed, limits)? {
                PersonPlan::Done(result) => result,
                PersonPlan::Consent { consent, verdicts } => {
                    let body = serde_json::json!({"subject_id": person.id, "consent": consent});
                    command::execute(self.settings, "consent", body)?;
                    PersonResult { outcome: PersonOutcome::Unchanged, verdicts }
                }
                PersonPlan::Process { name, is_new, photographs, verdicts } => self
                    .enrol(&reader, person, NewPerson { name, is_new, photographs, verdicts })
                    .context(
                        "the import is sent to the running daemon; when repeated, it continues where it stopped",
                    )?,
            };
            report.add_person(person, &result)?;
            bar.inc(1);
        }
        Ok(())
    }

    /// Sends the photographs of a person, in several commands if they do not fit into one.
    fn enrol(
        &self,
        reader: &Reader,
        person: &Person,
        fresh: NewPerson,
    ) -> anyhow::Result<PersonResult> {
        let NewPerson { name, is_new, photographs, mut verdicts } = fresh;
        let mut taken = false;
        let mut rejected = None;
        for batch in split_into_batches(&photographs, self.image_bytes_max()) {
            if let [single] = batch
                && encoded_bytes(single) > self.image_bytes_max()
            {
                verdicts[single.at] = PhotographOutcome::Rejected(TOO_LARGE.into());
                rejected.get_or_insert_with(|| TOO_LARGE.to_owned());
                continue;
            }
            let reply = self.send(reader, person, &name, batch)?;
            read_outcomes(&reply, batch, &mut verdicts);
            if reply["ok"] == true {
                taken = true;
            } else {
                rejected.get_or_insert_with(|| rejection_reason(&reply));
            }
        }
        let outcome = match (taken, is_new, rejected) {
            (true, true, _) => PersonOutcome::Enrolled,
            (true, false, _) => PersonOutcome::Added,
            (false, _, why) => {
                PersonOutcome::Rejected(why.unwrap_or_else(|| "no_photograph".into()))
            }
        };
        Ok(PersonResult { outcome, verdicts })
    }

    /// Returns the space for the images of one message.
    fn image_bytes_max(&self) -> usize {
        self.settings.commands.payload_bytes_max.saturating_sub(ENVELOPE_BYTES)
    }

    /// Sends a command and returns its reply. It is sent again while the daemon is busy.
    fn send(
        &self,
        reader: &Reader,
        person: &Person,
        name: &Name,
        batch: &[NewPhotograph],
    ) -> anyhow::Result<Value> {
        let mut images = Vec::with_capacity(batch.len());
        for photograph in batch {
            let file = &person.photographs[photograph.at];
            let limits = photograph::command_limits(self.settings);
            let Prepared { bytes, .. } = prepared(file, limits)
                .map_err(|why| anyhow::anyhow!("{}: {why}", file.path.display()))?;
            images.push(base64::engine::general_purpose::STANDARD.encode(bytes));
        }
        let mut body = serde_json::json!({
            "schema": 1,
            "request_id": self.request_id(person, batch),
            "subject": {"id": person.id, "name": name},
            "images": images,
            "allow_duplicate": self.allowed.duplicate,
            "consent": person.consent,
        });
        if reader.has_reply(&self.request_id(person, batch))? {
            // It was rejected before, or enrolled and withdrawn since: try again.
            body["request_id"] = Uuid::now_v7().simple().to_string().into();
        }
        let payload = serde_json::to_vec(&body)?;
        let mut attempt = 0;
        loop {
            let reply = command::ask_daemon(self.settings, "enrol", &payload)?;
            match reply["error"]["code"].as_str().unwrap_or_default() {
                "busy" | "timed_out" | "rate_limited" | "not_ready" if attempt < BUSY_MAX => {
                    attempt += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                "busy" | "timed_out" | "rate_limited" | "not_ready" | "storage_full"
                | "internal" => bail!("{}", rejection_reason(&reply)),
                _ => return Ok(reply),
            }
        }
    }

    fn request_id(&self, person: &Person, batch: &[NewPhotograph]) -> String {
        let mut hash = Sha256::new();
        hash.update(person.id.as_str());
        hash.update([0, u8::from(self.allowed.duplicate)]);
        for photograph in batch {
            hash.update(photograph.digest);
        }
        format!("import-{}", hex(&hash.finalize()[..16]))
    }
}

/// Splits photographs into runs that fit into one message each; one that does not fit is alone.
fn split_into_batches(photographs: &[NewPhotograph], room: usize) -> Vec<&[NewPhotograph]> {
    let mut found = Vec::new();
    let mut from = 0;
    let mut bytes = 0;
    for (at, photograph) in photographs.iter().enumerate() {
        let more = encoded_bytes(photograph);
        if at > from && bytes + more > room {
            found.push(&photographs[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += more;
    }
    found.push(&photographs[from..]);
    found
}

/// Returns the size of a photograph in a message: base64, quotes and comma.
fn encoded_bytes(photograph: &NewPhotograph) -> usize {
    photograph.bytes.div_ceil(3) as usize * 4 + 3
}

fn read_outcomes(reply: &Value, batch: &[NewPhotograph], verdicts: &mut [PhotographOutcome]) {
    let taken = reply["ok"] == true;
    for (photograph, image) in batch.iter().zip(reply["images"].as_array().into_iter().flatten()) {
        verdicts[photograph.at] = match (image["accepted"] == true, taken) {
            (true, true) => PhotographOutcome::Accepted,
            (true, false) => PhotographOutcome::NotUsed,
            (false, _) => PhotographOutcome::Rejected(
                image["reason"].as_str().unwrap_or("refused").to_owned(),
            ),
        };
    }
}

fn rejection_reason(reply: &Value) -> String {
    let error = &reply["error"];
    let [code, message] = ["code", "message"].map(|key| error[key].as_str().unwrap_or("refused"));
    format!("{code} ({message})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_are_batched_by_message_size() {
        let photograph = |bytes| NewPhotograph { at: 0, digest: [0; 32], bytes };
        let check = |sizes: &[u64], room, expected: &[usize]| {
            let photographs: Vec<_> = sizes.iter().map(|bytes| photograph(*bytes)).collect();
            let lengths: Vec<_> =
                split_into_batches(&photographs, room).iter().map(|it| it.len()).collect();
            assert_eq!(lengths, expected, "{sizes:?} into {room}");
        };
        check(&[30, 30, 30], 1000, &[3]);
        check(&[30, 30, 30], 86, &[2, 1]);
        check(&[30, 300, 30, 30], 100, &[1, 1, 2]);
        check(&[300], 100, &[1]);
    }
}
