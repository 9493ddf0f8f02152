#!/usr/bin/env python3
"""The daemon with a camera of libcamera, by `[camera] source = "pipe"`: Debian's libcamera and GStreamer, and its kernel.

    libcamera.py [--program FILE] [--suite trixie]

libcamera's virtual pipeline shows a photograph. It takes its buffers from the kernel (udmabuf or a DMA heap), which not every
kernel has, so that the packages of a suite run in an emulated machine with the kernel of that suite; the daemon is in there,
too. Enrols the photograph's person from another photograph, and waits for the attendance with `preset = "gstreamer"`
(libcamerasrc). Then gst-launch-1.0 is killed: the camera is lost, and back.

Needs `make setup`, a built daemon, and at the first run Debian's packages from the network (150 MB, of
which 100 MB stay in .cache/libcamera), and root if programs must be installed. Emulated processors are slow: some minutes.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from common import PHOTOS, ROOT, check, say

sys.path.insert(0, str(ROOT / "tests" / "power_cut"))
import machine  # noqa: E402

PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio"}
PACKAGES = ["libcamera-tools", "libcamera-ipa", "gstreamer1.0-libcamera", "gstreamer1.0-tools", "gstreamer1.0-plugins-base"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What the packages name for windows and fonts, which no test here opens. The machine has its whole root in memory.
UNWANTED = re.compile("libllvm|mesa-|libz3-|libicu|libqt|qt6|fonts-|iso-codes|xkb-data|x11-common|libx11-data|perl|shared-mime")
# Somebody, to enrol and to show: two photographs of different years.
ENROLLED, SHOWN = PHOTOS / "obama.jpg", PHOTOS / "obama2.jpg"
# Reaching this is a failure: an emulated processor takes some seconds for a face.
PATIENCE_S = 600

# The shape of the photograph: the virtual pipeline scales to this without keeping it. The sides are multiples of 16, because it
# writes its rows without padding.
VIRTUAL = """\
%YAML 1.1
---
"Door":
  supported_formats:
  - width: 624
    height: 1200
    frame_rates: [ 10, 30 ]
  frames:
    path: "/door/shown.jpg"
  location: "CameraLocationExternal"
  model: "Door"
"""

CONFIG = """\
[device]
site = "hq"
name = "door-1"
[storage]
directory = "/state"
[clock]
trust = "always"
[camera]
source = "pipe"
fps = 2.0
stall_after = "1m"
preset = "gstreamer"
width = 480
height = 720
[recognition]
models = "/door/models"
runtime_library = "/door/libonnxruntime.so"
threads = 1
samples_min = 1
lost_after = "30s"
[[venue]]
id = "main"
"""

# The first process of the machine.
INIT = """\
#!/usr/bin/busybox sh
export PATH=/usr/bin:/usr/sbin HOME=/root LC_ALL=C
for applet in cat grep head kill ln ls mount sed sh sleep tail time tr uname; do
    /usr/bin/busybox ln -s busybox "/usr/bin/$applet"
