//! The report of an import: counts, a list of the people who were rejected, and on request every
//! photograph in a CSV file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::import::people::{Person, SkippedFile};
use crate::cli::table;
use crate::wire::csv;

/// The outcome for one person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PersonOutcome {
    /// Was not enrolled before.
    Enrolled,
    /// Was enrolled, and received references from further photographs.
    Added,
    /// Was enrolled with all these photographs.
    Unchanged,
    Rejected(String),
}

/// The outcome for one photograph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PhotographOutcome {
    Accepted,
    Known,
    Rejected(String),
    /// Beyond the maximum for one person.
    Surplus,
    /// The person was rejected as a whole.
    NotUsed,
}

/// The outcomes for a person and their photographs, in the order of the photographs.
#[derive(Debug)]
pub struct PersonResult {
    pub outcome: PersonOutcome,
    pub verdicts: Vec<PhotographOutcome>,
}

/// The most rejections that are listed on the terminal; the file has all of them.
const LISTED_MAX: usize = 50;

#[derive(Debug, Default)]
pub struct ImportReport {
    enrolled: u64,
    added: u64,
    already: u64,
    rejected: u64,
    photographs_refused: u64,
    photographs_surplus: u64,
    listed: Vec<(String, String)>,
    file: Option<(PathBuf, BufWriter<File>)>,
}

impl ImportReport {
    /// Starts a report. The file, if any, has names, so only its owner can read it.
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

    pub fn add_skipped(&mut self, skipped: &SkippedFile) -> anyhow::Result<()> {
        self.add_rejection(&skipped.file.display().to_string(), &skipped.why);
        self.write_row(["", "", &skipped.file.display().to_string(), "refused", &skipped.why])
    }

    pub fn add_person(&mut self, person: &Person, result: &PersonResult) -> anyhow::Result<()> {
        match &result.outcome {
            PersonOutcome::Enrolled => self.enrolled += 1,
            PersonOutcome::Added => self.added += 1,
            PersonOutcome::Unchanged => self.already += 1,
            PersonOutcome::Rejected(why) => self.add_rejection(person.name.as_str(), why),
        }
        self.photographs_surplus += person.surplus.len() as u64;
        let verdicts = result
            .verdicts
            .iter()
            .chain(person.surplus.iter().map(|_| &PhotographOutcome::Surplus));
        for (file, verdict) in person.photographs.iter().chain(&person.surplus).zip(verdicts) {
            let rejected = matches!(result.outcome, PersonOutcome::Rejected(_));
            self.photographs_refused +=
                u64::from(!rejected && matches!(verdict, PhotographOutcome::Rejected(_)));
            let (outcome, reason) = csv_words(&result.outcome, verdict);
            self.write_row([
                person.id.as_str(),
                person.name.as_str(),
                &file.path.display().to_string(),
                outcome,
                reason,
            ])?;
        }
        Ok(())
    }

    fn add_rejection(&mut self, who: &str, why: &str) {
        self.rejected += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push((who.to_owned(), why.to_owned()));
        }
    }

    fn write_row(&mut self, fields: [&str; 5]) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let line = csv::line(&fields);
        write!(file, "{line}")
            .with_context(|| format!("cannot write the report {}", path.display()))
    }

    /// Prints the report and returns how many people were rejected.
    pub fn finish(mut self, json: bool) -> anyhow::Result<u64> {
        if let Some((path, file)) = &mut self.file {
            file.flush().with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        if json {
            let rejected =
                self.listed.iter().map(|(who, why)| serde_json::json!({"who": who, "reason": why}));
            let counts = serde_json::json!({
                "enrolled": self.enrolled, "added": self.added, "already": self.already, "refused": self.rejected,
                "photographs_refused": self.photographs_refused, "photographs_surplus": self.photographs_surplus,
                "refusals": rejected.collect::<Vec<_>>(),
            });
            println!("{counts}");
            return Ok(self.rejected);
        }
        println!(
            "{} enrolled, {} got further references (face samples), {} were enrolled already",
            self.enrolled, self.added, self.already
        );
        if self.photographs_refused > 0 {
            println!("{} of their photographs could not be used", self.photographs_refused);
        }
        if self.photographs_surplus > 0 {
            println!(
                "{} photographs were beyond the maximum for one person",
                self.photographs_surplus
            );
        }
        if self.rejected > 0 {
            println!("{} rejected:", self.rejected);
            let rows: Vec<_> =
                self.listed.iter().map(|(who, why)| vec![who.clone(), why.clone()]).collect();
            print!("{}", table::render(&["who", "why"], &rows));
        }
        if let Some((path, _)) = &self.file {
            println!("the outcome of every photograph: {}", path.display());
        }
        Ok(self.rejected)
    }
}

fn csv_words<'a>(
    outcome: &'a PersonOutcome,
    verdict: &'a PhotographOutcome,
) -> (&'static str, &'a str) {
    match (verdict, outcome) {
        (PhotographOutcome::Accepted, _) => ("accepted", ""),
        (PhotographOutcome::Known, _) => ("already", ""),
        (PhotographOutcome::Rejected(why), _)
        | (PhotographOutcome::NotUsed, PersonOutcome::Rejected(why)) => ("refused", why),
        (PhotographOutcome::Surplus, _) => ("not_looked_at", "beyond the maximum for one person"),
        (PhotographOutcome::NotUsed, _) => ("not_used", ""),
    }
}
