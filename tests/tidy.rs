//! Checks of the code itself: the layout is the architecture, so the layout is tested.

use std::fs;
use std::path::{Path, PathBuf};

/// The flow, upstream first. A module may use itself and what stands in an earlier row; neither what is downstream nor its
/// neighbours in the row.
const FLOW: &[&[&str]] = &[
    &["clock", "histogram"],
    &["health"],
    &["recognise::picture", "recognise::face"],
    &["recognise::frame", "recognise::align", "recognise::exposure"],
    &["recognise::quality", "recognise::gallery"],
    &["recognise::engine", "recognise::decision", "recognise::pad", "recognise::change"],
    &["recognise::track", "recognise::attention"],
    &["recognise::live", "recognise::still"],
    &["attend", "enrol"],
    &["record::event"],
    &["record::seal", "record::command", "record::authority"],
    &["record::portable", "record::signer"],
    &["record::export", "record::receipt"],
    &["record::store", "record::ids"],
    &["record::outbox"],
    &["camera", "vision", "mqtt", "mongo", "http"],
    &["config"],
    &["app"],
    &["cli"],
];

/// Modules that only compute, and what they must not mention.
const PURE: &[&str] =
    &["recognise", "attend", "enrol", "record::event", "record::command", "record::authority"];
const IMPURE: &[&str] =
    &["tokio", "rusqlite", "ort::", "std::fs", "std::net", "Instant::now", "SystemTime::now"];

/// Lines a file may have. Longer ones are split by what their parts are for.
const LINES_MAX: usize = 800;

#[test]
fn the_code_keeps_to_the_flow() {
    let mut faults = Vec::new();
    for (module, text) in modules() {
        for (at, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(why) = fault(&module, code) {
                faults.push(format!("{module}:{}: {why}", at + 1));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_check_catches_what_it_is_for() {
    for (module, code) in [
        ("recognise::decision", "use crate::record::store::Store;"), // downstream
        ("recognise::decision", "let now = Instant::now();"),        // impure
        ("mqtt::link", "use crate::vision::Vision;"),                // neighbour
        ("helpers", "fn help() {}"),                                 // outside the flow
    ] {
        assert!(fault(module, code).is_some(), "{module}: {code}");
    }
    assert_eq!(fault("record::store::writer", "use crate::record::event::Event;"), None);
    assert_eq!(fault("recognise::live", "FrameReport::default()"), None);
}

#[test]
fn every_file_says_what_it_is_for_and_is_short() {
    for (module, text) in modules() {
        let is_test = module.ends_with("::tests");
        assert!(is_test || text.starts_with("//!"), "{module} does not begin with what it is for");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{module} has {lines} lines; at most {LINES_MAX}");
    }
}

#[test]
fn the_readme_names_every_command() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in
        rollcall::cli::command().get_subcommands().filter(|command| !command.is_hide_set())
    {
        let name = command.get_name();
        assert!(
            readme.contains(&format!("`rollcall {name}")),
            "README.md does not name `rollcall {name}`"
        );
    }
}

#[test]
fn no_photograph_is_committed() {
    let listed = std::process::Command::new("git").args(["ls-files"]).current_dir(root()).output();
    // Outside a repository (an unpacked source package) there is nothing to check.
    let Ok(listed) = listed else { return };
    let photographs = ["jpg", "jpeg", "webp", "heic"];
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let extension =
            Path::new(file).extension().unwrap_or_default().to_string_lossy().to_lowercase();
        assert!(!photographs.contains(&extension.as_str()), "{file} is a photograph");
    }
}

#[test]
fn the_package_s_changelog_begins_with_this_version() {
    let changelog = fs::read_to_string(root().join("cross/debian/changelog")).unwrap();
    let begins = format!("rollcall ({}) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&begins), "not {begins:?}: {changelog}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each module by its path, with its text; without the files that only list modules.
fn modules() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut found = Vec::new();
    for file in rust_files(&src) {
        let inside = file.strip_prefix(&src).expect("found below src").with_extension("");
        let module = inside.to_string_lossy().replace('/', "::");
        let module = module.trim_end_matches("::mod").to_owned();
        if !["lib", "main", "recognise", "record"].contains(&module.as_str()) {
            found.push((module, fs::read_to_string(&file).expect("source is UTF-8")));
        }
    }
    found
}

fn fault(module: &str, code: &str) -> Option<String> {
    let Some((row, name)) = place(module) else {
        return Some(format!("`{module}` has no place in FLOW"));
    };
    for named in code.split("crate::").skip(1) {
        let Some((their_row, their_name)) = place(named) else {
            return Some(format!("`crate::{named}` does not begin with a module of FLOW"));
        };
        if row <= their_row && name != their_name {
            return Some(format!("`{name}` may not use `{their_name}`: it is not upstream"));
        }
    }
    let pure = PURE.iter().any(|it| is_within(module, it));
    let banned = IMPURE.iter().find(|word| pure && mentions(code, word))?;
    Some(format!("`{module}` only computes and may not mention `{banned}`"))
}

/// As a word of its own: `Report::` is not `ort::`.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn place(path: &str) -> Option<(usize, &'static str)> {
    FLOW.iter().enumerate().find_map(|(row, names)| {
        names.iter().find(|name| is_within(path, name)).map(|name| (row, *name))
    })
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    files
}
