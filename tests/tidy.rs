//! Checks of the code itself: the layout is the architecture, so the layout is tested.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The flow, upstream first. A module may use itself and what stands in an earlier row; neither
/// what is downstream nor its neighbours in the row.
const FLOW: &[&[&str]] = &[
    &["backoff", "bounded_file", "clock", "error_chain", "histogram", "ids", "rate_limiter"],
    &["health", "log_throttle"],
    &["recognise::guarded", "recognise::jpeg"],
    &["recognise::picture", "recognise::face"],
    &["recognise::frame", "recognise::decode", "recognise::align", "recognise::exposure"],
    &["recognise::quality", "recognise::stance", "recognise::gallery"],
    &["recognise::engine", "recognise::decision", "recognise::pad", "recognise::change"],
    &["recognise::track", "recognise::attention"],
    &["recognise::live", "recognise::still"],
    &["attend", "enrol"],
    &["wire::consent", "wire::chain"],
    &["wire::event"],
    &["wire::chain_check", "keys::secret_file"],
    &["keys::seal", "keys::jws", "wire::command"],
    &["wire::reply", "wire::subject", "keys::signer"],
    &["wire::export", "wire::csv", "wire::xlsx", "keys::receipt", "keys::checkpoint"],
    &["wire::subject_id_from_name"],
    &["store"],
    &["camera", "vision", "mqtt", "mongo", "webhook", "http", "broker"],
    &["config"],
    &["app::supervise", "app::exit"],
    &["app::state"],
    &["app::context"],
    &["app::pipeline", "app::monitor", "app::fleet", "app::maintenance"],
    &["app::commands", "app::delivery"],
    &["app::preview_socket"],
    &["app::links", "app::open", "app::shutdown"],
    &["app::broker", "app::http"],
    &["app::daemon"],
    &["app"],
    &["cli::photograph", "cli::progress", "cli::scratch", "cli::settings", "cli::table"],
    &["cli::sign", "cli::watch"],
    &["cli::console", "cli::command"],
    &["cli::consent"],
    &["cli::measure", "cli::backup"],
    &["cli::doctor"],
    // The other commands stand side by side, and do not know one another.
    &["cli::setup", "cli::restore", "cli::people"],
    &["cli"],
];

/// Modules that only compute, and what they must not mention.
const PURE: &[&str] = &[
    "recognise",
    "attend",
    "enrol",
    "wire::chain",
    "wire::chain_check",
    "wire::consent",
    "wire::event",
    "wire::command",
    "wire::reply",
    "keys::jws",
    "broker::packet",
    "broker::state",
    "broker::topic",
    "broker::websocket",
];
const IMPURE: &[&str] =
    &["tokio", "rusqlite", "ort::", "std::fs", "std::net", "Instant::now", "SystemTime::now"];

/// Lines a file may have. Longer ones are split by what their parts are for.
const LINES_MAX: usize = 800;

/// Where the unit tests of a file begin.
const UNIT_TESTS: &str = "#[cfg(test)]\nmod tests";

/// Files that only list modules, and so stand in no row.
const LISTS: &[&str] = &["lib", "main", "recognise", "wire", "keys"];

