//! Questions: answered by a flag, by what is known, or by whoever sits at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{anyhow, bail};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::app::{Failure, exit};

/// No answer is longer.
const BYTES_MAX: u64 = 4096;

/// One question.
pub struct Question<'a> {
    /// The flag that answers it: `--site SITE`.
    pub flag: &'a str,
    pub words: &'a str,
    /// What the flag said.
    pub given: Option<&'a str>,
    /// What is taken when nothing is said.
    pub usual: Option<String>,
    /// Whether `usual` is somebody's answer, given before, and not only our guess.
    pub settled: bool,
}

pub struct Asker {
    terminal: bool,
    /// Take what is usual without asking.
    yes: bool,
}

impl Asker {
    pub fn new(yes: bool) -> Self {
        Self { terminal: !yes && io::stdin().is_terminal(), yes }
    }

    pub fn is_interactive(&self) -> bool {
        self.terminal
    }

    /// The first answer that `check` takes; it gives what is to be used, or what is wrong.
    pub fn ask<T>(
        &self,
        question: &Question<'_>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let Question { flag, words, given, usual, settled } = question;
        if let Some(given) = given {
            return check(given).map_err(|why| usage(anyhow!("{flag}: {given:?} {why}")));
        }
        if !self.terminal {
            let usual = usual.as_deref().filter(|_| self.yes || *settled);
            let Some(usual) = usual else {
                let hint = if self.yes { "" } else { ", or --yes for what is usual" };
                return Err(usage(anyhow!(
                    "{flag} is missing ({words}), and there is no terminal to ask on{hint}"
                )));
            };
            return check(usual).map_err(|why| usage(anyhow!("{flag}: {usual:?} {why}")));
        }
        loop {
            let shown = usual.as_ref().map_or_else(String::new, |usual| format!(" [{usual}]"));
            say(&format!("{words}{shown}: "))?;
            let line = line()?;
            let answer = match (line.trim(), usual) {
                ("", Some(usual)) => usual,
                (line, _) => line,
            };
            match check(answer) {
                Ok(taken) => return Ok(taken),
                Err(why) => say(&format!("  {answer:?} {why}\n"))?,
            }
        }
    }

    /// What nobody may see on the screen; none when nothing was typed, or there is nobody to ask.
    pub fn secret(&self, words: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        if !self.terminal {
            return Ok(None);
        }
        say(&format!("{words}: "))?;
        let typed = hidden_line()?;
        say("\n")?;
        Ok((!typed.is_empty()).then_some(typed))
    }

    /// What to do about something that is not good.
    pub fn keep(&self, what: &str) -> anyhow::Result<Choice> {
        if !self.terminal {
            if self.yes {
                return Ok(Choice::Keep);
            }
            bail!("{what}: nothing was changed (--yes writes it all the same)");
        }
        loop {
            say("Keep it all the same (k), answer again (a), or stop (s)? [a]: ")?;
            match line()?.trim() {
                "" | "a" => return Ok(Choice::Again),
                "k" => return Ok(Choice::Keep),
                "s" => bail!("stopped: nothing was changed"),
                _ => {}
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Keep,
    Again,
}

pub fn usage(source: anyhow::Error) -> anyhow::Error {
    Failure { code: exit::USAGE, what: "setup needs an answer", source }.into()
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn line() -> anyhow::Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().take(BYTES_MAX).read_line(&mut line)?;
    anyhow::ensure!(read > 0, "the questions were broken off: nothing was changed");
    Ok(line)
}

/// The terminal shows nothing, and is put back whatever happens. It gives us each key, Ctrl-C among them: a process that dies
/// of it would leave a terminal that shows nothing.
struct Hidden(Termios);

impl Hidden {
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

impl Drop for Hidden {
    fn drop(&mut self) {
        tcsetattr(io::stdin(), OptionalActions::Drain, &self.0).ok();
    }
}

fn hidden_line() -> anyhow::Result<Zeroizing<String>> {
    let _hidden = Hidden::new()?;
    let mut typed = Zeroizing::new(Vec::new());
    // Byte by byte through the same buffer as `line`: what was typed ahead is not lost.
    let mut input = io::stdin().lock();
    let mut byte = [0];
    while typed.len() < BYTES_MAX as usize {
        let read = input.read(&mut byte)?;
        match byte[0] {
            _ if read == 0 => bail!("the questions were broken off: nothing was changed"),
            b'\r' | b'\n' => break,
            3 | 4 => bail!("the questions were broken off: nothing was changed"),
            8 | 127 => {
                // A whole character.
                while typed.pop().is_some_and(|it| it & 0xC0 == 0x80) {}
            }
            it => typed.push(it),
        }
    }
    let text = std::str::from_utf8(&typed)
        .map_err(|_| anyhow!("what was typed is not UTF-8: nothing was changed"))?;
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
    fn without_a_terminal_an_answer_is_known_or_missing() {
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
        assert!(Asker { terminal: false, yes: false }.keep("the broker is away").is_err());
        assert_eq!(
            Asker { terminal: false, yes: true }.keep("the broker is away").unwrap(),
            Choice::Keep
        );
    }
}
