#!/usr/bin/env python3
"""The real daemon with a real kernel camera, in a small virtual machine, from a bare machine to a verdict.

The guest is Debian's own kernel with its `uvcvideo` driver; a webcam in user space (USB/IP) shows photographs and can be
unplugged, stalled and made to send damage. The broker runs here; the guest reaches it at 10.0.2.2. This program tells the
guest what to do line by line and judges by what the daemon publishes and logs.

    run.py [--program FILE] [--cycles N] [--stalls N] [--only PART]

Parts: recognise (enrol, attend, loss and return, damage, YUYV), formats (the kernel's own test driver: YUYV, NV12, GREY,
controls, the error flag, errors of the stream), endure (unplug and stall again and again).
Installs what it needs (Debian packages) and keeps it in .cache/camera-vm. The photographs are those that `make setup` fetches.
"""

import argparse
import base64
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = ROOT / ".cache" / "photos"
CACHE = ROOT / ".cache" / "camera-vm"
HERE = pathlib.Path(__file__).resolve().parent
BASE = "rollcall/vm/door"
# The boot of the machine of the other test is shared.
sys.path.insert(0, str(ROOT / "tests" / "power_cut"))
import machine  # noqa: E402

# Two people: the photograph to enrol from, and the one to show (of the second there is only one).
FIRST = ("first", "obama.jpg", "obama3.jpg")
SECOND = ("second", "biden.jpg", "biden.jpg")

# The parts, with the drivers that each loads, and their parameters.
USB = {"vhci-hcd": "", "uvcvideo": ""}
VIVID = {"vivid": "n_devs=1 node_types=1 num_inputs=1 input_types=0"}
# The same in the way of image processors in boards: single-plane formats through the multi-planar interface.
PLANES = {"vivid": VIVID["vivid"] + " multiplanar=2"}
PARTS = {"recognise": USB, "formats": VIVID, "planes": PLANES, "endure": USB}

# Emulated processors are slow, and other work may run beside: reaching this is a failure, not a pause.
PATIENCE = 90


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


START = time.monotonic()


class Failed(Exception):
    pass


def prepare(program):
    """Kernel, programs, pictures. What is there already is not made again."""
    kernel = machine.prepare(CACHE, say, [*USB, *VIVID])
    target = CACHE / "tools"
    cargo = [os.environ.get("CARGO", "cargo"), "build", "--quiet", "--release", "--locked"]
    subprocess.run([*cargo, "--manifest-path", HERE / "tools" / "Cargo.toml", "--target-dir", target], check=True)
    pictures = CACHE / "pictures"
    pictures.mkdir(exist_ok=True)
    shown = [f"{name}={PHOTOS / shown}" for name, _, shown in (FIRST, SECOND)]
    subprocess.run([target / "release" / "pictures", pictures, *shown], check=True)
    stripped = CACHE / "rollcall"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    programs = [target / "release" / "webcam", target / "release" / "control", stripped]
    return kernel, programs, pictures


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    """A mosquitto of our own, and everything that the daemon publishes to it."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nlog_type error\nmax_packet_size 16777216\n")
        self.process = subprocess.Popen([machine.which("mosquitto"), "-c", config], stdin=subprocess.DEVNULL)
        self.messages, self.arrived = [], threading.Condition()
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        command = ["mosquitto_sub", "-p", str(self.port), "-q", "1", "-t", f"{BASE}/#", "-F", "%t %p"]
        self.subscriber = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.subscriber.stdout:
            topic, _, payload = line.rstrip("\n").partition(" ")
            try:
                message = json.loads(payload)
            except ValueError:
                message = payload
            with self.arrived:
                self.messages.append((topic.removeprefix(BASE + "/"), message))
                self.arrived.notify_all()

    def publish(self, topic, message):
        command = ["mosquitto_pub", "-p", str(self.port), "-q", "1", "-t", f"{BASE}/{topic}", "-s"]
        subprocess.run(command, input=json.dumps(message), text=True, check=True)

    def mark(self):
        return len(self.messages)

    def until(self, what, accept, since=0, patience=PATIENCE):
        """The first message from `since` on that `accept(topic, message)` takes."""
        end = time.monotonic() + patience
        with self.arrived:
            while True:
                for topic, message in self.messages[since:]:
                    if accept(topic, message):
                        return message
                left = end - time.monotonic()
                if left <= 0 or not self.arrived.wait(left):
                    raise Failed(f"not in time ({patience} s): {what}")

    def event(self, kind, what, since, accept=lambda _: True, patience=PATIENCE):
        return self.until(what, lambda topic, it: topic == f"event/{kind}" and accept(it), since, patience)

    def count(self, kind, since=0):
        return sum(1 for topic, _ in self.messages[since:] if topic == f"event/{kind}")

    def end(self):
        for process in (self.subscriber, self.process):
            process.terminate()
            process.wait()


def first_files(kernel, drivers, programs, pictures, config):
    """The guest's file system, all of it in memory."""
    carried = {"init": HERE / "init.sh", "bin/busybox": pathlib.Path(machine.which("busybox")), "bin/guest.sh": HERE / "guest.sh"}
    carried["etc/rollcall/config.toml"] = config
    runtime = ROOT / ".cache" / "onnxruntime" / "x86_64" / "libonnxruntime.so"
    carried["lib/libonnxruntime.so"] = runtime
    for program in programs:
        carried[f"bin/{program.name}"] = program
    for program in [*programs, runtime]:
        carried |= {f"lib/{name}": path for name, path in machine.libraries(program).items()}
    carried |= {f"img/{path.name}": path for path in pictures.iterdir()}
    carried |= {f"models/{path.name}": path for path in (ROOT / "models").iterdir() if path.is_file()}
    order = {name: "" for name in (kernel / "order").read_text().split()}
    for driver, parameters in drivers.items():
        names = (kernel / f"order-{driver}").read_text().split()
        order |= {name: "" for name in names if name not in order} | {names[-1]: parameters}
    carried |= {f"modules/{name}": kernel / name for name in order}
    folders = {"dev", "proc", "sys", "tmp", "run", "root"}
    folders |= {str(folder) for path in carried for folder in pathlib.PurePath(path).parents if folder.name}
    files = [(folder, 0o040755, b"") for folder in sorted(folders)]
    files.append(("lib64", 0o120777, b"lib"))
    files += [(path, 0o100755, source.read_bytes()) for path, source in carried.items()]
    files.append(("modules/order", 0o100644, "".join(f"{name} {words}\n" for name, words in order.items()).encode()))
    return machine.archive(files)