#[test]
fn modules_follow_the_layer_order() {
    let modules = modules();
    let mut faults = Vec::new();
    for (module, text) in modules.iter().filter(|it| !it.0.ends_with("::tests")) {
        let code = without_comments(text);
        // Unit tests may use whatever they test with.
        let code = code.split(UNIT_TESTS).next().unwrap_or_default();
        faults.extend(paths(module, code).iter().filter_map(|path| fault(module, path)));
        faults.extend(impurity(module, code));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn files_have_no_circular_imports() {
    let modules = modules();
    let circle = circle(&uses(&modules));
    assert!(circle.is_empty(), "a circle of files: {}", circle.join(" -> "));
}

#[test]
fn layout_checks_detect_violations() {
    for (module, code) in [
        ("recognise::decision", "use crate::store::Store;"), // downstream
        ("mqtt::link", "use crate::vision::Vision;"),        // neighbour
        // another wing, by a relative path
        ("app::commands::handlers", "use super::super::http::Refused;"),
        ("app::state::gallery", "use crate::app::{state, daemon};"), // in a group
        ("helpers", "use crate::clock::Clock;"),                     // outside the flow
    ] {
        let found = paths(module, code);
        assert!(
            found.iter().any(|path| fault(module, path).is_some()),
            "{module}: {code}: {found:?}"
        );
    }
    assert!(impurity("recognise::decision", "let now = Instant::now();").is_some());
    for (module, code) in [
        ("store::writer", "use crate::wire::event::Event;"),
        ("app::fleet::mqtt", "use super::wire;"),
        ("recognise::live", "FrameReport::default()"),
    ] {
        assert!(
            paths(module, code).iter().all(|path| fault(module, path).is_none()),
            "{module}: {code}"
        );
        assert_eq!(impurity(module, code), None);
    }
    let module = |name: &str, code: &str| (name.to_owned(), code.to_owned());
    let straight =
        [module("a", "use crate::b::B;"), module("b", "use crate::c::C;"), module("c", "")];
    assert_eq!(circle(&uses(&straight)), [""; 0]);
    let round = [
        module("a", "use crate::b::B;"),
        module("b", "crate::c::f()"),
        module("c", "use super::a::A;"),
    ];
    assert_eq!(circle(&uses(&round)).len(), 4);
}

#[test]
fn files_are_documented_and_short() {
    for (module, text) in modules() {
        let is_test = module.ends_with("::tests");
        assert!(is_test || text.starts_with("//!"), "{module} does not begin with what it is for");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{module} has {lines} lines; at most {LINES_MAX}");
    }
}

#[test]
fn every_command_is_documented() {
    let page = fs::read_to_string(root().join("docs/cli.md")).unwrap();
    for command in
        rollcall::cli::command().get_subcommands().filter(|command| !command.is_hide_set())
    {
        let name = command.get_name();
        assert!(
            page.contains(&format!("`rollcall {name}")),
            "docs/cli.md does not name `rollcall {name}`"
        );
    }
}

#[test]
fn no_photograph_is_committed() {
    let files = files_of_the_project();
    assert!(files.iter().any(|it| it == Path::new("Cargo.toml")), "{} files", files.len());
    let photographs = ["jpg", "jpeg", "webp", "heic"];
    for file in files {
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        assert!(!photographs.contains(&extension.as_str()), "{} is a photograph", file.display());
    }
}

/// What git has; outside a repository (an unpacked source package) what lies in the folder and was
/// not fetched or built.
fn files_of_the_project() -> Vec<PathBuf> {
    let listed = std::process::Command::new("git").args(["ls-files"]).current_dir(root()).output();
    if let Ok(listed) = listed.as_ref().map(|it| String::from_utf8_lossy(&it.stdout))
        && !listed.is_empty()
    {
        return listed.lines().map(PathBuf::from).collect();
    }
    let mut files = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let inside = path.strip_prefix(root()).unwrap();
            let is_made = [".cache", ".git", "target"].iter().any(|it| inside == Path::new(it));
            if path.is_dir() && !is_made {
                folders.push(path);
            } else if path.is_file() {
                files.push(inside.to_owned());
            }
        }
    }
    files
}

/// A module `needs_...` of the tests is one whose need `tests/run.sh` looks for; else nothing would
/// skip its tests.
#[test]
fn every_test_need_has_a_check() {
    let script = fs::read_to_string(root().join("tests/run.sh")).unwrap();
    let mut needs = 0;
    let is_test =
        |it: &PathBuf| it.starts_with("tests") && it.extension().is_some_and(|it| it == "rs");
    for file in files_of_the_project().into_iter().filter(is_test) {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("mod needs_")) {
            let need = line.trim_end_matches([' ', '{', ';']);
            let function = format!("has_{need}() {{");
            assert!(
                script.contains(&function),
                "{}: no {function} in tests/run.sh",
                file.display()
            );
            needs += 1;
        }
    }
    assert!(needs > 0);
}

#[test]
fn unit_loads_every_credential() {
    let unit = fs::read_to_string(root().join("systemd/rollcall.service")).unwrap();
    let page = fs::read_to_string(root().join("docs/systemd.md")).unwrap();
    let mut names = BTreeSet::from(["rollcall.key".to_owned()]);
    for (_, text) in modules().iter().filter(|it| it.0.starts_with("config::")) {
        let found = text.split("CREDENTIAL: &str = \"").skip(1);
        names.extend(found.filter_map(|it| it.split('"').next()).map(str::to_owned));
    }
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let line = format!("\nLoadCredential={name}\n");
        assert!(unit.contains(&line), "the unit does not load {name}");
        assert!(page.contains(&format!("| `{name}` |")), "docs/systemd.md does not list {name}");
    }
}

