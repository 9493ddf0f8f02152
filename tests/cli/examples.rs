//! The commands that help texts and documents show are commands that exist: they are read as a shell
//! reads them and parsed as the program does. `tests/daemon/documents.rs` runs those that a machine
//! without a service can run.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::error::ErrorKind;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The simple commands of a script, as words: quotes are taken away, comments, redirections and what
/// is between commands are left out. What the shell would compute (`$(…)`) stays as it is written.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut chars = script.chars().peekable();
    let mut is_redirected = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c) => word.get_or_insert_default().push(c),
            },
            '\'' | '"' => {
                let quoted: String = chars.by_ref().take_while(|it| *it != c).collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '$' if chars.peek() == Some(&'(') => {
                let computed: String = chars.by_ref().take_while(|it| *it != ')').collect();
                word.get_or_insert_default().extend(["$", &computed, ")"]);
            }
            '#' if word.is_none() => while chars.next_if(|it| *it != '\n').is_some() {},
            c if c.is_whitespace() || "|&;<>".contains(c) => {
                // What follows `>` is a file.
                let word = word.take().filter(|_| !std::mem::take(&mut is_redirected));
                commands.last_mut().unwrap().extend(word);
                is_redirected |= "<>".contains(c);
                if "\n|&;".contains(c) {
                    commands.push(Vec::new());
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().unwrap().extend(word.filter(|_| !is_redirected));
    commands
}

/// The words of a command from the program on, if that is this one: behind variables and `sudo`.
fn of_rollcall(words: &[String]) -> Option<&[String]> {
    let is_variable = |it: &String| {
        it.split_once('=')
            .is_some_and(|it| it.0.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut words = &words[words.iter().take_while(|it| is_variable(it)).count()..];
    if words.first().is_some_and(|it| it == "sudo") {
        words = &words[1..];
        if words.first().is_some_and(|it| it == "-u") {
            words = &words[2..];
        }
    }
    let program = Path::new(words.first()?).file_name()?;
    (program == "rollcall").then_some(words)
}

/// Why a command would be refused by its words alone.
fn refusal(words: &[String]) -> Option<String> {
    let error = rollcall::cli::command().try_get_matches_from(words).err()?;
    let is_computed = words.iter().any(|it| it.contains("$("));
    let is_fine = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
        || is_computed && error.kind() == ErrorKind::ValueValidation;
    (!is_fine).then(|| format!("{}: {error}", words.join(" ")))
}

/// Each command without further ones below it, with its path.
fn leaves(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    let below: Vec<_> = command.get_subcommands().filter(|it| !it.is_hide_set()).collect();
    if below.is_empty() {
        return vec![(path.to_owned(), command.clone())];
    }
    below.into_iter().flat_map(|it| leaves(it, &format!("{path} {}", it.get_name()))).collect()
}

#[test]
fn every_help_has_an_example_that_parses() {
    let mut faults = Vec::new();
    let leaves = leaves(&rollcall::cli::command(), "rollcall");
    assert!(leaves.len() > 35, "{}", leaves.len());
    for (path, command) in leaves {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (_, examples) = help.split_once(":\n").unwrap_or_default();
        let examples = commands(examples);
        let shown: Vec<_> = examples.iter().filter_map(|it| of_rollcall(it)).collect();
        if !shown.iter().any(|it| it.join(" ").starts_with(&path)) {
            faults.push(format!("the help of `{path}` has no example"));
        }
        faults.extend(shown.into_iter().filter_map(refusal));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Why a shell would not read a script.
fn syntax_error(script: &str) -> Option<String> {
    let mut shell = Command::new("bash");
    let shell = shell.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn shell_blocks_of_documents_name_what_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut faults = Vec::new();
    let (mut blocks, mut parsed) = (0, 0);
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display();
        for block in text.split("```sh\n").skip(1).filter_map(|it| it.split("```").next()) {
            blocks += 1;
            faults.extend(syntax_error(block).map(|it| format!("{name}: {it}")));
            for words in commands(block) {
                if let Some(words) = of_rollcall(&words) {
                    parsed += 1;
                    faults.extend(refusal(words).map(|it| format!("{name}: {it}")));
                }
                if let [make, target, ..] = &words[..]
                    && make == "make"
                    && !makefile.contains(&format!("\n{target}:"))
                {
                    faults.push(format!("{name}: there is no `make {target}`"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(blocks > 20 && parsed > 25, "{blocks} blocks, {parsed} commands");
}

#[test]
fn scripts_are_read_as_a_shell_reads_them() {
    let words =
        |script: &str| commands(script).into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>();
    assert_eq!(
        words(
            "A=1 rollcall enrol --name 'My Name' \\\n  a.jpg > out.txt   # why\nrollcall x | head && b"
        ),
        [
            vec!["A=1", "rollcall", "enrol", "--name", "My Name", "a.jpg"],
            vec!["rollcall", "x"],
            vec!["head"],
            vec!["b"]
        ]
    );
    assert_eq!(words("a --to x/$(date +%F) \"b c\""), [["a", "--to", "x/$(date +%F)", "b c"]]);
    let sudo = &words("sudo -u rollcall rollcall status")[0];
    assert_eq!(of_rollcall(sudo), Some(&sudo[3..]));
    assert!(refusal(&["rollcall".into(), "enroll".into()]).is_some());
}
