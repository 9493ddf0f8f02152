//! `rollcall demo` as `make demo` runs it: it ends with the address of its page, and leaves nothing
//! behind whichever signal ends it.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::daemon::until;
use crate::support::{faces, http};
use rustix::process::{Pid, Signal, kill_process};

struct Demo {
    dir: tempfile::TempDir,
    child: Child,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
            command.env_remove(name);
        }
        let output = fs::File::create(dir.path().join("output")).unwrap();
        let child = command
            .arg("demo")
            .args(args)
            .arg("--photos")
            .arg(faces::demo("obama.jpg").parent().unwrap())
            .arg("--models")
            .arg(root.join("models"))
            .current_dir(root)
            .env("TMPDIR", dir.path().join("tmp"))
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap()
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("tmp")).unwrap();
        entries.map(|it| it.unwrap().path()).collect()
    }

    /// The processes that have to do with its folder: the daemon, and its broker.
    fn processes(&self) -> Vec<String> {
        let folder = self.dir.path().join("tmp").display().to_string();
        let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let lines = entries.filter_map(|it| fs::read_to_string(it.path().join("cmdline")).ok());
        lines.filter(|it| it.contains(&folder)).collect()
    }

    fn until_the_daemon_is_ready(&self) {
        until("the daemon is ready", || {
            let log = fs::read_to_string(self.folders().first()?.join("daemon.log")).ok()?;
            log.contains(" ready ").then_some(())
        });
    }

    fn end_by(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        until("the demo has ended", || self.child.try_wait().unwrap());
        until("so has its daemon", || self.processes().is_empty().then_some(()));
        if signal != Signal::KILL {
            assert_eq!(self.folders(), [""; 0].map(PathBuf::from), "{signal:?}");
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One after the other: two at once would want the same port for the page.
#[test]
fn demo_ends_with_its_page_and_no_trace() {
    kept_demo_ends_with_its_page();
    signals_end_the_demo_without_a_trace();
}

fn kept_demo_ends_with_its_page() {
    let mut demo = Demo::start(&["--keep"]);
    until("the demo says what to try", || {
        let status = demo.child.try_wait().unwrap();
        assert!(status.is_none(), "it ended with {status:?}: {}", demo.output());
        demo.output().contains("Open it in a browser:").then_some(())
    });
    let output = demo.output();
    let last = output.trim_end().lines().last().unwrap();
    let address = last.split("http://").nth(1).and_then(|it| it.strip_suffix('/')).unwrap();
    let page = http::get(address.to_socket_addrs().unwrap().next().unwrap(), "/", &[]);
    assert_eq!(page.status, 200);
    assert!(output.contains("enrol --id me") && output.contains("*People* enrols you"), "{output}");
    demo.end_by(Signal::TERM);
}

fn signals_end_the_demo_without_a_trace() {
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::KILL]
    {
        let demo = Demo::start(&[]);
        demo.until_the_daemon_is_ready();
        demo.end_by(signal);
    }
    // Before there is a daemon.
    let demo = Demo::start(&[]);
    until("its folder is there", || demo.folders().first().map(drop));
    demo.end_by(Signal::TERM);
}
