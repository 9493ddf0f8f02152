//! What an answer of the receiver means for a delivery: first by the words of the preset, then by its
//! statuses, then by the status as HTTP has it (RFC 9110).

use serde_json::Value;

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Delivered,
    /// The receiver has it from an earlier attempt.
    AlreadyThere,
    /// It is larger than the receiver takes.
    TooLarge(String),
    /// Never: the receiver does not take this message.
    Never(String),
    /// Not until somebody has corrected something on either side.
    Refused(String),
    /// Not now. `may_be_its_own`: the cause may be this message, and others may pass.
    Retry {
        reason: String,
        may_be_its_own: bool,
    },
}

impl Verdict {
    pub(super) fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), may_be_its_own: false }
    }
}

/// What a phrase or a status of a receiver means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    AlreadyThere,
    /// Never, and why.
    Never(&'static str),
    /// Not until it is corrected: what is wrong.
    Refused(&'static str),
    Retry,
}

/// How a kind of receiver answers.
pub(super) struct AnswerTable {
    /// Parts of the text of an answer without success.
    pub(super) phrases: &'static [(&'static str, Meaning)],
    pub(super) statuses: &'static [(u16, Meaning)],
}

/// By the status alone: whatever takes a webhook.
pub(super) const PLAIN: AnswerTable = AnswerTable { phrases: &[], statuses: &[] };

/// Frappe HR (`hrms/hr/doctype/employee_checkin/employee_checkin.py`); `frappe.throw` answers with
/// 417. The user of the API key must have English as its language.
#[rustfmt::skip]
pub(super) const FRAPPE: AnswerTable = AnswerTable {
    phrases: &[
        ("already has a log with the same timestamp", Meaning::AlreadyThere),
        ("No Employee found for the given employee field value",
         Meaning::Never("Frappe has no employee with this attendance device ID")),
        ("Inactive Employee", Meaning::Never("the employee is not active in Frappe")),
        ("Log Type is required", Meaning::Never("the shift takes no check-in without a log type")),
        ("atitude and longitude values are required",
         Meaning::Refused("Frappe requires a position: switch off geolocation tracking in HR Settings")),
        ("Failed to get method",
         Meaning::Refused("the site has no Frappe HR of version 14 or later")),
        ("is not whitelisted",
         Meaning::Refused("the site has no Frappe HR of version 14 or later")),
        ("QueryDeadlockError", Meaning::Retry),
        ("QueryTimeoutError", Meaning::Retry),
        ("TimestampMismatchError", Meaning::Retry),
    ],
    statuses: &[
        (404, Meaning::Refused("no site of Frappe is at this URL")),
        // Two documents got one number; ours is not there.
        (409, Meaning::Retry),
    ],
};

/// Odoo 19: errors of `/json/2` are objects with `name`, `message` and `debug`.
#[rustfmt::skip]
pub(super) const ODOO: AnswerTable = AnswerTable {
    phrases: &[
        ("does not exist or has been deleted", Meaning::Never("Odoo has no employee with this id")),
        ("hasn't checked out since",
         Meaning::Never("the employee has an open attendance in Odoo")),
        ("was already checked in on",
         Meaning::Never("the employee has another attendance in Odoo at this time")),
        // Of 403: the key is a valid one. A right that is missing holds back everything.
        ("You are not allowed to",
         Meaning::Refused("the user of the key needs the right \"Officer: Manage all attendances\" in Odoo")),
        ("top-secret records",
         Meaning::Refused("the user of the key has no access to this employee in Odoo: its right to all \
                           attendances, and the company")),
    ],
    statuses: &[
        (404, Meaning::Refused("no Odoo of version 19 or later, or no such database, is at this URL")),
        (409, Meaning::Retry),
    ],
};