class Guest:
    """The machine, told what to do through a socket; what it prints is kept and shown."""

    def __init__(self, folder, kernel, programs, pictures, config, drivers):
        self.lines, self.printed = [], threading.Condition()
        self.kernel_log = folder / "kernel.log"
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        door.listen(1)
        (folder / "config.toml").write_text(config)
        initial = folder / "initrd"
        initial.write_bytes(first_files(kernel, drivers, programs, pictures, folder / "config.toml"))
        words = f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable time={int(time.time()) + 3}"
        words += f" port={door.getsockname()[1]}"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]
        command += ["-accel", "tcg,thread=multi", "-cpu", machine.PROCESSOR, "-smp", "2", "-m", "1400"]
        command += ["-kernel", kernel / "vmlinux", "-initrd", initial, "-append", words]
        command += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out"]
        command += ["-serial", f"file:{self.kernel_log}"]
        command += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"]
        command += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            errors="replace",
        )
        threading.Thread(target=self.listen, daemon=True).start()
        door.settimeout(PATIENCE)
        try:
            self.socket, _ = door.accept()
        except TimeoutError:
            self.process.kill()
            raise Failed("the guest did not come up") from None

    def listen(self):
        for line in self.process.stdout:
            line = line.rstrip("\r\n")
            print("    " + line, flush=True)
            with self.printed:
                self.lines.append(line)
                self.printed.notify_all()
        with self.printed:
            self.lines.append("VM gone")
            self.printed.notify_all()

    def tell(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def mark(self):
        return len(self.lines)

    def until(self, text, since=0, patience=PATIENCE):
        end = time.monotonic() + patience
        with self.printed:
            while True:
                for line in self.lines[since:]:
                    if text in line:
                        return line
                    if line == "VM gone" or " panic " in line:
                        raise Failed(f"the guest or the daemon died while waiting for {text!r}: {line}")
                left = end - time.monotonic()
                if left <= 0 or not self.printed.wait(left):
                    raise Failed(f"not in time ({patience} s): the line {text!r}")

    def ask(self, line, answer, patience=PATIENCE):
        since = self.mark()
        self.tell(line)
        return self.until(answer, since, patience)

    def measure(self):
        """Resident KiB, open descriptors, threads of the daemon."""
        return tuple(map(int, self.ask("measure", "VM measured").split()[-3:]))

    def explain(self):
        """Prints where the threads of the daemon and the kernel's own wait, and the kernel's last messages."""
        try:
            self.ask("explain", "VM explained")
        except (OSError, Failed) as failure:
            print(f"the guest does not answer ({failure}), QEMU ended: {self.process.poll()}; its kernel:", file=sys.stderr)
            print(self.kernel_log.read_text(errors="replace")[-8000:], file=sys.stderr)

    def end(self):
        try:
            self.tell("quit")
            self.socket.close()
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            pass
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def health(broker, what, accept, since, patience=PATIENCE):
    return broker.until(what, lambda topic, it: topic == "health" and accept(it), since, patience)


def enrol(broker, subject, photo):
    """Enrols somebody; asks again when an emulated processor was too slow for the time that the daemon gives it."""
    image = base64.b64encode((PHOTOS / photo).read_bytes()).decode()
    end = time.monotonic() + PATIENCE
    for number in itertools.count():
        request = f"enrol-{subject}-{number}"
        wanted = {"request_id": request, "subject": {"id": subject, "name": subject}, "images": [image]}
        broker.publish("command/enrol", wanted)
        reply = broker.until(f"the reply to the enrolment of {subject}", lambda topic, _: topic == f"reply/{request}")
        if reply.get("ok"):
            return
        if reply["error"]["code"] != "timed_out" or time.monotonic() > end:
            raise Failed(f"{subject} was not enrolled: {reply}")


def is_of(subject):
    return lambda event: (event.get("subject") or {}).get("id") == subject


def recognise(broker, guest):
    guest.tell("start ROLLCALL_CAMERA_FORMAT=auto")
    health(broker, "the camera streams", lambda it: it["camera"]["state"] == "streaming", 0)
    say("the camera streams")
    guest.ask("run rollcall --config /etc/rollcall/config.toml cameras", "VM ran 0")
    for name, photo, _ in (FIRST, SECOND):
        enrol(broker, name, photo)
        say(f"{name} is enrolled by MQTT")

    since = broker.mark()
    guest.tell("webcam show /img/first.jpg")
    by_mjpg = broker.event("attendance", "attendance of the first", since, is_of("first"))
    say(f"attended, by MJPG: score {by_mjpg['score']:.3f}, {by_mjpg['frames']} samples, {by_mjpg['latency_ms']} ms")
    guest.tell("webcam show /img/empty.jpg")

    for verb, back, reason in (("unplug", "plug", "unplugged"), ("stall", "resume", "stalled")):
        since, lines = broker.mark(), guest.mark()
        guest.tell(f"webcam {verb}")
        lost = broker.event("camera", f"{verb}: lost", since, lambda it: it["state"] == "lost")
        if reason not in lost["reason"]:
            raise Failed(f"the reason of the loss is {lost['reason']!r}")
        health(broker, f"{verb}: lost in health", lambda it: it["camera"]["state"] == "lost", since)
        guest.tell(f"webcam {back}")
        returned = broker.event("camera", f"{verb}: back", since, lambda it: it["state"] == "back")
        guest.until("camera back", lines)
        health(broker, f"{verb}: streaming again", lambda it: it["camera"]["state"] == "streaming", since)
        say(f"{verb}: lost ({lost['reason']}), back after {returned['lost_ms']} ms")

    freeze(broker, guest)
    damage(broker, guest)

    since = broker.mark()
    guest.ask("stop", "VM ended 0")
    guest.tell("start ROLLCALL_CAMERA_FORMAT=yuyv ROLLCALL_CAMERA_DEVICE=usb-door")
    guest.until('format="YUYV"', 0)
    by_yuyv = broker.event("attendance", "attendance of the first by YUYV", since, is_of("first"))
    apart = abs(by_yuyv["score"] - by_mjpg["score"])
    say(f"attended, by YUYV: score {by_yuyv['score']:.3f}, {apart:.3f} from that by MJPG")
    if apart > 0.05:
        raise Failed("the same photograph gives another score by another format")
    if broker.count("unknown") + broker.count("attack"):
        raise Failed("somebody was taken for a stranger")
    guest.ask("stop", "VM ended 0")


def freeze(broker, guest):
    """A driver that hangs when it is to stop: the loss is told nevertheless, and the camera is back after the cable was out."""
    since, lines = broker.mark(), guest.mark()
    guest.tell("webcam freeze")
    lost = broker.event("camera", "freeze: lost", since, lambda it: it["state"] == "lost")
    if "stalled" not in lost["reason"]:
        raise Failed(f"the reason of the loss is {lost['reason']!r}")
    health(broker, "freeze: lost in health", lambda it: it["camera"]["state"] == "lost", since)
    guest.ask("hung", "VM hung in")
    guest.tell("webcam unplug")
    guest.tell("webcam plug")
    returned = broker.event("camera", "freeze: back", since, lambda it: it["state"] == "back")
    guest.until("camera back", lines)
    say(f"freeze: lost ({lost['reason']}), back after {returned['lost_ms']} ms")


def damage(broker, guest):
    """Each kind of damage is counted; somebody whose every frame is damaged is not recognised, and is when they are whole."""
    for kind in ("truncate", "garbage", "error"):
        before = [it for topic, it in broker.messages if topic == "health"][-1]["camera"]
        since = broker.mark()
        guest.tell(f"webcam {kind} 4")
        # A frame with the error bit is left out by kernels before 6.13 (then a gap in the numbers tells), and handed over
        # with a flag by later ones.
        counters = ("frames_unreadable", "frames_missed") if kind == "error" else ("frames_unreadable",)
        total = lambda camera: sum(camera[counter] for counter in counters)
        seen = health(broker, f"{kind}: counted", lambda it: total(it["camera"]) >= total(before) + 4, since)
        say(f"{kind}: {total(seen['camera']) - total(before)} of 4 frames counted as damaged or missed")
    since = broker.mark()
    guest.tell("webcam truncate 1000000")
    guest.tell("webcam show /img/second.jpg")
    lost = broker.event("camera", "nothing but damage: lost", since, lambda it: it["state"] == "lost")
    if "damaged" not in lost["reason"]:
        raise Failed(f"nothing but damage: the reason is {lost['reason']!r}")
    say(f"nothing but damage: lost ({lost['reason']})")
    if broker.count("attendance", since) or broker.count("unknown", since):
        raise Failed("somebody was recognised in damaged frames")
    guest.tell("webcam truncate 0")
    broker.event("attendance", "attendance of the second, now whole", since, is_of("second"))
    say("the same person in whole frames: attended")
    guest.tell("webcam show /img/empty.jpg")


def endure(broker, guest, cycles, stalls):
    guest.tell("webcam show /img/empty.jpg")
    lines = guest.mark()
    # Nothing is recognised here: the mask lies over the whole picture.
    guest.tell("start ROLLCALL_CAMERA_STALL_AFTER=1s ROLLCALL_CAMERA_FORMAT=mjpg")
    guest.until("camera streaming", lines)
    slowest, begun = 0.0, None
    for number in range(cycles + stalls):
        # The first ones warm up what is made only once.
        if number == min(5, cycles):
            begun = guest.measure()
        verb, back = ("unplug", "plug") if number < cycles else ("stall", "resume")
        lines = guest.mark()
        guest.tell(f"webcam {verb}")
        guest.until("camera lost", lines)
        again = time.monotonic()
        guest.tell(f"webcam {back}")
        guest.until("camera back", lines)
        slowest = max(slowest, time.monotonic() - again)
    ended = guest.measure()
    say(f"{cycles} times unplugged, {stalls} times stalled: back every time, the slowest {slowest:.1f} s after the cable was in")
    say(f"resident {begun[0]} → {ended[0]} KiB, descriptors {begun[1]} → {ended[1]}, threads {begun[2]} → {ended[2]}")
    if ended[1] > begun[1]:
        raise Failed("descriptors are left behind")
    # The allocator's own coming and going is below this; one leaked frame a cycle would be 200 x 600 KiB.
    if ended[0] > begun[0] + 8 * 1024:
        raise Failed("memory grows")
    guest.ask("stop", "VM ended 0")


def formats(broker, guest):
    """Formats and faults that the webcam in user space has not: those of the kernel's test driver."""
    settings = ["GAIN=77", "BRIGHTNESS=33", "POWER_LINE=50hz", "AUTO_EXPOSURE=off", "EXPOSURE=10ms"]
    lines = guest.mark()
    guest.tell("start " + " ".join(f"ROLLCALL_CAMERA_{setting}" for setting in settings))
    guest.until("camera streaming", lines)
    guest.until('format="YUYV"', lines)
    guest.until("power_line: the camera has no such control", lines)
    listed = json.loads(guest.ask("run rollcall --config /etc/rollcall/config.toml cameras --json", '{"cameras"'))
    camera = listed["cameras"][0]
    values = {control["name"]: control["value"] for control in camera["controls"]}
    if not camera["chosen"] or (values["Gain"], values["Brightness"]) != (77, 33):
        raise Failed(f"the controls are not as configured: {values}")
    say(f"{camera['card']}: controls set, those that it lacks are named")

    before = [it for topic, it in broker.messages if topic == "health"][-1]["camera"]["frames_unreadable"]
    since = broker.mark()
    guest.ask("run control /dev/video0 'Inject V4L2_BUF_FLAG_ERROR' 1", "VM ran 0")
    health(broker, "the error flag: counted", lambda it: it["camera"]["frames_unreadable"] > before, since)
    if broker.count("camera", since):
        raise Failed("one damaged frame is no loss")
    for fault in ("Inject Fatal Streaming Error", "Inject VIDIOC_STREAMON Error"):
        if "STREAMON" in fault:
            # Felt at the next start of the stream, which another error brings about.
            guest.ask(f"run control /dev/video0 '{fault}' 1", "VM ran 0")
        since = broker.mark()
        guest.ask("run control /dev/video0 'Inject Fatal Streaming Error' 1", "VM ran 0")
        lost = broker.event("camera", f"{fault}: lost", since, lambda it: it["state"] == "lost")
        back = broker.event("camera", f"{fault}: back", since, lambda it: it["state"] == "back")
        say(f"{fault}: lost ({lost['reason']}), back after {back['lost_ms']} ms")
    guest.ask("stop", "VM ended 0")

    each_format(broker, guest, ("nv12", "i420", "grey", "y10", "y12"))
    lines, since = guest.mark(), broker.mark()
    guest.tell("start ROLLCALL_CAMERA_FORMAT=mjpg")
    refused = broker.event("camera", "a format that it lacks: lost", since, lambda it: it["state"] == "lost")
    say(f"mjpg: {refused['reason']}")
    guest.ask("stop", "VM ended 0")


def planes(broker, guest):
    """Formats of one plane from a device that captures in planes only."""
    listed = json.loads(guest.ask("run rollcall --config /etc/rollcall/config.toml cameras --json", '{"cameras"'))
    camera = listed["cameras"][0]
    if not camera["chosen"] or camera["unusable"]:
        raise Failed(f"a camera in planes is not used: {camera['unusable']}")
    each_format(broker, guest, ("yuyv", "nv12", "i420", "grey", "y10"))


def each_format(broker, guest, names):
    for name in names:
        lines, since = guest.mark(), broker.mark()
        guest.tell(f"start ROLLCALL_CAMERA_FORMAT={name} ROLLCALL_CAMERA_GAIN=999 ROLLCALL_CAMERA_ROTATE=90")
        fourcc = "YU12" if name == "i420" else name.upper()
        guest.until(f'format="{fourcc}"', lines)
        guest.until("999 is not within 0 to 255", lines)
        seen = health(broker, f"{name}: frames are looked at", lambda it: it["camera"]["frames_analysed"] >= 2, since)
        if seen["camera"]["frames_unreadable"]:
            raise Failed(f"{name}: {seen['camera']}")
        say(f"{name}: {seen['camera']['frames_analysed']} frames looked at, none damaged")
        guest.ask("stop", "VM ended 0")


def config(port, mask=""):
    return f"""
[device]
site = "vm"
name = "door"
[storage]
directory = "/state"
[clock]
trust = "always"
[camera]
source = "v4l2"
fps = 5.0
{mask}
[recognition]
models = "/models"
runtime_library = "/lib/libonnxruntime.so"
threads = 1
# An emulated processor takes seconds for what a real one does in milliseconds.
samples_min = 1
unknown_samples = 8
lost_after = "30s"
[[venue]]
id = "main"
re_entry_gap = "0s"
[mqtt]
host = "10.0.2.2"
port = {port}
health_every = "1s"
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=ROOT / "target" / "debug" / "rollcall", type=pathlib.Path)
    parser.add_argument("--cycles", default=10, type=int)
    parser.add_argument("--stalls", default=3, type=int)
    parser.add_argument("--only", choices=list(PARTS))
    options = parser.parse_args()
    if not options.program.is_file():
        raise Failed(f"{options.program} is not built")
    kernel, programs, pictures = prepare(options.program)
    say("everything is there")
    passed = []
    for name, drivers in PARTS.items():
        if options.only not in (None, name) or (name == "endure" and options.cycles + options.stalls == 0):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder, broker, guest = pathlib.Path(folder), None, None
            try:
                broker = Broker(folder)
                mask = "mask = [[0.0, 0.0, 1.0, 1.0]]" if name == "endure" else ""
                guest = Guest(folder, kernel, programs, pictures, config(broker.port, mask), drivers)
                if name == "recognise":
                    recognise(broker, guest)
                elif name == "formats":
                    formats(broker, guest)
                elif name == "planes":
                    planes(broker, guest)
                else:
                    endure(broker, guest, options.cycles, options.stalls)
                passed.append(name)
            except Failed:
                if guest:
                    guest.explain()
                if broker:
                    print(f"the last message: {broker.messages[-1:]}", file=sys.stderr)
                raise
            finally:
                if guest:
                    guest.end()
                if broker:
                    broker.end()
    say(f"passed: {', '.join(passed)}")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print(f"camera test: FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
