//! What became of everybody: counted, the refused listed, everything in a CSV file where one is wanted.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::app::csv;
use crate::cli::import::people::{Fault, Person};
use crate::cli::table;

/// What became of one person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Was not in, and is.
    Enrolled,
    /// Was in, and got references of further photographs.
    Added,
    /// Was in with all these photographs.
    Already,
    Refused(String),
}

/// What became of one photograph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Known,
    Refused(String),
    /// One more than count.
    Surplus,
    /// The person was refused as a whole.
    NotUsed,
}

/// The photographs in the order of the person's.
#[derive(Debug)]
pub struct Told {
    pub outcome: Outcome,
    pub verdicts: Vec<Verdict>,
}

/// So many of the refused are listed on the terminal; all of them are in the file.
const LISTED: usize = 50;

#[derive(Debug, Default)]
pub struct Report {
    enrolled: u64,
    added: u64,
    already: u64,
    refused: u64,
    photographs_refused: u64,
    photographs_surplus: u64,
    listed: Vec<(String, String)>,
    file: Option<(PathBuf, BufWriter<File>)>,
}

impl Report {
    /// With a file, readable by its owner only: it has names.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let failed = || format!("cannot write the report {}", path.display());
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).with_context(failed)?;
        let mut file = BufWriter::new(file);
        writeln!(file, "id,name,file,outcome,reason").with_context(failed)?;
        Ok(Self { file: Some((path.to_owned(), file)), ..Self::default() })
    }

    pub fn fault(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.refuse(&fault.file.display().to_string(), &fault.why);
        self.row(["", "", &fault.file.display().to_string(), "refused", &fault.why])
    }

    pub fn tell(&mut self, person: &Person, told: &Told) -> anyhow::Result<()> {
        match &told.outcome {
            Outcome::Enrolled => self.enrolled += 1,
            Outcome::Added => self.added += 1,
            Outcome::Already => self.already += 1,
            Outcome::Refused(why) => self.refuse(person.name.as_str(), why),
        }
        self.photographs_surplus += person.surplus.len() as u64;
        let verdicts = told.verdicts.iter().chain(person.surplus.iter().map(|_| &Verdict::Surplus));
        for (file, verdict) in person.photographs.iter().chain(&person.surplus).zip(verdicts) {
            let refused = matches!(told.outcome, Outcome::Refused(_));
            self.photographs_refused +=
                u64::from(!refused && matches!(verdict, Verdict::Refused(_)));
            let (outcome, reason) = words(&told.outcome, verdict);
            self.row([
                person.id.as_str(),
                person.name.as_str(),
                &file.display().to_string(),
                outcome,
                reason,
            ])?;
        }
        Ok(())
    }

    fn refuse(&mut self, who: &str, why: &str) {
        self.refused += 1;
        if self.listed.len() < LISTED {
            self.listed.push((who.to_owned(), why.to_owned()));
        }
    }

    fn row(&mut self, fields: [&str; 5]) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let line = csv::line(&fields);
        write!(file, "{line}")
            .with_context(|| format!("cannot write the report {}", path.display()))
    }

    /// Prints it; gives how many people were refused.
    pub fn finish(mut self, json: bool) -> anyhow::Result<u64> {
        if let Some((path, file)) = &mut self.file {
            file.flush().with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        if json {
            let refused =
                self.listed.iter().map(|(who, why)| serde_json::json!({"who": who, "reason": why}));
            let told = serde_json::json!({
                "enrolled": self.enrolled, "added": self.added, "already": self.already, "refused": self.refused,
                "photographs_refused": self.photographs_refused, "photographs_surplus": self.photographs_surplus,
                "refusals": refused.collect::<Vec<_>>(),
            });
            println!("{told}");
            return Ok(self.refused);
        }
        println!(
            "{} enrolled, {} got further photographs, {} were in already",
            self.enrolled, self.added, self.already
        );
        if self.photographs_refused > 0 {
            println!("{} photographs of theirs could not be used", self.photographs_refused);
        }
        if self.photographs_surplus > 0 {
            println!(
                "{} photographs were more than count for one person",
                self.photographs_surplus
            );
        }
        if self.refused > 0 {
            println!("{} refused:", self.refused);
            let rows: Vec<_> =
                self.listed.iter().map(|(who, why)| vec![who.clone(), why.clone()]).collect();
            print!("{}", table::render(&["who", "why"], &rows));
        }
        if let Some((path, _)) = &self.file {
            println!("all of it, photograph by photograph: {}", path.display());
        }
        Ok(self.refused)
    }
}

fn words<'a>(outcome: &'a Outcome, verdict: &'a Verdict) -> (&'static str, &'a str) {
    match (verdict, outcome) {
        (Verdict::Accepted, _) => ("accepted", ""),
        (Verdict::Known, _) => ("already", ""),
        (Verdict::Refused(why), _) | (Verdict::NotUsed, Outcome::Refused(why)) => ("refused", why),
        (Verdict::Surplus, _) => ("not_looked_at", "more than count for one person"),
        (Verdict::NotUsed, _) => ("not_used", ""),
    }
}
