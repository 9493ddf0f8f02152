//! Questions, answered by a flag, by the present configuration, or at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{anyhow, bail};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::app::exit;
use crate::app::exit::Failure;

/// The most bytes of an answer.
const BYTES_MAX: u64 = 4096;

/// One question.
pub struct Question<'a> {
    /// The flag that answers it: `--site SITE`.
    pub flag: &'a str,
    pub words: &'a str,
    /// The value of the flag.
    pub given: Option<&'a str>,
    /// The default.
    pub usual: Option<String>,
    /// Whether `usual` is an earlier answer and not only a guess.
    pub settled: bool,
}

pub struct Asker {
    terminal: bool,
    /// Take the defaults without asking.
    yes: bool,
}

impl Asker {
    pub fn new(yes: bool) -> Self {
        Self { terminal: !yes && io::stdin().is_terminal(), yes }
    }

    pub fn is_interactive(&self) -> bool {
        self.terminal
    }

    /// Returns the first answer that `check` accepts; `check` returns the value or what is wrong.
    pub fn ask<T>(
        &self,
        question: &Question<'_>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let Question { flag, words, given, usual, settled } = question;
        if let Some(given) = given {
            return check(given).map_err(|why| usage_error(anyhow!("{flag}: {given:?} {why}")));
        }
        if !self.terminal {
            let usual = usual.as_deref().filter(|_| self.yes || *settled);
            let Some(usual) = usual else {
                let hint = if self.yes { "" } else { ", or --yes for the default" };
                return Err(usage_error(anyhow!(
                    "{flag} is missing ({words}), and there is no terminal to ask on{hint}"
                )));
            };
            return check(usual).map_err(|why| usage_error(anyhow!("{flag}: {usual:?} {why}")));
        }
        loop {
            let shown = usual.as_ref().map_or_else(String::new, |usual| format!(" [{usual}]"));
            print_prompt(&format!("{words}{shown}: "))?;
            let line = read_line()?;
            let answer = match (line.trim(), usual) {
                ("", Some(usual)) => usual,
                (line, _) => line,
            };
            match check(answer) {
                Ok(taken) => return Ok(taken),
                Err(why) => print_prompt(&format!("  {answer:?} {why}\n"))?,
            }
        }
    }

    /// Asks for a secret without showing it. Returns `None` without input or terminal.
    pub fn ask_secret(&self, words: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        if !self.terminal {
            return Ok(None);
        }
        print_prompt(&format!("{words}: "))?;
        let typed = read_hidden_line()?;
        print_prompt("\n")?;
        Ok((!typed.is_empty()).then_some(typed))
    }

    /// Asks whether to keep an answer whose check failed.
    pub fn ask_whether_to_keep(&self, what: &str) -> anyhow::Result<Retry> {
        if !self.terminal {
            if self.yes {
                return Ok(Retry::Keep);
            }
            bail!("{what}: nothing was changed (--yes writes it anyway)");
        }
        loop {
            print_prompt("Keep it anyway (k), answer again (a), or stop (s)? [a]: ")?;
            match read_line()?.trim() {
                "" | "a" => return Ok(Retry::Again),
                "k" => return Ok(Retry::Keep),
                "s" => bail!("stopped: nothing was changed"),
                _ => {}
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Keep,
    Again,
}

pub fn usage_error(source: anyhow::Error) -> anyhow::Error {
    Failure { code: exit::USAGE, what: "setup needs an answer", source }.into()
}

fn print_prompt(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn read_line() -> anyhow::Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().take(BYTES_MAX).read_line(&mut line)?;
    anyhow::ensure!(read > 0, "interrupted: nothing was changed");
    Ok(line)
}

/// Hides the input of the terminal and restores it on drop. Each key is read as input, Ctrl-C among
/// them: a process that it killed would leave a terminal without echo.
struct HiddenInput(Termios);

impl HiddenInput {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Drain, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        tcsetattr(io::stdin(), OptionalActions::Drain, &self.0).ok();
    }
}

fn read_hidden_line() -> anyhow::Result<Zeroizing<String>> {
    let _hidden = HiddenInput::new()?;
    let mut typed = Zeroizing::new(Vec::new());
    // Through the same buffer as `read_line`, so that input typed ahead is not lost.
    let mut input = io::stdin().lock();
    let mut byte = [0];
    while typed.len() < BYTES_MAX as usize {
        let read = input.read(&mut byte)?;
        match byte[0] {
            _ if read == 0 => bail!("interrupted: nothing was changed"),
            b'\r' | b'\n' => break,
            3 | 4 => bail!("interrupted: nothing was changed"),
            8 | 127 => {
                // A whole character.
                while typed.pop().is_some_and(|it| it & 0xC0 == 0x80) {}
            }
            it => typed.push(it),
        }
    }
    let text = std::str::from_utf8(&typed)
        .map_err(|_| anyhow!("the input is not UTF-8: nothing was changed"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question<'a>(given: Option<&'a str>, usual: Option<&str>, settled: bool) -> Question<'a> {
        Question {
            flag: "--site SITE",
            words: "Site",
            given,
            usual: usual.map(str::to_owned),
            settled,
        }
    }

    #[test]
    fn unanswered_question_fails_without_terminal() {
        let check = |text: &str| {
            if text.contains(' ') { Err("has a blank".into()) } else { Ok(text.to_owned()) }
        };
        for (yes, given, usual, settled, expected) in [
            (false, Some("hq"), None, false, Ok("hq")),
            (false, Some("h q"), None, false, Err("--site SITE: \"h q\" has a blank")),
            (false, None, Some("hq"), true, Ok("hq")),
            (false, None, Some("hq"), false, Err("--site SITE is missing")),
            (true, None, Some("hq"), false, Ok("hq")),
            (true, None, None, false, Err("--site SITE is missing")),
        ] {
            let asked = Asker { terminal: false, yes }.ask(&question(given, usual, settled), check);
            match (asked, expected) {
                (Ok(answer), Ok(expected)) => assert_eq!(answer, expected),
                (Err(error), Err(part)) => {
                    let failure = error.downcast_ref::<Failure>().unwrap();
                    assert_eq!(failure.code, exit::USAGE);
                    assert!(format!("{error:#}").contains(part), "{error:#}");
                }
                (asked, expected) => panic!("{asked:?} is not {expected:?}"),
            }
        }
        assert!(
            Asker { terminal: false, yes: false }
                .ask_whether_to_keep("the broker is away")
                .is_err()
        );
        assert_eq!(
            Asker { terminal: false, yes: true }.ask_whether_to_keep("the broker is away").unwrap(),
            Retry::Keep
        );
    }
}
