//! How much a visit writes to the card: counted by the process, and by the block device below it
//! with what the file system adds. The bound is there so that nobody makes it worse unnoticed.
//!
//! By hand, the figures of docs/endurance.md (as root, for the block device):
//! `E2E_VISITS=300 E2E_IDLE_S=300 cargo nextest run --test daemon wear:: --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::fs;

use crate::support::client::Client;
use crate::support::daemon::{Daemon, Home, scaled, until};
use crate::support::faces::{Faces, enrolment};
use crate::support::mosquitto::Mosquitto;
use crate::support::volume::{Volume, in_own_mounts};

const VISITS: usize = 25;
const IDLE_S: usize = 0;
/// Measured were 59,000. Room for what else the minute may bring: the log written back, the file
/// system's own bookkeeping.
const BYTES_PER_VISIT_MAX: u64 = 150_000;

/// One visit after the other, slow enough that none shares a commit with the next, and that a slow
/// machine has its samples of each.
const CAMERA: &str = "[camera]\nsource = \"replay\"\npath = \"visits.csv\"\nfps = 4\nshow = \"1500ms\"\ngap = \"1s\"\n\
                      repeat = true\n[[venue]]\nid = \"main\"\nre_entry_gap = \"0s\"\n\
                      [recognition]\nmodels = \"MODELS\"\nlost_after = \"300ms\"\n";

#[derive(Clone, Copy)]
struct Written {
    process: u64,
    device: Option<u64>,
    log: u64,
}

impl Written {
    fn now(home: &Home, volume: &Volume, daemon: &Daemon) -> Self {
        // What waits in the kernel's memory is on its way; waiting for it here adds nothing to it.
        rustix::fs::syncfs(fs::File::open(home.state()).unwrap()).unwrap();
        let io = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        let process = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "))
            .unwrap()
            .parse()
            .unwrap();
        let log = fs::metadata(home.state().join("rollcall.db-wal")).unwrap().len();
        Self { process, device: volume.device_bytes(), log }
    }

    fn since(self, before: Self) -> Self {
        let device = self.device.zip(before.device).map(|(now, then)| now - then);
        Self {
            process: self.process - before.process,
            device,
            log: self.log.saturating_sub(before.log),
        }
    }

    /// What the card sees, as far as it can be told here.
    fn bytes(self) -> u64 {
        self.device.unwrap_or(self.process)
    }
}

/// Memory has no counter: only the device below a file system has one, and mounting that needs
/// root.
mod needs_root {
    use std::fmt::Write as _;
    use std::fs;
    use std::time::Duration;

    use super::{
        BYTES_PER_VISIT_MAX, CAMERA, Client, Faces, Home, IDLE_S, Mosquitto, VISITS, Volume,
        Written, enrolment, in_own_mounts, scaled, until,
    };

    #[test]
    fn visit_writes_few_bytes() {
        in_own_mounts("visit_writes_few_bytes", || {
            let visits = scaled("E2E_VISITS", VISITS);
            let idle_s = scaled("E2E_IDLE_S", IDLE_S);
            let broker = Mosquitto::start();
            let client = Client::connect(broker.port());
            let models = format!("{}/models", env!("CARGO_MANIFEST_DIR"));
            let home = Home::new(broker.port(), &CAMERA.replace("MODELS", &models));
            let volume = Volume::mount(&home.state(), 64);
            fs::write(home.path("visits.csv"), "-,100,0\n").unwrap();
            let daemon = client.started(&home);
            let mut shown = String::new();
            for person in Faces::find().people.iter().take(8) {
                let enrolled = client.request(
                    "enrol",
                    &format!("enrol-{}", person.id),
                    enrolment(&person.id, &person.id, &person.enrol),
                );
                if enrolled["ok"] == true {
                    writeln!(
                        shown,
                        "{}",
                        person.probes.first().unwrap_or(&person.enrol[0]).display()
                    )
                    .unwrap();
                }
            }
            let idle = Written::now(&home, &volume, &daemon);
            std::thread::sleep(Duration::from_secs(idle_s as u64));
            let idle = Written::now(&home, &volume, &daemon).since(idle);
            fs::write(home.path("visits.csv"), shown).unwrap();

            let attendances = || client.received_on("event/attendance").len();
            let first = until("somebody comes", || Some(attendances()).filter(|count| *count > 0));
            let before = Written::now(&home, &volume, &daemon);
            let mut last = first;
            while last < first + visits {
                last = until("another visit", || Some(attendances()).filter(|count| *count > last));
            }
            let written = Written::now(&home, &volume, &daemon).since(before);
            let visits = (last - first) as u64;
            assert!(daemon.terminate().success(), "{}", home.log());

            let per_visit = written.bytes() / visits;
            println!(
                "{visits} visits: {per_visit} bytes each, {} by the process",
                written.process / visits
            );
            println!("log grown by {} pages in all, or begun anew", written.log / 4120);
            if idle_s > 0 {
                let day = |bytes: u64| (bytes * 86_400 / idle_s as u64) >> 20;
                println!(
                    "nobody there: {} MiB a day, {} by the process",
                    day(idle.bytes()),
                    day(idle.process)
                );
            }
            assert!(per_visit <= BYTES_PER_VISIT_MAX, "{per_visit} bytes");
            assert!(
                written.process > 0,
                "nothing was counted: the state directory is not on a disk"
            );
        });
    }
}