/// Sorts an answer. `text`: its body, as far as it was read.
pub(super) fn sort(table: &AnswerTable, status: u16, text: &str) -> Verdict {
    if !(200..300).contains(&status) {
        let phrase = table.phrases.iter().find(|it| text.contains(it.0));
        let listed = table.statuses.iter().find(|it| it.0 == status);
        // Whoever is not let in gets no word from the application.
        let known = phrase.map(|it| it.1).or(listed.map(|it| it.1));
        if let Some(meaning) = known.filter(|_| !matches!(status, 401 | 407)) {
            return of_meaning(meaning, status, text);
        }
    }
    of_status(status, text)
}

fn of_meaning(meaning: Meaning, status: u16, text: &str) -> Verdict {
    let answer = describe(status, text);
    match meaning {
        Meaning::AlreadyThere => Verdict::AlreadyThere,
        Meaning::Never(why) => Verdict::Never(format!("{why} ({answer})")),
        Meaning::Refused(why) => Verdict::Refused(format!("{why} ({answer})")),
        Meaning::Retry => Verdict::retry(answer),
    }
}

fn of_status(status: u16, text: &str) -> Verdict {
    let answer = describe(status, text);
    match status {
        200..300 => Verdict::Delivered,
        300..400 => Verdict::Refused(format!(
            "the receiver redirects to another URL, which is not followed: set that one ({answer})"
        )),
        401 | 403 | 407 => {
            Verdict::Refused(format!("the receiver refuses our credentials ({answer})"))
        }
        409 => Verdict::AlreadyThere,
        413 => Verdict::TooLarge(format!("larger than the receiver takes ({answer})")),
        408 | 425 | 429 | 501..600 => Verdict::retry(answer),
        500 => Verdict::Retry { reason: answer, may_be_its_own: true },
        400..500 => Verdict::Never(answer),
        _ => Verdict::retry(format!("{answer}, which HTTP does not know")),
    }
}

/// Returns `status 422`, with the class of the error where the answer names one. The receiver's words
/// are not kept: they may hold what it was sent and what else it knows of the person.
fn describe(status: u16, text: &str) -> String {
    match error_class(text) {
        Some(class) => format!("status {status}, {class}"),
        None => format!("status {status}"),
    }
}

const ERROR_CLASS_BYTES_MAX: usize = 80;

/// Frappe and Odoo name the class of what was raised in Python.
fn error_class(text: &str) -> Option<String> {
    let answer = serde_json::from_str::<Value>(text).ok()?;
    let mut named = ["exc_type", "name"].iter().filter_map(|key| answer[*key].as_str());
    named.find(|it| is_error_class(it)).map(str::to_owned)
}

