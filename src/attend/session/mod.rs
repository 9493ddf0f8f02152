//! When sessions take place: from local times and a zone to moments.
//!
//! Clocks that are set forward skip local times, those that are set back show them twice. A session
//! begins when the clock on the wall first shows its start; where that time is skipped, it is moved
//! as a whole by what was skipped and keeps its length: a start at 02:30 on a night that goes from
//! 02:00 to 03:00 is at 03:30, as long after midnight as on any other day. It ends when the clock
//! on the wall first shows its end after that. So a change of the clocks makes nobody late,
//! and a session's id, which names its start in UTC, is unique.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::AmbiguousOffset;

use crate::attend::Status;
use crate::attend::venue::{Days, SessionRule, Venue, nominal_length};

/// One session as it takes place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// `2026-11-23T08:00Z/mon-am`: the start in UTC and the rule's id.
    pub id: String,
    /// The local date on which it begins.
    pub date: Date,
    pub dated: bool,
    /// From when on who comes counts for it.
    pub opens_ms: i64,
    pub start_ms: i64,
    /// No longer included.
    pub end_ms: i64,
    /// Who comes after this is late.
    pub late_after_ms: Option<i64>,
}

impl Session {
    pub fn status_at(&self, wall_ms: i64) -> Status {
        if self.late_after_ms.is_some_and(|late| wall_ms > late) {
            Status::Late
        } else {
            Status::Present
        }
    }

    fn is_running(&self, wall_ms: i64) -> bool {
        (self.start_ms..self.end_ms).contains(&wall_ms)
    }
}

/// Longest time for which sessions are listed at once.
pub const PERIOD_DAYS_MAX: i64 = 400;

impl Venue {
    /// Returns the session that an arrival at this moment counts for: one that runs, else one that
    /// begins soon.
    pub fn session_at(&self, wall_ms: i64) -> Option<Session> {
        if self.sessions.is_empty() {
            return None;
        }
        let today = self.date_at(wall_ms)?;
        let days = [today.yesterday().ok(), Some(today), today.tomorrow().ok()];
        let around = self.sessions_on(days.into_iter().flatten());
        let open = around.into_iter().filter(|it| (it.opens_ms..it.end_ms).contains(&wall_ms));
        // Only a change of the clocks lets two run at once: then the one that began last. Of those
        // to come, the next.
        open.max_by_key(|it| {
            let running = it.is_running(wall_ms);
            (running, it.dated, if running { it.start_ms } else { -it.start_ms })
        })
    }

    /// The sessions that touch a period, in order of their start; at most those of
    /// `PERIOD_DAYS_MAX` days.
    pub fn sessions_between(&self, from_ms: i64, to_ms: i64) -> Vec<Session> {
        let (Some(first), Some(last)) = (self.date_at(from_ms), self.date_at(to_ms)) else {
            return Vec::new();
        };
        if self.sessions.is_empty() || from_ms >= to_ms {
            return Vec::new();
        }
        // A day more on each side: a session may cross midnight, or replace one that does.
        let first = first.yesterday().unwrap_or(first);
        let days = first.series(jiff::Span::new().days(1)).take(PERIOD_DAYS_MAX as usize);
        let days = days.take_while(|day| day.yesterday().is_ok_and(|before| before <= last));
        let mut found = self.sessions_on(days);
        found.retain(|it| it.start_ms < to_ms && it.end_ms > from_ms);
        found
    }

    /// The session that an id names, if the venue has it (still).
    pub fn session_of_id(&self, id: &str) -> Option<Session> {
        let (start, _) = id.split_once('/')?;
        let start: Timestamp = start.parse().ok()?;
        let at_ms = start.as_millisecond();
        self.sessions_between(at_ms, at_ms + 1).into_iter().find(|it| it.id == id)
    }

    /// The local date.
    pub fn date_at(&self, wall_ms: i64) -> Option<Date> {
        let at = Timestamp::from_millisecond(wall_ms).ok()?;
        Some(self.zone.to_datetime(at).date())
    }

    /// The moment at which a local date begins.
    pub fn begin_of(&self, date: Date) -> Option<i64> {
        let begin =
            self.zone.to_ambiguous_timestamp(date.to_datetime(jiff::civil::Time::midnight()));
        Some(begin.compatible().ok()?.as_millisecond())
    }

    /// In order of their start. A weekly session whose time a dated one takes does not take place.
    fn sessions_on(&self, days: impl Iterator<Item = Date>) -> Vec<Session> {
        let mut found: Vec<Session> = Vec::new();
        for day in days {
            for rule in self.sessions.iter().filter(|rule| takes_place(rule, day)) {
                // A day that a zone left out (it crossed the date line) moves onto the next, where
                // the rule may hold too.
                found.extend(
                    self.occurrence(rule, day)
                        .filter(|it| found.iter().all(|other| other.id != it.id)),
                );
            }
        }
        let dated: Vec<_> =
            found.iter().filter(|it| it.dated).map(|it| (it.start_ms, it.end_ms)).collect();
        found.retain(|it| {
            it.dated || dated.iter().all(|(start, end)| it.end_ms <= *start || *end <= it.start_ms)
        });
        found.sort_by(|a, b| (a.start_ms, &a.id).cmp(&(b.start_ms, &b.id)));
        found
    }

    fn occurrence(&self, rule: &SessionRule, date: Date) -> Option<Session> {
        let start = self.zone.to_ambiguous_timestamp(date.to_datetime(rule.start));
        let is_skipped = matches!(start.offset(), AmbiguousOffset::Gap { .. });
        let start_ms = start.compatible().ok()?.as_millisecond();
        let length_ms = nominal_length(rule.start, rule.end).as_millis() as i64;
        let end_ms = if is_skipped {
            start_ms + length_ms
        } else {
            let end_date = if rule.end > rule.start { date } else { date.tomorrow().ok()? };
            let end = self.zone.to_ambiguous_timestamp(end_date.to_datetime(rule.end));
            end.compatible().ok()?.as_millisecond()
        };
        let utc = Timestamp::from_millisecond(start_ms).ok()?;
        Some(Session {
            id: format!("{}/{}", utc.strftime("%Y-%m-%dT%H:%MZ"), rule.id),
            date,
            dated: matches!(rule.days, Days::Dated(_)),
            opens_ms: start_ms - rule.early.as_millis() as i64,
            start_ms,
            end_ms,
            late_after_ms: rule.late_after.map(|it| start_ms + it.as_millis() as i64),
        })
    }
}

fn takes_place(rule: &SessionRule, day: Date) -> bool {
    match &rule.days {
        Days::Weekly(days) => days.contains(&day.weekday()),
        Days::Dated(dates) => dates.binary_search(&day).is_ok(),
    }
}

#[cfg(test)]
mod tests;
