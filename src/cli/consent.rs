//! `rollcall consent`, and the arguments that state a consent.

use anyhow::{Context as _, ensure};

use crate::cli::command;
use crate::clock::rfc3339;
use crate::config::Settings;
use crate::ids::{Name, SubjectId, check_id};
use crate::wire::consent::Consent;

/// The consent of a person, or of all whom a command enrols.
#[derive(Clone, Debug, clap::Args)]
pub struct ConsentArgs {
    /// Which version of the consent text was agreed to: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, value_name = "VERSION", requires = "recorded_by", value_parser = parse_version)]
    consent_version: Option<String>,
    /// When the consent was given: a date, or RFC 3339 with an offset [default: now]
    #[arg(long, value_name = "TIME", requires = "consent_version", value_parser = parse_start)]
    consent_given: Option<i64>,
    /// Until when it holds: the end of this date (UTC), or RFC 3339 with an offset; then the
    /// templates are deleted [default: until it is withdrawn]
    #[arg(long, value_name = "TIME", requires = "consent_version", value_parser = parse_end)]
    consent_until: Option<i64>,
    /// Who recorded the consent: a person or an office
    #[arg(long, value_name = "NAME", requires = "consent_version",
          value_parser = |name: &str| Name::new(name).map_err(|e| e.to_string()))]
    recorded_by: Option<Name>,
}

fn parse_version(text: &str) -> Result<String, String> {
    check_id(text).map(|()| text.to_owned()).map_err(|it| it.to_string())
}

/// Returns the beginning of a date in UTC, or the time.
pub fn parse_start(text: &str) -> Result<i64, String> {
    parse_time(text, 0)
}

/// Returns the end of a date in UTC, or the time.
pub fn parse_end(text: &str) -> Result<i64, String> {
    parse_time(text, 1)
}

fn parse_time(text: &str, days: i32) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let day = |date: jiff::civil::Date| {
        let date = date.checked_add(jiff::Span::new().days(days)).ok()?;
        let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(start.timestamp().as_millisecond())
    };
    // Otherwise a time without an offset is a date whose time is passed over.
    let is_date = text.len() == "2027-11-30".len();
    text.parse()
        .ok()
        .filter(|_| is_date)
        .and_then(day)
        .ok_or_else(|| "neither a date (2027-11-30) nor an RFC 3339 time with an offset".into())
}

impl ConsentArgs {
    /// Returns the consent, if one was stated, with the time at which it was given: so that an import
    /// can be repeated and records nothing twice.
    pub fn dated_consent(&self) -> anyhow::Result<Option<Consent>> {
        ensure!(
            self.consent_version.is_none() || self.consent_given.is_some(),
            "--consent-given is missing: when did these people agree?"
        );
        self.consent(0)
    }

    /// Returns the consent, if one was stated.
    pub fn consent(&self, now_ms: i64) -> anyhow::Result<Option<Consent>> {
        let (Some(version), Some(by)) = (&self.consent_version, &self.recorded_by) else {
            return Ok(None);
        };
        let given_ms = self.consent_given.unwrap_or(now_ms);
        Consent::new(given_ms, version, self.consent_until, by.clone())
            .context("the consent is not possible")
            .map(Some)
    }
}

/// Records, renews or withdraws the consent of an enrolled person.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rollcall consent jdoe --consent-version 2026-1 --consent-until 2027-11-30 --recorded-by 'Front desk'\n  \
    rollcall consent jdoe --withdraw")]
pub struct Args {
    /// The subject's id, as `rollcall subjects` lists it
    #[arg(value_parser = |id: &str| SubjectId::new(id).map_err(|e| e.to_string()))]
    id: SubjectId,
    #[command(flatten)]
    consent: ConsentArgs,
    /// The person has withdrawn the consent: erase all that is stored of them; a receipt follows
    /// (`rollcall erasures`)
    #[arg(long, conflicts_with = "consent_version", required_unless_present = "consent_version")]
    withdraw: bool,
    /// Keep what was recorded, with id and name; delete only what recognition needs
    #[arg(long, requires = "withdraw")]
    keep_record: bool,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings, now_ms: i64) -> anyhow::Result<()> {
    let body = match args.consent.consent(now_ms)? {
        Some(consent) => serde_json::json!({"subject_id": args.id, "consent": consent}),
        None => serde_json::json!({
            "subject_id": args.id, "withdraw": true, "erase": !args.keep_record,
        }),
    };
    let reply = command::execute(settings, "consent", body)?;
    if args.json {
        println!("{reply}");
    } else if args.withdraw && args.keep_record {
        println!("{} is removed, with {} face samples", args.id, reply["references"]);
    } else if args.withdraw {
        println!("{} is erased, from {} events too", args.id, reply["events"]);
    } else {
        let until = args.consent.consent_until.map_or("it is withdrawn".into(), rfc3339);
        println!("the consent of {} is recorded; it holds until {until}", args.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_whole_days() {
        let day_ms = 86_400_000;
        assert_eq!(parse_start("1970-01-02"), Ok(day_ms));
        assert_eq!(parse_end("1970-01-02"), Ok(2 * day_ms));
        for parse in [parse_start, parse_end] {
            assert_eq!(parse("1970-01-02T01:00:00+01:00"), Ok(day_ms));
            for wrong in ["", "2027", "30.11.2027", "2027-02-30", "9999-12-31T", "2027-11-30T12:00"]
            {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }
        assert!(parse_end("9999-12-31").is_err());
    }
}