fn is_error_class(word: &str) -> bool {
    word.len() <= ERROR_CLASS_BYTES_MAX
        && (word.ends_with("Error") || word.ends_with("Exception"))
        && word.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Delivered => "delivered",
            Verdict::AlreadyThere => "there",
            Verdict::TooLarge(_) => "large",
            Verdict::Never(_) => "never",
            Verdict::Refused(_) => "refused",
            Verdict::Retry { may_be_its_own: false, .. } => "retry",
            Verdict::Retry { may_be_its_own: true, .. } => "own",
        }
    }

    #[test]
    fn each_status_has_one_meaning() {
        for (statuses, plain, in_frappe, in_odoo) in [
            (&[200, 201, 202, 204][..], "delivered", "delivered", "delivered"),
            (&[301, 302, 303, 307, 308, 304], "refused", "refused", "refused"),
            (&[400, 402, 405, 406, 410, 415, 417, 422, 451, 499], "never", "never", "never"),
            (&[404], "never", "refused", "refused"),
            (&[401, 403, 407], "refused", "refused", "refused"),
            (&[409], "there", "retry", "retry"),
            (&[413], "large", "large", "large"),
            (&[408, 425, 429, 501, 502, 503, 504, 599], "retry", "retry", "retry"),
            (&[500], "own", "own", "own"),
            (&[0, 101, 600, 999], "retry", "retry", "retry"),
        ] {
            for status in statuses {
                let sorted = |table: &AnswerTable| word(&sort(table, *status, "some words"));
                assert_eq!(sorted(&PLAIN), plain, "{status}");
                assert_eq!(sorted(&FRAPPE), in_frappe, "{status} in Frappe");
                assert_eq!(sorted(&ODOO), in_odoo, "{status} in Odoo");
            }
        }
    }

    /// As the real applications write them.
    #[test]
    fn phrases_of_presets_are_sorted() {
        let thrown = |text: &str| {
            format!(
                "{{\"exception\":\"frappe.exceptions.ValidationError: {text}\",\"exc_type\":\"ValidationError\"}}"
            )
        };
        for (text, expected) in [
            ("This employee already has a log with the same timestamp.<br>EMP-CKIN-1", "there"),
            (
                "No Employee found for the given employee field value. 'attendance_device_id': 17",
                "never",
            ),
            ("Transactions cannot be created for an Inactive Employee HR-EMP-00001.", "never"),
            ("Log Type is required for check-ins falling in the shift: Day.", "never"),
            ("Latitude and longitude values are required for checking in.", "refused"),
            ("Failed to get method for command hrms.hr with No module named 'hrms'", "refused"),
            ("Something else", "never"),
        ] {
            assert_eq!(word(&sort(&FRAPPE, 417, &thrown(text))), expected, "{text}");
        }
        let deadlock = "{\"exc_type\":\"QueryDeadlockError\"}";
        assert_eq!(word(&sort(&FRAPPE, 417, deadlock)), "retry");
        // Whoever proposes another reading of a success is not listened to.
        assert_eq!(word(&sort(&FRAPPE, 200, &thrown("Inactive Employee"))), "delivered");
        assert_eq!(word(&sort(&FRAPPE, 401, &thrown("Inactive Employee"))), "refused");
        let raised = |text: &str| {
            format!("{{\"name\":\"odoo.exceptions.ValidationError\",\"message\":\"{text}\"}}")
        };
        for (status, text, expected) in [
            (
                422,
                "Cannot create new attendance record for Ada, the employee hasn't checked out since 1",
                "never",
            ),
            (
                422,
                "Cannot create new attendance record for Ada, the employee was already checked in on 1",
                "never",
            ),
            (
                404,
                "Record does not exist or has been deleted.\\n(Record: hr.employee(99,), User: 2)",
                "never",
            ),
            (422, "Check Out time cannot be earlier than Check In time.", "never"),
            (403, "Uh-oh! Looks like you have stumbled upon some top-secret records.", "refused"),
            (403, "You are not allowed to create 'Attendance' (hr.attendance) records.", "refused"),
            (404, "Not Found", "refused"),
            (401, "Invalid apikey", "refused"),
        ] {
            assert_eq!(word(&sort(&ODOO, status, &raised(text))), expected, "{text}");
        }
    }

    #[test]
    fn words_of_receiver_are_not_kept() {
        for (text, expected) in [
            ("", "status 422"),
            ("Jane Doe is not allowed here", "status 422"),
            ("{\"message\": \"Jane Doe\", \"name\": \"Jane\"}", "status 422"),
            ("{\"name\": \"Jane Error\"}", "status 422"),
            ("{\"name\": \"Zo\\u00ebError\"}", "status 422"),
            ("{\"name\": 1, \"exc_type\": [\"KeyError\"]}", "status 422"),
            (
                "{\"exc_type\": \"ValidationError\", \"exception\": \"Jane\"}",
                "status 422, ValidationError",
            ),
            ("{\"name\": \"odoo.exceptions.UserError\"}", "status 422, odoo.exceptions.UserError"),
        ] {
            assert_eq!(describe(422, text), expected, "{text:?}");
        }
        let long = format!("{{\"name\": \"{}Error\"}}", "a".repeat(ERROR_CLASS_BYTES_MAX));
        assert_eq!(describe(422, &long), "status 422");
    }
}
