use std::fs;

use super::*;
use crate::backoff::Backoff;
use crate::camera::encoded::{Coding, Kind, Raster};
use crate::camera::jpegs::Spec;
use crate::camera::view::View;
use crate::clock::Stopwatch;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
const STALL: Duration = Duration::from_millis(300);

fn shell(script: &str) -> PipeSettings {
    let stream = StreamSettings {
        coding: Coding::Jpeg,
        fps: 10.0,
        stall_after: Duration::from_secs(20),
        view: View::default(),
        timing: Timing::Arrival,
    };
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    PipeSettings { command, input: None, preset: None, stream }
}

fn stalling(script: &str) -> PipeSettings {
    let mut settings = shell(script);
    settings.stream.stall_after = STALL;
    settings
}

fn grey(width: usize, height: usize) -> Coding {
    Coding::Raster(Raster { kind: Kind::Grey, width, height, stride: width, full_range: true })
}

fn camera(settings: PipeSettings) -> PipeCamera {
    let short = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
    PipeCamera::retrying(settings, Retry::within(short))
}

/// Asks until something comes that is neither nothing nor damage.
fn next(camera: &mut PipeCamera) -> Result<Next, CameraFault> {
    let watch = Stopwatch::start();
    loop {
        assert!(watch.elapsed() < PATIENCE, "nothing comes");
        match camera.next() {
            Ok(Next::Nothing) | Err(CameraError::Damaged { .. }) => {}
            Ok(next) => return Ok(next),
            Err(CameraError::Lost(fault)) => return Err(fault),
            Err(error) => panic!("{error}"),
        }
    }
}

fn lost(settings: PipeSettings) -> CameraFault {
    next(&mut camera(settings)).expect_err("the camera is lost")
}

fn frames_until_loss(settings: PipeSettings) -> (usize, CameraFault) {
    let mut camera = camera(settings);
    let mut frames = 0;
    loop {
        match next(&mut camera) {
            Ok(Next::Frame(_)) => frames += 1,
            Ok(other) => panic!("{other:?}"),
            Err(fault) => return (frames, fault),
        }
    }
}

fn picture() -> Vec<u8> {
    Spec::flat(16, 8, &[(1, 1)]).bytes()
}

fn file(dir: &tempfile::TempDir, bytes: &[u8]) -> String {
    let path = dir.path().join("pictures");
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn is_running(pid: &str) -> bool {
    // Its state stands behind the name in parentheses.
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

/// A process that is not ours to wait for ends a moment after it was killed.
fn await_end(pids: &str) {
    let watch = Stopwatch::start();
    while pids.split_whitespace().any(is_running) {
        assert!(watch.elapsed() < PATIENCE, "still running: {pids}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pictures_of_a_command_become_frames() {
    let dir = tempfile::tempdir().unwrap();
    let clip = file(&dir, &picture().repeat(2));
    let (frames, fault) = frames_until_loss(shell(&format!("cat {clip}")));
    assert_eq!((frames, fault.kind), (2, FaultKind::CommandEnded));
    let raw = file(&dir, &[7; 16 * 8 * 2]);
    let mut settings = shell(&format!("cat {raw}"));
    settings.stream.coding = grey(16, 8);
    assert_eq!(frames_until_loss(settings).0, 2);
}

#[test]
fn last_line_of_dying_command_is_reason() {
    let fault =
        lost(shell("echo starting >&2; printf '\\033[31mno camera\\033[0m\\n' >&2; exit 3"));
    assert_eq!(fault.kind, FaultKind::CommandEnded);
    assert_eq!(fault.reason(), "the command ended (exit status: 3): no camera");
    let fault = lost(shell("kill -9 $$"));
    assert!(fault.reason().contains("signal: 9"), "{fault}");
}

#[test]
fn missing_program_is_its_own_fault() {
    let mut settings = shell("");
    settings.command = vec!["no-program-of-this-name".into()];
    let fault = lost(settings.clone());
    assert_eq!(fault.kind, FaultKind::ProgramMissing);
    assert!(fault.reason().contains("no-program-of-this-name"), "{fault}");
    settings.command = vec!["/etc/passwd".into()];
    assert_eq!(lost(settings).kind, FaultKind::ProgramDenied);
}

#[test]
fn silent_command_is_ended_as_stalled() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 600 & echo $$ $! > {}; echo waiting >&2; wait", pids.display());
    let fault = lost(stalling(&script));
    assert_eq!(fault.kind, FaultKind::Stalled);
    assert_eq!(fault.reason(), "stalled: no picture for 300 ms: waiting");
    let pids = fs::read_to_string(pids).unwrap();
    await_end(&pids);
}

#[test]
fn command_that_ignores_sigterm_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; (trap '' TERM; sleep 600) & echo $$ $! > {}; while :; do sleep 600; done",
        pids.display()
    );
    let mut camera = camera(stalling(&script));
    let watch = Stopwatch::start();
    assert_eq!(next(&mut camera).unwrap_err().kind, FaultKind::Stalled);
    assert!(watch.elapsed() >= STALL);
    let pids = fs::read_to_string(pids).unwrap();
    await_end(&pids);
    assert!(camera.stuck.is_none());
}

#[test]
fn dropped_camera_ends_its_command() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let mut camera = camera(shell(&format!("echo $$ > {}; sleep 600", pid.display())));
    let watch = Stopwatch::start();
    while fs::read_to_string(&pid).is_ok_and(|it| it.is_empty()) || !pid.exists() {
        assert!(matches!(camera.next(), Ok(Next::Nothing)) && watch.elapsed() < PATIENCE);
    }
    let pid = fs::read_to_string(pid).unwrap();
    assert!(is_running(&pid));
    drop(camera);
    assert!(!is_running(&pid));
}

