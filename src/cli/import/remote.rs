//! The import through a daemon that runs: each person an `enrol` command, judged and recorded by it.
//!
//! The database is read beside it, so that what is in already is not sent. Of the same person with the same photographs
//! the request has the same id: begun again while the daemon still has the command before it, it does it once.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use indicatif::ProgressBar;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::app;
use crate::cli::console::{Console, with_console};
use crate::cli::import::people::Person;
use crate::cli::import::photographs::{Allowed, Photograph, Standing, read, standing};
use crate::cli::import::report::{Outcome, Report, Told, Verdict};
use crate::config::Settings;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::{ModelDigest, Name};
use crate::record::export::hex;
use crate::record::store::Reader;

/// The daemon answers within this time, or something is wrong with it.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long it may be busy with what passes its camera.
const BUSY_MAX: u32 = 120;
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// People on the way to the daemon at once, fewer than it lets wait: it need not wait for us, nor we for the network.
const WINDOW: usize = 3;
const TOO_LARGE: &str = "too_large (for a message; stop the daemon to import it)";
/// What a command has besides its images.
const ENVELOPE_BYTES: usize = 4096;

pub struct Remote<'a> {
    pub settings: &'a Settings,
    pub allowed: Allowed,
}

/// A person who is on the way, in the order in which they are told.
enum UnderWay<'a> {
    Settled(&'a Person, Told),
    Sent(&'a Person, Fresh, String),
}

/// What is to be sent of a person.
struct Fresh {
    name: Name,
    is_new: bool,
    photographs: Vec<Photograph>,
    verdicts: Vec<Verdict>,
}

impl Remote<'_> {
    pub fn run(
        &self,
        people: &[Person],
        report: &mut Report,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let embedder = app::load_vision(self.settings)?.embedder();
        let reader = app::open_reader(self.settings)?;
        with_console(self.settings, &["reply/+"], async |console| {
            let mut under_way = VecDeque::new();
            for person in people {
                under_way.push_back(self.start(console, &reader, &embedder, person).await?);
                while under_way.len() > WINDOW
                    && let Some(first) = under_way.pop_front()
                {
                    self.settle(console, &reader, first, report).await?;
                    bar.inc(1);
                }
                // Those who are in already need no answer: let the connection breathe.
                tokio::task::yield_now().await;
            }
            for rest in under_way {
                self.settle(console, &reader, rest, report).await?;
                bar.inc(1);
            }
            Ok(())
        })
        .context(
            "the state directory is in use, by the daemon as it seems, so the import goes through it by MQTT; begun again, it goes on \
             where it was",
        )
    }

    /// Sends what is new of a person; whoever needs several messages is settled at once.
    async fn start<'a>(
        &self,
        console: &mut Console,
        reader: &Reader,
        embedder: &ModelDigest,
        person: &'a Person,
    ) -> anyhow::Result<UnderWay<'a>> {
        let fresh = match standing(reader, embedder, person, self.allowed)? {
            Standing::Settled(told) => return Ok(UnderWay::Settled(person, told)),
            Standing::Fresh { name, is_new, photographs, verdicts } => {
                Fresh { name, is_new, photographs, verdicts }
            }
        };
        if self.room() < fresh.photographs.iter().map(encoded_bytes).sum() {
            return Ok(UnderWay::Settled(
                person,
                self.in_parts(console, reader, person, fresh).await?,
            ));
        }
        let request_id =
            self.send(console, reader, person, &fresh.name, &fresh.photographs).await?;
        Ok(UnderWay::Sent(person, fresh, request_id))
    }

    async fn settle(
        &self,
        console: &mut Console,
        reader: &Reader,
        first: UnderWay<'_>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (person, mut fresh, request_id) = match first {
            UnderWay::Settled(person, told) => return report.tell(person, &told),
            UnderWay::Sent(person, fresh, request_id) => (person, fresh, request_id),
        };
        let answer = self
            .answer(console, reader, person, &fresh.name, &fresh.photographs, request_id)
            .await?;
        judge(&answer, &fresh.photographs, &mut fresh.verdicts);
        let outcome = match (answer["ok"] == true, fresh.is_new) {
            (true, true) => Outcome::Enrolled,
            (true, false) => Outcome::Added,
            (false, _) => Outcome::Refused(reason(&answer)),
        };
        report.tell(person, &Told { outcome, verdicts: fresh.verdicts })
    }

    /// One message after the other.
    async fn in_parts(
        &self,
        console: &mut Console,
        reader: &Reader,
        person: &Person,
        fresh: Fresh,
    ) -> anyhow::Result<Told> {
        let Fresh { name, is_new, photographs, mut verdicts } = fresh;
        let (mut taken, mut refused) = (false, None);
        for batch in batches(&photographs, self.room()) {
            if let [single] = batch
                && encoded_bytes(single) > self.room()
            {
                verdicts[single.at] = Verdict::Refused(TOO_LARGE.into());
                refused.get_or_insert_with(|| TOO_LARGE.to_owned());
                continue;
            }
            let request_id = self.send(console, reader, person, &name, batch).await?;
            let answer = self.answer(console, reader, person, &name, batch, request_id).await?;
            judge(&answer, batch, &mut verdicts);
            if answer["ok"] == true {
                taken = true;
            } else {
                refused.get_or_insert_with(|| reason(&answer));
            }
        }
        let outcome = match (taken, is_new, refused) {
            (true, true, _) => Outcome::Enrolled,
            (true, false, _) => Outcome::Added,
            (false, _, why) => Outcome::Refused(why.unwrap_or_else(|| "no_photograph".into())),
        };
        Ok(Told { outcome, verdicts })
    }

    /// For the images of one message.
    fn room(&self) -> usize {
        self.settings
            .mqtt
            .as_ref()
            .map_or(0, |it| it.packet_bytes_max)
            .saturating_sub(ENVELOPE_BYTES)
    }

    /// Gives the id of the request.
    async fn send(
        &self,
        console: &mut Console,
        reader: &Reader,
        person: &Person,
        name: &Name,
        batch: &[Photograph],
    ) -> anyhow::Result<String> {
        let mut images = Vec::with_capacity(batch.len());
        for photograph in batch {
            let path = &person.photographs[photograph.at];
            let bytes = read(path).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
            images.push(base64::engine::general_purpose::STANDARD.encode(bytes));
        }
        let body = serde_json::json!({
            "subject": {"id": person.id, "name": name},
            "images": images,
            "allow_duplicate": self.allowed.duplicate,
        });
        let mut request_id = self.request_id(person, batch);
        if reader.is_answered(&request_id)? {
            // Refused before, or taken and withdrawn since: it is looked at again.
            request_id = Uuid::now_v7().simple().to_string();
        }
        console.send(&request_id, "enrol", body, PATIENCE).await?;
        Ok(request_id)
    }

    /// Sends it again for as long as the daemon is busy.
    async fn answer(
        &self,
        console: &mut Console,
        reader: &Reader,
        person: &Person,
        name: &Name,
        batch: &[Photograph],
        mut request_id: String,
    ) -> anyhow::Result<Value> {
        let mut attempt = 0;
        loop {
            let answer = console.answer(&request_id, PATIENCE).await?;
            match answer["error"]["code"].as_str().unwrap_or_default() {
                "busy" | "timed_out" | "rate_limited" | "not_ready" if attempt < BUSY_MAX => {
                    attempt += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                    request_id = self.send(console, reader, person, name, batch).await?;
                }
                "busy" | "timed_out" | "rate_limited" | "not_ready" | "storage_full"
                | "internal" | "unsigned" | "bad_signature" | "wrong_audience" | "replayed" => {
                    bail!("{}", reason(&answer))
                }
                _ => return Ok(answer),
            }
        }
    }

    fn request_id(&self, person: &Person, batch: &[Photograph]) -> String {
        let mut hash = Sha256::new();
        hash.update(person.id.as_str());
        hash.update([0, u8::from(self.allowed.duplicate)]);
        for photograph in batch {
            hash.update(photograph.digest);
        }
        format!("import-{}", hex(&hash.finalize()[..16]))
    }
}