#[test]
fn package_changelog_starts_with_this_version() {
    let changelog = fs::read_to_string(root().join("cross/debian/changelog")).unwrap();
    let begins = format!("rollcall ({}) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&begins), "not {begins:?}: {changelog}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each module by its path, with its text; without the files that only list modules. Those of the
/// package `jpeg` by the path at which `recognise` has them.
fn modules() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (module, text) in modules_below("src") {
        if !LISTS.contains(&module.as_str()) {
            found.push((module, text));
        }
    }
    for (module, text) in modules_below("jpeg/src") {
        let path = format!("recognise::jpeg::{module}");
        let text = text.replace("crate::", "crate::recognise::jpeg::");
        found.push((path.trim_end_matches("::lib").to_owned(), text));
    }
    found
}

fn modules_below(folder: &str) -> Vec<(String, String)> {
    let folder = root().join(folder);
    let module = |file: &PathBuf| {
        let inside = file.strip_prefix(&folder).expect("found below it").with_extension("");
        let module = inside.to_string_lossy().replace('/', "::");
        let text = fs::read_to_string(file).expect("source is UTF-8");
        (module.trim_end_matches("::mod").to_owned(), text)
    };
    rust_files(&folder).iter().map(module).collect()
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, line| all + line + "\n")
}

/// Every path into this crate that the code of a module names, without the leading `crate::`.
fn paths(module: &str, code: &str) -> Vec<String> {
    let here: Vec<&str> = module.split("::").collect();
    let mut found = Vec::new();
    for (at, root) in ["crate::", "super::"].iter().flat_map(|root| code.match_indices(*root)) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let mut tree = &code[at + root.len()..];
        let mut base = if root == "crate::" { 0 } else { here.len() - 1 };
        while let Some(rest) = tree.strip_prefix("super::") {
            tree = rest;
            base = base.saturating_sub(1);
        }
        if tree.starts_with('*') {
            continue;
        }
        let prefix = here[..base].iter().fold(String::new(), |all, part| all + part + "::");
        flatten(&prefix, tree, &mut found);
    }
    found
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`. Ends where the path does.
fn flatten(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let end =
        tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(tree.len());
    let path = format!("{prefix}{}", &tree[..end]);
    let Some(group) = tree[end..].strip_prefix('{').filter(|_| path.ends_with("::")) else {
        found.push(path.trim_end_matches("::").trim_end_matches("::self").to_owned());
        return;
    };
    let mut depth = 0;
    let mut begin = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let part = group[begin..at].trim();
                if !part.is_empty() {
                    flatten(&path, part, found);
                }
                begin = at + 1;
                if c == '}' {
                    return;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// Which module uses which others, unit tests left out.
fn uses(modules: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let known: BTreeSet<&str> = modules.iter().map(|it| it.0.as_str()).collect();
    let module_of = |path: &str| {
        let ends = path.match_indices("::").map(|it| it.0).chain([path.len()]);
        ends.map(|end| &path[..end]).filter(|it| known.contains(it)).last().map(str::to_owned)
    };
    let mut uses = BTreeMap::new();
    for (module, text) in modules.iter().filter(|it| !it.0.ends_with("::tests")) {
        let code = without_comments(text);
        let code = code.split(UNIT_TESTS).next().unwrap_or_default();
        let others = paths(module, code)
            .iter()
            .filter_map(|path| module_of(path))
            .filter(|it| it != module)
            .collect();
        uses.insert(module.clone(), others);
    }
    uses
}

/// The modules of one circle, the first again at the end; empty if there is none.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    fn visit(
        module: &str,
        uses: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Vec<String> {
        if let Some(at) = way.iter().position(|it| it == module) {
            let mut circle = way[at..].to_vec();
            circle.push(module.to_owned());
            return circle;
        }
        if done.contains(module) {
            return Vec::new();
        }
        way.push(module.to_owned());
        for next in uses.get(module).into_iter().flatten() {
            let circle = visit(next, uses, way, done);
            if !circle.is_empty() {
                return circle;
            }
        }
        way.pop();
        done.insert(module.to_owned());
        Vec::new()
    }
    let mut done = BTreeSet::new();
    let found = uses.keys().map(|module| visit(module, uses, &mut Vec::new(), &mut done));
    found.into_iter().find(|circle| !circle.is_empty()).unwrap_or_default()
}

/// Why a module may not name a path.
fn fault(module: &str, path: &str) -> Option<String> {
    let Some((row, name)) = place(module) else {
        return Some(format!("`{module}` has no place in FLOW"));
    };
    let Some((their_row, their_name)) = place(path) else {
        return Some(format!("`{module}`: `crate::{path}` does not begin with a module of FLOW"));
    };
    // A file of a folder may use its neighbours there; circles of files are looked for by
    // themselves.
    let downstream = row <= their_row && name != their_name;
    downstream.then(|| format!("`{module}` may not use `{path}`: it is not upstream"))
}

fn impurity(module: &str, code: &str) -> Option<String> {
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