#[test]
fn garbage_is_no_picture_and_not_held() {
    let mut camera = camera(stalling("exec yes garbage"));
    assert_eq!(next(&mut camera).unwrap_err().kind, FaultKind::NotPictures);
    let fault = lost(stalling("printf '\\377\\330\\377\\000garbage'; sleep 600"));
    assert_eq!(fault.kind, FaultKind::Damaged);
}

#[test]
fn flood_of_pictures_is_thinned() {
    let dir = tempfile::tempdir().unwrap();
    // 20 000 pictures at once: at ten a second, one is due and one may be early.
    let clip = file(&dir, &picture().repeat(20_000));
    let (frames, _) = frames_until_loss(shell(&format!("cat {clip}")));
    let watch = Stopwatch::start();
    let (again, _) = frames_until_loss(shell(&format!("cat {clip}")));
    let most = 3 + (watch.elapsed().as_secs_f32() * 10.0) as usize;
    assert!((2..=most).contains(&again) && frames >= 2, "{frames} {again} {most}");
}

#[test]
fn half_picture_is_damage_and_not_a_frame() {
    let dir = tempfile::tempdir().unwrap();
    let picture = picture();
    let half = &picture[..picture.len() / 2];
    let clip = file(&dir, &[half, &picture, half].concat());
    let (frames, fault) = frames_until_loss(shell(&format!("cat {clip}")));
    assert_eq!(frames, 1);
    assert!(fault.reason().contains("ended within a picture"), "{fault}");
}

#[test]
fn undecodable_pictures_end_the_command() {
    let mut camera = camera(shell("sleep 600"));
    assert!(matches!(camera.next(), Ok(Next::Nothing)));
    let limit = camera.settings.stream.stall_after;
    assert!(camera.unreadable_for(limit / 2, "why").is_ok() && camera.running.is_some());
    assert!(matches!(camera.unreadable_for(limit, "why"), Err(CameraError::Lost(_))));
    assert!(camera.running.is_none());
}

#[test]
fn secret_input_is_never_a_reason() {
    let mut settings = shell("read -r url; echo \"cannot open $url\" >&2; exit 1");
    settings.input = Some(Secret::new("rtsp://admin:hunter2@192.0.2.4/s?k=v\n".into()));
    let fault = lost(settings);
    assert!(fault.reason().contains("cannot open"), "{fault}");
    for part in ["hunter2", "admin", "k=v"] {
        assert!(!fault.reason().contains(part), "{fault}");
    }
}

#[test]
fn recording_ends_when_its_command_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let clip = file(&dir, &picture().repeat(50));
    let play = |script: &str| {
        let mut settings = shell(script);
        settings.stream.timing = Timing::Recording;
        let mut camera = camera(settings);
        let mut frames = 0;
        loop {
            match next(&mut camera) {
                Ok(Next::Frame(_)) => frames += 1,
                end => return (frames, end.map(|_| ()).map_err(|fault| fault.kind)),
            }
        }
    };
    assert_eq!(play(&format!("cat {clip}")), (50, Ok(())));
    assert_eq!(play(&format!("cat {clip}; exit 1")), (50, Err(FaultKind::CommandEnded)));
    assert_eq!(play("exit 0"), (0, Err(FaultKind::CommandEnded)));
}

#[test]
fn endless_errors_do_not_hold_up_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let clip = file(&dir, &picture());
    let script = format!("yes error >&2 & cat {clip}; wait");
    assert!(matches!(next(&mut camera(shell(&script))), Ok(Next::Frame(_))));
}

/// Processes that ended and were not waited for, and open pipes and process descriptors.
fn left_over() -> (usize, usize) {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let zombies = processes.filter(|it| {
        let stat = fs::read_to_string(it.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.next() == Some("Z") && fields.next() == Some(&own)
    });
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten().filter(|it| {
        let target = fs::read_link(it.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        target.starts_with("pipe:") || target.contains("pidfd")
    });
    (zombies.count(), descriptors.count())
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn two_hundred_restarts_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // A large picture and a half one each time: what is not given back shows.
    let bytes = vec![7; 1280 * 800 * 3 / 2];
    let clip = file(&dir, &bytes);
    let mut settings = shell(&format!("cat {clip}; echo end >&2; exit 1"));
    settings.stream.coding = grey(1280, 800);
    let mut camera = camera(settings);
    let mut losses = 0;
    let mut before = (0, (0, 0));
    while losses < 200 {
        match next(&mut camera) {
            Ok(_) => {}
            Err(fault) => {
                assert!(fault.reason().ends_with("end"), "{fault}");
                losses += 1;
            }
        }
        if losses == 5 {
            before = (resident_bytes(), left_over());
        }
    }
    let grown = resident_bytes().saturating_sub(before.0);
    assert!(grown < 64 << 20, "{grown} bytes");
    let (zombies, descriptors) = left_over();
    // Other tests of this process may have some at this moment.
    assert!(zombies < before.1.0 + 50, "{zombies} {before:?}");
    assert!(descriptors < before.1.1 + 50, "{descriptors} {before:?}");
    assert!(camera.stuck.is_none());
}