/// Runs that fit into a message each; one that does not fit by itself is alone.
fn batches(photographs: &[Photograph], room: usize) -> Vec<&[Photograph]> {
    let (mut found, mut from, mut bytes) = (Vec::new(), 0, 0);
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

/// With quotes and comma.
fn encoded_bytes(photograph: &Photograph) -> usize {
    photograph.bytes.div_ceil(3) as usize * 4 + 3
}

fn judge(answer: &Value, batch: &[Photograph], verdicts: &mut [Verdict]) {
    let taken = answer["ok"] == true;
    for (photograph, image) in batch.iter().zip(answer["images"].as_array().into_iter().flatten()) {
        verdicts[photograph.at] = match (image["accepted"] == true, taken) {
            (true, true) => Verdict::Accepted,
            (true, false) => Verdict::NotUsed,
            (false, _) => {
                Verdict::Refused(image["reason"].as_str().unwrap_or("refused").to_owned())
            }
        };
    }
}

fn reason(answer: &Value) -> String {
    let error = &answer["error"];
    let [code, message] = ["code", "message"].map(|key| error[key].as_str().unwrap_or("refused"));
    format!("{code} ({message})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_are_put_into_as_few_messages_as_carry_them() {
        let photograph = |bytes| Photograph { at: 0, digest: [0; 32], bytes };
        let check = |sizes: &[u64], room, expected: &[usize]| {
            let photographs: Vec<_> = sizes.iter().map(|bytes| photograph(*bytes)).collect();
            let lengths: Vec<_> = batches(&photographs, room).iter().map(|it| it.len()).collect();
            assert_eq!(lengths, expected, "{sizes:?} into {room}");
        };
        check(&[30, 30, 30], 1000, &[3]);
        check(&[30, 30, 30], 86, &[2, 1]);
        check(&[30, 300, 30, 30], 100, &[1, 1, 2]);
        check(&[300], 100, &[1]);
    }
}