done
/usr/bin/busybox mkdir -p /dev /proc /sys /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec < /dev/null > /dev/ttyS0 2>&1
rollcall() { /door/rollcall --config /door/config.toml "$@"; }
attended() { rollcall attendance --json | tr -d '\\n'; }
count() { grep -c "$1" /tmp/log; }
# libcamerasrc may have ended by itself before.
is_streaming() { [ $(($(count 'camera streaming') + $(count 'camera back'))) -gt "$(count 'camera lost')" ]; }
is_back_again() { [ "$(count 'camera back')" -gt "$backs" ]; }
child() { cat /proc/$daemon/task/*/children | tr ' ' '\\n' | head -n 1; }
# Waits for a command that holds; gives up when the daemon has ended.
until_holds() { until "$@" > /dev/null 2>&1; do kill -0 "$daemon" || return 1; sleep 1; done; }
is_attended() { attended | grep -q somebody; }
echo "VM kernel $(uname -r), $(ls -d /dev/udmabuf /dev/dma_heap/* 2> /dev/null | tr '\\n' ' ')"
cam --list 2>&1
# Its first run lists the plug-ins, for which an emulated processor may need longer than `stall_after`.
time -p gst-inspect-1.0 --version 2>&1
rollcall enrol --id somebody --name Somebody /door/enrolled.jpg
# Not by the function, whose process would be a shell.
/door/rollcall --config /door/config.toml run > /tmp/log 2>&1 &
daemon=$!
until_holds is_attended
echo "VM attendance $(attended)"
echo "VM command $(tr '\\0' ' ' < "/proc/$(child)/cmdline")"
until_holds is_streaming
backs=$(count 'camera back')
kill -9 "$(child)"
until_holds is_back_again
echo "VM lost $(grep 'camera lost' /tmp/log | tail -n 1)"
kill -TERM $daemon
wait $daemon
echo "VM ended $?"
cat /tmp/log
echo "VM done"
echo o > /proc/sysrq-trigger
sleep 60
"""


def prepare(suite):
    """The root of the machine as an archive, its kernel, and what is in there; what is there already is not made again."""
    cache = ROOT / ".cache" / "libcamera" / suite
    if (cache / "complete").exists():
        return cache
    missing = sorted({package for program, package in PROGRAMS.items() if not machine.which(program)})
    if missing:
        say(f"installing {' '.join(missing)}")
        machine.run("apt-get", "update", "-q")
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        machine.run(*install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    say(f"making the root of Debian {suite} (once)")
    shutil.rmtree(cache, ignore_errors=True)
    root, kernel = cache / "root", cache / "kernel"
    packages = fetch(suite, cache)
    # As base-files has them.
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    for package in packages:
        unpack(package, kernel if package.name.startswith("linux-image-") else root)
    shutil.copy(next(kernel.glob("boot/vmlinuz-*")), cache / "vmlinuz")
    shutil.copy(machine.which("busybox"), root / "usr/bin/busybox")
    files = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
    with open(cache / "root.cpio", "wb") as out:
        subprocess.run([machine.which("cpio"), "-o", "-H", "newc", "--quiet"], cwd=root, input=files, stdout=out, check=True)
    named = re.compile("libcamera|gstreamer|linux-image")
    (cache / "complete").write_text("".join(f"{it.stem}\n" for it in packages if named.search(it.name)))
    for folder in (root, kernel, cache / "apt"):
        shutil.rmtree(folder)
    return cache


def fetch(suite, cache):
    """The packages with all that they depend on, by an apt of its own that takes nothing for installed."""
    listed = machine.run("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
    archive = next(line.split()[0] for line in listed.splitlines() if line.split()[1:] == ["Debian"])
    apt = cache / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {archive} {suite} main\n")
    options = {"State": apt, "State::Lists": apt / "lists", "State::status": "/dev/null", "Cache": apt}
    options |= {"Etc::SourceParts": "/dev/null", "Etc::SourceList": apt / "sources.list"}
    ours = [f"-oDir::{key}={value}" for key, value in options.items()] + ["-oAPT::Sandbox::User=", "-qq"]
    machine.run("apt-get", *ours, "update")
    depends = machine.run("apt-cache", *ours, "depends", "linux-image-cloud-amd64")
    kernel = re.search(r"Depends: (linux-image-\S+)", depends).group(1)
    machine.run("apt-get", *ours, "--yes", "--no-install-recommends", "--download-only", "install", *PACKAGES)
    machine.run("apt-get", *ours, "download", kernel, cwd=apt / "archives")
    return sorted(it for it in apt.glob("archives/*.deb") if not UNWANTED.match(it.name))


def unpack(package, root):
    """Without the scripts of the package: nothing here needs them."""
    root.mkdir(exist_ok=True)
    files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    left_out = [f"--exclude=./{folder}" for folder in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/lib/modules")]
    subprocess.run(["tar", "-x", "-C", root, "--keep-directory-symlink", *left_out], stdin=files.stdout, check=True)
    if files.wait():
        raise SystemExit(f"{package.name} cannot be unpacked")


def luggage(program):
    """What is ours, as a second archive behind the root."""
    runtime = ROOT / ".cache" / "onnxruntime" / "x86_64" / "libonnxruntime.so"
    files = {"door/rollcall": program, "door/libonnxruntime.so": runtime}
    files |= {"door/enrolled.jpg": ENROLLED, "door/shown.jpg": SHOWN}
    files |= {f"door/models/{path.name}": path for path in (ROOT / "models").iterdir() if path.is_file()}
    carried = [(name, 0o100755, path.read_bytes()) for name, path in files.items()]
    texts = {"door/config.toml": CONFIG, "init": INIT}
    texts |= { "usr/share/libcamera/pipeline/virtual/virtual.yaml": VIRTUAL}
    carried += [(name, 0o100755, text.encode()) for name, text in texts.items()]
    folders = {str(folder) for name, _, _ in carried for folder in pathlib.PurePath(name).parents if folder.name}
    return machine.archive([(name, 0o040755, b"") for name in sorted(folders | {"state"})] + carried)


def run_machine(cache, folder):
    """Everything that the machine printed."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]
    # QEMU 7.2 with two emulated processors misses how kernel 6.12 changes its own code (Oops: int3).
    command += ["-accel", "tcg", "-cpu", machine.PROCESSOR, "-smp", "1", "-m", "3000", "-serial", "stdio"]
    command += ["-kernel", cache / "vmlinuz", "-initrd", folder / "initrd"]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable"]
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )
    killer = threading.Timer(PATIENCE_S, process.kill)
    killer.start()
    lines, start = [], time.monotonic()
    for line in process.stdout:
        lines.append(line.rstrip())
        say(f"[{time.monotonic() - start:6.1f} s] {line.rstrip()}")
    process.wait()
    killer.cancel()
    return lines


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/rollcall")
    options.add_argument("--suite", default="trixie", help="trixie or a later one")
    options = options.parse_args()
    cache = prepare(options.suite)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with open(folder / "initrd", "wb") as out:
            with open(cache / "root.cpio", "rb") as root:
                shutil.copyfileobj(root, out)
            out.write(luggage(options.program))
        say((cache / "complete").read_text().strip())
        lines = run_machine(cache, folder)

    def of(kind):
        words = f"VM {kind} "
        return next((line.removeprefix(words) for line in lines if line.startswith(words)), "")

    check("the photograph's person is recorded", '"somebody"' in of("attendance"))
    check("the killed command was a loss, and the camera came back", "the command ended" in of("lost"))
    check("the daemon ended in order", of("ended") == "0")
    say("everything holds")


if __name__ == "__main__":
    main()
